"""The published checkpoints: what to put where, and how to draw ImageNet classes with them.

Nothing is downloaded. The files are 2.7 GB of weights and a decoder from latents to pixels; where
they lie on the disk, they load as they are.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dit_edu._checks import check_choice
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import PRESETS, DiT
from dit_edu.guidance import Guided
from dit_edu.lab.checkpoint import load_weights
from dit_edu.sampling import ddim_sample, ddpm_sample, noise_streams

FOLDER = "~/pretrained_models"
CHECKPOINT = "DiT-XL-2-256x256.pt"
VAE = "sd-vae-ft-mse"
#: Latents were multiplied by it for training, so that their variance is about 1.
LATENT_SCALE = 0.18215
SAMPLERS = {"ddpm": ddpm_sample, "ddim": ddim_sample}

#: Some of the 1000 classes of ImageNet by their number; most are breeds, tools and vehicles.
IMAGENET = {
    88: "macaw", 207: "golden retriever", 279: "Arctic fox", 360: "otter", 387: "red panda",
    417: "balloon", 974: "geyser", 979: "valley",
}  # fmt: skip

_SOURCES = {
    CHECKPOINT: "the weights, 2.7 GB, linked in the README of github.com/facebookresearch/DiT",
    f"{VAE}/config.json": f"of the decoder, huggingface.co/stabilityai/{VAE}",
    f"{VAE}/diffusion_pytorch_model.safetensors": "its weights, 0.3 GB, from the same place",
}


def missing(folder: str | os.PathLike[str] = FOLDER) -> list[str]:
    """What has still to be put where, a line for each file; empty where all are there."""
    root = Path(folder).expanduser()
    return [f"{folder}/{f}: {what}" for f, what in _SOURCES.items() if not (root / f).is_file()]


def load_published(path: str | os.PathLike[str], name: str = "DiT-XL/2", **settings: Any) -> DiT:
    """A model from a file of the published code: a checkpoint as it is offered, or one's own run.

    The size of the image, the number of classes and whether the variance is learnt are read off the
    weights. Of a training checkpoint the average is taken, which it calls ``ema``.

    Args:
        path: of the file; ``~`` is the home folder.
        name: a key of :data:`~dit_edu.dit.PRESETS`.
        settings: override what the preset says, for a model of another size.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the preset is unknown; the file is truncated or foreign, or holds code, which is
            never run; or its weights are not those of the model, and the message names one.
    """
    preset = {**PRESETS[check_choice("name", name, PRESETS)], **settings}
    weights = _read(Path(path).expanduser(), path)
    found = _settings_of(weights, preset["patch_size"])
    with torch.device("meta"):  # no start values: they would be overwritten
        model = DiT(**{**found, **preset})
    load_weights(model, weights, Path(path), assign=True)
    return model.eval()


def load_vae(folder: str | os.PathLike[str]) -> AutoencoderKL:
    """The decoder from latents to pixels, on the CPU and in evaluation mode.

    Args:
        folder: as diffusers saves it, with ``config.json``; ``~`` is the home folder.

    Raises:
        FileNotFoundError: the folder does not hold one.
        ValueError: its files are truncated or foreign.
    """
    root = Path(folder).expanduser()
    if not (root / "config.json").is_file():
        raise FileNotFoundError(2, f"no file {folder}/config.json; a VAE of diffusers is a folder")
    try:
        return AutoencoderKL.from_pretrained(root, local_files_only=True).eval()
    except OSError as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{folder} is not a whole VAE of diffusers: {error}") from error


@torch.no_grad()
def draw_published(
    model: DiT,
    vae: AutoencoderKL,
    classes: list[int],
    *,
    scale: float = 4.0,
    channels: int | str = 3,
    steps: int | str = "250",
    sampler: str = "ddpm",
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Draw one picture for each class, as the published code does it.

    Args:
        model: from :func:`load_published`; latents are drawn on its device.
        vae: from :func:`load_vae`, on the same device.
        classes: numbers of ImageNet's classes.
        scale: guidance; the paper's pictures have 4, its best FID has 1.5.
        channels: how many channels are guided, see :class:`~dit_edu.guidance.Guided`.
        steps: of the sampler, see :func:`~dit_edu.grids.timestep_grid`; the published 250 steps are
            the text ``"250"``.
        sampler: ``"ddpm"``, as published, or ``"ddim"``, which gets by with 50.
        seed: of all noise.
        progress: show a progress bar.

    Returns:
        (n, 3, H, W) in [-1, 1] on the CPU.

    Raises:
        TypeError, ValueError: a class, the sampler or its steps are not allowed.
    """
    learnt = "learned-range" if model.out_channels != model.in_channels else "fixed-small"
    latents = SAMPLERS[check_choice("sampler", sampler, SAMPLERS)](
        Guided(model, scale, channels),
        GaussianDiffusion.linear(1000, variance=learnt),
        (len(classes), model.in_channels, *model.input_size),
        torch.tensor(classes, device=next(model.parameters()).device),
        steps=steps,
        generator=noise_streams(seed, len(classes)),
        progress=progress,
    )  # (n, 4, H/8, W/8)
    pictures = [vae.decode(z / LATENT_SCALE).sample.cpu() for z in latents.split(1)]  # (1, 3, H, W)
    return torch.cat(pictures).clamp(-1, 1)  # (n, 3, H, W)


def _read(path: Path, shown: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint; nothing in it is executed."""
    if not path.is_file():
        raise FileNotFoundError(2, f"no file {shown}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # a run keeps its arguments
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{shown} ({path.stat().st_size} bytes) is truncated, is no file of torch, or holds "
            f"more than tensors: {reason}"
        ) from error
    for name in ("ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not all(torch.is_tensor(tensor) for tensor in content.values()):
        raise ValueError(f"{shown} holds a {type(content).__name__}, but not of named tensors.")
    return {name: tensor.float() for name, tensor in content.items()}


def _settings_of(weights: dict[str, Tensor], p: int) -> dict[str, Any]:
    """What the shapes say of the model; where they say nothing, :func:`load_weights` will."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    found: dict[str, Any] = {}
    if len(shape := shapes.get("pos_embed", ())) == 3:
        found["input_size"] = math.isqrt(shape[1]) * p or p  # (1, N, D)
    if len(shape := shapes.get("x_embedder.proj.weight", ())) == 4:
        found["in_channels"] = shape[1]  # (D, C, p, p)
        out = shapes.get("final_layer.linear.weight", (0,))[0]  # (p*p*out, D)
        found["learn_sigma"] = out != p * p * shape[1]
    if len(shape := shapes.get("y_embedder.embedding_table.weight", ())) == 2:
        found["num_classes"] = shape[0] - 1  # (K + 1, D)
    return found
