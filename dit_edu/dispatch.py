"""Dispatch: hard choices that a router can learn from, and code that runs only what was chosen.

A router gives every item (an image, or a token) a score for each of E units (blocks, experts,
branches). A few units are chosen; the others do not run::

    chosen = top_k(scores, k)                 # (B, E), True where a unit works on an item
    gates = straight_through(chosen, scores)  # 1 where chosen, with the gradient of the score
    for unit, gate, items in zip(units, gates.T, assign(chosen)):
        y = run_on(items, lambda y, x, g: y + g * unit(x), y, x, gate)

:func:`run_masked` computes the same densely, which saves nothing: the rest is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu._checks import check_positive_int

Items = slice | Tensor  # all of a batch, or the indices of some (of none, perhaps)


def top_k(scores: Tensor, k: int) -> Tensor:
    """The k units with the highest scores of each item; of equal ones, the first.

    Args:
        scores: (…, E).
        k: how many, 1 to E.

    Returns:
        (…, E) bool, exactly k of them True for each item.

    Raises:
        TypeError, ValueError: ``k`` is not an integer from 1 to E.
    """
    if check_positive_int("k", k) > scores.shape[-1]:
        raise ValueError(f"k={k} of {scores.shape[-1]} units; allowed: 1 to {scores.shape[-1]}.")
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]  # (…, k)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)  # (…, E)


def gumbel_like(scores: Tensor) -> Tensor:
    """Standard Gumbel noise: with it, the largest logit is a draw from their softmax.

    With it, k largest logits are k draws without putting back; so a router that is trained tries
    what it does not yet prefer.

    Args:
        scores: (…); its shape, dtype and device are taken.

    Source: Gumbel 1954; for the k largest, Kool, van Hoof & Welling 2019.
    """
    return -torch.empty_like(scores).exponential_().log()  # -ln E, where E ~ Exp(1)


def straight_through(chosen: Tensor, soft: Tensor) -> Tensor:
    """Gates: 1 where chosen and 0 elsewhere; where chosen, with the gradient of ``soft``.

    What did not run has no gradient to give: its score moves only where ``soft`` ties it to the
    others', as a softmax does.

    Args:
        chosen: (…), bool.
        soft: (…), what the router would say if it could be undecided.

    Returns:
        (…), of the dtype of ``soft``.

    Source: Bengio, Léonard & Courville 2013, for the estimator.
    """
    return torch.where(chosen, 1 + (soft - soft.detach()), 0)


def assign(chosen: Tensor) -> list[Items]:
    """For each unit, the items that it works on.

    The choices are brought to the CPU once, so that a GPU does not wait for every unit.

    Args:
        chosen: (B, E) bool.

    Returns:
        One entry for each unit. It is ``slice(None)`` where the whole batch chose the unit, else
        the indices of those who did, of nobody perhaps.

    Raises:
        TypeError, ValueError: ``chosen`` is not a bool tensor of shape (B, E).
    """
    if chosen.dtype != torch.bool:
        raise TypeError(f"chosen has dtype {chosen.dtype}; allowed: torch.bool.")
    if chosen.ndim != 2:
        raise ValueError(f"chosen has shape {tuple(chosen.shape)}; allowed: (B, E).")
    found: list[Items] = []
    for unit in chosen.cpu().T:  # (B,)
        whole = bool(unit.all())
        found.append(slice(None) if whole else unit.nonzero().squeeze(1).to(chosen.device))
    return found


def run_on(items: Items, step: Callable[..., Tensor], x: Tensor, *args: Tensor) -> Tensor:
    """``step(x, *args)`` for the items that chose it; the others stay as they are.

    The whole batch goes through as it is; some of it is gathered, computed and put back; and for
    no item nothing runs.

    Args:
        items: an entry of :func:`assign`.
        step: maps (b, …) to (b, …), each item by itself.
        x, args: (B, …), gathered alike.

    Returns:
        (B, …), as ``x``.
    """
    if isinstance(items, slice):
        return step(x, *args)
    if not len(items):
        return x
    done = step(x[items], *(a[items] for a in args))  # (B, …) -> (b, …)
    return x.index_copy(0, items, done.to(x.dtype))  # (b, …) -> (B, …)


def run_masked(chosen: Tensor, step: Callable[..., Tensor], x: Tensor, *args: Tensor) -> Tensor:
    """The same as :func:`run_on`, computed for all and then taken back: the definition.

    Args:
        chosen: (B,) bool, one unit's column.
        step, x, args: as there.
    """
    mask = chosen.view(-1, *(1 for _ in x.shape[1:]))  # (B, 1, …)
    return torch.where(mask, step(x, *args), x)
