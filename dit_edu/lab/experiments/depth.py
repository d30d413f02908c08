"""Depth that can be chosen: three sizes of blocks, one model for many budgets, a router, exits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_edu.dddit.depth import DepthDiT, light_first
from dit_edu.dddit.exits import ExitDiT, answers, exit_losses
from dit_edu.dddit.router import BudgetedLosses
from dit_edu.dit import DiT
from dit_edu.interpolant import Interpolant
from dit_edu.lab.data import Labelled, digits, folds
from dit_edu.lab.depth import LeftOut, replaced
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain, to_uint8
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.dynamic import MODEL, RECIPE
from dit_edu.lab.experiments.training import heldout_batch, heldout_loss
from dit_edu.lab.profile import count, race
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.release import measure
from dit_edu.lab.train import train
from dit_edu.routing import record_routing

DEPTH = MODEL["depth"]
BUDGETS = [k / (DEPTH - 1) for k in range(DEPTH)]  # one block more for each
SAMPLING = Sampling(steps=10)
MEANS = (3, 4, 5)  # blocks on average, at which early exit is looked at
SHOWN = torch.arange(10)  # the labels of the samples that are kept


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting: its own model on top of what all share."""
    return Recipe(
        name="depth",
        kind=setting["kind"],
        model={**MODEL, **setting["model"]},
        **(RECIPE | {"steps": 400}),
    )


def fitted(setting: Mapping[str, Any], seed: int) -> tuple[DiT, Recipe]:
    """The average of a training run, and its recipe."""
    recipe = recipe_of(setting)
    loss_fn = None
    if setting.get("exits"):
        loss_fn = exit_losses
    elif "target" in setting:
        loss_fn = BudgetedLosses(setting["target"])
    *_, last = train(recipe, seed=seed, device="cpu", loss_fn=loss_fn)
    return last.ema, recipe


def worth_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What a model loses without each of its blocks.

    It is trained on one half of the training images and judged on the other.
    """
    recipe, data = recipe_of(setting), digits("train")
    fit, judge = (tuple(part[rows] for part in data) for rows in folds(data[1])[0])
    *_, last = train(recipe, seed=seed, device="cpu", data=fit)
    model, process = last.ema, recipe.process.build()

    def loss() -> float:
        return float(heldout_loss(model, process, data=judge).mean())

    found = {"loss": loss(), "left_out": []}
    for k in range(DEPTH):
        with replaced(model, k, LeftOut()):
            found["left_out"].append(loss())
    return {name: plain(value, 6) for name, value in found.items()}


# ---------------------------------------------------------------------- what is measured


def executed(model: nn.Module) -> float:
    """Multiply-adds of a pass for one image, on average over the held-out batch of digits."""
    process = Recipe(name="depth").process.build()
    x0, t, y, noise = (part[:1024] for part in heldout_batch(process))
    return count(model, process.q_sample(x0, t, noise), t, y, repeats=0).macs / len(t)


def judged(model: nn.Module, recipe: Recipe, samples: bool) -> dict[str, Any]:
    """MACs, held-out loss by range of t and, if asked for, what samples are like."""
    loss = heldout_loss(model, recipe.process.build())
    found = {
        "macs": plain(executed(model), 8),
        "loss": plain(loss.mean(), 6),
        "loss_by_bin": plain(loss.tolist(), 6),
    }
    if samples:
        drawn = measure(model, recipe, SAMPLING)
        found |= {name: plain(drawn[name]) for name in ("accuracy", "fd_ratio")}
    return found


def seen(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Ten samples of seed 0, and which share of them ran each block at each step of the sampler."""
    with record_routing(model) as trace:
        images = draw(model, recipe.process.build(), SHOWN, SAMPLING, seed=0)
    runs = [decision.chosen.double().mean(0).tolist() for decision in trace.decisions]
    return {
        "samples": to_uint8(images.squeeze(1), 64).tolist(),  # (10, H, W)
        "t": [int(decision.t[0]) for decision in trace.decisions],
        "runs": plain(runs, 3),  # (steps, L)
    }


