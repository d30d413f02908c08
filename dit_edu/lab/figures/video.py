"""The moving figure of the chapter on video: films side by side, real, perfect and trained."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

from dit_edu.lab.charts import Curves, Line
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.films import LEVELS, SHOWN
from dit_edu.lab.films import KNOWN
from dit_edu.lab.moving import FRAMES, SIDE, load_videos
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure

#: The rows of the figure: by title, a table, its setting, and which films of it.
FILMS = {
    "of the zoo": ("video-shipped", "scale 2", "films"),
    "perfect": ("video-ideal", "both", "films"),
    "perfect, alone": ("video-ideal", "nothing", "films"),
    "joint": ("video", "joint", "films"),
    "factorized": ("video", "factorized", "films"),
    "alone": ("video", "frames", "films"),
    "U-Net": ("video", "U-Net", "films"),
}
COLUMNS = 4  # digits that the figure has room for on a phone
LINES = {"nothing": "nothing", "digit": "the digit stays", "path": "its path", "both": "both"}


def films_of(uri: str) -> np.ndarray:
    """The films of a table's sheet: (SHOWN, F, H, W) in [-1, 1]."""
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L"))
    across = math.ceil(math.sqrt(SHOWN * FRAMES))
    tiles = sheet.reshape(-1, SIDE, across, SIDE).swapaxes(1, 2).reshape(-1, SIDE, SIDE)
    return tiles[: SHOWN * FRAMES].reshape(SHOWN, FRAMES, SIDE, SIDE) / 127.5 - 1


def moving_films() -> Figure:
    """Films of the digits 0 to 3, and what a perfect denoiser loses by not knowing of time.

    Raises:
        FileNotFoundError, ValueError: the tables ``video`` and ``video-ideal`` are not there.
    """
    videos, labels = load_videos("heldout")
    rows = {"real": np.stack([videos[labels == y][0, 0].numpy() for y in range(SHOWN)])}
    for title, (table, setting, name) in FILMS.items():
        first = next(row for row in read(table) if row["setting"] == setting)
        rows[title] = films_of(first["metrics"][name])
    films = np.stack(list(rows.values()))[:, :COLUMNS]  # (rows, COLUMNS, F, H, W)
    error = {
        known: np.array(
            [r["metrics"]["error"] for r in read("video-ideal") if r["setting"] == known]
        )
        for known in KNOWN
    }
    return Figure(
        name="moving-films",
        title="Which of them move?",
        caption="Press Play. Rows are real digits; what the model of the zoo draws; what a perfect "
        "denoiser draws that knows all of time, or sees each frame alone; and what three DiTs and "
        "a U-Net draw that raced at equal MACs. Look at one column at a time: does the digit "
        "stay the same, and does it go on as it came? Below, "
        "the error of perfect denoisers over *t*, by what they know of time.",
        alt="Eight rows of four small films. The real digits, and those of the perfect denoiser "
        "that knows of time, walk in straight lines and turn at the edges. Where a perfect "
        "denoiser sees each frame alone, sharp digits jump about and change their shape. The "
        "films of the zoo's model and of the U-Net mostly walk; the other three draw pieces of "
        "digits, or digits that jump. A chart below: four curves of error that rise with the "
        "noise, the one that knows nothing of time highest, the one that knows digit and path "
        "lowest.",
        axes=[Axis("frame", "frame", list(range(1, FRAMES + 1)))],
        play="frame",
        loop=True,
        panels=[
            Images(
                title="Films of the digits 0 to 3",
                alt="One frame of each film.",
                axes=("frame",),
                frames=films.transpose(2, 0, 1, 3, 4)[:, :, :, None],  # (F, rows, COLUMNS, 1, H, W)
                row_labels=list(rows),
                column_labels=[str(y) for y in range(COLUMNS)],
                size=72,
                levels=16,
                wide=True,
            ),
            Curves(
                title="Error of a perfect denoiser, by what it knows of time",
                alt="Four rising curves of the squared error of the clean video over t.",
                axes=(),
                x=np.array(LEVELS),
                x_label="t",
                lines=[Line(LINES[known], e.mean(0)) for known, e in error.items()],
                wide=True,
            ),
        ],
    )
