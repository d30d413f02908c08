"""Windows: who may look at whom on a grid of tokens, with a reach that each image has for itself.

A window is a mask that knows its shape. So it can be applied in three ways with one result: as a
dense mask that is added to all N × N logits; gathered, so that what nobody may see is never
computed; or as blocks that a GPU's kernel skips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dit_edu._checks import check_choice
from dit_edu.positions import coordinates

DISTANCES = ("grid", "raster")
WAYS = ("dense", "gathered", "flex")
TILE = 8  # side of the squares of queries that share their gathered keys


def token_distance(grid: tuple[int, int], distance: str = "grid") -> Tensor:
    """How far apart tokens are.

    Args:
        grid: tokens per column and per row, (h, w), in reading order.
        distance: ``"grid"``, the larger of the differences of rows and of columns, so that all
            tokens nearer than k are a square; or ``"raster"``, the difference of their numbers,
            which takes the end of a row and the start of the next for neighbours.

    Returns:
        (N, N) integers.

    Raises:
        ValueError: ``distance`` is unknown.
    """
    if check_choice("distance", distance, DISTANCES) == "raster":
        n = torch.arange(grid[0] * grid[1])  # (N,)
        return (n[:, None] - n).abs()
    apart = [(x[:, None] - x).abs() for x in coordinates(grid)]  # 2 x (N, N): rows, columns
    return torch.maximum(*apart).long()


@dataclass(frozen=True, eq=False)
class Window:
    """Every token sees the tokens that are nearer than k, where k is its image's own.

    Args:
        grid: tokens per column and per row, (h, w).
        reach: k of each image, (B,) integers. At 1 a token sees itself; at 0 it would see nothing,
            and a softmax over nothing is no number.
        distance: see :func:`token_distance`.
        way: ``"dense"``, ``"gathered"`` or ``"flex"``; the last two on the grid's distance.

    Raises:
        ValueError: a reach is below 1, a name is unknown, or ``way`` does not know the distance.
    """

    grid: tuple[int, int]
    reach: Tensor
    distance: str = "grid"
    way: str = "dense"

    def __post_init__(self) -> None:
        check_choice("distance", self.distance, DISTANCES)
        if check_choice("way", self.way, WAYS) != "dense" and self.distance != "grid":
            raise ValueError(f"way={self.way!r} with distance='raster'; allowed: 'dense'.")
        if self.reach.ndim != 1 or not bool((self.reach >= 1).all()):
            raise ValueError(f"reach={self.reach.tolist()}; allowed: (B,) integers of at least 1.")

    def allowed(self) -> Tensor:
        """Who sees whom: (B, 1, N, N) bool."""
        apart = token_distance(self.grid, self.distance).to(self.reach.device)  # (N, N)
        return apart < self.reach[:, None, None, None]  # (B, 1, N, N)

    def density(self) -> float:
        """The share of the pairs that is allowed, a mean over the images."""
        return self.allowed().double().mean().item()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(Q Kᵀ / sqrt(d) + mask) V: (B, h, N, d) three times → (B, h, N, d).

        Where a gathered square would hold more than half of all keys, the dense mask is quicker,
        and taken.
        """
        if self.way == "flex":
            return _flex(q.device.type)(q, k, v, block_mask=block_mask(self))
        if self.way == "gathered" and 2 * self._halo() ** 2 <= math.prod(self.grid):
            return gathered_attention(q, k, v, self)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.allowed())

    def _halo(self) -> int:
        """Side of the square of keys that a square of queries needs."""
        return TILE + 2 * (int(self.reach.max()) - 1)  # b + 2r


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, window: Window) -> Tensor:
    """Attention within windows, of what they hold alone.

    Queries are cut into squares of b × b tokens. All that such a square may see lies in a square of
    b + 2r, with r = k - 1: its keys and values are gathered, and the square attends to them. That
    is N (b + 2r)² pairs in place of N². Where images differ in k, the largest sets r, and each
    image has its own mask inside.

    Args:
        q, k, v: (B, h, N, d).
        window: on the same grid.

    Returns:
        (B, h, N, d).

    Source: Vaswani et al. 2021, section 2.2 (blocked local attention).
    """
    (rows, columns), batch = window.grid, len(q)
    b, side = TILE, window._halo()  # b, b + 2r
    r = (side - b) // 2
    below, right = -rows % b, -columns % b  # to whole squares
    q = rearrange(q, "B h (i j) d -> B h d i j", i=rows)  # (B, h, d, rows, columns)
    q = _squares(F.pad(q, (0, right, 0, below)), b, b)  # (B T, h, b b, d)
    kv = rearrange(torch.stack([k, v]), "two B h (i j) d -> two B h d i j", i=rows)
    k, v = (_squares(x, side, b) for x in F.pad(kv, (r, r + right, r, r + below)))  # (B T, h, S, d)

    row, column = coordinates((rows + below, columns + right))
    place = torch.stack([row, column]).to(q)  # (2, N'), where N' tokens are whole squares
    place = rearrange(place, "two (i j) -> 1 1 two i j", i=rows + below)
    mine = _squares(place, b, b)[:, 0]  # (T, b b, 2)
    theirs = _squares(F.pad(place, (r, r, r, r), value=-math.inf), side, b)[:, 0]  # (T, S, 2)
    limit = torch.tensor([rows, columns]).to(q)
    inside = (theirs >= 0).all(-1) & (theirs < limit).all(-1)  # (T, S), no filling
    apart = (mine[:, :, None] - theirs[:, None]).abs().amax(-1)  # (T, b b, S)
    near = (apart < window.reach[:, None, None, None]) & inside[:, None]  # (B, T, b b, S)
    near = near | ~(mine < limit).all(-1)[..., None]  # filling among the queries sees anything

    out = F.scaled_dot_product_attention(q, k, v, attn_mask=near.flatten(0, 1)[:, None])
    out = rearrange(
        out,
        "(B i j) h (y x) d -> B h (i y) (j x) d",
        B=batch,
        i=(rows + below) // b,
        y=b,
    )  # (B, h, rows', columns', d)
    return out[:, :, :rows, :columns].flatten(2, 3)  # (B, h, N, d)


def _squares(x: Tensor, side: int, stride: int) -> Tensor:
    """Squares of an image of vectors, (B, h, d, H, W) → (B T, h, side side, d)."""
    x = x.unfold(3, side, stride).unfold(4, side, stride)  # (B, h, d, rows, columns, side, side)
    return rearrange(x, "B h d i j y x -> (B i j) h (y x) d")


def block_mask(window: Window) -> BlockMask:
    """A window as FlexAttention has masks: blocks of 128 × 128 pairs that are empty are skipped.

    Args:
        window: on the grid's distance.

    Source: Dong et al. 2024.
    """
    columns, reach, n = window.grid[1], window.reach, math.prod(window.grid)

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        down, across = i // columns - j // columns, i % columns - j % columns
        return torch.maximum(down.abs(), across.abs()) < reach[b]

    return create_block_mask(near, len(reach), None, n, n, device=str(reach.device))


@cache
def _flex(device: str) -> Callable[..., Tensor]:
    """FlexAttention: compiled on a GPU; elsewhere as it is, which computes all pairs."""
    return torch.compile(flex_attention) if device == "cuda" else flex_attention
