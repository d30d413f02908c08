"""The figure of the page on claims: five of them taken apart, and what became of all."""

from __future__ import annotations

import numpy as np

from dit_edu.lab.charts import Bars, Table
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.explorer import BATCH, BUDGETS
from dit_edu.lab.ledger import PARTS, VERDICTS, read_ledger
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure
from dit_edu.scaling import Architecture

HABITS = ("opponent", "cost", "step or image", "metric", "arithmetic")
BARS = ("printed", "checked")


def saved_by_a_router() -> tuple[float, float]:
    """MACs saved by the router on digits, over the full model and over the thin one."""
    full, thin, router = (
        np.mean([row["metrics"]["macs"] for row in read(table) if row["setting"] == name])
        for table, name in (("layer-routing", "6 layers"), ("router", "thin"), ("router", "router"))
    )
    return 1 - router / full, 1 - router / thin


def saved_by_the_explorer() -> tuple[float, float]:
    """What the digits' router saves of the full mode: MACs, and time with 16 images."""
    macs = {row["setting"]: row["metrics"]["macs"] for row in read("explorer")}
    name = "digits-dddit"
    times = [
        dict(zip(BUDGETS, np.sum(row["metrics"]["milliseconds"], axis=1), strict=True))
        for row in read("explorer-cost")
        if row["setting"] == f"{name}, batch {BATCH}"
    ]
    time = np.mean([t["router"] / t["full"] for t in times])
    return 1 - macs[f"{name}, router"] / macs[f"{name}, full"], 1 - time


def without_the_sampler() -> tuple[float, float]:
    """Of 118.6 GFLOPs in 250 steps against 72.3 in 50: saved by an image, and by the model."""
    return 1 - 72.3 * 50 / (118.6 * 250), 1 - 72.3 / 118.6


def quality_kept() -> tuple[float, float]:
    """The share that is printed, and that of FID."""
    return 0.95, 1.55 / 1.72


def linear_resolution() -> tuple[float, float]:
    """The printed GFLOPs of DiT-XL/2 at 1024 pixels as the whole, and the share that they are."""
    whole = sum(Architecture.from_preset("DiT-XL/2", input_size=128).macs().values())
    return 1.0, 1897.6e9 / whole


def taken_apart() -> Figure:
    """Five claims, as printed and as checked; and the verdicts of the ledger by part.

    Raises:
        FileNotFoundError: the ledger or a table of results is not there.
    """
    shares = np.array(
        [
            saved_by_a_router(),
            saved_by_the_explorer(),
            without_the_sampler(),
            quality_kept(),
            linear_resolution(),
        ]
    )
    told = [
        ("a router saves MACs", "over the full model", "over a thin, good one"),
        ("it saves compute", "MACs", f"time, {BATCH} images"),
        ("it saves compute", "by image, 1/5 the steps", "by step: the model"),
        ("quality is kept", "with no metric", "by FID"),
        ("GFLOPs at 1024 pixels", "as a whole", "of the true cost"),
    ]
    rows = [[*zip(("claim", *BARS), words, strict=True)] for words in told]
    claims, _ = read_ledger()
    parts = ["all", *PARTS.values()]
    counts = [
        [
            sum(claim.verdict == verdict and part in ("all", claim.part) for claim in claims)
            for verdict in VERDICTS
        ]
        for part in parts
    ]
    return Figure(
        name="taken-apart",
        title="Five claims, taken apart",
        caption="Five habits, and what each does to a claim. The upper bar is what one reads, the "
        "lower one what is left. Below, what became of all claims of the ledger; choose a part of "
        "the book.",
        alt="Two bars for each habit, as printed and as checked; the second is far shorter where "
        "the opponent or the cost is asked for, and shorter everywhere. A table says what counts. "
        "Four bars count verdicts: most claims are refuted or reproduced, few are true by "
        "arithmetic, fewest cannot be checked here.",
        axes=[
            Axis("habit", "ask about", HABITS),
            Axis("part", "part of the book", parts, choice=True),
        ],
        play="habit",
        panels=[
            Bars(
                title="What is left",
                alt="Two bars in per cent, as printed and as checked.",
                axes=("habit",),
                labels=BARS,
                values=(100 * shares).round(),
                unit="%",
                most=100,
            ),
            Table(
                title="Of what",
                alt="The claim, what its printed number counts, and what the checked one does.",
                axes=("habit",),
                columns=("", "what is counted"),
                rows=np.array(rows, dtype=object),
            ),
            Bars(
                title="Verdicts of the ledger",
                alt="Four bars, the number of claims for each verdict.",
                axes=("part",),
                labels=tuple(VERDICTS),
                values=np.array(counts),
                unit="claims",
                wide=True,
            ),
        ],
    )
