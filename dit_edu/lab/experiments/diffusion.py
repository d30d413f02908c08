"""The chapter on the process: what the network predicts, and how noise levels are weighted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import (
    definition,
    heldout_batch,
    mean_by_bin,
    recipe_of,
    trained,
)
from dit_edu.lab.release import measure


def guess_error(model: nn.Module, process: GaussianDiffusion) -> Tensor:
    """The mean squared error of x̂_0 on the held-out digits by range of t, (bins,).

    It is in the same unit whatever the network predicts. x̂_0 is clamped to [-1, 1] as samplers do.
    """
    x0, t, y, noise = heldout_batch(process)
    with torch.no_grad():
        x_t = process.q_sample(x0, t, noise)
        guess, _ = process.predict(model(x_t, t, y), x_t, t, clip=True)  # (n, C, H, W)
    return mean_by_bin((guess - x0).square().flatten(1).mean(1), t, process)


def objective_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure the averaged model: error of x̂_0, samples of 20 DDIM steps."""
    model, recipe = trained(setting, seed, []), recipe_of(setting)
    error = guess_error(model, recipe.process.build())
    drawn = measure(model, recipe, Sampling(steps=20))
    return {
        "error": plain(error.mean(), 6),
        "error_by_bin": plain(error.tolist(), 6),
        "accuracy": plain(drawn["accuracy"]),
        "fd_ratio": plain(drawn["fd_ratio"]),
    }


def _setting(prediction: str, min_snr: float | None = None) -> dict[str, Any]:
    return definition(process={"prediction": prediction, "min_snr": min_snr})


EXPERIMENTS = (
    Experiment(
        name="objectives",
        about="ε, x0 and v, each with and without min-SNR weights, on the small digits model",
        settings={
            "v": _setting("v"),
            "v, min-SNR 5": _setting("v", 5.0),
            "v, min-SNR 1": _setting("v", 1.0),
            "x0": _setting("x0"),
            "x0, min-SNR 5": _setting("x0", 5.0),
            "ε": _setting("eps"),
            "ε, min-SNR 5": _setting("eps", 5.0),
        },
        seeds=range(5),
        compute=objective_cell,
    ),
)
