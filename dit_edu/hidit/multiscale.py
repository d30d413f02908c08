"""Tokens of two sizes in one model: some blocks see few large tokens, the others many small ones.

Four neighbouring tokens are merged into one, blocks work on a quarter of the tokens, and each of
their tokens is split into four again. What was fine before is kept aside and joined to what comes
back, so that no detail is lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_choice
from dit_edu.dit import DiT
from dit_edu.patchify import token_grid
from dit_edu.positions import sincos_pos_embed
from dit_edu.scaling import Architecture

SIDE = 2  # a coarse token covers SIDE × SIDE fine ones


def coarse_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """The grid of the coarse tokens, (h/2, w/2), over a grid (h, w) of fine ones.

    Raises:
        ValueError: h or w is odd.
    """
    h, w = grid
    if h % SIDE or w % SIDE:
        raise ValueError(f"grid={h}x{w} of fine tokens; allowed: even numbers, to merge 2x2.")
    return h // SIDE, w // SIDE


def coarse_blocks(depth: int, fraction: float) -> int:
    """How many of ``depth`` blocks are coarse: ``fraction`` of them, rounded.

    Raises:
        ValueError: that is not at least one and at most all.
    """
    blocks = round(fraction * depth)
    if not 1 <= blocks <= depth:
        raise ValueError(
            f"coarse_fraction={fraction} of depth={depth} is {blocks} blocks; "
            f"allowed: 1 to {depth} blocks. Without a coarse block the model is a DiT."
        )
    return blocks


class Merge(nn.Module):
    """Four tokens become one: a linear map of the four, read as one vector, 4D → D.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(SIDE**2 * dim, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Fine tokens ``x`` (B, N, D) on ``grid`` (h, w) → coarse tokens (B, N/4, D).

        Raises:
            ValueError: h or w is odd.
        """
        h, w = coarse_grid(grid)
        four = rearrange(x, "b (h p w q) d -> b (h w) (p q d)", h=h, w=w, p=SIDE, q=SIDE)
        return self.proj(four)  # (B, N/4, 4D) -> (B, N/4, D)


class Split(nn.Module):
    """One token becomes four: a linear map D → 4D, read as four vectors.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, SIDE**2 * dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Coarse tokens ``x`` (B, N/4, D) → fine tokens (B, N, D) on ``grid`` (h, w).

        Raises:
            ValueError: h or w is odd.
        """
        h, w = coarse_grid(grid)
        four = self.proj(x)  # (B, N/4, D) -> (B, N/4, 4D)
        return rearrange(four, "b (h w) (p q d) -> b (h p w q) d", h=h, w=w, p=SIDE, q=SIDE)


class Lerp(nn.Module):
    """Join by a weighted mean: fine + w · (back - fine), with one learnt w, at first 0.

    Source: the code published with Crowson et al. 2024, where w starts at 1/2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def zero_init(self) -> None:
        """Take nothing of what comes back."""
        nn.init.zeros_(self.weight)

    def forward(self, fine: Tensor, back: Tensor) -> Tensor:
        """Two sets of tokens (B, N, D) → one."""
        return torch.lerp(fine, back, self.weight)


class Concat(nn.Module):
    """Join by a linear map of both, 2D → D; at first it hands on ``fine`` alone.

    Source: as in the skips of a U-Net, Ronneberger et al. 2015.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(2 * dim, dim)

    def zero_init(self) -> None:
        """Take nothing of what comes back: the map is (1, 0)."""
        nn.init.eye_(self.proj.weight)  # (D, 2D): ones where row and column agree
        nn.init.zeros_(self.proj.bias)

    def forward(self, fine: Tensor, back: Tensor) -> Tensor:
        """Two sets of tokens (B, N, D) → one."""
        return self.proj(torch.cat([fine, back], dim=-1))  # (B, N, 2D) -> (B, N, D)


#: How the fine tokens and what comes back from the coarse ones are joined, by name.
SKIPS: dict[str, type[nn.Module]] = {"lerp": Lerp, "concat": Concat}


class MultiscaleDiT(DiT):
    """A DiT of which some consecutive blocks work on a quarter of the tokens.

    The tokens of ``patch_size`` p are fine; merged they cover patches of 2p. Coarse tokens get
    positions of their own, in the coordinates of the fine grid: those of their centres. A fresh
    model hands the fine tokens on unchanged, so it starts like a fresh DiT.

    Args:
        coarse_fraction: share of the blocks that are coarse.
        fine_first: how many fine blocks stand before them; 0 is HiDiT's order, coarse to fine.
        skip: how fine tokens and returning ones are joined, a key of :data:`SKIPS`.
        dit: keyword arguments of :class:`~dit_edu.dit.DiT`.

    Attributes:
        coarse: the numbers of the coarse blocks, a range.

    Raises:
        TypeError, ValueError: a setting does not fit another; the message names both.

    Source: the notes on HiDiT, which have no code that runs; merge, split and lerp as in Crowson
    et al. 2024.
    """

    def __init__(
        self,
        *,
        coarse_fraction: float = 0.5,
        fine_first: int = 0,
        skip: str = "lerp",
        **dit: Any,
    ) -> None:
        for name, usual, odd in (
            ("positions", "sincos", ("learned", "rope", "none")),
            ("conditioning", "adaln-zero", ("in-context",)),
        ):
            if dit.get(name) in odd:
                raise ValueError(f"{name}={dit[name]!r} with tokens of two sizes; use {usual!r}.")
        super().__init__(**dit)
        blocks = coarse_blocks(len(self.blocks), coarse_fraction)
        if not isinstance(fine_first, int) or not 0 <= fine_first <= len(self.blocks) - blocks:
            raise ValueError(
                f"fine_first={fine_first!r} with {blocks} of {len(self.blocks)} blocks coarse; "
                f"allowed: an int from 0 to {len(self.blocks) - blocks}."
            )
        self.coarse = range(fine_first, fine_first + blocks)
        width = self.pos_embed.shape[-1]
        self.merge, self.split = Merge(width), Split(width)
        self.join = SKIPS[check_choice("skip", skip, SKIPS)](width)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Those of a DiT; what comes back from the coarse tokens is closed off, last of all."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, tuple(SKIPS.values())):
                module.zero_init()

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks, with a merge before the coarse ones, and a split and a join behind them."""
        layers, grid = super().layers(t, emb), self.x_embedder.grid
        aside: list[Tensor] = []  # the fine tokens

        def merge(x: Tensor, _: Tensor) -> Tensor:
            aside.append(x)
            return self.merge(x, grid) + self.coarse_pos_embed  # (B, N, D) -> (B, N/4, D)

        def join(x: Tensor, _: Tensor) -> Tensor:
            return self.join(aside.pop(), self.split(x, grid))  # (B, N/4, D) -> (B, N, D)

        first, last = self.coarse.start, self.coarse.stop
        return [*layers[:first], merge, *layers[first:last], join, *layers[last:]]

    def _place(self, grid: tuple[int, int], span: tuple[int, int]) -> None:
        """Positions of both sizes of tokens, in the same coordinates."""
        super()._place(grid, span)
        table = sincos_pos_embed(self.pos_embed.shape[-1], coarse_grid(grid), span)  # (N/4, D)
        self.coarse_pos_embed = nn.Parameter(table.unsqueeze(0).to(self.pos_embed), False)


@dataclass(frozen=True)
class MultiscaleArchitecture(Architecture):
    """The sizes of a :class:`MultiscaleDiT`, and what it costs in closed form.

    Where the coarse blocks stand costs nothing.

    Raises:
        TypeError, ValueError: as the model does.
    """

    coarse_fraction: float = 0.5
    skip: str = "lerp"

    def __post_init__(self) -> None:
        super().__post_init__()
        coarse_grid(token_grid(self.size, self.patch_size))
        coarse_blocks(self.depth, self.coarse_fraction)
        check_choice("skip", self.skip, SKIPS)

    def params(self) -> dict[str, int]:
        """Those of a DiT, and ``scales``: of merge, split and join."""
        d, concat = self.hidden_size, self.skip == "concat"
        maps = (4 * d + 1) * d + (d + 1) * 4 * d  # merge and split
        return {**super().params(), "scales": maps + ((2 * d + 1) * d if concat else 1)}

    def macs(self) -> dict[str, int]:
        """As of a DiT, where L - l blocks see N tokens and l see N/4; and ``scales``."""
        d, n, few = self.hidden_size, self.tokens, self.tokens // SIDE**2
        coarse = coarse_blocks(self.depth, self.coarse_fraction)
        fine = self.depth - coarse
        return {
            **super().macs(),
            "tokens": self.each_token * (fine * n + coarse * few),  # 12 D² (L - l) N + 12 D² l N/4
            "pairs": 2 * d * (fine * n**2 + coarse * few**2),  # 2 D (L - l) N² + 2 D l (N/4)²
            "scales": d * d * n * (4 if self.skip == "concat" else 2),  # 4D · D · N/4, twice
        }
