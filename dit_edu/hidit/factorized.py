"""Attention in two directions: over places and over channels, joined by a linear map.

A token can learn from other tokens by looking at them, which costs a product for each pair. Or
channels look at channels, over all tokens at once: then the table has d × d entries for each head,
whatever the number of tokens. All modules have the signature of plain attention.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.attention import Attention


def _no_mask(mask: Tensor | None, why: str) -> None:
    if mask is not None:
        raise ValueError(f"mask of shape {tuple(mask.shape)}; allowed: None, {why}.")


class ChannelAttention(Attention):
    """Channels look at channels: V softmax(τ K̂ᵀ Q̂) with queries and keys of length 1 over tokens.

    Each head's table is d × d, so time and memory are linear in N. The columns of Q and K, one
    for each channel, are divided by their lengths over the tokens; τ is a learnt temperature, one
    for each head. Tokens do not look at each other; what they share is the table.

    Args:
        dim, num_heads, qkv_bias: as in :class:`~dit_edu.attention.Attention`.

    Source: El-Nouby et al. 2021 (XCiT), section 3.2, "cross-covariance attention".
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads, qkv_bias)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))  # τ

    def forward(
        self, x: Tensor, *, cond: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens ``x`` (B, N, D) → (B, N, D).

        Raises:
            ValueError: there is a ``mask``, which speaks of pairs of tokens.
        """
        _no_mask(mask, "since channels do not look at pairs of tokens")
        q, k, v = (part.transpose(-2, -1) for part in self.project(x))  # (B, h, d, N) each
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)  # length 1 over the tokens
        weights = (self.temperature * (q @ k.transpose(-2, -1))).softmax(dim=-1)  # (B, h, d, d)
        return self.proj(rearrange(weights @ v, "b h d n -> b n (h d)"))  # (B, N, D)


class WindowAttention(Attention):
    """Tokens look at those of their own window, a square of the grid.

    Args:
        dim, num_heads: as in :class:`~dit_edu.attention.Attention`.
        grid: tokens per column and per row, (h, w).
        window: the side of a window in tokens; divides h and w.

    Raises:
        TypeError, ValueError: ``window`` does not fit the grid.

    Source: Liu et al. 2021 (Swin), section 3.2, without the shift.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], window: int) -> None:
        super().__init__(dim, num_heads)
        check_positive_int("window", window)
        if grid[0] % window or grid[1] % window:
            raise ValueError(f"window={window} does not divide grid={grid[0]}x{grid[1]}.")
        self.grid, self.window = grid, window

    def forward(
        self, x: Tensor, *, cond: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens ``x`` (B, N, D), N = h·w → (B, N, D).

        Raises:
            ValueError: there is a ``mask``, or N is not that of the grid.
        """
        _no_mask(mask, "since a token sees its window")
        rows = _on_grid(x, self.grid)[0] // self.window
        sizes = dict(h=rows, p=self.window, q=self.window)
        x = rearrange(x, "b (h p w q) d -> (b h w) (p q) d", **sizes)  # a window is an image
        x = super().forward(x)  # (B windows, window², D)
        w = self.grid[1] // self.window
        return rearrange(x, "(b h w) (p q) d -> b (h p w q) d", w=w, **sizes)  # (B, N, D)


class AxialAttention(Attention):
    """Half of the heads look along the token's row, the others along its column.

    Args:
        dim, num_heads: as in :class:`~dit_edu.attention.Attention`; an even number of heads.
        grid: tokens per column and per row, (h, w).

    Raises:
        ValueError: ``num_heads`` is odd.

    Source: Ho et al. 2019, section 3, in parallel instead of in turn.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]) -> None:
        super().__init__(dim, num_heads)
        if num_heads % 2:
            raise ValueError(f"num_heads={num_heads} must be even: half for rows.")
        self.grid = grid

    def forward(
        self, x: Tensor, *, cond: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens ``x`` (B, N, D), N = h·w → (B, N, D).

        Raises:
            ValueError: there is a ``mask``, or N is not that of the grid.
        """
        _no_mask(mask, "since a token sees its row and its column")
        h, _ = _on_grid(x, self.grid)
        halves = [part.chunk(2, dim=1) for part in self.project(x)]  # 3 x 2 of (B, h/2, N, d)
        out = []
        for qkv, line in zip(zip(*halves, strict=True), ("b g h w d", "b g w h d"), strict=True):
            q, k, v = (rearrange(part, f"b g (h w) d -> {line}", h=h) for part in qkv)
            seen = F.scaled_dot_product_attention(q, k, v)  # (B, h/2, lines, tokens of one, d)
            out.append(rearrange(seen, f"{line} -> b (h w) (g d)"))  # (B, N, D/2)
        return self.proj(torch.cat(out, dim=-1))  # (B, N, D)


def _on_grid(x: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    """``grid``, if the tokens ``x`` (B, N, D) are as many."""
    if x.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"x has {x.shape[1]} tokens; allowed for grid={grid[0]}x{grid[1]}.")
    return grid


#: The spatial branches by name, each made from D, h, the grid and the side of a window.
SPATIAL: dict[str, Callable[[int, int, tuple[int, int], int], Attention]] = {
    "full": lambda dim, heads, grid, window: Attention(dim, heads),
    "window": WindowAttention,
    "axial": lambda dim, heads, grid, window: AxialAttention(dim, heads, grid),
}


class FactorizedAttention(nn.Module):
    """A spatial and a channel branch side by side, put together by a linear map.

    Args:
        dim: D.
        num_heads: h, of each branch; with ``half`` that of both together.
        grid: tokens per column and per row, (h, w).
        spatial: a key of :data:`SPATIAL`.
        window: the side of a window, where there are windows.
        half: give each branch half of the channels, not all.

    Raises:
        TypeError, ValueError: a size does not fit another; the message names both.

    Source: the notes on HiDiT, whose channel branch runs only where N equals D.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        spatial: str = "full",
        window: int = 4,
        half: bool = False,
    ) -> None:
        super().__init__()
        check_choice("spatial", spatial, SPATIAL)
        if half and (dim % 2 or num_heads % 2):
            raise ValueError(f"half=True needs even dim={dim} and num_heads={num_heads}.")
        self.half = half
        width, heads = (dim // 2, num_heads // 2) if half else (dim, num_heads)
        self.spatial = SPATIAL[spatial](width, heads, grid, window)
        self.channel = ChannelAttention(width, heads)
        self.fuse = nn.Linear(2 * width, dim)

    def forward(
        self, x: Tensor, *, cond: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens ``x`` (B, N, D) → (B, N, D).

        Raises:
            ValueError: there is a ``mask``, which the channels could not obey.
        """
        _no_mask(mask, "since channels do not look at pairs of tokens")
        here, there = x.chunk(2, dim=-1) if self.half else (x, x)  # (B, N, D/2 or D) each
        both = [self.spatial(here), self.channel(there)]
        return self.fuse(torch.cat(both, dim=-1))  # (B, N, D or 2D) -> (B, N, D)


def attention_macs(
    dim: int,
    num_heads: int,
    grid: tuple[int, int],
    spatial: str = "full",
    window: int = 4,
    half: bool = False,
    channel: bool = True,
) -> dict[str, int]:
    """MACs of attention for one image, in closed form, by what they grow with.

    Args:
        dim, num_heads, grid, spatial, window, half: as in :class:`FactorizedAttention`.
        channel: count the channel branch and the fusion too; without them it is a spatial branch
            of all D channels alone.

    Returns:
        ``tokens``, the linear maps; ``pairs``, tokens that look at tokens; ``table``, channels that
        look at channels.
    """
    h, w = grid
    n = h * w
    seen = {"full": n, "window": window**2, "axial": (h + w) / 2}[
        check_choice("spatial", spatial, SPATIAL)
    ]  # tokens that a token looks at, on average over the heads
    width = dim // 2 if half and channel else dim
    pairs = round(2 * n * seen * width)  # scores, and weights times values
    if not channel:
        return {"tokens": 4 * dim**2 * n, "pairs": pairs, "table": 0}
    d = dim // num_heads  # the same for half of the heads of half the width
    tokens = 2 * 4 * width**2 * n + 2 * width * dim * n  # two branches of 4 D², fusion
    return {"tokens": tokens, "pairs": pairs, "table": 2 * n * width * d}
