"""Exercises of the chapter on noise-aware attention: factors, windows, and what gathering costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake
from dit_edu.windows import TILE, token_distance

# Predict: what a formula does to the usual logits.

Factor = Callable[[float, int], float]


def _factor(beta: float, d: int) -> float:
    return math.sqrt(beta * d)


FACTOR_BUGS: dict[str, tuple[Factor, str]] = {
    "the summary": (
        lambda beta, d: 1 / math.sqrt(beta),
        "That is what the notes' summary says. Their definition divides by Temp.",
    ),
    "multiplied by Temp": (
        lambda beta, d: 1 / math.sqrt(beta * d),
        "You multiply by Temp. It stands in the denominator.",
    ),
    "one root too few": (
        lambda beta, d: math.sqrt(beta),
        "That is the factor on Q Kᵀ. The usual logits have been divided by sqrt(d) already.",
    ),
}
FACTOR_CASES = [(1e-4, 64), (0.02, 64), (0.005, 12)]


def _judge_factor(answer: Factor) -> str | None:
    if why := mistake(answer, FACTOR_BUGS, lambda f: [float(f(*case)) for case in FACTOR_CASES]):
        return why
    for case in FACTOR_CASES:
        if why := close(float(answer(*case)), _factor(*case), f"factor{case}"):
            return why
    return None


# Derive: the temperature that a modulated norm is.

Scale = Callable[[float], float]


def _scale(gamma: float) -> float:
    return (1 + gamma) ** 2


SCALE_BUGS: dict[str, tuple[Scale, str]] = {
    "once": (
        lambda gamma: 1 + gamma,
        "Queries are scaled, and keys are too: a logit is a product of the two.",
    ),
    "without the one": (
        lambda gamma: gamma**2,
        "adaLN multiplies by 1 + γ: at γ = 0 the factor is 1, not 0.",
    ),
    "linear": (
        lambda gamma: 1 + 2 * gamma,
        "That holds for small γ. The square has one term more.",
    ),
}
SCALE_CASES = [0.0, 0.5, -0.5, 2.0]


def _judge_scale(answer: Scale) -> str | None:
    if why := mistake(answer, SCALE_BUGS, lambda f: [float(f(case)) for case in SCALE_CASES]):
        return why
    for case in SCALE_CASES:
        if why := close(float(answer(case)), _scale(case), f"factor({case})"):
            return why
    return None


# Build: a window on the grid.

Near = Callable[[int, int, int], Tensor]


def _near(h: int, w: int, k: int) -> Tensor:
    return token_distance((h, w)) < k


def _by(distance: Callable[[Tensor, Tensor], Tensor], strict: bool = True) -> Near:
    """A window by a distance of |Δrow| and |Δcolumn|."""

    def near(h: int, w: int, k: int) -> Tensor:
        n = torch.arange(h * w)
        rows, columns = (x[:, None] - x for x in (n // w, n % w))
        apart = distance(rows.abs(), columns.abs())
        return apart < k if strict else apart <= k

    return near


NEAR_BUGS: dict[str, tuple[Near, str]] = {
    "reading order": (
        lambda h, w, k: token_distance((h, w), "raster") < k,
        "You compare the numbers of the tokens. The end of a row is not next to the start of one.",
    ),
    "city blocks": (
        _by(lambda rows, columns: rows + columns),
        "You add rows and columns, which makes a diamond. A square takes the larger of the two.",
    ),
    "one too many": (
        _by(torch.maximum, strict=False),
        "You count k itself. Nearer than k: at k = 1 a token sees itself alone.",
    ),
    "rows alone": (
        _by(lambda rows, columns: rows),
        "You look at rows alone: a band. Columns count as well.",
    ),
}
NEAR_CASES = [(3, 3, 1), (4, 5, 2), (6, 4, 3)]


def _judge_near(answer: Near) -> str | None:
    def all_cases(f: Near) -> list[list]:
        return [torch.as_tensor(f(*case)).bool().tolist() for case in NEAR_CASES]

    if why := mistake(answer, NEAR_BUGS, all_cases):
        return why
    for h, w, k in NEAR_CASES:
        found, want = torch.as_tensor(answer(h, w, k)), _near(h, w, k)
        if found.shape != want.shape:
            return f"near({h}, {w}, {k}) has shape {tuple(found.shape)}; wanted {tuple(want.shape)}"
        if bool((found.bool() != want).any()):
            i, j = (found.bool() != want).nonzero()[0].tolist()
            return f"near({h}, {w}, {k}): token {i} and token {j} are wrong; wanted {want[i, j]}."
    return None


# Predict: what gathering computes.

Share = Callable[[int, int], float]


def _share(side: int, k: int) -> float:
    return (TILE + 2 * (k - 1)) ** 2 / side**2


SHARE_BUGS: dict[str, tuple[Share, str]] = {
    "the window alone": (
        lambda side, k: (2 * k - 1) ** 2 / side**2,
        "That is the share of the pairs that a query needs. Its 63 neighbours in the square need "
        "others, and all get the same keys.",
    ),
    "k for r": (
        lambda side, k: (TILE + 2 * k) ** 2 / side**2,
        "At k = 1 nobody sees further than itself: the square needs no more keys than it has.",
    ),
    "one side": (
        lambda side, k: (TILE + k - 1) ** 2 / side**2,
        "The square has neighbours on both sides.",
    ),
}
SHARE_CASES = [(32, 1), (32, 3), (64, 5)]


def _judge_share(answer: Share) -> str | None:
    if why := mistake(answer, SHARE_BUGS, lambda f: [float(f(*case)) for case in SHARE_CASES]):
        return why
    for case in SHARE_CASES:
        if why := close(float(answer(*case)), _share(*case), f"share{case}"):
            return why
    return None


EXERCISES = {
    "noise-attention-factor": Exercise(
        judge=_judge_factor,
        hints=(
            "Write sqrt(d) · Temp first. One of the two roots goes away.",
            "sqrt(d) / sqrt(β d) = 1 / sqrt(β), so the notes have Q Kᵀ · sqrt(β). The usual "
            "logits are Q Kᵀ / sqrt(d). What is the quotient?",
            "sqrt(β) · sqrt(d) = math.sqrt(beta * d).",
        ),
        solution=_factor,
        wrong={name: bug for name, (bug, _) in FACTOR_BUGS.items()},
    ),
    "noise-attention-scale": Exercise(
        judge=_judge_scale,
        hints=(
            "What happens to q = W x if x becomes (1 + γ) x? And to k?",
            "Both are multiplied by 1 + γ; the logit is q · k / sqrt(d).",
            "(1 + gamma) ** 2.",
        ),
        solution=_scale,
        wrong={name: bug for name, (bug, _) in SCALE_BUGS.items()},
    ),
    "noise-attention-near": Exercise(
        judge=_judge_near,
        hints=(
            "Token n stands in row n // w and column n % w.",
            "Make the (N, N) tables of the differences of rows and of columns; take the larger of "
            "the two absolute values.",
            "torch.maximum((r[:, None] - r).abs(), (c[:, None] - c).abs()) < k.",
        ),
        solution=_near,
        wrong={name: bug for name, (bug, _) in NEAR_BUGS.items()},
    ),
    "noise-attention-share": Exercise(
        judge=_judge_share,
        hints=(
            "How far does the outermost query of a square of 8 × 8 see, beyond the square?",
            "By k - 1 tokens, on both sides: the square of keys has 8 + 2 (k - 1) to a side.",
            "(8 + 2 * (k - 1)) ** 2 / side**2.",
        ),
        solution=_share,
        wrong={name: bug for name, (bug, _) in SHARE_BUGS.items()},
    ),
}
