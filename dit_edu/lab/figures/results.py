"""The moving figure of the chapter on HiDiT's results: two models draw, and what they paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dit_edu.guidance import Guided
from dit_edu.lab import zoo
from dit_edu.lab.charts import Bars, Curves, Line
from dit_edu.lab.experiments.hidit import BASE, executed, race_rows
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.widgets import Figure
from dit_edu.sampling import Trajectory, ddim_sample, noise_streams

#: The two models that draw, by what the reader sees.
DRAWN = {"DiT": "small-shapes-dit", "HiDiT": "shapes-hidit"}
#: Classes that are asked for.
CLASSES = (0, 3, 5, 7, 10, 11)
#: Models of the race, from less work to more, by what their line is called.
FAMILIES = {
    "DiT, fewer blocks": ("1 block", "p = 2, 2 blocks", "3 blocks", BASE),
    "coarse blocks": ("3/4 coarse", "1/2 coarse", "1/4 coarse", BASE),
    "HiDiT": ("HiDiT, all coarse", "HiDiT-tiny", "HiDiT, 1/2 coarse"),
}
MEASURES = {"loss": "held-out loss", "fd_ratio": "Fréchet distance"}


def mean_over_seeds(rows: Sequence[Mapping[str, Any]], setting: str, metric: str) -> float:
    """The mean of a metric of a setting."""
    return float(np.mean([row["metrics"][metric] for row in rows if row["setting"] == setting]))


def frontier(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """A metric over the executed MACs, both over those of the plain model.

    Returns:
        The MACs of all models of ``FAMILIES``, increasing; and for each family the metric there, on
        straight lines between its models, NaN outside of them.
    """
    shares, values = (
        {
            name: mean_over_seeds(rows, name, m) / mean_over_seeds(rows, BASE, m)
            for members in FAMILIES.values()
            for name in members
        }
        for m in ("macs", metric)
    )
    x = np.unique(list(shares.values()))
    return x, [
        np.interp(
            x, [shares[n] for n in members], [values[n] for n in members], left=np.nan, right=np.nan
        )
        for members in FAMILIES.values()
    ]


@torch.no_grad()
def hidit_race() -> Figure:
    """The shipped HiDiT and its opponent draw from the same noise; and the frontier of the race.

    Raises:
        FileNotFoundError, ValueError: a table of the race is not there.
    """
    y, guesses, macs = torch.tensor(CLASSES), [], []
    for name in DRAWN.values():
        model, card = zoo.load(name)
        sampling, way = card["sampling"], Trajectory()
        size = (model.in_channels, *model.input_size)
        noise = torch.stack([torch.randn(size, generator=g) for g in noise_streams(0, len(y))])
        asked = Guided(model, sampling["scale"])
        process = Recipe.from_dict(card["recipe"]).process.build()
        ddim_sample(
            asked, process, noise.shape, y, steps=sampling["steps"], noise=noise, callback=way
        )
        guesses.append(way.x0)  # (K, B, C, H, W)
        passes = 1 if sampling["scale"] == 1 else 2
        macs.append(passes * executed(model) / 1e9 * np.arange(1, 1 + len(way.t)))  # (K,)
    found = {metric: frontier(race_rows(), metric) for metric in MEASURES}
    steps = range(1, 1 + len(way.t))
    return Figure(
        name="hidit-race",
        title="Two models draw",
        caption="A DiT and a HiDiT of the same width and depth, trained alike, draw from the same "
        "noise. Move the *sampling step*: the pictures are the guesses of the clean image, the "
        "bars what has been paid for one of them. Below: the race of models that were trained for "
        "a quarter of that time. Both axes are shares of the plain DiT, so it stands at 1, 1.",
        alt="Two rows of six coloured shapes that sharpen from blurs, drawn by a DiT and by a "
        "HiDiT; two bars of multiply-adds that grow, the HiDiT's half as long; and a chart of loss "
        "or Frechet distance over the share of multiply-adds for three families of models.",
        axes=[
            Axis("step", "sampling step", list(steps), start=len(way.t) // 2),
            Axis("measure", "chart", list(MEASURES.values()), start=1, choice=True),
        ],
        play="step",
        panels=[
            Images(
                title="What they see",
                alt="Guesses of the clean image at this sampling step, a row for each model.",
                axes=("step",),
                frames=torch.stack(guesses, dim=1).clamp(-1, 1).numpy(),  # (K, 2, B, C, H, W)
                row_labels=list(DRAWN),
                size=80,
                levels=32,
                wide=True,
            ),
            Bars(
                title="Paid so far, billions of MACs",
                alt="Two bars, which grow with every step.",
                axes=("step",),
                labels=list(DRAWN),
                values=np.stack(macs, axis=1),  # (K, 2)
                wide=True,
            ),
            Curves(
                title="Loss or distance over that of the plain DiT",
                alt="Three lines over the share of executed MACs; lower and to the left is better.",
                axes=("measure",),
                x=found["loss"][0],
                x_label="executed MACs, share of the plain DiT",
                lines=[
                    Line(name, np.stack([lines[i] for _, lines in found.values()]))
                    for i, name in enumerate(FAMILIES)
                ],
                wide=True,
            ),
        ],
    )
