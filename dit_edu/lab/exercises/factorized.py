"""Exercises of the chapter on factorised attention: two tables, windows, and where they pay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Build: channels that look at channels.

Channels = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def _channels(q: Tensor, k: Tensor, v: Tensor, tau: float) -> Tensor:
    q, k = q / q.norm(dim=0), k / k.norm(dim=0)  # (N, d), each channel of length 1
    return v @ (tau * q.T @ k).softmax(dim=-1).T  # (N, d) @ (d, d)


CHANNEL_BUGS: dict[str, tuple[Channels, str]] = {
    "tokens of length 1": (
        lambda q, k, v, tau: (
            v
            @ (tau * (q / q.norm(dim=1, keepdim=True)).T @ (k / k.norm(dim=1, keepdim=True)))
            .softmax(dim=-1)
            .T
        ),
        "You gave every token the length 1. Here a channel is what looks: its length runs over "
        "the tokens.",
    ),
    "softmax over queries": (
        lambda q, k, v, tau: (
            v @ (tau * (q / q.norm(dim=0)).T @ (k / k.norm(dim=0))).softmax(dim=0).T
        ),
        "Each *query* channel shares out its attention over the keys: a row of the table adds up "
        "to 1.",
    ),
    "table not turned": (
        lambda q, k, v, tau: (
            v @ (tau * (q / q.norm(dim=0)).T @ (k / k.norm(dim=0))).softmax(dim=-1)
        ),
        "Row i of the table says what channel i takes from the others. Multiplied from the right, "
        "the table has to be turned over.",
    ),
    "by the root of d": (
        lambda q, k, v, tau: v @ (q.T @ k / q.shape[1] ** 0.5).softmax(dim=-1).T,
        "The root of d belongs to attention between tokens. A product of two channels is a sum "
        "over N tokens, and grows with N unless both have length 1.",
    ),
}


def _judge_channels(answer: Channels) -> str | None:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 7, 4, generator=g, dtype=torch.float64)

    def ask(f: Channels) -> list[Tensor]:
        return [f(q.clone(), k.clone(), v.clone(), tau) for tau in (1.0, 3.0)]

    return mistake(answer, CHANNEL_BUGS, ask) or close(
        torch.stack(ask(answer)), torch.stack(ask(_channels)), "What the channels say"
    )


# Build: windows as images of their own.

Windows = Callable[[Tensor, tuple[int, int], int], Tensor]


def _windows(x: Tensor, grid: tuple[int, int], w: int) -> Tensor:
    b, _, d = x.shape
    parts = x.reshape(b, grid[0] // w, w, grid[1] // w, w, d)  # (B, rows, w, columns, w, D)
    return parts.transpose(2, 3).reshape(-1, w * w, d)  # (B windows, w², D)


WINDOW_BUGS: dict[str, tuple[Windows, str]] = {
    "in a row": (
        lambda x, grid, w: x.reshape(-1, w * w, x.shape[-1]),
        "You take tokens that follow each other in the sequence: a strip, not a square.",
    ),
    "every other token": (
        lambda x, grid, w: (
            x.reshape(len(x), w, grid[0] // w, w, grid[1] // w, -1)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(-1, w * w, x.shape[-1])
        ),
        "Your windows are spread over the whole picture, like a comb. Neighbours belong together.",
    ),
    "transposed": (
        lambda x, grid, w: _windows(x, grid, w).unflatten(1, (w, w)).transpose(1, 2).flatten(1, 2),
        "The windows are right, but inside them columns come before rows.",
    ),
}


def _judge_windows(answer: Windows) -> str | None:
    x, grid = torch.arange(2 * 24 * 3.0).view(2, 24, 3), (4, 6)
    return mistake(answer, WINDOW_BUGS, lambda f: f(x.clone(), grid, 2)) or close(
        answer(x.clone(), grid, 2), _windows(x, grid, 2), "The windows"
    )


# Derive: from where both branches cost less than plain attention.

Even = Callable[[int, int, int], float]


def _even(d: int, heads: int, window: int) -> float:
    return 3 * d + window**2 + d / heads


EVEN_BUGS: dict[str, tuple[Even, str]] = {
    "no fusion": (
        lambda d, heads, window: 2 * d + window**2 + d / heads,
        "You forgot the linear map that joins both branches: 2D · D for each token.",
    ),
    "windows for nothing": (
        lambda d, heads, window: 3 * d,
        "This is the answer if windows and channels cost nothing beside their linear maps. A token "
        "still looks at window² tokens, and at d numbers of a table.",
    ),
    "six": (
        lambda d, heads, window: 6 * d + window**2 + d / heads,
        "2N²D is twice N²D: score, and weighted sum.",
    ),
}


def _judge_even(answer: Even) -> str | None:
    cases = [(64, 4, 8), (1152, 16, 4), (384, 6, 16)]
    if why := mistake(answer, EVEN_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if abs((got := float(answer(*case))) - _even(*case)) > 1e-3:
            return (
                f"even{case} = {got:.6g}. Set 4D²N + 2N²D equal to the bill of both branches, and "
                "divide by 2ND."
            )
    return None


# Predict: with which power does the cost of a block grow?

Power = Callable[[float, float], float]


def _power(n: float, d: float) -> float:
    return (12 * d + 4 * n) / (12 * d + 2 * n)


POWER_BUGS: dict[str, tuple[Power, str]] = {
    "always two": (
        lambda n, d: 2.0,
        "That is the far end of the formula. Where is the linear part?",
    ),
    "the share": (
        lambda n, d: n / (6 * d + n),
        "This is the share of the pairs. Add the exponent of each part, weighted by its share.",
    ),
    "mean of one and two": (
        lambda n, d: 1.5,
        "The exponent depends on N: the two parts have different shares.",
    ),
}


def _judge_power(answer: Power) -> str | None:
    cases = [(64.0, 64.0), (256.0, 1152.0), (4096.0, 64.0), (1e6, 64.0)]
    if why := mistake(answer, POWER_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if abs((got := float(answer(*case))) - _power(*case)) > 1e-4:
            return f"power{case} = {got:.6g}. It is N · M'(N) / M(N), the slope in logarithms."
    return None


EXERCISES = {
    "factorized-channels": Exercise(
        judge=_judge_channels,
        hints=(
            "The columns of Q and K are the channels. Divide each by its length over the tokens.",
            "The table is softmax(τ Q̂ᵀ K̂) of shape (d, d), with rows that add up to 1.",
            "v @ table.T: entry (n, i) is the sum over j of table[i, j] v[n, j].",
        ),
        solution=_channels,
        wrong={name: bug for name, (bug, _) in CHANNEL_BUGS.items()},
    ),
    "factorized-windows": Exercise(
        judge=_judge_windows,
        hints=(
            "Give every number its axes: (B, rows of windows, w, columns of windows, w, D).",
            "A window's two inner axes must become neighbours before they are merged.",
            "reshape(b, h // w, w, W // w, w, d), transpose(2, 3), reshape(-1, w * w, d).",
        ),
        solution=_windows,
        wrong={name: bug for name, (bug, _) in WINDOW_BUGS.items()},
    ),
    "factorized-even": Exercise(
        judge=_judge_even,
        hints=(
            "Plain attention: 4D²N + 2N²D. The MLP is the same in both and drops out.",
            "Both branches: 8D²N, fusion 2D²N, windows 2Nw²D, the table 2NDd.",
            "6D²N + 2Nw²D + 2NDd = 2N²D; divide by 2ND.",
        ),
        solution=_even,
        wrong={name: bug for name, (bug, _) in EVEN_BUGS.items()},
    ),
    "factorized-power": Exercise(
        judge=_judge_power,
        hints=(
            "Where M = a N + b N², a small relative growth of N changes M by how much?",
            "d log M / d log N = (a N + 2 b N²) / (a N + b N²).",
            "With a = 12D² and b = 2D: (12D + 4N) / (12D + 2N).",
        ),
        solution=_power,
        wrong={name: bug for name, (bug, _) in POWER_BUGS.items()},
    ),
}
