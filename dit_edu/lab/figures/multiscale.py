"""The moving figure of the chapter on tokens of two sizes: how many tokens each block sees."""

from __future__ import annotations

import numpy as np

from dit_edu.hidit.multiscale import MultiscaleArchitecture, coarse_blocks
from dit_edu.lab.charts import Bars, Curves, Line
from dit_edu.lab.data import dataset
from dit_edu.lab.experiments.multiscale import WIDE
from dit_edu.lab.panels import Axis, Tokens
from dit_edu.lab.widgets import Figure

FRACTIONS = {"1/4": 0.25, "1/2": 0.5, "3/4": 0.75}
ORDERS = ("first", "in the middle", "last")


def bill(model: MultiscaleArchitecture, order: str) -> tuple[np.ndarray, np.ndarray]:
    """What each block sees and does.

    Args:
        model: its sizes.
        order: where the coarse blocks stand, one of ``ORDERS``.

    Returns:
        Whether a block is coarse, (L,) bool; and the MACs of each block, (L,). Merge is added to
        the first coarse block, split and join to the last.
    """
    blocks = coarse_blocks(model.depth, model.coarse_fraction)
    fine = model.depth - blocks
    first = {"first": 0, "in the middle": fine // 2, "last": fine}[order]
    coarse = np.zeros(model.depth, bool)
    coarse[first : first + blocks] = True
    n = np.where(coarse, model.tokens // 4, model.tokens)  # (L,)
    macs = model.each_token * n + 2 * n**2 * model.hidden_size  # 12 D² N + 2 N² D
    way = model.hidden_size**2 * model.tokens  # 4D · D · N/4, for merge as for split
    macs[first] += way
    macs[first + blocks - 1] += model.macs()["scales"] - way
    return coarse, macs


def tokens_by_depth() -> Figure:
    """How many tokens each block sees, and what is paid until there."""
    models = [MultiscaleArchitecture(**WIDE, coarse_fraction=f) for f in FRACTIONS.values()]
    bills = [[bill(model, order) for order in ORDERS] for model in models]
    depth, tokens = models[0].depth, models[0].tokens
    side = int(tokens**0.5)
    coarse = np.array([[seen for seen, _ in row] for row in bills])  # (fractions, orders, L)
    macs = np.array([[cost for _, cost in row] for row in bills], float)  # (fractions, orders, L)
    fine = models[0].each_token * tokens + 2 * tokens**2 * models[0].hidden_size
    spent = np.concatenate([np.zeros((*macs.shape[:2], 1)), macs.cumsum(-1)], axis=-1)  # (…, L+1)
    grids = np.where(coarse[..., None], side // 2, side).repeat(2, axis=-1)  # (…, L, 2)
    scene = dataset("shapes").load("heldout")[0][3].numpy()  # (3, 32, 32)
    blocks = range(1, depth + 1)
    return Figure(
        name="tokens-by-depth",
        title="Tokens by depth",
        caption=f"A model of {depth} blocks with {tokens} tokens of width "
        f"{models[0].hidden_size}. Move along the *blocks*: some see all tokens, others a quarter "
        "of them. Below: what each block costs, and what has been spent so far, in blocks of a "
        "plain DiT. Does it matter for the cost where the coarse blocks stand?",
        alt="A scene under a grid of sixteen by sixteen tokens, which becomes eight by eight at "
        "the coarse blocks; bars of the cost of each block, those of coarse blocks about a quarter "
        "as long; and two rising lines, the cost of a plain model and, lower, of this one.",
        axes=[
            Axis("block", "block", blocks, start=1),
            Axis("fraction", "coarse", list(FRACTIONS), start=1, choice=True),
            Axis("order", "they stand", ORDERS, start=0, choice=True),
        ],
        play="block",
        panels=[
            Tokens(
                title="What the block sees",
                alt="The scene under the grid of tokens of the chosen block.",
                axes=("fraction", "order", "block"),
                frames=np.broadcast_to(scene, (*coarse.shape, *scene.shape)),
                tokens=grids,
            ),
            Bars(
                title="What each block costs",
                alt="A bar for each block, in percent of a block of a plain DiT.",
                axes=("fraction", "order"),
                labels=[f"block {k}" for k in blocks],
                values=100 * macs / fine,
                unit="%",
                most=100,
            ),
            Curves(
                title="Spent so far, in blocks of a plain DiT",
                alt="Two rising lines over the blocks; this model's is the lower one.",
                axes=("fraction", "order"),
                x=blocks,
                x_label="block",
                cursor="block",
                lines=[
                    Line("this model", spent[..., 1:] / fine),
                    Line("plain DiT", np.broadcast_to(np.array(blocks, float), coarse.shape)),
                ],
                limits=(0, depth),
                wide=True,
            ),
        ],
    )
