"""What is read from a record: against counted cases, all permutations, and chance itself."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from dit_edu.dddit.diagnostics import (
    agreement,
    chance_agreement,
    choices,
    dead,
    guessed,
    load,
    sharp,
)
from dit_edu.dddit.switched import SwitchedDiT
from dit_edu.routing import record_routing


def drawn(seed: int, n: int = 40, units: int = 4, share: float = 0.5) -> np.ndarray:
    return (np.random.default_rng(seed).random((n, units)) < share).astype(float)


def test_choices_come_back_from_the_table():
    torch.manual_seed(0)
    net = SwitchedDiT(
        input_size=8, in_channels=1, hidden_size=16, depth=2, num_heads=2, learn_sigma=False,
        keep=2,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(net.router.mlp[-1].weight, std=20.0)
    with record_routing(net) as trace:
        for start in (0, 500):
            t = start + torch.arange(5) * 100
            net(torch.zeros(5, 1, 8, 8), t, t * 0)
    want = torch.cat([d.chosen for d in trace.decisions]).numpy()
    got = choices(trace.table(), "")
    assert (got == want).all() and got.shape == (10, 4)
    with pytest.raises(ValueError, match="module='router' chose nothing; allowed: ''"):
        choices(trace.table(), "router")


def test_what_a_choice_depends_on_can_be_guessed_from_it():
    t, y = (grid.flatten() for grid in np.meshgrid(range(8), range(6), indexing="ij"))
    by_step = np.eye(4)[t // 2]
    assert guessed(by_step) == 1 / 4
    assert guessed(by_step, t) == guessed(by_step, t // 2) == 1
    assert guessed(by_step, y) == 1 / 4
    both = np.eye(4)[(t // 4) + 2 * (y // 3)]
    assert [guessed(both), guessed(both, t), guessed(both, t * 6 + y)] == [1 / 4, 1 / 2, 1]


def test_load_and_dead_units():
    chosen = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    assert load(chosen).tolist() == [1, 0, 0.25]
    assert dead(chosen).tolist() == [1]
    assert dead(chosen, below=0.3).tolist() == [1, 2]


def test_sharp_counts_both_ends():
    assert sharp([[0.01, 0.5], [0.97, 0.94]]) == 0.5
    assert sharp(np.full((3, 2), 0.5)) == 0


def test_agreement_counts_equal_decisions():
    a = drawn(0)
    assert agreement(a, a) == 1
    assert agreement(a, 1 - a) == 0
    b = drawn(1)
    assert agreement(a, b) == pytest.approx((a == b).mean())


def test_experts_are_matched_first():
    a, b = drawn(0), drawn(1)
    order = [2, 0, 3, 1]
    assert agreement(a, a[:, order]) < 1
    assert agreement(a, a[:, order], matched=True) == 1
    best = max((a == b[:, list(p)]).mean() for p in permutations(range(4)))
    assert agreement(a, b, matched=True) == pytest.approx(best)


def test_chance_is_what_unrelated_choices_reach():
    a, b = drawn(0, 4000, 6, 0.7), drawn(1, 4000, 6, 0.4)
    assert chance_agreement(a, b) == pytest.approx(agreement(a, b), abs=0.02)
    assert chance_agreement(np.ones((2, 2)), np.ones((2, 2))) == 1


def test_bad_input():
    with pytest.raises(ValueError, match=r"a has shape \(2, 3\) and b \(2, 2\)"):
        agreement(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="allowed: the same"):
        chance_agreement(np.ones(3), np.ones(3))
