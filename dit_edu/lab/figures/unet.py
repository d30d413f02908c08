"""Moving figures of the chapter on the U-Net: where denoisers look, and larger scenes."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from dit_edu.lab.charts import Bars, Curves, Heatmap, Line
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.unet import LONG, PIXEL, SCENE_SAMPLES, STEPS, TS
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure

#: The weights that are looked at: by name, a table and a metric of it.
STATES = {
    "fresh": ("unet", "fields_fresh"),
    f"{STEPS} updates": ("unet", "fields"),
    f"{LONG} updates": ("unet-long", "fields"),
}
SHOWN = {"DiT": "DiT", "U-Net": "U-Net, MACs"}
PLACES = [str(i) for i in range(8)]


def others(fields: np.ndarray, pixel: tuple[int, int]) -> np.ndarray:
    """Fields (…, H, W) with ``pixel`` itself left out: shares that add up to 1 again.

    How much of a pixel goes straight into the answer at its place depends on what is predicted (ε,
    x_0 or v, each an affine function of the others and of x_t). What the rest tells does not.
    """
    rest = np.array(fields, dtype=float)
    rest[..., pixel[0], pixel[1]] = 0.0
    return rest / rest.sum((-2, -1), keepdims=True)


def fields_of(model: str, state: str) -> np.ndarray:
    """What a model looks at beside ``PIXEL`` itself, a key of ``STATES``: (seeds, TS, 8, 8).

    Raises:
        FileNotFoundError, ValueError: the table of that state is not there.
    """
    table, metric = STATES[state]
    found = [row["metrics"][metric] for row in read(table) if row["setting"] == model]
    return others(np.array(found), PIXEL)


def reach(fields: np.ndarray, pixel: tuple[int, int] = PIXEL) -> np.ndarray:
    """How far from ``pixel`` fields (…, H, W) look: the root of the mean square distance, (…)."""
    rows, columns = np.indices(fields.shape[-2:])
    square = (rows - pixel[0]) ** 2 + (columns - pixel[1]) ** 2  # (H, W)
    return np.sqrt((fields * square).sum((-2, -1)))


def where_they_look() -> Figure:
    """The effective receptive fields of a DiT and a U-Net on digits, by t and by training.

    Raises:
        FileNotFoundError, ValueError: the tables ``unet`` and ``unet-long`` are not there.
    """
    found = {title: [fields_of(name, s) for s in STATES] for title, name in SHOWN.items()}
    maps = {title: np.stack([f.mean(0) for f in each]) for title, each in found.items()}
    even = float(reach(others(np.ones((8, 8)), PIXEL)))
    lines = []
    for title, each in found.items():
        far = [reach(f) for f in each]  # (seeds, ts) for each state
        mean, low, high = (
            np.stack([take(f, 0) for f in far]) for take in (np.mean, np.min, np.max)
        )
        lines.append(Line(title, mean, low, high))
    lines.append(Line("all pixels alike", np.full((len(STATES), len(TS)), even)))
    return Figure(
        name="where-they-look",
        title="Where does a denoiser look?",
        caption="Which pixels of a noisy digit change the answer at one pixel (row 3, column 3), "
        "beside that pixel itself: the size of the gradient, over held-out digits and seeds; "
        "the largest is 1. Move *t*, and go from fresh weights to trained ones. (The fresh DiT's "
        "last layer has been woken; as published it starts at zero and looks nowhere.)",
        alt="Two maps of eight by eight pixels. Fresh, the DiT's has three bright pixels, the rest "
        "of its patch, and nothing else; the U-Net's is a blob about the pixel. With training the "
        "DiT's spreads, late and little, while the U-Net's follows the noise: narrow at low t and "
        "wide at high t. A chart shows how far each looks.",
        axes=[
            Axis("t", "t", TS, start=2),
            Axis("state", "weights", list(STATES), choice=True),
        ],
        play="t",
        panels=[
            *(
                Heatmap(
                    title=title,
                    alt=f"The map of the {title}.",
                    axes=("state", "t"),
                    values=np.sqrt(m / m.max((-2, -1), keepdims=True)),
                    rows=("row", PLACES),
                    columns=("column", PLACES),
                    limits=(0.0, 1.0),
                    unit="size of the gradient",
                )
                for title, m in maps.items()
            ),
            Curves(
                title="How far they look, in pixels",
                alt="Lines over t, the root of the mean square distance of what is looked at, with "
                "the range over seeds; an even line for one that looks at all pixels alike.",
                axes=("state",),
                x=np.array(TS),
                x_label="t",
                lines=lines,
                cursor="t",
                limits=(0.0, even * 1.1),
                wide=True,
            ),
        ],
    )


#: Model and way to another size, as the figure offers them: the setting, and what stands behind it.
LARGER = {
    "DiT, stretched": ("DiT, words as tokens", "stretch"),
    "DiT, extended": ("DiT, words as tokens", "extend"),
    "U-Net": ("U-Net, words added", ""),
}


def key(side: int, how: str) -> str:
    """How the tables name latents of ``side`` × ``side``."""
    return f"{side} {how}".strip() if side != min(SCENE_SAMPLES) else str(side)


def _tiles(uri: str, side: int, whole: int) -> np.ndarray:
    """The four pictures of a sheet, enlarged to ``whole`` pixels: (1, 4, 3, whole, whole)."""
    sheet = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
    tiles = [sheet.crop((x, y, x + side, y + side)) for y in (0, side) for x in (0, side)]
    large = [np.asarray(tile.resize((whole, whole), Image.Resampling.BICUBIC)) for tile in tiles]
    return np.stack(large)[None].transpose(0, 1, 4, 2, 3) / 127.5 - 1


def larger_scenes() -> Figure:
    """Scenes drawn at sizes that training never saw, by the DiT and by the U-Net.

    Raises:
        FileNotFoundError, ValueError: the tables ``unet-scenes`` and ``unet-pictures`` are not
            there.
    """
    pictures = {row["setting"]: row["metrics"] for row in read("unet-pictures")}
    rows = read("unet-scenes")
    sides = list(SCENE_SAMPLES)
    factor = 4  # pixels a latent

    def share(setting: str, side: int, how: str) -> float:
        name = f"shape {key(side, how)}"
        return 100 * float(np.mean([r["metrics"][name] for r in rows if r["setting"] == setting]))

    return Figure(
        name="larger-scenes",
        title="A larger scene than any in training",
        caption="Models that learnt from scenes of 32 × 32 pixels draw larger ones. Asked for: a "
        "red circle, a green square, a blue triangle, a yellow square. The bars count how often a "
        "judge, who knows geometry and no size, sees the shape that was asked for.",
        alt="Four pictures of coloured shapes on grey, and three bars. At 32 pixels they are "
        "shapes; at 48 and 64 pixels they depend on the model, and the bars are shorter.",
        axes=[
            Axis("way", "model", list(LARGER), choice=True),
            Axis(
                "side",
                "pixels a side",
                [factor * side for side in sides],
                choice=True,
                start=2,
            ),
        ],
        panels=[
            Images(
                title="As drawn, all enlarged to the same size",
                alt="Four pictures drawn at the chosen size.",
                axes=("way", "side"),
                frames=np.array(
                    [
                        [
                            _tiles(pictures[setting][key(side, how)], factor * side, 64)
                            for side in sides
                        ]
                        for setting, how in LARGER.values()
                    ]
                ),
                size=120,
                levels=32,
                wide=True,
            ),
            Bars(
                title="The shape that was asked for",
                alt="The share of scenes with the right shape at 32, 48 and 64 pixels a side.",
                axes=("way",),
                labels=[f"{factor * side} × {factor * side}" for side in sides],
                values=np.array(
                    [
                        [share(setting, side, how) for side in sides]
                        for setting, how in LARGER.values()
                    ]
                ),
                unit="%",
                most=100,
                wide=True,
            ),
        ],
    )
