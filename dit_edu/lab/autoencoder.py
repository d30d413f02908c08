"""Training the autoencoders whose latents the Diffusion Transformers of the shapes work on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_edu._checks import check_choice
from dit_edu.lab import zoo
from dit_edu.lab.data import batch_indices, dataset
from dit_edu.lab.devices import device_name
from dit_edu.lab.files import provenance
from dit_edu.latents import VAE

#: One plain object anywhere; and one to three, from plain to finely striped.
VIEWS = ({"level": "free"}, {"level": "free", "objects": (1, 3), "texture": (0.0, 1.0)})


@dataclass(frozen=True)
class VAERecipe:
    """How an autoencoder is built and trained.

    Attributes:
        name: Of the model in the zoo.
        about: One line for the reader.
        data: Name of the data set, of which the training half is used.
        views: Options of the data set; each view gives as many images.
        model: Keyword arguments of :class:`~dit_edu.latents.VAE`.
        kl_weight: κ, see :meth:`~dit_edu.latents.VAE.losses`.
        steps: Number of batches.
        batch_size: Images in each.
        lr: Peak learning rate of Adam: a warm-up of 50 steps, then a cosine to 0.
        seed: Of initialisation, batches and noise.
    """

    name: str
    about: str = ""
    data: str = "shapes"
    views: tuple[Mapping[str, Any], ...] = VIEWS
    model: Mapping[str, Any] = field(default_factory=dict)
    kl_weight: float = 2e-4
    steps: int = 4000
    batch_size: int = 32
    lr: float = 4e-3
    seed: int = 0


RECIPES = {
    recipe.name: recipe
    for recipe in (
        VAERecipe(
            "shapes-vae",
            about="autoencoder of the shapes, 32x32x3 to 8x8x4 (diffusers' AutoencoderKL)",
            model={
                "input_size": 32,
                "latent_channels": 4,
                "widths": [16, 16, 16],
                "num_groups": 1,
            },
        ),
    )
}


def psnr(images: Tensor, others: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images (B, C, H, W) in [-1, 1]: 10 log10(2² / MSE)."""
    return 10 * math.log10(4 / (images - others).square().mean().item())


def train_vae(
    recipe: VAERecipe, report: Callable[[str], None] | None = None, n: int | None = None
) -> VAE:
    """Train an autoencoder on the CPU, and fit the scale of its latents to its first view.

    Args:
        recipe: what to train.
        report: called with a line of text now and then.
        n: images of each view, the first of the training half; None takes all.
    """
    load = dataset(recipe.data).load
    views = [load("train", **view)[0][:n] for view in recipe.views]
    images = torch.cat(views)  # (views * n, C, H, W)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        vae = VAE(**recipe.model).to(memory_format=torch.channels_last)  # faster on the CPU
    optimizer = torch.optim.Adam(vae.parameters(), recipe.lr, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(recipe.seed)
    for step in range(recipe.steps):
        warm, half_cosine = (step + 1) / 50, (1 + math.cos(math.pi * step / recipe.steps)) / 2
        optimizer.param_groups[0]["lr"] = recipe.lr * min(warm, half_cosine)
        batch = images[batch_indices(len(images), recipe.batch_size, recipe.seed, step)]
        noise = torch.randn(len(batch), *vae.latent_shape, generator=generator)
        losses = vae.losses(batch, recipe.kl_weight, noise)
        optimizer.zero_grad()
        losses["loss"].mean().backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if report and (step + 1) % 100 == 0:
            report(f"{step + 1}: " + ", ".join(f"{k} {v.mean():.4g}" for k, v in losses.items()))
    vae.eval().requires_grad_(False)
    vae.fit_scale(views[0])
    return vae


def measure_vae(vae: VAE, recipe: VAERecipe, n: int = 1000) -> dict[str, Any]:
    """What an autoencoder keeps of held-out images of its first view, and of its last.

    Returns:
        ``psnr`` in dB and ``accuracy``, the share of reconstructions in which the judge of the
        data set sees the class; ``psnr_hardest``, of the last view; ``nats``, the KL per image;
        ``std``, that of the raw latents, and ``std_posterior``, the mean of the posterior's.
    """
    info = dataset(recipe.data)
    images, labels = (part[:n] for part in info.load("heldout", **recipe.views[0]))
    hardest = info.load("heldout", **recipe.views[-1])[0][:n]
    again = vae.decode(vae.encode(images))
    with torch.no_grad():
        noise = torch.randn(
            len(images), *vae.latent_shape, generator=torch.Generator().manual_seed(recipe.seed)
        )
        nats = vae.losses(images, recipe.kl_weight, noise)["kl"].mean() * images[0].numel()
        spread = (vae.posterior(images)[1] / 2).exp().mean()
    return {
        "psnr": psnr(images, again),
        "psnr_hardest": psnr(hardest, vae.decode(vae.encode(hardest))),
        "accuracy": (info.judge(again) == labels).double().mean().item(),
        "nats": nats.item(),
        "std": vae.std.flatten().tolist(),
        "std_posterior": spread.item(),
    }


def release_vae(name: str, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, measure and ship an autoencoder.

    Returns:
        The card that was written, see :mod:`dit_edu.lab.zoo`.

    Raises:
        OSError: The zoo cannot be written.
        ValueError: ``name`` is unknown.
    """
    recipe = RECIPES[check_choice("name", name, RECIPES)]
    start = time.perf_counter()
    vae = train_vae(recipe, report)
    seconds = time.perf_counter() - start
    card = {
        "kind": zoo.VAE_KIND,
        "about": recipe.about,
        "config": dict(recipe.model),
        "recipe": asdict(recipe),
        "seed": recipe.seed,
        "steps": recipe.steps,
        "device": device_name("cpu"),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        **provenance(),
        "metrics": measure_vae(vae, recipe),
    }
    zoo.save(name, vae, card)
    return zoo.card(name)
