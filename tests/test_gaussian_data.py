"""Every sampler on data whose exact denoiser is known: what it draws, and how its error falls.

The data are N(m, Σ) in two dimensions, its coordinates correlated. The exact denoiser is linear in
x_t, so a deterministic sampler maps the noise z to A z + c, and A and c are read off exactly from
z = 0 and the unit vectors. No random numbers, no standard errors.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.grids import timestep_grid
from dit_edu.interpolant import Interpolant
from dit_edu.sampling import Trajectory, ddim_sample, ddpm_sample
from dit_edu.solvers import dpmpp_2m_sample, euler_sample, heun_sample

F64 = torch.float64
MEAN = torch.tensor([0.3, -0.2], dtype=F64)
COV = torch.tensor([[0.36, 0.15], [0.15, 0.16]], dtype=F64)
EYE = torch.eye(2, dtype=F64)
DIFFUSION, FLOW = GaussianDiffusion.cosine(20_000, "v"), FlowMatching()
WALKS = {
    "ddim": (ddim_sample, DIFFUSION, 1),
    "dpm++": (dpmpp_2m_sample, DIFFUSION, 2),
    "euler": (euler_sample, FLOW, 1),
    "heun": (heun_sample, FLOW, 2),
}


class Exact(nn.Module):
    """E[x_0 | x_t] = m + a Σ (a² Σ + b² I)⁻¹ (x_t - a m), said as the process wants it."""

    def __init__(self, process: Interpolant) -> None:
        super().__init__()
        self.process = process

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        a, b = (float(c[0, 0, 0, 0]) for c in self.process.signal_noise(t, x))
        flat = x.flatten(1)  # (B, 2)
        gain = a * COV @ torch.linalg.inv(a**2 * COV + b**2 * EYE)  # (2, 2)
        x0 = MEAN + (flat - a * MEAN) @ gain.T  # (B, 2)
        return self.process.target(x0, (flat - a * x0) / b, t).view_as(x)


def affine(name: str, steps: int, **options) -> tuple[Tensor, Tensor]:
    """A and c of the map from noise to image."""
    sample, process, _ = WALKS[name]
    noise = torch.cat([torch.zeros(1, 2, dtype=F64), EYE]).view(3, 1, 1, 2)
    y = torch.zeros(3, dtype=torch.long)
    images = sample(Exact(process), process, noise.shape, y, steps=steps, noise=noise, **options)
    c, *columns = images.flatten(1)  # (3, 1, 1, 2) -> 3 x (2,)
    return torch.stack([column - c for column in columns], dim=1), c


def on_the_curve(process: Interpolant, t: float, noise: Tensor) -> Tensor:
    """Where the exact curve that begins at ``noise`` (n, 2) is at step t: (n, 2).

    Along a direction of variance λ, x_t has the standard deviation sqrt(a² λ + b²), and a point
    keeps its place among its own kind: it stays as many of them away from the mean a m.
    """

    def at(t: float) -> tuple[float, float]:
        return tuple(float(c) for c in process.signal_noise(torch.tensor([t]), noise))

    (a_start, b_start), (a, b) = at(process.num_timesteps - 1), at(t)
    values, basis = torch.linalg.eigh(COV)
    scale = ((a**2 * values + b**2) / (a_start**2 * values + b_start**2)).sqrt()
    return a * MEAN + (noise - a_start * MEAN) @ (basis @ scale.diag() @ basis.T)


@pytest.mark.parametrize("name", WALKS)
def test_enough_steps_draw_the_mean_and_the_covariance_of_the_data(name):
    transport, c = affine(name, 1000)
    tolerance = 2e-3 if WALKS[name][2] == 1 else 5e-5
    torch.testing.assert_close(c, MEAN, rtol=0, atol=tolerance)
    torch.testing.assert_close(transport @ transport.T, COV, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", WALKS)
def test_the_error_falls_with_the_order_of_the_method(name):
    """Fitted over 40 to 320 steps, in log-log: 1 for DDIM and Euler, 2 for DPM++(2M) and Heun.

    It is the largest distance from the exact curve at the visited steps t > T/5, under the linear
    schedule: there log(a/b) is smooth in t. (At the clean end it is not, and under the cosine
    schedule it runs to -∞ at the other, which costs DPM++(2M) a factor of log K.)
    """
    sample, process, order = WALKS[name]
    process = GaussianDiffusion.linear(20_000, "v") if process is DIFFUSION else process
    noise = torch.tensor([[1.0, 0.5], [-0.7, 1.2], [0.3, -2.0]], dtype=F64)
    steps, errors = (40, 80, 160, 320), []
    for k in steps:
        way = Trajectory()
        sample(
            Exact(process), process, (3, 1, 1, 2), torch.zeros(3, dtype=torch.long),
            steps=k, noise=noise.view(3, 1, 1, 2), callback=way,
        )  # fmt: skip
        far = [
            float((x.flatten(1) - on_the_curve(process, t, noise)).norm())
            for t, x in zip(way.t, way.x, strict=True)
            if t > process.num_timesteps / 5
        ]
        errors.append(max(far))
    x = torch.tensor(steps, dtype=F64).log()
    y = torch.tensor(errors, dtype=F64).log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert -slope == pytest.approx(order, abs=0.1)


def test_the_second_order_pays_at_few_steps():
    """On the finished image too: at 20 steps, and by at least the square from 20 to 80."""
    exact = on_the_curve(DIFFUSION, -1, EYE) - on_the_curve(DIFFUSION, -1, 0 * EYE)
    found = {}
    for name, k in (("ddim", 20), ("dpm++", 20), ("dpm++", 80)):
        found[name, k] = float((affine(name, k)[0].T - exact).norm())
    assert found["dpm++", 20] < 0.25 * found["ddim", 20]
    assert found["dpm++", 80] < found["dpm++", 20] / 16


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "beta"])
def test_every_grid_ends_at_the_data(grid):
    for name in ("ddim", "dpm++"):
        transport, c = affine(name, 400, grid=grid)
        torch.testing.assert_close(transport @ transport.T, COV, rtol=0, atol=0.01)
        torch.testing.assert_close(c, MEAN, rtol=0, atol=0.01)
    for name in ("euler", "heun"):
        transport, _ = affine(name, 400, grid="quadratic")
        torch.testing.assert_close(transport @ transport.T, COV, rtol=0, atol=0.01)


def ancestral_theory(diffusion: GaussianDiffusion, grid: list[int], eta: float | None = None):
    """Mean and covariance that DDPM (or DDIM with η) must have after the steps of a grid.

    Worked out step by step with matrices: each step is x' = M x + d + σ z.
    """
    mean, cov = torch.zeros(2, dtype=F64), EYE
    for t, t_prev in zip(grid, [*grid[1:], -1], strict=True):
        ab = float(diffusion.alphas_cumprod[t])
        before = float(diffusion.alphas_cumprod[t_prev]) if t_prev >= 0 else 1.0
        gain = math.sqrt(ab) * COV @ torch.linalg.inv(ab * COV + (1 - ab) * EYE)
        of_zero = MEAN - gain @ (math.sqrt(ab) * MEAN)  # x̂_0 = gain x + of_zero
        beta = 1 - ab / before
        small = beta * (1 - before) / (1 - ab)
        if eta is None:
            u = math.sqrt(before) * beta / (1 - ab)
            w = math.sqrt(ab / before) * (1 - before) / (1 - ab)
            variance = beta if diffusion.variance == "fixed-large" and t_prev >= 0 else small
        else:
            variance = eta**2 * small
            w = math.sqrt(max(1 - before - variance, 0) / (1 - ab))
            u = math.sqrt(before) - w * math.sqrt(ab)
        step = u * gain + w * EYE
        mean = step @ mean + u * of_zero
        cov = step @ cov @ step.T + (variance if t_prev >= 0 else 0.0) * EYE
    return mean, cov


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large"])
@pytest.mark.parametrize("steps", [5, 100])
def test_ddpm_draws_what_theory_says(variance, steps):
    """By Monte Carlo; with five steps the covariance is far from the data's, and as predicted."""
    diffusion = GaussianDiffusion.cosine(1000, "v", variance=variance)
    n = 40_000
    y, g = torch.zeros(n, dtype=torch.long), torch.Generator().manual_seed(0)
    noise = torch.randn(n, 1, 1, 2, generator=g, dtype=F64)
    x = ddpm_sample(
        Exact(diffusion), diffusion, noise.shape, y, steps=steps, noise=noise, generator=g
    ).flatten(1)
    mean, cov = ancestral_theory(diffusion, timestep_grid(1000, steps).tolist())
    # Standard errors: 0.6 / 200 = 0.003 of the mean, 0.36 sqrt(2) / 200 = 0.0025 of the covariance.
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.012)
    torch.testing.assert_close(torch.cov(x.T), cov, rtol=0, atol=0.01)
    distance = float((cov - COV).abs().max())
    assert distance > 0.05 if steps == 5 else distance < 0.03


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_draws_what_theory_says(eta):
    diffusion = GaussianDiffusion.cosine(1000, "v")
    n = 40_000
    y, g = torch.zeros(n, dtype=torch.long), torch.Generator().manual_seed(0)
    noise = torch.randn(n, 1, 1, 2, generator=g, dtype=F64)
    x = ddim_sample(
        Exact(diffusion), diffusion, noise.shape, y, steps=6, eta=eta, noise=noise, generator=g
    ).flatten(1)
    mean, cov = ancestral_theory(diffusion, timestep_grid(1000, 6).tolist(), eta)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.012)
    torch.testing.assert_close(torch.cov(x.T), cov, rtol=0, atol=0.01)


