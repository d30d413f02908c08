"""Part of an attention, part of an MLP: some heads, some hidden channels, and nothing else runs.

A head is d rows of the matrices of queries, keys and values, and d columns of the output matrix; a
hidden channel is a row of an MLP's first map and a column of its second. What is left out is not
multiplied by zero: its rows and columns take no part in the products. Each function equals the
whole module with the output of everything else set to 0::

    some_heads(attn, slice(2), x)             # heads 0 and 1
    some_heads(attn, pick([0, 3], h), x)      # heads 0 and 3
    some_channels(mlp, pick([1], 4, 48), x)   # of four groups of 48 channels, the second
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.attention import Attention
from dit_edu.branches import Mlp

Which = slice | Tensor  # of heads or of channels: a slice is a view of the weights, indices a copy


def pick(units: Sequence[int], of: int, size: int = 1) -> Which:
    """Which rows some units are: a slice where they follow each other, else indices.

    Args:
        units: their numbers, increasing.
        of: how many units there are.
        size: rows of a unit: 1 for heads, the channels of a group for an expert.

    Raises:
        TypeError, ValueError: ``units`` is empty, does not increase, or leaves 0 to ``of`` - 1.

    Example:
        >>> pick([1, 2], of=4, size=10)
        slice(10, 30, None)
        >>> pick([0, 2], of=4)
        tensor([0, 2])
    """
    check_positive_int("of", of)
    check_positive_int("size", size)
    units = list(units)
    if not units or units != sorted(set(units)) or not set(units) <= set(range(of)):
        raise ValueError(f"units={units}; allowed: increasing numbers from 0 to {of - 1}.")
    if units[-1] - units[0] == len(units) - 1:
        return slice(units[0] * size, (units[-1] + 1) * size)
    starts = torch.tensor(units) * size  # (k,)
    return (starts[:, None] + torch.arange(size)).flatten()  # (k, size) -> (k size,)


def some_heads(attn: Attention, heads: Which, x: Tensor) -> Tensor:
    """What an attention says when only some of its heads are there.

    The rows of queries, keys and values are gathered into one matrix: one larger product is faster
    than three small ones, and the copy is small beside either.

    Args:
        attn: a plain :class:`~dit_edu.attention.Attention`; its rotations are kept.
        heads: k of its h heads, at least one: a slice, or increasing indices.
        x: tokens, (B, N, D).

    Returns:
        (B, N, D), by the columns of the output matrix that belong to them, and its whole bias.

    Raises:
        TypeError: ``attn`` is another attention, which may work in its own way.
    """
    b, n, _ = x.shape
    weight, bias, columns = _of_heads(attn, heads)
    qkv = F.linear(x, weight, bias)  # (B, N, D) -> (B, N, 3kd)
    d = attn.proj.in_features // attn.num_heads
    q, k, v = qkv.view(b, n, 3, -1, d).permute(2, 0, 3, 1, 4)  # 3 x (B, k, N, d)
    if attn.rotary is not None:
        q, k = attn.rotary(q), attn.rotary(k)
    x = F.scaled_dot_product_attention(q, k, v)  # (B, k, N, d)
    x = x.transpose(1, 2).flatten(2)  # (B, k, N, d) -> (B, N, kd)
    return F.linear(x, columns, attn.proj.bias)  # (B, N, D)


def some_channels(mlp: Mlp, channels: Which, x: Tensor) -> Tensor:
    """What an MLP says when only some of its hidden channels are there.

    Args:
        mlp: an :class:`~dit_edu.branches.Mlp`; its dropout is kept.
        channels: w of its hidden channels: a slice, or increasing indices.
        x: tokens, (B, N, D).

    Returns:
        (B, N, D), by the second map of the chosen channels, and its whole bias.
    """
    wide = F.linear(x, mlp.fc1.weight[channels], mlp.fc1.bias[channels])  # (B, N, D) -> (B, N, w)
    wide = mlp.drop(mlp.act(wide))
    return mlp.drop(F.linear(wide, mlp.fc2.weight[:, channels], mlp.fc2.bias))  # (B, N, D)


def keep_heads(attn: Attention, heads: Which) -> None:
    """Drop the other heads, in place: what is left is a smaller attention, with nothing to slice.

    Args:
        attn, heads: as for :func:`some_heads`, whose answer it gives from now on.

    Raises:
        TypeError: as there.
    """
    weight, bias, columns = _of_heads(attn, heads)
    attn.num_heads = columns.shape[1] * attn.num_heads // attn.proj.in_features
    _become(attn.qkv, weight, bias)
    _become(attn.proj, columns, attn.proj.bias)


def keep_channels(mlp: Mlp, channels: Which) -> None:
    """Drop the other hidden channels, in place.

    Args:
        mlp, channels: as for :func:`some_channels`, whose answer it gives from now on.
    """
    _become(mlp.fc1, mlp.fc1.weight[channels], mlp.fc1.bias[channels])
    _become(mlp.fc2, mlp.fc2.weight[:, channels], mlp.fc2.bias)


def head_macs(attn: Attention, tokens: int) -> int:
    """Multiply-adds of one head for one image of N tokens: 4 N D d + 2 N² d."""
    dim = attn.proj.in_features
    d = dim // attn.num_heads
    return 4 * tokens * dim * d + 2 * tokens**2 * d


def channel_macs(mlp: Mlp, tokens: int) -> int:
    """Multiply-adds of one hidden channel for one image of N tokens: 2 N D."""
    return 2 * tokens * mlp.fc1.in_features


def _of_heads(attn: Attention, heads: Which) -> tuple[Tensor, Tensor | None, Tensor]:
    """What k heads have of an attention's matrices: (3kd, D) with its bias (3kd,), and (D, kd)."""
    if type(attn) is not Attention:
        raise TypeError(f"attn is a {type(attn).__name__}; allowed: Attention itself.")
    h, dim = attn.num_heads, attn.qkv.in_features
    weight = attn.qkv.weight.view(3, h, -1, dim)[:, heads].flatten(0, 2)  # (3D, D) -> (3kd, D)
    bias = attn.qkv.bias
    if bias is not None:
        bias = bias.view(3, h, -1)[:, heads].flatten()  # (3D,) -> (3kd,)
    columns = attn.proj.weight.view(dim, h, -1)[:, heads].flatten(1)  # (D, D) -> (D, kd)
    return weight, bias, columns


def _become(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give a linear map other numbers, copied, and another size."""
    linear.weight = nn.Parameter(weight.detach().clone())
    linear.bias = bias if bias is None else nn.Parameter(bias.detach().clone())
    linear.out_features, linear.in_features = weight.shape
