"""The chapter on the flow: where training looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_edu.lab.draw import Sampling
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import definition, quality, recipe_of, trained


def times_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure: held-out loss at times spread evenly, samples of 20 Euler steps."""
    model, recipe = trained(setting, seed, []), recipe_of(setting)
    return quality(model, recipe, Sampling.usual(recipe.process, steps=20))


EXPERIMENTS = (
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
