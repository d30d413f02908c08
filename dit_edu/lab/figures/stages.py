"""The moving figure of the chapter on training in stages: what each stage sees, and the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dit_edu.hidit.resolution import resized
from dit_edu.lab.charts import Curves, Line, Table
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.multiscale import half
from dit_edu.lab.experiments.stages import GRID, SIZE
from dit_edu.lab.panels import Axis, Tokens
from dit_edu.lab.widgets import Figure

#: The trainings that are shown, and what their first stage sees.
RUNS = {
    "one stage": "whole",
    "p = 4 for 1/2": "large patches",
    "p = 4 as in the notes": "large patches",
    "resized for 1/2": "resized",
    "windows for 1/2": "windows",
}
SPENT = range(10, 101, 2)  # percent of the budget
MEASURES = {
    "held-out loss": ("loss", ".4f"),
    "what was asked for": ("accuracy", ".0%"),
    "Fréchet distance": ("fd_ratio", ".2f"),
}


def curve_of(row: Mapping[str, Any], spent: Sequence[float] = SPENT) -> np.ndarray:
    """The loss of a training after each share of the budget, (len(spent),).

    At a hand-over there are two values; the first counts.
    """
    x, loss = np.array(row["metrics"]["curve"]).T  # (points,) each
    x = x + 1e-9 * np.arange(len(x))  # increasing, also at a hand-over
    return np.interp(np.asarray(spent) / 100, x, loss)


def seen(view: str, turn: int) -> np.ndarray:
    """What a stage sees of a scene, enlarged to full size if need be: (3, H, W)."""
    scene = half("train")[0][1:2]  # (1, 3, H, W)
    if view == "resized":
        scene = resized(scene, SIZE // 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    if view == "windows":
        at = torch.randint(SIZE // 4 + 1, (2,), generator=torch.Generator().manual_seed(turn))
        top, left = (2 * at).tolist()  # between tokens
        scene = scene[..., top : top + SIZE // 2, left : left + SIZE // 2]
        scene = scene.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return scene[0].numpy()


def stages_of_training() -> Figure:
    """Trainings of equal cost: what they see as the budget is spent, and how the loss falls.

    Raises:
        FileNotFoundError, ValueError: the table ``stages`` is not there.
    """
    rows = {name: [row for row in read("stages") if row["setting"] == name] for name in RUNS}
    curves = np.array([[curve_of(row) for row in found] for found in rows.values()])
    mean = curves.mean(1)  # (runs, seeds, spent) -> (runs, spent)
    frames, tokens = [], []
    for name, view in RUNS.items():
        macs = rows[name][0]["metrics"]["macs"]
        first = 100 * macs[0] / sum(macs) if len(macs) > 1 else 0
        views = [view if spent < first else "whole" for spent in SPENT]
        frames.append([seen(v, turn) for turn, v in enumerate(views)])
        tokens.append([GRID if v == "whole" else [n // 2 for n in GRID] for v in views])
    ends = [
        [
            format(np.mean([row["metrics"][name] for row in found]), f)
            for name, f in MEASURES.values()
        ]
        for found in rows.values()
    ]  # (runs, measures)
    return Figure(
        name="stages-of-training",
        title="Stages of training",
        caption="Each training spends the same number of multiply-adds. Choose what comes first, "
        "then move along the budget: what the model is shown changes at the hand-over, and the "
        "loss (on whole images, in small patches where the model has them) jumps or does not. "
        "The band spans the seeds. The table says where each training ends.",
        alt="A scene under a grid of four by four tokens that becomes eight by eight at the "
        "hand-over; beside it falling curves of the loss over the budget, that of two stages with "
        "a small step up at the hand-over, and below that of one stage for most of the way; and a "
        "table of loss, accuracy and Frechet distance at the end.",
        axes=[
            Axis("run", "first", list(RUNS), start=1, choice=True),
            Axis("spent", "spent, %", list(SPENT), start=0),
        ],
        play="spent",
        panels=[
            Tokens(
                title="What the model is shown",
                alt="A scene, whole, resized or in part, under the grid of the model's tokens.",
                axes=("run", "spent"),
                frames=np.array(frames),
                tokens=np.array(tokens),
                size=240,
            ),
            Table(
                title="At the end",
                alt="Loss, accuracy and Fréchet distance of this training and of one stage.",
                axes=("run",),
                columns=("mean over seeds", "this", "one stage"),
                rows=[[*zip(MEASURES, end, ends[0], strict=True)] for end in ends],
            ),
            Curves(
                title="Held-out loss over the budget",
                alt="Two falling curves: this training, with a band over seeds, and one stage.",
                axes=("run",),
                x=list(SPENT),
                x_label="training MACs spent, % of the budget",
                cursor="spent",
                lines=[
                    Line("this training", mean, curves.min(1), curves.max(1)),
                    Line("one stage", np.broadcast_to(mean[0], mean.shape)),
                ],
                log=True,
                wide=True,
            ),
        ],
    )
