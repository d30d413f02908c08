"""One look for every figure of the book, and no figure without alt text.

Figures are drawn on an opaque white card, so that they read the same in a dark page. Colours are
those of Okabe and Ito (2008), which the colour-blind tell apart; lines differ by their dashes too.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dit_edu._checks import check_positive_int
from dit_edu.lab.data import to_unit
from dit_edu.lab.files import atomic_write

COLOURS = {  # in the order in which lines take them: strong ones first, yellow, too faint, never
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
}
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 2)))
DPI = 144  # pixels per inch, one and a half for each of the page
SHORTEST_ALT = 20
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.prop_cycle": cycler(color=list(COLOURS.values())) + cycler(linestyle=list(DASHES)),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "figure.figsize": (7, 3),
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "svg.hashsalt": "dit_edu",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def style() -> AbstractContextManager[None]:
    """The book's look for figures made inside ``with plots.style():``, and for no others."""
    return mpl.rc_context(STYLE)


def use() -> None:
    """The book's look from here on: for the first cell of a notebook."""
    mpl.rcParams.update(STYLE)


def show(fig: Figure, alt: str) -> None:
    """Publish a figure as the output of a notebook cell, with its alt text, and close it.

    Outside a notebook, where there is no place for pictures, the alt text is printed.

    Args:
        fig: Any matplotlib figure.
        alt: What one would see, for those who don't: at least 20 characters.

    Raises:
        ValueError: ``alt`` is too short.
    """
    from IPython.display import display

    content = _png(fig, alt)
    _close(fig)
    width, height = (round(96 * inches) for inches in fig.get_size_inches())  # pixels of the page
    display(_Output(content, {"alt": alt, "width": width, "height": height}))


class _Output:
    """What IPython displays: a PNG that carries metadata, or else its alt text."""

    def __init__(self, content: bytes, metadata: dict[str, Any]) -> None:
        self.content, self.metadata = content, metadata

    def __repr__(self) -> str:
        return self.metadata["alt"]

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        encoded = base64.b64encode(self.content).decode("ascii")
        return {"image/png": encoded}, {"image/png": self.metadata}


def save(fig: Figure, path: str | os.PathLike[str], alt: str) -> None:
    """Write a figure as PNG, atomically, with its alt text inside (the chunk "Description").

    Args:
        fig: Any matplotlib figure.
        path: Where to.
        alt: See :func:`show`.

    Raises:
        ValueError: ``alt`` is too short.
        OSError: The file cannot be written.
    """
    content = _png(fig, alt)
    with atomic_write(path) as file:
        file.write(content)
    _close(fig)


