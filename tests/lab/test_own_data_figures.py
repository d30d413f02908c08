"""The figure of fine-tuning and its table, against closed forms and the table's own rows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets
import torch

from dit_edu.lab.encoding import sprite_sheet, to_uint8
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.own_data import (
    BASE,
    COLUMNS,
    PARTS,
    SHOWN,
    STOPS,
    TILES,
    WAYS,
    definition,
    recipe_of,
    write_crops,
)
from dit_edu.lab.figures import fine_tuning
from dit_edu.lab.figures.own_data import SIDE, drawn
from dit_edu.lab.folder import read_image, scan


def test_no_pixel_is_in_two_parts(tmp_path, monkeypatch):
    """Crops of a photograph whose brightness is the number of its column."""
    width = 640
    ends = [k * width // COLUMNS for k in range(1, COLUMNS)]
    column = np.searchsorted(ends, np.arange(width), side="right").astype(np.uint8) * 40
    photo = np.ascontiguousarray(np.broadcast_to(column[None, :, None], (427, width, 3)))
    both = SimpleNamespace(filenames=["a.jpg", "b.jpg"], images=[photo, photo])
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: both)
    seen = {}
    for part in PARTS:
        write_crops(tmp_path / part, part, n=40)
        files = scan(tmp_path / part).files
        values = [np.unique((read_image(f, 48).numpy() + 1) * 127.5) for f in files]
        assert all(np.ptp(v) < 1 for v in values)  # no crop crosses a border
        seen[part] = {round(float(v[0])) // 40 for v in values}
        assert seen[part] == set(PARTS[part])
    assert not seen["train"] & seen["heldout"]
    assert not seen["fit"] & seen["judge"]
    assert seen["fit"] | seen["judge"] == seen["train"]


def test_pictures_come_out_of_a_sheet_as_they_went_in():
    g = torch.Generator().manual_seed(0)
    images = torch.rand(len(STOPS) * 2 * TILES, 3, SIDE, SIDE, generator=g) * 2 - 1
    row = {"metrics": {"sheet": sprite_sheet(images)["sprite"]}}
    found = drawn(row)
    assert found.shape == (len(STOPS), 2 * TILES, 3, SIDE, SIDE)
    np.testing.assert_array_equal(to_uint8(found.reshape(images.shape)), to_uint8(images))


def test_the_figure_shows_the_table():
    figure, rows = fine_tuning(), read("own-data")
    pictures, curves, bars = figure.panels
    assert figure.axes[0].values == list(STOPS)
    assert [line.label for line in curves.lines] == list(WAYS)
    for line in curves.lines:
        found = [r["metrics"]["loss_by_stop"] for r in rows if r["setting"] == line.label]
        np.testing.assert_allclose(line.y, np.mean(found, axis=0))
        half = 4.302653 * np.std(found, axis=0, ddof=1) / np.sqrt(3)  # Student's t, 2 degrees
        np.testing.assert_allclose(line.high - line.y, half, rtol=1e-4)
        np.testing.assert_allclose(line.y - line.low, half, rtol=1e-4)
    assert pictures.frames.shape == (len(STOPS), len(SHOWN), 2 * TILES, 3, SIDE, SIDE)
    by_way = dict(zip(bars.labels, bars.values, strict=True))
    assert by_way["LoRA, rank 1"] < by_way["LoRA, rank 4"] < by_way["LoRA, rank 16"]


@pytest.mark.parametrize("way", WAYS)
def test_the_numbers_trained_have_a_closed_form(way):
    rows = [row for row in read("own-data") if row["setting"] == way]
    d, depth = BASE.model["hidden_size"], BASE.model["depth"]
    table = (2 + 1 + (12 if WAYS[way]["start"] else 0)) * d
    model = recipe_of(definition(way, 1e-3)).build_model()
    if rank := WAYS[way].get("rank"):
        want = 16 * rank * d * depth + table
    else:
        fixed = 64 * d  # the positions
        want = sum(p.numel() for p in model.parameters()) - fixed
    for row in rows:
        assert row["metrics"]["trained"] == want
        stored = want if rank else want + fixed
        assert 0 < row["metrics"]["bytes"] - 4 * stored < 10_000  # the names in the file's head
