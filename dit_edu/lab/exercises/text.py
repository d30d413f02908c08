"""Exercises of the chapter on text: what a bag forgets, what words cost, masks, one softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

Pair = tuple[str, str]

# Predict: how often a bag of words can be right.


def _best(first: Pair, second: Pair) -> float:
    (c1, s1), (c2, s2) = first, second
    same = {(a, b) for a, b in (((c1, s1), (c2, s2)), ((c2, s1), (c1, s2)))}
    same |= {(b, a) for a, b in same}
    return 1 / len(same)


Best = Callable[[Pair, Pair], float]
BAG_BUGS: dict[str, tuple[Best, str]] = {
    "one of two": (
        lambda first, second: 0.5,
        "Two things are lost with the order: which colour goes with which shape, and which object "
        "is named first. And where both colours are equal there is less to lose.",
    ),
    "always four": (
        lambda first, second: 0.25,
        "With two equal colours, or two equal shapes, some of the four captions are the same.",
    ),
    "colours only": (
        lambda first, second: 1.0 if first[0] == second[0] or first[1] == second[1] else 0.5,
        "Which object is named first is lost too: 'A left of B' and 'B left of A' hold the same "
        "words.",
    ),
    "every order of six words": (
        lambda first, second: 1 / math.factorial(6),
        "Count captions of the grammar, not orders of words: 'circle a red' is no caption.",
    ),
}


def _judge_best(answer: Best) -> str | None:
    cases: list[tuple[Pair, Pair]] = [
        (("red", "circle"), ("blue", "square")),
        (("red", "circle"), ("red", "square")),
        (("red", "circle"), ("blue", "circle")),
        (("red", "circle"), ("red", "circle")),
    ]
    if why := mistake(answer, BAG_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _best(*case), f"best{case}"):
            return why
    return None


# Derive: what words as tokens cost.


def _extra(n: int, m: int, width: int) -> float:
    return 12 * m * width**2 + 2 * width * ((n + m) ** 2 - n**2)


Extra = Callable[[int, int, int], float]
MACS_BUGS: dict[str, tuple[Extra, str]] = {
    "no attention": (
        lambda n, m, width: 12 * m * width**2,
        "That is what each word costs in the maps. The tables of attention grow too: they have "
        "(N + M)² entries instead of N².",
    ),
    "words among themselves": (
        lambda n, m, width: 12 * m * width**2 + 2 * width * m**2,
        "Words do not only look at words: N + M tokens look at N + M tokens.",
    ),
    "one product": (
        lambda n, m, width: 12 * m * width**2 + width * ((n + m) ** 2 - n**2),
        "Attention has two products, Q Kᵀ and that of the weights with V.",
    ),
    "no projection": (
        lambda n, m, width: 11 * m * width**2 + 2 * width * ((n + m) ** 2 - n**2),
        "Count the maps again: 3 D² for queries, keys and values, D² behind attention, 8 D² in the "
        "MLP.",
    ),
}


def _judge_extra(answer: Extra) -> str | None:
    cases = [(16, 9, 64), (256, 120, 1152), (4, 1, 8)]
    if why := mistake(answer, MACS_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), float(_extra(*case)), f"extra{case}"):
            return why
    return None


# Build: who may be looked at.


def _seen(known: Tensor, n: int) -> Tensor:
    image = torch.ones(len(known), n, dtype=torch.bool)  # (B, n)
    return torch.cat([image, known], dim=1)[:, None, None]  # (B, 1, 1, n + M)


def _seen_words_first(known: Tensor, n: int) -> Tensor:
    return _seen(known, n).flip(-1)


def _seen_square(known: Tensor, n: int) -> Tensor:
    row = _seen(known, n)[:, 0, 0]  # (B, n + M)
    return (row[:, :, None] & row[:, None, :])[:, None]  # (B, 1, n + M, n + M)


Seen = Callable[[Tensor, int], Tensor]
MASK_BUGS: dict[str, tuple[Seen, str]] = {
    "padding is hidden, words too": (
        lambda known, n: _seen(torch.zeros_like(known), n),
        "Nobody sees the words: the mask forbids them all.",
    ),
    "the other way round": (
        lambda known, n: ~_seen(known, n),
        "True is where attention is allowed. This mask shows the padding and hides the rest.",
    ),
    "words first": (
        _seen_words_first,
        "The image's tokens stand first in the row, the words behind them.",
    ),
    "padding may not ask": (
        _seen_square,
        "A padded word that may look at nobody has a softmax over nothing: NaN. Hide keys, not "
        "queries; what padding makes of itself nobody reads.",
    ),
}


def _judge_seen(answer: Seen) -> str | None:
    known = torch.tensor([[True, True, True], [True, False, False]])

    def flat(f: Seen) -> list[float]:
        return torch.broadcast_to(f(known, 4), (2, 1, 7, 7)).double().flatten().tolist()

    if why := mistake(answer, MASK_BUGS, flat):
        return why
    found = answer(known, 4)
    if found.dtype != torch.bool:
        return f"The mask is of type {found.dtype}. Allowed: bool; numbers would be added instead."
    return close(
        torch.broadcast_to(found, (2, 1, 7, 7)).double(),
        torch.broadcast_to(_seen(known, 4), (2, 1, 7, 7)).double(),
        "The mask of two captions of three and of one word, behind four image tokens",
    )


# Build: one softmax over both.


def _mixed(q: Tensor, k: Tensor, v: Tensor, k_words: Tensor, v_words: Tensor) -> Tensor:
    keys, values = torch.cat([k, k_words], dim=1), torch.cat([v, v_words], dim=1)
    logits = q @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])  # (B, N, N + M)
    return logits.softmax(-1) @ values  # (B, N, d)


def _look(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


Mixed = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
SOFTMAX_BUGS: dict[str, tuple[Mixed, str]] = {
    "two softmaxes": (
        lambda q, k, v, kw, vw: _look(q, k, v) + _look(q, kw, vw),
        "You have two softmaxes, one over the image and one over the words, and add the answers: "
        "that is self-attention and cross-attention. Here image and words compete for one share.",
    ),
    "the mean of two": (
        lambda q, k, v, kw, vw: (_look(q, k, v) + _look(q, kw, vw)) / 2,
        "Every token gives half of its attention to the words, whatever they say. One softmax lets "
        "it choose.",
    ),
    "no root": (
        lambda q, k, v, kw, vw: _mixed(q * q.shape[-1] ** 0.5, k, v, kw, vw),
        "The logits have to be divided by the root of d.",
    ),
    "words only": (
        lambda q, k, v, kw, vw: _look(q, kw, vw),
        "That is cross-attention alone: the image's own tokens have to be seen as well.",
    ),
}


def _judge_mixed(answer: Mixed) -> str | None:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 4, generator=g)
    kw, vw = torch.randn(2, 2, 3, 4, generator=g)
    if why := mistake(answer, SOFTMAX_BUGS, lambda f: f(q, k, v, kw, vw).flatten().tolist()):
        return why
    return close(answer(q, k, v, kw, vw), _mixed(q, k, v, kw, vw), "Five tokens and three words")


EXERCISES = {
    "text-bag": Exercise(
        judge=_judge_best,
        hints=(
            "How many captions of the grammar hold the same words?",
            "Colours may change places, and so may the two objects. A set removes what is equal.",
            "Four if colours and shapes differ, two if one of them is equal, one if both are. The "
            "share is 1 over that.",
        ),
        solution=_best,
        wrong={name: bug for name, (bug, _) in BAG_BUGS.items()},
    ),
    "text-macs": Exercise(
        judge=_judge_extra,
        hints=(
            "A block costs 12 D² for each token in its maps, with an MLP of width 4 D.",
            "Attention costs 2 D for each pair of tokens. How many pairs are there, with the words "
            "and without?",
            "12 M D² + 2 D ((N + M)² - N²).",
        ),
        solution=_extra,
        wrong={name: bug for name, (bug, _) in MACS_BUGS.items()},
    ),
    "text-mask": Exercise(
        judge=_judge_seen,
        hints=(
            "A mask on keys has one row for all who ask.",
            "Put n times True in front of known.",
            "torch.cat([ones, known], dim=1)[:, None, None], all of type bool.",
        ),
        solution=_seen,
        wrong={name: bug for name, (bug, _) in MASK_BUGS.items()},
    ),
    "text-softmax": Exercise(
        judge=_judge_mixed,
        hints=(
            "Image and words stand in one row of keys, and in one row of values.",
            "Join keys with keys and values with values, along the tokens; then attend as usual.",
            "softmax(q @ cat([k, k_words], 1).transpose(1, 2) / sqrt(d)) @ cat([v, v_words], 1).",
        ),
        solution=_mixed,
        wrong={name: bug for name, (bug, _) in SOFTMAX_BUGS.items()},
    ),
}
