"""Moving figures of the chapter on the Diffusion Transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from dit_edu._checks import check_positive_int
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.guidance import Guided
from dit_edu.lab.charts import Bars, Curves, Line
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure
from dit_edu.sampling import ddim_sample, timestep_grid


def loss_by_noise_bin(
    history: Sequence[Mapping[str, Any]], num_timesteps: int = 1000, positions: int = 40
) -> Figure:
    """The training loss in each bin of the noise level, over the course of training.

    Args:
        history: rows with ``step``, ``loss`` and ``loss_by_bin`` (None where nothing is known yet),
            as in a card of the zoo.
        num_timesteps: T; the bins cut it into equal parts.
        positions: the most positions of the slider.

    Raises:
        ValueError: fewer than two rows, or rows with different numbers of bins.
    """
    check_positive_int("positions", positions)
    if len(history) < 2 or len({len(row["loss_by_bin"]) for row in history}) != 1:
        raise ValueError("history must have two rows or more, all with the same number of bins.")
    loss = np.array([[np.nan if v is None else v for v in row["loss_by_bin"]] for row in history])
    history = [row for row, known in zip(history, np.isfinite(loss).all(1), strict=True) if known]
    loss = loss[np.isfinite(loss).all(1)]  # (rows, bins): from where every bin has been seen
    if len(history) < 2:
        raise ValueError("history has fewer than two rows in which every bin has been seen.")
    chosen = np.unique(np.linspace(0, len(history) - 1, positions).round().astype(int))
    steps = [history[i]["step"] for i in chosen]
    bins = loss.shape[1]
    edges = np.linspace(0, num_timesteps, bins + 1)
    names = [f"{a:.0f}–{b - 1:.0f}" for a, b in pairwise(edges)]
    return Figure(
        name="loss-by-noise-bin",
        title="Which steps are hard?",
        caption=f"The loss of the digits model in {bins} bins of the noise level, while it "
        "learns. The average hides that the bins are unequally hard, and learnt at unequal speed.",
        alt="Bars of the loss for each bin of the noise level at the chosen training step, beside "
        "the loss over the whole training with a cursor.",
        axes=[Axis("step", "training step", steps, start=len(steps) - 1)],
        play="step",
        panels=[
            Bars(
                title="Loss by t",
                alt="One bar for each bin of t.",
                axes=("step",),
                labels=[f"t = {name}" for name in names],
                values=loss[chosen],
            ),
            Curves(
                title="Loss over training",
                alt="Three lines over the training steps: the loss in the bins of the lowest, a "
                "middle and the highest noise level.",
                x=steps,
                x_label="training step",
                lines=[Line(f"t = {names[b]}", loss[chosen, b]) for b in (0, bins // 2, bins - 1)],
                cursor="step",
                log=True,
            ),
        ],
    )


def reverse_trajectory(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    scales: Sequence[float] = (1.0, 1.5, 3.0),
    steps: int = 20,
    samples: int = 3,
) -> Figure:
    """xₜ and x̂₀ on the way from noise to images, by step, class and guidance scale.

    Args:
        model: a denoiser with ``input_size``, ``in_channels`` and ``num_classes``.
        diffusion: the process it was trained for.
        scales: of guidance; 1 is none.
        steps: of DDIM.
        samples: images for each class; all classes and scales begin with the same noise.
    """
    classes, size = model.num_classes, (model.in_channels, *model.input_size)
    y = torch.arange(classes).repeat_interleave(samples)  # (classes · samples,)
    noise = torch.randn(samples, *size, generator=torch.Generator().manual_seed(0))
    noise = noise.repeat(classes, 1, 1, 1)  # (classes · samples, C, H, W)
    ts = timestep_grid(diffusion.num_timesteps, steps)
    ways = torch.stack([_way(Guided(model, s), diffusion, y, noise, steps) for s in scales])
    frames = ways.unflatten(3, (classes, samples)).movedim(3, 1)  # (s, class, step, 2, samples, …)
    return Figure(
        name="reverse-trajectory",
        title="From noise to digits",
        caption="DDIM draws with the digits model. Above is xₜ, what the sampler holds; below is "
        "x̂₀, what the model would answer at once. Early answers are blurred averages. Guidance "
        "makes them clearer, and more alike.",
        alt="Two rows of small pictures. The upper row turns from noise into handwritten digits of "
        "the chosen class; the lower row shows the model’s guess, which sharpens from a blur.",
        axes=[
            Axis("step", "t", ts.tolist(), start=steps // 2),
            Axis("class", "class", range(classes), start=3 % classes),
            Axis("scale", "guidance", scales, [f"{s:g}" for s in scales], choice=True),
        ],
        play="step",
        panels=[
            Images(
                title="The sampler’s image and the model’s guess",
                alt="Above the noisy images xₜ, below the guesses x̂₀.",
                axes=("scale", "class", "step"),
                frames=frames.numpy(),
                row_labels=["xₜ", "x̂₀"],
                size=128,
                levels=17,  # as many as the real digits have
            )
        ],
    )


def _way(
    model: nn.Module, diffusion: GaussianDiffusion, y: torch.Tensor, noise: torch.Tensor, steps: int
) -> torch.Tensor:
    """xₜ and x̂₀ at every step of DDIM: (steps, 2, B, C, H, W)."""
    seen: list[torch.Tensor] = []

    def keep(k: int, t: int, x_t: torch.Tensor, x0: torch.Tensor) -> None:
        seen.append(torch.stack([x_t, x0]))  # (2, B, C, H, W)

    ddim_sample(
        model, diffusion, noise.shape, y, steps=steps, noise=noise, clip=True, callback=keep
    )
    return torch.stack(seen)
