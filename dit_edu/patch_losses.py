"""The loss, patch by patch: the same number as the plain loss, and a map of where it comes from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.interpolant import Interpolant
from dit_edu.patchify import patchify, token_grid


def token_errors(error: Tensor, p: int) -> Tensor:
    """The mean square of each token of an error image.

    Args:
        error: what was said minus what was right, (B, C, H, W).
        p: the side of a patch in pixels; divides H and W.

    Returns:
        (B, N), in reading order.

    Raises:
        TypeError, ValueError: see :func:`~dit_edu.patchify.patchify`.
    """
    return patchify(error.square(), p).mean(-1)  # (B, N, p*p*C) -> (B, N)


def patch_loss(
    model: nn.Module,
    process: Interpolant,
    x0: Tensor,
    t: Tensor,
    y: Tensor,
    noise: Tensor,
    *,
    p: int,
) -> dict[str, Tensor]:
    """The loss of every sample as a mean over its tokens; fix ``p`` and it is a loss of the loop.

    All tokens hold equally many numbers, so the mean of their means is the mean over all pixels:
    this is the simple loss, arranged so that one sees where it comes from.

    Args:
        model: a denoiser; of 2C channels the first C are looked at.
        process: the diffusion process or the flow.
        x0: clean images, (B, C, H, W).
        t: steps, (B,).
        y: labels, (B,).
        noise: ε, the shape of ``x0``.
        p: the side of a patch in pixels.

    Returns:
        ``loss`` and ``mse``, (B,), the same twice, and ``tokens``, (B, N).

    Raises:
        TypeError, ValueError: ``p`` or a shape does not fit.
    """
    out = model(process.q_sample(x0, t, noise), t, y)[:, : x0.shape[1]]  # (B, C, H, W)
    tokens = token_errors(out - process.target(x0, noise, t), p)  # (B, N)
    mse = tokens.mean(1)  # (B,)
    return {"loss": mse, "mse": mse, "tokens": tokens}


@torch.no_grad()
def loss_map(
    model: nn.Module,
    process: Interpolant,
    x0: Tensor,
    y: Tensor,
    *,
    p: int,
    bins: int = 10,
    repeats: int = 8,
    seed: int = 0,
) -> Tensor:
    """The mean loss over position and noise level, for as many images as are given.

    Each image is noised ``repeats`` times in every bin, with levels spread evenly over the bin.

    Args:
        model: a denoiser.
        process: the process it was trained for.
        x0: clean images, (B, C, H, W).
        y: labels, (B,).
        p: the side of a patch in pixels; 1 gives a map of pixels.
        bins: equal ranges of t, low noise first.
        repeats: noise levels for each image in each bin.
        seed: of levels and noise, on the CPU.

    Returns:
        (bins, H/p, W/p).

    Raises:
        TypeError, ValueError: ``p``, ``bins`` or ``repeats`` is no positive integer, or does not
            fit.
    """
    check_positive_int("bins", bins)
    n, width = check_positive_int("repeats", repeats) * len(x0), process.num_timesteps / bins
    g = torch.Generator().manual_seed(seed)
    x0, y = x0.repeat(repeats, 1, 1, 1), y.repeat(repeats)  # (n, C, H, W), (n,)
    maps = []
    for b in range(bins):
        levels = (b + (torch.randperm(n, generator=g) + 0.5) / n) * width  # (n,) in bin b
        noise = torch.randn(x0.shape, generator=g).to(x0)  # (n, C, H, W)
        found = patch_loss(model, process, x0, levels.long().to(y.device), y, noise, p=p)
        maps.append(found["tokens"].mean(0))  # (n, N) -> (N,)
    return torch.stack(maps).unflatten(1, token_grid(tuple(x0.shape[-2:]), p))  # (bins, h, w)
