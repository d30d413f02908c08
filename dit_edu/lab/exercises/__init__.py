"""Exercises that check themselves: one module of exercises per chapter.

In a notebook, ``check("diffusion-floor", answer)`` says whether an answer is right and, where it is
not, what is wrong and why. Each further wrong answer brings one hint more.

An exercise is a name, three hints and a judge: a function that takes the reader's answer (a number,
a tensor, a function the reader wrote) and returns ``None`` if it is right, or one sentence that
says what is wrong. ``solution`` is the answer that the folded cell shows; ``wrong`` holds answers
that a reader may well give. The tests hold every judge against them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dit_edu._checks import check_choice

CHAPTERS = (
    "diffusion",
    "likelihood",
    "flow",
    "sampling",
    "patchify",
    "attention",
    "noise_attention",
    "dit",
    "training",
    "sequence_loss",
    "guidance",
    "conditioning",
    "scaling",
    "latents",
    "multiscale",
    "unet",
    "text",
    "own_data",
    "factorized",
    "dynamic",
    "stages",
    "deployment",
    "results",
    "router",
    "experts",
    "depth",
    "modes",
    "timestep",
    "conditions",
    "regimes",
    "explorer",
    "dddit_results",
    "landscape",
    "claims",
    "bugs",
    "video",
)


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter.

    Args:
        judge: takes an answer; returns None if it is right, else what is wrong and why.
        hints: three, from a nudge to nearly the answer.
        solution: a right answer, or a function without arguments that makes one.
        wrong: at least two plausible wrong answers by name, each likewise.
    """

    judge: Callable[[Any], str | None]
    hints: tuple[str, str, str]
    solution: Any
    wrong: Mapping[str, Any]


def exercises() -> dict[str, Exercise]:
    """Every exercise by name, ``chapter-topic``, in the order of the book."""
    found: dict[str, Exercise] = {}
    for chapter in CHAPTERS:
        found |= importlib.import_module(f"{__name__}.{chapter}").EXERCISES
    return found


_attempts: dict[str, int] = {}


def check(name: str, answer: Any) -> None:
    """Print whether ``answer`` solves the exercise, and if not, why not and a hint.

    Args:
        name: of the exercise, as the chapter gives it.
        answer: what the exercise asks for; ``...`` counts as not answered yet.

    Raises:
        ValueError: there is no such exercise; the message names the nearest.
    """
    known = exercises()
    exercise = known[check_choice("name", name, known)]
    if answer is ...:
        print(f"{name}: not answered yet. Put your answer where the dots are.")
        return
    problem = judge(exercise, answer)
    if problem is None:
        print(f"{name}: right.")
        return
    shown = _attempts[name] = min(_attempts.get(name, 0) + 1, len(exercise.hints))
    print(f"{name}: not yet. {problem}\nHint {shown} of 3: {exercise.hints[shown - 1]}")


def judge(exercise: Exercise, answer: Any) -> str | None:
    """What is wrong with an answer, or None; an answer that raises is wrong too."""
    try:
        return exercise.judge(answer)
    except Exception as error:  # the reader's own function may raise anything
        return f"Your answer raised {type(error).__name__}: {error}"


def mistake(
    answer: Callable[..., Any],
    bugs: Mapping[str, tuple[Callable[..., Any], str]],
    ask: Callable[[Callable[..., Any]], Any],
) -> str | None:
    """A judge's helper: what to say of the first known bug that answers like the reader, or None.

    Args:
        answer: the reader's function.
        bugs: by name, a wrong function and the sentence for whoever wrote it.
        ask: puts a function to the judge's cases; returns numbers, tensors, or a tuple or list of
            such.
    """
    got = ask(answer)
    return next((why for bug, why in bugs.values() if _same(got, ask(bug))), None)


def _same(a: Any, b: Any) -> bool:
    """Whether two results agree to six digits; a None of theirs agrees with a None only."""
    import torch

    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if a is None or b is None:
        return a is b
    got, want = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return got.shape == want.shape and torch.allclose(got, want, rtol=1e-6, equal_nan=True)


def close(answer: Any, truth: Any, what: str, rel: float = 1e-4) -> str | None:
    """A judge's helper for numbers and tensors: None if close, else a sentence on ``what``.

    Shapes are compared first, because broadcasting hides a wrong one.
    """
    import torch

    got, want = torch.as_tensor(answer).double(), torch.as_tensor(truth).double()
    if got.shape != want.shape:
        return f"{what} has shape {tuple(got.shape)}; expected {tuple(want.shape)}."
    if torch.allclose(got, want, rtol=rel, atol=rel * float(want.abs().max())):
        return None
    if got.numel() == 1:
        return f"{what} is {float(got):.6g}; that is not it."
    off = float((got - want).abs().max())
    return f"{what} has the right shape, but is off by up to {off:.3g}."
