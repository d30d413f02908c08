"""Equations under test: book/equations.yml against the pages, the public names and the tests."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "book/equations.yml").read_text("utf8"))
# The mathematical chapters: here no numbered equation goes untested.
CHAPTERS = ("notation", "diffusion", "likelihood", "flow", "sampling", "guidance")


def labels() -> list[str]:
    """The labels of all numbered equations of these chapters, as far as they are written."""
    pages = (ROOT / "book" / f"{chapter}.md" for chapter in CHAPTERS)
    text = "".join(page.read_text("utf8") for page in pages if page.exists())
    return re.findall(r"^:label: (eq-\S+)$", text, re.M)


def resolve(code: str) -> object:
    """The object that a dotted name means; its module is the longest part that can be imported."""
    parts = code.split(".")
    owner = next(k for k, part in enumerate(parts) if part[0].isupper() or k == len(parts) - 1)
    found = import_module(".".join(parts[:owner]))
    for part in parts[owner:]:
        found = getattr(found, part)
    return found


def test_every_numbered_equation_has_a_row_and_every_row_an_equation() -> None:
    found = labels()
    assert len(found) == len(set(found))
    assert sorted(found) == sorted(TABLE)


@pytest.mark.parametrize("label", TABLE)
def test_its_function_and_its_test_exist(label: str) -> None:
    assert set(TABLE[label]) == {"code", "test"}
    code, (path, name) = TABLE[label]["code"], TABLE[label]["test"].split("::")
    assert callable(resolve(code))
    assert not any(part.startswith("_") for part in code.split("."))
    tests = ast.parse((ROOT / path).read_text("utf8")).body
    assert name in {node.name for node in tests if isinstance(node, ast.FunctionDef)}
    assert name.startswith("test_")
