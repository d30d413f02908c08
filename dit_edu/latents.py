"""Latents: a small autoencoder makes images shorter, and a Diffusion Transformer works on those.

The autoencoder is diffusers' ``AutoencoderKL`` in a small size. What a diffusion process sees is
not its raw output but the latents brought to mean 0 and standard deviation 1, channel by channel:
another scale would be another noise schedule, by the factor that :func:`rescaled_level` states.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from dit_edu._checks import check_finite, check_positive_int
from dit_edu.gaussians import normal_kl

BATCH = 500  # images of 32x32 pixels that are encoded or decoded at once; fewer of larger ones


class VAE(nn.Module):
    """A variational autoencoder that knows the mean and the spread of its latents.

    Args:
        input_size: side of the images in pixels.
        in_channels: C of the images.
        latent_channels: C of the latents.
        widths: channels of each resolution, finest first; each but the first halves the image.
        num_groups: of the group norms; divides all widths.

    Attributes:
        factor: f, how many times shorter the side of the latents is: ``2 ** (len(widths) - 1)``.
        image_shape, latent_shape: (C, H, W) of both.
        mean, std: (C, 1, 1) of the raw latents, once :meth:`fit_scale` has seen images.

    Raises:
        TypeError, ValueError: a size is no positive integer, or f does not divide ``input_size``.

    Source: Rombach et al. 2022, Kingma & Welling 2014.
    """

    def __init__(
        self,
        input_size: int = 32,
        in_channels: int = 3,
        latent_channels: int = 4,
        widths: Sequence[int] = (16, 16, 16),
        num_groups: int = 4,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKL  # seconds of import, only where it is needed

        check_positive_int("latent_channels", latent_channels)
        self.factor = 2 ** (len(widths) - 1)
        if check_positive_int("input_size", input_size) % self.factor:
            raise ValueError(
                f"input_size={input_size} with {len(widths)} widths; "
                f"allowed: a multiple of 2^{len(widths) - 1} = {self.factor}."
            )
        side = input_size // self.factor
        self.image_shape = (in_channels, input_size, input_size)
        self.latent_shape = (latent_channels, side, side)
        self.net = AutoencoderKL(
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            latent_channels=latent_channels,
            norm_num_groups=num_groups,
            mid_block_add_attention=False,
        )
        self.register_buffer("mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(latent_channels, 1, 1))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """q(z | x): mean and log-variance of the raw latents, (B, C, H/f, W/f) each.

        Args:
            images: (B, C, H, W) in [-1, 1].
        """
        found = self.net.encode(images).latent_dist  # (B, C, H, W) -> (B, C, H/f, W/f)
        return found.mean, found.logvar

    def losses(self, images: Tensor, kl_weight: float, noise: Tensor) -> dict[str, Tensor]:
        """What training minimises: (B,) tensors ``loss``, ``mse`` and ``kl``.

        Args:
            images: (B, C, H, W) in [-1, 1].
            kl_weight: κ, twice the variance of the noise that a pixel is granted.
            noise: (B, C, H/f, W/f), N(0, I).

        Returns:
            ``mse``, the mean square error per pixel value; ``kl``, nats per pixel value (the sum
            over all latents, divided by CHW); ``loss = mse + kl_weight * kl``.
        """
        mean, log_variance = self.posterior(images)  # (B, C, H/f, W/f)
        z = mean + (log_variance / 2).exp() * noise  # z ~ q(z | x)
        mse = (self.net.decode(z).sample - images).square().flatten(1).mean(1)  # (B,)
        prior = torch.zeros_like(mean)  # N(0, I): mean and log-variance are 0
        nats = normal_kl(mean, log_variance, prior, prior).flatten(1).sum(1)  # (B,)
        kl = nats / images[0].numel()
        return {"loss": mse + kl_weight * kl, "mse": mse, "kl": kl}

    @torch.no_grad()
    def fit_scale(self, images: Tensor) -> None:
        """Set ``mean`` and ``std`` to those of the images' raw latents, channel by channel."""
        latents = self._in_batches(lambda part: self.posterior(part)[0], images)
        std, mean = torch.std_mean(latents, dim=(0, 2, 3), keepdim=True, correction=0)
        self.mean.copy_(mean[0])  # (1, C, 1, 1) -> (C, 1, 1)
        self.std.copy_(std[0])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """What a denoiser works on: the posterior's mean, of mean 0 and spread 1 in each channel.

        Args:
            images: (B, C, H, W), float, finite, in [-1, 1].

        Returns:
            (B, C, H/f, W/f).

        Raises:
            TypeError: ``images`` are not floating point.
            ValueError: they have another shape, hold NaN or infinity, or leave [-1, 1].
        """
        _check("images", images, self.image_shape)
        low, high = images.aminmax() if len(images) else (0.0, 0.0)
        if low < -1 or high > 1:
            raise ValueError(f"images spans [{low:.3g}, {high:.3g}]; allowed: within [-1, 1].")
        return self._in_batches(
            lambda part: (self.posterior(part)[0] - self.mean) / self.std, images
        )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of latents (B, C, H/f, W/f), as :meth:`encode` has them.

        Raises:
            TypeError: ``latents`` are not floating point.
            ValueError: they have another shape, or hold NaN or infinity.
        """
        _check("latents", latents, self.latent_shape)
        return self._in_batches(
            lambda part: self.net.decode(part * self.std + self.mean).sample.clamp(-1, 1), latents
        )

    def _in_batches(self, function, tensors: Tensor) -> Tensor:
        at_once = max(1, min(BATCH, BATCH * 32**2 // prod(self.image_shape[1:])))
        return torch.cat([function(part) for part in tensors.split(at_once)])


def rescaled_level(alpha_bar: Tensor, scale: float | Tensor) -> Tensor:
    """The noise level at which unit latents are as noisy as ``scale`` times larger ones are.

    √ᾱ s z + √(1-ᾱ) ε has the SNR s² ᾱ / (1-ᾱ). Unit latents have it where
    ᾱ' = s² ᾱ / (s² ᾱ + 1 - ᾱ): so λ = ½ ln SNR moves by ln s, at every step.

    Args:
        alpha_bar: ᾱ in [0, 1], any shape.
        scale: s > 0, the standard deviation of the latents; it broadcasts with ``alpha_bar``.

    Raises:
        ValueError: ``scale`` is not positive and finite, or ``alpha_bar`` leaves [0, 1].
    """
    s = torch.as_tensor(scale)
    if not bool((torch.isfinite(s) & (s > 0)).all()):
        raise ValueError(f"scale={scale}; allowed: finite and above 0.")
    if not bool(((alpha_bar >= 0) & (alpha_bar <= 1)).all()):
        raise ValueError(f"alpha_bar={alpha_bar}; allowed: 0 to 1.")
    signal = s**2 * alpha_bar  # s² ᾱ
    return signal / (signal + 1 - alpha_bar)


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; allowed: floating point.")
    if x.ndim != 4 or tuple(x.shape[1:]) != shape:
        want = ", ".join(map(str, shape))
        raise ValueError(f"{name} has shape {tuple(x.shape)}; allowed: (B, {want}).")
    check_finite(name, x)
