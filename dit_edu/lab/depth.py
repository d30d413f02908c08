"""What the blocks of a trained model do, one by one: how far they look, and what they are worth.

Three questions to every block. Where does it look? How alike are the tokens that it is given? And
what does the loss say if the block is left out, or is given the means of four neighbours each?
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dit_edu.attention import attention_distance, record_attention
from dit_edu.dit import DiT
from dit_edu.landscape import copies, means, on_means


def similarity(x: Tensor) -> Tensor:
    """How alike the tokens of an image are: the mean cosine of all pairs, (B, N, D) → (B,)."""
    x = x / x.norm(dim=-1, keepdim=True)  # (B, N, D)
    n = x.shape[1]
    return (x.sum(1).square().sum(-1) - n) / (n * (n - 1))  # |Σ x|² holds each pair twice, and N


def detail(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The share of the tokens' variance that the means of two by two lose: (B, N, D) → (B,)."""
    lost = (x - copies(means(x, grid), grid)).square().sum((1, 2))
    return lost / (x - x.mean(1, keepdim=True)).square().sum((1, 2))


class LeftOut(nn.Module):
    """In place of a block: nothing."""

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(B, N, D) → the same."""
        return x


class OnMeans(nn.Module):
    """In place of a block: the block on the means of two by two tokens, its change copied to each.

    Args:
        block: the block.
        grid: of its tokens.
    """

    def __init__(self, block: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.block, self.grid = block, grid

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        return on_means(self.block, self.grid, 2, x, told)


@contextmanager
def replaced(model: DiT, k: int, part: nn.Module) -> Iterator[None]:
    """Inside ``with``, ``part`` stands in the place of block ``k``."""
    block = model.blocks[k]
    model.blocks[k] = part
    try:
        yield
    finally:
        model.blocks[k] = block


@torch.no_grad()
def looks_by_block(model: DiT, x: Tensor, t: Tensor, y: Tensor) -> dict[str, list[float]]:
    """What each block is given and where it looks, on average over noisy images ``x``.

    Returns:
        Three lists with a number for each block. ``distance`` is how far a token looks over how far
        it would if it looked at all tokens alike; ``similarity`` and ``detail`` are those of the
        tokens that the block is given.
    """
    given: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, a: given.append(a[0])) for b in model.blocks]
    try:
        with record_attention(model) as weights:
            model(x, t, y)
    finally:
        for hook in hooks:
            hook.remove()
    grid = model.x_embedder.grid
    even = attention_distance(torch.full_like(weights[0], 1 / weights[0].shape[-1]), grid).mean()
    return {
        "distance": [(attention_distance(w, grid).mean() / even).item() for w in weights],
        "similarity": [similarity(tokens).mean().item() for tokens in given],
        "detail": [detail(tokens, grid).mean().item() for tokens in given],
    }
