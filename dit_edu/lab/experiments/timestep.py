"""Width by the step: which end of a trajectory needs it, a trained gate, and what slices save."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from dit_edu.dddit.policies import best_within
from dit_edu.dddit.router import BudgetedLosses
from dit_edu.dddit.timestep import WIDTHS, TimestepDiT
from dit_edu.dit import DiT
from dit_edu.lab.data import dataset
from dit_edu.lab.encoding import plain, to_uint8
from dit_edu.lab.experiments import Experiment, multiscale
from dit_edu.lab.experiments.depth import SAMPLING
from dit_edu.lab.experiments.dynamic import MODEL, RECIPE
from dit_edu.lab.experiments.training import heldout_loss, quality
from dit_edu.lab.profile import count, race
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import train
from dit_edu.sampling import ddim_sample, noise_streams
from dit_edu.walk import Trajectory

#: What is trained on each data set: settings of the model, and of the recipe.
STAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "digits": (MODEL, RECIPE | {"steps": 400}),
    multiscale.DATA: (multiscale.MODEL, multiscale.RECIPE),
}
TARGETS = (0.5, 0.7)  # λ of a gate: what the base width costs, and what no width costs
#: r of static models that keep all heads, and whose branches cost 50 % and 70 %.
THIN = {"thin": 5 / 6, "thin, 70%": 2.1}
L, B, H = WIDTHS
#: Policies by name, a width for each tenth of the steps, low noise first. The first four spend the
#: same on average over t, and over a grid of ten sampling steps.
POLICIES: dict[str, tuple[str, ...]] = {
    "base": (B,) * 10,
    "heavy at high t": (*[L] * 6, B, *[H] * 3),
    "heavy at low t": (*[H] * 3, B, *[L] * 6),
    "heavy in the middle": (*[L] * 3, B, *[H] * 3, *[L] * 3),
    "light": (L,) * 10,
    "heavy": (H,) * 10,
}
FOUND = (*[H] * 4, *[B] * 6)  # what the gate that may spend 70 % chooses
EQUAL = tuple(POLICIES)[:4]
SHORT = ["base", "heavy at high t", "heavy at low t", "light", "heavy", "best by loss"]
LEVELS = range(50, 1000, 100)  # a step in each tenth
SHOWN = (1, 3, 5, 7, 8)  # the labels of the trajectories that are kept


def progressive(bands: int = 10) -> tuple[str, ...]:
    """What the notes' level 1 - t / 2T asks for, if each third of [0, 1] is one width."""
    level = 1 - np.arange(0.5, bands) / bands / 2  # (bands,), in (1/2, 1)
    return tuple(list(WIDTHS)[int(3 * value)] for value in level)


def fitted(setting: Mapping[str, Any], seed: int) -> tuple[DiT, Recipe]:
    """The average of a training run, and its recipe."""
    model, fields = STAGES[setting["data"]]
    recipe = Recipe(
        name="timestep", kind=setting["kind"], model={**model, **setting["model"]}, **fields
    )
    loss_fn = BudgetedLosses(setting["target"]) if "target" in setting else None
    *_, last = train(recipe, seed=seed, device="cpu", loss_fn=loss_fn)
    return last.ema, recipe


# ---------------------------------------------------------------------- what is measured


def macs_by_bin(model: nn.Module) -> list[int]:
    """Multiply-adds of a pass for one image at each of ``LEVELS``, counted as they run."""
    x, y = torch.zeros(1, model.in_channels, *model.input_size), torch.zeros(1, dtype=torch.long)
    return [count(model, x, torch.tensor([t]), y, repeats=0).macs for t in LEVELS]


