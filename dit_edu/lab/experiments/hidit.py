"""HiDiT as a whole: each part alone and all together, on the stage; and time, up to full size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from dit_edu.dit import DiT
from dit_edu.hidit.factorized import FactorizedAttention
from dit_edu.hidit.model import HiDiT
from dit_edu.lab.data import Labelled, folds
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment, Row, read
from dit_edu.lab.experiments.multiscale import (
    MODEL,
    RECIPE,
    dit,
    fitted,
    half,
    judged,
)
from dit_edu.lab.experiments.scaling import counted
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import RECIPES, Recipe
from dit_edu.lab.train import train

#: HiDiT on the stage: of what ``hidit-folds`` tried, the best that keeps to the time at 16 images.
TINY = {name: RECIPES["shapes-hidit"].model[name] for name in ("coarse_fraction", "skip", "half")}
BASE = "p = 2"  # the plain DiT
#: Steps at which executed MACs are counted.
LEVELS = range(25, 1000, 50)


@dataclass(frozen=True)
class Variant(Recipe):
    """A recipe whose DiT may have another attention.

    Args:
        attention: options of :class:`~dit_edu.hidit.factorized.FactorizedAttention`; None keeps the
            attention that the model has.
    """

    attention: Mapping[str, Any] | None = None

    def build_model(self) -> nn.Module:
        """A fresh model."""
        model = super().build_model()
        if self.attention is not None:
            for block in model.blocks:
                heads, grid = block.attn.num_heads, model.x_embedder.grid
                width = model.pos_embed.shape[-1]
                block.attn = FactorizedAttention(width, heads, grid, **self.attention)
            model.initialize_weights()
        return model


def recipe_of(setting: Mapping[str, Any]) -> Variant:
    """The recipe of a setting: its own fields on top of what all share on the stage."""
    model = {**MODEL, **setting["model"]}
    return Variant(**{"name": "stage", **RECIPE, **setting, "model": model})


def executed(model: nn.Module) -> int:
    """Multiply-adds of a forward pass for one image, the mean over steps."""
    t = torch.tensor(LEVELS)
    x = torch.zeros(len(t), model.in_channels, *model.input_size)
    return count(model, x, t, torch.zeros_like(t), repeats=0).macs // len(t)


def measured(
    recipe: Recipe, model: nn.Module, seed: int, seen: Labelled, unseen: Labelled
) -> dict[str, Any]:
    """What a cell says of a trained model: size, work, loss and samples."""
    cost = {**counted(recipe), "macs": executed(model)}
    return cost | judged(model, recipe, seed, seen, unseen)


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on the stage, measure on its held-out half: loss, samples, cost."""
    recipe = recipe_of(setting)
    model = fitted(recipe, seed, half("train"))
    return measured(recipe, model, seed, half("train"), half("heldout"))


