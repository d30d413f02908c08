"""Statements about luck, held against luck: simulated runs, many times over."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from dit_edu.lab.spread import as_text, compare, prediction_band, seeds_needed, t_limit

TRIES = 20_000


def rows(**settings):
    return [
        {"setting": name, "seed": seed, "metrics": {"loss": value}}
        for name, by_seed in settings.items()
        for seed, value in by_seed.items()
    ]


def test_settings_are_compared_seed_by_seed():
    table = compare(
        rows(base={0: 1.0, 1: 3.0, 2: 8.0}, other={2: 9.0, 0: 1.0, 1: 5.0}), "loss"
    )  # gaps 0, 2, 1
    assert astuple(table["base"]) == pytest.approx((4, math.sqrt(13), 0, 0, 0))
    assert astuple(table["other"]) == pytest.approx((5, 4, 1, 1, math.sqrt(3)))


def test_the_table_stars_what_is_more_than_luck():
    text = as_text(
        rows(
            base={0: 1.0, 1: 3.0, 2: 8.0}, luck={0: 2.0, 1: 2.0, 2: 8.0}, real={0: 2, 1: 4, 2: 9.01}
        ),
        {"loss": ".2f"},
    )  # the gaps of "real" are 1, 1 and 1.01; two comparisons at 2 degrees of freedom: 6.2
    head, base, luck, real, foot = text.splitlines()
    assert head.split() == ["loss", "t"]
    assert base.split() == ["base", "4.00", "±", "3.61"]
    assert luck.split() == ["luck", "4.00", "±", "3.46", "+0.0"]
    assert real.split()[:4] == ["real", "5.00", "±", "3.61"] and real.endswith("*")
    assert foot == "3 seeds; * more than luck: |t| beyond 6.2"


@pytest.mark.parametrize("other", [{0: 1.0}, {0: 1.0, 2: 3.0}])
def test_other_seeds_cannot_be_compared(other):
    with pytest.raises(ValueError, match=r"setting 'other' has the seeds .* allowed: those of"):
        compare(rows(base={0: 1.0, 1: 2.0}, other=other), "loss")


@pytest.mark.parametrize(("effect", "sd", "correlation"), [(1, 1, 0), (0.5, 1, 0.75), (2, 5, 0.4)])
def test_so_many_seeds_see_the_effect_four_times_in_five(effect, sd, correlation):
    n, rng = seeds_needed(effect, sd, correlation), np.random.default_rng(0)
    covariance = sd**2 * np.array([[1, correlation], [correlation, 1]])
    runs = rng.multivariate_normal([0, effect], covariance, (TRIES, n))  # (tries, n, 2)
    gaps = runs[..., 1] - runs[..., 0]
    error = sd * math.sqrt(2 * (1 - correlation) / n)
    seen = (np.abs(gaps.mean(1)) > 1.96 * error).mean()
    assert 0.79 < seen < 0.86  # (rounding up gives a little more than 0.8)


def test_without_an_effect_one_family_in_twenty_raises_an_alarm():
    n, m, rng = 6, 17, np.random.default_rng(0)
    gaps = rng.normal(size=(TRIES, m, n))
    t = gaps.mean(-1) / (gaps.std(-1, ddof=1) / math.sqrt(n))
    alarms = (np.abs(t) > t_limit(n, m)).any(1).mean()
    assert alarms == pytest.approx(1 - (1 - 0.05 / m) ** m, abs=0.006)
    assert (np.abs(t) > t_limit(n)).mean() == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("n", [3, 8])
def test_one_more_run_lies_in_the_band(n):
    runs = np.random.default_rng(0).normal(5, 2, (n + 1, TRIES))
    mean, low, high = prediction_band(runs[:n])
    np.testing.assert_allclose(mean, (low + high) / 2)
    inside = ((low < runs[n]) & (runs[n] < high)).mean()
    assert inside == pytest.approx(0.95, abs=0.006)
    narrow = (runs[:n].min(0) < runs[n]) & (runs[n] < runs[:n].max(0))
    assert narrow.mean() == pytest.approx(1 - 2 / (n + 1), abs=0.01)  # least to greatest is less
