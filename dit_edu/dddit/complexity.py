"""How complex is the image behind the noise? Its spectrum without the noise's, or a small network.

Both say one number for each noisy image, and a gradient passes through both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.embedders import TimestepEmbedder


def power(x: Tensor) -> Tensor:
    """The power of each wave in an image, so that white noise of variance 1 has power 1 in all.

    Args:
        x: (B, C, H, W).

    Returns:
        The squared amplitudes of the discrete Fourier transform over H W, averaged over the
        channels, (B, H, W). The constant wave comes first.
    """
    return torch.fft.fft2(x, norm="ortho").abs().square().mean(1)  # (B, C, H, W) -> (B, H, W)


def without_noise(power_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """What the power of x_0 would be, from that of x_t: (P_t - (1 - ᾱ)) / ᾱ.

    It is right on average, since signal and noise don't know each other: E P_t = ᾱ P_0 + (1 - ᾱ).
    A single one may well be negative.

    Args:
        power_t: (B, H, W).
        alpha_bar: ᾱ_t, (B,).
    """
    left = alpha_bar.to(power_t)[:, None, None]  # (B, 1, 1)
    return (power_t - (1 - left)) / left


def frequencies(height: int, width: int) -> Tensor:
    """How many waves fit on a pixel, whatever their direction: (H, W), 0 to about 0.7."""
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)  # (H,), (W,)
    return torch.hypot(rows[:, None], columns[None, :])


def centroid(power_0: Tensor, least: float = 0.01) -> Tensor:
    """The mean frequency of an image, weighted by power: Σ f P / Σ P without the constant wave.

    Args:
        power_0: (B, H, W).
        least: the mean power below which the sum in the denominator is not taken to fall: an
            estimate may come out near 0, or negative.

    Returns:
        (B,), in waves per pixel. Smooth images have a small one, edges and stripes a large one.
    """
    height, width = power_0.shape[1:]
    f = frequencies(height, width).to(power_0)  # (H, W)
    total = power_0.sum((1, 2)) - power_0[:, 0, 0]  # (B,)
    return (f * power_0).sum((1, 2)) / total.clamp(min=least * (height * width - 1))


class SpectralMeasure(nn.Module):
    """The centroid of the image behind x_t, from the spectrum of x_t: nothing is learnt.

    Args:
        alphas_cumprod: ᾱ_t of the process, (T,).
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``x`` (B, C, H, W) at steps ``t`` (B,) → (B,)."""
        alpha_bar = self.alphas_cumprod[t.long()]  # (B,)
        return centroid(without_noise(power(x), alpha_bar))


class LearnedMeasure(nn.Module):
    """A small network that looks at x_t and knows t: three convolutions, their mean, one number.

    Args:
        in_channels: C.
        width: channels of the first convolution; the others have twice as many.

    Raises:
        TypeError, ValueError: a size is no positive integer.
    """

    def __init__(self, in_channels: int, width: int = 8) -> None:
        super().__init__()
        wide = 2 * check_positive_int("width", width)
        self.first = nn.Conv2d(check_positive_int("in_channels", in_channels), width, 3, padding=1)
        self.second = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.third = nn.Conv2d(wide, wide, 3, stride=2, padding=1)
        self.step = TimestepEmbedder(wide, frequency_embedding_size=32)
        self.last = nn.Linear(wide, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``x`` (B, C, H, W) at steps ``t`` (B,) → (B,)."""
        h = self.second(self.act(self.first(x)))  # (B, 2w, H/2, W/2)
        h = self.act(h + self.step(t)[:, :, None, None])
        h = self.act(self.third(h)).mean((2, 3))  # (B, 2w, H/4, W/4) -> (B, 2w)
        return self.last(h).squeeze(1)
