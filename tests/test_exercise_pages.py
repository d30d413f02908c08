"""Every chapter ends with exercises: to predict, to derive and to build; all of them checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dit_edu.lab.exercises import CHAPTERS as MODULES
from dit_edu.lab.exercises import exercises

ROOT = Path(__file__).resolve().parents[1]
IDEAS = yaml.safe_load((ROOT / "book" / "ideas.yml").read_text("utf8"))
CHAPTERS = [row["chapter"] for row in IDEAS if row["chapter"] != "to come" and row["lab"]]
DIRECTIVE = re.compile(
    r"^(`{3,}|:{3,})\{(exercise|solution|admonition)\}(.*?)\n(.*?)^\1$", re.M | re.S
)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """The exercises, hints and solutions of a page: kind, argument, body."""
    return [(kind, name.strip(), body) for _, kind, name, body in DIRECTIVE.findall(page)]


def label(body: str) -> str:
    return re.search(r"^:label: (\S+)", body, re.M)[1]


def read(chapter: str) -> list[tuple[str, str, str]]:
    return blocks((ROOT / chapter).read_text("utf8"))


def asked(body: str) -> list[str]:
    return re.findall(r"check\(\s*\"([\w-]+)\"", body)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_asks_to_predict_to_derive_and_to_build(chapter):
    bodies = [body for kind, _, body in read(chapter) if kind == "exercise"]
    begin = [re.search(r"^\*(\w+)", body, re.M)[1] for body in bodies]  # *Predict, then compute.*
    assert len(bodies) >= 3
    assert {"Predict", "Derive", "Build"} <= set(begin)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_exercise_has_a_checker_a_hint_and_a_solution_that_are_folded(chapter):
    found = read(chapter)
    known = exercises()
    for i, (kind, _, body) in enumerate(found):
        if kind != "exercise":
            continue
        names = asked(body)
        assert names and set(names) <= set(known), f"{label(body)} names no checker: {names}"
        hint, solution = found[i + 1], found[i + 2]
        assert hint[0] == "admonition" and "Hint" in hint[1], label(body)
        assert solution[:2] == ("solution", label(body)), label(body)
        assert ":class: dropdown" in hint[2] and ":class: dropdown" in solution[2], label(body)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_checker_of_a_chapter_is_asked_for_on_its_page(chapter):
    names = {n for kind, _, body in read(chapter) if kind == "exercise" for n in asked(body)}
    own = next(c for c in MODULES if next(iter(names)).startswith(c.replace("_", "-") + "-"))
    assert names == {n for n in exercises() if n.startswith(own.replace("_", "-") + "-")}


def test_a_page_without_a_hint_is_noticed():
    page = '```{exercise} A\n:label: ex-a\n\n*Build.* `check("a", b)`\n```\n\n'
    page += "```{solution} ex-a\n:class: dropdown\nB\n```\n"
    assert [kind for kind, _, _ in blocks(page)] == ["exercise", "solution"]
    assert asked(blocks(page)[0][2]) == ["a"] and label(blocks(page)[0][2]) == "ex-a"
