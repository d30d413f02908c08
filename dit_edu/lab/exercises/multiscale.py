"""Exercises of the chapter on tokens of two sizes: what they save, and where their numbers go."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what coarse blocks save.

Ratio = Callable[[int, int, float], float]


def _block(n: float, d: float) -> float:
    return 12 * d**2 * n + 2 * n**2 * d


def _ratio(n: int, d: int, fraction: float) -> float:
    return 1 - fraction + fraction * _block(n / 4, d) / _block(n, d)


RATIO_BUGS: dict[str, tuple[Ratio, str]] = {
    "a quarter": (
        lambda n, d, f: 1 - f + f / 4,
        "A quarter of the tokens has a quarter of the linear part, but how many pairs?",
    ),
    "a sixteenth": (
        lambda n, d, f: 1 - f + f / 16,
        "Only the pairs fall to a sixteenth. Most of a block's work is done token by token.",
    ),
    "the saving": (
        lambda n, d, f: 1 - _ratio(n, d, f),
        "This is the share that is saved. Asked is what is left to do.",
    ),
    "half the side": (
        lambda n, d, f: 1 - f + f * _block(n / 2, d) / _block(n, d),
        "The grid is half as high and half as wide. How many tokens does that leave?",
    ),
}


def _judge_ratio(answer: Ratio) -> str | None:
    cases = [(256, 64, 0.5), (64, 64, 0.25), (4096, 128, 0.75), (16, 256, 1.0)]
    if why := mistake(answer, RATIO_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for n, d, f in cases:
        if abs((got := float(answer(n, d, f))) - _ratio(n, d, f)) > 1e-6:
            return f"ratio({n}, {d}, {f}) = {got:.6g}. Price a block of N/4 tokens, then divide."
    return None


# Build: the way back, from a matrix.

Back = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]


def _split(x: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    four = (x @ weight.T).reshape(len(x), h // 2, w // 2, 2, 2, -1)  # (B, h/2, w/2, p, q, D)
    return four.permute(0, 1, 3, 2, 4, 5).reshape(len(x), h * w, -1)  # (B, N, D)


SPLIT_BUGS: dict[str, tuple[Back, str]] = {
    "four in a row": (
        lambda x, weight, grid: (x @ weight.T).reshape(len(x), grid[0] * grid[1], -1),
        "The four stand one after the other in the sequence. In the picture they are a square, so "
        "two of them belong to the next row of tokens.",
    ),
    "columns first": (
        lambda x, weight, grid: (
            (x @ weight.T)
            .reshape(len(x), grid[0] // 2, grid[1] // 2, 2, 2, -1)
            .permute(0, 1, 4, 2, 3, 5)
            .reshape(len(x), grid[0] * grid[1], -1)
        ),
        "Top right and bottom left are exchanged: of the four, the row changes slowest.",
    ),
    "channels apart": (
        lambda x, weight, grid: (
            (x @ weight.T)
            .reshape(len(x), grid[0] // 2, grid[1] // 2, -1, 2, 2)
            .permute(0, 1, 4, 2, 5, 3)
            .reshape(len(x), grid[0] * grid[1], -1)
        ),
        "Each token gets every fourth number. A token's D numbers stand together in the 4D.",
    ),
    "copies": (
        lambda x, weight, grid: _split(x, weight[: x.shape[-1]].repeat(4, 1), grid),
        "All four get the same rows of the matrix, so they cannot differ.",
    ),
}


def _judge_split(answer: Back) -> str | None:
    g, grid = torch.Generator().manual_seed(0), (4, 6)
    x, weight = torch.randn(2, 6, 3, generator=g), torch.randn(12, 3, generator=g)
    return mistake(answer, SPLIT_BUGS, lambda f: f(x.clone(), weight.clone(), grid)) or close(
        answer(x.clone(), weight.clone(), grid), _split(x, weight, grid), "What comes back"
    )


# Derive: the kernel of the patch that four merged patches are.

Kernel = Callable[[Tensor, Tensor], Tensor]


def _kernel(kernel: Tensor, weight: Tensor) -> Tensor:
    d, c, p, _ = kernel.shape
    parts = weight.reshape(len(weight), 2, 2, d)  # (D, a, b, D): one matrix for each corner
    large = torch.einsum("oabd, dcpq -> ocapbq", parts, kernel)
    return large.reshape(len(weight), c, 2 * p, 2 * p)


KERNEL_BUGS: dict[str, tuple[Kernel, str]] = {
    "pixels interleaved": (
        lambda kernel, weight: torch.einsum(
            "oabd, dcpq -> ocpaqb", weight.reshape(len(weight), 2, 2, -1), kernel
        ).reshape(len(weight), kernel.shape[1], 2 * kernel.shape[2], -1),
        "You weave the four patches into each other. Patch (a, b) fills one corner of the large "
        "one: row a·p + i, column b·p + j.",
    ),
    "corners exchanged": (
        lambda kernel, weight: torch.einsum(
            "oabd, dcpq -> ocbpaq", weight.reshape(len(weight), 2, 2, -1), kernel
        ).reshape(len(weight), kernel.shape[1], 2 * kernel.shape[2], -1),
        "Top right and bottom left are exchanged: the order of the four is (row, column).",
    ),
    "the mean": (
        lambda kernel, weight: (
            torch.einsum(
                "oabd, dcpq -> ocapbq", weight.reshape(len(weight), 2, 2, -1), kernel
            ).reshape(len(weight), kernel.shape[1], 2 * kernel.shape[2], -1)
            / 4
        ),
        "Nothing is averaged: the map adds up what its four parts say.",
    ),
}


def _judge_kernel(answer: Kernel) -> str | None:
    g = torch.Generator().manual_seed(0)
    kernel, weight = torch.randn(5, 3, 2, 2, generator=g), torch.randn(4, 20, generator=g)
    return mistake(answer, KERNEL_BUGS, lambda f: f(kernel.clone(), weight.clone())) or close(
        answer(kernel.clone(), weight.clone()), _kernel(kernel, weight), "The large kernel"
    )


# Derive: how many coarse blocks a budget asks for.

Needed = Callable[[int, int, int, float], int]


def _needed(depth: int, n: int, d: int, share: float) -> int:
    saved = _block(n, d) - _block(n / 4, d)
    return math.ceil(((1 - share) * depth * _block(n, d) + 2 * d**2 * n) / saved)


NEEDED_BUGS: dict[str, tuple[Needed, str]] = {
    "without the ways": (
        lambda depth, n, d, share: math.ceil(
            (1 - share) * depth * _block(n, d) / (_block(n, d) - _block(n / 4, d))
        ),
        "You forgot what merge and split cost: D² for each fine token, each of them.",
    ),
    "rounded down": (
        lambda depth, n, d, share: _needed(depth, n, d, share) - 1,
        "With so few the cost is still above the budget: round up.",
    ),
    "a coarse block for nothing": (
        lambda depth, n, d, share: math.ceil(
            ((1 - share) * depth * _block(n, d) + 2 * d**2 * n) / _block(n, d)
        ),
        "You count a coarse block as free. It still sees a quarter of the tokens.",
    ),
}


def _judge_needed(answer: Needed) -> str | None:
    cases = [(28, 256, 1152, 0.6), (8, 256, 128, 0.5), (12, 1024, 384, 0.4), (24, 64, 64, 0.45)]
    if why := mistake(answer, NEEDED_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if (got := answer(*case)) != _needed(*case):
            return f"needed{case} = {got}. Add up: fine blocks, coarse blocks, two maps of D² N."
    return None


EXERCISES = {
    "multiscale-ratio": Exercise(
        judge=_judge_ratio,
        hints=(
            "A block on N tokens costs 12 D² N + 2 N² D.",
            "Put N/4 in place of N: 3 D² N + N² D / 8.",
            "1 - f + f (3 D² N + N² D / 8) / (12 D² N + 2 N² D).",
        ),
        solution=_ratio,
        wrong={name: bug for name, (bug, _) in RATIO_BUGS.items()},
    ),
    "multiscale-split": Exercise(
        judge=_judge_split,
        hints=(
            "x @ weight.T has shape (B, N/4, 4D). Give every number its own axes first.",
            "(B, h/2, w/2, 2, 2, D): which axes must become neighbours to be merged into h and w?",
            "reshape to (B, h/2, w/2, 2, 2, D), permute(0, 1, 3, 2, 4, 5), reshape to (B, N, D).",
        ),
        solution=_split,
        wrong={name: bug for name, (bug, _) in SPLIT_BUGS.items()},
    ),
    "multiscale-kernel": Exercise(
        judge=_judge_kernel,
        hints=(
            "A coarse token is a sum over four corners (a, b) of a matrix times a fine token.",
            "weight.reshape(D, 2, 2, D) holds the four matrices; each meets the same small kernel.",
            "einsum('oabd, dcpq -> ocapbq', parts, kernel), then reshape to (D, C, 2p, 2p).",
        ),
        solution=_kernel,
        wrong={name: bug for name, (bug, _) in KERNEL_BUGS.items()},
    ),
    "multiscale-needed": Exercise(
        judge=_judge_needed,
        hints=(
            "A block that becomes coarse saves 9 D² N + (15/8) N² D.",
            "The savings have to make up for (1 - share) of all blocks, and for merge and split.",
            "ceil(((1 - share) L block(N) + 2 D² N) / (block(N) - block(N/4))).",
        ),
        solution=_needed,
        wrong={name: bug for name, (bug, _) in NEEDED_BUGS.items()},
    ),
}
