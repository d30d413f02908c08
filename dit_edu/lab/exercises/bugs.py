"""Exercises of the page of bugs: twelve repairs, a crowd, a lost spread, and a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.lab.bugs import broken, failure, right, wrong
from dit_edu.lab.exercises import Exercise, close, mistake
from dit_edu.positions import sincos_pos_embed

Function = Callable[..., Any]
#: By name, a function that is wrong, and what to say to whoever wrote it.
Wrongs = Mapping[str, tuple[Function, str]]


def _repair(
    name: str, why: str, others: Wrongs, ask: Callable[[Function], Any], *hints: str
) -> Exercise:
    """The repair of one bug.

    Args:
        name: of the bug.
        why: what is wrong with the broken function.
        others: repairs that do not repair it.
        ask: puts a function to the judge's cases; what it returns tells all of them apart.
        hints: three.
    """
    bugs = {"as it was": (wrong(name), why), **others}

    def judge(answer: Function) -> str | None:
        if said := mistake(answer, bugs, ask):
            return said
        if fails := failure(name, answer):
            return f"The test fails: {fails}."
        for i, (got, want) in enumerate(zip(ask(answer), ask(right(name)), strict=True), 1):
            if off := close(got, want, f"Number {i} of what we asked your function"):
                return off
        return None

    wrongs = {bug: function for bug, (function, _) in bugs.items()}
    return Exercise(judge=judge, hints=hints, solution=right(name), wrong=wrongs)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ---------------------------------------------------------------------- what each judge asks


def _ask_gates(start_values: Callable[[AdaLNZeroBlock], None]) -> list[bool]:
    """Identity? Xavier? Can the gates, and what they open, learn?"""
    block = AdaLNZeroBlock(16, 2).double()
    for parameter in block.parameters():
        nn.init.ones_(parameter)
    start_values(block)
    x, c = _random(3, 4, 16), _random(3, 16)
    out = block(x, c)
    weight = block.attn.qkv.weight
    drawn = 0 < float(weight.detach().abs().max()) <= math.sqrt(6 / sum(weight.shape)) + 1e-6
    gate = block.adaLN_modulation[-1].weight
    (slope,) = torch.autograd.grad(out.square().sum(), gate)
    return [torch.equal(out, x), drawn, bool(slope.any())]


def _all_zero(block: AdaLNZeroBlock) -> None:
    for parameter in block.parameters():
        nn.init.zeros_(parameter)


def _zero_twice(block: AdaLNZeroBlock) -> None:
    right("gates")(block)
    nn.init.zeros_(block.attn.proj.weight)
    nn.init.zeros_(block.mlp.fc2.weight)


def _ask_guided(guided: Function) -> list[Tensor]:
    cond, uncond = _random(2, 3, 4, 2, 2)
    return [guided(cond, uncond, scale) for scale in (0.0, 1.0, 2.5)]


def _ask_null(null_labels: Function) -> list[Tensor]:
    cases = [(10, [3, 9]), (1000, [0]), (2, [1, 1, 0])]
    return [null_labels(classes, torch.tensor(y)) for classes, y in cases]


def _ask_weights(weights: Function) -> list[Tensor]:
    logits = 2 * _random(2, 4, 4)
    return [weights(logits, torch.ones(2, 4, 4, dtype=torch.bool).tril())]


def _ask_gate(gates: Function) -> list[Any]:
    """Values; whether a gradient comes back; and which, if each gate has a worth."""
    logits = torch.tensor([[-2.0, 0.5], [3.0, -0.1]], dtype=torch.float64, requires_grad=True)
    g = gates(logits)
    if not g.requires_grad:
        return [g, False, torch.zeros_like(logits)]
    worth = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    return [g.detach(), True, torch.autograd.grad((g * worth).sum(), logits)[0]]


def _ask_loss(total_loss: Function) -> list[Tensor]:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.45, 0.45]], dtype=torch.float64)
    return [total_loss(torch.tensor(task), p, w) for task, w in ((1.0, 0.1), (0.0, 2.0))]


def _scores() -> Tensor:
    """Four images of eight tokens, of which some score higher than others."""
    return _random(4, 8) + torch.tensor([0.0, 0.5, 1.0, 0.2], dtype=torch.float64)[:, None]


def _ask_kept(kept: Function) -> list[Tensor]:
    return [kept(_scores(), k) for k in (3, 1)]


def _ask_run(run: Function) -> list[Any]:
    """The answer, and how many layers were computed."""
    calls = []
    layers = [lambda x, s=s: (calls.append(s), s * x.sin())[1] for s in (1.0, 2.0, 3.0, 4.0)]
    return [run(layers, (True, False, False, True), _random(3)), len(calls)]


def _stopping(layers: Sequence[Function], on: Sequence[bool], x: Tensor) -> Tensor:
    for layer, gate in zip(layers, on, strict=True):
        if not gate:
            break
        x = x + layer(x)
    return x


def _ask_waves(waves: Function) -> list[Tensor]:
    return [waves(torch.tensor([0.0, 1.0, 17.0, 999.0], dtype=torch.float64), 16)]


def _half_exponent(t: Tensor, dim: int) -> Tensor:
    angles = t[:, None] * 10000.0 ** (-torch.arange(dim // 2) / dim)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _added(t: Tensor, dim: int) -> Tensor:
    cosines, sines = right("waves")(t, dim).chunk(2, dim=1)
    return (cosines + sines).repeat(1, 2)


def _ask_labels(drop_labels: Function) -> list[float]:
    """Does it run here, and on another device? How many are dropped, and what of the others?"""
    y = torch.arange(10).repeat(4000)
    runs = []
    for device in ("cpu", "meta"):
        try:
            runs.append(float(drop_labels(y.to(device), 0.1, 10).device.type == device))
        except (AssertionError, RuntimeError):
            runs.append(0.0)
    if not runs[0]:
        return [*runs, 0.0, 0.0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        got = drop_labels(y, 0.1, 10)
    kept = got != 10
    return [*runs, round(float((~kept).double().mean()), 1), float((got == y)[kept].all())]


def _on_cpu(y: Tensor, prob: float, null: int) -> Tensor:
    return torch.where(torch.rand(y.shape[0], device="cpu") < prob, null, y)


def _kept_instead(y: Tensor, prob: float, null: int) -> Tensor:
    return torch.where(torch.rand(y.shape[0], device=y.device) < prob, y, null)


def _ask_step(step_back: Function) -> list[Tensor]:
    mean, noise = _random(2, 5)
    return [step_back(mean, torch.full_like(mean, v), noise) for v in (0.04, 2.0)]


def _ask_grid(positions: Function) -> list[Tensor]:
    return [positions(16, *grid) for grid in ((2, 8), (3, 3), (3, 12))]


# ---------------------------------------------------------------------- three that are no repairs


def _crowd(k: int, n: int, b: int) -> int:
    return max(0, k * b - n * (b - 1))


CROWD_BUGS: Wrongs = {
    "k, whatever": (
        lambda k, n, b: k,
        "That is what it should keep. The broken function has one list of places for all.",
    ),
    "shared fairly": (
        lambda k, n, b: k // b,
        "Places are not shared out evenly: whoever scores higher comes first.",
    ),
    "below zero": (
        lambda k, n, b: k * b - n * (b - 1),
        "Nobody keeps fewer than no tokens: the others cannot take more places than there are.",
    ),
}
CROWD_CASES = [(12, 16, 1), (12, 16, 2), (12, 16, 3), (12, 16, 5), (8, 16, 2), (15, 16, 8)]


def _judge_crowd(answer: Callable[[int, int, int], int]) -> str | None:
    if why := mistake(answer, CROWD_BUGS, lambda f: [f(*case) for case in CROWD_CASES]):
        return why
    said = (close(answer(*c), _crowd(*c), f"crowd{c}") for c in CROWD_CASES)
    return next((why for why in said if why), None)


def _left(total: float, steps: int) -> float:
    return total / steps


LEFT_BUGS: Wrongs = {
    "steps forgotten": (
        lambda total, steps: total,
        "That is one step. With many, each has a smaller variance, and squaring takes more of it.",
    ),
    "the variance itself": (
        lambda total, steps: total**2 / steps,
        "That is the variance that comes out. Asked is its share of the one that was meant.",
    ),
    "of the deviation": (
        lambda total, steps: math.sqrt(total / steps),
        "That is the share of the standard deviation. Asked is that of the variance.",
    ),
}
LEFT_CASES = [(0.5, 10), (1.0, 100), (0.25, 4)]


def _judge_left(answer: Callable[[float, int], float]) -> str | None:
    if why := mistake(answer, LEFT_BUGS, lambda f: [float(f(*case)) for case in LEFT_CASES]):
        return why
    said = (close(float(answer(*c)), _left(*c), f"left{c}") for c in LEFT_CASES)
    return next((why for why in said if why), None)


def _by_sorting(scores: Tensor, k: int) -> Tensor:
    return scores.argsort(dim=1, descending=True).argsort(dim=1) < k


def _of_neighbour(scores: Tensor, k: int) -> Tensor:
    """k tokens for each image, but by the scores of the image before it, too."""
    return right("batch")(scores + scores.roll(1, dims=0), k)


def _by_mean(scores: Tensor, k: int) -> Tensor:
    return right("batch")(scores - 0.9 * scores.mean(0), k)


#: Choosers of tokens, and whether an image's neighbours have a say.
CHOOSERS: dict[str, tuple[Function, bool]] = {
    "image by image": (right("batch"), False),
    "image by image, by sorting": (_by_sorting, False),
    "over the whole batch": (broken.kept, True),
    "by a mean over the batch": (_by_mean, True),
    "with the image before": (_of_neighbour, True),
}


def _finds(kept: Function) -> bool:
    scores = _scores()
    alone = torch.cat([kept(row[None], 3) for row in scores])
    return not torch.equal(kept(scores, 3), alone)


def _counting(kept: Function) -> bool:
    return bool((kept(_scores(), 3).sum(1) != 3).any())


def _turning(kept: Function) -> bool:
    scores = _scores()
    return not torch.equal(kept(scores.flip(0), 3), kept(scores, 3).flip(0))


def _twice(kept: Function) -> bool:
    return not torch.equal(kept(_scores(), 3), kept(_scores(), 3))


def _judge_finds(answer: Callable[[Function], bool]) -> str | None:
    for name, (kept, contaminated) in CHOOSERS.items():
        if bool(answer(kept)) != contaminated:
            verb = "misses one that chooses" if contaminated else "accuses one that chooses"
            return f"Your test {verb} {name}."
    return None


EXERCISES = {
    "bugs-gates": _repair(
        "gates",
        "The block changes its tokens: the loop visits the layer of the gates too, and gives it "
        "values again after it had been closed.",
        {
            "all zero": (
                _all_zero,
                "Now attention and MLP are zero too. Neither a gate nor what is behind it has a "
                "gradient then, ever.",
            ),
            "zeros twice": (
                _zero_twice,
                "Gates and the last matrix of each branch are zero. Each waits for the other: the "
                "slope of a product is zero where both factors are.",
            ),
            "no Xavier": (
                lambda block: block.zero_init(),
                "The gates are closed, but the other layers have been given no values.",
            ),
        },
        _ask_gates,
        "Print the largest weight of block.adaLN_modulation before and after the loop.",
        "The loop visits every linear layer of the block, that of the gates too.",
        "Run the loop first, and block.zero_init() after it.",
    ),
    "bugs-channels": _repair(
        "channels",
        "The fourth channel is not guided. A latent's channels are no colors and an extra.",
        {
            "from the label": (
                lambda cond, uncond, scale: cond + scale * (cond - uncond),
                "At scale 1 there must be no guidance. Yours starts at the labelled answer, so "
                "your 1 is our 2.",
            ),
            "the other way": (
                lambda cond, uncond, scale: uncond + scale * (uncond - cond),
                "You walk away from the label.",
            ),
        },
        _ask_guided,
        "How many channels has a latent, and how many does the code touch?",
        "Nothing in the rule of guidance tells channels apart.",
        "uncond + scale * (cond - uncond), for all of them.",
    ),
    "bugs-null": _repair(
        "null",
        "1000 is the null class of ImageNet. A model of ten classes has no row 1000.",
        {
            "the last class": (
                lambda num_classes, y: torch.full_like(y, num_classes - 1),
                "That is the last real class: guidance pushes away from it.",
            ),
            "zero": (
                lambda num_classes, y: torch.zeros_like(y),
                "0 is a class. The null class has a row of its own, behind all others.",
            ),
        },
        _ask_null,
        "For which data set is the number right?",
        "Classes are 0 … num_classes - 1. Which row comes next?",
        "torch.full_like(y, num_classes).",
    ),
    "bugs-mask": _repair(
        "mask",
        "A logit of 0 is not nothing: exp(0) = 1. What is masked gets as much weight as anything "
        "whose logit is 0, and more than what has a negative one.",
        {
            "after the softmax": (
                lambda logits, seen: logits.softmax(-1) * seen,
                "The rows no longer add up to 1: what is masked took its share before.",
            ),
            "one below": (
                lambda logits, seen: (logits - (~seen).to(logits)).softmax(-1),
                "Minus 1 makes a weight smaller by a factor of e. It has to become 0.",
            ),
        },
        _ask_weights,
        "What does a softmax make of a logit of 0?",
        "Which logit has an exponential of 0?",
        "logits.masked_fill(~seen, -math.inf), and then the softmax.",
    ),
    "bugs-router": _repair(
        "router",
        "No gradient reaches the logits. A comparison has none.",
        {
            "rounded": (
                lambda logits: logits.sigmoid().round(),
                "A gradient comes back, and it is 0: round() is flat wherever it is smooth.",
            ),
            "soft": (
                lambda logits: logits.sigmoid(),
                "The gates are not hard. In the pass forward they have to be 0 or 1.",
            ),
            "the logit's own slope": (
                lambda logits: (logits > 0).to(logits) + (logits - logits.detach()),
                "You lend the gate the slope of the logit itself, which is 1 everywhere. Lend it "
                "that of the sigmoid: then a decision that is sure stays sure.",
            ),
        },
        _ask_gate,
        "Ask autograd: what is the derivative of a comparison?",
        "Take the value of the hard gate and the gradient of the soft one.",
        "hard + (soft - soft.detach()).",
    ),
    "bugs-entropy": _repair(
        "entropy",
        "You subtract the entropy from what is minimised. Descent then makes it *large*, and the "
        "router hesitates.",
        {
            "of the mean": (
                lambda task, p, weight: task - weight * (p.mean(0) * p.mean(0).log()).sum(),
                "That is the entropy of the average load. If it is small, one expert has it all.",
            ),
            "the sum": (
                lambda task, p, weight: task - weight * (p * p.log()).sum(),
                "A sum over the batch grows with the batch. Take the mean over its items.",
            ),
        },
        _ask_loss,
        "Descent makes the loss small. What does it make of the entropy?",
        "Sharp decisions have little entropy, so entropy has to cost something.",
        "task + weight * entropy.",
    ),
    "bugs-batch": _repair(
        "batch",
        "You rank the tokens of all images together. An image then keeps fewer because of whom it "
        "shares the batch with.",
        {
            "a common threshold": (
                lambda scores, k: scores >= scores.topk(k, dim=1).values[:, -1].mean(),
                "The threshold is a mean over the batch: another batch, another choice.",
            ),
            "the smallest": (
                lambda scores, k: right("batch")(-scores, k),
                "You keep the tokens with the smallest scores.",
            ),
        },
        _ask_kept,
        "Try a batch of one image, and the same image among others.",
        "topk along the tokens of an image, not along all.",
        "scores.topk(k, dim=1).indices, and scatter along dim 1.",
    ),
    "bugs-paper": _repair(
        "paper",
        "All layers were computed. A product with 0 saves nothing.",
        {
            "stop at the first": (
                _stopping,
                "You stop at the first layer that is off. Those behind it may be on.",
            ),
            "all on": (
                lambda layers, on, x: right("paper")(layers, [True] * len(on), x),
                "You run all layers, whatever was chosen.",
            ),
        },
        _ask_run,
        "Put a print into each layer, and count.",
        "A layer is computed as soon as it is called, whatever its result is multiplied by.",
        "if gate: x = x + layer(x).",
    ),
    "bugs-waves": _repair(
        "waves",
        "Frequencies grow from 1 to nearly 10000. Between t and t + 1 such a wave turns a thousand "
        "times: on whole steps it is noise.",
        {
            "factor 2": (
                _half_exponent,
                "A factor 2 is missing in the exponent. The slowest wave turns once in 628 steps "
                "or so, and the far steps look like near ones to it.",
            ),
            "added": (
                _added,
                "Cosine and sine are added. Their sum is one wave, and takes the same value at two "
                "steps of each turn. They have to stand side by side.",
            ),
        },
        _ask_waves,
        "Print the largest frequency. How far does that wave turn from one step to the next?",
        "Frequencies should fall from 1 to nearly 1/10000.",
        "10000.0 ** (-2 * k / dim).",
    ),
    "bugs-dropout": _repair(
        "dropout",
        "It runs on one vendor's devices alone: the draw is moved to CUDA, wherever the labels "
        "are.",
        {
            "always on the CPU": (
                _on_cpu,
                "It runs on the CPU alone: the draw stays there, wherever the labels are.",
            ),
            "kept instead": (
                _kept_instead,
                "You keep as many as you should drop.",
            ),
        },
        _ask_labels,
        "On whose device is the random number drawn?",
        "A tensor knows where it is.",
        "torch.rand(y.shape[0], device=y.device).",
    ),
    "bugs-variance": _repair(
        "variance",
        "Your draws have the variance squared: where it is 0.01, a tenth of the noise is left.",
        {
            "the mean too": (
                lambda mean, variance, noise: variance.sqrt() * (mean + noise),
                "The mean is not to be scaled.",
            ),
            "as a logarithm": (
                lambda mean, variance, noise: mean + (0.5 * variance).exp() * noise,
                "exp(v / 2) is right where v is the *logarithm* of the variance.",
            ),
        },
        _ask_step,
        "Draw many times and measure the variance.",
        "Var(a ε) = a².",
        "mean + variance.sqrt() * noise.",
    ),
    "bugs-grid": _repair(
        "grid",
        "You take the grid for a square with as many tokens. Where the number is a square, "
        "nothing crashes, and the token below is taken for one far away.",
        {
            "turned": (
                lambda dim, height, width: sincos_pos_embed(dim, (width, height)),
                "Rows and columns have changed places. The number of positions is right, which "
                "hides it.",
            ),
            "one row": (
                lambda dim, height, width: sincos_pos_embed(dim, (1, height * width)),
                "You take the grid for one long row. The token below is then a whole row away.",
            ),
        },
        _ask_grid,
        "Try two rows of eight tokens. Which token stands below the first?",
        "A square root cannot know how wide a grid is.",
        "sincos_pos_embed(dim, (height, width)).",
    ),
    "bugs-crowd": Exercise(
        judge=_judge_crowd,
        hints=(
            "There are k times b places in all. Who comes first?",
            "The b - 1 others have n (b - 1) tokens, and all of them score higher.",
            "max(0, k b - n (b - 1)).",
        ),
        solution=lambda: _crowd,
        wrong={name: bug for name, (bug, _) in CROWD_BUGS.items()},
    ),
    "bugs-left": Exercise(
        judge=_judge_left,
        hints=(
            "Each of the steps should add the variance total / steps. What does it add?",
            "It adds the square of that. Independent draws add their variances.",
            "steps · (total / steps)² / total = total / steps.",
        ),
        solution=_left,
        wrong={name: bug for name, (bug, _) in LEFT_BUGS.items()},
    ),
    "bugs-finds": Exercise(
        judge=_judge_finds,
        hints=(
            "What must not depend on the other images of the batch?",
            "Ask for each image alone, as a batch of one, and for all together.",
            "not torch.equal(kept(scores, 3), torch.cat([kept(row[None], 3) for row in scores])).",
        ),
        solution=lambda: _finds,
        wrong={
            "counts tokens": lambda: _counting,
            "turns the batch round": lambda: _turning,
            "asks twice": lambda: _twice,
        },
    ),
}
