"""Exercises of the chapter on guidance: trade-offs, conventions, variances, intervals, landings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what a large scale does to the figures of quality.

WAYS = ("rises", "falls", "rises, then falls", "falls, then rises")
TRADE = {
    "accuracy": "rises",
    "precision": "rises, then falls",
    "recall": "falls",
    "variety": "falls, then rises",
}
TRADE_WHY = {
    "accuracy": "Guidance multiplies p(y|x): what is drawn looks more and more like the class that "
    "was asked for.",
    "precision": "First, doubtful samples are pulled into the middle of their class, among real "
    "images. But guidance does not stop there: it goes on, beyond the class.",
    "recall": "Recall asks how much of the real there is among the samples. Are there sevens that "
    "look like ones?",
    "variety": "First, all samples are pulled the same way. At a large scale pixels are driven to "
    "black or to white, and variance counts how far apart two of them are.",
}


def _judge_trade(answer: dict[str, str]) -> str | None:
    if not isinstance(answer, dict) or answer.keys() != TRADE.keys():
        return f"Give a dictionary with the keys {', '.join(TRADE)}."
    if unknown := set(map(str, answer.values())) - set(WAYS):
        return f"{sorted(unknown)} is no answer; allowed: {', '.join(map(repr, WAYS))}."
    return next((TRADE_WHY[key] for key, way in TRADE.items() if answer[key] != way), None)


# Derive: the scale of this book for the weight of another source.

WHO = ("Ho & Salimans", "classifier, no label", "classifier, label")
ToScale = Callable[[float, str], float]


def _to_scale(weight: float, who: str) -> float:
    return weight if who == "classifier, no label" else 1 + weight


SCALE_BUGS: dict[str, tuple[ToScale, str]] = {
    "all the same": (
        lambda weight, who: weight,
        "With w = 0, Ho & Salimans' rule is the labelled answer, so no guidance. That is s = 1.",
    ),
    "all plus one": (
        lambda weight, who: 1 + weight,
        "A classifier that pushes a model *without* labels: with weight 1 Bayes' rule gives the "
        "labelled score, s = 1.",
    ),
    "minus": (
        lambda weight, who: weight if who == "classifier, no label" else weight - 1,
        "You go from s to w. Which s has the same coefficient before the labelled answer?",
    ),
}


def _judge_scale(answer: ToScale) -> str | None:
    cases = [(weight, who) for who in WHO for weight in (0.0, 0.5, 3.0)]
    if why := mistake(answer, SCALE_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for weight, who in cases:
        if why := close(
            answer(weight, who), _to_scale(weight, who), f"to_scale({weight}, {who!r})"
        ):
            return f"{why} Write both rules as (…)·labelled + (…)·unlabelled, and compare."
    return None


# Derive: the variance that guided DDIM lands with.

Landing = Callable[[float, float, float], float]


def _landing(v_class: float, v_all: float, s: float) -> float:
    return v_class**s * v_all ** (1 - s)


LANDING_BUGS: dict[str, tuple[Landing, str]] = {
    "tilted": (
        lambda v_class, v_all, s: 1 / (s / v_class + (1 - s) / v_all),
        "This is the variance of the tilted density. The stream is guided at *every* noise level, "
        "and there 1/(v + σ²) is what is mixed.",
    ),
    "linear": (
        lambda v_class, v_all, s: s * v_class + (1 - s) * v_all,
        "This gets negative. It is what the guided denoiser believes at high noise; the stream "
        "does not end there.",
    ),
    "root": (
        lambda v_class, v_all, s: _landing(v_class, v_all, s) ** 0.5,
        "This is the standard deviation: x(0)/x(σ) is a factor of images. Square it.",
    ),
    "the class": (
        lambda v_class, v_all, s: v_class,
        "This is s = 1, the class itself.",
    ),
}


def _judge_landing(answer: Landing) -> str | None:
    cases = [(0.25, 1.0, 2.0), (0.5, 2.0, 1.5), (0.1, 0.3, 4.0), (0.7, 1.3, 0.0)]
    if why := mistake(answer, LANDING_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if close(answer(*case), _landing(*case), ""):
            return (
                f"landing{case} = {float(answer(*case)):.6g}. Try it: follow dx/dσ = σ·A(σ)·x with "
                "small steps from a large σ down to 0."
            )
    return None


# Build: the guided output of a model that learns its variance.

Combine = Callable[[Tensor, Tensor, float, int], Tensor]


def _combine(cond: Tensor, uncond: Tensor, s: float, channels: int) -> Tensor:
    guided = uncond[:, :channels] + s * (cond[:, :channels] - uncond[:, :channels])
    return torch.cat([guided, cond[:, channels:]], dim=1)


COMBINE_BUGS: dict[str, tuple[Combine, str]] = {
    "everything": (
        lambda cond, uncond, s, channels: uncond + s * (cond - uncond),
        "You guide the variance too. Its channels say where between two variances to be; a number "
        "pushed outside of that range means nothing.",
    ),
    "half": (
        lambda cond, uncond, s, channels: _combine(cond, uncond, s, cond.shape[1] // 2),
        "You guide half of all channels, whatever `channels` says.",
    ),
    "variance without label": (
        lambda cond, uncond, s, channels: torch.cat(
            [_combine(cond, uncond, s, channels)[:, :channels], uncond[:, channels:]], dim=1
        ),
        "The guided channels are right. The others come from the unlabelled answer; but it is the "
        "labelled image that is drawn.",
    ),
    "swapped": (
        lambda cond, uncond, s, channels: _combine(uncond, cond, s, channels),
        "You go from the labelled answer to the unlabelled one, away from the class.",
    ),
    "w": (
        lambda cond, uncond, s, channels: _combine(cond, uncond, 1 + s, channels),
        "This is the rule with w. In this book s = 1 means no guidance.",
    ),
}


def _judge_combine(answer: Combine) -> str | None:
    g = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 3, 8, 2, 2, generator=g, dtype=torch.float64)

    def ask(f: Combine) -> list[Tensor]:
        return [f(cond.clone(), uncond.clone(), s, k) for s, k in ((2.5, 4), (1.0, 4), (4.0, 3))]

    if why := mistake(answer, COMBINE_BUGS, ask):
        return why
    for got, want, what in zip(
        ask(answer), ask(_combine), ("s = 2.5", "s = 1", "three channels"), strict=True
    ):
        if why := close(got, want, f"The answer for {what}"):
            return why
    return None


# Build: guidance in an interval, for a batch of mixed steps.

Within = Callable[..., Tensor]


def _within(
    model: nn.Module, x: Tensor, t: Tensor, y: Tensor, s: float, low: float, high: float
) -> Tensor:
    inside = (low <= t) & (t <= high)  # (B,)
    cond = model(x, t, y)  # (B, C, H, W)
    if not inside.any():
        return cond
    uncond = model(x, t, model.null_condition(y))  # (B, C, H, W)
    return torch.where(inside.view(-1, 1, 1, 1), uncond + s * (cond - uncond), cond)


def _with_rule(rule: Callable[[Tensor, float, float], Tensor]) -> Within:
    """The same with another rule for who is inside, given as a mask (B,)."""

    def within(model, x, t, y, s, low, high):
        inside = rule(t, low, high)
        cond = model(x, t, y)
        if not inside.any():
            return cond
        uncond = model(x, t, model.null_condition(y))
        return torch.where(inside.view(-1, 1, 1, 1), uncond + s * (cond - uncond), cond)

    return within


WITHIN_BUGS: dict[str, tuple[Within, str]] = {
    "any": (
        _with_rule(lambda t, low, high: ((low <= t) & (t <= high)).any().expand(len(t))),
        "As soon as one sample is inside, you guide them all. Each has its own step.",
    ),
    "first": (
        _with_rule(lambda t, low, high: ((low <= t[:1]) & (t[:1] <= high)).expand(len(t))),
        "You look at the first step and take it for everyone's.",
    ),
    "open ends": (
        _with_rule(lambda t, low, high: (low < t) & (t < high)),
        "The two ends belong to the interval.",
    ),
    "outside": (
        _with_rule(lambda t, low, high: (t < low) | (high < t)),
        "You guide where guidance is to be left out.",
    ),
}


class _Counted(nn.Module):
    """A denoiser that counts how many images it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def null_condition(self, y: Tensor) -> Tensor:
        return torch.full_like(y, 7)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.asked += len(x)
        return x * (1.0 + y).view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1) / 1000


