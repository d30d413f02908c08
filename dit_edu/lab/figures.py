"""The moving figures of the chapters: one function each, all data computed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dit_edu._checks import check_positive_int
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import PRESETS
from dit_edu.guidance import Guided
from dit_edu.lab import zoo
from dit_edu.lab.charts import Bars, Curves, Heatmap, Line, Table
from dit_edu.lab.data import digits
from dit_edu.lab.panels import Axis, Images, Tokens
from dit_edu.lab.recipes import SCHEDULES, Recipe
from dit_edu.lab.scenes import shapes
from dit_edu.lab.widgets import Figure
from dit_edu.patchify import sincos_pos_embed, token_grid
from dit_edu.sampling import ddim_sample


def forward_process() -> Figure:
    """Four real digits on their way into noise, by step and schedule, with ᾱ and the SNR."""
    ts = torch.cat([torch.arange(0, 1000, 20), torch.tensor([999])])  # (51,)
    images, labels = digits()
    x0 = torch.cat([images[labels == digit][:1] for digit in (3, 0, 7, 4)])  # (4, 1, 8, 8)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    frames, alphas_cumprod = [], []
    for schedule in SCHEDULES.values():
        diffusion = schedule(1000)
        frames.append([diffusion.q_sample(x0, t.expand(4), noise).numpy() for t in ts])
        alphas_cumprod.append(diffusion.alphas_cumprod[ts].numpy())
    ab = np.stack(alphas_cumprod)  # (schedules, steps)
    return Figure(
        name="forward-process",
        title="The forward process",
        caption="Four digits on their way into noise. Move *t*, and compare the schedules: the faint "
        "lines are those of the other one. Where does a digit become illegible, and what is the "
        "signal-to-noise ratio there?",
        alt="Four handwritten digits with noise added, above two charts: the shares of signal and "
        "noise, and the signal-to-noise ratio, over the step t. With the cosine schedule the digits "
        "stay legible for longer than with the linear one.",
        axes=[
            Axis("t", "t", ts.tolist(), start=15),
            Axis("schedule", "schedule", list(SCHEDULES), choice=True),
        ],
        play="t",
        panels=[
            Images(
                title="x_t, the noisy digits",
                alt="Four handwritten digits, 3, 0, 7 and 4, at the chosen step.",
                axes=("schedule", "t"),
                frames=np.asarray(frames)[:, :, None],  # (schedules, steps, 1 row, 4, 1, 8, 8)
                wide=True,
                size=128,
            ),
            Curves(
                title="Signal and noise",
                alt="Two lines over t: the square root of ᾱ falls from 1 to 0, that of 1 − ᾱ rises.",
                axes=("schedule",),
                x=ts.numpy(),
                x_label="t",
                lines=[Line("√ᾱ_t", np.sqrt(ab)), Line("√(1−ᾱ_t)", np.sqrt(1 - ab))],
                cursor="t",
                limits=(0, 1),
            ),
            Curves(
                title="Signal-to-noise ratio",
                alt="One line over t on a logarithmic scale: the signal-to-noise ratio falls from "
                "ten thousand to almost nothing.",
                axes=("schedule",),
                x=ts.numpy(),
                x_label="t",
                lines=[Line("ᾱ_t / (1−ᾱ_t)", ab / (1 - ab))],
                cursor="t",
                log=True,
                limits=(1e-6, 1e5),
            ),
        ],
    )


def patchify_tokens() -> Figure:
    """A scene cut into tokens by p and image size, with what a DiT-S must compute for them."""
    patches, sizes, channels = (1, 2, 4, 8, 16), (32, 64), 3
    width, depth = PRESETS["DiT-S/2"]["hidden_size"], PRESETS["DiT-S/2"]["depth"]
    picture = [
        shapes(1, size=s, level="jittered", objects=3, texture=0.4, seed=4).images[0].numpy()
        for s in sizes
    ]
    # A page has one size for all tiles: the smaller picture is enlarged by whole pixels.
    tiles = [
        np.kron(x, np.ones((1, max(sizes) // s, max(sizes) // s)))
        for x, s in zip(picture, sizes, strict=True)
    ]
    grids = np.array([[token_grid((s, s), p) for p in patches] for s in sizes])  # (sizes, p, 2)
    n = grids.prod(-1)  # (sizes, p)
    # MACs of the blocks: L (12 D²N + 2 N²D + 6 D²)
    linear, pairs, adaln = depth * 12 * width**2 * n, depth * 2 * n**2 * width, depth * 6 * width**2
    total = linear + pairs + adaln
    shares = 100 * np.stack([linear, pairs, np.full_like(n, adaln)], -1) / total[..., None]
    rows = [
        [
            [
                str(p),
                int(n[s, i]),
                p * p * channels,
                float(total[s, i] / 1e9),
                f"{shares[s, i, 1]:.1f} %",
            ]
            for i, p in enumerate(patches)
        ]
        for s in range(len(sizes))
    ]
    return Figure(
        name="patchify-tokens",
        title="Patches become tokens",
        caption="A scene in RGB, cut into squares of *p* × *p* pixels. Halving *p* makes four times "
        "the tokens, and sixteen times the pairs that attention compares. MACs are those of the blocks "
        f"of a DiT-S (*D* = {width}, *L* = {depth}).",
        alt="A coloured scene with a grid of squares drawn over it, a table of the number of tokens, "
        "their length and the MACs by patch size, and bars for the shares of the MACs. The smaller "
        "the patches, the more of the work is attention's pairs.",
        axes=[
            Axis("p", "p", patches, start=2),
            Axis("size", "image", sizes, [f"{s} × {s}" for s in sizes], choice=True),
        ],
        panels=[
            Tokens(
                title="The tokens, in reading order",
                alt="The scene with the grid of tokens.",
                axes=("size", "p"),
                frames=np.repeat(
                    np.stack(tiles)[:, None], len(patches), 1
                ),  # (sizes, p, 3, 64, 64)
                tokens=grids,
            ),
            Table(
                title="What p costs",
                alt="Tokens, their length, MACs and attention's share, one row for each p.",
                axes=("size",),
                columns=["p", "tokens N", "length p²C", "GMACs", "N² part"],
                rows=rows,
                cursor="p",
            ),
            Bars(
                title="Where the MACs go",
                alt="Shares of the MACs in the blocks.",
                axes=("size", "p"),
                labels=["linear layers, 12 D²N", "attention’s pairs, 2 N²D", "adaLN, 6 D²"],
                values=shares,
                unit="%",
                most=100,
                wide=True,
            ),
        ],
    )


def position_similarity(dim: int = 384, side: int = 8) -> Figure:
    """Cosine similarity of one token's position to all others, on a grid of ``side`` × ``side``."""
    embed = nn.functional.normalize(sincos_pos_embed(dim, side).double(), dim=1)  # (N, D)
    similarity = (
        (embed @ embed.T).reshape(side, side, side, side).numpy()
    )  # (N, N) -> row, column × 2
    places = range(side)
    own = np.arange(side)
    along_row = similarity[own[:, None], own, own[:, None], :]  # (row, column, x): the same row
    along_column = similarity[own[:, None], own, :, own]  # (row, column, x): the same column
    return Figure(
        name="position-similarity",
        title="How alike are two positions?",
        caption="Cosine similarity of the position of one token to those of all others. Choose a "
        "token with the sliders, by touch or with the arrow keys on the map. Nearby tokens are alike, "
        "and rows matter exactly as columns do.",
        alt="A map of eight by eight squares. The chosen token is darkest, and the similarity falls "
        "along its row and its column; two charts show the same fall as lines.",
        axes=[Axis("row", "row", places, start=3), Axis("column", "column", places, start=2)],
        play="column",
        panels=[
            Heatmap(
                title="Similarity to the chosen token",
                alt="A map of the cosine similarity of the chosen token to each token.",
                axes=("row", "column"),
                values=similarity,
                rows="row",
                columns="column",
                limits=(float(similarity.min()), 1.0),
                unit="cosine similarity",
            ),
            Curves(
                title="Along its row and its column",
                alt="Two lines with their peak of 1 at the chosen token.",
                axes=("row", "column"),
                x=own,
                x_label="position along the row or the column",
                lines=[Line("along its row", along_row), Line("along its column", along_column)],
            ),
        ],
    )


