"""The figure of the three clocks against the notation page's equation, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from dit_edu.lab.figures import three_clocks


def test_three_clocks_tell_one_noise_level():
    figure = three_clocks()
    images, table, curve = figure.panels
    taus = np.asarray(curve.lines[0].y)  # (schedules, steps)
    assert (np.diff(taus) > 0).all()
    for s, rows in enumerate(table.rows):
        for i, row in enumerate(rows):
            ab, sigma, tau, ratio = (float(cells[1]) for cells in row)
            # sqrt(1-ᾱ) / sqrt(ᾱ) = σ = τ / (1-τ); the table shows three digits.
            assert tau == pytest.approx(taus[s, i], rel=5e-3)
            assert sigma == pytest.approx(taus[s, i] / (1 - taus[s, i]), rel=5e-3)
            assert ratio == pytest.approx(1 / sigma**2, rel=0.02)
            assert sigma**2 * ab == pytest.approx(1 - ab, rel=0.02, abs=6e-3)
            of_ddpm, of_edm, of_flow = (float(cells[2]) for cells in row[:3])
            assert of_edm == pytest.approx(of_ddpm * np.sqrt(1 + sigma**2), rel=0.1)
            assert of_flow == pytest.approx(of_edm * (1 - taus[s, i]), rel=0.1)
    frames = np.asarray(images.frames)
    np.testing.assert_allclose(frames[:, 0, 0, 0], frames[:, 0, 0, 2], atol=0.05)  # nearly clean
