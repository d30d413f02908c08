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
from dit_edu.lab.data import digits, folds
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain, sprite_sheet
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import heldout_loss
from dit_edu.lab.features import load_features
from dit_edu.lab.films import KNOWN, Ideal
from dit_edu.lab.metrics import frechet_distance
from dit_edu.lab.moving import COPIES, FRAMES, SIDE, consistency, load_videos, move
from dit_edu.lab.profile import count, race
from dit_edu.lab.recipes import Process, Recipe
from dit_edu.lab.train import run
from dit_edu.sampling import ddim_sample
from dit_edu.walk import gaussian_noise, noise_streams

SAMPLING = Sampling(steps=15, scale=1.0)
JUDGED = 120  # held-out videos that a model is measured against
SHOWN = 6  # videos that a table keeps, of the digits 0 to 5

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


def judged(videos: Tensor, labels: Tensor) -> dict[str, float]:
    """Do they move, do they show what was asked for, and how far are their pairs of frames?

    The Fréchet distance is given over that of as many training videos of the same digits.
    """
    features, real = load_features("moving-digits-features"), load_videos("heldout")[0][:JUDGED]
    known, digit = load_videos("train")
    order = torch.cat([torch.where(digit == y)[0][: int((labels == y).sum())] for y in range(10)])
    limit = frechet_distance(known[order], real, features)
    found = consistency(videos, labels)
    found["fd_ratio"] = frechet_distance(videos, real, features) / limit
    return {name: plain(value) for name, value in found.items()}


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
        "films": sprite_sheet(kept.movedim(2, 1).flatten(0, 1).numpy(), levels=16)["sprite"],
        "train_seconds": plain(seconds),
    }
    if setting["model"].get("attention") == "frames":
        again = judged(one_noise(model, recipe, labels, seed), labels)
        found |= {f"{name}, one noise": value for name, value in again.items()}
        kept = one_noise(model, recipe, torch.arange(SHOWN), seed)
        sheet = sprite_sheet(kept.movedim(2, 1).flatten(0, 1).numpy(), levels=16)["sprite"]
        found["films, one noise"] = sheet
    return found


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Seconds of a call of each model, in turns, fresh weights; the seed only numbers the cells."""
    models = {name: recipe_of(_race(name)).build_model().eval() for name in MODELS}
    y = torch.zeros(setting["batch"], dtype=torch.long)
    x = torch.randn(len(y), 1, FRAMES, SIDE, SIDE)
    best = race({name: partial(model, x, y, y) for name, model in models.items()}, setting["turns"])
    return {f"seconds, {name}": plain(value) for name, value in best.items()}


def judge_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What the judges say of held-out videos themselves, as they are or spoilt."""
    videos, labels = (part[:JUDGED] for part in load_videos("heldout"))
    generator = torch.Generator().manual_seed(seed)
    if setting["spoilt"] == "frames shuffled":
        order = torch.stack([torch.randperm(FRAMES, generator=generator) for _ in videos])
        videos = videos.gather(2, order[:, None, :, None, None].expand_as(videos))
    elif setting["spoilt"] == "noise of 0.3":
        noise = torch.randn(videos.shape, generator=generator)
        videos = (videos + 0.3 * noise).clamp(-1, 1)
    return judged(videos, labels)


LEVELS = tuple(range(50, 1000, 100))  # steps at which perfect denoisers are asked


def ideal_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A perfect denoiser of the training digits that knows so much of time: error, and samples."""
    process, generator = Process().build(), torch.Generator().manual_seed(seed)
    model = Ideal(process, setting["known"])
    images, labels = digits("train")
    some = torch.randperm(len(labels), generator=generator)[:JUDGED]
    videos = move(images[some], labels[some], seed=seed + 2).videos
    error = []
    for t in LEVELS:
        noise = torch.randn(videos.shape, generator=generator)
        steps = torch.full((len(videos),), t)
        x_t = process.q_sample(videos, steps, noise)
        x0 = process.to_x0(model(x_t, steps, labels[some]), x_t, steps)
        error.append(float((x0 - videos).square().mean()))
    asked = load_videos("heldout")[1][:JUDGED]
    shape = (len(asked), 1, FRAMES, SIDE, SIDE)
    drawn = ddim_sample(
        model, process, shape, asked,
        steps=SAMPLING.steps, generator=noise_streams(seed, len(asked)), clip=True,
    ).clamp(-1, 1)  # fmt: skip
    shown = drawn[[int(torch.where(asked == y)[0][0]) for y in range(SHOWN)]]
    sheet = sprite_sheet(shown.movedim(2, 1).flatten(0, 1).numpy(), levels=16)["sprite"]
    return {"error": plain(error), **judged(drawn, asked), "films": sheet}


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
        settings={name: _race(name) for name in MODELS},
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="video-cost",
        about="Seconds of a call of the models that race, in turns, for films in batches",
        settings={f"batch {n}": {"batch": n, "turns": 15} for n in (1, 32)},
        seeds=range(3),
        compute=cost_cell,
    ),
    Experiment(
        name="video-ideal",
        about="Perfect denoisers of moving digits, by what they know of time; nothing is trained",
        settings={known: {"known": known} for known in KNOWN},
        seeds=range(1),
        compute=ideal_cell,
    ),
    Experiment(
        name="video-judges",
        about="What the judges of moving digits say of held-out videos, as they are and spoilt",
        settings={name: {"spoilt": name} for name in ("not", "frames shuffled", "noise of 0.3")},
        seeds=range(1),
        compute=judge_cell,
    ),
)
