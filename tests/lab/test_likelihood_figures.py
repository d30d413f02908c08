"""Bits of the digits: bounds against exact probabilities, the best variance against a search."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.diffusion import VARIANCES, GaussianDiffusion
from dit_edu.lab.data import digits
from dit_edu.lab.denoisers import Histograms
from dit_edu.lab.figures.likelihood import (
    PIXEL_LEVELS,
    SaysVariance,
    believer,
    best_variance,
    measured,
)
from dit_edu.likelihood import bits_per_dim


def exact() -> float:
    """What the histograms of the training half say of the held-out digits, pixel by pixel."""
    images, _ = digits("train")
    diffusion = GaussianDiffusion.cosine(20, "x0")
    return float(
        Histograms(diffusion, images, PIXEL_LEVELS).bits(digits("heldout")[0][:100]).mean()
    )


@pytest.mark.parametrize("steps", [20, 60])
def test_the_bound_is_above_the_exact_cost_and_the_best_variance_nearest(steps):
    bits = {
        v: float(measured(steps, "histograms", v, "heldout")["total"].mean()) for v in VARIANCES
    }
    assert exact() < bits["learned-range"] < min(bits["fixed-small"], bits["fixed-large"])


def test_histograms_count_and_share_out_all_probability():
    images, _ = digits("train")
    model = Histograms(GaussianDiffusion.cosine(20, "x0"), images, PIXEL_LEVELS)
    torch.testing.assert_close(model.log_p.exp().sum(1), torch.ones(64, dtype=torch.float64))
    pixel = ((images[:, 0, 3, 4] + 1) * 8).round().long().numpy()
    counts = np.bincount(pixel, minlength=17) + 1
    np.testing.assert_allclose(model.log_p[3 * 8 + 4].exp().numpy(), counts / counts.sum())


def test_histograms_round_where_no_noise_is_left_and_average_where_all_is():
    images, labels = digits("train")
    diffusion = GaussianDiffusion.cosine(1000, "x0")
    model, x = Histograms(diffusion, images, PIXEL_LEVELS), images[:3].double()
    t = torch.zeros(3, dtype=torch.long)
    near = diffusion.q_sample(x, t, torch.ones_like(x))
    torch.testing.assert_close(model(near, t, labels[:3]), x, rtol=0, atol=1e-6)
    far = model(torch.randn_like(x), t + 999, labels[:3])
    mean = (model.log_p.exp() @ model.values).view(1, 1, 8, 8).expand_as(far)
    torch.testing.assert_close(far, mean, rtol=0, atol=1e-3)


def test_best_variance_is_the_best_of_a_search():
    """No other v of a grid gives any step of the bound fewer bits, on the same digits and noise."""
    images, labels = (part[:60] for part in digits("train"))
    diffusion = GaussianDiffusion.cosine(20, "x0", variance="learned-range", levels=PIXEL_LEVELS)
    model = believer(diffusion, "covariance")

    def terms(where: torch.Tensor) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(0)
        says = SaysVariance(model, where)
        return bits_per_dim(says, diffusion, images.double(), labels, generator=g)

    start = terms(torch.zeros(20, dtype=torch.float64))
    where = best_variance(diffusion, start["mse"].mean(0))
    best = terms(where)["terms"].mean(0)[1:]
    for v in torch.linspace(-1, 1, 9, dtype=torch.float64):
        assert (best <= terms(v.expand(20))["terms"].mean(0)[1:] + 1e-9).all()
    assert ((where[1:] > -1) & (where[1:] < 1)).any()  # and not all at an end
