"""Self-attention: every token looks at every other and takes what it needs.

Every attention module of the book has the same signature, ``forward(x, *, cond=None, mask=None)``,
so that one can be swapped for another by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.positions import Rotary, coordinates
from dit_edu.windows import Window


def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None = None, factor: Tensor | None = None
) -> Tensor:
    """Where each token looks: softmax(factor · Q Kᵀ / sqrt(d) + mask), the table written out.

    Args:
        q, k: queries and keys, (…, N, d) and (…, M, d).
        mask: added to the logits (float; -inf forbids) or where attention is allowed (bool);
            broadcasts to (…, N, M).
        factor: multiplied onto the logits; broadcasts to (…, N, M). A factor of 0 masks nothing.

    Returns:
        (…, N, M); the rows add up to 1.

    Source: Vaswani et al. 2017, equation 1.
    """
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (…, N, M)
    logits = logits if factor is None else logits * factor
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1)


def naive_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, factor: Tensor | None = None
) -> Tensor:
    """Attention as the formula has it: all N × M weights are stored, then used.

    The same as ``torch.nn.functional.scaled_dot_product_attention``, for reading and for measuring.

    Args:
        q, k, mask, factor: see :func:`attention_weights`.
        v: values, (…, M, d).

    Returns:
        (…, N, d).
    """
    return attention_weights(q, k, mask, factor) @ v  # (…, N, M) @ (…, M, d)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention: softmax(Q Kᵀ / sqrt(d)) V, with d = D / h.

    Queries, keys and values come from one matrix of shape (3D, D), as in the published checkpoints;
    the softmax is PyTorch's fused ``scaled_dot_product_attention``, which never stores the N × N
    table where a memory-efficient kernel exists.

    Args:
        dim: D, a multiple of ``num_heads``.
        num_heads: h.
        qkv_bias: give queries, keys and values a bias.

    Attributes:
        rotary: turns queries and keys by their places, or None; see
            :class:`~dit_edu.positions.Rotary`.

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
        self.rotary: Rotary | None = None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads: ``x`` (B, N, D) → 3 x (B, h, N, d)."""
        q, k, v = rearrange(
            self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads
        )  # (B, N, 3D) -> 3 x (B, h, N, d)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        return q, k, v

    def forward(
        self,
        x: Tensor,
        *,
        cond: Tensor | None = None,
        mask: Tensor | Window | None = None,
        factor: Tensor | None = None,
    ) -> Tensor:
        """Let tokens look at each other.

        Args:
            x: tokens, (B, N, D).
            cond: the condition, (B, D); plain attention does not look at it.
            mask: added to the logits (float) or where attention is allowed (bool), which broadcasts
                to (B, h, N, N); or a window, which may know a quicker way.
            factor: multiplied onto the logits, an inverse temperature: (B, 1 or h, 1, 1). Or one
                number for each pair, (B, 1 or h, N, N), without a window.

        Returns:
            (B, N, D).
        """
        q, k, v = self.project(x)  # (B, h, N, d) each
        if factor is not None and factor.shape[-1] > 1:
            x = naive_attention(q, k, v, mask, factor)  # no fused kernel knows such a factor
        else:
            q = q if factor is None else q * factor  # (f q) · k = f (q · k)
            if isinstance(mask, Window):
                x = mask.attend(q, k, v)
            else:
                x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, h, N, d)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))  # (B, N, D)


@contextmanager
def record_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the weights of every :class:`Attention` of a model, in the order of the calls.

    The fused kernel never writes its weights down, so they are computed a second time, from what
    went into each module.

    Yields:
        A list that every call of a module extends by (B, h, N, N).
    """
    weights: list[Tensor] = []

    def look(module: Attention, args: tuple, kwargs: dict, _: Tensor) -> None:
        q, k, _ = module.project(args[0])
        mask, factor = kwargs.get("mask"), kwargs.get("factor")
        mask = mask.allowed() if isinstance(mask, Window) else mask
        weights.append(attention_weights(q, k, mask, factor).detach())

    modules = [module for module in model.modules() if isinstance(module, Attention)]
    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()


def attention_distance(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """How far a token looks, on average over what it looks at: in tokens, not pixels.

    Args:
        weights: (…, N, N), whose rows add up to 1.
        grid: tokens per column and per row, (h, w) with N = h·w.

    Returns:
        (…, N).

    Source: Dosovitskiy et al. 2021, section 4.5.
    """
    places = torch.stack(coordinates(grid), dim=1).to(weights)  # (N, 2)
    return (weights * torch.cdist(places, places)).sum(-1)


def attention_entropy(weights: Tensor) -> Tensor:
    """How widely a token looks: the entropy of its weights in nats, from 0 (one token) to ln N.

    Args:
        weights: (…, N, N), whose rows add up to 1.

    Returns:
        (…, N).
    """
    return torch.special.entr(weights).sum(-1)
