"""Rules of the house that no linter knows: alt text, pins, locked assets, forbidden words."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from sphinx.ext.napoleon import GoogleDocstring

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".md", ".py", ".ipynb", ".yml", ".yaml", ".toml", ".txt", ".json", ".cfg", ".js", ".css"}
TEXT |= {".html", ".svg", ".cff", ".bib", ".sh", ".npmrc", ""}

# Each pattern is written so that it doesn't match itself.
FORBIDDEN = {
    "host of a package registry": r"npm[j]s\.|pyp[i]\.org|pythonh[o]sted|download\.pyt[o]rch",
    "path of someone's machine": r"/hom[e]/\w|/roo[t]/|/Use[r]s/\w|/wor[k]/|/tm[p]/\w",
}


def tracked() -> list[Path]:
    """Return the text files of the tree: what git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = (ROOT / name for name in names.splitlines())
    return [file for file in files if file.is_file() and file.suffix in TEXT]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_words_that_must_not_appear(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match[0]}"
        for file in tracked()
        for number, line in enumerate(file.read_text("utf8").splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert not found


def images_without_alt(text: str) -> list[str]:
    """Return the images of a Markdown page that have no alt text."""
    text = re.sub(r"^(`{3,})(?!\{)[^\n]*\n.*?^\1", "", text, flags=re.M | re.S)  # plain code
    bare = re.findall(r"!\[\s*\]\([^)]*\)", text)
    bare += [tag for tag in re.findall(r"<img\b[^>]*>", text) if not re.search(r'alt="[^"]', tag)]
    directives = re.findall(r"^(`{3,}|:{3,})\{(?:image|figure)\}(.*?)^\1", text, flags=re.M | re.S)
    bare += [
        body.split("\n")[0] for _, body in directives if not re.search(r"^:alt: \S", body, re.M)
    ]
    return bare


def test_every_image_of_a_page_has_alt_text() -> None:
    pages = [*(ROOT / "book").rglob("*.md"), *ROOT.glob("*.md")]
    found = {
        page.name: bare for page in pages if (bare := images_without_alt(page.read_text("utf8")))
    }
    assert found == {}


def test_no_page_holds_a_placeholder() -> None:
    """A line that is one word in capitals stands for text that was to come."""
    files = [file for file in tracked() if file.suffix in (".md", ".ipynb")]
    stray = re.compile(r'^[\s"]*[A-Z_]{5,}(?:\\n)?[\s",]*$', re.M)
    assert {f.name: m[0] for f in files if (m := stray.search(f.read_text("utf8")))} == {}


def swallowed(text: str) -> list[str]:
    """Return the lines of a page that Markdown takes for a remark or, inside a formula, a list."""
    text = re.sub(
        r"^ *(`{3,})(?:\{(?:math|raw|literalinclude)|\w|\n).*?^ *\1", "", text, flags=re.M | re.S
    )
    found, dollars = [], 0
    for line in text.splitlines():
        open_formula = dollars % 2 == 1
        if re.match(r"%", line) or (open_formula and re.match(r" {0,3}[-+*] ", line)):
            found.append(line)
        dollars = dollars + len(re.findall(r"(?<![\\$])\$(?!\$)", line)) if line.strip() else 0
    return found


def test_no_line_of_a_page_is_swallowed() -> None:
    pages = sorted((ROOT / "book").rglob("*.md"))
    found = {page.name: bad for page in pages if (bad := swallowed(page.read_text("utf8")))}
    assert found == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("at 5\n% false alarms\n", 1),
        ("after $1/(1\n- a)$ updates\n", 1),
        ("a list:\n- of $a$\n- and $b$\n", 0),
        ("```python\n%pip install\n```\n", 0),
    ],
)
def test_swallowed_lines_are_noticed(text: str, count: int) -> None:
    assert len(swallowed(text)) == count


def typed_by_accident(docstring: str) -> list[str]:
    """Return what napoleon takes for a type in ``Returns:``: the words before a colon."""
    lines = str(GoogleDocstring(inspect.cleandoc(docstring))).splitlines()
    return [line for line in lines if line.startswith(":rtype:")]


def test_no_returned_sentence_is_taken_for_a_type() -> None:
    """The reference would link its words as if they were classes."""
    found = [
        f"{file.name}: {taken[0]}"
        for file in sorted((ROOT / "dit_edu").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        if (taken := typed_by_accident(ast.get_docstring(node) or ""))
    ]
    assert found == []
    assert typed_by_accident("A.\n\nReturns:\n    The least of each: by name.\n")
    assert not typed_by_accident("A.\n\nReturns:\n    The least of each, by name.\n")


def remarks(source: str) -> list[str]:
    """Return the first lines of the ``#:`` remarks on constants of a module."""
    blocks = re.findall(r"(?:^#: .*\n)+(?=\w+(?:: .*)? = )", source, re.M)
    return [block.split("\n")[0] for block in blocks]


def test_no_remark_on_a_constant_is_taken_for_a_type() -> None:
    """What stands before a colon in its first line would be linked as a class."""
    typed = re.compile(r"#: [^`]*: ")
    modules = re.findall(r"automodule:: ([\w.]+)", (ROOT / "book/api.md").read_text("utf8"))
    files = [ROOT / (name.replace(".", "/") + ".py") for name in modules]
    sources = [file.read_text("utf8") for file in files if file.is_file()]
    found = [first for source in sources for first in remarks(source)]
    assert [first for first in found if typed.match(first)] == []
    assert found and typed.match(remarks("#: Ways: how.\nWAYS: dict[str, int] = {}\n")[0])
    assert not typed.match(remarks("#: Ways, by name.\n#: So: this.\nWAYS = 1\n")[0])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("![](a.png)", 1),
        ("![a digit](a.png)", 0),
        ('<img src="a.png">', 1),
        ('<img src="a.png" alt="a digit">', 0),
        ("```{figure} a.png\n:name: a\ncaption\n```", 1),
        ("```{figure} a.png\n:alt: a digit\ncaption\n```", 0),
        (":::{image} a.png\n:::", 1),
        ("```python\nprint('![](a.png)')\n```", 0),
    ],
)
def test_images_without_alt_text_are_noticed(text: str, count: int) -> None:
    assert len(images_without_alt(text)) == count


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text("utf8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", pin.name).lower(): pin for pin in found}


def test_requirements_are_pinned_within_the_ranges_of_pyproject() -> None:
    pinned = pins()
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) for pin in pinned.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    extras = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        wanted = Requirement(text)
        version = str(pinned[wanted.name].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{wanted} but {version} is pinned"


def test_assets_are_locked_by_hash_and_name_no_registry() -> None:
    lock = json.loads((ROOT / "scripts" / "vendor" / "package-lock.json").read_text("utf8"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    for name, entry in packages.items():
        assert entry["integrity"].startswith("sha512-"), name
        assert "resolved" not in entry, name
