"""Moving figures of the chapter on tokens and positions."""

from __future__ import annotations

import numpy as np
from torch import nn

from dit_edu.dit import PRESETS
from dit_edu.lab.charts import Bars, Curves, Heatmap, Line, Table
from dit_edu.lab.panels import Axis, Tokens
from dit_edu.lab.scenes import shapes
from dit_edu.lab.widgets import Figure
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
