"""Training data from a folder, encoded once: the latent cache.

An autoencoder takes longer than a small Diffusion Transformer, and its answer to an image never
changes. So every example goes through it once, before training, into one safetensors file. The file
is read through memory mapping: only what a batch asks for is fetched from the disk.

What is kept is the mean of the encoder's posterior, normalised as
:meth:`~dit_edu.latents.VAE.encode` has it, and not its variance: that would double the file for a
noise that is small beside the latents. Mirrored images are encoded too, because a mirrored latent
is not the latent of the mirrored image. Without an autoencoder the pixels themselves are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock
from torch import Tensor

from dit_edu.lab.data import OWN, Labelled
from dit_edu.lab.files import METADATA_KEY, read_safetensors, sha256, tensors_sha256
from dit_edu.lab.folder import MODES, Folder, read_image, read_latents, scan
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.zoo import load_vae
from dit_edu.latents import BATCH, VAE

CACHE = Path("runs") / "cache"
PIXELS = BATCH * 32**2  # of the images that are encoded at once
FORMAT = 1  # part of the name of a cache: another one for another way to read or to encode


def own_data(
    recipe: Recipe,
    path: str | os.PathLike[str],
    *,
    flip: bool = False,
    first_label: int = 0,
    cache: str | os.PathLike[str] = CACHE,
    report: Callable[[str], None] = print,
) -> tuple[Recipe, Labelled]:
    """What :func:`~dit_edu.lab.train.train` needs to train a recipe's model on a folder.

    Args:
        recipe: whose model says how large the images are, and its ``latents`` what encodes them.
        path: of the folder, see :mod:`dit_edu.lab.folder`.
        flip: add every image mirrored.
        first_label: of the folder's classes: above 0 where a model that knows others goes on.
        cache: the folder for the cache; made if need be.
        report: called with a line of text now and then.

    Returns:
        The recipe for as many classes, whose ``data`` is the fingerprint of all that went into the
        cache; and the data, memory-mapped: images or latents (n, C, h, w) and labels (n,).

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the folder or one of its files is not allowed; the message names it.
    """
    folder, vae = scan(path), load_vae(recipe)
    side, channels = recipe.model["input_size"], recipe.model["in_channels"]
    if vae is not None and vae.latent_shape != (channels, side, side):
        raise ValueError(
            f"input_size={side} and in_channels={channels} of the model; allowed with these "
            f"latents: {vae.latent_shape[1]} and {vae.latent_shape[0]}."
        )
    if folder.latents and flip:
        raise ValueError("flip=True with latents; allowed: images, to be mirrored before encoding.")
    if folder.latents and vae is None:
        raise ValueError(
            f"{path} holds latents; allowed: a recipe that names the autoencoder they are of."
        )
    if vae is None and channels not in MODES:
        raise ValueError(f"in_channels={channels} without latents; allowed: 1 (grey), 3 (RGB).")
    name = OWN + fingerprint(folder, recipe, vae, flip)
    file = Path(cache) / f"{name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):  # several processes may want the same cache
        if not file.exists():
            _write(file, folder, (channels, side, side), vae, flip, report)
    data, _ = read_safetensors(file)
    classes = [f"{first_label + k} {n}" for k, n in enumerate(folder.class_names)]
    mirrored = " and their mirror images" if flip else ""
    what = "latents" if folder.latents else "images"
    report(f"{path}: {len(folder)} {what}{mirrored}; classes: {', '.join(classes)}; in {file}")
    model = {**recipe.model, "num_classes": first_label + len(folder.class_names)}
    about = f"{recipe.name} on a folder; classes: {', '.join(classes)}"
    return replace(recipe, data=name, model=model, about=about), (
        data["x"],
        data["y"] + first_label,
    )


def fingerprint(folder: Folder, recipe: Recipe, vae: VAE | None, flip: bool) -> str:
    """Twelve digits that change with any byte of any file, a name, the size, or the encoder."""
    digest = hashlib.sha256()
    encoder = tensors_sha256(vae.state_dict()) if vae is not None and not folder.latents else None
    shape = [recipe.model["in_channels"], recipe.model["input_size"]]
    digest.update(json.dumps([FORMAT, shape, flip, encoder]).encode())
    for file in folder.files:
        inside = file.relative_to(folder.path).as_posix()
        digest.update(json.dumps([inside, sha256(file)]).encode())
    return digest.hexdigest()[:12]


def _examples(
    folder: Folder, shape: tuple[int, ...], vae: VAE | None, flip: bool, start: int, stop: int
) -> Tensor:
    """The rows of files ``start`` to ``stop``: (stop - start, C, h, w), or twice as many."""
    files = folder.files[start:stop]
    if folder.latents:
        return torch.stack([read_latents(file, shape) for file in files])
    channels, size, _ = shape if vae is None else vae.image_shape
    x = torch.stack([read_image(file, size, channels) for file in files])  # (n, C, H, W)
    if flip:
        x = torch.stack([x, x.flip(-1)], dim=1).flatten(0, 1)  # (2n, C, H, W), pair by pair
    return x if vae is None else vae.encode(x)


def _write(
    file: Path,
    folder: Folder,
    shape: tuple[int, ...],
    vae: VAE | None,
    flip: bool,
    report: Callable[[str], None],
) -> None:
    """Encode the whole folder; what an interrupted call has done is not done again.

    The rows are appended to a file beside ``file``, batch by batch, and flushed to the disk; when
    all are there it gets its name. So ``file`` is whole or not there.
    """
    copies = 2 if flip else 1
    labels = torch.tensor(folder.labels).repeat_interleave(copies)  # (n,)
    head = _header(labels, shape, {"classes": folder.class_names, "flip": flip})
    row = 4 * prod(shape)  # bytes
    pixels = prod((vae.image_shape if vae else shape)[1:])
    at_once = max(1, PIXELS // (copies * pixels))  # files
    partial = file.with_suffix(".partial")
    with open(partial, "ab") as out:
        done = max(0, out.tell() - len(head)) // (row * copies * at_once) * at_once
        out.truncate(len(head) + row * copies * done if done else 0)
        if not done:
            out.write(head)
        for start in range(done, len(folder), at_once):
            stop = min(start + at_once, len(folder))
            x = _examples(folder, shape, vae, flip, start, stop)
            if not start and folder.latents:
                spread = x.std().item()
                report(f"the latents' spread is {spread:.2g}; the noise schedules expect about 1")
            _append(out, x)
            report(f"cached {stop} of {len(folder)}")
    os.replace(partial, file)


def _append(out: BinaryIO, x: Tensor) -> None:
    out.write(x.contiguous().numpy().tobytes())
    out.flush()
    os.fsync(out.fileno())


def _header(labels: Tensor, shape: tuple[int, ...], about: dict) -> bytes:
    """All of a safetensors file but the numbers of ``x``, which come last and may be appended."""
    y = labels.numpy().tobytes()
    end = len(y) + len(labels) * 4 * prod(shape)
    entries = {
        "__metadata__": {METADATA_KEY: json.dumps(about)},
        "y": {"dtype": "I64", "shape": [len(labels)], "data_offsets": [0, len(y)]},
        "x": {"dtype": "F32", "shape": [len(labels), *shape], "data_offsets": [len(y), end]},
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return struct.pack("<Q", len(text)) + text + y
