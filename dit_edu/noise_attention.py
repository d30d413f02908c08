"""Attention that knows how much noise there is: a temperature and a window that change with t.

Both are options of :class:`~dit_edu.attention.Attention`. Here stand the rules that set them, those
of our notes as they are written beside others, and a DiT whose blocks get them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.dit import DiT
from dit_edu.schedules import cosine_betas, linear_betas
from dit_edu.windows import Window

SCHEDULES = {"cosine": cosine_betas, "linear": linear_betas}
CONTRAST = 2.0  # the factor of the corrected temperatures at one end; at the other it is 1/2


def as_written(betas: Tensor, d: int) -> Tensor:
    """The notes' definition: Q Kᵀ / (sqrt(d) · Temp) with Temp = 1 / sqrt(β_t d).

    Against the usual logits that is the factor sqrt(β_t d), the shape of ``betas``.
    """
    return (betas * d).sqrt()


def as_summed_up(betas: Tensor, d: int) -> Tensor:
    """The notes' summary: the usual logits times 1 / sqrt(β_t), the shape of ``betas``."""
    return betas.rsqrt()


def sharper_at_low_noise(betas: Tensor, d: int) -> Tensor:
    """From 2 where there is no noise to 1/2 where there is nothing else: 2^(1 - 2 sqrt(1-ᾱ_t))."""
    noise = (1 - (1 - betas).cumprod(0)).sqrt()  # sqrt(1 - ᾱ_t)
    return CONTRAST ** (1 - 2 * noise)


def sharper_at_high_noise(betas: Tensor, d: int) -> Tensor:
    """The reverse, from 1/2 to 2: 2^(2 sqrt(1-ᾱ_t) - 1)."""
    return 1 / sharper_at_low_noise(betas, d)


#: Factors of the usual logits at each step, made of (β, d) as (T,). ``"learned"`` is one more.
TEMPERATURES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "as-written": as_written,
    "as-summed-up": as_summed_up,
    "sharper-at-low-noise": sharper_at_low_noise,
    "sharper-at-high-noise": sharper_at_high_noise,
}


def narrow_at_noise(betas: Tensor) -> Tensor:
    """The notes' share: α_t = sqrt(ᾱ_t), which falls from 1 to 0. Sides of windows follow it."""
    return (1 - betas).cumprod(0).sqrt()


def wide_at_noise(betas: Tensor) -> Tensor:
    """What the notes' prose asks for: sqrt(1 - ᾱ_t), which rises from 0 to 1."""
    return (1 - (1 - betas).cumprod(0)).sqrt()


#: The share of the tokens (``"raster"``) or of the grid's side in a window's reach, of β as (T,).
WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {
    "as-written": narrow_at_noise,
    "narrow-at-noise": narrow_at_noise,
    "wide-at-noise": wide_at_noise,
    "fixed": torch.zeros_like,
}


class LearnedTemperature(nn.Module):
    """A factor for each head of each block, made of the step; all are 1 at the start.

    Args:
        hidden_size: D.
        depth: L.
        num_heads: h.
    """

    def __init__(self, hidden_size: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.shape = (depth, num_heads, 1, 1)
        self.linear = nn.Linear(hidden_size, depth * num_heads)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, emb: Tensor) -> Tensor:
        """The step's embedding (B, D) → (L, B, h, 1, 1)."""
        factor = self.linear(nn.functional.silu(emb)).exp()  # (B, L h), above 0
        return factor.unflatten(1, self.shape).transpose(0, 1)  # (L, B, h, 1, 1)


