"""The chapter on tokens: the size of a patch, kinds of position, sizes that training never saw."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_edu.dit import DiT
from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling, cycle_labels, draw
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import (
    ablation_cell,
    definition,
    quality,
    recipe_of,
    trained,
)
from dit_edu.lab.metrics import accuracy
from dit_edu.lab.profile import count
from dit_edu.positions import POSITIONS

STEPS = 600
SAMPLING = Sampling(steps=10)
SIZES = (8, 12, 16)  # pixels; the models are trained at the first
PICTURES = 10  # digits that are kept as pictures, one of each class
SHADES = "0123456789abcdef"
JUDGED = 300  # samples at another size
RUNS = 12  # of a forward pass


def shrunk(images: Tensor, size: int = SIZES[0]) -> Tensor:
    """Images (n, C, H, W) as their means over the areas of ``size`` × ``size`` pixels."""
    return F.adaptive_avg_pool2d(images, size)


def ways(model: DiT) -> Iterator[tuple[str, DiT]]:
    """A trained model at every other size, each way that its positions allow: name and model."""
    hows = {"none": ("stretch",), "learned": ("stretch",)}.get(
        model.positions, ("stretch", "extend")
    )
    for size in SIZES[1:]:
        for how in hows:
            yield f"{size} {how}", model.at_size(size, how)


def position_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train at 8 × 8; measure there, and the classes of samples at other sizes, seen from afar."""
    model, recipe = trained(setting, seed, []), recipe_of(setting)
    process, half, labels = recipe.process.build(), digits("train"), digits("heldout")[1][:JUDGED]
    found = quality(model, recipe, SAMPLING)
    for name, sized in ways(model):
        images = shrunk(draw(sized, process, labels, SAMPLING, seed=seed))
        found[f"accuracy {name}"] = plain(accuracy(images, labels, half))
    return found


def picture_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One digit of each class at every size, as lines of shades from 0 (black) to f (white)."""
    model, process = trained(setting, seed, []), recipe_of(setting).process.build()
    labels, pictures = cycle_labels(PICTURES, 10), {}
    for name, sized in (("8", model), *ways(model)):
        shades = ((draw(sized, process, labels, SAMPLING) + 1) * 7.5).round().int()  # 0 … 15
        pictures[name] = ["".join(SHADES[s] for s in image) for image in shades.flatten(1).tolist()]
    return pictures


@torch.no_grad()
def forward_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What a forward pass costs; the seed only numbers the repetitions.

    The time is that of the processor, the least of several runs: on a shared machine the clock on
    the wall also counts the work of others.
    """
    torch.manual_seed(0)
    model, n = recipe_of(setting).build_model().eval(), setting["images"]
    inputs = torch.randn(n, 1, 8, 8), torch.arange(n), torch.zeros(n, dtype=torch.long)
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        model(*inputs)
        times.append(time.process_time() - start)
    cost = count(model, *inputs, repeats=0)
    return {
        "tokens": model.span[0] * model.span[1],
        "params": cost.params,
        "macs": cost.macs // n,
        "cpu_seconds": plain(min(times) / n, 6),
    }


def patches(p: int) -> dict[str, Any]:
    """A setting with patches of p × p pixels."""
    return definition(model={"patch_size": p}, steps=STEPS)


EXPERIMENTS = (
    Experiment(
        name="patch-size",
        about="The small digits model by patch size p, at the learning rate of p = 2",
        settings={f"p = {p}": patches(p) for p in (1, 2, 4)},
        seeds=range(3),
        compute=ablation_cell,
    ),
    Experiment(
        name="patch-cost",
        about="Tokens, MACs and time of a forward pass of the small digits model by patch size p",
        settings={f"p = {p}": {**patches(p), "images": 64} for p in (1, 2, 4)},
        seeds=range(9),
        compute=forward_cell,
    ),
    Experiment(
        name="positions",
        about="The small digits model by kind of position, and its samples at untrained sizes",
        settings={name: definition(model={"positions": name}, steps=STEPS) for name in POSITIONS},
        seeds=range(5),
        compute=position_cell,
    ),
    Experiment(
        name="position-samples",
        about="Pictures of the small digits model by kind of position at untrained sizes",
        settings={name: definition(model={"positions": name}, steps=STEPS) for name in POSITIONS},
        seeds=(0,),
        compute=picture_cell,
    ),
)
