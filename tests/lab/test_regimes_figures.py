"""The figure, the map and the race of the chapter on regimes: what they show is so."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.regimes import (
    EDGE,
    EXPERIMENTS,
    RACE,
    TABLES,
    mean_macs,
    option_table,
    oracle_gains,
    recipe_of,
    worth_of_knowing,
)
from dit_edu.lab.figures import shared_out
from dit_edu.lab.figures.regimes import SHARES
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import by_noise
from dit_edu.scaling import Architecture


@pytest.mark.parametrize("name", [experiment.name for experiment in EXPERIMENTS])
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


@pytest.mark.parametrize("name", TABLES)
def test_options_are_what_their_names_say(name):
    loss, macs = option_table(name)
    assert loss.shape == (3, len(TABLES[name][1]), 10)
    experiment, settings = TABLES[name]
    row = next(r for r in read(experiment) if r["setting"] == settings[1] and r["seed"] == 2)
    np.testing.assert_allclose(loss[2, 1], row["metrics"]["loss_by_bin"])
    assert list(macs) == sorted(macs)  # the cheapest option stands first


def test_the_macs_of_patch_sizes_are_those_of_the_models():
    setting = get_experiment("patch-size").settings["p = 4"]["recipe"]["model"]
    assert option_table("patch size, digits")[1][0] == sum(Architecture.of(setting).macs().values())


def test_the_oracle_does_not_read_its_own_luck():
    alike = np.tile([[3.0], [2.0]], (3, 1, 4))  # every bin saves 1
    lucky = alike.copy()
    lucky[0, 1, 0] -= 0.5  # but for one, in one seed
    assert oracle_gains(alike, [1, 2], 0.5) == pytest.approx([0, 0, 0])
    # that seed's policy is chosen by the others, and they see nothing special in bin 0
    assert oracle_gains(lucky, [1, 2], 0.5)[0] < 0


def test_what_it_is_worth_to_know():
    g = torch.Generator().manual_seed(0)
    steps, images = torch.randn(1, 10, generator=g), torch.randn(20, 1, generator=g)
    for saved, name, other in (
        (steps.expand(20, -1), "t", "image"),
        (images.expand(-1, 10), "image", "t"),
    ):
        won = worth_of_knowing(saved, saved)
        half = saved.flatten().sort(descending=True).values[:100].mean()
        for known in (name, "both"):
            assert float(won[known]) == pytest.approx(float(half - saved.mean()) / 2, rel=1e-5)
        assert abs(won[other]) < won[name] / 5
    luck = worth_of_knowing(torch.randn(200, 10, generator=g), torch.randn(200, 10, generator=g))
    assert all(abs(gain) < 0.06 for gain in luck.values())  # chosen by what does not come again


def test_the_figure_shares_out_what_the_budget_pays_for():
    spent, _, losses = shared_out().panels
    by_t, mean = (np.asarray(line.y) for line in spent.lines)  # (tables, budgets, bins)
    np.testing.assert_allclose(by_t.mean(-1), mean[..., 0])
    knowing, by_lot = (np.asarray(line.y) for line in losses.lines)
    assert (knowing <= by_lot + 1e-12).all()
    patches = list(TABLES).index("patch size, shapes")
    dear = by_t[patches].max()
    for j, share in enumerate(SHARES):  # one bin more for each tenth
        assert (by_t[patches, j] == dear).sum() == share // 10
    loss = option_table("patch size, shapes")[0].mean(0)  # (options, bins)
    ways = [c for c in product((0, 1), repeat=10) if sum(c) == 3]
    best = min(np.mean([loss[k, b] for b, k in enumerate(way)]) for way in ways)
    assert knowing[patches, 3] == pytest.approx(best / loss[1].mean())


def test_nobody_in_the_race_runs_more_than_the_policy_that_wins():
    macs = {name: mean_macs(recipe_of(setting).build_model()) for name, setting in RACE.items()}
    assert min(macs.values()) == macs["fine at low noise"] == macs["fine at high noise"]
    assert max(macs.values()) < 1.05 * min(macs.values())
    for row in read("regimes") + read("regimes-others"):
        assert row["metrics"]["macs"] == pytest.approx(macs[row["setting"]], rel=1e-6)


def test_a_model_of_each_band_runs_in_it():
    model = recipe_of(RACE["fine at low noise"]).build_model().eval()
    x, y = torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.long)
    for part, t in zip(model.models, (EDGE - 1, EDGE), strict=True):
        steps = torch.tensor([t])
        alone = count(part, x, steps, y, repeats=0).macs
        assert count(model, x, steps, y, repeats=0).macs == alone


def test_a_band_may_be_of_any_kind_that_there_is():
    with pytest.raises(ValueError, match="kind='DIT' is unknown"):
        by_noise([{"kind": "DIT"}], [])
