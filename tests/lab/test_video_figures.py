"""The race on moving digits: a fair match, its table, and the figure made of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dit_edu.lab.encoding import sprite_sheet
from dit_edu.lab.experiments import films, read, stale
from dit_edu.lab.experiments.films import SHOWN
from dit_edu.lab.experiments.video import EXPERIMENTS, MODELS, counted, one_noise, recipe_of
from dit_edu.lab.figures import moving_films
from dit_edu.lab.figures.video import FILMS, films_of
from dit_edu.lab.films import KNOWN
from dit_edu.lab.moving import FRAMES, SIDE, load_videos


def test_the_match_is_within_five_per_cent():
    macs = {name: counted(recipe_of(MODELS[name]).build_model().eval())["macs"] for name in MODELS}
    assert max(macs.values()) / min(macs.values()) < 1.05


@pytest.mark.parametrize("experiment", [*films.EXPERIMENTS, *EXPERIMENTS], ids=lambda e: e.name)
def test_tables_are_whole(experiment):
    assert stale(experiment, read(experiment.name)) == []


def test_films_come_back_from_their_sheet():
    videos = load_videos("heldout")[0][:SHOWN]
    sheet = sprite_sheet(videos.movedim(2, 1).flatten(0, 1).numpy(), levels=256)["sprite"]
    found = films_of(sheet)
    assert found.shape == (SHOWN, FRAMES, SIDE, SIDE)
    assert np.abs(found - videos[:, 0].numpy()).max() < 0.01


def test_one_noise_for_all_frames_gives_one_picture():
    setting = {**MODELS["frames"], "steps": 60, "batch_size": 1, "lr": 1e-3}
    recipe = recipe_of(setting)
    torch.manual_seed(0)
    model = recipe.build_model().eval()
    films = one_noise(model, recipe, torch.arange(2), seed=0)
    assert torch.allclose(films, films[:, :, :1].expand_as(films), atol=1e-5)  # it is fresh
    assert not torch.allclose(films[0], films[1])


def test_knowing_more_is_never_worse():
    error = {row["setting"]: np.array(row["metrics"]["error"]) for row in read("video-ideal")}
    assert set(error) == set(KNOWN)
    for less, more in (("nothing", "digit"), ("nothing", "path"), ("digit", "both")):
        assert (error[more] <= error[less] + 2e-3).all()


def test_the_figure_plays_round_and_round():
    figure = moving_films()
    data = json.loads(figure.to_json())
    assert data["loop"] is True and data["play"] == "frame"
    assert len(data["axes"][0]["labels"]) == FRAMES
    assert data["panels"][0]["row_labels"] == ["real", *FILMS]
    assert len(figure.to_json()) < 150_000
