"""Moving figure of the chapter on the flow: one noise level by three clocks."""

from __future__ import annotations

import numpy as np
import torch

from dit_edu.lab.charts import Curves, Line, Table
from dit_edu.lab.data import digits
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.recipes import SCHEDULES
from dit_edu.lab.widgets import Figure
from dit_edu.schedules import CLOCKS, convert_level, rescale, snr

NAMES = {"alpha_bar": "DDPM", "sigma": "EDM", "tau": "flow"}


def three_clocks() -> Figure:
    """A noisy digit, and its noise level as DDPM, EDM and flow matching call it."""
    ts = torch.cat([torch.arange(0, 1000, 20), torch.tensor([999])])  # (51,)
    images, labels = digits()
    x0 = images[labels == 3][:1].expand(len(ts), -1, -1, -1)  # (51, 1, 8, 8)
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand_as(x0)
    frames, rows, taus = [], [], []
    for schedule in SCHEDULES.values():
        process = schedule(1000)
        alpha_bar = process.alphas_cumprod[ts]  # (51,)
        x_t = process.q_sample(x0, ts, noise)  # (51, 1, 8, 8)
        seen = [rescale(x_t, alpha_bar, "alpha_bar", clock) for clock in CLOCKS]
        frames.append(torch.stack(seen, dim=1)[:, None].clamp(-1, 1))  # (51, 1, 3, 1, 8, 8)
        levels = [convert_level(alpha_bar, "alpha_bar", clock) for clock in CLOCKS]
        sizes = [x.square().mean((1, 2, 3)).sqrt() for x in seen]
        rows.append(_cells(levels, sizes, snr(alpha_bar)))  # (51, 4, 2)
        taus.append(levels[2].numpy())
    return Figure(
        name="three-clocks",
        title="One noise level, three clocks",
        caption="The same noisy digit, as DDPM, EDM and a flow feed it to the network. Move *t*: "
        "only the size of the image differs, and what the noise level is called. Below: the "
        "flow's time τ at each step t of a schedule.",
        alt="Three pictures of one noisy 3, a table with its noise level as alpha bar, sigma and "
        "tau and the size of the image, and a chart of tau over t. The picture of EDM becomes "
        "harsh black and white at high t, because its numbers grow.",
        axes=[
            Axis("t", "t", ts.tolist(), start=20),
            Axis("schedule", "schedule", list(SCHEDULES), start=1, choice=True),
        ],
        play="t",
        panels=[
            Images(
                title="What the network is fed, cut off at ±1",
                alt="A handwritten 3 with equal noise three times; the middle one more glaring.",
                axes=("schedule", "t"),
                frames=torch.stack(frames).numpy(),  # (schedules, 51, 1 row, 3, 1, 8, 8)
                column_labels=list(NAMES.values()),
                wide=True,
                size=128,
            ),
            Table(
                title="The noise level",
                alt="Alpha bar, sigma, tau and the SNR, and the root mean square of each image.",
                axes=("schedule", "t"),
                columns=["clock", "level", "size of x"],
                rows=rows,
            ),
            Curves(
                title="τ of the flow, over t",
                alt="A line that rises from 0 to 1: early and steeply for the linear schedule, "
                "almost straight for the cosine one.",
                axes=("schedule",),
                x=ts.numpy(),
                x_label="t",
                lines=[Line("τ", np.stack(taus))],
                cursor="t",
                limits=(0, 1),
            ),
        ],
    )


def _cells(levels: list[torch.Tensor], sizes: list[torch.Tensor], ratio: torch.Tensor) -> list:
    """The rows of the table, at every step: a clock, its level, the size of its image."""
    signs = ("ᾱ (DDPM)", "σ (EDM)", "τ (flow)")
    return [
        [
            *([sign, f"{v[i]:.3g}", f"{s[i]:.2g}"]
              for sign, v, s in zip(signs, levels, sizes, strict=True)),
            ["SNR", f"{ratio[i]:.3g}", ""],
        ]
        for i in range(len(ratio))
    ]  # fmt: skip
