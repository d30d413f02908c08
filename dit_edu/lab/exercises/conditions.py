"""Exercises of the chapter on budgets: power under noise, its spread, padding, hard blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: where noise covers a wave.


def _covered(power: float) -> float:
    return 1 / (1 + power)


Covered = Callable[[float], float]
COVERED_BUGS: dict[str, tuple[Covered, str]] = {
    "always half": (
        lambda power: 0.5,
        "At half, signal and noise are mixed alike. But a wave with power 0.01 is covered long "
        "before: compare alpha-bar times its power with the noise's 1 - alpha-bar.",
    ),
    "the noise is not scaled": (
        lambda power: 1 / power,
        "Signal and noise are both scaled: alpha-bar P_0 against 1 - alpha-bar.",
    ),
    "amplitudes": (
        lambda power: 1 / (1 + power**0.5),
        "Compare powers, not amplitudes: P_0 is a square already.",
    ),
    "the other share": (
        lambda power: power / (1 + power),
        "That is 1 - alpha-bar. A strong wave is covered late, where alpha-bar is small.",
    ),
}


def _judge_covered(answer: Covered) -> str | None:
    cases = [0.01, 0.5, 1.0, 30.0]
    if why := mistake(answer, COVERED_BUGS, lambda f: [float(f(case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(case)), _covered(case), f"covered({case})"):
            return why
    return None


# Derive: how much the estimate of a wave's power scatters.


def _spread(power: float, alpha_bar: float, channels: int) -> float:
    noise = 1 - alpha_bar
    return (noise**2 + 2 * alpha_bar * noise * power) / (channels * alpha_bar**2)


Spread = Callable[[float, float, int], float]
SPREAD_BUGS: dict[str, tuple[Spread, str]] = {
    "noise alone": (
        lambda power, alpha_bar, channels: (1 - alpha_bar) ** 2 / (channels * alpha_bar**2),
        "Signal times noise scatters too: the cross term has variance 2 alpha-bar (1 - alpha-bar) "
        "P_0.",
    ),
    "not divided": (
        lambda power, alpha_bar, channels: _spread(power, alpha_bar, channels) * alpha_bar**2,
        "That is the variance of P_t. The estimate divides by alpha-bar, its variance by the "
        "square.",
    ),
    "one channel": (
        lambda power, alpha_bar, channels: _spread(power, alpha_bar, 1),
        "The mean over C channels, whose noise is independent, has a variance C times smaller.",
    ),
    "divided once": (
        lambda power, alpha_bar, channels: _spread(power, alpha_bar, channels) * alpha_bar,
        "A number that is divided by alpha-bar has its variance divided by alpha-bar squared.",
    ),
}


def _judge_spread(answer: Spread) -> str | None:
    cases = [(0.0, 0.5, 1), (2.0, 0.5, 3), (0.3, 0.9, 3), (5.0, 0.1, 4)]
    if why := mistake(answer, SPREAD_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _spread(*case), f"spread{case}"):
            return why
    return None


# Build: the mean over the words of a caption.


def _mean(x: Tensor, known: Tensor) -> Tensor:
    weight = known.to(x).unsqueeze(-1)  # (B, M, 1)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)  # (B, D)


Mean = Callable[[Tensor, Tensor], Tensor]
MEAN_BUGS: dict[str, tuple[Mean, str]] = {
    "padding counts": (
        lambda x, known: x.mean(1),
        "You take the mean over the padding too: a caption in a longer batch says something else.",
    ),
    "divided by the length": (
        lambda x, known: (x * known.to(x).unsqueeze(-1)).mean(1),
        "The padding adds nothing, but you still divide by M. Divide by the number of words.",
    ),
    "no words": (
        lambda x, known: (x * known.to(x).unsqueeze(-1)).sum(1) / known.to(x).sum(1, keepdim=True),
        "A caption without words gives 0 / 0. Divide by 1 at least.",
    ),
}


def _judge_mean(answer: Mean) -> str | None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 3, generator=g)
    known = torch.tensor([5, 3, 1, 0])[:, None] > torch.arange(5)  # (4, 5)

    def flat(f: Mean) -> list[float]:
        return f(x, known).nan_to_num(nan=1e6).flatten().tolist()

    if why := mistake(answer, MEAN_BUGS, flat):
        return why
    return close(answer(x, known), _mean(x, known), "The mean of captions of 5, 3, 1 and 0 words")


# Build: blocks that are on or off, with a gradient.


def _gates(budget: Tensor, layers: int) -> Tensor:
    j = torch.arange(1, layers + 1)
    soft = (budget[:, None] * layers + 0.5 - j).sigmoid()  # (B, L)
    hard = ((soft > 0.5) | (j == 1)).to(soft)
    return hard + (soft - soft.detach())


def _gates_soft(budget: Tensor, layers: int) -> Tensor:
    return (budget[:, None] * layers + 0.5 - torch.arange(1, layers + 1)).sigmoid()


def _gates_round(budget: Tensor, layers: int) -> Tensor:
    return ((budget[:, None] * layers).round().clamp(min=1) >= torch.arange(1, layers + 1)).float()


def _gates_empty(budget: Tensor, layers: int) -> Tensor:
    soft = _gates_soft(budget, layers)
    return (soft > 0.5).to(soft) + soft - soft.detach()


def _gates_shifted(budget: Tensor, layers: int) -> Tensor:
    soft = (budget[:, None] * layers - torch.arange(1, layers + 1)).sigmoid()
    hard = ((soft > 0.5) | (torch.arange(1, layers + 1) == 1)).to(soft)
    return hard + (soft - soft.detach())


Gates = Callable[[Tensor, int], Tensor]
GATES_BUGS: dict[str, tuple[Gates, str]] = {
    "soft": (
        _gates_soft,
        "These gates lie between 0 and 1: every block would have to run. Make the value hard, and "
        "keep the soft one's gradient.",
    ),
    "rounded": (
        _gates_round,
        "The values are right, but no gradient comes back: rounding is flat nearly everywhere.",
    ),
    "no block at all": (
        _gates_empty,
        "With a small budget no block runs. The first one always does.",
    ),
    "rounded down": (
        _gates_shifted,
        "You round down. Block j runs where b L + 1/2 > j.",
    ),
}


def _judge_gates(answer: Gates) -> str | None:
    budget = torch.tensor([0.02, 0.3, 0.45, 0.62, 0.97])

    def tried(f: Gates) -> list[float]:
        b = budget.clone().requires_grad_()
        gates = f(b, 6)
        if not gates.requires_grad:
            return [*gates.flatten().tolist(), 0.0]
        (slope,) = torch.autograd.grad(gates[:, 1:].sum(), b)
        return [*gates.detach().flatten().tolist(), *slope.tolist()]

    if why := mistake(answer, GATES_BUGS, tried):
        return why
    if why := close(answer(budget, 6).detach(), _gates(budget, 6), "The gates of six blocks"):
        return why
    found, want = (torch.tensor(tried(f)[30:]) for f in (answer, _gates))
    if len(found) != len(want) or not (found > 0).all():
        return "With more budget, gates should rise; the gradient that comes back says otherwise."
    return None


EXERCISES = {
    "conditions-covered": Exercise(
        judge=_judge_covered,
        hints=(
            "x_t has power alpha-bar P_0 from the image and 1 - alpha-bar from the noise.",
            "Set the two equal, and solve for alpha-bar.",
            "1 / (1 + P_0).",
        ),
        solution=_covered,
        wrong={name: bug for name, (bug, _) in COVERED_BUGS.items()},
    ),
    "conditions-spread": Exercise(
        judge=_judge_spread,
        hints=(
            "Write a wave of x_t as a s + b e, with a² = alpha-bar, b² = 1 - alpha-bar and e "
            "complex Gaussian with E|e|² = 1.",
            "|a s + b e|² = a²|s|² + 2 a b Re(s* e) + b²|e|². The variance of the second term is "
            "2 a² b² |s|², that of the third b⁴, and they are uncorrelated.",
            "((1 - alpha-bar)² + 2 alpha-bar (1 - alpha-bar) P_0) / (C alpha-bar²).",
        ),
        solution=_spread,
        wrong={name: bug for name, (bug, _) in SPREAD_BUGS.items()},
    ),
    "conditions-mean": Exercise(
        judge=_judge_mean,
        hints=(
            "Multiply by known first, so that padding adds nothing.",
            "Then divide by the number of words, not by M.",
            "(x * w).sum(1) / w.sum(1).clamp(min=1), with w = known.unsqueeze(-1).",
        ),
        solution=_mean,
        wrong={name: bug for name, (bug, _) in MEAN_BUGS.items()},
    ),
    "conditions-gates": Exercise(
        judge=_judge_gates,
        hints=(
            "soft = sigmoid(b L + 1/2 - j), and hard is where that is above 1/2.",
            "hard + (soft - soft.detach()) has the value of the one and the gradient of the other.",
            "And the first block: hard = (soft > 0.5) | (j == 1).",
        ),
        solution=_gates,
        wrong={name: bug for name, (bug, _) in GATES_BUGS.items()},
    ),
}
