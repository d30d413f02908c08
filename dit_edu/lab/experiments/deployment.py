"""Deployment: what eight bits cost in quality, and what they and other runtimes save in time."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dit_edu.bands import ByNoise, even_edges
from dit_edu.dit import DiT
from dit_edu.hidit.deployment import (
    Batch,
    input_ranges,
    noisy_batches,
    quantized,
    stored_bytes,
    to_onnx,
    to_program,
)
from dit_edu.interpolant import Interpolant
from dit_edu.lab import zoo
from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.release import measure

NAME, BINS, CALIBRATION = "digits-dit", 10, 128  # images that calibration sees, all in every bin


@cache
def released() -> tuple[nn.Module, Recipe, dict[str, Any]]:
    """The model that is quantised, its recipe and its card."""
    model, card = zoo.load(NAME)
    return model, Recipe.from_dict(card["recipe"]), card


def calibration(process: Interpolant, seed: int) -> list[Batch]:
    """Noisy images of the training half, one batch for each range of t."""
    images, labels = digits("train")
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(labels), generator=g)[:CALIBRATION]
    return noisy_batches(process, images[rows], labels[rows], BINS, g)


def _static(model: nn.Module, batches: list[Batch]) -> nn.Module:
    return quantized(model, "static", input_ranges(model, batches))


#: Ways to make a model small, by name: of the model and calibration batches, clean first.
WAYS: Mapping[str, Callable[[nn.Module, list[Batch]], nn.Module]] = {
    "float": lambda model, batches: model,
    "weights": lambda model, batches: quantized(model, "weights"),
    "dynamic": lambda model, batches: quantized(model, "dynamic"),
    "static, all levels": _static,
    "static, clean only": lambda model, batches: _static(model, batches[:1]),
    "static, noise only": lambda model, batches: _static(model, batches[-1:]),
    "static, by level": lambda model, batches: ByNoise(
        [_static(model, [batch]) for batch in batches], even_edges(len(batches))
    ),
}


@torch.no_grad()
def quality_cell(setting: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Quantise; how far its answers are off by range of t, and what it draws.

    The seed is that of calibration and of the noise that samples start from.
    """
    model, recipe, card = released()
    process = recipe.process.build()
    small = WAYS[setting["way"]](model, calibration(process, seed))
    images, labels = digits("heldout")
    g = torch.Generator().manual_seed(1000 + seed)
    errors = []
    for batch in noisy_batches(process, images[:200], labels[:200], BINS, g):
        want = model(*batch)
        errors.append(((small(*batch) - want).norm() / want.norm()).item())
    drawn = measure(small, recipe, Sampling(**card["sampling"]), seed=seed)
    return {
        "error": plain(statistics.mean(errors), 4),
        "error_by_bin": plain(errors, 4),
        "bytes": stored_bytes(small),
        **{name: plain(drawn[name]) for name in ("accuracy", "fd_ratio", "closer")},
    }


# ---------------------------------------------------------------------- time


def _big(n: int) -> tuple[nn.Module, Batch]:
    """DiT-S/2 with random weights, and a batch for it."""
    model = DiT.from_preset("DiT-S/2", num_classes=10).eval()
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)  # else it would multiply by zero
    t = torch.randint(1000, (n,))
    return model, (torch.randn(n, 4, 32, 32), t, t % 10)


def _onnx(model: nn.Module, batch: Batch) -> Callable[..., Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(to_program(model, batch), path := Path(folder) / "net.onnx")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda *args: session.run(
        None, {name: part.numpy() for name, part in zip(names, args, strict=True)}
    )


#: Ways to run a model, by name, each from the model and an example.
RUNS: Mapping[str, Callable[[nn.Module, Batch], Callable[..., Any]]] = {
    "float": lambda model, batch: model,
    "weights": lambda model, batch: quantized(model, "weights"),
    "dynamic": lambda model, batch: quantized(model, "dynamic"),
    "static": lambda model, batch: _static(model, [batch]),
    "compiled": lambda model, batch: torch.compile(model, fullgraph=True),
    "dynamic, compiled": lambda model, batch: torch.compile(quantized(model, "dynamic")),
    "exported": lambda model, batch: to_program(model, batch).module(),
    "ONNX runtime": _onnx,
}


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Least seconds of a forward pass over those of the float model, taken in turns.

    The seed numbers the repetitions.
    """
    torch.manual_seed(seed)
    model, batch = (
        _big(setting["batch"])
        if setting["model"] == "DiT-S/2"
        else (released()[0], calibration(released()[1].process.build(), seed)[5])
    )
    batch = tuple(part[: setting["batch"]] for part in batch)
    start = time.perf_counter()
    run = RUNS[setting["run"]](model, batch)
    run(*batch)  # compilers work on the first call
    ready = time.perf_counter() - start
    times: dict[str, list[float]] = {"float": [], "run": []}
    for turn in range(setting["turns"] + 1):
        for name, call in (("float", model), ("run", run)):
            start = time.perf_counter()
            call(*batch)
            if turn:
                times[name].append(time.perf_counter() - start)
    float_time, run_time = (min(found) for found in times.values())  # others may use the machine
    return {
        "seconds": plain(run_time, 6),
        "ratio": plain(run_time / float_time),
        "ready_seconds": plain(ready),
    }


EXPERIMENTS = (
    Experiment(
        name="eight-bits",
        about="digits-dit with eight-bit weights: errors by noise level, samples, bytes",
        settings={name: {"way": name} for name in WAYS},
        seeds=range(3),
        compute=quality_cell,
    ),
    Experiment(
        name="deployment-cost",
        about="Time of a forward pass in other forms, over that of the float model",
        settings={
            f"{model}, batch {batch}, {run}": dict(model=model, batch=batch, run=run, turns=turns)
            for model, batch, turns in (("DiT-S/2", 4, 3), (NAME, 64, 30))
            for run in RUNS
            if run != "float"
        },
        seeds=range(1),
        compute=cost_cell,
    ),
)
