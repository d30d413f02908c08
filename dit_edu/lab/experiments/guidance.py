"""The chapter on guidance: scales, intervals, channels, what dropping labels costs, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dit_edu.guidance import Guided
from dit_edu.lab import zoo
from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.experiments.sampling import MODEL, variety
from dit_edu.lab.experiments.training import (
    definition,
    heldout_batch,
    mean_by_bin,
    recipe_of,
    trained,
)
from dit_edu.lab.metrics import evaluate
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.release import measure
from dit_edu.sampling import ddim_sample, noise_streams

SCALES = (1, 1.25, 1.5, 2, 3, 4, 6, 8)
METRICS = ("accuracy", "fd_ratio", "precision", "recall")


class FourChannels(nn.Module):
    """A denoiser of grey images, seen as one of images half as large with four channels.

    Channel 2a + b holds the pixels in rows 2i + a and columns 2j + b. No number changes, so this is
    the same denoiser; but now there is a fourth channel that one can forget to guide.

    Args:
        model: a denoiser with ``in_channels`` 1 and even sides.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.in_channels = 4
        self.input_size = tuple(side // 2 for side in model.input_size)
        self.num_classes = model.num_classes
        self.class_dropout_prob = model.class_dropout_prob

    def null_condition(self, y: Tensor) -> Tensor:
        """The wrapped model's null condition."""
        return self.model.null_condition(y)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """``x`` (B, 4, H/2, W/2), ``t`` (B,), ``y`` (B,) → (B, 4, H/2, W/2)."""
        return pixel_unshuffle(self.model(pixel_shuffle(x, 2), t, y), 2)


def drawn(setting: Mapping[str, Any], labels: Tensor, seed: int) -> Tensor:
    """Images of the digits model under the guidance of a setting, by DDIM.

    Args:
        setting: ``model``, ``steps``, ``scale``, ``channels`` and ``interval``.
        labels: (n,) integers.
        seed: of the noise; every setting begins with the same.

    Returns:
        (n, 1, 8, 8) in [-1, 1].
    """
    model, card = zoo.load(setting["model"])
    size = (model.in_channels, *model.input_size)
    noise = [torch.randn(size, generator=g) for g in noise_streams(seed, len(labels))]
    noise = pixel_unshuffle(torch.stack(noise), 2)  # n x (1, H, W) -> (n, 4, H/2, W/2)
    images = ddim_sample(
        Guided(FourChannels(model), setting["scale"], setting["channels"], setting["interval"]),
        Recipe.from_dict(card["recipe"]).process.build(),
        noise.shape,
        labels,
        steps=setting["steps"],
        noise=noise,
        clip=True,
    )
    return pixel_shuffle(images, 2).clamp(-1, 1)  # (n, 1, H, W)


def guidance_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Draw as many digits as the held-out half has, and measure them against it."""
    real, labels = digits("heldout")
    images = drawn(setting, labels, seed)
    found = {name: plain(value) for name, value in evaluate(images, labels).items()}
    ours, theirs = pixel_unshuffle(images, 2), pixel_unshuffle(real, 2)  # (n, 4, 4, 4) each
    return {
        **{name: found[name] for name in METRICS},
        "variety": plain(variety(images, labels) / variety(real, labels)),
        "variety_by_channel": [
            plain(variety(ours[:, c : c + 1], labels) / variety(theirs[:, c : c + 1], labels))
            for c in range(4)
        ],
    }


def setting(
    scale: float, channels: int | str = "all", interval: list[int] | None = None
) -> dict[str, Any]:
    """A setting of :func:`drawn`; with the model's hash, so that another is noticed."""
    common = {"model": MODEL, "weights": zoo.card(MODEL)["sha256"][:12], "steps": 20}
    return {**common, "scale": scale, "channels": channels, "interval": interval}


# ---------------------------------------------------------------------- what dropping labels costs


def dropout_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train, and measure: the loss with and without labels, samples at three scales.

    Without a null class there is neither a loss without labels nor guidance.
    """
    model, recipe = trained(setting, seed, []), recipe_of(setting)
    process, has_null = recipe.process.build(), model.class_dropout_prob > 0
    x0, t, y, noise = heldout_batch(process)
    conditions = {"loss": y} | ({"loss_null": model.null_condition(y)} if has_null else {})
    found = {}
    for name, condition in conditions.items():
        with torch.no_grad():
            loss = process.losses(model, x0, t, condition, noise=noise)["loss"]  # (n,)
        by_bin = mean_by_bin(loss, t, process)  # (bins,)
        found[name], found[f"{name}_by_bin"] = plain(by_bin.mean(), 6), plain(by_bin.tolist(), 6)
    for scale in (1, 1.5, 2) if has_null else (1,):
        quality = measure(model, recipe, Sampling(steps=20, scale=scale))
        found |= {f"{name}_{scale}": plain(quality[name]) for name in METRICS}
    return found


# ---------------------------------------------------------------------- what guidance costs


def _two_calls(model: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    cond, uncond = model(x, t, y), model(x, t, model.null_condition(y))  # (B, C, H, W) each
    return uncond + 2 * (cond - uncond)


#: Ways to a guided answer, by name: ``way(model)`` is called as a denoiser.
WAYS: Mapping[str, Callable[[nn.Module], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "label only": lambda model: model,
    "doubled batch": lambda model: Guided(model, 2.0),
    "two calls": lambda model: lambda x, t, y: _two_calls(model, x, t, y),
    "outside the interval": lambda model: Guided(model, 2.0, interval=(0, 400)),
}


def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Seconds of one answer at t = 500 by each way; ``seed`` only numbers the runs.

    The ways take turns, and of each the quickest time counts: other work on the machine adds to a
    time, and never takes away from it.
    """
    model, _ = zoo.load(setting["model"])
    n = setting["batch"]
    x, t, y = torch.randn(n, 1, 8, 8), torch.full((n,), 500), torch.arange(n) % 10
    ways = {name: make(model) for name, make in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(setting["rounds"]):
            for name, way in ways.items():
                start = time.perf_counter()
                way(x, t, y)
                seconds[name].append(time.perf_counter() - start)
    return {name: plain(min(taken)) for name, taken in seconds.items()}


EXPERIMENTS = (
    Experiment(
        name="guidance-scale",
        about=f"{MODEL} at guidance scales from 1 to 8, against the held-out half",
        settings={f"{s:g}": setting(s) for s in SCALES},
        seeds=range(3),
        compute=guidance_cell,
    ),
    Experiment(
        name="guidance-dropout",
        about="How often training drops the label: losses and samples of the small digits model",
        settings={
            f"{p:g}": definition(model={"class_dropout_prob": p}) for p in (0.0, 0.1, 0.2, 0.5)
        },
        seeds=range(4),
        compute=dropout_cell,
    ),
    Experiment(
        name="guidance-channels",
        about=f"{MODEL} seen as a model of four channels, of which three or all are guided",
        settings={
            f"{channels} {s:g}": setting(s, channels)
            for x in (0.5, 3)
            for channels, s in ((3, 1 + x), ("all", 1 + 0.75 * x))
        },
        seeds=range(3),
        compute=guidance_cell,
    ),
    Experiment(
        name="guidance-interval",
        about=f"{MODEL} at s = 2 in an interval of steps, against the held-out half",
        settings={
            f"{low}–{high}": setting(2, interval=[low, high])
            for low, high in ((0, 333), (334, 666), (667, 999), (0, 666))
        },
        seeds=range(3),
        compute=guidance_cell,
    ),
    Experiment(
        name="guidance-cost",
        about=f"Seconds of a guided answer of {MODEL}: doubled batch, two calls, label only",
        settings={
            f"batch {n}": {"model": MODEL, "batch": n, "rounds": rounds}
            for n, rounds in ((1, 400), (8, 300), (64, 120), (256, 50))
        },
        seeds=range(3),
        compute=cost_cell,
    ),
)
