"""Autoencoders: trained, measured, shipped; and models on their latents, from recipe to image."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dit_edu.lab import autoencoder, data, zoo
from dit_edu.lab.autoencoder import RECIPES, measure_vae, psnr, release_vae, train_vae
from dit_edu.lab.cli import main
from dit_edu.lab.data import dataset
from dit_edu.lab.draw import Sampling, cycle_labels, draw
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.scenes import shapes
from dit_edu.lab.train import run
from dit_edu.latents import VAE

TINY = {"input_size": 16, "latent_channels": 2, "widths": [4, 4], "num_groups": 2}
RECIPE = replace(RECIPES["shapes-vae"], name="tiny-vae", model=TINY, steps=12, batch_size=8)
MODEL = Recipe(
    name="tiny",
    data="shapes",
    latents="tiny-vae",
    model=dict(
        input_size=8, patch_size=4, in_channels=2, hidden_size=16, depth=1, num_heads=2,
        num_classes=12, learn_sigma=False,
    ),
    steps=2,
    batch_size=8,
    warmup=0,
)  # fmt: skip


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty zoo, few and small scenes, and recipes of tiny models."""
    monkeypatch.setattr(zoo, "ZOO", tmp_path)

    def load(split, **options):
        scenes = shapes(60, size=16, seed=int(split == "heldout"), **options)
        return scenes.images, scenes.label

    small = replace(data.DATASETS["shapes"], load=load, size=16)
    monkeypatch.setitem(data.DATASETS, "shapes", small)
    monkeypatch.setitem(autoencoder.RECIPES, "tiny-vae", RECIPE)
    return tmp_path


def test_psnr_is_its_formula():
    x = torch.zeros(2, 3, 4, 4)
    assert psnr(x, x + 0.2) == pytest.approx(20.0)  # 10 log10(4 / 0.04)


def test_training_repeats_itself_learns_and_fits_the_scale(shelf):
    torch.rand(3)
    state = torch.get_rng_state()
    longer = replace(RECIPE, steps=40)
    vae, again = train_vae(longer), train_vae(longer)
    assert torch.equal(torch.get_rng_state(), state)
    mine, theirs = vae.state_dict(), again.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    images = dataset("shapes").load("train", level="free")[0]
    start = VAE(**TINY)
    assert psnr(images, vae.decode(vae.encode(images))) > psnr(
        images, start.decode(start.encode(images))
    )
    z = vae.encode(images)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(2), rtol=1e-4, atol=0)


def test_a_part_of_the_training_half_is_all_that_is_seen(shelf, monkeypatch):
    load, seen = dataset("shapes").load, []

    def first_ten(split, **options):
        images, labels = load(split, **options)
        seen.append(options)
        return images[:10], labels[:10]

    part = train_vae(RECIPE, n=10)
    fewer = replace(data.DATASETS["shapes"], load=first_ten)
    monkeypatch.setitem(data.DATASETS, "shapes", fewer)
    mine, theirs = part.state_dict(), train_vae(RECIPE).state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert seen == list(RECIPE.views)


def test_measured_is_what_the_names_say(shelf):
    vae = train_vae(RECIPE)
    found = measure_vae(vae, RECIPE, 20)
    images, labels = (part[:20] for part in dataset("shapes").load("heldout", level="free"))
    again = vae.decode(vae.encode(images))
    assert found["psnr"] == pytest.approx(10 * math.log10(4 / (images - again).square().mean()))
    assert found["accuracy"] == (dataset("shapes").judge(again) == labels).double().mean()
    assert found["nats"] == pytest.approx(
        vae.net.encode(images).latent_dist.kl().mean().item(), rel=1e-4
    )
    assert found["std"] == vae.std.flatten().tolist()


def test_from_the_autoencoder_to_an_image_by_the_command_line(shelf, capsys, tmp_path):
    card = release_vae("tiny-vae", report=lambda line: None)
    assert zoo.card("tiny-vae") == card
    keys = "name kind about config recipe seed steps device threads seconds versions commit metrics"
    assert set(card) == {*keys.split(), "sha256"}
    result = run(MODEL, out=shelf / "run", device="cpu", progress=False)
    assert main(["sample", str(shelf / "run"), "--out", str(tmp_path / "x.npz"), "--n", "5"]) == 0
    import numpy as np

    made = np.load(tmp_path / "x.npz")
    assert made["images"].shape == (5, 3, 16, 16) and made["images"].dtype == np.float32
    assert made["images"].min() >= 0 and made["images"].max() <= 1
    vae = zoo.load_vae(MODEL)
    assert isinstance(vae, VAE)
    process = MODEL.process.build()
    images = draw(result.model, process, cycle_labels(5, 12), Sampling(50), vae=vae)
    assert (images.numpy() + 1) / 2 == pytest.approx(made["images"], abs=1e-5)


