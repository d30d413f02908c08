"""Noise levels: how much noise each step holds, how much that matters, and what others call it.

A schedule is a list of β; its product ᾱ_t = Π (1 - β_i) says what is left of the signal. Papers
measure the same noise by three clocks, and :func:`convert_level` translates:

    alpha_bar   DDPM   x = sqrt(ᾱ) x_0 + sqrt(1-ᾱ) ε
    sigma       EDM    x = x_0 + σ ε
    tau         flow   x = (1-τ) x_0 + τ ε

All arithmetic is in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dit_edu._checks import check_choice, check_positive_int

PREDICTIONS = ("eps", "x0", "v")
CLOCKS = ("alpha_bar", "sigma", "tau")


def linear_betas(num_timesteps: int) -> Tensor:
    """The linear schedule of DDPM: β from 1e-4 to 0.02, rescaled so that any T ends as noisy.

    Args:
        num_timesteps: T, at least 1.

    Returns:
        β_0 … β_{T-1}, float64, shape (T,).

    Raises:
        TypeError, ValueError: T is not an integer >= 1. (Where T is so small that a β would reach
            1, :func:`check_betas` says so.)

    Source: Ho et al. 2020, section 4 (T = 1000); the rescaling by 1000/T is that of Nichol &
    Dhariwal 2021.
    """
    scale = 1000 / check_positive_int("num_timesteps", num_timesteps)
    return torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64)


def cosine_betas(num_timesteps: int) -> Tensor:
    """The cosine schedule: ᾱ falls like cos², so that noise comes in more evenly.

    Args:
        num_timesteps: T, at least 1.

    Returns:
        β_0 … β_{T-1}, float64, shape (T,), each at most 0.999.

    Source: Nichol & Dhariwal 2021, equation 17 (offset s = 0.008).
    """
    check_positive_int("num_timesteps", num_timesteps)
    u = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)  # (T+1,)
    alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # f(u) = cos²(…)
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)  # β_t = 1 - f(t+1) / f(t)


def check_betas(betas: Tensor) -> Tensor:
    """A schedule of one's own, checked: β_0 … β_{T-1} as float64, shape (T,).

    Raises:
        ValueError: ``betas`` is no vector, or a β is not strictly between 0 and 1.
    """
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if betas.ndim != 1 or not len(betas):
        raise ValueError(f"betas has shape {tuple(betas.shape)}; allowed: (T,) with T >= 1.")
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(
            f"betas runs from {betas.min():.4g} to {betas.max():.4g}; allowed: 0 < beta < 1."
        )
    return betas


def snr(alpha_bar: Tensor) -> Tensor:
    """The signal-to-noise ratio ᾱ / (1 - ᾱ), the shape of ``alpha_bar``."""
    return alpha_bar / (1 - alpha_bar)


def min_snr_weight(alpha_bar: Tensor, gamma: float, prediction: str) -> Tensor:
    """The min-SNR-γ weight of the squared error: easy, almost clean steps count for less.

    On x_0 the weight is min(SNR, γ). An error of ε is sqrt(SNR) times, one of v sqrt(SNR + 1) times
    that of x_0, so their weights are min(SNR, γ) / SNR and min(SNR, γ) / (SNR + 1).

    Args:
        alpha_bar: ᾱ, any shape.
        gamma: γ, above 0; the paper takes 5.
        prediction: what the squared error is of: ``"eps"``, ``"x0"`` or ``"v"``.

    Returns:
        The weights, the shape of ``alpha_bar``.

    Raises:
        ValueError: ``gamma`` is not a finite number above 0, or ``prediction`` is unknown.

    Source: Hang et al. 2023, section 3.4.
    """
    if not 0 < gamma < math.inf:
        raise ValueError(f"min_snr={gamma!r}; allowed: a finite number above 0.")
    ratio = snr(alpha_bar)
    capped = ratio.clamp(max=gamma)  # min(SNR, γ)
    per_unit = {"x0": 1.0, "eps": ratio, "v": ratio + 1}
    return capped / per_unit[check_choice("prediction", prediction, PREDICTIONS)]


def convert_level(level: Tensor | float, source: str, target: str) -> Tensor:
    """One noise level by another clock: the same noise over signal.

    That is sqrt(1-ᾱ) / sqrt(ᾱ) = σ = τ / (1-τ).

    Args:
        level: ᾱ in [0, 1], σ in [0, ∞) or τ in [0, 1]; any shape.
        source, target: ``"alpha_bar"``, ``"sigma"`` or ``"tau"``.

    Returns:
        The level by the clock ``target``, float64; σ is infinite where there is no signal.

    Raises:
        ValueError: a clock is unknown, or a level is outside its range.

    Example:
        >>> convert_level(0.5, "alpha_bar", "sigma"), convert_level(1.0, "sigma", "tau")
        (tensor(1., dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    signal, noise = _mixture(level, source)
    if check_choice("target", target, CLOCKS) == "alpha_bar":
        return signal**2 / (signal**2 + noise**2)
    return noise / signal if target == "sigma" else noise / (signal + noise)


def rescale(x: Tensor, level: Tensor | float, source: str, target: str) -> Tensor:
    """The noisy image of one clock as that of another: only its size differs.

    Args:
        x: noisy images by the clock ``source``, (B, …).
        level: their noise by that clock, (B,) or one number.
        source, target: see :func:`convert_level`.

    Returns:
        The noisy images by the clock ``target``, the shape of ``x``.

    Raises:
        ValueError: see :func:`convert_level`.
    """
    # Both pictures are c (signal · x_0 + noise · ε): the factor is the ratio of the two lengths.
    there = torch.hypot(*_mixture(convert_level(level, source, target), target))
    factor = there / torch.hypot(*_mixture(level, source))
    return x * factor.to(x).view(-1, *[1] * (x.ndim - 1))  # (B, 1, …) times (B, …)


def _mixture(level: Tensor | float, clock: str) -> tuple[Tensor, Tensor]:
    """What multiplies x_0 and ε in the noisy image of a clock."""
    level = torch.as_tensor(level, dtype=torch.float64)
    top = math.inf if check_choice("source", clock, CLOCKS) == "sigma" else 1.0
    if not bool(((level >= 0) & (level <= top) & (level < math.inf)).all()):
        allowed = "finite numbers >= 0" if clock == "sigma" else "0 to 1"
        raise ValueError(
            f"level runs from {level.min():.4g} to {level.max():.4g}; "
            f"allowed for {clock!r}: {allowed}."
        )
    if clock == "alpha_bar":
        return level.sqrt(), (1 - level).sqrt()
    return (torch.ones_like(level), level) if clock == "sigma" else (1 - level, level)
