"""DDDiT as a whole: how it is trained, what its three modes are worth, auxiliary tasks, time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.dddit.auxiliary import (
    TASKS,
    AuxiliaryDiT,
    AuxiliaryLosses,
    explained,
    explained_by_step,
)
from dit_edu.dddit.complexity import centroid, power
from dit_edu.dddit.model import MODES, DDDiT
from dit_edu.dddit.router import BudgetedLosses
from dit_edu.dddit.training import (
    ModeLosses,
    is_expert,
    sort_units,
    switched_share,
    thinned,
    unit_worth,
)
from dit_edu.dit import DiT
from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.dynamic import MODEL, RECIPE
from dit_edu.lab.experiments.router import THIN
from dit_edu.lab.experiments.training import heldout_batch, heldout_loss, quality
from dit_edu.lab.profile import count, race
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import LossFn, train
from dit_edu.routing import record_routing
from dit_edu.scaling import Architecture

FIRST, MORE = 300, 150  # updates of the dense model that some start from, and of what follows
ALONE = 200  # updates of a model with auxiliary heads
FINE = RECIPE["lr"] / 4  # the learning rate of what starts from a trained model
RAMP = 75  # updates in which the budget is lowered
LEVELS = range(50, 1000, 100)  # the steps at which a path is shown
SAMPLING = Sampling(steps=10)


def recipe_of(setting: Mapping[str, Any], steps: int) -> Recipe:
    """The recipe of one stage of a setting."""
    fields = RECIPE | {"steps": steps, "warmup": min(RECIPE["warmup"], steps // 4)}
    fields["lr"] = setting.get("lr", RECIPE["lr"])
    model = {**MODEL, **setting["model"]}
    return Recipe(name="modes", kind=setting["kind"], model=model, **fields)


def static_macs(**model: Any) -> int:
    """Multiply-adds of a pass of a model that decides nothing."""
    return sum(Architecture.of({**MODEL, **model}).macs().values())


#: The share of a full pass that the thin model costs, and every dynamic one is steered to.
SHARE = static_macs(mlp_ratio=THIN) / static_macs()


@cache
def dense(seed: int) -> DiT:
    """The trained model that others start from."""
    recipe = recipe_of({"kind": "DiT", "model": {}}, FIRST)
    *_, last = train(recipe, seed=seed, device="cpu")
    return last.ema


@torch.no_grad()
def by_worth(model: DiT, seed: int) -> DiT:
    """A copy whose heads and channels are sorted by their worth on training images."""
    process, other = (
        recipe_of({"kind": "DiT", "model": {}}, 1).process.build(),
        copy.deepcopy(model),
    )
    x0, t, y, noise = heldout_batch(process, tuple(part[:128] for part in digits("train")))
    sort_units(other, unit_worth(other, process.q_sample(x0, t, noise), t, y))
    return other


def begun(setting: Mapping[str, Any], seed: int) -> DiT | None:
    """What a setting starts from, by name."""
    if (name := setting["start"]) is None:
        return None
    if name == "unsorted":
        return dense(seed)
    model = by_worth(dense(seed), seed)
    return thinned(model, int(THIN * MODEL["hidden_size"])) if name == "thinned" else model


def loss_of(setting: Mapping[str, Any], part: str, recipe: Recipe) -> LossFn | None:
    """The loss of a stage: the budget counts where the router is trained."""
    if setting["kind"] == "DiT" or part == "experts":
        return None
    with torch.device("meta"):  # its sizes are all that is asked for
        model = recipe.build_model()
    target = switched_share(model, SHARE)
    steered = BudgetedLosses(target, ramp=min(RAMP, recipe.steps // 2))
    return ModeLosses(steered) if setting["modes"] else steered


def fitted(setting: Mapping[str, Any], seed: int) -> tuple[DiT, Recipe]:
    """Train a setting, stage by stage: the average of the last, and its recipe."""
    model = begun(setting, seed)
    for part, steps in setting["stages"]:
        recipe = recipe_of(setting, steps)
        *_, last = train(
            recipe,
            seed=seed,
            device="cpu",
            start=model,
            loss_fn=loss_of(setting, part, recipe),
            trainable=is_expert if part == "experts" else None,
        )
        model = last.ema
    return model, recipe


# ---------------------------------------------------------------------- what is measured


@torch.no_grad()
def ran(model: DDDiT, recipe: Recipe) -> dict[str, Any]:
    """MACs of a pass on average over the held-out batch, and the paths that were taken."""
    process = recipe.process.build()
    x0, t, y, noise = heldout_batch(process)
    with record_routing(model) as trace:
        model(process.q_sample(x0, t, noise), t, y)
    chosen = torch.cat([d.chosen for d in trace.decisions], 1)  # (n, L (h + E))
    soft = torch.cat([d.soft for d in trace.decisions], 1)
    share = chosen.float().mean(0)
    return {
        "macs": plain(model.macs(chosen).double().mean(), 8),
        "paths": len(chosen.unique(dim=0)),
        "by_step": int(((share > 0) & (share < 1)).sum()),
        "sharp": plain((torch.minimum(soft, 1 - soft) < 0.05).float().mean()),
    }


@torch.no_grad()
def path_at(model: DDDiT) -> list[list[list[int]]]:
    """Which units of each block run at the steps ``LEVELS``, label 0: (steps, L, h + E)."""
    t = torch.tensor(LEVELS)
    c = model.t_embedder(t)  # (steps, D)
    if model.asks == "image":
        c = c + model.y_embedder(torch.zeros_like(t))
    chosen = model.choose(t, c).chosen.unflatten(1, (len(model.blocks), -1))
    return chosen.int().tolist()


def judged(model: DiT, recipe: Recipe) -> dict[str, Any]:
    """Loss, samples, MACs; of a DDDiT in its present mode, and its path."""
    found = quality(model, recipe, SAMPLING)
    if isinstance(model, DDDiT):
        return {**found, **ran(model, recipe), "path": path_at(model)}
    return {**found, "macs": static_macs(**recipe.model)}


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train as the setting says, and measure on the held-out digits.

    Where ``all`` modes are asked for, the other two come by their names.
    """
    model, recipe = fitted(setting, seed)
    found = judged(model, recipe)
    for mode in ("light", "full") if setting["all"] else ():
        model.mode = mode
        found[mode] = judged(model, recipe)
    return found


