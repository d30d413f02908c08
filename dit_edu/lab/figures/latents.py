"""The moving figure of the chapter on latents: one step, three scales, three noise levels."""

from __future__ import annotations

import numpy as np
import torch

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.lab import zoo
from dit_edu.lab.charts import Curves, Line
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.scenes import shapes
from dit_edu.lab.widgets import Figure
from dit_edu.latents import rescaled_level

SCALES = {"a fifth": 0.2, "right": 1.0, "five times": 5.0}
#: What is shown of unit latents, as the grey of a picture: three standard deviations.
RANGE = 3.0


def latent_noise(last: int = 980, every: int = 49) -> Figure:
    """A scene with noise on its pixels, and with noise on its latents at three scales.

    Args:
        last: The highest step shown.
        every: Steps between two positions of the slider.
    """
    process = GaussianDiffusion.cosine(1000)
    ts = torch.arange(0, last + 1, every)  # (k,)
    vae, _ = zoo.load("shapes-vae")
    scene = shapes(6, seed=5, level="free").images[3:4]  # (1, 3, 32, 32)
    g = torch.Generator().manual_seed(0)

    def noisy(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        many = (len(ts), -1, -1, -1)
        return process.q_sample(x0.expand(many), ts, noise.expand(many))  # (k, C, H, W)

    on_pixels = noisy(scene, torch.randn(scene.shape, generator=g))  # (k, 3, 32, 32)
    z = vae.encode(scene)  # (1, 4, 8, 8)
    noise = torch.randn(z.shape, generator=g)
    # (scales, k, 4, 8, 8), brought back to the size of unit latents
    on_latents = torch.stack([noisy(s * z, noise) / s for s in SCALES.values()])
    decoded = torch.stack([vae.decode(x) for x in on_latents])  # (scales, k, 3, 32, 32)
    left = process.alphas_cumprod[ts]  # (k,)
    levels = [rescaled_level(left, s).numpy() for s in SCALES.values()]
    return Figure(
        name="latent-noise",
        title="Noise on pixels, noise on latents",
        caption="One scene, with noise on its pixels (left) and with noise on its latents, which "
        "a decoder turns into a picture. Move *t*. Then choose another scale for the latents: at "
        "the same *t* there is now much more noise on them, or hardly any. The curves show what "
        "is left of the signal.",
        alt="A coloured shape under grainy noise; four small grey maps of eight by eight, its "
        "latents, under noise; and the picture that is decoded from them. As t grows, the decoded "
        "shape keeps its edges but changes its form and colour, until nothing is left of it. With "
        "latents a fifth as large that happens at much lower t, with five times larger ones "
        "at much higher t.",
        axes=[
            Axis("t", "t", ts.tolist(), start=6),
            Axis("scale", "scale of the latents", list(SCALES), start=1, choice=True),
        ],
        play="t",
        panels=[
            Images(
                title="Noise on the pixels",
                alt="A coloured shape on grey under grainy noise.",
                axes=("t",),
                frames=on_pixels[:, None, None].clamp(-1, 1).numpy(),  # (k, 1, 1, 3, 32, 32)
                size=160,
                levels=32,
            ),
            Images(
                title="Decoded from noisy latents",
                alt="The shape, smooth, but of another form and colour the more noise there is.",
                axes=("scale", "t"),
                frames=decoded[:, :, None, None].numpy(),  # (scales, k, 1, 1, 3, 32, 32)
                size=160,
                levels=64,
            ),
            Images(
                title="The four channels of the latents",
                alt="Four grey maps of eight by eight with noise.",
                axes=("scale", "t"),
                frames=(on_latents[:, :, None, :, None] / RANGE).clamp(-1, 1).numpy(),
                column_labels=["1", "2", "3", "4"],
                wide=True,
                size=96,
                levels=32,
            ),
            Curves(
                title="What is left of the signal",
                alt="Three falling curves of alpha bar over t; the one for the chosen scale is "
                "that of the unit latents moved to the left or to the right.",
                x=ts.numpy(),
                x_label="t",
                lines=[
                    Line(name, np.asarray(level))
                    for name, level in zip(SCALES, levels, strict=True)
                ],
                cursor="t",
                limits=(0, 1),
                wide=True,
            ),
        ],
    )
