"""Budgets for each image: rounding, gradients, padding, batch mates, and what runs."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from dit_edu.dddit.conditions import (
    BudgetedDiT,
    ContentBudget,
    GivenBudget,
    TextBudget,
    depth_logits,
)
from dit_edu.dddit.router import BudgetedLosses
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dispatch import run_masked
from dit_edu.dit import DiT
from dit_edu.lab.profile import count
from dit_edu.routing import record_routing
from dit_edu.text import TextEncoder

MODEL = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=4, num_heads=4, num_classes=5,
    learn_sigma=False,
)  # fmt: skip


class Words(nn.Module):
    """Budgets that are known: the mean of the words over ten."""

    def forward(self, x, t, told):
        return told.to(x).mean(1) / 10


def model(policy="given", dtype=torch.float64, **options) -> BudgetedDiT:
    torch.manual_seed(0)
    net = BudgetedDiT(policy=policy, **{**MODEL, **options}).to(dtype).eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return net


def inputs(n: int = 6, words: int = 3, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 8, 8, generator=g, dtype=dtype)
    told = torch.randint(1, 5, (n, words), generator=g)
    return x, torch.linspace(0, 999, n).long(), torch.cat([torch.arange(n)[:, None] % 6, told], 1)


def recorded(net, *batch):
    with record_routing(net) as trace:
        out = net(*batch)
    (decision,) = trace.decisions
    return out, decision


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- from a budget to blocks


@pytest.mark.parametrize(("b", "k"), [(0.01, 1), (0.3, 1), (0.38, 2), (0.6, 2), (0.7, 3), (1.0, 4)])
def test_a_budget_is_rounded_to_blocks(b, k):
    on = depth_logits(torch.tensor([b]), 4) > 0
    assert on[0].tolist() == [True] * k + [False] * (4 - k)


def test_the_soft_depth_follows_the_budget():
    b = torch.linspace(0.3, 0.8, 30)
    soft = depth_logits(b, 12).sigmoid().sum(1)
    torch.testing.assert_close(soft, 12 * b, rtol=0, atol=0.25)
    assert (depth_logits(torch.zeros(1), 4, floor=2) > 0).sum() == 2


# ---------------------------------------------------------------------- what runs


def test_each_image_goes_as_deep_as_its_budget_says():
    net, (x, t, y) = model(), inputs(words=1)
    out, decision = recorded(net, x, t, y)
    assert decision.chosen.sum(1).tolist() == y[:, 1].tolist()
    for i, k in enumerate(y[:, 1].tolist()):
        plain = DiT(**{**MODEL, "depth": k}).double().eval()
        plain.load_state_dict(net.state_dict(), strict=False)
        one = slice(i, i + 1)
        same(out[one], plain(x[one], t[one], y[one, 0]))


def test_everything_on_is_the_plain_model_and_keys_are_its_own():
    net, (x, t, y) = model(), inputs(words=1)
    plain = DiT(**MODEL).double().eval()
    plain.load_state_dict(net.state_dict())
    y[:, 1] = 4
    same(net(x, t, y), plain(x, t, y[:, 0]))


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
def test_it_is_the_dense_model_with_a_mask(order):
    net, (x, t, y) = model(policy=Words(), order=order), inputs()
    out, decision = recorded(net, x, t, y)
    masked = copy.deepcopy(net)
    for number, block in enumerate(net.blocks):
        column = decision.chosen[:, number]

        class Dense(nn.Module):
            def forward(self, x, c, block=block, column=column):
                return run_masked(column, block, x, c)

        masked.blocks[number] = Dense()
    plain = DiT.layers
    masked.layers = partial(plain, masked)
    same(out, masked(x, t, y))


def test_no_answer_depends_on_batch_mates():
    net, (x, t, y) = model(policy=Words()), inputs()
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    same(net(x, t, y), alone)


def test_executed_macs_are_those_reported():
    net, batch = model(dtype=torch.float32), inputs(words=1, dtype=torch.float32)
    _, decision = recorded(net, *batch)
    counted = count(net, *batch, repeats=0).macs
    whole = batch[0], batch[1], torch.cat([batch[2][:, :1], torch.full((6, 1), 4)], 1)
    full = count(net, *whole, repeats=0).macs
    saved = (~decision.chosen * decision.macs).sum()
    assert counted == full - int(saved)


def test_guidance_takes_the_same_depth_without_the_label():
    net, (_, _, y) = model(policy="text", words=9), inputs()
    null = net.null_condition(y)
    assert (null[:, 0] == 5).all() and torch.equal(null[:, 1:], y[:, 1:])
    with pytest.raises(ValueError, match="class_dropout_prob"):
        model(class_dropout_prob=0.0).null_condition(y)


# ---------------------------------------------------------------------- policies and gradients


def test_a_captions_budget_knows_neither_padding_nor_mates():
    torch.manual_seed(0)
    policy = TextBudget(TextEncoder(9, 16)).double()
    nn.init.normal_(policy.router.mlp[-1].weight)
    x, t, y = inputs()
    together = policy(x, t, nn.functional.pad(y[:, 1:], (0, 4)))
    alone = torch.cat([policy(x[:1], t[:1], y[i : i + 1, 1:]) for i in range(len(y))])
    same(together, alone)
    assert together.std() > 1e-3


def test_content_looks_at_image_and_step_and_not_at_words():
    torch.manual_seed(0)
    policy = ContentBudget(lambda x, t: x.mean((1, 2, 3))).double()
    nn.init.normal_(policy.router.mlp[-1].weight)
    x, t, y = inputs()
    found = policy(x, t, y[:, 1:])
    assert (found > 0).all() and (found < 1).all()
    assert not torch.allclose(found, policy(x.flip(0), t, y)) and not torch.allclose(
        found, policy(x, t.flip(0), y)
    )


def test_a_fresh_policy_spends_nearly_all():
    x, t, y = inputs(dtype=torch.float32)
    for policy in ("text", "spectrum", "estimate"):
        net = BudgetedDiT(policy=policy, words=9, **MODEL).eval()
        _, decision = recorded(net, x, t, y)
        assert decision.chosen.float().mean() > 0.8


class Shared(nn.Module):
    """One budget for all images, as a weight."""

    def __init__(self, budget: float) -> None:
        super().__init__()
        self.budget = nn.Parameter(torch.tensor(budget, dtype=torch.float64))

    def forward(self, x, t, told):
        return self.budget.expand(len(x))


def test_the_gradient_points_to_the_better_depth():
    """Where one block more helps the loss falls with the budget, and the other way round."""
    net, (x, t, y) = model(policy=Shared(0.5), class_dropout_prob=0.0), inputs()
    y[:, 0] = 0
    net.train()
    answers = []
    for k in range(1, 5):
        net.policy.budget.data.fill_(k / 4)
        answers.append(net(x, t, y).detach())
    net.policy.budget.data.fill_(0.5)  # 2 blocks
    for right, sign in ((3, -1), (1, 1)):  # right is the answer after 3 blocks, or that after 1
        loss = (net(x, t, y) - answers[right - 1]).square().mean()
        (slope,) = torch.autograd.grad(loss, net.policy.budget)
        assert slope * sign > 0


def test_rounding_alone_has_no_gradient():
    b = torch.tensor([0.4, 0.6], requires_grad=True)
    (slope,) = torch.autograd.grad((b * 6).round().sum(), b)
    assert slope.tolist() == [0, 0]


@pytest.mark.parametrize("policy", ["text", "spectrum", "estimate"])
def test_the_training_loss_reaches_the_policy(policy):
    net, (x, t, y) = model(policy=policy, words=9, dtype=torch.float32).train(), inputs()
    noise, process = torch.randn(6, 1, 8, 8), GaussianDiffusion.cosine(1000, prediction="v")
    losses = BudgetedLosses(0.5, entropy=0.0)(net, process, x.float(), t, y, noise)
    losses["mse"].mean().backward()  # without what steers the budget
    grads = [p.grad for p in net.policy.parameters()]
    assert any(g is not None and g.abs().max() > 0 for g in grads)


def test_what_was_given_runs_no_block_too_many_in_training():
    net = model().train()
    assert not net.choice.heard and isinstance(net.policy, GivenBudget)


def test_the_pass_leaves_nothing_behind():
    net, batch = model(policy="estimate", dtype=torch.float32), inputs(dtype=torch.float32)
    net(*batch)
    copy.deepcopy(net)  # a tensor with a history could not be copied
    assert net._budgets is None


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"policy='txt'.*text"):
        BudgetedDiT(policy="txt", **MODEL)
    with pytest.raises(ValueError, match="adaln-zero"):
        BudgetedDiT(policy="given", conditioning="in-context", **MODEL)
    x, t, y = inputs()
    with pytest.raises(ValueError, match="y has shape"):
        model()(x, t, y[:, 0])
    with pytest.raises(ValueError, match="words=0"):
        BudgetedDiT(policy="text", **MODEL)
