"""The chapter on latents: a DiT on latents against DiTs on pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dit_edu.lab import zoo
from dit_edu.lab.data import Labelled, dataset
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.features import load_features
from dit_edu.lab.metrics import accuracy, frechet_distance
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import train
from dit_edu.latents import VAE

SCALE = 1.5  # guidance in all cells
STEPS = 20  # of the sampler
N = 500  # held-out images that a cell is measured against

#: What every model here shares.
MODEL: dict[str, Any] = {
    "num_heads": 4,
    "num_classes": 12,
    "class_dropout_prob": 0.1,
    "learn_sigma": False,
    "embed_std": 1.0,
}
RECIPE: dict[str, Any] = {"data": "shapes", "batch_size": 128, "lr": 8e-3, "warmup": 50}
LATENT = {"input_size": 8, "in_channels": 4, "patch_size": 2}
PIXELS = {"input_size": 32, "in_channels": 3}


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting: its own fields on top of what all share."""
    model = {**MODEL, **setting["model"]}
    return Recipe(**{"name": "shapes-small", **RECIPE, **setting["recipe"], "model": model})


def space_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on latents or on pixels, draw, measure; with what a call of the model costs.

    The Fréchet distance is given over that of as many training images, whose classes are not
    exactly as frequent as those asked for.
    """
    recipe = recipe_of(setting)
    vae = _vae() if setting["latents"] else None
    model = recipe.build_model().eval()
    x = torch.zeros(1, model.in_channels, *model.input_size)
    cost = count(model, x, torch.zeros(1), torch.zeros(1, dtype=torch.long), repeats=0)
    decoder = (
        count(vae.net.decoder, torch.zeros(1, *vae.latent_shape), repeats=0).macs if vae else 0
    )
    info = dataset(recipe.data)
    images, labels = _half("train")
    data = images if vae is None else _latents(), labels
    start = time.perf_counter()
    *_, step = train(recipe, seed=seed, device="cpu", data=data)
    trained = time.perf_counter()
    real, asked = (part[:N] for part in _half("heldout"))
    samples = draw(
        step.ema, recipe.process.build(), asked, Sampling(STEPS, SCALE), vae=vae, seed=seed
    )
    drawn = time.perf_counter()
    features = load_features(f"{recipe.data}-features")
    limit = frechet_distance(images[:N], real, features)
    return {
        "accuracy": plain(accuracy(samples, asked, (images, labels), info.judge)),
        "fd_ratio": plain(frechet_distance(samples, real, features) / limit),
        "train_seconds": plain(trained - start),
        "draw_seconds": plain(drawn - trained),
        "macs": cost.macs,
        "params": cost.params,
        "decoder_macs": decoder,
    }


@cache
def _half(split: str) -> Labelled:
    return dataset(RECIPE["data"]).load(split)


def _vae() -> VAE:
    return zoo.load("shapes-vae")[0]


@cache
def _latents() -> Tensor:
    return _vae().encode(_half("train")[0])


EXPERIMENTS = (
    Experiment(
        name="latents-pixels",
        about="A DiT on latents and DiTs on pixels with as many MACs a call",
        settings={
            "latents, p = 2": {
                "model": {**LATENT, "hidden_size": 64, "depth": 4},
                "recipe": {"steps": 300},
                "latents": True,
            },
            "pixels, p = 8": {
                "model": {**PIXELS, "patch_size": 8, "hidden_size": 64, "depth": 4},
                "recipe": {"steps": 300},
                "latents": False,
            },
            "pixels, p = 4": {
                "model": {**PIXELS, "patch_size": 4, "hidden_size": 32, "depth": 3},
                "recipe": {"steps": 300},
                "latents": False,
            },
        },
        seeds=range(3),
        compute=space_cell,
    ),
)
