"""The figure, the stage and the races of the chapter on budgets: what they show is so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from dit_edu.dddit.complexity import power
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.conditions import (
    ASKED,
    DEPTH,
    JUDGED,
    LONGEST,
    MEAN,
    asked,
    data,
    group,
    hindsight,
    scenes,
    shown,
    table,
    vocabulary,
)
from dit_edu.lab.figures import budget_by_image
from dit_edu.lab.figures.conditions import rings


@pytest.mark.parametrize("name", ["conditions", "conditions-ceiling", "conditions-measures"])
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_figure_shows_scenes_their_spectra_and_the_tables():
    images, spectra, rows, curves = budget_by_image().panels
    assert np.shape(images.frames) == (len(ASKED), 1, 3, 3, 16, 16)
    clean = rings(power(scenes("heldout").images[shown()]))
    np.testing.assert_allclose(spectra.lines[3].y[:, 0], np.maximum(clean, 1e-3), rtol=1e-6)
    assert np.shape(rows.rows) == (len(ASKED), 6, 4)
    learnt = [row["metrics"]["learnt"] for row in read("conditions-measures")]
    np.testing.assert_allclose(curves.lines[3].y, np.mean(learnt, axis=0))


def test_rings_of_white_noise_are_level():
    x = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(rings(power(x)).mean(0), 1, atol=0.1)


def test_thirds_are_thirds_and_rise_with_complexity():
    thirds = group(scenes("train").complexity)
    assert torch.bincount(thirds).float().std() < 2
    assert scenes("train").complexity[thirds == 0].max() <= scenes("train").complexity[
        thirds == 1
    ].min()  # fmt: skip


def test_what_models_are_told():
    label, complexity = scenes("heldout").label, scenes("heldout").complexity
    for told, sign in (("more", 1), ("less", -1), ("random", 0)):
        y = data("heldout", told)[1]
        assert torch.equal(y[:, 0], label) and set(y[:, 1].tolist()) == {2, 3, 4}
        rank = spearmanr(y[:, 1], complexity)[0]
        assert abs(rank) < 0.15 if sign == 0 else sign * rank > 0.9
    assert data("heldout", "nothing")[1].shape == (JUDGED, 1)
    assert data("heldout", "words")[1].shape == (JUDGED, 1 + LONGEST)
    longest = max(len(c.split()) for s in ("train", "heldout") for c in scenes(s).captions)
    assert longest == LONGEST
    assert len(vocabulary()) == get_experiment("conditions").settings["text"]["model"]["words"]


def test_images_steps_and_complexities_belong_together():
    x0, t, y, _, complexity = asked("heldout")
    again = scenes("heldout").images
    assert torch.equal(x0[JUDGED : 2 * JUDGED], again) and len(t) == len(y) == 8 * JUDGED
    assert torch.equal(complexity[:JUDGED], complexity[-JUDGED:])


def test_a_table_holds_means_by_third_and_step():
    complexity = scenes("heldout").complexity.repeat(8)
    t = torch.arange(len(complexity)) % 1000
    found = np.array(table(t.double(), complexity, t))
    assert found.shape == (3, 10)
    np.testing.assert_allclose(found.mean(0), np.arange(10) * 100 + 49.5, atol=6)


def test_hindsight_is_the_best_of_all_choices_that_cost_the_same():
    loss = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)).double()
    best = hindsight(loss, 2.0)
    assert best.double().mean() <= 2
    found = loss.gather(0, best[None] - 1).sum()
    every = torch.cartesian_prod(*[torch.arange(3)] * 6)  # (729, 6)
    total = loss[every, torch.arange(6)].sum(1)  # (729,)
    assert found == total[every.sum(1) <= best.sum() - 6].min()


def test_the_race_is_fair():
    rows = {(row["setting"], row["seed"]): row["metrics"] for row in read("conditions")}
    block = rows["3 for all", 0]["macs"] - rows["2 for all", 0]["macs"]
    assert rows["4 for all", 0]["macs"] - rows["3 for all", 0]["macs"] == block
    for (name, _), metrics in rows.items():
        if "depth" in metrics:
            assert abs(metrics["depth"] - MEAN) < 0.5, name
            assert np.array(metrics["shown"]).max() <= DEPTH
