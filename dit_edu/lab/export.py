"""Exporting a model for the page, where ``book/_static/dit-net.js`` runs it without Python.

The file is a script, because a page that is opened from a disk may load scripts and nothing else:
``globalThis.DIT_MODELS[NAME] = {…}``, JSON with the weights in one base64 string.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_edu._checks import check_choice
from dit_edu.conditioning import TimestepEmbedder
from dit_edu.dit import DiT
from dit_edu.lab import zoo
from dit_edu.lab.files import atomic_write
from dit_edu.lab.lora import LoRADiT
from dit_edu.lab.recipes import Recipe

DTYPES = ("float16", "float32")
SMALL = 4096  # numbers; what is smaller stays float32: it costs little, and rounding it costs much
START, MIDDLE, END = '(globalThis.DIT_MODELS??={})["', '"]=', ";\n"


def export(
    name: str | os.PathLike[str], path: str | os.PathLike[str], dtype: str = "float16"
) -> Path:
    """Write a model of the zoo, or of one's own run, as a script that a page can load.

    Args:
        name: see :func:`dit_edu.lab.zoo.load`.
        path: of the script; it ends in ``.js``.
        dtype: of the large matrices, ``"float16"`` or ``"float32"``; vectors and small tables are
            float32.

    Returns:
        ``path``.

    Raises:
        ValueError: the name or ``dtype`` is unknown, ``path`` does not end in ``.js``, the model is
            none that the page can run, or a weight is too large for ``dtype``.
        OSError: the file cannot be written.
    """
    check_choice("dtype", dtype, DTYPES)
    path = Path(path)
    if path.suffix != ".js":
        raise ValueError(f"path={os.fspath(path)!r}: unknown extension; allowed: .js.")
    model, card = zoo.load(name)
    if isinstance(model, LoRADiT):
        model = model.merged()
    if (
        not isinstance(model, DiT)
        or card["config"].get("conditioning", "adaln-zero") != "adaln-zero"
    ):
        raise ValueError(f"{name} is a {card['kind']}; allowed: a DiT with adaln-zero blocks.")
    if model.out_channels != model.in_channels:
        raise ValueError(f"{name} learns its variance; allowed: learn_sigma=False.")
    process = Recipe.from_dict(card["recipe"]).process.build()
    waves = model.t_embedder.frequency_embedding_size
    exact = {
        "alphas_cumprod": process.alphas_cumprod.numpy(),
        "omega": TimestepEmbedder.frequencies(waves).numpy(),
    }
    weights = {key: _cast(key, w, dtype) for key, w in model.state_dict().items()}
    tensors, data = _pack({**exact, **weights})
    content = {
        "name": card["name"],
        "sha256": card.get("sha256"),
        "config": {
            "input_size": list(model.input_size),
            "patch_size": model.patch_size,
            "in_channels": model.in_channels,
            "hidden_size": model.pos_embed.shape[-1],
            "depth": len(model.blocks),
            "num_heads": model.blocks[0].attn.num_heads,
            "num_classes": model.num_classes,
        },
        "prediction": process.prediction,
        "sampling": card["sampling"],
        "parameters": sum(w.numel() for w in model.parameters() if w.requires_grad),
        "tensors": tensors,
        "data": base64.b64encode(data).decode(),
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    with atomic_write(path, "w") as file:
        file.write(f"{START}{card['name']}{MIDDLE}{text}{END}")
    return path


def read_export(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`export` wrote.

    Returns:
        The content without its data, and the tensors by name.

    Raises:
        ValueError: the file is none that :func:`export` wrote, or it is truncated.
        OSError: it cannot be read.
    """
    text = Path(path).read_text("utf8")
    if not (text.startswith(START) and text.endswith(END) and MIDDLE in text):
        raise ValueError(f"{os.fspath(path)} is no exported model, or it is truncated.")
    content = json.loads(text[text.index(MIDDLE) + len(MIDDLE) : -len(END)])
    data = base64.b64decode(content.pop("data"))
    tensors = {}
    for name, place in content["tensors"].items():
        count = int(np.prod(place["shape"], dtype=int))
        array = np.frombuffer(data, place["dtype"], count, place["offset"])
        tensors[name] = torch.from_numpy(array.reshape(place["shape"]).copy())
    return content, tensors


def _cast(name: str, weight: Tensor, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # looked for in the next line
        array = weight.numpy().astype(dtype if weight.numel() >= SMALL else "float32")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has a weight that {dtype} cannot hold; allowed: float32.")
    return array


def _pack(arrays: dict[str, np.ndarray]) -> tuple[dict[str, dict[str, Any]], bytes]:
    """All arrays in one string of bytes, little-endian, each at a multiple of 8; and where."""
    places, data = {}, bytearray()
    for name, array in arrays.items():
        data.extend(bytes(-len(data) % 8))
        places[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "offset": len(data)}
        data.extend(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return places, bytes(data)