# ---------------------------------------------------------------------- auxiliary tasks


def complexity(images: Tensor) -> Tensor:
    """The mean frequency of images (B, C, H, W): (B,)."""
    return centroid(power(images))


@cache
def scales() -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean and standard deviation of both targets: on training images, and about as errors are."""
    z = complexity(digits("train")[0])
    return (float(z.mean()), float(z.std())), (-1.5, 0.5)


@torch.no_grad()
def told(model: AuxiliaryDiT, losses: AuxiliaryLosses, recipe: Recipe) -> dict[str, Any]:
    """R² of both heads on the held-out batch, what t could explain, and the same for x_t."""
    process = recipe.process.build()
    x0, t, y, noise = heldout_batch(process)
    mse = process.losses(model, x0, t, y, noise=noise)["mse"]  # (n,)
    targets = losses.targets(x0, mse)  # (n, 2)
    noisy = complexity(process.q_sample(x0, t, noise))  # what the notes ask for
    r2 = explained(model.said, targets)
    return {
        **{f"r2_{task}": plain(r2[i]) for i, task in enumerate(TASKS)},
        **{
            f"ceiling_{task}": plain(explained_by_step(targets[:, i], t))
            for i, task in enumerate(TASKS)
        },
        "ceiling_noisy": plain(explained_by_step(noisy, t)),
    }


def auxiliary_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train with two heads beside the denoiser, and measure both."""
    recipe = recipe_of({"kind": "AuxiliaryDiT", "model": {"seen": setting["seen"]}}, ALONE)
    losses = AuxiliaryLosses(complexity, scales(), setting["weight"])
    *_, last = train(recipe, seed=seed, device="cpu", loss_fn=losses)
    loss = heldout_loss(last.ema, recipe.process.build()).mean()
    return {"loss": plain(loss, 6), **told(last.ema, losses, recipe)}


