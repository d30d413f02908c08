"""Samplers as solvers of a differential equation: more of the way with each step.

Without noise, sampling follows a curve, and a step of it is a step of a numerical method. One that
takes the curve for straight (DDIM, Euler) halves its error with twice the steps. One that also sees
how it bends (DPM-Solver++(2M) from the step before, Heun from a look ahead) quarters it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_positive_int, check_process
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.grids import flow_grid, timestep_grid
from dit_edu.walk import Ask, walk


def dpmpp_2m_sample(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    shape: tuple[int, ...],
    y: Tensor,
    *,
    steps: int | str = 20,
    grid: str = "uniform",
    clip: bool = False,
    **options: Any,
) -> Tensor:
    """DPM-Solver++(2M): x̂_0, and how it changed since the last step, in the clock log(a/b).

    The other arguments are those of :func:`~dit_edu.sampling.ddpm_sample`.

    Args:
        steps: how many steps to make, 1 to T - 1; or a text, as there.
        grid: which ones. The last of the grid, t = 0, is left out: log(a/b) rises so fast towards
            the clean image that a step to it would trust the slope too far. From the step before
            the walk ends at x̂_0.

    Returns:
        x_0, of ``shape``.

    Raises:
        TypeError, ValueError: as :func:`~dit_edu.sampling.ddpm_sample`.

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2.
    """
    check_process("dpmpp_2m_sample", diffusion, GaussianDiffusion)
    last: dict[str, Tensor] = {}  # λ and x̂_0 of the step before

    def look(ask: Ask, x: Tensor, t: Tensor, t_prev: Tensor) -> dict[str, Tensor]:
        return diffusion.p_mean_variance(ask(x, t), x, t, clip, t_prev)

    def move(p: dict[str, Tensor], x, t, t_prev, ask, fresh) -> Tensor:
        now, then = diffusion.alpha_bar(t, x), diffusion.alpha_bar(t_prev, x)  # (B, 1, 1, 1)
        lambda_now, lambda_then = (0.5 * torch.logit(ab) for ab in (now, then))  # λ = log(a/b)
        h = lambda_then - lambda_now
        x0 = guess = p["x0"]
        if last:
            r = (lambda_now - last["lambda"]) / h  # r = h_{i-1} / h_i
            guess = x0 + (0.5 / r).to(x.dtype) * (x0 - last["x0"])  # (1 + 1/2r) D_i - 1/2r D_{i-1}
        last.update({"lambda": lambda_now, "x0": x0})
        keep = ((1 - then) / (1 - now)).sqrt()  # b_t' / b_t
        return keep.to(x.dtype) * x - (then.sqrt() * torch.expm1(-h)).to(x.dtype) * guess

    return walk(model, look, move, _without_last(diffusion, steps, grid), -1, shape, y, **options)


def _without_last(diffusion: GaussianDiffusion, steps: int | str, grid: str) -> list[int]:
    """The steps that DPM-Solver++ visits: a grid of one more, less its last."""
    num = diffusion.num_timesteps
    if isinstance(steps, str):
        return timestep_grid(num, steps, grid).tolist()
    if check_positive_int("steps", steps) >= num:
        raise ValueError(f"steps={steps} exceeds the process; allowed: 1 to {num - 1}.")
    return timestep_grid(num, steps + 1, grid, diffusion.betas)[:-1].tolist()


def euler_sample(
    model: nn.Module,
    flow: FlowMatching,
    shape: tuple[int, ...],
    y: Tensor,
    *,
    steps: int = 20,
    grid: str = "uniform",
    clip: bool = False,
    **options: Any,
) -> Tensor:
    """Euler's method for a flow: go straight ahead, x_τ' = x_τ + (τ' - τ) v̂.

    The other arguments are those of :func:`~dit_edu.sampling.ddpm_sample`.

    Args:
        flow: the process the model was trained for.
        steps: how many to make, at least 1.
        grid: where, see :func:`~dit_edu.grids.flow_grid`.

    Returns:
        x_0, of ``shape``.

    Raises:
        TypeError, ValueError: as :func:`~dit_edu.sampling.ddpm_sample`.

    Source: Liu et al. 2023 (rectified flow), section 2.
    """
    return _follow(False, "euler_sample", model, flow, shape, y, steps, grid, clip, options)


def heun_sample(
    model: nn.Module,
    flow: FlowMatching,
    shape: tuple[int, ...],
    y: Tensor,
    *,
    steps: int = 10,
    grid: str = "uniform",
    clip: bool = False,
    **options: Any,
) -> Tensor:
    """Heun's method for a flow: look where Euler would land, and take the mean of both velocities.

    Each step but the last asks the denoiser twice. The arguments are those of
    :func:`euler_sample`.

    Returns:
        x_0, of ``shape``.

    Raises:
        TypeError, ValueError: as :func:`~dit_edu.sampling.ddpm_sample`.

    Source: Karras et al. 2022 (EDM), algorithm 1; there too the last step is Euler's.
    """
    return _follow(True, "heun_sample", model, flow, shape, y, steps, grid, clip, options)


def _follow(twice, name, model, flow, shape, y, steps, grid, clip, options) -> Tensor:
    """Follow the velocity down the times of the grid, correcting each step if ``twice``."""
    check_process(name, flow, FlowMatching)

    def look(ask: Ask, x: Tensor, t: Tensor, t_prev: Tensor) -> dict[str, Tensor]:
        x0, eps = flow.predict(ask(x, t), x, t, clip)  # (B, C, H, W) each
        return {"x0": x0, "v": eps - x0}

    def move(seen: dict[str, Tensor], x, t, t_prev, ask, fresh) -> Tensor:
        stride = flow.signal_noise(t_prev, x)[1] - flow.signal_noise(t, x)[1]  # τ' - τ < 0
        v = seen["v"]
        if twice:
            v = (v + look(ask, x + stride * v, t_prev, t_prev)["v"]) / 2
        return x + stride * v

    ts = ((flow.num_timesteps - 1) * flow_grid(steps, grid)[:-1]).tolist()  # t = 999 τ
    return walk(model, look, move, ts, 0.0, shape, y, **options)
