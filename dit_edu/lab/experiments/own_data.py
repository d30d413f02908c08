"""The chapter on own data: a folder of photographs, from scratch and from a trained model.

The photographs are the two that scikit-learn ships, cut into six columns. Crops to train on lie in
four of them and held-out crops in the other two, so no pixel is in both.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from dit_edu.dit import DiT
from dit_edu.lab import zoo
from dit_edu.lab.autoencoder import psnr
from dit_edu.lab.data import Labelled, dataset
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain, sprite_sheet
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import heldout_loss
from dit_edu.lab.files import write_safetensors
from dit_edu.lab.finetune import save_adapters, start_from
from dit_edu.lab.lora import LoRADiT
from dit_edu.lab.own import own_data
from dit_edu.lab.recipes import RECIPES, Recipe
from dit_edu.lab.train import run, train

#: Which columns of the photographs are whose; settings are chosen within those of the training.
PARTS = {"train": (0, 2, 3, 5), "heldout": (1, 4), "fit": (0, 3), "judge": (2, 5)}
COLUMNS = 6
CROPS = {"train": 300, "heldout": 64, "fit": 150, "judge": 64}  # of each photograph
SIDES = (48, 104)  # of a crop, in pixels of the photograph, at random
BASE = RECIPES["pixels-dit"]
#: Updates after which a model is measured.
STOPS = (0, 10, 30, 100, 200)
TILES = 3  # images of each class that the figure shows
START = 400  # updates of the model that fine-tuning starts from
WAYS: dict[str, dict[str, Any]] = {
    "from scratch": {"start": 0},
    "all weights": {"start": START},
    "LoRA, rank 1": {"start": START, "rank": 1},
    "LoRA, rank 4": {"start": START, "rank": 4},
    "LoRA, rank 16": {"start": START, "rank": 16},
}


def write_crops(folder: Path, part: str = "train", n: int | None = None, seed: int = 0) -> None:
    """Write crops of the photographs as PNG files, a folder for each photograph.

    Args:
        folder: where; made if need be.
        part: a key of ``PARTS``.
        n: of each photograph, ``CROPS[part]`` unless given.
        seed: of places and sizes.
    """
    from sklearn.datasets import load_sample_images  # half a second of import

    rng = np.random.default_rng(seed)
    photographs = load_sample_images()
    for name, pixels in zip(photographs.filenames, photographs.images, strict=True):
        below = folder / Path(name).stem
        below.mkdir(parents=True, exist_ok=True)
        height, width, _ = pixels.shape
        for k in range(CROPS[part] if n is None else n):
            side = int(rng.integers(*SIDES, endpoint=True))
            top = int(rng.integers(height - side, endpoint=True))
            column = int(rng.choice(PARTS[part]))
            low, high = column * width // COLUMNS, (column + 1) * width // COLUMNS
            left = int(rng.integers(low, high - side, endpoint=True))
            crop = pixels[top : top + side, left : left + side]
            Image.fromarray(crop).save(below / f"{k:03d}.png")


@lru_cache
def crops(part: str, size: int = BASE.model["input_size"]) -> Labelled:
    """The crops as a model of that size sees them, by way of a folder and its cache."""
    recipe = replace(BASE, model={**BASE.model, "input_size": size})
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_crops(root / "photos", part)
        _, (x, y) = own_data(recipe, root / "photos", cache=root, report=lambda line: None)
        return x.clone(), y.clone()  # the files go


@lru_cache
def base_model(seed: int, steps: int) -> DiT:
    """The model that fine-tuning starts from: trained on the pixels of the shapes."""
    recipe = replace(BASE, steps=steps)
    return run(recipe, seed=seed, device="cpu", progress=False).model


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting, for two classes of photographs after those it starts from."""
    known = dataset(BASE.data).num_classes if setting["start"] else 0
    model = {**BASE.model, "num_classes": known + 2}
    kind = "DiT"
    if rank := setting.get("rank"):
        kind, model = "LoRADiT", {**model, "rank": rank}
    return replace(
        BASE, kind=kind, model=model, steps=setting["steps"], lr=setting["lr"], warmup=10
    )


def definition(way: str, lr: float, *parts: str, shown: bool = False) -> dict[str, Any]:
    """A setting: a key of ``WAYS`` at a learning rate, trained and judged on two ``PARTS``."""
    return {**WAYS[way], "steps": STOPS[-1], "lr": lr, "parts": list(parts), "shown": shown}