class NoiseMask(nn.Module):
    """The notes' mask as written, to be multiplied, ``sigmoid(MLP(E_t)) · 1[|i - j| < k(t)]``.

    It does not mask: a logit of 0 still gets the weight exp(0). Inside the window it is a
    temperature, outside it makes all tokens alike.

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, 1)
        )

    def forward(self, emb: Tensor, near: Tensor) -> Tensor:
        """``emb`` (B, D) and who is near whom, (B, 1, N, N) → (B, 1, N, N) in [0, 1)."""
        return self.mlp(emb).sigmoid()[..., None, None] * near  # (B, 1, 1, 1) * (B, 1, N, N)


class NoiseAwareDiT(DiT):
    """A DiT whose attention is told the noise level outright. Without options it is a DiT.

    Args:
        temperature: a key of ``TEMPERATURES``, or ``"learned"``; None for 1 at all steps.
        window: a key of ``WINDOWS``; None for none. ``"as-written"`` is multiplied onto the logits
            and measures distance in reading order, the others are masks.
        least: the smallest reach k; 1 leaves a token itself, 2 its eight neighbours too.
        distance: of the masks, see :func:`~dit_edu.windows.token_distance`.
        way: how masks are applied, see :class:`~dit_edu.windows.Window`.
        schedule: whose β_t the rules are made of: ``"cosine"`` or ``"linear"``, 1000 steps.
        **settings: those of :class:`~dit_edu.dit.DiT`.

    Raises:
        TypeError, ValueError: an argument is not allowed.
    """

    def __init__(
        self,
        temperature: str | None = None,
        window: str | None = None,
        least: int = 1,
        distance: str = "grid",
        way: str = "dense",
        schedule: str = "cosine",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        betas = SCHEDULES[check_choice("schedule", schedule, SCHEDULES)](1000)  # (T,)
        if temperature is not None:
            check_choice("temperature", temperature, [*TEMPERATURES, "learned"])
        if window is not None:
            check_choice("window", window, WINDOWS)
            if settings.get("conditioning") == "in-context":
                raise ValueError(
                    f"window={window!r} with conditioning='in-context', whose tokens have no "
                    "place; allowed: None."
                )
        dim, heads = self.x_embedder.proj.out_channels, self.blocks[0].attn.num_heads
        self.temperature, self.window = temperature, window
        self.least = check_positive_int("least", least)
        self.distance = "raster" if window == "as-written" else distance
        self.way = way
        # All that is new comes last, so that the other weights start as those of a DiT.
        learned = temperature == "learned"
        self.learned = LearnedTemperature(dim, len(self.blocks), heads) if learned else None
        self.noise_mask = NoiseMask(dim) if window == "as-written" else None
        factor = TEMPERATURES.get(temperature, lambda betas, d: torch.ones_like(betas))
        share = WINDOWS.get(window, torch.zeros_like)
        self.register_buffer("factor_at", factor(betas, dim // heads).float(), persistent=False)
        self.register_buffer("share_at", share(betas).float(), persistent=False)

    def reach(self, t: Tensor) -> Tensor:
        """k(t): a token sees those nearer than this. ``t`` (B,) → (B,) integers."""
        grid = self.x_embedder.grid
        whole = math.prod(grid) if self.distance == "raster" else max(grid)  # N, or the side
        reach = (self.share_at[t.round().long()] * whole).ceil().long()  # k(t) = ceil(α_t N)
        return reach.clamp(min=self.least)

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks, each with the temperature and the window of the steps ``t`` (B,)."""
        factors: list[Tensor | None] = [None] * len(self.blocks)
        if self.learned is not None:
            factors = list(self.learned(emb))  # L x (B, h, 1, 1)
        elif self.temperature is not None:
            factors = [self.factor_at[t.round().long()].to(emb)[:, None, None, None]] * len(factors)
        seen: dict[str, Any] = {}
        if self.window is not None:
            window = Window(self.x_embedder.grid, self.reach(t), self.distance, self.way)
            if self.noise_mask is None:
                seen = {"mask": window}
            else:  # multiplied, as the notes have it
                pairs = self.noise_mask(emb, window.allowed())  # (B, 1, N, N)
                factors = [pairs if f is None else f * pairs for f in factors]
        return [
            partial(block, factor=f, **seen) for block, f in zip(self.blocks, factors, strict=True)
        ]
