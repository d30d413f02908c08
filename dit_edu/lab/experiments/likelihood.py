"""The chapter on the likelihood: fixed and learnt variances, simple, hybrid and full loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import definition, recipe_of, trained
from dit_edu.lab.release import measure
from dit_edu.likelihood import bits_per_dim

LEVELS = 17  # of the digits' pixels
IMAGES = 100  # held-out digits whose bits are counted


def variance_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure: bits per dimension of held-out digits, samples of few DDPM steps."""
    model, recipe = trained(setting, seed, []), recipe_of(setting)
    images, labels = (part[:IMAGES] for part in digits("heldout"))
    noise = torch.Generator().manual_seed(0)
    process = recipe.process.build()
    bits = bits_per_dim(model, process, images, labels, generator=noise)
    terms = bits["terms"].mean(0)  # (B, T) -> (T,)
    found = {"bits": plain(bits["total"].mean(), 6)}
    found["bits_by_bin"] = plain(terms.unflatten(0, (10, -1)).sum(1).tolist(), 6)  # (T,) -> (10,)
    for steps in (10, 50):
        drawn = measure(model, recipe, Sampling(steps=steps, sampler="ddpm"))
        found[f"fd_ratio_{steps}"] = plain(drawn["fd_ratio"])
        found[f"accuracy_{steps}"] = plain(drawn["accuracy"])
    return found


def _setting(variance: str, loss: str = "simple") -> dict[str, Any]:
    learnt = variance == "learned-range"
    process = {"variance": variance, "loss": loss, "levels": LEVELS}
    return definition(process=process, model={"learn_sigma": learnt})


EXPERIMENTS = (
    Experiment(
        name="variances",
        about="Fixed and learnt variances of the small digits model: bits and samples",
        settings={
            "fixed-small": _setting("fixed-small"),
            "fixed-large": _setting("fixed-large"),
            "learnt, hybrid": _setting("learned-range", "hybrid"),
            "learnt, full bound": _setting("learned-range", "vlb"),
        },
        seeds=range(4),
        compute=variance_cell,
    ),
)
