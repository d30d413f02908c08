"""Every exercise accepts its solution and rejects the wrong answers a reader may well give."""

from __future__ import annotations

import inspect

import pytest

from dit_edu.lab.exercises import CHAPTERS, _attempts, check, close, exercises, judge, mistake

ALL = exercises()


def prefix(chapter):
    """How the names of a module's exercises begin: with that of its idea."""
    return chapter.replace("_", "-") + "-"


def value(answer):
    """Answers may be given as functions without arguments that make them."""
    made = callable(answer) and not inspect.signature(answer).parameters
    return answer() if made else answer


@pytest.mark.parametrize("name", ALL)
def test_solution_is_accepted(name):
    assert judge(ALL[name], value(ALL[name].solution)) is None


@pytest.mark.parametrize(
    ("name", "wrong"), [(name, wrong) for name in ALL for wrong in ALL[name].wrong]
)
def test_wrong_answer_is_rejected_with_a_reason(name, wrong):
    reason = judge(ALL[name], value(ALL[name].wrong[wrong]))
    assert reason
    assert len(reason) > 20


@pytest.mark.parametrize("name", ALL)
def test_exercises_are_complete(name):
    assert any(name.startswith(prefix(chapter)) for chapter in CHAPTERS)
    assert len(ALL[name].wrong) >= 2
    assert len(set(ALL[name].hints)) == 3


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_has_at_least_three(chapter):
    assert sum(name.startswith(prefix(chapter)) for name in ALL) >= 3


def test_hints_come_one_by_one(capsys):
    name = next(iter(ALL))
    _attempts.clear()
    for shown in (1, 2, 3, 3):
        check(name, object())
        assert f"Hint {shown} of 3" in capsys.readouterr().out
    check(name, ...)
    assert "not answered yet" in capsys.readouterr().out
    check(name, value(ALL[name].solution))
    assert capsys.readouterr().out == f"{name}: right.\n"


def test_unknown_name_and_raising_answers():
    with pytest.raises(ValueError, match="Did you mean"):
        check(next(iter(ALL)) + "s", 1)
    asks_for_a_function = next(
        e for e in ALL.values() if callable(e.solution) and inspect.signature(e.solution).parameters
    )
    assert "raised ZeroDivisionError" in judge(asks_for_a_function, lambda *a, **k: 1 / 0)


def test_close_does_not_let_broadcasting_pass():
    assert close([1.0, 1.0], 1.0, "x") == "x has shape (2,); expected ()."
    assert close(1.00001, 1.0, "x") is None
    assert "not it" in close(1.1, 1.0, "x")


def test_a_known_mistake_is_told_from_a_right_answer_and_from_a_shape_that_broadcasts():
    import torch

    bugs = {"doubled": (lambda x: 2 * x, "You doubled it."), "none": (lambda x: None, "Nothing.")}
    ask = lambda f: f(torch.ones(2))  # noqa: E731
    assert mistake(lambda x: x + 1, bugs, ask) == "You doubled it."
    assert mistake(lambda x: None, bugs, ask) == "Nothing."
    assert mistake(lambda x: x, bugs, ask) is None
    assert mistake(lambda x: torch.tensor([[2.0, 2.0]]), bugs, ask) is None
    pairs = {"swapped": (lambda a, b: (b, a), "The other way round.")}
    assert mistake(lambda a, b: (2.0, 1.0), pairs, lambda f: f(1.0, 2.0)) == "The other way round."
    assert mistake(lambda a, b: (1.0, 2.0), pairs, lambda f: f(1.0, 2.0)) is None
