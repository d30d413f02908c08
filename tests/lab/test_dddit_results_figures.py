"""The race and the figure of the chapter on DDDiT's results: what they show is so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.dddit.depth import DepthDiT
from dit_edu.dddit.model import DDDiT
from dit_edu.lab.exercises.dddit_results import _thin
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.dynamic import MODEL
from dit_edu.lab.experiments.frontier import FRONTIER, SHARES, dice_share, mean_macs, target_of
from dit_edu.lab.experiments.modes import recipe_of, static_macs
from dit_edu.lab.figures import dddit_race
from dit_edu.lab.figures.dddit_results import (
    FAMILIES,
    KINDS,
    LIMITS,
    MEASURES,
    ROUTED,
    member,
    of,
)
from dit_edu.lab.profile import count


@pytest.mark.parametrize("name", ["frontier", "frontier-steps"])
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


@pytest.mark.parametrize("share", SHARES)
def test_a_target_buys_the_share_that_was_asked_for(share):
    """A router that runs the target's share of what it switches costs the share of a pass."""
    x, one = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    for model in (DDDiT(**MODEL).eval(), DepthDiT(routed=True, **MODEL).eval()):
        fixed = count(model, x, one, one, repeats=0).macs
        if isinstance(model, DDDiT):
            switched = len(model.blocks) * int(model.unit_macs().sum())
            fixed = int(model.macs(torch.ones(len(model.blocks) * model.units, dtype=torch.bool)))
        else:
            switched = sum(model.block_macs())
        spent = fixed - (1 - target_of(model, share, static_macs())) * switched
        assert spent / static_macs() == pytest.approx(share, abs=0.004), type(model)


def test_dice_and_static_models_cost_what_the_table_says():
    for row in read("frontier"):
        setting = FRONTIER[row["setting"]]
        if setting["kind"] == "DiT" or row["setting"].startswith(("dice", "more at")):
            found = row["metrics"]["macs_share"]
            assert found == pytest.approx(setting["share"], abs=0.02), row["setting"]


def test_dice_are_steered_to_the_share():
    model = DDDiT(table=((0, 1, 0),), **MODEL)
    setting = {**FRONTIER["dice"], "model": {"share": dice_share(model, 0.62)}}
    recipe = recipe_of(setting, 4)
    torch.manual_seed(0)
    assert mean_macs(recipe.build_model().eval(), recipe) / static_macs() == pytest.approx(
        0.62, abs=0.02
    )


def test_the_thin_opponent_is_the_formula_of_the_page():
    """The page neglects what is outside of the blocks; `at_macs` does not."""
    blocks = MODEL["depth"], MODEL["hidden_size"]
    inside = (4 + 2 * 4) * 16 * blocks[1] ** 2 + 2 * 16**2 * blocks[1] + 6 * blocks[1] ** 2
    rest = static_macs() - blocks[0] * inside
    for share in SHARES[1:]:
        ratio = _thin((share * static_macs() - rest) / (static_macs() - rest), 4, 16, blocks[1])
        assert static_macs(mlp_ratio=ratio + 0.5 / blocks[1]) == pytest.approx(
            share * static_macs(), rel=0.005
        )


def test_the_figure_shows_the_table():
    rows = read("frontier")
    units, curves, bars, *charts = dddit_race().panels
    shown = np.asarray(units.values)  # (from scratch or not, shares, L, h + E)
    assert shown.shape == (2, len(SHARES), 6, 10)
    assert ((shown >= 0) & (shown <= 1)).all() and (shown[..., 0] == 1).all()
    heads, experts = (np.asarray(line.y) for line in curves.lines)  # (2, shares, steps)
    runs = shown[..., :4].sum(-1).mean(-1), shown[..., 4:].sum(-1).mean(-1)  # (2, shares)
    assert heads.mean(-1) == pytest.approx(runs[0]) and experts.mean(-1) == pytest.approx(runs[1])
    assert np.shape(bars.values) == (2, len(SHARES), 4)
    for chart, metric in zip(charts, MEASURES, strict=True):
        assert [line.label for line in chart.lines] == list(KINDS)
        for line in chart.lines:
            mean, low, high = (np.asarray(part) for part in (line.y, line.low, line.high))
            assert mean.shape == (2, len(SHARES) + 1)  # from scratch or from dense
            seen = ~np.isnan(mean)
            assert (low[seen] <= mean[seen]).all() and (mean[seen] <= high[seen]).all()
            assert (mean[seen] > LIMITS[metric][0]).all() and (mean[seen] < LIMITS[metric][1]).all()
            assert mean[:, -1] == pytest.approx(of(rows, "dense", metric).mean())  # all end there
    missing = [f for f in FAMILIES for s in SHARES if member(f, s) not in FRONTIER]
    assert set(missing) == {"thin", "thin, from dense"} and not set(missing) & set(ROUTED)
