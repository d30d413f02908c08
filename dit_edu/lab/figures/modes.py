"""The figure of the chapter on DDDiT's modes: which units run at each step, and what that costs."""

from __future__ import annotations

import numpy as np
import torch

from dit_edu.dddit.model import MODES, DDDiT
from dit_edu.lab.charts import Curves, Heatmap, Line, Table
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.dynamic import MODEL
from dit_edu.lab.experiments.modes import LEVELS
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure

#: The trainings that are shown, and what the table calls them.
TRAINED = {"dynamic alone": "from dense", "modes in turns": "modes in turns"}


def unit_names(model: DDDiT) -> list[str]:
    """Heads and experts of a block: ``head 1``, …, ``expert 1``, …"""
    heads = [f"head {number + 1}" for number in range(model.heads)]
    return [*heads, *(f"expert {number + 1}" for number in range(model.experts))]


def modes_by_step(seed: int = 0) -> Figure:
    """The units of one model that run at each step, in each mode, with MACs, loss and samples.

    Args:
        seed: of the training that is shown.

    Raises:
        FileNotFoundError, ValueError: the table ``modes`` or ``modes-ways`` is not there.
    """
    all_rows = [*read("modes"), *read("modes-ways")]
    rows = {row["setting"]: row["metrics"] for row in all_rows if row["seed"] == seed}
    found = [
        [rows[name] if mode == "dynamic" else rows[name][mode] for mode in MODES]
        for name in TRAINED.values()
    ]
    with torch.device("meta"):  # for its sizes alone
        model = DDDiT(**MODEL)
    paths = np.array([[at["path"] for at in way] for way in found])  # (W, 3, T, L, U)
    depth, units = paths.shape[-2:]
    macs = np.empty(paths.shape[:3])
    for number, mode in enumerate(MODES):
        model.mode = mode
        chosen = torch.from_numpy(paths[:, number]).bool().flatten(-2)  # (ways, steps, L units)
        macs[:, number] = model.macs(chosen).numpy()
    share = macs / macs[:, MODES.index("full")].max()
    table = [
        [
            [
                [
                    ["units that run", f"{paths[w, m, s].sum()} of {depth * units}"],
                    ["MACs at this t", f"{share[w, m, s]:.0%}"],
                    ["MACs on average", f"{share[w, m].mean():.0%}"],
                    ["held-out loss", f"{at['loss']:.3f}"],
                    ["FD of samples", f"{at['fd_ratio']:.1f}"],
                ]
                for s in range(len(LEVELS))
            ]
            for m, at in enumerate(way)
        ]
        for w, way in enumerate(found)
    ]
    return Figure(
        name="modes-by-step",
        title="One model, three modes",
        caption="Six blocks, each of four heads and six experts; a shared expert that always runs "
        "is not drawn. Choose a mode, then move the step: which units run? Then choose a model of "
        "which dynamic mode alone was trained, and look at the loss of its other two modes.",
        alt="A map of ten units in six blocks, filled where a unit runs; a table of units, MACs, "
        "loss and Frechet distance; and three nearly flat curves of the MACs over the step, full "
        "on top, light at the bottom, dynamic between them.",
        axes=[
            Axis("trained", "trained", list(TRAINED), start=1, choice=True),
            Axis("mode", "mode", MODES, start=MODES.index("dynamic"), choice=True),
            Axis("t", "t", list(LEVELS), start=len(LEVELS) // 2),
        ],
        play="t",
        panels=[
            Heatmap(
                title="Units that run",
                alt="Heads and experts of six blocks; a unit is filled where it runs.",
                axes=("trained", "mode", "t"),
                values=paths.swapaxes(-1, -2).astype(float),  # (ways, modes, steps, units, L)
                rows=("unit", unit_names(model)),
                columns=("block", [str(number + 1) for number in range(depth)]),
                limits=(0, 1),
            ),
            Table(
                title="What it costs, and what it gives",
                alt="Units that run, MACs at this step and on average, loss and Frechet distance.",
                axes=("trained", "mode", "t"),
                columns=("", "here"),
                rows=np.array(table, dtype=object),
            ),
            Curves(
                title="MACs of a pass, over those of full mode",
                alt="Three curves over the step; full is at 1, light at the bottom.",
                axes=("trained",),
                x=list(LEVELS),
                x_label="t (0 is clean)",
                lines=[Line(mode, share[:, number]) for number, mode in enumerate(MODES)],
                cursor="t",
                limits=(0, 1.05),
                wide=True,
            ),
        ],
    )
