"""Twelve small tests: each fails for the broken function, and passes for the repaired one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.conditioning import AdaLNZeroBlock


def test_gates(start_values: Callable[[AdaLNZeroBlock], None]) -> None:
    block = AdaLNZeroBlock(hidden_size=16, num_heads=2)
    start_values(block)
    x, c = torch.randn(3, 4, 16), torch.randn(3, 16)
    assert torch.equal(block(x, c), x), "a fresh block must hand its tokens on as they are"


def test_channels(guided: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    cond, uncond = torch.randn(2, 1, 4, 2, 2)
    moved = (guided(cond, uncond, 3.0) != guided(cond, uncond, 1.0)).sum(dim=(0, 2, 3))
    assert (moved > 0).all(), f"guidance moves {int((moved > 0).sum())} of 4 channels"


def test_null(null_labels: Callable[[int, Tensor], Tensor]) -> None:
    table = nn.Embedding(10 + 1, 8)  # ten classes and "no label"
    y = null_labels(10, torch.tensor([3, 9]))
    assert y.max() < len(table.weight), f"row {int(y.max())} of a table of 11"
    assert y.min() >= 10, f"row {int(y.min())} belongs to a class"


def test_mask(weights: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits, seen = torch.randn(4, 4), torch.ones(4, 4, dtype=torch.bool).tril()
    leak = weights(logits, seen)[~seen].sum() / 4
    assert leak == 0, f"{float(leak):.0%} of the weight lies on what must not be seen"


def test_router(gates: Callable[[Tensor], Tensor]) -> None:
    logits = torch.tensor([[-2.0, 0.5, 3.0]], requires_grad=True)
    g = gates(logits)
    assert g.tolist() == [[0, 1, 1]], "the gates must be hard"
    assert g.requires_grad, "no gradient reaches the router"
    (slope,) = torch.autograd.grad(g.sum(), logits)
    assert slope.all(), "a gradient of zero reaches the router"


def test_entropy(total_loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    logits = torch.tensor([[0.2, 0.0, -0.2]], requires_grad=True)
    for _ in range(100):  # descend on the term alone
        loss = total_loss(torch.zeros(()), logits.softmax(-1), 1.0)
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - slope).detach().requires_grad_()
    most = float(logits.detach().softmax(-1).max())
    assert most > 0.9, f"after 100 steps the surest choice has a probability of {most:.2f}"


def test_batch(kept: Callable[[Tensor, int], Tensor]) -> None:
    scores = torch.rand(3, 8) + torch.tensor([[0.0], [1.0], [2.0]])
    alone = torch.cat([kept(row[None], 3) for row in scores])
    differ = int((kept(scores, 3) != alone).any(dim=1).sum())
    assert differ == 0, f"{differ} of 3 images keep other tokens than alone"


def test_paper(run: Callable[[Sequence[Any], Sequence[bool], Tensor], Tensor]) -> None:
    calls: list[int] = []
    layers = [lambda x, i=i: (calls.append(i), x)[1] for i in range(6)]
    run(layers, [True, False, False, True, False, False], torch.ones(1))
    assert calls == [0, 3], f"{len(calls)} layers were computed, and 2 are on"


def test_waves(waves: Callable[[Tensor, int], Tensor]) -> None:
    one, next_one, far = waves(torch.tensor([500.0, 501.0, 700.0]), 64)
    near = torch.cosine_similarity(one, next_one, dim=0)
    away = torch.cosine_similarity(one, far, dim=0)
    assert near > 0.9 > away, f"similarity to the next step: {float(near):.2f}"


def test_dropout(drop_labels: Callable[[Tensor, float, int], Tensor]) -> None:
    for device in ("cpu", "meta"):  # on meta nothing is computed, and all devices are checked
        y = torch.zeros(1000, dtype=torch.long, device=device)
        try:
            dropped = drop_labels(y, 0.1, 10)
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(f"it does not run on the device {device!r}") from error
        assert dropped.device == y.device, f"the answer has left the device {device!r}"


def test_variance(step_back: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    noise = torch.randn(100_000)
    drawn = step_back(torch.zeros_like(noise), torch.full_like(noise, 0.04), noise)
    assert abs(drawn.var() - 0.04) < 0.002, f"the variance is {float(drawn.var()):.4f}, not 0.04"


def test_grid(positions: Callable[[int, int, int], Tensor]) -> None:
    places = positions(16, 2, 8)  # two rows of eight tokens
    assert len(places) == 16, f"{len(places)} positions for 16 tokens"
    beside, below = (float((places[0] - places[i]).norm()) for i in (1, 8))
    assert abs(below - beside) < 1e-4, f"the token beside: {beside:.2f}; the one below: {below:.2f}"
