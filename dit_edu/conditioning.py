"""Conditioning: how the noise level and the label reach every block.

Two embedders turn the step t and the label y into vectors of width D; their sum is the condition c.
``BLOCKS`` holds six ways to tell it to a stack of blocks. A model of any kind goes

    h, told = Kind.enter(x, t, y)    # once: tokens (B, N, D) and two embeddings (B, D) each
    told = share(told)               # share = Kind.share(D): what all blocks have in common
    h = block(h, told)               # each block
    h[:, :N]                         # at the end: the image's tokens stand first

In ``adaln-zero`` the condition sets shift, scale and gate of each branch, and all three start at
zero, so that an untrained block is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dit_edu.attention import Attention
from dit_edu.branches import CrossAttention, Mlp
from dit_edu.embedders import LabelEmbedder, TimestepEmbedder

__all__ = [
    "BLOCKS",
    "AdaLNBlock",
    "AdaLNSingleBlock",
    "AdaLNZeroBlock",
    "AdditiveBlock",
    "Block",
    "CrossAttention",
    "CrossAttentionBlock",
    "InContextBlock",
    "LabelEmbedder",
    "Mlp",
    "TableModulation",
    "TimestepEmbedder",
    "modulate",
    "modulation",
]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens by their sample's condition: x · (1 + scale) + shift.

    Args:
        x: tokens, (B, N, D).
        shift, scale: (B, D).

    Returns:
        (B, N, D).
    """
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)  # (B, D) -> (B, 1, D)


def modulation(k: int, dim: int) -> nn.Sequential:
    """A layer that makes k vectors of a condition: (B, D) → (B, kD)."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, k * dim))


class TableModulation(nn.Module):
    """k vectors from a condition that others share: the only weights of its own are k vectors.

    Args:
        k: how many vectors.
        dim: D.

    Source: PixArt-α (Chen et al. 2024), section 2.3, adaLN-single.
    """

    def __init__(self, k: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(k, dim))

    def forward(self, told: Tensor) -> Tensor:
        """``told`` (B, kD), or (B, D) for all k alike → (B, kD)."""
        vectors = told.unflatten(1, (-1, self.table.shape[1]))  # (B, k, D) or (B, 1, D)
        return (vectors + self.table).flatten(1)  # (B, k, D) -> (B, kD)


class Block(nn.Module):
    """The Transformer's own block: attention and MLP, each behind a norm, each added to the tokens.

    It listens to nothing. What a kind changes of it is how the condition enters.

    Args:
        hidden_size: D.
        num_heads: h.
        mlp_ratio: r, the MLP's width over D.
        dropout: of the MLP, in training.

    Attributes:
        modulation: ``modulation(k, D)`` makes the layer that turns a condition into k vectors; None
            where norms have learnt scales and shifts instead.

    Source: Vaswani et al. 2017; with the norms first, as in Dosovitskiy et al. 2021.
    """

    modulation: ClassVar[Callable[[int, int], nn.Module] | None] = None

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        affine = self.modulation is None
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=affine, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=affine, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), dropout)

    @staticmethod
    def enter(x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the blocks work on, and what they are told: here x and the condition c = t + y.

        Args:
            x: tokens, (B, N, D).
            t, y: embeddings of step and label, (B, D).

        Returns:
            Tokens, (B, N or more, D), the image's first; and the condition in this kind's form.
        """
        return x, t + y

    @staticmethod
    def share(dim: int) -> nn.Module:
        """What all blocks of a model have in common makes of the condition: here nothing."""
        return nn.Identity()

    def zero_init(self) -> None:
        """Set to zero what has to start there: here nothing."""

    def forward(self, x: Tensor, told: Tensor, **seen: Any) -> Tensor:
        """Tokens ``x`` (B, N, D) → (B, N, D).

        Args:
            x: tokens, (B, N, D).
            told: the condition in this kind's form.
            **seen: options of attention: ``mask``, ``factor``.
        """
        x = x + self.attn(self.norm1(x), cond=told, **seen)  # x + Attention(LN(x))
        return x + self.mlp(self.norm2(x))  # x + MLP(LN(x))


