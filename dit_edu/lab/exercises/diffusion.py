"""Exercises of the chapter on the process: noise levels, jump, posterior, weights, floors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dit_edu.diffusion import GaussianDiffusion, cosine_betas, linear_betas
from dit_edu.lab.exercises import Exercise, close, mistake

QSample = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Posterior = Callable[[Tensor, Tensor, int, int, Tensor], tuple[Tensor, Tensor]]


def _snr(alpha_bar: Tensor) -> Tensor:
    return alpha_bar / (1 - alpha_bar)


# Predict: where does noise overtake the signal?


def _judge_snr_one(answer: Any) -> str | None:
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return "Give two steps: (t of the linear schedule, t of the cosine schedule)."
    tables = {"linear": GaussianDiffusion.linear(1000), "cosine": GaussianDiffusion.cosine(1000)}
    first = [int((_snr(d.alphas_cumprod) < 1).nonzero()[0]) for d in tables.values()]
    if [int(a) for a in answer] == first[::-1]:
        return "Both numbers are right, but they have changed places: linear first, then cosine."
    for name, got, want in zip(tables, answer, first, strict=True):
        if not 0 <= int(got) < 1000:
            return f"{name}: {got} is no step; steps run from 0 to 999."
        if int(got) == want - 1:
            return f"{name}: at t = {got} the SNR is still a little above 1. One step too early."
        if int(got) == want + 1:
            return (
                f"{name}: at t = {got} it is below 1, but so it was one step before (count from 0)."
            )
        if int(got) != want:
            here = float(_snr(tables[name].alphas_cumprod)[int(got)])
            side = "above" if here > 1 else "below"
            return f"{name}: at t = {got} the SNR is {here:.3g}, well {side} 1."
    return None


# Derive: the weight that the likelihood gives to the squared error of the noise.


def _elbo_weight(betas: Tensor) -> Tensor:
    alpha_bar = torch.cumprod(1 - betas, 0)  # (T,)
    return (_snr(alpha_bar[:-1]) / _snr(alpha_bar[1:]) - 1) / 2  # (T-1,)


def _weight_of_wide_variance(betas: Tensor) -> Tensor:
    alpha_bar = torch.cumprod(1 - betas, 0)  # (T,)
    return (betas / (2 * (1 - betas) * (1 - alpha_bar)))[1:]  # (T-1,)


def _weight_of_x0(betas: Tensor) -> Tensor:
    snr = _snr(torch.cumprod(1 - betas, 0))  # (T,)
    return (snr[:-1] - snr[1:]) / 2  # (T-1,)


def _judge_elbo_weight(answer: Callable[[Tensor], Tensor]) -> str | None:
    for betas in (linear_betas(1000), cosine_betas(60)):
        want, got = _elbo_weight(betas), torch.as_tensor(answer(betas.clone())).double()
        if got.shape == betas.shape:
            return (
                "You give one weight for each of the T steps. The KL terms are those of "
                "t = 1 … T-1; at t = 0 there is no t-1 to go to: return T-1 numbers."
            )
        for off, why in (
            (2 * want, "A factor 2 is missing: the KL of two Gaussians is |difference|²/(2σ²)."),
            (_weight_of_wide_variance(betas),
             "This is the weight for a reverse step of variance β_t; the bound here uses β̃_t."),
            (_weight_of_x0(betas),
             "This is the weight of |x_0 - x̂_0|². Turn the error of x_0 into one of ε as well."),
        ):  # fmt: skip
            if got.shape == want.shape and torch.allclose(got, off, rtol=1e-4):
                return why
        if got.shape != want.shape or not torch.allclose(got, want, rtol=1e-4):
            return close(got, want, "weight(betas)") or (
                "Your weights are close where they are large and wrong where they are small."
            )
    return None


# Build: noise an image from nothing but the β.


def _q_sample(x0: Tensor, t: Tensor, noise: Tensor, betas: Tensor) -> Tensor:
    alpha_bar = torch.cumprod(1 - betas, 0)[t].view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def _q_sample_variances(x0: Tensor, t: Tensor, noise: Tensor, betas: Tensor) -> Tensor:
    alpha_bar = torch.cumprod(1 - betas, 0)[t].view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    return alpha_bar * x0 + (1 - alpha_bar) * noise


def _q_sample_early(x0: Tensor, t: Tensor, noise: Tensor, betas: Tensor) -> Tensor:
    alpha_bar = torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])[t]  # (B,)
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def _q_sample_one_step(x0: Tensor, t: Tensor, noise: Tensor, betas: Tensor) -> Tensor:
    beta = betas[t].view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    return (1 - beta).sqrt() * x0 + beta.sqrt() * noise


def _q_sample_sideways(x0: Tensor, t: Tensor, noise: Tensor, betas: Tensor) -> Tensor:
    alpha_bar = torch.cumprod(1 - betas, 0)[t]  # (B,), which then runs along the width
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


Q_SAMPLE_BUGS: dict[str, tuple[QSample, str]] = {
    "variances": (
        _q_sample_variances,
        "You multiply by ᾱ and 1-ᾱ. Those are variances; images are multiplied by their roots.",
    ),
    "one step early": (
        _q_sample_early,
        "You are one step too early: step t = 0 already adds the noise β_0, so ᾱ_0 = 1 - β_0.",
    ),
    "one step only": (
        _q_sample_one_step,
        "This is the noise of step t alone. The jump needs the product of all 1-β up to t.",
    ),
    "sideways": (
        _q_sample_sideways,
        "Coefficients of shape (B,) run along the *width* of the images: it goes unnoticed because "
        "B = W here. Give them the shape (B, 1, 1, 1).",
    ),
}


def _judge_q_sample(answer: QSample) -> str | None:
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 8, 1, 8, 8, generator=g, dtype=torch.float64)  # (B, C, H, W) each
    t = torch.tensor([0, 1, 5, 60, 258, 500, 900, 999])
    betas = linear_betas(1000)
    want = _q_sample(x0, t, noise, betas)

    def ask(f: QSample) -> Tensor:
        return f(x0.clone(), t.clone(), noise.clone(), betas.clone())

    problem = mistake(answer, Q_SAMPLE_BUGS, ask)
    if problem := problem or close(ask(answer), want, "The noisy batch", rel=1e-5):
        return problem
    rgb = torch.randn(2, 3, 4, 6, generator=g, dtype=torch.float64)  # (B, C, H, W)
    got = answer(rgb, t[:2], -rgb, betas)
    return close(got, _q_sample(rgb, t[:2], -rgb, betas), "A batch of shape (2, 3, 4, 6)", rel=1e-5)


# Find the bugs: a posterior that passes the usual test.


def broken_posterior(
    x0: Tensor, x_t: Tensor, t: int, t_prev: int, betas: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_t' | x_t, x_0) — with two bugs, for the reader to find."""
    alpha_bar = torch.cumprod(1 - betas, 0)  # (T,)
    ab_t, ab_prev = alpha_bar[t], alpha_bar[t_prev]
    beta = betas[t]
    of_x0 = ab_prev.sqrt() * beta / (1 - ab_t)
    of_xt = (ab_t / ab_prev).sqrt() * (1 - ab_prev) / (1 - ab_t)
    return of_x0 * x0 + of_xt * x_t, beta * (1 - ab_prev) / (1 - ab_t)


