"""What every process of the book shares: a noisy image is a mixture of image and noise,

    x_t = a x_0 + b ε,    ε ~ N(0, I),

and whoever knows x_t and one of x_0, ε and the velocity v knows the other two. The diffusion
process and the flow differ in a and b alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_finite, check_labels
from dit_edu.schedules import PREDICTIONS


class Interpolant:
    """A process that mixes image and noise: the diffusion process or the flow.

    Args:
        prediction: what the denoiser's output means: the noise ``"eps"``, the clean image ``"x0"``,
            or the velocity ``"v"`` = a' ε - b' x_0, with the a' and b' of :meth:`velocity`.

    Attributes:
        num_timesteps: the steps t lie in [0, num_timesteps).

    Raises:
        ValueError: ``prediction`` is unknown.

    Source: the name is that of Albergo & Vanden-Eijnden 2023.
    """

    num_timesteps: int

    def __init__(self, prediction: str) -> None:
        self.prediction = check_choice("prediction", prediction, PREDICTIONS)

    def check_times(self, t: Tensor) -> None:
        """Check a batch of steps, (B,), as they enter losses; values are looked at here alone."""
        raise NotImplementedError

    def sample_times(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """The random steps of a training batch, (n,)."""
        raise NotImplementedError

    def signal_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a and b for a batch of steps ``t`` (B,), each (B, 1, …) in the dtype of ``like``."""
        raise NotImplementedError

    def velocity(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a' and b' of v = a' ε - b' x_0, with a a' + b b' = 1: here a and b themselves.

        Then (x_t, v) is (x_0, ε) turned by an angle, and v is how x_t changes with that angle.
        """
        return self.signal_noise(t, like)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise a clean image in one jump: x_t = a x_0 + b ε.

        Args:
            x0: clean images, (B, …).
            t: steps, (B,).
            noise: ε, the shape of ``x0``.

        Returns:
            x_t, the shape of ``x0``.

        Raises:
            TypeError, ValueError: ``t`` is no batch of valid steps, or the shapes disagree.

        Source: Ho et al. 2020, equation 4.
        """
        self.check_times(t)
        if noise.shape != x0.shape or len(t) != len(x0):
            raise ValueError(
                f"x0 {tuple(x0.shape)}, t {tuple(t.shape)}, noise {tuple(noise.shape)} disagree; "
                "allowed: x0 and noise of one shape (B, …), t of shape (B,)."
            )
        signal, sigma = self.signal_noise(t, x0)  # (B, 1, …)
        return signal * x0 + sigma * noise

    # ------------------------------------------------------------------ three ways to say the same

    def to_x0(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean image that an output implies; ``out`` and ``x_t`` (B, …), ``t`` (B,)."""
        signal, sigma = self.signal_noise(t, x_t)  # (B, 1, …)
        if self.prediction == "x0":
            return out
        if self.prediction == "eps":
            return (x_t - sigma * out) / signal  # solve x_t = signal·x0 + sigma·ε
        return self.velocity(t, x_t)[0] * x_t - sigma * out  # v

    def to_eps(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that an output implies; ``out`` and ``x_t`` (B, …), ``t`` (B,)."""
        signal, sigma = self.signal_noise(t, x_t)  # (B, 1, …)
        if self.prediction == "eps":
            return out
        if self.prediction == "x0":
            return (x_t - signal * out) / sigma
        return self.velocity(t, x_t)[1] * x_t + signal * out  # v

    def to_v(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity a' ε - b' x_0 that an output implies."""
        if self.prediction == "v":
            return out
        of_eps, of_x0 = self.velocity(t, x_t)  # (B, 1, …)
        return of_eps * self.to_eps(out, x_t, t) - of_x0 * self.to_x0(out, x_t, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should have said: ε, x_0 or v, the shape of ``x0``."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        of_eps, of_x0 = self.velocity(t, x0)  # (B, 1, …)
        return of_eps * noise - of_x0 * x0

    def predict(
        self, out: Tensor, x_t: Tensor, t: Tensor, clip: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x̂_0 and the ε̂ that fits it, (B, …) each; ``clip`` clamps x̂_0 to [-1, 1] first.

        Raises:
            ValueError: the output's shape is not that of ``x_t``.
        """
        if out.shape != x_t.shape:
            raise ValueError(f"out has shape {tuple(out.shape)}; allowed: {tuple(x_t.shape)}.")
        x0 = self.to_x0(out, x_t, t)  # (B, …)
        if not clip:
            return x0, self.to_eps(out, x_t, t)
        x0 = x0.clamp(-1, 1)
        signal, sigma = self.signal_noise(t, x_t)
        return x0, (x_t - signal * x0) / sigma

    # ------------------------------------------------------------------ what losses begin with

    def out_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape that a denoiser's output for ``x`` (B, C, …) must have: that of ``x``."""
        return tuple(x.shape)

    def _ask(
        self, model: nn.Module, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise the images and ask the model: x_t, its output and ε. Values are checked here."""
        check_finite("x0", x0)
        check_labels(model, y)
        noise = torch.randn_like(x0) if noise is None else noise
        x_t = self.q_sample(x0, t, noise)
        out = model(x_t, t, y)  # (B, C, H, W), or twice the channels
        if out.shape != self.out_shape(x0):
            raise ValueError(f"model returned {tuple(out.shape)}; allowed: {self.out_shape(x0)}.")
        return x_t, out, noise
