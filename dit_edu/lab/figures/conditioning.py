"""Moving figures of the chapter on conditioning: the waves of t, and the race of the blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dit_edu.embedders import alias
from dit_edu.lab.charts import Curves, Line
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.conditioning import KINDS, frequencies
from dit_edu.lab.panels import Axis
from dit_edu.lab.spread import t_limit
from dit_edu.lab.widgets import Figure

FORMULAS = ("published", "factor 2 missing", "as printed")
STEPS, FINE, APART = 12, 10, 100  # steps shown, points per step; distances shown


def waves_of_time() -> Figure:
    """The embedding of t wave by wave: what whole steps see of it, and how alike two steps are."""
    dim = 256
    omega = torch.stack([frequencies(name, dim) for name in FORMULAS])  # (formulas, 128)
    seen = alias(omega)
    shown = [*range(0, dim // 2, 8), dim // 2 - 1]
    t = torch.linspace(0, STEPS, STEPS * FINE + 1, dtype=torch.float64)  # (121,)
    apart = torch.arange(APART + 1, dtype=torch.float64)  # (101,)
    likeness = (apart[:, None] * omega[:, None]).cos().mean(2)  # (formulas, 101)
    every = np.arange(dim // 2)
    return Figure(
        name="waves-of-time",
        title="A step as waves",
        caption="The embedding of t is 128 waves. Move *wave* along, for each formula. Above: the "
        "wave, and the slowest one that goes through the same points at whole steps. Below left: "
        "how fast the waves are; above π they pose as slower ones. Below right: how alike two "
        "steps are.",
        alt="Three charts. A wave over twelve steps with a second, slower one through its values "
        "at whole steps. The frequency of all waves on a logarithmic scale with a line at pi. And "
        "the likeness of two embeddings over their distance: for the published formula it falls "
        "slowly from 1, for the printed one at once to about 0.",
        axes=[
            Axis("wave", "wave k", shown, start=5),
            Axis("formula", "formula", FORMULAS, start=2, choice=True),
        ],
        play="wave",
        panels=[
            Curves(
                title="cos of wave k, over the steps",
                alt="The wave, and its alias, which meets it at every whole step.",
                axes=("formula", "wave"),
                x=t.numpy(),
                x_label="t",
                lines=[
                    Line("the wave", (omega[:, shown, None] * t).cos().numpy()),
                    Line("what whole steps see", (seen[:, shown, None] * t).cos().numpy()),
                ],
                limits=(-1, 1),
                wide=True,
            ),
            Curves(
                title="Radians per step",
                alt="Frequency over k, beside the frequency that whole steps see, and pi.",
                axes=("formula",),
                x=every,
                x_label="k",
                lines=[
                    Line("ω of wave k", omega.numpy()),
                    Line("what whole steps see", seen.abs().numpy()),
                    Line("π: half a turn", np.full((len(FORMULAS), dim // 2), math.pi)),
                ],
                cursor="wave",
                log=True,
            ),
            Curves(
                title="How alike are two steps?",
                alt="The cosine of two embeddings over the distance of their steps.",
                axes=("formula",),
                x=apart.numpy(),
                x_label="steps apart",
                lines=[
                    Line("this formula", likeness.numpy()),
                    Line("published", likeness[[0] * len(FORMULAS)].numpy()),
                ],
                limits=(-0.4, 1),
            ),
        ],
    )


def bands(
    rows: Sequence[Mapping[str, Any]], setting: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean loss by noise bin over seeds, and the ends of its 95 % confidence band: (bins,)."""
    found = [r["metrics"]["loss_by_bin"] for r in rows if r["setting"] == setting]
    runs = np.array(found)  # (seeds, bins)
    half = t_limit(len(runs)) * runs.std(0, ddof=1) / math.sqrt(len(runs))  # (bins,)
    mean = runs.mean(0)
    return mean, mean - half, mean + half


def conditioning_race() -> Figure:
    """Every kind of conditioning against adaLN-Zero: loss by noise level, size and cost.

    Raises:
        FileNotFoundError, ValueError: the table ``conditioning`` is not there.
    """
    rows, base = read("conditioning"), "adaln-zero"
    names = list(KINDS)
    seeds = len({row["seed"] for row in rows})
    mean, low, high = (
        np.stack(part) for part in zip(*(bands(rows, n) for n in names), strict=True)
    )
    zero = names.index(base)
    middles = (np.arange(mean.shape[1]) + 0.5) * 1000 / mean.shape[1]

    def against(values: np.ndarray) -> np.ndarray:
        return values / mean[zero]

    return Figure(
        name="conditioning-race",
        title="A race of conditionings",
        caption=f"Small digits models, {seeds} seeds each, every kind at a learning rate chosen on "
        "the training half. The line is the held-out loss over that of adaLN-Zero. Choose kinds: "
        "where do they lose, at low noise or at high?",
        alt="A chart of the loss of the chosen kind over that of adaLN-Zero, by noise level, with "
        "95 % confidence bands.",
        axes=[Axis("kind", "kind", names, start=names.index("in-context"), choice=True)],
        panels=[
            Curves(
                title="Held-out loss over adaLN-Zero's",
                alt="Over t, the ratio of the losses with a 95 % band of the mean.",
                axes=("kind",),
                x=middles,
                x_label="t (0 is clean)",
                lines=[
                    Line("this kind", against(mean), against(low), against(high)),
                    Line(
                        base,
                        *(np.stack([against(v)[zero]] * len(names)) for v in (mean, low, high)),
                    ),
                ],
            ),
        ],
    )
