"""Samplers against diffusers step by step, and against data whose score is known exactly."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dit_edu.diffusion import GaussianDiffusion, linear_betas
from dit_edu.sampling import GRIDS, ddim_sample, ddpm_sample, noise_streams, timestep_grid

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


@given(num=st.integers(1, 1200), data=st.data(), kind=st.sampled_from(GRIDS))
@settings(max_examples=200, deadline=None)
def test_grids_descend_from_noise_to_clean(num, data, kind):
    steps = data.draw(st.integers(1, num))
    grid = timestep_grid(num, steps, kind)
    assert grid.dtype == torch.int64
    assert len(grid) == steps
    assert grid[0] == num - 1
    assert (grid[:-1] > grid[1:]).all()
    assert grid[-1] == 0 or steps == 1


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


def test_ddim_error_falls_like_one_over_steps():
    """DDIM is a first-order method: against the exact flow the error halves when steps double."""
    diffusion = GaussianDiffusion.cosine(1000)
    model = GaussianScore(diffusion, 0.0, 0.5)
    x = torch.ones(1, 1, 1, 1, dtype=F64)
    y = torch.zeros(1, dtype=torch.long)
    exact, *rough = (
        float(ddim_sample(model, diffusion, x.shape, y, steps=n, noise=x))
        for n in (1000, 10, 20, 40)
    )
    errors = [abs(value - exact) for value in rough]
    assert 1.6 < errors[0] / errors[1] < 2.6
    assert 1.6 < errors[1] / errors[2] < 2.6


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
