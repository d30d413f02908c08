"""Exercises of the chapter on layers chosen by the step: cost, dispatch, gradient, balance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what is left of the cost.


def _share(layers: int, k: int, block: float, rest: float) -> float:
    return (k * block + rest) / (layers * block + rest)


Share = Callable[[int, int, float, float], float]
SHARE_BUGS: dict[str, tuple[Share, str]] = {
    "blocks alone": (
        lambda layers, k, block, rest: k / layers,
        "That is the share of the blocks' work. Embedders and last layer run at every step too.",
    ),
    "saved": (
        lambda layers, k, block, rest: 1 - _share(layers, k, block, rest),
        "That is what is saved. Asked for is what is left.",
    ),
    "rest is skipped too": (
        lambda layers, k, block, rest: k * block / (layers * block + rest),
        "You let the rest vanish. It runs, however few blocks do.",
    ),
}


def _judge_share(answer: Share) -> str | None:
    cases = [(6, 4, 100.0, 30.0), (28, 14, 4.1e9, 0.3e9), (5, 5, 1.0, 1.0), (4, 1, 2.0, 8.0)]
    if why := mistake(answer, SHARE_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _share(*case), f"share{case}"):
            return why
    return None


# Build: a block that runs for those who chose it.


Run = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


def _only_chosen(block: Callable[[Tensor], Tensor], x: Tensor, chosen: Tensor) -> Tensor:
    out = x.clone()
    if chosen.any():
        out[chosen] = block(x[chosen])
    return out


def _dense(block: Callable[[Tensor], Tensor], x: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1), block(x), x)


def _all_or_nobody(block: Callable[[Tensor], Tensor], x: Tensor, chosen: Tensor) -> Tensor:
    return block(x) if chosen.any() else x


def _zeros(block: Callable[[Tensor], Tensor], x: Tensor, chosen: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    if chosen.any():
        out[chosen] = block(x[chosen])
    return out


class _Seen:
    """A block that notes how many images it was given."""

    def __init__(self) -> None:
        self.images: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.images.append(len(x))
        return 2 * x + 1  # (b, N, D)


def _judge_gather(answer: Run) -> str | None:
    x = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mask in ([1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]):
        chosen, block, before = torch.tensor(mask).bool(), _Seen(), x.clone()
        got = answer(block, x, chosen)
        if not torch.equal(x, before):
            return "Your function changes x in place; whoever called it still needs it."
        if why := close(got, _only_chosen(_Seen(), x, chosen), f"With chosen = {mask}, the answer"):
            kept = got[~chosen]
            if len(kept) and not torch.equal(kept, x[~chosen]):
                return f"With chosen = {mask}: who did not choose the block must leave as it came."
            return why
        if sum(block.images) > sum(mask):
            return (
                f"Right numbers, nothing saved: {sum(mask)} images chose the block and it worked "
                f"on {sum(block.images)}."
            )
        if not any(mask) and block.images:
            return "Nobody chose the block, and it was called. An empty call costs time as well."
    return None


# Derive: what a router hears.


Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]


def _gradient(logits: Tensor, chosen: Tensor, worth: Tensor) -> Tensor:
    p, heard = logits.softmax(-1), torch.where(chosen, worth, 0)  # (B, L)
    return p * (heard - (p * heard).sum(-1, keepdim=True))


GRADIENT_BUGS: dict[str, tuple[Gradient, str]] = {
    "nobody is silent": (
        lambda logits, chosen, worth: _gradient(logits, torch.ones_like(chosen), worth),
        "A layer that did not run says nothing about its worth: its gate was never multiplied.",
    ),
    "sigmoid": (
        lambda logits, chosen, worth: (
            torch.where(chosen, worth, 0) * logits.sigmoid() * (1 - logits.sigmoid())
        ),
        "That is for sigmoids, each on its own. A softmax ties all logits of a sample together.",
    ),
    "no derivative": (
        lambda logits, chosen, worth: torch.where(chosen, worth, 0),
        "That is the gradient at the gates. From there it has to go back through the softmax.",
    ),
    "diagonal": (
        lambda logits, chosen, worth: (
            torch.where(chosen, worth, 0) * logits.softmax(-1) * (1 - logits.softmax(-1))
        ),
        "You have ∂p_j/∂logit_j alone. The other probabilities depend on logit_j too.",
    ),
}


def _judge_gradient(answer: Gradient) -> str | None:
    g = torch.Generator().manual_seed(0)
    logits, worth = torch.randn(2, 4, 5, generator=g, dtype=torch.float64)  # (B, L) each
    chosen = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 1, 0, 1]])
    case = (logits, chosen.bool(), worth)
    return mistake(answer, GRADIENT_BUGS, lambda f: f(*case)) or close(
        answer(*case), _gradient(*case), "The gradient"
    )


# Build: the loss that keeps all layers in use.


Balance = Callable[[Tensor, Tensor], Tensor]


def _balance(chosen: Tensor, p: Tensor) -> Tensor:
    share = chosen.double().mean(0) / chosen.double().mean(0).sum()  # (L,)
    return chosen.shape[1] * (share * p.mean(0)).sum()


BALANCE_BUGS: dict[str, tuple[Balance, str]] = {
    "image by image": (
        lambda chosen, p: (
            chosen.shape[1] * (chosen / chosen.sum(1, keepdim=True) * p).sum(1).mean()
        ),
        "You multiply within each image, and so forbid a sure choice. Take both means first: what "
        "has to be even is the use over the batch.",
    ),
    "not normed": (
        lambda chosen, p: chosen.shape[1] * (chosen.double().mean(0) * p.mean(0)).sum(),
        "The shares of a batch that chooses k layers add up to k here. Make them add up to 1.",
    ),
    "no factor": (
        lambda chosen, p: _balance(chosen, p) / chosen.shape[1],
        "Even use should give 1 for any number of layers: a factor is missing.",
    ),
    "probabilities alone": (
        lambda chosen, p: p.shape[1] * p.mean(0).square().sum(),
        "This has no word of what ran. One factor is the share of the hard choices.",
    ),
}


def _judge_balance(answer: Balance) -> str | None:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(7, 4, generator=g, dtype=torch.float64).softmax(-1)  # (B, L)
    some = torch.rand(7, 4, generator=g) > 0.4
    some[:, 0] = True
    even = torch.eye(4).bool()
    cases = [(some, p), (even, torch.full((4, 4), 0.25, dtype=torch.float64))]
    if why := mistake(answer, BALANCE_BUGS, lambda f: [f(*case) for case in cases]):
        return why
    for case, what in zip(cases, ("The balance", "The balance of an even use"), strict=True):
        if why := close(answer(*case), _balance(*case), what):
            return why
    return None


EXERCISES = {
    "dynamic-cost": Exercise(
        judge=_judge_share,
        hints=(
            "Two kinds of work: blocks, of which k run, and a rest that always runs.",
            "Left are k · block + rest. Of what?",
            "(k · block + rest) / (layers · block + rest).",
        ),
        solution=_share,
        wrong={name: bug for name, (bug, _) in SHARE_BUGS.items()},
    ),
    "dynamic-gather": Exercise(
        judge=_judge_gather,
        hints=(
            "x[chosen] takes the images out that chose the block.",
            "Start from a copy of x, and put what the block gives back at the same places.",
            "out = x.clone(); if chosen.any(): out[chosen] = block(x[chosen]); return out.",
        ),
        solution=_only_chosen,
        wrong={"dense": _dense, "all or nobody": _all_or_nobody, "zeros": _zeros},
    ),
    "dynamic-gradient": Exercise(
        judge=_judge_gradient,
        hints=(
            "Where a layer ran, its gate hands the gradient on to the softmax; where not, nothing.",
            "For a softmax p: ∂p_i/∂logit_j = p_i (δ_ij - p_j).",
            "With w_i = worth_i where chosen and 0 elsewhere: p_j (w_j - Σ_i p_i w_i).",
        ),
        solution=_gradient,
        wrong={name: bug for name, (bug, _) in GRADIENT_BUGS.items()},
    ),
    "dynamic-balance": Exercise(
        judge=_judge_balance,
        hints=(
            "f_l: of all choices in the batch, the share that fell on layer l. P_l: the mean of p.",
            "Both are means over the batch; multiply them layer by layer, and add up.",
            "L · Σ_l f_l P_l, with f = chosen.mean(0) / chosen.mean(0).sum().",
        ),
        solution=_balance,
        wrong={name: bug for name, (bug, _) in BALANCE_BUGS.items()},
    ),
}
