"""The figure of the chapter on depth: which blocks run at which step, what that costs and gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from dit_edu.lab.charts import Curves, Heatmap, Line, Table
from dit_edu.lab.experiments import Row, read
from dit_edu.lab.experiments.depth import BUDGETS, DEPTH
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure

WAYS = ("all alike", "until it rests")
TRAINED = "all answers"


def by_depth(row: Row) -> list[list[dict[str, Any]]]:
    """What a model of ``depth-budget`` does at one to six blocks: a list for each of ``WAYS``.

    Early exit has been looked at in between; at its ends it is the budget, by definition.
    """
    fixed = row["metrics"]["budgets"]
    exits = {found["mean"]: found for found in row["metrics"]["exits"]}
    return [fixed, [exits.get(k, fixed[k - 1]) for k in range(1, DEPTH + 1)]]


def depth_by_budget() -> Figure:
    """Which blocks run at each step for a given budget, the samples that come of it, and the loss.

    Raises:
        FileNotFoundError, ValueError: the table ``depth-budget`` or ``depth-apart`` is not there.
    """
    rows = [row for row in read("depth-budget") if row["setting"] == TRAINED]
    apart = [row["metrics"]["loss"] for row in read("depth-apart")]
    found = by_depth(min(rows, key=lambda row: row["seed"]))
    runs = np.array([[at["runs"] for at in way] for way in found])  # (ways, L, steps, L)
    shades = np.array([[at["samples"] for at in way] for way in found]) / 127.5 - 1
    frames = shades.reshape(len(WAYS), DEPTH, 2, 5, 1, *shades.shape[-2:])
    loss = np.mean([[[at["loss"] for at in way] for way in by_depth(row)] for row in rows], axis=0)
    steps = found[0][0]["t"]
    full = found[0][-1]["macs"]
    table = [
        [
            [
                ["decided by", "the image" if w else "the budget"],
                ["blocks, on average", f"{runs[w, k].sum(-1).mean():.1f} of {DEPTH}"],
                ["blocks at this t", f"{runs[w, k, s].sum():.1f}"],
                ["MACs of a pass", f"{at['macs'] / full:.0%}"],
                ["held-out loss", f"{at['loss']:.3f}"],
                ["FD of samples", f"{at['fd_ratio']:.1f}"],
            ]
            for s in range(len(steps))
        ]
        for w, way in enumerate(found)
        for k, at in enumerate(way)
    ]
    depths = range(1, DEPTH + 1)
    shape = (len(WAYS), DEPTH, len(steps), 6, 2)
    return Figure(
        name="depth-by-budget",
        title="As deep as the budget allows",
        caption="One model of six blocks, at every depth. Move the budget: which blocks run, what "
        "do the digits look like (the noise is always the same), and where is the loss? Then let "
        "each image go on until its answer rests, at about the same mean depth.",
        alt="A map of six blocks over ten sampling steps, filled where blocks run; ten sampled "
        "digits; a table of MACs, loss and Frechet distance; and three falling curves of the "
        "held-out loss over the number of blocks, all close together.",
        axes=[
            Axis("way", "who decides", WAYS, choice=True),
            Axis("budget", "budget", depths, labels=[f"{b:.0%}" for b in BUDGETS], start=2),
            Axis("t", "t", steps, start=len(steps) // 2),
        ],
        play="budget",
        panels=[
            Heatmap(
                title="The share of the ten samples that a block runs for",
                alt="Blocks over steps; a block is filled where it runs for all samples.",
                axes=("way", "budget"),
                values=runs.swapaxes(2, 3),  # (ways, budgets, L, steps)
                rows=("block", [str(k) for k in depths]),
                columns="t",
                limits=(0, 1),
                wide=True,
            ),
            Images(
                title="Samples of ten steps, one noise",
                alt="Ten digits, 0 to 9, blurred where few blocks run.",
                axes=("way", "budget"),
                frames=frames,
                size=56,
                levels=64,
            ),
            Table(
                title="What it costs, and what it gives",
                alt="Mean number of blocks, MACs, loss and Frechet distance.",
                axes=("way", "budget", "t"),
                columns=("", "here"),
                rows=np.array(table, dtype=object).reshape(shape),
            ),
            Curves(
                title="Held-out loss over blocks that run",
                alt="Three curves that fall with the number of blocks.",
                x=depths,
                x_label="blocks, on average",
                cursor="budget",
                lines=[
                    Line("one model, all alike", loss[0]),
                    Line("one model, until it rests", loss[1]),
                    Line("trained apart", np.reshape(apart, (DEPTH, -1)).mean(1)),
                ],
                wide=True,
            ),
        ],
    )