@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
def test_ddim_shrinks_by_the_cosines_of_its_steps(grid):
    """Along a direction of variance λ it keeps Π cos of the turns of (a √λ, b), of the spread."""
    transport, _ = affine("ddim", 7, grid=grid)
    values, basis = torch.linalg.eigh(COV)
    ts = timestep_grid(DIFFUSION.num_timesteps, 7, grid)
    ab = torch.cat([DIFFUSION.alphas_cumprod[ts], torch.ones(1, dtype=F64)])  # (8,)
    for value, direction in zip(values, basis.T, strict=True):
        angle = torch.atan2((1 - ab).sqrt(), (ab * value).sqrt())  # (8,)
        share = (angle[:-1] - angle[1:]).cos().prod()
        exact = value.sqrt() / (ab[0] * value + 1 - ab[0]).sqrt()
        torch.testing.assert_close(transport @ direction, share * exact * direction)
        assert share < 0.85


def test_the_last_jump_keeps_the_share_of_the_signal():
    """One step of DDIM to the clean image is x̂_0: its spread is a s / sqrt(a² s² + b²) of s."""
    for t in (0, 500, 4000):
        x0 = Exact(DIFFUSION)
        a, b = (
            float(c) for c in DIFFUSION.signal_noise(torch.tensor([t]), torch.zeros(1, dtype=F64))
        )
        values, basis = torch.linalg.eigh(COV)
        here = (a**2 * values + b**2).sqrt()  # the spread of x_t in each direction
        x = (a * MEAN + (here * basis).T).view(2, 1, 1, 2)  # one spread from the mean
        step = torch.full((2,), t)
        ends = DIFFUSION.to_x0(x0(x, step, None), x, step).view(2, 2)
        kept = ((ends - MEAN) @ basis).diag() / values.sqrt()
        torch.testing.assert_close(kept, a * values.sqrt() / here)
        if b**2 < 0.01:
            torch.testing.assert_close(kept, 1 - b**2 / (2 * values), rtol=1e-2, atol=0)


