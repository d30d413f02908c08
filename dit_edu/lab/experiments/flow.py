"""The chapter on the flow: where training looks, and what more of it brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dit_edu.lab import zoo
from dit_edu.lab.data import digits, folds
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import definition, quality, recipe_of, trained
from dit_edu.lab.features import load_features
from dit_edu.lab.metrics import evaluate_on
from dit_edu.lab.recipes import RECIPES
from dit_edu.lab.train import run

SHIPPED = "digits-flow"


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
    sampling = Sampling(**zoo.card(SHIPPED)["sampling"])
    samples = draw(model, recipe.process.build(), rest[1], sampling)
    found = evaluate_on(samples, rest[1], part, rest, load_features("digits-features"))
    return {name: plain(found[name]) for name in ("fd_ratio", "accuracy", "recall", "closer")}


EXPERIMENTS = (
    Experiment(
        name="flow-longer",
        about="The zoo's flow, trained as long or twice as long, on two folds of the training half",
        settings={"as shipped": {"times": 1}, "twice": {"times": 2}},
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
