"""The moving figure of the chapter on factorised attention: two tables from one set of numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_edu.attention import Attention, attention_weights
from dit_edu.dit import DiT
from dit_edu.hidit.factorized import attention_macs
from dit_edu.interpolant import Interpolant
from dit_edu.lab.charts import Curves, Heatmap, Line
from dit_edu.lab.data import digits
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure

STEPS = (0, 300, 700)
SIDES = (4, 6, 8, 12, 16, 24, 32, 48, 64)  # of the grid; N is their square
TEMPERATURE = 4.0  # what a fresh temperature of 1 hides: cosines lie close together


@torch.no_grad()
def tables(
    model: DiT, process: Interpolant, x0: Tensor, y: Tensor, t: int
) -> tuple[Tensor, Tensor]:
    """Who looks at whom, token by token and channel by channel, from the same queries and keys.

    Args:
        model: a trained model.
        process: the process it was trained for.
        x0, y, t: one image (1, C, H, W), its label (1,), and the step.

    Returns:
        Tokens by tokens (L, h, N, N), and channels by channels (L, h, d, d).
    """
    given: list[tuple[Attention, Tensor]] = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda m, a: given.append((m, a[0])))
        for block in model.blocks
    ]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.full((1,), t)
    try:
        model(process.q_sample(x0, steps, noise), steps, y)
    finally:
        for hook in hooks:
            hook.remove()
    places, channels = [], []
    for attention, x in given:
        q, k, _ = (part[0] for part in attention.project(x))  # (h, N, d)
        places.append(attention_weights(q, k))  # (h, N, N)
        q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)  # length 1 over the tokens
        channels.append((TEMPERATURE * q.transpose(1, 2) @ k).softmax(-1))  # (h, d, d)
    return torch.stack(places), torch.stack(channels)


def two_tables(model: DiT, process: Interpolant, digit: int = 3) -> Figure:
    """The two attention maps of a model, and what each costs as the tokens grow more.

    Args:
        model: a trained digits model.
        process: the process it was trained for.
        digit: the first held-out digit of this class is shown.
    """
    x0, y = digits("heldout")
    one = int((y == digit).nonzero()[0])
    found = [tables(model, process, x0[one : one + 1], y[one : one + 1], t) for t in STEPS]
    places, channels = (100 * torch.stack(part).movedim(0, 2) for part in zip(*found, strict=True))
    layers, heads, _, tokens, _ = places.shape  # (L, h, t, N, N)
    width = channels.shape[-1]
    dim = heads * width
    bills = [attention_macs(dim, heads, (side, side)) for side in SIDES]
    return Figure(
        name="two-tables",
        title="Two tables from the same numbers",
        caption="The digits model reads a noisy digit as sixteen tokens; a head makes twelve "
        "queries and twelve keys of each. Left: which *token* looks at which, as the model has "
        "learnt it. Right: which *channel* would look at which, from the very same numbers. Move "
        "*N*: one table grows with the square of the tokens, the other keeps its size.",
        alt="Two square maps. On the left sixteen tokens by sixteen, on the right twelve channels "
        "by twelve. Below, a chart over the number of tokens with three rising lines: the cost of "
        "pairs of tokens rises twice as steeply as that of the linear maps and of the channels.",
        axes=[
            Axis("layer", "layer", range(layers), [str(i + 1) for i in range(layers)], 1, True),
            Axis("head", "head", range(heads), [str(i + 1) for i in range(heads)], 2, True),
            Axis("t", "t", STEPS, start=1, choice=True),
            Axis("tokens", "N", SIDES, [f"{side**2:,}" for side in SIDES]),
        ],
        play="tokens",
        panels=[
            Heatmap(
                title="Tokens look at tokens: N × N",
                alt="A map of sixteen rows and columns; each row shows where one token looks.",
                axes=("layer", "head", "t"),
                values=places.numpy(),
                rows=("token", [str(i) for i in range(tokens)]),
                columns=("looks at token", [str(i) for i in range(tokens)]),
                limits=(0.0, 40.0),
                unit="% of its attention",
            ),
            Heatmap(
                title="Channels look at channels: d × d",
                alt="A map of twelve rows and columns; each row shows where one channel looks.",
                axes=("layer", "head", "t"),
                values=channels.numpy(),
                rows=("channel", [str(i) for i in range(width)]),
                columns=("looks at channel", [str(i) for i in range(width)]),
                limits=(0.0, 40.0),
                unit="% of its attention",
            ),
            Curves(
                title=f"Million MACs for one image, D = {dim}",
                alt="Three rising lines over the root of the number of tokens; that of the pairs "
                "of tokens is below the linear maps at first and by far the highest at the end.",
                x=SIDES,
                x_label="tokens along a side, √N",
                lines=[
                    Line("pairs of tokens", [bill["pairs"] / 1e6 for bill in bills]),
                    Line("pairs of channels", [bill["table"] / 1e6 for bill in bills]),
                    Line("linear maps", [bill["tokens"] / 1e6 for bill in bills]),
                ],
                cursor="tokens",
                log=True,
                wide=True,
            ),
        ],
    )
