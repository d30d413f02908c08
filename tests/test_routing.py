"""The record of choices against choices made by hand, and the losses against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dit_edu.guidance import Guided
from dit_edu.routing import COLUMNS, balance_loss, budget_loss, record_routing, report

MACS = torch.tensor([10, 100])


class Part(nn.Module):
    """Reports what it is given."""

    def forward(self, chosen):
        report(self, chosen, chosen.float(), MACS)


class Model(nn.Module):
    """A denoiser with two parts that choose: images in one, tokens in the other."""

    in_channels, input_size, num_classes, class_dropout_prob = 1, 4, 10, 0.1

    def __init__(self):
        super().__init__()
        self.images, self.tokens = Part(), Part()

    def forward(self, x, t, y):
        self.images(torch.stack([t > 5, t > 500], dim=1))  # (B, 2)
        self.tokens(x[:, 0, :, :2] > 0)  # (B, N, 2)
        return x

    def null_condition(self, y):
        return torch.full_like(y, 10)


def test_rows_are_what_was_chosen():
    model, x = Model(), -torch.ones(3, 1, 4, 4)
    x[1, 0, :3, 0] = 1  # three of four tokens of the second image take the first unit
    t, y = torch.tensor([0, 10, 999]), torch.zeros(3, dtype=torch.long)
    with record_routing(model) as trace:
        model(x, t, y)
        model(x=x, t=t, y=y)
    model(x, t, y)  # nobody listens
    table = trace.table()
    assert tuple(table) == COLUMNS
    assert {len(column) for column in table.values()} == {2 * 2 * 3 * 2}  # calls, parts, B, E
    rows = list(zip(*table.values(), strict=True))
    assert rows[:6] == [
        (0, "images", 0, 0, 0, 0, 0),
        (0, "images", 0, 0, 1, 0, 0),
        (0, "images", 10, 1, 0, 1, 10),
        (0, "images", 10, 1, 1, 0, 0),
        (0, "images", 999, 2, 0, 1, 10),
        (0, "images", 999, 2, 1, 1, 100),
    ]
    assert rows[8] == (0, "tokens", 10, 1, 0, 0.75, 30)
    assert [row[1:] for row in rows[12:]] == [row[1:] for row in rows[:12]]  # the second call


def test_recorders_do_not_mix_models():
    one, two = Model(), Model()
    x, t, y = torch.zeros(1, 1, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    with record_routing(one) as outer:
        with record_routing(two) as inner:
            one(x, t, y)
        two(x, t, y)
    assert len(outer.decisions) == 2
    assert inner.decisions == []
    assert all(column.shape == (0,) for column in inner.table().values())


def test_an_exception_closes_the_recorder():
    model = Model()
    with pytest.raises(RuntimeError), record_routing(model) as trace:
        raise RuntimeError
    model(torch.zeros(1, 1, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert trace.decisions == []


def test_a_guided_model_is_recorded_inside():
    model = Model()
    with record_routing(model) as trace:
        Guided(model, 2.0)(torch.zeros(3, 1, 4, 4), torch.full((3,), 7), torch.arange(3))
    assert trace.table()["sample"].max() == 5  # with label and without


def test_the_record_keeps_gradients():
    soft = torch.rand(2, 3, requires_grad=True)

    class Soft(nn.Module):
        def forward(self, x, t, y):
            report(self, soft > 0.5, soft, torch.ones(3))

    with record_routing(model := Soft()) as trace:
        model(None, torch.zeros(2), None)
    balance_loss(trace.decisions[0].chosen, trace.decisions[0].soft).backward()
    assert soft.grad is not None


def test_balance_is_one_when_even_and_largest_when_collapsed():
    even = torch.eye(4).repeat(3, 1).bool()
    assert balance_loss(even, torch.full((12, 4), 0.25)) == pytest.approx(1)
    for k in (1, 2):
        collapsed = torch.zeros(5, 4).bool()
        collapsed[:, :k] = True
        assert balance_loss(collapsed, collapsed / k) == pytest.approx(4 / k)


def test_balance_pushes_down_what_is_used():
    logits = torch.zeros(6, 3, requires_grad=True)
    chosen = torch.tensor([[1, 1, 0]]).repeat(6, 1).bool()
    balance_loss(chosen, logits.softmax(-1)).backward()
    assert (logits.grad[:, :2] > 0).all()  # a step of descent makes them smaller
    assert (logits.grad[:, 2] < 0).all()


def test_balance_counts_tokens_as_items():
    chosen = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    p = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(1)).softmax(-1)
    torch.testing.assert_close(
        balance_loss(chosen, p), balance_loss(chosen.view(10, 3), p.view(10, 3))
    )


def test_budget():
    macs = torch.tensor([40.0, 80.0], dtype=torch.float64, requires_grad=True)
    assert budget_loss(macs, 100, 0.5).item() == pytest.approx((0.6 - 0.5) ** 2)
    torch.autograd.gradcheck(lambda m: budget_loss(m, 100, 0.5), macs)
    assert np.sign(torch.autograd.grad(budget_loss(macs, 100, 0.9), macs)[0]).tolist() == [-1, -1]


@pytest.mark.parametrize(("full", "target"), [(0, 0.5), (-1.0, 0.5), (1, 1.1), (1, -0.1)])
def test_budget_refuses(full, target):
    with pytest.raises(ValueError, match="allowed"):
        budget_loss(torch.ones(2), full, target)