def _posterior(
    x0: Tensor, x_t: Tensor, t: int, t_prev: int, betas: Tensor
) -> tuple[Tensor, Tensor]:
    alpha_bar = torch.cumprod(1 - betas, 0)  # (T,)
    ab_t = alpha_bar[t]
    ab_prev = alpha_bar[t_prev] if t_prev >= 0 else betas.new_ones(())
    beta = 1 - ab_t / ab_prev  # all the noise between t' and t
    of_x0 = ab_prev.sqrt() * beta / (1 - ab_t)
    of_xt = (ab_t / ab_prev).sqrt() * (1 - ab_prev) / (1 - ab_t)
    return of_x0 * x0 + of_xt * x_t, beta * (1 - ab_prev) / (1 - ab_t)


def _posterior_wraps(
    x0: Tensor, x_t: Tensor, t: int, t_prev: int, betas: Tensor
) -> tuple[Tensor, Tensor]:
    alpha_bar = torch.cumprod(1 - betas, 0)  # (T,)
    ab_t, ab_prev = alpha_bar[t], alpha_bar[t_prev]
    beta = 1 - ab_t / ab_prev
    of_x0 = ab_prev.sqrt() * beta / (1 - ab_t)
    of_xt = (ab_t / ab_prev).sqrt() * (1 - ab_prev) / (1 - ab_t)
    return of_x0 * x0 + of_xt * x_t, beta * (1 - ab_prev) / (1 - ab_t)