def _judge_within(answer: Within) -> str | None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 2, 3, 3, generator=g, dtype=torch.float64), torch.tensor([0, 3, 6, 2])
    batches = [
        torch.tensor(t) for t in ([0, 200, 450, 999], [300, 400, 500, 600], [100, 700, 800, 5])
    ]

    def ask(f: Within) -> list[Any]:
        return [f(_Counted(), x.clone(), t, y, 3.0, 200, 600) for t in batches]

    if why := mistake(answer, WITHIN_BUGS, ask):
        return why
    for t, got, want in zip(batches, ask(answer), ask(_within), strict=True):
        if why := close(got, want, f"The answer at t = {t.tolist()}"):
            return f"{why} The interval was 200 to 600."
    model = _Counted()
    answer(model, x, batches[2], y, 3.0, 200, 600)
    if model.asked > len(x):
        return (
            f"Right, but at t = {batches[2].tolist()} nobody is inside, and the model was asked "
            f"about {model.asked} images for {len(x)}. Save the unlabelled pass."
        )
    return None


EXERCISES = {
    "guidance-trade": Exercise(
        judge=_judge_trade,
        hints=(
            "Guidance looks for images that the class explains better than no class does.",
            "What lies between two classes is left out. Some real digits lie there.",
            "Two of the four turn round on the way: the mean of what is drawn goes to s times that "
            "of the class, beyond all that is real.",
        ),
        solution=TRADE,
        wrong={
            "the first half": {**TRADE, "precision": "rises", "variety": "falls"},
            "recall too": {**TRADE, "recall": "rises"},
            "precision falls": {**TRADE, "precision": "falls"},
            "all rise": dict.fromkeys(TRADE, "rises"),
        },
    ),
    "guidance-scales": Exercise(
        judge=_judge_scale,
        hints=(
            "Write every rule as (a)·labelled + (1 - a)·unlabelled. Then a is our s.",
            "Ho & Salimans: (1 + w)·labelled - w·unlabelled. A classifier's slope is labelled - "
            "unlabelled, by Bayes' rule.",
            "Without a label: unlabelled + w·(labelled - unlabelled), so s = w. With one: labelled "
            "+ w·(labelled - unlabelled), so s = 1 + w.",
        ),
        solution=_to_scale,
        wrong={name: bug for name, (bug, _) in SCALE_BUGS.items()},
    ),
    "guidance-landing": Exercise(
        judge=_judge_landing,
        hints=(
            "Every score here is -x/(v + σ²). Mix two of them, and put the mixture into dx/dσ = "
            "-σ·score.",
            "dx/x = σ·(s/(v_class + σ²) + (1 - s)/(v_all + σ²))·dσ. Both terms are derivatives of "
            "logarithms.",
            "x is proportional to (v_class + σ²)^(s/2) · (v_all + σ²)^((1-s)/2). At a large σ it "
            "is σ times the noise; at σ = 0 square it.",
        ),
        solution=_landing,
        wrong={name: bug for name, (bug, _) in LANDING_BUGS.items()},
    ),
    "guidance-variance": Exercise(
        judge=_judge_combine,
        hints=(
            "The first channels are guided; what comes after them is not.",
            "Which of the two answers is about the image that is drawn?",
            "torch.cat([uncond[:, :k] + s * (cond[:, :k] - uncond[:, :k]), cond[:, k:]], dim=1)",
        ),
        solution=_combine,
        wrong={name: bug for name, (bug, _) in COMBINE_BUGS.items()},
    ),
    "guidance-interval": Exercise(
        judge=_judge_within,
        hints=(
            "Make a mask of shape (B,): which samples are inside?",
            "torch.where chooses sample by sample; the mask needs the shape (B, 1, 1, 1).",
            "Ask with labels first. Return that if the mask is empty; else ask without, mix, and "
            "choose with torch.where.",
        ),
        solution=_within,
        wrong={name: bug for name, (bug, _) in WITHIN_BUGS.items()}
        | {
            "asks too often": lambda model, x, t, y, s, low, high: torch.where(
                ((low <= t) & (t <= high)).view(-1, 1, 1, 1),
                (1 - s) * model(x, t, model.null_condition(y)) + s * model(x, t, y),
                model(x, t, y),
            )
        },
    ),
}
