"""The figures and the race of the chapter on routers: what they show is so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import logistic

from dit_edu.dddit.router import Switches, decision_entropy
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.router import LEVELS, TARGET, SoftGates, asked, recipe_of
from dit_edu.lab.figures import noisy_switch, switches_by_update
from dit_edu.lab.figures.router import (
    LOGITS,
    ROUTERS,
    TEMPERATURES,
    branch_names,
    gate_density,
    mean_slopes,
)


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return recipe_of(get_experiment("router").settings[name]).build_model()


def test_the_table_is_whole():
    assert stale(get_experiment("router"), read("router")) == []


def test_the_figure_shows_the_table():
    probabilities, costs = switches_by_update().panels
    soft = np.asarray(probabilities.values)  # (trainings, seeds, updates, 2L, steps)
    assert soft.shape[:2] == (len(ROUTERS), len(get_experiment("router").seeds))
    assert soft.shape[3:] == (12, len(LEVELS))
    row = next(
        r["metrics"] for r in read("router") if r["setting"] == ROUTERS[1] and r["seed"] == 1
    )
    np.testing.assert_allclose(soft[1, 1, -1].T, row["soft"], atol=2e-3)
    executed, expected, target = (np.asarray(line.y) for line in costs.lines)
    assert executed[1, 1, -1] == pytest.approx(row["history"][-1]["executed"])
    assert expected[1, 1, -1] == pytest.approx(row["history"][-1]["expected"])
    assert (target == TARGET).all()
    assert branch_names(3) == ["att 1", "mlp 1", "att 2"]


def test_costs_are_sums_over_branches():
    macs = build("router").branch_macs().double().numpy()
    for row in read("router"):
        m = row["metrics"]
        if "expected" in m:
            share = (np.array(m["soft"]) * macs).sum(-1).mean() / macs.sum()
            assert m["history"][-1]["expected"] == pytest.approx(share, abs=2e-3)
            share = (np.array(m["runs"]) * macs).sum(-1).mean() / macs.sum()
            assert m["history"][-1]["executed"] == pytest.approx(share, abs=2e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_entropy_bounds_what_rounding_changes(probabilities):
    p = torch.tensor(probabilities, dtype=torch.float64)
    gap = float(((p > 0.5).double() - p).mean().abs())
    assert gap <= float(torch.minimum(p, 1 - p).mean()) + 1e-12
    assert gap <= float(decision_entropy(p)) / (2 * math.log(2)) + 1e-9


def test_variants_are_what_they_say():
    mixed = build("mixture")
    assert isinstance(mixed.choice, SoftGates)
    logits = torch.tensor([[2.0, -1.0]])
    soft = mixed.choice.train()(logits)
    torch.testing.assert_close(soft.gates, logits.sigmoid())
    assert soft.heard and mixed.choice.eval()(logits).gates.tolist() == [[1.0, 0.0]]
    assert build("silent").choice.heard is False
    assert asked(build("router").eval())["executed"] == 1


def test_the_thin_model_costs_about_the_target():
    macs = {r["setting"]: r["metrics"]["macs"] for r in read("router")}
    full = next(r["metrics"]["macs"] for r in read("layer-routing") if r["setting"] == "6 layers")
    assert macs["thin"] / full == pytest.approx(TARGET, abs=0.03)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 1.5])
@pytest.mark.parametrize("tau", TEMPERATURES)
def test_slopes_against_quadrature(logit, tau):
    def slope(noise):
        s = logistic.cdf((logit + noise) / tau)
        return s * (1 - s) / tau * logistic.pdf(noise)

    true, heard, silent = mean_slopes(logit, tau)
    assert true == pytest.approx(logistic.pdf(logit))
    assert heard == pytest.approx(quad(slope, -60, 60, points=[-logit])[0], rel=2e-3)
    assert silent == pytest.approx(quad(slope, -logit, 60)[0], rel=2e-3)


def test_far_off_the_closed_forms_hold():
    true, heard, silent = mean_slopes(-6.0, 1.0)
    assert silent / true == pytest.approx(math.log(2) - 0.5, rel=0.02)
    e = math.exp(-6.0)
    assert heard == pytest.approx(((-6 - 2) * e**2 + (-6 + 2) * e) / (e - 1) ** 3, rel=5e-3)
    assert mean_slopes(0.0, 1.0)[1:] == pytest.approx((1 / 6, 1 / 12), rel=1e-3)


def test_the_density_is_that_of_drawn_gates():
    torch.manual_seed(0)
    logits = torch.full((200_000, 1), -1.0, dtype=torch.float64, requires_grad=True)
    gates = Switches(temperature=0.5).train()(logits).gates
    (slope,) = torch.autograd.grad(gates.sum(), logits)  # s (1 - s) / tau
    assert slope.mean().item() == pytest.approx(mean_slopes(-1.0, 0.5)[1], rel=0.02)
    at = np.linspace(1e-5, 1 - 1e-5, 200_001)
    density = gate_density(-1.0, 0.5, at)
    assert np.trapezoid(density, at) == pytest.approx(1, abs=0.01)
    mean = np.trapezoid(density * at * (1 - at) / 0.5, at)
    assert mean == pytest.approx(mean_slopes(-1.0, 0.5)[1], rel=1e-3)


def test_the_switch_figure():
    figure = noisy_switch()
    density, bars, slopes = figure.panels
    assert np.asarray(density.lines[0].y).shape[:2] == (len(TEMPERATURES), len(LOGITS))
    np.testing.assert_allclose(np.asarray(bars.values).sum(-1), 1)
    true, heard, silent = (np.asarray(line.y) for line in slopes.lines)
    off = np.array(LOGITS) < 0
    assert (silent < heard).all() and (silent < true)[:, off].all()
