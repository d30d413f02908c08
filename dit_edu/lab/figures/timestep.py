"""The figure of the chapter on width: four policies side by side along one trajectory."""

from __future__ import annotations

import numpy as np

from dit_edu.dddit.timestep import WIDTHS
from dit_edu.lab.charts import Curves, Heatmap, Line, Table
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.timestep import EQUAL, SHOWN
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure


def width_by_step() -> Figure:
    """Which width each policy runs at each step, what that has cost, and the digits so far.

    Raises:
        FileNotFoundError, ValueError: the table ``timestep-nested`` is not there.
    """
    rows = [row["metrics"]["policies"] for row in read("timestep-nested")]
    first = [rows[0][name] for name in EQUAL]
    steps = first[0]["t"]  # from noise to image
    shades = np.array([found["guesses"] for found in first]) / 127.5 - 1  # (policies, K, n, H, W)
    frames = shades.swapaxes(0, 1)[..., None, :, :]  # (K, policies, n, C, H, W)
    heavy = max(rows[0]["heavy"]["macs_by_bin"])
    macs = np.array([found["macs_by_bin"][::-1] for found in first]) / heavy  # as steps go
    so_far = macs.cumsum(1)  # (policies, K), in passes of the whole network
    names = np.array([found["bands"][::-1] for found in first])  # (policies, K)
    means = {
        what: [float(np.mean([row[name][what] for row in rows])) for name in EQUAL]
        for what in ("loss", "fd_ratio")
    }
    short = [name.removeprefix("heavy ") for name in EQUAL]
    table = [
        [
            [
                short[p],
                str(names[p, k]),
                f"{so_far[p, k]:.2f}",
                f"{means['loss'][p]:.4f}",
                f"{means['fd_ratio'][p]:.1f}",
            ]
            for p in range(len(EQUAL))
        ]
        for k in range(len(steps))
    ]
    shares = np.vectorize(WIDTHS.get)(names)  # (policies, K)
    return Figure(
        name="width-by-step",
        title="Which end needs the width?",
        caption="One model, trained at three widths, draws five digits four times from one noise. "
        "All four policies spend the same in the end; they differ in *when*. Move from noise to "
        "image. Rows: constant, heavy at high *t*, heavy at low *t*, heavy in the middle.",
        alt="A map of four policies over ten sampling steps, darker where more of the network "
        "runs; four rows of five digits as the model guesses them at the chosen step; a table of "
        "the width, the cost so far, the loss and the Frechet distance; and four lines of cost "
        "that meet at the last step.",
        axes=[Axis("k", "t", range(len(steps)), labels=[str(t) for t in steps], start=3)],
        play="k",
        panels=[
            Heatmap(
                title="The share of the network that runs",
                alt="Four policies over ten steps; constant in the first row.",
                values=shares,
                rows=("policy", list(EQUAL)),
                columns="k",
                limits=(0, 1),
                wide=True,
            ),
            Images(
                title="What each guesses the digits to be",
                alt="Four rows of five digits, 1, 3, 5, 7 and 8, which become clear on the way.",
                axes=("k",),
                frames=frames,
                row_labels=short,
                column_labels=[str(label) for label in SHOWN],
                size=48,
                levels=64,
            ),
            Table(
                title="At this step, and in the end",
                alt="Width now, cost so far, and loss and Frechet distance of the policy.",
                axes=("k",),
                columns=("policy", "width", "spent", "loss", "FD"),
                rows=np.array(table, dtype=object),
            ),
            Curves(
                title="Spent so far, in passes of the whole network",
                alt="Four rising lines that start apart and meet at the end.",
                x=range(len(steps)),
                x_label="sampling step",
                cursor="k",
                lines=[Line(policy, so_far[p]) for p, policy in enumerate(EQUAL)],
                wide=True,
            ),
        ],
    )
