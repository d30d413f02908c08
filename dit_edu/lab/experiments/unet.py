"""The chapter on the U-Net: a DiT against U-Nets with as many parameters, and with as many MACs.

Each model gets the learning rate that suits it, chosen on a fold of the training half.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_edu.dit import DiT
from dit_edu.interpolant import Interpolant
from dit_edu.lab import zoo
from dit_edu.lab.captioned import CaptionedDiT, CaptionedUNet, CrossUNet
from dit_edu.lab.data import Labelled, digits, folds, shapes
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain, sprite_sheet
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.training import BASE, heldout_loss
from dit_edu.lab.metrics import closer, evaluate
from dit_edu.lab.profile import count, count_training
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.scenes import COLOURS, SHAPES, recognise
from dit_edu.lab.train import run
from dit_edu.latents import VAE
from dit_edu.unet import UNet, receptive_field

SAMPLING = Sampling(steps=20, scale=1.5)
SIZES = (100, 250, 898)  # digits to learn from
TS = (50, 250, 500, 750, 950)  # steps at which receptive fields are measured
PIXEL = (3, 3)  # of whose answer: left of and above the middle, at a corner of its 2 x 2 patch
FIELD_IMAGES = 100

# ---------------------------------------------------------------------- the models

_DIGITS: dict[str, Any] = {
    "input_size": 8,
    "in_channels": 1,
    "num_classes": 10,
    "class_dropout_prob": 0.1,
    "learn_sigma": False,
}
_SCENES = {**_DIGITS, "in_channels": 4, "num_classes": len(SHAPES)}
_UNET = {"layers": 1, "head_dim": 4, "num_groups": 4}
#: The widths are those that :func:`matching` finds.
DIGITS: dict[str, dict[str, Any]] = {
    "DiT": {
        "kind": "DiT",
        "model": {
            **_DIGITS,
            "patch_size": 2,
            "hidden_size": 48,
            "depth": 4,
            "num_heads": 4,
            "embed_std": 1.0,
        },
    },
    "U-Net, parameters": {"kind": "UNet", "model": {**_DIGITS, **_UNET, "widths": [12, 36]}},
    "U-Net, MACs": {"kind": "UNet", "model": {**_DIGITS, **_UNET, "widths": [12, 20]}},
}
_DIT_OF_SCENES = {
    **_SCENES,
    "patch_size": 2,
    "hidden_size": 64,
    "depth": 4,
    "num_heads": 4,
    "embed_std": 1.0,
}
_UNET_OF_SCENES = {**_SCENES, **_UNET, "widths": [16, 28]}
WORDS = (*COLOURS, *SHAPES)  # the vocabulary of captions
#: On the latents of scenes; the U-Nets have as many MACs as the DiT, before they learn to read.
SCENES: dict[str, dict[str, Any]] = {
    "DiT": {"kind": "DiT", "model": _DIT_OF_SCENES},
    "DiT, words as tokens": {
        "kind": "CaptionedDiT",
        "model": {**_DIT_OF_SCENES, "words": len(WORDS)},
    },
    "U-Net": {"kind": "UNet", "model": _UNET_OF_SCENES},
    "U-Net, words added": {
        "kind": "CaptionedUNet",
        "model": {**_UNET_OF_SCENES, "words": len(WORDS)},
    },
    "U-Net, cross-attention": {
        "kind": "CrossUNet",
        "model": {**_UNET_OF_SCENES, "words": len(WORDS)},
    },
}
KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (DiT, UNet, CaptionedDiT, CaptionedUNet, CrossUNet)
}


@dataclass(frozen=True)
class Contender(Recipe):
    """A recipe whose model may also be one of those that read captions.

    Args:
        contender: a key of ``KINDS``.
    """

    contender: str = "DiT"

    def build_model(self) -> nn.Module:
        """A fresh model."""
        return KINDS[self.contender](**self.model)


def recipe_of(setting: Mapping[str, Any]) -> Contender:
    """The recipe of a setting."""
    fields = {k: v for k, v in setting.items() if k in ("data", "steps", "batch_size", "lr")}
    fields = {**BASE, "betas": tuple(BASE["betas"]), **fields}
    return Contender(**{**fields, "contender": setting["kind"], "model": setting["model"]})


def cost(model: nn.Module, words: int = 0) -> tuple[int, int]:
    """Trained parameters, and MACs of a call for one image; ``words`` are those of a caption."""
    one = torch.zeros(1, dtype=torch.long)
    y = torch.zeros(1, 1 + words, dtype=torch.long) if words else one
    macs = count(
        model, torch.zeros(1, model.in_channels, *model.input_size), one, y, repeats=0
    ).macs
    return sum(p.numel() for p in model.parameters() if p.requires_grad), macs


def matching(
    model: Mapping[str, Any],
    wanted: tuple[int, int],
    widths: tuple[range, range] = (range(8, 33, 4), range(8, 53, 4)),
    within: float = 0.05,
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """All pairs of widths for which a U-Net costs what is wanted.

    Args:
        model: the arguments of :class:`~dit_edu.unet.UNet`, but for the widths.
        wanted: parameters and MACs.
        widths: what is tried for the finer and for the coarser resolution.
        within: the largest relative difference.

    Returns:
        Widths and parameters of those that match in parameters; widths and MACs of those that match
        in MACs.
    """
    found: tuple[dict, dict] = ({}, {})
    for pair in ((fine, coarse) for fine in widths[0] for coarse in widths[1] if coarse >= fine):
        for got, want, match in zip(cost(UNet(**model, widths=pair)), wanted, found, strict=True):
            if abs(got / want - 1) <= within:
                match[pair] = got
    return found


# ---------------------------------------------------------------------- digits


def some(n: int, seed: int) -> Labelled:
    """``n`` digits of the training half, about as many of each class; others for another seed."""
    images, labels = digits("train")
    if n == len(labels):
        return images, labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    of_class = [order[labels[order] == c][: n // 10] for c in range(10)]
    chosen = torch.cat(of_class)
    return images[chosen], labels[chosen]


def shifted(images: Tensor) -> Tensor:
    """Images (n, 1, 8, 8), each a pixel further to the right."""
    return F.pad(images, (1, -1), value=-1.0)


def fresh(recipe: Recipe, seed: int = 0) -> nn.Module:
    """An untrained model; the last layer of a DiT, which would start at zero, is awake."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build_model()
        if isinstance(model, DiT):
            nn.init.xavier_uniform_(model.final_layer.linear.weight)
    return model.eval()


