"""Moving figures: what is refused, what is written, and that every position is reachable."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from dataclasses import replace

import ipywidgets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ipywidgets.embed import embed_data
from PIL import Image

from dit_edu.lab import widgets
from dit_edu.lab.charts import Bars, Curves, Heatmap, Line, Table
from dit_edu.lab.encoding import plain, sprite_sheet, to_uint8
from dit_edu.lab.panels import Axis, Images, Tokens
from dit_edu.lab.stills import draw_still
from dit_edu.lab.widgets import Figure

RNG = np.random.default_rng(0)
T = Axis("t", "t", [0, 10, 20, 30], start=1)
MODE = Axis("mode", "mode", ["soft", "hard"], choice=True)
WORDS = {"title": "a title", "alt": "a text"}
PANELS = {
    "images": Images(
        **WORDS, axes=("mode", "t"), frames=RNG.uniform(-1, 1, (2, 4, 1, 3, 1, 4, 4)), wide=True
    ),
    "tokens": Tokens(
        **WORDS,
        axes=("t",),
        frames=RNG.uniform(-1, 1, (4, 3, 8, 8)),
        tokens=[[1, 1], [2, 2], [4, 4], [8, 8]],
    ),
    "curves": Curves(
        **WORDS,
        axes=("mode",),
        x=range(0, 31, 5),
        x_label="t",
        cursor="t",
        lines=[Line("one", np.arange(14.0).reshape(2, 7), np.zeros((2, 7)), np.ones((2, 7)))],
    ),
    "heatmap": Heatmap(
        **WORDS,
        axes=("mode",),
        values=np.arange(24.0).reshape(2, 3, 4),
        rows=("r", "abc"),
        columns="t",
    ),
    "bars": Bars(**WORDS, axes=("t",), labels=["a", "b"], values=np.arange(8.0).reshape(4, 2)),
    "table": Table(
        **WORDS,
        axes=("mode",),
        columns=["t", "v"],
        rows=np.arange(16.0).reshape(2, 4, 2),
        cursor="t",
    ),
}


def figure(*panels, **changes) -> Figure:
    """All kinds, unless some panels are given."""
    settings = {
        "name": "all-kinds",
        "title": "All kinds",
        "caption": "One panel of each kind.",
        "alt": "Six panels.",
        "panels": panels or list(PANELS.values()),
        "axes": [T, MODE],
        "play": "t",
    }
    return Figure(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alt": " "}, "alt of figure 'all-kinds' is empty"),
        ({"caption": ""}, "caption"),
        ({"name": "All Kinds"}, "name='All Kinds'"),
        ({"panels": []}, "panels of figure 'all-kinds' is empty"),
        ({"play": "T"}, "play='T' is unknown"),
        ({"axes": [T, MODE, T]}, "a name twice"),
    ],
)
def test_a_figure_says_what_it_lacks(changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        figure(**changes)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("images", {"alt": ""}, "alt of the images panel"),
        ("images", {"axes": ("modes", "t")}, "Did you mean 'mode'?"),
        ("images", {"axes": ("t", "mode")}, "has shape (2, 4, 1, 3, 1, 4, 4); allowed"),
        ("images", {"frames": np.zeros((2, 4, 1, 3, 2, 4, 4))}, "2 channels; allowed: 1, 3"),
        ("images", {"column_labels": ["a", "b"]}, "column_labels of panel 'a title' has 2 entries"),
        ("tokens", {"tokens": [[1, 1]]}, "tokens of panel"),
        ("curves", {"x": [0, 5, 5, 15, 20, 25, 30]}, "increasing"),
        ("curves", {"x": range(1, 8)}, "values of axis 't' are not all in x"),
        ("curves", {"lines": [Line("one", np.zeros((2, 6)))]}, "y of line 'one'"),
        (
            "curves",
            {"lines": [Line("one", np.zeros((2, 7)), low=np.zeros((2, 7)))]},
            "both low and",
        ),
        ("curves", {"lines": [Line("one", np.zeros((2, 7)))] * 7}, "7; allowed: 1 … 6"),
        ("curves", {"log": True}, "is logarithmic but reaches 0.0"),
        ("curves", {"cursor": "s"}, "cursor of panel"),
        ("heatmap", {"values": np.zeros((2, 4, 3))}, "allowed for axes ('mode',): (2, 3, 4)"),
        ("heatmap", {"rows": "r"}, "side of panel"),
        ("bars", {"values": np.zeros((4, 2))}, "not all 0"),
        ("bars", {"values": -np.ones((4, 2))}, "must be >= 0"),
        ("table", {"rows": np.zeros((2, 3, 2))}, "rows of panel"),
    ],
)
def test_a_panel_says_what_does_not_fit(kind, changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        figure(replace(PANELS[kind], **changes))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"values": []}, "is empty"),
        ({"values": [1, 2], "labels": ["one"]}, "labels of axis 't' has 1 entries"),
        ({"values": [1, 2], "start": 2}, "start=2"),
    ],
)
def test_an_axis_says_what_does_not_fit(arguments, said):
    with pytest.raises(ValueError, match=said):
        Axis("t", "t", **arguments)


def test_a_figure_over_its_budget_is_refused_and_names_the_heavy_panel(tmp_path):
    noise = RNG.uniform(-1, 1, (2, 4, 1, 3, 3, 64, 64))
    heavy = figure(replace(PANELS["images"], title="the heavy one", frames=noise))
    with pytest.raises(ValueError, match=r"'the heavy one' \d{6}.*allowed: 300000"):
        heavy.save(tmp_path)
    assert not list(tmp_path.iterdir())
    few_levels = replace(heavy.panels[0], levels=4)
    assert len(few_levels.encode({"t": T, "mode": MODE})["sprite"]) < 150_000


def test_saving_writes_data_twin_and_still(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths = figure().save(tmp_path / folder)
        assert [p.name for p in paths] == ["all-kinds.json", "all-kinds.js", "all-kinds.png"]
        assert sorted(p.name for p in paths) == sorted(
            p.name for p in (tmp_path / folder).iterdir()
        )
    data, twin, still = paths
    for path in paths:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    script = re.fullmatch(
        r'\(globalThis\.DIT_FIGURES\?\?=\{\}\)\["all-kinds"\]=(.*);\n', twin.read_text("utf8")
    )
    assert json.loads(script[1]) == json.loads(data.read_text("utf8"))
    assert Image.open(still).size[0] == 1080


def test_the_json_holds_what_was_given():
    data = json.loads(figure().to_json())
    assert data["axes"][0] == {
        "name": "t",
        "label": "t",
        "labels": ["0", "10", "20", "30"],
        "start": 1,
        "choice": False,
    }
    panels = dict(zip(PANELS, data["panels"], strict=True))
    assert [p["kind"] for p in data["panels"]] == list(PANELS)
    assert panels["curves"]["at"] == [0, 2, 4, 6]
    assert panels["curves"]["range"] == [0, 13]
    assert panels["heatmap"]["columns"] == {"axis": "t", "label": "t", "labels": T.labels}
    assert panels["heatmap"]["values"][1][2][3] == 23
    assert panels["bars"]["max"] == 7


@given(st.floats(-1e12, 1e12), st.integers(2, 6))
def test_numbers_keep_their_digits(value, digits):
    assert plain(value, digits) == pytest.approx(value, rel=0.5 * 10 ** (1 - digits))


def test_numbers_that_json_lacks_become_none():
    assert plain([[1.0, np.nan], [np.inf, "text"]]) == [[1, None], [None, "text"]]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sprite_sheet_gives_every_picture_back(channels):
    pictures = RNG.uniform(-1, 1, (7, channels, 3, 5))
    packed = sprite_sheet(pictures)
    assert packed["tile"] == [3, 5]
    content = base64.b64decode(packed["sprite"].removeprefix("data:image/png;base64,"))
    sheet = np.asarray(Image.open(io.BytesIO(content))).reshape(9, 15, channels)
    for k, picture in enumerate(pictures):
        top, left = 3 * (k // packed["per_row"]), 5 * (k % packed["per_row"])
        tile = sheet[top : top + 3, left : left + 5] / 127.5 - 1  # (3, 5, C)
        np.testing.assert_allclose(np.moveaxis(tile, -1, 0), picture, atol=0.5 / 127.5 + 1e-9)


@given(st.integers(2, 256))
def test_shades_are_evenly_spaced(levels):
    ramp = to_uint8(np.linspace(-1.1, 1.1, 2001), levels)
    shades = np.unique(ramp)
    assert len(shades) == levels and shades[0] == 0 and shades[-1] == 255
    assert np.ptp(np.diff(shades.astype(int))) <= 1


@pytest.mark.parametrize("kind", PANELS)
def test_a_still_shows_its_position(kind):
    one = figure(PANELS[kind], axes=[replace(T, label="same"), replace(MODE, label="same")])
    position = {a: 1 for a in ("t", "mode")}
    moved = [
        np.asarray(draw_still(one, position | {axis: 0}, dpi=50))[40:] for axis in ("t", "mode")
    ]  # below the line that names the position
    here = np.asarray(draw_still(one, position, dpi=50))[40:]
    assert (here == np.asarray(draw_still(one, position, dpi=50))[40:]).all()
    tied = {*PANELS[kind].axes, *(["t"] if kind in ("curves", "heatmap", "table") else [])}
    for axis, other in zip(("t", "mode"), moved, strict=True):
        assert (here != other).any() == (axis in tied)


@pytest.fixture(scope="module")
def control():
    """A control of 2 × 3 pictures: five positions would be too many."""
    axes = [Axis("t", "t", range(9), start=3), replace(MODE, start=1)]
    bars = Bars(
        **WORDS, axes=("t", "mode"), labels=["v"], values=1 + np.arange(18.0).reshape(9, 2, 1)
    )
    return figure(bars, axes=axes).widget(max_frames=6)


def reachable(box) -> dict[tuple[int, ...], str]:
    """What stands in the page for each setting of the controls, by following the stacks."""
    return {
        (i, j): leaf.value
        for i, inner in enumerate(box.children[1].children)
        for j, leaf in enumerate(inner.children)
    }


def test_a_control_reaches_every_picture(control):
    play, slider, buttons = control.children[0].children
    assert isinstance(play, ipywidgets.Play) and play.max == len(slider.options) - 1 == 2
    assert "3" in slider.options and slider.index == slider.options.index("3")
    assert list(buttons.options) == ["soft", "hard"] and buttons.index == 1
    pictures = reachable(control)
    assert set(pictures) == set(itertools.product(range(3), range(2)))
    assert len(set(pictures.values())) == 6
    assert all('alt="Six panels."' in value for value in pictures.values())
    assert control.children[1].selected_index == slider.index
    assert all(inner.selected_index == 1 for inner in control.children[1].children)


def test_a_control_needs_no_python(control):
    """Links live in the browser: each joins a control to a stack or to another control."""
    play, slider, buttons = control.children[0].children
    stacks = [control.children[1], *control.children[1].children]
    state = embed_data(views=[control])["manager_state"]["state"]
    links = [m["state"] for m in state.values() if m["model_name"] == "LinkModel"]
    ends = {(tuple(link["source"]), tuple(link["target"])) for link in links}

    def end(widget, trait):
        return f"IPY_MODEL_{widget.model_id}", trait

    want = {(end(slider, "index"), end(stacks[0], "selected_index"))}
    want |= {(end(buttons, "index"), end(s, "selected_index")) for s in stacks[1:]}
    want |= {(end(play, "value"), end(slider, "index"))}
    assert want <= ends


def test_fixed_axes_get_no_slider():
    box = figure(PANELS["bars"]).widget(fixed={"mode": 0}, max_frames=4)
    assert [type(c).__name__ for c in box.children[0].children] == ["Play", "SelectionSlider"]
    assert len(box.children[1].children) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"fixed": {"modes": 0}}, "Did you mean 'mode'?"),
        ({"fixed": {"t": 4}}, r"fixed\['t'\]=4; allowed: 0 … 3"),
        ({"max_frames": 3}, "max_frames=3 is too few"),
        ({"max_frames": 0}, "max_frames=0 must be"),
    ],
)
def test_a_control_says_what_does_not_fit(arguments, said):
    with pytest.raises(ValueError, match=said):
        figure(PANELS["bars"]).widget(**arguments)


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=3), st.data())
def test_thinning_keeps_order_and_start(sizes, data):
    axes = [
        Axis("a", "a", range(n), start=data.draw(st.integers(0, n - 1)), choice=choice and n < 5)
        for n, choice in sizes
    ]
    most = data.draw(st.integers(32, 100))
    try:
        places = widgets._thin(axes, most)
    except ValueError:
        assert np.prod([len(a) if a.choice else min(len(a), 2) for a in axes]) > most
        return
    assert np.prod([len(p) for p in places]) <= most
    for axis, chosen in zip(axes, places, strict=True):
        assert chosen == sorted(set(chosen)) and axis.start in chosen
        assert set(chosen) <= set(range(len(axis)))
        assert not axis.choice or len(chosen) == len(axis)
