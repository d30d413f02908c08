"""Self-attention: every token looks at every other and takes what it needs.

Every attention module of the book has the same signature, ``forward(x, *, cond=None, mask=None)``,
so that one can be swapped for another by name.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_positive_int


class Attention(nn.Module):
    """Multi-head scaled dot-product attention: softmax(Q Kᵀ / sqrt(d)) V, with d = D / h.

    Queries, keys and values come from one matrix of shape (3D, D), as in the published checkpoints;
    the softmax is PyTorch's fused ``scaled_dot_product_attention``, which never stores the N × N
    table where a memory-efficient kernel exists.

    Args:
        dim: D, a multiple of ``num_heads``.
        num_heads: h.
        qkv_bias: give queries, keys and values a bias.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Source: Vaswani et al. 2017, equation 1 and section 3.2.2.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if check_positive_int("dim", dim) % check_positive_int("num_heads", num_heads):
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}.")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, *, cond: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Let tokens look at each other.

        Args:
            x: tokens, (B, N, D).
            cond: the condition, (B, D); plain attention does not look at it.
            mask: added to the logits (float) or where attention is allowed (bool); broadcasts to
                (B, h, N, N).

        Returns:
            (B, N, D).
        """
        q, k, v = rearrange(
            self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads
        )  # (B, N, 3D) -> 3 x (B, h, N, d)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, h, N, d)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))  # (B, N, D)
