"""The judge of prompts: scenes of which all is known, and pictures painted by hand."""

from __future__ import annotations

import pytest
import torch

from dit_edu.lab.prompts import ATTRIBUTES, asked_for, judged, objects, prompt_accuracy
from dit_edu.lab.scenes import COLOURS, shapes


def painted(*parts: tuple[str, str, int, int]) -> torch.Tensor:
    """Circles and squares on grey, (3, 32, 32); each part is colour, shape, x, y."""
    image = torch.full((3, 32, 32), 0.2)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    for colour, shape, cx, cy in parts:
        dx, dy = (x - cx).abs(), (y - cy).abs()
        mask = dx**2 + dy**2 <= 38 if shape == "circle" else torch.maximum(dx, dy) <= 5
        image[:, mask] = torch.tensor(COLOURS[colour])[:, None]
    return image * 2 - 1


SCENE = painted(("red", "circle", 8, 16), ("blue", "square", 24, 16))


def test_a_caption_is_read():
    pairs, directions = asked_for("a red circle left of a blue square and above a green triangle")
    assert pairs == [("red", "circle"), ("blue", "square"), ("green", "triangle")]
    assert directions == [(-1, 0), (0, -1)]
    assert asked_for("a red circle") == ([("red", "circle")], [])


def test_objects_are_found_with_their_places():
    found = {(o.colour, o.shape): o.centre for o in objects(SCENE)}
    assert found[("red", "circle")] == pytest.approx((8, 16))
    assert found[("blue", "square")] == pytest.approx((24, 16))
    assert objects(torch.zeros(3, 32, 32)) == []


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a red circle left of a blue square", set()),
        ("a blue square right of a red circle", set()),
        ("a red circle right of a blue square", {"position"}),
        ("a red circle above a blue square", {"position"}),
        ("a blue circle left of a red square", {"pairs", "position"}),
        ("a red square left of a blue square", {"shape", "pairs"}),
        ("a red circle left of a green square", {"colour", "pairs", "position"}),
        ("a red circle", {"count", "colour", "shape", "pairs"}),
    ],
)
def test_each_fault_is_seen_where_it_is(caption, wrong):
    right = judged(SCENE, caption)
    assert {name for name, is_right in right.items() if not is_right} == wrong
    assert set(right) == set(ATTRIBUTES) - (
        {"position"} if len(asked_for(caption)[0]) < 2 else set()
    )


def test_objects_of_one_colour_are_told_by_their_shape():
    scene = painted(("red", "circle", 16, 8), ("red", "square", 16, 24))
    assert all(judged(scene, "a red circle above a red square").values())
    assert not judged(scene, "a red square above a red circle")["position"]


def test_real_scenes_are_what_their_captions_say():
    scenes = shapes(60, level="free", objects=(1, 2), seed=5)
    found = prompt_accuracy(scenes.images, scenes.captions)
    assert min(found.values()) > 0.95
    turned = (*scenes.captions[1:], scenes.captions[0])
    assert prompt_accuracy(scenes.images, turned)["all"] < 0.1


def test_shares_are_those_of_single_judgements():
    captions = ("a red circle", "a red circle left of a blue square")
    found = prompt_accuracy(torch.stack([SCENE, SCENE]), captions)
    assert found == dict.fromkeys(ATTRIBUTES, 0.5) | {"position": 1.0, "all": 0.5, "binding": 1.0}
    swapped = prompt_accuracy(SCENE[None], ["a blue circle left of a red square"])
    assert swapped["colour"] == swapped["shape"] == 1 and swapped["binding"] == 0
    assert "position" not in prompt_accuracy(SCENE[None], captions[:1])
