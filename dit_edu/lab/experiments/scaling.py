"""The chapter on scaling: a grid of small models, size by patch, and the cost of published ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_edu.dit import DiT
from dit_edu.lab.costs import forward_seconds
from dit_edu.lab.data import digits, folds
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import definition, heldout_loss, recipe_of
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.release import measure
from dit_edu.lab.train import train
from dit_edu.scaling import Architecture, sampling_cost

#: The sizes of the grid, as D and L; heads are 8 wide.
SIZES = {"XS": (16, 2), "S": (32, 3), "M": (48, 4), "L": (64, 5)}
PATCHES = (4, 2, 1)
#: All but L/1, which would take nearly as long as the eleven others together.
MODELS = [(size, p) for size in SIZES for p in PATCHES if (size, p) != ("L", 1)]
#: The learning rate of each size: the best of ``scaling-lr``.
LR = {"XS": 0.032, "S": 0.016, "M": 0.016, "L": 0.008}
TRIED = (0.008, 0.016, 0.032, 0.064)
CURVE_EVERY = 20  # updates between two points of a curve


def scaled(size: str, patch_size: int, lr: float) -> dict[str, Any]:
    """A setting: the base of the chapter on training with another model and learning rate."""
    width, depth = SIZES[size]
    model = {"patch_size": patch_size, "hidden_size": width, "depth": depth}
    model["num_heads"] = width // 8
    return definition(name="digits-scaled", model=model, lr=lr, steps=400, warmup=40)


def counted(recipe: Recipe) -> dict[str, int]:
    """Trained parameters, and multiply-adds of a forward pass for one image, both counted."""
    model, one = recipe.build_model(), torch.zeros(1, dtype=torch.long)
    x = torch.zeros(1, model.in_channels, *model.input_size)
    macs = count(model, x, one, one, repeats=0).macs
    return {"params": sum(p.numel() for p in model.parameters() if p.requires_grad), "macs": macs}


def scaling_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure the average: loss seen and unseen, and samples of 10 DDIM steps."""
    recipe, curve = recipe_of(setting), []
    for step in train(recipe, seed=seed, device="cpu"):
        if step.step % CURVE_EVERY == 0:
            curve.append(sum(step.loss_by_bin) / recipe.noise_bins)
    process, drawn = recipe.process.build(), measure(step.ema, recipe, Sampling(steps=10))
    return {
        **counted(recipe),
        "loss": plain(heldout_loss(step.ema, process).mean(), 6),
        "train_loss": plain(heldout_loss(step.ema, process, data=digits("train")).mean(), 6),
        "accuracy": plain(drawn["accuracy"]),
        "fd_ratio": plain(drawn["fd_ratio"]),
        "curve": plain(curve),
    }


def lr_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on one fold of the training half, measure on the other."""
    images, labels = digits("train")
    fit, judge = folds(labels)[0]
    recipe = recipe_of(setting)
    *_, last = train(recipe, seed=seed, device="cpu", data=(images[fit], labels[fit]))
    loss = heldout_loss(last.ema, recipe.process.build(), data=(images[judge], labels[judge]))
    return {"loss": plain(loss.mean(), 6)}


def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A forward pass measured, and what the formulas say; the seed only numbers the repetitions."""
    sizes, batch = Architecture.from_preset(setting["model"]), setting["batch"]
    model = DiT.from_preset(setting["model"])
    y = torch.zeros(batch, dtype=torch.long)
    found = count(model, torch.randn(batch, sizes.in_channels, *sizes.size), y, y)
    return {
        "macs": found.macs,
        "macs_formula": batch * sum(sizes.macs().values()),
        "activations": found.peak_memory,
        "activations_formula": sampling_cost(sizes, batch=batch).activations,
        "seconds": plain(found.seconds),
        "seconds_shallow": plain(forward_seconds(sizes, batch=batch, device="cpu")),
    }


EXPERIMENTS = (
    Experiment(
        name="scaling-lr",
        about="The learning rate of each size, learnt and judged on two folds of the training half",
        settings={f"{size}/2 {lr:g}": scaled(size, 2, lr) for size in SIZES for lr in TRIED},
        seeds=(0,),
        compute=lr_cell,
    ),
    Experiment(
        name="scaling",
        about="Small models of digits, size by patch, at equal steps: quality against MACs",
        settings={f"{size}/{p}": scaled(size, p, LR[size]) for size, p in MODELS},
        seeds=range(3),
        compute=scaling_cell,
    ),
    Experiment(
        name="scaling-cost",
        about="Published models on a CPU: MACs, memory and time against the calculator's",
        settings={
            f"{size}/{p}, batch {batch}": {"model": f"DiT-{size}/{p}", "batch": batch}
            for size, p, batch in (
                ("S", 8, 1),
                ("S", 4, 1),
                ("S", 2, 1),
                ("B", 8, 1),
                ("S", 8, 16),
            )
        },
        seeds=range(3),
        compute=cost_cell,
    ),
)
