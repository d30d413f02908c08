"""Moving figures of the chapter on the diffusion process."""

from __future__ import annotations

import numpy as np
import torch

from dit_edu.lab.charts import Curves, Line
from dit_edu.lab.data import digits
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.recipes import SCHEDULES
from dit_edu.lab.widgets import Figure


def forward_process() -> Figure:
    """Four real digits on their way into noise, by step and schedule, with ᾱ and the SNR."""
    ts = torch.cat([torch.arange(0, 1000, 20), torch.tensor([999])])  # (51,)
    images, labels = digits()
    x0 = torch.cat([images[labels == digit][:1] for digit in (3, 0, 7, 4)])  # (4, 1, 8, 8)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    frames, alphas_cumprod = [], []
    for schedule in SCHEDULES.values():
        diffusion = schedule(1000)
        frames.append([diffusion.q_sample(x0, t.expand(4), noise).numpy() for t in ts])
        alphas_cumprod.append(diffusion.alphas_cumprod[ts].numpy())
    ab = np.stack(alphas_cumprod)  # (schedules, steps)
    return Figure(
        name="forward-process",
        title="The forward process",
        caption="Four digits on their way into noise. Move *t*, and compare the schedules: the "
        "faint lines are those of the other one. Where does a digit become illegible, and what is "
        "the signal-to-noise ratio there?",
        alt="Four handwritten digits with noise added, above two charts: the shares of signal and "
        "noise, and the signal-to-noise ratio, over the step t. With the cosine schedule the "
        "digits stay legible for longer than with the linear one.",
        axes=[
            Axis("t", "t", ts.tolist(), start=10),
            Axis("schedule", "schedule", list(SCHEDULES), choice=True),
        ],
        play="t",
        panels=[
            Images(
                title="xₜ, the noisy digits",
                alt="Four handwritten digits, 3, 0, 7 and 4, at the chosen step.",
                axes=("schedule", "t"),
                frames=np.asarray(frames)[:, :, None],  # (schedules, steps, 1 row, 4, 1, 8, 8)
                wide=True,
                size=128,
            ),
            Curves(
                title="Signal and noise",
                alt="Two lines over t: the root of ᾱ falls from 1 to 0, that of 1 − ᾱ rises to 1.",
                axes=("schedule",),
                x=ts.numpy(),
                x_label="t",
                lines=[Line("√ᾱₜ", np.sqrt(ab)), Line("√(1−ᾱₜ)", np.sqrt(1 - ab))],
                cursor="t",
                limits=(0, 1),
            ),
            Curves(
                title="Signal-to-noise ratio",
                alt="One line over t on a logarithmic scale: the signal-to-noise ratio falls from "
                "ten thousand to almost nothing.",
                axes=("schedule",),
                x=ts.numpy(),
                x_label="t",
                lines=[Line("ᾱₜ / (1−ᾱₜ)", ab / (1 - ab))],
                cursor="t",
                log=True,
                limits=(1e-6, 1e5),
            ),
        ],
    )
