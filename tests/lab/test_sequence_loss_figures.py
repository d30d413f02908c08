"""The figure and the races of the chapter on the sequence loss: what they show is so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.lab import zoo
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.sequence_loss import (
    EXPERIMENTS,
    RIDGE,
    coherence,
    half,
    objects,
    penalties,
    prior,
)
from dit_edu.lab.figures import next_patch
from dit_edu.lab.figures.sequence_loss import SHOWN, STEPS
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.scenes import COLOURS, shapes
from dit_edu.patchify import patchify


@pytest.mark.parametrize("name", [experiment.name for experiment in EXPERIMENTS])
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_ridge_is_that_of_the_least_error():
    found: dict[str, dict[float, float]] = {}
    for row in read("sequence-ridge"):
        stage, ridge = row["setting"].split(", ")
        found.setdefault(stage, {})[float(ridge)] = row["metrics"]["error"]
    assert {stage: min(errors, key=errors.get) for stage, errors in found.items()} == RIDGE


def test_objects_are_counted_and_their_colours_named():
    found = shapes(60, size=16, level="jittered", objects=(1, 3), seed=5)
    for image, count, colour in zip(found.images.numpy(), found.count, found.colour, strict=True):
        seen = objects(image)
        assert len(seen) == count
        assert int(colour) in [c for *_, c in seen]
        assert all(purity > 0.97 for _, purity, _ in seen)


def test_an_object_of_two_colours_is_not_pure():
    image = torch.full((3, 16, 16), -0.6)
    red, blue = (torch.tensor(COLOURS[c]) * 2 - 1 for c in ("red", "blue"))
    image[:, 2:6, 2:6] = red[:, None, None]
    image[:, 9:13, 2:4], image[:, 9:13, 4:6] = red[:, None, None], blue[:, None, None]
    image[:, 1, 14] = red  # too small
    (_, whole, colour), (_, mixed, _) = objects(image.numpy())
    assert (whole, colour) == (pytest.approx(1), 0)
    assert mixed < 0.9
    found = coherence(image[None], torch.tensor([0]))
    assert found == {"three": 0, "pure": 0.5, "colour": 1, "whole": 0}


def test_penalties_are_told_what_their_names_say():
    q, (images, _) = prior("digits"), half("digits", "heldout")
    guess, x0 = images[:2], images[2:4]
    found = {name: penalty(guess, x0) for name, penalty in penalties(q).items()}
    torch.testing.assert_close(found["kl"], q.kl(guess, prefix=x0))
    torch.testing.assert_close(found["own prefix"], q.kl(guess, prefix=guess))
    torch.testing.assert_close(found["distance"], q.distance(guess, x0))


def test_the_figure_shows_prefix_prior_and_guess():
    model, card = zoo.load("digits-dit")
    figure = next_patch(model, Recipe.from_dict(card["recipe"]).process.build())
    pictures, table, curves = figure.panels
    frames = np.asarray(pictures.frames)  # (digits, steps, patches, 1, columns, 1, 8, 8)
    q, (images, labels) = prior("digits"), half("digits", "heldout")
    x0 = torch.stack([images[(labels == digit).nonzero()[0, 0]] for digit in SHOWN])
    for i in (0, 6, 15):
        so_far = patchify(torch.from_numpy(frames[:, 2, i, 0, 0]), 2)
        torch.testing.assert_close(so_far[:, :i], patchify(x0, 2)[:, :i])
        assert float(so_far[:, i:].abs().max()) == 0
        expected = patchify(torch.from_numpy(frames[:, 2, i, 0, 2]), 2)[:, i]
        torch.testing.assert_close(expected, q.means(x0)[:, i].clamp(-1, 1))
    this, mean, true = (np.asarray(line.y) for line in curves.lines)
    assert this.shape == (len(SHOWN), 16, len(STEPS))
    np.testing.assert_allclose(this.mean(1), mean[:, 0], rtol=1e-4)
    np.testing.assert_allclose(true[..., 0], q.kl(x0, x0), rtol=1e-5)
    rows = np.array(table.rows)[..., 1:].astype(float)  # (…, 3 rows, 2 columns)
    np.testing.assert_allclose(rows[..., 0, :] + rows[..., 1, :], rows[..., 2, :], atol=0.011)
