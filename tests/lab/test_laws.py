"""Power laws from points that obey one, and the spread of a mean from its closed form."""

from __future__ import annotations

import numpy as np
import pytest

from dit_edu.lab.laws import PowerLaw, bootstrap, fit, interval, published

X = np.array([0.3, 1.0, 2.0, 7.0, 40.0])
Z = np.array([16.0, 64.0, 16.0, 256.0, 64.0])


def test_a_law_is_found_again():
    law = PowerLaw(3.0, (0.4, -1.5))
    found = fit(law(X, Z), X, Z)
    assert found.a == pytest.approx(3.0) and found.b == pytest.approx((0.4, -1.5))
    assert law(1.0, 1.0) == pytest.approx(3.0)
    assert fit(law(X, Z), X, Z).scatter(law(X, Z), X, Z) == pytest.approx(1.0)
    assert law(2.0, 4.0) == pytest.approx(3.0 * 2**-0.4 * 4**1.5)


def test_the_fit_is_numpys_straight_line_in_logarithms():
    y = np.exp(np.random.default_rng(0).normal(size=5))
    slope, height = np.polyfit(np.log(X), np.log(y), 1)
    found = fit(y, X)
    assert (found.b[0], found.a) == (pytest.approx(-slope), pytest.approx(np.exp(height)))
    off = np.log(y) - (height + slope * np.log(X))
    assert found.scatter(y, X) == pytest.approx(np.exp(np.sqrt((off**2).sum() / 3)))


def test_the_bootstrap_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(0).normal(size=40)
    draws = bootstrap(lambda i: values[i].mean(), len(values), draws=4000)
    assert draws.std() == pytest.approx(values.std() / np.sqrt(40), rel=0.05)
    low, high = interval(draws)
    assert ((draws < low).mean(), (draws > high).mean()) == pytest.approx((0.025, 0.025), abs=1e-3)
    np.testing.assert_array_equal(draws, bootstrap(lambda i: values[i].mean(), 40, draws=4000))


def test_draws_that_determine_nothing_are_drawn_again():
    x, y = np.array([1.0, 2.0]), np.array([4.0, 1.0])
    draws = bootstrap(lambda i: fit(y[i], x[i]).b, 2, draws=20)
    np.testing.assert_allclose(draws, 2.0)
    with pytest.raises(ValueError, match="n=1"):
        bootstrap(lambda i: fit(y[i], x[i]).b, 1, draws=2)


def test_points_that_make_no_law_are_refused():
    for y, x in (([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [1.0, np.nan])):
        with pytest.raises(ValueError, match="positive"):
            fit(y, x)
    with pytest.raises(ValueError, match="do not determine"):
        fit([1.0, 2.0], [3.0, 3.0])


def test_the_papers_points_have_the_papers_correlation():
    """Peebles & Xie 2023: the logarithm of Gflops and FID correlate by -0.93."""
    rows = published()
    gmacs, fid = (np.array([row[key] for row in rows]) for key in ("GMACs", "FID"))
    assert len(rows) == 12
    assert np.corrcoef(np.log(gmacs), fid)[0, 1] == pytest.approx(-0.93, abs=0.005)
