"""The chapter on the flow: where training looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import definition, heldout_loss, recipe_of, trained
from dit_edu.lab.release import measure


def times_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure: held-out loss at times spread evenly, samples of 20 Euler steps."""
    model, recipe = trained(setting, seed, []), recipe_of(setting)
    loss = heldout_loss(model, recipe.process.build())
    drawn = measure(model, recipe, Sampling.usual(recipe.process, steps=20))
    return {
        "loss": plain(loss.mean(), 6),
        "loss_by_bin": plain(loss.tolist(), 6),
        "accuracy": plain(drawn["accuracy"]),
        "fd_ratio": plain(drawn["fd_ratio"]),
    }


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
