"""Exercises of the chapter on routers: rounding, what a switch hears, entropy, agreement."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what is left of a budget that was met by hesitating.

Rounded = Callable[[Tensor, Tensor], float]


def _rounded(p: Tensor, macs: Tensor) -> float:
    return float(macs[p > 0.5].sum() / macs.sum())


ROUNDED_BUGS: dict[str, tuple[Rounded, str]] = {
    "expected": (
        lambda p, macs: float((p * macs).sum() / macs.sum()),
        "That is the mean over the draws of training. In evaluation nothing is drawn: a branch "
        "runs, or it does not.",
    ),
    "count": (
        lambda p, macs: float((p > 0.5).double().mean()),
        "You count branches. They cost different amounts.",
    ),
    "not rounded up": (
        lambda p, macs: float(macs[p == 1].sum() / macs.sum()),
        "You run only what is certain. A switch is on where its logit is above 0; which "
        "probability is that?",
    ),
}


def _judge_rounded(answer: Rounded) -> str | None:
    g = torch.Generator().manual_seed(0)
    p, macs = torch.rand(2, 12, generator=g, dtype=torch.float64)
    p[0] = 1.0
    cases = [(p, macs), (torch.full_like(p, 0.6), macs), (torch.full_like(p, 0.4), macs)]
    if why := mistake(answer, ROUNDED_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case, what in zip(cases, ("of mixed p", "of p = 0.6", "of p = 0.4"), strict=True):
        if why := close(float(answer(*case)), _rounded(*case), f"The share {what}"):
            return why
    return None


# Derive: the gradient at the logits of switches.

Heard = Callable[[Tensor, Tensor, Tensor, float, bool], Tensor]


def _heard(logits: Tensor, noise: Tensor, worth: Tensor, tau: float, heard: bool) -> Tensor:
    s = ((logits + noise) / tau).sigmoid()  # (B, E)
    found = worth * s * (1 - s) / tau
    return found if heard else torch.where(logits + noise > 0, found, 0)


HEARD_BUGS: dict[str, tuple[Heard, str]] = {
    "always heard": (
        lambda logits, noise, worth, tau, heard: _heard(logits, noise, worth, tau, True),
        "With heard = False a branch that is off is not computed: it has no gradient at all.",
    ),
    "no noise": (
        lambda logits, noise, worth, tau, heard: _heard(logits, 0 * noise, worth, tau, heard),
        "You take the slope at the logit. The gate was drawn, and its slope is taken at "
        "logit + noise.",
    ),
    "no temperature": (
        lambda logits, noise, worth, tau, heard: tau * _heard(logits, noise, worth, tau, heard),
        "The temperature divides the logit inside the sigmoid: the chain rule has a factor 1/τ.",
    ),
    "the gate itself": (
        lambda logits, noise, worth, tau, heard: worth * (logits + noise > 0),
        "That is the value of the gate. Its gradient is that of the sigmoid which stands in for "
        "it.",
    ),
    "silent by the logit": (
        lambda logits, noise, worth, tau, heard: torch.where(
            (logits > 0) | torch.tensor(heard), _heard(logits, noise, worth, tau, True), 0
        ),
        "Who is off is decided by logit + noise, not by the logit alone.",
    ),
}


def _judge_heard(answer: Heard) -> str | None:
    g = torch.Generator().manual_seed(0)
    logits, noise, worth = torch.randn(3, 4, 6, generator=g, dtype=torch.float64)  # (B, E) each
    cases = [
        (logits, 2 * noise, worth, tau, heard) for tau in (0.5, 2.0) for heard in (True, False)
    ]
    if why := mistake(answer, HEARD_BUGS, lambda f: [f(*case) for case in cases]):
        return why
    for case in cases:
        if why := close(answer(*case), _heard(*case), f"The gradient with heard = {case[-1]}"):
            return why
    return None


# Derive: the slope of the entropy, and its sign.

Slope = Callable[[Tensor], Tensor]


def _slope(logits: Tensor) -> Tensor:
    p = logits.sigmoid()
    return -logits * p * (1 - p)


SLOPE_BUGS: dict[str, tuple[Slope, str]] = {
    "other sign": (
        lambda logits: -_slope(logits),
        "That is the slope of -H, which the sources add to the loss: at a logit above 0 descent "
        "would lower it. H itself is largest at 0 and falls on both sides.",
    ),
    "by the probability": (
        lambda logits: -logits,
        "That is ∂H/∂p: ln((1 - p)/p) = -r. From p to the logit it takes one step more.",
    ),
    "no logit": (
        lambda logits: logits.sigmoid() * (1 - logits.sigmoid()),
        "That is ∂p/∂r. What is ∂H/∂p?",
    ),
}


def _judge_slope(answer: Slope) -> str | None:
    logits = torch.tensor([[-4.0, -0.5, 0.0], [0.3, 2.0, 6.0]], dtype=torch.float64)
    return mistake(answer, SLOPE_BUGS, lambda f: f(logits)) or close(
        answer(logits), _slope(logits), "The slope"
    )


# Build: agreement of experts, which have no names.

Matched = Callable[[Tensor, Tensor], float]


def _agree(a: Tensor, b: Tensor) -> float:
    return float((a == b).double().mean())


def _matched(a: Tensor, b: Tensor) -> float:
    return max(_agree(a, b[:, list(order)]) for order in permutations(range(b.shape[1])))


def _greedy(a: Tensor, b: Tensor) -> float:
    """Each unit of ``a`` in turn takes what is left and suits it best."""
    left, found = list(range(b.shape[1])), []
    for unit in a.T:
        best = max(left, key=lambda j: float((unit == b[:, j]).double().mean()))
        left.remove(best)
        found.append(float((unit == b[:, best]).double().mean()))
    return sum(found) / len(found)


def _sorted_by_load(a: Tensor, b: Tensor) -> float:
    a, b = (x[:, x.double().mean(0).argsort(stable=True)] for x in (a, b))
    return _agree(a, b)


MATCHED_BUGS: dict[str, tuple[Matched, str]] = {
    "not matched": (
        _agree,
        "You compare expert 1 with expert 1. In another training it may be called 3.",
    ),
    "each its best": (
        lambda a, b: float((a[:, :, None] == b[:, None, :]).double().mean(0).amax(1).mean()),
        "Two experts of a may take the same expert of b. The renaming has to be one-to-one.",
    ),
    "greedy": (
        _greedy,
        "You match one after the other. An early match can spoil a better one: look at all "
        "renamings.",
    ),
    "by load": (
        _sorted_by_load,
        "You match those that are used equally often. They may be used at different times.",
    ),
}


def _judge_matched(answer: Matched) -> str | None:
    g = torch.Generator().manual_seed(0)
    cases = [tuple(torch.rand(2, 9, 4, generator=g) > 0.5) for _ in range(6)]
    cases.append((cases[0][0], cases[0][0][:, [2, 0, 3, 1]]))
    # Greedy takes the perfect match for the first unit, and leaves the second a bad one.
    a = torch.tensor([[1, 1], [0, 1], [1, 1], [0, 1]]).bool()
    b = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 0]]).bool()
    cases.append((a, b))
    if why := mistake(answer, MATCHED_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _matched(*case), "The agreement"):
            return why
    return None


EXERCISES = {
    "router-rounded": Exercise(
        judge=_judge_rounded,
        hints=(
            "In evaluation a switch is on where its logit is above 0.",
            "A logit above 0 is a probability above 1/2.",
            "The MACs of those with p > 0.5, over all MACs.",
        ),
        solution=_rounded,
        wrong={name: bug for name, (bug, _) in ROUNDED_BUGS.items()},
    ),
    "router-heard": Exercise(
        judge=_judge_heard,
        hints=(
            "The gate's gradient is that of s = sigmoid((logit + noise) / τ). And who is off?",
            "ds/dlogit = s (1 - s) / τ; where not heard, only where logit + noise > 0.",
            "worth · s (1 - s) / τ, and torch.where(logits + noise > 0, …, 0) if not heard.",
        ),
        solution=_heard,
        wrong={name: bug for name, (bug, _) in HEARD_BUGS.items()},
    ),
    "router-entropy": Exercise(
        judge=_judge_slope,
        hints=(
            "Two steps: from H to p, from p to the logit.",
            "∂H/∂p = ln((1 - p)/p), and the logit is ln(p/(1 - p)).",
            "-r p (1 - p).",
        ),
        solution=_slope,
        wrong={name: bug for name, (bug, _) in SLOPE_BUGS.items()},
    ),
    "router-matched": Exercise(
        judge=_judge_matched,
        hints=(
            "How many ways are there to rename four experts? Few.",
            "itertools.permutations gives all orders of b's columns.",
            "The largest (a == b[:, order]).double().mean() over all orders.",
        ),
        solution=_matched,
        wrong={name: bug for name, (bug, _) in MATCHED_BUGS.items()},
    ),
}
