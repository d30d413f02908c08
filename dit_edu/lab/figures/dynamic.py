"""The figure of the chapter on layers chosen by the step: who runs when, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dit_edu.lab.charts import Bars, Curves, Heatmap, Line
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.dynamic import SHOWN
from dit_edu.lab.figures.conditioning import bands
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure

#: The trainings with a router, in the order of the table.
ROUTERS = (
    "router without gradient",
    "router",
    "router, noise",
    "router, noise and balance",
    "head start",
    "head start, noise and balance",
)


def layers_by_step(names: Sequence[str] = ROUTERS, shown_seeds: int = 3) -> Figure:
    """Which layers trained routers run at each step, how sure they are, and the loss they reach.

    Args:
        names: of the trainings that are shown.
        shown_seeds: how many of their seeds; the losses are of all.

    Raises:
        FileNotFoundError, ValueError: the table ``layer-routing`` is not there.
    """
    rows = read("layer-routing")
    seeds = sorted({row["seed"] for row in rows})[:shown_seeds]
    routed = [row for row in rows if row["setting"] in names and row["seed"] in seeds]
    shape = (len(names), len(seeds), len(SHOWN), -1)
    # (routers, seeds, steps, L)
    chosen = np.array([row["metrics"]["chosen"] for row in routed]).reshape(shape)
    soft = np.array([row["metrics"]["soft"] for row in routed]).reshape(shape)
    layers = [str(layer + 1) for layer in range(chosen.shape[-1])]
    full, fewer = bands(rows, "6 layers"), bands(rows, "4 layers")
    found = [bands(rows, name) for name in names]
    middles = (np.arange(len(full[0])) + 0.5) * 1000 / len(full[0])
    against = np.stack([np.stack(part) / full[0] for part in zip(*found, strict=True)])
    static = np.stack([np.stack([part / full[0]] * len(names)) for part in fewer])
    return Figure(
        name="layers-by-step",
        title="Layers by step",
        caption="A model of six layers runs four at every step; a router picks them. Choose how "
        "the router was trained, then move the step. Filled: the layer runs. Below: what the "
        "router thinks of each layer, and the loss over that of a model that runs all six.",
        alt="A map of layers over steps, in which four of six layers run at each step; bars with "
        "the router's probability of each layer at the chosen step; and a chart of the loss over "
        "that of a model with all layers, beside a model that has only four.",
        axes=[
            Axis("router", "trained with", names, start=1, choice=True),
            Axis("seed", "seed", seeds, choice=True),
            Axis("t", "t", list(SHOWN), start=len(SHOWN) // 2),
        ],
        play="t",
        panels=[
            Heatmap(
                title="Which layers run",
                alt="Layers over steps; at each step four of the six are filled.",
                axes=("router", "seed"),
                values=chosen.swapaxes(2, 3),
                rows=("layer", layers),
                columns="t",
                limits=(0, 1),
                wide=True,
            ),
            Bars(
                title="The router's probabilities at this step",
                alt="One bar for each layer.",
                axes=("router", "seed", "t"),
                labels=[f"layer {name}" for name in layers],
                values=soft,
                most=1.0,
            ),
            Curves(
                title="Held-out loss over that of six layers",
                alt="Over t, the ratio of the losses, with a 95 % band of the mean over seeds.",
                axes=("router",),
                x=middles,
                x_label="t (0 is clean)",
                lines=[
                    Line("router, four of six", *against),
                    Line("plain, four layers", *static),
                ],
            ),
        ],
    )
