"""Denoisers in closed form against Bayes on a grid, known floors, and what they draw."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.lab.data import digits
from dit_edu.lab.denoisers import Memoriser, PerClass, gaussian, pixels_alike
from dit_edu.sampling import ddim_sample, ddpm_sample
from dit_edu.schedules import PREDICTIONS, convert_level, rescale


def noisy(x0, diffusion, t, seed=0):
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(x0.shape, generator=g, dtype=x0.dtype)
    steps = torch.full((len(x0),), t)
    return noise, steps, diffusion.q_sample(x0, steps, noise)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("s", [1.0, 0.4])
def test_floors_of_gaussian_data(prediction, s):
    """For N(0, s² I) the floor of ε is ᾱs² / (ᾱs² + 1 - ᾱ), of x_0 that over the SNR, of v both."""
    diffusion = GaussianDiffusion.cosine(1000, prediction)
    x0 = s * torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    model = gaussian(diffusion, torch.cat([x0, -x0]))
    for t in (100, 500, 900):
        noise, steps, _ = noisy(x0, diffusion, t)
        loss = diffusion.losses(model, x0, steps, torch.zeros(4000, dtype=torch.long), noise)
        ab = float(diffusion.alphas_cumprod[t])
        of_eps = ab * s**2 / (ab * s**2 + 1 - ab)
        of_x0 = of_eps * (1 - ab) / ab
        floor = {"eps": of_eps, "x0": of_x0, "v": of_eps + of_x0}[prediction]
        # 64,000 squares: relative standard error sqrt(2/64000) = 0.6 %.
        assert float(loss["loss"].mean()) == pytest.approx(floor, rel=0.03)


@pytest.mark.parametrize("t", [30, 500, 950])
def test_the_best_noise_is_the_slope_of_the_density(t):
    """∇ log q(x_t) = -E[ε | x_t] / sqrt(1-ᾱ): q is a sum of bells, and torch differentiates it."""
    diffusion = GaussianDiffusion.cosine(1000, "eps")
    known = digits()[0][:30].double()
    _, steps, x_t = noisy(known[:6], diffusion, t)
    ab = diffusion.alphas_cumprod[t]
    x_t.requires_grad_()
    square = (x_t.flatten(1)[:, None] - ab.sqrt() * known.flatten(1)).square().sum(-1)  # (6, 30)
    log_q = (-square / (2 * (1 - ab))).logsumexp(1)  # (6,), up to a constant
    (slope,) = torch.autograd.grad(log_q.sum(), x_t)
    eps = Memoriser(diffusion, known)(x_t.detach(), steps, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(slope, -eps / (1 - ab).sqrt(), rtol=1e-8, atol=1e-8)


def test_gaussian_is_the_posterior_mean_by_matrix_algebra():
    images, labels = digits()
    diffusion = GaussianDiffusion.cosine(1000, "x0")
    flat = images.flatten(1).double()
    mean, cov = flat.mean(0), torch.cov(flat.T)
    _, steps, x_t = noisy(images[:7], diffusion, 400)
    ab = diffusion.alphas_cumprod[400]
    gain = ab.sqrt() * torch.linalg.solve(ab * cov + (1 - ab) * torch.eye(64).double(), cov)
    want = mean + (x_t.flatten(1).double() - ab.sqrt() * mean) @ gain
    got = gaussian(diffusion, images)(x_t, steps, labels[:7])
    torch.testing.assert_close(got.flatten(1).double(), want, rtol=1e-5, atol=1e-5)
    ours = PerClass(diffusion, images, labels)(x_t, steps, labels[:7])
    for i, k in enumerate(labels[:7].tolist()):
        alone = gaussian(diffusion, images[labels == k])(
            x_t[i : i + 1], steps[:1], labels[i : i + 1]
        )
        torch.testing.assert_close(ours[i : i + 1], alone)


def test_every_denoiser_speaks_of_a_flow_too():
    """At equal noise a flow's image is the diffusion's, rescaled: the same is under it."""
    images, labels = digits()
    diffusion, flow = GaussianDiffusion.cosine(1000, "v"), FlowMatching()
    _, steps, x_t = noisy(images[:7].double(), diffusion, 400)
    ab = diffusion.alphas_cumprod[steps]
    t, x_tau = 999 * convert_level(ab, "alpha_bar", "tau"), rescale(x_t, ab, "alpha_bar", "tau")
    for make in (gaussian, pixels_alike, Memoriser, partial(PerClass, labels=labels)):
        by_diffusion, by_flow = make(diffusion, images=images), make(flow, images=images)
        want = diffusion.to_x0(by_diffusion(x_t, steps, labels[:7]), x_t, steps)
        got = flow.to_x0(by_flow(x_tau, t, labels[:7]), x_tau, t)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_pixels_alike_is_one_dimensional_bayes():
    """E[x_0 | x_t] of one pixel by numerical integration on a line."""
    diffusion = GaussianDiffusion.linear(1000, "x0")
    images = torch.randn(500, 1, 3, 3, generator=torch.Generator().manual_seed(2)) * 0.6 - 0.3
    line = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    mean, variance = images.double().mean(), images.double().flatten(1).var()
    ab = diffusion.alphas_cumprod[300]
    x_t = torch.full((1, 1, 3, 3), 0.4)
    weight = (-((line - mean) ** 2) / (2 * variance)).exp()
    weight = weight * (-((0.4 - ab.sqrt() * line) ** 2) / (2 * (1 - ab))).exp()
    got = pixels_alike(diffusion, images)(x_t, torch.tensor([300]), torch.tensor([0]))
    want = (weight * line).sum() / weight.sum()
    torch.testing.assert_close(got.double(), want.expand(1, 1, 3, 3), rtol=1e-6, atol=1e-6)


def test_memoriser_is_the_weighted_mean_and_draws_what_it_knows():
    images, labels = digits()
    diffusion = GaussianDiffusion.cosine(1000, "v")
    known = images[:40]
    _, steps, x_t = noisy(known[:5], diffusion, 600)
    ab = diffusion.alphas_cumprod[600]
    distance = torch.cdist(x_t.flatten(1).double(), ab.sqrt() * known.flatten(1).double())
    want = (-(distance**2) / (2 * (1 - ab))).softmax(1) @ known.flatten(1).double()
    model = Memoriser(diffusion, known)
    got = diffusion.to_x0(model(x_t, steps, labels[:5]), x_t, steps)
    torch.testing.assert_close(got.flatten(1).double(), want, rtol=1e-4, atol=1e-5)
    g = torch.Generator().manual_seed(3)
    drawn = ddim_sample(model, diffusion, (20, 1, 8, 8), labels[:20], steps=50, generator=g)
    nearest = torch.cdist(drawn.flatten(1), known.flatten(1)).min(1).values
    assert nearest.max() < 0.05


def test_gaussian_draws_its_own_mean_and_covariance():
    images, _ = digits()
    diffusion = GaussianDiffusion.cosine(200, "v")
    g = torch.Generator().manual_seed(4)
    y = torch.zeros(3000, dtype=torch.long)
    drawn = ddpm_sample(gaussian(diffusion, images), diffusion, (3000, 1, 8, 8), y, generator=g)
    cov, want = torch.cov(drawn.flatten(1).T), torch.cov(images.flatten(1).T)
    assert (drawn.mean(0) - images.mean(0)).abs().max() < 0.08
    assert (cov - want).norm() < 0.1 * want.norm()