def fold_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on one fold of the training half, measure on the other; the seed says which."""
    images, labels = half("train")
    fit, judge = folds(labels)[seed]
    recipe, seen = recipe_of(setting), (images[fit], labels[fit])
    model = fitted(recipe, seed, seen)
    return measured(recipe, model, seed, seen, (images[judge], labels[judge]))


def race_rows() -> list[Row]:
    """The rows of all models of the race, of both tables, the plain model's first.

    Raises:
        FileNotFoundError, ValueError: the tables ``multiscale`` and ``hidit`` are not there.
    """
    before = [row for row in read("multiscale") if row["setting"] in (BASE, *RACED_BEFORE)]
    return before + read("hidit")


# ---------------------------------------------------------------------- time


def seconds(calls: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Least seconds of the processor that each call takes, of some turns.

    The calls are made one after the other, in turns, the first of which only warms up. The clock on
    the wall would also count the work of others.
    """
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(turns + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A forward pass and an update, and their times over those of the plain model.

    The seed numbers the repetitions.
    """
    n, turns = setting["batch"], setting["turns"]
    x, t, y = torch.randn(n, 3, 16, 16), torch.full((n,), 500), torch.zeros(n, dtype=torch.long)
    recipes = {"plain": recipe_of(dit()), "own": recipe_of(setting["race"])}
    passes, updates = {}, {}
    for name, recipe in recipes.items():
        steps = train(replace(recipe, batch_size=n), seed=seed, device="cpu", data=half("train"))
        passes[name] = partial(next(steps).ema, x, t, y)
        updates[name] = partial(next, steps)
    with torch.no_grad():
        forward = seconds(passes, turns)
    update = seconds(updates, turns)
    return {
        "seconds": plain(forward["own"] / n, 6),
        "ratio": plain(forward["own"] / forward["plain"]),
        "update_seconds": plain(update["own"], 6),
        "update_ratio": plain(update["own"] / update["plain"]),
    }


@cache
def full_size() -> dict[str, nn.Module]:
    """The three models of the sources' table, with random weights."""
    torch.manual_seed(0)
    return {
        "DiT-XL/2": DiT.from_preset("DiT-XL/2"),
        "HiDiT-B": HiDiT.from_preset("HiDiT-B"),
        "HiDiT-S": HiDiT.from_preset("HiDiT-S"),
    }


def full_cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Seconds of a forward pass, or of one with the way back, by model; the seed is a number."""
    n, back = setting["batch"], setting["backward"]
    batch = torch.randn(n, 4, 32, 32), torch.full((n,), 500), torch.zeros(n, dtype=torch.long)

    def call(model: nn.Module) -> None:
        with torch.set_grad_enabled(back):
            out = model(*batch)
        if back:
            out.square().mean().backward()
            model.zero_grad(set_to_none=True)

    found = seconds({n: partial(call, m) for n, m in full_size().items()}, setting["turns"])
    return {name: plain(value) for name, value in found.items()}


# ---------------------------------------------------------------------- the experiments


def coarse(fraction: float) -> dict[str, Any]:
    """A setting: a plain DiT but for a fraction of its blocks, which see coarse tokens."""
    return {"kind": "MultiscaleDiT", "model": {"coarse_fraction": fraction, "skip": "concat"}}


def hidit(**model: Any) -> dict[str, Any]:
    """A setting: a HiDiT, like the tiny one but for some options."""
    return {"kind": "HiDiT", "model": {**TINY, **model}}


#: What is raced; the models that are measured in ``multiscale`` already are not trained again.
RACE = {
    "3 blocks": dit(depth=3),
    "1 block": dit(depth=1),
    "factorized": {**dit(), "attention": {}},
    "halves": {**dit(), "attention": {"half": True}},
    "halves, windows": {**dit(), "attention": {"half": True, "spatial": "window"}},
    "routed": {"kind": "DynamicDiT", "model": {"keep": 3}},
    "HiDiT, 1/2 coarse": hidit(coarse_fraction=0.5),
    "HiDiT, all coarse": hidit(coarse_fraction=1.0),
    "HiDiT-tiny": hidit(),
    "HiDiT-tiny, routed": hidit(keep=3),
}
WIDER = {"HiDiT, D = 72": hidit(hidden_size=72)}  # what the folds prefer, if time were free
RACED_BEFORE = {
    "p = 4": dit(patch_size=4),
    "p = 2, 2 blocks": dit(depth=2),
    "1/4 coarse": coarse(0.25),
    "1/2 coarse": coarse(0.5),
    "3/4 coarse": coarse(0.75),
}

EXPERIMENTS = (
    Experiment(
        name="hidit-folds",
        about="Sizes of a tiny HiDiT, learnt and judged on two folds of the training half",
        settings={
            "3/4 coarse": hidit(),
            "3/4 coarse, lerp": hidit(skip="lerp"),
            "3/4 coarse, D = 72": hidit(hidden_size=72),
            "4/5 coarse, L = 5": hidit(coarse_fraction=0.8, depth=5),
        },
        seeds=range(2),
        compute=fold_cell,
    ),
    Experiment(
        name="hidit",
        about="HiDiT on the stage, each part alone and all together: loss, samples and MACs",
        settings=RACE,
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="hidit-long",
        about="The plain DiT and HiDiT-tiny of the race, trained four times as long",
        settings={BASE: {**dit(), "steps": 1200}, "HiDiT-tiny": {**hidit(), "steps": 1200}},
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="hidit-cost",
        about="Time of forward passes and updates of the models of the race over the plain DiT's",
        settings={
            f"{name}, batch {batch}": {"race": race, "batch": batch, "turns": turns}
            for name, race in (RACED_BEFORE | RACE | WIDER).items()
            for batch, turns in ((1, 20), (16, 6), (64, 3))
        },
        seeds=range(3),
        compute=cost_cell,
    ),
    Experiment(
        name="hidit-full-cost",
        about="Time of DiT-XL/2, HiDiT-B and HiDiT-S with random weights, 4 x 32 x 32, one thread",
        settings={
            f"{name}, batch {batch}": {"batch": batch, "backward": back, "turns": turns}
            for name, back, batch, turns in (
                ("forward", False, 1, 3),
                ("forward", False, 4, 1),
                ("forward and backward", True, 2, 1),
            )
        },
        seeds=range(1),
        compute=full_cost_cell,
    ),
)
