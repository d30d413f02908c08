"""The chapter on training: one knob at a time around a small recipe, and what a normal loss is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.interpolant import Interpolant
from dit_edu.lab.data import Labelled, digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.profile import count_training
from dit_edu.lab.recipes import Process, Recipe
from dit_edu.lab.release import measure
from dit_edu.lab.train import LossFn, train

#: What every cell starts from: fields of :class:`~dit_edu.lab.recipes.Recipe`, as JSON.
BASE: dict[str, Any] = {
    "name": "digits-small",
    "model": {
        "input_size": 8,
        "patch_size": 2,
        "in_channels": 1,
        "hidden_size": 32,
        "depth": 3,
        "num_heads": 4,
        "num_classes": 10,
        "class_dropout_prob": 0.1,
        "learn_sigma": False,
        "embed_std": 1.0,
    },
    "steps": 300,
    "batch_size": 64,
    "lr": 0.016,
    "warmup": 30,
    "betas": [0.9, 0.99],
}
REPEATS = 8  # noise levels per held-out image
CURVE_EVERY = 10  # updates between two points of a curve


def definition(data: str = "plain", loss: str = "plain", **recipe: Any) -> dict[str, Any]:
    """A setting: the base with some fields of the recipe changed, a view of the data, a loss."""
    model = {**BASE["model"], **recipe.pop("model", {})}
    return {"recipe": {**BASE, **recipe, "model": model}, "data": data, "loss": loss}


def recipe_of(setting: Mapping[str, Any]) -> Recipe:
    """The recipe of a setting."""
    fields = setting["recipe"]
    process = Process(**fields.get("process", {}))
    return Recipe(**{**fields, "betas": tuple(fields["betas"]), "process": process})


# ---------------------------------------------------------------------- what can be done to a run


def _with_mirrored(images: Tensor, labels: Tensor) -> Labelled:
    return torch.cat([images, images.flip(-1)]), labels.repeat(2)  # (2n, C, H, W), (2n,)


def _shuffled(images: Tensor, labels: Tensor) -> Labelled:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images, labels[order]


#: Views of the training images, by name.
DATA: Mapping[str, Callable[[Tensor, Tensor], Labelled]] = {
    "plain": lambda images, labels: (images, labels),
    "flips": _with_mirrored,
    "labels shuffled": _shuffled,
    "pixels in [0, 1]": lambda images, labels: ((images + 1) / 2, labels),
    "fifty images": lambda images, labels: (images[:50], labels[:50]),
}


def _in_bfloat16(model, diffusion, x0, t, y, noise) -> dict[str, Tensor]:
    with torch.autocast(x0.device.type, torch.bfloat16):
        return diffusion.losses(model, x0, t, y, noise=noise)


def _other_noise(model, diffusion, x0, t, y, noise) -> dict[str, Tensor]:
    """A bug: the noise in the target is not the noise in the image."""
    out = model(diffusion.q_sample(x0, t, noise), t, y)  # (B, C, H, W)
    target = diffusion.target(x0, torch.randn_like(noise), t)  # (B, C, H, W)
    mse = (out - target).square().flatten(1).mean(1)  # (B, C, H, W) -> (B,)
    return {"loss": mse, "mse": mse}


#: Losses by name; None is the process's own.
LOSSES: Mapping[str, LossFn | None] = {
    "plain": None,
    "bfloat16": _in_bfloat16,
    "other noise": _other_noise,
}


# ---------------------------------------------------------------------- what is measured


def heldout_batch(
    process: Interpolant, data: Labelled | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The digits x0, steps t, labels and noise that every model is asked about.

    Each image comes at ``REPEATS`` steps, and all n steps are spread evenly over the process. The
    images are the held-out ones unless ``data`` is given.
    """
    images, labels = digits("heldout") if data is None else data
    n, g = REPEATS * len(images), torch.Generator().manual_seed(0)
    levels = (torch.arange(n) + 0.5) * (process.num_timesteps / n)  # (n,), increasing
    t = levels.long()[torch.randperm(n, generator=g)]  # (n,)
    x0 = torch.cat([images] * REPEATS)  # (n, C, H, W)
    return x0, t, torch.cat([labels] * REPEATS), torch.randn(x0.shape, generator=g)


def mean_by_bin(found: Tensor, t: Tensor, process: Interpolant, bins: int = 10) -> Tensor:
    """The means of ``found`` (n,) by range of its steps ``t`` (n,), low noise first: (bins,)."""
    bin_of = t * bins // process.num_timesteps  # (n,)
    return torch.stack([found[bin_of == b].mean() for b in range(bins)])