def test_latents_are_not_clamped_but_images_are(shelf):
    release_vae("tiny-vae", report=lambda line: None)
    vae, seen = zoo.load_vae(MODEL), []
    vae.decode = lambda latents: (seen.append(latents), torch.zeros(len(latents), 3, 16, 16))[1]
    model = MODEL.build_model().eval()
    torch.nn.init.constant_(model.final_layer.linear.bias, -3.0)
    images = draw(model, MODEL.process.build(), cycle_labels(4, 12), Sampling(5), vae=vae)
    assert images.shape == (4, 3, 16, 16) and seen[0].abs().max() > 1
    bare = draw(model, MODEL.process.build(), cycle_labels(4, 12), Sampling(5))
    assert bare.shape == (4, 2, 8, 8) and bare.abs().max() <= 1


def test_training_sees_the_latents(shelf):
    release_vae("tiny-vae", report=lambda line: None)
    vae, seen = zoo.load_vae(MODEL), []

    def loss_fn(model, process, x0, t, y, noise):
        seen.append(x0)
        return process.losses(model, x0, t, y, noise=noise)

    run(MODEL, device="cpu", progress=False, loss_fn=loss_fn)
    every = vae.encode(dataset("shapes").load("train")[0])
    assert seen[0].shape == (8, 2, 8, 8)
    for latents in seen[0]:
        assert (latents - every).abs().flatten(1).amax(1).min() < 1e-5


def test_latents_of_what_is_no_autoencoder_are_refused(shelf):
    assert zoo.load_vae(replace(MODEL, latents=None)) is None
    with pytest.raises(ValueError, match="name='tiny-vae' is unknown"):
        zoo.load_vae(MODEL)
    model = MODEL.build_model()
    zoo.save("tiny-vae", model, {"kind": "DiT", "config": MODEL.model})
    with pytest.raises(ValueError, match="latents='tiny-vae' is a 'DiT', no autoencoder"):
        zoo.load_vae(MODEL)
    with pytest.raises(ValueError, match="Did you mean 'shapes-vae'"):
        release_vae("shape-vae")


# ---------------------------------------------------------------------- what is shipped


def test_the_shipped_autoencoder_is_as_good_as_the_book_says():
    vae, card = zoo.load("shapes-vae")
    images, labels = (part[:200] for part in dataset("shapes").load("heldout"))
    z = vae.encode(images)
    again = vae.decode(z)
    assert z.shape == (200, 4, 8, 8)
    assert psnr(images, again) == pytest.approx(card["metrics"]["psnr"], abs=0.7)
    assert card["metrics"]["psnr"] > 34 and card["metrics"]["accuracy"] > 0.98
    assert (dataset("shapes").judge(again) == labels).double().mean() > 0.97
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.15)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), rtol=0.1, atol=0)


def test_shapes_dit_is_as_good_as_the_book_says():
    """The figures of its card, mean of three seeds, beside those who learn nothing."""
    card = zoo.card("shapes-dit")
    mean, references = card["metrics"]["mean"], card["references"]
    assert len(card["metrics"]["per_seed"]) == 3
    assert mean["accuracy"] >= 0.95 and mean["closer"] <= 0.60
    gaussian = references["gaussian"]
    assert mean["accuracy"] > gaussian["accuracy"] and mean["precision"] > gaussian["precision"]
    assert references["autoencoder"]["fd"] < mean["fd"] < gaussian["fd"]
    model, _ = zoo.load("shapes-dit")
    asked = cycle_labels(60, 12)
    recipe = Recipe.from_dict(card["recipe"])
    images = draw(
        model, recipe.process.build(), asked, Sampling(10, card["sampling"]["scale"]),
        vae=zoo.load_vae(recipe),
    )  # fmt: skip
    assert (dataset("shapes").judge(images) == asked).double().mean() > 0.85


def test_what_is_shipped_is_small():
    sizes = {path.stem: path.stat().st_size for path in zoo.ZOO.glob("*.safetensors")}
    assert {"shapes-dit", "shapes-vae", "shapes-features"} <= sizes.keys()
    assert max(sizes.values()) < 1_500_000
    assert sum(sizes.values()) < 1_000_000 * len(sizes)  # a model is a megabyte at most, on average
