"""Latents: the autoencoder against diffusers and torch, the scale in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.latents import BATCH, VAE, rescaled_level
from dit_edu.schedules import convert_level, rescale, snr

F64 = torch.float64
SMALL = dict(input_size=16, in_channels=3, latent_channels=4, widths=(4, 8, 8), num_groups=2)


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(**SMALL).double().eval()


def images(n: int = 6, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=g, dtype=F64) * 2 - 1
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)  # (n, 3, 16, 16)


@pytest.mark.parametrize(("widths", "f"), [((4, 8), 2), ((4, 8, 8), 4), ((4, 4, 4, 4), 8)])
def test_each_width_but_the_first_halves_the_image(widths, f):
    vae = VAE(**{**SMALL, "widths": widths, "latent_channels": 5}).eval()
    assert vae.factor == f
    assert vae.latent_shape == (5, 16 // f, 16 // f)
    z = vae.encode(images(2).float())
    assert z.shape == (2, 5, 16 // f, 16 // f)
    assert vae.decode(z).shape == (2, 3, 16, 16)


def test_posterior_and_divergence_are_those_of_diffusers(vae):
    x = images()
    theirs = vae.net.encode(x).latent_dist
    mean, log_variance = vae.posterior(x)
    assert torch.equal(mean, theirs.mode())
    torch.testing.assert_close((log_variance / 2).exp(), theirs.std)
    got = vae.losses(x, 0.5, torch.zeros_like(mean))
    torch.testing.assert_close(got["kl"] * 3 * 16 * 16, theirs.kl())
    again = vae.net.decode(mean).sample
    torch.testing.assert_close(got["mse"], ((again - x) ** 2).mean((1, 2, 3)))


@pytest.mark.parametrize("kl_weight", [1e-4, 0.02, 2.0])
def test_the_loss_is_the_evidence_bound_of_noisy_pixels(vae, kl_weight):
    """-log N(x; x̂, κ/2) + KL, times κ / CHW, less the constant: by torch's distributions."""
    x = images()
    noise = torch.randn(6, *vae.latent_shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    mean, log_variance = vae.posterior(x)
    posterior = Normal(mean, (log_variance / 2).exp())
    z = posterior.mean + posterior.stddev * noise
    sigma = math.sqrt(kl_weight / 2)
    pixels = Normal(vae.net.decode(z).sample, sigma).log_prob(x).flatten(1).sum(1)
    kl = torch.distributions.kl_divergence(posterior, Normal(0.0, 1.0)).flatten(1).sum(1)
    n = x[0].numel()
    constant = n / 2 * math.log(2 * math.pi * sigma**2)
    bound = (-pixels - constant + kl) * kl_weight / n
    torch.testing.assert_close(vae.losses(x, kl_weight, noise)["loss"], bound)


def test_fitted_latents_have_mean_zero_and_spread_one_in_each_channel(vae):
    x = images(40)
    raw = vae.posterior(x)[0]
    vae.fit_scale(x)
    z = vae.encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(4, dtype=F64))
    torch.testing.assert_close(z * vae.std + vae.mean, raw)
    torch.testing.assert_close(vae.decode(z), vae.net.decode(raw).sample.clamp(-1, 1))


def test_the_scale_travels_with_the_weights(vae):
    vae.fit_scale(images(40))
    other = VAE(**SMALL).double().eval()
    other.load_state_dict(vae.state_dict())
    assert torch.equal(other.encode(images()), vae.encode(images()))


def test_decoded_images_stay_in_range_and_batches_do_not_matter(vae):
    latents = 30 * torch.randn(3, *vae.latent_shape, dtype=F64)
    assert vae.decode(latents).abs().max() <= 1
    many = images(BATCH + 3)
    torch.testing.assert_close(vae.encode(many)[-3:], vae.encode(many[-3:]), rtol=1e-10, atol=1e-12)
    assert vae.encode(many[:0]).shape == (0, *vae.latent_shape)
    assert not vae.encode(many[:2].requires_grad_()).requires_grad


# ---------------------------------------------------------------------- the scale is a noise level


