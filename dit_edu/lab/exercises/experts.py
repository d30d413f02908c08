"""Exercises of the chapter on experts: the price, balance, dispatch, capacity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what a mixture of experts holds, and what it executes.

Price = Callable[[int, int, float, int, int, int], tuple[float, float]]


def _price(
    dim: int, width: int, shared: float, experts: int, keep: int, tokens: int
) -> tuple[float, float]:
    common, own = 2 * dim * width * shared, 2 * dim * width * (1 - shared)
    return common + experts * own, tokens * (common + keep * own)


PRICE_BUGS: dict[str, tuple[Price, str]] = {
    "all run": (
        lambda d, w, s, e, k, n: (_price(d, w, s, e, k, n)[0], _price(d, w, s, e, e, n)[1]),
        "You let all E experts run. Only k of them do, for each token.",
    ),
    "k held": (
        lambda d, w, s, e, k, n: (_price(d, w, s, k, k, n)[0], _price(d, w, s, e, k, n)[1]),
        "You hold k experts. Another token may ask for others: all E have to be in memory.",
    ),
    "nothing shared": (
        lambda d, w, s, e, k, n: _price(d, w, 0.0, e, k, n),
        "You cut the whole MLP into experts. The shared part is there once, and always runs.",
    ),
    "one map": (
        lambda d, w, s, e, k, n: tuple(v / 2 for v in _price(d, w, s, e, k, n)),
        "An MLP has two maps: into the hidden channels, and back.",
    ),
    "one token": (
        lambda d, w, s, e, k, n: _price(d, w, s, e, k, 1),
        "Those are the multiply-adds of one token. An image has N of them.",
    ),
}
PRICES = ((48, 72, 0.5, 4, 1, 16), (64, 256, 0.25, 8, 2, 64), (8, 16, 0.5, 3, 3, 4))


def _judge_price(answer: Price) -> str | None:
    if why := mistake(answer, PRICE_BUGS, lambda f: [tuple(f(*case)) for case in PRICES]):
        return why
    for case in PRICES:
        held, executed = answer(*case)
        right = _price(*case)
        if why := close(float(held), right[0], "The number of weights"):
            return why
        if why := close(float(executed), right[1], "The number of multiply-adds"):
            return why
    return None


# Derive: what the balance loss tells a logit.

Balance = Callable[[Tensor, Tensor], Tensor]


def _balance(logits: Tensor, share: Tensor) -> Tensor:
    p = logits.softmax(-1)  # (n, E)
    mean = (p * share).sum(-1, keepdim=True)  # (n, 1), Σ_j share_j p_j
    return share.numel() / len(p) * p * (share - mean)


BALANCE_BUGS: dict[str, tuple[Balance, str]] = {
    "no mean": (
        lambda logits, share: share.numel() / len(logits) * logits.softmax(-1) * share,
        "That moves all logits down together. A softmax does not see what all logits share: "
        "∂p_j/∂r_e has a second term.",
    ),
    "plain mean": (
        lambda logits, share: (
            share.numel() / len(logits) * logits.softmax(-1) * (share - 1 / share.numel())
        ),
        "You compare the share with 1/E. Compare it with what this item's own probabilities "
        "expect, Σ_j share_j p_j.",
    ),
    "not over n": (
        lambda logits, share: len(logits) * _balance(logits, share),
        "The loss takes the mean over n items: each of them has an n-th of the say.",
    ),
    "no E": (
        lambda logits, share: _balance(logits, share) / share.numel(),
        "The loss has a factor E in front, so that it is 1 where all are used alike.",
    ),
    "other sign": (
        lambda logits, share: -_balance(logits, share),
        "Descent would raise the logit of an expert that everybody asks already.",
    ),
}


def _judge_balance(answer: Balance) -> str | None:
    g = torch.Generator().manual_seed(0)
    cases = [
        (torch.randn(n, e, generator=g, dtype=torch.float64), torch.rand(e, generator=g).double())
        for n, e in ((6, 4), (5, 3))
    ]
    cases = [(logits, share / share.sum()) for logits, share in cases]
    if why := mistake(answer, BALANCE_BUGS, lambda f: [f(*case) for case in cases]):
        return why
    for case in cases:
        if why := close(answer(*case), _balance(*case), "The gradient"):
            return why
    return None


# Build: only what was chosen runs.

Expert = Callable[[Tensor], Tensor]
Mixed = Callable[[Tensor, Tensor, Sequence[Expert]], Tensor]


def _mixed(x: Tensor, chosen: Tensor, experts: Sequence[Expert]) -> Tensor:
    out = torch.zeros_like(x)  # (n, D)
    for expert, column in zip(experts, chosen.T, strict=True):
        items = column.nonzero().squeeze(1)  # (m,)
        if len(items):
            out[items] += expert(x[items])  # (m, D)
    return out


def _mixed_by_mask(x: Tensor, chosen: Tensor, experts: Sequence[Expert]) -> Tensor:
    every = torch.stack([expert(x) for expert in experts], -1)  # (n, D, E)
    return (every * chosen[:, None].to(x)).sum(-1)


def _mixed_first(x: Tensor, chosen: Tensor, experts: Sequence[Expert]) -> Tensor:
    out, best = torch.zeros_like(x), chosen.int().argmax(-1)  # (n, D), (n,)
    for number, expert in enumerate(experts):
        if (best == number).any():
            out[best == number] = expert(x[best == number])
    return out


def _mixed_overwritten(x: Tensor, chosen: Tensor, experts: Sequence[Expert]) -> Tensor:
    out = torch.zeros_like(x)
    for expert, column in zip(experts, chosen.T, strict=True):
        if column.any():
            out[column] = expert(x[column])
    return out


def _mixed_asked_of_nobody(x: Tensor, chosen: Tensor, experts: Sequence[Expert]) -> Tensor:
    out = torch.zeros_like(x)
    for expert, column in zip(experts, chosen.T, strict=True):
        out[column] += expert(x[column])
    return out


def _seen(answer: Mixed, x: Tensor, chosen: Tensor) -> tuple[Tensor, list[list[int]]]:
    """What comes out, and how many rows each call of each expert was given."""
    g = torch.Generator().manual_seed(1)
    maps = torch.randn(chosen.shape[-1], x.shape[-1], x.shape[-1], generator=g, dtype=x.dtype)
    calls: list[list[int]] = [[] for _ in maps]

    def expert(number: int) -> Expert:
        def run(rows: Tensor) -> Tensor:
            calls[number].append(len(rows))
            return (rows @ maps[number]).tanh() + 1

        return run

    return answer(x.clone(), chosen, [expert(e) for e in range(len(maps))]), calls


def _judge_mixed(answer: Mixed) -> str | None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=g, dtype=torch.float64)
    chosen = torch.rand(7, 4, generator=g).argsort(-1) < 2  # two of four for each
    chosen[:, 3] = False  # and one that nobody asks
    got, calls = _seen(answer, x, chosen)
    right, _ = _seen(_mixed, x, chosen)
    if all(sum(rows) == len(x) for rows in calls):
        return "Every expert was given every item. Masks save nothing: gather the items first."
    if torch.as_tensor(got).shape != right.shape:
        return close(got, right, "The output")
    one, _ = _seen(_mixed_overwritten, x, chosen)
    if torch.allclose(got, one):
        return "An item that chose two experts got the last one's answer. Add them up."
    one, _ = _seen(_mixed_first, x, chosen)
    if torch.allclose(got, one):
        return "You ask one expert for each item. An item may have chosen several."
    if why := close(got, right, "The output"):
        return why
    if calls[3]:
        return "An expert that nobody chose was called. It costs time, if no multiply-adds."
    if [sum(rows) for rows in calls] != chosen.sum(0).tolist():
        return f"The experts worked on {[sum(rows) for rows in calls]} items; chosen were others."
    return None


# Build: what a limit drops.

Kept = Callable[[Tensor, int], Tensor]


def _kept(chosen: Tensor, capacity: int) -> Tensor:
    return chosen & (chosen.cumsum(0) <= capacity)


KEPT_BUGS: dict[str, tuple[Kept, str]] = {
    "first rows": (
        lambda chosen, capacity: chosen & (torch.arange(len(chosen)) < capacity)[:, None],
        "You keep the first items of the batch. Each expert counts those that chose *it*.",
    ),
    "one too few": (
        lambda chosen, capacity: chosen & (chosen.cumsum(0) < capacity),
        "An expert takes as many as fit: the last place may be used too.",
    ),
    "along experts": (
        lambda chosen, capacity: chosen & (chosen.cumsum(1) <= capacity),
        "You count the experts of an item. Count the items of an expert.",
    ),
    "all or none": (
        lambda chosen, capacity: chosen & (chosen.sum(0) <= capacity),
        "An expert that is asked too often still takes the first ones.",
    ),
    "last come": (
        lambda chosen, capacity: chosen & (chosen.flip(0).cumsum(0).flip(0) <= capacity),
        "You serve the last ones first.",
    ),
}


def _judge_kept(answer: Kept) -> str | None:
    g = torch.Generator().manual_seed(0)
    cases = [(torch.rand(9, 4, generator=g).argsort(-1) < k, c) for k, c in ((1, 2), (2, 3))]
    cases.append((torch.ones(6, 3).bool(), 4))
    if why := mistake(answer, KEPT_BUGS, lambda f: [f(*case) for case in cases]):
        return why
    for case in cases:
        if why := close(answer(*case), _kept(*case), "The kept choices"):
            return why
    return None


EXERCISES = {
    "experts-price": Exercise(
        judge=_judge_price,
        hints=(
            "Two maps, D × width and back. The shared part has width · shared channels.",
            "The shared part is held once and runs once; E experts are held, k run.",
            "Weights: 2 D w (s + E (1 - s)); multiply-adds: N · 2 D w (s + k (1 - s)).",
        ),
        solution=_price,
        wrong={name: bug for name, (bug, _) in PRICE_BUGS.items()},
    ),
    "experts-balance": Exercise(
        judge=_judge_balance,
        hints=(
            "The share is a count: it has no gradient. Only the mean of the softmaxes has one.",
            "∂p_j/∂r_e = p_j ([j = e] - p_e).",
            "E/n · p_e (share_e - Σ_j share_j p_j), for each item.",
        ),
        solution=_balance,
        wrong={name: bug for name, (bug, _) in BALANCE_BUGS.items()},
    ),
    "experts-dispatch": Exercise(
        judge=_judge_mixed,
        hints=(
            "Go through the experts. Whom does each one work for?",
            "column.nonzero() gives the items; x[items] gathers them.",
            "out[items] += expert(x[items]), where there are items at all.",
        ),
        solution=_mixed,
        wrong={
            "mask": _mixed_by_mask,
            "one each": _mixed_first,
            "overwritten": _mixed_overwritten,
            "asks for nobody": _mixed_asked_of_nobody,
        },
    ),
    "experts-capacity": Exercise(
        judge=_judge_kept,
        hints=(
            "Each expert hands out places in the order of the batch.",
            "chosen.cumsum(0) tells each item its place in the queue of each expert.",
            "chosen & (chosen.cumsum(0) <= capacity).",
        ),
        solution=_kept,
        wrong={name: bug for name, (bug, _) in KEPT_BUGS.items()},
    ),
}
