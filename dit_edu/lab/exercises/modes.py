"""Exercises of the chapter on DDDiT's modes: what light saves, a target, an order, a ceiling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what light mode saves.


def _saved(dim: int, tokens: int, heads: float, channels: float) -> float:
    attention = 4 * dim**2 * tokens + 2 * tokens**2 * dim
    mlp = 8 * dim**2 * tokens
    return 1 - (heads * attention + channels * mlp) / (attention + mlp)


Saved = Callable[[int, int, float, float], float]
SAVED_BUGS: dict[str, tuple[Saved, str]] = {
    "the mean of the two": (
        lambda dim, tokens, heads, channels: 1 - (heads + channels) / 2,
        "You count attention and MLP alike. What does each cost for N tokens of width D?",
    ),
    "no pairs": (
        lambda dim, tokens, heads, channels: 1 - (heads + 2 * channels) / 3,
        "You left out the pairs of tokens, 2 N² D. They go with the heads too.",
    ),
    "what is left": (
        lambda dim, tokens, heads, channels: 1 - _saved(dim, tokens, heads, channels),
        "That is what light mode costs. Asked is what it saves.",
    ),
}


def _judge_saved(answer: Saved) -> str | None:
    cases = [(1152, 256, 0.5, 1 / 3), (48, 16, 0.25, 0.25), (384, 1024, 1.0, 0.5)]
    if why := mistake(answer, SAVED_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _saved(*case), f"saved{case}"):
            return why
    return None


# Derive: the target of the switches.


def _target(share: float, switched: float) -> float:
    return 1 - (1 - share) / switched


Target = Callable[[float, float], float]
TARGET_BUGS: dict[str, tuple[Target, str]] = {
    "the share itself": (
        lambda share, switched: share,
        "The switches know nothing of what always runs: with that, a pass costs more than asked.",
    ),
    "the floor is free": (
        lambda share, switched: share / switched,
        "You give the switches all of the share. What always runs has to be paid first.",
    ),
    "above the floor, not divided": (
        lambda share, switched: share - (1 - switched),
        "That is what is left for the switches, as a share of the pass. Which share is it of them?",
    ),
}


def _judge_target(answer: Target) -> str | None:
    cases = [(0.6, 0.7), (0.8, 0.9), (0.5, 0.55), (0.6, 1.0)]
    if why := mistake(answer, TARGET_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _target(*case), f"target{case}"):
            return why
    return None


# Build: channels in another order.

Mlp = tuple[Tensor, Tensor, Tensor]


def _sorted(fc1: Tensor, bias: Tensor, fc2: Tensor, worth: Tensor) -> Mlp:
    order = worth.argsort(descending=True)  # (w,)
    return fc1[order], bias[order], fc2[:, order]


Sort = Callable[[Tensor, Tensor, Tensor, Tensor], Mlp]
SORT_BUGS: dict[str, tuple[Sort, str]] = {
    "the bias stays": (
        lambda fc1, bias, fc2, worth: (
            fc1[worth.argsort(descending=True)],
            bias,
            fc2[:, worth.argsort(descending=True)],
        ),
        "A channel has a bias of its own in the first map. It has to move with it.",
    ),
    "the second map stays": (
        lambda fc1, bias, fc2, worth: (
            fc1[worth.argsort(descending=True)],
            bias[worth.argsort(descending=True)],
            fc2,
        ),
        "The second map still reads the channels in the old order.",
    ),
    "least first": (
        lambda fc1, bias, fc2, worth: _sorted(fc1, bias, fc2, -worth),
        "The channels that are worth least stand first.",
    ),
    "ranks for an order": (
        lambda fc1, bias, fc2, worth: _sorted(
            fc1, bias, fc2, -worth.argsort(descending=True).float()
        ),
        "argsort gives the channel at each place. You have sorted by the place of each channel.",
    ),
}


def _judge_sort(answer: Sort) -> str | None:
    g = torch.Generator().manual_seed(0)
    fc1, bias = torch.randn(8, 4, generator=g), torch.randn(8, generator=g)
    fc2, worth = torch.randn(4, 8, generator=g), torch.rand(8, generator=g)
    case = (fc1, bias, fc2, worth)
    if why := mistake(answer, SORT_BUGS, lambda f: list(f(*case))):
        return why
    for got, want, what in zip(
        answer(*case), _sorted(*case), ("first map", "bias", "second map"), strict=True
    ):
        if why := close(got, want, f"The {what}"):
            return why
    return None


# Build: what the step can know.


def _ceiling(target: Tensor, bin_of: Tensor) -> float:
    best = torch.stack([target[bin_of == b].mean() for b in bin_of.unique()])  # (bins,)
    left = target - best[torch.searchsorted(bin_of.unique(), bin_of)]  # (n,)
    return float(1 - left.square().mean() / target.var(correction=0))


def _of_the_last(target: Tensor, bin_of: Tensor) -> float:
    values = bin_of.double() - bin_of.double().mean()
    return float((values * (target - target.mean())).mean() / (values.std() * target.std()))


def _not_centred(target: Tensor, bin_of: Tensor) -> float:
    best = torch.stack([target[bin_of == b].mean() for b in bin_of.unique()])
    left = target - best[torch.searchsorted(bin_of.unique(), bin_of)]
    return float(1 - left.square().mean() / target.square().mean())


Ceiling = Callable[[Tensor, Tensor], float]
CEILING_BUGS: dict[str, tuple[Ceiling, str]] = {
    "a straight line": (
        _of_the_last,
        "That is a correlation: what a straight line knows, before it is squared. A head may bend.",
    ),
    "not centred": (
        _not_centred,
        "You divide by the mean square. Whoever says the mean explains nothing: use the variance.",
    ),
    "what is left": (
        lambda target, bin_of: 1 - _ceiling(target, bin_of),
        "That is the share that the step leaves unexplained.",
    ),
}


def _judge_ceiling(answer: Ceiling) -> str | None:
    g = torch.Generator().manual_seed(0)
    bin_of = torch.arange(400) % 10
    noise = torch.randn(400, generator=g, dtype=torch.float64)
    cases = [
        ((bin_of - 4.5) ** 2 / 10 + noise + 3, bin_of),
        (noise, bin_of),
        (bin_of.double(), bin_of),
    ]
    if why := mistake(answer, CEILING_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case, what in zip(cases, ("A bowl and noise", "Noise", "The step itself"), strict=True):
        if why := close(float(answer(*case)), _ceiling(*case), f"{what}: R²"):
            return why
    return None


EXERCISES = {
    "modes-saved": Exercise(
        judge=_judge_saved,
        hints=(
            "Four D × D maps and two products of N × N go with the heads.",
            "Attention costs 4 D² N + 2 N² D, the MLP 8 D² N.",
            "1 - (heads · attention + channels · mlp) / (attention + mlp).",
        ),
        solution=_saved,
        wrong={name: bug for name, (bug, _) in SAVED_BUGS.items()},
    ),
    "modes-target": Exercise(
        judge=_judge_target,
        hints=(
            "A pass costs 1 - switched + target · switched, as a share of the full one.",
            "Set that equal to share.",
            "target = 1 - (1 - share) / switched.",
        ),
        solution=_target,
        wrong={name: bug for name, (bug, _) in TARGET_BUGS.items()},
    ),
    "modes-sort": Exercise(
        judge=_judge_sort,
        hints=(
            "A channel is a row of the first map, a number of its bias, a column of the second.",
            "worth.argsort(descending=True) is the channel that comes to each place.",
            "order = worth.argsort(descending=True); fc1[order], bias[order], fc2[:, order].",
        ),
        solution=_sorted,
        wrong={name: bug for name, (bug, _) in SORT_BUGS.items()},
    ),
    "modes-ceiling": Exercise(
        judge=_judge_ceiling,
        hints=(
            "Who sees the bin alone, and wants the least squared error, says the bin's mean.",
            "What is left is the variance inside the bins. Compare it with the whole variance.",
            "1 - mean((z - mean of its bin)²) / var(z), the variance with n in the denominator.",
        ),
        solution=_ceiling,
        wrong={name: bug for name, (bug, _) in CEILING_BUGS.items()},
    ),
}
