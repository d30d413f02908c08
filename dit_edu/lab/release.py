"""Releasing a model: choose how to sample it, train several seeds, measure, write its card.

The rules that keep the numbers honest are here: settings are chosen on folds of the training half
and the held-out half is seen by the final figures alone; the figures are those of all seeds; and
the weights that ship are those of the first seed, good or bad.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import nn

from dit_edu.lab import zoo
from dit_edu.lab.data import dataset, folds
from dit_edu.lab.devices import device_name
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.features import load_features
from dit_edu.lab.files import provenance
from dit_edu.lab.metrics import evaluate, evaluate_on, references
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import TrainedModel, run

METRICS = ("accuracy", "fd", "fd_ratio", "precision", "recall", "closer")
#: What :func:`choose_sampling` tries: few steps are quicker, little guidance keeps variety.
STEPS, SCALES = (20, 50), (1.0, 1.1, 1.25, 1.5, 2.0)
ACCURACY_WANTED = 0.99
#: How far a figure may lie from the card on another machine, ``abs(now - card) <= a + r * card``.
TOLERANCE = {
    "accuracy": (0.005, 0.0),
    "fd": (0.01, 0.05),
    "fd_ratio": (0.04, 0.05),
    "precision": (0.02, 0.0),
    "recall": (0.02, 0.0),
    "closer": (0.02, 0.0),
}
CURVE_ROWS = 50
JUDGED = 500  # the most images of a fold that settings are judged by


def measure(model: nn.Module, recipe: Recipe, sampling: Sampling, seed: int = 0) -> dict[str, Any]:
    """Draw as many images as the held-out half has, of its labels, and measure them against it.

    Returns:
        See :func:`dit_edu.lab.metrics.evaluate_on`.
    """
    labels = dataset(recipe.data).load("heldout")[1]
    vae = zoo.load_vae(recipe)
    images = draw(model, recipe.process.build(), labels, sampling, vae=vae, seed=seed)
    return evaluate(images, labels, recipe.data)


def choose_sampling(
    recipe: Recipe,
    *,
    device: str = "auto",
    steps: Sequence[int] = STEPS,
    scales: Sequence[float] = SCALES,
) -> tuple[Sampling, list[dict[str, Any]]]:
    """Choose the sampler's steps and the guidance without a look at the held-out half.

    A model is trained on each of two folds of the training half, for as many passes over its images
    as the recipe makes over all of them, and measured against the other fold. Of
    the settings whose mean accuracy is at least 0.99 that with the least mean Fréchet distance
    wins; if there is none, the most accurate.

    Returns:
        The settings, and what was measured, rows with ``steps, scale, accuracy, fd``.
    """
    info, vae = dataset(recipe.data), zoo.load_vae(recipe)
    images, labels = info.load("train")
    features = load_features(f"{recipe.data}-features")
    found: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for fit, judge in folds(labels, k=2):
        judge = judge[:JUDGED]
        part, rest = (images[fit], labels[fit]), (images[judge], labels[judge])
        shorter = replace(recipe, steps=round(recipe.steps * len(fit) / len(labels)))
        model = run(shorter, device=device, data=part, progress=False).model
        for setting in product(steps, scales):
            sampling = Sampling.usual(recipe.process, *setting)
            samples = draw(model, recipe.process.build(), rest[1], sampling, vae=vae)
            metrics = evaluate_on(samples, rest[1], part, rest, features, judge=info.judge)
            found.setdefault(setting, []).append(metrics)
    table = [
        {
            "steps": setting[0],
            "scale": setting[1],
            **{key: statistics.fmean(m[key] for m in rows) for key in ("accuracy", "fd")},
        }
        for setting, rows in found.items()
    ]
    accurate = [row for row in table if row["accuracy"] >= ACCURACY_WANTED]
    best = (
        min(accurate, key=lambda row: row["fd"])
        if accurate
        else max(table, key=lambda row: row["accuracy"])
    )
    return Sampling.usual(recipe.process, best["steps"], best["scale"]), table


def release(
    recipe: Recipe,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    device: str = "auto",
    steps: Sequence[int] = STEPS,
    scales: Sequence[float] = SCALES,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train, measure and ship the model of a recipe.

    Args:
        recipe: whose model it is.
        seeds: of the training runs; the averaged weights of the first are shipped.
        device: see :func:`dit_edu.lab.train.train`.
        steps, scales: what to choose among; of one setting nothing is chosen. A model that starts
            from another is sampled as that one is, which has seen both halves of every fold.
        report: called with a line of text now and then.

    Returns:
        The card that was written, see :mod:`dit_edu.lab.zoo`.

    Raises:
        OSError: the zoo cannot be written.
        ValueError: ``seeds`` is empty, or training failed.
    """
    if not seeds:
        raise ValueError("seeds=() is empty; allowed: at least one seed.")
    if recipe.start is not None:
        sampling, tried = Sampling(**zoo.card(recipe.start)["sampling"]), []
    elif len(steps) == len(scales) == 1:
        sampling, tried = Sampling.usual(recipe.process, steps[0], scales[0]), []
    else:
        sampling, tried = choose_sampling(recipe, device=device, steps=steps, scales=scales)
        report(f"chosen on folds of the training half: {sampling}")
    trained: list[TrainedModel] = []
    seconds, measured = [], []
    for seed in seeds:
        start = time.perf_counter()
        trained.append(run(recipe, seed=seed, device=device, progress=False))
        seconds.append(round(time.perf_counter() - start, 1))
        measured.append({"seed": seed, **measure(trained[-1].model, recipe, sampling, seed)})
        report(f"seed {seed}: {seconds[-1]} s, {format_metrics(measured[-1])}")
    card = {
        "kind": recipe.kind,
        "about": recipe.about,
        "config": dict(recipe.model),
        "recipe": recipe.as_dict(),
        "seed": seeds[0],
        "steps": recipe.steps,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "seconds": seconds[0],
        "seconds_per_seed": seconds,
        **provenance(),
        "sampling": vars(sampling),
        "sampling_tried": tried,
        "metrics": {"per_seed": measured, **_mean_and_sd(measured)},
        "references": references(recipe.data, vae=zoo.load_vae(recipe)),
        "history": _curve(trained[0].history),
    }
    zoo.save(recipe.name, trained[0].model, card)
    return zoo.card(recipe.name)


def outside_tolerance(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """The metrics of ``now`` that differ from those of ``then`` by more than ``TOLERANCE``."""
    return [
        name
        for name, (absolute, relative) in TOLERANCE.items()
        if not abs(now[name] - then[name]) <= absolute + relative * abs(then[name])
    ]


def format_metrics(row: dict[str, Any]) -> str:
    """One line of metrics; a figure that means nothing for this row is a dash."""
    return "  ".join(
        f"{name} {'-' if row.get(name) is None else format(row[name], '.3f')}" for name in METRICS
    )


def _mean_and_sd(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Over seeds; the standard deviation is that of the sample (n - 1), None for a single seed."""
    columns = {name: [row[name] for row in rows] for name in METRICS}
    return {
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "sd": {
            name: statistics.stdev(values) if len(values) > 1 else None
            for name, values in columns.items()
        },
    }


def _curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most ``CURVE_ROWS`` rows, evenly spaced and with the last; empty bins are None in JSON."""
    every = max(1, math.ceil(len(history) / CURVE_ROWS))
    return [
        {
            "step": row["step"],
            "loss": row["loss"],
            "loss_by_bin": [
                value if math.isfinite(value) else None for value in row["loss_by_bin"]
            ],
        }
        for row in history[::-1][::every][::-1]
    ]
