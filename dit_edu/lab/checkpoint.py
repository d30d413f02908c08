"""Checkpoints: the whole state of a training run in one safetensors file, written atomically.

One file, so that weights and bookkeeping can never be of two different steps. It holds the model,
its average, AdamW's moments and the running loss per noise bin; its metadata (JSON) holds recipe,
seed and step. These two are the random state too: all that update k draws is a function of
(seed, k).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dit_edu.lab.files import read_safetensors, write_safetensors
from dit_edu.lab.recipes import Recipe

FILE_NAME = "checkpoint.safetensors"
KIND = "training checkpoint"
ADAMW_KEYS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """What training changes.

    Attributes:
        model, ema: the network and its exponential moving average.
        optimizer: AdamW over the model's trainable parameters, in their order.
        running: sums and counts of the loss per noise bin, (2, bins).
        seed: of the run.
        step: updates done.
    """

    model: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    running: Tensor
    seed: int
    step: int = 0


def checkpoint_path(out: str | os.PathLike[str]) -> Path:
    """The checkpoint inside the folder of a run."""
    return Path(out) / FILE_NAME


def save_checkpoint(out: str | os.PathLike[str], recipe: Recipe, state: TrainState) -> Path:
    """Write the state of a run into the folder ``out``, which is made if it is not there.

    Raises:
        OSError: it cannot be written; an earlier checkpoint is left as it was.
    """
    path = checkpoint_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"ema/{name}": tensor for name, tensor in state.ema.state_dict().items()}
    names = _trainable_names(state.model)
    for index, moments in state.optimizer.state_dict()["state"].items():
        for key, tensor in moments.items():
            tensors[f"optimizer/{key}/{names[index]}"] = tensor
    tensors["running"] = state.running
    metadata = dict(kind=KIND, recipe=recipe.as_dict(), seed=state.seed, step=state.step)
    write_safetensors(path, tensors, metadata)
    return path


def load_checkpoint(out: str | os.PathLike[str], recipe: Recipe, state: TrainState) -> None:
    """Continue: put the checkpoint in the folder ``out`` into ``state``, in place.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is truncated or foreign, or belongs to another recipe or seed; the message
            names the first field that differs.
    """
    path = checkpoint_path(out)
    tensors, metadata = read_safetensors(path)
    theirs = checkpoint_recipe(path, metadata)
    if difference := recipe.difference(theirs):
        raise ValueError(f"{path} belongs to another recipe: {difference}.")
    if metadata["seed"] != state.seed:
        raise ValueError(
            f"{path} belongs to another run: seed: {state.seed} against {metadata['seed']}."
        )
    load_weights(state.model, part(tensors, "model/"), path)
    load_weights(state.ema, part(tensors, "ema/"), path)
    moments: dict[int, dict[str, Tensor]] = {}
    if metadata["step"]:  # before the first update AdamW has none
        for index, name in enumerate(_trainable_names(state.model)):
            keys = {key: f"optimizer/{key}/{name}" for key in ADAMW_KEYS}
            if lacking := [key for key in keys.values() if key not in tensors]:
                raise ValueError(f"{path} does not fit the model: it lacks {lacking[0]!r}.")
            moments[index] = {key: tensors[stored] for key, stored in keys.items()}
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.running = tensors["running"].to(state.running.device)
    state.step = metadata["step"]


def checkpoint_recipe(path: Path, metadata: dict) -> Recipe:
    """The recipe in a checkpoint's metadata.

    Raises:
        ValueError: the metadata is not that of a training checkpoint.
    """
    if metadata.get("kind") != KIND:
        raise ValueError(f"{path} is a safetensors file, but no training checkpoint of dit_edu.")
    return Recipe.from_dict(metadata["recipe"])


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def load_weights(
    model: nn.Module, weights: dict[str, Tensor], path: Path, *, assign: bool = False
) -> None:
    """Put ``weights`` into ``model``; names and shapes must be exactly the model's.

    Args:
        assign: take the tensors themselves, not copies; so also a model on the ``meta`` device gets
            weights.

    Raises:
        ValueError: a name is missing or too many, or a shape differs; the message names it.
    """
    own = model.state_dict()
    for name in own:
        if name not in weights:
            raise ValueError(f"{path} does not fit the model: it lacks {name!r}.")
        if weights[name].shape != own[name].shape:
            raise ValueError(
                f"{path} does not fit the model: {name!r} has shape {tuple(weights[name].shape)}; "
                f"allowed: {tuple(own[name].shape)}."
            )
    if foreign := sorted(set(weights) - set(own)):
        raise ValueError(f"{path} does not fit the model: it has {foreign[0]!r}, unknown here.")
    model.load_state_dict(weights, assign=assign)


def _trainable_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