def test_the_exact_solution_in_half_log_snr():
    """x'/b' = x/b + ∫ e^λ x̂_0 dλ by quadrature along the exact curve; DPM-Solver++ follows it."""
    noise, way = torch.tensor([[1.0, 0.5], [-0.7, 1.2]], dtype=F64), Trajectory()
    dpmpp_2m_sample(
        Exact(DIFFUSION), DIFFUSION, (2, 1, 1, 2), torch.zeros(2, dtype=torch.long),
        steps=400, noise=noise.view(2, 1, 1, 2), callback=way,
    )  # fmt: skip
    visited = {int(t): x.view(2, 2) for t, x in zip(way.t, way.x, strict=True)}
    start, end = (min(visited, key=lambda t: abs(t - wanted)) for wanted in (15_000, 3_000))
    ts = torch.arange(start, end - 1, -1)
    model, x0s, ratios = Exact(DIFFUSION), [], []
    for t in ts.tolist():
        x, step = on_the_curve(DIFFUSION, t, noise).view(2, 1, 1, 2), torch.full((2,), t)
        x0s.append(DIFFUSION.to_x0(model(x, step, None), x, step).view(2, 2))
        ab = float(DIFFUSION.alphas_cumprod[t])
        ratios.append(math.sqrt(ab / (1 - ab)))  # e^λ = a/b
    integral = torch.trapezoid(torch.stack(x0s), torch.tensor(ratios, dtype=F64), dim=0)  # (2, 2)
    b, b_end = (float((1 - DIFFUSION.alphas_cumprod[t]).sqrt()) for t in (start, end))
    by_formula = b_end * (on_the_curve(DIFFUSION, start, noise) / b + integral)
    exact = on_the_curve(DIFFUSION, end, noise)
    torch.testing.assert_close(by_formula, exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(visited[end], by_formula, rtol=0, atol=1e-4)
