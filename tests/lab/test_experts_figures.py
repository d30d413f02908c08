"""The figure and the races of the chapter on experts: what they show is so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.dynamic import MODEL
from dit_edu.lab.experiments.experts import asked_batch, chosen_by, recipe_of
from dit_edu.lab.experiments.router import LEVELS
from dit_edu.lab.figures import experts_by_step
from dit_edu.lab.figures.experts import SHOWN, shown_row

TABLES = ("experts-bands", "experts", "experts-choice")


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_figure_shows_the_table():
    tokens, images, loads, shares = experts_by_step().panels
    chosen = np.asarray(tokens.values)  # (who, L, steps, labels, tokens)
    assert chosen.shape == (len(SHOWN), 6, len(LEVELS), 10, 16)
    for at, name in enumerate(SHOWN):
        said = chosen_by(shown_row(name))  # (L, steps, labels, 1 or N)
        assert (chosen[at] == said + 1).all()
        assert said.shape[-1] == (16 if name == "token" else 1)
    np.testing.assert_allclose(np.asarray(shares.values).sum(2), 1)
    np.testing.assert_allclose(np.asarray(loads.values).sum(-1), 1, atol=1e-3)
    first = np.asarray(shares.values)[0, 0]  # by hand: a quarter of the steps each, (E, steps)
    assert (first.argmax(0) == np.array(LEVELS) // 250).all()
    assert np.shape(images.frames) == (len(LEVELS), 2, 5, 1, 8, 8)


def test_a_step_that_asks_sends_all_labels_alike():
    for row in read("experts"):
        if row["setting"] == "step":
            said = chosen_by(row)
            assert (said == said[:, :, :1]).all()


def test_equal_macs_up_to_the_routers():
    macs = {r["setting"]: r["metrics"]["macs"] for r in read("experts-bands") + read("experts")}
    assert macs["thin"] == macs["4 bands"] == macs["8 bands"]
    d = MODEL["hidden_size"]
    assert macs["image"] - macs["thin"] == macs["step"] - macs["thin"] == 6 * (d * d + 4 * d)
    assert macs["token"] - macs["thin"] == 6 * 16 * 4 * d


def test_the_wide_model_has_the_channels_of_all_experts():
    routed = recipe_of(get_experiment("experts").settings["image"]).build_model()
    wide = recipe_of(get_experiment("experts-bands").settings["wide"]).build_model()
    mlp = routed.blocks[0].mlp
    channels = mlp.shared.fc1.out_features + sum(e.fc1.out_features for e in mlp.experts)
    assert wide.blocks[0].mlp.fc1.out_features == channels


def test_whom_a_router_is_asked_for():
    process = recipe_of(get_experiment("experts").settings["image"]).process.build()
    x, t, y = asked_batch(process)
    assert x.shape == (100, 1, 8, 8)
    assert t.view(10, 10).eq(torch.tensor(LEVELS)[:, None]).all()
    assert y.view(10, 10).eq(torch.arange(10)).all()
