"""Moving figure of the chapter on attention: where the heads of a trained model look."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dit_edu.attention import attention_distance, record_attention
from dit_edu.dit import DiT
from dit_edu.interpolant import Interpolant
from dit_edu.lab.charts import Curves, Heatmap, Line
from dit_edu.lab.data import digits
from dit_edu.lab.panels import Axis, Tokens
from dit_edu.lab.widgets import Figure

STEPS = (0, 100, 200, 300, 500, 700, 900, 999)


@torch.no_grad()
def looks(
    model: DiT, process: Interpolant, x0: Tensor, y: Tensor, t: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The weights of every head of a model, for images noised to step t.

    Args:
        model: a trained model.
        process: the process it was trained for.
        x0: clean images, (B, C, H, W).
        y: labels, (B,).
        t: the step, the same for all.
        seed: of the noise, the same at every t.

    Returns:
        The noisy images, (B, C, H, W), and the weights, (L, B, h, N, N).
    """
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    steps = torch.full((len(x0),), t)
    x_t = process.q_sample(x0, steps, noise)
    with record_attention(model) as weights:
        model(x_t, steps, y)
    return x_t, torch.stack(weights)


def where_heads_look(
    model: DiT,
    process: Interpolant,
    digit: int = 3,
    images: int = 200,
    start: tuple[int, int] = (2, 3),
) -> Figure:
    """Where each token of one digit looks, by layer, head and noise; and how far on average.

    Args:
        model: a trained digits model.
        process: the process it was trained for.
        digit: the first held-out digit of this class is shown.
        images: how many held-out digits the distances are a mean of.
        start: layer and head at which the figure opens, from 1.
    """
    x0, y = digits("heldout")
    one = int((y == digit).nonzero()[0])
    h, w = grid = model.span
    seen, maps, distance = [], [], []
    for t in STEPS:
        x_t, weights = looks(model, process, x0[one : one + 1], y[one : one + 1], t)
        seen.append(x_t[0].clamp(-1, 1).numpy())
        maps.append(torch.cat([weights.mean(2, keepdim=True), weights], dim=2)[:, 0])  # mean first
        many = looks(model, process, x0[:images], y[:images], t)[1]
        distance.append(attention_distance(many, grid).mean((1, 2, 3)))  # (L,)
    shares = 100 * torch.stack(maps).movedim(0, 2)  # (L, 1 + h, t, N, N), in percent
    layers, heads = shares.shape[:2]
    even = attention_distance(torch.full((h * w, h * w), 1 / (h * w)), grid).mean().item()
    far = torch.stack(distance, dim=1).numpy()  # (L, t)
    names = [f"layer {i + 1}" for i in range(layers)]
    return Figure(
        name="where-heads-look",
        title="Where do the heads look?",
        caption="The digits model reads a noisy digit as sixteen tokens. Choose a token on the map "
        "(by touch, with the arrow keys, or with the sliders): the map shows how it shares out "
        "its attention over all sixteen. This head looks to the right, wherever it stands. Change "
        "layer, head and noise. The chart shows how far "
        "tokens look on average over many digits; a head that looks at all tokens alike would "
        "stand at the dashed line.",
        alt="A noisy digit with a grid of four by four tokens, beside a map of the attention of "
        "one token to all. A chart over t has one line for each of the four layers: the first is "
        "the highest, the second the lowest.",
        axes=[
            Axis(
                "layer",
                "layer",
                range(layers),
                [str(i + 1) for i in range(layers)],
                start[0] - 1,
                True,
            ),
            Axis("head", "head", range(heads), ["all", *map(str, range(1, heads))], start[1], True),
            Axis("t", "t", STEPS, start=STEPS.index(500)),
            Axis("row", "row", range(h), start=2),
            Axis("column", "column", range(w), start=1),
        ],
        play="t",
        panels=[
            Tokens(
                title="The noisy digit, in tokens",
                alt="The noisy digit under a grid of four by four squares.",
                axes=("t",),
                frames=np.stack(seen),
                tokens=np.tile(grid, (len(STEPS), 1)),
            ),
            Heatmap(
                title="Where the chosen token looks",
                alt="A map of the chosen token's attention to each of the sixteen tokens.",
                axes=("layer", "head", "t", "row", "column"),
                values=shares.unflatten(4, grid).unflatten(3, grid).numpy(),
                rows="row",
                columns="column",
                limits=(0.0, 40.0),
                unit="% of its attention",
            ),
            Curves(
                title="How far tokens look",
                alt="One line for each layer over t: the mean distance of what is looked at.",
                x=STEPS,
                x_label="t",
                lines=[
                    *(Line(name, y) for name, y in zip(names, far, strict=True)),
                    Line("all tokens alike", np.full(len(STEPS), even)),
                ],
                cursor="t",
                limits=(1.0, 2.2),
                wide=True,
            ),
        ],
    )
