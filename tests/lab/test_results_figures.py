"""The race, the clock and the figure of the chapter on HiDiT's results: what they show is so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dit_edu.hidit.factorized import attention_macs
from dit_edu.hidit.model import PRESETS, HiDiTArchitecture
from dit_edu.lab import zoo
from dit_edu.lab.exercises.results import _blocks
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.hidit import (
    BASE,
    RACE,
    RACED_BEFORE,
    executed,
    hidit,
    race_rows,
    recipe_of,
    seconds,
)
from dit_edu.lab.experiments.multiscale import MODEL, dit
from dit_edu.lab.figures import hidit_race
from dit_edu.lab.figures.results import FAMILIES, frontier
from dit_edu.lab.recipes import RECIPES, Recipe
from dit_edu.scaling import Architecture

SIZES = {name: value for name, value in MODEL.items() if name != "embed_std"}


def build(setting) -> torch.nn.Module:
    torch.manual_seed(0)
    return recipe_of(setting).build_model()


@pytest.mark.parametrize(
    "name", ["hidit", "hidit-folds", "hidit-long", "hidit-cost", "hidit-full-cost"]
)
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_race_has_every_model_with_every_seed():
    found = {(row["setting"], row["seed"]) for row in race_rows()}
    assert found == {(s, seed) for s in (BASE, *RACED_BEFORE, *RACE) for seed in range(3)}


@pytest.mark.parametrize("name", ["HiDiT-tiny", "HiDiT, 1/2 coarse", "HiDiT, all coarse"])
def test_a_hidit_of_the_race_costs_what_the_formula_says(name):
    options = RACE[name]["model"]
    form = HiDiTArchitecture(**{**SIZES, **options})
    assert executed(build(RACE[name])) == sum(form.macs().values())
    assert executed(build(RACE[name])) == pytest.approx(
        next(r["metrics"]["macs"] for r in race_rows() if r["setting"] == name)
    )


@pytest.mark.parametrize("name", ["factorized", "halves", "halves, windows"])
def test_only_attention_differs_where_only_attention_should(name):
    attention = RACE[name]["attention"]
    two = sum(attention_macs(64, 4, (8, 8), **attention).values())
    one = sum(attention_macs(64, 4, (8, 8), channel=False).values())
    plain = sum(Architecture(**SIZES).macs().values())
    assert executed(build(RACE[name])) == plain + 4 * (two - one)


def test_a_routed_model_is_counted_as_it_runs():
    """Three of four layers: MACs are those of the layers that the router takes at each step."""
    net = build(hidit(keep=3)).eval()
    fine, coarse = max(net.layer_macs()), min(net.layer_macs())
    whole = executed(build(hidit())) + 64 * 4  # all layers, and the router's own
    for layer, dropped in ((0, coarse), (3, fine)):
        net.router.linear.weight.data.zero_()
        net.router.linear.bias.data = torch.ones(4).index_fill(0, torch.tensor(layer), 0.0)
        condition = 6 * 64**2  # part of a layer
        assert executed(net) == whole - dropped
        assert dropped > condition


def test_the_shipped_models_are_those_of_the_race_trained_longer():
    for name, setting in (("small-shapes-dit", dit()), ("shapes-hidit", hidit())):
        raced = recipe_of(setting)
        same = {f: getattr(raced, f) for f in Recipe.__dataclass_fields__ if f != "about"}
        assert RECIPES[name] == replace(Recipe(**same), name=name, steps=1200)
        assert Recipe.from_dict(zoo.card(name)["recipe"]) == RECIPES[name]
        assert len(zoo.card(name)["metrics"]["per_seed"]) == 3
    assert zoo.card("shapes-hidit")["sampling"] == zoo.card("small-shapes-dit")["sampling"]


def mean(rows, setting, metric):
    return np.mean([row["metrics"][metric] for row in rows if row["setting"] == setting])


def test_the_target_is_met_as_the_chapter_says():
    """FD within the noise of seeds at no more than 60 % of the MACs and 70 % of the time."""
    rows, clock = race_rows(), read("hidit-cost")
    plain = [row["metrics"]["fd_ratio"] for row in rows if row["setting"] == BASE]
    assert mean(rows, "HiDiT-tiny", "fd_ratio") <= np.mean(plain) + np.std(plain, ddof=1)
    assert mean(rows, "HiDiT-tiny", "macs") <= 0.6 * mean(rows, BASE, "macs")
    for metric in ("ratio", "update_ratio"):
        assert mean(clock, "HiDiT-tiny, batch 64", metric) <= 0.7
        assert mean(clock, "HiDiT-tiny, batch 1", metric) > 1  # and this is said, too
        assert mean(clock, "3/4 coarse, batch 1", metric) < 1
    long = read("hidit-long")
    assert mean(long, "HiDiT-tiny", "fd_ratio") < mean(long, BASE, "fd_ratio")
    assert mean(long, "HiDiT-tiny", "loss") > 1.05 * mean(long, BASE, "loss")
    metrics = zoo.card("shapes-hidit")["metrics"]["mean"]
    assert metrics["accuracy"] >= 0.98 and metrics["closer"] <= 0.6


def test_at_full_size_the_saving_arrives_at_four_images():
    (row,) = (r for r in read("hidit-full-cost") if r["setting"] == "forward, batch 4")
    found, plain = row["metrics"], sum(Architecture().macs().values())
    for name, preset in PRESETS.items():
        saved = plain / sum(HiDiTArchitecture(**preset).macs().values())
        assert found["DiT-XL/2"] / found[name] >= 0.9 * saved


def test_times_are_taken_in_turns_and_the_first_is_left_out():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    assert min(seconds(calls, turns=2).values()) >= 0
    assert order == ["a", "b"] * 3


def test_the_exercise_on_blocks_is_the_closed_form():
    for options, window in (({}, None), ({"spatial": "window", "window": 4}, 4)):
        form = HiDiTArchitecture(
            input_size=64, hidden_size=128, depth=4, num_heads=2, coarse_fraction=0.5, **options
        ).macs()
        blocks = form["tokens"] + form["pairs"] + form["table"]
        assert blocks == pytest.approx(4 * _blocks(1024, 128, 64, 0.5, window))


def test_the_figure_shows_the_race_and_the_bill():
    figure = hidit_race()
    pictures, bars, curves = figure.panels
    paid = np.asarray(bars.values)  # (steps, 2)
    assert np.asarray(pictures.frames).shape[:3] == (len(paid), 2, 6)
    np.testing.assert_allclose(paid[-1] / len(paid), paid[0])
    plain, own = (executed(build(setting)) for setting in (dit(), hidit()))
    assert paid[0, 1] / paid[0, 0] == pytest.approx(own / plain)
    x, lines = frontier(race_rows(), "loss")
    for line, shown in zip(lines, curves.lines, strict=True):
        np.testing.assert_allclose(np.asarray(shown.y)[0], line)
    for (family, members), line in zip(FAMILIES.items(), lines, strict=True):
        assert np.isfinite(line).sum() >= len(members), family
        losses = [
            np.mean([r["metrics"]["loss"] for r in race_rows() if r["setting"] == name])
            for name in members
        ]
        base = np.mean([r["metrics"]["loss"] for r in race_rows() if r["setting"] == BASE])
        assert all(np.isclose(line, loss / base).any() for loss in losses)
    assert x[-1] == 1
