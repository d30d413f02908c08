"""The race between DiT and U-Net: a fair match, an honest choice, and the figures made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.lab import zoo
from dit_edu.lab.data import digits
from dit_edu.lab.experiments import experiments, read
from dit_edu.lab.experiments.unet import (
    BEST,
    DIGITS,
    KINDS,
    PIXEL,
    SCENE_BEST,
    SCENES,
    SIZES,
    STEPS,
    TS,
    WORDS,
    conditions,
    cost,
    fields_by_step,
    fresh,
    matching,
    recipe_of,
    shifted,
    some,
    vae_for,
    ways,
)
from dit_edu.lab.figures import larger_scenes, where_they_look
from dit_edu.lab.figures.unet import STATES, fields_of, others, reach
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.scenes import CLASS_NAMES
from dit_edu.lab.train import train
from dit_edu.unet import UNet, receptive_field


def build(setting: dict) -> nn.Module:
    return KINDS[setting["kind"]](**setting["model"]).eval()


def test_the_match_is_within_five_per_cent():
    params, macs = cost(build(DIGITS["DiT"]))
    assert abs(cost(build(DIGITS["U-Net, parameters"]))[0] / params - 1) <= 0.05
    assert abs(cost(build(DIGITS["U-Net, MACs"]))[1] / macs - 1) <= 0.05
    assert abs(cost(build(SCENES["U-Net"]))[1] / cost(build(SCENES["DiT"]))[1] - 1) <= 0.05


def test_the_search_finds_what_matches_and_nothing_else():
    arguments = {k: v for k, v in DIGITS["U-Net, MACs"]["model"].items() if k != "widths"}
    wanted = cost(UNet(**arguments, widths=(12, 20)))
    params, macs = matching(arguments, wanted, (range(8, 17, 4), range(16, 25, 4)), within=0.005)
    assert params == {(12, 20): wanted[0]} and macs == {(12, 20): wanted[1]}


@pytest.mark.parametrize(("table", "best"), [("unet-lr", BEST), ("unet-scenes-lr", SCENE_BEST)])
def test_each_has_the_rate_that_was_best_on_the_fold(table, best):
    found: dict[str, dict[float, float]] = {}
    for row in read(table):
        name, rate = row["setting"].split(", lr ")
        found.setdefault(name, {})[float(rate)] = row["metrics"]["loss"]
    assert best == {name: min(rates, key=rates.get) for name, rates in found.items()}


def test_all_else_is_equal():
    for table in ("unet", "unet-few", "unet-scenes"):
        recipes = [recipe_of(setting) for setting in experiments()[table].settings.values()]
        for name in ("data", "process", "steps", "batch_size", "warmup", "betas", "ema_decay"):
            assert all(getattr(recipe, name) == getattr(recipes[0], name) for recipe in recipes)


def test_a_recipe_trains_it_and_the_zoo_loads_it(tmp_path):
    recipe = Recipe(
        name="digits-unet", kind="UNet", model=DIGITS["U-Net, MACs"]["model"], steps=2, warmup=1
    )
    *_, step = train(recipe, out=tmp_path, device="cpu")
    model, card = zoo.load(tmp_path)
    assert card["kind"] == "UNet" and isinstance(model, UNet)
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 10])
    assert torch.equal(model(x, t, y), step.ema(x, t, y))


def test_fewer_digits_are_of_the_training_half_and_of_all_classes():
    half = {image.numpy().tobytes() for image in digits("train")[0]}
    for n in SIZES:
        images, labels = some(n, seed=1)
        assert len(images) == n and {image.numpy().tobytes() for image in images} <= half
        assert labels.bincount().min() >= n // 10 - 2
    assert torch.equal(some(100, 1)[0], some(100, 1)[0])
    assert not torch.equal(some(100, 1)[0], some(100, 2)[0])


def test_shifted_digits_stand_a_pixel_to_the_right():
    images, _ = digits("heldout")
    moved = shifted(images)
    assert torch.equal(moved[..., 1:], images[..., :-1])
    assert (moved[..., 0] == -1).all()


def test_words_say_shape_and_colour():
    labels = torch.arange(len(CLASS_NAMES))
    assert torch.equal(conditions(labels, captioned=False), labels // 4)
    for label, (shape, *words) in zip(labels, conditions(labels, captioned=True), strict=True):
        assert " ".join(WORDS[word] for word in words) == CLASS_NAMES[label]
        assert WORDS[4 + shape] in CLASS_NAMES[label]


def test_every_model_draws_larger_scenes():
    t, y = torch.tensor([500]), conditions(torch.tensor([7]), captioned=True)
    for name, setting in SCENES.items():
        told = y if "words" in setting["model"] else y[:, 0]
        for way, model in ways(build(setting)).items():
            side = int(way.split()[0])
            x = torch.zeros(1, 4, side, side)
            assert model(x, t, told).shape == x.shape, name
    latents = torch.randn(1, 4, 12, 12)
    assert vae_for(12).decode(latents).shape == (1, 3, 48, 48)


def test_a_woken_dit_sees_its_patch_and_a_unet_more():
    process = GaussianDiffusion.cosine(1000, prediction="v")
    settings = experiments()["unet-cost"].settings
    dit = fields_by_step(fresh(recipe_of(settings["DiT"])), process)
    unet = fields_by_step(fresh(recipe_of(settings["U-Net, MACs"])), process)
    torch.testing.assert_close(dit[:, 2:4, 2:4].sum((1, 2)), torch.ones(len(TS)))
    assert (unet[:, 2:4, 2:4].sum((1, 2)) < 0.9).all()


def test_how_far_a_field_looks():
    one = np.zeros((2, 8, 8))
    one[0, 3, 3] = one[1, 3, 6] = one[1, 3, 0] = 0.5
    one[0, 5, 3] = 0.5
    rest = others(one, PIXEL)
    np.testing.assert_allclose(rest.sum((1, 2)), 1)
    np.testing.assert_allclose(reach(rest), [2, 3])
    offsets = np.arange(8) - 3  # all pixels alike: the mean square of both coordinates
    want = np.sqrt(2 * np.mean(offsets**2) * 64 / 63)
    np.testing.assert_allclose(reach(others(np.ones((8, 8)), PIXEL)), want)


@pytest.mark.parametrize("to", ["to_x0", "to_eps"])
def test_beside_the_pixel_itself_it_does_not_matter_what_is_predicted(to):
    """x_0 and ε are affine in v and x_t, and x_t enters at its own place only."""
    process = GaussianDiffusion.cosine(1000, prediction="v")
    model = build(DIGITS["U-Net, MACs"]).double()
    images, labels = (part[:4] for part in digits("heldout"))
    x, t = images.double(), torch.full((4,), 300)

    def answer(x, t, y):
        return getattr(process, to)(model(x, t, y), x, t)

    found = [receptive_field(m, x, t, labels, PIXEL).numpy() for m in (model, answer)]
    np.testing.assert_allclose(*(others(field, PIXEL) for field in found), rtol=1e-8)
    assert abs(found[0][PIXEL] - found[1][PIXEL]) > 1e-3


def test_the_figure_shows_the_table():
    figure = where_they_look()
    dit, unet, far = figure.panels
    for panel, name in ((dit, "DiT"), (unet, "U-Net, MACs")):
        shown = np.asarray(panel.values) ** 2  # (states, ts, 8, 8), the largest is 1
        for i, state in enumerate(STATES):
            field = fields_of(name, state).mean(0)
            np.testing.assert_allclose(shown[i], field / field.max((1, 2), keepdims=True))
    trained = fields_of("DiT", f"{STEPS} updates")
    assert trained.shape == (3, len(TS), 8, 8)
    np.testing.assert_allclose(far.lines[0].y[1], reach(trained).mean(0))
    kept = [r["metrics"]["fields"] for r in read("unet") if r["setting"] == "DiT"]
    np.testing.assert_allclose(np.sum(kept, (2, 3)), 1, atol=0.02)  # they have three digits


def test_the_pictures_are_those_of_the_table():
    figure = larger_scenes()
    images, bars = figure.panels
    assert np.shape(images.frames)[:2] == np.shape(bars.values) == (3, 3)
    frames = np.asarray(images.frames)
    assert frames.min() >= -1 and frames.max() <= 1
    stretched = [
        100 * row["metrics"]["shape 16 stretch"]
        for row in read("unet-scenes")
        if row["setting"] == "DiT, words as tokens"
    ]
    np.testing.assert_allclose(np.asarray(bars.values)[0, 2], np.mean(stretched))
