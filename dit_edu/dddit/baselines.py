"""What a dynamic model is held against: static models of equal cost, dice, and a cache over steps.

Each of them is simpler than a router, and none may be missing from a table that shows what a router
is worth. Early exit is :class:`~dit_edu.dddit.exits.ExitDiT`; whole blocks that are skipped are
:class:`~dit_edu.dddit.depth.DepthDiT`. Schedules made by hand are the ``bands`` of
:class:`~dit_edu.dddit.timestep.TimestepDiT` and the ``table`` of a
:class:`~dit_edu.dddit.model.DDDiT`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dit_edu._checks import check_positive_int
from dit_edu.dddit.model import DDDiT
from dit_edu.dddit.paths import within_budget
from dit_edu.dit import DiT
from dit_edu.routing import report
from dit_edu.scaling import Architecture


def at_macs(settings: Mapping[str, Any], macs: float) -> dict[str, Any]:
    """The same static model, with MLPs as wide as a number of MACs allows.

    With the settings of a dynamic model one gets the *thin* opponent; with fewer blocks the
    *shallow* one, with a smaller D the *narrow* one, all of one cost to within half a channel.

    Args:
        settings: of a :class:`~dit_edu.dit.DiT`; their ``mlp_ratio`` is replaced.
        macs: of one image.

    Returns:
        The settings, with the ``mlp_ratio`` that costs closest to ``macs``.

    Raises:
        ValueError: even with one channel it would cost more.
    """
    dim = settings.get("hidden_size", Architecture().hidden_size)

    def cost(channels: int) -> int:
        # half a channel more, so that rounding down gives what was meant
        sizes = {**settings, "mlp_ratio": (channels + 0.5) / dim}
        return sum(Architecture.of(sizes).macs().values())

    one, each = cost(1), cost(2) - cost(1)
    channels = 1 + round((macs - one) / each)
    if channels < 1:
        raise ValueError(f"macs={macs:.0f}; allowed: at least {one}, those with a single channel.")
    return {**settings, "mlp_ratio": (channels + 0.5) / dim}


class DiceDiT(DDDiT):
    """A dynamic model without a router: dice say what runs at which step, once and for all.

    For each of some bands of t its switched units are put into a random order, and run from the
    first on until the budget is spent.

    Args:
        share: λ in [0, 1], of the MACs of all units that are switched.
        dice: the seed of the order.
        bands: how many equal ranges of t are thrown for.
        num_timesteps: T.
        **settings: as for :class:`~dit_edu.dddit.model.DDDiT`, ``table`` aside.

    Raises:
        TypeError, ValueError: ``share`` leaves [0, 1], or an argument does not fit.
    """

    def __init__(
        self,
        *,
        share: float,
        dice: int = 0,
        bands: int = 20,
        num_timesteps: int = 1000,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if not 0 <= share <= 1:
            raise ValueError(f"share={share}; allowed: 0 to 1.")
        self.num_timesteps = check_positive_int("num_timesteps", num_timesteps)
        self.router.requires_grad_(False)  # nobody asks it
        self.table = ((0, self.heads, self.experts),)  # nor is there need to: see ``planned``
        units, least = len(self.blocks) * self.units, self.least_heads
        always = torch.arange(self.units) < least  # (h + E,)
        macs = self.unit_macs().masked_fill(always, 0).repeat(len(self.blocks))  # (U,)
        g = torch.Generator().manual_seed(dice)
        wish = torch.rand(check_positive_int("bands", bands), units, generator=g)
        wish = wish.masked_fill(always.repeat(len(self.blocks)), 2.0)  # what always runs, first
        thrown = within_budget(wish, macs, share)  # (bands, U)
        self.register_buffer("thrown", thrown, persistent=False)

    def planned(self, t: Tensor) -> Tensor:
        """What runs at steps t (B,): (B, L (h + E)) bool."""
        if self.mode != "dynamic":
            return super().planned(t)
        bands = len(self.thrown)
        return self.thrown[(t * bands / self.num_timesteps).long().clamp(0, bands - 1)]


class CachedDiT(DiT):
    """A Diffusion Transformer that runs its blocks at every k-th step of a trajectory only.

    In between, the tokens of x_t are given what the blocks added at the last full step. Nothing is
    trained for it. The model remembers one trajectory: a pass continues it if it has as many
    images, and each a smaller t than before; any other pass begins anew, with all blocks. So draw
    one batch after the other, not two in turns.

    Args:
        every: k; 1 caches nothing. It may be set at any time, and counts in evaluation.
        **settings: as for :class:`~dit_edu.dit.DiT`.

    Raises:
        TypeError, ValueError: ``every`` is no positive integer.

    Source: Ma, Fang & Wang 2024 (DeepCache) for U-Nets; Chen et al. 2024 (Δ-DiT) for the change
    that blocks make.
    """

    def __init__(self, *, every: int = 2, **settings: Any) -> None:
        super().__init__(**settings)
        self.every = check_positive_int("every", every)
        sizes = Architecture.of(settings)
        self.trunk_macs = sizes.depth * sizes.each_block  # of all blocks, for one image
        self.forget()

    def forget(self) -> None:
        """Begin anew at the next pass."""
        self._added: Tensor | None = None  # (B, N, D)
        self._last, self._age = None, 0  # the last pass's steps (B,); passes since a full one

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks, or what they added last.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """
        if self.training or self.every == 1:
            return super().layers(t, emb)
        last, self._last = self._last, t
        goes_on = last is not None and len(last) == len(t) and bool((t < last).all())
        self._age = (self._age + 1) % self.every if goes_on else 0
        runs = torch.full((len(t), 1), self._age == 0)
        report(self, runs, runs.float(), torch.tensor([self.trunk_macs]))
        return [self._again if self._age else self._anew]

    def _anew(self, x: Tensor, c: Tensor) -> Tensor:
        """Through all blocks: tokens (B, N, D) → (B, N, D)."""
        begin = x
        for block in self.blocks:
            x = block(x, c)
        self._added = (x - begin).detach()
        return x

    def _again(self, x: Tensor, _: Tensor) -> Tensor:
        """x + Δ."""
        return x + self._added
