"""Small images first: areas, noise levels, and windows in their places."""

from __future__ import annotations

import itertools

import pytest
import torch

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.hidit.resolution import resized, shifted, window_losses
from dit_edu.positions import sincos_pos_embed

SIZES = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=4,
    learn_sigma=False,
)  # fmt: skip


def model(**settings) -> DiT:
    torch.manual_seed(0)
    net = DiT(**{**SIZES, **settings}).double().eval()
    for weight in net.parameters():
        if weight.requires_grad:
            weight.data = weight.data + 0.1 * torch.randn_like(weight)
    return net


def batch(size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(2)
    x0, noise = torch.randn(2, 3, 1, *size, generator=g, dtype=torch.float64)
    return x0, torch.tensor([0, 500, 999]), torch.tensor([0, 1, 4]), noise


def process() -> GaussianDiffusion:
    return GaussianDiffusion.cosine(1000, "v")


def test_resizing_takes_means():
    x = batch()[0]
    torch.testing.assert_close(resized(x, 8), x.reshape(3, 1, 8, 2, 8, 2).mean((3, 5)))
    assert resized(x, (4, 16)).shape == (3, 1, 4, 16)
    torch.testing.assert_close(resized(x, (5, 7)).mean(), resized(x, 5).mean(), atol=0.2, rtol=0)


@pytest.mark.parametrize("size", [0, 17, (8, 32), (-1, 8)])
def test_images_do_not_grow(size):
    with pytest.raises(ValueError, match="size"):
        resized(batch()[0], size)


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.0])
def test_the_ratio_of_signal_to_noise_is_moved(factor):
    before, moved = process(), shifted(process(), factor)
    ratio = [p.alphas_cumprod / (1 - p.alphas_cumprod) for p in (before, moved)]
    torch.testing.assert_close(ratio[1], factor**2 * ratio[0], rtol=1e-9, atol=0)
    assert moved.prediction == "v" and moved.num_timesteps == 1000


def test_a_large_noisy_image_seen_from_afar_is_a_small_one_with_less_noise():
    """Up to a scale: means of x_t, and the same image and noise under the moved process."""
    large, small = process(), shifted(process(), 2)
    x0, _, _, noise = batch()
    t = torch.tensor([30, 500, 950])
    afar = resized(large.q_sample(x0, t, noise), 8)
    want = small.q_sample(resized(x0, 8), t, 2 * resized(noise, 8))
    assert resized(torch.randn(64, 1, 16, 16), 8).std().item() == pytest.approx(0.5, rel=0.05)
    scale = (want.flatten(1) / afar.flatten(1)).mean(1)
    torch.testing.assert_close(afar * scale[:, None, None, None], want)
    a, b = large.signal_noise(t, x0.new_zeros(3, 1))
    torch.testing.assert_close(scale, (a**2 + b**2 / 4).rsqrt().squeeze(1))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_factor_is_positive(factor):
    with pytest.raises(ValueError, match="factor"):
        shifted(process(), factor)


def test_a_window_is_the_image_where_it_was_cut():
    net, (x0, t, y, noise) = model(), batch((16, 24))
    table = sincos_pos_embed(16, (8, 12)).double().reshape(8, 12, 16)
    place, found = model(), []
    for seed in range(3):
        torch.manual_seed(seed)
        got = window_losses(net, process(), x0, t, y, noise)["loss"]
        for top, left in itertools.product(range(5), range(9)):
            place.pos_embed.data = table[top : top + 4, left : left + 4].reshape(1, 16, 16)
            area = (..., slice(2 * top, 2 * top + 8), slice(2 * left, 2 * left + 8))
            want = process().losses(place, x0[area], t, y, noise=noise[area])["loss"]
            if torch.allclose(got, want, rtol=1e-10):
                found.append((seed, top, left))
    assert [seed for seed, *_ in found] == [0, 1, 2]  # one place for each
    assert len({(top, left) for _, top, left in found}) > 1


def test_positions_of_windows_go_on_and_those_of_resized_images_are_spread():
    """Which way :meth:`DiT.at_size` must take: its tokens then stand where the stage had them."""
    full = sincos_pos_embed(16, (8, 8)).double().reshape(8, 8, 16)
    grown = model().at_size(16, "extend").pos_embed.reshape(8, 8, 16)
    torch.testing.assert_close(grown, full)
    spread = model(span=(8, 8))
    torch.testing.assert_close(spread.at_size(16).pos_embed.reshape(8, 8, 16), full)
    corner = spread.pos_embed.reshape(4, 4, 16)[0, 0]  # in the middle of four
    wave = torch.sin(torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(corner[0], wave)


def test_a_full_window_is_the_plain_loss():
    net, (x0, t, y, noise) = model(), batch((8, 8))
    got = window_losses(net, process(), x0, t, y, noise)["loss"]
    torch.testing.assert_close(got, process().losses(net, x0, t, y, noise=noise)["loss"])


def test_gradients_reach_the_model():
    net, (x0, t, y, noise) = model(), batch()
    window_losses(net, process(), x0, t, y, noise)["loss"].mean().backward()
    assert all(w.grad is not None for w in net.parameters() if w.requires_grad)


def test_windows_fit_and_have_fixed_positions():
    with pytest.raises(ValueError, match="windows of 4x4"):
        window_losses(model(), process(), *batch((4, 16)))
    with pytest.raises(ValueError, match="positions='learned'"):
        window_losses(model(positions="learned"), process(), *batch())
