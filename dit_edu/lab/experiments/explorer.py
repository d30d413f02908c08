"""The shipped dynamic models at several budgets: time along a trajectory, and what is drawn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dit_edu.dddit.model import DDDiT
from dit_edu.lab import zoo
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.journey import journey
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.release import measure
from dit_edu.sampling import timestep_grid

STEPS = 16  # of DDIM
BATCH = 16  # images in a pass whose time is shown
#: What may run, by the name that the reader sees, from little to much: mode and budget.
BUDGETS: dict[str, tuple[str, float | None]] = {
    "light": ("light", None),
    "1/4": ("dynamic", 0.25),
    "1/2": ("dynamic", 0.5),
    "router": ("dynamic", None),
    "3/4": ("dynamic", 0.75),
    "full": ("full", None),
}


def set_budget(model: DDDiT, budget: str) -> None:
    """Let a model run what a key of ``BUDGETS`` allows."""
    model.mode, model.budget = BUDGETS[budget]


@torch.no_grad()
def time_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Milliseconds of one pass at each step of a trajectory, by budget; least of some turns.

    The seed numbers the repetitions.
    """
    model, n = zoo.load(setting["model"])[0], setting["batch"]
    torch.manual_seed(seed)
    x = torch.randn(n, model.in_channels, *model.input_size)
    y = torch.arange(n) % model.num_classes
    steps = [int(t) for t in timestep_grid(1000, STEPS)]
    best = np.full((len(BUDGETS), STEPS), np.inf)
    for _ in range(setting["turns"]):
        for row, budget in enumerate(BUDGETS):
            set_budget(model, budget)
            for again in (False, True):  # the first walk warms up
                for k, step in enumerate(steps):
                    t = torch.full((n,), step)
                    start = time.perf_counter()
                    model(x, t, y)
                    if again:
                        best[row, k] = min(best[row, k], time.perf_counter() - start)
    return {"milliseconds": plain(1000 * best, 4)}


def quality_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Draw at a budget and measure against the held-out half; the seed is that of the noise."""
    model, card = zoo.load(setting["model"])
    recipe = Recipe.from_dict(card["recipe"])
    set_budget(model, setting["budget"])
    sampling = Sampling.usual(recipe.process, STEPS, card["sampling"]["scale"])
    drawn = measure(model, recipe, sampling, seed=seed)
    y = torch.arange(model.num_classes)
    way = journey(model, recipe.process.build(), y, STEPS, vae=zoo.load_vae(recipe))
    return {
        "fd_ratio": plain(drawn["fd_ratio"]),
        "accuracy": plain(drawn["accuracy"]),
        "macs": plain(float(way.macs.mean()), 8),
    }


MODELS = ("shapes-dddit", "digits-dddit")
EXPERIMENTS = (
    Experiment(
        name="explorer",
        about="Samples of the shipped dynamic models at several budgets",
        settings={
            f"{name}, {budget}": {"model": name, "budget": budget}
            for name in MODELS
            for budget in BUDGETS
        },
        seeds=range(3),
        compute=quality_cell,
    ),
    Experiment(
        name="explorer-cost",
        about="Milliseconds of a pass of the dynamic models at each step, by budget",
        settings={
            f"{name}, batch {batch}": {"model": name, "batch": batch, "turns": 10}
            for name in MODELS
            for batch in (1, BATCH)
        },
        seeds=range(3),
        compute=time_cell,
    ),
)
