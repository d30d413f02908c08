"""Exercises of the chapter on depth: the price of looking, a budget, depths drawn, an exit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what early exit costs.


def _left(layers: int, ran: float, block: float, head: float, rest: float) -> float:
    return (ran * block + (ran - 1) * head + head + rest) / (layers * block + head + rest)


Left = Callable[[int, float, float, float, float], float]
LEFT_BUGS: dict[str, tuple[Left, str]] = {
    "looking is free": (
        lambda layers, ran, block, head, rest: (
            (ran * block + head + rest) / (layers * block + head + rest)
        ),
        "You count one look, the last. An image asks the final layer after every block it ran.",
    ),
    "the plain model looks too": (
        lambda layers, ran, block, head, rest: (
            (ran * (block + head) + rest) / (layers * (block + head) + rest)
        ),
        "A plain model asks its final layer once, at the end.",
    ),
    "blocks alone": (
        lambda layers, ran, block, head, rest: ran / layers,
        "That is the share of the blocks' work. Looks and rest cost as well.",
    ),
}


def _judge_left(answer: Left) -> str | None:
    cases = [(6, 3.0, 48.0, 1.0, 3.0), (6, 6.0, 48.0, 1.0, 3.0), (28, 9.5, 4.1, 0.1, 0.3)]
    if why := mistake(answer, LEFT_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _left(*case), f"left{case}"):
            return why
    return None


# Build: how many blocks a budget pays for.


def _kept(macs: Sequence[int], order: Sequence[int], floor: int, budget: float) -> int:
    spent = list(accumulate(macs[block] for block in order))
    least, most = spent[floor - 1], spent[-1]
    return sum(s - least <= budget * (most - least) for s in spent)


Kept = Callable[[Sequence[int], Sequence[int], int, float], int]
KEPT_BUGS: dict[str, tuple[Kept, str]] = {
    "blocks, not MACs": (
        lambda macs, order, floor, budget: floor + int(budget * (len(macs) - floor)),
        "You count blocks. They do not all cost the same, and the budget is one of MACs.",
    ),
    "no order": (
        lambda macs, order, floor, budget: _kept(macs, range(len(macs)), floor, budget),
        "You add up from front to back. What comes first is said by the order.",
    ),
    "no floor": (
        lambda macs, order, floor, budget: max(floor, _kept_from_zero(macs, order, budget)),
        "The budget is a share of what lies above the floor: F + λ (M - F), not λ M.",
    ),
    "rounded up": (
        lambda macs, order, floor, budget: min(len(macs), _kept(macs, order, floor, budget) + 1),
        "One block too many: the budget would be exceeded.",
    ),
}


def _kept_from_zero(macs: Sequence[int], order: Sequence[int], budget: float) -> int:
    spent = list(accumulate(macs[block] for block in order))
    return sum(s <= budget * spent[-1] for s in spent)


def _judge_kept(answer: Kept) -> str | None:
    cases = [
        ([10] * 6, range(6), 1, 0.5),
        ([6, 6, 8, 12], [3, 0, 2, 1], 1, 0.4),
        ([6, 6, 8, 12], [0, 1, 2, 3], 2, 0.4),
        ([6, 6, 8, 12], [0, 1, 3, 2], 1, 0.25),
        ([6, 6, 8, 12], [2, 3, 1, 0], 2, 0.0),
        ([6, 6, 8, 12], [2, 3, 1, 0], 2, 1.0),
        ([12, 8, 6, 6], [1, 0, 2, 3], 1, 0.7),
    ]
    if why := mistake(answer, KEPT_BUGS, lambda f: [int(f(*case)) for case in cases]):
        return why
    for macs, order, floor, budget in cases:
        found, want = answer(macs, order, floor, budget), _kept(macs, order, floor, budget)
        if found != want:
            return (
                f"kept({macs}, {list(order)}, {floor}, {budget}) gives {found}; the budget pays "
                f"for {want}."
            )
    return None


# Derive: how often a block is trained.


def _often(layers: int, floor: int) -> list[float]:
    return [min(1.0, (layers - place) / (layers - floor + 1)) for place in range(layers)]


Often = Callable[[int, int], Sequence[float]]
OFTEN_BUGS: dict[str, tuple[Often, str]] = {
    "all alike": (
        lambda layers, floor: [(layers + floor) / 2 / layers] * layers,
        "That is the mean over the blocks. The first of the order always runs, the last seldom.",
    ),
    "none is full": (
        lambda layers, floor: [
            min(1.0, max(0.0, (layers - 1 - place) / (layers - floor))) for place in range(layers)
        ],
        "You draw from floor to L - 1. The full depth is drawn too, or the last block never runs.",
    ),
    "the depth, not what it runs": (
        lambda layers, floor: [
            1 / (layers - floor + 1) if place >= floor - 1 else 0.0 for place in range(layers)
        ],
        "That is how often a depth is drawn. A block runs at every depth that reaches it.",
    ),
}


def _judge_often(answer: Often) -> str | None:
    cases = [(6, 1), (6, 3), (12, 2)]
    if why := mistake(answer, OFTEN_BUGS, lambda f: [list(f(*case)) for case in cases]):
        return why
    for case in cases:
        found, want = (torch.tensor(list(f(*case))).double() for f in (answer, _often))
        if why := close(found, want, f"often{case}"):
            return why
    return None


# Build: who leaves where.


def _depths(said: Tensor, threshold: float) -> Tensor:
    moved = said.diff(dim=0).square().flatten(2).mean(2)  # (K - 1, B)
    return 2 + (moved[:-1] >= threshold).cumprod(0).sum(0)  # (B,)


def _last_still(said: Tensor, threshold: float) -> Tensor:
    moved = said.diff(dim=0).square().flatten(2).mean(2)
    return 2 + (moved[:-1] >= threshold).sum(0)


def _together(said: Tensor, threshold: float) -> Tensor:
    moved = said.diff(dim=0).square().flatten(1).mean(1)  # (K - 1,)
    depth = 2 + (moved[:-1] >= threshold).long().cumprod(0).sum()
    return depth.expand(said.shape[1])


def _from_the_end(said: Tensor, threshold: float) -> Tensor:
    off = (said - said[-1]).square().flatten(2).mean(2)  # (K, B)
    return 1 + (off[:-1] >= threshold).long().cumprod(0).sum(0)


def _before(said: Tensor, threshold: float) -> Tensor:
    return _depths(said, threshold) - 1


Depths = Callable[[Tensor, float], Tensor]
DEPTHS_BUGS: dict[str, tuple[Depths, str]] = {
    "quiet anywhere": (
        _last_still,
        "You count all blocks that moved the answer. Who has left does not come back: only those "
        "before the first quiet block count.",
    ),
    "all together": (
        _together,
        "One decision for the whole batch. Take the mean over each image's numbers alone.",
    ),
    "knows the end": (
        _from_the_end,
        "You compare with the last answer, which is not there when the decision falls.",
    ),
    "one too few": (
        _before,
        "The block that hardly moved the answer did run: it has to be counted.",
    ),
}


def _judge_depths(answer: Depths) -> str | None:
    g = torch.Generator().manual_seed(0)
    step = torch.tensor([1.0, 0.6, 0.2, 0.5, 0.1])[:, None] * (0.2 + torch.rand(5, 8, generator=g))
    noise = torch.randn(5, 8, 1, 4, 4, generator=g)
    start = torch.randn(1, 8, 1, 4, 4, generator=g)
    said = torch.cat([start, start + (step[..., None, None, None] * noise).cumsum(0)])
    cases = [(said, threshold) for threshold in (0.02, 0.1, 0.0, 1e9)]
    if why := mistake(answer, DEPTHS_BUGS, lambda f: [f(*case).double() for case in cases]):
        return why
    for case in cases:
        what = f"With a threshold of {case[1]:g}, the number of blocks"
        if why := close(answer(*case).double(), _depths(*case).double(), what):
            return why
    return None


EXERCISES = {
    "depth-left": Exercise(
        judge=_judge_left,
        hints=(
            "An image that runs r blocks asks after each but the last, and gets its answer once.",
            "So r blocks, r looks, and the rest. And the plain model?",
            "(ran · block + ran · head + rest) / (layers · block + head + rest).",
        ),
        solution=_left,
        wrong={name: bug for name, (bug, _) in LEFT_BUGS.items()},
    ),
    "depth-kept": Exercise(
        judge=_judge_kept,
        hints=(
            "What has been spent after 1, 2, … blocks of the order? itertools.accumulate adds up.",
            "F is what the first `floor` of them cost, M what all do.",
            "Count the partial sums s with s - F <= budget · (M - F).",
        ),
        solution=_kept,
        wrong={name: bug for name, (bug, _) in KEPT_BUGS.items()},
    ),
    "depth-often": Exercise(
        judge=_judge_often,
        hints=(
            "There are L - floor + 1 depths, all drawn alike often.",
            "The block at place j (from 0) runs if the depth is above j. How many depths are?",
            "min(1, (L - j) / (L - floor + 1)).",
        ),
        solution=_often,
        wrong={name: bug for name, (bug, _) in OFTEN_BUGS.items()},
    ),
    "depth-exit": Exercise(
        judge=_judge_depths,
        hints=(
            "said.diff(dim=0) is how each block after the first moved the answer.",
            "(moved >= threshold).cumprod(0) stays 1 until the first quiet block. The last block's "
            "own move decides nothing: there is no block left to skip.",
            "2 + (moved[:-1] >= threshold).cumprod(0).sum(0), with moved of shape (K - 1, B).",
        ),
        solution=_depths,
        wrong={name: bug for name, (bug, _) in DEPTHS_BUGS.items()},
    ),
}
