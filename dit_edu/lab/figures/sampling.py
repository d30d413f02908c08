"""Moving figures of the chapter on sampling: quality against steps, and paths beside exact ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.interpolant import Interpolant
from dit_edu.lab.charts import Curves, Line
from dit_edu.lab.denoisers import BestGuess
from dit_edu.lab.draw import SAMPLERS
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.sampling import drawn, settings
from dit_edu.lab.panels import Axis, Images
from dit_edu.lab.widgets import Figure
from dit_edu.sampling import Trajectory

# ---------------------------------------------------------------------- quality against steps

#: What is compared, by the beginning of a setting's name; and what is shown in pictures.
SHOWN = {
    "DDPM": "ddpm uniform",
    "DDIM": "ddim uniform",
    "DPM++": "dpm++ uniform",
    "DDIM, quadratic": "ddim quadratic",
    "DPM++, quadratic": "dpm++ quadratic",
    "DDIM, beta": "ddim beta",
}
STEPS = (5, 10, 20, 50, 100, 250, 1000)
PICTURED = ("DDPM", "DDIM", "DPM++")


def by_steps(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, np.ndarray]:
    """A metric of the experiment on samplers, for each of ``SHOWN`` and ``STEPS``.

    Returns:
        (steps, 3) by name, with the mean over seeds, and one standard deviation below and above it
        (NaN for a single seed); all NaN where nothing was measured.
    """
    table = {}
    for name, setting in SHOWN.items():
        table[name] = np.full((len(STEPS), 3), np.nan)
        for k, steps in enumerate(STEPS):
            found = [r["metrics"][metric] for r in rows if r["setting"] == f"{setting} {steps}"]
            if found:
                sd = np.std(found, ddof=1) if len(found) > 1 else np.nan
                table[name][k] = np.mean(found) + np.array([0, -sd, sd])
    return table


def quality_by_steps() -> Figure:
    """Fréchet ratio and variety over the number of steps, beside what is drawn from one noise.

    Raises:
        FileNotFoundError, ValueError: the tables ``samplers`` and ``samplers-long`` are not there.
    """
    names = ("samplers", "samplers-long")
    rows = [row for name in names for row in read(name)]
    frames = []
    for name in PICTURED:
        sampler, grid = SHOWN[name].split()
        most = 999 if sampler == "dpm++" else 1000
        of_steps = settings(sampler, grid, [min(steps, most) for steps in STEPS]).values()
        frames += [drawn(setting, torch.arange(10), seed=0) for setting in of_steps]
    frames = torch.stack(frames).view(len(PICTURED), len(STEPS), 1, 10, 1, 8, 8)

    def curves(metric: str, title: str, alt: str, **options: Any) -> Curves:
        return Curves(
            title=title,
            alt=alt,
            x=np.log10(STEPS),
            x_label="log₁₀ of the number of steps",
            lines=[
                Line(label, *values.T)  # (steps, 3) -> mean, low, high
                for label, values in by_steps(rows, metric).items()
            ],
            cursor="steps",
            **options,
        )

    return Figure(
        name="quality-by-steps",
        title="How few steps are enough?",
        caption="The digits model, drawn by each sampler in 5 to 1000 steps, always with the same "
        "noise. (DPM++ makes 999 steps at most.) The Fréchet distance is that to held-out digits "
        "over the distance of real ones, so 1 is as good as real; variety is the variance within "
        "a class, over that of real digits. Bands are one standard deviation over three sampling "
        "seeds. Move *steps* down from 1000: which sampler keeps its digits the longest, and what "
        "happens to their strokes?",
        alt="Ten small digits drawn by the chosen sampler in the chosen number of steps, above two "
        "charts over the number of steps. The Fréchet ratio rises as steps fall, first for DDPM, "
        "then for DDIM, last for DPM-Solver++; the variety falls in the same order.",
        axes=[
            Axis("sampler", "sampler", PICTURED, start=1, choice=True),
            Axis("steps", "steps", np.log10(STEPS).tolist(), [str(n) for n in STEPS], start=1),
        ],
        play="steps",
        panels=[
            Images(
                title="Digits 0 to 9, from the same noise",
                alt="Ten digits by the chosen sampler; the fewer the steps, the more they look "
                "like the average of their class.",
                axes=("sampler", "steps"),
                frames=frames.numpy(),
                levels=17,  # as many as the real digits have
                wide=True,
            ),
            curves(
                "fd_ratio",
                "Fréchet distance, over the limit",
                "Falling lines over the steps, the lowest at few steps that of DPM-Solver++.",
                log=True,
                limits=(1.2, 11.0),
            ),
            curves(
                "variety",
                "Variety (1: as real digits)",
                "Rising lines over the steps; none reaches 1.",
                limits=(0.0, 1.0),
            ),
        ],
    )


# ---------------------------------------------------------------------- paths beside exact ones


class Mixture(BestGuess):
    """Perfect for numbers drawn from a few bells of equal width.

    Args:
        diffusion: the process.
        centres, weights: of the bells, (m,) float64; the weights add up to 1.
        sd: their standard deviation.
    """

    def __init__(self, diffusion: Interpolant, centres: Tensor, weights: Tensor, sd: float) -> None:
        super().__init__(diffusion)
        self.centres, self.weights, self.sd = centres, weights, sd

    def best_x0(self, x: Tensor, signal: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        off = x - signal * self.centres  # (B, 1) - (B, m) -> (B, m)
        variance = signal**2 * self.sd**2 + sigma**2  # (B, 1): of x_t within a bell
        share = (self.weights.log() - off**2 / (2 * variance)).softmax(1)  # (B, m): q(bell | x_t)
        guess = self.centres + signal * self.sd**2 / variance * off  # (B, m): the best in a bell
        return (share * guess).sum(1, keepdim=True)  # (B, 1)

    def below(self, x: Tensor, t: float) -> Tensor:
        """The probability that x_t is at most ``x`` (n,): (n,)."""
        signal, sigma = self.diffusion.signal_noise(torch.tensor([t]), x)
        spread = (signal**2 * self.sd**2 + sigma**2).sqrt()
        return torch.special.ndtr((x[:, None] - signal * self.centres) / spread) @ self.weights

    def on_the_curve(self, x: Tensor, start: float, t: float) -> Tensor:
        """Where the exact curves through ``x`` (n,) at ``start`` are at step ``t``: (n,).

        On a line curves cannot cross, so as many as were below stay below: u = F_t(x_t).
        """
        u = self.below(x, start)
        low, high = torch.full_like(x, -9), torch.full_like(x, 9)
        for _ in range(50):  # bisection
            middle = (low + high) / 2
            under = self.below(middle, t) < u
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2


def two_bells(process: Interpolant) -> Mixture:
    """The data of the figure: 40 % near -0.7, 60 % near 0.5."""
    centres, weights = torch.tensor([[-0.7, 0.5], [0.4, 0.6]], dtype=torch.float64)
    return Mixture(process, centres, weights, sd=0.2)


NAMES = {"DDPM": "ddpm", "DDIM": "ddim", "DPM++": "dpm++", "Euler": "euler", "Heun": "heun"}
PATH_STEPS = (4, 6, 10, 20, 40, 80, 160)
LEVELS = range(0, 1000, 9)  # where a path is drawn, both ends included
STARTS = (-0.4, 2.0)


def process_of(sampler: str) -> Interpolant:
    """The process that a sampler walks down in the figure."""
    diffusion = sampler in ("ddpm", "ddim", "dpm++")
    return GaussianDiffusion.cosine(1000, "v") if diffusion else FlowMatching()


def walked(sampler: str, steps: int, noise: Tensor) -> tuple[Trajectory, Tensor]:
    """The way of a sampler from ``noise`` (n,), and where it ends, (n,)."""
    process, way = process_of(sampler), Trajectory()
    end = SAMPLERS[sampler](
        two_bells(process), process, (len(noise), 1, 1, 1),
        torch.zeros(len(noise), dtype=torch.long), steps=steps, noise=noise.view(-1, 1, 1, 1),
        generator=torch.Generator().manual_seed(2), callback=way,
    )  # fmt: skip
    return way, end.flatten()  # (n, 1, 1, 1) -> (n,)


def end_error(sampler: str, steps: int, points: int = 1000) -> float:
    """How far the images are from where the exact curves end: root mean square over the noise."""
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    noise = torch.special.ndtri(u)  # (points,), evenly many in each piece of the bell
    exact = two_bells(process_of(sampler)).on_the_curve(noise, 999, clean(sampler))
    return (walked(sampler, steps, noise)[1] - exact).square().mean().sqrt().item()


def clean(sampler: str) -> int:
    """The t of the clean image: -1 for a diffusion, 0 for a flow."""
    return 0 if isinstance(process_of(sampler), FlowMatching) else -1


def sampler_paths() -> Figure:
    """Paths of every sampler beside the exact ones, and the error against steps."""
    starts = torch.tensor(STARTS, dtype=torch.float64)
    paths, exact = np.empty((2, len(NAMES), len(PATH_STEPS), len(STARTS), len(LEVELS)))
    for s, sampler in enumerate(NAMES.values()):
        truth = two_bells(process_of(sampler))
        curves = [truth.on_the_curve(starts, 999, t).numpy() for t in [clean(sampler), *LEVELS[1:]]]
        exact[s] = np.transpose(curves)  # (starts, levels), for any number of steps
        for k, steps in enumerate(PATH_STEPS):
            way, end = walked(sampler, steps, starts)
            xs = torch.cat([way.x.flatten(1), end[None]])  # (steps + 1, starts)
            ts = [*way.t, 0.0] if way.t[-1] > 0 else way.t
            xs = xs if way.t[-1] > 0 else torch.cat([xs[:-2], xs[-1:]])  # t = 0 shows the end
            paths[s, k] = [np.interp(LEVELS, ts[::-1], x) for x in xs.flip(0).T.numpy()]
    ordered = [name for name in NAMES if name != "DDPM"]
    errors = {name: [end_error(NAMES[name], steps) for steps in PATH_STEPS] for name in ordered}
    at = PATH_STEPS.index(40)
    slopes = {
        f"slope {order}": [errors[name][at] * (40 / steps) ** order for steps in PATH_STEPS]
        for order, name in ((1, "DDIM"), (2, "DPM++"))
    }
    return Figure(
        name="sampler-paths",
        title="A sampler takes the curve for straight",
        caption="A pixel that is near −0.7 or near 0.5. All is known here: the perfect denoiser, "
        "and the exact curves from noise (right) to data (left). Two paths begin on them. With "
        "few *steps* they cut the corners and end too near the middle; with twice as many, the "
        "error is halved or quartered. "
        "DDPM follows no curve: it draws anew at every step. (Heun asks the network twice in a "
        "step.)",
        alt="Left, two paths of the chosen sampler over t, beside the smooth exact curves; with "
        "few steps the paths have corners and end elsewhere. Right, the error over the number of "
        "steps on logarithmic axes: DDIM and Euler fall with slope 1, DPM-Solver++ and Heun with "
        "slope 2.",
        axes=[
            Axis("sampler", "sampler", list(NAMES), start=1, choice=True),
            Axis(
                "steps", "steps", np.log10(PATH_STEPS).tolist(), [str(k) for k in PATH_STEPS],
            ),
        ],
        play="steps",
        panels=[
            Curves(
                title="Two paths, from right to left",
                alt="Two paths of the sampler and the two exact curves from the same noise.",
                axes=("sampler", "steps"),
                x=list(LEVELS),
                x_label="t (0 is clean)",
                lines=[
                    Line(f"{name} {z:g}", values[:, :, i])
                    for i, z in enumerate(STARTS)
                    for name, values in (("path from", paths), ("exact from", exact))
                ],
            ),
            Curves(
                title="Error of the end",
                alt="Four falling lines, and two guides of slope 1 and 2.",
                x=np.log10(PATH_STEPS),
                x_label="log₁₀ of the number of steps",
                lines=[Line(name, y) for name, y in (errors | slopes).items()],
                cursor="steps",
                log=True,
                limits=(2e-4, 0.4),
            ),
        ],
    )  # fmt: skip
