"""On the way from noise to an image: what a routed model runs at each step, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dit_edu.guidance import Guided
from dit_edu.interpolant import Interpolant
from dit_edu.lab.profile import count
from dit_edu.latents import VAE
from dit_edu.routing import record_routing
from dit_edu.sampling import ddim_sample, noise_streams
from dit_edu.walk import Trajectory


@dataclass(frozen=True)
class Journey:
    """The record of a batch that was drawn.

    Attributes:
        t: the K steps that were asked.
        runs: by the name of the module that chose, the share of each of its units that ran,
            (K, B, E): 0 or 1 where images choose.
        macs: multiply-adds for one image at each step, (K, B), without guidance.
        images: x̂_0 at each step, (K, B, C, H, W), decoded where the model draws latents.
    """

    t: list[int]
    runs: dict[str, np.ndarray]
    macs: np.ndarray
    images: np.ndarray


@torch.no_grad()
def journey(
    model: nn.Module,
    process: Interpolant,
    y: torch.Tensor,
    steps: int = 16,
    scale: float = 1.0,
    vae: VAE | None = None,
    seed: int = 0,
) -> Journey:
    """Draw one image for each label by DDIM, and record what runs.

    Args:
        model: a routed denoiser.
        process: the diffusion that it was trained for.
        y: labels, (B,). All begin with the same noise, so that what differs is due to them.
        steps: of DDIM.
        scale: of guidance; recorded is the half of the batch that has labels.
        vae: of the latents that the model draws, if any.
        seed: of the noise.

    Raises:
        ValueError: nothing in the model reports what it chose.
    """
    n, size = len(y), (model.in_channels, *model.input_size)
    (stream,) = noise_streams(seed, 1)
    noise = torch.randn(size, generator=stream).expand(n, *size)  # (B, C, H, W)
    way = Trajectory()
    with record_routing(model) as trace:
        ddim_sample(
            Guided(model, scale),
            process,
            noise.shape,
            y,
            steps=steps,
            noise=noise,
            clip=vae is None,
            callback=way,
        )
    if not trace.decisions:
        raise ValueError(f"model is a {type(model).__name__}, which reports no choices.")
    spent = torch.zeros(len(way.t), n)
    runs: dict[str, list[torch.Tensor]] = {}
    for decision in trace.decisions:
        units = decision.chosen.shape[-1]
        share = decision.chosen[:n].view(n, -1, units).double().mean(1)  # (B, E)
        runs.setdefault(decision.module, []).append(share)
        spent[decision.call] += decision.executed()[:n].sum(1)  # (B,)
    images = way.x0.clamp(-1, 1) if vae is None else torch.stack([vae.decode(x) for x in way.x0])
    return Journey(
        t=[int(t) for t in way.t],
        runs={name: torch.stack(found).numpy() for name, found in runs.items()},
        macs=(spent + floor_macs(model)).numpy(),
        images=images.numpy(),
    )


@torch.no_grad()
def floor_macs(model: nn.Module) -> int:
    """Multiply-adds for one image of what no router decides: all that ran, less what reported."""
    x = torch.zeros(1, model.in_channels, *model.input_size)
    batch = (x, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with record_routing(model) as trace:
        ran = count(model, *batch, repeats=0).macs
    return ran - sum(int(decision.executed().sum()) for decision in trace.decisions)
