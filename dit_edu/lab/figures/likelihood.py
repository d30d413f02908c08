"""Moving figure of the chapter on the likelihood: where the bits of an image go, step by step."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from dit_edu.diffusion import VARIANCES, GaussianDiffusion
from dit_edu.lab.charts import Bars, Curves, Line
from dit_edu.lab.data import digits
from dit_edu.lab.denoisers import Histograms
from dit_edu.lab.figures.denoising import ladder
from dit_edu.lab.panels import Axis
from dit_edu.lab.widgets import Figure
from dit_edu.likelihood import bits_per_dim

PIXEL_LEVELS = 17  # a pixel of scikit-learn's digits is 0 … 16
STEPS = (20, 60, 240)
BELIEFS = ("histograms", "covariance", "per class")


class SaysVariance(nn.Module):
    """A denoiser that says, beside its prediction, where the variance lies between β̃ and β.

    Args:
        model: the denoiser, (B, C, H, W).
        where: v in [-1, 1] for every step, (T,).
    """

    def __init__(self, model: nn.Module, where: Tensor) -> None:
        super().__init__()
        self.model, self.where = model, where

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        said = self.model(x, t, y)  # (B, C, H, W)
        v = self.where[t].to(said).view(-1, 1, 1, 1).expand_as(said)
        return torch.cat([said, v], dim=1)  # (B, 2C, H, W)


def best_variance(diffusion: GaussianDiffusion, mse: Tensor) -> Tensor:
    """The variance of each reverse step that makes the bound smallest, for a denoiser's errors.

    The reverse step stands for x_{t-1} itself, which lies around the denoiser's mean as widely as
    the posterior does, and once more as the error of x̂_0 moves it: σ² = β̃ + c² E(x_0 - x̂_0)².

    Args:
        diffusion: the process.
        mse: the mean squared error of x̂_0 at every step, (T,).

    Returns:
        v (T,) float64 of Nichol & Dhariwal 2021, equation 15, scaled to [-1, 1] and clipped there.

    Source: Bao et al. 2022 (Analytic-DPM), theorem 1, in terms of x_0.
    """
    t = torch.arange(diffusion.num_timesteps)
    one = torch.ones(len(t), 1, dtype=torch.float64)
    of_x0, _, log_small = diffusion.q_posterior(one, 0 * one, t)  # what multiplies x_0, log β̃
    best = (log_small.exp().squeeze(1) + of_x0.squeeze(1) ** 2 * mse.double()).log()  # (T,)
    low, high = log_small.squeeze(1), diffusion.betas.log()
    return (2 * (best - low) / (high - low) - 1).clamp(-1, 1)


def believer(diffusion: GaussianDiffusion, belief: str) -> nn.Module:
    """A denoiser that knows the training half of the digits, by the name of what it believes."""
    if belief == "histograms":
        return Histograms(diffusion, digits("train")[0], PIXEL_LEVELS)
    return ladder(diffusion)[belief]


@cache
def measured(steps: int, belief: str, variance: str, half: str, n: int = 100) -> dict[str, Tensor]:
    """Bits per dimension of n digits of a half, by a denoiser that knows the training half.

    Where the variance is ``"learned-range"`` it is the best one for the errors on the training
    half.
    """
    images, labels = (part[:n] for part in digits(half))
    diffusion = GaussianDiffusion.cosine(steps, "x0", variance=variance, levels=PIXEL_LEVELS)
    model: nn.Module = believer(diffusion, belief)
    if variance == "learned-range":
        errors = measured(steps, belief, "fixed-small", "train")["mse"].mean(0)
        model = SaysVariance(model, best_variance(diffusion, errors))
    g = torch.Generator().manual_seed(0)
    return bits_per_dim(model, diffusion, images.double(), labels, generator=g)


def bits_by_step() -> Figure:
    """Bits per dimension of held-out digits by three denoisers, variances and numbers of steps."""
    bins = 20
    x = (np.arange(bins) + 0.5) / bins
    lines = {belief: [] for belief in BELIEFS}
    totals = []
    for steps in STEPS:
        for variance in VARIANCES:
            bits = {b: measured(steps, b, variance, "heldout") for b in BELIEFS}
            totals.append([float(bits[b]["total"].mean()) for b in BELIEFS])
            for b in BELIEFS:
                terms = bits[b]["terms"].mean(0).reshape(bins, -1).sum(1)  # (T,) -> (bins,)
                lines[b].append(terms.numpy())
    shape = (len(STEPS), len(VARIANCES))
    return Figure(
        name="bits-by-step",
        title="Where the bits go",
        caption="What a held-out digit costs, in bits per pixel, and at which part of the way. "
        "Three denoisers that need no training. Choose the number of steps and the variance of "
        "the reverse step. Which denoiser gains by more steps, and which one loses?",
        alt="Three lines over t / T on a logarithmic scale: most bits are paid where little noise "
        "is left. Bars of the totals: more steps make the denoiser that knows the pixels' levels "
        "cheaper, and the two Gaussian ones dearer.",
        axes=[
            Axis("steps", "T", list(STEPS), start=1, choice=True),
            Axis("variance", "variance", list(VARIANCES), choice=True),
        ],
        panels=[
            Curves(
                title="Bits per pixel, in each twentieth of the way",
                alt="Three falling lines over t / T.",
                axes=("steps", "variance"),
                x=x,
                x_label="t / T",
                lines=[
                    Line(b, np.stack(y).reshape(*shape, bins).clip(1e-6)) for b, y in lines.items()
                ],
                log=True,
                wide=True,
            ),
            Bars(
                title="All steps together",
                alt="The bits per pixel of the three denoisers.",
                axes=("steps", "variance"),
                labels=list(BELIEFS),
                values=np.reshape(totals, (*shape, len(BELIEFS))),
                unit="bits per pixel",
                wide=True,
            ),
        ],
    )
