"""Exercises of the chapter on sampling: what a step of each sampler does, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dit_edu.grids import respaced
from dit_edu.lab.exercises import Exercise, close, mistake

# Derive: what a step of DDIM does to Gaussian data, and so what it does to their spread.

Shrink = Callable[[float, float, float], float]


def _shrink(alpha_bar: float, alpha_bar_prev: float, s: float) -> float:
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    signal_prev, noise_prev = math.sqrt(alpha_bar_prev), math.sqrt(1 - alpha_bar_prev)
    return (signal * signal_prev * s**2 + noise * noise_prev) / (signal**2 * s**2 + noise**2)


def _shrink_exact(alpha_bar: float, alpha_bar_prev: float, s: float) -> float:
    now, then = (ab * s**2 + 1 - ab for ab in (alpha_bar, alpha_bar_prev))
    return math.sqrt(then / now)


def _shrink_ddpm(alpha_bar: float, alpha_bar_prev: float, s: float) -> float:
    beta = 1 - alpha_bar / alpha_bar_prev
    gain = math.sqrt(alpha_bar) * s**2 / (alpha_bar * s**2 + 1 - alpha_bar)
    u = math.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar)
    return u * gain + math.sqrt(1 - beta) * (1 - alpha_bar_prev) / (1 - alpha_bar)


SHRINK_BUGS: dict[str, tuple[Shrink, str]] = {
    "exact": (
        _shrink_exact,
        "This is what the exact curve does: it keeps x as many standard deviations from the mean. "
        "DDIM takes the curve for straight and gets less.",
    ),
    "variance one": (
        lambda ab, prev, s: _shrink(ab, prev, 1.0),
        "You have left out s: this is right for data of variance 1 only.",
    ),
    "mean of DDPM": (
        _shrink_ddpm,
        "This is the mean of a DDPM step. DDIM with eta = 0 puts the whole predicted noise back: "
        "x_t' = a' x̂_0 + b' ε̂.",
    ),
}


def _judge_shrink(answer: Shrink) -> str | None:
    cases = [(0.3, 0.7, 0.5), (0.01, 0.2, 0.8), (0.6, 1.0, 0.3), (0.5, 0.9, 2.0)]

    def ask(f: Shrink) -> list[float]:
        return [float(f(*case)) for case in cases]

    return mistake(answer, SHRINK_BUGS, ask) or close(ask(answer), ask(_shrink), "The factor", 1e-6)


# Build: one step of DDIM, for any η.

DDIMStep = Callable[[Tensor, Tensor, float, float, float, Tensor], Tensor]


def _ddim_step(x, eps, alpha_bar, alpha_bar_prev, eta, z, full=False, variance=False, beta=False):
    """The step, and (by its switches) three popular bugs in it."""
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    sigma2 = 1 - alpha_bar / alpha_bar_prev  # β between the two steps
    if not beta:
        sigma2 = sigma2 * (1 - alpha_bar_prev) / (1 - alpha_bar)  # β̃
    sigma2 = eta**2 * sigma2
    rest = 1 - alpha_bar_prev - (0 if full else sigma2)
    noise = sigma2 if variance else sigma2**0.5
    return alpha_bar_prev**0.5 * x0 + max(rest, 0.0) ** 0.5 * eps + noise * z


def _solution_ddim_step(x, eps, alpha_bar, alpha_bar_prev, eta, z):
    return _ddim_step(x, eps, alpha_bar, alpha_bar_prev, eta, z)


DDIM_BUGS: dict[str, tuple[DDIMStep, str]] = {
    "too much noise": (
        lambda *a: _ddim_step(*a, full=True),
        "The noise that you add comes on top: b'² = 1 - ᾱ' must be shared out, σ² for the fresh "
        "noise and the rest for ε̂. Otherwise x_t' is noisier than step t' is.",
    ),
    "variance": (
        lambda *a: _ddim_step(*a, variance=True),
        "Fresh noise is multiplied by σ, the root; you multiply by σ².",
    ),
    "beta": (
        lambda *a: _ddim_step(*a, beta=True),
        "η = 1 has to be DDPM, whose fresh noise has the variance β̃, not β.",
    ),
    "no fresh noise": (
        lambda x, eps, ab, prev, eta, z: _ddim_step(x, eps, ab, prev, 0.0, z),
        "Right for η = 0. Where is η?",
    ),
}


def _judge_ddim_step(answer: DDIMStep) -> str | None:
    g = torch.Generator().manual_seed(0)
    x, eps, z = torch.randn(3, 2, 1, 3, 5, generator=g, dtype=torch.float64)
    levels = ((0.2, 0.5), (0.01, 0.3), (0.7, 1.0))
    cases = [(x, eps, *pair, eta, z) for eta in (0.0, 1.0, 0.6) for pair in levels]
    if why := mistake(answer, DDIM_BUGS, lambda f: [f(*case) for case in cases]):
        return why
    for case in cases:
        _, _, ab, prev, eta, _ = case
        what = f"The step from ᾱ = {ab} to {prev}, η = {eta},"
        if wrong := close(answer(*case), _ddim_step(*case), what, 1e-6):
            return wrong
    return None


# Derive: the update of DPM-Solver++(2M).

SolverStep = Callable[[Tensor, Tensor, Tensor, float, float, float], Tensor]


def _solver_step(x, x0, x0_before, ab_before, ab, ab_next, ratio=lambda r: 0.5 / r):
    before, now, then = (0.5 * math.log(a / (1 - a)) for a in (ab_before, ab, ab_next))
    h = then - now
    guess = x0 + ratio((now - before) / h) * (x0 - x0_before)
    return ((1 - ab_next) / (1 - ab)) ** 0.5 * x - ab_next**0.5 * math.expm1(-h) * guess


def _solution_solver_step(x, x0, x0_before, ab_before, ab, ab_next):
    return _solver_step(x, x0, x0_before, ab_before, ab, ab_next)


def _solver_step_of_snr(x, x0, x0_before, ab_before, ab, ab_next):
    before, now, then = (math.log(a / (1 - a)) for a in (ab_before, ab, ab_next))
    guess = x0 + 0.5 * (then - now) / (now - before) * (x0 - x0_before)
    return ((1 - ab_next) / (1 - ab)) ** 0.5 * x - ab_next**0.5 * math.expm1(now - then) * guess


SOLVER_BUGS: dict[str, tuple[SolverStep, str]] = {
    "first order": (
        lambda *a: _solver_step(*a, ratio=lambda r: 0.0),
        "This is DDIM: x̂_0 is held still. Use the guess of the step before to see where it moves.",
    ),
    "whole step": (
        lambda *a: _solver_step(*a, ratio=lambda r: 1 / r),
        "You follow the slope over the whole step, to its end. The guess should be that of its "
        "middle: half as far.",
    ),
    "r upside down": (
        lambda *a: _solver_step(*a, ratio=lambda r: 0.5 * r),
        "The slope is (D_i - D_{i-1}) / h_{i-1}, the length of the step *before*; then go half of "
        "h_i along it. You have the two lengths the other way round.",
    ),
    "backwards": (
        lambda *a: _solver_step(*a, ratio=lambda r: -0.5 / r),
        "Your guess moves back towards the older one. It has to go on in the direction of change.",
    ),
    "log SNR": (
        _solver_step_of_snr,
        "λ is log(a/b), half the logarithm of the SNR. You use all of it, so h is twice too long.",
    ),
}


def _judge_solver_step(answer: SolverStep) -> str | None:
    g = torch.Generator().manual_seed(1)
    images = torch.randn(3, 2, 1, 3, 5, generator=g, dtype=torch.float64)  # x, x̂_0, the one before
    cases = [(*images, *ab) for ab in ((0.01, 0.1, 0.5), (0.3, 0.5, 0.6), (0.6, 0.7, 0.99))]
    if why := mistake(answer, SOLVER_BUGS, lambda f: [f(*case) for case in cases]):
        return why
    for case in cases:
        what = "The step over ᾱ = {}, {}, {}".format(*case[3:])
        if wrong := close(answer(*case), _solver_step(*case), what, 1e-6):
            return wrong
    return None


# Predict: what the texts of the published code mean.


def _respaced() -> tuple[int, int, int, int]:
    thirds = respaced(1000, "10,10,10")
    return (
        int(respaced(1000, "50")[0]),
        int(respaced(1000, "ddim50")[0]),
        int(respaced(1000, "1")[0]),
        int((thirds[:-1] - thirds[1:]).min()),
    )


def _judge_respace(answer: Any) -> str | None:
    if not isinstance(answer, tuple | list) or len(answer) != 4:
        return 'Four numbers: first steps of "50", "ddim50" and "1"; the least gap in "10,10,10".'
    reasons = (
        '"50": one section, evenly spaced *with both ends*: it begins at the noisiest step.',
        '"ddim50": every n-th step from 0 on, for the n that gives 50 of them. Where does it stop?',
        '"1": evenly spaced with both ends, but there is room for one. The code takes the first of '
        "the section, and counts from the clean end.",
        '"10,10,10": each third has both its ends. Look where one third stops and the next begins.',
    )
    for got, want, why in zip(answer, _respaced(), reasons, strict=True):
        if got != want:
            return f"{got} is not it. {why}"
    return None


# Predict: how often a sampler asks the network.

Calls = Callable[[str, int, bool], int]


def _calls(sampler: str, steps: int, guided: bool) -> int:
    once = 2 * steps - 1 if sampler == "heun" else steps
    return 2 * once if guided else once


CALLS_BUGS: dict[str, tuple[Calls, str]] = {
    "heun always twice": (
        lambda sampler, steps, guided: (2 if sampler == "heun" else 1) * steps * (1 + guided),
        "The last step of Heun's method ends at the clean image. There is no noise level there at "
        "which one could ask again.",
    ),
    "guidance free": (
        lambda sampler, steps, guided: _calls(sampler, steps, False),
        "Guidance asks twice, with the label and without. (In one pass over a doubled batch: two "
        "answers for each image all the same.)",
    ),
    "second order twice": (
        lambda sampler, steps, guided: _calls(
            "heun" if sampler == "dpm++" else sampler, steps, guided
        ),
        "DPM-Solver++(2M) gets its second order from the answer of the step *before*, which it has "
        "already. It asks once.",
    ),
    "heun once": (
        lambda sampler, steps, guided: steps * (1 + guided),
        "Heun looks where Euler would land and asks there as well.",
    ),
}


def _judge_calls(answer: Calls) -> str | None:
    cases = [
        (sampler, steps, guided)
        for sampler in ("ddpm", "ddim", "dpm++", "euler", "heun")
        for steps in (1, 10, 50)
        for guided in (False, True)
    ]
    if why := mistake(answer, CALLS_BUGS, lambda f: [f(*case) for case in cases]):
        return why
    for case in cases:
        if (got := answer(*case)) != _calls(*case):
            return f"For {case} you say {got}; that is not it."
    return None


# Derive: what the last jump, to x̂_0 itself, leaves out.

Jump = Callable[[float, float], float]


def _jump(alpha_bar: float, s: float) -> float:
    return math.sqrt(alpha_bar * s**2 / (alpha_bar * s**2 + 1 - alpha_bar))


JUMP_BUGS: dict[str, tuple[Jump, str]] = {
    "squared": (
        lambda ab, s: _jump(ab, s) ** 2,
        "This is the ratio of the variances. A standard deviation is its root.",
    ),
    "gain": (
        lambda ab, s: _jump(ab, s) ** 2 / math.sqrt(ab),
        "This is the factor from x_t to x̂_0. What spread does x_t have, and how far is x̂_0's from "
        "s after that?",
    ),
    "no data": (
        lambda ab, s: math.sqrt(ab),
        "It has to depend on s: data that hardly vary are harder to tell from noise.",
    ),
}


def _judge_jump(answer: Jump) -> str | None:
    cases = [(0.9, 0.5), (0.99, 0.2), (0.5, 2.0), (0.999, 0.5)]

    def ask(f: Jump) -> list[float]:
        return [float(f(*case)) for case in cases]

    return mistake(answer, JUMP_BUGS, ask) or close(
        ask(answer), ask(_jump), "The share of the spread", 1e-6
    )


EXERCISES = {
    "sampling-shrink": Exercise(
        judge=_judge_shrink,
        hints=(
            "For N(0, s²) the best x̂_0 is a line through 0: Cov(x_0, x_t) / Var(x_t) times x_t.",
            "With a = sqrt(ᾱ), b = sqrt(1-ᾱ): x̂_0 = a s² x / (a² s² + b²), ε̂ = b x / (a² s² + b²).",
            "Put both into x_t' = a' x̂_0 + b' ε̂ and divide by x.",
        ),
        solution=_shrink,
        wrong={name: bug for name, (bug, _) in SHRINK_BUGS.items()}
        | {"no change": lambda ab, prev, s: 1.0},
    ),
    "sampling-ddim-step": Exercise(
        judge=_judge_ddim_step,
        hints=(
            "First x̂_0 = (x - sqrt(1-ᾱ) ε̂) / sqrt(ᾱ). Then share out the noise of step t'.",
            "σ² = η² (1-ᾱ')/(1-ᾱ) (1 - ᾱ/ᾱ').",
            "sqrt(ᾱ') x̂_0 + sqrt(1-ᾱ'-σ²) ε̂ + σ z.",
        ),
        solution=_solution_ddim_step,
        wrong={name: bug for name, (bug, _) in DDIM_BUGS.items()},
    ),
    "sampling-solver-step": Exercise(
        judge=_judge_solver_step,
        hints=(
            "λ = log(a/b) = ½ log SNR, h_i = λ_{i+1} - λ_i; DDIM: (b'/b) x + a'(1-e^{-h}) x̂_0.",
            "In the place of x̂_0 put what it will be in the middle of the step.",
            "D_i + (h_i/2) (D_i - D_{i-1}) / h_{i-1}.",
        ),
        solution=_solution_solver_step,
        wrong={name: bug for name, (bug, _) in SOLVER_BUGS.items()},
    ),
    "sampling-respace": Exercise(
        judge=_judge_respace,
        hints=(
            "Steps are counted from the clean end, 0 … 999, and a section starts with its lowest.",
            '"ddim50" is range(0, 1000, 20).',
            '"10,10,10" has the sections 0 … 333, 334 … 666 and 667 … 999, each with both ends.',
        ),
        solution=_respaced,
        wrong={
            "all begin at the top": (999, 999, 999, 1),
            "ddim counts from the top": (999, 999, 0, 1),
            "one step is the noisiest": (999, 980, 999, 1),
            "even gaps": (999, 980, 0, 33),
            "three numbers": (999, 980, 0),
        },
    ),
    "sampling-calls": Exercise(
        judge=_judge_calls,
        hints=(
            "Which of the five samplers asks more than once in a step?",
            "Heun asks at the beginning of a step and where Euler would land: not at the last one.",
            "Heun 2K - 1, all others K; twice that with guidance.",
        ),
        solution=_calls,
        wrong={name: bug for name, (bug, _) in CALLS_BUGS.items()},
    ),
    "sampling-last-jump": Exercise(
        judge=_judge_jump,
        hints=(
            "x_t has the variance a² s² + b². The last jump multiplies x_t by a s² / (a² s² + b²).",
            "Spread after the jump: that factor times the root of a² s² + b². Compare it with s.",
            "a s / sqrt(a² s² + b²).",
        ),
        solution=_jump,
        wrong={name: bug for name, (bug, _) in JUMP_BUGS.items()}
        | {"nothing is lost": lambda ab, s: 1.0},
    ),
}
