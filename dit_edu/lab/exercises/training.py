"""Exercises of the chapter on training: AdamW, decay, averages, seeds, processes, diagnosis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from dit_edu.lab.exercises import Exercise, close, mistake
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.spread import seeds_needed

# Build: one update of AdamW.

Update = Callable[..., tuple[Tensor, Tensor, Tensor]]


def _adamw(
    theta: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    k: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    m_hat, v_hat = m / (1 - beta1**k), v / (1 - beta2**k)
    theta = theta - lr * weight_decay * theta - lr * m_hat / (v_hat.sqrt() + eps)
    return theta, m, v


def _no_correction(theta, grad, m, v, k, lr, beta1, beta2, eps, weight_decay):
    return _adamw(theta, grad, m, v, 10**9, lr, beta1, beta2, eps, weight_decay)


def _counted_from_zero(theta, grad, m, v, k, lr, beta1, beta2, eps, weight_decay):
    return _adamw(theta, grad, m, v, k + 1, lr, beta1, beta2, eps, weight_decay)


def _l2(theta, grad, m, v, k, lr, beta1, beta2, eps, weight_decay):
    grad = grad + weight_decay * theta
    return _adamw(theta, grad, m, v, k, lr, beta1, beta2, eps, 0.0)


def _decay_without_lr(theta, grad, m, v, k, lr, beta1, beta2, eps, weight_decay):
    return _adamw(theta, grad, m, v, k, lr, beta1, beta2, eps, weight_decay / lr)


def _no_root(theta, grad, m, v, k, lr, beta1, beta2, eps, weight_decay):
    _, m, v = _adamw(theta, grad, m, v, k, lr, beta1, beta2, eps, weight_decay)
    step = m / (1 - beta1**k) / (v / (1 - beta2**k) + eps)
    return theta - lr * weight_decay * theta - lr * step, m, v


#: Wrong updates by name, each with what to say about it.
WRONG_UPDATES: Mapping[str, tuple[Update, str]] = {
    "no bias correction": (
        _no_correction,
        "The moments are not divided by 1 - β^k: they begin at 0, and are too small at first.",
    ),
    "k counted from 0": (
        _counted_from_zero,
        "k is given as 1 at the first update: use it as it comes.",
    ),
    "L2 in the gradient": (
        _l2,
        "The decay goes through the moments. In AdamW it acts on the weight itself.",
    ),
    "decay without lr": (_decay_without_lr, "The decay of an update is lr · weight_decay · θ."),
    "no root": (_no_root, "v is a mean of squares: divide by its root."),
}


def _judge_step(answer: Update) -> str | None:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(6, generator=g, dtype=torch.float64)
    grads = torch.randn(5, 6, generator=g, dtype=torch.float64) * torch.logspace(-2, 2, 6).double()
    options = dict(lr=0.1, beta1=0.8, beta2=0.95, eps=1e-8, weight_decay=0.3)

    def walk(update: Update) -> Tensor:
        theta, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for k, grad in enumerate(grads, 1):
            theta, m, v = update(theta, grad.clone(), m, v, k, **options)
        return theta

    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.3)
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    return mistake(answer, WRONG_UPDATES, walk) or close(
        walk(answer), weight.detach(), "θ after five updates", rel=1e-9
    )


# Derive: how long the first updates are when gradients are noise.


def _noise_step(k: int, beta1: float) -> float:
    return math.sqrt((1 - beta1) * (1 + beta1**k) / ((1 + beta1) * (1 - beta1**k)))


def _judge_noise_step(answer: Callable[[int, float], float]) -> str | None:
    for k, beta1 in ((1, 0.9), (2, 0.9), (5, 0.5), (1000, 0.9), (3, 0.0)):
        got, want = float(answer(k, beta1)), _noise_step(k, beta1)
        if abs(got - want) < 1e-6:
            continue
        where = f"At k = {k}, β₁ = {beta1:g}: {got:.4g} is not it."
        if k == 1:
            return f"{where} After one update m̂ is the gradient itself, whose size is 1."
        if abs(got - want**2) < 1e-6:
            return f"{where} That is the variance; the length of a step is its root."
        if abs(got - _noise_step(10**6, beta1)) < 1e-6:
            return f"{where} That is where it ends; at the k-th update the mean is still short."
        return f"{where} Square the weights of the mean, (1-β₁) β₁^(k-i) / (1-β₁^k), and add up."
    return None


# Predict: what weight decay does to a weight in a whole run.


def _shrink(lr: float, weight_decay: float, steps: int, warmup: int) -> float:
    recipe = Recipe(name="run", lr=lr, steps=steps, warmup=warmup)
    return math.prod(1 - recipe.lr_at(k) * weight_decay for k in range(steps))


def _judge_shrink(answer: Callable[[float, float, int, int], float]) -> str | None:
    for case in ((8e-3, 0.05, 3200, 100), (1e-4, 0.05, 400, 0), (1.6e-2, 1.0, 300, 30)):
        got, want = float(answer(*case)), _shrink(*case)
        if abs(got - want) < 2e-3:
            continue
        lr, decay, steps, warmup = case
        where = f"lr = {lr:g}, weight decay {decay:g}, {steps} updates, {warmup} of warm-up:"
        if abs(got - (1 - lr * decay) ** steps) < 2e-3:
            return f"{where} {got:.3f} would hold for a constant learning rate; lr has a schedule."
        if abs(got - (1 - decay) ** steps) < 2e-3:
            return f"{where} {got:.3f} forgets that the decay is multiplied by the learning rate."
        if abs(got - (1 - want)) < 2e-3:
            return f"{where} {got:.3f} is what is lost; asked is what is left."
        return f"{where} {got:.3f} is not it. Multiply 1 - η_k λ over all updates."
    return None


# Derive: the window of an exponential moving average.


def _window(d: float) -> tuple[float, float]:
    return d / (1 - d), (1 + d) / (1 - d)


def _judge_window(answer: Callable[[float], Sequence[float]]) -> str | None:
    for d in (0.9, 0.99, 0.5):
        age, count = (float(a) for a in answer(d))
        if abs(age - d / (1 - d)) > 1e-6:
            if abs(age - 1 / (1 - d)) < 1e-6:
                return (
                    f"d = {d:g}: {age:g} counts the newest weights as one update old; they are 0."
                )
            return f"d = {d:g}: a mean age of {age:g} is not it. Sum j (1-d) d^j over all ages j."
        if abs(count - (1 + d) / (1 - d)) > 1e-6:
            if abs(count - 1 / (1 - d)) < 1e-6:
                return (
                    f"d = {d:g}: {count:g} is 1 over the largest weight. Asked is how many "
                    "independent values a plain mean needs to be as steady: 1 / Σ w²."
                )
            return f"d = {d:g}: {count:g} is not it. It is 1 over the sum of the squared weights."
    return None


# Derive: how many seeds.


def _judge_seeds(answer: Callable[[float, float, float], int]) -> str | None:
    for case in ((1.0, 1.0, 0.0), (0.5, 1.0, 0.0), (0.5, 1.0, 0.75), (0.002, 0.003, 0.5)):
        got, want = float(answer(*case)), seeds_needed(*case)
        if got == want:
            continue
        effect, sd, rho = case
        where = f"effect {effect:g}, sd {sd:g}, correlation {rho:g}: {got:g} is not it."
        z = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
        if got == math.ceil((1 - rho) * (z * sd / effect) ** 2):
            return f"{where} A difference has the variance of both runs: a factor of 2 is missing."
        if rho and got == seeds_needed(effect, sd, 0.0):
            return f"{where} Runs with the same seed move together; use the correlation."
        if got == math.ceil(2 * (1 - rho) * (NormalDist().inv_cdf(0.975) * sd / effect) ** 2):
            return f"{where} So half of all tries would miss it: add the 0.84 for a power of 80 %."
        if got != int(got):
            return f"{where} Seeds are whole: round up."
        return f"{where} Solve d sqrt(n) / s = 1.96 + 0.84 for n, with s² = 2 sd² (1 - ρ)."
    return None


# Build: the gradient of several processes.


def _combine(gradients: Sequence[Tensor], shares: Sequence[int]) -> Tensor:
    total = sum(shares)
    return sum(g * (n / total) for g, n in zip(gradients, shares, strict=True))


def _judge_combine(answer: Callable[[Sequence[Tensor], Sequence[int]], Tensor]) -> str | None:
    g = torch.Generator().manual_seed(0)
    for shares in ((4, 4), (6, 2), (5, 3, 8)):
        samples = torch.randn(sum(shares), 7, generator=g, dtype=torch.float64)  # one gradient each
        parts = [part.mean(0) for part in samples.split(list(shares))]
        got = answer([part.clone() for part in parts], list(shares))
        problem = close(got, samples.mean(0), f"The gradient for shares {shares}", rel=1e-9)
        if problem is None:
            continue
        if close(got, sum(parts), "", rel=1e-9) is None:
            return "That is the sum: with two processes every update would be twice as long."
        if close(got, sum(parts) / len(parts), "", rel=1e-9) is None:
            return f"{problem} A plain mean lets the images of the smaller share count for more."
        return problem
    return None


# Explain: four runs without a name.

#: What is wrong with the runs A to D of the lab.
DIAGNOSES = {
    "A": "other noise",
    "B": "labels shuffled",
    "C": "fifty images",
    "D": "lr / 100",
}
_SIGNS = {
    "other noise": "low and middle t stay at the ceiling, and the highest t is as it should be",
    "labels shuffled": "low t is normal, and the higher t, the further it lies above the band",
    "fifty images": "it lies below the band nearly everywhere, and more so the longer it trains",
    "lr / 100": "every bin is late, and all by about the same factor",
}


def _judge_diagnosis(answer: Mapping[str, str]) -> str | None:
    if not isinstance(answer, Mapping) or set(answer) != set(DIAGNOSES):
        return "Give a dictionary with the keys A, B, C and D."
    for run, fault in DIAGNOSES.items():
        if answer[run] not in _SIGNS:
            return f"{run}: {answer[run]!r} is unknown; choose from {', '.join(sorted(_SIGNS))}."
        if answer[run] != fault:
            return f"{run} is not {answer[run]!r}: there, {_SIGNS[answer[run]]}."
    return None


def _with(**changes: Any) -> dict[str, str]:
    return DIAGNOSES | changes


EXERCISES = {
    "training-step": Exercise(
        judge=_judge_step,
        hints=(
            "Four lines: the two moments, their corrections, and the weight.",
            "m ← β₁ m + (1-β₁) g, v ← β₂ v + (1-β₂) g², then divide by 1 - β₁^k and 1 - β₂^k.",
            "θ ← θ - lr · λ · θ - lr · m̂ / (√v̂ + ε). Return θ and the moments before correction.",
        ),
        solution=_adamw,
        wrong={name: wrong for name, (wrong, _) in WRONG_UPDATES.items()},
    ),
    "training-noise": Exercise(
        judge=_judge_noise_step,
        hints=(
            "m̂ is a weighted mean of k independent gradients; what is the variance of such a mean?",
            "The weight of gradient i is (1-β₁) β₁^(k-i) / (1-β₁^k). Square, and sum the series.",
            "Σ w² = (1-β₁)(1+β₁^k) / ((1+β₁)(1-β₁^k)); the length is its root.",
        ),
        solution=_noise_step,
        wrong={
            "always 1": lambda k, beta1: 1.0,
            "the limit": lambda k, beta1: math.sqrt((1 - beta1) / (1 + beta1)),
            "variance": lambda k, beta1: _noise_step(k, beta1) ** 2,
            "equal weights": lambda k, beta1: 1 / math.sqrt(k),
        },
    ),
    "training-shrink": Exercise(
        judge=_judge_shrink,
        hints=(
            "Each update multiplies the weight by 1 - η_k λ. Which η_k does a recipe use?",
            "Recipe(name=..., lr=..., steps=..., warmup=...).lr_at(k) knows the schedule.",
            "Nearly exp(-λ Σ η_k), and Σ η_k = lr (W/2 + (K-W)/2): half of lr times updates.",
        ),
        solution=_shrink,
        wrong={
            "constant": lambda lr, decay, steps, warmup: (1 - lr * decay) ** steps,
            "no learning rate": lambda lr, decay, steps, warmup: (1 - decay) ** steps,
            "what is lost": lambda *case: 1 - _shrink(*case),
            "nothing": lambda *case: 1.0,
        },
    ),
    "training-window": Exercise(
        judge=_judge_window,
        hints=(
            "The weight of the value of age j is (1-d) d^j. The newest has the age 0.",
            "Mean age: Σ j (1-d) d^j. Effective number: 1 / Σ ((1-d) d^j)².",
            "Geometric series: Σ j d^j = d/(1-d)², and Σ d^(2j) = 1/(1-d²).",
        ),
        solution=_window,
        wrong={
            "the same for both": lambda d: (1 / (1 - d), 1 / (1 - d)),
            "peak for count": lambda d: (d / (1 - d), 1 / (1 - d)),
            "half-life": lambda d: (math.log(0.5) / math.log(d), (1 + d) / (1 - d)),
            "count by hand": lambda d: (d / (1 - d), 2 / (1 - d)),
        },
    ),
    "training-seeds": Exercise(
        judge=_judge_seeds,
        hints=(
            "The mean of n differences with standard deviation s has the standard error s/√n.",
            "For 5 % false alarms and 80 % found, the effect must be 1.96 + 0.84 standard errors.",
            "n = 2 (1-ρ) ((1.96 + 0.84) sd / effect)², rounded up; NormalDist().inv_cdf is exact.",
        ),
        solution=seeds_needed,
        wrong={
            "one run's variance": lambda effect, sd, rho: math.ceil(
                (1 - rho) * (2.8016 * sd / effect) ** 2
            ),
            "not paired": lambda effect, sd, rho: seeds_needed(effect, sd, 0.0),
            "no power": lambda effect, sd, rho: math.ceil(
                2 * (1 - rho) * (1.95996 * sd / effect) ** 2
            ),
            "not rounded": lambda effect, sd, rho: 2 * (1 - rho) * (2.8016 * sd / effect) ** 2,
        },
    ),
    "training-processes": Exercise(
        judge=_judge_combine,
        hints=(
            "Each process has the mean over its own share. What is the mean over all images?",
            "Multiply each mean by its share to get back its sum.",
            "Σ n_p g_p / Σ n_p. With equal shares that is the plain mean.",
        ),
        solution=_combine,
        wrong={
            "sum": lambda gradients, shares: sum(gradients),
            "plain mean": lambda gradients, shares: sum(gradients) / len(gradients),
            "not divided": lambda gradients, shares: sum(
                g * n for g, n in zip(gradients, shares, strict=True)
            ),
        },
    ),
    "training-diagnosis": Exercise(
        judge=_judge_diagnosis,
        hints=(
            "Above or below the band? At low or at high t? Ask this of each run.",
            "At low t the answer is mostly noise. At high t the label is all there is to know.",
            "Below the band is no merit: few images are soon known by heart.",
        ),
        solution=DIAGNOSES,
        wrong={
            "two exchanged": _with(A="labels shuffled", B="other noise"),
            "late or overfitted": _with(C="lr / 100", D="fifty images"),
            "one name": dict.fromkeys(DIAGNOSES, "labels shuffled"),
            "unknown": _with(A="something"),
        },
    ),
}
