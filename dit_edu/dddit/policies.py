"""Policies over t: what works at which noise level, and how a budget is best shared out.

A table tells what each of K options (a depth, a patch size, a model) loses in each of several equal
bins of t, and what it costs. A *policy* gives each bin an option. Of all that cost the same, the
best one on average is found exactly::

    minimise mean_b loss[k_b, b]   subject to   mean_b macs[k_b] <= budget
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Policy:
    """An option for each bin of t, and what that means on average over the bins.

    Attributes:
        options: by their numbers, low noise first.
        macs, loss: means.
    """

    options: tuple[int, ...]
    macs: float
    loss: float


def policy(loss: ArrayLike, macs: Sequence[float], options: Sequence[int]) -> Policy:
    """A given policy, priced.

    Args:
        loss: of each option in each bin, (K, bins).
        macs: of each option, K numbers.
        options: of each bin, from 0.
    """
    loss = np.asarray(loss, float)
    mean = np.mean([loss[k, b] for b, k in enumerate(options)])
    return Policy(tuple(options), float(np.mean([macs[k] for k in options])), float(mean))


def frontier(loss: ArrayLike, macs: Sequence[float]) -> list[Policy]:
    """All policies that no other one beats, in MACs and in loss: exact, by dynamic programming.

    Bin by bin, of the ways to share out what has been spent so far only those are kept that no
    cheaper one beats: what makes the beginning worse cannot make the whole better.

    Args:
        loss: of each option in each bin, (K, bins).
        macs: of each option, K numbers; whole ones, if sums are to be exact.

    Returns:
        The cheapest first.

    Raises:
        ValueError: ``loss`` has no bins, or not as many rows as there are MACs.
    """
    loss = _checked(loss, macs)
    kept: list[tuple[float, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for column in loss.T:  # (K,)
        ways = sorted(
            (spent + macs[k], total + value, (*options, k))
            for spent, total, options in kept
            for k, value in enumerate(column)
        )
        kept, least = [], np.inf
        for way in ways:  # the cheapest first
            if way[1] < least:
                kept.append(way)
                least = way[1]
    return [policy(loss, macs, options) for _, _, options in kept]


def best_within(loss: ArrayLike, macs: Sequence[float], budget: float) -> Policy:
    """The best policy that costs at most ``budget`` on average.

    Args:
        loss, macs: as for :func:`frontier`.
        budget: MACs.

    Raises:
        ValueError: not even the cheapest option is within the budget.
    """
    most = budget * (1 + 1e-12)  # means of whole numbers round
    allowed = [p for p in frontier(loss, macs) if p.macs <= most]
    if not allowed:
        raise ValueError(f"budget={budget}; allowed: at least {min(macs)}, the cheapest option.")
    return allowed[-1]


def at_price(loss: ArrayLike, macs: Sequence[float], price: float) -> Policy:
    """The best policy where MACs have a price: each bin by itself takes its least loss + price · m.

    No policy that costs as much or less has a lower loss (Everett 1963).

    Args:
        loss, macs: as for :func:`frontier`.
        price: λ, loss per MAC, at least 0.

    Raises:
        ValueError: the price is negative.
    """
    if not price >= 0:
        raise ValueError(f"price={price}; allowed: at least 0.")
    paid = _checked(loss, macs) + price * np.asarray(macs, float)[:, None]  # (K, bins)
    return policy(loss, macs, paid.argmin(0).tolist())


def coin(loss: ArrayLike, macs: Sequence[float], budget: float) -> float:
    """The least mean loss of who draws options by lot, at every t alike: a budget without t.

    That is the lower convex hull of the options' means, and needs two options at most.

    Args:
        loss, macs: as for :func:`frontier`.
        budget: MACs, on average.

    Raises:
        ValueError: the budget is below the cheapest option.
    """
    mean = _checked(loss, macs).mean(1)  # (K,)
    if budget < min(macs):
        raise ValueError(f"budget={budget}; allowed: at least {min(macs)}, the cheapest option.")
    best = min(value for value, m in zip(mean, macs, strict=True) if m <= budget)
    for (low, a), (high, b) in product(zip(macs, mean, strict=True), repeat=2):
        if low <= budget < high:
            share = (budget - low) / (high - low)  # of the dear one
            best = min(best, (1 - share) * a + share * b)
    return float(best)


def _checked(loss: ArrayLike, macs: Sequence[float]) -> np.ndarray:
    """The table (K, bins) as an array."""
    table = np.asarray(loss, float)
    if table.ndim != 2 or not table.size or len(table) != len(macs):
        raise ValueError(
            f"loss of shape {table.shape} with {len(macs)} MACs; allowed: a row for each option, "
            "a column for each bin."
        )
    return table
