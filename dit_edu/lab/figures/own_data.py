"""The moving figure of the chapter on own data: photographs, learnt in three ways."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dit_edu.lab.charts import Bars, Curves, Line
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.own_data import BASE, SHOWN, STOPS, TILES, WAYS
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.spread import t_limit
from dit_edu.lab.widgets import Figure

SIDE = BASE.model["input_size"]  # of a picture in a sheet


def drawn(row: Mapping[str, Any]) -> np.ndarray:
    """The pictures in a row's sheet: (stops, tiles, 3, H, W) in [-1, 1]."""
    png = base64.b64decode(row["metrics"]["sheet"].split(",")[1])
    sheet = np.asarray(Image.open(io.BytesIO(png)), dtype=np.float32) / 127.5 - 1
    rows, columns = (n // SIDE for n in sheet.shape[:2])
    tiles = sheet.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(-1, 3, SIDE, SIDE)[: len(STOPS) * 2 * TILES]  # the last may be empty
    return tiles.reshape(len(STOPS), 2 * TILES, 3, SIDE, SIDE)


def band(rows: Sequence[Mapping[str, Any]], way: str) -> tuple[np.ndarray, ...]:
    """The mean held-out loss at each stop, and the ends of its 95 % confidence band: (stops,)."""
    runs = np.array([r["metrics"]["loss_by_stop"] for r in rows if r["setting"] == way])
    half = t_limit(len(runs)) * runs.std(0, ddof=1) / math.sqrt(len(runs))  # (stops,)
    return runs.mean(0), runs.mean(0) - half, runs.mean(0) + half


def fine_tuning() -> Figure:
    """What a model draws of photographs, and how far its loss is, by updates and way to learn.

    Raises:
        FileNotFoundError, ValueError: the table ``own-data`` is not there.
    """
    rows = read("own-data")
    first = {row["setting"]: row for row in rows if row["seed"] == 0}
    seeds = len({row["seed"] for row in rows})
    kept = [first[way]["metrics"]["bytes"] / 1000 for way in WAYS]
    return Figure(
        name="fine-tuning",
        title="Two photographs, learnt in three ways",
        caption="Six pictures, always from the same noise: three of the class china, three of the "
        "class flower. Move the number of updates. One model starts from nothing. The others start "
        "from a model that has only ever seen coloured shapes: all its weights are trained, or "
        f"adapters on them. The curves are means of {seeds} seeds with 95 % bands, on crops of the "
        "photographs that no model has seen.",
        alt="Three rows of six small pictures. Without updates the first row is grey noise and the "
        "others are coloured shapes. With more updates they become patches in the colours of the "
        "two photographs. Below, falling curves of the held-out loss, and bars of what has to be "
        "kept on the disk: adapters are several times smaller than all weights.",
        axes=[Axis("updates", "updates", list(STOPS), start=len(STOPS) - 1)],
        play="updates",
        panels=[
            Images(
                title="Drawn",
                alt="Pictures of the two classes, one row for each way to learn.",
                axes=("updates",),
                frames=np.stack([drawn(first[way]) for way in SHOWN], axis=1),
                row_labels=list(SHOWN),
                column_labels=["china"] * TILES + ["flower"] * TILES,
                size=88,
                levels=32,
                wide=True,
            ),
            Curves(
                title="Held-out loss",
                alt="The loss over updates, a line for each way to learn.",
                x=np.array(STOPS),
                x_label="updates",
                lines=[Line(way, *band(rows, way)) for way in WAYS],
                cursor="updates",
                log=True,
            ),
            Bars(
                title="To be kept on the disk",
                alt="Bars of the size of the files, in kilobytes.",
                labels=list(WAYS),
                values=np.array(kept),
                unit="kB",
            ),
        ],
    )
