"""The chapter on video: what the judges of films see, and what a perfect denoiser would draw.

Nothing is trained here. The stage is the moving digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dit_edu.lab.data import digits
from dit_edu.lab.draw import Sampling
from dit_edu.lab.encoding import plain, sprite_sheet
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.features import load_features
from dit_edu.lab.films import KNOWN, Ideal
from dit_edu.lab.metrics import frechet_distance
from dit_edu.lab.moving import FRAMES, SIDE, consistency, load_videos, move
from dit_edu.lab.recipes import Process
from dit_edu.sampling import ddim_sample
from dit_edu.walk import noise_streams

SAMPLING = Sampling(steps=15, scale=1.0)
JUDGED = 120  # held-out videos that a model is measured against
SHOWN = 6  # videos that a table keeps, of the digits 0 to 5


def sheet_of(videos: Tensor) -> str:
    """All frames of a few videos as one picture, for a table to keep."""
    return sprite_sheet(videos.movedim(2, 1).flatten(0, 1).numpy(), levels=16)["sprite"]


def judged(videos: Tensor, labels: Tensor) -> dict[str, float]:
    """Do they move, do they show what was asked for, and how far are their pairs of frames?

    The Fréchet distance is given over that of as many training videos of the same digits.
    """
    features, real = load_features("moving-digits-features"), load_videos("heldout")[0][:JUDGED]
    known, digit = load_videos("train")
    order = torch.cat([torch.where(digit == y)[0][: int((labels == y).sum())] for y in range(10)])
    limit = frechet_distance(known[order], real, features)
    found = consistency(videos, labels)
    found["fd_ratio"] = frechet_distance(videos, real, features) / limit
    return {name: plain(value) for name, value in found.items()}


def judge_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What the judges say of held-out videos themselves, as they are or spoilt."""
    videos, labels = (part[:JUDGED] for part in load_videos("heldout"))
    generator = torch.Generator().manual_seed(seed)
    if setting["spoilt"] == "frames shuffled":
        order = torch.stack([torch.randperm(FRAMES, generator=generator) for _ in videos])
        videos = videos.gather(2, order[:, None, :, None, None].expand_as(videos))
    elif setting["spoilt"] == "noise of 0.3":
        noise = torch.randn(videos.shape, generator=generator)
        videos = (videos + 0.3 * noise).clamp(-1, 1)
    return judged(videos, labels)


LEVELS = tuple(range(50, 1000, 100))  # steps at which perfect denoisers are asked


def ideal_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A perfect denoiser of the training digits that knows so much of time: error, and samples."""
    process, generator = Process().build(), torch.Generator().manual_seed(seed)
    model = Ideal(process, setting["known"])
    images, labels = digits("train")
    some = torch.randperm(len(labels), generator=generator)[:JUDGED]
    videos = move(images[some], labels[some], seed=seed + 2).videos
    error = []
    for t in LEVELS:
        noise = torch.randn(videos.shape, generator=generator)
        steps = torch.full((len(videos),), t)
        x_t = process.q_sample(videos, steps, noise)
        x0 = process.to_x0(model(x_t, steps, labels[some]), x_t, steps)
        error.append(float((x0 - videos).square().mean()))
    asked = load_videos("heldout")[1][:JUDGED]
    shape = (len(asked), 1, FRAMES, SIDE, SIDE)
    drawn = ddim_sample(
        model, process, shape, asked,
        steps=SAMPLING.steps, generator=noise_streams(seed, len(asked)), clip=True,
    ).clamp(-1, 1)  # fmt: skip
    shown = drawn[[int(torch.where(asked == y)[0][0]) for y in range(SHOWN)]]
    return {"error": plain(error), **judged(drawn, asked), "films": sheet_of(shown)}


EXPERIMENTS = (
    Experiment(
        name="video-ideal",
        about="Perfect denoisers of moving digits, by what they know of time; nothing is trained",
        settings={known: {"known": known} for known in KNOWN},
        seeds=range(1),
        compute=ideal_cell,
    ),
    Experiment(
        name="video-judges",
        about="What the judges of moving digits say of held-out videos, as they are and spoilt",
        settings={name: {"spoilt": name} for name in ("not", "frames shuffled", "noise of 0.3")},
        seeds=range(1),
        compute=judge_cell,
    ),
)
