"""What a moving figure is made of: axes, panels, and the two kinds of panel that show pictures.

A panel is indexed by some of the figure's axes: every array begins with one dimension per name in
``axes``, in that order, and the rest of its shape belongs to the kind. In a page
``book/_static/dit-figure.js`` draws the panel's JSON; elsewhere :mod:`dit_edu.lab.stills` draws the
panel itself with matplotlib. The kinds that show numbers are in :mod:`dit_edu.lab.charts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from dit_edu._checks import check_choice
from dit_edu.lab.encoding import plain, sprite_sheet


@dataclass(frozen=True, eq=False)
class Axis:
    """A named slider.

    Args:
        name: how panels refer to it.
        label: what the reader sees.
        values: numbers or names, one per position.
        labels: what the reader sees of each value; by default the values themselves.
        start: the position (an index) at which the figure opens.
        choice: draw it as a choice between a few names, not as a slider.

    Raises:
        ValueError: no values, labels of another number, or ``start`` out of range.
    """

    name: str
    label: str
    values: Sequence[Any]
    labels: Sequence[str] | None = None
    start: int = 0
    choice: bool = False

    def __post_init__(self) -> None:
        if len(self.values) == 0:
            raise ValueError(f"values of axis {self.name!r} is empty; allowed: at least one.")
        labels = self.values if self.labels is None else self.labels
        if len(labels) != len(self.values):
            raise ValueError(
                f"labels of axis {self.name!r} has {len(labels)} entries; "
                f"allowed: one per value, {len(self.values)}."
            )
        if not 0 <= self.start < len(self.values):
            raise ValueError(
                f"start={self.start} of axis {self.name!r}; allowed: 0 … {len(self.values) - 1}."
            )
        object.__setattr__(self, "labels", [str(label) for label in labels])

    def __len__(self) -> int:
        return len(self.values)

    def encode(self) -> dict[str, Any]:
        """The axis as JSON."""
        return {
            "name": self.name,
            "label": self.label,
            "labels": list(self.labels),
            "start": self.start,
            "choice": self.choice,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Panel:
    """What all kinds share.

    Args:
        title: a few words over the panel.
        alt: what there is to see, for those who cannot see it.
        axes: the names of the axes that index the panel's arrays.
        wide: give it the figure's whole width.
    """

    kind: ClassVar[str]
    title: str
    alt: str
    axes: Sequence[str] = ()
    wide: bool = False

    def check(self, axes: Mapping[str, Axis]) -> None:
        """Raise ``ValueError`` unless every array agrees with the figure's axes."""
        for text in ("title", "alt"):
            if not getattr(self, text).strip():
                raise ValueError(f"{text} of the {self.kind} panel {self.title!r} is empty.")
        for name in self.axes:
            check_choice(f"axes of panel {self.title!r}", name, axes)

    def _check_shape(
        self, axes: Mapping[str, Axis], name: str, array: ArrayLike, *rest: int | None
    ) -> None:
        """``array`` must have the shape (axes …, rest …), where None stands for any length."""
        shape, want = np.shape(array), (*(len(axes[a]) for a in self.axes), *rest)
        if len(shape) != len(want) or any(
            w is not None and s != w for s, w in zip(shape, want, strict=True)
        ):
            wanted = ", ".join("any" if w is None else str(w) for w in want)
            raise ValueError(
                f"{name} of panel {self.title!r} has shape {shape}; "
                f"allowed for axes {tuple(self.axes)}: ({wanted})."
            )

    def encode(self, axes: Mapping[str, Axis]) -> dict[str, Any]:
        """The panel as JSON."""
        return {
            "kind": self.kind,
            "title": self.title,
            "alt": self.alt,
            "axes": list(self.axes),
            "wide": self.wide,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Images(Panel):
    """A grid of small pictures.

    Args:
        frames: (axes …, rows, columns, C, H, W) in [-1, 1], C = 1 or 3.
        row_labels, column_labels: names of the grid's rows and columns.
        size: the largest width of one picture in CSS pixels.
        levels: shades per channel; fewer make the file smaller.
    """

    kind: ClassVar[str] = "images"
    frames: ArrayLike
    row_labels: Sequence[str] | None = None
    column_labels: Sequence[str] | None = None
    size: int = 96
    levels: int = 256

    def check(self, axes: Mapping[str, Axis]) -> None:
        super().check(axes)
        self._check_shape(axes, "frames", self.frames, None, None, None, None, None)
        rows, columns, channels = np.shape(self.frames)[-5:-2]
        if channels not in (1, 3):
            raise ValueError(
                f"frames of panel {self.title!r} has {channels} channels; allowed: 1, 3."
            )
        for name, labels, n in (
            ("row_labels", self.row_labels, rows),
            ("column_labels", self.column_labels, columns),
        ):
            if labels is not None and len(labels) != n:
                raise ValueError(
                    f"{name} of panel {self.title!r} has {len(labels)} entries, not {n}."
                )

    def encode(self, axes: Mapping[str, Axis]) -> dict[str, Any]:
        frames = np.asarray(self.frames)
        return (
            super().encode(axes)
            | sprite_sheet(
                frames.reshape(-1, *frames.shape[-3:]),
                self.levels,  # (all tiles, C, H, W)
            )
            | {
                "grid": list(frames.shape[-5:-3]),
                "row_labels": None if self.row_labels is None else list(self.row_labels),
                "column_labels": None if self.column_labels is None else list(self.column_labels),
                "size": self.size,
            }
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens(Panel):
    """The token grid drawn over a picture.

    Args:
        frames: the pictures, (axes …, C, H, W) in [-1, 1].
        tokens: tokens per column and per row of the picture, (axes …, 2), integers.
        size: the largest width of the picture in CSS pixels.
    """

    kind: ClassVar[str] = "tokens"
    frames: ArrayLike
    tokens: ArrayLike
    size: int = 320

    def check(self, axes: Mapping[str, Axis]) -> None:
        super().check(axes)
        self._check_shape(axes, "frames", self.frames, None, None, None)
        self._check_shape(axes, "tokens", self.tokens, 2)

    def encode(self, axes: Mapping[str, Axis]) -> dict[str, Any]:
        frames = np.asarray(self.frames)
        sheet = sprite_sheet(frames.reshape(-1, *frames.shape[-3:]))  # (all frames, C, H, W)
        return super().encode(axes) | sheet | {"tokens": plain(self.tokens), "size": self.size}
