"""The routing explorer: budget, class and step, and everything that a routed model does there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dit_edu._checks import check_choice
from dit_edu.dddit.model import DDDiT
from dit_edu.interpolant import Interpolant
from dit_edu.lab import zoo
from dit_edu.lab.charts import Curves, Heatmap, Line
from dit_edu.lab.data import dataset
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.explorer import BATCH, BUDGETS, STEPS, set_budget
from dit_edu.lab.journey import journey
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.widgets import Figure
from dit_edu.latents import VAE


def explorer(
    name: str,
    model: DDDiT,
    process: Interpolant,
    classes: dict[int, str],
    milliseconds: np.ndarray,
    *,
    budgets: Sequence[str] = BUDGETS,
    scale: float = 1.0,
    vae: VAE | None = None,
    of: str = "",
    caption: str = "",
    levels: int = 32,
) -> Figure:
    """What a :class:`~dit_edu.dddit.DDDiT` runs on its way from noise to images.

    Args:
        name: of the figure.
        model: with a router; its mode and budget are put back.
        process: the diffusion that it was trained for.
        classes: that are drawn, with what the reader sees of each.
        milliseconds: measured for each budget and step, (budgets, K).
        budgets: keys of ``BUDGETS``.
        scale: of guidance.
        vae: of the latents that the model draws, if any.
        of: what is drawn, for the panels' titles where a page has several explorers.
        caption: what comes after what is true of every such figure.
        levels: shades of a picture's channels.
    """
    y, before = torch.tensor(list(classes)), (model.mode, model.budget)
    ways = []
    for budget in budgets:
        set_budget(model, budget)
        ways.append(journey(model, process, y, STEPS, scale, vae))
    model.mode, model.budget = before
    heads, experts = (
        np.array([[w.runs[f"blocks.{b}.{part}"] for b in range(len(model.blocks))] for w in ways])
        for part in ("attn", "mlp")
    )  # (budgets, L, K, B, h) and (…, E)
    units = np.concatenate([heads, experts], -1)  # (budgets, L, K, B, h + E)
    if asked_by_step := bool((units == units[:, :, :, :1]).all()):
        units, heads, experts = (part[:, :, :, :1] for part in (units, heads, experts))
    macs = np.array([w.macs for w in ways]) / 1e6  # (budgets, K, B), millions
    who = ("budget",) if asked_by_step else ("budget", "class")

    def by(part: np.ndarray, *last: int) -> np.ndarray:
        """(budgets, L, K, B, …) → (budgets, B, …), without B where classes share their paths."""
        part = np.moveaxis(part, 3, 1)  # (budgets, B, L, K, …)
        return part[:, 0] if asked_by_step else part

    so_far = macs.cumsum(1).swapaxes(1, 2)  # (budgets, B, K)
    so_far = so_far[:, 0] if asked_by_step else so_far
    time = milliseconds.cumsum(1)  # (budgets, K)
    full = list(budgets).index("full")
    blocks = [str(number + 1) for number in range(len(model.blocks))]
    steps = [str(t) for t in ways[0].t]
    names = [f"h{i + 1}" for i in range(model.heads)]
    names += [f"e{i + 1}" for i in range(model.experts)]
    of = of and f", {of}"
    frames = np.stack([w.images for w in ways]).swapaxes(1, 2)  # (budgets, B, K, C, H, W)
    progress = list(range(1, len(steps) + 1))
    return Figure(
        name=name,
        title="Routing explorer",
        caption="Choose a budget and a class, then move the step, or play it. Above: what the "
        "model runs in each block, over the whole way; a click on a column goes to its step. "
        f"Below: what runs at this step, unit by unit, and what has been paid so far. {caption}",
        alt="Two maps over steps and blocks, of how many heads and how many experts run; the image "
        "as the model guesses it at the chosen step; a map of single heads and experts at that "
        "step; and charts of the multiply-adds and the milliseconds so far, beside the full model.",
        axes=[
            Axis("step", "t", progress, steps, start=len(steps) // 2),
            Axis("budget", "budget", budgets, start=list(budgets).index("router"), choice=True),
            Axis("class", "class", list(classes.values()), choice=True),
        ],
        play="step",
        panels=[
            *(
                Heatmap(
                    title=f"{what} that run, by block and step{of}",
                    alt=f"Blocks over steps; the color is the share of the {what.lower()} on.",
                    axes=who,
                    values=by(part.mean(-1)),
                    rows=("block", blocks),
                    columns="step",
                    limits=(0, 1),
                )
                for what, part in (("Heads", heads), ("Experts", experts))
            ),
            Images(
                title=f"The model’s guess x̂₀{of}",
                alt="The image as it would be if the model had to answer at this step.",
                axes=("budget", "class", "step"),
                frames=frames[:, :, :, None, None],
                size=160,
                levels=levels,
            ),
            Heatmap(
                title=f"At this step{of}",
                alt="Blocks over single heads and experts; filled where one runs.",
                axes=(*who, "step"),
                values=np.moveaxis(by(units), -2, -3),
                rows=("block", blocks),
                columns=("heads and experts", names),
                limits=(0, 1),
            ),
            Curves(
                title=f"MACs so far, in millions{of}",
                alt="Multiply-adds for one image up to each step, beside those of the full model.",
                axes=who,
                x=progress,
                x_label="sampling step",
                cursor="step",
                lines=[
                    Line("this budget", so_far),
                    Line("full", np.broadcast_to(so_far[full], so_far.shape)),
                ],
            ),
            Curves(
                title=f"Milliseconds so far{of}",
                alt="Measured time up to each step, beside that of the full model.",
                axes=("budget",),
                x=progress,
                x_label="sampling step",
                cursor="step",
                lines=[
                    Line("this budget", time),
                    Line("full", np.broadcast_to(time[full], time.shape)),
                ],
            ),
        ],
    )


#: The classes that are shown of each shipped model.
SHOWN = {"shapes-dddit": (0, 6, 9, 11), "digits-dddit": (0, 3, 5, 8)}


def shipped_explorer(name: str) -> Figure:
    """The explorer of a dynamic model of the zoo.

    Raises:
        FileNotFoundError, ValueError: the zoo or the table ``explorer-cost`` does not have it.
    """
    model, card = zoo.load(name)
    recipe = Recipe.from_dict(card["recipe"])
    names = dataset(recipe.data).class_names
    rows = [r for r in read("explorer-cost") if r["setting"] == f"{name}, batch {BATCH}"]
    if not rows:
        raise ValueError(f"name={name!r} is not in the table explorer-cost.")
    return explorer(
        name.replace("dddit", "explorer"),
        model,
        recipe.process.build(),
        {label: names[label] for label in SHOWN[check_choice("name", name, SHOWN)]},
        np.mean([r["metrics"]["milliseconds"] for r in rows], axis=0),
        scale=card["sampling"]["scale"],
        vae=zoo.load_vae(recipe),
        of=recipe.data,
        caption=f"The model is `{name}`; times are of a pass for {BATCH} images on one thread.",
    )
