"""Complexity behind noise: against single waves, white noise and the closed form of its mean."""

from __future__ import annotations

import math

import pytest
import torch

from dit_edu.dddit.complexity import (
    LearnedMeasure,
    SpectralMeasure,
    centroid,
    frequencies,
    power,
    without_noise,
)
from dit_edu.diffusion import GaussianDiffusion

PROCESS = GaussianDiffusion.cosine(1000)


def wave(cycles: tuple[int, int], size: int = 16) -> torch.Tensor:
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    angle = 2 * math.pi * (cycles[0] * row + cycles[1] * column) / size
    return angle.double().cos().expand(1, 3, -1, -1)


def test_power_adds_up_to_that_of_the_pixels():
    x = torch.randn(4, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(power(x).sum((1, 2)), x.square().sum((2, 3)).mean(1))


def test_white_noise_has_power_one_everywhere():
    x = torch.randn(2000, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (power(x).mean(0) - 1).abs().max() < 0.08  # 0.013 · 6


@pytest.mark.parametrize("cycles", [(0, 1), (3, 0), (2, 5)])
def test_the_centroid_of_a_wave_is_its_frequency(cycles):
    found = centroid(power(wave(cycles)))
    torch.testing.assert_close(found, torch.tensor([math.hypot(*cycles) / 16]).double())


def test_a_constant_image_has_no_centroid_and_brightness_does_not_count():
    x = wave((1, 2))
    assert centroid(power(torch.ones(2, 3, 16, 16))).tolist() == [0, 0]
    torch.testing.assert_close(centroid(power(x)), centroid(power(3 * x + 5)))


def test_frequencies_are_symmetric():
    f = frequencies(8, 6)
    assert f.shape == (8, 6) and f[0, 0] == 0
    torch.testing.assert_close(f[1:], f[1:].flip(0))
    torch.testing.assert_close(f.max(), torch.tensor(math.hypot(0.5, 0.5)))


@pytest.mark.parametrize("step", [100, 500, 800])
def test_noise_taken_off_leaves_the_image_on_average(step):
    x0 = (wave((2, 1)) + 0.5 * wave((0, 4))).float()
    n, g = 2000, torch.Generator().manual_seed(0)
    t = torch.full((n,), step)
    noise = torch.randn(n, 3, 16, 16, generator=g)
    x_t = PROCESS.q_sample(x0.expand(n, -1, -1, -1), t, noise)
    alpha_bar = PROCESS.alphas_cumprod[t]
    found, want = without_noise(power(x_t), alpha_bar), power(x0)[0]
    error = found.std(0) / math.sqrt(n)  # (H, W), of the mean
    assert ((found.mean(0) - want).abs() < 5 * error).all()
    left = alpha_bar[0].item()  # closed form, for three channels
    spread = ((1 - left) ** 2 + 2 * left * (1 - left) * want) / (3 * left**2)
    interior = spread[1, 2], found.var(0)[1, 2]  # a wave that is not its own mirror image
    torch.testing.assert_close(interior[1], interior[0].float(), rtol=0.12, atol=0)


def test_the_spectral_measure_is_the_centroid_at_low_noise_and_has_a_gradient():
    x0 = (wave((2, 1)) + 0.5 * wave((0, 4))).float()
    x = PROCESS.q_sample(x0, torch.tensor([0]), torch.randn(x0.shape)).requires_grad_()
    measure = SpectralMeasure(PROCESS.alphas_cumprod)
    found = measure(x, torch.tensor([0]))
    torch.testing.assert_close(found.detach(), centroid(power(x0)), rtol=0.02, atol=0)
    found.sum().backward()
    assert x.grad.abs().max() > 0
    assert not list(measure.parameters()) and not measure.state_dict()


def test_both_measures_look_at_each_image_alone():
    torch.manual_seed(0)
    x, t = torch.randn(4, 3, 16, 16), torch.tensor([3, 400, 700, 990])
    for measure in (SpectralMeasure(PROCESS.alphas_cumprod), LearnedMeasure(3)):
        alone = torch.cat([measure(x[i : i + 1], t[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(measure(x, t), alone, rtol=1e-5, atol=1e-6)


def test_the_learnt_measure_knows_the_step_and_has_gradients_that_finite_differences_confirm():
    torch.manual_seed(0)
    measure = LearnedMeasure(1, width=2).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([10, 800])
    assert (measure(x, t) - measure(x, t.flip(0))).abs().max() > 1e-4
    assert torch.autograd.gradcheck(lambda x: measure(x, t), x)
    with pytest.raises(ValueError, match="width=0"):
        LearnedMeasure(1, width=0)
