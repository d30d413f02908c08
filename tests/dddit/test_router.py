"""Routers and their choices: against closed forms, counted frequencies and autograd."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_edu.dddit.router import BudgetedLosses, Router, Switches, TopK, decision_entropy
from dit_edu.dddit.switched import SwitchedDiT
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dispatch import run_on
from dit_edu.routing import record_routing

LOGITS = torch.tensor([[2.0, -1.0, 0.5, -3.0], [0.1, 0.0, -0.2, 4.0]], dtype=torch.float64)


def test_a_fresh_router_says_its_bias_to_all():
    torch.manual_seed(0)
    router = Router(8, 5, bias=3.0)
    torch.testing.assert_close(router(torch.randn(7, 8)), torch.full((7, 5), 3.0))
    assert router(torch.randn(2, 6, 8)).shape == (2, 6, 5)
    assert len(Router(8, 5, hidden=False).mlp) == 1
    router(torch.randn(7, 8)).square().sum().backward()
    assert router.mlp[-1].weight.grad.abs().sum() > 0  # it can leave


def test_the_pace_is_how_far_an_update_moves_the_logits():
    c, moved = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)), []
    for pace in (1.0, 0.1):
        torch.manual_seed(0)
        router = Router(8, 5, bias=3.0, pace=pace)
        optimizer = torch.optim.Adam(router.parameters(), lr=1e-3)
        router(c).square().sum().backward()
        optimizer.step()
        moved.append((router(c) - 3).abs())
    torch.testing.assert_close(moved[1], moved[0] / 10, rtol=0.02, atol=1e-5)


def test_top_k_takes_the_largest_and_switches_those_above_zero():
    top, on = TopK(2).eval()(LOGITS), Switches().eval()(LOGITS)
    assert top.chosen.tolist() == [[True, False, True, False], [True, False, False, True]]
    assert on.chosen.tolist() == [[True, False, True, False], [True, False, False, True]]
    torch.testing.assert_close(top.soft, LOGITS.softmax(-1))
    torch.testing.assert_close(on.soft, 1 / (1 + (-LOGITS).exp()))
    for choice in (top, on):
        assert torch.equal(choice.gates, choice.chosen.double())


@pytest.mark.parametrize("chooser", [TopK(2, noise=1.0), Switches(noise=1.0)], ids=["k", "on"])
def test_noise_is_for_training_alone(chooser):
    many = LOGITS[:1].expand(500, -1)
    torch.manual_seed(0)
    assert len(chooser.train()(many).chosen.unique(dim=0)) > 1
    first, again = chooser.eval()(many), chooser(many)
    assert len(first.chosen.unique(dim=0)) == 1
    assert torch.equal(first.chosen, again.chosen)
    chooser.noise = 0.0
    assert torch.equal(chooser.train()(many).chosen, first.chosen)


def test_a_switch_is_on_with_the_probability_of_its_sigmoid():
    torch.manual_seed(0)
    n = 40_000
    chosen = Switches().train()(LOGITS[:1].expand(n, -1)).chosen
    p = LOGITS[0].sigmoid()
    error = (p * (1 - p) / n).sqrt()
    assert ((chosen.double().mean(0) - p).abs() < 5 * error).all()


def test_the_noise_of_a_competition_draws_by_the_softmax():
    torch.manual_seed(0)
    n = 40_000
    chosen = TopK(1).train()(LOGITS[:1].expand(n, -1)).chosen
    p = LOGITS[0].softmax(-1)
    error = (p * (1 - p) / n).sqrt()
    assert ((chosen.double().mean(0) - p).abs() < 5 * error).all()


@pytest.mark.parametrize("unbiased", [False, True])
def test_what_competing_units_hear_of_what_they_are_worth(unbiased):
    torch.manual_seed(0)
    worth = torch.tensor([-1.0, -1.0, -0.5, 0.2]).double()  # ∂loss/∂g
    logits = torch.tensor([0.4, 0.0, -0.4, 0.1]).double().requires_grad_()
    gates = TopK(1, unbiased=unbiased).train()(logits.expand(400_000, -1)).gates
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    (gates @ worth).mean().backward()
    p = logits.detach().softmax(-1)
    mean = ((p if unbiased else p.square()) * worth).sum()
    want = p * ((worth if unbiased else p * worth) - mean)
    torch.testing.assert_close(logits.grad, want, rtol=0.02, atol=1e-3)
    if unbiased:  # that of the mean loss
        (slope,) = torch.autograd.grad((logits.softmax(-1) * worth).sum(), logits)
        torch.testing.assert_close(want, slope)


@pytest.mark.parametrize("heard", [True, False])
def test_who_is_off_has_a_gradient_only_if_it_is_heard(heard):
    switches = Switches(noise=0.0, temperature=0.5, heard=heard).train()
    logits = LOGITS.clone().requires_grad_()
    worth = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    choice = switches(logits)
    assert choice.heard == heard
    (got,) = torch.autograd.grad((choice.gates * worth).sum(), logits)
    p = (LOGITS / 0.5).sigmoid()
    want = worth * p * (1 - p) / 0.5  # the closed form, wherever it is heard
    want = want if heard else torch.where(choice.chosen, want, 0)
    torch.testing.assert_close(got, want)


def test_heard_computes_all_in_training_and_the_chosen_in_evaluation():
    seen: list[int] = []

    def unit(x):
        seen.append(len(x))
        return x + 1

    switches, x = Switches(noise=0.0).train(), torch.zeros(2, 3, dtype=torch.float64)
    for mode, counts in ((True, [2, 2, 2, 2]), (False, [2, 1, 1])):  # the second suits nobody
        choice = switches.train(mode)(LOGITS)
        seen.clear()
        total = x
        for gate, items in zip(choice.gates.T, choice.items(), strict=True):
            total = run_on(items, lambda x, g: x + g * unit(x), total, gate[:, None])
        assert seen == counts
        torch.testing.assert_close(total[:, 0], torch.tensor([3.0, 3.0]).double())


def test_entropy_against_numbers_and_its_gradient_is_sharpening():
    even = torch.full((3, 2), 0.5, dtype=torch.float64)
    assert decision_entropy(even).item() == pytest.approx(math.log(2))
    sure = torch.tensor([-200.0, 200.0, 30.0], requires_grad=True)
    undecided = decision_entropy(sure.sigmoid())
    assert undecided.item() == pytest.approx(0, abs=1e-5)
    undecided.backward()
    assert torch.equal(sure.grad, torch.zeros(3))  # and no NaN
    logits = LOGITS.clone().requires_grad_()
    p = logits.sigmoid()
    (got,) = torch.autograd.grad(decision_entropy(p), logits)
    torch.testing.assert_close(got, (-logits * p * (1 - p) / logits.numel()).detach())
    after = (logits - 0.5 * got).detach()  # descent: away from 0, so sharper
    assert (after.abs() >= LOGITS.abs()).all()


@given(st.floats(0, 1), st.integers(1, 50))
def test_the_ramp_falls_from_one_to_the_target(target, ramp):
    losses = BudgetedLosses(target, ramp=ramp)
    seen = []
    for losses.step in range(ramp + 3):
        seen.append(losses.target_now())
    assert seen[0] == 1
    assert seen[-1] == pytest.approx(target)
    assert all(a >= b - 1e-12 for a, b in pairwise(seen))
    assert BudgetedLosses(target, ramp=0).target_now() == pytest.approx(target)


def test_the_loss_is_the_process_s_the_budget_and_the_entropy():
    torch.manual_seed(0)
    model = SwitchedDiT(
        bias=0.7, noise=0.0, input_size=8, in_channels=1, hidden_size=16, depth=2, num_heads=2,
        num_classes=10, learn_sigma=False,
    )  # fmt: skip
    diffusion = GaussianDiffusion.cosine(1000, prediction="v")
    x, t, y = torch.randn(4, 1, 8, 8), torch.arange(0, 1000, 250), torch.arange(4)
    noise = torch.randn_like(x)
    plain = diffusion.losses(model.eval(), x, t, y, noise=noise)
    losses = BudgetedLosses(0.6, weight=3.0, entropy=0.5, ramp=10)
    losses.step = 5
    found = losses(model, diffusion, x, t, y, noise)
    p = 1 / (1 + math.exp(-0.7))  # of every branch, so the MACs' share too
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    steer = 3 * (p - 0.8) ** 2 + 0.5 * entropy
    torch.testing.assert_close(found["mse"], plain["mse"])
    torch.testing.assert_close(found["loss"], plain["loss"] + steer)
    found["loss"].mean().backward()
    assert model.router.mlp[-1].bias.grad.abs().min() > 0
    with record_routing(model) as trace:
        model(x, t, y)
    torch.testing.assert_close(trace.decisions[0].soft, torch.full((4, 4), p))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Router(0, 3), ValueError, "dim=0"),
        (lambda: Router(8, 2.0), TypeError, "units=2.0"),
        (lambda: Router(8, 2, pace=0.0), ValueError, "pace=0.0"),
        (lambda: TopK(0), ValueError, "k=0"),
        (lambda: TopK(5)(LOGITS), ValueError, "k=5 of 4"),
        (lambda: TopK(2, noise=-1.0), ValueError, "noise=-1.0"),
        (lambda: TopK(2, heard=True, unbiased=True), ValueError, "unbiased=True with heard=True"),
        (lambda: Switches(noise=float("nan")), ValueError, "noise=nan"),
        (lambda: Switches(temperature=0.0), ValueError, "temperature=0.0"),
        (lambda: BudgetedLosses(1.5), ValueError, "target=1.5"),
        (lambda: BudgetedLosses(0.5, ramp=-1), ValueError, "ramp=-1"),
    ],
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()
