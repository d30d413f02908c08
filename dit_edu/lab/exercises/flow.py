"""Exercises of the chapter on the flow: clocks, guesses, floors, times, one step, and luck."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

Convert = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Guesses = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _wide(v: Tensor) -> Tensor:
    return v.view(-1, 1, 1, 1)  # (B, 1, 1, 1)


# Build: a noisy image of the diffusion process, as a flow would have it.


def _convert(x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    total = alpha_bar.sqrt() + (1 - alpha_bar).sqrt()  # (B,)
    return x_t / _wide(total), (1 - alpha_bar).sqrt() / total


CONVERT_BUGS: dict[str, tuple[Convert, str]] = {
    "same size": (
        lambda x_t, ab: (x_t, _convert(x_t, ab)[1]),
        "τ is right, but the image kept its size: a flow's two factors add up to 1, DDPM's do not.",
    ),
    "the share of noise": (
        lambda x_t, ab: (x_t, (1 - ab).sqrt()),
        "sqrt(1-ᾱ) is the factor of the noise in DDPM. Noise over signal has to agree: τ/(1-τ).",
    ),
    "variances": (
        lambda x_t, ab: (x_t, 1 - ab),
        "1-ᾱ is the *variance* of DDPM's noise; τ is a factor. Compare noise over signal.",
    ),
    "divided by the signal": (
        lambda x_t, ab: (x_t / _wide(ab.sqrt()), _convert(x_t, ab)[1]),
        "τ is right, but divided by sqrt(ᾱ) the image is EDM's. A flow's factors add up to 1.",
    ),
}


def _judge_convert(answer: Convert) -> str | None:
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 2, 3, 4, generator=g, dtype=torch.float64)  # (B, C, H, W) each
    ab = torch.tensor([0.999, 0.8, 0.5, 0.1, 0.003], dtype=torch.float64)
    x_t = _wide(ab.sqrt()) * x0 + _wide((1 - ab).sqrt()) * noise
    got = answer(x_t.clone(), ab.clone())
    if not isinstance(got, tuple) or len(got) != 2:
        return "Return two things: the image x_τ, and its time τ."
    want = _convert(x_t, ab)
    return (
        mistake(answer, CONVERT_BUGS, lambda f: f(x_t.clone(), ab.clone()))
        or close(got[1], want[1], "τ")
        or close(got[0], want[0], "x_τ")
    )


# Build: the clean image and the noise that a velocity implies.


def _guesses(v: Tensor, x_tau: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    return x_tau - _wide(tau) * v, x_tau + _wide(1 - tau) * v


GUESS_BUGS: dict[str, tuple[Guesses, str]] = {
    "clock backwards": (
        lambda v, x, tau: (x + _wide(1 - tau) * v, x - _wide(tau) * v),
        "You go to the wrong ends: v points from the image to the noise, so against v lies x_0.",
    ),
    "wrong sign": (
        lambda v, x, tau: (x + _wide(tau) * v, x - _wide(1 - tau) * v),
        "The lengths are right, but you walk the wrong way: x_0 is where τ is *smaller*.",
    ),
    "rotation": (
        lambda v, x, tau: (
            _wide(1 - tau) * x - _wide(tau) * v,
            _wide(tau) * x + _wide(1 - tau) * v,
        ),
        "This is the rotation of the diffusion's v, whose factors have squares that add up to 1. "
        "Here v is a slope: walk along it.",
    ),
    "whole way": (
        lambda v, x, tau: (x - v, x + v),
        "From time τ it is not 1 to either end: how long is the way to 0, and how long to 1?",
    ),
}


def _judge_guesses(answer: Guesses) -> str | None:
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 2, 3, 5, generator=g, dtype=torch.float64)  # (B, C, H, W) each
    tau = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    v, x_tau = noise - x0, _wide(1 - tau) * x0 + _wide(tau) * noise
    got = answer(v.clone(), x_tau.clone(), tau.clone())
    if not isinstance(got, tuple) or len(got) != 2:
        return "Return two images: the guess of x_0, then that of ε."
    return (
        mistake(answer, GUESS_BUGS, lambda f: f(v.clone(), x_tau.clone(), tau.clone()))
        or close(got[0], x0, "The guess of x_0")
        or close(got[1], noise, "The guess of ε")
    )


# Derive: the loss that nobody can beat on Gaussian data.


def _floor(tau: float, s: float) -> float:
    return s**2 / ((1 - tau) ** 2 * s**2 + tau**2)


FLOOR_BUGS: dict[str, tuple[Callable[[float, float], float], str]] = {
    "variance": (
        lambda tau, s: 1 + s**2,
        "This is the variance of v, the loss of the answer 0. Take off what x_τ explains of it.",
    ),
    "x0": (
        lambda tau, s: tau**2 * _floor(tau, s),
        "This is the floor of x_0. An error of v is 1/τ times that of x_0, and both are squared.",
    ),
    "diffusion": (
        lambda tau, s: s**2 / ((1 - tau) * s**2 + tau),
        "This would be right if 1-τ and τ were variances. They are factors of images: square them.",
    ),
}


def _judge_floor(answer: Callable[[float, float], float]) -> str | None:
    cases = [(0.1, 1.0), (0.5, 0.5), (0.8, 2.0), (1.0, 0.75)]
    if why := mistake(answer, FLOOR_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for tau, s in cases:
        if abs((got := float(answer(tau, s))) - _floor(tau, s)) >= 1e-6:
            return (
                f"floor({tau}, {s}) = {got:.6g}. Try it by Monte Carlo: draw x_0 and ε, regress "
                "ε - x_0 on x_τ, and take the mean square of what is left."
            )
    return None


# Derive: how often training looks at a stretch of the way.


def _share(a: float, b: float) -> float:
    return _normal(_logit(b)) - _normal(_logit(a))


def _logit(tau: float) -> float:
    return math.log(tau / (1 - tau))


def _normal(u: float) -> float:
    return (1 + math.erf(u / math.sqrt(2))) / 2


SHARE_BUGS: dict[str, tuple[Callable[[float, float], float], str]] = {
    "uniform": (
        lambda a, b: b - a,
        "This is the share of uniform times. Which Gaussian numbers land between a and b?",
    ),
    "normal of tau": (
        lambda a, b: _normal(b) - _normal(a),
        "τ is not Gaussian; its logit is. Turn a and b into logits first.",
    ),
    "sigmoid": (
        lambda a, b: 1 / (1 + math.exp(-b)) - 1 / (1 + math.exp(-a)),
        "The sigmoid makes τ of the Gaussian number. Here you need its inverse, then Φ.",
    ),
}


def _judge_share(answer: Callable[[float, float], float]) -> str | None:
    cases = [(0.45, 0.55), (0.9, 0.99), (0.01, 0.3), (0.2, 0.8)]
    if why := mistake(answer, SHARE_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for a, b in cases:
        if abs((got := float(answer(a, b))) - _share(a, b)) >= 1e-5:
            return (
                f"share({a}, {b}) = {got:.6g}. Count: draw a million Gaussian numbers, put them "
                "through a sigmoid, and see how many land there."
            )
    return None


# Predict: what a perfect flow draws in one step.


def _one_step(images: Tensor) -> Tensor:
    return images.mean(0)  # (C, H, W)


def _judge_one_step(answer: Callable[[Tensor], Tensor]) -> str | None:
    images = torch.randn(7, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    got = answer(images.clone())
    if got.shape == images.shape:
        return "You give one picture for each image. One step from any noise draws the same one."
    if got.shape == images.shape[1:] and (got[None] == images).flatten(1).all(1).any():
        return "This is one of the images. Pure noise says nothing of which; the best guess hedges."
    return close(got, _one_step(images), "The picture") and (
        "At τ = 1 the noise is known and the image is not. What is E[x_0 | ε] if ε says nothing?"
    )


# Derive: what a generator pays that hands out real images at random.


def _copier(k: int) -> float:
    return 1 + 1 / (2 * k)


COPIER_BUGS: dict[str, tuple[Callable[[int], float], str]] = {
    "real": (
        lambda k: 1.0,
        "This is the real half itself. Who draws from it at random gets some images twice and "
        "others not at all: one more estimate that is off.",
    ),
    "the draw alone": (
        lambda k: 1 / (2 * k),
        "This is what the draw adds. The two halves are as far apart as before.",
    ),
    "no held-out half": (
        lambda k: (1 + 1 / k) / 2,
        "You count the draw and one of the halves. The images drawn come from the one, and are "
        "compared with the other: both are finite.",
    ),
    "not over the limit": (
        lambda k: 2 + 1 / k,
        "This is the distance in units of c/n. Divide by the limit, which has two such units.",
    ),
    "k times the luck": (
        lambda k: 1 + k / 2,
        "More images, better estimates: the part of the draw falls with k.",
    ),
}


def _judge_copier(answer: Callable[[int], float]) -> str | None:
    cases = (1, 2, 5, 16)
    if why := mistake(answer, COPIER_BUGS, lambda f: [float(f(k)) for k in cases]):
        return why
    for k in cases:
        if abs((got := float(answer(k))) - _copier(k)) >= 1e-6:
            return (
                f"copier({k}) = {got:.6g}. Count the estimates that are off, each with 1 over the "
                "number of its images, and divide by what the two real halves have."
            )
    return None


EXERCISES = {
    "flow-clocks": Exercise(
        judge=_judge_convert,
        hints=(
            "Noise over signal is the same number: sqrt(1-ᾱ)/sqrt(ᾱ) = τ/(1-τ).",
            "Divide x_t by such a number that its two factors add up to 1.",
            "total = sqrt(ᾱ) + sqrt(1-ᾱ), shape (B, 1, 1, 1) for the image; τ = sqrt(1-ᾱ)/total.",
        ),
        solution=_convert,
        wrong={name: bug for name, (bug, _) in CONVERT_BUGS.items()},
    ),
    "flow-guesses": Exercise(
        judge=_judge_guesses,
        hints=(
            "x_τ lies on a straight line from x_0 to ε, and v is its direction.",
            "From time τ it is τ back to the image and 1-τ on to the noise.",
            "x_0 = x_τ - τ v and ε = x_τ + (1-τ) v, with τ of shape (B, 1, 1, 1).",
        ),
        solution=_guesses,
        wrong={name: bug for name, (bug, _) in GUESS_BUGS.items()},
    ),
    "flow-floor": Exercise(
        judge=_judge_floor,
        hints=(
            "v and x_τ are Gaussian with mean 0: what is left is Var(v) - Cov(v, x_τ)²/Var(x_τ).",
            "Var(v) = 1 + s², Cov = τ - (1-τ)s², Var(x_τ) = (1-τ)²s² + τ².",
            "Over the common denominator the numerator is s² ((1-τ) + τ)² = s².",
        ),
        solution=_floor,
        wrong={name: bug for name, (bug, _) in FLOOR_BUGS.items()},
    ),
    "flow-times": Exercise(
        judge=_judge_share,
        hints=(
            "τ = sigmoid(u) with u Gaussian. τ lies between a and b if u lies between which two?",
            "The inverse of the sigmoid is logit(τ) = ln(τ/(1-τ)).",
            "Φ(logit b) - Φ(logit a), with Φ(u) = (1 + erf(u/√2))/2.",
        ),
        solution=_share,
        wrong={name: bug for name, (bug, _) in SHARE_BUGS.items()},
    ),
    "flow-one-step": Exercise(
        judge=_judge_one_step,
        hints=(
            "The step is x_0 = ε - v̂, with the best v̂ at τ = 1.",
            "The best v̂ is E[ε - x_0 | ε] = ε - E[x_0 | ε].",
            "ε and x_0 are independent, so E[x_0 | ε] is the mean of all images.",
        ),
        solution=_one_step,
        wrong={
            "an image": lambda images: images[0],
            "median": lambda images: images.median(0).values,
            "each its own": lambda images: images,
            "scaled": lambda images: images.mean(0) / 2,
        },
    ),
    "flow-copier": Exercise(
        judge=_judge_copier,
        hints=(
            "Which sets are finite? The draw, the training half it comes from, the held-out half.",
            "They have k n, n and n images, and add c/(k n), c/n and c/n.",
            "Over the limit, c/n + c/n: (1/k + 2)/2.",
        ),
        solution=_copier,
        wrong={name: bug for name, (bug, _) in COPIER_BUGS.items()},
    ),
}
