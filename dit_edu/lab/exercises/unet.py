"""Exercises of the chapter on the U-Net: what it sees, what a weight costs, what a word tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dit_edu.lab.exercises import Exercise, close, mistake
from dit_edu.unet import UNet, receptive_field

# Derive: how far a stack of convolutions sees.

Reach = Callable[[Sequence[tuple[int, int]]], int]


def _reach(layers: Sequence[tuple[int, int]]) -> int:
    side, jump = 1, 1
    for kernel, stride in layers:
        side += (kernel - 1) * jump
        jump *= stride
    return side


def _reach_late(layers: Sequence[tuple[int, int]]) -> int:
    side, jump = 1, 1
    for kernel, stride in layers:
        jump *= stride
        side += (kernel - 1) * jump
    return side


REACH_BUGS: dict[str, tuple[Reach, str]] = {
    "kernels added": (
        lambda layers: sum(k for k, _ in layers),
        "You add the kernels. Two kernels of 3 overlap: together they see 5, for each layer adds "
        "kernel - 1.",
    ),
    "strides forgotten": (
        lambda layers: 1 + sum(k - 1 for k, _ in layers),
        "Without strides this is right. Behind a stride of 2 neighbours are two input pixels "
        "apart, so a kernel reaches twice as far.",
    ),
    "stride too early": (
        _reach_late,
        "A layer's own stride moves what comes after it. Its kernel still looks at the finer grid.",
    ),
    "radius": (
        lambda layers: (_reach(layers) - 1) // 2,
        "This is how far it sees to one side. The whole side is asked for.",
    ),
}


def _judge_reach(answer: Reach) -> str | None:
    cases = [
        [(3, 1)],
        [(3, 1), (3, 1)],
        [(3, 1), (3, 2), (3, 1), (3, 1)],
        [(7, 2), (3, 2), (5, 1)],
        [(2, 2)] * 3,
    ]
    if why := mistake(answer, REACH_BUGS, lambda f: [float(f(case)) for case in cases]):
        return why
    for case in cases:
        if (got := float(answer(case))) != _reach(case):
            return (
                f"reach({case}) = {got:g}. Keep two numbers while you walk through the layers: the "
                "side that is seen, and how many input pixels lie between two neighbours."
            )
    return None


# Derive: how often a weight is used in one call, which is its MACs.

Uses = Callable[[str, int, int], int]
WHERE = ("fine convolution", "coarse convolution", "token layer", "adaln")


def _uses(where: str, side: int, p: int) -> int:
    return {
        "fine convolution": side**2,
        "coarse convolution": (side // 2) ** 2,
        "token layer": (side // p) ** 2,
        "adaln": 1,
    }[where]


USES_BUGS: dict[str, tuple[Uses, str]] = {
    "one patch": (
        lambda where, side, p: p**2 if where == "token layer" else _uses(where, side, p),
        "p² is the number of pixels in a patch. A layer of the block is used once for each token.",
    ),
    "a side": (
        lambda where, side, p: side // p if where == "token layer" else _uses(where, side, p),
        "side/p is how many tokens stand in a row. Count them all.",
    ),
    "half": (
        lambda where, side, p: (
            side**2 // 2 if where == "coarse convolution" else _uses(where, side, p)
        ),
        "One level down both sides are halved.",
    ),
    "adaln for each token": (
        lambda where, side, p: _uses("token layer" if where == "adaln" else where, side, p),
        "adaLN makes its vectors of the condition, and an image has only one. All tokens share it.",
    ),
    "kernel": (
        lambda where, side, p: _uses(where, side, p) * (9 if "convolution" in where else 1),
        "A kernel of 3 × 3 has nine weights, and each of them is used once for a pixel.",
    ),
}


def _judge_uses(answer: Uses) -> str | None:
    cases = [(where, side, p) for where in WHERE for side, p in ((8, 2), (32, 4), (16, 8))]
    if why := mistake(answer, USES_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if (got := float(answer(*case))) != _uses(*case):
            return (
                f"uses{case} = {got:g}. With how many places of the image is one weight of this "
                "layer multiplied, in one call?"
            )
    return None


# Build: the effective receptive field.

Field = Callable[[nn.Module, Tensor, Tensor, Tensor, tuple[int, int]], Tensor]


def _gradients(model: nn.Module, x: Tensor, t: Tensor, y: Tensor, at: tuple[int, int]) -> Tensor:
    """∂ out[:, 0, row, column] / ∂ x: (B, 1, H, W), of a model with one channel."""
    x = x.clone().requires_grad_()
    out = model(x, t, y)[:, 0, at[0], at[1]]  # (B,)
    return torch.autograd.grad(out.sum(), x)[0]


def _field_of(energy: Callable[[Tensor], Tensor], share: bool = True) -> Field:
    def field(model, x, t, y, at):
        found = energy(_gradients(model, x, t, y, at)[:, 0])  # (B, H, W) -> (H, W)
        return found / found.sum() if share else found

    return field


def _seen_by(model, x, t, y, at):
    """The answers that one input pixel changes, and not the inputs that change one answer."""
    jacobian = torch.stack(
        [
            _gradients(model, x, t, y, (i, j))[:, 0, at[0], at[1]]
            for i in range(x.shape[2])
            for j in range(x.shape[3])
        ]
    )  # (HW, B)
    energy = jacobian.square().mean(1).view(x.shape[2:])
    return energy / energy.sum()


def _of_all(model, x, t, y, at):
    x = x.clone().requires_grad_()
    g = torch.autograd.grad(model(x, t, y).sum(), x)[0]
    energy = g.square().sum(1).mean(0)
    return energy / energy.sum()


FIELD_BUGS: dict[str, tuple[Field, str]] = {
    "all pixels": (
        _of_all,
        "This is the gradient of the sum over *all* pixels of the answer. Take one of them.",
    ),
    "averaged first": (
        _field_of(lambda g: g.mean(0).square()),
        "You average the gradients and square then. Where one image has a positive and another a "
        "negative gradient, they cancel. Square first.",
    ),
    "not squared": (
        _field_of(lambda g: g.abs().mean(0)),
        "These are shares of the absolute gradients. Square them: then the share of a place is "
        "that of the variance that it brings, if all inputs vary alike.",
    ),
    "no shares": (
        _field_of(lambda g: g.square().mean(0), share=False),
        "The squares are right. Divide them by their sum, so that models can be compared.",
    ),
    "the other way": (
        _seen_by,
        "This says which answers the input at that pixel changes. Asked is which inputs change "
        "the answer there.",
    ),
}


def _field_case() -> tuple[nn.Module, Tensor, Tensor, Tensor, tuple[int, int]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNet(4, 1, (4, 8), 1, True, 4, 4, 0.1, 3, False).double().eval()
        x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    return model, x, torch.tensor([10, 400, 900]), torch.tensor([0, 1, 2]), (1, 2)


def _judge_field(answer: Field) -> str | None:
    case = _field_case()
    got = answer(*case)
    if not isinstance(got, Tensor) or got.shape != (4, 4):
        return f"For images of 4 × 4 return a tensor (4, 4), not {getattr(got, 'shape', got)!r}."
    if why := mistake(answer, FIELD_BUGS, lambda f: f(*case).detach()):
        return why
    return close(got.detach(), receptive_field(*case), "The field")


# Predict: what cross-attention can tell, by the number of words.

RowsOf = Mapping[int, int]
PIXELS = 16


def _judge_words(answer: RowsOf) -> str | None:
    found = {int(k): int(v) for k, v in dict(answer).items()}
    if found.keys() != {1, 2, 8}:
        return "Give a dictionary with the keys 1, 2 and 8, the numbers of words."
    if found == {1: 1, 2: 2, 8: 8}:
        return (
            "You think that each pixel picks one word. Softmax mixes: with two words or more each "
            "pixel has weights of its own, so its sum is its own."
        )
    if found[1] == PIXELS:
        return "With one word there is one score for each pixel. What is the softmax of one number?"
    if found[1] != 1:
        return f"{found[1]} for one word? Softmax over a single score is 1, whatever the pixel."
    if found[2] != PIXELS or found[8] != PIXELS:
        return (
            f"One word: right. But with two words a pixel's weights depend on its own query, so "
            f"all {PIXELS} rows differ."
        )
    return None


EXERCISES = {
    "unet-reach": Exercise(
        judge=_judge_reach,
        hints=(
            "One layer of kernel 3 sees 3 pixels, two see 5. What does each add?",
            "Behind a stride of s two neighbours lie s times as many input pixels apart.",
            "side += (kernel - 1) * jump, and after that jump *= stride. Both start at 1.",
        ),
        solution=_reach,
        wrong={name: bug for name, (bug, _) in REACH_BUGS.items()},
    ),
    "unet-uses": Exercise(
        judge=_judge_uses,
        hints=(
            "A weight of a kernel meets every pixel of its resolution once.",
            "A weight of a block's linear layers meets every token once.",
            "side², (side/2)², (side/p)², and 1: there is one condition for an image.",
        ),
        solution=_uses,
        wrong={name: bug for name, (bug, _) in USES_BUGS.items()},
    ),
    "unet-field": Exercise(
        judge=_judge_field,
        hints=(
            "x needs a gradient. Which single numbers of the answer do you differentiate?",
            "Sum the answers at that pixel over the batch: each depends on its own image only.",
            "g = torch.autograd.grad(out[:, 0, row, column].sum(), x)[0], then the mean of g² over "
            "the batch, then shares.",
        ),
        solution=_field_of(lambda g: g.square().mean(0)),
        wrong={name: bug for name, (bug, _) in FIELD_BUGS.items()},
    ),
    "unet-words": Exercise(
        judge=_judge_words,
        hints=(
            "Write the softmax over one score, over two, over eight.",
            "Over one it is 1, for each pixel. What is then the weighted sum of the values?",
            "One row for one word, and all 16 rows different for more.",
        ),
        solution={1: 1, 2: PIXELS, 8: PIXELS},
        wrong={
            "as many as words": {1: 1, 2: 2, 8: 8},
            "always all": {1: PIXELS, 2: PIXELS, 8: PIXELS},
            "always one": {1: 1, 2: 1, 8: 1},
        },
    ),
}
