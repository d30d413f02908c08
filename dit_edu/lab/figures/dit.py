"""Moving figures of the chapter on the Diffusion Transformer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import ipywidgets
import numpy as np
import torch
from torch import nn

from dit_edu._checks import check_positive_int
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.guidance import Guided
from dit_edu.lab.charts import Bars, Curves, Line
from dit_edu.lab.live import Live
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure
from dit_edu.sampling import Callback, ddim_sample, noise_streams, timestep_grid


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
    classes: Sequence[int] | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> Figure:
    """xₜ and x̂₀ on the way from noise to images, by step, class and guidance scale.

    Args:
        model: a denoiser with ``input_size``, ``in_channels`` and ``num_classes``; it draws where
            it is.
        diffusion: the process it was trained for.
        scales: of guidance; 1 is none.
        steps: of DDIM.
        samples: images for each class; all classes and scales begin with the same noise.
        classes: which ones; all unless given.
        seed: of the noise; the same as in :func:`dit_edu.lab.draw.draw`.
        callback: as in :func:`~dit_edu.sampling.ddim_sample`, for one scale after the other.

    Raises:
        TypeError, ValueError: a class or the number of steps does not fit model or process.
    """
    classes = list(range(model.num_classes) if classes is None else classes)
    size, device = (model.in_channels, *model.input_size), next(model.parameters()).device
    y = torch.tensor(classes).repeat_interleave(samples).to(device)  # (classes · samples,)
    noise = torch.stack([torch.randn(size, generator=g) for g in noise_streams(seed, samples)])
    noise = noise.repeat(len(classes), 1, 1, 1)  # (classes · samples, C, H, W)
    ts = timestep_grid(diffusion.num_timesteps, steps)
    ways = torch.stack(
        [_way(Guided(model, s), diffusion, y, noise, steps, callback) for s in scales]
    )
    frames = ways.unflatten(3, (len(classes), samples)).movedim(3, 1)  # (s, class, step, 2, n, …)
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
            Axis("class", "class", classes, start=3 % len(classes)),
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


def live_trajectory(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    name: str,
    scale: float = 1.5,
    steps: int = 20,
    max_frames: int = 60,
) -> Live:
    """:func:`reverse_trajectory` for a notebook, with the model behind it where there is a kernel.

    The stored frames show one guidance scale, one number of steps and one seed. With a kernel the
    reader chooses all three, and the model draws on CUDA if it is there, else on the CPU.

    Args:
        model: a denoiser; the control keeps a copy of it as it is now.
        diffusion: the process it was trained for.
        name: of the model, for the reader.
        scale: of guidance, in the stored frames.
        steps: of DDIM, in the stored frames.
        max_frames: the most stored frames.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = copy.deepcopy(model)  # the caller's stays on its device and in its mode
    stored = reverse_trajectory(own, diffusion, (scale,), steps)
    step, classes, scales = stored.axes

    def make(settings: dict[str, Any], tick: Callable[[int, int], None]) -> Figure:
        return reverse_trajectory(
            own.to(device),
            diffusion,
            (settings["scale"],),
            settings["steps"],
            classes=(settings["class"],),
            seed=settings["seed"],
            callback=lambda k, *_: tick(k + 1, settings["steps"]),
        )

    narrow = ipywidgets.Layout(width="11em")
    live = Live(
        replace(stored, axes=[step, replace(classes, choice=True), scales]),
        make,
        extras={
            "scale": ipywidgets.FloatSlider(scale, min=0, max=6, step=0.25, description="guidance"),
            "steps": ipywidgets.IntSlider(steps, min=2, max=100, description="steps"),
            "seed": ipywidgets.BoundedIntText(
                0, min=0, max=9999, description="seed", layout=narrow
            ),
        },
        source=f"{name} on {device.type}",
        max_frames=max_frames,
    )
    live.sliders["class"].style.button_width = "2.5em"
    return live


def _way(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    y: torch.Tensor,
    noise: torch.Tensor,
    steps: int,
    callback: Callback | None,
) -> torch.Tensor:
    """xₜ and x̂₀ at every step of DDIM: (steps, 2, B, C, H, W), on the CPU."""
    seen: list[torch.Tensor] = []

    def keep(k: int, t: int, x_t: torch.Tensor, x0: torch.Tensor) -> None:
        seen.append(torch.stack([x_t, x0]).cpu())  # (2, B, C, H, W)
        if callback is not None:
            callback(k, t, x_t, x0)

    ddim_sample(
        model, diffusion, noise.shape, y, steps=steps, noise=noise, clip=True, callback=keep
    )
    return torch.stack(seen)
