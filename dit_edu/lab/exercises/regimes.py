"""Exercises of the chapter on regimes: where bands meet, who gets the dear option, what it wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: how far up the fine model may work.


def _edge(budget: float, cheap: float, dear: float, steps: int) -> float:
    return steps * (budget - cheap) / (dear - cheap)


Edge = Callable[[float, float, float, int], float]
EDGE_BUGS: dict[str, tuple[Edge, str]] = {
    "the cheap one is free": (
        lambda budget, cheap, dear, steps: steps * budget / dear,
        "You give the whole budget to the dear model. The cheap one costs something as well.",
    ),
    "the wrong side": (
        lambda budget, cheap, dear, steps: steps * (dear - budget) / (dear - cheap),
        "That is where they meet if the dear model works above the edge.",
    ),
    "on top of the cheap one": (
        lambda budget, cheap, dear, steps: steps * (budget - cheap) / dear,
        "Where the dear model works the cheap one does not: a step more costs dear - cheap.",
    ),
}
EDGE_CASES = [(4.0, 3.0, 13.0, 1000), (7.5, 3.5, 14.9, 1000), (2.0, 2.0, 9.0, 50)]


def _judge_edge(answer: Edge) -> str | None:
    if why := mistake(answer, EDGE_BUGS, lambda f: [float(f(*case)) for case in EDGE_CASES]):
        return why
    for case in EDGE_CASES:
        if why := close(float(answer(*case)), _edge(*case), f"edge{case}"):
            return why
    return None


# Build: who gets the dear option. Derive: what that saves.

Losses = Sequence[float]


def _share_out(cheap: Losses, dear: Losses, n: int) -> list[int]:
    saved = [c - d for c, d in zip(cheap, dear, strict=True)]
    return sorted(sorted(range(len(saved)), key=lambda b: -saved[b])[:n])


def _by(key: Callable[[float, float, int], float]) -> Callable[[Losses, Losses, int], list[int]]:
    def answer(cheap: Losses, dear: Losses, n: int) -> list[int]:
        bins = sorted(range(len(cheap)), key=lambda b: -key(cheap[b], dear[b], b))
        return sorted(bins[:n])

    return answer


Share = Callable[[Losses, Losses, int], Sequence[int]]
SHARE_BUGS: dict[str, tuple[Share, str]] = {
    "where the loss is largest": (
        _by(lambda c, d, b: c),
        "You spend where the loss is large. Spend where it falls: it may be large and stay so.",
    ),
    "the largest share of the loss": (
        _by(lambda c, d, b: c / d),
        "You compare ratios. The mean loss adds differences.",
    ),
    "low noise first": (
        _by(lambda c, d, b: -b),
        "You fill up from low noise. That is often right, and not always: look at the savings.",
    ),
}


def _tables() -> list[tuple[list[float], list[float], int]]:
    draw = np.random.default_rng(0)
    tables = []
    for n in (1, 3, 5):
        dear = draw.uniform(0.05, 1.0, 10)
        cheap = dear + draw.permutation(np.arange(1, 11)) * 0.01  # no two savings alike
        tables.append((cheap.tolist(), dear.tolist(), n))
    return tables


def _judge_share(answer: Share) -> str | None:
    cases = _tables()
    if why := mistake(answer, SHARE_BUGS, lambda f: [sorted(f(*case)) for case in cases]):
        return why
    for cheap, dear, n in cases:
        found, want = sorted(answer(cheap, dear, n)), _share_out(cheap, dear, n)
        if found != want:
            saved = np.round(np.subtract(cheap, dear), 2).tolist()
            return f"Savings {saved}, {n} bins: you choose {found}, the best are {want}."
    return None


def _gain(cheap: Losses, dear: Losses, n: int) -> float:
    saved = np.subtract(cheap, dear)
    chosen = saved[_share_out(cheap, dear, n)]
    return float(n / len(saved) * (chosen.mean() - saved.mean()))


Gain = Callable[[Losses, Losses, int], float]
GAIN_BUGS: dict[str, tuple[Gain, str]] = {
    "over the cheap option": (
        lambda cheap, dear, n: float(np.sort(np.subtract(cheap, dear))[-n:].sum() / len(cheap)),
        "That is what the policy saves over the cheap option. The coin saves something as well.",
    ),
    "without the share": (
        lambda cheap, dear, n: float(
            np.sort(np.subtract(cheap, dear))[-n:].mean() - np.subtract(cheap, dear).mean()
        ),
        "That is the difference in a chosen bin. The mean is over all bins: times n / bins.",
    ),
    "over the dear option": (
        lambda cheap, dear, n: -float(np.sort(np.subtract(cheap, dear))[:-n].sum() / len(cheap)),
        "That is the distance to the dear option everywhere. Compare at equal MACs: with the coin.",
    ),
}


def _judge_gain(answer: Gain) -> str | None:
    cases = _tables()
    if why := mistake(answer, GAIN_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        what = f"With {case[2]} of {len(case[0])} bins, the gain"
        if why := close(float(answer(*case)), _gain(*case), what):
            return why
    return None


# Derive: power laws.


def _ratio(c: Losses, alpha: float) -> float:
    c = np.asarray(c, float)
    return float((c ** (1 / (1 + alpha))).mean() ** (1 + alpha) / c.mean())


def _spent(c: Losses, alpha: float, power: float) -> float:
    """The ratio if bin b gets MACs in proportion to c_b to some power."""
    c = np.asarray(c, float)
    m = c**power / (c**power).mean()
    return float((c * m**-alpha).mean() / c.mean())


Ratio = Callable[[Losses, float], float]
RATIO_BUGS: dict[str, tuple[Ratio, str]] = {
    "in proportion to c": (
        lambda c, alpha: _spent(c, alpha, 1.0),
        "You give MACs in proportion to c. Equal slopes: α c m^(-α-1) is the same in all bins.",
    ),
    "equal losses": (
        lambda c, alpha: _spent(c, alpha, 1 / alpha),
        "You make all losses equal, c m^(-α). It is the slopes that have to be.",
    ),
    "without the outer power": (
        lambda c, alpha: float(
            (np.asarray(c, float) ** (1 / (1 + alpha))).mean() / np.mean(c) ** (1 / (1 + alpha))
        ),
        "Put m back into the loss: the mean of c^(1/(1+α)) comes to the power 1 + α.",
    ),
}
RATIO_CASES = [([1.0, 1.0, 10.0], 0.5), ([1.0, 2.0, 3.0, 30.0], 0.2), ([2.0, 2.0], 0.3)]


def _judge_ratio(answer: Ratio) -> str | None:
    if why := mistake(answer, RATIO_BUGS, lambda f: [float(f(*case)) for case in RATIO_CASES]):
        return why
    for case in RATIO_CASES:
        if why := close(float(answer(*case)), _ratio(*case), f"ratio{case}"):
            return why
    return None


EXERCISES = {
    "regimes-edge": Exercise(
        judge=_judge_edge,
        hints=(
            "All steps are drawn alike often: below the edge e the share of them is e / steps.",
            "The mean is e / steps · dear + (1 - e / steps) · cheap. Set it to the budget.",
            "steps · (budget - cheap) / (dear - cheap).",
        ),
        solution=_edge,
        wrong={name: bug for name, (bug, _) in EDGE_BUGS.items()},
    ),
    "regimes-share": Exercise(
        judge=_judge_share,
        hints=(
            "Give one bin the dear option: by how much does the sum of the losses fall?",
            "By cheap[b] - dear[b], whatever the other bins have. So take the largest of these.",
            "sorted(range(len(cheap)), key=lambda b: dear[b] - cheap[b])[:n].",
        ),
        solution=_share_out,
        wrong={name: bug for name, (bug, _) in SHARE_BUGS.items()},
    ),
    "regimes-gain": Exercise(
        judge=_judge_gain,
        hints=(
            "With s = cheap - dear: the policy saves the sum of the n largest s, over the bins.",
            "The coin takes the dear option with probability n / bins at every t. What does it "
            "save, in the mean?",
            "n / bins · (mean of the n largest s - mean of all s).",
        ),
        solution=_gain,
        wrong={name: bug for name, (bug, _) in GAIN_BUGS.items()},
    ),
    "regimes-law": Exercise(
        judge=_judge_ratio,
        hints=(
            "Equal slopes: c m^(-α-1) = const. So m is in proportion to c^(1/(1+α)).",
            "The mean of m is M: m = M c^(1/(1+α)) / mean(c^(1/(1+α))). Put it into c m^(-α).",
            "mean(c^(1/(1+α)))^(1+α) / mean(c); M has gone.",
        ),
        solution=_ratio,
        wrong={name: bug for name, (bug, _) in RATIO_BUGS.items()},
    ),
}
