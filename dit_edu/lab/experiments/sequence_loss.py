"""A loss over the sequence of patches: its prior, its bias, and a race against the simple loss.

On the digits, and on scenes of three objects, where it is said to help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from dit_edu.lab.data import Labelled, dataset, folds
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment, multiscale, training
from dit_edu.lab.features import load_features
from dit_edu.lab.metrics import accuracy, frechet_distance
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.scenes import COLOURS
from dit_edu.lab.train import train
from dit_edu.patchify import patchify
from dit_edu.sequence_loss import RasterPrior, SequenceLoss, pull

RECIPES = {
    "digits": training.recipe_of(training.definition()),
    "scenes": Recipe(
        name="scenes",
        model={**multiscale.MODEL, "patch_size": 4},
        **multiscale.RECIPE | {"steps": 400, "batch_size": 32},
    ),
}
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RIDGE = {"digits": 1e-2, "scenes": 1e-3}  # that of the least error, see the table sequence-ridge
SAMPLING = Sampling(steps=10)
N = 500  # held-out images that a model is measured against, at most
LOW = 0.3  # "at low noise": below this share of the steps
SEEN, LEAST = 0.2, 3  # an object: at least so much chroma (largest minus smallest of R, G, B), and
# so many pixels that touch
PURE = 0.95  # of an object's colour in one direction


@cache
def half(stage: str, split: str) -> Labelled:
    """Images and labels of a stage."""
    options = {"objects": 3} if stage == "scenes" else {}
    return dataset(RECIPES[stage].data).load(split, **options)


@cache
def prior(stage: str) -> RasterPrior:
    """The prior of a stage, fitted to its training half, with the model's patches."""
    return RasterPrior(half(stage, "train")[0], RECIPES[stage].model["patch_size"], RIDGE[stage])


def penalties(q: RasterPrior) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Penalties by name: told the true prefix, told the guess's own, and the one without a bias."""
    return {"kl": q.kl, "own prefix": lambda guess, _: q.kl(guess, guess), "distance": q.distance}


@cache
def fitted(
    stage: str, seed: int, penalty: str = "kl", weight: float = 0.0, below: float = 1.0
) -> nn.Module:
    """The average of a training run; weight 0 is the simple loss."""
    loss_fn = SequenceLoss(penalties(prior(stage))[penalty], weight, below) if weight else None
    recipe, data = RECIPES[stage], half(stage, "train")
    *_, last = train(recipe, seed=seed, device="cpu", loss_fn=loss_fn, data=data)
    return last.ema


# ---------------------------------------------------------------------- the prior


def ridge_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """How well one half of the training half foretells the other's patches: error and nats.

    Both for each number. ``variance`` is the error of who only knows the mean image.
    """
    images, labels = half(setting["stage"], "train")
    p = RECIPES[setting["stage"]].model["patch_size"]
    error, nats = [], []
    for fit, judge in folds(labels, seed=seed):
        q, unseen = RasterPrior(images[fit], p, setting["ridge"]), images[judge]
        error.append(float((patchify(unseen, p) - q.means(unseen)).square().mean()))
        nats.append(float(q.log_prob(unseen).sum(1).mean()) / images[0].numel())
    return {
        "error": plain(np.mean(error), 6),
        "log_prob": plain(np.mean(nats), 6),
        "variance": plain(images.var(0).mean(), 6),
    }


# ---------------------------------------------------------------------- objects in a scene


def objects(image: np.ndarray) -> list[tuple[float, float, int]]:
    """What is seen in a scene (3, H, W) in [-1, 1]: pixels, purity and colour of each object.

    An object is what has colour and hangs together. Its purity is how much of its colour points one
    way: 1 where all its pixels have one colour, more or less of it.
    """
    rgb = (image + 1) / 2  # (3, H, W)
    parts, n = ndimage.label(np.ptp(rgb, axis=0) > SEEN)
    tint = rgb - rgb.mean(0)  # (3, H, W): what is left when grey is taken away
    palette = np.array(list(COLOURS.values()))
    palette = palette - palette.mean(1, keepdims=True)  # (4, 3)
    found = []
    for k in range(1, n + 1):
        inside = tint[:, parts == k]  # (3, pixels)
        if inside.shape[1] >= LEAST:
            whole = inside.sum(1)  # (3,)
            purity = np.linalg.norm(whole) / np.linalg.norm(inside, axis=0).sum()
            unit = palette / np.linalg.norm(palette, axis=1, keepdims=True)
            found.append((inside.shape[1], float(purity), int((unit @ whole).argmax())))
    return found


def coherence(images: Tensor, labels: Tensor) -> dict[str, float]:
    """Of scenes asked to hold three objects: how many have three, of one colour each, and the right
    colour in the largest."""
    seen = [objects(image) for image in images.numpy()]
    asked = (labels % len(COLOURS)).tolist()
    three = [len(s) == 3 for s in seen]
    pure = [purity > PURE for s in seen for _, purity, _ in s]
    right = [bool(s) and max(s)[2] == a for s, a in zip(seen, asked, strict=True)]
    whole = [t and all(u > PURE for _, u, _ in s) for t, s in zip(three, seen, strict=True)]
    shares = {"three": three, "pure": pure, "colour": right, "whole": whole}
    return {name: plain(np.mean(values or [False])) for name, values in shares.items()}


# ---------------------------------------------------------------------- the race


