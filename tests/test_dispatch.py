"""Dispatch against the dense mask, in values and gradients; choices against their definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dit_edu.dispatch import assign, gumbel_like, run_masked, run_on, straight_through, top_k


@given(
    scores=st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=4),
    k=st.integers(1, 5),
)
def test_top_k_is_a_stable_sort(scores, k):
    chosen = top_k(torch.tensor(scores, dtype=torch.float64), k)
    for row, mask in zip(scores, chosen, strict=True):
        best = sorted(range(5), key=lambda e: (-row[e], e))[:k]  # of equal scores, the first
        assert mask.nonzero().flatten().tolist() == sorted(best)


def test_top_k_takes_any_shape():
    scores = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(top_k(scores, 2)[1, 2], top_k(scores[1, 2], 2))


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (4, ValueError), (1.0, TypeError)])
def test_top_k_refuses(k, error):
    with pytest.raises(error, match=f"k={k}"):
        top_k(torch.zeros(2, 3), k)


def test_gates_are_hard_and_learn_as_if_soft():
    logits = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([2.0, 5.0, 7.0], dtype=torch.float64)
    gates = straight_through(top_k(logits, 2), logits.softmax(-1))
    assert gates.tolist() == [[1.0, 1.0, 0.0]]
    (hard,) = torch.autograd.grad((gates * worth).sum(), logits)
    soft = (logits.softmax(-1) * worth)[:, :2].sum()  # the third unit did not run
    (want,) = torch.autograd.grad(soft, logits)
    torch.testing.assert_close(hard, want)
    assert want[0, 2] != 0  # by the softmax, what did not run moves too


def test_gumbel_noise_draws_from_the_softmax():
    torch.manual_seed(0)
    logits, n = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64), 40000
    drawn = top_k(logits + gumbel_like(logits.expand(n, 3)), 2)  # (n, 3)
    p = logits.softmax(-1)
    for pair in itertools.combinations(range(3), 2):  # k draws without putting back
        want = sum(p[i] * p[j] / (1 - p[i]) for i, j in itertools.permutations(pair))
        found = drawn[:, list(pair)].all(1).double().mean()
        assert abs(found - want) < 4 * math.sqrt(0.25 / n)


def _branches() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Linear(4, 4).double(), nn.Linear(4, 4).double()


masks = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6)


@given(chosen=masks, tokens=st.integers(1, 3))
def test_gathering_equals_the_dense_mask(chosen, tokens):
    chosen, units = torch.tensor(chosen), _branches()
    x = torch.randn(len(chosen), tokens, 4, dtype=torch.float64)
    told = torch.randn(len(chosen), 1, 4, dtype=torch.float64)
    gates = torch.randn(2, len(chosen), 1, 1, dtype=torch.float64)
    found = []
    for path in ("gather", "mask"):
        y = leaf = x.clone().requires_grad_()
        for e, (unit, items) in enumerate(zip(units, assign(chosen), strict=True)):

            def step(y, x, told, gate, unit=unit):
                return y + gate * unit(x) * told

            if path == "gather":
                y = run_on(items, step, y, leaf, told, gates[e])
            else:
                y = run_masked(chosen[:, e], step, y, leaf, told, gates[e])
        parameters = [leaf, *units[0].parameters(), *units[1].parameters()]
        grads = torch.autograd.grad(y.square().sum(), parameters, materialize_grads=True)
        found.append((y.detach(), *grads))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_only_the_chosen_run():
    seen = []

    def step(x):
        seen.append(len(x))
        return x + 1

    x = torch.arange(8.0).view(4, 2)
    chosen = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]]).bool()
    everyone, some, nobody = assign(chosen)
    assert torch.equal(run_on(everyone, step, x), x + 1)
    assert torch.equal(run_on(some, step, x) - x, chosen[:, 1:2].float().expand(4, 2))
    assert run_on(nobody, step, x) is x  # not copied
    assert seen == [4, 2]


def test_a_sample_does_not_depend_on_its_mates():
    unit, _ = _branches()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    chosen = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    together = run_on(assign(chosen[:, None])[0], unit, x)
    for i in range(6):
        alone = run_on(assign(chosen[i : i + 1, None])[0], unit, x[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, "chosen has dtype torch.float32"),
        (torch.zeros(3, dtype=torch.bool), ValueError, r"chosen has shape \(3,\)"),
    ],
)
def test_assign_refuses(chosen, error, message):
    with pytest.raises(error, match=message):
        assign(chosen)
