"""The chapter on latents: which space, which scale, what the distance sees, against pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_edu.lab import zoo
from dit_edu.lab.autoencoder import VAERecipe, psnr, train_vae
from dit_edu.lab.data import Labelled, dataset
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.features import load_features
from dit_edu.lab.metrics import evaluate_on
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import Process, Recipe
from dit_edu.lab.train import train
from dit_edu.latents import VAE

SAMPLING = Sampling(steps=20, scale=1.25)  # in all cells
N = 300  # images that a cell is measured against
FOLD = 4000  # training images that the autoencoders and models of ``latents-space`` see

#: What every model here shares.
MODEL: dict[str, Any] = {
    "num_heads": 4,
    "num_classes": 12,
    "class_dropout_prob": 0.1,
    "learn_sigma": False,
    "embed_std": 1.0,
}
RECIPE: dict[str, Any] = {"data": "shapes", "batch_size": 64, "lr": 8e-3, "warmup": 50}
#: Two sizes with as many MACs a call: few tokens and many, at p = 2 on 8 x 8 latents.
FEW, MANY = {"hidden_size": 64, "depth": 4}, {"hidden_size": 32, "depth": 3}
LATENT = {"input_size": 8, "in_channels": 4, "patch_size": 2, **FEW}


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting: its own fields on top of what all share."""
    model, process = {**MODEL, **setting["model"]}, Process(**setting.get("process", {}))
    fields = {"name": "shapes-small", **RECIPE, **setting["recipe"]}
    return Recipe(**fields, model=model, process=process)


def learn(
    recipe: Recipe,
    seed: int,
    vae: VAE | None,
    fit: Labelled,
    reference: Labelled,
    marks: Sequence[int] = (),
) -> dict[str, list[float]]:
    """Train on images, or on their latents; draw and measure after some updates and the last.

    Args:
        recipe: of the model.
        seed: of the training and of what is drawn.
        vae: whose latents the model works on; None for the images.
        fit: images and labels to train on.
        reference: images and labels to draw and to measure against.
        marks: after how many updates; the last is always among them.
    """
    data = fit if vae is None else (vae.encode(fit[0]), fit[1])
    found: dict[str, list[float]] = {"accuracy": [], "fd_ratio": []}
    for step in train(recipe, seed=seed, device="cpu", data=data):
        if step.step in {*marks, recipe.steps}:
            process, asked = recipe.process.build(), reference[1]
            samples = draw(step.ema, process, asked, SAMPLING, vae=vae, seed=seed)
            now = judged(samples, fit, reference)
            for metric, values in found.items():
                values.append(now[metric])
    return found


def judged(samples: Tensor, fit: Labelled, reference: Labelled) -> dict[str, float]:
    """Accuracy of samples, and their Fréchet distance over that of as many images of ``fit``."""
    info, features = dataset(RECIPE["data"]), load_features("shapes-features")
    found = evaluate_on(samples, reference[1], fit, reference, features, judge=info.judge)
    return {metric: plain(found[metric]) for metric in ("accuracy", "fd_ratio")}


def race_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on latents or on pixels, and draw now and then; with what a call costs."""
    recipe, vae = recipe_of(setting), _vae() if setting["latents"] else None
    found = learn(recipe, seed, vae, _half("train"), _part("heldout"), setting["marks"])
    return {**found, **_costs(recipe, vae)}


def scale_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train on latents of another spread than 1, from the same noise."""
    vae = _vae()
    vae.std /= setting["scale"]  # its latents have the spread s
    found = learn(recipe_of(setting), seed, vae, _half("train"), _part("heldout"))
    return {metric: values[-1] for metric, values in found.items()}


