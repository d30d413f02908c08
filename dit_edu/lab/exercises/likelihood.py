"""Exercises of the chapter on the likelihood: divergence, pixels, units, what a variance costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dit_edu.gaussians import discretized_nll, normal_kl
from dit_edu.lab.exercises import Exercise, close, mistake

Bugs = Mapping[str, tuple[Callable[..., Any], str]]


def _judge(
    answer: Callable[..., Any], right: Callable[..., Any], bugs: Bugs, cases: list[tuple], what: str
) -> str | None:
    """Compare an answer with the right function on all cases, and name a known bug."""
    if why := mistake(answer, bugs, lambda f: [f(*case) for case in cases]):
        return why
    problems = (close(answer(*case), right(*case), what) for case in cases)
    return next((problem for problem in problems if problem), None)


# Build: the divergence of two Gaussians.

KL_BUGS: Bugs = {
    "turned round": (
        lambda m, lv, m2, lv2: normal_kl(m2, lv2, m, lv),
        "This is KL(p ‖ q). The bound asks for KL(q ‖ p): the mean is taken under the first.",
    ),
    "means only": (
        lambda m, lv, m2, lv2: 0.5 * (m - m2) ** 2 / lv2.exp(),
        "This is right for equal variances. Where they differ, log-ratio and ratio count too.",
    ),
    "standard deviations": (
        lambda m, lv, m2, lv2: normal_kl(m, 2 * lv, m2, 2 * lv2),
        "You took e^log_variance for a standard deviation. It is the variance: don't square it.",
    ),
}


def _judge_kl(answer: Callable[..., Tensor]) -> str | None:
    g = torch.Generator().manual_seed(0)
    cases = [tuple(torch.randn(4, 3, generator=g, dtype=torch.float64)) for _ in range(3)]
    return _judge(answer, normal_kl, KL_BUGS, cases, "The divergence")


# Build: what a pixel costs.


def _level_bits(x: Tensor, mean: float, sd: float, levels: int) -> Tensor:
    log_variance = torch.tensor(2 * math.log(sd), dtype=torch.float64)
    return discretized_nll(x, torch.tensor(mean).double(), log_variance, levels) / math.log(2)


def _phi(z: Tensor) -> Tensor:
    return torch.special.ndtr(z)


def _level_bits_closed(x: Tensor, mean: float, sd: float, levels: int) -> Tensor:
    half = 1 / (levels - 1)
    return -torch.log2(_phi((x + half - mean) / sd) - _phi((x - half - mean) / sd))


LEVEL_BUGS: Bugs = {
    "closed ends": (
        _level_bits_closed,
        "Right inside. But the two outermost levels also stand for everything beyond them; else "
        "the probabilities of all levels do not add up to 1.",
    ),
    "density": (
        lambda x, mean, sd, levels: (
            (((x - mean) / sd) ** 2 / 2 + math.log(sd * math.sqrt(2 * math.pi))) / math.log(2)
        ),
        "This is the density, which is no probability: it may exceed 1, and depends on the unit "
        "of x. Take the probability of the whole bin.",
    ),
    "nats": (
        lambda x, mean, sd, levels: _level_bits(x, mean, sd, levels) * math.log(2),
        "Right, but in nats. One bit is ln 2 nats.",
    ),
}


def _judge_level(answer: Callable[..., Tensor]) -> str | None:
    cases = [
        (torch.linspace(-1, 1, levels, dtype=torch.float64), mean, sd, levels)
        for levels, mean, sd in ((17, 0.1, 0.4), (5, -0.6, 0.5), (2, 0.3, 1.0))
    ]
    return _judge(answer, _level_bits, LEVEL_BUGS, cases, "The bits of the levels")


# Derive: units.


def _bits_per_dim(nats: float, shape: tuple[int, ...]) -> float:
    return nats / math.prod(shape) / math.log(2)


UNIT_BUGS: Bugs = {
    "nats": (
        lambda nats, shape: nats / math.prod(shape),
        "These are nats per dimension. How many bits is one nat?",
    ),
    "pixels": (
        lambda nats, shape: nats / math.prod(shape[1:]) / math.log(2),
        "These are bits per *pixel*. A dimension is one number: each channel counts by itself.",
    ),
    "times ln 2": (
        lambda nats, shape: nats / math.prod(shape) * math.log(2),
        "The wrong way: a bit is less than a nat (ln 2 of it), so there are more bits than nats.",
    ),
}


def _judge_units(answer: Callable[..., float]) -> str | None:
    cases = [(100.0, (1, 8, 8)), (6500.0, (3, 32, 32)), (1.0, (4, 2, 3))]
    return _judge(answer, _bits_per_dim, UNIT_BUGS, cases, "bits(nats, shape)")


# Derive: what a wrong variance costs.


def _cost(rho: float) -> float:
    return (rho - 1 - math.log(rho)) / 2


COST_BUGS: Bugs = {
    "turned round": (
        lambda rho: _cost(1 / rho),
        "Turned round: the mean of (x - μ)² under the truth is the *true* variance, over the one "
        "assumed. Too small a variance is the dear mistake.",
    ),
    "no half": (lambda rho: 2 * _cost(rho), "A factor ½ is missing: ln σ is half of ln σ²."),
    "log only": (
        lambda rho: abs(math.log(rho)) / 2,
        "The squared error counts too: its mean is ρ, where it should be 1.",
    ),
}


def _judge_cost(answer: Callable[[float], float]) -> str | None:
    return _judge(answer, _cost, COST_BUGS, [(0.25,), (1.0,), (3.0,)], "cost(rho)")


# Build: the learnt variance.


def _log_variance(v: Tensor, beta: Tensor, beta_tilde: Tensor) -> Tensor:
    share = (v + 1) / 2
    return share * beta.log() + (1 - share) * beta_tilde.log()


RANGE_BUGS: Bugs = {
    "variances": (
        lambda v, b, bt: ((v + 1) / 2 * b + (1 - v) / 2 * bt).log(),
        "You interpolate the variances. The paper interpolates their logarithms: β̃ can be far "
        "smaller than β.",
    ),
    "v itself": (
        lambda v, b, bt: v * b.log() + (1 - v) * bt.log(),
        "The network says v in about [-1, 1]; the share is (v + 1)/2.",
    ),
    "turned round": (
        lambda v, b, bt: _log_variance(-v, b, bt),
        "Turned round: v = 1 is the large variance β, v = -1 the small one β̃.",
    ),
}


def _judge_range(answer: Callable[..., Tensor]) -> str | None:
    v = torch.linspace(-1, 1, 5, dtype=torch.float64)
    beta, beta_tilde = torch.tensor([[0.02, 0.3], [0.001, 0.25]], dtype=torch.float64)
    cases = [(v, beta[k], beta_tilde[k]) for k in range(2)]
    return _judge(answer, _log_variance, RANGE_BUGS, cases, "log σ²")


def _wrong(bugs: Bugs) -> dict[str, Callable[..., Any]]:
    return {name: bug for name, (bug, _) in bugs.items()}


EXERCISES = {
    "likelihood-kl": Exercise(
        judge=_judge_kl,
        hints=(
            "KL(q ‖ p) is the mean, under q, of ln q(x) - ln p(x).",
            "Under q the mean of (x - μ_p)² is σ_q² + (μ_q - μ_p)².",
            "½ (ln σ_p² - ln σ_q² + (σ_q² + (μ_q - μ_p)²)/σ_p² - 1).",
        ),
        solution=normal_kl,
        wrong=_wrong(KL_BUGS),
    ),
    "likelihood-level": Exercise(
        judge=_judge_level,
        hints=(
            "A level stands for all numbers nearer to it than to its neighbours.",
            "Neighbours are 2/(levels - 1) apart; the probability is Φ(upper) - Φ(lower).",
            "At the lowest level lower is -∞, at the highest upper is ∞; then -log2.",
        ),
        solution=_level_bits,
        wrong=_wrong(LEVEL_BUGS),
    ),
    "likelihood-units": Exercise(
        judge=_judge_units,
        hints=(
            "How many numbers is an image of this shape?",
            "2^bits = e^nats: one nat is 1/ln 2 bits.",
            "nats / (C·H·W) / ln 2.",
        ),
        solution=_bits_per_dim,
        wrong=_wrong(UNIT_BUGS),
    ),
    "likelihood-cost": Exercise(
        judge=_judge_cost,
        hints=(
            "It is a divergence of two Gaussians with one mean.",
            "Put equal means into the KL; only ρ = σ_q²/σ_p² is left.",
            "½ (ρ - 1 - ln ρ).",
        ),
        solution=_cost,
        wrong=_wrong(COST_BUGS),
    ),
    "likelihood-range": Exercise(
        judge=_judge_range,
        hints=(
            "v = -1 has to give log β̃, v = 1 log β, and v = 0 what is half way.",
            "First a share in [0, 1] of v in [-1, 1].",
            "(v+1)/2 · log β + (1-v)/2 · log β̃.",
        ),
        solution=_log_variance,
        wrong=_wrong(RANGE_BUGS),
    ),
}
