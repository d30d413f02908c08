"""Exercises of the chapter on training in stages: budgets, kernels, noise levels, a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_edu.lab.exercises import Exercise, close, mistake

# Predict: what is left for the second stage.

Updates = Callable[[float, float, int, float, float], float]


def _updates(budget: float, share: float, batch: int, large: float, small: float) -> float:
    return (1 - share) * budget / (3 * batch * small)


UPDATES_BUGS: dict[str, tuple[Updates, str]] = {
    "forward passes alone": (
        lambda budget, share, batch, large, small: 3 * _updates(budget, share, batch, large, small),
        "You pay for forward passes alone. Backward costs two more.",
    ),
    "the first stage": (
        lambda budget, share, batch, large, small: share * budget / (3 * batch * large),
        "These are the updates of the first stage. Asked are those of the second.",
    ),
    "share of updates": (
        lambda budget, share, batch, large, small: (1 - share) * budget / (3 * batch * large),
        "You pay for updates of the second stage at the price of the first.",
    ),
    "one image": (
        lambda budget, share, batch, large, small: (
            batch * _updates(budget, share, batch, large, small)
        ),
        "That is the number of images. An update takes a whole batch.",
    ),
}


def _judge_updates(answer: Updates) -> str | None:
    cases = [(9e11, 0.5, 64, 3.5e6, 14.9e6), (1e12, 0.25, 32, 1e6, 4e6), (6e9, 0.0, 1, 1e3, 2e3)]
    if why := mistake(answer, UPDATES_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _updates(*case), f"updates{case}"):
            return why
    return None


# Derive: the kernel that sees each small patch enlarged.

Shrink = Callable[[Tensor, int], Tensor]


def _shrink(kernel: Tensor, r: int) -> Tensor:
    return kernel.unflatten(-1, (-1, r)).unflatten(-3, (-1, r)).sum((-1, -3))


SHRINK_BUGS: dict[str, tuple[Shrink, str]] = {
    "means": (
        lambda kernel, r: F.avg_pool2d(kernel, r),
        "A mean makes every token r² times too quiet. Each pixel of the small patch stands for "
        "r² pixels of the large one, and the product adds them all up.",
    ),
    "as loud as noise": (
        lambda kernel, r: r * F.avg_pool2d(kernel, r),
        "So a token of noise would be as loud as before, and one of the image r times too quiet. "
        "Asked is the image.",
    ),
    "a corner": (
        lambda kernel, r: kernel[..., : kernel.shape[-1] // r, : kernel.shape[-1] // r],
        "You keep one corner of the large patch. The enlarged small patch fills all of it.",
    ),
    "every r-th": (
        lambda kernel, r: kernel[..., ::r, ::r],
        "You keep every r-th number and drop the others. They see copies of the same pixel.",
    ),
    "interleaved": (
        lambda kernel, r: kernel.unflatten(-1, (r, -1)).unflatten(-3, (r, -1)).sum((-2, -4)),
        "You add numbers that stand p/r apart. Copies of one pixel are neighbours.",
    ),
}


def _judge_shrink(answer: Shrink) -> str | None:
    kernel = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    cases = [(kernel, 2), (kernel, 4), (kernel[..., :4, :4], 2)]
    if why := mistake(answer, SHRINK_BUGS, lambda f: [f(k.clone(), r) for k, r in cases]):
        return why
    for k, r in cases:
        if why := close(answer(k.clone(), r), _shrink(k, r), f"The kernel for r = {r}"):
            return why
    return None


# Derive: how noisy a small image must be to look like a large one.

Moved = Callable[[float, float], float]


def _moved(ab: float, r: float) -> float:
    return ab * r**2 / (1 - ab + ab * r**2)


MOVED_BUGS: dict[str, tuple[Moved, str]] = {
    "not squared": (
        lambda ab, r: ab * r / (1 - ab + ab * r),
        "r divides the standard deviation of the noise. The ratio speaks of variances.",
    ),
    "the wrong way": (
        lambda ab, r: _moved(ab, 1 / r),
        "You make the small image noisier. It is the large one that is cleaner, seen from afar.",
    ),
    "noise alone": (
        lambda ab, r: 1 - (1 - ab) / r**2,
        "The noise is r² times weaker now, but ᾱ and 1 - ᾱ must share 1 between them: it is their "
        "ratio that has to be r² times as large.",
    ),
}


def _judge_moved(answer: Moved) -> str | None:
    cases = [(0.5, 2.0), (0.99, 2.0), (0.01, 4.0), (0.3, 1.0), (0.7, 0.5)]
    if why := mistake(answer, MOVED_BUGS, lambda f: [float(f(*case)) for case in cases]):
        return why
    for case in cases:
        if why := close(float(answer(*case)), _moved(*case), f"moved{case}"):
            return why
    return None


# Build: a loss with a teacher in it, from which the teacher learns nothing.

Loss = Callable[[nn.Module, nn.Module, Tensor, Tensor, float], Tensor]


def _loss(student: nn.Module, teacher: nn.Module, x: Tensor, target: Tensor, w: float) -> Tensor:
    said = student(x)
    with torch.no_grad():
        heard = teacher(x)
    return ((1 - w) * (said - target).square() + w * (said - heard).square()).mean()


def _no_detach(student, teacher, x, target, w) -> Tensor:
    said = student(x)
    return ((1 - w) * (said - target).square() + w * (said - teacher(x)).square()).mean()


def _student_detached(student, teacher, x, target, w) -> Tensor:
    said = student(x)
    return ((1 - w) * (said - target).square() + w * (said.detach() - teacher(x)).square()).mean()


def _mixed_up(student, teacher, x, target, w) -> Tensor:
    return _loss(student, teacher, x, target, 1 - w)


def _teacher_alone(student, teacher, x, target, w) -> Tensor:
    with torch.no_grad():
        heard = teacher(x)
    return w * (student(x) - heard).square().mean()


def _judge_loss(answer: Loss) -> str | None:
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    x, target = torch.randn(6, 3), torch.randn(6, 2)
    for w in (0.25, 1.0):
        value = answer(student, teacher, x, target, w)
        truth = _loss(student, teacher, x, target, w)
        if value.shape != () or not torch.allclose(value, truth, rtol=1e-5):
            if torch.allclose(value, _mixed_up(student, teacher, x, target, w), rtol=1e-5):
                return "The weights have changed places: w belongs to the teacher."
            return f"With w = {w} the loss is {value.detach()}, and should be {truth.item():.6g}."
        weights = [*teacher.parameters()]
        if value.requires_grad and any(
            g is not None
            for g in torch.autograd.grad(value, weights, allow_unused=True, retain_graph=True)
        ):
            return (
                "Right number, but the teacher gets a gradient: trained so, it comes to meet the "
                "student. Which part must be taken out of the graph?"
            )
        got = torch.autograd.grad(value, [*student.parameters()], allow_unused=True)
        want = torch.autograd.grad(truth, [*student.parameters()])
        if any(
            g is None or not torch.allclose(g, v, atol=1e-6) for g, v in zip(got, want, strict=True)
        ):
            return "Right number, but the student does not hear all of it: its gradient is wrong."
    return None


EXERCISES = {
    "stages-updates": Exercise(
        judge=_judge_updates,
        hints=(
            "The second stage has (1 - share) of the budget.",
            "An update costs three forward passes (one there, two back) of every image of a batch.",
            "(1 - share) · budget / (3 · batch · small).",
        ),
        solution=_updates,
        wrong={name: bug for name, (bug, _) in UPDATES_BUGS.items()},
    ),
    "stages-kernel": Exercise(
        judge=_judge_shrink,
        hints=(
            "Write down the product of a large kernel with a patch whose pixels are r × r copies.",
            "All r² numbers of the kernel that meet copies of one pixel can be added beforehand.",
            "Split both sides into (p/r, r), and sum over the two axes of length r.",
        ),
        solution=_shrink,
        wrong={name: bug for name, (bug, _) in SHRINK_BUGS.items()},
    ),
    "stages-noise": Exercise(
        judge=_judge_moved,
        hints=(
            "The mean of r² independent draws of noise has a standard deviation r times smaller.",
            "So seen from afar the ratio ᾱ / (1 - ᾱ) of the large image is r² times as large.",
            "Solve ᾱ' / (1 - ᾱ') = r² ᾱ / (1 - ᾱ) for ᾱ'.",
        ),
        solution=_moved,
        wrong={name: bug for name, (bug, _) in MOVED_BUGS.items()},
    ),
    "stages-teacher": Exercise(
        judge=_judge_loss,
        hints=(
            "Three things meet: what the student says, the target, and what the teacher says.",
            "Ask the teacher inside torch.no_grad(), or detach what it says.",
            "((1 - w) (s - target)² + w (s - teacher(x).detach())²).mean().",
        ),
        solution=_loss,
        wrong={
            "no detach": _no_detach,
            "student detached": _student_detached,
            "weights exchanged": _mixed_up,
            "teacher alone": _teacher_alone,
        },
    ),
}
