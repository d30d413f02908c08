"""The moving figure of the landscape: what each way costs, and which is best within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit_edu.lab.charts import Bars, Table
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.landscape import LANDSCAPE
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure

#: What a way costs, by its metric; all are shares of what the plain model costs.
COSTS = {
    "macs_share": "MACs",
    "seconds_share_1": "time, 1 image",
    "seconds_share_16": "time, 16 images",
    "megabytes": "bytes of weights",
}
#: What it is worth; the less the better.
QUALITIES = {"fd_ratio": "Fréchet distance", "wrong": "share of wrong classes"}
BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LEEWAY = 0.02  # what a clock may be off


def measured(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, np.ndarray]:
    """All metrics of a way, seed by seed: costs over the plain model's, (seeds,) each."""
    mine = [row["metrics"] for row in rows if row["setting"] == name]
    base = [row["metrics"] for row in rows if row["setting"] == "DiT"]
    numbers = [key for key, value in mine[0].items() if not isinstance(value, list)]
    found = {key: np.array([m[key] for m in mine], float) for key in numbers}
    found["megabytes"] = found["megabytes"] / base[0]["megabytes"]
    found["wrong"] = 1 - found["accuracy"]
    return found


def within(ways: Mapping[str, Mapping[str, np.ndarray]], cost: str, budget: float) -> list[str]:
    """The ways that cost at most a share of what the plain model does."""
    return [name for name, m in ways.items() if m[cost].mean() <= budget + LEEWAY]


def landscape() -> Figure:
    """Costs of all ways, and the best of those that fit a budget.

    Raises:
        FileNotFoundError, ValueError: the table ``landscape`` is not there.
    """
    rows = read("landscape")
    ways = {name: measured(rows, name) for name in LANDSCAPE}
    costs = [[m[cost].mean() for m in ways.values()] for cost in COSTS]  # (costs, ways)
    worth = [[m[quality].mean() for m in ways.values()] for quality in QUALITIES]
    ranks = []
    for cost in COSTS:
        for budget in BUDGETS:
            fits = within(ways, cost, budget)
            for quality in QUALITIES:
                means = {name: m[quality].mean() for name, m in ways.items()}
                best = sorted(fits, key=means.__getitem__)
                lines = [
                    [
                        name,
                        f"{ways[name][cost].mean():.0%}",
                        f"{means[name]:.2f} ± {ways[name][quality].std(ddof=1):.2f}",
                    ]
                    for name in best
                ]
                ranks.append(lines + [["–", "", ""]] * (len(ways) - len(lines)))
    shape = (len(COSTS), len(BUDGETS), len(QUALITIES))
    return Figure(
        name="landscape",
        title="Which way, for which budget?",
        caption="Many ways to draw the same scenes. Choose what is dear to you and how much of "
        "it you have, over what the plain model takes; the table ranks those that fit, or miss "
        f"the budget by {LEEWAY:.0%} at most, as clocks are not exact. Then change the currency: "
        "the winner changes with it.",
        alt="Bars of what a dozen ways cost over the plain model; bars of their quality; "
        "and a table that ranks those within the chosen budget.",
        axes=[
            Axis("cost", "what is dear", list(COSTS.values()), choice=True),
            Axis("budget", "budget", BUDGETS, [f"{b:.0%}" for b in BUDGETS], start=4),
            Axis("quality", "judged by", list(QUALITIES.values()), choice=True),
        ],
        panels=[
            Bars(
                title="Cost over the plain model's",
                alt="A dozen bars; the plain model's is 1.",
                axes=("cost",),
                labels=list(LANDSCAPE),
                values=costs,
            ),
            Bars(
                title="Quality, less is better",
                alt="A dozen bars.",
                axes=("quality",),
                labels=list(LANDSCAPE),
                values=worth,
            ),
            Table(
                title="Within the budget, the best first",
                alt="The ways that fit, with their cost and their quality.",
                axes=("cost", "budget", "quality"),
                columns=("way", "cost", "quality, sd over seeds"),
                rows=np.array(ranks, dtype=object).reshape((*shape, len(ways), 3)),
                wide=True,
            ),
        ],
    )
