"""The moving figure of the chapter on training: is this loss normal?"""

from __future__ import annotations

import numpy as np

from dit_edu.lab.charts import Curves, Line
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.training import BASE, CURVE_EVERY
from dit_edu.lab.panels import Axis
from dit_edu.lab.spread import prediction_band
from dit_edu.lab.widgets import Figure

#: What the reader chooses from, in the order of the table ``loss-faults``.
SHORT = ("normal", "labels", "noise", "pixels", "low lr", "50 images")


def expected_loss() -> Figure:
    """The loss per noise bin while a model learns: the normal band, and runs with a fault.

    Raises:
        FileNotFoundError, ValueError: the tables ``loss-curves`` and ``loss-faults`` are not there.
    """
    normal = np.array([row["metrics"]["curve"] for row in read("loss-curves")])
    runs = {row["setting"]: np.array(row["metrics"]["curve"]) for row in read("loss-faults")}
    mean, low, high = prediction_band(normal)  # (points, bins) each
    points, bins = mean.shape
    steps = [CURVE_EVERY * (k + 1) for k in range(points)]
    middles = (np.arange(bins) + 0.5) * 1000 / bins
    of_runs = np.stack(list(runs.values()))  # (runs, points, bins)
    ratio = of_runs / mean
    spread = ((high - low) / mean / 2).mean(1)  # (points,): half the band's width, of all bins
    one = np.ones(points)

    def always(y: np.ndarray) -> np.ndarray:
        return np.broadcast_to(y, (len(runs), *y.shape))

    return Figure(
        name="expected-loss",
        title="Is my loss normal?",
        caption=f"The loss of a small digits model in {bins} bins of the noise level. The shaded "
        f"band says where a healthy run lies, learnt from {len(normal)} seeds. Choose a run with "
        "something wrong, and move the *update*: at which *t*, and how soon, does it leave the "
        "band?",
        alt="Two charts. On the first, over the noise level, a band falls as training goes on; a "
        "line shows the chosen run, inside the band or beside it. On the second, over the updates, "
        "the same run divided by the expected loss, at low, middle and high noise.",
        axes=[
            Axis("run", "run", list(runs), SHORT, start=1, choice=True),
            Axis("step", "update", steps, start=points - 1),
        ],
        play="step",
        panels=[
            Curves(
                title="Loss by noise level",
                alt="Over t, the expected loss with its band, and the loss of the chosen run.",
                axes=("run", "step"),
                x=middles,
                x_label="t (0 is clean)",
                lines=[
                    Line("expected", always(mean), always(low), always(high)),
                    Line("this run", of_runs),
                ],
                limits=(0, 1.2),
            ),
            Curves(
                title="This run over the expected loss",
                alt="Over the updates, the run's loss divided by the expected one, for the bins of "
                "the lowest, a middle and the highest t, beside a band around 1.",
                axes=("run",),
                x=steps,
                x_label=f"update (of {BASE['steps']})",
                lines=[
                    Line("expected", always(one), always(1 - spread), always(1 + spread)),
                    *(
                        Line(f"t near {middles[b]:.0f}", ratio[:, :, b])
                        for b in (0, bins // 2, bins - 1)
                    ),
                ],
                cursor="step",
            ),
        ],
    )
