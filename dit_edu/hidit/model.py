"""HiDiT: tokens of two sizes, attention in two directions, and layers that the step can choose.

The three parts in one denoiser. Sizes that were claimed for such a model, without the settings that
make them, are found by a search over all models of a simple form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dit_edu._checks import check_choice
from dit_edu.hidit.dynamic import DynamicDiT
from dit_edu.hidit.factorized import SPATIAL, FactorizedAttention, attention_macs
from dit_edu.hidit.multiscale import (
    MultiscaleArchitecture,
    MultiscaleDiT,
    coarse_blocks,
    coarse_grid,
)
from dit_edu.patchify import token_grid

HEAD = 64  # channels of a head in every preset

#: What ``search`` finds first for the two sizes that the notes claim.
PRESETS: dict[str, dict[str, Any]] = {
    "HiDiT-S": dict(hidden_size=448, depth=24, num_heads=7, coarse_fraction=0.5),
    "HiDiT-B": dict(hidden_size=704, depth=21, num_heads=11, coarse_fraction=10 / 21),
}


class HiDiT(MultiscaleDiT, DynamicDiT):
    """A hierarchical Diffusion Transformer.

    Args:
        spatial: who looks at whom in the spatial branch of attention, a key of
            :data:`~dit_edu.hidit.factorized.SPATIAL`.
        window: the side of a window in tokens, where there are windows.
        half: give each of attention's two branches half of the channels.
        keep: how many blocks run at a step; None for all.
        **settings: as for :class:`~dit_edu.hidit.multiscale.MultiscaleDiT`, and ``noise`` as for
            :class:`~dit_edu.hidit.dynamic.DynamicDiT`.

    Raises:
        TypeError, ValueError: a setting does not fit another; the message names both.

    Source: the notes on HiDiT, which name no paper that can be found; this is a definition.
    """

    def __init__(
        self,
        *,
        spatial: str = "full",
        window: int = 4,
        half: bool = False,
        keep: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(keep=keep, **settings)
        self.attention = dict(spatial=spatial, window=window, half=half)
        self.architecture = HiDiTArchitecture.of(settings | self.attention)
        self.heads = self.blocks[0].attn.num_heads
        self._attend()
        self.initialize_weights()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> HiDiT:
        """Build a model by the name of its size; keyword arguments override its settings.

        Raises:
            ValueError: ``name`` is unknown; the message names the nearest.
        """
        return cls(**{**PRESETS[check_choice("name", name, PRESETS)], **overrides})

    def layer_macs(self) -> Tensor:
        """Multiply-adds of each layer for one image, (L,)."""
        a = replace(self.architecture, input_size=self.input_size)
        return torch.tensor([a.layer_macs(grid) for grid in self._grids()])

    def _grids(self) -> list[tuple[int, int]]:
        """The tokens of each layer."""
        fine = self.x_embedder.grid
        return [coarse_grid(fine) if i in self.coarse else fine for i in range(len(self.blocks))]

    def _attend(self) -> None:
        """Put attention for its own grid into every layer, with the weights that were there."""
        for block, grid in zip(self.blocks, self._grids(), strict=True):
            attention = FactorizedAttention(
                self.pos_embed.shape[-1], self.heads, grid, **self.attention
            )
            if isinstance(block.attn, FactorizedAttention):
                attention.load_state_dict(block.attn.state_dict())
            block.attn = attention.to(self.pos_embed)

    def _place(self, grid: tuple[int, int], span: tuple[int, int]) -> None:
        """Positions; and where the model stands already, windows and axes on the new grid."""
        super()._place(grid, span)
        if hasattr(self, "heads"):
            self._attend()


@dataclass(frozen=True)
class HiDiTArchitecture(MultiscaleArchitecture):
    """The sizes of a :class:`HiDiT` whose layers all run, and what it costs in closed form.

    Raises:
        TypeError, ValueError: as the model does.
    """

    spatial: str = "full"
    window: int = 4
    half: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("spatial", self.spatial, SPATIAL)

    def params(self) -> dict[str, int]:
        """As of a :class:`~dit_edu.hidit.multiscale.MultiscaleDiT`, with another attention."""
        d, parts = self.hidden_size, super().params()
        width, heads = (d // 2, self.num_heads // 2) if self.half else (d, self.num_heads)
        branches = 2 * (4 * width**2 + 4 * width) + heads  # their linear maps; the temperatures
        fused = (2 * width + 1) * d
        parts["blocks"] += self.depth * (branches + fused - (4 * d**2 + 4 * d))
        return parts

    def macs(self) -> dict[str, int]:
        """As of a :class:`~dit_edu.hidit.multiscale.MultiscaleDiT`; ``table`` is the channels'."""
        fine = token_grid(self.size, self.patch_size)
        coarse = coarse_blocks(self.depth, self.coarse_fraction)
        layers = {fine: self.depth - coarse, coarse_grid(fine): coarse}
        found = super().macs() | {"tokens": 0, "pairs": 0, "table": 0}
        for grid, number in layers.items():
            for name, macs in self._attention(grid).items():
                found[name] += number * macs
            found["tokens"] += number * self._mlp(grid)
        return found

    def layer_macs(self, grid: tuple[int, int]) -> int:
        """MACs of one layer on ``grid`` for one image."""
        condition = 6 * self.hidden_size**2  # shifts, scales and gates of adaLN-Zero
        return sum(self._attention(grid).values()) + self._mlp(grid) + condition

    def _attention(self, grid: tuple[int, int]) -> dict[str, int]:
        sizes = (self.spatial, self.window, self.half)
        return attention_macs(self.hidden_size, self.num_heads, grid, *sizes)

    def _mlp(self, grid: tuple[int, int]) -> int:
        return 2 * self.hidden_size * self.mlp_hidden * grid[0] * grid[1]


def search(
    params: float, macs: float, tolerance: float = 0.03, depths: range = range(12, 29)
) -> Iterator[tuple[float, HiDiTArchitecture]]:
    """All models with about so many parameters and MACs on 4 × 32 × 32 latents.

    Tried are all widths of whole heads of 64 channels and all depths, with half of the blocks
    coarse (rounded down); everything else is as in DiT. Two equations, two unknowns: there is
    little to choose.

    Args:
        params, macs: what is asked for.
        tolerance: by how much either may be off, as a share.
        depths: numbers of blocks; by default from DiT's smallest to its largest.

    Yields:
        The larger of the two errors, and the sizes; the smallest error first.
    """
    found = []
    for heads in range(4, 19):
        for depth in depths:
            coarse = (depth // 2) / depth
            a = HiDiTArchitecture(
                hidden_size=heads * HEAD, depth=depth, num_heads=heads, coarse_fraction=coarse
            )
            got = sum(a.params().values()) / params, sum(a.macs().values()) / macs
            error = max(abs(ratio - 1) for ratio in got)
            if error <= tolerance:
                found.append((error, a))
    yield from sorted(found, key=lambda pair: pair[0])
