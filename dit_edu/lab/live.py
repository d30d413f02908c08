"""Live controls for a notebook: stored frames are a cache that a model refines.

A :class:`Live` control begins as the control of a :class:`~dit_edu.lab.widgets.Figure`: its sliders
move stored frames in the browser, and so they answer at once on a page without a kernel, while the
kernel is busy, and after it is gone. Where a kernel listens, a move asks the model too; what it
draws takes the place of the stored frames, and under every picture stands which of the two it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from html import escape
from threading import Lock, Timer
from typing import Any

import ipywidgets
import numpy as np

from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure

STORED = "stored frame"


class Superseded(Exception):
    """A newer request has come; nobody waits for this one any more."""


class Newest:
    """Of a burst of requests do the last: after a pause, in a thread, until a newer one comes.

    Args:
        work: called as ``work(request, check)``, never twice at a time; ``check()`` raises
            :class:`Superseded` as soon as there is a newer request.
        pause: seconds without another request before the work begins.
    """

    def __init__(self, work: Callable[[Any, Callable[[], None]], None], pause: float) -> None:
        self._work, self._pause = work, pause
        self._number, self._timer = 0, None
        self._asking, self._working = Lock(), Lock()

    def ask(self, request: Any) -> None:
        """Put this request in the place of all before it; returns at once."""
        with self._asking:
            self._number += 1
            if self._timer is not None:
                self._timer.cancel()
            self._timer = Timer(self._pause, self._do, (self._number, request))
            self._timer.daemon = True
            self._timer.start()

    def _do(self, number: int, request: Any) -> None:
        def check() -> None:
            if number != self._number:
                raise Superseded

        with self._working, suppress(Superseded):
            check()
            self._work(request, check)


class Live:
    """The control of a figure, whose frames a model draws anew where there is a kernel.

    Nothing is drawn before a reader moves something. What only a kernel can answer, ``extras`` and
    the progress bar, stays hidden until a browser and a kernel have found each other. A notebook
    shows ``box``, the widget that holds all parts.

    Args:
        figure: gives the sliders and the stored frames.
        make: called in a thread as ``make(settings, tick)``. ``settings`` holds the chosen value by
            name of axis and extra; call ``tick(done, total)`` after every step, it raises where
            the drawing is no longer wanted. The result is a figure with the same axes, each with
            one value or with several; it refines all frames that lie on it.
        extras: further controls by name, with ``value`` and ``description``; one with the name of
            an axis takes the place of its slider.
        source: who draws, and where, in a few words.
        max_frames: the most stored frames, see :meth:`~dit_edu.lab.widgets.Figure.control`.
        pause: seconds without a move before the model is asked.

    Raises:
        ValueError: more choices than frames.
    """

    def __init__(
        self,
        figure: Figure,
        make: Callable[[dict[str, Any], Callable[[int, int], None]], Figure],
        extras: Mapping[str, ipywidgets.Widget],
        source: str,
        max_frames: int = 40,
        pause: float = 0.3,
    ) -> None:
        self.figure, self.make, self.extras, self.source = figure, make, extras, source
        fixed = {a.name: a.start for a in figure.axes if a.name in extras}
        control = figure.control(fixed, max_frames)
        self.sliders, self.places, self.frames = control.sliders, control.places, control.frames
        for frame in self.frames.values():
            frame.value = _with_caption(frame.value, STORED)
        self._stored = {place: frame.value for place, frame in self.frames.items()}
        self._drawn: dict[tuple[int, ...], dict[str, Any]] = {}  # extras of each refined frame

        self.bar = ipywidgets.IntProgress(layout=ipywidgets.Layout(width="12em"))
        self.status = ipywidgets.HTML()
        wrap = ipywidgets.Layout(flex_flow="row wrap")
        rows = [[ipywidgets.HTML("with the kernel:")], extras.values(), [self.bar, self.status]]
        self.desk = ipywidgets.VBox(
            [ipywidgets.HBox(list(row), layout=wrap) for row in rows],
            layout=ipywidgets.Layout(display="none"),
        )
        self.box = ipywidgets.VBox([control.row, self.desk, control.pictures])
        _when_seen(self._unfold)

        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._newest = Newest(self._draw, pause)
        for slider in self.sliders.values():
            slider.observe(self._ask, "index")
        for extra in extras.values():
            extra.observe(self._ask, "value")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return self.box._repr_mimebundle_(**kwargs)

    def _unfold(self) -> None:
        self.desk.layout.display = "flex"

    def _ask(self, _: Any) -> None:
        place = tuple(self.places[name][s.index] for name, s in self.sliders.items())
        settings = {a.name: a.values[a.start] for a in self.figure.axes} | self._values(place)
        settings |= {name: extra.value for name, extra in self.extras.items()}
        self._newest.ask((place, settings))

    def _draw(self, request: Any, check: Callable[[], None]) -> None:
        place, settings = request
        extras = {name: settings[name] for name in self.extras}
        if self._drawn.get(place) == extras:
            self.bar.value = self.bar.max
            self._say("", "success")
            return

        def tick(done: int, total: int) -> None:
            check()
            self.bar.max, self.bar.value = total, done

        self.bar.value = 0
        self._say("drawing…", "")
        try:
            answer = self.make(settings, tick)
            caption = f"live: {self.source}" + "".join(
                f", {extra.description} {extras[name]}" for name, extra in self.extras.items()
            )
            for there in self._covered(place, answer):
                check()
                values = settings | self._values(there) | extras
                position = {a.name: _nearest(a, values[a.name]) for a in answer.axes}
                self.frames[there].value = _with_caption(self._paint(answer, position), caption)
                self._drawn[there] = extras
                self._restore(extras)
                self._say("", "success")
        except Superseded:
            raise
        except Exception as error:  # whatever the model says, the reader should see it
            self._restore(extras)
            self._say(f"{self.source}: {type(error).__name__}: {error}", "danger")

    def _values(self, place: tuple[int, ...]) -> dict[str, Any]:
        """The values of the sliders' axes at a place."""
        axes = {a.name: a for a in self.figure.axes}
        return {name: axes[name].values[i] for name, i in zip(self.sliders, place, strict=True)}

    def _covered(self, place: tuple[int, ...], answer: Figure) -> list[tuple[int, ...]]:
        """This place, and those that differ from it only along axes with several values."""
        several = {a.name for a in answer.axes if len(a) > 1}
        free = [name in several for name in self.sliders]
        covered = [
            there
            for there in self.frames
            if all(f or i == j for f, i, j in zip(free, place, there, strict=True))
        ]
        return sorted(covered, key=lambda there: there != place)

    def _paint(self, figure: Figure, position: Mapping[str, int]) -> str:
        """A frame, painted by the kernel between two cells: threads share matplotlib's settings."""

        async def frame() -> str:
            return figure.frame(position)

        if self._loop is None:
            return figure.frame(position)
        return asyncio.run_coroutine_threadsafe(frame(), self._loop).result()

    def _restore(self, extras: dict[str, Any]) -> None:
        """Put stored frames back where a frame was refined with other extras than these."""
        for place in [p for p, others in self._drawn.items() if others != extras]:
            self.frames[place].value = self._stored[place]
            del self._drawn[place]

    def _say(self, text: str, style: str) -> None:
        self.status.value, self.bar.bar_style = escape(text), style


def _when_seen(action: Callable[[], None]) -> None:
    """Call ``action`` once a browser shows this kernel's widgets; on a page alone, never.

    Only a browser follows the link, and only a kernel sees that it has.
    """
    told, heard = ipywidgets.Checkbox(True), ipywidgets.Checkbox(False)
    ipywidgets.jsdlink((told, "value"), (heard, "value"))
    heard.observe(lambda _: action(), "value")


def _with_caption(picture: str, text: str) -> str:
    return f"{picture}<br><small>{escape(text)}</small>"


def _nearest(axis: Axis, value: Any) -> int:
    """The position of a value on an axis; of a number that is not there, the nearest one."""
    if value in axis.values:
        return list(axis.values).index(value)
    return int(np.abs(np.asarray(axis.values, dtype=float) - value).argmin())