def _posterior_one_step(
    x0: Tensor, x_t: Tensor, t: int, t_prev: int, betas: Tensor
) -> tuple[Tensor, Tensor]:
    if t_prev < 0:
        return x0, betas.new_zeros(())
    return broken_posterior(x0, x_t, t, t_prev, betas)


def _posterior_std(
    x0: Tensor, x_t: Tensor, t: int, t_prev: int, betas: Tensor
) -> tuple[Tensor, Tensor]:
    mean, variance = _posterior(x0, x_t, t, t_prev, betas)
    return mean, variance.sqrt()


def _judge_posterior(answer: Posterior) -> str | None:
    betas = linear_betas(1000)
    diffusion = GaussianDiffusion(betas)
    x0, x_t = torch.tensor([0.3, -0.9]).double(), torch.tensor([-1.2, 0.4]).double()  # (2,)
    cases = {
        (500, 499): "one ordinary step",
        (500, 250): "a step that skips: which noise came in between t' = 250 and t = 500?",
        (999, 100): "a step that skips: which noise came in between t' = 100 and t = 999?",
        (0, -1): "the last step, to the clean image: what does alpha_bar[-1] mean in Python?",
        (300, -1): "a jump to the clean image: what does alpha_bar[-1] mean in Python?",
    }
    for (t, t_prev), what in cases.items():
        steps = torch.full((2,), t), torch.full((2,), t_prev)
        want = diffusion.q_posterior(x0[:, None], x_t[:, None], *steps)  # (2, 1) each
        mean, variance = answer(x0.clone(), x_t.clone(), t, t_prev, betas.clone())
        variance = torch.as_tensor(variance).double().expand(2)  # (2,)
        truth = want[1].flatten()  # (2,)
        where = f"posterior(…, t={t}, t_prev={t_prev}), {what}"
        if t_prev >= 0 and torch.allclose(variance, truth.sqrt(), rtol=1e-6):
            return "Your second result is the standard deviation; the variance is asked for."
        if not torch.allclose(torch.as_tensor(mean).double(), want[0].flatten(), atol=1e-9):
            return f"The mean is wrong in {where}"
        if not torch.allclose(variance, truth, rtol=1e-6, atol=1e-15):
            return f"The variance is wrong in {where}"
    return None


# Derive: the loss of the best possible denoiser on Gaussian data.


def _floor(alpha_bar: float, s: float) -> float:
    return alpha_bar * s**2 / (alpha_bar * s**2 + 1 - alpha_bar)


FLOOR_BUGS: dict[str, tuple[Callable[[float, float], float], str]] = {
    "unit data": (
        lambda ab, s: ab,
        "This is the floor for s = 1. A larger s hides the noise better in the data.",
    ),
    "zero": (
        lambda ab, s: 0.0,
        "Zero would mean that x_t tells the noise exactly; but x_0 is unknown too.",
    ),
    "noise over all": (
        lambda ab, s: (1 - ab) / (ab * s**2 + 1 - ab),
        "This is the share of x_t's variance that is noise: what the best guess *explains* of ε. "
        "The loss is what it leaves.",
    ),
    "x0": (
        lambda ab, s: s**2 * (1 - ab) / (ab * s**2 + 1 - ab),
        "This is the floor of the x_0 loss. Errors of x_0 and ε differ by the factor SNR.",
    ),
    "v": (
        lambda ab, s: s**2 / (ab * s**2 + 1 - ab),
        "This is the floor of the v loss, the sum of those of x_0 and ε.",
    ),
}