class AdditiveBlock(Block):
    """A block whose tokens have been given the condition once, before the first block."""

    @staticmethod
    def enter(x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """c = t + y is added to every token."""
        return x + (t + y).unsqueeze(1), t + y  # (B, N, D) + (B, 1, D)


class InContextBlock(Block):
    """A block for which the condition is two tokens more, seen by attention like all others.

    Source: DiT (Peebles & Xie 2023), section 3.2.
    """

    @staticmethod
    def enter(x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """t and y stand behind the image's tokens."""
        return torch.cat([x, torch.stack([t, y], dim=1)], dim=1), t + y  # (B, N + 2, D)


class CrossAttentionBlock(Block):
    """A block with a third branch, in which the tokens look at a sequence of two: t and y.

    Source: DiT (Peebles & Xie 2023), section 3.2.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__(hidden_size, num_heads, mlp_ratio, dropout)
        self.norm_cross = nn.LayerNorm(hidden_size, eps=1e-6)
        self.cross = CrossAttention(hidden_size, num_heads)

    @staticmethod
    def enter(x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks are told both embeddings, not their sum."""
        return x, torch.stack([t, y], dim=1)  # (B, 2, D)

    def forward(self, x: Tensor, told: Tensor, **seen: Any) -> Tensor:
        """Tokens ``x`` (B, N, D) under a sequence ``told`` (B, M, D) → (B, N, D)."""
        x = x + self.attn(self.norm1(x), **seen)
        x = x + self.cross(self.norm_cross(x), cond=told)  # x + CrossAttention(LN(x), told)
        return x + self.mlp(self.norm2(x))


class AdaLNBlock(Block):
    """A block whose norms take their scales and shifts from the condition.

    Source: DiT (Peebles & Xie 2023), section 3.2, after Perez et al. 2018.
    """

    modulation = staticmethod(modulation)

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__(hidden_size, num_heads, mlp_ratio, dropout)
        self.adaLN_modulation = self.modulation(4, hidden_size)

    def forward(self, x: Tensor, told: Tensor, **seen: Any) -> Tensor:
        """Tokens ``x`` (B, N, D) under condition ``told`` (B, D) → (B, N, D)."""
        four = self.adaLN_modulation(told).chunk(4, dim=1)  # (B, 4D) -> 4 x (B, D)
        shift_msa, scale_msa, shift_mlp, scale_mlp = four
        x = x + self.attn(modulate(self.norm1(x), shift_msa, scale_msa), cond=told, **seen)
        return x + self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class AdaLNZeroBlock(Block):
    """A Transformer block whose norms, and whose very presence, are set by the condition.

    From c come six vectors: shift, scale and gate for attention, and the same for the MLP. The
    layer that makes them starts at zero: both gates are closed, and the block is the identity.

    Source: DiT (Peebles & Xie 2023), section 3.2 and figure 3.
    """

    modulation = staticmethod(modulation)

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__(hidden_size, num_heads, mlp_ratio, dropout)
        self.adaLN_modulation = self.modulation(6, hidden_size)

    def zero_init(self) -> None:
        """Close the gates: shift, scale and gate are 0 whatever c, so the block is the identity."""
        nn.init.zeros_(self.adaLN_modulation[-1].weight)
        nn.init.zeros_(self.adaLN_modulation[-1].bias)

    def forward(self, x: Tensor, c: Tensor, **seen: Any) -> Tensor:
        """Tokens ``x`` (B, N, D) under condition ``c`` (B, D) → (B, N, D)."""
        six = self.adaLN_modulation(c).chunk(6, dim=1)  # (B, 6D) -> 6 x (B, D)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = six
        h = self.attn(modulate(self.norm1(x), shift_msa, scale_msa), cond=c, **seen)  # (B, N, D)
        x = x + gate_msa.unsqueeze(1) * h  # x + α₁ · Attention(γ₁, β₁)
        h = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))  # (B, N, D)
        return x + gate_mlp.unsqueeze(1) * h  # x + α₂ · MLP(γ₂, β₂)


class AdaLNSingleBlock(AdaLNZeroBlock):
    """The same with one layer for all blocks: a block adds six vectors of its own, and no more.

    As published, nothing starts at zero, the gates neither; so a fresh block is not the identity.

    Source: PixArt-α (Chen et al. 2024), section 2.3.
    """

    modulation = TableModulation

    @staticmethod
    def share(dim: int) -> nn.Module:
        """c (B, D) → six vectors (B, 6D), once for all blocks."""
        return modulation(6, dim)

    def zero_init(self) -> None:
        """Nothing."""


#: The kinds of conditioning by name.
BLOCKS: dict[str, type[Block]] = {
    "additive": AdditiveBlock,
    "in-context": InContextBlock,
    "cross-attention": CrossAttentionBlock,
    "adaln": AdaLNBlock,
    "adaln-zero": AdaLNZeroBlock,
    "adaln-single": AdaLNSingleBlock,
}
