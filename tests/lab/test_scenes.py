"""Scenes: what is said about them is what is drawn."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from dit_edu.lab.scenes import CLASS_NAMES, COLOURS, LEVELS, SHAPES, recognise, shapes

PAIRS = ((0, 1), (0, 2), (1, 2))
KNOBS = {
    "level": st.sampled_from(LEVELS),
    "objects": st.sampled_from([1, 2, 3, (1, 3)]),
    "texture": st.sampled_from([0.0, 0.6, (0.0, 1.0)]),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=25, deadline=None)
@given(**KNOBS)
def test_a_scene_depends_on_its_seed_and_number_only(**knobs):
    few, many = shapes(3, **knobs), shapes(300, **knobs)  # 300 crosses a chunk of the renderer
    assert torch.equal(few.images, many.images[:3])
    assert few.captions == many.captions[:3]
    for name in ("label", "shape", "colour", "count", "complexity"):
        assert torch.equal(getattr(few, name), getattr(many, name)[:3])
    torch.testing.assert_close(few.positions, many.positions[:3], rtol=0, atol=0, equal_nan=True)


@settings(max_examples=25, deadline=None)
@given(**KNOBS)
def test_what_is_said_is_what_is_drawn(**knobs):
    scenes = shapes(40, **knobs)
    assert scenes.images.dtype == torch.float32 and scenes.images.shape == (40, 3, 32, 32)
    assert scenes.images.min() >= -1 and scenes.images.max() <= 1
    assert torch.equal(scenes.label, scenes.shape * len(COLOURS) + scenes.colour)
    unit = (scenes.images.double() + 1) / 2
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float64)
    for i in range(40):
        assert torch.isnan(scenes.positions[i, scenes.count[i] :]).all()
        assert scenes.captions[i].count("a ") == scenes.count[i]
        assert scenes.captions[i].startswith(f"a {CLASS_NAMES[scenes.label[i]]}")
        # The hue under the main object's centre is the label's: hues compared as directions.
        x, y = scenes.positions[i, 0].long().tolist()
        pixel = unit[i, :, y, x]
        assert torch.cosine_similarity(pixel[None], palette).argmax() == scenes.colour[i]


def test_areas_are_those_of_the_shapes():
    """Independent of the renderer's own geometry: the painted area against the closed forms."""
    scenes = shapes(200, size=64, seed=5)
    unit = (scenes.images.double() + 1) / 2
    grey = unit[:, :, :1, :1]
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float64)[scenes.colour]
    # One shade per scene, and coverage is linear in colour.
    strongest = palette.argmax(1)
    rows = torch.arange(200)
    peak = unit.flatten(2).max(2).values[rows, strongest]
    cover = (unit[rows, strongest] - grey[rows, strongest]) / (
        peak[:, None, None] - grey[rows, strongest]
    )
    area = cover.sum((1, 2)) / 32**2  # in units of (half the image)^2
    width = (cover.amax(1) > 0.5).sum(1) / 64  # of the image = radius in half images
    closed = {"circle": math.pi, "square": 4.0, "triangle": math.sqrt(3)}
    for index, name in enumerate(SHAPES):
        chosen = scenes.shape == index
        ratio = area[chosen] / width[chosen] ** 2
        assert ratio.mean() == pytest.approx(closed[name], rel=0.06), name


def test_knobs():
    plain = shapes(200, seed=1)
    for knobs in ({"level": "free"}, {"texture": 1.0}, {"objects": 3}, {"size": 16}):
        assert torch.equal(shapes(200, seed=1, **knobs).label, plain.label)
    centre = plain.positions[:, 0]
    assert torch.equal(centre, torch.full_like(centre, 16))
    spread = [shapes(200, level=level).positions[:, 0].std(0).mean() for level in LEVELS]
    assert spread[0] < 0.01 < 1 < spread[1] < spread[2]
    assert len(plain.label.unique()) == len(CLASS_NAMES)
    stripes = shapes(200, texture=1.0).images.diff(dim=-1).abs().mean()
    assert stripes > 1.5 * shapes(200).images.diff(dim=-1).abs().mean()


