"""Fine-tuning: a run that starts from a trained model, and files that hold adapters only."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dit_edu.dit import DiT
from dit_edu.lab.checkpoint import load_weights
from dit_edu.lab.files import read_safetensors, tensors_sha256, write_safetensors
from dit_edu.lab.lora import TABLE, LoRADiT

KIND = "adapters"
#: The file of them that the command line writes beside a checkpoint.
ADAPTERS = "adapters.safetensors"


def start_from(model: DiT, start: DiT) -> None:
    """Give a fresh model the weights of a trained one.

    The model may have more classes. They come after those of ``start``, and each begins as the null
    class (the mean of all where there is none): what is known of a new class is that it is some
    picture. A router that ``start`` does not have stays fresh.

    Args:
        model: with or without adapters or a router; changed in place.
        start: of the same size; adapters of its own are merged.

    Raises:
        ValueError: one of them is no DiT, a size differs, or ``model`` has fewer classes; the
            message names it.
    """
    for name, given in (("model", model), ("start", start)):
        if not isinstance(given, DiT):
            raise ValueError(f"{name} is a {type(given).__name__}; allowed: a DiT.")
    if isinstance(start, LoRADiT):
        start = start.merged()
    weights = start.state_dict()
    table, k = weights[TABLE], start.num_classes  # (K + 1, D) with a null class, else (K, D)
    if model.num_classes < k:
        raise ValueError(f"num_classes={model.num_classes}; allowed: at least start's {k}.")
    null = table[k:]  # (1 or 0, D)
    begin = null if len(null) else table.mean(0, keepdim=True)  # (1, D)
    weights[TABLE] = torch.cat([table[:k], begin.expand(model.num_classes - k, -1), null])
    own = model.state_dict()
    adapted = {name.replace(".base_layer", ""): name for name in own if ".lora_" not in name}
    weights = {adapted.get(name, name): weight for name, weight in weights.items()}
    fresh = {n: weight for n, weight in own.items() if ".lora_" in n or n.startswith("router.")}
    load_weights(model, fresh | weights, Path("start"))


def save_adapters(path: str | os.PathLike[str], model: LoRADiT, start: DiT) -> None:
    """Write what was trained, and nothing else, as a safetensors file.

    Args:
        path: of the file.
        model: whose adapters and labels are written.
        start: the model it was made from, of which the file keeps the hash.

    Raises:
        OSError: it cannot be written.
    """
    rank = model.peft_config["default"].r
    about = {"kind": KIND, "settings": {**model.settings, "rank": rank}}
    about["start"] = tensors_sha256(start.state_dict())
    write_safetensors(path, model.adapters(), about)


def load_adapters(path: str | os.PathLike[str], start: DiT) -> LoRADiT:
    """Put adapters on the model that they were trained on.

    Args:
        path: of a file that :func:`save_adapters` wrote.
        start: the model; it stays as it is.

    Returns:
        In evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no adapters, or they were trained on another model.
    """
    adapters, about = read_safetensors(path)
    if about.get("kind") != KIND:
        raise ValueError(f"{path} is a safetensors file, but holds no adapters of dit_edu.")
    if about["start"] != (found := tensors_sha256(start.state_dict())):
        raise ValueError(
            f"{path} belongs to another model: weights {about['start'][:12]}…, not {found[:12]}…"
        )
    with torch.random.fork_rng(devices=[]):
        model = LoRADiT(**about["settings"])
    start_from(model, start)
    load_weights(model, model.state_dict() | adapters, Path(path))
    return model.eval()
