"""Power laws: a straight line in logarithms, and how sure one can be of its slope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from dit_edu._checks import check_positive_int
from dit_edu.lab.files import read_json


@dataclass(frozen=True)
class PowerLaw:
    """y = a · x_1^(-b_1) · x_2^(-b_2) · …

    Attributes:
        a: the value where all x are 1.
        b: an exponent for each x; doubling x divides y by 2^b.
    """

    a: float
    b: tuple[float, ...]

    def __call__(self, *x: ArrayLike) -> np.ndarray:
        """The law's y; each of ``x`` is (…)."""
        logs = [-b * np.log(np.asarray(v, float)) for b, v in zip(self.b, x, strict=True)]
        return self.a * np.exp(sum(logs))

    def scatter(self, y: ArrayLike, *x: ArrayLike) -> float:
        """By which factor the points lie off the law, typically: exp of the rms of log residuals.

        The mean square is over n - 1 - k degrees of freedom, for n points and k exponents.
        """
        off = np.log(np.asarray(y, float)) - np.log(self(*x))  # (n,)
        return float(np.exp(np.sqrt((off**2).sum() / (len(off) - 1 - len(self.b)))))


def fit(y: ArrayLike, *x: ArrayLike) -> PowerLaw:
    """The power law with the least squares in log y.

    Args:
        y: (n,), positive.
        x: one or more, (n,) each, positive.

    Raises:
        ValueError: a value is not positive, a length differs, or the points do not determine the
            law: too few, or all with the same x.
    """
    logs = [np.asarray(v, float) for v in (y, *x)]
    if any(v.shape != (len(logs[0]),) or not (v > 0).all() for v in logs):
        raise ValueError(f"y and x must be {len(logs[0])} positive numbers each.")
    target, *columns = np.log(np.stack(logs))  # (n,) each
    table = np.stack([np.ones_like(target), *(-column for column in columns)], axis=1)  # (n, 1 + k)
    found, _, rank, _ = np.linalg.lstsq(table, target)
    if rank < table.shape[1]:
        raise ValueError(f"{len(target)} points do not determine {len(columns)} exponents.")
    return PowerLaw(float(np.exp(found[0])), tuple(map(float, found[1:])))


def bootstrap(
    estimate: Callable[[np.ndarray], ArrayLike], n: int, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """What an estimate might have been: it is made anew of n things drawn from the n, with repeats.

    Args:
        estimate: takes n indices from 0 to n - 1, some more than once; returns numbers (…). Where
            it raises ValueError (all indices are the same, say), others are drawn in their place.
        n: how many things there are: seeds, or models.
        draws: how often.
        seed: of the draws.

    Returns:
        (draws, …).

    Source: Efron 1979.
    """
    check_positive_int("draws", draws)
    rng, found = np.random.default_rng(seed), []
    for _ in range(100 * draws):
        try:
            found.append(np.asarray(estimate(rng.integers(n, size=n)), float))
        except ValueError:
            continue
        if len(found) == draws:
            return np.stack(found)
    raise ValueError(f"n={n}: nearly every draw of {n} is one that estimate refuses.")


def interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The middle ``level`` of values (draws, …): lower and upper edge, (…) each."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def published() -> list[dict[str, object]]:
    """The paper's twelve models: ``model``, ``parameters, M``, ``GMACs``, ``FID`` (400K steps).

    Source: Peebles & Xie 2023, table 4.
    """
    table = read_json(Path(__file__).with_name("published.json"))
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