def judged(model: nn.Module, recipe: Recipe, seed: int) -> dict[str, Any]:
    """MACs by range of t, held-out loss by range of t, and what samples are like."""
    macs = macs_by_bin(model)
    if recipe.data == multiscale.DATA:
        halves = (multiscale.half(split) for split in ("train", "heldout"))
        found = multiscale.judged(model, recipe, seed, *halves)
    else:
        found = quality(model, recipe, SAMPLING)
    return {"macs": plain(np.mean(macs), 8), "macs_by_bin": macs, **found}


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure on the held-out half."""
    model, recipe = fitted(setting, seed)
    return judged(model, recipe, seed)


def seen(model: TimestepDiT, recipe: Recipe) -> dict[str, Any]:
    """The guesses of a few digits at each step of the sampler, from one noise: (K, n, H, W)."""
    way, n = Trajectory(), len(SHOWN)
    ddim_sample(
        model,
        recipe.process.build(),
        (n, model.in_channels, *model.input_size),
        torch.tensor(SHOWN),
        steps=SAMPLING.steps,
        generator=noise_streams(0, n),
        clip=True,
        callback=way,
    )
    return {"t": way.t, "guesses": to_uint8(way.x0.squeeze(2), 64).tolist()}


def best_bands(loss: np.ndarray) -> tuple[str, ...]:
    """The bands that make the mean loss least at the price of the base width: loss (3, bins)."""
    found = best_within(loss, list(WIDTHS.values()), WIDTHS[B])
    return tuple(list(WIDTHS)[k] for k in found.options)


def nested_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train one model at all widths, and give it one policy after the other.

    The bands that are best for the loss are chosen on training images.
    """
    model, recipe = fitted(setting, seed)
    process, known = recipe.process.build(), dataset(recipe.data).load("train")
    known = tuple(part[: multiscale.N] for part in known)
    found: dict[str, Any] = {"policies": {}, "train_loss_by_bin": {}}
    for name in WIDTHS:
        model.bands = (name,)
        loss = heldout_loss(model, process, data=known)
        found["train_loss_by_bin"][name] = plain(loss.tolist(), 6)
    best = best_bands(np.array(list(found["train_loss_by_bin"].values())))
    policies = {**POLICIES, "best by loss": best, "progressive": progressive()}
    policies["progressive, reversed"] = progressive()[::-1]
    for name in setting.get("policies", policies):
        bands = model.bands = policies[name]
        found["policies"][name] = {"bands": list(bands), **judged(model, recipe, seed)}
        if name in EQUAL and recipe.data == "digits" and seed == 0:  # for the figure
            found["policies"][name] |= seen(model, recipe)
    return found


# ---------------------------------------------------------------------- time


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Least seconds of a forward pass at each width over those of a plain DiT, in turns.

    ``gate`` is a router that chooses the base width; ``light cut`` and ``base cut`` are plain DiTs
    of that width. The seed numbers the repetitions.
    """
    torch.manual_seed(seed)
    sizes, n = {**MODEL, **setting["model"]}, setting["batch"]
    plain_dit = DiT(**sizes).eval()
    ways: dict[str, DiT] = {"plain": plain_dit}
    ways |= {name: TimestepDiT(bands=(name,), **sizes).eval() for name in WIDTHS}
    ways["gate"] = TimestepDiT(gated=True, **sizes).eval()
    for model in ways.values():
        model.load_state_dict(plain_dit.state_dict(), strict=False)
    ways["gate"].router.mlp[-1].bias.data = torch.tensor([0.0, 1.0, 0.0])
    ways |= {f"{name} cut": ways[name].cut(name) for name in (L, B)}
    x = torch.randn(n, plain_dit.in_channels, *plain_dit.input_size)
    t, y = torch.full((n,), 500), torch.arange(n) % 10  # one step, as in sampling
    best = race({name: partial(model, x, t, y) for name, model in ways.items()}, setting["turns"])
    macs = {name: count(model, x, t, y, repeats=0).macs for name, model in ways.items()}
    return {
        name: {
            "seconds": plain(best[name]),
            "ratio": plain(best[name] / best["plain"]),
            "macs_ratio": plain(macs[name] / macs["plain"]),
        }
        for name in ways
    }


# ---------------------------------------------------------------------- the experiments


def _one(data: str = "digits", kind: str = "TimestepDiT", **model: Any) -> dict[str, Any]:
    return {"data": data, "kind": kind, "model": model}


EXPERIMENTS = (
    Experiment(
        name="timestep",
        about="Width by the step, at equal MACs: constant, at either end, by a gate, and thin",
        settings={
            **{name: _one(bands=POLICIES[name]) for name in EQUAL},
            "heavy below t = 400": _one(bands=FOUND),
            **{f"gate, {target:.0%}": {**_one(gated=True), "target": target} for target in TARGETS},
            **{name: _one(kind="DiT", mlp_ratio=r) for name, r in THIN.items()},
        },
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="timestep-nested",
        about="One model trained at all widths, sampled by one policy after the other",
        settings={"digits": _one(drawn="image")},
        seeds=range(3),
        compute=nested_cell,
    ),
    Experiment(
        name="timestep-shapes",
        about="The same on 64 tokens: shapes of 16 x 16 pixels",
        settings={
            "small-shapes": {**_one(multiscale.DATA, drawn="image"), "policies": SHORT},
        },
        seeds=(0,),
        compute=nested_cell,
    ),
    Experiment(
        name="timestep-cost",
        about="Time of a forward pass at each width, over that of a plain DiT",
        settings={
            f"{side**2 // 4} tokens, batch {batch}": {
                "model": {"input_size": side, "hidden_size": wide},
                "batch": batch,
                "turns": max(3, turns // batch),
            }
            for side, wide, turns in ((8, 48, 200), (16, 128, 100), (32, 128, 20))
            for batch in (1, 16, 64)[: 2 if side == 32 else 3]
        },
        seeds=range(3),
        compute=cost_cell,
    ),
)
