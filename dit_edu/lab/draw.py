"""Drawing many images from a trained model, in batches that fit into memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.guidance import Guided
from dit_edu.sampling import ddim_sample, ddpm_sample

SAMPLERS = {"ddim": ddim_sample, "ddpm": ddpm_sample}
BATCH = 512  # images drawn at once


@dataclass(frozen=True)
class Sampling:
    """How images are drawn from a trained model.

    Args:
        steps: steps of the sampler.
        scale: guidance; 1 is none.
        sampler: ``"ddim"`` or ``"ddpm"``.

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


def draw(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    labels: Tensor,
    sampling: Sampling = Sampling(),
    *,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Draw one image for each label, on the model's device.

    Args:
        model: a denoiser.
        diffusion: the process it was trained for.
        labels: (n,) integers.
        sampling: steps, guidance and sampler.
        seed: of all noise; the same seed, machine and labels give the same images.
        progress: show a progress bar.

    Returns:
        (n, C, H, W) in [-1, 1] on the CPU; x̂_0 is clamped to that range at every step.

    Raises:
        TypeError, ValueError: a label or the number of steps does not fit model or process.
    """
    guided = Guided(model, sampling.scale)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    images = [
        SAMPLERS[sampling.sampler](
            guided,
            diffusion,
            (len(y), model.in_channels, *model.input_size),
            y.to(device),
            steps=sampling.steps,
            generator=generator,
            clip=True,
            progress=progress,
        ).cpu()
        for y in labels.split(BATCH)
    ]
    return torch.cat(images).clamp(-1, 1)  # (n, C, H, W)


def cycle_labels(n: int, num_classes: int) -> Tensor:
    """Labels 0, 1, …, num_classes - 1, 0, 1, … : (n,) int64."""
    return torch.arange(check_positive_int("n", n)) % num_classes  # (n,)
