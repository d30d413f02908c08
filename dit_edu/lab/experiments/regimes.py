"""Where deciding pays: what a policy over t could win at best, and a race of one that wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_edu.dddit.policies import best_within, coin, policy
from dit_edu.lab import zoo
from dit_edu.lab.data import folds
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment, read
from dit_edu.lab.experiments.multiscale import MODEL, RECIPE, fitted, half, judged
from dit_edu.lab.profile import count, race
from dit_edu.lab.recipes import Recipe

STEPS = 1000  # updates
EDGE = 100  # where the bands of the race meet
FINE: dict[str, Any] = {"patch_size": 2}
LEVELS = torch.arange(5, 1000, 10)  # steps over which executed MACs are averaged

# ---------------------------------------------------------------------- what deciding could win

#: Tables of other chapters in which only one thing varies: the experiment, and its settings.
TABLES: dict[str, tuple[str, list[str]]] = {
    "depth, digits": ("depth-apart", [f"{k} block{'s' * (k > 1)}" for k in range(1, 7)]),
    "patch size, digits": ("patch-size", ["p = 4", "p = 2", "p = 1"]),
    "depth, shapes": ("multiscale", ["p = 2, 2 blocks", "p = 2"]),
    "patch size, shapes": ("multiscale", ["p = 4", "p = 2"]),
    "two scales, shapes": ("multiscale", ["3/4 coarse", "1/2 coarse", "1/4 coarse", "p = 2"]),
}


def option_table(name: str) -> tuple[np.ndarray, list[int]]:
    """A table of ``TABLES``: losses (seeds, options, bins), and MACs of each option."""
    experiment, settings = TABLES[name]
    rows = read(experiment)
    found = [[r["metrics"] for r in rows if r["setting"] == s] for s in settings]
    loss = np.array([[m["loss_by_bin"] for m in option] for option in found])  # (K, seeds, bins)
    if experiment == "patch-size":  # its MACs stand in a table of their own
        costs = {r["setting"]: r["metrics"]["macs"] for r in read("patch-cost")}
        return loss.swapaxes(0, 1), [costs[s] for s in settings]
    return loss.swapaxes(0, 1), [int(option[0]["macs"]) for option in found]


def oracle_gains(loss: np.ndarray, macs: Sequence[float], share: float) -> np.ndarray:
    """What knowing t saves, over a coin that does not: relative, for each seed.

    The policy is chosen by the other seeds' losses, so that it does not read its own luck.

    Args:
        loss: (seeds, options, bins).
        macs: of each option.
        share: of the way from the cheapest option to the dearest, in [0, 1]: the budget.
    """
    budget = min(macs) + share * (max(macs) - min(macs))
    gains = []
    for seed, own in enumerate(loss):
        others = np.delete(loss, seed, axis=0).mean(0)  # (options, bins)
        told = policy(own, macs, best_within(others, macs, budget).options)
        gains.append(1 - told.loss / coin(own, macs, told.macs))
    return np.array(gains)


def worth_of_knowing(saved: Tensor, judged: Tensor) -> dict[str, Tensor]:
    """What half of the budget wins over a coin for who knows the step, the image, or both.

    Args:
        saved: what the dear option saves, (images, bins), as it is known to who chooses.
        judged: the same, measured anew.
    """
    known = {
        "t": saved.mean(0, keepdim=True).expand_as(saved),
        "image": saved.mean(1, keepdim=True).expand_as(saved),
        "both": saved,
    }
    gains = {}
    for name, worth in known.items():
        chosen = worth.flatten().argsort(descending=True, stable=True)[: saved.numel() // 2]
        gains[name] = 0.5 * (judged.flatten()[chosen].mean() - judged.mean())  # eq-regimes-coin
    return gains


@torch.no_grad()
def knowing_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What it is worth to know the step, the image, or both, for two models of the zoo.

    Half of all questions may go to the dear model. Which, is chosen by the mean loss over one half
    of the noise and judged on the other. The seed is that of images and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = half("heldout")
    rows = torch.randperm(len(images), generator=generator)[: setting["images"]]
    draws, bins = setting["draws"], 10
    x0 = images[rows].repeat_interleave(bins * draws, 0)
    y = labels[rows].repeat_interleave(bins * draws)
    bin_of = torch.arange(bins).repeat_interleave(draws).repeat(len(rows))
    t = ((bin_of + torch.rand(len(y), generator=generator)) * 1000 / bins).long()
    noise = torch.randn(x0.shape, generator=generator)
    found = []
    for name in setting["models"]:
        model, card = zoo.load(name)
        process = Recipe.from_dict(card["recipe"]).process.build()
        loss = [
            process.losses(model, *part[:3], noise=part[3])["loss"]
            for part in zip(*(p.split(500) for p in (x0, t, y, noise)), strict=True)
        ]
        found.append(torch.cat(loss).view(len(rows), bins, 2, -1).mean(-1))
    cheap, dear = (loss.double().unbind(-1) for loss in found)  # of each half of the noise
    blind = (cheap[1] + dear[1]).mean() / 2
    won = worth_of_knowing(cheap[0] - dear[0], cheap[1] - dear[1])
    return {name: plain(float(gain / blind)) for name, gain in won.items()}


# ---------------------------------------------------------------------- the race


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting: its own model on top of what all share."""
    recipe = {**RECIPE, "steps": STEPS, "lr": setting.get("lr", RECIPE["lr"])}
    model = {**MODEL, **setting["model"]}
    if setting["kind"] == "ByNoise":
        del model["patch_size"]  # each band has its own
    return Recipe(name="regimes", kind=setting["kind"], model=model, **recipe)


