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
        interval: the steps (low, high) that are guided, both ends included; None guides all. A
            batch that lies outside costs the labelled pass only. (While torch traces, and on the
            meta device, nobody can know where it lies: there both answers are always computed.)

    Raises:
        TypeError: ``interval`` is not a pair of numbers.
        ValueError: ``scale`` is not finite, ``channels`` is not between 1 and ``in_channels``, or
            ``interval`` is not 0 <= low <= high.

    Source: Ho & Salimans 2022, equation 6, with s = 1 + w; the interval: Kynkäänniemi et al. 2024.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float,
        channels: int | str = "all",
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale} must be finite.")
        if channels != "all" and channels not in range(1, model.in_channels + 1):
            raise ValueError(f"channels={channels!r}; allowed: 'all', 1 to {model.in_channels}.")
        self.model = model
        self.scale = float(scale)
        self.channels = model.in_channels if channels == "all" else int(channels)
        self.interval = None if interval is None else _check_interval(interval)
        self.in_channels = model.in_channels
        self.input_size = model.input_size
        self.num_classes = model.num_classes
        self.class_dropout_prob = model.class_dropout_prob

    def null_condition(self, y: Tensor) -> Tensor:
        """The wrapped model's null condition."""
        return self.model.null_condition(y)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """``x`` (B, C, H, W), ``t`` (B,), ``y`` (B,) → the shape of the wrapped model's output."""
        inside = self._inside(t)  # (B,), or None where all are
        if self.scale == 1 or (inside is not None and _known_to_be_none(inside)):
            return self.model(x, t, y)
        both = torch.cat([y, self.model.null_condition(y)])  # (2B,)
        out = self.model(torch.cat([x, x]), torch.cat([t, t]), both)  # (2B, out, H, W)
        cond, uncond = out.chunk(2)  # (B, out, H, W) each
        k = self.channels
        guided = uncond[:, :k] + self.scale * (cond[:, :k] - uncond[:, :k])  # (B, k, H, W)
        if inside is not None:
            guided = torch.where(
                inside.view(-1, *[1] * (x.ndim - 1)), guided, cond[:, :k]
            )  # (B, k, H, W)
        return torch.cat([guided, cond[:, k:]], dim=1)  # (B, out, H, W)

    def _inside(self, t: Tensor) -> Tensor | None:
        """Which samples are guided, (B,); None stands for all."""
        if self.interval is None:
            return None
        low, high = self.interval
        return (low <= t) & (t <= high)  # (B,)


def _known_to_be_none(inside: Tensor) -> bool:
    """Whether ``inside`` (B,) is seen to be all False; what has no values yet is not seen.

    A graph must not depend on values, so a tracer gets the branch that is right for all of them.
    """
    return not (torch.compiler.is_compiling() or inside.is_meta or bool(inside.any()))


def _check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """(low, high) as floats.

    Raises:
        TypeError, ValueError: see :class:`Guided`.
    """
    try:
        low, high = (float(end) for end in interval)
    except (TypeError, ValueError):
        raise TypeError(
            f"interval={interval!r} must be None or a pair of numbers (low, high)."
        ) from None
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"interval={interval!r}; allowed: (low, high) with 0 <= low <= high.")
    return low, high
