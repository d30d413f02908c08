"""The figure and the races of the chapter on DDDiT's modes: what they show is so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.dddit.model import MODES, DDDiT
from dit_edu.lab import zoo
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.dynamic import MODEL
from dit_edu.lab.experiments.modes import SHARE, TABLE, recipe_of, static_macs, way
from dit_edu.lab.figures import modes_by_step
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import RECIPES, Recipe


@pytest.mark.parametrize("name", ["modes", "modes-stages", "modes-ways", "auxiliary", "modes-cost"])
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_figure_shows_the_table():
    units, table, curves = modes_by_step().panels
    shown = np.asarray(units.values)  # (ways, modes, steps, h + E, L)
    assert shown.shape == (2, 3, 10, 10, 6) and set(np.unique(shown)) == {0, 1}
    by_mode = dict(zip(MODES, np.moveaxis(shown, 1, 0), strict=True))
    assert by_mode["full"].all()
    assert (by_mode["light"][:, :, 0] == 1).all() and not by_mode["light"][:, :, 1:].any()
    share = {line.label: np.asarray(line.y) for line in curves.lines}  # (ways, steps)
    assert (share["light"] < share["dynamic"]).all() and (share["dynamic"] < share["full"]).all()
    assert np.shape(table.rows) == (2, 3, 10, 5, 2)


def test_static_models_cost_what_is_said():
    x, one = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    model = recipe_of(way("DiT", mlp_ratio=1.5), 4).build_model()
    assert count(model, x, one, one, repeats=0).macs == static_macs(mlp_ratio=1.5)
    assert static_macs(mlp_ratio=1.5) / static_macs() == pytest.approx(SHARE)


@pytest.mark.parametrize("name", ["modes", "modes-ways"])
def test_dynamic_models_cost_about_what_thin_does(name):
    for row in read(name):
        if get_experiment(name).settings[row["setting"]]["kind"] == "DDDiT":
            share = row["metrics"]["macs"] / static_macs()
            assert share == pytest.approx(SHARE, abs=0.06), row["setting"]
            assert len(row["metrics"]["path"]) == 10


def test_the_cost_table_counts_right():
    model = DDDiT(table=TABLE, **MODEL).eval()
    full = static_macs()
    share = int(model.macs(model.planned(torch.tensor([0])))) / full
    for row in read("modes-cost"):
        if row["setting"].startswith("16 tokens"):
            assert row["metrics"]["table"]["macs_ratio"] == pytest.approx(share, abs=1e-3)
            assert row["metrics"]["full"]["macs_ratio"] == 1


@pytest.mark.parametrize("name", ["digits-dddit", "shapes-dddit"])
def test_the_shipped_models_keep_their_budget(name):
    model, card = zoo.load(name)
    assert Recipe.from_dict(card["recipe"]) == RECIPES[name]
    assert card["sampling"] == zoo.card(RECIPES[name].start)["sampling"]
    t = torch.arange(0, 1000, 20)
    with torch.no_grad():
        chosen = model.choose(t, model.t_embedder(t)).chosen
    everything = torch.ones_like(chosen[:1])
    share = float(model.macs(chosen).double().mean() / model.macs(everything))
    assert share == pytest.approx(RECIPES[name].budget, abs=0.05)
