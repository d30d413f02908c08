"""A moving figure at one position of its sliders, drawn with matplotlib.

One still serves where nothing can move (print, no JavaScript); many of them are the frames of the
control in a notebook.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from dit_edu.lab.charts import Bars, Curves, Heatmap, Table
from dit_edu.lab.encoding import short
from dit_edu.lab.panels import Axis, Images, Panel, Tokens

if TYPE_CHECKING:
    from dit_edu.lab.widgets import Figure

# the colours and dashes of dit-figure.css, light theme
COLOURS = ("#0067a5", "#c24e00", "#007f5c", "#a8437f", "#7a6400", "#4b5563")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (9, 3)))
HIGH, LOW, NEGATIVE = "#004f86", "#f3f4f6", "#c24e00"
STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#59636e",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def draw_still(figure: Figure, position: Mapping[str, int], dpi: int = 110) -> Image.Image:
    """Draw a figure with its sliders at ``position`` (an index by axis name).

    Returns:
        An RGB picture, 7.2 inches wide. The same figure and position give the same pixels.
    """
    rows: list[list[Panel]] = []
    for panel in figure.panels:  # two panels beside each other, the wide ones alone
        if rows and len(rows[-1]) == 1 and not (panel.wide or rows[-1][0].wide):
            rows[-1].append(panel)
        else:
            rows.append([panel])
    with mpl.rc_context(STYLE):
        heights = [max(map(_height, panels)) for panels in rows]
        canvas = Canvas(figsize=(7.2, sum(heights) + 0.3), layout="constrained")
        FigureCanvasAgg(canvas)
        if figure.axes:
            state = (f"{a.label} = {a.labels[position[a.name]]}" for a in figure.axes)
            canvas.suptitle(",  ".join(state), fontsize=10, color="#59636e")
        strips = np.atleast_1d(canvas.subfigures(len(rows), 1, height_ratios=heights))
        for strip, panels in zip(strips, rows, strict=True):
            places = np.atleast_1d(strip.subplots(1, len(panels)))
            for ax, panel in zip(places, panels, strict=True):
                ax.set_title(panel.title)
                index = tuple(position[a] for a in panel.axes)
                _draw(panel, ax, index, position, {a.name: a for a in figure.axes})
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return Image.open(buffer).convert("RGB")


def _height(panel: Panel) -> float:
    """Inches."""
    if isinstance(panel, Images):
        rows, columns, _, h, w = np.shape(panel.frames)[-5:]
        return 0.5 + min(1.1 * rows, (6.6 if panel.wide else 3.2) * rows * h / (columns * w))
    return 0.5 + 0.32 * len(panel.labels) if isinstance(panel, Bars) else 2.9


@functools.singledispatch
def _draw(
    panel: Panel,
    ax: Axes,
    index: tuple[int, ...],
    position: Mapping[str, int],
    axes: Mapping[str, Axis],
) -> None:
    """Draw one panel at ``index``, its place on its own axes."""
    raise TypeError(f"no still for a panel of type {type(panel).__name__}")


@_draw.register
def _(panel: Images, ax: Axes, index: tuple[int, ...], position: Any, axes: Any) -> None:
    frame = np.asarray(panel.frames)[index]  # (rows, columns, C, H, W)
    rows, columns, channels, h, w = frame.shape
    gap = max(1, h // 8)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, channels), np.nan)
    for r, c in np.ndindex(rows, columns):
        top, left = r * (h + gap), c * (w + gap)
        sheet[top : top + h, left : left + w] = np.moveaxis(frame[r, c], 0, -1)  # (H, W, C)
    _picture(ax, sheet)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if panel.row_labels:
        ax.set_yticks(np.arange(rows) * (h + gap) + h / 2 - 0.5, panel.row_labels)
    if panel.column_labels:
        ax.set_xticks(np.arange(columns) * (w + gap) + w / 2 - 0.5, panel.column_labels)


@_draw.register
def _(panel: Tokens, ax: Axes, index: tuple[int, ...], position: Any, axes: Any) -> None:
    frame = np.moveaxis(np.asarray(panel.frames)[index], 0, -1)  # (C, H, W) -> (H, W, C)
    _picture(ax, frame)
    rows, columns = np.asarray(panel.tokens)[index]
    h, w = frame.shape[:2]
    for colour, width in (("#00000073", 2.0), ("white", 0.8)):
        ax.hlines(np.linspace(0, h, rows + 1) - 0.5, -0.5, w - 0.5, colour, linewidth=width)
        ax.vlines(np.linspace(0, w, columns + 1) - 0.5, -0.5, h - 0.5, colour, linewidth=width)


@_draw.register
def _(panel: Curves, ax: Axes, index: tuple[int, ...], position: Any, axes: Any) -> None:
    x = np.asarray(panel.x, dtype=float)
    for line, colour, dash in zip(panel.lines, COLOURS, DASHES, strict=False):
        ax.plot(x, np.asarray(line.y)[index], color=colour, linestyle=dash, label=line.label)
        if line.low is not None:
            low, high = np.asarray(line.low)[index], np.asarray(line.high)[index]
            ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        if panel.cursor is not None:
            k = panel.at(axes)[position[panel.cursor]]
            y, (low, high) = np.asarray(line.y)[index][k], panel.range()
            if low <= y <= high:  # a dot far outside would leave the layout no room
                ax.plot(x[k], y, "o", color=colour, clip_on=False)
    if panel.cursor is not None:
        ax.axvline(axes[panel.cursor].values[position[panel.cursor]], color="#59636e", linewidth=1)
    ax.set(xlabel=panel.x_label, yscale="log" if panel.log else "linear", xlim=(x[0], x[-1]))
    low, high = panel.range()
    margin = 0 if panel.log else 0.03 * (high - low)
    ax.set_ylim(low - margin, high + margin)
    if panel.log and math.log10(panel.range()[1] / panel.range()[0]) < 3:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: short(value))
        ax.yaxis.set_minor_locator(NullLocator())
    columns = 4 if panel.wide else 2
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0, "frameon": False}
    ax.legend(fontsize=9, ncols=columns, handlelength=1.7, columnspacing=1.2, **place)
    ax.set_title(panel.title, pad=5 + 14 * math.ceil(len(panel.lines) / columns))


@_draw.register
def _(panel: Heatmap, ax: Axes, index: tuple[int, ...], position: Any, axes: Any) -> None:
    ends = [NEGATIVE, LOW, HIGH] if panel.diverging else [LOW, HIGH]
    low, high = panel.range()
    colours = LinearSegmentedColormap.from_list("dit", ends)
    values = np.asarray(panel.values, dtype=float)[index]  # (rows, columns)
    drawn = ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.05, label=panel.unit)
    bar.outline.set_visible(False)
    sides = panel.side(panel.rows, axes), panel.side(panel.columns, axes)
    for side, axis in zip(sides, (ax.yaxis, ax.xaxis), strict=True):
        axis.set_label_text(side["label"])
        every = max(1, len(side["labels"]) // 8)
        axis.set_ticks(range(0, len(side["labels"]), every), side["labels"][::every])
    r, c = (None if s["axis"] is None else position[s["axis"]] for s in sides)
    if r is not None or c is not None:
        height, width = (
            1 if i is not None else n for i, n in zip((r, c), values.shape, strict=True)
        )
        corner = (c or 0) - 0.5, (r or 0) - 0.5
        ax.add_patch(Rectangle(corner, width, height, fill=False, linewidth=2, clip_on=False))


@_draw.register
def _(panel: Bars, ax: Axes, index: tuple[int, ...], position: Any, axes: Any) -> None:
    values = np.asarray(panel.values)[index]  # (bars,)
    drawn = ax.barh(panel.labels, values, color=COLOURS[0], height=0.55)
    ax.bar_label(drawn, [f" {short(v)} {panel.unit}" for v in values])
    ax.set_xlim(0, 1.3 * panel.full())
    ax.invert_yaxis()
    ax.spines[["bottom", "left"]].set_visible(False)
    ax.set_xticks([])
    ax.tick_params(length=0)


@_draw.register
def _(panel: Table, ax: Axes, index: tuple[int, ...], position: Any, axes: Any) -> None:
    rows = np.asarray(panel.rows, dtype=object)[index]  # (rows, columns)
    text = [[short(v) for v in row] for row in rows]
    ax.axis("off")
    drawn = ax.table(text, colLabels=list(panel.columns), loc="upper left", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    drawn.scale(1, 1.3)
    if panel.cursor is not None:
        for column in range(len(panel.columns)):
            drawn[position[panel.cursor] + 1, column].set_text_props(weight="bold")


def _picture(ax: Axes, sheet: np.ndarray) -> None:
    """Show (H, W, C) in [-1, 1] with square, unsmoothed pixels; NaN is left blank."""
    grey = sheet.shape[-1] == 1
    unit = np.ma.masked_invalid((np.clip(sheet, -1, 1) + 1) / 2)
    if grey:
        ax.imshow(unit[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        solid = ~np.isnan(sheet[..., :1])
        rgba = np.concatenate([unit.filled(1), solid], axis=-1)  # (H, W, 4)
        ax.imshow(rgba, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
