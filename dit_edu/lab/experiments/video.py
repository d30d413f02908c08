"""The chapter on video: who may look at whom, MACs matched, and whether what is drawn moves.

The stage is the moving digits. All models are denoisers of whole videos, with one step t for all
frames; they are trained alike, and judged by held-out digits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.guidance import Guided
from dit_edu.lab import zoo
from dit_edu.lab.data import digits, folds
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.films import JUDGED, SAMPLING, SHOWN, judged, sheet_of
from dit_edu.lab.experiments.training import heldout_loss
from dit_edu.lab.moving import COPIES, FRAMES, SIDE, load_videos, move
from dit_edu.lab.profile import count, race
from dit_edu.lab.recipes import Process, Recipe
from dit_edu.lab.train import run
from dit_edu.sampling import ddim_sample
from dit_edu.walk import gaussian_noise, noise_streams

SHIPPED = "moving-digits-dit"

_VIDEO: dict[str, Any] = {
    "input_size": [FRAMES, SIDE, SIDE],
    "in_channels": 1,
    "num_classes": 10,
    "class_dropout_prob": 0.1,
    "learn_sigma": False,
}
_DIT = {**_VIDEO, "patch_size": 4, "depth": 4, "num_heads": 4, "embed_std": 1.0}
_UNET = {**_VIDEO, "layers": 1, "head_dim": 4, "num_groups": 4}
#: What races, at about equal MACs.
MODELS: dict[str, dict[str, Any]] = {
    "joint": {"kind": "VideoDiT", "model": {**_DIT, "attention": "joint", "hidden_size": 48}},
    "factorized": {
        "kind": "VideoDiT",
        "model": {**_DIT, "attention": "factorized", "hidden_size": 56},
    },
    "frames": {"kind": "VideoDiT", "model": {**_DIT, "attention": "frames", "hidden_size": 56}},
    "U-Net": {"kind": "VideoUNet", "model": {**_UNET, "widths": [8, 8, 16]}},
}


TRIED = (0.002, 0.004, 0.008, 0.016, 0.032)  # learning rates
#: Of each model, the best of ``video-rates``.
RATES = {"joint": 0.016, "factorized": 0.008, "frames": 0.016, "U-Net": 0.016}


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting."""
    return Recipe(name="race", data="moving-digits", warmup=50, **setting)


def counted(model: nn.Module) -> dict[str, int]:
    """Trained parameters, and MACs of a call for one video."""
    one = torch.zeros(1, dtype=torch.long)
    x = torch.zeros(1, model.in_channels, *model.input_size)
    params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"params": params, "macs": count(model, x, one, one, repeats=0).macs}


def one_noise(model: nn.Module, recipe: Recipe, labels: Tensor, seed: int) -> Tensor:
    """Draw videos whose frames all begin with the same noise, (n, 1, F, H, W)."""
    shape = (len(labels), model.in_channels, *model.input_size)
    still = (*shape[:2], 1, *shape[3:])
    noise = gaussian_noise(still, noise_streams(seed, len(labels)), labels.device, torch.float32)
    return ddim_sample(
        Guided(model, SAMPLING.scale), recipe.process.build(), shape, labels,
        steps=SAMPLING.steps, noise=noise.expand(shape).contiguous(), clip=True,
    ).clamp(-1, 1)  # fmt: skip


def rate_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on films of one fold of the training digits, judge by films of the other."""
    images, labels = digits("train")
    fit, judge = folds(labels)[0]
    copies = COPIES["train"]
    seen = move(images[fit].repeat(copies, 1, 1, 1), labels[fit].repeat(copies), seed=0)
    new, recipe = move(images[judge], labels[judge], seed=1), recipe_of(setting)
    model = run(
        recipe, data=(seen.videos, seen.label), seed=seed, device="cpu", progress=False
    ).model
    data = (new.videos[:JUDGED], new.label[:JUDGED])
    return {"loss": plain(heldout_loss(model, recipe.process.build(), data=data).mean(), 6)}


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure loss and samples on held-out digits."""
    recipe = recipe_of(setting)
    start = time.perf_counter()
    model = run(recipe, seed=seed, device="cpu", progress=False).model
    seconds = time.perf_counter() - start
    process, (real, labels) = recipe.process.build(), load_videos("heldout")
    real, labels = real[:JUDGED], labels[:JUDGED]
    loss = heldout_loss(model, process, data=(real, labels))
    videos = draw(model, process, labels, SAMPLING, seed=seed)
    kept = draw(model, process, torch.arange(SHOWN), SAMPLING, seed=seed)
    found = {
        **counted(recipe.build_model().eval()),
        "loss": plain(loss.mean(), 6),
        "loss_by_bin": plain(loss.tolist(), 6),
        **judged(videos, labels),
        "films": sheet_of(kept),
        "train_seconds": plain(seconds),
    }
    if setting["model"].get("attention") == "frames":
        again = judged(one_noise(model, recipe, labels, seed), labels)
        found |= {f"{name}, one noise": value for name, value in again.items()}
        kept = one_noise(model, recipe, torch.arange(SHOWN), seed)
        found["films, one noise"] = sheet_of(kept)
    return found


def shipped_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What the zoo's model draws at a guidance scale."""
    model, card = zoo.load(SHIPPED)
    process, asked = Process(**card["recipe"]["process"]).build(), load_videos("heldout")[1]
    sampling = Sampling(**{**card["sampling"], "scale": setting["scale"]})
    videos = draw(model, process, asked[:JUDGED], sampling, seed=seed)
    kept = draw(model, process, torch.arange(SHOWN), sampling, seed=seed)
    return {**judged(videos, asked[:JUDGED]), "films": sheet_of(kept)}


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Seconds of a call of each model, in turns, fresh weights; the seed only numbers the cells."""
    models = {name: recipe_of(_race(name)).build_model().eval() for name in MODELS}
    y = torch.zeros(setting["batch"], dtype=torch.long)
    x = torch.randn(len(y), 1, FRAMES, SIDE, SIDE)
    best = race({name: partial(model, x, y, y) for name, model in models.items()}, setting["turns"])
    return {f"seconds, {name}": plain(value) for name, value in best.items()}


# ---------------------------------------------------------------------- the experiments

STEPS, BATCH = 3000, 32


def _race(name: str, **fields: Any) -> dict[str, Any]:
    return {**MODELS[name], "steps": STEPS, "batch_size": BATCH, "lr": RATES[name], **fields}


EXPERIMENTS = (
    Experiment(
        name="video-rates",
        about="The race's learning rates, from short runs on one fold of the training digits",
        settings={
            f"{name} {lr:g}": _race(name, steps=600, lr=lr) for name in MODELS for lr in TRIED
        },
        seeds=range(1),
        compute=rate_cell,
    ),
    Experiment(
        name="video",
        about="A race on moving digits: joint, factorized and frame by frame, and a U-Net",
        settings={
            **{name: _race(name) for name in MODELS},
            "joint, half the rate": _race("joint", lr=RATES["joint"] / 2),
        },
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="video-shipped",
        about="Films of the zoo's model, which is deeper and was trained for longer, by guidance",
        settings={f"scale {scale:g}": {"scale": scale} for scale in (1.0, 2.0)},
        seeds=range(1),
        compute=shipped_cell,
    ),
    Experiment(
        name="video-cost",
        about="Seconds of a call of the models that race, in turns, for films in batches",
        settings={f"batch {n}": {"batch": n, "turns": 15} for n in (1, 32)},
        seeds=range(3),
        compute=cost_cell,
    ),
)
