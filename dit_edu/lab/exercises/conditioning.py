"""Exercises of the chapter on conditioning: aliases, a table as a map, two tokens more, costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dit_edu.conditioning import InContextBlock
from dit_edu.lab.exercises import Exercise, close, mistake

Run = Callable[[Sequence[nn.Module], Tensor, Tensor, Tensor], Tensor]

# Derive: how fast a wave turns, as far as whole steps can tell.


def _seen(omega: float) -> float:
    return abs(omega - 2 * math.pi * round(omega / (2 * math.pi)))


SEEN_BUGS: dict[str, tuple[Callable[[float], float], str]] = {
    "itself": (
        lambda omega: omega,
        "Above π there is a slower wave through the same points. Draw ω = 2π - 0.1 at t = 0, 1, 2.",
    ),
    "whole turns": (
        lambda omega: omega % (2 * math.pi),
        "Whole turns are off, well. But what is left may be more than half a turn: a cosine that "
        "turns by 2π - 0.1 looks like one that turns back by 0.1.",
    ),
    "half turns": (
        lambda omega: omega % math.pi,
        "Half a turn is no turn: cos(πt) is 1, -1, 1 … Take off whole turns, and then mirror.",
    ),
    "cut off": (
        lambda omega: min(omega, math.pi),
        "Nothing stops at π. Faster waves come back as slower ones.",
    ),
}


def _judge_seen(answer: Callable[[float], float]) -> str | None:
    cases = [0.3, 3.0, 3.5, 2 * math.pi - 0.1, 6.5, 10.0, 12.0, 100.0]
    return mistake(answer, SEEN_BUGS, lambda f: [f(x) for x in cases]) or next(
        (why for x in cases if (why := close(answer(x), _seen(x), f"seen({x:.4g})"))), None
    )


# Build: the linear map of one-hot labels that equals a table.


def _as_linear(table: Tensor, bias: Tensor) -> Tensor:
    return (table - bias).T  # (K, D) -> (D, K)


LINEAR_BUGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "the bias twice": (
        lambda table, bias: table.T,
        "The bias is added to every label, so it is in the answer twice: take it off the table.",
    ),
    "not transposed": (
        lambda table, bias: table - bias,
        "The numbers are right. torch's Linear keeps its weight as (out, in), here (D, K).",
    ),
    "the wrong way": (
        lambda table, bias: (table + bias).T,
        "Linear adds the bias by itself. So the weight needs less of it, and not more.",
    ),
}


def _judge_linear(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    g = torch.Generator().manual_seed(0)
    table, bias = torch.randn(6, 4, generator=g), torch.randn(4, generator=g)
    return mistake(answer, LINEAR_BUGS, lambda f: f(table.clone(), bias.clone())) or close(
        answer(table.clone(), bias.clone()), _as_linear(table, bias), "The weight"
    )


# Build: blocks that are told by two tokens more.


def _in_context(blocks: Sequence[nn.Module], x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    h = torch.cat([x, t[:, None], y[:, None]], dim=1)  # (B, N + 2, D)
    for block in blocks:
        h = block(h, t + y)
    return h[:, : x.shape[1]]


def _kept(blocks, x, t, y):
    h = torch.cat([x, t[:, None], y[:, None]], dim=1)
    for block in blocks:
        h = block(h, t + y)
    return h


def _first_gone(blocks, x, t, y):
    return _kept(blocks, x, t, y)[:, 2:]


def _one_token(blocks, x, t, y):
    h = torch.cat([x, (t + y)[:, None]], dim=1)
    for block in blocks:
        h = block(h, t + y)
    return h[:, :-1]


def _renewed(blocks, x, t, y):
    for block in blocks:
        x = _in_context([block], x, t, y)
    return x


CONTEXT_BUGS: dict[str, tuple[Run, str]] = {
    "kept": (_kept, "N + 2 tokens come out. The final layer would make patches of t and of y."),
    "first gone": (
        _first_gone,
        "Two tokens are gone, but the wrong ones: the condition stands at the end.",
    ),
    "one token": (_one_token, "The sum is one token. Here the blocks are told t and y, one each."),
    "renewed": (
        _renewed,
        "Every block gets a fresh condition. The two tokens are to go through all blocks, and "
        "learn on the way like any other.",
    ),
}


def _judge_context(answer: Run) -> str | None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = nn.ModuleList(InContextBlock(16, 2) for _ in range(2)).eval()
        x, t, y = torch.randn(3, 5, 16), torch.randn(3, 16), torch.randn(3, 16)
    with torch.no_grad():
        return mistake(answer, CONTEXT_BUGS, lambda f: f(blocks, x, t, y)) or close(
            answer(blocks, x, t, y), _in_context(blocks, x, t, y), "What comes out"
        )


# Derive: adaLN's share of a block, and what listening costs.


def _share(maps: int, mlp_ratio: float) -> float:
    return 6 / (6 + maps + 2 * mlp_ratio)


SHARE_BUGS: dict[str, tuple[Callable[[int, float], float], str]] = {
    "of the rest": (
        lambda maps, r: 6 / (maps + 2 * r),
        "This is adaLN over the *rest* of the block. A share is of the whole, adaLN included.",
    ),
    "one MLP map": (
        lambda maps, r: 6 / (6 + maps + r),
        "The MLP has two maps, up and down, of r D² each.",
    ),
    "by MACs": (
        lambda maps, r: 0.0,
        "Hardly any of the *work*, yes: adaLN runs once for an image. Asked are the weights.",
    ),
}


def _judge_share(answer: Callable[[int, float], float]) -> str | None:
    cases = [(4, 4.0), (8, 4.0), (4, 2.0), (0, 1.0)]
    return mistake(answer, SHARE_BUGS, lambda f: [f(*case) for case in cases]) or next(
        (why for c in cases if (why := close(answer(*c), _share(*c), f"share{c}"))), None
    )


def _extra(kind: str, d: int, n: int) -> int:
    return {
        "in-context": 24 * d * d + 2 * d * ((n + 2) ** 2 - n**2),
        "cross-attention": 2 * d * d * n + 4 * d * d + 4 * n * d,
        "adaln": 4 * d * d,
        "adaln-zero": 6 * d * d,
    }[kind]


EXTRA_BUGS: dict[str, tuple[Callable[[str, int, int], int], str]] = {
    "linear parts only": (
        lambda kind, d, n: 24 * d * d if kind == "in-context" else _extra(kind, d, n),
        "In-context: the maps of two tokens more are there. But all tokens now look at N + 2.",
    ),
    "adaLN for each token": (
        lambda kind, d, n: _extra(kind, d, n) * (n if kind.startswith("adaln") else 1),
        "adaLN makes its vectors once for an image, not once for each token.",
    ),
    "keys of all tokens": (
        lambda kind, d, n: (
            4 * d * d * n + 4 * n * d if kind == "cross-attention" else _extra(kind, d, n)
        ),
        "Cross-attention: queries and output are made for N tokens, keys and values for two.",
    ),
}


def _judge_extra(answer: Callable[[str, int, int], int]) -> str | None:
    kinds = ("in-context", "cross-attention", "adaln", "adaln-zero")
    cases = [(kind, *size) for kind in kinds for size in ((64, 16), (1152, 256))]
    return mistake(answer, EXTRA_BUGS, lambda f: [f(*case) for case in cases]) or next(
        (why for c in cases if (why := close(answer(*c), _extra(*c), f"extra{c}", rel=1e-9))), None
    )


# Predict: what the printed formula loses.


def _judge_aliased(answer: float) -> str | None:
    got, want = float(answer), 1 - math.log10(math.pi) / 2
    known = {
        1 - want: "This is the share that is *safe*. Asked is the share that is not.",
        1 - math.log10(2 * math.pi) / 2: "You count from a whole turn. Half a turn is enough.",
        1 - math.pi / 100: "k runs evenly through the *exponents*, not through the frequencies.",
    }
    if abs(got - want) < 0.01:
        return None
    near = next((why for value, why in known.items() if abs(got - value) < 0.01), None)
    return near or f"{got:.4g} is not it. For which k is 10^(4k/d) above π?"


EXERCISES = {
    "conditioning-aliased": Exercise(
        judge=_judge_aliased,
        hints=(
            "A wave that turns by more than π from one step to the next has a slower alias.",
            "The exponent 4k/d runs from 0 to 2. Where does 10 to this power pass π?",
            "At 4k/d = log10(π) = 0.497, so for the part (2 - 0.497)/2 of all k.",
        ),
        solution=1 - math.log10(math.pi) / 2,
        wrong={
            "the safe ones": math.log10(math.pi) / 2,
            "whole turns": 1 - math.log10(2 * math.pi) / 2,
            "evenly in ω": 1 - math.pi / 100,
            "half": 0.5,
        },
    ),
    "conditioning-seen": Exercise(
        judge=_judge_seen,
        hints=(
            "cos(ωt) at whole t does not change if ω grows by 2π.",
            "And cos does not tell ω from -ω. So take off whole turns, then the sign.",
            "The nearest whole number of turns: abs(omega - 2π · round(omega / 2π)).",
        ),
        solution=_seen,
        wrong={name: bug for name, (bug, _) in SEEN_BUGS.items()},
    ),
    "conditioning-linear": Exercise(
        judge=_judge_linear,
        hints=(
            "A one-hot vector times a matrix is one column of torch's weight, plus the bias.",
            "Column y plus the bias has to be row y of the table.",
            "(table - bias).T",
        ),
        solution=_as_linear,
        wrong={name: bug for name, (bug, _) in LINEAR_BUGS.items()},
    ),
    "conditioning-context": Exercise(
        judge=_judge_context,
        hints=(
            "Make tokens of t and y: t[:, None] has the shape (B, 1, D).",
            "torch.cat([x, …], dim=1) once, before the first block.",
            "After the last block keep the first x.shape[1] tokens.",
        ),
        solution=_in_context,
        wrong={name: bug for name, (bug, _) in CONTEXT_BUGS.items()},
    ),
    "conditioning-share": Exercise(
        judge=_judge_share,
        hints=(
            "Count in D²: adaLN has 6, an attention 4, the MLP 2r.",
            "The whole block has 6 + maps + 2r.",
            "6 / (6 + maps + 2 * mlp_ratio)",
        ),
        solution=_share,
        wrong={name: bug for name, (bug, _) in SHARE_BUGS.items()},
    ),
    "conditioning-extra": Exercise(
        judge=_judge_extra,
        hints=(
            "For each kind: which maps run, and on how many vectors? Then the products QKᵀ and AV.",
            "In-context: 12 D² for each of 2 tokens; the table of attention grows to (N + 2)².",
            "Cross: 2D²N for queries and output, 4D² for keys and values, 4ND for the products.",
        ),
        solution=_extra,
        wrong={name: bug for name, (bug, _) in EXTRA_BUGS.items()},
    ),
}
