"""Exercises of the chapter on DDDiT's results: whole bills, equal opponents, fair verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: per step is not per image.

Whole = Callable[[float, int, float, int], float]


def _whole(macs: float, steps: int, other: float, other_steps: int) -> float:
    return macs * steps / (other * other_steps)


WHOLE_BUGS: dict[str, tuple[Whole, str]] = {
    "per step": (
        lambda macs, steps, other, other_steps: macs / other,
        "That compares one step with one step. An image takes many, and not equally many.",
    ),
    "steps alone": (
        lambda macs, steps, other, other_steps: steps / other_steps,
        "You count steps. One of the two has cheaper ones.",
    ),
    "upside down": (
        lambda macs, steps, other, other_steps: other * other_steps / (macs * steps),
        "That is how much of the first the second costs. Asked is how many times as much the "
        "first costs.",
    ),
    "added": (
        lambda macs, steps, other, other_steps: macs / other + steps / other_steps,
        "The two savings multiply; they do not add up.",
    ),
}


def _judge_whole(answer: Whole) -> str | None:
    cases = [(118.6, 250, 72.3, 50), (118.6, 50, 72.3, 50), (2.0, 7, 5.0, 3)]
    if why := mistake(answer, WHOLE_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _whole(*case), f"The ratio of {case}"):
            return why
    return None


# Derive: the static opponent of equal MACs.

Thin = Callable[[float, float, int, int], float]


def _thin(share: float, ratio: float, tokens: int, dim: int) -> float:
    others = 4 * tokens * dim**2 + 2 * tokens**2 * dim + 6 * dim**2
    block = others + 2 * ratio * tokens * dim**2
    return (share * block - others) / (2 * tokens * dim**2)


THIN_BUGS: dict[str, tuple[Thin, str]] = {
    "the ratio alone": (
        lambda share, ratio, tokens, dim: share * ratio,
        "Then the MLPs cost that share, and attention still costs all. The block costs more than "
        "was asked.",
    ),
    "no pairs": (
        lambda share, ratio, tokens, dim: share * (2 + ratio) - 2,
        "Tokens look at each other too: 2 N² D. And six vectors are made of the condition: 6 D².",
    ),
    "no condition": (
        lambda share, ratio, tokens, dim: (
            (share * (4 + 2 * ratio) - 4) / 2 + (share - 1) * tokens / dim
        ),
        "Six vectors are made of the condition in every block, 6 D² for an image. They stay.",
    ),
    "one map": (
        lambda share, ratio, tokens, dim: 2 * _thin(share, ratio / 2, tokens, dim),
        "An MLP has two maps, D → rD and rD → D: 2 r N D².",
    ),
}


def _judge_thin(answer: Thin) -> str | None:
    cases = [(0.62, 4.0, 16, 48), (0.8, 4.0, 256, 1152), (1.0, 2.5, 64, 64)]
    if why := mistake(answer, THIN_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _thin(*case), f"The ratio for {case}"):
            return why
    return None


# Build: who is beaten by nobody.

Points = Sequence[tuple[float, float]]
Best = Callable[[Points], list[int]]


def _best(points: Points) -> list[int]:
    def beaten(a: tuple[float, float]) -> bool:
        return any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points)

    return [i for i, point in enumerate(points) if not beaten(tuple(point))]


def _strictly(points: Points) -> list[int]:
    return [i for i, a in enumerate(points) if not any(b[0] < a[0] and b[1] < a[1] for b in points)]


def _hull(points: Points) -> list[int]:
    """Those that a sum of both with some weight would choose."""
    found = {
        min(range(len(points)), key=lambda i: points[i][0] + w * points[i][1])
        for w in np.geomspace(1e-4, 1e4, 400)
    }
    return sorted(found)


BEST_BUGS: dict[str, tuple[Best, str]] = {
    "the best quality": (
        lambda points: [min(range(len(points)), key=lambda i: points[i][1])],
        "That is one of them. A cheaper one with more loss may be beaten by nobody either.",
    ),
    "strictly": (
        _strictly,
        "A model that costs the same and is worse is beaten; so is one that is as good and "
        "costs more.",
    ),
    "a weighted sum": (
        _hull,
        "A sum with weights finds only the corners of the frontier. A model in a hollow between "
        "two others is beaten by neither.",
    ),
}


def _judge_best(answer: Best) -> str | None:
    cases = [
        [(0.6, 0.30), (1.0, 0.20), (0.6, 0.25), (0.8, 0.25), (0.9, 0.40)],
        [(0.3, 0.9), (0.5, 0.8), (0.9, 0.1), (0.95, 0.1)],
        [(1.0, 1.0)],
    ]
    if why := mistake(answer, BEST_BUGS, lambda f: [np.array(f(case)) for case in cases]):
        return why
    for case in cases:
        if sorted(answer(case)) != _best(case):
            return f"Of {case} the places {_best(case)} are beaten by nobody."
    return None


# Predict: what "not above on each seed" asks.

Verdict = Callable[[Sequence[float], Sequence[float]], float]


def _verdict(dynamic: Sequence[float], static: Sequence[float]) -> float:
    return max(a - b for a, b in zip(dynamic, static, strict=True))


VERDICT_BUGS: dict[str, tuple[Verdict, str]] = {
    "the mean": (
        lambda dynamic, static: float(np.mean(dynamic) - np.mean(static)),
        "A mean lets one good seed pay for a bad one.",
    ),
    "best against best": (
        lambda dynamic, static: min(dynamic) - min(static),
        "You compare the luckiest with the luckiest. Asked is each seed.",
    ),
    "unpaired": (
        lambda dynamic, static: max(dynamic) - min(static),
        "The same seed shares its images and noise. Compare seed by seed.",
    ),
}


def _judge_verdict(answer: Verdict) -> str | None:
    cases = [([0.31, 0.28, 0.30], [0.30, 0.29, 0.31]), ([2.0, 1.0], [1.0, 3.0]), ([1.0], [1.5])]
    if why := mistake(answer, VERDICT_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _verdict(*case), f"The verdict on {case}"):
            return why
    return None


EXERCISES = {
    "dddit-results-whole": Exercise(
        judge=_judge_whole,
        hints=(
            "What does an image cost, not a step?",
            "MACs of a step times steps, for both.",
            "macs · steps / (other · other_steps).",
        ),
        solution=_whole,
        wrong={name: bug for name, (bug, _) in WHOLE_BUGS.items()},
    ),
    "dddit-results-thin": Exercise(
        judge=_judge_thin,
        hints=(
            "Write down what a block costs: four maps and all pairs, the MLP, the condition.",
            "(4 + 2r) N D² + 2 N² D + 6 D². Only the r part may shrink.",
            "(share · block - others) / (2 N D²), where others = 4 N D² + 2 N² D + 6 D².",
        ),
        solution=_thin,
        wrong={name: bug for name, (bug, _) in THIN_BUGS.items()},
    ),
    "dddit-results-frontier": Exercise(
        judge=_judge_best,
        hints=(
            "Who is beaten? Somebody else costs no more, loses no more, and is not the same.",
            "any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points).",
            "Keep the places i for which that is False.",
        ),
        solution=_best,
        wrong={name: bug for name, (bug, _) in BEST_BUGS.items()},
    ),
    "dddit-results-verdict": Exercise(
        judge=_judge_verdict,
        hints=(
            "Seeds are pairs: the same images, the same noise.",
            "The worst of the differences has to be below 0.",
            "max(a - b for a, b in zip(dynamic, static)).",
        ),
        solution=_verdict,
        wrong={name: bug for name, (bug, _) in VERDICT_BUGS.items()},
    ),
}
