"""Quality against executed MACs: DDDiT at several budgets beside all that is simpler."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from dit_edu.dddit.baselines import at_macs
from dit_edu.dddit.depth import DepthDiT
from dit_edu.dddit.exits import ExitDiT, answers, exit_losses
from dit_edu.dddit.model import DDDiT
from dit_edu.dddit.router import BudgetedLosses
from dit_edu.dddit.training import switched_share, thinned
from dit_edu.dit import DiT
from dit_edu.lab.data import Labelled, digits
from dit_edu.lab.depth import LeftOut, replaced
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.depth import threshold_for
from dit_edu.lab.experiments.dynamic import MODEL
from dit_edu.lab.experiments.modes import (
    FINE,
    LEVELS,
    RAMP,
    SAMPLING,
    by_worth,
    path_at,
    recipe_of,
    static_macs,
)
from dit_edu.lab.experiments.training import heldout_batch, heldout_loss, quality
from dit_edu.lab.journey import floor_macs
from dit_edu.lab.profile import race
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.release import measure
from dit_edu.lab.train import train
from dit_edu.routing import record_routing

FIRST, MORE = 600, 300  # updates of the dense model that some start from, and of what follows
SHARES = (0.3, 0.5, 0.62, 0.8)  # of the dense model's MACs
ONE = 0.62  # the share at which all methods meet
TURNS, BATCH = 20, 64


@cache
def dense(seed: int) -> DiT:
    """The trained model that others start from, its units sorted by their worth."""
    *_, last = train(recipe_of({"kind": "DiT", "model": {}}, FIRST), seed=seed, device="cpu")
    return by_worth(last.ema, seed)


def fitted(setting: Mapping[str, Any], seed: int) -> tuple[DiT, Recipe]:
    """Train a setting: from the dense model, or from scratch for as many updates in all."""
    kind, share, begin = setting["kind"], setting["share"], setting["start"]
    model, steps, start = dict(setting["model"]), FIRST + MORE, None
    macs = share * static_macs()
    if kind == "DiT" and share < 1:
        model = at_macs({**MODEL, **model}, macs)
    elif kind == "DiceDiT":
        model["share"] = dice_share(DDDiT(table=((0, 1, 0),), **MODEL), share)
    if begin is not None:
        steps, start = MORE, dense(seed)
        if begin == "shortened":
            start = shortened(start, model["depth"])
        if begin in ("thinned", "shortened"):
            start = thinned(start, int(model["mlp_ratio"] * MODEL["hidden_size"]))
    recipe = recipe_of({**setting, "model": model}, steps)
    loss_fn = None
    if kind == "ExitDiT":
        loss_fn = exit_losses
    elif setting["steered"]:
        with torch.device("meta"):  # its sizes are all that is asked for
            sizes = recipe.build_model()
        loss_fn = BudgetedLosses(target_of(sizes, share, static_macs()), ramp=RAMP)
    *_, last = train(recipe, seed=seed, device="cpu", start=start, loss_fn=loss_fn)
    if kind == "ExitDiT":
        images, labels = digits("train")
        seen = images[:256], labels[:256]
        last.ema.threshold = exit_at(last.ema, recipe, share, static_macs(), seen)
    return last.ema, recipe


def shortened(model: DiT, depth: int) -> DiT:
    """The same model without the blocks that its loss on training images misses least."""
    recipe = recipe_of({"kind": "DiT", "model": {}}, 1)
    data, process = tuple(part[:256] for part in digits("train")), recipe.process.build()
    missed = []
    for k in range(len(model.blocks)):
        with replaced(model, k, LeftOut()):
            missed.append(float(heldout_loss(model, process, data=data).mean()))
    kept = sorted(sorted(range(len(missed)), key=missed.__getitem__)[-depth:])
    other = copy.deepcopy(model)
    other.blocks = nn.ModuleList(other.blocks[k] for k in kept)
    return other


def target_of(model: DDDiT | DepthDiT, share: float, full: int) -> float:
    """What share of what it switches a model may run, to cost a share of ``full`` MACs."""
    if isinstance(model, DDDiT):
        return switched_share(model, share)
    router = sum(p.numel() for p in model.router.parameters() if p.ndim == 2)
    return 1 - (full + router - share * full) / sum(model.block_macs())


def dice_share(model: DDDiT, share: float) -> float:
    """The same, of what is switched without the heads that always run."""
    macs = model.unit_macs()
    always = float(macs[: model.least_heads].sum() / macs.sum())
    return (switched_share(model, share) - always) / (1 - always)


@torch.no_grad()
def exit_at(model: ExitDiT, recipe: Recipe, share: float, full: int, seen: Labelled) -> float:
    """The threshold at which a pass costs a share of ``full`` MACs, on average over images."""
    process = recipe.process.build()
    x0, t, y, noise = heldout_batch(process, seen)
    said = torch.stack(answers(model, process.q_sample(x0, t, noise), t, y))  # (L, n, C, H, W)
    moved = said.diff(dim=0).square().mean((2, 3, 4)).T  # (n, L - 1)
    block, blocks = model.block_macs()[0], len(model.blocks)
    floor = full - blocks * block
    # k blocks, and a look behind all of them
    wanted = (share * full - floor) / (block + model.head_macs())
    return threshold_for(min(max(wanted, 1.0), blocks), moved)


# ---------------------------------------------------------------------- what is measured


@torch.no_grad()
def mean_macs(model: DiT, recipe: Recipe) -> float:
    """Executed MACs of a pass for one image, on average over the held-out batch."""
    process = recipe.process.build()
    x0, t, y, noise = heldout_batch(process)
    with record_routing(model) as trace:
        model(process.q_sample(x0, t, noise), t, y)
    ran = sum(d.executed().sum(1).double().mean() for d in trace.decisions)
    return float(floor_macs(model) + ran)


@torch.no_grad()
def seconds_ratio(model: DiT, other: DiT) -> float:
    """Least seconds of passes at the steps ``LEVELS``, over those of another model, in turns."""
    x = torch.randn(BATCH, model.in_channels, *model.input_size)
    y = torch.arange(BATCH) % model.num_classes
    ways = {
        f"{name} {level}": partial(net, x, torch.full((BATCH,), level), y)
        for level in LEVELS
        for name, net in (("it", model), ("other", other))
    }
    best = race(ways, TURNS)
    return sum(best[f"it {t}"] for t in LEVELS) / sum(best[f"other {t}"] for t in LEVELS)


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train as the setting says; measure on the held-out digits, count, and take the time."""
    model, recipe = fitted(setting, seed)
    return {
        **({"path": path_at(model)} if isinstance(model, DDDiT) else {}),
        **quality(model, recipe, SAMPLING),
        "macs_share": plain(mean_macs(model, recipe) / static_macs()),
        "seconds_share": plain(seconds_ratio(model, dense(seed))),
        "params": sum(p.numel() for p in model.parameters()),
    }


