"""The figure, the stage and the race of the chapter on text: what they show is so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.lab.encoding import sprite_sheet
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.text import (
    ASKED,
    EXPERIMENTS,
    LONGEST,
    SHOWN,
    TELLINGS,
    UNSEEN,
    WORDS,
    attention_to_words,
    captions,
    recipe_of,
    rows,
    scenes,
    scrambled,
    told,
    twice,
    vocabulary,
)
from dit_edu.lab.figures import told_in_five_ways
from dit_edu.lab.figures.text import NAMES, tiles
from dit_edu.lab.prompts import asked_for
from dit_edu.lab.scenes import COLOURS, SHAPES
from dit_edu.mixed import WAYS


@pytest.mark.parametrize("name", [experiment.name for experiment in EXPERIMENTS])
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_figure_shows_every_way_and_the_table():
    images, looks, table = told_in_five_ways().panels
    assert np.shape(images.frames) == (len(SHOWN), len(ASKED), 1, len(WAYS), 3, 32, 32)
    assert np.shape(looks.values) == (len(SHOWN), len(ASKED), 5, 4, 4)
    assert np.min(looks.values) >= 0 and np.max(looks.values) <= 100
    means = [r["metrics"]["colour"] for r in read("text") if r["setting"] == "cross"]
    assert table.rows[2][:3].tolist()[::2] == ["cross-attention", f"{100 * np.mean(means):.0f}"]


def test_a_bag_draws_the_same_picture_for_the_same_words():
    assert sorted(SHOWN[0].split()) == sorted(SHOWN[1].split())
    frames = np.array(told_in_five_ways().panels[0].frames)[:, :, 0]  # (captions, scales, ways, …)
    bag = list(NAMES).index("bag")
    assert np.array_equal(frames[0, :, bag], frames[1, :, bag])
    others = [k for k in range(len(NAMES)) if k != bag]
    assert all(not np.array_equal(frames[0, -1, k], frames[1, -1, k]) for k in others)


def test_tiles_are_cut_as_they_were_laid():
    images = np.random.default_rng(0).uniform(-1, 1, (7, 3, 32, 32))
    found = tiles(sprite_sheet(images)["sprite"], 7)
    np.testing.assert_allclose(found, images, atol=0.01)


def test_training_never_sees_three_kinds_but_all_their_parts():
    known = captions("train", rows("train"))
    assert not any(kind in text for text in known for kind in UNSEEN)
    words = {word for text in known for word in text.split()}
    assert words >= {*COLOURS, *SHAPES}
    unknown = captions("heldout", rows("heldout", seen=False))
    assert all(any(kind in text for kind in UNSEEN) for text in unknown)
    assert len(rows("heldout")) + len(rows("heldout", seen=False)) == len(scenes("heldout").label)


def test_captions_fit_and_are_said_twice():
    assert len(vocabulary()) == WORDS
    assert twice(SHOWN[0]) == f"{SHOWN[0]} a blue triangle right of a red circle"
    assert told([twice(SHOWN[0])]).shape == (1, LONGEST) and told([twice(SHOWN[0])]).min() > 0
    pairs, _ = asked_for(twice(SHOWN[2]))
    assert pairs == [*asked_for(SHOWN[2])[0], *reversed(asked_for(SHOWN[2])[0])]


def test_what_models_are_told_instead():
    prompts = captions("heldout", rows("heldout")[:30])
    told_of = {how: scrambled(prompts, how) for how in TELLINGS}
    assert torch.equal(told_of["right"], told(prompts))
    assert torch.equal(told_of["shuffled"].sort(1)[0], told_of["right"].sort(1)[0])
    assert not torch.equal(told_of["shuffled"], told_of["right"])
    assert torch.equal(told_of["another's"][1:], told_of["right"][:-1])
    assert told_of["nothing"].abs().max() == 0


def test_attention_to_words_is_a_share_of_it():
    torch.manual_seed(0)
    model = recipe_of({"way": "joint"}).build_model().eval()
    found = attention_to_words(model, torch.randn(4, 8, 8), SHOWN[0])
    assert found.shape == (4, 4, 8)
    assert found.min() > 0 and found.sum(-1).max() < 1