def _png(fig: Figure, alt: str) -> bytes:
    """The same figure gives the same bytes: no date, no version inside."""
    if len(alt.strip()) < SHORTEST_ALT:
        raise ValueError(
            f"alt={alt!r} must say in at least {SHORTEST_ALT} characters what one would see."
        )
    buffer = io.BytesIO()
    with style():
        metadata = {"Software": None, "Description": alt}
        fig.savefig(buffer, format="png", dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _close(fig: Figure) -> None:
    import matplotlib.pyplot as plt

    plt.close(fig)  # else the notebook would show it again


def grid(images: torch.Tensor, ncols: int, *, scale: int = 1, gap: int = 1) -> Image.Image:
    """Lay images out row by row as one picture, pixel for pixel.

    Args:
        images: (n, C, H, W) in [-1, 1], C = 1 or 3; values beyond are clipped.
        ncols: Images in a row.
        scale: Each pixel becomes a square of so many.
        gap: White pixels, before scaling, between images.

    Returns:
        A grey or RGB picture; the last row is filled up with white.

    Raises:
        TypeError: ``ncols`` or ``scale`` is not an integer.
        ValueError: A shape or number is not as above.
    """
    check_positive_int("ncols", ncols)
    check_positive_int("scale", scale)
    pixels = _pixels(images)  # (n, H, W, C)
    n, height, width, channels = pixels.shape
    nrows = -(-n // ncols)
    sheet = np.full(
        (nrows * (height + gap) - gap, ncols * (width + gap) - gap, channels), 255, np.uint8
    )
    for i, image in enumerate(pixels):
        y, x = i // ncols * (height + gap), i % ncols * (width + gap)
        sheet[y : y + height, x : x + width] = image
    sheet = sheet.repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)


def _pixels(images: torch.Tensor) -> np.ndarray:
    """(n, C, H, W) in [-1, 1] -> (n, H, W, C) uint8."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images has shape {tuple(images.shape)}; it must be (n, 1 or 3, H, W).")
    unit = to_unit(images.detach().float().cpu())
    return (unit * 255).round().byte().movedim(1, -1).numpy()


def image_grid(
    images: torch.Tensor,
    ncols: int,
    *,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    xlabel: str = "",
    inches: float = 0.8,
) -> Figure:
    """Images in rows and columns with a name over each column and before each row.

    Args:
        images: (n, C, H, W) in [-1, 1], row by row.
        ncols: Images in a row.
        columns: Names over the columns: one each, or none at all.
        rows: Names before the rows: one each, or none at all.
        xlabel: What changes from column to column.
        inches: Size of one image.

    Raises:
        TypeError, ValueError: See :func:`grid`; or the number of names is another.
    """
    pixels = _pixels(images)
    nrows = -(-len(pixels) // check_positive_int("ncols", ncols))
    for name, names, number in (("columns", columns, ncols), ("rows", rows, nrows)):
        if names and len(names) != number:
            raise ValueError(f"{name} holds {len(names)} names; it must hold {number} or none.")
    with style():
        size = (ncols * inches + 0.9 * bool(rows), nrows * inches + 0.3 * bool(columns))
        fig, axes = _figure(nrows, ncols, (size[0], size[1] + 0.25 * bool(xlabel)))
        for i, ax in enumerate(axes.flat):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if i < len(pixels):
                ax.imshow(pixels[i], cmap="gray", vmin=0, vmax=255)
        for ax, text in zip(axes[0], columns, strict=False):
            ax.set_title(text, fontsize=9, loc="center")
        for ax, text in zip(axes[:, 0], rows, strict=False):
            ax.set_ylabel(text, fontsize=9, rotation=0, ha="right", va="center")
        fig.supxlabel(xlabel, fontsize=10)
    return fig


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    band: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    log: str = "",
) -> Figure:
    """Lines over a common x, named in a legend where there are several.

    Args:
        x: Common to all.
        lines: Values by name.
        xlabel: What x is, with its unit.
        ylabel: What the lines are, with their unit.
        band: By name of a line, the lower and the upper edge of a shade around it.
        log: The axes that are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.

    Raises:
        ValueError: A length differs from that of x; ``band`` names no line; ``log`` is unknown.
    """
    if log not in ("", "x", "y", "xy"):
        raise ValueError(f"log={log!r} is unknown; allowed: '', 'x', 'y', 'xy'.")
    band = band or {}
    if unknown := set(band) - set(lines):
        raise ValueError(f"band names {sorted(unknown)}; the lines are {sorted(lines)}.")
    for name, values in [*lines.items(), *((k, edge) for k, pair in band.items() for edge in pair)]:
        if len(values) != len(x):
            raise ValueError(f"lines[{name!r}] has {len(values)} values, x has {len(x)}.")
    with style():
        fig, axes = _figure(1, 1)
        ax = axes[0, 0]
        for name, values in lines.items():
            (line,) = ax.plot(x, values, label=name)
            if name in band:
                ax.fill_between(x, *band[name], color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.grid()
        for axis in log:
            getattr(ax, f"set_{axis}scale")("log")
        if len(lines) > 1:
            ax.legend()
    return fig


def loss_bins(losses: Mapping[str, Sequence[Sequence[float]]], num_timesteps: int = 1000) -> Figure:
    """The loss by noise level: the mean over seeds as a line, least to greatest as a band.

    Args:
        losses: By name of a model, for each seed, the loss in each of equally wide bins of t.
        num_timesteps: T; the bins cover t = 0 … T - 1.

    Raises:
        ValueError: The lists differ in length.
    """
    tables = {name: np.asarray(table, float) for name, table in losses.items()}
    shapes = {table.shape[-1] for table in tables.values()}
    if len(shapes) != 1 or any(table.ndim != 2 for table in tables.values()):
        raise ValueError("losses must hold one list per seed, all with the same number of bins.")
    bins = shapes.pop()
    middles = (np.arange(bins) + 0.5) * num_timesteps / bins
    fig = curves(
        middles,
        {name: table.mean(0) for name, table in tables.items()},
        band={name: (table.min(0), table.max(0)) for name, table in tables.items()},
        xlabel="t (0 is clean)",
        ylabel="loss, mean square",
    )
    fig.axes[0].set_xlim(0, num_timesteps)
    return fig


def bars(values: Mapping[str, float], *, xlabel: str, form: str = "{:.3g}") -> Figure:
    """Horizontal bars from 0 with their names before and their values behind them.

    Args:
        values: By name, from top to bottom.
        xlabel: What they are, with their unit.
        form: How values are written.
    """
    with style():
        fig, axes = _figure(1, 1, (7, 0.9 + 0.32 * len(values)))
        ax = axes[0, 0]
        drawn = ax.barh(list(values), list(values.values()), color=COLOURS["blue"], height=0.65)
        ax.bar_label(drawn, [form.format(v) for v in values.values()], padding=4, fontsize=9)
        ax.invert_yaxis()
        ax.margins(x=0.12)
        ax.grid(axis="x")
        ax.set_xlabel(xlabel)
    return fig


def _figure(
    nrows: int, ncols: int, figsize: tuple[float, float] | None = None
) -> tuple[Figure, np.ndarray]:
    """A figure outside pyplot, which a notebook shows only when asked to."""
    fig = Figure(figsize=figsize)
    FigureCanvasAgg(fig)
    return fig, fig.subplots(nrows, ncols, squeeze=False)
