"""The figure of the page of bugs: a picture of what each bug does, beside what was meant.

Each picture is made by the broken and by the repaired function of :mod:`dit_edu.lab.bugs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate, pixel_shuffle, pixel_unshuffle

from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.lab import zoo
from dit_edu.lab.bugs import right, wrong
from dit_edu.lab.charts import Table
from dit_edu.lab.data import digits
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.widgets import Figure
from dit_edu.patchify import patchify, unpatchify
from dit_edu.sampling import ddim_sample

SIDE = 48  # pixels of a picture
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Shown:
    """What the figure shows of one bug.

    Args:
        title: of the bug.
        turned: what the slider turns, and its six values.
        measured: what the number beside the pictures is.
        pictures: (2, 6, SIDE, SIDE), repaired and broken, in [-1, 1].
        numbers: (2, 6), likewise.
    """

    title: str
    turned: tuple[str, Sequence[float]]
    measured: str
    pictures: Tensor
    numbers: Sequence[Sequence[float]]


def _shown(
    title: str,
    turned: tuple[str, Sequence[float]],
    measured: str,
    draw: Callable[[Function, float], tuple[Tensor, float]],
    name: str,
) -> Shown:
    """``draw(function, value)`` gives a picture (H, W) in [-1, 1] and a number."""
    both = [[draw(function(name), value) for value in turned[1]] for function in (right, wrong)]
    pictures = torch.stack([torch.stack([_enlarged(p) for p, _ in row]) for row in both])
    return Shown(title, turned, measured, pictures, [[float(n) for _, n in row] for row in both])


def _enlarged(picture: Tensor) -> Tensor:
    """A picture (h, w), each of its numbers a block of pixels, in the middle of SIDE × SIDE."""
    times = SIDE // max(picture.shape)
    block = picture.clamp(-1, 1).repeat_interleave(times, 0).repeat_interleave(times, 1)
    canvas = torch.full((SIDE, SIDE), -1.0)
    top, left = ((SIDE - n) // 2 for n in block.shape)
    canvas[top : top + block.shape[0], left : left + block.shape[1]] = block
    return canvas


def _nine(images: Tensor) -> Tensor:
    """Nine images (9, 1, 8, 8) as one of 3 × 3: (24, 24)."""
    rows = images[:, 0].reshape(3, 3, 8, 8).transpose(1, 2)  # (3, 8, 3, 8)
    return rows.reshape(24, 24)


# ------------------------------------------------------------------ pictures without a model


def gates() -> Shown:
    """A digit goes through a stack of fresh blocks."""
    digit = interpolate(digits()[0][3:4], size=16, mode="bilinear")  # (1, 1, 16, 16)
    tokens = patchify(digit, 4)  # (1, 16, 16)

    def draw(start_values: Callable[[AdaLNZeroBlock], None], count: float) -> tuple[Tensor, float]:
        torch.manual_seed(1)
        condition = 2 * torch.randn(1, 16)
        x = tokens
        with torch.no_grad():
            for _ in range(int(count)):
                block = AdaLNZeroBlock(16, 2)
                start_values(block)
                x = block(x, condition)
        changed = float((x - tokens).norm() / tokens.norm())
        return unpatchify(x, 4, (4, 4))[0, 0], changed

    turned = "fresh blocks in a row", (0, 2, 4, 8, 16, 28)
    return _shown("gates open again", turned, "change of the tokens", draw, "gates")


def mask() -> Shown:
    """The weights of attention with a window of three tokens, among ever more of them."""
    queries, keys = torch.randn(2, 48, 8, generator=torch.Generator().manual_seed(0))

    def draw(weights: Function, tokens: float) -> tuple[Tensor, float]:
        n = int(tokens)
        place = torch.arange(n)
        seen = (place[:, None] - place).abs() <= 1
        w = weights(queries[:n] @ keys[:n].T / 8**0.5, seen)  # (n, n)
        return 2 * w.sqrt() - 1, w[~seen].sum() / n

    turned = "tokens, of which three are seen", (4, 6, 12, 16, 24, 48)
    return _shown("multiplied logits", turned, "weight outside the window", draw, "mask")


def router() -> Shown:
    """Sixty-four switches; each pays where a digit has ink, and costs elsewhere."""
    worth = digits()[0][3, 0].flatten()  # (64,)
    fresh = torch.randn(64, generator=torch.Generator().manual_seed(0))

    def draw(gates: Function, updates: float) -> tuple[Tensor, float]:
        logits = fresh.clone()
        for _ in range(int(updates)):
            leaf = logits.clone().requires_grad_()
            gain = (gates(leaf) * worth).sum()
            slope = torch.autograd.grad(gain, leaf)[0] if gain.requires_grad else 0
            logits = logits + 0.5 * slope
        on = (logits > 0).float()
        return 2 * on.view(8, 8) - 1, (on * worth).sum() / worth.clamp(min=0).sum()

    turned = "updates of the router", (0, 2, 5, 10, 20, 50)
    return _shown("a deaf router", turned, "share of the gain", draw, "router")


def entropy() -> Shown:
    """Twelve decisions among twelve; descent on the term alone."""
    fresh = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))

    def draw(total_loss: Function, updates: float) -> tuple[Tensor, float]:
        logits = fresh.clone()
        for _ in range(int(updates)):
            leaf = logits.clone().requires_grad_()
            loss = total_loss(torch.zeros(()), leaf.softmax(-1), 12.0)
            logits = logits - torch.autograd.grad(loss, leaf)[0]
        p = logits.softmax(-1)
        return 2 * p.sqrt() - 1, -(p * p.clamp(min=1e-30).log()).sum(-1).mean()

    turned = "steps of descent", (0, 2, 5, 10, 20, 50)
    return _shown("the entropy's sign", turned, "entropy in nats", draw, "entropy")


def batch() -> Shown:
    """Which patches of a faint digit are kept, in a batch with ever more ink."""
    images = digits()[0]
    ink = images.mean(dim=(1, 2, 3))
    mine, others = images[3:4], images[ink.topk(5).indices]
    mine = 0.6 * mine - 0.4  # a faint one
    k = 6

    def draw(kept: Function, neighbours: float) -> tuple[Tensor, float]:
        together = torch.cat([mine, others[: int(neighbours)]])
        scores = patchify(together, 2).mean(-1)  # (B, 16): how much ink
        stays = kept(scores, k)[0]  # (16,)
        seen = stays.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
        return torch.where(seen, mine[0, 0], torch.tensor(-0.5)), stays.sum()

    turned = "neighbours in the batch", (0, 1, 2, 3, 4, 5)
    return _shown("talk in the batch", turned, "of 16 patches kept", draw, "batch")


def paper() -> Shown:
    """Which of twelve layers are computed when ever fewer are on."""

    def draw(run: Function, off: float) -> tuple[Tensor, float]:
        calls = torch.zeros(12)
        count = lambda i, x: (calls.index_fill_(0, torch.tensor(i), 1), x)[1]  # noqa: E731
        layers = [partial(count, i) for i in range(12)]
        run(layers, [i >= off for i in range(12)], torch.zeros(1))
        stripes = torch.full((24, 24), -1.0)
        stripes[::2, 2:22] = (1.4 * calls - 0.6)[:, None]  # a computed layer is bright
        return stripes, calls.mean()

    turned = "layers that are off, of 12", (0, 2, 4, 6, 8, 10)
    return _shown("saved on paper", turned, "MACs that run, share", draw, "paper")


def waves() -> Shown:
    """How alike the waves of 24 steps are, near each other and ever farther apart."""

    def draw(waves_of: Function, apart: float) -> tuple[Tensor, float]:
        t = apart * torch.arange(24, dtype=torch.float64)
        e = waves_of(t, 64)  # (24, 64)
        alike = cosine_similarity(e[:, None], e[None], dim=-1)
        return alike.float(), alike[0, 1]

    turned = "steps between neighbours", (1, 2, 5, 10, 20, 40)
    return _shown("waves upside down", turned, "likeness of neighbours", draw, "waves")


def grid() -> Shown:
    """How alike the positions of a 4 × 9 grid are to that of one token."""

    def draw(positions: Function, column: float) -> tuple[Tensor, float]:
        places = positions(64, 4, 9).double()  # (36, 64)
        here = int(column) + 9  # second row
        alike = cosine_similarity(places[here], places, dim=-1)
        beside, below = alike[here + 1], alike[here + 9]
        return (5 * alike - 4).float().view(4, 9), (below - beside).abs()

    turned = "column of the token", (0, 1, 2, 3, 4, 5)
    return _shown("a grid of one side", turned, "below against beside", draw, "grid")


def variance() -> Shown:
    """Noise of variance 1, added in ever more steps of equal variance."""
    noise = torch.randn(50, 24, 24, generator=torch.Generator().manual_seed(1))

    def draw(step_back: Function, steps: float) -> tuple[Tensor, float]:
        x, share = torch.zeros(24, 24), torch.full((24, 24), 1 / steps)
        for fresh in noise[: int(steps)]:
            x = step_back(x, share, fresh)
        return x / 2.5, x.var()

    turned = "steps", (1, 2, 5, 10, 20, 50)
    return _shown("variance for deviation", turned, "variance at the end", draw, "variance")


# ------------------------------------------------------------------ pictures of the digits model


class GuidedBy(nn.Module):
    """The digits model, guided by a function, as if its pixels were four channels.

    Args:
        model: of grey images.
        guided: the rule: labelled answer, unlabelled answer, scale.
        scale: of the guidance.
        null: gives the null class for labels.
    """

    def __init__(self, model: nn.Module, guided: Function, scale: float, null: Function) -> None:
        super().__init__()
        self.model, self.guided, self.scale, self.null = model, guided, scale, null
        self.in_channels, self.input_size = model.in_channels, model.input_size
        self.num_classes, self.class_dropout_prob = model.num_classes, model.class_dropout_prob

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """``x`` (B, 1, H, W), ``t`` (B,), ``y`` (B,) → (B, 1, H, W)."""
        out = self.model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, self.null(y)]))
        cond, uncond = pixel_unshuffle(out, 2).chunk(2)  # (B, 4, H/2, W/2) each
        return pixel_shuffle(self.guided(cond, uncond, self.scale), 2)


def of_model() -> list[Shown]:
    """Guidance on some channels, and against a class, in samples of the digits model."""
    model, card = zoo.load("digits-dit")
    process = Recipe.from_dict(card["recipe"]).process.build()
    nine = torch.full((9,), 9)
    noise = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(5))

    def drawn(guided: Function, scale: float, null: Function) -> Tensor:
        wrapped = GuidedBy(model, guided, scale, null)
        return ddim_sample(wrapped, process, noise.shape, nine, steps=8, noise=noise, clip=True)

    unguided = drawn(right("channels"), 1.0, model.null_condition)

    def channels(guided: Function, scale: float) -> tuple[Tensor, float]:
        images = drawn(guided, scale, model.null_condition)
        moved = pixel_unshuffle(images - unguided, 2).square().mean((0, 2, 3))  # (4,)
        return _nine(images), (moved[3] / moved[:3].mean()).sqrt()

    def null(null_labels: Function, scale: float) -> tuple[Tensor, float]:
        # Row 1000 would crash. What does not: the number of a data set that has one class less.
        row = null_labels(model.num_classes, nine).clamp(max=model.num_classes)
        row = row if null_labels is right("null") else row - 1
        images = drawn(right("channels"), scale, lambda y: row)
        return _nine(images), images.var(0).mean()

    scales = "guidance scale", (1.25, 1.5, 2, 2.5, 3, 4)
    moves, variety = "how far guidance moves channel 4, over 1 to 3", "variance between samples"
    return [
        _shown("three of four channels", scales, moves, channels, "channels"),
        _shown("another model's null class", scales, variety, null, "null"),
    ]


def what_bugs_do() -> Figure:
    """Eleven bugs, each in a picture beside what was meant; the twelfth does not run at all."""
    with torch.random.fork_rng(devices=[]):
        shown = [gates(), *of_model(), mask(), router(), entropy(), batch(), paper()]
        shown += [waves(), variance(), grid()]
    frames = torch.stack([s.pictures for s in shown])  # (bugs, 2, 6, SIDE, SIDE)
    frames = frames.transpose(1, 2)[:, :, None, :, None]  # (bugs, 6, 1, 2, 1, SIDE, SIDE)
    rows = [
        [
            [[s.turned[0], *2 * [s.turned[1][i]]], [s.measured, *(_short(n[i]) for n in s.numbers)]]
            for i in range(6)
        ]
        for s in shown
    ]
    return Figure(
        name="what-bugs-do",
        title="Eleven bugs and what they do",
        caption="Choose a bug, then turn it up. Left: what was meant. Right: what the broken "
        "function makes of it. The table says what the slider turns and what is measured. (The "
        "twelfth bug draws nothing: on this machine it does not run.)",
        alt="Two small pictures beside each other, one by the repaired and one by the broken "
        "function, which drift apart as the slider moves; and a table with what the slider "
        "turns and one number for each of the two.",
        axes=[
            Axis("bug", "bug", [s.title for s in shown], choice=True),
            Axis("dose", "turn it up", list(range(1, 7)), start=4),
        ],
        play="dose",
        panels=[
            Images(
                title="What was meant, and what comes",
                alt="Two pictures of the chosen bug at the chosen strength.",
                axes=("bug", "dose"),
                frames=frames.numpy(),
                column_labels=["repaired", "broken"],
                size=190,
                levels=16,
            ),
            Table(
                title="In numbers",
                alt="What the slider turns, and one measured number, repaired and broken.",
                axes=("bug", "dose"),
                columns=["", "repaired", "broken"],
                rows=np.array(rows, dtype=object),
            ),
        ],
    )


def _short(number: float) -> float:
    return round(number, 2)
