"""Is it more than luck? Differences between settings, held against the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student


@dataclass(frozen=True)
class Comparison:
    """A setting against the base. All spreads are standard deviations over seeds (n - 1).

    Attributes:
        mean, sd: of the metric itself.
        gap, gap_sd: of the differences to the base at the same seed.
        t: ``gap`` in units of its standard error, gap / (gap_sd / sqrt(n)); 0 for the base.
    """

    mean: float
    sd: float
    gap: float
    gap_sd: float
    t: float


def compare(
    rows: Sequence[Mapping[str, Any]], metric: str, base: str = "base"
) -> dict[str, Comparison]:
    """What each setting does to a metric, seed by seed.

    Args:
        rows: of an experiment, with ``setting``, ``seed`` and ``metrics``.
        metric: its name.
        base: the setting that the others are compared with.

    Raises:
        ValueError: a setting has fewer than two seeds, or others than the base.
    """
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["setting"], {})[row["seed"]] = row["metrics"][metric]
    table = {}
    for setting, by_seed in found.items():
        if len(by_seed) < 2 or by_seed.keys() != found[base].keys():
            raise ValueError(
                f"setting {setting!r} has the seeds {sorted(by_seed)}; allowed: those of {base!r}, "
                f"{sorted(found[base])}, and at least two."
            )
        values = np.array([by_seed[seed] for seed in found[base]])
        gaps = values - np.array(list(found[base].values()))
        gap, gap_sd = gaps.mean(), gaps.std(ddof=1)
        error = gap_sd / math.sqrt(len(gaps))
        t = gap / error if error else 0.0
        table[setting] = Comparison(
            *map(float, (values.mean(), values.std(ddof=1), gap, gap_sd, t))
        )
    return table


def t_limit(n: int, comparisons: int = 1, level: float = 0.05) -> float:
    """How large \\|t\\| must be for luck to be an unlikely reason.

    Args:
        n: seeds, at least 2.
        comparisons: how many differences are looked at; if none were real, one of them or more
            would pass with a probability of at most ``level`` (Bonferroni).
        level: the chance of a false alarm, in (0, 1).
    """
    return float(student.ppf(1 - level / comparisons / 2, n - 1))


def as_text(
    rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], base: str = "base"
) -> str:
    """A table for the eye: each metric's mean ± sd by setting, and the t of its gap to the base.

    A star stands where \\|t\\| is beyond :func:`t_limit` for as many comparisons as there are rows.

    Args:
        rows: of an experiment.
        metrics: what to show: by name, the format of its numbers, as ``".3f"``.
        base: the setting that the others are compared with.
    """
    tables = {metric: compare(rows, metric, base) for metric in metrics}
    settings = list(tables[next(iter(metrics))])
    seeds = len({row["seed"] for row in rows})
    limit = t_limit(seeds, comparisons=max(1, len(settings) - 1))
    width = max(map(len, settings)) + 2
    lines = [f"{'':{width}}" + "".join(f"{metric:>20}{'t':>7} " for metric in metrics)]
    for setting in settings:
        line = f"{setting:{width}}"
        for metric, form in metrics.items():
            c = tables[metric][setting]
            t = "" if setting == base else f"{c.t:+.1f}"
            line += f"{format(c.mean, form) + ' ± ' + format(c.sd, form):>20}{t:>7}"
            line += "*" if abs(c.t) > limit else " "
        lines.append(line.rstrip())
    return "\n".join([*lines, f"{seeds} seeds; * more than luck: |t| beyond {limit:.1f}"])


def seeds_needed(
    effect: float, sd: float, correlation: float = 0.0, level: float = 0.05, power: float = 0.8
) -> int:
    """How many seeds it takes to see an effect: 2 (1-ρ) ((z_level + z_power) sd / effect)².

    Args:
        effect: the difference of two settings, in units of the metric.
        sd: of either setting over seeds.
        correlation: ρ between two settings at the same seed.
        level: the chance to see what is not there (two-sided).
        power: the chance to see what is there.
    """
    z = norm.ppf(1 - level / 2) + norm.ppf(power)
    return math.ceil(2 * (1 - correlation) * (z * sd / effect) ** 2)


def prediction_band(runs: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, ...]:
    """Where one more run will lie, at each place with probability ``level``.

    Args:
        runs: (n, …), n runs of which nothing is known but that they are alike and Gaussian.
        level: in (0, 1).

    Returns:
        The mean, the lower and the upper edge, (…) each. The edges are m ± q s sqrt(1 + 1/n), where
        m is the mean, s the standard deviation and q the quantile of Student's t with n - 1 degrees
        of freedom.
    """
    n = len(runs)
    mean, sd = runs.mean(0), runs.std(0, ddof=1)  # (…)
    half = t_limit(n, level=1 - level) * sd * math.sqrt(1 + 1 / n)  # (…)
    return mean, mean - half, mean + half
