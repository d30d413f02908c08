"""Exercises of the chapter on deployment: rounding, its error, its bytes, and calibration."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Build: round a matrix, row by row.


Round = Callable[[Tensor], tuple[Tensor, Tensor]]


def _round(w: Tensor) -> tuple[Tensor, Tensor]:
    s = w.abs().amax(1, keepdim=True) / 127  # (rows, 1)
    return (w / s).round(), s


ROUND_BUGS: dict[str, tuple[Round, str]] = {
    "one scale": (
        lambda w: ((w / (w.abs().max() / 127)).round(), (w.abs().max() / 127).expand(len(w), 1)),
        "One scale for the whole matrix lets one large row spoil all others. Take one for each.",
    ),
    "by column": (
        lambda w: ((w / (w.abs().amax(0) / 127)).round(), w.abs().amax(0, keepdim=True) / 127),
        "A scale for each column cannot be taken out of the sum over columns. Rows are outputs.",
    ),
    "signed max": (
        lambda w: (
            (w / (w.amax(1, keepdim=True) / 127)).round(),
            w.amax(1, keepdim=True) / 127,
        ),
        "The largest number is not the largest by size: a row may have its extreme below zero.",
    ),
    "no rounding": (
        lambda w: (w / _round(w)[1], _round(w)[1]),
        "These are no whole numbers yet: nothing has been rounded.",
    ),
}


def _judge_round(answer: Round) -> str | None:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(4, 6, generator=g, dtype=torch.float64) * torch.tensor([[1.0], [0.1], [7], [2]])
    w[1] -= 0.3
    w[3, 2] = -9
    got = answer(w.clone())
    if not isinstance(got, tuple) or len(got) != 2:
        return "Return two tensors: the whole numbers, and the scale of each row, (rows, 1)."
    return (
        mistake(answer, ROUND_BUGS, lambda f: tuple(f(w.clone())))
        or close(got[1], _round(w)[1], "The scale")
        or close(got[0], _round(w)[0], "The matrix of whole numbers")
    )


# Derive: the error of rounding to b bits.


def _noise(bits: int, most: float) -> float:
    return most / (2 ** (bits - 1) - 1) / math.sqrt(12)


NOISE_BUGS: dict[str, tuple[Callable[[int, float], float], str]] = {
    "largest error": (
        lambda bits, most: most / (2 ** (bits - 1) - 1) / 2,
        "Half a step is the *largest* error. Asked for is the standard deviation.",
    ),
    "variance": (
        lambda bits, most: (most / (2 ** (bits - 1) - 1)) ** 2 / 12,
        "That is the variance.",
    ),
    "all steps on one side": (
        lambda bits, most: most / (2**bits - 1) / math.sqrt(12),
        "2^b - 1 steps have to reach from -most to most, so from 0 to most there are half as many.",
    ),
    "one step too many": (
        lambda bits, most: most / 2 ** (bits - 1) / math.sqrt(12),
        "0 is a level too: on either side of it there are 2^(b-1) - 1 steps.",
    ),
}


def _judge_noise(answer: Callable[[int, float], float]) -> str | None:
    cases = [(8, 1.0), (4, 2.5), (2, 1.0), (3, 0.2)]
    if why := mistake(answer, NOISE_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _noise(*case), f"noise{case}"):
            return why
    return None


# Predict: what is left of the file.


def _left(linear: int, rows: int, rest: int) -> float:
    return (linear + 4 * rows + 4 * rest) / (4 * (linear + rest))


LEFT_BUGS: dict[str, tuple[Callable[[int, int, int], float], str]] = {
    "a quarter": (
        lambda linear, rows, rest: 0.25,
        "That would be so if everything became one byte. Biases, tables and scales do not.",
    ),
    "scales forgotten": (
        lambda linear, rows, rest: (linear + 4 * rest) / (4 * (linear + rest)),
        "Each row has a scale, a float of four bytes. In narrow models that is not nothing.",
    ),
    "rest is rounded too": (
        lambda linear, rows, rest: (linear + 4 * rows + rest) / (4 * (linear + rest)),
        "Biases, tables and convolutions stay as they are: four bytes a number.",
    ),
}


def _judge_left(answer: Callable[[int, int, int], float]) -> str | None:
    cases = [(10**6, 10**3, 10**5), (48 * 48, 48, 480), (10**9, 10**5, 10**6)]
    if why := mistake(answer, LEFT_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _left(*case), f"left{case}"):
            return why
    return None


# Predict: which noise level needs the widest scale.


def _widest(x0: Tensor, alpha_bar: Tensor) -> Tensor:
    return (alpha_bar * x0.square().mean() + 1 - alpha_bar).sqrt()


WIDEST_BUGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "signal alone": (
        lambda x0, alpha_bar: (alpha_bar * x0.square().mean()).sqrt(),
        "The noise is part of what the first layer is fed.",
    ),
    "amplitudes add": (
        lambda x0, alpha_bar: alpha_bar.sqrt() * x0.square().mean().sqrt() + (1 - alpha_bar).sqrt(),
        "Image and noise are independent: their variances add up, not their sizes.",
    ),
    "mean taken off": (
        lambda x0, alpha_bar: (alpha_bar * x0.var(correction=0) + 1 - alpha_bar).sqrt(),
        "You took the mean off. A scale has to cover the numbers as they are, mean included.",
    ),
}


def _judge_widest(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(7, 1, 4, 4, generator=g, dtype=torch.float64) - 1.0
    alpha_bar = torch.tensor([0.999, 0.6, 0.2, 0.001], dtype=torch.float64)
    case = (x0, alpha_bar)
    return mistake(answer, WIDEST_BUGS, lambda f: f(*case)) or close(
        answer(*case), _widest(*case), "The root mean square"
    )


EXERCISES = {
    "deployment-round": Exercise(
        judge=_judge_round,
        hints=(
            "The largest number of a row, by size, becomes 127.",
            "s = w.abs().amax(1, keepdim=True) / 127, of shape (rows, 1).",
            "return (w / s).round(), s.",
        ),
        solution=_round,
        wrong={name: bug for name, (bug, _) in ROUND_BUGS.items()},
    ),
    "deployment-noise": Exercise(
        judge=_judge_noise,
        hints=(
            "Where a number falls between two levels is as good as random.",
            "A uniform error over a step s has the variance s²/12.",
            "s = most / (2^(bits-1) - 1).",
        ),
        solution=_noise,
        wrong={name: bug for name, (bug, _) in NOISE_BUGS.items()},
    ),
    "deployment-bytes": Exercise(
        judge=_judge_left,
        hints=(
            "Four bytes a number before. After it: one for the matrices, four for all the rest.",
            "Do not forget a scale for each row.",
            "(linear + 4 rows + 4 rest) / (4 (linear + rest)).",
        ),
        solution=_left,
        wrong={name: bug for name, (bug, _) in LEFT_BUGS.items()},
    ),
    "deployment-range": Exercise(
        judge=_judge_widest,
        hints=(
            "x_t = sqrt(ᾱ) x_0 + sqrt(1-ᾱ) ε. What is the mean of its square?",
            "The mixed term has the mean 0.",
            "sqrt(ᾱ mean(x_0²) + 1 - ᾱ).",
        ),
        solution=_widest,
        wrong={name: bug for name, (bug, _) in WIDEST_BUGS.items()},
    ),
}
