"""From an image to a sequence of tokens and back.

A Transformer reads a sequence. ``patchify`` cuts an image into squares of p × p pixels and lays
them out in reading order: N = (H/p)(W/p) tokens of p²C numbers each. Nothing is lost, and
``unpatchify`` puts the picture together again.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.positions import sincos_pos_embed

__all__ = ["PatchEmbed", "patchify", "sincos_pos_embed", "token_grid", "unpatchify"]


def token_grid(size: tuple[int, int], p: int) -> tuple[int, int]:
    """How many tokens an image of ``size`` = (H, W) pixels gives in each direction.

    Raises:
        TypeError, ValueError: ``p`` is not an integer of at least 1, or does not divide H and W.
    """
    check_positive_int("p", p)
    h, w = size
    if h % p or w % p:
        fits = [q for q in range(1, min(h, w) + 1) if h % q == 0 and w % q == 0]
        raise ValueError(
            f"p={p} does not divide the image of {h}x{w} pixels; "
            f"allowed: {', '.join(map(str, fits))}."
        )
    return h // p, w // p


def patchify(x: Tensor, p: int) -> Tensor:
    """Cut images into tokens, in reading order; a token lists its pixels as (row, column, channel).

    Args:
        x: images, (B, C, H, W).
        p: the side of a patch in pixels; divides H and W.

    Returns:
        (B, N, p·p·C) with N = (H/p)(W/p).

    Raises:
        TypeError, ValueError: ``x`` is no batch of images, or ``p`` does not fit.

    Source: Dosovitskiy et al. 2021, section 3.1; the order (p, q, c) is that of DiT's output head.
    """
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (B, C, H, W).")
    token_grid(tuple(x.shape[-2:]), p)
    return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)  # (B, N, p*p*C)


def unpatchify(tokens: Tensor, p: int, grid: tuple[int, int]) -> Tensor:
    """Put tokens back together; the inverse of :func:`patchify`.

    Args:
        tokens: (B, N, p·p·C).
        p: the side of a patch in pixels.
        grid: tokens per column and per row, (H/p, W/p).

    Returns:
        images, (B, C, H, W).

    Raises:
        TypeError, ValueError: number or length of the tokens does not fit ``grid`` and ``p``.
    """
    check_positive_int("p", p)
    h, w = grid
    if tokens.ndim != 3 or tokens.shape[1] != h * w or tokens.shape[2] % (p * p):
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}; allowed for grid={h}x{w} and p={p}: "
            f"(B, {h * w}, {p * p}*C)."
        )
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)  # (B,C,H,W)


class PatchEmbed(nn.Module):
    """Tokens of width D straight from the image: a linear map of each patch.

    Written as a convolution whose stride is its kernel, because then its weights are those of the
    published checkpoints. The kernel flattens as (c, p, q), :func:`patchify` as (p, q, c): the two
    agree once the weight is permuted.

    Args:
        input_size: (H, W) in pixels.
        patch_size: p; divides H and W.
        in_channels: C.
        hidden_size: D.

    Raises:
        TypeError, ValueError: ``patch_size`` does not fit the image.
    """

    def __init__(
        self, input_size: tuple[int, int], patch_size: int, in_channels: int, hidden_size: int
    ) -> None:
        super().__init__()
        self.grid = token_grid(input_size, patch_size)
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) → tokens (B, N, D)."""
        tokens = self.proj(x).flatten(2)  # (B, D, h, w) -> (B, D, N)
        return tokens.transpose(1, 2).contiguous()  # (B, N, D), or every later norm must reorder it
