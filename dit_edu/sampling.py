"""Sampling: from pure noise to an image, by the steps of a grid.

Every sampler walks down a grid of steps t_1 > t_2 > … > t_K and ends at the clean image. At each
step the denoiser gives x̂_0, and samplers differ only in where they go from there. DDPM draws from
the posterior q(x_t' | x_t, x̂_0); DDIM goes straight to the point whose noise is the predicted one,
and can be walked upwards too. Those that get by with fewer steps are in :mod:`dit_edu.solvers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_labels, check_process
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.grids import GRIDS, timestep_grid
from dit_edu.walk import (
    Ask,
    Callback,
    Generators,
    Trajectory,
    asking,
    batch_of,
    evaluating,
    noise_streams,
    walk,
)

__all__ = [
    "GRIDS",
    "Callback",
    "Trajectory",
    "ddim_invert",
    "ddim_sample",
    "ddpm_sample",
    "noise_streams",
    "timestep_grid",
]


def ddpm_sample(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    shape: tuple[int, ...],
    y: Tensor,
    *,
    steps: int | str | None = None,
    grid: str = "uniform",
    generator: Generators = None,
    noise: Tensor | None = None,
    clip: bool = False,
    progress: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling: draw x_t' ~ p(x_t' | x_t) at every step of the grid.

    Args:
        model: a denoiser; put into evaluation mode while sampling.
        diffusion: the process it was trained for.
        shape: (B, C, H, W) of the result.
        y: conditions, (B,); the samples are drawn on their device.
        steps: how many of the T steps to visit, all of them unless given; or which, as a text such
            as ``"10,10,10"``.
        grid: which ones, see :func:`~dit_edu.grids.timestep_grid`.
        generator: the source of all noise; or one for each sample, see
            :func:`~dit_edu.walk.noise_streams`.
        noise: the first x_{T-1}, of ``shape``; drawn if not given.
        clip: clamp x̂_0 to [-1, 1] at every step.
        progress: show a progress bar.
        callback: called after every step as ``callback(k, t, x_t, x0_hat)``, such as a
            :class:`~dit_edu.walk.Trajectory`.

    Returns:
        x_0, of ``shape``.

    Raises:
        TypeError, ValueError: a bad grid, label, shape or process, or an output of the denoiser
            that is not finite; the message names the sampling step.

    Source: Ho et al. 2020, algorithm 2; on a subset of steps: Nichol & Dhariwal 2021, section 4.
    """
    check_process("ddpm_sample", diffusion, GaussianDiffusion)

    def look(ask: Ask, x: Tensor, t: Tensor, t_prev: Tensor) -> dict[str, Tensor]:
        return diffusion.p_mean_variance(ask(x, t), x, t, clip, t_prev)

    def move(p: dict[str, Tensor], x, t, t_prev, ask, fresh: Callable[[], Tensor]) -> Tensor:
        return p["mean"] + p["variance"].sqrt() * fresh()  # x_t' = μ + σ z

    steps = diffusion.num_timesteps if steps is None else steps
    ts = timestep_grid(diffusion.num_timesteps, steps, grid, diffusion.betas).tolist()
    return walk(
        model, look, move, ts, -1, shape, y,
        generator=generator, noise=noise, progress=progress, callback=callback,
    )  # fmt: skip


def ddim_sample(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    shape: tuple[int, ...],
    y: Tensor,
    *,
    steps: int | str = 50,
    eta: float = 0.0,
    grid: str = "uniform",
    clip: bool = False,
    **options: Any,
) -> Tensor:
    """DDIM: a deterministic path (η = 0) that gets by with few steps.

    With η = 1 and a fixed, small variance the steps are those of :func:`ddpm_sample`. The other
    arguments are the same too.

    Args:
        eta: η, how much of the posterior's noise is added again, at least 0.

    Returns:
        x_0, of ``shape``.

    Raises:
        TypeError, ValueError: a bad ``eta``, or as :func:`ddpm_sample`.

    Source: Song et al. 2021 (DDIM), equations 12 and 16.
    """
    if not eta >= 0:
        raise ValueError(f"eta={eta} must be a number >= 0.")
    check_process("ddim_sample", diffusion, GaussianDiffusion)

    def look(ask: Ask, x: Tensor, t: Tensor, t_prev: Tensor) -> dict[str, Tensor]:
        return diffusion.p_mean_variance(ask(x, t), x, t, clip, t_prev)

    def move(p: dict[str, Tensor], x, t, t_prev, ask, fresh: Callable[[], Tensor]) -> Tensor:
        ab_prev = diffusion.alpha_bar(t_prev, x).to(x.dtype)  # (B, 1, 1, 1)
        sigma2 = eta**2 * diffusion.q_posterior(p["x0"], x, t, t_prev)[1]  # σ² = η² β̃
        x = ab_prev.sqrt() * p["x0"] + (1 - ab_prev - sigma2).clamp(min=0).sqrt() * p["eps"]
        return x + sigma2.sqrt() * fresh() if eta else x

    ts = timestep_grid(diffusion.num_timesteps, steps, grid, diffusion.betas).tolist()
    return walk(model, look, move, ts, -1, shape, y, **options)


@torch.no_grad()
def ddim_invert(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    y: Tensor,
    *,
    steps: int | str = 50,
    grid: str = "uniform",
) -> Tensor:
    """DDIM upwards: the noise from which :func:`ddim_sample` (η = 0) draws an image.

    A step from t' up to t needs the ε̂ of where it ends, and has that of where it begins; so the way
    back meets the image the better, the more steps there are. (Of the clean image itself no network
    was asked: there the lowest step of the grid stands in.)

    Args:
        model, diffusion, y, steps, grid: as in :func:`ddim_sample`.
        x0: clean images, (B, C, H, W).

    Returns:
        x_t for the highest t of the grid, the shape of ``x0``.

    Raises:
        TypeError, ValueError: as :func:`ddim_sample`.

    Source: Song et al. 2021 (DDIM), equation 14, and section 5.4.
    """
    check_process("ddim_invert", diffusion, GaussianDiffusion)
    check_labels(model, y)
    up = timestep_grid(diffusion.num_timesteps, steps, grid, diffusion.betas).flip(0).tolist()
    x = x0
    with evaluating(model):
        for k, (t_prev, t) in enumerate(zip([-1, *up], up, strict=False)):
            at = batch_of(max(t_prev, up[0]), x)  # (B,)
            out = asking(model, y, f"step k={k} of the inversion")(x, at)
            p = diffusion.p_mean_variance(out, x, at)
            signal, sigma = diffusion.signal_noise(batch_of(t, x), x)  # (B, 1, 1, 1)
            x = signal * (x if t_prev == -1 else p["x0"]) + sigma * p["eps"]
    return x
