"""Paths: which units of every block run, for each image of a batch.

A path is a row of L (h + E) bits: in each block h heads and then E groups of channels. Here is how
a table over the steps makes paths, how a batch is sorted by them, and what a path computes when it
is written as a mask: everything, times gates of 0 and 1. That is what training does, so that what
is off is heard, and what slices are tested against.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dit_edu._checks import check_starts
from dit_edu.attention import Attention
from dit_edu.branches import Mlp
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dddit.slices import Which, pick
from dit_edu.dispatch import Items

Table = Sequence[Sequence[float]]  # rows (t, heads, experts)


def check_table(table: Table, heads: tuple[int, int], experts: int) -> None:
    """Check rows (t, heads, experts): steps from 0 on, increasing, and numbers within limits.

    Args:
        table: at least one row.
        heads: the least and the most.
        experts: the most.

    Raises:
        ValueError: a row does not fit; the message names it.
    """
    check_starts("table", [row[0] for row in table])
    least, most = heads
    for row in table:
        if not (least <= row[1] <= most and 0 <= row[2] <= experts):
            raise ValueError(
                f"table has the row {tuple(row)}; allowed: {least} to {most} heads, "
                f"0 to {experts} experts."
            )


def planned_paths(table: Table, t: Tensor, depth: int, heads: int, experts: int) -> Tensor:
    """The paths of a table: in each block the first few heads and the first few experts.

    Args:
        table: rows (t, heads, experts): from step t on, so many run, on average over the blocks.
        t: steps, (B,).
        depth, heads, experts: L, h and E.

    Returns:
        (B, L (h + E)) bool, on the CPU.
    """
    starts, paths = _of_rows(tuple(map(tuple, table)), depth, heads, experts)
    if len(starts) == 1:
        return paths.expand(len(t), -1)  # (1, L (h + E)) -> (B, L (h + E))
    return paths[torch.searchsorted(starts, t.detach().float().cpu(), right=True) - 1]


@cache
def _of_rows(
    rows: tuple[tuple[float, ...], ...], depth: int, heads: int, experts: int
) -> tuple[Tensor, Tensor]:
    """The steps (R,) at which the rows of a table begin, and their paths (R, L (h + E))."""
    number = torch.tensor([[spread(mean, depth) for mean in row[1:]] for row in rows])  # (R, 2, L)
    parts = [
        torch.arange(most) < number[:, kind, :, None]  # (R, L, most)
        for kind, most in enumerate((heads, experts))
    ]
    starts = torch.tensor([float(row[0]) for row in rows])
    return starts, torch.cat(parts, -1).flatten(1)


class Slices(NamedTuple):
    """What a path says of one block: whether all of it runs, else which heads and channels do.

    They are as in :mod:`~dit_edu.dddit.slices`, and None for none.
    """

    whole: bool
    heads: Which | None
    channels: Which | None


@lru_cache(maxsize=1024)
def slices_of(
    path: tuple[bool, ...], heads: int, experts: int, shared: int, wide: int
) -> list[Slices]:
    """A path, block by block, as slices of the weights.

    Args:
        path: L (h + E) of true and false.
        heads, experts: h and E.
        shared: groups of channels that always run, the first.
        wide: channels of an MLP.
    """
    found, size = [], wide // (shared + experts)
    for start in range(0, len(path), heads + experts):
        units = path[start : start + heads + experts]
        on = [unit for unit in range(heads) if units[unit]]
        groups = [*range(shared), *(shared + e for e in range(experts) if units[heads + e])]
        found.append(
            Slices(
                all(units),
                pick(on, heads) if on else None,
                pick(groups, shared + experts, size) if groups else None,
            )
        )
    return found


def spread(mean: float, blocks: int) -> list[int]:
    """Whole numbers for the blocks that add up to the whole part of blocks · mean, evenly.

    Example:
        >>> spread(2.5, 4)
        [2, 3, 2, 3]
    """
    sums = [math.floor(number * mean + 1e-9) for number in range(blocks + 1)]
    return [after - before for before, after in pairwise(sums)]


def within_budget(wish: Tensor, macs: Tensor, budget: float) -> Tensor:
    """The units that are wished for most, one after the other, until the next is too dear.

    Args:
        wish: how much each unit is wished for, (B, U).
        macs: what each costs, (U,).
        budget: the share of the MACs of all units that may be spent, in [0, 1].

    Returns:
        (B, U) bool. With more budget, units are added and none is taken away.
    """
    order = wish.argsort(dim=-1, descending=True, stable=True)  # (B, U)
    macs = macs.to(wish.device)
    affordable = macs[order].cumsum(-1) <= budget * macs.sum()  # (B, U), in that order
    return torch.zeros_like(affordable).scatter(-1, order, affordable)


@torch.no_grad()
def narrowed(block: AdaLNZeroBlock, heads: Which, channels: Which) -> AdaLNZeroBlock:
    """A block of some heads and some channels: their weights copied once, the rest shared.

    It gives no gradient to the weights that it was copied from.
    """
    small, old = _shallow(block), block.attn
    small.attn, small.mlp = attn, mlp = _shallow(old), _shallow(block.mlp)
    qkv = (
        None if part is None else part.unflatten(0, (3, old.num_heads, -1))[:, heads].flatten(0, 2)
        for part in (old.qkv.weight, old.qkv.bias)
    )  # (3D, D) -> (3kd, D), and (3D,) -> (3kd,)
    columns = old.proj.weight.unflatten(1, (old.num_heads, -1))[:, heads]  # (D, k, d)
    attn.num_heads = columns.shape[1]
    attn.qkv, attn.proj = _linear(*qkv), _linear(columns.flatten(1), old.proj.bias)
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    mlp.fc1 = _linear(fc1.weight[channels], fc1.bias[channels])  # (rD, D) -> (w, D)
    mlp.fc2 = _linear(fc2.weight[:, channels], fc2.bias)  # (D, rD) -> (D, w)
    return small


def _shallow(module: nn.Module) -> nn.Module:
    """A copy that shares its parts, until they are replaced."""
    other = copy.copy(module)
    other._modules = dict(module._modules)
    return other


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear map with these weights, (out, in)."""
    layer = nn.Linear(*weight.shape[::-1], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def equal_paths(chosen: Tensor) -> list[tuple[Items, Tensor]]:
    """The different rows of choices (B, U), each (U,), and whose they are."""
    here = chosen.cpu()
    if bool((here == here[:1]).all()):
        return [(slice(None), here[0])]
    paths, which = here.unique(dim=0, return_inverse=True)  # (P, U), (B,)
    return [
        ((which == number).nonzero().squeeze(1).to(chosen.device), path)
        for number, path in enumerate(paths)
    ]


def gated_heads(attn: Attention, gates: Tensor, x: Tensor) -> Tensor:
    """All heads of an attention, each times its gate; without any there is no bias either.

    Args:
        attn: a plain attention.
        gates: (B, h).
        x: tokens, (B, N, D).

    Returns:
        (B, N, D).
    """
    said = F.scaled_dot_product_attention(*attn.project(x)) * gates[..., None, None]  # (B, h, N, d)
    y = F.linear(rearrange(said, "b h n d -> b n (h d)"), attn.proj.weight)  # (B, N, D)
    return y + attn.proj.bias * _any(gates)


def gated_channels(mlp: Mlp, gates: Tensor, x: Tensor) -> Tensor:
    """All channels of an MLP, each group times its gate; without any there is no bias either.

    Args:
        mlp: whose channels.
        gates: of G groups that follow each other, (B, G).
        x: tokens, (B, N, D).

    Returns:
        (B, N, D).
    """
    wide = mlp.drop(mlp.act(mlp.fc1(x))).unflatten(-1, (gates.shape[1], -1))  # (B, N, G, w)
    y = F.linear((wide * gates[:, None, :, None]).flatten(2), mlp.fc2.weight)  # (B, N, D)
    return mlp.drop(y + mlp.fc2.bias * _any(gates))


def _any(gates: Tensor) -> Tensor:
    """(B, …) → (B, 1, 1): 1 where anything runs."""
    return (gates > 0).any(1)[:, None, None].to(gates)
