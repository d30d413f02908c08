"""What a router does, read from a record of its choices: load, dead units, agreement, causes.

All functions take the choices of many items as an array (n, E), 0 or 1 (or the share of an image's
tokens); :func:`choices` reads it from the table of :func:`~dit_edu.routing.record_routing`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment


def choices(table: Mapping[str, np.ndarray], module: str) -> np.ndarray:
    """What one module chose, in the order in which images passed.

    Args:
        table: of :meth:`dit_edu.routing.Trace.table`.
        module: its name in the recorded model; the model itself is ``""``.

    Returns:
        (n, E).

    Raises:
        ValueError: the table knows no such module.
    """
    mine = table["module"] == module
    if not mine.any():
        known = ", ".join(sorted({repr(str(name)) for name in table["module"]}))
        raise ValueError(f"module={module!r} chose nothing; allowed: {known or 'none'}.")
    return table["choice"][mine].reshape(-1, int(table["unit"][mine].max()) + 1)


def load(chosen: ArrayLike) -> np.ndarray:
    """The share of items that chose each unit: (n, E) → (E,)."""
    return np.asarray(chosen, dtype=float).mean(0)


def dead(chosen: ArrayLike, below: float = 0.01) -> np.ndarray:
    """The units that fewer than a share ``below`` of the items choose: (n, E) → (d,) indices."""
    return np.flatnonzero(load(chosen) < below)


def sharp(probabilities: ArrayLike, margin: float = 0.05) -> float:
    """The share of decisions whose probability is within ``margin`` of 0 or of 1: (n, E) → [0, 1].

    A router that is not sharp draws another model each time in training, and in evaluation all
    of its hesitation is rounded away.
    """
    p = np.asarray(probabilities, dtype=float)
    return float((np.minimum(p, 1 - p) < margin).mean())


def guessed(chosen: ArrayLike, known: ArrayLike | None = None) -> float:
    """How often one guesses the choice of an item, knowing only its group: in [0, 1].

    In each group one guesses the unit that is chosen most often there. Where this is right no more
    often than without groups, the choice does not depend on them.

    Args:
        chosen: one unit for each item, (n, E).
        known: the group of each item, (n,) integers; None for one group.
    """
    a = np.asarray(chosen, dtype=float)
    groups = np.zeros(len(a)) if known is None else np.asarray(known)
    return float(sum(a[groups == g].sum(0).max() for g in np.unique(groups)) / len(a))


def agreement(a: ArrayLike, b: ArrayLike, *, matched: bool = False) -> float:
    """How often two routers decide alike on the same items.

    Args:
        a, b: choices, (n, E) each.
        matched: units have no identity of their own, as experts have none: first rename those of
            ``b`` so that they agree best.

    Returns:
        The share of equal decisions, in [0, 1]. By chance it is not 0, see
        :func:`chance_agreement`.

    Raises:
        ValueError: the two are not of the same shape.
    """
    a, b = _pair(a, b)
    equal = 1 - np.abs(a[:, :, None] - b[:, None, :]).mean(0)  # (E, E): unit of a, unit of b
    if matched:
        rows, columns = linear_sum_assignment(equal, maximize=True)
        return float(equal[rows, columns].mean())
    return float(np.diagonal(equal).mean())


def chance_agreement(a: ArrayLike, b: ArrayLike) -> float:
    """The :func:`agreement` of two that choose as much, but anything: q q' + (1 - q)(1 - q').

    Args:
        a, b: choices, (n, E) each; q and q' are the shares of what they choose.

    Raises:
        ValueError: the two are not of the same shape.
    """
    q, r = (float(x.mean()) for x in _pair(a, b))
    return q * r + (1 - q) * (1 - r)


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}; allowed: the same (n, E).")
    return a, b
