"""Exercises of the chapter on the landscape: what a cache leaves, mean density, under a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what a cache over steps leaves.

Passes = Callable[[int, int, float], float]


def _passes(steps: int, every: int, idle: float) -> float:
    full = math.ceil(steps / every)
    return full + (steps - full) * idle


PASSES_BUGS: dict[str, tuple[Passes, str]] = {
    "rounded down": (
        lambda steps, every, idle: steps // every + (steps - steps // every) * idle,
        "The first step is always a full one, and so is every k-th after it: the last group may be "
        "short. Round up.",
    ),
    "idle steps are free": (
        lambda steps, every, idle: float(math.ceil(steps / every)),
        "A step without blocks still embeds the image and reads the answer out: its share is not "
        "0.",
    ),
    "all pay the rest": (
        lambda steps, every, idle: math.ceil(steps / every) + steps * idle,
        "A full step costs 1, its own ends included. Only the others pay the share extra.",
    ),
}


def _judge_passes(answer: Passes) -> str | None:
    cases = [(20, 2, 0.02), (10, 4, 0.1), (7, 1, 0.3), (9, 10, 0.5)]
    if why := mistake(answer, PASSES_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _passes(*case), f"The passes of {case}"):
            return why
    return None


# Derive: the mean cost of a sparse block.

Rows = Sequence[tuple[int, int]]
Density = Callable[[Rows, int, int, int], float]


def _block(tokens: float, dim: int, *, pairs: bool = True, told: bool = True) -> float:
    return 12 * dim**2 * tokens + pairs * 2 * dim * tokens**2 + told * 6 * dim**2


def _lengths(rows: Rows, num_timesteps: int) -> list[int]:
    ends = [row[0] for row in rows[1:]] + [num_timesteps]
    return [end - row[0] for row, end in zip(rows, ends, strict=True)]


def _density(rows: Rows, tokens: int, dim: int, num_timesteps: int) -> float:
    spent = sum(
        length * _block(tokens / window**2, dim)
        for (_, window), length in zip(rows, _lengths(rows, num_timesteps), strict=True)
    )
    return spent / num_timesteps / _block(tokens, dim)


DENSITY_BUGS: dict[str, tuple[Density, str]] = {
    "tokens alone": (
        lambda rows, tokens, dim, num_timesteps: (
            sum(
                length / window**2
                for (_, window), length in zip(rows, _lengths(rows, num_timesteps), strict=True)
            )
            / num_timesteps
        ),
        "That is the mean share of tokens. Pairs fall with its square, and the condition's 6 D² "
        "stays.",
    ),
    "rows alike": (
        lambda rows, tokens, dim, num_timesteps: float(
            np.mean([_block(tokens / window**2, dim) for _, window in rows]) / _block(tokens, dim)
        ),
        "Rows hold for different numbers of steps. Weight each by how long it holds.",
    ),
    "one side": (
        lambda rows, tokens, dim, num_timesteps: (
            sum(
                length * _block(tokens / window, dim)
                for (_, window), length in zip(rows, _lengths(rows, num_timesteps), strict=True)
            )
            / num_timesteps
            / _block(tokens, dim)
        ),
        "A window of w × w tokens becomes one: N/w², not N/w.",
    ),
}


def _judge_density(answer: Density) -> str | None:
    cases = [
        ([(0, 1), (100, 2), (500, 4)], 64, 64, 1000),
        ([(0, 1)], 256, 1152, 1000),
        ([(0, 2), (10, 1)], 16, 8, 40),
    ]
    if why := mistake(answer, DENSITY_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _density(*case), f"The mean cost for {case[0]}"):
            return why
    return None


# Build: the best within a budget.

Models = Mapping[str, tuple[float, Sequence[float]]]
Best = Callable[[Models, float], str | None]


def _best(models: Models, budget: float) -> str | None:
    fits = [name for name, (cost, _) in models.items() if cost <= budget]
    return min(fits, key=lambda name: float(np.mean(models[name][1])), default=None)


BEST_BUGS: dict[str, tuple[Best, str]] = {
    "the cheapest": (
        lambda models, budget: min(models, key=lambda name: models[name][0]),
        "That is the cheapest. Whoever fits the budget costs the same to you: nothing more.",
    ),
    "the best of all": (
        lambda models, budget: min(models, key=lambda name: float(np.mean(models[name][1]))),
        "It may cost more than you have.",
    ),
    "the luckiest seed": (
        lambda models, budget: min(
            (name for name in models if models[name][0] <= budget),
            key=lambda name: min(models[name][1]),
            default=None,
        ),
        "You look at the best seed of each. Take the mean: you'll train one, not the best of "
        "three.",
    ),
    "below, not within": (
        lambda models, budget: min(
            (name for name in models if models[name][0] < budget),
            key=lambda name: float(np.mean(models[name][1])),
            default=None,
        ),
        "Who costs just the budget fits it.",
    ),
}


def _judge_best(answer: Best) -> str | None:
    models = {
        "plain": (1.0, [0.10, 0.11, 0.12]),
        "few": (0.5, [0.20, 0.08, 0.20]),
        "half": (0.5, [0.13, 0.13, 0.13]),
        "tiny": (0.2, [0.4, 0.5, 0.45]),
    }
    cases = [(models, budget) for budget in (1.0, 0.9, 0.5, 0.3, 0.1)]

    places = {name: float(place) for place, name in enumerate(models)}

    def tried(f: Best) -> list[float]:
        """Places of the answers; -1 for none, -2 for an error, -3 for a stranger."""
        found = []
        for case in cases:
            try:
                said = f(*case)
                found.append(-1.0 if said is None else places.get(said, -3.0))
            except ValueError:  # min() of nothing
                found.append(-2.0)
        return found

    if why := mistake(answer, BEST_BUGS, tried):
        return why
    for case, said, right in zip(cases, tried(answer), tried(_best), strict=True):
        if said != right:
            return f"With a budget of {case[1]} the best is {_best(*case)!r}; that is not yours."
    return None


EXERCISES = {
    "landscape-cache": Exercise(
        judge=_judge_passes,
        hints=(
            "Which steps are full ones? The first, and then every k-th.",
            "There are ⌈K/k⌉ of them; the others cost a small share of a pass.",
            "full = ceil(steps / every); full + (steps - full) * idle.",
        ),
        solution=_passes,
        wrong={name: bug for name, (bug, _) in PASSES_BUGS.items()},
    ),
    "landscape-density": Exercise(
        judge=_judge_density,
        hints=(
            "How many steps does each row hold for? The last one until T.",
            "A block of M tokens costs 12 D² M + 2 D M² + 6 D²; here M = N / window².",
            "Sum length · block(N / window²) over rows; divide by T and by block(N).",
        ),
        solution=_density,
        wrong={name: bug for name, (bug, _) in DENSITY_BUGS.items()},
    ),
    "landscape-budget": Exercise(
        judge=_judge_best,
        hints=(
            "First who fits, then who is best among them.",
            "Best means the smallest mean over seeds.",
            "min(fits, key=lambda name: mean(models[name][1]), default=None).",
        ),
        solution=_best,
        wrong={name: bug for name, (bug, _) in BEST_BUGS.items()},
    ),
}
