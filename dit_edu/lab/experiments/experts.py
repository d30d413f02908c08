"""Experts: more parameters at equal MACs, who may ask, and who is never asked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_edu.dddit.diagnostics import choices, load
from dit_edu.dddit.experts import ASKERS, ExpertDiT
from dit_edu.dit import DiT
from dit_edu.interpolant import Interpolant
from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.depth import executed
from dit_edu.lab.experiments.dynamic import MODEL, RECIPE
from dit_edu.lab.experiments.router import LEVELS, THIN
from dit_edu.lab.experiments.training import heldout_batch, quality
from dit_edu.lab.profile import race
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import train
from dit_edu.routing import balanced_losses, record_routing

UPDATES = 400
BALANCE = 0.01  # the weight of the balance loss
SAMPLING = Sampling(steps=10)


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting: its own model on top of what all share."""
    return Recipe(
        name="experts",
        kind=setting["kind"],
        model={**MODEL, "mlp_ratio": THIN, **setting["model"]},
        **(RECIPE | {"steps": UPDATES}),
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


def opinionated(asks: str, input_size: int = 8) -> ExpertDiT:
    """A fresh model whose routers send their items to all experts."""
    model = ExpertDiT(**{**MODEL, "input_size": input_size}, mlp_ratio=THIN, asks=asks).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # wake what starts at zero
            parameter += 0.1 * torch.randn_like(parameter)
        for block in model.blocks:
            if asks != "band":
                block.mlp.router.mlp[-1].weight.normal_(std=5.0)
    return model


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Seconds of a call of the thin model and of those with experts, in turns.

    A batch has one t, as in sampling, or each image its own, as in training.
    """
    torch.manual_seed(seed)
    size, n = setting["input_size"], setting["batch"]
    models = {"thin": DiT(**{**MODEL, "input_size": size}, mlp_ratio=THIN).eval()}
    models |= {asks: opinionated(asks, size) for asks in ASKERS}
    x, t, y = torch.randn(n, 1, size, size), torch.randint(1000, (n,)), torch.arange(n) % 10
    t = t[:1].expand(n) if setting["one_t"] else t
    best = race({name: partial(m, x, t, y) for name, m in models.items()}, setting["turns"])
    return {f"seconds, {name}": plain(seconds) for name, seconds in best.items()}


# ---------------------------------------------------------------------- the experiments


def _dense(**model: Any) -> dict[str, Any]:
    return {"kind": "DiT", "model": model, "balance": 0.0}


def _routed(asks: str, balance: float = 0.0, **model: Any) -> dict[str, Any]:
    return {"kind": "ExpertDiT", "model": {"asks": asks, **model}, "balance": balance}


EXPERIMENTS = (
    Experiment(
        name="experts-cost",
        about="Seconds of a call with experts and without, in turns, by size of image and batch",
        settings={
            f"{side}x{side}, batch {n}, {'one t' if one_t else 'many t'}": {
                "input_size": side,
                "batch": n,
                "one_t": one_t,
                "turns": 20,
            }
            for side, n, one_t in (
                (8, 1, True),
                (8, 16, True),
                (8, 16, False),
                (16, 16, True),
                (16, 16, False),
            )
        },
        seeds=range(3),
        compute=cost_cell,
    ),
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
    Experiment(
        name="experts",
        about="Four experts of which one runs, by who asks",
        settings={
            "step": _routed("step"),
            "image": _routed("image"),
            "token": _routed("token"),
        },
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="experts-choice",
        about="Experts that images ask for: without noise, with unbiased gates, and balanced",
        settings={
            "image, no noise": _routed("image", noise=0.0),
            "image, unbiased": _routed("image", unbiased=True),
            "image, balance": _routed("image", BALANCE),
        },
        seeds=range(3),
        compute=race_cell,
    ),
)
