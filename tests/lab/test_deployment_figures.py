"""The figure and the tables of the chapter on deployment: what they show is so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.deployment import BINS, WAYS, calibration, released
from dit_edu.lab.figures.deployment import BITS, rounded


@pytest.mark.parametrize("name", ["eight-bits", "deployment-cost"])
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


@pytest.mark.parametrize("bits", [b for b in BITS if b < 8])
def test_rounded_weights_have_so_few_values(bits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 3))
    most = 2 ** (bits - 1) - 1
    for each_row in (True, False):
        w = rounded(net, bits, each_row)[0].weight
        step = net[0].weight.abs().amax(1, keepdim=True) if each_row else net[0].weight.abs().max()
        whole = (w / (step / most)).double()
        torch.testing.assert_close(whole, whole.round(), atol=1e-4, rtol=0)
        assert whole.abs().max().round() == most
        assert len(torch.unique(whole.round())) <= 2 * most + 1
    assert not torch.equal(net[0].weight, w)


def test_calibration_is_of_the_training_half_at_every_level():
    _, recipe, _ = released()
    batches = calibration(recipe.process.build(), 0)
    assert len(batches) == BINS
    again, other = (calibration(recipe.process.build(), seed) for seed in (0, 1))
    assert torch.equal(batches[3][0], again[3][0]) and not torch.equal(batches[3][0], other[3][0])


def test_the_float_row_is_the_card():
    """The row of the float model, drawn with the card's seed, is what the card says."""
    _, _, card = released()
    (row,) = (r for r in read("eight-bits") if r["setting"] == "float" and r["seed"] == 0)
    (shipped,) = (m for m in card["metrics"]["per_seed"] if m["seed"] == 0)
    assert row["metrics"]["fd_ratio"] == pytest.approx(shipped["fd_ratio"], rel=0.02)
    assert row["metrics"]["error"] == 0
    found = {r["setting"]: r["metrics"]["bytes"] for r in read("eight-bits")}
    assert set(found) == set(WAYS)
    assert 0.25 < found["weights"] / found["float"] < 0.3
    assert np.isclose(found["static, by level"] / found["static, all levels"], BINS)