def fields_by_step(model: nn.Module, process: Interpolant) -> Tensor:
    """Receptive fields of ``PIXEL`` on held-out digits, (len(TS), 8, 8)."""
    images, labels = (part[:FIELD_IMAGES] for part in digits("heldout"))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    ts = [torch.full((len(images),), t) for t in TS]
    return torch.stack(
        [receptive_field(model, process.q_sample(images, t, noise), t, labels, PIXEL) for t in ts]
    )


def digits_fold_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on a half of the training half; the loss on its other half. ``seed`` is the fold's."""
    images, labels = digits("train")
    fit, judge = folds(labels, k=2)[seed]
    recipe, part = recipe_of(setting), (images[fit], labels[fit])
    model = run(recipe, progress=False, seed=seed, device="cpu", data=part).model
    found = heldout_loss(model, recipe.process.build(), data=(images[judge], labels[judge]))
    return {"loss": plain(found.mean(), 6)}


def digits_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on some digits; measure loss, samples and receptive fields, on held-out ones."""
    recipe, part = recipe_of(setting), some(setting["images"], seed)
    process, (images, labels) = recipe.process.build(), digits("heldout")
    start = time.perf_counter()
    model = run(recipe, progress=False, seed=seed, device="cpu", data=part).model
    seconds = time.perf_counter() - start
    by_bin = heldout_loss(model, process)
    samples = draw(model, process, labels, SAMPLING, seed=seed)
    found = evaluate(samples, labels)
    params, macs = cost(recipe.build_model())
    return {
        "loss": plain(by_bin.mean(), 6),
        "loss_by_bin": plain(by_bin.tolist(), 6),
        "loss_train": plain(heldout_loss(model, process, data=part).mean(), 6),
        "loss_shifted": plain(heldout_loss(model, process, (shifted(images), labels)).mean(), 6),
        **{name: plain(found[name]) for name in ("accuracy", "fd_ratio", "precision", "recall")},
        "closer": plain(closer(samples, part[0], images)),
        "fields": plain(fields_by_step(model, process).tolist(), 3),
        "fields_fresh": plain(fields_by_step(fresh(recipe, seed), process).tolist(), 3),
        "params": params,
        "macs": macs,
        "train_seconds": plain(seconds),
    }


def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What a call and an update cost; the seed only numbers the repetitions.

    The time of a call is that of the processor, the least of several: on a shared machine the clock
    on the wall also counts the work of others.
    """
    recipe, n = recipe_of(setting), setting["batch_size"]
    model = fresh(recipe)
    inputs = torch.randn(n, 1, 8, 8), torch.arange(n), torch.zeros(n, dtype=torch.long)
    times = []
    with torch.no_grad():
        for _ in range(8):
            start = time.process_time()
            model(*inputs)
            times.append(time.process_time() - start)
    update = count_training(recipe, updates=8)
    return {
        "cpu_seconds": plain(min(times) / n, 6),
        "update_seconds": plain(update.seconds),
        "update_macs": update.macs,
        "transient": update.transient,
    }


