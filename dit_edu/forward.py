"""How an image becomes noise: T steps of β, or one jump, and the way back if the image is known.

    x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε,    ε ~ N(0, I).

No network appears here; :mod:`dit_edu.diffusion` adds it. All arithmetic on the schedule is done in
float64; only the finished coefficients are cast to the dtype of the images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_edu._checks import check_timesteps
from dit_edu.interpolant import Interpolant
from dit_edu.schedules import check_betas


class ForwardProcess(Interpolant):
    """The process from image to noise, in T discrete steps.

    Args:
        betas: β_0 … β_{T-1}, shape (T,), each strictly between 0 and 1.
        prediction: see :class:`~dit_edu.interpolant.Interpolant`.

    Attributes:
        betas, alphas_cumprod, posterior_variance, posterior_log_variance_clipped: float64, (T,).
        num_timesteps: T.

    Raises:
        ValueError: ``betas`` is not a vector inside (0, 1), or ``prediction`` is unknown.

    Source: Ho et al. 2020, section 2.
    """

    def __init__(self, betas: Tensor, prediction: str) -> None:
        super().__init__(prediction)
        betas = check_betas(betas)
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

    def check_times(self, t: Tensor) -> None:
        """Integers in [0, T), (B,)."""
        check_timesteps("t", t, self.num_timesteps)

    def sample_times(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Random steps, each of the T as likely: (n,) int64."""
        return torch.randint(self.num_timesteps, (n,), generator=generator, device=device)

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

    def signal_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(ᾱ_t) and sqrt(1 - ᾱ_t), each (B, 1, …) in the dtype of ``like``."""
        alpha_bar = self.alpha_bar(t, like)  # (B, 1, …)
        return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)

    def q_mean_variance(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The marginal q(x_t | x_0): mean (B, …), variance and log-variance (B, 1, …).

        Source: Ho et al. 2020, equation 4.
        """
        alpha_bar = self.alpha_bar(t, x0)  # (B, 1, …)
        variance = (1 - alpha_bar).to(x0.dtype)
        return alpha_bar.sqrt().to(x0.dtype) * x0, variance, (1 - alpha_bar).log().to(x0.dtype)

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
