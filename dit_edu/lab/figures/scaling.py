"""The moving figure of the chapter on scaling: a cost calculator."""

from __future__ import annotations

from itertools import product

import numpy as np

from dit_edu.lab.charts import Bars, Curves, Line, Table
from dit_edu.lab.costs import at_resolution
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure
from dit_edu.scaling import sampling_cost

SIZES, PATCHES = ("S", "B", "L", "XL"), (8, 4, 2)
RESOLUTIONS = (128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048)
#: Sampling steps and guidance, by what the reader chooses.
RUNS = {"20": (20, 1.0), "20 guided": (20, 1.5), "250": (250, 1.0), "250 guided": (250, 1.5)}
PARTS = {"tokens": "each token", "pairs": "each pair", "condition": "condition", "ends": "ends"}


def cost_calculator() -> Figure:
    """Parameters, MACs and memory of the published sizes at any patch, resolution and guidance."""
    models = [
        at_resolution(f"DiT-{size}/{p}", str(pixels))
        for size, p, pixels in product(SIZES, PATCHES, RESOLUTIONS)
    ]
    shape = (len(SIZES), len(PATCHES), len(RESOLUTIONS))
    parts = np.array([[m.macs()[part] for part in PARTS] for m in models]).reshape(*shape, -1)
    total = parts.sum(-1)  # (sizes, patches, resolutions)
    tokens = np.array([m.tokens for m in models]).reshape(shape)
    at = RESOLUTIONS.index(256)
    linear = total[..., at : at + 1] * tokens / tokens[..., at : at + 1]
    bills = [[sampling_cost(m, steps=k, scale=s) for k, s in RUNS.values()] for m in models]
    model_rows = [
        [
            ["tokens N", f"{m.tokens:,}"],
            ["a pass", _gmacs(macs)],
            ["if linear in N", _gmacs(straight)],
            ["parameters", f"{one.params / 1e6:.0f} M"],
            ["weights", f"{one.weights / 1e9:.2f} GB"],
            ["+ each image", f"{one.activations / 1e6:,.1f} MB"],
        ]
        for m, (one, *_), macs, straight in zip(
            models, bills, total.ravel(), linear.ravel(), strict=True
        )
    ]
    image_rows = [
        [
            [["passes", str(bill.passes)], ["MACs", f"{bill.macs / 1e12:,.3g} T"]]
            for bill in of_model
        ]
        for of_model in bills
    ]
    return Figure(
        name="cost-calculator",
        title="What does a Diffusion Transformer cost?",
        caption="Choose a published size, a patch and the way of sampling, and move the "
        "*resolution*. The chart shows how much more a pass costs than if its cost grew with the "
        "number of tokens alone, drawn through 256 pixels. Which size leaves 1 first, and why?",
        alt="A chart over the resolution with a rising line for each size, the cost over the cost "
        "if it were linear in the tokens; S rises most, XL least. Bars of the share of each part; "
        "two tables with tokens, multiply-adds, parameters, memory, and the price of an image.",
        axes=[
            Axis("size", "size", SIZES, start=3, choice=True),
            Axis("patch", "p", PATCHES, start=2, choice=True),
            Axis("resolution", "resolution", RESOLUTIONS, start=RESOLUTIONS.index(512)),
            Axis("run", "steps", list(RUNS), start=3, choice=True),
        ],
        play="resolution",
        panels=[
            Curves(
                title="A pass over a pass linear in N",
                alt="Four lines that rise over the resolution from about 1, the smallest model's "
                "most steeply.",
                axes=("patch",),
                x=RESOLUTIONS,
                x_label="resolution, pixels",
                lines=[Line(size, total[k] / linear[k]) for k, size in enumerate(SIZES)],
                cursor="resolution",
            ),
            Bars(
                title="Where they go",
                alt="Four bars: work for each token, for each pair, condition, embedders and head.",
                axes=("size", "patch", "resolution"),
                labels=list(PARTS.values()),
                values=100 * parts / total[..., None],
                unit="%",
                most=100,
            ),
            Table(
                title="The model, float32",
                alt="Tokens, multiply-adds of a pass, parameters, memory of weights and images.",
                axes=("size", "patch", "resolution"),
                columns=["", "has"],
                rows=_reshaped(model_rows, *shape),
            ),
            Table(
                title="One image",
                alt="Forward passes and multiply-adds for one image.",
                axes=("size", "patch", "resolution", "run"),
                columns=["", "needs"],
                rows=_reshaped(image_rows, *shape),
            ),
        ],
    )


def _gmacs(macs: float) -> str:
    return f"{macs / 1e9:,.{2 if macs < 1e11 else 1}f} GMACs"


def _reshaped(rows: list, *shape: int) -> list:
    """A flat list as nested ones: (a · b · c, …) -> (a, b, c, …)."""
    for length in shape[:0:-1]:
        rows = [rows[i : i + length] for i in range(0, len(rows), length)]
    return rows