# ---------------------------------------------------------------------- scenes with captions

SCENE_SAMPLES = {8: 240, 12: 120, 16: 120}  # how many, by the side of the latents


def conditions(labels: Tensor, captioned: bool) -> Tensor:
    """What a model is told of classes (n,): the shape; or (n, 3), the shape, and two words."""
    shape, colour = labels // len(COLOURS), labels % len(COLOURS)
    words = torch.stack([colour, len(COLOURS) + shape], dim=1)  # "red circle"
    return torch.cat([shape[:, None], words], dim=1) if captioned else shape


@cache
def vae_for(side: int = 8) -> VAE:
    """The autoencoder of the zoo for latents of another size: it only convolves."""
    vae, card = zoo.load("shapes-vae")
    sized = VAE(**{**card["config"], "input_size": side * vae.factor})
    sized.load_state_dict(vae.state_dict())
    return sized.eval()


@cache
def scenes() -> Labelled:
    """The latents of 8,000 scenes to learn from, (n, 4, 8, 8), and their classes (n,)."""
    found = shapes(8000, seed=0, level="jittered")
    return vae_for().encode(found.images), found.label


def scenes_fold_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on a half of the scenes; the loss on 500 of the other half."""
    latents, labels = scenes()
    fit, judge = folds(labels, k=2)[seed]
    y, judge = conditions(labels, captioned=False), judge[:500]
    recipe = recipe_of(setting)
    part = latents[fit], y[fit]
    model = run(recipe, progress=False, seed=seed, device="cpu", data=part).model
    found = heldout_loss(model, recipe.process.build(), data=(latents[judge], y[judge]))
    return {"loss": plain(found.mean(), 6)}


def ways(model: nn.Module) -> dict[str, nn.Module]:
    """A trained model at every size, each way that it allows."""
    if isinstance(model, UNet):
        return {str(side): model.at_size(side) for side in SCENE_SAMPLES}
    larger = [side for side in SCENE_SAMPLES if side != 8]
    hows = ("stretch", "extend")
    return {"8": model} | {f"{s} {how}": model.at_size(s, how) for s in larger for how in hows}


def scenes_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on latents; the share of shapes and colours that samples get right, size by size."""
    recipe, (latents, labels) = recipe_of(setting), scenes()
    captioned = "words" in setting["model"]
    process, y = recipe.process.build(), conditions(labels, captioned)
    model = run(recipe, progress=False, seed=seed, device="cpu", data=(latents, y)).model
    params, macs = cost(recipe.build_model(), words=2 * captioned)
    found: dict[str, Any] = {"params": params, "macs": macs}
    for name, sized in ways(model).items():
        side = sized.input_size[0]
        asked = torch.arange(SCENE_SAMPLES[side]) % (len(SHAPES) * len(COLOURS))
        told = conditions(asked, captioned)
        seen = recognise(draw(sized, process, told, SAMPLING, vae=vae_for(side), seed=seed))
        shape = (seen >= 0) & (seen // len(COLOURS) == asked // len(COLOURS))
        colour = (seen >= 0) & (seen % len(COLOURS) == asked % len(COLOURS))
        for what, right in (("shape", shape), ("colour", colour), ("any", seen >= 0)):
            found[f"{what} {name}"] = plain(right.double().mean())
    return found


def pictures_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Four scenes at every size, side by side in a picture."""
    recipe, (latents, labels) = recipe_of(setting), scenes()
    process, y = recipe.process.build(), conditions(labels, captioned=True)
    model = run(recipe, progress=False, seed=seed, device="cpu", data=(latents, y)).model
    told, found = conditions(torch.tensor([0, 5, 10, 7]), captioned=True), {}
    for name, sized in ways(model).items():
        images = draw(sized, process, told, SAMPLING, vae=vae_for(sized.input_size[0]), seed=seed)
        found[name] = sprite_sheet(images.numpy(), levels=32)["sprite"]
    return found


# ---------------------------------------------------------------------- the experiments

STEPS, LONG = 400, 1600
RATES = (0.002, 0.004, 0.008, 0.016, 0.032)
#: Of each, the rate with the lowest loss on the fold (``results/unet-lr.json``).
BEST = {"DiT": 0.016, "U-Net, parameters": 0.016, "U-Net, MACs": 0.016}
SCENE_STEPS = 300
SCENE_RATES = (0.004, 0.008, 0.016, 0.032)
#: The same for scenes, by the model without words (``results/unet-scenes-lr.json``).
SCENE_BEST = {"DiT": 0.016, "U-Net": 0.016}


def _digits(name: str, **fields: Any) -> dict[str, Any]:
    return {**DIGITS[name], "steps": STEPS, "batch_size": 64, **fields}


def _scenes(name: str, **fields: Any) -> dict[str, Any]:
    return {**SCENES[name], "data": "shapes", "steps": SCENE_STEPS, "batch_size": 128, **fields}


EXPERIMENTS = (
    Experiment(
        name="unet-lr",
        about="The learning rate of a DiT and of two U-Nets, by a fold of the digits to learn from",
        settings={f"{name}, lr {lr}": _digits(name, lr=lr) for name in DIGITS for lr in RATES},
        seeds=range(1),
        compute=digits_fold_cell,
    ),
    Experiment(
        name="unet",
        about="A race of a DiT and two U-Nets, with as many parameters and with as many MACs",
        settings={name: _digits(name, lr=BEST[name], images=max(SIZES)) for name in DIGITS},
        seeds=range(3),
        compute=digits_cell,
    ),
    Experiment(
        name="unet-few",
        about="The same with fewer digits to learn from, with as many parameters",
        settings={
            f"{name}, {n} digits": _digits(name, lr=BEST[name], images=n)
            for n in SIZES
            if n < max(SIZES)
            for name in ("DiT", "U-Net, parameters")
        },
        seeds=range(3),
        compute=digits_cell,
    ),
    Experiment(
        name="unet-long",
        about="The DiT and the U-Net with as many MACs, trained four times as long",
        settings={
            name: _digits(name, lr=BEST[name], images=max(SIZES), steps=LONG)
            for name in ("DiT", "U-Net, MACs")
        },
        seeds=range(3),
        compute=digits_cell,
    ),
    Experiment(
        name="unet-cost",
        about="Time and memory of a call and of an update, the DiT and the U-Nets",
        settings={name: _digits(name, lr=BEST[name]) for name in DIGITS},
        seeds=range(5),
        compute=cost_cell,
    ),
    Experiment(
        name="unet-scenes-lr",
        about="The learning rate of a DiT and of a U-Net on latents of scenes, by a fold",
        settings={
            f"{name}, lr {lr}": _scenes(name, lr=lr) for name in SCENE_BEST for lr in SCENE_RATES
        },
        seeds=range(1),
        compute=scenes_fold_cell,
    ),
    Experiment(
        name="unet-scenes",
        about="A DiT and U-Nets with and without words, on latents of scenes; and larger scenes",
        settings={name: _scenes(name, lr=SCENE_BEST[name.split(",")[0]]) for name in SCENES},
        seeds=range(3),
        compute=scenes_cell,
    ),
    Experiment(
        name="unet-pictures",
        about="Pictures of larger scenes than those learnt from",
        settings={
            name: _scenes(name, lr=SCENE_BEST[name.split(",")[0]])
            for name in ("DiT, words as tokens", "U-Net, words added")
        },
        seeds=range(1),
        compute=pictures_cell,
    ),
)
