"""book/ideas.yml and _toc.yml against the tree: one idea, one name, four places."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
IDEAS: list[dict[str, Any]] = yaml.safe_load((ROOT / "book" / "ideas.yml").read_text("utf8"))
TO_COME = "to come"
PLACES = {"idea", "title", "chapter", "lab", "modules", "tests"}
# Pages that teach no idea of their own.
NO_IDEA = {"index", "glossary", "api", "references"}


def module_file(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def pages(folder: str, suffix: str) -> set[str]:
    """Return the names, without suffix, of the pages below a folder of the tree."""
    base = ROOT / folder
    found = (path.relative_to(base) for path in base.rglob(f"*{suffix}"))
    visible = (path for path in found if not any(part[0] in "._" for part in path.parts))
    return {path.with_suffix("").as_posix() for path in visible}


def toc_files(entry: dict[str, Any]) -> list[str]:
    """Return the files that an entry of _toc.yml and those below it name, in order."""
    own = [entry[key] for key in ("root", "file") if key in entry]
    below = [*entry.get("parts", []), *entry.get("chapters", []), *entry.get("sections", [])]
    return own + [file for inner in below for file in toc_files(inner)]


@pytest.mark.parametrize("row", IDEAS, ids=lambda row: row["idea"])
def test_row_names_what_exists(row: dict[str, Any]) -> None:
    assert set(row) == PLACES
    for key, expected in (
        ("chapter", f"book/{row['idea']}.md"),
        ("lab", f"notebooks/{row['idea']}.ipynb"),
    ):
        assert row[key] in (expected, TO_COME, None)
        if row[key] == TO_COME:
            assert not (ROOT / expected).exists(), f"{expected} has come: name it in ideas.yml"
        elif row[key]:
            assert (ROOT / row[key]).is_file()
    for module in row["modules"]:
        assert module_file(module).is_file(), module
        assert row["tests"], f"{module} has no tests"
    for test in row["tests"]:
        assert (ROOT / test).is_file(), test


def test_names_are_unique() -> None:
    names = [row["idea"] for row in IDEAS]
    assert len(names) == len(set(names))


def test_rows_stand_in_the_order_of_the_pages() -> None:
    toc = toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text("utf8")))
    assert [row["chapter"] for row in IDEAS] == [
        f"{page}.md" for page in toc if f"{page}.md" in {row["chapter"] for row in IDEAS}
    ]


def test_every_module_belongs_to_one_idea() -> None:
    taught = sorted(
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "dit_edu").rglob("*.py")
        if path.name[0] != "_" and "lab" not in path.relative_to(ROOT).parts
    )
    assert taught == sorted(module for row in IDEAS for module in row["modules"])


def test_every_page_belongs_to_an_idea() -> None:
    chapters = {row["idea"] for row in IDEAS if row["chapter"] not in (TO_COME, None)}
    labs = {row["idea"] for row in IDEAS if row["lab"] not in (TO_COME, None)}
    assert pages("book", ".md") - NO_IDEA == chapters
    assert pages("notebooks", ".ipynb") == labs


def test_api_page_documents_every_public_module() -> None:
    documented = re.findall(r"automodule:: (\S+)", (ROOT / "book" / "api.md").read_text("utf8"))
    folders = [ROOT / "dit_edu", *(ROOT / "dit_edu").glob("*/")]
    names = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for folder in folders
        for path in folder.iterdir()
        if path.name[0] != "_" and (path.suffix == ".py" or (path / "__init__.py").is_file())
    }
    assert sorted(documented) == sorted(names - {"dit_edu.lab"})


def test_toc_lists_every_page_once_and_nothing_else() -> None:
    listed = toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text("utf8")))
    listed = [file.removesuffix(".md").removesuffix(".ipynb") for file in listed]
    present = {f"book/{name}" for name in pages("book", ".md")}
    present |= {f"notebooks/{name}" for name in pages("notebooks", ".ipynb")}
    assert sorted(listed) == sorted(present)


def test_toc_puts_a_lab_after_its_chapter() -> None:
    listed = toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text("utf8")))
    for row in IDEAS:
        chapter, lab = f"book/{row['idea']}", f"notebooks/{row['idea']}"
        if chapter in listed and lab in listed:
            assert listed.index(lab) > listed.index(chapter), row["idea"]
