"""Policies over t: against all policies there are, and linear programming."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from dit_edu.dddit.policies import at_price, best_within, coin, frontier, policy


@st.composite
def tables(draw, options=3, bins=4):
    k, b = draw(st.integers(1, options)), draw(st.integers(1, bins))
    numbers = st.integers(0, 40)  # few of them, so that ties come up
    loss = draw(st.lists(st.lists(numbers, min_size=b, max_size=b), min_size=k, max_size=k))
    return np.array(loss, float), draw(st.lists(st.integers(1, 9), min_size=k, max_size=k))


def every(loss, macs):
    """All policies there are."""
    return [policy(loss, macs, options) for options in product(*[range(len(macs))] * loss.shape[1])]


@settings(max_examples=80, deadline=None)
@given(tables())
def test_the_frontier_is_what_no_policy_beats(table):
    loss, macs = table
    found, ways = frontier(loss, macs), every(loss, macs)
    best = {}
    for way in ways:
        best[way.macs] = min(best.get(way.macs, np.inf), way.loss)
    want, least = [], np.inf
    for spent in sorted(best):
        if best[spent] < least - 1e-9:
            want.append((spent, best[spent]))
            least = best[spent]
    np.testing.assert_allclose([(p.macs, p.loss) for p in found], want, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(tables(), st.floats(0, 1))
def test_the_best_within_a_budget(table, share):
    loss, macs = table
    budget = min(macs) + share * (max(macs) - min(macs))
    found = best_within(loss, macs, budget)
    assert found.macs <= budget * (1 + 1e-9)
    want = min(way.loss for way in every(loss, macs) if way.macs <= budget * (1 + 1e-12))
    assert found.loss == pytest.approx(want)
    assert found == policy(loss, macs, found.options)


@settings(max_examples=60, deadline=None)
@given(tables(), st.floats(0, 20))
def test_no_policy_for_the_same_money_beats_equal_prices(table, price):
    loss, macs = table
    found = at_price(loss, macs, price)
    assert all(w.loss >= found.loss - 1e-9 for w in every(loss, macs) if w.macs <= found.macs)
    paid = [w.loss + price * w.macs for w in every(loss, macs)]
    assert found.loss + price * found.macs == pytest.approx(min(paid))


@settings(max_examples=60, deadline=None)
@given(tables(), st.floats(0, 1.5))
def test_the_coin_is_a_linear_program(table, share):
    loss, macs = table
    budget = min(macs) + share * (max(macs) - min(macs))
    best = linprog(
        loss.mean(1), A_ub=[macs], b_ub=[budget + 1e-9], A_eq=[[1] * len(macs)], b_eq=[1]
    )
    assert coin(loss, macs, budget) == pytest.approx(best.fun, abs=1e-6)


def test_who_knows_t_beats_the_coin_only_where_slopes_differ():
    alike = np.array([[3.0, 2.0], [2.0, 1.0]])  # one unit more saves 1 in each bin
    assert best_within(alike, [1, 2], 1.5).loss == coin(alike, [1, 2], 1.5)
    apart = np.array([[4.0, 2.0], [2.0, 1.0]])  # it saves 2 in one, 1 in the other
    assert best_within(apart, [1, 2], 1.5) == policy(apart, [1, 2], (1, 0))
    assert best_within(apart, [1, 2], 1.5).loss == 2.0 < coin(apart, [1, 2], 1.5) == 2.25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frontier([[1.0]], [1, 2]), "2 MACs; allowed: a row for each option"),
        (lambda: frontier(np.zeros((2, 0)), [1, 2]), "allowed: a row for each option"),
        (lambda: best_within([[1.0]], [2], 1), "budget=1; allowed: at least 2"),
        (lambda: coin([[1.0]], [2], 1), "budget=1; allowed: at least 2"),
        (lambda: at_price([[1.0]], [2], -1), "price=-1; allowed: at least 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
