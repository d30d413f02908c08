"""The chapter on sampling: samplers, grids and numbers of steps on one trained model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dit_edu.guidance import Guided
from dit_edu.lab import zoo
from dit_edu.lab.data import digits
from dit_edu.lab.draw import DIFFUSION_SAMPLERS, Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.metrics import evaluate
from dit_edu.lab.recipes import Recipe
from dit_edu.sampling import noise_streams

MODEL = "digits-dit"


def drawn(setting: Mapping[str, Any], labels: Tensor, seed: int) -> Tensor:
    """Images of the digits model as a setting draws them, its guidance being that of the card.

    Args:
        setting: ``model``, ``sampler``, ``grid`` and ``steps``.
        labels: (n,) integers.
        seed: of the noise; every setting begins with the same.

    Returns:
        (n, 1, 8, 8) in [-1, 1].
    """
    model, card = zoo.load(setting["model"])
    images = DIFFUSION_SAMPLERS[setting["sampler"]](
        Guided(model, Sampling(**card["sampling"]).scale),
        Recipe.from_dict(card["recipe"]).process.build(),
        (len(labels), model.in_channels, *model.input_size),
        labels,
        steps=setting["steps"],
        grid=setting["grid"],
        generator=noise_streams(seed, len(labels)),
        clip=True,
    )
    return images.clamp(-1, 1)


def variety(images: Tensor, labels: Tensor) -> float:
    """How much the images of one class differ: the variance around their mean, pixels summed.

    Args:
        images: (n, C, H, W).
        labels: (n,) integers.
    """
    flat = images.flatten(1)  # (n, C, H, W) -> (n, CHW)
    off = [flat[labels == y] - flat[labels == y].mean(0) for y in labels.unique()]
    return torch.cat(off).square().sum(1).mean().item()


def sampler_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Draw as many digits as the held-out half has, and measure them against it."""
    real, labels = digits("heldout")
    images = drawn(setting, labels, seed)
    found = evaluate(images, labels)
    found["variety"] = variety(images, labels) / variety(real, labels)
    names = ("accuracy", "fd_ratio", "precision", "recall", "variety")
    return {name: plain(found[name]) for name in names}


def settings(sampler: str, grid: str, steps: Iterable[int]) -> dict[str, dict[str, Any]]:
    """A setting for each number of steps; with the model's hash, so that another is noticed."""
    common = {"model": MODEL, "weights": zoo.card(MODEL)["sha256"][:12]}
    common |= {"sampler": sampler, "grid": grid}
    return {f"{sampler} {grid} {n}": {**common, "steps": n} for n in steps}


EXPERIMENTS = (
    Experiment(
        name="samplers",
        about=f"{MODEL} drawn by each sampler, grid and number of steps, against the held-out half",
        settings=settings("ddpm", "uniform", (250, 100, 50, 20, 10, 5))
        | settings("ddim", "uniform", (50, 20, 10, 5))
        | settings("dpm++", "uniform", (50, 20, 10, 5))
        | settings("ddim", "quadratic", (20, 10, 5))
        | settings("ddim", "beta", (20, 10, 5))
        | settings("dpm++", "quadratic", (10, 5))
        | settings("dpm++", "beta", (10, 5)),
        seeds=range(3),
        compute=sampler_cell,
    ),
    Experiment(
        name="samplers-long",
        about="The same for many steps, with one seed",
        settings=settings("ddim", "uniform", (250, 100)) | settings("ddpm", "uniform", (1000,)),
        seeds=(0,),
        compute=sampler_cell,
    ),
)
