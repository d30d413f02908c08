"""The figure of the chapter on experts: who is sent to which of them, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dit_edu.lab.charts import Bars, Heatmap
from dit_edu.lab.experiments import Row, read
from dit_edu.lab.experiments.experts import asked_batch, chosen_by, recipe_of
from dit_edu.lab.experiments.router import LEVELS
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure

#: The trainings that are shown, with four experts each, and the table that each stands in.
SHOWN = {
    "4 bands": "experts-bands",
    "step": "experts",
    "image": "experts",
    "token": "experts",
    "image, no noise": "experts-choice",
}
EXPERTS = ("1", "2", "3", "4")


def shown_row(name: str) -> Row:
    """The row of one of ``SHOWN``, of seed 0."""
    rows = read(SHOWN[name])
    return next(row for row in rows if (row["setting"], row["seed"]) == (name, 0))


def experts_by_step(names: Sequence[str] = tuple(SHOWN)) -> Figure:
    """Which expert works for which token, by who asks, block and step.

    Args:
        names: of the trainings, keys of ``SHOWN``.

    Raises:
        FileNotFoundError, ValueError: a table of the experiments is not there.
    """
    rows = [shown_row(name) for name in names]
    grids = [chosen_by(row) for row in rows]  # (L, steps, labels, 1 or N) each
    chosen = np.stack([np.broadcast_to(g, (*g.shape[:3], 16)) for g in grids])  # (who, L, …, N)
    share = np.stack([(chosen == e).mean((3, 4)) for e in range(len(EXPERTS))], 2)  # (…, E, t)
    load = np.array([row["metrics"]["load"] for row in rows])  # (who, L, E)
    process = recipe_of({"kind": "DiT", "model": {}}).process.build()
    noisy = asked_batch(process)[0].reshape(len(LEVELS), 2, 5, 1, 8, 8)
    labels = [str(t) for t in LEVELS]
    return Figure(
        name="experts-by-step",
        title="Who is sent to which expert",
        caption="Ten noisy digits of sixteen tokens each, and four experts in every block. Choose "
        "who asks the router, then move the step. A row of the map is a digit, a cell one of its "
        "tokens, and the shade is the number of the expert that works on it. Below: how the four "
        "share the steps, and how they share all held-out digits.",
        alt="A map of ten digits by sixteen tokens, shaded by the expert that each token is sent "
        "to; ten noisy digits; a map of four experts over steps; and four bars, one for the load "
        "of each expert.",
        axes=[
            Axis("who", "who asks", list(names), start=list(names).index("image"), choice=True),
            Axis("block", "block", range(1, chosen.shape[1] + 1), start=5),
            Axis("t", "t", list(LEVELS), labels=labels, start=5),
        ],
        play="t",
        panels=[
            Heatmap(
                title="The expert of each token",
                alt="Digits by tokens. One shade everywhere if the step asks, stripes if images "
                "ask, a pattern of its own for each digit if tokens do.",
                axes=("who", "block", "t"),
                values=chosen + 1,
                rows=("digit", [str(y) for y in range(10)]),
                columns=("token", [str(n) for n in range(1, 17)]),
                limits=(1, len(EXPERTS)),
                unit="expert",
                wide=True,
            ),
            Images(
                title="The digits at this step",
                alt="Ten digits, 0 to 9, the noisier the larger the step.",
                axes=("t",),
                frames=noisy,
                size=56,
                levels=32,
            ),
            Bars(
                title="Load, all steps",
                alt="Four bars: the share of held-out tokens that each expert works on.",
                axes=("who", "block"),
                labels=[f"expert {e}" for e in EXPERTS],
                values=load,
                most=1.0,
            ),
            Heatmap(
                title="Share of the tokens that each expert gets",
                alt="Experts by steps. Blocks along the diagonal where bands are given by hand.",
                axes=("who", "block"),
                values=share,
                rows=("expert", EXPERTS),
                columns="t",
                limits=(0, 1),
                wide=True,
            ),
        ],
    )