def loss_by_noise_bin(
    history: Sequence[Mapping[str, Any]], num_timesteps: int = 1000, positions: int = 40
) -> Figure:
    """The training loss in each bin of the noise level, over the course of training.

    Args:
        history: rows with ``step``, ``loss`` and ``loss_by_bin`` (None where nothing is known yet), as
            in a card of the zoo.
        num_timesteps: T; the bins cut it into equal parts.
        positions: the most positions of the slider.

    Raises:
        ValueError: fewer than two rows, or rows with different numbers of bins.
    """
    check_positive_int("positions", positions)
    if len(history) < 2 or len({len(row["loss_by_bin"]) for row in history}) != 1:
        raise ValueError("history must have two rows or more, all with the same number of bins.")
    loss = np.array([[np.nan if v is None else v for v in row["loss_by_bin"]] for row in history])
    history = [row for row, known in zip(history, np.isfinite(loss).all(1), strict=True) if known]
    loss = loss[np.isfinite(loss).all(1)]  # (rows, bins): from where every bin has been seen
    if len(history) < 2:
        raise ValueError("history has fewer than two rows in which every bin has been seen.")
    chosen = np.unique(np.linspace(0, len(history) - 1, positions).round().astype(int))
    steps = [history[i]["step"] for i in chosen]
    bins = loss.shape[1]
    edges = np.linspace(0, num_timesteps, bins + 1)
    names = [f"{a:.0f}–{b - 1:.0f}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return Figure(
        name="loss-by-noise-bin",
        title="Which steps are hard?",
        caption=f"The loss of the digits model in {bins} bins of the noise level, while it learns. "
        "The average hides that the bins are unequally hard, and learnt at unequal speed.",
        alt="Bars of the loss for each bin of the noise level at the chosen training step, beside the "
        "loss over the whole training with a cursor.",
        axes=[Axis("step", "training step", steps, start=len(steps) - 1)],
        play="step",
        panels=[
            Bars(
                title="Loss by t",
                alt="One bar for each bin of t.",
                axes=("step",),
                labels=[f"t = {name}" for name in names],
                values=loss[chosen],
            ),
            Curves(
                title="Loss over training",
                alt="Three lines over the training steps: the loss in the bins of the lowest, a middle "
                "and the highest noise level.",
                x=steps,
                x_label="training step",
                lines=[Line(f"t = {names[b]}", loss[chosen, b]) for b in (0, bins // 2, bins - 1)],
                cursor="step",
                log=True,
            ),
        ],
    )


def reverse_trajectory(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    scales: Sequence[float] = (1.0, 1.5, 3.0),
    steps: int = 20,
    samples: int = 3,
) -> Figure:
    """x_t and x̂_0 on the way from noise to images, by step, class and guidance scale.

    Args:
        model: a denoiser with ``input_size``, ``in_channels`` and ``num_classes``.
        diffusion: the process it was trained for.
        scales: of guidance; 1 is none.
        steps: of DDIM.
        samples: images for each class; all classes and scales begin with the same noise.
    """
    classes, size = model.num_classes, (model.in_channels, *model.input_size)
    y = torch.arange(classes).repeat_interleave(samples)  # (classes · samples,)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(samples, *size, generator=generator).repeat(
        classes, 1, 1, 1
    )  # (len(y), C, H, W)
    frames, ts = [], []
    for scale in scales:
        seen: list[torch.Tensor] = []
        ts = []

        def keep(k: int, t: int, x_t: torch.Tensor, x0: torch.Tensor) -> None:
            seen.append(torch.stack([x_t, x0]).reshape(2, classes, samples, *size))  # noqa: B023
            ts.append(t)  # noqa: B023

        ddim_sample(
            Guided(model, scale),
            diffusion,
            noise.shape,
            y,
            steps=steps,
            noise=noise,
            clip=True,
            callback=keep,
        )
        frames.append(torch.stack(seen))  # (steps, 2, classes, samples, C, H, W)
    pictures = torch.stack(frames).permute(
        0, 3, 1, 2, 4, 5, 6, 7
    )  # (scales, classes, steps, 2, samples, C, H, W)
    return Figure(
        name="reverse-trajectory",
        title="From noise to digits",
        caption="DDIM draws with the digits model. Above is x_t, what the sampler holds; below is x̂_0, what "
        "the model would answer at once. Early answers are blurred averages. Guidance makes them "
        "clearer, and more alike.",
        alt="Two rows of small pictures. The upper row turns from noise into handwritten digits of the "
        "chosen class; the lower row shows the model’s guess, which sharpens from a blur.",
        axes=[
            Axis("step", "t", ts, start=steps // 2),
            Axis("class", "class", range(classes), start=3 % classes),
            Axis("scale", "guidance", scales, [f"{s:g}" for s in scales], choice=True),
        ],
        play="step",
        panels=[
            Images(
                title="The sampler’s image and the model’s guess",
                alt="Above the noisy images x_t, below the guesses x̂_0.",
                axes=("scale", "class", "step"),
                frames=pictures.numpy(),
                row_labels=["x_t", "x̂_0"],
                size=128,
                levels=17,  # as many as the real digits have
            )
        ],
    )


def _digits_losses() -> Figure:
    return loss_by_noise_bin(zoo.card("digits-dit")["history"])


def _digits_trajectory() -> Figure:
    model, card = zoo.load("digits-dit")
    return reverse_trajectory(model, Recipe.from_dict(card["recipe"]).process.build())


FIGURES: dict[str, Callable[[], Figure]] = {
    "forward-process": forward_process,
    "patchify-tokens": patchify_tokens,
    "position-similarity": position_similarity,
    "loss-by-noise-bin": _digits_losses,
    "reverse-trajectory": _digits_trajectory,
}
