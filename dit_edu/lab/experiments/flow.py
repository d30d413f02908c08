"""The chapter on the flow: where training looks, and what more of it brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.lab import zoo
from dit_edu.lab.baselines import Labelled, memorise
from dit_edu.lab.data import digits, folds
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import definition, quality, recipe_of, trained
from dit_edu.lab.features import load_features
from dit_edu.lab.metrics import evaluate_on, frechet_distance
from dit_edu.lab.recipes import RECIPES, Recipe
from dit_edu.lab.train import run

SHIPPED = "digits-flow"
DRAWS = 16  # sets of samples, each as large as the half they are compared with
POOLED = (2, 4, 8, 16)  # draws put together and measured as one set
KEPT = ("fd_ratio", "accuracy", "precision", "recall", "closer")


def times_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure: held-out loss at times spread evenly, samples of 20 Euler steps."""
    model, recipe = trained(setting, seed, []), recipe_of(setting)
    return quality(model, recipe, Sampling.usual(recipe.process, steps=20))


def longer_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train the zoo's flow on a fold of the training half, judge by the other; the seed says which.

    It passes over its images as often as the zoo's did over all, or ``times`` as often.
    """
    images, labels = digits("train")
    fit, judge = folds(labels)[seed]
    part, rest = (images[fit], labels[fit]), (images[judge], labels[judge])
    recipe = RECIPES[SHIPPED]
    updates = round(setting["times"] * recipe.steps * len(fit) / len(labels))
    model = run(replace(recipe, steps=updates), device="cpu", data=part, progress=False).model
    sets = _drawn(model, recipe, rest[1], range(setting["draws"]))
    return _over_draws(sets, part, rest)


def draws_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Draw the held-out half's labels again and again: each draw measured, and draws together.

    The model is trained with its recipe and ``seed``; the memoriser has nothing to train.
    """
    train, heldout = digits("train"), digits("heldout")
    draws = setting["draws"]
    noise = range(seed * draws, (seed + 1) * draws)
    if setting["model"] == "memoriser":
        sets = [memorise(train, heldout[1], seed=k) for k in noise]
    else:
        recipe = RECIPES[setting["model"]]
        model = run(recipe, seed=seed, device="cpu", progress=False).model
        sets = _drawn(model, recipe, heldout[1], noise)
    features = load_features("digits-features")
    limit = frechet_distance(train[0], heldout[0], features)
    pooled = {
        f"pooled-{k}": fmean(
            frechet_distance(torch.cat(sets[i : i + k]), heldout[0], features) / limit
            for i in range(0, draws, k)
        )
        for k in POOLED
    }
    return _over_draws(sets, train, heldout) | {name: plain(x) for name, x in pooled.items()}


def _drawn(model: nn.Module, recipe: Recipe, labels: Tensor, noise: Sequence[int]) -> list[Tensor]:
    """Sets of samples, (n, C, H, W) each, drawn as the zoo draws them, one for each seed of it."""
    process, sampling = recipe.process.build(), Sampling(**zoo.card(recipe.name)["sampling"])
    return [draw(model, process, labels, sampling, seed=k) for k in noise]


def _over_draws(sets: Sequence[Tensor], part: Labelled, rest: Labelled) -> dict[str, Any]:
    """The mean of each measure over sets of samples, and how far the distance varies."""
    features = load_features("digits-features")
    rows = [evaluate_on(samples, rest[1], part, rest, features) for samples in sets]
    found = {name: fmean(row[name] for row in rows) for name in KEPT}
    found["fd_ratio_sd"] = stdev(row["fd_ratio"] for row in rows)
    return {name: plain(value) for name, value in found.items()}


EXPERIMENTS = (
    Experiment(
        name="flow-draws",
        about="The digits models and a memoriser: many draws of as many samples, and all together",
        settings={
            name: {"model": name, "draws": DRAWS} for name in (SHIPPED, "digits-dit", "memoriser")
        },
        seeds=range(3),
        compute=draws_cell,
    ),
    Experiment(
        name="flow-longer",
        about="The zoo's flow, trained as long or twice as long, on two folds of the training half",
        settings={
            name: {"times": times, "draws": DRAWS}
            for name, times in (("as shipped", 1), ("twice", 2))
        },
        seeds=range(2),
        compute=longer_cell,
    ),
    Experiment(
        name="flow-times",
        about="Uniform against logit-normal times, on the small digits model as a flow",
        settings={
            times: definition(process={"schedule": schedule}, **changes)
            for times, schedule, changes in (
                ("uniform", "flow", {}),
                ("logit-normal", "flow-logit-normal", {}),
                ("uniform, 600 updates", "flow", {"steps": 600}),
                ("logit-normal, 600 updates", "flow-logit-normal", {"steps": 600}),
            )
        },
        seeds=range(5),
        compute=times_cell,
    ),
)