@given(alpha_bar=st.floats(0.0, 1.0), log_scale=st.floats(-5, 5))
def test_another_scale_is_another_noise_level(alpha_bar, log_scale):
    """√ᾱ s z + √(1-ᾱ) ε is, but for its size, the unit latents at the rescaled level."""
    ab, s = torch.tensor(alpha_bar, dtype=F64), math.exp(log_scale)
    z, noise = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=F64)
    level = rescaled_level(ab, s)
    assert 0 <= level <= 1
    scaled = ab.sqrt() * s * z + (1 - ab).sqrt() * noise
    unit = level.sqrt() * z + (1 - level).sqrt() * noise
    size = (s**2 * ab + 1 - ab).sqrt()
    torch.testing.assert_close(scaled / size, unit, rtol=1e-7, atol=1e-7)


def test_half_the_log_snr_moves_by_the_log_of_the_scale():
    ab = GaussianDiffusion.cosine(1000).alphas_cumprod
    for s in (0.2, 1.0, 3.0):
        shift = snr(rescaled_level(ab, s)).log() / 2 - snr(ab).log() / 2
        torch.testing.assert_close(shift, torch.full_like(ab, math.log(s)), rtol=1e-6, atol=1e-8)


def test_scaling_there_and_back_and_by_the_clock_of_edm():
    ab = torch.linspace(0.01, 0.99, 50, dtype=F64)
    torch.testing.assert_close(rescaled_level(rescaled_level(ab, 2.5), 1 / 2.5), ab)
    # In EDM's clock the latents are divided by s, and so is σ.
    sigma = convert_level(ab, "alpha_bar", "sigma")
    there = convert_level(sigma / 2.5, "sigma", "alpha_bar")
    torch.testing.assert_close(rescaled_level(ab, 2.5), there)
    z, noise = torch.randn(2, 50, 1, dtype=F64)
    x = ab.sqrt()[:, None] * 2.5 * z + (1 - ab).sqrt()[:, None] * noise
    edm = rescale(x, ab, "alpha_bar", "sigma") / 2.5
    torch.testing.assert_close(edm, z + sigma[:, None] / 2.5 * noise)


def test_one_scale_for_each_channel_gives_each_its_level():
    ab, s = torch.full((4,), 0.5, dtype=F64), torch.tensor([0.1, 0.5, 1.0, 4.0], dtype=F64)
    found = rescaled_level(ab, s)
    torch.testing.assert_close(found, s**2 / (s**2 + 1))
    assert found[2] == 0.5


# ---------------------------------------------------------------------- bad input


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"input_size=30 .* allowed: a multiple of 2\^2 = 4"):
        VAE(**{**SMALL, "input_size": 30})
    with pytest.raises(TypeError, match=r"latent_channels=1\.5"):
        VAE(**{**SMALL, "latent_channels": 1.5})


def test_what_cannot_be_encoded_is_named(vae):
    x = images()
    with pytest.raises(TypeError, match=r"images has dtype torch\.uint8"):
        vae.encode((x * 100).to(torch.uint8))
    with pytest.raises(ValueError, match=r"images has shape \(6, 3, 8, 16\); allowed: \(B, 3, 16"):
        vae.encode(x[:, :, ::2])
    with pytest.raises(ValueError, match=r"images spans \[.*\]; allowed: within \[-1, 1\]"):
        vae.encode(x * 127.5 + 127.5)
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"images holds 1 non-finite"):
        vae.encode(x)


def test_what_cannot_be_decoded_is_named(vae):
    with pytest.raises(ValueError, match=r"latents has shape \(6, 3, 16, 16\); allowed: \(B, 4, 4"):
        vae.decode(images())  # images are no latents
    with pytest.raises(TypeError, match=r"latents has dtype torch\.int64"):
        vae.decode(torch.zeros(1, 4, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="latents holds 64 non-finite"):
        vae.decode(torch.full((1, *vae.latent_shape), torch.inf, dtype=F64))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="scale="):
        rescaled_level(torch.tensor(0.5), scale)


def test_a_level_lies_between_zero_and_one():
    with pytest.raises(ValueError, match="alpha_bar="):
        rescaled_level(torch.tensor([0.5, 1.5]), 2.0)