def mean_macs(model: nn.Module) -> float:
    """Multiply-adds that are executed for one image, on average over t."""
    x = torch.zeros(len(LEVELS), model.in_channels, *model.input_size)
    return count(model, x, LEVELS, torch.zeros_like(LEVELS), repeats=0).macs / len(LEVELS)


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure on images that were not seen: loss, samples, executed MACs.

    Where settings are still chosen, both are folds of the training half.
    """
    recipe, seen, unseen = recipe_of(setting), half("train"), half("heldout")
    if setting.get("fold"):
        seen, unseen = (tuple(part[rows] for part in seen) for rows in folds(seen[1])[0])
    model = fitted(recipe, seed, seen)
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": plain(mean_macs(model), 8),
        **judged(model, recipe, seed, seen, unseen),
    }


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Least seconds of ten steps of a sampler, the models in turns; the seed numbers the race."""
    torch.manual_seed(seed)
    models = {name: recipe_of(RACE[name]).build_model().eval() for name in setting["models"]}
    x, y = torch.randn(setting["batch"], 3, 16, 16), torch.zeros(setting["batch"], dtype=torch.long)

    def walk(model: nn.Module) -> None:
        for t in range(50, 1000, 100):
            model(x, torch.full_like(y, t), y)

    best = race({name: partial(walk, model) for name, model in models.items()}, setting["turns"])
    return {name: plain(seconds, 5) for name, seconds in best.items()}


# ---------------------------------------------------------------------- the experiments


def _one(kind: str = "DiT", **model: Any) -> dict[str, Any]:
    return {"kind": kind, "model": model}


def _scales(width: int) -> dict[str, Any]:
    """A model with three of four blocks on coarse tokens."""
    return {
        "kind": "MultiscaleDiT",
        "hidden_size": width,
        "coarse_fraction": 0.75,
        "skip": "concat",
    }


def _bands(edge: int, *bands: Mapping[str, Any]) -> dict[str, Any]:
    return _one("ByNoise", bands=[FINE | band for band in bands], edges=[edge])


#: Models of about the same executed MACs: four that do the same at every t, and policies.
RACE: dict[str, dict[str, Any]] = {
    "coarse": _one(patch_size=4, hidden_size=72),
    "narrow": _one(hidden_size=32),
    "shallow and thin": _one(depth=2, mlp_ratio=1.0),
    "two scales": _one(**_scales(48)),
    "two scales, twice": _bands(EDGE, _scales(48), _scales(48)),
    "fine at low noise": _bands(EDGE, {}, _scales(40)),
    "fine at high noise": _bands(1000 - EDGE, _scales(40), {}),
}
TRIED = ("two scales", "fine at low noise")

EXPERIMENTS = (
    Experiment(
        name="regimes-knowing",
        about="What knowing the step, the image, or both is worth, for two models of the zoo",
        settings={
            "two scales or fine": {
                "models": ["shapes-hidit", "small-shapes-dit"],
                "images": 40,
                "draws": 16,
            }
        },
        seeds=range(3),
        compute=knowing_cell,
    ),
    Experiment(
        name="regimes-folds",
        about="Two learning rates for two of the models, within the training half",
        settings={
            f"{name}, lr {lr}": {**RACE[name], "lr": lr, "fold": True}
            for name in TRIED
            for lr in (0.008, 0.016)
        },
        seeds=(0,),
        compute=race_cell,
    ),
    Experiment(
        name="regimes",
        about="A policy over t against the best of those that do the same at all t, at equal MACs",
        settings={name: RACE[name] for name in TRIED},
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="regimes-others",
        about="Others of equal MACs: three that do the same at all t, and two policies",
        settings={name: model for name, model in RACE.items() if name not in TRIED},
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="regimes-cost",
        about="Seconds of ten steps of a sampler, for models of the same executed MACs, in turns",
        settings={
            f"batch {batch}": {"models": list(RACE), "batch": batch, "turns": turns}
            for batch, turns in ((1, 6), (16, 3), (64, 2))
        },
        seeds=range(3),
        compute=cost_cell,
    ),
)