def at_budgets(model: DepthDiT, recipe: Recipe, samples: bool) -> list[dict[str, Any]]:
    """What is measured at each of ``BUDGETS``."""
    found = []
    for budget in BUDGETS:
        model.depth_budget = budget
        found.append({"budget": budget, **judged(model, recipe, samples)})
        if samples:
            found[-1] |= seen(model, recipe)
    model.depth_budget = None
    return found


def moves(model: DepthDiT, process: Interpolant, data: Labelled) -> Tensor:
    """How far each block moves the answer, in mean square, for noisy images: (n, L - floor)."""
    x0, t, y, noise = heldout_batch(process, data)
    with torch.no_grad():
        said = torch.stack(answers(model, process.q_sample(x0, t, noise), t, y))
    return said.diff(dim=0).square().mean((2, 3, 4)).T


def threshold_for(mean: float, moved: Tensor, floor: int = 1) -> float:
    """The threshold at which images leave after ``mean`` blocks on average.

    Args:
        mean: wanted.
        moved: how far each block moved the answer, (n, L - floor).
        floor: the blocks before the first answer, itself included.
    """
    low, high = 0.0, float(moved.max()) * 2
    for _ in range(50):
        middle = (low + high) / 2
        more = (moved[:, :-1] >= middle).cumprod(1).sum(1)  # (n,): blocks after the second answer
        if floor + 1 + float(more.double().mean()) > mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def best_table(loss: np.ndarray, mean: float) -> tuple[int, ...]:
    """The number of blocks for each range of t that makes the mean loss least.

    Args:
        loss: by number of blocks, from 1, and by range of t: (L, bins).
        mean: number of blocks, on average over the ranges; a multiple of 1 / bins.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}  # by blocks spent so far
    for column in loss.T:  # (L,)
        ways = [
            (spent + k, (total + value, (*table, k)))
            for spent, (total, table) in best.items()
            for k, value in enumerate(column, 1)
        ]
        best = {spent: min(way for at, way in ways if at == spent) for spent, _ in ways}
    return best[round(mean * loss.shape[1])][1]


def at_exits(model: ExitDiT, recipe: Recipe) -> list[dict[str, Any]]:
    """What is measured where images leave by themselves; thresholds come from training images."""
    process, found = recipe.process.build(), []
    moved = moves(model, process, digits("train"))
    for mean in MEANS:
        model.threshold = threshold_for(mean, moved)
        x0, t, y, noise = heldout_batch(process)
        with torch.no_grad(), record_routing(model) as trace:
            model(process.q_sample(x0, t, noise), t, y)
        ran = trace.decisions[0].chosen.double().sum(1)  # (n,)
        by_bin = [float(ran[t * 10 // 1000 == b].mean()) for b in range(10)]
        spread = [float(ran[t * 10 // 1000 == b].std()) for b in range(10)]
        found.append(
            {
                "mean": mean,
                "threshold": plain(model.threshold),
                "depth_by_bin": plain(by_bin),
                "depth_sd_by_bin": plain(spread),
                **judged(model, recipe, samples=True),
                **seen(model, recipe),
            }
        )
    model.threshold = None
    return found


def budget_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure on the held-out digits: once, or at every budget, and with early exit."""
    model, recipe = fitted(setting, seed)
    samples = setting.get("samples", False)
    if not isinstance(model, DepthDiT) or model.router is not None:
        found = judged(model, recipe, samples)
        if isinstance(model, DepthDiT):
            found |= seen(model, recipe)
        return found
    found = {"budgets": at_budgets(model, recipe, samples)}
    if isinstance(model, ExitDiT):
        process, train_loss = recipe.process.build(), []
        for budget in BUDGETS:  # by range of t, so that a table over t can be made
            model.depth_budget = budget
            train_loss.append(plain(heldout_loss(model, process, digits("train")).tolist(), 6))
        model.depth_budget = None
        found |= {"train_loss_by_bin": train_loss, "exits": at_exits(model, recipe)}
    return found


