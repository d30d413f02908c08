"""The figure of the chapter on text: four captions, told in five ways, under guidance."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from dit_edu.lab.charts import Heatmap, Table
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.text import ASKED, FILMED, SHOWN
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure

#: The ways as the figure names them.
NAMES = {
    "bag": "bag",
    "pooled": "pooled",
    "cross": "cross-attention",
    "joint": "joint attention",
    "streams": "two streams",
}
#: What can be asked of a caption of two objects: where each word stands.
PLACES = {"1st colour": 1, "1st shape": 2, "relation": 3, "2nd colour": -2, "2nd shape": -1}
ATTRIBUTES = ("count", "colour", "shape", "pairs", "position", "all")


def tiles(sprite: str, n: int, side: int = 32) -> np.ndarray:
    """The first n pictures of a sheet: (n, 3, side, side) in [-1, 1]."""
    sheet = Image.open(io.BytesIO(base64.b64decode(sprite.split(",")[1]))).convert("RGB")
    whole = np.asarray(sheet) / 127.5 - 1  # (rows * side, per_row * side, 3)
    rows, per_row = whole.shape[0] // side, whole.shape[1] // side
    cut = whole.reshape(rows, side, per_row, side, 3).transpose(0, 2, 4, 1, 3)
    return cut.reshape(-1, 3, side, side)[:n]


def shares() -> dict[str, np.ndarray]:
    """Prompt accuracy by way, in percent, in the order of ``ATTRIBUTES``: (seeds, 6) each."""
    rows = read("text")
    return {
        way: np.array(
            [[100 * r["metrics"][a] for a in ATTRIBUTES] for r in rows if r["setting"] == way]
        )
        for way in NAMES
    }


def told_in_five_ways() -> Figure:
    """Samples of four captions by five ways, by guidance, and where joint attention looks.

    Raises:
        FileNotFoundError, ValueError: the table ``text`` is not there.
    """
    first = {row["setting"]: row["metrics"] for row in read("text") if row["seed"] == FILMED}
    n = len(ASKED) * len(SHOWN)
    frames = np.stack([tiles(first[way]["shown"], n) for way in NAMES])  # (ways, n, 3, H, W)
    frames = frames.reshape(len(NAMES), len(ASKED), len(SHOWN), 3, 32, 32)
    words = list(PLACES.values())
    looks = [  # (captions, scales, words, 4, 4), in percent
        [100 * np.moveaxis(np.array(maps[c])[..., words], -1, 0) for maps in first["joint"]["maps"]]
        for c in range(len(SHOWN))
    ]
    right = [
        [NAMES[way], *(f"{v:.0f}" for v in values.mean(0))] for way, values in shares().items()
    ]
    return Figure(
        name="told-in-five-ways",
        title="One caption, told in five ways",
        caption="Five models, the same noise, the same batches; only the way of the words into "
        "the network differs. Choose a caption, and turn guidance up. The first two captions "
        "hold the same words: the bag cannot tell them apart. The map shows how much of its "
        "attention each token of the image gives to a word, in the model with joint attention. "
        "Pictures and map are of one seed; the table is the mean over all.",
        alt="Five pictures of two coloured shapes, one for each way of telling the caption, that "
        "become clearer with guidance; a map of four by four image tokens with the attention "
        "that they give to a chosen word; and a table of the share of prompts that come out right.",
        axes=[
            Axis("caption", "caption", SHOWN, choice=True),
            Axis("scale", "guidance scale s", ASKED, [f"{s:g}" for s in ASKED], start=3),
            Axis("word", "look at the", list(PLACES), choice=True, start=1),
        ],
        play="scale",
        panels=[
            Images(
                title="What is drawn",
                alt="Five pictures for the chosen caption, at the chosen guidance scale.",
                axes=("caption", "scale"),
                frames=frames.transpose(2, 1, 0, 3, 4, 5)[:, :, None],
                column_labels=list(NAMES.values()),
                size=112,
                levels=24,
                wide=True,
            ),
            Heatmap(
                title="Who looks at the word (joint attention)",
                alt="A map of the sixteen image tokens: the share of attention given to the word.",
                axes=("caption", "scale", "word"),
                values=np.array(looks),
                rows=("row", [str(i) for i in range(4)]),
                columns=("column", [str(i) for i in range(4)]),
                unit="% of its attention",
            ),
            Table(
                title="Held-out prompts that come out right, in %",
                alt="A row for each way: the share of prompts right in count, colour and so on.",
                columns=("way", *ATTRIBUTES),
                rows=np.array(right, dtype=object),
                wide=True,
            ),
        ],
    )