def space_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """An autoencoder and a model on its latents, learnt on one part of the training half.

    Both are judged on another part of it. ``through_…`` is said of images that were encoded and
    decoded, ``noise_…`` of decoded noise.
    """
    fit = tuple(part[:FOLD] for part in _half("train"))
    reference = tuple(part[FOLD : FOLD + N] for part in _half("train"))
    vae = _fold_vae(json.dumps({**setting["vae"], "seed": seed}))
    noise = torch.randn(N, *vae.latent_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        nats = vae.losses(reference[0], 0.0, noise)["kl"].mean() * reference[0][0].numel()
    again = vae.decode(vae.encode(reference[0]))
    found = {
        "": {k: v[-1] for k, v in learn(recipe_of(setting), seed, vae, fit, reference).items()},
        "through_": judged(again, fit, reference),
        "noise_": judged(vae.decode(noise), fit, reference),
    }
    return {
        "nats": plain(nats),
        "psnr": plain(psnr(reference[0], again)),
        **{f"{of}{metric}": value for of, row in found.items() for metric, value in row.items()},
        **_costs(recipe_of(setting), vae),
    }


def error_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Held-out images with an error: how large it is, and what the Fréchet distance says of it."""
    reference = _part("heldout", None)
    images, size = reference[0], setting["size"]
    error = _vae().decode(_vae().encode(images)) - images  # (n, 3, 32, 32)
    match setting["kind"]:
        case "autoencoder":
            pass
        case "coarse":
            error = _squares(error)
        case "fine":
            error = error - _squares(error)
        case "blur":
            k = torch.exp(-torch.arange(-3.0, 4.0).square() / (2 * size**2))  # (7,)
            kernel = (k[:, None] * k / k.sum() ** 2).expand(3, 1, 7, 7)
            error = F.conv2d(F.pad(images, [3] * 4, mode="replicate"), kernel, groups=3) - images
        case "noise":
            g = torch.Generator().manual_seed(seed)
            error = size * torch.randn(images.shape, generator=g)
        case "colour":
            g = torch.Generator().manual_seed(seed)
            error = size * torch.randn(len(images), 3, 1, 1, generator=g)
    spoilt = (images + error).clamp(-1, 1)
    return {
        "psnr": plain(psnr(images, spoilt)),
        "psnr_coarse": plain(psnr(_squares(images), _squares(spoilt))),
        **judged(spoilt, _half("train"), reference),
    }


def _costs(recipe: Recipe, vae: VAE | None) -> dict[str, int]:
    """Parameters and multiply-adds of a call of the model, and of the decoder for an image."""
    model = recipe.build_model().eval()
    one = torch.zeros(1, dtype=torch.long)
    found = count(model, torch.zeros(1, model.in_channels, *model.input_size), one, one, repeats=0)
    decoder = count(vae.net.decoder, torch.zeros(1, *vae.latent_shape), repeats=0) if vae else None
    return {
        "macs": found.macs,
        "params": found.params,
        "decoder_macs": decoder.macs if decoder else 0,
    }


def _squares(images: Tensor) -> Tensor:
    """Each 4 x 4 pixels replaced by their mean: (n, 3, 32, 32)."""
    return F.avg_pool2d(images, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)


@cache
def _half(split: str) -> Labelled:
    return dataset(RECIPE["data"]).load(split)


def _part(split: str, n: int | None = N) -> Labelled:
    images, labels = _half(split)
    return images[:n], labels[:n]


def _vae() -> VAE:
    return zoo.load("shapes-vae")[0]


@cache
def _fold_vae(recipe: str) -> VAE:
    """An autoencoder of a recipe in JSON, trained once for all cells of a run."""
    return train_vae(VAERecipe("fold", **json.loads(recipe)), n=FOLD)


def _space(
    size: int, patch_size: int, sizes: Mapping[str, int], groups: int = 1, **vae: float
) -> dict[str, Any]:
    widths = {16: [16, 16], 8: [16, 16, 16]}[size]
    return {
        "vae": {"model": {"widths": widths, "num_groups": groups}, "steps": 500, **vae},
        "model": {"input_size": size, "in_channels": 4, "patch_size": patch_size, **sizes},
        "recipe": {"steps": 400},
    }


#: On pixels the models predict x_0: a token has more numbers than the model is wide, and noise
#: fills all of them.
SPACES = {
    "latents, p = 2": {"model": LATENT, "latents": True},
    "pixels, p = 8": {
        "model": {"input_size": 32, "in_channels": 3, "patch_size": 8, **FEW},
        "process": {"prediction": "x0"},
        "latents": False,
    },
}
MARKS = (150, 300, 600)
EXPERIMENTS = (
    Experiment(
        name="latents-pixels",
        about="A DiT on latents and one on pixels with as many tokens and MACs, drawn now and then",
        settings={
            name: {**space, "recipe": {"steps": MARKS[-1]}, "marks": MARKS[:-1]}
            for name, space in SPACES.items()
        },
        seeds=range(2),
        compute=race_cell,
    ),
    Experiment(
        name="latents-scale",
        about="A small DiT on latents of another spread than 1, from the same noise",
        settings={
            f"{scale:g}": {
                "scale": scale,
                "model": {**LATENT, "hidden_size": 48, "depth": 3},
                "recipe": {"steps": 300},
            }
            for scale in (0.25, 1.0, 4.0)
        },
        seeds=range(3),
        compute=scale_cell,
    ),
    Experiment(
        name="latents-space",
        about="Autoencoders and models on their latents, on two parts of the training half: size "
        "of the latents, patches, weight of the KL, groups of the norms",
        settings={
            "8 x 8, p = 2": _space(8, 2, FEW),
            "16 x 16, p = 4": _space(16, 4, FEW),
            "16 x 16, p = 2": _space(16, 2, MANY),
            **{f"KL {k:g}": _space(8, 2, FEW, kl_weight=k) for k in (2e-5, 2e-3, 2e-2)},
            "four groups": _space(8, 2, FEW, groups=4),
        },
        seeds=range(1),
        compute=space_cell,
    ),
    Experiment(
        name="latents-errors",
        about="What the Fréchet distance says of held-out images with an error",
        settings={
            **{kind: {"kind": kind, "size": None} for kind in ("autoencoder", "coarse", "fine")},
            **{f"blur {s:g}": {"kind": "blur", "size": s} for s in (0.5, 0.8)},
            **{f"noise {s:g}": {"kind": "noise", "size": s} for s in (0.01, 0.03)},
            **{f"colour {s:g}": {"kind": "colour", "size": s} for s in (0.01, 0.03)},
        },
        seeds=range(1),
        compute=error_cell,
    ),
)
