"""Exercises of the chapter on the sequence loss: who pays, where the minimum is, the next patch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what the true patch pays.

Paid = Callable[[int], float]
PAID_BUGS: dict[str, tuple[Paid, str]] = {
    "nothing": (
        lambda size: 0.0,
        "Nothing is paid at the prior's mean. The true patch is seldom there: it has news.",
    ),
    "one for each number": (
        lambda size: float(size),
        "That is the mean of r S⁻¹ r. The divergence has half of it.",
    ),
    "a half, whatever the size": (
        lambda size: 0.5,
        "That is one direction's share. A patch has as many directions as numbers.",
    ),
}


def _paid(size: int) -> float:
    return size / 2


def _judge_paid(answer: Paid) -> str | None:
    if why := mistake(answer, PAID_BUGS, lambda f: [float(f(size)) for size in (4, 48)]):
        return why
    for size in (1, 4, 48):
        if why := close(float(answer(size)), _paid(size), f"With P = {size}, the mean distance"):
            return why
    return None


# Derive: where the minimum is, and where it hurts most.

Minimum = Callable[[float, float, float, float], float]
MINIMUM_BUGS: dict[str, tuple[Minimum, str]] = {
    "the weights changed places": (
        lambda c, mu, variance, kappa: c - variance / (variance + kappa) * (c - mu),
        "Let κ go to 0: the penalty is gone, so c should be left. You get μ.",
    ),
    "as if the variance were one": (
        lambda c, mu, variance, kappa: c - kappa / (1 + kappa) * (c - mu),
        "The penalty is (x - μ)² / S. A small variance pulls harder.",
    ),
    "one step of descent": (
        lambda c, mu, variance, kappa: c - kappa / variance * (c - mu),
        "That is one step down the penalty's slope at c. For a large κ it goes past μ.",
    ),
}
MINIMUM_CASES = [(0.3, -0.2, 0.5, 0.1), (1.0, 2.0, 0.01, 0.05), (-0.4, 0.4, 2.0, 0.0)]


def _minimum(c: float, mu: float, variance: float, kappa: float) -> float:
    return c - kappa / (variance + kappa) * (c - mu)


def _judge_minimum(answer: Minimum) -> str | None:
    if why := mistake(answer, MINIMUM_BUGS, lambda f: [float(f(*c)) for c in MINIMUM_CASES]):
        return why
    for case in MINIMUM_CASES:
        if why := close(float(answer(*case)), _minimum(*case), f"minimum{case}"):
            return why
    return None


Worst = Callable[[float], tuple[float, float]]
WORST_BUGS: dict[str, tuple[Worst, str]] = {
    "where the prior is surest": (
        lambda kappa: (0.0, 0.0),
        "There the pull is strongest. But what is certain has no news to lose: S is 0.",
    ),
    "the bias, not squared": (
        lambda kappa: (kappa, np.sqrt(kappa) / 2),
        "The place is right. You give the root of the mean square.",
    ),
    "the share that is lost": (
        lambda kappa: (kappa, 0.25),
        "The place is right. Half is lost there, so a quarter of the variance; S is κ.",
    ),
}


def _worst(kappa: float) -> tuple[float, float]:
    return kappa, kappa / 4


def _judge_worst(answer: Worst) -> str | None:
    cases = (0.02, 0.5)
    if why := mistake(answer, WORST_BUGS, lambda f: [float(v) for k in cases for v in f(k)]):
        return why
    for kappa in cases:
        variance, square = map(float, answer(kappa))
        if why := close(variance, kappa, f"With κ = {kappa}, the variance S"):
            return why
        if why := close(square, kappa / 4, f"With κ = {kappa}, the mean square of the bias"):
            return why
    return None


# Build: what comes next.

Next = Callable[[np.ndarray, np.ndarray, np.ndarray, int, int], np.ndarray]


def _next(z: np.ndarray, mean: np.ndarray, cov: np.ndarray, i: int, size: int) -> np.ndarray:
    old, new = slice(0, i * size), slice(i * size, (i + 1) * size)
    return mean[new] + cov[new, old] @ np.linalg.solve(cov[old, old], z[old] - mean[old])


def _from_all(z: np.ndarray, mean: np.ndarray, cov: np.ndarray, i: int, size: int) -> np.ndarray:
    new = np.arange(i * size, (i + 1) * size)
    rest = np.setdiff1d(np.arange(len(z)), new)
    gain = np.linalg.solve(cov[np.ix_(rest, rest)], z[rest] - mean[rest])
    return mean[new] + cov[np.ix_(new, rest)] @ gain


def _from_last(z: np.ndarray, mean: np.ndarray, cov: np.ndarray, i: int, size: int) -> np.ndarray:
    old, new = slice((i - 1) * size, i * size), slice(i * size, (i + 1) * size)
    return mean[new] + cov[new, old] @ np.linalg.solve(cov[old, old], z[old] - mean[old])


def _not_centred(z: np.ndarray, mean: np.ndarray, cov: np.ndarray, i: int, size: int) -> np.ndarray:
    old, new = slice(0, i * size), slice(i * size, (i + 1) * size)
    return cov[new, old] @ np.linalg.solve(cov[old, old], z[old])


NEXT_BUGS: dict[str, tuple[Next, str]] = {
    "from all other patches": (
        _from_all,
        "You tell the prior what comes after patch i. It reads in order, and is not there yet.",
    ),
    "from the last patch alone": (
        _from_last,
        "You use the patch just before. All earlier ones count: row by row, the patch above too.",
    ),
    "without the means": (
        _not_centred,
        "The regression is one of deviations: take the mean off the prefix, add that of patch i.",
    ),
}


def _next_cases() -> list[tuple[np.ndarray, np.ndarray, np.ndarray, int, int]]:
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(8, 8))
    return [
        (draw.normal(size=8), draw.normal(size=8), mix @ mix.T + np.eye(8), i, 2) for i in (1, 2, 3)
    ]


def _judge_next(answer: Next) -> str | None:
    cases = _next_cases()
    if why := mistake(answer, NEXT_BUGS, lambda f: [np.asarray(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(answer(*case), _next(*case), f"The mean of patch {case[3]}"):
            return why
    return None


EXERCISES = {
    "sequence-loss-paid": Exercise(
        judge=_judge_paid,
        hints=(
            "r is what is new in the patch: a Gaussian with mean 0 and covariance S.",
            "In the units of the prior, L⁻¹ r, it has P independent numbers of variance 1.",
            "The mean of their squares' sum is P, and the divergence has half of it.",
        ),
        solution=_paid,
        wrong={name: bug for name, (bug, _) in PAID_BUGS.items()},
    ),
    "sequence-loss-minimum": Exercise(
        judge=_judge_minimum,
        hints=(
            "Minimise (x - c)² / 2κ + (x - μ)² / 2S over x.",
            "The derivative is (x - c)/κ + (x - μ)/S. Set it to 0 and multiply by κS.",
            "x (S + κ) = S c + κ μ. Write it as c minus something.",
        ),
        solution=_minimum,
        wrong={name: bug for name, (bug, _) in MINIMUM_BUGS.items()},
    ),
    "sequence-loss-worst": Exercise(
        judge=_judge_worst,
        hints=(
            "The bias is κ/(S + κ) times the news, whose variance is S at low noise.",
            "So its mean square is κ² S / (S + κ)². Where does that have its maximum over S?",
            "Its derivative vanishes at S = κ. Put that in.",
        ),
        solution=_worst,
        wrong={name: bug for name, (bug, _) in WORST_BUGS.items()},
    ),
    "sequence-loss-next": Exercise(
        judge=_judge_next,
        hints=(
            "Cut the covariance: the block of the prefix, and that between patch i and the prefix.",
            "The mean of a Gaussian, given a part of it: m_i + Σ_i< Σ_<<⁻¹ (z_< - m_<).",
            "mean[new] + cov[new, old] @ np.linalg.solve(cov[old, old], z[old] - mean[old]), with "
            "old = slice(0, i * size).",
        ),
        solution=_next,
        wrong={name: bug for name, (bug, _) in NEXT_BUGS.items()},
    ),
}