def steps_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Draw with the dense model, in some steps, with or without a cache: distance and MACs."""
    recipe = recipe_of({"kind": "CachedDiT", "model": {"every": setting["every"]}}, 1)
    model = recipe.build_model().eval()
    model.load_state_dict(dense(seed).state_dict())
    drawn = measure(model, recipe, Sampling(steps=setting["steps"]))
    full = -(-setting["steps"] // setting["every"])  # passes with all blocks
    idle = static_macs() - model.trunk_macs
    spent = full * static_macs() + (setting["steps"] - full) * idle
    return {
        "fd_ratio": plain(drawn["fd_ratio"]),
        "accuracy": plain(drawn["accuracy"]),
        "passes": plain(spent / static_macs()),
    }


# ---------------------------------------------------------------------- the experiments


def _way(
    kind: str, share: float, start: str | None = "dense", steered: bool = False, **model: Any
) -> dict[str, Any]:
    if steered and kind == "DDDiT":
        model = {"pace": 4.0, **model}
    way = {"kind": kind, "share": share, "start": start, "steered": steered, "model": model}
    return {**way, "lr": FINE} if start else way


_WIDTHS = dict(zip(SHARES, (28, 32, 36, 44), strict=True))
_DEPTHS = dict(zip(SHARES, (2, 3, 4, 5), strict=True))
FRONTIER: dict[str, dict[str, Any]] = {
    "dense": _way("DiT", 1.0),
    **{f"DDDiT {s}": _way("DDDiT", s, steered=True) for s in SHARES},
    **{f"DDDiT from scratch {s}": _way("DDDiT", s, start=None, steered=True) for s in SHARES},
    **{f"thin {s}": _way("DiT", s, start=None) for s in SHARES[1:]},
    **{f"thin from dense {s}": _way("DiT", s, start="thinned") for s in SHARES[1:]},
    **{f"shallow {s}": _way("DiT", s, start=None, depth=d) for s, d in _DEPTHS.items()},
    **{
        f"shallow from dense {s}": _way("DiT", s, start="shortened", depth=d)
        for s, d in _DEPTHS.items()
    },
    **{f"narrow {s}": _way("DiT", s, start=None, hidden_size=d) for s, d in _WIDTHS.items()},
    "one head 0.3": _way("DDDiT", 0.3, start=None, table=((0, 1, 1 / 3),)),
    "dice": _way("DiceDiT", ONE),
    "more at high noise": _way("DDDiT", ONE, table=((0, 1.5, 1.5), (333, 2, 3), (667, 3, 5))),
    "more at low noise": _way("DDDiT", ONE, table=((0, 3, 5), (333, 2, 3), (667, 1.5, 1.5))),
    "early exit": _way("ExitDiT", ONE),
    "layer skipping": _way("DepthDiT", ONE, steered=True, routed=True),
    "channels alone": _way("DDDiT", ONE, steered=True, least_heads=MODEL["num_heads"]),
}

EXPERIMENTS = (
    Experiment(
        name="frontier",
        about="Quality against executed MACs: DDDiT, static models, and simpler ways to decide",
        settings=FRONTIER,
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="frontier-steps",
        about="Fewer steps, or a cache between them: samples of the dense model",
        settings={
            f"{steps} steps" + f", a full pass in {every}" * (every > 1): {
                "steps": steps,
                "every": every,
            }
            for steps, every in ((4, 1), (6, 1), (10, 1), (20, 1), (20, 2), (20, 4), (40, 4))
        },
        seeds=range(3),
        compute=steps_cell,
    ),
)
