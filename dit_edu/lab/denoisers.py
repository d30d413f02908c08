"""Denoisers that need no training: each is perfect for the data it believes in.

The best guess of the clean image is the mean E[x_0 | x_t]. For Gaussian data, and for a finite set
of images, it has a closed form. Such denoisers are the scale on which a loss can be read: a network
that does not beat :func:`gaussian` has learnt no more than means and covariances, and one that
comes near :class:`Memoriser` on its training images alone has learnt them by heart.

All are denoisers as the book understands it, ``model(x, t, y)``, so losses and samplers take them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dit_edu.interpolant import Interpolant


class BestGuess(nn.Module):
    """A denoiser that says E[x_0 | x_t], in the terms that ``diffusion`` expects (ε, x_0 or v).

    Args:
        diffusion: the process.
    """

    def __init__(self, diffusion: Interpolant) -> None:
        super().__init__()
        self.diffusion = diffusion

    def best_x0(self, x: Tensor, signal: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """E[x_0 | x_t] for flat images x_t = signal x_0 + sigma ε: (B, d) float64, as ``x`` is.

        ``signal`` and ``sigma`` are (B, 1).
        """
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        exact = x.double()
        flat = exact.flatten(1)  # (B, d)
        signal, sigma = self.diffusion.signal_noise(t, flat)  # (B, 1)
        x0 = self.best_x0(flat, signal, sigma, y)  # (B, d)
        eps = (flat - signal * x0) / sigma  # (B, d)
        return self.diffusion.target(x0, eps, t).view_as(exact).to(x.dtype)  # (B, C, H, W)


class GaussianDenoiser(BestGuess):
    """Perfect for N(mean, U diag(variances) Uᵀ), and the best *linear* denoiser for any such data.

    Args:
        diffusion: the process.
        mean, variances: (d,) float64.
        basis: U, orthogonal, (d, d).
    """

    def __init__(
        self, diffusion: Interpolant, mean: Tensor, variances: Tensor, basis: Tensor
    ) -> None:
        super().__init__(diffusion)
        self.mean, self.variances, self.basis = mean, variances, basis

    def best_x0(self, x: Tensor, signal: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        along = (x - signal * self.mean) @ self.basis  # (B, d), one number per direction
        # In each direction of variance λ: Cov(x_0, x_t) / Var(x_t) = a λ / (a² λ + b²).
        gain = signal * self.variances / (signal**2 * self.variances + sigma**2)  # (B, d)
        return self.mean + (gain * along) @ self.basis.T  # (B, d)


def pixels_alike(diffusion: Interpolant, images: Tensor) -> GaussianDenoiser:
    """It knows two numbers: the mean and the variance of all pixels of ``images`` (n, …)."""
    flat = images.flatten(1).double()  # (n, d)
    one = torch.ones(flat.shape[1], dtype=torch.float64)  # (d,)
    return GaussianDenoiser(diffusion, flat.mean() * one, flat.var() * one, one.diag())


def gaussian(diffusion: Interpolant, images: Tensor) -> GaussianDenoiser:
    """It knows the mean image and the covariance of ``images`` (n, …)."""
    flat = images.flatten(1).double()  # (n, d)
    variances, basis = torch.linalg.eigh(torch.cov(flat.T))  # (d,), (d, d)
    return GaussianDenoiser(diffusion, flat.mean(0), variances.clamp(min=0), basis)


class PerClass(BestGuess):
    """One :func:`gaussian` for each class: it knows the label too.

    Args:
        diffusion: the process.
        images, labels: (n, …) and (n,), with labels 0 … K-1, several images of each.
    """

    def __init__(self, diffusion: Interpolant, images: Tensor, labels: Tensor) -> None:
        super().__init__(diffusion)
        self.num_classes = int(labels.max()) + 1
        self.of_class = [gaussian(diffusion, images[labels == k]) for k in range(self.num_classes)]

    def best_x0(self, x: Tensor, signal: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        x0 = torch.empty_like(x)  # (B, d)
        for k, denoiser in enumerate(self.of_class):
            x0[y == k] = denoiser.best_x0(x[y == k], signal[y == k], sigma[y == k], y[y == k])
        return x0


class Memoriser(BestGuess):
    """Perfect if there were no images but ``images`` (n, …): their mean, weighted by likelihood.

    Args:
        diffusion: the process.
        images: (n, …).
    """

    def __init__(self, diffusion: Interpolant, images: Tensor) -> None:
        super().__init__(diffusion)
        self.images = images.flatten(1).double()  # (n, d)

    def best_x0(self, x: Tensor, signal: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        # |x_t - a x_i|² for every known image x_i, by multiplying out the square.
        known = self.images.square().sum(1)  # (n,)
        square = x.square().sum(1, keepdim=True) + signal**2 * known  # (B, n)
        square = square - 2 * signal * (x @ self.images.T)  # (B, n)
        return (-square / (2 * sigma**2)).softmax(1) @ self.images  # (B, d)


class Histograms(BestGuess):
    """It knows how often each pixel has each of its levels, and nothing of how pixels go together.

    It is the one denoiser here that knows what values a pixel can have: where little noise is left
    it rounds. And the probability of an image, if pixels were independent, is known exactly.

    Args:
        diffusion: the process.
        images: (n, …), whose values are ``levels`` levels from -1 to 1.
        levels: how many.
    """

    def __init__(self, diffusion: Interpolant, images: Tensor, levels: int) -> None:
        super().__init__(diffusion)
        self.values = torch.linspace(-1, 1, levels, dtype=torch.float64)  # (K,)
        counts = self._index(images).T[..., None] == torch.arange(levels)  # (d, n, K)
        counts = counts.sum(1) + 1.0  # (d, K); one of each beforehand, so that none is impossible
        self.log_p = (counts / counts.sum(1, keepdim=True)).double().log()  # (d, K)

    def _index(self, images: Tensor) -> Tensor:
        """Which level each pixel has, (n, d)."""
        return ((images.flatten(1) + 1) / 2 * (len(self.values) - 1)).round().long()

    def best_x0(self, x: Tensor, signal: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        off = x[..., None] - signal[..., None] * self.values  # (B, d, K)
        p = (self.log_p - off**2 / (2 * sigma[..., None] ** 2)).softmax(-1)  # (B, d, K)
        return p @ self.values  # (B, d)

    def bits(self, images: Tensor) -> Tensor:
        """-log2 of the probability of each image, per pixel: (n,)."""
        found = self.log_p.expand(len(images), -1, -1)  # (n, d, K)
        log_p = found.gather(2, self._index(images)[..., None]).squeeze(2)  # (n, d)
        return -log_p.mean(1) / math.log(2)
