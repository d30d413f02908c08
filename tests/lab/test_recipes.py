"""Recipes: what they refuse, the two schedules against torch's own, the round trip through JSON."""

import json
from dataclasses import replace

import pytest
import torch

from dit_edu.flow import FlowMatching
from dit_edu.lab.recipes import RECIPES, Process, Recipe, get_recipe

RECIPE = RECIPES["digits-dit"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr_floor", 1.5),
        ("warmup", -1),
        ("warmup", 10**6),
        ("warmup", 1.5),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("grad_clip", 0.0),
        ("ema_decay", 1.01),
        ("noise_bins", 0),
        ("checkpoint_every", 0),
        ("data", "digitz"),
        ("kind", "DIT"),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises((TypeError, ValueError), match=field) as caught:
        replace(RECIPE, **{field: value})
    assert "allowed" in str(caught.value) or "must be" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("schedule", "cosin"), ("prediction", "V"), ("num_timesteps", 0)]
)
def test_a_bad_process_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        Process(**{field: value})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(schedule="flaw"), "schedule='flaw' is unknown.*Did you mean 'flow'"),
        (dict(schedule="flow", prediction="eps"), "prediction='eps' with schedule='flow'; .*'v'"),
        (dict(schedule="flow", num_timesteps=50), "num_timesteps=50 with .*allowed: 1000"),
        (dict(schedule="flow-logit-normal", min_snr=5.0), "min_snr=5.0 with .*allowed: None"),
        (dict(variance="learned"), "variance='learned' is unknown"),
        (dict(variance="learned-range", loss="simple"), "do not go together"),
        (dict(loss="hybrid"), "do not go together"),
        (dict(min_snr=0.0), "min_snr=0.0"),
        (dict(levels=1), "levels=1"),
        (dict(schedule="linear", num_timesteps=10), "betas runs"),
    ],
)
def test_options_that_do_not_fit_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        Process(**fields)


def test_a_process_builds_what_it_names():
    learnt = Process("linear", "eps", 500, variance="learned-range", min_snr=5.0, levels=17).build()
    assert (learnt.num_timesteps, learnt.prediction) == (500, "eps")
    assert (learnt.variance, learnt.loss) == ("learned-range", "hybrid")
    assert (learnt.min_snr, learnt.levels) == (5.0, 17)
    for schedule, times in (("flow", "uniform"), ("flow-logit-normal", "logit-normal")):
        flow = Process(schedule=schedule).build()
        assert isinstance(flow, FlowMatching)
        assert flow.times == times


def test_a_recipe_of_an_older_card_is_still_read():
    content = RECIPE.as_dict()
    content["process"] = {"schedule": "cosine", "prediction": "v", "num_timesteps": 1000}
    assert Recipe.from_dict(content).process == Process()


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'digits-dit'"):
        get_recipe("digit-dit")


@pytest.mark.parametrize(("warmup", "floor"), [(0, 0.0), (1, 0.1), (10, 0.0), (25, 0.2)])
def test_the_learning_rate_is_that_of_torchs_schedulers(warmup, floor):
    recipe = replace(RECIPE, steps=100, warmup=warmup, lr=3e-3, lr_floor=floor)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=100 - warmup, eta_min=floor * recipe.lr
    )
    for step in range(warmup):
        assert recipe.lr_at(step) == pytest.approx(recipe.lr * (step + 1) / warmup)
    for step in range(warmup, 100):
        assert recipe.lr_at(step) == pytest.approx(cosine.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        cosine.step()


def test_the_average_is_young_at_first():
    recipe = replace(RECIPE, ema_decay=0.9)
    assert recipe.ema_decay_at(0) == pytest.approx(1 / 10)
    assert recipe.ema_decay_at(8) == pytest.approx(9 / 18)
    assert recipe.ema_decay_at(10_000) == 0.9


def test_a_recipe_survives_json():
    recipe = replace(
        RECIPE,
        model={**RECIPE.model, "input_size": (8, 8)},
        betas=(0.8, 0.95),
        process=Process(schedule="flow"),
    )
    back = Recipe.from_dict(json.loads(json.dumps(recipe.as_dict())))
    assert recipe.difference(back) is None
    assert isinstance(back.process, Process)
    assert back.betas == recipe.betas


def test_the_difference_names_the_field_and_ignores_what_does_not_train():
    assert RECIPE.difference(replace(RECIPE, about="other", checkpoint_every=7)) is None
    assert RECIPE.difference(replace(RECIPE, lr=0.5)) == f"lr: {RECIPE.lr} against 0.5"
    other = replace(RECIPE, process=Process(prediction="eps"))
    assert RECIPE.difference(other).startswith("process: ")


@pytest.mark.parametrize("content", [{}, {"name": "x"}, {**RECIPE.as_dict(), "colour": "red"}])
def test_a_foreign_dictionary_is_refused(content):
    with pytest.raises(ValueError, match="not a recipe"):
        Recipe.from_dict(content)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_a_denoiser(name):
    recipe = RECIPES[name]
    model, diffusion = recipe.build_model(), recipe.process.build()
    x = torch.zeros(2, model.in_channels, *model.input_size)
    losses = diffusion.losses(model, x, torch.tensor([0, 999]), torch.tensor([0, 1]))
    assert losses["loss"].shape == (2,)
    assert recipe.about
