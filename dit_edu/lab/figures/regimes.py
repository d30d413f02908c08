"""The figure of the chapter on regimes: a budget shared out over t, and what that is worth."""

from __future__ import annotations

import numpy as np

from dit_edu.dddit.policies import best_within, coin
from dit_edu.lab.charts import Curves, Line, Table
from dit_edu.lab.experiments.regimes import TABLES, option_table
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure

SHARES = np.arange(0, 101, 10)  # per cent of the way from the cheapest option to the dearest


def shared_out() -> Figure:
    """The best policy over t for each table and budget, and its loss beside that of a coin.

    Raises:
        FileNotFoundError, ValueError: a table that it rests on is not there.
    """
    spent, by_policy, by_coin = [], [], []
    for name in TABLES:
        loss, macs = option_table(name)
        loss = loss.mean(0)  # (options, bins)
        budgets = min(macs) + SHARES / 100 * (max(macs) - min(macs))
        best = [best_within(loss, macs, budget) for budget in budgets]
        spent.append([[macs[k] / max(macs) for k in p.options] for p in best])
        whole = loss[np.argmax(macs)].mean()
        by_policy.append([p.loss / whole for p in best])
        by_coin.append([coin(loss, macs, p.macs) / whole for p in best])
    spent, by_policy, by_coin = map(np.array, (spent, by_policy, by_coin))
    mean = spent.mean(-1, keepdims=True)  # (tables, budgets, 1)
    rows = [
        [
            [
                ["MACs, on average", f"{mean[i, j, 0]:.0%}"],
                ["loss, knowing t", f"{by_policy[i, j]:.3f}"],
                ["loss, by lot", f"{by_coin[i, j]:.3f}"],
                ["saved by knowing t", f"{max(0.0, 1 - by_policy[i, j] / by_coin[i, j]):.1%}"],
            ]
            for j in range(len(SHARES))
        ]
        for i in range(len(TABLES))
    ]
    return Figure(
        name="shared-out",
        title="A budget, shared out over t",
        caption="Options that were trained apart, and the best way to give them to the ten ranges "
        "of t. Move the budget and see where the MACs go first; then change what is shared out. "
        "A coin that knows nothing of t spends as much. MACs and losses are over those of the "
        "dearest option at every t.",
        alt="A curve of MACs over t that steps down from low noise to high; a table of mean MACs, "
        "two losses and what is saved; and two falling curves of the loss over the budget, far "
        "apart where patch size is shared out on shapes, and one on the other for depth on digits.",
        axes=[
            Axis("what", "what is shared out", list(TABLES), choice=True, start=3),
            Axis("budget", "budget", SHARES.tolist(), labels=[f"{s} %" for s in SHARES], start=3),
        ],
        play="budget",
        panels=[
            Curves(
                title="MACs at each t, over the dearest option's",
                alt="A curve of MACs over t in steps, high where the policy spends.",
                axes=("what", "budget"),
                x=np.arange(50, 1000, 100),
                x_label="t (0 is clean)",
                lines=[
                    Line("the best policy", spent),
                    Line("its mean", np.broadcast_to(mean, spent.shape)),
                ],
                limits=(0, 1.05),
            ),
            Table(
                title="What it costs, and what it gives",
                alt="Mean MACs, loss of the policy, loss of the coin, and what is saved.",
                axes=("what", "budget"),
                columns=("", "here"),
                rows=np.array(rows, dtype=object),
            ),
            Curves(
                title="Loss over the budget",
                alt="Two curves that fall with the budget, the policy's below the coin's.",
                axes=("what",),
                x=SHARES,
                x_label="budget, per cent of the way up",
                cursor="budget",
                lines=[Line("knowing t", by_policy), Line("by lot", by_coin)],
                wide=True,
            ),
        ],
    )
