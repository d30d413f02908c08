"""The zoo: trained models that ship with the package, each with a card that says how it was made.

A model NAME is two files: ``NAME.safetensors``, the weights, and ``NAME.json``, the card (recipe,
seed, device, seconds, versions, the weights' SHA-256, metrics over seeds). :func:`load` also takes
the path of one's own training run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice
from dit_edu.lab.checkpoint import FILE_NAME, KIND, checkpoint_recipe, load_weights, part
from dit_edu.lab.draw import Sampling
from dit_edu.lab.features import KIND as FEATURES
from dit_edu.lab.features import ZOO, FeatureNet
from dit_edu.lab.files import read_json, read_safetensors, sha256, write_json, write_safetensors
from dit_edu.lab.recipes import MODELS, Process, Recipe
from dit_edu.latents import VAE

VAE_KIND = "VAE"
KINDS: dict[str, Callable[..., nn.Module]] = {**MODELS, FEATURES: FeatureNet, VAE_KIND: VAE}


def names() -> list[str]:
    """The names of the models in the zoo, in alphabetical order."""
    return sorted(path.stem for path in ZOO.glob("*.json") if _weights_path(path.stem).exists())


def card(name: str) -> dict[str, Any]:
    """The card of a model in the zoo, without its weights.

    Raises:
        ValueError: the name is unknown (the message names the nearest), or the card is no JSON.
    """
    return read_json(_card_path(check_choice("name", name, names())))


def load(name: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model by name, or from one's own file.

    Args:
        name: a name in the zoo, or the path of a training run's folder, of its checkpoint (whose
            average is taken), or of a weights file that :func:`save` wrote.

    Returns:
        The model, on the CPU and in evaluation mode, and its card. The card of a checkpoint holds
        what is known of it: ``name, kind, config, recipe, seed, steps, sampling``.

    Raises:
        ValueError: the name is unknown, the weights are not those of the card, or a file is
            truncated or does not fit the model.
    """
    if str(name) in names():
        content = card(str(name))
        path = _weights_path(str(name))
        weights, _ = read_safetensors(path, expected_sha256=content["sha256"])
        return _build(content, weights, path), content
    path = Path(name)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        if os.sep in str(name) or path.suffix:
            raise ValueError(f"name={os.fspath(name)!r}: there is no file {path}.")
        check_choice("name", str(name), names())
    weights, metadata = read_safetensors(path)
    if metadata.get("kind") == KIND:
        content = _card_of_checkpoint(path, metadata)
        weights = part(weights, "ema/")
    elif "config" in metadata and metadata.get("kind") in KINDS:
        draws = metadata["kind"] in MODELS and "recipe" in metadata
        process = Recipe.from_dict(metadata["recipe"]).process if draws else Process()
        content = {"sampling": vars(Sampling.usual(process)), **metadata}
    else:
        raise ValueError(f"{path} is a safetensors file, but no model of dit_edu.")
    return _build(content, weights, path), content


def load_vae(recipe: Recipe) -> VAE | None:
    """The autoencoder on whose latents a recipe's model works, or None if it works on images.

    Raises:
        ValueError: the recipe names no autoencoder of the zoo, nor a whole one of diffusers.
    """
    if recipe.latents is None:
        return None
    if (Path(recipe.latents).expanduser() / "config.json").is_file():
        return _vae_of_diffusers(recipe.latents, recipe.model["input_size"])
    vae, content = load(recipe.latents)
    if not isinstance(vae, VAE):
        raise ValueError(f"latents={recipe.latents!r} is a {content['kind']!r}, no autoencoder.")
    return vae


def _vae_of_diffusers(folder: str, side: int) -> VAE:
    """An autoencoder that diffusers has saved, as ours: unit latents in and out.

    Its own ``scaling_factor`` (and ``shift_factor``, where it has one) make its latents so.
    """
    from dit_edu.lab.published import load_vae  # seconds of import, only where it is needed

    net = load_vae(folder)
    config = net.config
    widths, channels = config.block_out_channels, config.latent_channels
    with torch.device("meta"):  # a frame without weights of its own
        size = side * 2 ** (len(widths) - 1)
        vae = VAE(size, config.in_channels, channels, widths, config.norm_num_groups)
    vae.net = net
    vae.mean = torch.full((channels, 1, 1), float(config.get("shift_factor") or 0))
    vae.std = torch.full((channels, 1, 1), 1 / config.scaling_factor)
    return vae.eval()


def save(name: str, model: nn.Module, content: dict[str, Any]) -> None:
    """Put a model into the zoo: both files are written, or neither is changed.

    Args:
        name: of the model; letters, digits, ``-``, ``_`` and ``.``.
        model: whose ``state_dict`` is stored.
        content: the card, with ``kind`` (a key of ``KINDS``) and ``config`` (the keyword
            arguments of the model); ``name`` and ``sha256`` are added.

    Raises:
        OSError: a file cannot be written.
        ValueError: the name or the kind is not allowed.
    """
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError(f"name={name!r}; allowed: letters, digits, '-', '_' and '.'.")
    check_choice("kind", content.get("kind"), KINDS)
    fresh = ZOO / f".{name}.fresh.safetensors"
    metadata = {key: content[key] for key in ("kind", "config", "recipe") if key in content}
    try:
        write_safetensors(fresh, model.state_dict(), {"name": name, **metadata})
        write_json(_card_path(name), {"name": name, **content, "sha256": sha256(fresh)})
        os.replace(fresh, _weights_path(name))  # a rename: it needs no space on the disk
    finally:
        fresh.unlink(missing_ok=True)


def _card_path(name: str) -> Path:
    return ZOO / f"{name}.json"


def _weights_path(name: str) -> Path:
    return ZOO / f"{name}.safetensors"


def _build(content: dict[str, Any], weights: dict[str, Tensor], path: Path) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # loading a model must not change what is drawn next
        model = KINDS[check_choice("kind", content["kind"], KINDS)](**content["config"])
    load_weights(model, weights, path)
    return model.eval()


def _card_of_checkpoint(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    recipe = checkpoint_recipe(path, metadata)
    return {
        "name": recipe.name,
        "kind": recipe.kind,
        "config": dict(recipe.model),
        "recipe": recipe.as_dict(),
        "seed": metadata["seed"],
        "steps": metadata["step"],
        "sampling": vars(Sampling.usual(recipe.process)),
    }
