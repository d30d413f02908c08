"""Moving figures of the chapter on tokens and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from dit_edu.dit import PRESETS
from dit_edu.interpolant import Interpolant
from dit_edu.lab.charts import Bars, Curves, Heatmap, Line, Table
from dit_edu.lab.data import digits
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.patchify import SHADES, SIZES
from dit_edu.lab.panels import Axis, Images, Tokens
from dit_edu.lab.scenes import shapes
from dit_edu.lab.widgets import Figure
from dit_edu.patch_losses import loss_map
from dit_edu.patchify import sincos_pos_embed, token_grid


def patchify_tokens() -> Figure:
    """A scene cut into tokens by p and image size, with what a DiT-S must compute for them."""
    patches, sizes, channels = (1, 2, 4, 8, 16), (32, 64), 3
    width, depth = PRESETS["DiT-S/2"]["hidden_size"], PRESETS["DiT-S/2"]["depth"]
    scene = [
        shapes(14, size=s, level="jittered", objects=3, texture=(0, 1), seed=7).images[13].numpy()
        for s in sizes
    ]
    # A panel has one size for all tiles: the smaller picture is enlarged by whole pixels.
    tiles = [np.kron(x, np.ones((max(sizes) // s,) * 2)) for x, s in zip(scene, sizes, strict=True)]
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
        caption="A scene in RGB, cut into squares of *p* × *p* pixels. Halving *p* makes four "
        "times the tokens, and sixteen times the pairs that attention compares. MACs are those of "
        f"the blocks of a DiT-S (*D* = {width}, *L* = {depth}).",
        alt="A coloured scene with a grid of squares drawn over it, a table of the number of "
        "tokens, their length and the MACs by patch size, and bars for the shares of the MACs. The "
        "smaller the patches, the more of the work is attention's pairs.",
        axes=[
            Axis("p", "p", patches, start=2),
            Axis("size", "image", sizes, [f"{s} × {s}" for s in sizes], choice=True),
        ],
        play="p",
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
        "token with the sliders, by touch or with the arrow keys on the map. Nearby tokens are "
        "alike, and rows matter exactly as columns do.",
        alt="A map of eight by eight squares. The chosen token stands out, and the similarity "
        "falls along its row and its column; a chart shows the same fall as two lines.",
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


def patch_loss_map(model: nn.Module, process: Interpolant, bins: int = 10) -> Figure:
    """The loss of a digits model on held-out digits by place, of patches and of pixels, and by t.

    Args:
        model: a denoiser of digits.
        process: the process it was trained for.
        bins: equal ranges of t.
    """
    pixels = loss_map(model, process, *digits("heldout"), p=1, bins=bins, repeats=2).numpy()
    patches = pixels.reshape(bins, 4, 2, 4, 2).mean((2, 4))  # (bins, 8, 8) -> (bins, 4, 4)
    width = process.num_timesteps // bins
    names = [f"{b * width}–{(b + 1) * width - 1}" for b in range(bins)]
    middle, edge = patches[:, :, 1:3].mean((1, 2)), patches[:, :, [0, 3]].mean((1, 2))  # (bins,)
    places = [str(i) for i in range(8)]
    return Figure(
        name="patch-loss-map",
        title="Where does the loss come from?",
        caption="The loss of the digits model on held-out digits, patch by patch and pixel by "
        "pixel, in ten ranges of *t*. The maps of all ranges share one scale of colours. Press "
        "Play: the level falls and rises with the noise, while the pattern hardly changes.",
        alt="Two square maps, of four by four patches and of eight by eight pixels. The two middle "
        "columns are bright, the left and the right column dark. A chart shows the loss of the "
        "middle far above that of the edge at every t.",
        axes=[Axis("t", "t", list(range(bins)), names, start=2)],
        play="t",
        panels=[
            Heatmap(
                title="Loss of each patch",
                alt="A map of four by four patches; the middle columns have the highest loss.",
                axes=("t",),
                values=patches,
                rows=("row", places[:4]),
                columns=("column", places[:4]),
                limits=(0.0, float(patches.max())),
                unit="mean square error of v",
            ),
            Heatmap(
                title="Loss of each pixel",
                alt="A map of eight by eight pixels; the first and last columns are near zero.",
                axes=("t",),
                values=pixels,
                rows=("row", places),
                columns=("column", places),
                limits=(0.0, float(pixels.max())),
                unit="mean square error of v",
            ),
            Curves(
                title="Middle and edge",
                alt="Two lines over t. The loss of the middle columns lies far above that of the "
                "outer ones; both are highest where there is little noise.",
                x=np.arange(bins),
                x_label=f"t, in ranges of {width} steps",
                lines=[Line("middle two columns", middle), Line("outer two columns", edge)],
                cursor="t",
                limits=(0.0, float(middle.max()) * 1.05),
                wide=True,
            ),
        ],
    )


#: Kind of position and way to another size, as the figure offers them.
WAYS = {
    "sin-cos, stretched": ("sincos", "stretch"),
    "sin-cos, extended": ("sincos", "extend"),
    "RoPE, stretched": ("rope", "stretch"),
    "RoPE, extended": ("rope", "extend"),
    "learned, interpolated": ("learned", "stretch"),
    "none": ("none", "stretch"),
}


def _pictures(shades: Sequence[str], size: int, side: int = 48) -> np.ndarray:
    """Digits kept as lines of shades, enlarged by whole pixels: (n, 1, side, side) in [-1, 1]."""
    values = np.array([[SHADES.index(s) for s in line] for line in shades]) / 7.5 - 1  # (n, size²)
    whole = np.ones((side // size,) * 2)
    return np.stack([np.kron(v.reshape(size, size), whole)[None] for v in values])


def beyond_the_grid() -> Figure:
    """Digits drawn at sizes that training never saw, by kind of position and way there.

    Raises:
        FileNotFoundError, ValueError: the tables ``positions`` and ``position-samples`` are not
            there.
    """
    kept = {row["setting"]: row["metrics"] for row in read("position-samples")}
    rows = read("positions")

    def name(size: int, how: str) -> str:
        return str(size) if size == SIZES[0] else f"{size} {how}"

    frames = [
        [_pictures(kept[kind][name(size, how)], size)[None, :5] for size in SIZES]
        for kind, how in WAYS.values()
    ]  # (ways, sizes, 1, 5, 1, 48, 48)
    judged = 100 * np.array(
        [
            [_mean(rows, kind, "accuracy" if s == 8 else f"accuracy {name(s, how)}") for s in SIZES]
            for kind, how in WAYS.values()
        ]
    )  # (ways, sizes)
    return Figure(
        name="beyond-the-grid",
        title="A size that training never saw",
        caption="Small models, trained on digits of 8 × 8 pixels, draw at 8, 12 and 16 pixels a "
        "side. Positions are either *stretched* (the larger grid is packed into the range of the "
        "small one) or *extended* (the coordinates go on). The bars count how often a judge, who "
        "sees the picture shrunk to 8 × 8, finds the digit that was asked for; by chance it would "
        "be 10 %. Choose *sin-cos, extended* at 16 pixels: what stands in the upper left corner?",
        alt="Five small pictures and three bars. At 8 pixels they are digits; at 12 and 16 pixels "
        "they depend on the kind of position, and the bars are shorter.",
        axes=[
            Axis("way", "positions", list(WAYS), choice=True),
            Axis("size", "pixels a side", SIZES, choice=True, start=2),
        ],
        panels=[
            Images(
                title="0 to 4, as drawn",
                alt="Five pictures drawn at the chosen size.",
                axes=("way", "size"),
                frames=np.array(frames),
                levels=16,
                wide=True,
            ),
            Bars(
                title="Recognised after shrinking",
                alt="The share of digits that are recognised at 8, 12 and 16 pixels a side.",
                axes=("way",),
                labels=[f"{size} × {size}" for size in SIZES],
                values=judged,
                unit="%",
                most=100,
                wide=True,
            ),
        ],
    )


def _mean(rows: Sequence[Mapping[str, Any]], setting: str, metric: str) -> float:
    return float(np.mean([r["metrics"][metric] for r in rows if r["setting"] == setting]))
