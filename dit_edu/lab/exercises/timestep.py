"""Exercises of the chapter on width: a level that is never low, rows of a head, bands by loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what the notes' level asks for.


def _spent(widths: Sequence[float]) -> float:
    _, base, heavy = widths
    return base / 3 + 2 * heavy / 3


Spent = Callable[[Sequence[float]], float]
SPENT_BUGS: dict[str, tuple[Spent, str]] = {
    "a third each": (
        lambda widths: sum(widths) / 3,
        "Each branch would get a third of the steps if the level went from 0 to 1. Where does it "
        "begin, where does it end?",
    ),
    "the level itself": (
        lambda widths: 0.75,
        "3/4 is the mean level. What is paid for is the branch that the level selects.",
    ),
    "never below a half, so half and half": (
        lambda widths: (widths[1] + widths[2]) / 2,
        "Right, the light branch never runs. But the border between the other two lies at 2/3, "
        "and the level goes from 1 to 1/2: for how many of the steps is it above?",
    ),
    "from the other end": (
        lambda widths: 2 * widths[1] / 3 + widths[2] / 3,
        "You have the shares of the two branches the wrong way round. At t = T/2 the level is 3/4.",
    ),
}


def _judge_spent(answer: Spent) -> str | None:
    cases = [(0.25, 0.5, 1.0), (0.1, 0.3, 0.6)]
    if why := mistake(answer, SPENT_BUGS, lambda f: [float(f(case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(case)), _spent(case), f"spent({case})"):
            return why
    return None


# Derive: how much of a trajectory may be heavy.


def _heavy_share(light: float, budget: float) -> float:
    return (budget - light) / (1 - light)


HeavyShare = Callable[[float, float], float]
HEAVY_BUGS: dict[str, tuple[HeavyShare, str]] = {
    "the budget": (
        lambda light, budget: budget,
        "Then the light steps would be free. They cost too.",
    ),
    "what is left": (
        lambda light, budget: budget - light,
        "budget - light is what is left above the light width. How much of it does a heavy step "
        "take?",
    ),
    "light steps": (
        lambda light, budget: (1 - budget) / (1 - light),
        "That is the share of the light steps.",
    ),
}


def _judge_heavy(answer: HeavyShare) -> str | None:
    cases = [(0.25, 0.5), (0.5, 0.6), (0.1, 1.0), (0.3, 0.3)]
    if why := mistake(answer, HEAVY_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _heavy_share(*case), f"heavy_share{case}"):
            return why
    return None


# Build: the rows of some heads.


def _rows(heads: Sequence[int], num_heads: int, head_dim: int) -> list[int]:
    dim = num_heads * head_dim
    return [
        part * dim + head * head_dim + i
        for part in range(3)
        for head in heads
        for i in range(head_dim)
    ]


Rows = Callable[[Sequence[int], int, int], Sequence[int]]
ROWS_BUGS: dict[str, tuple[Rows, str]] = {
    "as if heads came first": (
        lambda heads, num_heads, head_dim: [
            3 * head_dim * head + i for head in heads for i in range(3 * head_dim)
        ],
        "You take 3d rows that follow each other for each head. But the matrix has all queries, "
        "then all keys, then all values.",
    ),
    "queries alone": (
        lambda heads, num_heads, head_dim: [
            head * head_dim + i for head in heads for i in range(head_dim)
        ],
        "Those are the rows of the queries. Keys and values of the head are missing.",
    ),
    "one row each": (
        lambda heads, num_heads, head_dim: [
            part * num_heads * head_dim + head * head_dim for part in range(3) for head in heads
        ],
        "That is the first row of each. A head has d of them.",
    ),
    "head by head": (
        lambda heads, num_heads, head_dim: [
            part * num_heads * head_dim + head * head_dim + i
            for head in heads
            for part in range(3)
            for i in range(head_dim)
        ],
        "The right rows, in an order that attention would read wrongly: it expects all queries "
        "first, then all keys, then all values.",
    ),
}


def _judge_rows(answer: Rows) -> str | None:
    cases = [([0], 2, 3), ([0, 1], 4, 8), ([1, 3], 4, 2), ([0, 1, 2, 3], 4, 2)]
    if why := mistake(answer, ROWS_BUGS, lambda f: [list(f(*case)) for case in cases]):
        return why
    for case in cases:
        found = torch.tensor(list(answer(*case))).double()
        if why := close(found, torch.tensor(_rows(*case)).double(), f"rows{case}"):
            return why
    return None


# Build: the best bands.


def _best(loss: np.ndarray, shares: Sequence[float], budget: float) -> tuple[int, ...]:
    tables = product(range(len(shares)), repeat=loss.shape[1])
    paid = [t for t in tables if sum(shares[w] for w in t) <= budget * len(t) + 1e-9]
    return min(paid, key=lambda t: sum(loss[w, b] for b, w in enumerate(t)))


def _one_for_all(loss: np.ndarray, shares: Sequence[float], budget: float) -> tuple[int, ...]:
    return (max(w for w, share in enumerate(shares) if share <= budget),) * loss.shape[1]


def _hardest_first(loss: np.ndarray, shares: Sequence[float], budget: float) -> tuple[int, ...]:
    """Widest where the loss is largest."""
    bins = loss.shape[1]
    many = int((budget - shares[0]) * bins / (shares[-1] - shares[0]) + 1e-9)
    hard = set(np.argsort(-loss[-1], kind="stable")[:many].tolist())
    return tuple(len(shares) - 1 if b in hard else 0 for b in range(bins))


def _any_price(loss: np.ndarray, shares: Sequence[float], budget: float) -> tuple[int, ...]:
    return tuple(loss.argmin(0).tolist())


Best = Callable[[np.ndarray, Sequence[float], float], Sequence[int]]
BEST_BUGS: dict[str, tuple[Best, str]] = {
    "one for all": (
        _one_for_all,
        "You take one width for all bins. Tables that differ from bin to bin are allowed, as long "
        "as the mean fits.",
    ),
    "where the loss is large": (
        _hardest_first,
        "You widen where the loss is large. What counts is by how much width lowers it there.",
    ),
    "at any price": (
        _any_price,
        "You take the least loss in every bin. The mean of the shares has to stay within the "
        "budget.",
    ),
}


def _judge_best(answer: Best) -> str | None:
    steep = np.array([[9.0, 6.0, 3.0, 2.0], [8.9, 5.0, 2.5, 1.8], [8.8, 4.5, 2.2, 1.7]])
    even = np.array([[4.0] * 4, [2.0] * 4, [1.5] * 4])
    late = np.array([[5.0, 4.0, 3.0, 6.0], [4.9, 3.9, 2.2, 4.0], [4.8, 3.8, 2.0, 1.0]])
    cases = [(table, (0.25, 0.5, 1.0), budget) for table in (steep, even, late)
             for budget in (0.5, 0.6)]  # fmt: skip
    if why := mistake(answer, BEST_BUGS, lambda f: [list(map(int, f(*case))) for case in cases]):
        return why
    for loss, shares, budget in cases:
        found = [int(w) for w in answer(loss, shares, budget)]
        want = _best(loss, shares, budget)
        if len(found) != len(want) or sum(shares[w] for w in found) > budget * len(found) + 1e-9:
            return f"For a budget of {budget}, {found} costs too much, or has too few bins."
        sums = [sum(loss[w, b] for b, w in enumerate(table)) for table in (found, want)]
        if sums[0] > sums[1] + 1e-9:
            return (
                f"For a budget of {budget}, {found} has a loss of {sums[0]:.2f} in all; "
                f"{list(want)} has {sums[1]:.2f}."
            )
    return None


EXERCISES = {
    "timestep-level": Exercise(
        judge=_judge_spent,
        hints=(
            "What is the level at t = 0, at T/2, at T?",
            "It never goes below 1/2. So which third of [0, 1] is never visited?",
            "It falls to 2/3 at t = 2T/3: heavy before, base after.",
        ),
        solution=_spent,
        wrong={name: bug for name, (bug, _) in SPENT_BUGS.items()},
    ),
    "timestep-share": Exercise(
        judge=_judge_heavy,
        hints=(
            "Let a share q of the steps be heavy, and the rest light. What is the mean?",
            "q + (1 - q) · light = budget.",
            "q = (budget - light) / (1 - light).",
        ),
        solution=_heavy_share,
        wrong={name: bug for name, (bug, _) in HEAVY_BUGS.items()},
    ),
    "timestep-rows": Exercise(
        judge=_judge_rows,
        hints=(
            'The matrix is read as "(three h d)": queries, keys and values come first.',
            "Query row i of a head is row head · d + i. And its key?",
            "part · h · d + head · d + i, for part in 0, 1, 2, then for each head, then for i.",
        ),
        solution=_rows,
        wrong={name: bug for name, (bug, _) in ROWS_BUGS.items()},
    ),
    "timestep-best": Exercise(
        judge=_judge_best,
        hints=(
            "There are few bins and three widths: try all tables (itertools.product).",
            "Keep those whose shares add up to at most budget · bins.",
            "Of these, take the one with the least sum of loss[w, b].",
        ),
        solution=_best,
        wrong={name: bug for name, (bug, _) in BEST_BUGS.items()},
    ),
}
