"""The race and the figure of the landscape: costs are counted, winners are the best that fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dit_edu.lab.exercises.landscape import _density, _passes
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.landscape import (
    LANDSCAPE,
    SAMPLING,
    SHARE,
    Walk,
    full_macs,
    made_of,
    way,
)
from dit_edu.lab.experiments.multiscale import MODEL, recipe_of
from dit_edu.lab.figures import landscape
from dit_edu.lab.figures.landscape import BUDGETS, COSTS, LEEWAY, QUALITIES, measured
from dit_edu.lab.profile import count
from dit_edu.scaling import Architecture

ONE = torch.zeros(1, dtype=torch.long)


def fresh(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A way's model with random weights, and the walk of the plain one."""
    setting = LANDSCAPE[name]
    torch.manual_seed(0)
    recipe = recipe_of({"kind": setting["kind"], "model": setting["model"]})
    return recipe.build_model().eval(), recipe.process.build()


def walked(model, process) -> int:
    return count(Walk(model, process, SAMPLING), ONE, repeats=0).macs


def test_the_table_is_whole():
    assert stale(get_experiment("landscape"), read("landscape")) == []


def test_the_plain_walk_is_steps_times_guidance_times_a_pass():
    model, process = fresh("DiT")
    assert walked(model, process) == 2 * SAMPLING.steps * full_macs()


@pytest.mark.parametrize("name", ["DiT, thin", "DiT, 2 blocks", "DiT/4"])
def test_static_ways_cost_what_the_formula_says(name):
    share = sum(Architecture.of({**MODEL, **LANDSCAPE[name]["model"]}).macs().values())
    for row in read("landscape"):
        if row["setting"] == name:
            assert row["metrics"]["macs_share"] == pytest.approx(share / full_macs(), abs=1e-3)
    if name == "DiT, thin":
        assert share / full_macs() == pytest.approx(SHARE, abs=0.01)


def test_a_cache_costs_what_the_exercise_derives():
    model, process = fresh("cache")
    plain, _ = fresh("DiT")
    idle = 1 - model.trunk_macs / full_macs()
    want = _passes(SAMPLING.steps, LANDSCAPE["cache"]["model"]["every"], idle) / SAMPLING.steps
    assert walked(model, process) / walked(plain, process) == pytest.approx(want, abs=1e-6)
    assert math.isclose(read_share("cache"), want, abs_tol=1e-3)


def test_token_density_costs_what_the_exercise_derives():
    """The exercise's mean over all steps, against the count over the ten of the walk."""
    model, process = fresh("token density")
    plain, _ = fresh("DiT")
    dim, tokens, block = MODEL["hidden_size"], 64, model.sparse_macs(1)
    sparse = _density(model.density, tokens, dim, 1000)
    want = 1 - len(model.sparse) * (1 - sparse) * block / full_macs()
    assert walked(model, process) / walked(plain, process) == pytest.approx(want, abs=0.02)


def read_share(name: str) -> float:
    rows = [row["metrics"]["macs_share"] for row in read("landscape") if row["setting"] == name]
    return float(np.mean(rows))


def test_the_router_meets_its_budget():
    assert read_share("DDDiT") == pytest.approx(SHARE, abs=0.02)


def test_what_needs_no_training_starts_from_the_same_model():
    model, _ = fresh("DiT")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([10, 500])
    y = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        right = model(x, t, y)
        cached = made_of(model, LANDSCAPE["cache"], recipe_of({"kind": "CachedDiT", "model": {}}))
        assert torch.equal(cached(x, t, y), right)
        assert made_of(model, way(way="plain"), recipe_of({"model": {}})) is model
        small = made_of(model, LANDSCAPE["INT8"], recipe_of({"model": {}}))
        assert (small(x, t, y) - right).abs().max() < 0.1 * right.abs().max() + 1e-6


def test_the_figure_ranks_what_fits():
    rows = read("landscape")
    ways = {name: measured(rows, name) for name in LANDSCAPE}
    costs, worth, table = landscape().panels
    assert np.shape(costs.values) == (len(COSTS), len(LANDSCAPE))
    assert np.asarray(costs.values)[:, 0] == pytest.approx(1, abs=0.1)  # the plain model
    for shown, quality in zip(np.asarray(worth.values), QUALITIES, strict=True):
        assert shown == pytest.approx([m[quality].mean() for m in ways.values()])
    ranks = np.asarray(table.rows)
    for c, cost in enumerate(COSTS):
        for b, budget in enumerate(BUDGETS):
            fits = [n for n in ways if ways[n][cost].mean() <= budget + LEEWAY]
            for q, quality in enumerate(QUALITIES):
                best = min(fits, key=lambda n: ways[n][quality].mean(), default="–")
                assert ranks[c, b, q, 0, 0] == best
