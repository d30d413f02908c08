"""The figure and the races of the chapter on depth: what they show is so."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dit_edu.dddit.exits import ExitDiT
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.depth import (
    BUDGETS,
    DEPTH,
    MODEL,
    best_table,
    moves,
    recipe_of,
    threshold_for,
)
from dit_edu.lab.experiments.training import heldout_batch
from dit_edu.lab.figures import depth_by_budget
from dit_edu.lab.figures.depth import TRAINED
from dit_edu.routing import record_routing

TABLES = ("depth-sizes", "depth-apart", "depth-budget", "depth-worth", "depth-router", "depth-cost")


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_figure_shows_the_table():
    runs, _, table, losses = depth_by_budget().panels
    chosen = np.asarray(runs.values)  # (ways, budgets, L, steps)
    assert (chosen[0].sum(1) == np.arange(1, DEPTH + 1)[:, None]).all()
    assert (chosen[:, :, 0] == 1).all()  # the first block always runs
    assert (np.diff(chosen, axis=2) <= 0).all()  # nobody comes back
    rows = [r["metrics"]["budgets"] for r in read("depth-budget") if r["setting"] == TRAINED]
    fixed = np.mean([[at["loss"] for at in row] for row in rows], axis=0)
    np.testing.assert_allclose(losses.lines[0].y, fixed)
    assert np.shape(table.rows) == (2, DEPTH, 10, 6, 2)


def test_budgets_cost_what_separate_models_cost():
    apart = [r["metrics"]["macs"] for r in read("depth-apart") if r["seed"] == 0]
    for row in read("depth-budget"):
        assert [at["macs"] for at in row["metrics"]["budgets"]] == apart
        assert [at["budget"] for at in row["metrics"]["budgets"]] == BUDGETS


def test_three_arrangements_cost_the_same():
    assert len({row["metrics"]["macs"] for row in read("depth-sizes")}) == 1


def test_a_table_over_t_is_the_best():
    loss = np.random.default_rng(0).random((4, 5))
    for mean in (1.0, 2.4, 3.0, 4.0):
        found = best_table(loss, mean)
        assert sum(found) == round(5 * mean)
        least = min(
            sum(loss[k - 1, b] for b, k in enumerate(table))
            for table in product(range(1, 5), repeat=5)
            if sum(table) == sum(found)
        )
        assert sum(loss[k - 1, b] for b, k in enumerate(found)) == pytest.approx(least)


def test_a_threshold_gives_the_mean_depth_that_was_asked_for():
    torch.manual_seed(0)
    net = ExitDiT(**MODEL).eval()
    for p in net.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    process = recipe_of({"kind": "DiT", "model": {}}).process.build()
    data = torch.randn(8, 1, 8, 8), torch.arange(8)
    moved = moves(net, process, data)  # (n, L - 1)
    assert moved.shape == (64, DEPTH - 1)
    net.threshold = threshold_for(3.5, moved)
    x0, t, y, noise = heldout_batch(process, data)
    with torch.no_grad(), record_routing(net) as trace:
        net(process.q_sample(x0, t, noise), t, y)
    ran = trace.decisions[0].chosen.sum(1).double()
    assert ran.mean() == pytest.approx(3.5, abs=0.05)
