"""Moving figure of the chapter on guidance: where the samples go when the scale grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dit_edu.flow import FlowMatching
from dit_edu.guidance import Guided
from dit_edu.lab.charts import Curves, Line
from dit_edu.lab.denoisers import BestGuess, PerClass
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.guidance import SCALES, drawn, setting
from dit_edu.lab.figures.sampling import Mixture
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure
from dit_edu.solvers import heun_sample

#: The guided steps that the figure offers, by name.
INTERVALS = {"all": None, "t ≤ 666": (0, 666)}
#: The toy: where the bells are, and how each of two classes, and both together, share them out.
CENTRES, SD = (-0.6, 0.0, 1.2), 0.25
SHARES = {"asked": (0.0, 0.5, 0.5), "other": (1.0, 0.0, 0.0), "both": (0.5, 0.25, 0.25)}
X = torch.linspace(-1.7, 3.1, 161, dtype=torch.float64)  # (161,), where densities are drawn


class KnownClasses(PerClass):
    """Perfect for each label of a toy, and without a label: what guidance needs, with no training.

    Args:
        process: the process.
        of_class: a denoiser of single numbers for each label, then one for all together.
    """

    def __init__(self, process: FlowMatching, of_class: Sequence[BestGuess]) -> None:
        BestGuess.__init__(self, process)
        self.of_class = list(of_class)
        self.num_classes = len(of_class) - 1
        self.in_channels, self.input_size, self.class_dropout_prob = 1, (1, 1), 0.5

    def null_condition(self, y: Tensor) -> Tensor:
        """The label after the last."""
        return torch.full_like(y, self.num_classes)


def bells() -> KnownClasses:
    """The toy of the figure: label 0 is the class asked for, 1 the other, 2 stands for none."""
    flow, centres = FlowMatching(), torch.tensor(CENTRES, dtype=torch.float64)
    shares = (torch.tensor(share, dtype=torch.float64) for share in SHARES.values())
    return KnownClasses(flow, [Mixture(flow, centres, share, SD) for share in shares])


def density(share: Sequence[float]) -> Tensor:
    """The density of the toy's bells, shared out as said, at ``X``: (len(X),)."""
    bell = torch.exp(-(((X[:, None] - torch.tensor(CENTRES)) / SD) ** 2) / 2)  # (len(X), bells)
    return bell @ torch.tensor(share, dtype=torch.float64) / (SD * np.sqrt(2 * np.pi))


def tilted(scale: float) -> Tensor:
    """p(x | asked)^s p(x)^(1-s), made a density at ``X``: (len(X),)."""
    unscaled = density(SHARES["asked"]) ** scale * density(SHARES["both"]) ** (1 - scale)
    return unscaled / torch.trapezoid(unscaled, X)


def landing(
    toy: KnownClasses, noise: Tensor, scale: float, interval: tuple[float, float] | None = None
) -> Tensor:
    """Where the guided stream of label 0 ends that begins at ``noise`` (n,): (n,)."""
    end = heun_sample(
        Guided(toy, scale, interval=interval),
        toy.diffusion,
        (len(noise), 1, 1, 1),
        torch.zeros(len(noise), dtype=torch.long),
        steps=100,
        noise=noise.view(-1, 1, 1, 1),
    )
    return end.flatten()  # (n, 1, 1, 1) -> (n,)


def landed(scale: float, interval: tuple[float, float] | None = None) -> Tensor:
    """The density at ``X`` of where all noise ends: (len(X),).

    On a line paths cannot cross, so as much lies below x as lay below its noise z; the density is
    that of the noise over dx/dz.
    """
    z = torch.linspace(-4.5, 4.5, 401, dtype=torch.float64)  # (401,)
    ends = landing(bells(), z, scale, interval)  # (401,), increasing
    there = torch.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) / torch.gradient(ends, spacing=(z,))[0]
    return torch.from_numpy(np.interp(X, ends, there, left=0, right=0))


def guidance_scale() -> Figure:
    """Digits, densities of a toy and the measured quality, over the guidance scale.

    Raises:
        FileNotFoundError, ValueError: the table ``guidance-scale`` is not there.
    """
    labels = torch.arange(10).repeat_interleave(6)  # (60,): six of each class
    frames = torch.stack(
        [
            drawn(setting(s, interval=interval), labels, seed=0).unflatten(0, (10, 1, 6))
            for interval in INTERVALS.values()
            for s in SCALES
        ]
    ).unflatten(0, (len(INTERVALS), len(SCALES)))  # (intervals, scales, 10, 1, 6, 1, 8, 8)
    every = (len(INTERVALS), len(SCALES), len(X))
    ends = np.stack([[landed(s, i).numpy() for s in SCALES] for i in INTERVALS.values()])
    tilts = np.broadcast_to(np.stack([tilted(s).numpy() for s in SCALES]), every)
    fixed = {name: np.broadcast_to(density(share), every) for name, share in SHARES.items()}
    found = {}
    for name in ("accuracy", "precision", "recall"):
        rows = [(row["setting"], row["metrics"][name]) for row in read("guidance-scale")]
        runs = np.array([[v for s, v in rows if s == f"{scale:g}"] for scale in SCALES])
        found[name] = runs.mean(1), runs.std(1, ddof=1)  # (scales,) each
    return Figure(
        name="guidance-scale",
        title="Further than the label says",
        caption="Above, six digits of one class, from the same noise at every scale. Below, "
        "numbers in place of images: the class that is asked for has two hills, one of them close "
        "to the other class. Move the scale from 1. The digits get clearer, and then harsh; the "
        "near hill is emptied; recall falls. Then guide only the steps up to 666.",
        alt="Six small digits of a class that turn harsh, nearly black and white, as the scale "
        "grows. A chart of densities: the curve of where samples land leaves the hill near the "
        "other class. A chart of accuracy, precision and recall over the scale: recall falls from "
        "the start, precision rises and then falls.",
        axes=[
            Axis("scale", "scale", SCALES, [f"{s:g}" for s in SCALES]),
            Axis("class", "class", list(range(10)), start=3),
            Axis("interval", "guided steps", list(INTERVALS), choice=True),
        ],
        play="scale",
        panels=[
            Images(
                title="Six digits, from the same noise at every scale",
                alt="Six digits of the chosen class; the larger the scale, the harsher.",
                axes=("interval", "scale", "class"),
                frames=frames.numpy(),
                levels=17,  # as many as the real digits have
                wide=True,
            ),
            Curves(
                title="Two classes of numbers",
                alt="Densities: the other class at the left, the asked one with two hills, the "
                "tilted density, and where samples land.",
                axes=("interval", "scale"),
                x=X.numpy(),
                x_label="x",
                lines=[
                    Line("lands", ends),
                    Line("tilted", tilts),
                    Line("asked class", fixed["asked"]),
                    Line("other class", fixed["other"]),
                ],
                limits=(0.0, 3.0),
            ),
            Curves(
                title="Quality of the digits, all steps guided",
                alt="Over the scale accuracy goes to 1, precision rises and falls, recall falls.",
                x=SCALES,
                x_label="guidance scale s",
                lines=[Line(name, m, m - sd, m + sd) for name, (m, sd) in found.items()],
                cursor="scale",
                limits=(0.0, 1.0),
            ),
        ],
    )