def _judge_floor(answer: Callable[[float, float], float]) -> str | None:
    cases = [(0.9, 1.0), (0.5, 0.5), (0.2, 2.0), (0.01, 0.75)]
    if why := mistake(answer, FLOOR_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for ab, s in cases:
        if abs((got := float(answer(ab, s))) - _floor(ab, s)) >= 1e-6:
            return (
                f"floor({ab}, {s}) = {got:.6g}. Try it by Monte Carlo: draw x_0 and ε, regress ε "
                "on x_t, and take the mean square of what is left."
            )
    return None


EXERCISES = {
    "diffusion-snr-one": Exercise(
        judge=_judge_snr_one,
        hints=(
            "SNR = ᾱ/(1-ᾱ). For which ᾱ is it 1?",
            "For the linear schedule ln ᾱ_t ≈ -(β_0 + … + β_t), the area of a trapezium under β.",
            "(GaussianDiffusion.linear(1000).alphas_cumprod < 0.5).nonzero()[0], and cosine alike.",
        ),
        solution=lambda: tuple(
            int((d.alphas_cumprod < 0.5).nonzero()[0])
            for d in (GaussianDiffusion.linear(1000), GaussianDiffusion.cosine(1000))
        ),
        wrong={
            "half way": (500, 500),
            "changed places": (496, 259),
            "one early": (258, 495),
            "counted from one": (260, 497),
            "one number": 259,
        },
    ),
    "diffusion-elbo-weight": Exercise(
        judge=_judge_elbo_weight,
        hints=(
            "Start from L_t = ½ (SNR(t-1) - SNR(t)) |x_0 - x̂_0|².",
            "With x_t fixed, x_0 - x̂_0 = sqrt((1-ᾱ)/ᾱ) (ε̂ - ε): that factor squared is 1/SNR(t).",
            "½ (SNR(t-1)/SNR(t) - 1) for t = 1 … T-1, with ᾱ = cumprod(1 - betas).",
        ),
        solution=_elbo_weight,
        wrong={
            "no half": lambda betas: 2 * _elbo_weight(betas),
            "wide variance": _weight_of_wide_variance,
            "of x0": _weight_of_x0,
            "T weights": lambda betas: torch.ones_like(betas),
            "ones": lambda betas: torch.ones_like(betas[1:]),
        },
    ),
    "diffusion-q-sample": Exercise(
        judge=_judge_q_sample,
        hints=(
            "ᾱ_t is a product: which torch function gives all partial products of 1 - betas?",
            "Index the table with t, and give the result the shape (B, 1, 1, 1).",
            "ab = torch.cumprod(1 - betas, 0)[t].view(-1, 1, 1, 1); roots of ab and of 1 - ab.",
        ),
        solution=_q_sample,
        wrong={name: bug for name, (bug, _) in Q_SAMPLE_BUGS.items()},
    ),
    "diffusion-posterior-bug": Exercise(
        judge=_judge_posterior,
        hints=(
            "Both bugs hide where t_prev = t - 1 ≥ 0. Try t_prev = t - 50, and t_prev = -1.",
            "betas[t] is the noise of one step. How much comes in on the way from t' to t?",
            "beta = 1 - ab_t / ab_prev, and ab_prev = 1 where t_prev = -1.",
        ),
        solution=_posterior,
        wrong={
            "as given": broken_posterior,
            "index wraps": _posterior_wraps,
            "one step's noise": _posterior_one_step,
            "standard deviation": _posterior_std,
        },
    ),
    "diffusion-floor": Exercise(
        judge=_judge_floor,
        hints=(
            "x_t and ε are both Gaussian with mean 0: the best guess of ε is a multiple of x_t.",
            "The multiple is Cov(ε, x_t)/Var(x_t) = sqrt(1-ᾱ)/(ᾱ s² + 1-ᾱ).",
            "What is left is 1 - Cov²/Var: put everything over ᾱ s² + 1-ᾱ.",
        ),
        solution=_floor,
        wrong={name: bug for name, (bug, _) in FLOOR_BUGS.items()},
    ),
}