@torch.no_grad()
def guesses(model: nn.Module, stage: str) -> tuple[Tensor, Tensor, Tensor]:
    """x̂_0, x_0 and t of held-out images, each at eight steps: (n, C, H, W) twice, and (n,)."""
    process, (images, labels) = RECIPES[stage].process.build(), half(stage, "heldout")
    x0, t, y, noise = training.heldout_batch(process, (images[:N], labels[:N]))
    x_t = process.q_sample(x0, t, noise)
    return process.to_x0(model(x_t, t, y), x_t, t), x0, t


def shift(stage: str, seed: int, guess: Tensor, t: Tensor, weight: float) -> dict[str, Any]:
    """How far x̂_0 lies from that of the model without a penalty, against the closed form.

    By range of t: ``slope`` is 1 where the shift is as predicted from the other model's guesses and
    0 where it has nothing to do with it; ``r`` is their correlation.
    """
    process, base = RECIPES[stage].process.build(), guesses(fitted(stage, seed), stage)[0]
    want = prior(stage).pulled(base, pull(process, t, weight)) - base  # (n, C, H, W)
    got = guess - base
    ww, wg, gg = (
        training.mean_by_bin((a * b).flatten(1).mean(1), t, process)  # (bins,)
        for a, b in ((want, want), (want, got), (got, got))
    )
    found = {"slope": wg / ww, "r": wg / (ww * gg).sqrt(), "predicted": ww.sqrt()}
    return {name: plain(values.tolist()) for name, values in found.items()}


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure on held-out images: loss, nats, samples, and how these hang together."""
    stage, weight = setting["stage"], setting["weight"]
    recipe, q, process = RECIPES[stage], prior(stage), RECIPES[stage].process.build()
    model = fitted(stage, seed, **{k: v for k, v in setting.items() if weight and k != "stage"})
    real, labels = (part[:N] for part in half(stage, "heldout"))
    seen, features = half(stage, "train"), load_features(f"{recipe.data}-features")
    loss = training.heldout_loss(model, process, data=(real, labels))  # (bins,)
    guess, x0, t = guesses(model, stage)
    nats = training.mean_by_bin(q.kl(guess, x0).sum(1) / x0[0].numel(), t, process)  # (bins,)
    samples = draw(model, process, labels, SAMPLING, seed=seed)
    limit = frechet_distance(seen[0][: len(real)], real, features)
    found: dict[str, Any] = {
        "loss": plain(loss.mean(), 6),
        "loss_by_bin": plain(loss.tolist(), 6),
        "nats_by_bin": plain(nats.tolist(), 6),
        "fd_ratio": plain(frechet_distance(samples, real, features) / limit),
        "log_prob": plain(float(q.log_prob(samples).sum(1).mean()) / x0[0].numel(), 6),
        "novelty": plain(q.surprise(samples, samples).square().mean()),
    }
    if stage == "scenes":
        found |= coherence(samples, labels)
    else:
        found["accuracy"] = plain(accuracy(samples, labels, seen))
    if setting.get("penalty") == "kl":
        found["shift"] = shift(stage, seed, guess, t, weight)
    return found


def real_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The same measures of real held-out images."""
    stage, q = setting["stage"], prior(setting["stage"])
    images, labels = (part[:N] for part in half(stage, "heldout"))
    return {
        "log_prob": plain(float(q.log_prob(images).sum(1).mean()) / images[0].numel(), 6),
        "novelty": plain(q.surprise(images, images).square().mean()),
        **(coherence(images, labels) if stage == "scenes" else {}),
    }


# ---------------------------------------------------------------------- the experiments


def _one(stage: str, weight: float, penalty: str = "kl", below: float = 1.0) -> dict[str, Any]:
    return {"stage": stage, "penalty": penalty, "weight": weight, "below": below}


def _race(stage: str, weights: tuple[float, ...], **more: dict[str, Any]) -> dict[str, Any]:
    """Settings: the simple loss, weights of the divergence, and more."""
    return {
        "simple": {"stage": stage, "weight": 0.0},
        **{f"λ = {weight}": _one(stage, weight) for weight in weights},
        **more,
    }


EXPERIMENTS = (
    Experiment(
        name="sequence-ridge",
        about="How likely the prior finds images that it was not fitted to, by its ridge",
        settings={
            f"{stage}, {ridge}": {"stage": stage, "ridge": ridge}
            for stage in RECIPES
            for ridge in RIDGES
        },
        seeds=(0,),
        compute=ridge_cell,
    ),
    Experiment(
        name="sequence-real",
        about="The race's measures of samples, of real held-out images",
        settings={stage: {"stage": stage} for stage in RECIPES},
        seeds=(0,),
        compute=real_cell,
    ),
    Experiment(
        name="sequence-digits",
        about="The sequence loss on the digits, its weight swept, against the simple loss",
        settings=_race(
            "digits",
            (0.01, 0.1, 1.0),
            **{
                "λ = 1.0, low noise": _one("digits", 1.0, below=LOW),
                "λ = 0.1, own prefix": _one("digits", 0.1, "own prefix"),
                "distance, 0.1": _one("digits", 0.1, "distance"),
            },
        ),
        seeds=range(3),
        compute=race_cell,
    ),
    Experiment(
        name="sequence-scenes",
        about="The sequence loss on scenes of three objects, against the simple loss",
        settings=_race("scenes", (0.01, 0.1, 1.0)),
        seeds=range(3),
        compute=race_cell,
    ),
)
