"""The diffusion process: how an image becomes noise, and what a network must learn to undo it.

Conventions of the whole book: ``t = 0`` is (almost) clean, ``t = T - 1`` is (almost) pure noise,
and

    x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε,    ε ~ N(0, I).

All arithmetic on the schedule is done in float64; only the finished coefficients are cast to the
dtype of the images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dit_edu._checks import (
    check_choice,
    check_finite,
    check_labels,
    check_positive_int,
    check_timesteps,
)

PREDICTIONS = ("eps", "x0", "v")


def linear_betas(num_timesteps: int) -> Tensor:
    """The linear schedule of DDPM: β from 1e-4 to 0.02, rescaled so that any T ends as noisy.

    Args:
        num_timesteps: T, at least 1.

    Returns:
        β_0 … β_{T-1}, float64, shape (T,).

    Raises:
        ValueError: T is so small that the rescaled β would reach 1.

    Source: Ho et al. 2020, section 4 (T = 1000); the rescaling by 1000/T is that of Nichol &
    Dhariwal 2021.
    """
    scale = 1000 / check_positive_int("num_timesteps", num_timesteps)
    return torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64)


def cosine_betas(num_timesteps: int) -> Tensor:
    """The cosine schedule: ᾱ falls like cos², so that noise comes in more evenly.

    Args:
        num_timesteps: T, at least 1.

    Returns:
        β_0 … β_{T-1}, float64, shape (T,), each at most 0.999.

    Source: Nichol & Dhariwal 2021, equation 17 (offset s = 0.008).
    """
    check_positive_int("num_timesteps", num_timesteps)
    u = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)  # (T+1,)
    alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # f(u) = cos²(…)
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)  # β_t = 1 - f(t+1) / f(t)


class GaussianDiffusion:
    """A discrete Gaussian diffusion process and the losses that train its denoiser.

    Args:
        betas: β_0 … β_{T-1}, shape (T,), each strictly between 0 and 1.
        prediction: what the denoiser's output means: the noise ``"eps"``, the clean image ``"x0"``,
            or the velocity ``"v"`` = sqrt(ᾱ) ε - sqrt(1-ᾱ) x_0.

    Attributes:
        betas, alphas_cumprod, posterior_variance, posterior_log_variance_clipped: float64, (T,).
        num_timesteps: T.

    Raises:
        ValueError: ``betas`` is not a vector inside (0, 1), or ``prediction`` is unknown.

    Source: Ho et al. 2020; the v prediction is Salimans & Ho 2022, appendix D.
    """

    def __init__(self, betas: Tensor, prediction: str = "eps") -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"betas has shape {tuple(betas.shape)}; allowed: (T,) with T >= 1.")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                f"betas runs from {betas.min():.4g} to {betas.max():.4g}; allowed: 0 < beta < 1."
            )
        self.prediction = check_choice("prediction", prediction, PREDICTIONS)
        self.num_timesteps = len(betas)
        self.betas = betas
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)  # ᾱ_t = Π_{s<=t} (1 - β_s)
        before = torch.cat([betas.new_ones(1), self.alphas_cumprod[:-1]])  # ᾱ_{t-1}, and ᾱ_{-1} = 1
        self.posterior_variance = betas * (1 - before) / (1 - self.alphas_cumprod)  # β̃_t
        # β̃_0 is 0, and its logarithm -∞: put β̃_1 in its place, as DDPM's authors do.
        self._variance_floor = float(self.posterior_variance[1]) if len(betas) > 1 else 1e-20
        self.posterior_log_variance_clipped = self.posterior_variance.clamp(
            min=self._variance_floor
        ).log()
        self._tables: dict[torch.device, Tensor] = {}

    @classmethod
    def linear(cls, num_timesteps: int = 1000, prediction: str = "eps") -> GaussianDiffusion:
        """The process with the linear schedule of DDPM (see :func:`linear_betas`)."""
        return cls(linear_betas(num_timesteps), prediction)

    @classmethod
    def cosine(cls, num_timesteps: int = 1000, prediction: str = "eps") -> GaussianDiffusion:
        """The process with the cosine schedule (see :func:`cosine_betas`)."""
        return cls(cosine_betas(num_timesteps), prediction)

    def alpha_bar(self, t: Tensor, like: Tensor) -> Tensor:
        """ᾱ_t for a batch of steps, ready to multiply ``like``; ᾱ_{-1} = 1 is the clean image.

        Args:
            t: (B,) integers from -1 to T-1.
            like: the tensor to be multiplied, (B, …).

        Returns:
            (B, 1, …) float64 (float32 on MPS, which has no float64).
        """
        if t.device not in self._tables:
            # The clean image's ᾱ = 1 stands last, so that the index -1 finds it.
            table = torch.cat([self.alphas_cumprod, self.betas.new_ones(1)])  # (T+1,)
            dtype = torch.float32 if t.device.type == "mps" else torch.float64
            self._tables[t.device] = table.to(dtype=dtype).to(t.device)
        return self._tables[t.device][t].view(-1, *[1] * (like.ndim - 1))  # (B, 1, …)

    def _signal_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(ᾱ_t) and sqrt(1 - ᾱ_t), each (B, 1, …) in the dtype of ``like``."""
        alpha_bar = self.alpha_bar(t, like)  # (B, 1, …)
        return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)

    # ------------------------------------------------------------------ forward

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise a clean image in one jump: x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε.

        Args:
            x0: clean images, (B, …).
            t: steps, (B,) integers in [0, T).
            noise: ε, the shape of ``x0``.

        Returns:
            x_t, the shape of ``x0``.

        Raises:
            TypeError, ValueError: ``t`` is no batch of valid steps, or the shapes disagree.

        Source: Ho et al. 2020, equation 4.
        """
        check_timesteps("t", t, self.num_timesteps)
        if noise.shape != x0.shape or len(t) != len(x0):
            raise ValueError(
                f"x0 {tuple(x0.shape)}, t {tuple(t.shape)}, noise {tuple(noise.shape)} disagree; "
                "allowed: x0 and noise of one shape (B, …), t of shape (B,)."
            )
        signal, sigma = self._signal_noise(t, x0)  # (B, 1, …)
        return signal * x0 + sigma * noise

    def q_posterior(
        self, x0: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where x_t came from, given the clean image: q(x_t' | x_t, x_0) for a step t' < t.

        Args:
            x0, x_t: clean and noisy images, (B, …).
            t: steps, (B,) integers in [0, T).
            t_prev: t', the earlier steps, (B,), each less than ``t``; ``t - 1`` unless given, and
                -1 for the clean image. A sampler that skips steps asks for less than ``t - 1``.

        Returns:
            mean (B, …), variance and log-variance (B, 1, …). The variance of the last step
            (t' = -1) is 0; its logarithm is clipped at that of the step before.

        Source: Ho et al. 2020, equations 6 and 7, with ᾱ_t' for ᾱ_{t-1}.
        """
        t_prev = t - 1 if t_prev is None else t_prev
        ab_t, ab_prev = self.alpha_bar(t, x_t), self.alpha_bar(t_prev, x_t)  # (B, 1, …)
        beta = 1 - ab_t / ab_prev  # the noise added between t' and t
        of_x0 = ab_prev.sqrt() * beta / (1 - ab_t)
        of_xt = (ab_t / ab_prev).sqrt() * (1 - ab_prev) / (1 - ab_t)
        variance = beta * (1 - ab_prev) / (1 - ab_t)  # β̃
        mean = of_x0.to(x0.dtype) * x0 + of_xt.to(x0.dtype) * x_t
        log_variance = variance.clamp(min=self._variance_floor).log()
        return mean, variance.to(x0.dtype), log_variance.to(x0.dtype)

    # ------------------------------------------------------------------ three ways to say the same

    def to_x0(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean image that an output implies; ``out`` and ``x_t`` (B, …), ``t`` (B,)."""
        signal, sigma = self._signal_noise(t, x_t)  # (B, 1, …)
        if self.prediction == "x0":
            return out
        if self.prediction == "eps":
            return (x_t - sigma * out) / signal  # solve x_t = signal·x0 + sigma·ε
        return signal * x_t - sigma * out  # v

    def to_eps(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that an output implies; ``out`` and ``x_t`` (B, …), ``t`` (B,)."""
        signal, sigma = self._signal_noise(t, x_t)  # (B, 1, …)
        if self.prediction == "eps":
            return out
        if self.prediction == "x0":
            return (x_t - signal * out) / sigma
        return sigma * x_t + signal * out  # v

    def to_v(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity sqrt(ᾱ) ε - sqrt(1-ᾱ) x_0 that an output implies."""
        if self.prediction == "v":
            return out
        signal, sigma = self._signal_noise(t, x_t)  # (B, 1, …)
        return signal * self.to_eps(out, x_t, t) - sigma * self.to_x0(out, x_t, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should have said: ε, x_0 or v, the shape of ``x0``."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        signal, sigma = self._signal_noise(t, x0)  # (B, 1, …)
        return signal * noise - sigma * x0

    # ------------------------------------------------------------------ reverse and loss

    def p_mean_variance(
        self,
        out: Tensor,
        x_t: Tensor,
        t: Tensor,
        clip: bool = False,
        t_prev: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One reverse step as a Gaussian: the posterior with the predicted x̂_0 for x_0.

        Args:
            out: the denoiser's output for ``x_t`` at ``t``, (B, …).
            x_t: noisy images, (B, …).
            t: steps, (B,) integers in [0, T).
            clip: clamp x̂_0 to [-1, 1] first.
            t_prev: the earlier steps to go to, (B,); ``t - 1`` unless given.

        Returns:
            ``mean``, ``x0`` and ``eps`` (B, …); ``variance`` and ``log_variance`` (B, 1, …).
            ``eps`` is the one that fits ``x0``, so it changes too where ``x0`` was clipped.

        Raises:
            ValueError: the output's shape is not that of ``x_t``.

        Source: Ho et al. 2020, equations 11 and 15, with the fixed variance β̃.
        """
        if out.shape != x_t.shape:
            raise ValueError(f"out has shape {tuple(out.shape)}; allowed: {tuple(x_t.shape)}.")
        x0 = self.to_x0(out, x_t, t)  # (B, …)
        if clip:
            x0 = x0.clamp(-1, 1)
            signal, sigma = self._signal_noise(t, x_t)
            eps = (x_t - signal * x0) / sigma
        else:
            eps = self.to_eps(out, x_t, t)
        mean, variance, log_variance = self.q_posterior(x0, x_t, t, t_prev)
        return dict(mean=mean, variance=variance, log_variance=log_variance, x0=x0, eps=eps)

    def losses(
        self, model: nn.Module, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The training loss of every sample: ‖target - model(x_t, t, y)‖² averaged over pixels.

        Args:
            model: a denoiser, ``model(x, t, y) -> (B, C, H, W)``.
            x0: clean images, (B, C, H, W), finite.
            t: steps, (B,) integers in [0, T).
            y: conditions, (B,) labels.
            noise: ε, the shape of ``x0``; drawn if not given.

        Returns:
            ``loss`` and ``mse``, each (B,); here they are the same.

        Raises:
            TypeError, ValueError: a step, a label or a pixel is not allowed, or shapes disagree.

        Source: Ho et al. 2020, equation 14.
        """
        check_finite("x0", x0)
        check_labels(model, y)
        noise = torch.randn_like(x0) if noise is None else noise
        out = model(self.q_sample(x0, t, noise), t, y)  # (B, C, H, W)
        if out.shape != x0.shape:
            raise ValueError(f"model returned {tuple(out.shape)}; allowed: {tuple(x0.shape)}.")
        mse = (self.target(x0, noise, t) - out).square().flatten(1).mean(1)  # (B,)
        return {"loss": mse, "mse": mse}
