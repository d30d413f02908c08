"""The claims ledger: what papers and pages claim, what became of it, and where that is shown.

The claims stand in book/claims.yml. This module reads them, refuses what is no ledger, and finds
the evidence of a claim in the book's repository: a page's section, a test, a row of a table of
results, a number that a lab keeps.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dit_edu._checks import check_choice
from dit_edu.lab.experiments import TREE

LEDGER = TREE / "book" / "claims.yml"
#: What became of a claim, and the sign it has on the page.
VERDICTS = {
    "reproduced": "✓",
    "refuted": "✗",
    "true by arithmetic": "=",
    "not checkable here": "?",
}
#: The parts of the book, by the letter of a row of the inventory; and its rows.
PARTS = {
    "T": "The Diffusion Transformer",
    "N": "Diffusion and attention",
    "H": "HiDiT",
    "D": "DDDiT",
}
ROWS = [
    *(f"T{k}" for k in range(1, 14)),
    *(f"N{k}" for k in range(1, 15)),
    *(f"H{k}" for k in range(15)),
    *(f"D{k}" for k in range(1, 16)),
]
EVERYWHERE = {"The idea", "The derivation", "The code", "What we measured", "Where it breaks"}
KEPT = re.compile(r"\[\[([^\]:]+)::([^\]:]+)(:[^\]]*)?\]\]")  # [[lab::key:format]]


@dataclass(frozen=True)
class Claim:
    """A claim and its verdict.

    Args:
        id: its name, which begins with its row.
        row: of the inventory: a letter and a number.
        who: "notes", "ours", or the key of a reference.
        claim: what is claimed, in our words.
        verdict: one of :data:`VERDICTS`.
        found: what we found, in a sentence or three; ``[[lab::key:format]]`` is a number that
            the lab keeps.
        evidence: where it is shown: ``book/page.md#section-or-label``, ``tests/file.py::test``,
            ``results/name.json::setting`` or ``notebooks/lab.ipynb::key``.
        why: what it would take, if it is not checkable here.

    Raises:
        ValueError: a row or a verdict is unknown, a text is empty, there is no evidence, or a
            claim that is not checkable does not say why.
    """

    id: str
    row: str
    who: str
    claim: str
    verdict: str
    found: str
    evidence: tuple[str, ...] = ()
    why: str = ""

    def __post_init__(self) -> None:
        check_choice(f"row of claim {self.id!r}", self.row, ROWS)
        check_choice(f"verdict of claim {self.id!r}", self.verdict, VERDICTS)
        if not self.id.startswith(f"{self.row}-"):
            raise ValueError(f"id={self.id!r} of a claim; allowed: {self.row}- and a name.")
        for field in ("who", "claim", "found"):
            if not getattr(self, field).strip():
                raise ValueError(f"{field} of claim {self.id!r} is empty.")
        if not self.places():
            raise ValueError(f"evidence of claim {self.id!r} is empty; allowed: at least one.")
        if (self.verdict == "not checkable here") != bool(self.why.strip()):
            raise ValueError(
                f"why={self.why!r} of claim {self.id!r}, {self.verdict}; "
                "allowed: a reason where it is not checkable here, and only there."
            )

    @property
    def part(self) -> str:
        """The part of the book, one of the values of :data:`PARTS`."""
        return PARTS[self.row[0]]

    def places(self) -> list[str]:
        """All evidence, the numbers in the text included, each once."""
        kept = (f"notebooks/{m[1]}.ipynb::{m[2]}" for m in KEPT.finditer(self.found + self.claim))
        return list(dict.fromkeys([*self.evidence, *kept]))


def read_ledger(path: Path = LEDGER) -> tuple[list[Claim], dict[str, str]]:
    """Read the claims, and the rows of the inventory that are still open.

    Returns:
        The claims in the order of the file, and for each open row the page that will settle it.

    Raises:
        FileNotFoundError: there is no such file; it is in the repository and in no package.
        ValueError: an id repeats, a claim does not fit, or an open row is unknown.
    """
    table = yaml.safe_load(path.read_text("utf8"))
    claims = [_claim(entry) for entry in table["claims"]]
    seen: set[str] = set()
    for claim in claims:
        if claim.id in seen:
            raise ValueError(f"id={claim.id!r} of a claim repeats; allowed: each once.")
        seen.add(claim.id)
    still = table.get("open") or {}
    for row in still:
        check_choice("open row", row, ROWS)
    return claims, still


def _claim(entry: Mapping[str, Any]) -> Claim:
    fields = set(Claim.__dataclass_fields__)
    if unknown := entry.keys() - fields:
        raise ValueError(
            f"claim {entry.get('id')!r} has {', '.join(sorted(unknown))}; "
            f"allowed: {', '.join(sorted(fields))}."
        )
    row = str(entry["id"]).split("-")[0]
    return Claim(**{"row": row, **entry, "evidence": tuple(entry.get("evidence") or ())})


def missing(place: str, tree: Path = TREE) -> str | None:
    """Look for a piece of evidence.

    Returns:
        None if it is there, otherwise one sentence that says what is not.
    """
    path, sign, name = re.fullmatch(r"([^#:]+)(#|::|$)(.*)", place).groups()
    file = tree / path
    if not file.is_file():
        return f"{place}: there is no file {path}."
    if path.startswith("tests/") and sign == "::":
        found, what = _tests(file), "test"
    elif path.startswith("results/") and sign == "::":
        found, what = _settings(file), "setting"
    elif path.startswith("notebooks/") and sign == "::":
        found, what = _kept(file), "number that the lab keeps"
    elif path.startswith("book/") and sign == "#":
        found, what = _anchors(file), "section or label"
    else:
        return f"{place}: allowed are book/…#…, tests/…::…, results/…::… and notebooks/…::…."
    return None if name in found else f"{place}: there is no {what} {name!r}."


@cache
def _tests(file: Path) -> frozenset[str]:
    body = ast.parse(file.read_text("utf8")).body
    names = (node.name for node in body if isinstance(node, ast.FunctionDef))
    return frozenset(name for name in names if name.startswith("test_"))


@cache
def _settings(file: Path) -> frozenset[str]:
    rows = json.loads(file.read_text("utf8"))["rows"]
    return frozenset(str(row.get("setting")) for row in rows)


@cache
def _kept(file: Path) -> frozenset[str]:
    """The names under which a lab keeps numbers for its chapter (by myst-nb's glue)."""
    cells = json.loads(file.read_text("utf8"))["cells"]
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    notes = (output.get("metadata", {}).get("scrapbook", {}) for output in outputs)
    return frozenset(note["name"] for note in notes if "name" in note)


@cache
def _anchors(file: Path) -> frozenset[str]:
    """The addresses within a page: its headings, labels and figures."""
    return frozenset(_addresses(file.read_text("utf8")))


def _addresses(text: str) -> Iterator[str]:
    text = re.sub(r"^(`{3,})(?:python|bash|text|console)\n.*?^\1", "", text, flags=re.M | re.S)
    yield from map(slug, re.findall(r"^#+ (.+)$", text, re.M))
    yield from re.findall(r"^:label: (\S+)$", text, re.M)
    yield from (f"fig-{name}" for name in re.findall(r"\{dit-figure\} (\S+)", text))


def slug(text: str) -> str:
    """The address of a heading, as docutils makes it."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def heading(file: Path, anchor: str) -> str:
    """What a place in a page is called.

    Returns:
        The heading of the section; the page's title for a section that every chapter has, for a
        label and for a figure.
    """
    title, *below = re.findall(r"^#+ (.+)$", file.read_text("utf8"), re.M)
    return next((h for h in below if slug(h) == anchor and h not in EVERYWHERE), title)
