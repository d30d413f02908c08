"""Exercises of the chapter on attention: the root, the formula, masks, heads, the crossover."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dit_edu.attention import naive_attention
from dit_edu.lab.exercises import Exercise, close, mistake

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Derive: the divisor that gives logits a standard deviation of one.


def _divisor(d: int, s_q: float, s_k: float) -> float:
    return s_q * s_k * math.sqrt(d)


DIVISOR_BUGS: dict[str, tuple[Callable[[int, float, float], float], str]] = {
    "no root": (
        lambda d, s_q, s_k: s_q * s_k * d,
        "The sum of d independent terms has d times the *variance*; the spread is its root.",
    ),
    "variance": (
        lambda d, s_q, s_k: s_q**2 * s_k**2 * d,
        "This is the variance of the product. You are asked for what to divide by: its root.",
    ),
    "unit entries": (
        lambda d, s_q, s_k: math.sqrt(d),
        "Right where queries and keys have a standard deviation of 1. What if they have not?",
    ),
    "sum of variances": (
        lambda d, s_q, s_k: math.sqrt(d * (s_q**2 + s_k**2)),
        "Variances add for a sum. Here a query's entry *multiplies* a key's: E[q²k²] = E[q²]E[k²].",
    ),
}


def _judge_divisor(answer: Callable[[int, float, float], float]) -> str | None:
    cases = [(64, 1.0, 1.0), (72, 0.5, 2.0), (16, 3.0, 0.25), (8, 0.1, 0.7)]
    if why := mistake(answer, DIVISOR_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if abs((got := float(answer(*case))) / _divisor(*case) - 1) > 1e-6:
            return (
                f"divisor{case} = {got:.6g}. Try it: draw many queries and keys, multiply them, "
                "and take the standard deviation."
            )
    return None


# Build: attention with a mask, from the formula.


def _with(
    scale: float = 0.5, keys: bool = True, masked: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Attend:
    """Attention with logits over d^scale, a softmax over keys or queries, and some way to mask."""

    def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
        logits = q @ k.transpose(-2, -1) / q.shape[-1] ** scale
        hide = masked or (lambda x, a: x.masked_fill(~a, -math.inf))
        return hide(logits, allowed).softmax(-1 if keys else -2).nan_to_num() @ v

    return attend


def _mask_after(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return (logits.softmax(-1) * allowed) @ v


ATTEND_BUGS: dict[str, tuple[Attend, str]] = {
    "no scale": (_with(scale=0.0), "The logits are not divided by sqrt(d)."),
    "over d": (_with(scale=1.0), "You divide by d; the spread of a sum of d terms is sqrt(d)."),
    "over queries": (
        _with(keys=False),
        "Your weights add up to 1 over the queries. Each query shares out its own attention: the "
        "softmax runs over the keys, the last axis.",
    ),
    "times zero": (
        _with(masked=lambda logits, allowed: logits * allowed),
        "A logit times 0 is 0, and softmax gives exp(0) = 1 to it, not 0. Add -inf.",
    ),
    "masked weights": (
        _mask_after,
        "You mask the weights after the softmax, so the rows no longer add up to 1. Mask the "
        "logits before it.",
    ),
    "the other way": (
        _with(masked=lambda logits, allowed: logits.masked_fill(allowed, -math.inf)),
        "True means that a query may look there; you forbid it.",
    ),
}


def _judge_attend(answer: Attend) -> str | None:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 5, 4, generator=g, dtype=torch.float64)  # (B, h, N, d)
    allowed = torch.rand(5, 5, generator=g) < 0.6
    allowed.fill_diagonal_(True)  # nobody is left with nothing to look at

    def ask(f: Attend) -> Tensor:
        return f(q.clone(), k.clone(), v.clone(), allowed.clone())

    want = naive_attention(q, k, v, allowed)
    return mistake(answer, ATTEND_BUGS, ask) or close(ask(answer), want, "The result")


# Predict: how much attention leaks to tokens whose logits were multiplied by 0.


def _leak(logits: Tensor, allowed: Tensor) -> Tensor:
    return (logits * allowed).softmax(-1)[~allowed].sum()


LEAK_BUGS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "nothing": (
        lambda logits, allowed: 0.0,
        "That is what the author hoped for. What is softmax's weight for a logit of 0?",
    ),
    "share of tokens": (
        lambda logits, allowed: (~allowed).double().mean(),
        "This holds only if all logits are 0. The allowed ones keep theirs.",
    ),
    "unmasked": (
        lambda logits, allowed: logits.softmax(-1)[~allowed].sum(),
        "This is the share without any mask. Multiply the logits first.",
    ),
    "count": (
        lambda logits, allowed: (~allowed).sum() / logits.exp().sum(),
        "exp(0) = 1 for each forbidden token is right above the line. Below it, too, the forbidden "
        "ones count 1, not exp of their old logit.",
    ),
}


def _judge_leak(answer: Callable[[Tensor, Tensor], Any]) -> str | None:
    cases = [
        (torch.tensor([2.0, -1.0, 0.5, 3.0]), torch.tensor([True, True, False, False])),
        (torch.tensor([-1.0, -2.0, 4.0]), torch.tensor([True, False, False])),
    ]
    if why := mistake(answer, LEAK_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for logits, allowed in cases:
        if abs((got := float(answer(logits, allowed))) - float(_leak(logits, allowed))) > 1e-5:
            return (
                f"leak({logits.tolist()}, {allowed.tolist()}) = {got:.4g}. Write the row of "
                "weights down, entry by entry, and add up those that should be zero."
            )
    return None


# Derive: where the pairs take as long as the rest of the block.


def _crossover(dim: int, linear: float, pairs: float) -> float:
    return 6 * dim * pairs / linear


CROSSOVER_BUGS: dict[str, tuple[Callable[[int, float, float], float], str]] = {
    "equal rates": (
        lambda dim, linear, pairs: 6 * dim,
        "This is where the *MACs* are equal. A MAC of a pair takes another time than one of a "
        "linear layer.",
    ),
    "inverse": (
        lambda dim, linear, pairs: 6 * dim * linear / pairs,
        "The ratio is upside down: the slower the pairs, the *fewer* tokens it takes.",
    ),
    "attention's own": (
        lambda dim, linear, pairs: 2 * dim * pairs / linear,
        "You count attention's own projections alone. The block has the MLP too: 12 D² a token.",
    ),
    "one product": (
        lambda dim, linear, pairs: 12 * dim * pairs / linear,
        "There are two products over pairs, QKᵀ and weights·V: 2 N² D MACs.",
    ),
}


def _judge_crossover(answer: Callable[[int, float, float], float]) -> str | None:
    cases = [(384, 1e10, 1e10), (1152, 4e10, 1e10), (64, 1e9, 2.5e8)]
    if why := mistake(answer, CROSSOVER_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if abs((got := float(answer(*case))) / _crossover(*case) - 1) > 1e-6:
            return f"crossover{case} = {got:.6g}. Set 12 D² N / linear equal to 2 N² D / pairs."
    return None


# Predict: what more heads change.


def _judge_heads(answer: Any) -> str | None:
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        return "Give three factors: (parameters, MACs, numbers in the tables of weights)."
    parameters, macs, table = (float(a) for a in answer)
    if parameters != 1:
        return "The matrices are 3D × D and D × D, whatever the number of heads they are cut into."
    if macs != 1:
        return "Twice as many tables, each from vectors of half the width: h · N² · d = N² D."
    if table == 1:
        return "Each head has a table of N × N of its own, and there are twice as many heads."
    if table != 2:
        return f"{table:g} is not it: count the tables of N × N numbers."
    return None


EXERCISES = {
    "attention-root": Exercise(
        judge=_judge_divisor,
        hints=(
            "The logit is a sum of d products. What is the variance of one of them?",
            "For independent entries of mean 0: Var(q k) = E[q²] E[k²] = s_q² s_k².",
            "d of them have the variance d s_q² s_k². Divide by its root.",
        ),
        solution=_divisor,
        wrong={name: bug for name, (bug, _) in DIVISOR_BUGS.items()},
    ),
    "attention-build": Exercise(
        judge=_judge_attend,
        hints=(
            "Three lines: logits, softmax, product with the values.",
            "Forbidden logits become -inf before the softmax: masked_fill(~allowed, -inf).",
            "(q @ k.transpose(-2, -1) / d**0.5).masked_fill(~allowed, -inf).softmax(-1) @ v",
        ),
        solution=_with(),
        wrong={name: bug for name, (bug, _) in ATTEND_BUGS.items()},
    ),
    "attention-leak": Exercise(
        judge=_judge_leak,
        hints=(
            "Multiply first: what are the logits of the forbidden tokens now?",
            "Each forbidden token has the weight exp(0) = 1 before the division.",
            "m / (m + Σ over allowed tokens of exp(logit)), with m forbidden tokens.",
        ),
        solution=_leak,
        wrong={name: bug for name, (bug, _) in LEAK_BUGS.items()},
    ),
    "attention-heads": Exercise(
        judge=_judge_heads,
        hints=(
            "Write down the shapes of the four matrices. Does h stand in any of them?",
            "A head is D/h wide. What does one table of scores cost, and how many are there?",
            "Parameters and MACs stay; there are h tables of N × N numbers.",
        ),
        solution=(1, 1, 2),
        wrong={
            "more of all": (2, 2, 2),
            "more work": (1, 2, 2),
            "no change": (1, 1, 1),
            "squared": (1, 1, 4),
        },
    ),
    "attention-crossover": Exercise(
        judge=_judge_crossover,
        hints=(
            "The linear layers of a block do 12 D² N MACs, the pairs 2 N² D.",
            "Time is MACs over MACs per second. Set both times equal.",
            "12 D² N / linear = 2 N² D / pairs, and solve for N.",
        ),
        solution=_crossover,
        wrong={name: bug for name, (bug, _) in CROSSOVER_BUGS.items()},
    ),
}
