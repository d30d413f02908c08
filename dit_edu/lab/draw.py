"""Drawing many images from a trained model, in batches that fit into memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.flow import FlowMatching
from dit_edu.guidance import Guided
from dit_edu.interpolant import Interpolant
from dit_edu.lab.recipes import Process
from dit_edu.latents import VAE
from dit_edu.sampling import ddim_sample, ddpm_sample, noise_streams
from dit_edu.solvers import dpmpp_2m_sample, euler_sample, heun_sample

DIFFUSION_SAMPLERS = {"ddim": ddim_sample, "ddpm": ddpm_sample, "dpm++": dpmpp_2m_sample}
FLOW_SAMPLERS = {"euler": euler_sample, "heun": heun_sample}
SAMPLERS = DIFFUSION_SAMPLERS | FLOW_SAMPLERS
BATCH = 512  # images drawn at once


@dataclass(frozen=True)
class Sampling:
    """How images are drawn from a trained model.

    Args:
        steps: steps of the sampler.
        scale: guidance; 1 is none.
        sampler: ``"ddim"``, ``"ddpm"`` or ``"dpm++"``; of a flow ``"euler"`` or ``"heun"``.

    Raises:
        TypeError, ValueError: a setting is not allowed; the message names it.
    """

    steps: int = 50
    scale: float = 1.0
    sampler: str = "ddim"

    def __post_init__(self) -> None:
        check_positive_int("steps", self.steps)
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale} must be finite.")
        check_choice("sampler", self.sampler, SAMPLERS)

    @classmethod
    def usual(cls, process: Process, steps: int = 50, scale: float = 1.0) -> Sampling:
        """With the sampler that a recipe's process is drawn by unless one says otherwise."""
        return cls(steps, scale, "euler" if process.is_flow else "ddim")


def draw(
    model: nn.Module,
    diffusion: Interpolant,
    labels: Tensor,
    sampling: Sampling = Sampling(),
    *,
    vae: VAE | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Draw one image for each label, on the model's device.

    Args:
        model: a denoiser.
        diffusion: the process it was trained for.
        labels: (n,) integers.
        sampling: steps, guidance and sampler.
        vae: the autoencoder whose latents the model draws; they are decoded.
        seed: of all noise; the k-th image of a seed is the same however many are drawn.
        progress: show a progress bar.

    Returns:
        (n, C, H, W) in [-1, 1] on the CPU. Of an image x̂_0 is clamped to that range at every step;
        latents have no such range.

    Raises:
        TypeError, ValueError: a label, the sampler or the number of steps does not fit model or
            process.
    """
    fitting = FLOW_SAMPLERS if isinstance(diffusion, FlowMatching) else DIFFUSION_SAMPLERS
    sampler = fitting[check_choice("sampler", sampling.sampler, fitting)]
    guided = Guided(model, sampling.scale)
    device = next(model.parameters()).device
    drawn = [
        sampler(
            guided,
            diffusion,
            (len(y), model.in_channels, *model.input_size),
            y.to(device),
            steps=sampling.steps,
            generator=noise_streams(seed, len(y), start),
            clip=vae is None,
            progress=progress,
        ).cpu()
        for start, y in zip(range(0, len(labels), BATCH), labels.split(BATCH), strict=True)
    ]
    images = torch.cat(drawn)  # (n, C, H, W), or (n, C, H/f, W/f) latents
    return images.clamp(-1, 1) if vae is None else vae.decode(images)  # (n, C, H, W)


def cycle_labels(n: int, num_classes: int) -> Tensor:
    """Labels 0, 1, …, num_classes - 1, 0, 1, … : (n,) int64."""
    return torch.arange(check_positive_int("n", n)) % num_classes  # (n,)


def contact_sheet(images: Tensor) -> np.ndarray:
    """All images side by side in rows, small ones enlarged.

    Args:
        images: (n, C, H, W) in [0, 1]; C is 1 or 3. Or films (n, C, F, H, W), a row for each.

    Returns:
        (height, width) or (height, width, 3) uint8, about square; white between the images.

    Raises:
        ValueError: the images are neither grey nor RGB.
    """
    columns = math.ceil(math.sqrt(len(images)))
    if images.ndim == 5:
        columns = images.shape[2]
        images = images.movedim(2, 1).flatten(0, 1)  # (n·F, C, H, W)
    n, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"images with {channels} channels are no picture; allowed: 1 or 3.")
    rows = math.ceil(n / columns)
    zoom = max(1, 32 // height)
    tiles = torch.ones(rows * columns, channels, zoom * height + 2, zoom * width + 2)
    enlarged = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)  # (n, C, zH, zW)
    tiles[:n, :, 1:-1, 1:-1] = enlarged
    sheet = tiles.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)  # (rows, h, columns, w, C)
    pixels = sheet.flatten(2, 3).flatten(0, 1)  # (rows * h, columns * w, C)
    return (pixels * 255).round().to(torch.uint8).numpy().squeeze(-1 if channels == 1 else ())
