"""Experts: more parameters at equal MACs, who may ask, who is never asked, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_edu.dddit.diagnostics import choices, load
from dit_edu.dddit.experts import ExpertDiT
from dit_edu.dddit.router import TopK
from dit_edu.dit import DiT
from dit_edu.interpolant import Interpolant
from dit_edu.lab import zoo
from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.depth import executed
from dit_edu.lab.experiments.dynamic import MODEL, RECIPE
from dit_edu.lab.experiments.router import LEVELS, THIN
from dit_edu.lab.experiments.training import heldout_batch, quality
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import train
from dit_edu.routing import balanced_losses, record_routing

UPDATES = 400
BALANCE = 0.01  # the weight of the balance loss
SAMPLING = Sampling(steps=10)
START = "digits-dit"  # the model that is trained on
TUNING: dict[str, Any] = {"steps": 300, "batch_size": 64, "lr": 2e-3, "warmup": 50}


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting: its own model on top of what all share."""
    return Recipe(
        name="experts",
        kind=setting["kind"],
        model={**MODEL, "mlp_ratio": THIN, **setting["model"]},
        **(RECIPE | {"steps": setting.get("updates", UPDATES)}),
    )


def asked_batch(process: Interpolant) -> tuple[Tensor, Tensor, Tensor]:
    """The first held-out digit of each label at each of the steps ``LEVELS``.

    Returns:
        Noisy images (100, 1, 8, 8), steps and labels (100,), step by step.
    """
    images, labels = digits("heldout")
    first = [int((labels == label).nonzero()[0]) for label in range(10)]
    t = torch.tensor(LEVELS).repeat_interleave(10)  # (100,)
    x0 = images[first].repeat(len(LEVELS), 1, 1, 1)  # (100, 1, 8, 8)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    return process.q_sample(x0, t, noise), t, torch.arange(10).repeat(len(LEVELS))


@torch.no_grad()
def used(model: ExpertDiT, process: Interpolant) -> dict[str, Any]:
    """Whom a trained model asks.

    Returns:
        ``load``, the share of the held-out items that chose each expert, (L, E); and ``chosen``,
        block by block and step by step of :func:`asked_batch`, the number of the chosen expert: a
        digit for each label, or for each token of each label.
    """
    x0, t, y, noise = heldout_batch(process)
    with record_routing(model) as trace:
        model(process.q_sample(x0, t, noise), t, y)
    table = trace.table()
    names = [f"blocks.{number}.mlp" for number in range(len(model.blocks))]
    with record_routing(model) as trace:
        model(*asked_batch(process))
    best = [d.chosen.int().argmax(-1).view(len(LEVELS), -1) for d in trace.decisions]  # k = 1
    return {
        "load": [plain(load(choices(table, name)).tolist()) for name in names],
        "chosen": [["".join(map(str, row)) for row in block.tolist()] for block in best],
    }


def chosen_by(row: Mapping[str, Any]) -> np.ndarray:
    """The experts that a cell's model chose, (L, steps, labels, 1 or N)."""
    said = row["metrics"]["chosen"]
    numbers = np.array([[[int(e) for e in step] for step in block] for block in said])
    return numbers.reshape(*numbers.shape[:2], 10, -1)


def measured(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Quality on the held-out digits, cost, and, of experts, who is asked."""
    found = {
        **quality(model, recipe, SAMPLING),
        "params": sum(p.numel() for p in model.parameters()),
        "macs": plain(executed(model), 8),
    }
    if isinstance(model, ExpertDiT):
        found |= used(model, recipe.process.build())
    return found


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure the average on the held-out digits."""
    recipe = recipe_of(setting)
    loss_fn = balanced_losses(setting["balance"]) if setting["balance"] else None
    *_, last = train(recipe, seed=seed, device="cpu", loss_fn=loss_fn, data=digits("train"))
    return measured(last.ema, recipe)


def tuned_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train the digits model on, with experts or without, and measure the average."""
    start, card = zoo.load(START)
    recipe = replace(Recipe.from_dict(card["recipe"]), kind=setting["kind"], **TUNING)
    recipe = replace(recipe, model={**recipe.model, **setting["model"]})
    if not setting["updates"]:
        return measured(start, recipe)
    if recipe.kind == "ExpertDiT":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            start = recipe.build_model().upcycle(start)
    *_, last = train(recipe, seed=seed, device="cpu", start=start)
    return measured(last.ema, recipe)


# ---------------------------------------------------------------------- time


def masked(model: ExpertDiT) -> ExpertDiT:
    """The same, but every expert works on everything, and what was not asked for is dropped."""
    for block in model.blocks:
        block.mlp.choice = TopK(block.mlp.choice.k, noise=0.0, heard=True).train()
    return model


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Least seconds of a forward pass over those of a plain DiT, in turns.

    Routers are drawn at random, wide enough that all experts are asked. All images share a step, as
    in sampling. The seed numbers the repetitions.
    """
    torch.manual_seed(seed)
    sizes, n = {**MODEL, **setting["model"]}, setting["batch"]
    dense = DiT(**sizes).eval()
    ways: dict[str, DiT] = {"plain": dense}
    for asks in ("step", "image", "token"):
        ways[asks] = ExpertDiT(asks=asks, **sizes).eval().upcycle(dense)
        for block in ways[asks].blocks:
            block.mlp.router.mlp[-1].weight.normal_()
    ways["masked"] = ExpertDiT(**sizes).eval()
    ways["masked"].load_state_dict(ways["image"].state_dict())
    masked(ways["masked"])
    x = torch.randn(n, dense.in_channels, *dense.input_size)
    t, y = torch.full((n,), 500), torch.arange(n) % 10
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(setting["turns"] + 1):
        for name, model in ways.items():
            start = time.perf_counter()
            model(x, t, y)
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    best = {name: min(found) for name, found in times.items()}  # others may use the machine
    macs = {name: count(model, x, t, y, repeats=0).macs for name, model in ways.items()}
    return {
        name: {
            "ratio": plain(best[name] / best["plain"]),
            "macs_ratio": plain(macs[name] / macs["plain"]),
        }
        for name in ways
    }


# ---------------------------------------------------------------------- the experiments


def _dense(**model: Any) -> dict[str, Any]:
    return {"kind": "DiT", "model": model, "balance": 0.0}


def _routed(asks: str, balance: float = 0.0, **model: Any) -> dict[str, Any]:
    return {"kind": "ExpertDiT", "model": {"asks": asks, **model}, "balance": balance}


def _tuned(kind: str, updates: bool = True, **model: Any) -> dict[str, Any]:
    return {"kind": kind, "model": model, "updates": updates}


EXPERIMENTS = (
    Experiment(
        name="experts-bands",
        about="Experts that share the steps by hand, against thin and wide models",
        settings={
            "thin": _dense(),
            "wide": _dense(mlp_ratio=2.5 * THIN),  # all channels of 1 + 4 halves, always
            "shared half": _dense(mlp_ratio=THIN / 2),  # and no experts
            "4 bands": _routed("band"),
            "8 bands": _routed("band", experts=8),
        },
        seeds=range(3),
        compute=race_cell,
    ),
)
