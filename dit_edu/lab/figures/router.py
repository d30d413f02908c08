"""The figures of the chapter on routers: switches over a training, and a switch under noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dit_edu.lab.charts import Bars, Curves, Heatmap, Line
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.router import LEVELS, TARGET
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure

#: The trainings with a router, in the order of the table.
ROUTERS = (
    "router",
    "no entropy",
    "sources' entropy",
    "no ramp",
    "silent",
    "mixture",
)


def branch_names(units: int) -> list[str]:
    """Attention and MLP of each block: ``att 1``, ``mlp 1``, …"""
    return [f"{'mlp' if unit % 2 else 'att'} {unit // 2 + 1}" for unit in range(units)]


def switches_by_update(names: Sequence[str] = ROUTERS, shown_seeds: int = 3) -> Figure:
    """How probable each branch is at each step, along a training; and what that costs.

    Args:
        names: of the trainings that are shown.
        shown_seeds: how many of their seeds.

    Raises:
        FileNotFoundError, ValueError: the table ``router`` is not there.
    """
    rows = read("router")
    seeds = sorted({row["seed"] for row in rows})[:shown_seeds]
    runs = [
        next(r["metrics"]["history"] for r in rows if (r["setting"], r["seed"]) == (n, s))
        for n in names
        for s in seeds
    ]
    shape = (len(names), len(seeds), -1)
    updates = [look["update"] for look in runs[0]]
    # (trainings, seeds, updates, steps, 2L)
    soft = np.array([[look["soft"] for look in run] for run in runs])
    soft = soft.reshape(*shape[:2], *soft.shape[1:])
    executed, expected = (
        np.array([[look[k] for look in run] for run in runs]).reshape(shape)
        for k in ("executed", "expected")
    )
    return Figure(
        name="switches-by-update",
        title="Twelve switches in training",
        caption="A model of six blocks may run 60 % of its branches' MACs. A router decides which, "
        "by step and label. Choose how it was trained, then move the update. Filled: the branch "
        "is surely on. Below: what the router promises, and what runs when its decisions are made "
        "hard.",
        alt="A map of twelve branches over steps, with the probability that each is on; and a "
        "chart of the share of MACs that is expected and that is executed, over the updates of "
        "the training.",
        axes=[
            Axis("training", "training", names, choice=True),
            Axis("seed", "seed", seeds, choice=True),
            Axis("update", "update", updates, start=len(updates) - 1),
        ],
        play="update",
        panels=[
            Heatmap(
                title="Probability that a branch is on",
                alt="Branches over steps; attention and MLP of each of six blocks.",
                axes=("training", "seed", "update"),
                values=soft.swapaxes(3, 4),
                rows=("branch", branch_names(soft.shape[-1])),
                columns=("t (0 is clean)", [str(t) for t in LEVELS]),
                limits=(0, 1),
                wide=True,
            ),
            Curves(
                title="Share of the branches' MACs",
                alt="Over updates: expected under the router's probabilities, executed when they "
                "are made hard, and the target.",
                axes=("training", "seed"),
                x=updates,
                x_label="update",
                lines=[
                    Line("executed", executed),
                    Line("expected", expected),
                    Line("target", np.full_like(executed, TARGET)),
                ],
                cursor="update",
                limits=(0, 1),
                wide=True,
            ),
        ],
    )


# ---------------------------------------------------------------------- a switch under noise

LOGITS = tuple(round(r, 2) for r in np.linspace(-5, 5, 21).tolist())
TEMPERATURES = (0.25, 0.5, 1.0, 2.0)
_GATES = np.linspace(0.01, 0.99, 50)  # where the relaxed gate's density is drawn
_U = (np.arange(20_000) + 0.5) / 20_000  # evenly in (0, 1); the logistic noise is its logit


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


def gate_density(logit: float, temperature: float, gates: np.ndarray = _GATES) -> np.ndarray:
    """The density of s = sigmoid((logit + noise) / temperature) under logistic noise."""
    noise = temperature * np.log(gates / (1 - gates)) - logit
    p = _sigmoid(noise)
    return p * (1 - p) * temperature / (gates * (1 - gates))  # p(noise) |d noise / d s|


def mean_slopes(logit: float, temperature: float) -> tuple[float, float, float]:
    """What a switch's logit hears on average, for a gate that is worth 1.

    Returns:
        The slope of the probability itself, p (1 - p); the mean of s (1 - s) / temperature, where
        a switch that is off is heard too; and the same where it is silent.
    """
    tried = logit + np.log(_U / (1 - _U))
    s = _sigmoid(tried / temperature)
    slope = s * (1 - s) / temperature
    p = _sigmoid(np.array(logit))
    return float(p * (1 - p)), float(slope.mean()), float((slope * (tried > 0)).mean())


def noisy_switch(logits: Sequence[float] = LOGITS) -> Figure:
    """The distribution of a switch's relaxed gate, and what its logit hears on average.

    Args:
        logits: the positions of the slider, increasing.
    """
    true, heard, silent = np.moveaxis(
        np.array([[mean_slopes(r, tau) for r in logits] for tau in TEMPERATURES]), -1, 0
    )  # (temperatures, logits) each
    density = np.array([[gate_density(r, tau) for r in logits] for tau in TEMPERATURES])
    on = _sigmoid(np.array(logits))
    return Figure(
        name="noisy-switch",
        title="A switch under noise",
        caption="Move the logit. With noise the switch is on with the probability of its sigmoid, "
        "at any temperature. The temperature shapes the soft gate that lends its gradient: left of "
        "1/2 the switch is off. Below: what the logit hears on average, if a switch that is off "
        "is computed too, and if it is silent.",
        alt="The density of the soft gate between 0 and 1; bars with the probabilities of off and "
        "on; and a chart of the mean gradient over the logit, in three lines.",
        axes=[
            Axis("logit", "logit", list(logits), start=list(logits).index(-2.0)),
            Axis("tau", "temperature", list(TEMPERATURES), start=2, choice=True),
        ],
        play="logit",
        panels=[
            Curves(
                title="Density of the soft gate",
                alt="Over the value of the soft gate, from 0 to 1; the switch is on right of 1/2.",
                axes=("tau", "logit"),
                x=_GATES,
                x_label="soft gate",
                lines=[Line("density", density)],
                limits=(0, 4),
            ),
            Bars(
                title="The switch is",
                alt="Two bars: the probability of off and of on.",
                axes=("logit",),
                labels=["off", "on"],
                values=np.stack([1 - on, on], -1),
                most=1.0,
            ),
            Curves(
                title="What the logit hears",
                alt="Over the logit: the true slope, the mean with all heard, and the mean with "
                "silence, which is smallest at negative logits.",
                axes=("tau",),
                x=list(logits),
                x_label="logit",
                lines=[
                    Line("true slope", true),
                    Line("all heard", heard),
                    Line("off is silent", silent),
                ],
                cursor="logit",
                wide=True,
            ),
        ],
    )
