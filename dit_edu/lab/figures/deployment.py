"""The figure of the chapter on deployment: what rounding to few bits does to a denoiser."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from dit_edu.interpolant import Interpolant
from dit_edu.lab.charts import Curves, Line
from dit_edu.lab.data import digits
from dit_edu.lab.experiments.deployment import BINS, released
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure

BITS = (2, 3, 4, 5, 6, 8)
LEVELS = tuple(range(50, 1000, 100))  # the middle of each bin of t
DIGITS = 40  # held-out digits behind each number
SHOWN = 3


def rounded(model: nn.Module, bits: int, each_row: bool) -> nn.Module:
    """A copy whose linear maps have weights of so many bits, and compute in float.

    Args:
        model: any module.
        bits: of a weight; 2^(bits-1) - 1 steps on either side of 0.
        each_row: one scale for every row of a matrix; else one for the matrix.
    """
    other = copy.deepcopy(model)
    top = 2 ** (bits - 1) - 1
    for layer in other.modules():
        if isinstance(layer, nn.Linear):
            w = layer.weight.data
            most = w.abs().amax(1, keepdim=True) if each_row else w.abs().max()
            step = most / top  # s, (rows, 1) or a number
            layer.weight.data = (w / step).round() * step
    return other


@torch.no_grad()
def _asked(
    model: nn.Module, process: Interpolant, x_t: Tensor, t: int, y: Tensor
) -> tuple[Tensor, Tensor]:
    """What a model says of noisy images at one step, and the clean images that this means."""
    steps = torch.full((len(x_t),), t)
    out = model(x_t, steps, y)
    return out, process.to_x0(out, x_t, steps)


def few_bits() -> Figure:
    """A digits model with weights of few bits: its guess of the clean image, and its error."""
    model, recipe, _ = released()
    process = recipe.process.build()
    images, labels = (part[:DIGITS] for part in digits("heldout"))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    scales = {"one for each row": True, "one for each matrix": False}
    errors = np.zeros((len(scales), len(BITS), len(LEVELS)))
    frames = np.zeros((len(scales), len(BITS), len(LEVELS), 3, SHOWN, 1, 8, 8))
    for k, t in enumerate(LEVELS):
        x_t = process.q_sample(images, torch.full((DIGITS,), t), noise)
        want, clean = _asked(model, process, x_t, t, labels)
        for i, each_row in enumerate(scales.values()):
            for j, bits in enumerate(BITS):
                found, guess = _asked(rounded(model, bits, each_row), process, x_t, t, labels)
                errors[i, j, k] = (found - want).norm() / want.norm()
                frames[i, j, k] = torch.stack([x_t, clean, guess])[:, :SHOWN].clamp(-1, 1)
    return Figure(
        name="few-bits",
        title="Weights of few bits",
        caption="The digits model, its weights rounded. Take bits away until the guesses break, "
        "then change what shares a scale. Below: the relative error of the answer by noise level.",
        alt="Three rows of digits: noisy ones, the clean digits that the float model sees in them, "
        "and those that the rounded model sees; below, the error of the rounded model over t. "
        "With 8 bits the two rows of guesses are alike, with 2 the lower one is noise.",
        axes=[
            Axis("bits", "bits of a weight", BITS, start=BITS.index(4)),
            Axis("scale", "scales", list(scales), choice=True),
            Axis("t", "t", list(LEVELS), start=BINS // 2),
        ],
        play="bits",
        panels=[
            Images(
                title="What it sees",
                alt="Noisy digits, and two guesses of the clean ones.",
                axes=("scale", "bits", "t"),
                frames=frames,
                row_labels=["noisy", "float", "rounded"],
                size=72,
                levels=32,
            ),
            Curves(
                title="Relative error of the answer",
                alt="Over t; largest at the clean end.",
                axes=("scale", "bits"),
                x=LEVELS,
                x_label="t (0 is clean)",
                lines=[Line("rounded against float", errors)],
                cursor="t",
                log=True,
            ),
        ],
    )
