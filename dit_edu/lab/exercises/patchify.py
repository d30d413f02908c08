"""Exercises of the chapter on tokens: sizes, cost, order, positions, and tests that bite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake
from dit_edu.patchify import patchify, sincos_pos_embed, unpatchify

Unpatchify = Callable[[Tensor, int, tuple[int, int]], Tensor]
Turn = Callable[[Tensor, Tensor], Tensor]
Place = Callable[[int, int, int], float]


def _broken(pattern: str) -> Unpatchify:
    """An ``unpatchify`` that gives the right shape and, by ``pattern``, the wrong order."""

    def put_together(tokens: Tensor, p: int, grid: tuple[int, int]) -> Tensor:
        c = tokens.shape[-1] // p**2
        return rearrange(tokens, pattern, h=grid[0], w=grid[1], p=p, q=p, c=c)  # (B, C, H, W)

    return put_together


def _plain_reshape(tokens: Tensor, p: int, grid: tuple[int, int]) -> Tensor:
    return tokens.reshape(len(tokens), -1, grid[0] * p, grid[1] * p)  # (B, C, H, W), scrambled


#: Five ways to put tokens together wrongly. Each gives an image of the right shape.
BROKEN: dict[str, Unpatchify] = {
    "channels first inside a token": _broken("b (h w) (c p q) -> b c (h p) (w q)"),
    "rows and columns swapped inside a token": _broken("b (h w) (q p c) -> b c (h p) (w q)"),
    "tokens laid out column by column": _broken("b (w h) (p q c) -> b c (h p) (w q)"),
    "patches interleaved pixel by pixel": _broken("b (h w) (p q c) -> b c (p h) (q w)"),
    "a plain reshape": _plain_reshape,
}


def _image() -> Tensor:
    """Two images that no symmetry of shape or values makes easy: 6 x 4 tokens of 2 x 2 x 3."""
    return torch.arange(2 * 3 * 12 * 8, dtype=torch.float32).reshape(2, 3, 12, 8)


# Predict: p = 4 -> p = 2 on a latent of 4 x 32 x 32.


def _judge_halving(answer: Any) -> str | None:
    if not isinstance(answer, tuple | list) or len(answer) != 4:
        return "Give four numbers: (tokens, numbers per token, linear factor, N² factor)."
    tokens, length, linear, square = (float(a) for a in answer)
    if tokens != 256:
        if tokens == 16384:
            return "16384 tokens would be one for every 2 x 2 pixels: the model sees the latent."
        return f"{tokens:g} tokens is not it: 32/p patches fit into a row, and into a column."
    if length == 4:
        return "A token of 4 numbers holds one channel only; every pixel of the latent has 4."
    if length != 16:
        return f"{length:g} numbers per token is not it: a patch has p² pixels of C channels."
    if linear != 4:
        return f"The linear part does the same for every token, so its factor is not {linear:g}."
    if square == 4:
        return "4 is the factor of the number of tokens; of how many *pairs* is a score computed?"
    if square != 16:
        return f"{square:g} is not the factor by which the number of pairs of tokens grows."
    return None


# Derive: the share of the two N x N products in a block's MACs.


def _judge_share(answer: Callable[[int, int], float]) -> str | None:
    for n, d in ((256, 1152), (1024, 1152), (64, 384), (6912, 1152)):
        got = float(answer(n, d))
        if abs(got - n / (n + 6 * d)) < 1e-9:
            continue
        for off, why in (
            (n / (n + 12 * d), "You count one product of N² D; there are two, QKᵀ and weights·V."),
            (6 * d / (n + 6 * d), "That is the share of the linear part, the other one."),
            (n / (6 * d), "That is the ratio of the two parts; a share is a part of their sum."),
            (2 * n**2 * d / (12 * d**2 * n + 2 * n**2 * d + 6 * d**2),
             "You count adaLN's 6D² as well; here it is left out."),
        ):  # fmt: skip
            if abs(got - off) < 1e-9:
                return why
        return f"share({n}, {d}) = {got:.6g} is not 2N²D over 12D²N + 2N²D."
    return None


# Build: unpatchify with torch alone.


def _judge_unpatchify(answer: Unpatchify) -> str | None:
    x, grid = _image(), (6, 4)
    tokens = patchify(x, 2)
    got = answer(tokens.clone(), 2, grid)
    if tuple(got.shape) != tuple(x.shape):
        return f"The result has shape {tuple(got.shape)}; expected {tuple(x.shape)}."
    if torch.equal(got, x):
        wide = _image().transpose(2, 3).contiguous()  # 4 x 6 tokens
        if torch.equal(answer(patchify(wide, 4), 4, (2, 3)), wide):
            return None
        return "Right for 6 x 4 tokens of 2 x 2 pixels, wrong for 2 x 3 tokens of 4 x 4."
    for name, broken in BROKEN.items():
        if torch.equal(got, broken(tokens, 2, grid)):
            return f"The shape is right, the order is not. This is the bug: {name}."
    return "The shape is right, but pixels are in the wrong places."


def _solve_unpatchify(tokens: Tensor, p: int, grid: tuple[int, int]) -> Tensor:
    h, w = grid
    x = tokens.reshape(len(tokens), h, w, p, p, -1)  # (B, N, ppC) -> (B, h, w, p, q, C)
    x = x.permute(0, 5, 1, 3, 2, 4)  # (B, C, h, p, w, q)
    return x.reshape(len(tokens), -1, h * p, w * p)  # (B, C, H, W)


# Build: from the convolution's kernel to the matrix of a linear layer on our tokens.


def _judge_conv_weight(answer: Callable[[Tensor], Tensor]) -> str | None:
    kernel = torch.arange(5 * 3 * 2 * 2, dtype=torch.float32).reshape(5, 3, 2, 2)  # (D, C, p, q)
    got = answer(kernel.clone())
    if tuple(got.shape) == (12, 5):
        return "This is the transpose: nn.Linear keeps its weight as (out, in) = (D, p·p·C)."
    if torch.equal(got, kernel.flatten(1)):
        return "flatten alone keeps the kernel's order (c, p, q); tokens are (p, q, c)."
    if torch.equal(got, rearrange(kernel, "d c p q -> d (q p c)")):
        return "Channels are last now, but rows and columns of the patch have changed places."
    return close(got, rearrange(kernel, "d c p q -> d (p q c)"), "The weight", rel=0)


# Derive: how alike two positions are depends on their offset only.


def _judge_offset(answer: Callable[[int, int, int], float]) -> str | None:
    dim, side = 32, 9
    table = sincos_pos_embed(dim, side).double().reshape(side, side, dim)
    for dy, dx in ((0, 0), (0, 3), (2, 0), (-4, 1), (5, 7)):
        y, x = max(0, -dy), max(0, -dx)
        want = float(table[y, x] @ table[y + dy, x + dx])
        got = float(answer(dim, dy, dx))
        if abs(got - want) < 1e-4 * dim:
            continue
        if (dy, dx) == (0, 0):
            return (
                f"At offset 0 you get {got:.6g}. Each of the D/2 pairs gives sin² + cos² = 1, "
                f"so with D = {dim} it must be {dim // 2}."
            )
        return f"At offset (dy, dx) = ({dy}, {dx}) you get {got:.6g}; the table gives {want:.6g}."
    return None


def _solve_offset(dim: int, dy: int, dx: int) -> float:
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))  # (D/4,)
    return float((torch.cos(omega * dx) + torch.cos(omega * dy)).sum())


def _wrong_frequencies(dim: int, dy: int, dx: int) -> float:
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 2))  # (D/4,)
    return float((torch.cos(omega * dx) + torch.cos(omega * dy)).sum())


def _wrong_sum_of_offsets(dim: int, dy: int, dx: int) -> float:
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))  # (D/4,)
    return float(2 * torch.cos(omega * (dx + dy)).sum())


# Build: rotate pairs of channels, each token by its own angles.


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)  # (N, d/2) each
    return torch.cat(
        [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1
    )


def _turn_neighbours(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x[:, ::2], x[:, 1::2]  # (N, d/2) each
    pairs = torch.stack(
        [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1
    )
    return pairs.flatten(1)  # (N, d/2, 2) -> (N, d)


TURN_BUGS: dict[str, tuple[Turn, str]] = {
    "neighbours": (
        _turn_neighbours,
        "You pair channels 2k and 2k+1, as some code does. It works too, but not with our weights: "
        "here channel k and channel k + d/2 are a pair.",
    ),
    "backwards": (
        lambda x, angles: _turn(x, -angles),
        "You turn the other way round. Scores between tokens would not notice; a checkpoint would.",
    ),
    "mirror": (
        lambda x, angles: torch.cat(
            [
                x.chunk(2, -1)[0] * angles.cos() + x.chunk(2, -1)[1] * angles.sin(),
                x.chunk(2, -1)[0] * angles.sin() - x.chunk(2, -1)[1] * angles.cos(),
            ],
            dim=-1,
        ),
        "This is a reflection: its determinant is -1. A rotation has exactly one minus sign, "
        "in front of the sine that takes b into the first half.",
    ),
    "added": (
        lambda x, angles: x + torch.cat([angles.sin(), angles.cos()], dim=-1),
        "You *add* waves, as sin-cos positions do. RoPE multiplies: lengths must not change.",
    ),
}


def _judge_turn(answer: Turn) -> str | None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=g, dtype=torch.float64)  # (N, d)
    angles = torch.rand(6, 4, generator=g, dtype=torch.float64) * 6  # (N, d/2)
    return mistake(answer, TURN_BUGS, lambda f: f(x.clone(), angles.clone())) or close(
        answer(x.clone(), angles.clone()), _turn(x, angles), "The result"
    )


# Derive: where a token of a finer grid stands on the old grid's axis.


def _place(i: int, n: int, span: int) -> float:
    return (i + 0.5) * span / n - 0.5


PLACE_BUGS: dict[str, tuple[Place, str]] = {
    "corner": (
        lambda i, n, span: i * span / n,
        "The first token's *edge* is at home now, not its middle: all tokens stand too far to the "
        "left. Where is the middle of a patch that is half as wide?",
    ),
    "ends": (
        lambda i, n, span: i * (span - 1) / (n - 1),
        "You lay the first and the last middle onto each other. But finer patches have their "
        "middles nearer to the edge of the image than coarse ones.",
    ),
    "as trained": (
        lambda i, n, span: float(i),
        "These are the coordinates that go on beyond the old grid: extended, not stretched.",
    ),
    "no shift back": (
        lambda i, n, span: (i + 0.5) * span / n,
        "You measure from the edge of the image. On the old grid the middle of token 0 is 0.",
    ),
}


def _judge_place(answer: Place) -> str | None:
    cases = [(0, 8, 4), (7, 8, 4), (2, 6, 4), (1, 4, 4), (3, 5, 2)]
    if why := mistake(answer, PLACE_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if abs((got := float(answer(*case))) - _place(*case)) > 1e-9:
            return (
                f"place{case} = {got:.6g}. Draw both grids over one image and compare the "
                "middles of the patches."
            )
    return None


# Build: a test that catches every wrong order.


def _judge_test(answer: Callable[[Unpatchify], bool]) -> str | None:
    if not answer(unpatchify):
        return "Your test rejects dit_edu.patchify.unpatchify, which is right."
    for name, broken in BROKEN.items():
        try:
            passed = bool(answer(broken))
        except AssertionError:
            passed = False
        if passed:
            return f"A wrong unpatchify passes your test: {name}."
    return None


def _solve_test(put_together: Unpatchify) -> bool:
    x = torch.randn(2, 3, 4, 6)
    return torch.equal(put_together(patchify(x, 2), 2, (2, 3)), x)


def _wrong_shape_only(put_together: Unpatchify) -> bool:
    return put_together(torch.zeros(1, 4, 12), 2, (2, 2)).shape == (1, 3, 4, 4)


def _wrong_grey(put_together: Unpatchify) -> bool:
    x = torch.randn(1, 1, 4, 6)
    return torch.equal(put_together(patchify(x, 2), 2, (2, 3)), x)


EXERCISES = {
    "patchify-halving": Exercise(
        judge=_judge_halving,
        hints=(
            "Draw the 32 x 32 grid with p = 2: how many patches fit into one row?",
            "N = (32/p)², a token has p²C numbers, and attention scores every pair of tokens.",
            "N goes from 64 to 256. Linear layers work once per token, scores once per pair.",
        ),
        solution=(256, 16, 4, 16),
        wrong={
            "pixels": (16384, 12, 4, 16),
            "one channel": (256, 4, 4, 16),
            "pairs forgotten": (256, 16, 4, 4),
            "halved, not quartered": (128, 16, 2, 4),
        },
    ),
    "patchify-share": Exercise(
        judge=_judge_share,
        hints=(
            "Write both parts down: 12D²N for the linear layers, 2N²D for the two products.",
            "A share is part over sum: 2N²D / (12D²N + 2N²D). Now divide by what both contain.",
            "Divide numerator and denominator by 2ND.",
        ),
        solution=lambda n, d: n / (n + 6 * d),
        wrong={
            "one product": lambda n, d: n / (n + 12 * d),
            "ratio": lambda n, d: n / (6 * d),
            "inverse": lambda n, d: 6 * d / (n + 6 * d),
            "heads counted": lambda n, d: 16 * n / (16 * n + 6 * d),
        },
    ),
    "patchify-unpatchify": Exercise(
        judge=_judge_unpatchify,
        hints=(
            "First give every number its own axes: reshape to (B, h, w, p, q, C).",
            "Then put the axes in the image's order with permute: (B, C, h, p, w, q).",
            "permute(0, 5, 1, 3, 2, 4), and only then reshape to (B, C, h·p, w·p).",
        ),
        solution=_solve_unpatchify,
        wrong=BROKEN,
    ),
    "patchify-conv-weight": Exercise(
        judge=_judge_conv_weight,
        hints=(
            "The kernel is (D, C, p, q). In which order do the numbers of our tokens stand?",
            "Move the axis of the channels to the end before you flatten.",
            "weight.permute(0, 2, 3, 1) is (D, p, q, C); flatten its last three axes.",
        ),
        solution=lambda weight: weight.permute(0, 2, 3, 1).flatten(1),
        wrong={
            "flatten": lambda weight: weight.flatten(1),
            "rows and columns swapped": lambda weight: weight.permute(0, 3, 2, 1).flatten(1),
            "transposed": lambda weight: weight.permute(2, 3, 1, 0).flatten(0, 2),
        },
    ),
    "patchify-offset": Exercise(
        judge=_judge_offset,
        hints=(
            "Take one frequency: what is sin a · sin b + cos a · cos b?",
            "It is cos(a - b). Sum it over the frequencies, once for columns and once for rows.",
            "ω_k = 10000^(-k/(D/4)), k = 0 … D/4 - 1; add cos(ω_k dx) + cos(ω_k dy) over k.",
        ),
        solution=_solve_offset,
        wrong={
            "other frequencies": _wrong_frequencies,
            "offsets added": _wrong_sum_of_offsets,
            "mean, not sum": lambda dim, dy, dx: _solve_offset(dim, dy, dx) / (dim // 4),
        },
    ),
    "patchify-test": Exercise(
        judge=_judge_test,
        hints=(
            "A right shape proves nothing here. Compare the pixels.",
            "Make an image in which nothing is equal to anything else, patchify it, go back.",
            "Random values, C = 3, H ≠ W, and torch.equal: three traps, one test.",
        ),
        solution=_solve_test,
        wrong={
            "shape only": _wrong_shape_only,
            "grey image": _wrong_grey,
            "rejects all": lambda put_together: False,
        },
    ),
    "patchify-rope": Exercise(
        judge=_judge_turn,
        hints=(
            "Cut x into two halves a and b along the channels: (a_k, b_k) is a point in a plane.",
            "Turned by φ, the point (a, b) is (a cos φ - b sin φ, a sin φ + b cos φ).",
            "torch.cat([a·cos - b·sin, a·sin + b·cos], dim=-1), with a, b = x.chunk(2, dim=-1).",
        ),
        solution=_turn,
        wrong={name: bug for name, (bug, _) in TURN_BUGS.items()},
    ),
    "patchify-stretch": Exercise(
        judge=_judge_place,
        hints=(
            "Measure from the left edge of the image, in units of an old patch: it is span wide.",
            "A new patch is span/n wide; the middle of token i is i + 1/2 of them from the edge.",
            "The middle of the old token 0 is 1/2 from the edge, and must come out as 0.",
        ),
        solution=_place,
        wrong={name: bug for name, (bug, _) in PLACE_BUGS.items()},
    ),
}
