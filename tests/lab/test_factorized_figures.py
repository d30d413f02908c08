"""The two tables of the figure, and the exponents of the costs, against known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.lab import zoo
from dit_edu.lab.experiments.factorized import (
    DIM,
    KINDS,
    LONG,
    SIDES,
    StoredAttention,
    cost_cell,
    crossing,
    exponent,
)
from dit_edu.lab.figures import two_tables
from dit_edu.lab.figures.factorized import SIDES as SHOWN
from dit_edu.lab.recipes import Recipe


def test_both_tables_share_out_all_and_cost_what_the_formula_says():
    model, card = zoo.load("digits-dit")
    figure = two_tables(model, Recipe.from_dict(card["recipe"]).process.build())
    places, channels, curves = figure.panels
    assert np.shape(places.values)[-2:] == (16, 16) and np.shape(channels.values)[-2:] == (12, 12)
    for panel in (places, channels):
        np.testing.assert_allclose(np.asarray(panel.values).sum(-1), 100, rtol=1e-4)
    pairs, table, maps = (1e6 * np.asarray(line.y) for line in curves.lines)
    n = np.array(SHOWN) ** 2
    np.testing.assert_allclose(pairs, 2 * n**2 * 48)
    np.testing.assert_allclose(table, 2 * n * 48 * 12)
    np.testing.assert_allclose(maps, 10 * n * 48**2)


def rows_of(kind: str, cost) -> list[dict]:
    return [
        {
            "setting": f"{kind}, N = {side**2}",
            "seed": seed,
            "metrics": {"cost": cost(side**2) * (1 + 0.1 * seed)},
        }
        for side in SIDES
        for seed in range(4)
    ]


def test_an_exponent_is_found_and_noise_that_only_adds_does_no_harm():
    rows = rows_of("plain", lambda n: 3e-9 * n**1.5 + (1 if n < LONG else 0))
    assert exponent(rows, "plain", "cost") == pytest.approx((1.5, 1.5, 1.5))


def test_costs_cross_where_they_are_equal():
    rows = rows_of("plain", lambda n: n**2.0) + rows_of("windows", lambda n: 300.0 * n)
    assert crossing(rows, "windows", "cost") == pytest.approx(300, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_measured(kind):
    found = cost_cell({"kind": kind, "side": 8}, seed=0)
    assert found["macs"] > 64 * DIM**2 and found["bytes"] > 64 * DIM * 4


def test_storing_the_table_changes_nothing_but_the_cost():
    torch.manual_seed(0)
    stored, plain = StoredAttention(DIM, 4), KINDS["plain"]((8, 8))
    plain.load_state_dict(stored.state_dict())
    x = torch.randn(2, 64, DIM)
    torch.testing.assert_close(stored(x), plain(x), rtol=1e-4, atol=1e-5)
