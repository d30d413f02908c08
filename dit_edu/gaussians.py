"""Two facts about Gaussians that the variational bound is made of, in nats.

The divergence of one from another, and the probability that one gives to a pixel of an image whose
values are not continuous but one of a few levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_edu._checks import check_positive_int


def normal_kl(mean: Tensor, log_variance: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean, e^log_variance) ‖ N(mean2, e^log_variance2)) of every element, in nats.

    The arguments broadcast; the result has their common shape.

    Source: Kingma & Welling 2014, appendix B, for two general Gaussians.
    """
    # ½ (log σ₂² - log σ₁² + σ₁²/σ₂² + (μ₁ - μ₂)²/σ₂² - 1)
    gap = log_variance - log_variance2
    return 0.5 * (gap.exp() - gap - 1 + (mean - mean2) ** 2 * (-log_variance2).exp())


def discretized_nll(x: Tensor, mean: Tensor, log_variance: Tensor, levels: int = 256) -> Tensor:
    """-log of the probability that a Gaussian, rounded to levels, gives to ``x``; in nats.

    The levels are evenly spaced from -1 to 1. Each stands for all numbers nearer to it than to
    another, the two outermost also for everything beyond them, so that all add up to 1.

    Args:
        x: images whose values are levels, any shape.
        mean, log_variance: of the Gaussian; they broadcast with ``x``.
        levels: how many, at least 2: 256 for 8-bit images, 17 for scikit-learn's digits.

    Returns:
        The shape of ``x``, at least 0.

    Raises:
        TypeError, ValueError: ``levels`` is not an integer of at least 2.

    Source: Ho et al. 2020, equation 13.
    """
    half = half_bin(levels)
    inverse = (-0.5 * log_variance).exp()  # 1/σ
    lower, upper = (x - mean - half) * inverse, (x - mean + half) * inverse
    lower = lower.masked_fill(x < -1 + half, -torch.inf)
    upper = upper.masked_fill(x > 1 - half, torch.inf)
    # Φ(upper) - Φ(lower) has no digits left where both are near 1: look from the other side there.
    far = x > mean
    lower, upper = torch.where(far, -upper, lower), torch.where(far, -lower, upper)
    top, bottom = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    # log(e^top - e^bottom); the clamp keeps a bin of no width, as rounding can make it, finite.
    return -(top + torch.log(-torch.expm1((bottom - top).clamp(max=-1e-12))))


def half_bin(levels: int) -> float:
    """Half the distance of two neighbours among ``levels`` values from -1 to 1.

    Raises:
        TypeError, ValueError: ``levels`` is not an integer of at least 2.
    """
    if check_positive_int("levels", levels) < 2:
        raise ValueError("levels=1; allowed: an int >= 2.")
    return 1 / (levels - 1)
