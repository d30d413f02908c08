"""The figure of the chapter on budgets: three scenes in noise, what can be seen, what they get."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dit_edu.dddit.complexity import centroid, frequencies, power, without_noise
from dit_edu.lab.charts import Curves, Line, Table
from dit_edu.lab.experiments import Row, read
from dit_edu.lab.experiments.conditions import ASKED, PROCESS, noisy, scenes, shown
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure

NAMES = ("simple", "middle", "complex")
POLICIES = ("text", "spectrum", "estimate")
RINGS = 8  # ranges of frequency
LEAST = 1e-3  # the power at which curves end
MEASURES = ("noise left in", "noise taken off", "of the guess", "learnt")


def rings(power_0: Tensor) -> np.ndarray:
    """The mean power by range of frequency: (n, H, W) → (n, 8), the constant wave left out."""
    f = frequencies(*power_0.shape[1:])
    ring = (f / f.max() * RINGS).ceil().long() - 1  # (H, W), -1 for the constant wave
    return torch.stack([power_0[:, ring == k].mean(1) for k in range(RINGS)], dim=1).numpy()


def first(rows: list[Row], setting: str) -> Row:
    """The row of a setting with the first seed."""
    return min((r for r in rows if r["setting"] == setting), key=lambda r: r["seed"])


def budget_by_image() -> Figure:
    """Three scenes, their spectra, and the blocks that policies give them, over t.

    Raises:
        FileNotFoundError, ValueError: the tables ``conditions`` and ``conditions-measures`` are not
            there.
    """
    race = [first(read("conditions"), name)["metrics"] for name in POLICIES]
    told = [row["metrics"] for row in read("conditions-measures")]
    rows, found = shown(), scenes("heldout")
    x0 = found.images[rows]  # (3, C, H, W)
    clean = rings(power(x0))  # (3, 8)
    frames, spectra, table = [], [], []
    for s, step in enumerate(ASKED):
        x_t, t = noisy(rows, step)
        left = PROCESS.alphas_cumprod[t].float()  # (3,)
        seen = power(x_t)  # (3, H, W)
        off = without_noise(seen, left)
        frames.append(x_t.numpy())
        share = np.full_like(clean, 1 - float(left[0]))
        spectra.append(np.stack([rings(seen), share, rings(off), clean]))  # (4, 3, 8)
        table.append(
            [
                ["complexity", *(f"{c:.1f}" for c in found.complexity[rows])],
                ["ν of x_0", *(f"{v:.2f}" for v in centroid(power(x0)))],
                ["ν from x_t", *(f"{v:.2f}" for v in centroid(off))],
                *(
                    [policy, *(f"{k:.0f}" for k in metrics["shown"][s])]
                    for policy, metrics in zip(POLICIES, race, strict=True)
                ),
            ]
        )
    lines = np.maximum(np.array(spectra), LEAST).transpose(1, 2, 0, 3)  # (4, scenes, steps, 8)
    labels = ("x_t", "of which noise", "noise taken off", "x_0")
    edges = (np.arange(RINGS) + 0.5) / RINGS * float(frequencies(16, 16).max())
    return Figure(
        name="budget-by-image",
        title="What an image is worth, as seen through noise",
        caption="Three scenes in noise, and how many of six blocks trained policies give them. "
        "Move t. The spectrum of x_t soon is that of the noise; what is left when the noise's "
        "share is taken off is right on average and useless for one image. How well complexity "
        "can still be told is the last panel.",
        alt="Three scenes of rising complexity with noise that grows with t; a chart of their "
        "power over frequency, in which noise soon covers the image; a table of complexity, "
        "centroid and numbers of blocks; and falling curves of rank correlation over t.",
        axes=[
            Axis("scene", "spectrum of", NAMES, choice=True, start=2),
            Axis("t", "t", ASKED, start=3),
        ],
        play="t",
        panels=[
            Images(
                title="Simple, middle, complex: x_t",
                alt="Three scenes with one to three objects; at high t only noise is seen.",
                axes=("t",),
                frames=np.array(frames)[:, None],  # (steps, 1, 3, C, H, W)
                size=112,
                levels=48,
                wide=True,
            ),
            Curves(
                title="Power by frequency",
                alt="Power falls with frequency; the noise's share is a level line that rises.",
                axes=("scene", "t"),
                x=edges,
                x_label="waves per pixel",
                log=True,
                lines=[Line(label, y) for label, y in zip(labels, lines, strict=True)],
            ),
            Table(
                title="Known, seen, and blocks given",
                alt="Complexity, centroids and blocks of six, a column for each scene.",
                axes=("t",),
                columns=("", *NAMES),
                rows=np.array(table, dtype=object),
            ),
            Curves(
                title="Rank correlation with complexity, held-out scenes",
                alt="The learnt measure falls last, the guess sooner, the spectra of x_t at once.",
                x=ASKED,
                x_label="t (0 is clean)",
                cursor="t",
                limits=(-0.1, 1),
                lines=[Line(m, np.mean([row[m] for row in told], axis=0)) for m in MEASURES],
                wide=True,
            ),
        ],
    )