# ---------------------------------------------------------------------- time


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Least seconds of a forward pass over those of the dense model, in turns.

    The weights are random, and one step is shared. The seed numbers the repetitions.
    """
    torch.manual_seed(seed)
    sizes, n = {**MODEL, **setting["model"]}, setting["batch"]
    plain_one = DiT(**sizes).eval()
    tables = {"table": TABLE, "light": TABLE, "full": TABLE, "router": None}
    ways: dict[str, nn.Module] = {"dense": plain_one}
    for name, table in tables.items():
        ways[name] = DDDiT(table=table, **sizes).eval()
        ways[name].load_state_dict(plain_one.state_dict(), strict=False)
        ways[name].mode = name if name in MODES else "dynamic"
    nn.init.normal_(ways["router"].router.mlp[-1].weight, std=20.0)  # half of all, anywhere
    ways["router"].router.mlp[-1].bias.data.zero_()
    ways["thin"] = DiT(**{**sizes, "mlp_ratio": THIN}).eval()
    x = torch.randn(n, plain_one.in_channels, *plain_one.input_size)
    t, y = torch.full((n,), 500), torch.arange(n) % 10
    best = race({name: partial(model, x, t, y) for name, model in ways.items()}, setting["turns"])
    macs = {name: count(model, x, t, y, repeats=0).macs for name, model in ways.items()}
    return {
        name: {
            "ratio": plain(best[name] / best["dense"]),
            "macs_ratio": plain(macs[name] / macs["dense"]),
        }
        for name in ways
    }


#: Half of the heads and of the experts, at every step.
TABLE = ((0, 2, 3),)


# ---------------------------------------------------------------------- the experiments


def way(
    kind: str,
    start: str | None = None,
    stages: list[list[Any]] | None = None,
    modes: bool = False,
    measure_all: bool = False,
    **model: Any,
) -> dict[str, Any]:
    """A setting: a model, its start and stages; are all its modes trained, and are all measured?"""
    setting = {
        "kind": kind,
        "model": model,
        "start": start,
        "stages": stages or [["all", MORE if start else FIRST + MORE]],
        "modes": modes,
        "all": measure_all,
    }
    return {**setting, "lr": FINE} if start else setting


EXPERIMENTS = (
    Experiment(
        name="modes",
        about="DDDiT from a trained model, against static models of equal MACs and updates",
        settings={
            "thin": way("DiT", mlp_ratio=THIN),
            "thin, from dense": way("DiT", "thinned", mlp_ratio=THIN),
            "from dense": way("DDDiT", "sorted", measure_all=True, pace=4.0),
        },
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="modes-stages",
        about="The notes' two stages, and no dense model to start from",
        settings={
            "two stages": way(
                "DDDiT", "sorted", stages=[["experts", MORE // 2], ["all", MORE // 2]], pace=4.0
            ),
            "from scratch": way("DDDiT", pace=4.0),
        },
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="modes-ways",
        about="The dense model trained on, and a DDDiT whose modes take turns",
        settings={
            "dense": way("DiT", "sorted"),
            "modes in turns": way("DDDiT", "sorted", modes=True, measure_all=True, pace=8.0),
        },
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="auxiliary",
        about="Two auxiliary heads beside the denoiser, by what they see and weigh",
        settings={
            "none": {"seen": "tokens", "weight": 0.0},
            "from the step": {"seen": "step", "weight": 0.1},
            "from the tokens": {"seen": "tokens", "weight": 0.1},
        },
        seeds=range(3),
        compute=auxiliary_cell,
    ),
    Experiment(
        name="modes-cost",
        about="Time of a forward pass in each mode, over that of the dense model",
        settings={
            f"{tokens} tokens, batch {batch}": {"model": model, "batch": batch, "turns": turns}
            for tokens, model, turns in (
                (16, {}, 40),
                (64, {"input_size": 16, "hidden_size": 64}, 15),
                (256, {"input_size": 32, "hidden_size": 128}, 4),
            )
            for batch in ((1, 16, 64) if tokens < 256 else (1, 16))
        },
        seeds=range(3),
        compute=cost_cell,
    ),
)
