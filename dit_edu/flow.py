"""Flow matching: image and noise on a straight line, and a network that learns its direction.

The time τ runs from 0, the clean image, to 1, pure noise:

    x_τ = (1 - τ) x_0 + τ ε,    v = dx_τ/dτ = ε - x_0.

The denoiser gets t = 999 τ, so that it is the same network as in the rest of the book.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice
from dit_edu.interpolant import Interpolant

TIMES = ("uniform", "logit-normal")


class FlowMatching(Interpolant):
    """The straight flow from images to noise (rectified flow) and the loss that trains it.

    Its methods are those of :class:`~dit_edu.diffusion.GaussianDiffusion` where they mean the same.

    Args:
        times: how training draws τ: ``"uniform"`` on [0, 1], or ``"logit-normal"``, a Gaussian
            number put through a sigmoid, so that the middle of the way is seen most.

    Attributes:
        num_timesteps: 1000; the denoiser's t = 999 τ lies in [0, 999].
        prediction: ``"v"``.

    Raises:
        ValueError: ``times`` is unknown.

    Source: Lipman et al. 2023 and Liu et al. 2023, with the clock turned round; the logit-normal
    times are Esser et al. 2024, section 3.1.
    """

    num_timesteps = 1000

    def __init__(self, times: str = "uniform") -> None:
        super().__init__("v")
        self.times = check_choice("times", times, TIMES)

    def check_times(self, t: Tensor) -> None:
        """Numbers in [0, 999], (B,).

        Raises:
            TypeError: ``t`` is not a tensor.
            ValueError: it is not one-dimensional, or holds another value.
        """
        if not isinstance(t, Tensor):
            raise TypeError(f"t must be a tensor of shape (B,), not {type(t).__name__}.")
        if t.ndim != 1:
            raise ValueError(f"t has shape {tuple(t.shape)}; allowed: (B,).")
        if not bool(((t >= 0) & (t <= self.num_timesteps - 1)).all()):
            raise ValueError(
                f"t holds values from {t.min():.4g} to {t.max():.4g}; allowed: 0 to 999, 999 τ."
            )

    def sample_times(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Random steps t = 999 τ, (n,) float."""
        if self.times == "uniform":
            tau = torch.rand(n, generator=generator, device=device)  # (n,)
        else:
            tau = torch.randn(n, generator=generator, device=device).sigmoid()  # (n,)
        return (self.num_timesteps - 1) * tau

    def signal_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """1 - τ and τ, each (B, 1, …) in the dtype of ``like``."""
        dtype = torch.float32 if t.device.type == "mps" else torch.float64  # MPS has no float64
        tau = t.to(dtype).view(-1, *[1] * (like.ndim - 1)) / (self.num_timesteps - 1)  # (B, 1, …)
        return (1 - tau).to(like.dtype), tau.to(like.dtype)

    def velocity(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The 1 and 1 of v = ε - x_0, (B, 1, …); see :class:`~dit_edu.interpolant.Interpolant`."""
        one = torch.ones_like(self.signal_noise(t, like)[0])
        return one, one

    def losses(
        self, model: nn.Module, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The training loss of every sample: ‖(ε - x_0) - model(x_τ, 999 τ, y)‖², pixels averaged.

        Args:
            model: a denoiser, ``model(x, t, y) -> (B, C, H, W)``.
            x0: clean images, (B, C, H, W), finite.
            t: 999 τ, (B,) numbers in [0, 999].
            y: conditions, (B,) labels.
            noise: ε, the shape of ``x0``; drawn if not given.

        Returns:
            ``loss`` and ``mse``, each (B,); here they are the same.

        Raises:
            TypeError, ValueError: a time, a label or a pixel is not allowed, or shapes disagree.

        Source: Lipman et al. 2023, equation 23, without its smallest noise.
        """
        _, out, noise = self._ask(model, x0, t, y, noise)
        mse = (self.target(x0, noise, t) - out).square().flatten(1).mean(1)  # (B,)
        return {"loss": mse, "mse": mse}
