"""Classifier-free guidance: ask with the label and without it, and go further in that direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Guided(nn.Module):
    """A guided denoiser is again a denoiser: out = uncond + s · (cond - uncond).

    Both answers come from one pass over a doubled batch. With s = 1 there is no guidance, and only
    the labelled pass is run; with s = 0 the label has no say. The rule is the same for ε, x_0 and
    v, since for a given x_t each is an affine function of the others.

    Args:
        model: a denoiser with a null condition.
        scale: s, finite.
        channels: ``"all"``, or how many of the leading channels to guide; the code published with
            DiT guides 3 of its 4. A learnt variance is never guided.

    Raises:
        ValueError: ``scale`` is not finite, or ``channels`` is not between 1 and ``in_channels``.

    Source: Ho & Salimans 2022, equation 6, with s = 1 + w.
    """

    def __init__(self, model: nn.Module, scale: float, channels: int | str = "all") -> None:
        super().__init__()
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale} must be finite.")
        if channels != "all" and channels not in range(1, model.in_channels + 1):
            raise ValueError(f"channels={channels!r}; allowed: 'all', 1 to {model.in_channels}.")
        self.model = model
        self.scale = float(scale)
        self.channels = model.in_channels if channels == "all" else int(channels)
        self.in_channels = model.in_channels
        self.input_size = model.input_size
        self.num_classes = model.num_classes
        self.class_dropout_prob = model.class_dropout_prob

    def null_condition(self, y: Tensor) -> Tensor:
        """The wrapped model's null condition."""
        return self.model.null_condition(y)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """``x`` (B, C, H, W), ``t`` (B,), ``y`` (B,) → the shape of the wrapped model's output."""
        if self.scale == 1:
            return self.model(x, t, y)
        both = torch.cat([y, self.model.null_condition(y)])  # (2B,)
        out = self.model(torch.cat([x, x]), torch.cat([t, t]), both)  # (2B, out, H, W)
        cond, uncond = out.chunk(2)  # (B, out, H, W) each
        k = self.channels
        guided = uncond[:, :k] + self.scale * (cond[:, :k] - uncond[:, :k])  # (B, k, H, W)
        return torch.cat([guided, cond[:, k:]], dim=1)  # (B, out, H, W)
