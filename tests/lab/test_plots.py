"""Figures: pixels where they belong, alt text everywhere, nothing too faint or too small."""

from __future__ import annotations

import base64
import io
from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image

from dit_edu.lab import plots

ALT = "Two lines fall from one to zero."
IMAGES = torch.linspace(-1, 1, 5 * 3 * 4 * 6).view(5, 3, 4, 6)


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


X = [1.0, 10.0, 100.0]
LINES = {"one": [3.0, 2.0, 1.0], "two": [1.0, 2.0, 4.0]}
FIGURES = {
    "grid": lambda: plots.image_grid(IMAGES, 3, columns="abc", rows=("a", "b"), xlabel="t"),
    "curves": lambda: plots.curves(
        X, LINES, band={"one": (X, X)}, xlabel="t", ylabel="y", log="xy"
    ),
    "loss": lambda: plots.loss_bins({"a": np.ones((3, 10)), "b": np.zeros((2, 10))}),
    "bars": lambda: plots.bars({"S": 6.1, "XL": 118.6}, xlabel="GMACs"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_legible_opaque_and_repeatable(name, tmp_path):
    for copy in ("a.png", "b.png"):
        plots.save(FIGURES[name](), tmp_path / copy, ALT)
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    picture = opened(content)
    assert picture.text == {"Description": ALT}
    corners = np.asarray(picture.convert("RGBA"))[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()  # white, and not transparent
    fig = FIGURES[name]()
    fig.canvas.draw()
    texts = [t for t in fig.findobj(mpl.text.Text) if t.get_text() and t.get_visible()]
    assert texts and min(t.get_fontsize() for t in texts) >= 9


def test_curves_draw_what_they_are_given():
    ax = FIGURES["curves"]().axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[3, 2, 1], [1, 2, 4]]
    assert len(ax.collections) == 1
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "t")
    looks = [(line.get_color(), line.get_linestyle()) for line in ax.lines]
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "two"]


def test_loss_bins_are_mean_and_range_over_seeds():
    ax = plots.loss_bins({"a": [[1.0, 2.0], [3.0, 6.0]]}, num_timesteps=100).axes[0]
    assert ax.lines[0].get_xdata().tolist() == [25, 75]
    assert ax.lines[0].get_ydata().tolist() == [2, 4]
    edges = ax.collections[0].get_paths()[0].vertices
    assert {tuple(v) for v in edges} == {(25, 1), (25, 3), (75, 2), (75, 6)}


def test_grid_is_pixel_for_pixel():
    picture = np.asarray(plots.grid(IMAGES, 2, scale=3))
    assert picture.shape == (3 * (3 * 5 - 1), 3 * (2 * 7 - 1), 3)
    small = picture[::3, ::3]
    assert np.array_equal(small.repeat(3, 0).repeat(3, 1), picture)
    expected = ((IMAGES + 1) / 2 * 255).round().byte().movedim(1, -1).numpy()
    for i, (y, x) in enumerate(((0, 0), (0, 7), (5, 0), (5, 7), (10, 0))):
        assert np.array_equal(small[y : y + 4, x : x + 6], expected[i])
    assert (small[4] == 255).all() and (small[:, 6] == 255).all() and (small[10:, 7:] == 255).all()
    grey = plots.grid(torch.tensor([-7.0, 0.0, 1.0, 9.0]).view(4, 1, 1, 1), 4, gap=0)
    assert grey.mode == "L" and np.asarray(grey).tolist() == [[0, 128, 255, 255]]


@pytest.fixture
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def test_show_publishes_once_with_alt_text_and_closes(shell):
    fig, _ = plt.subplots(figsize=(5, 2))
    number = fig.number
    with capture_output() as captured:
        plots.show(fig, alt=ALT)
    (output,) = captured.outputs
    assert output.data.keys() == {"image/png", "text/plain"}
    assert output.data["text/plain"] == ALT
    assert output.metadata == {"image/png": {"alt": ALT, "width": 480, "height": 192}}
    picture = opened(base64.b64decode(output.data["image/png"]))
    assert picture.size == (5 * plots.DPI, 2 * plots.DPI)
    assert not plt.fignum_exists(number)


def test_show_in_a_plain_script_prints_the_alt_text(capsys):
    plots.show(plots.bars({"a": 1.0}, xlabel="x"), alt=ALT)
    assert capsys.readouterr().out == ALT + "\n"


@pytest.mark.parametrize("alt", ["", "  a figure         ", "short"])
def test_alt_text_is_asked_for(alt, tmp_path):
    fig = plots.bars({"a": 1.0}, xlabel="x")
    with pytest.raises(ValueError, match=r"alt=.* must say in at least 20 characters"):
        plots.show(fig, alt=alt)
    with pytest.raises(ValueError, match="alt="):
        plots.save(fig, tmp_path / "a.png", alt)
    assert not list(tmp_path.iterdir())


def test_style_stays_where_it_is_asked_for():
    before = dict(mpl.rcParams)
    FIGURES["bars"]()
    assert dict(mpl.rcParams) == before
    with plots.style():
        assert mpl.rcParams["figure.constrained_layout.use"]
    assert dict(mpl.rcParams) == before
    with mpl.rc_context():
        plots.use()
        assert mpl.rcParams["font.size"] == 10
    sizes = [v for k, v in plots.STYLE.items() if k.endswith("size") and k != "figure.figsize"]
    assert min(sizes) >= 9


def linear(colour: str) -> np.ndarray:
    """sRGB to linear light."""
    c = np.array(mpl.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear light to CIE L*a*b* (D65), where distances are roughly those one sees."""
    m = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.clip(np.array(m) @ rgb, 0, None) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


SIGHT = {  # Machado, Oliveira & Fernandes 2009, severity 1, on linear light
    "all cones": np.eye(3),
    "no long": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no medium": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("sight", SIGHT)
def test_the_first_five_colours_are_strong_and_told_apart(sight):
    five = [linear(colour) for colour in list(plots.COLOURS.values())[:5]]
    for light in five:  # WCAG 2.1, 1.4.11: contrast of at least 3 against white
        assert 1.05 / (np.array([0.2126, 0.7152, 0.0722]) @ light + 0.05) >= 3
    seen = [lab(np.array(SIGHT[sight]) @ light) for light in five]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.grid(IMAGES[0], 2), r"images has shape \(3, 4, 6\)"),
        (lambda: plots.grid(IMAGES[:, :2], 2), r"\(n, 1 or 3, H, W\)"),
        (lambda: plots.grid(IMAGES[:0], 2), r"images has shape \(0, "),
        (lambda: plots.grid(IMAGES, 0), "ncols=0"),
        (lambda: plots.image_grid(IMAGES, 2, columns="abc"), "columns holds 3 names; .* 2 or none"),
        (lambda: plots.image_grid(IMAGES, 2, rows="ab"), "rows holds 2 names; .* 3 or none"),
        (lambda: plots.curves([1], {"a": [1, 2]}, xlabel="", ylabel=""), "has 2 values, x has 1"),
        (lambda: plots.curves([1], {"a": [1]}, xlabel="", ylabel="", log="z"), "log='z'"),
        (
            lambda: plots.curves([1], {"a": [1]}, xlabel="", ylabel="", band={"b": ([1], [1])}),
            r"band names \['b'\]",
        ),
        (lambda: plots.loss_bins({"a": [1.0, 2.0]}), "one list per seed"),
        (lambda: plots.loss_bins({"a": [[1.0]], "b": [[1.0, 2.0]]}), "same number of bins"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
