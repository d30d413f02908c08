"""Where a noisy pixel came from, against the chapter's proposition; the figures hold together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.lab.data import digits
from dit_edu.lab.denoisers import Memoriser
from dit_edu.lab.figures.denoising import LEVELS, by_level, came_from, noise_floors, step_back
from dit_edu.lab.stills import draw_still


def moments(density, line):
    mean = torch.trapezoid(line * density, line)
    return float(mean), float(torch.trapezoid((line - mean) ** 2 * density, line))


def test_small_step_back_is_the_gaussian_of_the_proposition():
    """Mean m + β/(1-β) g and variance β/(1-β), where m = x_t/sqrt(1-β) and g = d log q(m)/dm."""
    diffusion = GaussianDiffusion.cosine(1000)
    line = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    exact, fit = came_from(diffusion, line, 600, 599, seen=0.2)
    beta, ab = float(diffusion.betas[600]), float(diffusion.alphas_cumprod[599])
    m, centre, spread = 0.2 / math.sqrt(1 - beta), math.sqrt(ab), ab * 0.01 + 1 - ab
    up, down = (math.exp(-((m - sign * centre) ** 2) / (2 * spread)) for sign in (1, -1))
    g = (up * (centre - m) - down * (centre + m)) / (spread * (up + down))
    mean, variance = moments(exact, line)
    assert mean == pytest.approx(m + beta / (1 - beta) * g, abs=2e-5)
    assert variance == pytest.approx(beta / (1 - beta), rel=0.01)
    assert float((exact - fit).abs().max()) < 0.01 * float(exact.max())


def test_large_step_back_has_two_peaks_and_the_fit_one():
    diffusion = GaussianDiffusion.cosine(1000)
    line = torch.linspace(-8, 8, 3201, dtype=torch.float64)
    exact, fit = came_from(diffusion, line, 600, 100, seen=0.2)
    for density, peaks in ((exact, 2), (fit, 1)):
        inner = density[1:-1]
        assert int(((inner > density[:-2]) & (inner > density[2:])).sum()) == peaks
        assert float(torch.trapezoid(density, line)) == pytest.approx(1, abs=1e-6)
    assert moments(exact, line) == pytest.approx(moments(fit, line), abs=1e-4)


def test_by_level_meets_the_same_noise_each_time():
    diffusion = GaussianDiffusion.cosine(1000, "v")
    images, labels = digits()
    model = Memoriser(diffusion, images[:50])
    losses = by_level(model, diffusion, images[:50], labels[:50])
    assert losses.shape == (len(LEVELS),)
    assert torch.equal(losses, by_level(model, diffusion, images[:50], labels[:50]))
    assert losses[:5].max() < 1e-3  # it knows these images by heart
    assert by_level(model, diffusion, images[50:90], labels[50:90])[:3].min() > 10


@pytest.mark.filterwarnings("error")
def test_stills_are_drawn_where_a_curve_leaves_the_range():
    """At t = 12 the memoriser's held-out loss is far above the figure's range."""
    figure = noise_floors()
    assert np.max(figure.panels[1].lines[3].y) > 10 * figure.panels[1].limits[1]
    draw_still(figure, {"half": 1, "t": 0})
    assert len(figure.to_json()) > 1000


def test_step_back_fits_its_budget():
    figure = step_back()
    draw_still(figure, figure.start)
    assert len(figure.to_json()) > 1000
