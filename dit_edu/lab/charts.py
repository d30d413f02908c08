"""The kinds of panel that show numbers: curves, heat maps, bars and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from dit_edu._checks import check_choice
from dit_edu.lab.encoding import plain
from dit_edu.lab.panels import Axis, Panel


@dataclass(frozen=True, eq=False)
class Line:
    """One line of :class:`Curves`: y, and a band from low to high, each (axes …, len(x))."""

    label: str
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Curves(Panel):
    """Lines over x, with a cursor that one axis moves.

    Args:
        x: the abscissae, increasing.
        lines: at most six.
        x_label: name and unit of x.
        log: a logarithmic ordinate.
        cursor: the axis that moves the cursor; its values must be among ``x``.
        limits: the ordinate's range; by default that of all lines at all positions of the axes.
    """

    kind: ClassVar[str] = "curves"
    x: ArrayLike
    lines: Sequence[Line]
    x_label: str
    log: bool = False
    cursor: str | None = None
    limits: tuple[float, float] | None = None

    def check(self, axes: Mapping[str, Axis]) -> None:
        super().check(axes)
        x = np.asarray(self.x, dtype=float)
        if x.ndim != 1 or len(x) < 2 or not (np.diff(x) > 0).all():
            raise ValueError(
                f"x of panel {self.title!r} must be increasing, with two values or more."
            )
        if not 1 <= len(self.lines) <= 6:
            raise ValueError(f"lines of panel {self.title!r}: {len(self.lines)}; allowed: 1 … 6.")
        for line in self.lines:
            for name, y in (("y", line.y), ("low", line.low), ("high", line.high)):
                if y is not None:
                    self._check_shape(axes, f"{name} of line {line.label!r}", y, len(x))
            if (line.low is None) != (line.high is None):
                raise ValueError(f"line {line.label!r} needs both low and high, or neither.")
        if self.log and self.range()[0] <= 0:
            raise ValueError(f"panel {self.title!r} is logarithmic but reaches {self.range()[0]}.")
        if self.cursor is not None:
            check_choice(f"cursor of panel {self.title!r}", self.cursor, axes)
            self.at(axes)

    def range(self) -> tuple[float, float]:
        """Lowest and highest ordinate that is drawn."""
        if self.limits is not None:
            return self.limits
        every = np.concatenate(
            [
                np.ravel(np.asarray(y, dtype=float))
                for line in self.lines
                for y in (line.y, line.low, line.high)
                if y is not None
            ]
        )
        every = every[np.isfinite(every)]
        return float(every.min()), float(every.max())

    def at(self, axes: Mapping[str, Axis]) -> list[int] | None:
        """Where in ``x`` each position of the cursor's axis lies."""
        if self.cursor is None:
            return None
        x = np.asarray(self.x, dtype=float)
        values = np.asarray(axes[self.cursor].values, dtype=float)
        places = np.abs(x[None] - values[:, None]).argmin(1)  # (positions, x) -> (positions,)
        if not np.allclose(x[places], values):
            raise ValueError(f"values of axis {self.cursor!r} are not all in x of {self.title!r}.")
        return places.tolist()

    def encode(self, axes: Mapping[str, Axis]) -> dict[str, Any]:
        return super().encode(axes) | {
            "x": plain(self.x, 6),
            "x_label": self.x_label,
            "log": self.log,
            "range": plain(self.range()),
            "cursor": self.cursor,
            "at": self.at(axes),
            "lines": [
                {"label": line.label}
                | {k: plain(v) for k in ("y", "low", "high") if (v := getattr(line, k)) is not None}
                for line in self.lines
            ],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Heatmap(Panel):
    """A map of numbers in rows and columns; choosing a cell moves the axes it is tied to.

    Args:
        values: (axes …, rows, columns).
        rows, columns: the name of an axis, which a click then moves, or (label, labels).
        limits: the colours' range; by default that of all values.
        diverging: two hues about the middle of the range, not one.
        unit: what is measured, beside the colour scale.
    """

    kind: ClassVar[str] = "heatmap"
    values: ArrayLike
    rows: str | tuple[str, Sequence[str]]
    columns: str | tuple[str, Sequence[str]]
    limits: tuple[float, float] | None = None
    diverging: bool = False
    unit: str = ""

    def check(self, axes: Mapping[str, Axis]) -> None:
        super().check(axes)
        sides = [len(self.side(s, axes)["labels"]) for s in (self.rows, self.columns)]
        self._check_shape(axes, "values", self.values, *sides)

    def side(
        self, side: str | tuple[str, Sequence[str]], axes: Mapping[str, Axis]
    ) -> dict[str, Any]:
        """One side of the map: the axis it is tied to (or None), its label, its labels."""
        if isinstance(side, str):
            axis = axes[check_choice(f"side of panel {self.title!r}", side, axes)]
            return {"axis": side, "label": axis.label, "labels": list(axis.labels)}
        return {"axis": None, "label": side[0], "labels": [str(s) for s in side[1]]}

    def range(self) -> tuple[float, float]:
        """The values at the two ends of the colour scale."""
        values = np.asarray(self.values, dtype=float)
        return self.limits or (float(np.nanmin(values)), float(np.nanmax(values)))

    def encode(self, axes: Mapping[str, Axis]) -> dict[str, Any]:
        return super().encode(axes) | {
            "values": plain(self.values, 3),
            "rows": self.side(self.rows, axes),
            "columns": self.side(self.columns, axes),
            "range": plain(self.range()),
            "diverging": self.diverging,
            "unit": self.unit,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Bars(Panel):
    """Horizontal bars from zero.

    Args:
        labels: one per bar.
        values: (axes …, bars), not negative.
        unit: of all values.
        most: the value of a full bar; by default the largest of all values.
    """

    kind: ClassVar[str] = "bars"
    labels: Sequence[str]
    values: ArrayLike
    unit: str = ""
    most: float | None = None

    def check(self, axes: Mapping[str, Axis]) -> None:
        super().check(axes)
        self._check_shape(axes, "values", self.values, len(self.labels))
        if (np.asarray(self.values) < 0).any() or self.full() <= 0:
            raise ValueError(f"values of panel {self.title!r} must be >= 0, and not all 0.")

    def full(self) -> float:
        """The value of a full bar."""
        return float(np.max(self.values)) if self.most is None else self.most

    def encode(self, axes: Mapping[str, Axis]) -> dict[str, Any]:
        return super().encode(axes) | {
            "labels": list(self.labels),
            "values": plain(self.values),
            "unit": self.unit,
            "max": plain(self.full()),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Table(Panel):
    """A small table.

    Args:
        columns: the heads; the first column names the rows.
        rows: (axes …, rows, columns), strings or numbers.
        cursor: an axis with one position per row; its row is marked.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Any]
    cursor: str | None = None

    def check(self, axes: Mapping[str, Axis]) -> None:
        super().check(axes)
        follow = None
        if self.cursor is not None:
            follow = len(axes[check_choice(f"cursor of panel {self.title!r}", self.cursor, axes)])
        rows = np.asarray(self.rows, dtype=object)
        self._check_shape(axes, "rows", rows, follow, len(self.columns))

    def encode(self, axes: Mapping[str, Axis]) -> dict[str, Any]:
        return super().encode(axes) | {
            "columns": list(self.columns),
            "rows": plain(self.rows),
            "cursor": self.cursor,
        }
