"""What denoising means: where a noisy pixel came from, and what the best denoiser would say."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.lab.charts import Curves, Line
from dit_edu.lab.data import digits
from dit_edu.lab.denoisers import BestGuess, Memoriser, PerClass, gaussian, pixels_alike
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure

LEVELS = range(12, 1000, 25)  # where losses by noise level are measured


def normal(x: Tensor, mean: float | Tensor, variance: float) -> Tensor:
    """The density N(x; mean, variance) of one pixel."""
    return (-((x - mean) ** 2) / (2 * variance)).exp() / math.sqrt(2 * math.pi * variance)


def came_from(
    diffusion: GaussianDiffusion, line: Tensor, t: int, t_prev: int, seen: float
) -> tuple[Tensor, Tensor]:
    """Where x_t = ``seen`` was at the step ``t_prev``: a pixel that is -1 or +1, give or take 0.1.

    Args:
        diffusion: the process.
        line: where to give the density, increasing and fine, (n,) float64.
        t, t_prev: the step and an earlier one.
        seen: x_t.

    Returns:
        The exact density q(x_t' | x_t), by Bayes' rule, and the Gaussian of its mean and variance,
        each (n,).
    """
    ab_t, ab = diffusion.alphas_cumprod[t].item(), diffusion.alphas_cumprod[t_prev].item()
    spread = ab * 0.1**2 + 1 - ab  # the variance of x_t' around each of the two values
    prior = normal(line, math.sqrt(ab), spread) + normal(line, -math.sqrt(ab), spread)  # q(x_t')
    exact = prior * normal(seen, math.sqrt(ab_t / ab) * line, 1 - ab_t / ab)  # · q(x_t | x_t')
    exact = exact / torch.trapezoid(exact, line)
    mean = torch.trapezoid(line * exact, line)
    variance = torch.trapezoid((line - mean) ** 2 * exact, line)
    return exact, normal(line, mean, variance.item())


def step_back() -> Figure:
    """The density of an earlier x_t' given x_t: a bell if it is near, two peaks if it is far."""
    diffusion = GaussianDiffusion.cosine(1000)
    line = torch.linspace(-2.5, 2.5, 161, dtype=torch.float64)
    befores = [595, 590, 580, 570, 550, 525, 500, 475, 450, 425, 400, 350, 300, 250, 200, 150, 100]
    curves = [came_from(diffusion, line, 600, before, seen=0.2) for before in befores]
    return Figure(
        name="step-back",
        title="Where did x_t come from?",
        caption="A pixel that is either −1 or +1, give or take 0.1, has been noised to *t* = 600 "
        "and shows 0.2. Where was it at the earlier step *t′*? Move *t′* towards 600: the two "
        "peaks melt into one bell, and the Gaussian fits.",
        alt="The density of an earlier value of a pixel. For a small step back it is one bell, and "
        "a Gaussian lies on it; for a large step it has two peaks, and the Gaussian sits between "
        "them.",
        axes=[Axis("before", "t′", befores, start=11)],
        play="before",
        panels=[
            Curves(
                title="Density at t′, given 0.2 at t = 600",
                alt="The exact density and the Gaussian of the same mean and variance.",
                axes=("before",),
                x=line.numpy(),
                x_label="value at t′",
                lines=[
                    Line("exact, by Bayes", torch.stack([exact for exact, _ in curves]).numpy()),
                    Line("Gaussian", torch.stack([fit for _, fit in curves]).numpy()),
                ],
                wide=True,
            )
        ],
    )


def ladder(diffusion: GaussianDiffusion) -> dict[str, BestGuess]:
    """Four denoisers of the digits, each knowing more of the training half than the one before."""
    images, labels = digits("train")
    return {
        "pixels alike": pixels_alike(diffusion, images),
        "covariance": gaussian(diffusion, images),
        "per class": PerClass(diffusion, images, labels),
        "memoriser": Memoriser(diffusion, images),
    }


def by_level(
    model: torch.nn.Module, diffusion: GaussianDiffusion, images: Tensor, labels: Tensor
) -> Tensor:
    """The mean loss of a denoiser at each of ``LEVELS``, with the same noise for every denoiser.

    Args:
        model: a denoiser.
        diffusion: the process; its prediction decides which loss.
        images, labels: (n, C, H, W) and (n,).

    Returns:
        (len(LEVELS),).
    """
    generator = torch.Generator().manual_seed(0)
    losses = []
    with torch.no_grad():
        for t in LEVELS:
            noise = torch.randn(images.shape, generator=generator)
            steps = torch.full((len(images),), t)
            losses.append(diffusion.losses(model, images, steps, labels, noise)["loss"].mean())
    return torch.stack(losses)


def noise_floors() -> Figure:
    """Loss by noise level of denoisers that need no training, and what they say of one digit."""
    diffusion = GaussianDiffusion.cosine(1000, prediction="v")
    models = ladder(diffusion)
    halves = {"training half": digits("train"), "held-out half": digits("heldout")}
    losses = [
        [by_level(m, diffusion, *half).numpy() for half in halves.values()] for m in models.values()
    ]
    frames = []
    for images, labels in halves.values():
        seven = (labels == 7).nonzero()[1]  # (1,)
        noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(6))
        for t in LEVELS:
            step, y = torch.tensor([t]), labels[seven]
            x_t = diffusion.q_sample(images[seven], step, noise)
            guesses = [diffusion.to_x0(m(x_t, step, y), x_t, step) for m in models.values()]
            frames.append(torch.cat([images[seven], x_t, *guesses]))  # (6, 1, 8, 8)
    shape = (len(halves), len(LEVELS), 1, 2 + len(models), 1, 8, 8)
    return Figure(
        name="noise-floors",
        title="What the best denoiser would say",
        caption="Four denoisers of digits that need no training. Each is perfect for what it "
        "believes the training half to be. Move *t*, and change the half they are tested on.",
        alt="Above a 7, the noisy 7 and four guesses of the clean image, blurred averages at high "
        "t. Below the losses of v over t: on the training half the memoriser is lowest at "
        "low t, on the held-out half it fails there.",
        axes=[
            Axis("half", "tested on", list(halves), choice=True),
            Axis("t", "t", list(LEVELS), start=16),
        ],
        play="t",
        panels=[
            Images(
                title="A digit, the noisy one, and four guesses",
                alt="Six small pictures of a 7: clean, noisy, and as the four denoisers guess it.",
                axes=("half", "t"),
                frames=torch.stack(frames).reshape(shape).numpy(),
                column_labels=["x₀", "xₜ", *models],
                wide=True,
            ),
            Curves(
                title="v loss by noise level",
                alt="Four lines over t, one for each denoiser.",
                axes=("half",),
                x=list(LEVELS),
                x_label="t",
                lines=[Line(name, loss) for name, loss in zip(models, losses, strict=True)],
                cursor="t",
                limits=(0, 1.2),
                wide=True,
            ),
        ],
    )
