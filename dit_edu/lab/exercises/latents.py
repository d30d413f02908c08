"""Exercises of the chapter on latents: their scale, their noise, their price."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake

# Build: bring latents to mean 0 and spread 1, channel by channel.

Normalise = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def _normalised(dims: tuple[int, ...]) -> Normalise:
    def normalise(latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        std, mean = torch.std_mean(latents, dim=dims, keepdim=True, correction=0)
        return (latents - mean) / std, mean, std

    return normalise


_normalise = _normalised((0, 2, 3))

NORMALISE_BUGS: dict[str, tuple[Normalise, str]] = {
    "one number for all": (
        _normalised((0, 1, 2, 3)),
        "This is one mean and one spread for all channels. A channel with less spread than the "
        "others still drowns first. Take them channel by channel.",
    ),
    "each image its own": (
        _normalised((2, 3)),
        "You take mean and spread of each image. Then all images have the same mean colour, and "
        "nobody can decode them. The numbers must be constants: average over the batch too.",
    ),
    "each place its own": (
        _normalised((0,)),
        "You take other numbers for each place. A latent of the same meaning would then have "
        "another value at the border than in the middle. Average over places too.",
    ),
    "variance": (
        lambda z: (
            (z - _normalise(z)[1]) / _normalise(z)[2] ** 2,
            _normalise(z)[1],
            _normalise(z)[2] ** 2,
        ),
        "You divide by the variance. What is asked for is the standard deviation.",
    ),
    "no mean": (
        lambda z: (z / _normalise(z)[2], 0 * _normalise(z)[1], _normalise(z)[2]),
        "The spread is right, but the mean is not 0. Noise has mean 0, and a constant is nothing "
        "that a network should have to learn.",
    ),
}


def _judge_normalise(answer: Normalise) -> str | None:
    g = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.3, 1.0, 5.0]).double().view(3, 1, 1)
    latents = scale * torch.randn(7, 3, 2, 5, generator=g, dtype=torch.float64) + 2 * scale
    got = answer(latents.clone())
    if not isinstance(got, tuple) or len(got) != 3:
        return "Return three things: the normalised latents, the means, and the spreads."
    if why := mistake(answer, NORMALISE_BUGS, lambda f: f(latents.clone())):
        return why
    z, mean, std = got
    want = _normalise(latents)
    # Spreads with n - 1 are as good: here n is 70 a channel.
    return (
        close(torch.as_tensor(mean).flatten(), want[1].flatten(), "The mean")
        or close(torch.as_tensor(std).flatten(), want[2].flatten(), "The spread", 0.01)
        or close(z, want[0], "What you return first", 0.01)
    )


# Derive: the noise level that a wrong scale amounts to.

Level = Callable[[float, float], float]


def _level(alpha_bar: float, s: float) -> float:
    return s**2 * alpha_bar / (s**2 * alpha_bar + 1 - alpha_bar)


LEVEL_BUGS: dict[str, tuple[Level, str]] = {
    "s for s squared": (
        lambda ab, s: s * ab / (s * ab + 1 - ab),
        "ᾱ is a variance and s a factor of the latents: in the SNR it is squared.",
    ),
    "the other way": (
        lambda ab, s: _level(ab, 1 / s),
        "This is the level of latents s times *smaller*. Larger latents have more signal.",
    ),
    "only multiplied": (
        lambda ab, s: s**2 * ab,
        "This can exceed 1. Multiply the SNR ᾱ/(1-ᾱ) by s², and turn it into an ᾱ again.",
    ),
    "the SNR": (
        lambda ab, s: s**2 * ab / (1 - ab),
        "This is the SNR of the scaled latents. Which ᾱ' has ᾱ'/(1-ᾱ') equal to it?",
    ),
}


def _judge_level(answer: Level) -> str | None:
    cases = [(0.5, 2.0), (0.9, 0.2), (0.01, 5.5), (0.99, 1.0)]
    if why := mistake(answer, LEVEL_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for ab, s in cases:
        if abs((got := float(answer(ab, s))) - _level(ab, s)) >= 1e-6:
            return (
                f"level({ab}, {s}) = {got:.6g}. Try s = 1: nothing may change. And compare the SNR "
                "of √ᾱ·s·z + √(1-ᾱ)·ε with that of √ᾱ'·z + √(1-ᾱ')·ε."
            )
    return None


# Derive: the weight of the KL that grants the pixels a wanted error.

Weight = Callable[[float], float]


def _weight(psnr: float) -> float:
    return 2 * 4 * 10 ** (-psnr / 10)


WEIGHT_BUGS: dict[str, tuple[Weight, str]] = {
    "peak of one": (
        lambda psnr: 2 * 10 ** (-psnr / 10),
        "PSNR compares with the range of the pixels. Ours is [-1, 1]: 2, so its square is 4.",
    ),
    "no factor two": (
        lambda psnr: 4 * 10 ** (-psnr / 10),
        "This is the variance of the pixels' noise. κ is twice that: look at the exponent of a "
        "Gaussian.",
    ),
    "standard deviation": (
        lambda psnr: 2 * 2 * 10 ** (-psnr / 20),
        "This is the standard deviation of the noise. κ is twice its *square*.",
    ),
    "other sign": (
        lambda psnr: 2 * 4 * 10 ** (psnr / 10),
        "A higher PSNR is a smaller error, so a smaller κ.",
    ),
}


def _judge_weight(answer: Weight) -> str | None:
    cases = [20.0, 26.0, 35.0]
    if why := mistake(answer, WEIGHT_BUGS, lambda f: [float(f(case)) for case in cases]):
        return why
    for case in cases:
        if abs((got := float(answer(case))) / _weight(case) - 1) >= 1e-4:
            return (
                f"weight({case}) = {got:.6g}. Turn the PSNR into a mean square error, "
                "10 log10(2²/MSE); take that for the variance of the noise; κ is twice as much."
            )
    return None


# Predict: how many times fewer MACs a model on latents has.

Saving = Callable[[int, int, int, int], float]


def _saving(size: int, p: int, f: int, width: int) -> float:
    def macs(side: int) -> float:
        n = (side // p) ** 2
        return 12 * width**2 * n + 2 * n**2 * width + 6 * width**2

    return macs(size) / macs(size // f)


SAVING_BUGS: dict[str, tuple[Saving, str]] = {
    "tokens": (
        lambda size, p, f, width: f**2,
        "There are f² times fewer tokens. But attention compares all pairs, of which there are f⁴ "
        "times fewer; and adaLN's part does not depend on the number of tokens.",
    ),
    "pairs": (
        lambda size, p, f, width: f**4,
        "There are f⁴ times fewer *pairs*. Most of the work, 12 D²N, is done token by token.",
    ),
    "no adaln": (
        lambda size, p, f, width: (
            (lambda n: (12 * width + 2 * n) * n)((size // p) ** 2)
            / (lambda n: (12 * width + 2 * n) * n)((size // f // p) ** 2)
        ),
        "You left out what does not depend on the tokens: adaLN's 6 D² for each image.",
    ),
}


def _judge_saving(answer: Saving) -> str | None:
    cases = [(32, 1, 4, 64), (256, 2, 8, 1152), (256, 16, 2, 384)]
    if why := mistake(answer, SAVING_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if abs((got := float(answer(*case))) / _saving(*case) - 1) >= 1e-3:
            return (
                f"saving{case} = {got:.6g}. A block's MACs are 12 D²N + 2 N²D + 6 D², with "
                "N = (side/p)²; the side is that of the image, or that divided by f."
            )
    return None


# Predict: what clamping to [-1, 1] does to unit latents.


def _judge_clip(answer: object) -> str | None:
    share, spread = (float(v) for v in answer)  # type: ignore[attr-defined]
    if abs(share - math.erf(1 / math.sqrt(2))) < 0.01:
        return "This is the share that lies within [-1, 1] and is left alone."
    if abs(share - (1 - math.erf(1 / math.sqrt(2))) / 2) < 0.005:
        return "This is the share above 1. There are as many below -1."
    if abs(share - (1 - math.erf(1 / math.sqrt(2)))) > 0.005:
        return f"A share of {share:.3g} is not it. How much of a standard Gaussian is beyond 1?"
    if abs(spread - 0.516) < 0.005:
        return "The share is right. The second number is not the spread yet, but the variance."
    if abs(spread - 0.540) < 0.005:
        return (
            "The share is right. The spread is that of the values between -1 and 1 alone; those "
            "beyond are not thrown away, they are put on the edge."
        )
    if abs(spread - 0.7184) > 0.005:
        return (
            f"The share is right, but the spread is not {spread:.3g}. Try it: clamp a million "
            "Gaussian numbers."
        )
    return None


EXERCISES = {
    "latents-normalise": Exercise(
        judge=_judge_normalise,
        hints=(
            "Which dimensions of (B, C, h, w) should share a number, and which should not?",
            "Every channel has a mean and a spread of its own; batch and places are averaged over.",
            "torch.std_mean(latents, dim=(0, 2, 3), keepdim=True).",
        ),
        solution=_normalise,
        wrong={name: bug for name, (bug, _) in NORMALISE_BUGS.items()},
    ),
    "latents-level": Exercise(
        judge=_judge_level,
        hints=(
            "The SNR of √ᾱ·s·z + √(1-ᾱ)·ε is s²ᾱ/(1-ᾱ).",
            "For a ratio R, the ᾱ' with ᾱ'/(1-ᾱ') = R is R/(1+R).",
            "s²ᾱ / (s²ᾱ + 1 - ᾱ).",
        ),
        solution=_level,
        wrong={name: bug for name, (bug, _) in LEVEL_BUGS.items()},
    ),
    "latents-weight": Exercise(
        judge=_judge_weight,
        hints=(
            "Compare |x - x̂|²/κ with the exponent of a Gaussian of variance σ², |x - x̂|²/(2σ²).",
            "So κ = 2σ². And the error that is granted is MSE = σ².",
            "PSNR = 10 log10(4/MSE), so κ = 2 · 4 · 10^(-PSNR/10).",
        ),
        solution=_weight,
        wrong={name: bug for name, (bug, _) in WEIGHT_BUGS.items()},
    ),
    "latents-macs": Exercise(
        judge=_judge_saving,
        hints=(
            "Only N changes. How many tokens has the image, and how many the latents?",
            "A block's MACs are 12 D²N + 2 N²D + 6 D².",
            "Put N = (size/p)² and N = (size/f/p)² into it, and divide.",
        ),
        solution=_saving,
        wrong={name: bug for name, (bug, _) in SAVING_BUGS.items()},
    ),
    "latents-clip": Exercise(
        judge=_judge_clip,
        hints=(
            "The latents are about N(0, 1): which share of a Gaussian lies beyond one sigma?",
            "For the spread, add up E[min(z², 1)]: the middle part, and 1 for all that is beyond.",
            "The variance is erf(1/√2) - 2 φ(1) + (1 - erf(1/√2)), with φ(1) = e^(-1/2)/√(2π).",
        ),
        solution=lambda: (0.3173, 0.7184),
        wrong={
            "inside": lambda: (0.6827, 0.7184),
            "one side": lambda: (0.1587, 0.7184),
            "variance": lambda: (0.3173, 0.516),
            "thrown away": lambda: (0.3173, 0.540),
            "nothing": lambda: (0.0, 1.0),
        },
    ),
}