def fine_tune_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on one part of the photographs, measure on another: loss, memory of the shapes, size.

    ``loss_by_stop`` holds the loss after ``STOPS`` updates; ``shapes`` is the loss on the classes
    that the model started with, before and after; ``sheet`` shows what is drawn at the stops.
    """
    recipe = recipe_of(setting)
    process = recipe.process.build()
    base = base_model(seed, setting["start"]) if setting["start"] else None
    first = 0 if base is None else base.num_classes
    (x, y), (judge_x, judge_y) = map(crops, setting["parts"])
    shown = seed == 0 and setting["shown"]
    asked = first + torch.arange(2).repeat_interleave(TILES)
    losses, frames, seconds = [], [], 0.0

    def look(model: nn.Module) -> None:
        found = heldout_loss(model, process, (judge_x, judge_y + first))
        losses.append(plain(found.mean(), 6))
        if shown:
            frames.append(draw(model, process, asked, Sampling(20)))

    model = _initial(recipe, seed, base)
    look(model.eval())
    start = time.perf_counter()
    for step in train(recipe, seed=seed, device="cpu", data=(x, y + first), start=base):
        if step.step in STOPS:
            seconds += time.perf_counter() - start
            look(step.ema)
            start = time.perf_counter()
    found = {
        "loss": losses[-1],
        "loss_by_stop": losses,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "bytes": _bytes(step.ema, base),
        "train_seconds": plain(seconds),
    }
    if base is not None:
        old_x, old_y = (part[: len(judge_x)] for part in dataset(BASE.data).load("heldout"))
        for name, model in (("shapes_before", base), ("shapes", step.ema)):
            found[name] = plain(heldout_loss(model, process, (old_x, old_y)).mean(), 6)
    if shown:
        found["sheet"] = sprite_sheet(torch.cat(frames), levels=32)["sprite"]
    return found


def _initial(recipe: Recipe, seed: int, base: DiT | None) -> DiT:
    """The model before the first update, as the loop has it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build_model()
    if base is not None:
        start_from(model, base)
    return model


def _bytes(model: DiT, base: DiT | None) -> int:
    """What has to be kept of a run, in bytes: adapters, or all weights."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "weights.safetensors"
        if isinstance(model, LoRADiT):
            save_adapters(path, model, base)
        else:
            write_safetensors(path, model.state_dict())
        return path.stat().st_size


def vae_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What an autoencoder of the zoo keeps of held-out crops, and of what it was trained for."""
    vae, card = zoo.load(setting["vae"])
    photographs = crops("heldout", vae.image_shape[-1])[0]
    scenes = dataset(card["recipe"]["data"]).load("heldout")[0][: len(photographs)]
    found = {
        name: plain(psnr(x, vae.decode(vae.encode(x))))
        for name, x in (("photographs", photographs), ("scenes", scenes))
    }
    return {**found, "weights": card["sha256"][:12]}


# ---------------------------------------------------------------------- the experiments

RATES = (2e-3, 8e-3, 3.2e-2)
#: The best of ``RATES`` in the table ``own-data-lr``; all ranks have that of rank 4.
LR = {"from scratch": 8e-3, "all weights": 8e-3, "LoRA": 3.2e-2}
SHOWN = ("from scratch", "all weights", "LoRA, rank 4")  # and tried at all rates

EXPERIMENTS = (
    Experiment(
        name="own-data-lr",
        about="Photographs, learnt in three ways at three learning rates, judged on a fold",
        settings={
            f"{way}, {lr:g}": definition(way, lr, "fit", "judge") for way in SHOWN for lr in RATES
        },
        seeds=range(1),
        compute=fine_tune_cell,
    ),
    Experiment(
        name="own-data",
        about="Photographs from scratch, from a trained model, and with adapters on it",
        settings={
            way: definition(way, LR[way.split(",")[0]], "train", "heldout", shown=way in SHOWN)
            for way in WAYS
        },
        seeds=range(3),
        compute=fine_tune_cell,
    ),
    Experiment(
        name="own-data-vae",
        about="What the autoencoder of the shapes keeps of photographs",
        settings={"shapes-vae": {"vae": "shapes-vae"}},
        seeds=range(1),
        compute=vae_cell,
    ),
)
