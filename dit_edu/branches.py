"""What a block adds to its tokens besides self-attention: an MLP, and a look at a condition."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_positive_int


class Mlp(nn.Module):
    """The token-wise half of a block: D → r·D → D with a GELU (tanh form) between.

    Args:
        dim: D.
        hidden_dim: r·D.
        dropout: chance that a number is set to 0 in training, after each of the two maps.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        wide = self.drop(self.act(self.fc1(x)))  # (B, N, D) -> (B, N, rD)
        return self.drop(self.fc2(wide))  # (B, N, rD) -> (B, N, D)


class CrossAttention(nn.Module):
    """Attention in which tokens ask and a condition answers: softmax(Q Kᵀ / sqrt(d)) V.

    Args:
        dim: D, a multiple of ``num_heads``.
        num_heads: h.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Source: Vaswani et al. 2017, section 3.2.3.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if check_positive_int("dim", dim) % check_positive_int("num_heads", num_heads):
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}.")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, *, cond: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let tokens look at the condition.

        Args:
            x: tokens, (B, N, D).
            cond: the condition as a sequence, (B, M, D).
            mask: as in :class:`~dit_edu.attention.Attention`, broadcasts to (B, h, N, M).

        Returns:
            (B, N, D).

        Raises:
            ValueError: ``cond`` is no sequence of vectors of width D.
        """
        if cond.ndim != 3 or cond.shape[-1] != x.shape[-1]:
            raise ValueError(f"cond has shape {tuple(cond.shape)}; allowed: (B, M, {x.shape[-1]}).")
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.num_heads)  # (B, h, N, d)
        k, v = rearrange(
            self.kv(cond), "b m (two h d) -> two b h m d", two=2, h=self.num_heads
        )  # (B, M, 2D) -> 2 x (B, h, M, d)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, h, N, d)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))  # (B, N, D)
