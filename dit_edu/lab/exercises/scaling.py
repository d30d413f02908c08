"""Exercises of the chapter on scaling: resolutions, a training's price, laws, and what fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dit_edu.lab.exercises import Exercise, close, mistake
from dit_edu.lab.laws import fit
from dit_edu.scaling import Architecture, sampling_cost, training_macs

XL = Architecture.from_preset("DiT-XL/2")

# Derive: the GMACs of DiT-XL/2 at any resolution.


def _gmacs(resolution: int, *, side: int = 8, depth: int = 28, pairs: float = 2) -> float:
    d, n = 1152, (resolution // side // 2) ** 2
    return depth * (12 * d * d * n + pairs * n * n * d + 6 * d * d) / 1e9


RESOLUTION_BUGS: dict[str, tuple[Callable[[int], float], str]] = {
    "linear": (
        lambda r: _gmacs(256) * (r / 256) ** 2,
        "You let everything grow with the number of tokens. 2N²D grows with its square.",
    ),
    "quadratic": (
        lambda r: _gmacs(256) * (r / 256) ** 4,
        "You let everything grow with N². 12D²N, most of the work, grows with N alone.",
    ),
    "pixels": (
        lambda r: _gmacs(r, side=1),
        "You cut pixels into patches. The encoder first makes the image 8 times smaller each way.",
    ),
    "one block": (lambda r: _gmacs(r, depth=1), "That is one block; XL has 28."),
    "one product": (
        lambda r: _gmacs(r, pairs=1),
        "Pairs are multiplied twice: once for the scores, once for the weighted sum.",
    ),
    "flops": (lambda r: 2 * _gmacs(r), "These are FLOPs, two for each MAC."),
}


def _judge_resolution(answer: Callable[[int], float]) -> str | None:
    sides = (256, 512, 1024)
    if why := mistake(answer, RESOLUTION_BUGS, lambda f: [float(f(r)) for r in sides]):
        return why
    want = [_gmacs(r) for r in sides]  # embedders and final layer add less than 0.02 %
    return close([float(answer(r)) for r in sides], want, "gmacs at 256, 512 and 1024", rel=1e-3)


# Predict: what training DiT-XL/2 took.

STEPS, BATCH = 7_000_000, 256
TRAINING = 2 * training_macs(XL, steps=STEPS, batch=BATCH)
_FORWARD = TRAINING / 6 / STEPS / BATCH  # MACs of a pass


def _judge_training(answer: Any) -> str | None:
    known = {
        TRAINING / 2: "These are MACs; a FLOP is half of one.",
        TRAINING / 3: "This is the forward pass alone. Backward takes about twice as much again.",
        TRAINING / 6: "Right but for two factors: backward, and FLOPs in place of MACs.",
        TRAINING / BATCH: "That is one image in each update; there are 256.",
        TRAINING * 2 / 3: "Backward takes two products for each one of the forward pass, not one.",
        6 * _FORWARD: "That is one image once. Multiply by the images of all updates.",
    }
    got = float(answer)
    near = [why for value, why in known.items() if abs(got / value - 1) < 0.05]
    if near:
        return near[0]
    if abs(got / TRAINING - 1) < 0.05:
        return None
    return f"{got:.3g} is off by a factor of {got / TRAINING:.3g}. Write the product down."


# Build: a power law through points.


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    slope, height = np.polyfit(np.log(x), np.log(y), 1)
    return math.exp(height), -slope


def _semilog(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    slope, height = np.polyfit(np.log(x), y, 1)
    return height, -slope


def _two_points(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    b = -math.log(y[-1] / y[0]) / math.log(x[-1] / x[0])
    return y[0] * x[0] ** b, b


def _decades(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    slope, height = np.polyfit(np.log10(x), np.log10(y), 1)
    return math.exp(height), -slope


FIT_BUGS: dict[str, tuple[Callable[..., tuple[float, float]], str]] = {
    "sign": (
        lambda x, y: (_fit(x, y)[0], -_fit(x, y)[1]),
        "The slope in logarithms is -b: where y falls, b is positive.",
    ),
    "height": (
        lambda x, y: (math.log(_fit(x, y)[0]), _fit(x, y)[1]),
        "b is right. The height of the line is log a, not a.",
    ),
    "semilogarithmic": (_semilog, "You took the logarithm of x only. Both axes are logarithmic."),
    "two points": (_two_points, "You look at the first and the last point; use all of them."),
    "mixed bases": (_decades, "b is right, but a line in log10 has the height log10 a."),
}


def _judge_fit(answer: Callable[..., tuple[float, float]]) -> str | None:
    rng = np.random.default_rng(0)
    x = np.array([0.4, 1.5, 6.0, 20.0, 120.0])
    y = 140 * x**-0.4 * np.exp(0.1 * rng.normal(size=5))

    def ask(f: Callable[..., tuple[float, float]]) -> list[float]:
        return [float(v) for v in f(x.copy(), y.copy())]

    if why := mistake(answer, FIT_BUGS, ask):
        return why
    law = fit(y, x)
    a, b = ask(answer)
    return close(b, law.b[0], "b") or close(a, law.a, "a")


# Derive: how much more it takes to halve.


def _times(b: float) -> float:
    return 2 ** (1 / b)


HALVE_BUGS: dict[str, tuple[Callable[[float], float], str]] = {
    "power": (
        lambda b: 2**b,
        "That is by how much y falls if x doubles. Here y is to be halved: solve for x.",
    ),
    "ratio": (lambda b: 2 / b, "b is an exponent, not a slope: the answer grows faster than 1/b."),
    "half": (
        lambda b: 0.5 ** (1 / b),
        "You solved for the inverse: to halve y, x must grow, not shrink.",
    ),
    "natural": (lambda b: math.exp(1 / b), "This divides y by e. Halving is a factor of 2."),
}


def _judge_halve(answer: Callable[[float], float]) -> str | None:
    cases = (0.2, 0.36, 1.0, 2.0)
    why = mistake(answer, HALVE_BUGS, lambda f: [float(f(b)) for b in cases])
    return why or close([float(answer(b)) for b in cases], [_times(b) for b in cases], "times")


# Build: the largest batch that fits.


def _largest(model: Architecture, memory: float, scale: float) -> int:
    bill = sampling_cost(model, scale=scale)
    return int((memory - bill.weights) // bill.activations)


def _largest_of(
    *, weights: bool = True, guided: bool = True, number: int = 4
) -> Callable[[Architecture, float, float], int]:
    def largest(model: Architecture, memory: float, scale: float) -> int:
        bill = sampling_cost(model, scale=scale if guided else 1.0, bytes_per_number=number)
        return int((memory - weights * bill.weights) // bill.activations)

    return largest


BATCH_BUGS: dict[str, tuple[Callable[..., int], str]] = {
    "no weights": (_largest_of(weights=False), "The weights need their place too."),
    "no guidance": (_largest_of(guided=False), "With guidance each image goes through twice."),
    "half precision": (_largest_of(number=2), "A float32 has 4 bytes."),
}


def _judge_batch(answer: Callable[..., int]) -> str | None:
    cases = [(XL, 8e9, 1.5), (XL, 8e9, 1.0), (Architecture(input_size=64), 24e9, 4.0)]
    if why := mistake(answer, BATCH_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for model, memory, scale in cases:
        got, want = answer(model, memory, scale), _largest(model, memory, scale)
        if got != want:
            return (
                f"largest(…, {memory:g}, {scale}) = {got}. A batch of {want} fits and one of "
                f"{want + 1} does not."
            )
    return None


EXERCISES = {
    "scaling-resolution": Exercise(
        judge=_judge_resolution,
        hints=(
            "First the tokens: the encoder divides the side by 8, the patch by 2.",
            "At 256 pixels N = 256. Put N and D = 1152 into 12D²N + 2N²D + 6D².",
            "28 blocks: n = (resolution // 16)**2; 28 * (12*D**2*n + 2*n**2*D + 6*D**2) / 1e9.",
        ),
        solution=lambda resolution: _gmacs(resolution),
        wrong={name: bug for name, (bug, _) in RESOLUTION_BUGS.items()},
    ),
    "scaling-training": Exercise(
        judge=_judge_training,
        hints=(
            "How many images does the whole training see?",
            "Each image costs a forward pass, and backward about twice that: 3 · 118.6 GMACs.",
            "7e6 · 256 images, times 3 · 118.6e9 MACs, times 2 FLOPs.",
        ),
        solution=TRAINING,
        wrong={
            "MACs": TRAINING / 2,
            "forward only": TRAINING / 3,
            "one image an update": TRAINING / BATCH,
            "one image": 6 * _FORWARD,
            "something else": 1.0e18,
        },
    ),
    "scaling-fit": Exercise(
        judge=_judge_fit,
        hints=(
            "log y = log a - b log x is a straight line.",
            "np.polyfit(u, v, 1) returns slope and height of the best line through (u, v).",
            "slope, height = np.polyfit(np.log(x), np.log(y), 1); return np.exp(height), -slope.",
        ),
        solution=_fit,
        wrong={name: bug for name, (bug, _) in FIT_BUGS.items()},
    ),
    "scaling-halve": Exercise(
        judge=_judge_halve,
        hints=(
            "y falls from a x^(-b) to half of that. By which factor k did x grow?",
            "k^(-b) = 1/2.",
            "k = 2^(1/b).",
        ),
        solution=_times,
        wrong={name: bug for name, (bug, _) in HALVE_BUGS.items()},
    ),
    "scaling-batch": Exercise(
        judge=_judge_batch,
        hints=(
            "sampling_cost(model, scale=scale) tells weights and the activations of one image.",
            "Take the weights off the memory. How often do the activations fit into the rest?",
            "int((memory - bill.weights) // bill.activations).",
        ),
        solution=_largest,
        wrong={name: bug for name, (bug, _) in BATCH_BUGS.items()},
    ),
}
