"""Bits per dimension: of Gaussian data against their entropy, and term by term against theory."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.likelihood import bits_per_dim, prior_bits

F64 = torch.float64
SD, LEVELS, T = 0.35, 129, 100


def data(n: int) -> Tensor:
    """Images (n, 1, 8, 8) of N(0, SD²), rounded to levels from -1 to 1."""
    x = SD * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    return ((x + 1) / 2 * (LEVELS - 1)).round().clamp(0, LEVELS - 1) / (LEVELS - 1) * 2 - 1


def entropy() -> float:
    """Bits of a pixel: the entropy of N(0, SD²), rounded; the outermost levels take the rest."""
    edges = [-math.inf, *((2 * k + 1) / (LEVELS - 1) - 1 for k in range(LEVELS - 1)), math.inf]
    p = [norm.cdf(b / SD) - norm.cdf(a / SD) for a, b in pairwise(edges)]
    return -sum(q * math.log2(q) for q in p)


class Exact(nn.Module):
    """E[x_0 | x_t], and where variance is learnt the exact one of q(x_{t-1} | x_t)."""

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        super().__init__()
        self.diffusion = diffusion

    def forward(self, x, t, y):
        ab = self.diffusion.alpha_bar(t, x)  # (B, 1, 1, 1)
        x0 = ab.sqrt() * SD**2 / (ab * SD**2 + 1 - ab) * x  # (B, 1, 8, 8)
        if self.diffusion.variance != "learned-range":
            return x0
        low, high, true = (v.log() for v in variances(self.diffusion, int(t[0])))
        return torch.cat([x0, (2 * (true - low) / (high - low) - 1).expand_as(x)], dim=1)


def variances(diffusion: GaussianDiffusion, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """β̃ (clipped), β, and the variance that x_{t-1} really has given x_t."""
    ab = float(diffusion.alphas_cumprod[t])
    before = float(diffusion.alphas_cumprod[t - 1]) if t else 1.0
    of_prev = before * SD**2 + 1 - before  # Var(x_{t-1})
    true = of_prev - (ab / before) * of_prev**2 / (ab * SD**2 + 1 - ab)  # less what x_t explains
    small = diffusion.posterior_log_variance_clipped[t].exp()
    return small, diffusion.betas[t], torch.tensor(true, dtype=F64)


def measured(variance: str, n: int = 400) -> tuple[GaussianDiffusion, dict[str, Tensor]]:
    diffusion = GaussianDiffusion.cosine(T, "x0", variance=variance, levels=LEVELS)
    g, y = torch.Generator().manual_seed(1), torch.zeros(n, dtype=torch.long)
    return diffusion, bits_per_dim(Exact(diffusion), diffusion, data(n), y, generator=g)


def test_with_the_exact_reverse_the_bound_is_the_entropy():
    """Mean and variance exact: what the model needs is what the data hold."""
    _, bits = measured("learned-range", n=2000)
    error = float(bits["total"].std() / len(bits["total"]) ** 0.5)
    assert error < 0.006
    assert float(bits["total"].mean()) == pytest.approx(entropy(), abs=4 * error)


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large"])
def test_a_fixed_variance_costs_what_theory_says(variance):
    """The known gap: ½ (ρ - 1 - log ρ) at each step, ρ the true variance over the one assumed."""
    diffusion, bits = measured(variance)
    _, exact_bits = measured("learned-range")
    gap = torch.zeros(T, dtype=F64)
    for t in range(1, T):
        small, large, true = variances(diffusion, t)
        rho = true / (small if variance == "fixed-small" else large)
        gap[t] = 0.5 * (rho - 1 - rho.log()) / math.log(2)
    # The same noise was drawn for both, so term by term most of the chance cancels.
    found = (bits["terms"] - exact_bits["terms"]).mean(0)
    torch.testing.assert_close(found[1:], gap[1:], rtol=0.1, atol=2e-3)
    assert float(found[1:].sum()) == pytest.approx(float(gap.sum()), rel=0.05)
    assert float(bits["total"].mean()) > entropy() + 0.8 * float(gap.sum())


def test_the_terms_add_up_and_are_those_of_the_loss():
    diffusion = GaussianDiffusion.cosine(20, "x0", levels=LEVELS)
    x0, y = data(6), torch.zeros(6, dtype=torch.long)
    bits = bits_per_dim(
        Exact(diffusion), diffusion, x0, y, generator=torch.Generator().manual_seed(3)
    )
    assert bits["terms"].shape == bits["mse"].shape == (6, 20)
    torch.testing.assert_close(bits["total"], bits["prior"] + bits["terms"].sum(1))
    g = torch.Generator().manual_seed(3)
    bound = GaussianDiffusion.cosine(20, "x0", levels=LEVELS, loss="vlb")
    for step in range(20):
        noise = torch.randn(x0.shape, generator=g, dtype=F64)
        losses = bound.losses(Exact(bound), x0, torch.full((6,), step), y, noise)
        torch.testing.assert_close(losses["vb"], bits["terms"][:, step])
        torch.testing.assert_close(losses["mse"], bits["mse"][:, step])


def test_each_term_weighs_the_error_by_the_lost_signal():
    """L_t = ½ (SNR(t-1) - SNR(t)) |x_0 - x̂_0|² (Kingma et al. 2021), in nats per pixel."""
    diffusion = GaussianDiffusion.cosine(T, "x0", levels=LEVELS)
    n = 20
    bits = bits_per_dim(Exact(diffusion), diffusion, data(n), torch.zeros(n, dtype=torch.long))
    ratio = diffusion.alphas_cumprod / (1 - diffusion.alphas_cumprod)
    want = 0.5 * (ratio[:-1] - ratio[1:]) * bits["mse"][:, 1:] / math.log(2)
    torch.testing.assert_close(bits["terms"][:, 1:], want, rtol=1e-7, atol=1e-12)
    # The same in terms of the noise, whose error is SNR times that of x_0.
    betas, before = diffusion.betas[1:], diffusion.alphas_cumprod[:-1]
    weight = betas / (2 * (1 - betas) * (1 - before)) / math.log(2)
    want = weight * ratio[1:] * bits["mse"][:, 1:]
    torch.testing.assert_close(bits["terms"][:, 1:], want, rtol=1e-7, atol=1e-12)


def test_the_prior_is_the_divergence_from_pure_noise():
    diffusion = GaussianDiffusion.linear(50)
    x0 = data(3)
    ab = diffusion.alphas_cumprod[-1]
    kl = kl_divergence(Normal(ab.sqrt() * x0, (1 - ab).sqrt()), Normal(0.0, 1.0)).mean((1, 2, 3))
    torch.testing.assert_close(prior_bits(diffusion, x0), kl / math.log(2))


def test_a_broken_denoiser_is_named():
    class Broken(nn.Module):
        def forward(self, x, t, y):
            return x / (t - 7).view(-1, 1, 1, 1)

    diffusion = GaussianDiffusion.cosine(20)
    with pytest.raises(ValueError, match="model's output at the bound, t=7"):
        bits_per_dim(Broken(), diffusion, data(2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="x0 holds"):
        bits_per_dim(Broken(), diffusion, data(2) / 0, torch.zeros(2, dtype=torch.long))
