"""The diffusion process: how an image becomes noise, and what a network must learn to undo it.

Conventions of the whole book: ``t = 0`` is (almost) clean, ``t = T - 1`` is (almost) pure noise.
The way out, of which no network knows, is :class:`~dit_edu.forward.ForwardProcess`. Here are the
way back, whose mean a network says and whose variance it may say too, and the losses that teach it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice
from dit_edu.forward import ForwardProcess
from dit_edu.gaussians import discretized_nll, half_bin, normal_kl
from dit_edu.schedules import cosine_betas, linear_betas, min_snr_weight

VARIANCES = ("fixed-small", "fixed-large", "learned-range")
LOSSES = ("simple", "hybrid", "vlb")
#: λ of the hybrid loss L_simple + λ L_vlb (Nichol & Dhariwal 2021, equation 16).
HYBRID_WEIGHT = 1e-3


class GaussianDiffusion(ForwardProcess):
    """A discrete Gaussian diffusion process and the losses that train its denoiser.

    Args:
        betas: β_0 … β_{T-1}, shape (T,), each strictly between 0 and 1.
        prediction: what the denoiser's output means: the noise ``"eps"``, the clean image ``"x0"``,
            or the velocity ``"v"`` = sqrt(ᾱ) ε - sqrt(1-ᾱ) x_0.
        variance: of a reverse step: ``"fixed-small"`` is β̃, ``"fixed-large"`` β; with
            ``"learned-range"`` the denoiser returns 2C channels, of which the last C say where
            between the two.
        loss: ``"simple"`` is the squared error, ``"hybrid"`` adds λ times the bound to it, for the
            variance alone, ``"vlb"`` is the bound alone. Unless given, hybrid where the variance is
            learnt, else simple.
        min_snr: γ of the min-SNR weight of the squared error; no weight unless given.
        levels: how many values a pixel can have; the last term of the bound is a probability.

    Attributes:
        betas, alphas_cumprod, posterior_variance, posterior_log_variance_clipped: float64, (T,).
        num_timesteps: T.

    Raises:
        TypeError, ValueError: ``betas`` is not a vector inside (0, 1), an option is unknown, or two
            do not go together.

    Source: Ho et al. 2020; the v prediction is Salimans & Ho 2022, appendix D; the learnt variance
    and the hybrid loss are Nichol & Dhariwal 2021, equations 15 and 16.
    """

    def __init__(
        self,
        betas: Tensor,
        prediction: str = "eps",
        *,
        variance: str = "fixed-small",
        loss: str | None = None,
        min_snr: float | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__(betas, prediction)
        learnt = check_choice("variance", variance, VARIANCES) == "learned-range"
        loss = check_choice("loss", loss or ("hybrid" if learnt else "simple"), LOSSES)
        if learnt != (loss == "hybrid") and loss != "vlb":
            raise ValueError(
                f"loss={loss!r} and variance={variance!r} do not go together; allowed: 'hybrid' or "
                "'vlb' where the variance is learnt, 'simple' or 'vlb' where it is fixed."
            )
        if loss == "vlb" and min_snr is not None:
            raise ValueError(f"min_snr={min_snr!r} weighs a squared error; loss='vlb' has none.")
        half_bin(levels)  # raises if it is no number of levels
        self.variance, self.loss, self.min_snr, self.levels = variance, loss, min_snr, levels
        if min_snr is not None:
            min_snr_weight(self.alphas_cumprod, min_snr, prediction)  # raises if γ is no number

    @classmethod
    def linear(
        cls, num_timesteps: int = 1000, prediction: str = "eps", **options: Any
    ) -> GaussianDiffusion:
        """The process with DDPM's linear schedule, :func:`~dit_edu.schedules.linear_betas`."""
        return cls(linear_betas(num_timesteps), prediction, **options)

    @classmethod
    def cosine(
        cls, num_timesteps: int = 1000, prediction: str = "eps", **options: Any
    ) -> GaussianDiffusion:
        """The process with the cosine schedule, :func:`~dit_edu.schedules.cosine_betas`."""
        return cls(cosine_betas(num_timesteps), prediction, **options)

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
            out: the denoiser's output for ``x_t`` at ``t``, (B, C, …); (B, 2C, …) where it learns
                the variance.
            x_t: noisy images, (B, C, …).
            t: steps, (B,) integers in [0, T).
            clip: clamp x̂_0 to [-1, 1] first.
            t_prev: the earlier steps to go to, (B,); ``t - 1`` unless given.

        Returns:
            ``mean``, ``x0`` and ``eps`` (B, C, …); ``variance`` and ``log_variance`` (B, 1, …), or
            (B, C, …) where they are learnt. ``eps`` is the one that fits ``x0``, so it changes too
            where ``x0`` was clipped.

        Raises:
            ValueError: the output has another shape.

        Source: Ho et al. 2020, equations 11 and 15; the learnt variance is Nichol & Dhariwal 2021,
        equation 15.
        """
        if out.shape != self.out_shape(x_t):
            raise ValueError(f"out has shape {tuple(out.shape)}; allowed: {self.out_shape(x_t)}.")
        out, v = self._parts(out)
        x0, eps = self.predict(out, x_t, t, clip)
        mean, variance, log_variance = self.q_posterior(x0, x_t, t, t_prev)
        if self.variance != "fixed-small":
            ab_prev = self.alpha_bar(t - 1 if t_prev is None else t_prev, x_t)  # (B, 1, …)
            log_beta = (1 - self.alpha_bar(t, x_t) / ab_prev).log().to(x_t.dtype)
            if v is None:  # log β; but in the last step log β̃_1, as DDPM's authors have it
                log_variance = torch.where(ab_prev == 1, log_variance, log_beta)
            else:  # log σ² = v' log β + (1 - v') log β̃, with v' = (v + 1) / 2
                v = (v + 1) / 2  # the network says v in about [-1, 1]
                log_variance = v * log_beta + (1 - v) * log_variance  # (B, C, …)
            variance = log_variance.exp()
        return dict(mean=mean, variance=variance, log_variance=log_variance, x0=x0, eps=eps)

    def out_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of an output for ``x`` (B, C, …): (B, 2C, …) where the variance is learnt."""
        return (len(x), x.shape[1] * (2 if self.variance == "learned-range" else 1), *x.shape[2:])

    def _parts(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction and, where it is learnt, what the output says on the variance."""
        return tuple(out.chunk(2, dim=1)) if self.variance == "learned-range" else (out, None)

    def vb_terms(self, out: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The term of the variational bound that belongs to step t, in bits per dimension.

        It is L_t = KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)), and -log p(x_0 | x_t) at t = 0.

        Args:
            out, x_t, t: as in :meth:`p_mean_variance`.
            x0: clean images, (B, C, …).

        Returns:
            (B,).

        Source: Ho et al. 2020, equations 5 and 13.
        """
        mean, _, log_variance = self.q_posterior(x0, x_t, t)
        p = self.p_mean_variance(out, x_t, t)
        kl = normal_kl(mean, log_variance, p["mean"], p["log_variance"])  # (B, C, …)
        nll = discretized_nll(x0, p["mean"], p["log_variance"], self.levels)  # (B, C, …)
        per_image = torch.stack([kl, nll]).flatten(2).mean(2) / math.log(2)  # (2, B), nats -> bits
        return torch.where(t == 0, per_image[1], per_image[0])

    def losses(
        self, model: nn.Module, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The training loss of every sample: ‖target - model(x_t, t, y)‖² averaged over pixels.

        Args:
            model: a denoiser, ``model(x, t, y) -> (B, C, H, W)``, or (B, 2C, H, W).
            x0: clean images, (B, C, H, W), finite.
            t: steps, (B,) integers in [0, T).
            y: conditions, (B,) labels.
            noise: ε, the shape of ``x0``; drawn if not given.

        Returns:
            ``loss``, to be minimised, and ``mse``, the plain simple loss, each (B,).
            Where the loss is hybrid or the bound, also ``vb`` (B,), the term of step t in bits per
            dimension; T times its mean over t is the bound without the prior.

        Raises:
            TypeError, ValueError: a step, a label or a pixel is not allowed, or shapes disagree.

        Source: Ho et al. 2020, equation 14; Nichol & Dhariwal 2021, equation 16.
        """
        x_t, out, noise = self._ask(model, x0, t, y, noise)
        said, v = self._parts(out)
        mse = (self.target(x0, noise, t) - said).square().flatten(1).mean(1)  # (B,)
        loss = mse
        if self.min_snr is not None:
            weight = min_snr_weight(self.alpha_bar(t, mse), self.min_snr, self.prediction)
            loss = weight.to(mse.dtype) * mse
        if self.loss == "simple":
            return {"loss": loss, "mse": mse}
        if self.loss == "hybrid":  # the bound trains the variance; the mean is left to the error
            out = torch.cat([said.detach(), v], dim=1)  # (B, 2C, H, W)
        vb = self.vb_terms(out, x0, x_t, t)  # (B,)
        bound = self.num_timesteps * vb  # L_vlb = Σ_t L_t, from one t
        return {
            "loss": bound if self.loss == "vlb" else loss + HYBRID_WEIGHT * bound,
            "mse": mse,
            "vb": vb,
        }
