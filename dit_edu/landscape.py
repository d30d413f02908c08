"""The landscape of efficient Diffusion Transformers: the one kind that no chapter before has built.

Tokens at a density that depends on the block and on the step. A sparse block works on the means of
windows of tokens, and what it adds to a mean is added to every token of the window. So all tokens
stay, and no weight is needed for the way there and back. All else that the chapter compares is
imported from where it is taught.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from einops import reduce, repeat
from torch import Tensor, nn

from dit_edu._checks import check_positive_int, check_starts
from dit_edu.dispatch import Items, run_on
from dit_edu.dit import DiT
from dit_edu.routing import report


def means(x: Tensor, grid: tuple[int, int], window: int = 2) -> Tensor:
    """The mean of each window of tokens: ``x`` (B, N, D) on ``grid`` (h, w) → (B, N/window², D)."""
    sides = {"h": grid[0] // window, "p": window, "q": window}
    return reduce(x, "b (h p w q) d -> b (h w) d", "mean", **sides)


def copies(x: Tensor, grid: tuple[int, int], window: int = 2) -> Tensor:
    """Each token window² times: (B, N/window², D) → (B, N, D) on ``grid`` (h, w)."""
    sides = {"h": grid[0] // window, "p": window, "q": window}
    return repeat(x, "b (h w) d -> b (h p w q) d", **sides)


def on_means(block: nn.Module, grid: tuple[int, int], window: int, x: Tensor, c: Tensor) -> Tensor:
    """x + what a block adds to the mean of each token's window: (B, N, D) → (B, N, D)."""
    if window == 1:
        return block(x, c)
    few = means(x, grid, window)  # (B, N/window², D)
    return x + copies(block(few, c) - few, grid, window)


class TokenDensityDiT(DiT):
    """A Diffusion Transformer whose middle blocks see the fewer tokens the noisier the image is.

    Args:
        density: rows (t, window), steps increasing from 0; a window of 1 keeps all tokens.
        dense_first, dense_last: how many blocks at each end always see all tokens.
        **dit: keyword arguments of :class:`~dit_edu.dit.DiT`.

    Attributes:
        sparse: the numbers of the other blocks, a range.

    Raises:
        TypeError, ValueError: rows do not begin at 0 or do not increase, a window does not divide
            the grid, no block is left to be sparse, or the conditioning adds tokens.

    Source: token density by layer and step, Chang et al. 2024 (FlexDiT); theirs is fine-tuned from
    a trained model and pools by attention, this one by means.
    """

    def __init__(
        self,
        *,
        density: Sequence[Sequence[int]] = ((0, 1), (500, 2)),
        dense_first: int = 1,
        dense_last: int = 1,
        **dit: Any,
    ) -> None:
        if dit.get("conditioning") == "in-context":  # its tokens of the condition have no place
            raise ValueError("conditioning='in-context' with windows of tokens; use 'adaln-zero'.")
        super().__init__(**dit)
        depth, grid = len(self.blocks), self.x_embedder.grid
        if min(dense_first, dense_last) < 0 or dense_first + dense_last >= depth:
            raise ValueError(
                f"dense_first={dense_first} and dense_last={dense_last} of {depth} blocks; "
                "allowed: numbers that leave a block between."
            )
        check_starts("density", [row[0] for row in density])
        for _, window in density:
            if any(side % check_positive_int("window", window) for side in grid):
                h, w = grid
                raise ValueError(f"window={window} on a grid of {h}x{w}; allowed: a divisor.")
        self.density = tuple(tuple(row) for row in density)
        self.sparse = range(dense_first, depth - dense_last)

    def rows_at(self, t: Tensor) -> Tensor:
        """The row of the density that holds at steps t: (B,) int64."""
        starts = torch.tensor([float(row[0]) for row in self.density], device=t.device)  # (R,)
        return torch.searchsorted(starts, t.float(), right=True) - 1  # (B,)

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks; a sparse one goes over the images of each density.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """
        layers, at = super().layers(t, emb), self.rows_at(t)  # (B,)
        taken = at.unique()
        groups: list[tuple[int, Items]] = [
            (self.density[row][1], slice(None) if len(taken) == 1 else (at == row).nonzero()[:, 0])
            for row in taken.tolist()
        ]
        chosen = torch.arange(len(self.density), device=at.device) == at[:, None]  # (B, R)
        macs = torch.tensor([self.sparse_macs(window) for _, window in self.density])  # (R,)

        def over_groups(block: nn.Module, x: Tensor, c: Tensor) -> Tensor:
            report(block, chosen, chosen.float(), macs)
            for window, items in groups:
                x = run_on(items, partial(on_means, block, self.x_embedder.grid, window), x, c)
            return x

        for number in self.sparse:
            layers[number] = partial(over_groups, self.blocks[number])
        return layers

    def sparse_macs(self, window: int) -> int:
        """Multiply-adds of a sparse block for one image: 12 D² M + 2 D M² + 6 D², M = N/window²."""
        block, n = self.blocks[0], self.pos_embed.shape[1] // window**2
        wide, dim = block.mlp.fc1.weight.shape
        return (4 * dim + 2 * wide) * dim * n + 2 * dim * n**2 + 6 * dim**2
