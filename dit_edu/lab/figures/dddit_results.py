"""The moving figure of the chapter on DDDiT's results: the frontier, and who runs when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit_edu.lab.charts import Bars, Curves, Heatmap, Line
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.dynamic import MODEL
from dit_edu.lab.experiments.frontier import LEVELS, SHARES
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure

#: The families of the frontier, by what the reader sees: the first words of their settings.
FAMILIES = {
    "DDDiT": "DDDiT from scratch",
    "DDDiT, from dense": "DDDiT",
    "thin": "thin",
    "thin, from dense": "thin from dense",
    "narrow": "narrow",
    "shallow": "shallow",
    "shallow, from dense": "shallow from dense",
}
ROUTED = tuple(FAMILIES)[:2]
KINDS = ("DDDiT", "thin", "narrow", "shallow")  # of each, both starts
MEASURES = {"loss": "Held-out loss", "fd_ratio": "Fréchet distance"}
LIMITS = {"loss": (0.245, 0.28), "fd_ratio": (4, 21)}
COSTS = {"macs_share": "MACs", "seconds_share": "time"}
HEADS = MODEL["num_heads"]


def member(family: str, share: float) -> str:
    """The setting of a family at a share of the dense model's MACs; some families lack some."""
    return "dense" if share == 1 else f"{FAMILIES.get(family)} {share}"


def of(rows: Sequence[Mapping[str, Any]], setting: str, metric: str) -> np.ndarray:
    """A metric of a setting, seed by seed, (seeds, …); NaN where nobody has trained it."""
    found = {r["seed"]: r["metrics"][metric] for r in rows if r["setting"] == setting}
    return np.array([found[seed] for seed in sorted(found)] or [np.nan], float)


def used(rows: Sequence[Mapping[str, Any]], family: str, share: float) -> np.ndarray:
    """How often each unit of a DDDiT runs at each step, a mean over seeds: (steps, L, h + E)."""
    return of(rows, member(family, share), "path").mean(0)


def dddit_race() -> Figure:
    """Loss or distance over executed MACs by family; what the routers run, and what time it takes.

    Raises:
        FileNotFoundError, ValueError: the table ``frontier`` is not there.
    """
    rows = read("frontier")
    x = [*SHARES, 1.0]
    charts = {}
    for metric in MEASURES:
        charts[metric] = []
        for kind in KINDS:
            found = [
                [of(rows, member(kind + start, s), metric) for s in x]
                for start in ("", ", from dense")
            ]
            mean, low, high = (
                np.array([[part(v) for v in start] for start in found])
                for part in (np.mean, np.min, np.max)
            )
            charts[metric].append(Line(kind, mean, low=low, high=high))
    runs = np.array([[used(rows, f, s) for s in SHARES] for f in ROUTED])  # (2, S, steps, L, h + E)
    bars = [
        [
            [of(rows, member(f, s), m).mean() for f in (family, "shallow") for m in COSTS]
            for s in SHARES
        ]
        for family in ROUTED
    ]
    return Figure(
        name="dddit-race",
        title="What deciding is worth",
        caption="A DDDiT of six blocks, from scratch or from a trained model, is steered to a "
        "share of the MACs. Choose the share. The map shows which of its heads and experts run, "
        "from never to at all steps; the curves, how many at each step. The charts below hold it "
        "against models that decide nothing and are trained alike. Lower is better, and bands go "
        "from the least to the most of the seeds.",
        alt="A map of six blocks with four heads and six experts each, filled by how often they "
        "run; a chart of the mean number of heads and experts over the step; bars of multiply-adds "
        "and time; and charts of loss and Frechet distance over the share of multiply-adds for "
        "DDDiT and three kinds of static models.",
        axes=[
            Axis("trained", "trained", ["from scratch", "from dense"], choice=True),
            Axis("share", "MACs", SHARES, [f"{s:.0%}" for s in SHARES], start=2),
        ],
        panels=[
            Heatmap(
                title="Share of steps at which a unit runs",
                alt="Blocks over single heads and experts.",
                axes=("trained", "share"),
                values=runs.mean(2),
                rows=("block", [str(b + 1) for b in range(runs.shape[3])]),
                columns=(
                    "heads and experts",
                    [f"h{i + 1}" for i in range(HEADS)]
                    + [f"e{i + 1}" for i in range(runs.shape[4] - HEADS)],
                ),
                limits=(0, 1),
            ),
            Curves(
                title="Running units of a block, by step",
                alt="Two lines over t: the mean number of heads and of experts.",
                axes=("trained", "share"),
                x=list(LEVELS),
                x_label="t (0 is clean)",
                lines=[
                    Line("heads", runs[..., :HEADS].sum(-1).mean(3)),
                    Line("experts", runs[..., HEADS:].sum(-1).mean(3)),
                ],
                limits=(0, 6),
            ),
            Bars(
                title="Share of the dense model",
                alt="Four bars: multiply-adds and time of the DDDiT and of the shallow model.",
                axes=("trained", "share"),
                labels=[
                    f"{name}, {what}" for name in ("DDDiT", "shallow") for what in COSTS.values()
                ],
                values=bars,
                most=1.2,
            ),
            *(
                Curves(
                    title=title,
                    alt="A line for each kind of model over the share; all end at the dense one.",
                    axes=("trained",),
                    x=x,
                    x_label="MACs, share of the dense model",
                    lines=charts[metric],
                    cursor="share",
                    limits=LIMITS[metric],
                )
                for metric, title in MEASURES.items()
            ),
        ],
    )