def sizes_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train a model of blocks of several sizes, and measure it on the held-out digits."""
    return judged(*fitted(setting, seed), samples=True)


# ---------------------------------------------------------------------- time


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Least seconds of a forward pass over those of a plain DiT, in turns.

    All models have the weights of the plain one, drawn at random. The seed numbers the repetitions.
    """
    torch.manual_seed(seed)
    sizes, n = {**MODEL, **setting["model"]}, setting["batch"]
    dense = DiT(**sizes).eval()
    for p in dense.parameters():
        if p.requires_grad:
            p.add_(0.1 * torch.randn_like(p))
    ways: dict[str, DiT] = {
        "plain": dense,
        "all": DepthDiT(**sizes),
        "half": DepthDiT(**sizes),
        "routed": DepthDiT(routed=True, bias=0.0, **sizes),
        "nobody leaves": ExitDiT(threshold=0.0, **sizes),
        "exit": ExitDiT(**sizes),
    }
    for model in ways.values():
        model.eval().load_state_dict(dense.state_dict(), strict=False)
    ways["half"].depth_budget = 2 / (DEPTH - 1)  # three of six blocks
    nn.init.normal_(ways["routed"].router.mlp[-1].weight)  # half of all switches are on
    x = torch.randn(n, dense.in_channels, *dense.input_size)
    t = torch.full((n,), 500)  # as in sampling
    y = torch.arange(n) % 10
    said = torch.stack(answers(ways["exit"], x, t, y))
    moved = said.diff(dim=0).square().mean((2, 3, 4)).T  # (n, L - 1)
    ways["exit"].threshold = threshold_for(3, moved)
    best = race({name: partial(model, x, t, y) for name, model in ways.items()}, setting["turns"])
    macs = {name: count(model, x, t, y, repeats=0).macs for name, model in ways.items()}
    return {
        name.replace(" ", "_"): {
            "ratio": plain(best[name] / best["plain"]),
            "macs_ratio": plain(macs[name] / macs["plain"]),
        }
        for name in ways
    }


# ---------------------------------------------------------------------- the experiments


def _one(kind: str = "DepthDiT", exits: bool = False, samples: bool = False, **model: Any) -> Any:
    return {"kind": kind, "model": model, "exits": exits, "samples": samples}


def _sized(**model: Any) -> dict[str, Any]:
    kind = "DepthDiT" if "sizes" in model else "DiT"
    return {"kind": kind, "model": {"depth": 8, **model}}


EXPERIMENTS = (
    Experiment(
        name="depth-sizes",
        about="Eight blocks: light ones first, full ones first, and all alike, at equal MACs",
        settings={
            "all alike": _sized(mlp_ratio=2.0),
            "light first": _sized(sizes=light_first(8)),
            "full first": _sized(sizes=light_first(8)[::-1]),
        },
        seeds=range(3),
        compute=sizes_cell,
    ),
    Experiment(
        name="depth-apart",
        about="Models of one to six blocks, each trained by itself",
        settings={
            f"{k} block{'s' * (k > 1)}": _one("DiT", samples=True, depth=k)
            for k in range(1, DEPTH + 1)
        },
        seeds=range(3),
        compute=budget_cell,
    ),
    Experiment(
        name="depth-budget",
        about="One model for every budget, trained in several ways",
        settings={
            "never cut": _one(),
            "drawn for the batch": _one(drawn="batch"),
            "drawn for each image": _one(drawn="image"),
            "all answers": _one("ExitDiT", exits=True, samples=True),
        },
        seeds=range(3),
        compute=budget_cell,
    ),
    Experiment(
        name="depth-worth",
        about="What a trained model of six blocks loses without each of them",
        settings={"6 blocks": _one("DiT")},
        seeds=range(3),
        compute=worth_cell,
    ),
    Experiment(
        name="depth-router",
        about="A router that switches blocks, asked for three or four of six on average",
        settings={
            f"{k} of {DEPTH} blocks": {**_one(routed=True, samples=True), "target": k / DEPTH}
            for k in (3, 4)
        },
        seeds=range(3),
        compute=budget_cell,
    ),
    Experiment(
        name="depth-cost",
        about="Time of a forward pass at half the depth, over that of a plain DiT",
        settings={
            f"{tokens} tokens, batch {batch}": {"model": model, "batch": batch, "turns": turns}
            for tokens, model, turns in (
                (16, {}, 40),
                (256, {"input_size": 32, "hidden_size": 128}, 5),
            )
            for batch in (1, 16, 64 if tokens == 16 else 32)
        },
        seeds=range(3),
        compute=cost_cell,
    ),
)