@pytest.mark.parametrize("level", LEVELS)
def test_objects_stay_inside_and_do_not_overlap(level):
    scenes = shapes(300, level=level, objects=3, seed=2)
    places = scenes.positions
    assert (places > 2.8).all() and (places < 29.2).all()
    assert min((places[:, a] - places[:, b]).norm(dim=-1).min() for a, b in PAIRS) > 5
    background = scenes.images[:, 0, 0, 0]
    border = torch.cat([scenes.images[:, :, 0], scenes.images[:, :, :, 0]], -1)
    assert (border == background[:, None, None]).float().mean() > 0.9


def test_complexity_grows_and_is_seen_in_the_spectrum():
    assert shapes(5).complexity.tolist() == [1] * 5
    assert shapes(5, objects=3, texture=1.0).complexity.tolist() == [6] * 5
    scenes = shapes(1000, level="free", objects=(1, 3), texture=(0.0, 1.0))
    images = scenes.images.double()
    power = torch.fft.fft2(images - images.mean((2, 3), keepdim=True)).abs() ** 2
    frequency = torch.fft.fftfreq(32).square()
    high = (frequency[:, None] + frequency[None, :]).sqrt() > 0.25  # cycles per pixel
    share = (power * high).sum((1, 2, 3)) / power.sum((1, 2, 3))
    assert spearmanr(scenes.complexity, share).statistic > 0.5
    by_count = [share[scenes.count == k].mean() for k in (1, 2, 3)]
    assert by_count[0] < by_count[1] < by_count[2]


def test_captions_follow_the_grammar():
    scenes = shapes(200, level="free", objects=(1, 3), seed=9)
    noun = rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    relation = "(left of|right of|above|below)"
    grammar = re.compile(rf"{noun}( {relation} {noun}( and {relation} {noun})?)?")
    assert all(grammar.fullmatch(caption) for caption in scenes.captions)
    for caption, positions, count in zip(
        scenes.captions, scenes.positions, scenes.count, strict=True
    ):
        if count == 2:
            dx, dy = (positions[0] - positions[1]).tolist()
            word = re.search(relation, caption)[0]
            assert {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[word] == max(
                abs(dx), abs(dy)
            )


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"size": 4}, "size=4 must be at least 8"),
        ({"level": "centered"}, "Did you mean 'centred'"),
        ({"objects": 4}, r"objects=4 must be an int in \[1, 3\]"),
        ({"objects": (2, 1)}, r"objects=\(2, 1\)"),
        ({"objects": 1.5}, r"objects=1.5"),
        ({"texture": 1.1}, r"texture=1.1 must be a number in \[0.0, 1.0\]"),
        ({"texture": (0.0, 0.5, 1.0)}, "increasing pair"),
        ({"texture": float("nan")}, "texture=nan"),
    ],
)
def test_bad_arguments(knobs, message):
    with pytest.raises(ValueError, match=message):
        shapes(**{"n": 1, **knobs})


@pytest.mark.parametrize("level", LEVELS)
def test_the_judge_sees_every_class_at_every_level(level):
    scenes = shapes(400, level=level, seed=3)
    assert torch.equal(recognise(scenes.images), scenes.label)


def test_the_judge_forgives_blur_and_not_what_is_no_shape():
    scenes = shapes(200, level="free", seed=4)
    blurred = torch.nn.functional.avg_pool2d(scenes.images, 3, 1, 1, count_include_pad=False)
    assert (recognise(blurred) == scenes.label).double().mean() > 0.97
    noise = torch.rand(100, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert (recognise(noise) == -1).all()
    assert (recognise(torch.full((3, 3, 32, 32), -0.7)) == -1).all()  # nothing but background
    exposed_twice = (scenes.images[:100] + scenes.images[100:]) / 2
    assert (recognise(exposed_twice) == -1).double().mean() > 0.7
    grey = scenes.images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert (recognise(grey) == -1).all()
