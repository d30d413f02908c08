"""Figures that move without a kernel: one set of data, shown in a page or in a notebook.

A :class:`Figure` is data: axes (sliders) and panels. :meth:`Figure.save` writes what the
``<dit-figure>`` element of a chapter reads; :meth:`Figure.widget` is a control for a notebook, and
works on the published page too, because nothing in it calls Python. (What does call Python is in
:mod:`dit_edu.lab.live`, and stands on the same control.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import ipywidgets
import numpy as np
from PIL import Image

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.lab.encoding import png_uri
from dit_edu.lab.files import atomic_write
from dit_edu.lab.panels import Axis, Panel
from dit_edu.lab.stills import draw_still

BUDGET = 300_000  # bytes of JSON per figure


@dataclass(frozen=True, eq=False)
class Control:
    """The parts of a control for a notebook; :meth:`Figure.control` makes it.

    Args:
        row: the sliders and the Play button.
        pictures: the frames, in stacks of which each shows what its slider chose.
        sliders: by the name of their axis; a slider's ``index`` counts its places.
        places: by the name of its axis, the positions (indices) that a slider offers.
        frames: a picture for each choice of places.
    """

    row: ipywidgets.Widget
    pictures: ipywidgets.Widget
    sliders: Mapping[str, ipywidgets.Widget]
    places: Mapping[str, Sequence[int]]
    frames: Mapping[tuple[int, ...], ipywidgets.HTML]


@dataclass(frozen=True, eq=False)
class Figure:
    """A moving figure.

    Args:
        name: of its files and of the page's directive: lower case, digits and hyphens.
        title: a few words.
        caption: what is shown and what to try, in Markdown; it stands under the figure.
        alt: what there is to see, for those who cannot see it, and for the still picture.
        panels: at least one; see :mod:`dit_edu.lab.panels` and :mod:`dit_edu.lab.charts`.
        axes: the sliders, in the order they are shown.
        play: the axis that the Play button moves; None for no such button.
        loop: play it round and round, as a film, until the button is pressed again.

    Raises:
        ValueError: a text is missing, a name is unknown or used twice, or a panel's arrays do not
            have the shape its axes ask for.
    """

    name: str
    title: str
    caption: str
    alt: str
    panels: Sequence[Panel]
    axes: Sequence[Axis] = ()
    play: str | None = None
    loop: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"name={self.name!r}; allowed: lower case, digits, single hyphens.")
        for text in ("title", "caption", "alt"):
            if not getattr(self, text).strip():
                raise ValueError(
                    f"{text} of figure {self.name!r} is empty; every figure needs one."
                )
        if not self.panels:
            raise ValueError(f"panels of figure {self.name!r} is empty; allowed: at least one.")
        axes = {a.name: a for a in self.axes}
        if len(axes) < len(self.axes):
            raise ValueError(f"axes of figure {self.name!r} has a name twice: {list(axes)}.")
        if self.play is not None:
            check_choice("play", self.play, axes)
        for panel in self.panels:
            panel.check(axes)

    @property
    def start(self) -> dict[str, int]:
        """The position at which the figure opens, an index by axis name."""
        return {a.name: a.start for a in self.axes}

    def to_json(self) -> str:
        """The figure as one line of JSON, the same for the same figure.

        Raises:
            ValueError: it is longer than ``BUDGET`` bytes.
        """
        axes = {a.name: a for a in self.axes}
        content = {
            "name": self.name,
            "title": self.title,
            "caption": self.caption,
            "alt": self.alt,
            "play": self.play,
            **({"loop": True} if self.loop else {}),
            "axes": [a.encode() for a in self.axes],
            "panels": [p.encode(axes) for p in self.panels],
        }
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        if (size := len(text.encode())) > BUDGET:
            parts = ", ".join(
                f"{p['title']!r} {len(json.dumps(p, ensure_ascii=False).encode())}"
                for p in content["panels"]
            )
            raise ValueError(
                f"figure {self.name!r} has {size} bytes ({parts}); allowed: {BUDGET}. "
                "Fewer positions, smaller pictures or fewer levels make it smaller."
            )
        return text

    def save(self, folder: str | Path) -> list[Path]:
        """Write the figure for a page: NAME.json, its twin NAME.js, and the still NAME.png.

        A page that is opened from a disk may not fetch JSON; the twin is a script that sets
        ``globalThis.DIT_FIGURES[NAME]`` to the same data.

        Returns:
            The three paths.

        Raises:
            ValueError: the data is over its budget.
            OSError: a file cannot be written.
        """
        text = self.to_json()
        paths = [Path(folder) / f"{self.name}.{end}" for end in ("json", "js", "png")]
        with atomic_write(paths[0], "w") as file:
            file.write(text + "\n")
        with atomic_write(paths[1], "w") as file:
            file.write(f'(globalThis.DIT_FIGURES??={{}})["{self.name}"]={text};\n')
        with atomic_write(paths[2]) as file:
            draw_still(self, self.start, dpi=150).quantize(256, Image.Quantize.MAXCOVERAGE).save(
                file, "PNG", optimize=True
            )
        return paths

    def frame(self, position: Mapping[str, int]) -> str:
        """The figure at ``position`` (an index by axis name) as a picture in HTML."""
        still = draw_still(self, position, dpi=80).quantize(64, Image.Quantize.MAXCOVERAGE)
        return f'<img src="{png_uri(still)}" alt="{escape(self.alt)}" style="max-width:100%">'

    def widget(
        self, fixed: Mapping[str, int] | None = None, max_frames: int = 40
    ) -> ipywidgets.Widget:
        """A control for a notebook, with the arguments of :meth:`control`."""
        control = self.control(fixed, max_frames)
        return ipywidgets.VBox([control.row, control.pictures])

    def control(self, fixed: Mapping[str, int] | None = None, max_frames: int = 40) -> Control:
        """One slider per axis over precomputed pictures.

        Sliders and pictures are linked in the browser (``jslink``), so it moves on the published
        page as well. Where the axes have more than ``max_frames`` positions together, the longest
        are thinned evenly.

        Args:
            fixed: positions, by axis name, of axes that get no slider.
            max_frames: the most pictures; each takes a quarter of a second and adds about 12 KB
                to the notebook.

        Raises:
            ValueError: an unknown axis or position, or more choices than frames.
        """
        check_positive_int("max_frames", max_frames)
        fixed = dict(fixed or {})
        names = [a.name for a in self.axes]
        for name, i in fixed.items():
            axis = self.axes[names.index(check_choice("fixed", name, names))]
            if not 0 <= i < len(axis):
                raise ValueError(f"fixed[{name!r}]={i}; allowed: 0 … {len(axis) - 1}.")
        free = {a.name: a for a in self.axes if a.name not in fixed}
        places = dict(zip(free, _thin(list(free.values()), max_frames), strict=True))
        sliders = {name: _slider(a, places[name]) for name, a in free.items()}
        frames: dict[tuple[int, ...], ipywidgets.HTML] = {}

        def stack(chosen: tuple[int, ...], *rest: str) -> ipywidgets.Widget:
            if not rest:
                position = self.start | fixed | dict(zip(free, chosen, strict=True))
                frames[chosen] = ipywidgets.HTML(self.frame(position))
                return frames[chosen]
            children = [stack((*chosen, i), *rest[1:]) for i in places[rest[0]]]
            slider = sliders[rest[0]]
            pictures = ipywidgets.Stack(children, selected_index=slider.index)
            ipywidgets.jslink((slider, "index"), (pictures, "selected_index"))
            return pictures

        pictures = stack((), *free)
        shown: list[ipywidgets.Widget] = list(sliders.values())
        if self.play in sliders:
            slider = sliders[self.play]
            play = ipywidgets.Play(value=slider.index, max=len(slider.options) - 1, interval=150)
            ipywidgets.jslink((play, "value"), (slider, "index"))
            shown.insert(0, play)
        row = ipywidgets.HBox(shown, layout=ipywidgets.Layout(flex_flow="row wrap"))
        return Control(row, pictures, sliders, places, frames)


def _thin(axes: Sequence[Axis], most: int) -> list[list[int]]:
    """Positions of each axis, so that all combinations are at most ``most``; starts are kept."""
    counts = [len(a) for a in axes]
    while np.prod(counts, dtype=int) > most:
        longest = int(np.argmax([0 if a.choice else n for a, n in zip(axes, counts, strict=True)]))
        if axes[longest].choice or counts[longest] <= 2:
            raise ValueError(f"max_frames={most} is too few for axes of {counts} positions.")
        counts[longest] -= 1
    places = []
    for axis, n in zip(axes, counts, strict=True):
        even = np.linspace(0, len(axis) - 1, n).round().astype(int)
        even[np.abs(even - axis.start).argmin()] = axis.start
        places.append(even.tolist())
    return places


def _slider(axis: Axis, places: Sequence[int]) -> ipywidgets.Widget:
    """A slider (or buttons) over some positions of an axis; its ``index`` counts those."""
    options = [axis.labels[i] for i in places]
    kind = ipywidgets.ToggleButtons if axis.choice else ipywidgets.SelectionSlider
    return kind(options=options, index=places.index(axis.start), description=axis.label)