def heldout_loss(model: nn.Module, diffusion: Interpolant, data: Labelled | None = None) -> Tensor:
    """The loss on the held-out digits, or on ``data``, by range of t: (bins,)."""
    x0, t, y, noise = heldout_batch(diffusion, data)
    with torch.no_grad():
        found = diffusion.losses(model, x0, t, y, noise=noise)["loss"]  # (n,)
    return mean_by_bin(found, t, diffusion)


def trained(setting: Mapping[str, Any], seed: int, curve: list[list[float]]) -> nn.Module:
    """Train the model of a setting; ``curve`` gets the running loss per bin now and then."""
    data, loss_fn = DATA[setting["data"]](*digits("train")), LOSSES[setting["loss"]]
    for step in train(recipe_of(setting), seed=seed, device="cpu", data=data, loss_fn=loss_fn):
        if step.step % CURVE_EVERY == 0:
            curve.append(plain(step.loss_by_bin))
    return step.ema


def quality(model: nn.Module, recipe: Recipe, sampling: Sampling) -> dict[str, Any]:
    """What a cell says of a trained model: held-out loss, accuracy and distance of samples."""
    loss, drawn = heldout_loss(model, recipe.process.build()), measure(model, recipe, sampling)
    return {
        "loss": plain(loss.mean(), 6),
        "loss_by_bin": plain(loss.tolist(), 6),
        "accuracy": plain(drawn["accuracy"]),
        "fd_ratio": plain(drawn["fd_ratio"]),
    }


def ablation_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure the average on the held-out digits: loss, samples of 10 DDIM steps."""
    start = time.perf_counter()
    model = trained(setting, seed, [])
    seconds = time.perf_counter() - start
    found = quality(model, recipe_of(setting), Sampling(steps=10))
    return {**found, "train_seconds": plain(seconds)}


def curve_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and keep what the loop reports: the running loss per bin, every ``CURVE_EVERY``."""
    curve: list[list[float]] = []
    trained(setting, seed, curve)
    return {"curve": curve}


def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What an update costs; the seed only numbers the repetitions."""
    cost = count_training(recipe_of(setting), updates=20)
    return {name: plain(value, 6) for name, value in vars(cost).items()}


# ---------------------------------------------------------------------- the experiments

EXPERIMENTS = (
    Experiment(
        name="training",
        about="One knob of the recipe at a time: held-out loss and samples of a small digits model",
        settings={
            "base": definition(),
            "weight decay 0.05": definition(weight_decay=0.05),
            "weight decay 1": definition(weight_decay=1.0),
            "β₂ = 0.999": definition(betas=[0.9, 0.999]),
            "no clipping": definition(grad_clip=1e9),
            "lr / 4": definition(lr=BASE["lr"] / 4),
            "lr × 4": definition(lr=BASE["lr"] * 4),
            "lr × 2": definition(lr=BASE["lr"] * 2),
            "lr × 2, no warm-up": definition(lr=BASE["lr"] * 2, warmup=0),
            "no warm-up": definition(warmup=0),
            "constant lr": definition(lr_floor=1.0),
            "constant lr, no average": definition(lr_floor=1.0, ema_decay=0.0),
            "no average": definition(ema_decay=0.0),
            "average over 10": definition(ema_decay=0.9),
            "bfloat16": definition(loss="bfloat16"),
            "mirrored images": definition(data="flips"),
            "dropout 0.1": definition(model={"dropout": 0.1}),
            "no label dropout": definition(model={"class_dropout_prob": 0.0}),
        },
        seeds=range(6),
        compute=ablation_cell,
    ),
    Experiment(
        name="loss-curves",
        about="The running loss per noise bin of the small digits model, by seed",
        settings={"normal": definition()},
        seeds=[seed for seed in range(17) if seed != 8],  # 8 is that of the run to be judged
        compute=curve_cell,
    ),
    Experiment(
        name="loss-faults",
        about="The same for a seed more, and for runs with something wrong",
        settings={
            "another seed": definition(),
            "labels shuffled": definition(data="labels shuffled"),
            "other noise": definition(loss="other noise"),
            "pixels in [0, 1]": definition(data="pixels in [0, 1]"),
            "lr / 100": definition(lr=BASE["lr"] / 100),
            "fifty images": definition(data="fifty images"),
        },
        seeds=(8,),
        compute=curve_cell,
    ),
    Experiment(
        name="training-cost",
        about="Memory, operations and speed of an update of the small digits model",
        settings={
            "batch 1": definition(batch_size=1),
            "batch 16": definition(batch_size=16),
            "batch 64": definition(batch_size=64),
            "batch 256": definition(batch_size=256),
            "twice as deep": definition(model={"depth": 6}),
            "twice as wide": definition(model={"hidden_size": 64}),
        },
        seeds=range(5),
        compute=cost_cell,
    ),
)
