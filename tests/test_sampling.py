"""Samplers against diffusers step by step, and against data whose score is known exactly."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.sampling import (
    Trajectory,
    ddim_invert,
    ddim_sample,
    ddpm_sample,
    noise_streams,
    timestep_grid,
)
from dit_edu.schedules import linear_betas

F64 = torch.float64


class GaussianScore(nn.Module):
    """The exact ε̂ for data N(mean, sd² I): what a perfect denoiser would say."""

    def __init__(self, diffusion: GaussianDiffusion, mean: float, sd: float) -> None:
        super().__init__()
        self.diffusion, self.mean, self.sd = diffusion, mean, sd

    def forward(self, x, t, y):
        ab = self.diffusion.alpha_bar(t, x)
        return (1 - ab).sqrt() * (x - ab.sqrt() * self.mean) / (ab * self.sd**2 + 1 - ab)


class Linear(nn.Module):
    """A denoiser with a simple rule, to walk two samplers side by side."""

    def forward(self, x, t, y):
        return 0.3 * x + 0.1 * torch.sin(t.to(x.dtype) / 100).view(-1, 1, 1, 1)


def test_grid_shapes():
    assert timestep_grid(1000, 5).tolist() == [999, 749, 500, 250, 0]
    assert timestep_grid(1000, 1000).tolist() == list(range(999, -1, -1))
    quadratic = timestep_grid(1000, 11, "quadratic")
    strides = quadratic[:-1] - quadratic[1:]
    assert (strides[:-1] >= strides[1:]).all()  # long strides at high noise


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("stride", [1, 37])
def test_ddim_equals_diffusers(eta, stride):
    """The whole loop, grid and noise included: diffusers is told to visit the same steps."""
    grid = list(range(999, -1, -stride))  # 999 = 27 * 37
    y, shape = torch.zeros(2, dtype=torch.long), (2, 1, 4, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    ours = ddim_sample(
        Linear(), GaussianDiffusion.linear(1000), shape, y,
        steps=len(grid), eta=eta, noise=x, generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    ref = DDIMScheduler(1000, beta_schedule="linear", clip_sample=False, set_alpha_to_one=True)
    ref.alphas_cumprod = torch.cumprod(1 - linear_betas(1000), 0)  # in float64, as ours
    ref.num_inference_steps = 1000 // stride
    g, theirs = torch.Generator().manual_seed(2), x
    for t in grid:
        z = torch.randn(shape, generator=g, dtype=F64) if eta else None
        out = Linear()(theirs, torch.full((2,), t), y)
        theirs = ref.step(out, t, theirs, eta=eta, variance_noise=z).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [7, 1000])
def test_ddpm_is_ddim_with_eta_one(steps):
    diffusion = GaussianDiffusion.cosine(1000)
    y = torch.zeros(3, dtype=torch.long)
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    a, b = (
        sampler(
            Linear(), diffusion, (3, 1, 4, 4), y,
            steps=steps, noise=noise, clip=True, generator=torch.Generator().manual_seed(3),
        )
        for sampler in (ddpm_sample, partial(ddim_sample, eta=1.0))
    )  # fmt: skip
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sampler", [ddpm_sample, ddim_sample])
def test_perfect_denoiser_draws_the_data(sampler):
    """Data N(0.4, 0.3²): with the exact score both samplers must return its mean and deviation."""
    diffusion = GaussianDiffusion.linear(1000)
    model = GaussianScore(diffusion, 0.4, 0.3)
    noise = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=F64)
    x = sampler(
        model, diffusion, (500, 1, 8, 8), torch.zeros(500, dtype=torch.long), steps=1000,
        noise=noise, generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    # 32,000 numbers: standard errors 0.0017 of the mean and 0.0012 of the deviation. On top come
    # 1000 steps of discretisation, and ᾱ_{T-1} = 4e-5 instead of 0.
    assert float(x.mean()) == pytest.approx(0.4, abs=0.008)
    assert float(x.std()) == pytest.approx(0.3, abs=0.006)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddpm_equals_diffusers(variance, steps):
    """The whole loop, noise included, on the steps that diffusers visits when it leads."""

    class Both(nn.Module):
        def forward(self, x, t, y):
            out = Linear()(x, t, y)
            return torch.cat([out, torch.sin(3 * x)], 1) if variance == "learned_range" else out

    ref = DDPMScheduler(1000, beta_schedule="linear", clip_sample=True, variance_type=variance)
    ref.betas = linear_betas(1000)
    ref.alphas, ref.one = 1 - ref.betas, torch.tensor(1.0, dtype=F64)
    ref.alphas_cumprod = torch.cumprod(ref.alphas, 0)
    ref.set_timesteps(steps)
    y, shape = torch.zeros(2, dtype=torch.long), (2, 1, 4, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    ours = ddpm_sample(
        Both(), GaussianDiffusion.linear(1000, variance=variance.replace("_", "-")), shape, y,
        steps=f"ddim{steps}", noise=x, clip=True, generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    g, theirs = torch.Generator().manual_seed(2), x
    assert timestep_grid(1000, f"ddim{steps}").tolist() == ref.timesteps.tolist()
    for t in ref.timesteps.tolist():
        out = Both()(theirs, torch.full((2,), t), y)
        theirs = ref.step(out, t, theirs, generator=g).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 37])
def test_inversion_equals_diffusers(stride):
    """A step up by diffusers' formula, given the network's word at the level where it begins."""
    up = list(range(0, 1000, stride))
    ref = DDIMInverseScheduler(1000, beta_schedule="linear", clip_sample=False)
    ref.alphas_cumprod = torch.cumprod(1 - linear_betas(1000), 0)
    ref.num_inference_steps = 1000 // stride  # so that a step is `stride` long
    y = torch.zeros(2, dtype=torch.long)
    x0 = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    # The first step, from the clean image: x_0 is known, and only ε̂ is asked for.
    ab = ref.alphas_cumprod[0]
    theirs = ab.sqrt() * x0 + (1 - ab).sqrt() * Linear()(x0, torch.zeros(2), y)
    for now, then in pairwise(up):
        theirs = ref.step(Linear()(theirs, torch.full((2,), now), y), then, theirs).prev_sample
    ours = ddim_invert(Linear(), GaussianDiffusion.linear(1000), x0, y, steps=len(up))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_inversion_finds_the_noise_and_the_way_back():
    """For Gaussian data the noise of an image is known; both errors fall with the steps."""
    diffusion = GaussianDiffusion.cosine(4000)
    model = GaussianScore(diffusion, 0.2, 0.5)
    x0 = torch.linspace(-1, 1, 8, dtype=F64).view(1, 1, 2, 4)
    y = torch.zeros(1, dtype=torch.long)
    ab = diffusion.alphas_cumprod[-1]
    exact = ab.sqrt() * 0.2 + (ab * 0.25 + 1 - ab).sqrt() * (x0 - 0.2) / 0.5
    errors, returns = [], []
    for steps in (100, 200, 400):
        noise = ddim_invert(model, diffusion, x0, y, steps=steps)
        back = ddim_sample(model, diffusion, x0.shape, y, steps=steps, noise=noise)
        errors.append(float((noise - exact).abs().max()))
        returns.append(float((back - x0).abs().max()))
    for found in (errors, returns):
        assert found[0] > 1.7 * found[1] > 1.7**2 * found[2]
        assert found[2] < 0.02


def test_a_trajectory_keeps_the_whole_way():
    diffusion, way, seen = GaussianDiffusion.linear(1000), Trajectory(), []
    y, shape = torch.zeros(2, dtype=torch.long), (2, 1, 4, 4)
    g = torch.Generator().manual_seed(0)
    last = ddpm_sample(Linear(), diffusion, shape, y, steps=5, generator=g, callback=way)
    g = torch.Generator().manual_seed(0)
    keep = lambda k, t, x, x0: seen.append((t, x, x0))  # noqa: E731
    ddpm_sample(Linear(), diffusion, shape, y, steps=5, generator=g, callback=keep)
    assert way.t == [999, 749, 500, 250, 0]
    assert way.x.shape == way.x0.shape == (5, *shape)
    assert torch.equal(way.x, torch.stack([x for _, x, _ in seen]))
    assert torch.equal(way.x0, torch.stack([x0 for _, _, x0 in seen]))
    assert torch.equal(way.x0[-1], last)


def test_same_seed_same_images_and_modes_are_restored():
    diffusion = GaussianDiffusion.linear(1000)
    model = Linear().train()
    seen = []

    def draw() -> torch.Tensor:
        return ddpm_sample(
            model, diffusion, (2, 1, 4, 4), torch.zeros(2, dtype=torch.long), steps=5,
            generator=torch.Generator().manual_seed(0),
            callback=lambda k, t, x, x0: seen.append((k, t, model.training)),
        )  # fmt: skip

    assert torch.equal(draw(), draw())
    assert seen[:5] == [(k, t, False) for k, t in enumerate([999, 749, 500, 250, 0])]
    assert model.training


def test_a_sample_does_not_depend_on_its_batch():
    diffusion = GaussianDiffusion.linear(1000)

    def draw(n: int, start: int = 0) -> torch.Tensor:
        y, streams = torch.zeros(n, dtype=torch.long), noise_streams(7, n, start)
        return ddpm_sample(Linear(), diffusion, (n, 1, 4, 4), y, steps=5, generator=streams)

    five = draw(5)
    torch.testing.assert_close(draw(2), five[:2])
    torch.testing.assert_close(draw(2, start=3), five[3:])
    assert not torch.isclose(five[0], five[1]).any()


def test_no_two_streams_are_alike():
    firsts = [torch.rand(1, generator=g).item() for s in range(30) for g in noise_streams(s, 30)]
    assert len(set(firsts)) == len(firsts)
    assert abs(sum(firsts) / len(firsts) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(generator=noise_streams(0, 3)), "generator holds 3 of them; allowed: .* 2"),
        (dict(steps=0), "steps=0"),
        (dict(steps=1001), "steps=1001"),
        (dict(grid="square"), "uniform, quadratic"),
        (dict(eta=-1.0), "eta=-1.0"),
        (dict(eta=float("nan")), "eta=nan"),
        (dict(noise=torch.zeros(1, 1, 4, 4)), "noise has shape"),
        (dict(shape=(3, 1, 4, 4)), "disagree"),
    ],
)
def test_bad_input_is_named(change, words):
    args = {"shape": (2, 1, 4, 4), **change}
    with pytest.raises(ValueError, match=words):
        ddim_sample(
            Linear(), GaussianDiffusion.linear(1000), args.pop("shape"), torch.zeros(2), **args
        )


def test_sampling_leaves_every_part_in_its_mode():
    """A wrapper in training mode around a model in evaluation mode: both come back as they were."""
    wrapper = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()).eval())
    wrapper.forward = lambda x, t, y: torch.zeros_like(x)
    d, before = GaussianDiffusion.linear(1000), [part.training for part in wrapper.modules()]
    for sample in (ddim_sample, ddpm_sample):
        sample(wrapper, d, (1, 1, 2, 2), torch.zeros(1, dtype=torch.long), steps=2)
        assert [part.training for part in wrapper.modules()] == before


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_eta_keeps_the_marginals(eta):
    """With one known image, x_t must have mean sqrt(ᾱ) x_0 and variance 1-ᾱ at every step."""
    diffusion, way, n = GaussianDiffusion.cosine(1000, "x0"), Trajectory(), 20_000
    model = nn.Module()
    model.forward = lambda x, t, y: torch.full_like(x, 0.3)
    y, g = torch.zeros(n, dtype=torch.long), torch.Generator().manual_seed(0)
    noise = torch.randn(n, 1, 1, 1, generator=g, dtype=F64)
    ddim_sample(
        model, diffusion, noise.shape, y, steps=6, eta=eta, noise=noise, generator=g, callback=way
    )
    for t, x in zip(way.t, way.x, strict=True):
        ab = float(diffusion.alphas_cumprod[t])
        error = (1 - ab) ** 0.5 / n**0.5  # of the mean
        assert float(x.mean()) == pytest.approx(0.3 * ab**0.5, abs=5 * error)
        assert float(x.var()) == pytest.approx(1 - ab, rel=0.05)


def test_ddim_is_eulers_method_in_the_clock_of_edm():
    """x/a moves by (σ' - σ) ε̂, where σ = b/a."""
    diffusion, way = GaussianDiffusion.linear(1000), Trajectory()
    y, shape = torch.zeros(2, dtype=torch.long), (2, 1, 4, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    ddim_sample(Linear(), diffusion, shape, y, steps=9, noise=x, callback=way)
    ab = diffusion.alphas_cumprod[way.t]  # (9,)
    sigma, scaled = ((1 - ab) / ab).sqrt(), way.x / ab.sqrt().view(-1, 1, 1, 1, 1)
    for k in range(8):
        slope = Linear()(way.x[k], torch.full((2,), way.t[k]), y)
        moved = scaled[k] + (sigma[k + 1] - sigma[k]) * slope
        torch.testing.assert_close(scaled[k + 1], moved, rtol=1e-9, atol=1e-9)
