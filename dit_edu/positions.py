"""Where a token stands: tables that are added to tokens, and rotations inside attention.

A Transformer does not know the order of its tokens. Either each token gets a vector that says where
it stands, or attention turns queries and keys by angles that do. Both begin with coordinates, and
both exist for any grid: for a larger image the coordinates either go on, or are packed more densely
into the range that the model knows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_positive_int

#: How a DiT tells tokens where they stand.
POSITIONS = ("none", "learned", "sincos", "rope")
ROPE_BASE = 100.0


def coordinates(
    grid: tuple[int, int], span: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Row and column of every token, in reading order.

    Args:
        grid: tokens per column and per row, (h, w).
        span: the grid whose area the tokens shall cover; their own unless given. A token stands at
            the centre of its area: token i of h is at (i + 1/2) · span / h - 1/2.

    Returns:
        Rows and columns, (N,) float64 each.
    """
    rows, columns = (
        (torch.arange(n, dtype=torch.float64) + 0.5) * (s / n) - 0.5
        for n, s in zip(grid, span or grid, strict=True)
    )  # (h,), (w,)
    row, column = torch.meshgrid(rows, columns, indexing="ij")  # (h, w) each
    return row.reshape(-1), column.reshape(-1)


def sincos_pos_embed(
    dim: int, grid: int | tuple[int, int], span: tuple[int, int] | None = None
) -> Tensor:
    """Fixed positions: each token's column and row as waves of many lengths.

    The first half of the channels encodes the column, the second half the row — in this order,
    because the published weights expect it. Within a half stand first all sines, then all cosines,
    of position · ω_k with ω_k = 10000^(-k / (dim/4)), k = 0 … dim/4 - 1.

    Args:
        dim: D, a multiple of 4.
        grid: tokens per column and per row, (h, w), or one number for both.
        span: see :func:`coordinates`.

    Returns:
        (N, D) float32 with N = h·w, in reading order.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.

    Source: Vaswani et al. 2017, section 3.5, in two dimensions as in DiT.
    """
    if check_positive_int("dim", dim) % 4:
        raise ValueError(f"dim={dim} must be a multiple of 4 (sine and cosine, column and row).")
    row, column = coordinates((grid, grid) if isinstance(grid, int) else grid, span)  # (N,) each
    return torch.cat([_waves(dim // 2, axis) for axis in (column, row)], dim=1).float()  # (N, D)


def sincos_time_embed(dim: int, frames: int) -> Tensor:
    """Fixed positions in time: the waves of one axis, as text models have them.

    Args:
        dim: D, even.
        frames: F.

    Returns:
        (F, D) float32.

    Raises:
        ValueError: ``dim`` is odd.

    Source: Vaswani et al. 2017, section 3.5.
    """
    if check_positive_int("dim", dim) % 2:
        raise ValueError(f"dim={dim} must be even (sine and cosine).")
    time = torch.arange(check_positive_int("frames", frames), dtype=torch.float64)  # (F,)
    return _waves(dim, time).float()  # (F, D)


def _waves(dim: int, position: Tensor) -> Tensor:
    """All sines, then all cosines, of position · ω_k with ω_k = 10000^(-2k / dim): (N, dim)."""
    omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))  # (dim/2,)
    angles = position.unsqueeze(1) * omega  # (N, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)  # (N, dim)


def resize_pos_embed(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """A table of positions as a picture of D channels, resized to another grid (bicubic).

    Args:
        table: (N, D), in reading order.
        grid: of the table, (h, w) with N = h·w.
        new_grid: the grid that is wanted.

    Returns:
        (N', D) with N' tokens of the new grid.

    Raises:
        ValueError: the table does not fit ``grid``.

    Source: Dosovitskiy et al. 2021, section 3.2.
    """
    h, w = grid
    if table.ndim != 2 or len(table) != h * w:
        raise ValueError(
            f"table has shape {tuple(table.shape)}; allowed for grid={h}x{w}: ({h * w}, D)."
        )
    picture = rearrange(table, "(h w) d -> 1 d h w", h=h, w=w)  # (1, D, h, w)
    resized = F.interpolate(picture, new_grid, mode="bicubic", align_corners=False)
    return rearrange(resized, "1 d h w -> (h w) d")  # (N', D)


class Rotary(nn.Module):
    """Positions by rotation (RoPE-2D): turn queries and keys, and only their offset is left.

    Channel k and channel k + d/2 of a head are a pair, a point in a plane. A token in row i and
    column j turns the first half of its pairs by ω_k j and the second half by ω_k i. A product of
    a turned query and a turned key depends on the difference of their angles alone.

    Args:
        head_dim: d, a multiple of 4.
        grid: tokens per column and per row, (h, w).
        span: see :func:`coordinates`.

    Raises:
        ValueError: ``head_dim`` is not a multiple of 4.

    Source: Su et al. 2021, section 3.2; in two dimensions, with 100 for 10000, Heo et al. 2024.
    """

    def __init__(
        self, head_dim: int, grid: tuple[int, int], span: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        if check_positive_int("head_dim", head_dim) % 4:
            raise ValueError(
                f"head_dim={head_dim} must be a multiple of 4 (pairs, column and row)."
            )
        row, column = coordinates(grid, span)  # (N,) each
        k = torch.arange(head_dim // 4, dtype=torch.float64)  # (d/4,)
        omega = ROPE_BASE ** (-k / (head_dim / 4))  # (d/4,)
        angles = torch.cat([axis.unsqueeze(1) * omega for axis in (column, row)], dim=1)  # (N, d/2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn queries or keys ``x`` (B, h, N, d), each token by its own angles; same shape.

        Raises:
            ValueError: there are not as many tokens as places.
        """
        if x.shape[-2] != len(self.cos):
            raise ValueError(
                f"x has {x.shape[-2]} tokens; allowed: {len(self.cos)}, one for each place."
            )
        a, b = x.chunk(2, dim=-1)  # (B, h, N, d/2) each: the points (a, b)
        turned = torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], dim=-1)
        return turned.to(x.dtype)  # (B, h, N, d)
