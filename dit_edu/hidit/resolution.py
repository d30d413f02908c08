"""Small images first: the same weights train on images of a quarter of the pixels, then on all.

A small image is the whole scene resized, or a window cut out of it at full size. Where its tokens
stand must follow: a resized image's tokens are spread over the whole area, a window's stand where
it was cut. And a resized image is noisier than it looks: see :func:`shifted`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.func import functional_call

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.patchify import token_grid
from dit_edu.positions import sincos_pos_embed


def resized(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Smaller images by means over areas, so that no frequency is taken for another.

    Args:
        x: (B, C, H, W).
        size: (H', W'), or one number for both; at most (H, W).

    Returns:
        (B, C, H', W').

    Raises:
        ValueError: ``size`` is larger than the images.
    """
    h, w = (size, size) if isinstance(size, int) else size
    if not (1 <= h <= x.shape[-2] and 1 <= w <= x.shape[-1]):
        raise ValueError(f"size={h}x{w}; allowed: 1x1 to {x.shape[-2]}x{x.shape[-1]}.")
    return F.interpolate(x, (h, w), mode="area")


def shifted(process: GaussianDiffusion, factor: float) -> GaussianDiffusion:
    """The process whose signal-to-noise ratio is ``factor²`` times as large at every step.

    A mean over r × r pixels leaves the image and divides the noise by r. So a large image under
    ``process`` looks, seen from afar, like a small one under ``shifted(process, r)``.

    Args:
        process: the process of the large images.
        factor: r, the ratio of the sides; above 0.

    Returns:
        A process with the same options and as many steps.

    Raises:
        ValueError: ``factor`` is not above 0.

    Source: Hoogeboom et al. 2023, section 3.1, read from large to small.
    """
    if not factor > 0:
        raise ValueError(f"factor={factor}; allowed: above 0.")
    ab = process.alphas_cumprod  # (T,)
    ab = ab * factor**2 / (1 - ab + ab * factor**2)  # ᾱ / (1 - ᾱ), times r²
    before = torch.cat([ab.new_ones(1), ab[:-1]])  # (T,)
    return GaussianDiffusion(
        1 - ab / before,
        process.prediction,
        variance=process.variance,
        loss=process.loss,
        min_snr=process.min_snr,
        levels=process.levels,
    )


def window_losses(model: DiT, process: GaussianDiffusion, x0, t, y, noise) -> dict[str, Tensor]:
    """A loss for the training loop: of a window, cut at random, in the place where it was cut.

    All images of a batch are cut alike. The window's corners lie between tokens.

    Args:
        model: of the size of the window, with fixed positions (sine and cosine).
        process, x0, t, y, noise: see :data:`dit_edu.lab.train.LossFn`; x0 and noise (B, C, H, W)
            are of full size.

    Raises:
        ValueError: the images are smaller than the window, or the positions are of another kind.
    """
    if model.positions != "sincos":
        raise ValueError(f"positions={model.positions!r}; allowed: 'sincos'.")
    p, (h, w) = model.patch_size, model.x_embedder.grid
    grid = token_grid(tuple(x0.shape[-2:]), p)
    if h > grid[0] or w > grid[1]:
        raise ValueError(f"windows of {h}x{w} tokens in {grid[0]}x{grid[1]}; allowed: no larger.")
    top, left = (int(torch.randint(n - m + 1, ())) for n, m in zip(grid, (h, w), strict=True))
    table = sincos_pos_embed(model.pos_embed.shape[-1], grid).to(model.pos_embed)  # (N, D)
    table = rearrange(table, "(h w) d -> h w d", h=grid[0])[top : top + h, left : left + w]
    places = {"pos_embed": table.flatten(0, 1).unsqueeze(0)}  # (1, N', D)
    area = (..., slice(p * top, p * (top + h)), slice(p * left, p * (left + w)))

    def there(*inputs: Any) -> Tensor:
        return functional_call(model, places, inputs)

    return process.losses(there, x0[area], t, y, noise=noise[area])
