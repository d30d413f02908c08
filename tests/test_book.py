"""The built book, read from _build/html: its pages, its links, nothing remote, nothing unnamed."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

pytestmark = pytest.mark.built

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
GENERATED = {"genindex.html", "index.html", "py-modindex.html", "search.html"}
LOADS = {
    ("audio", "src"),
    ("embed", "src"),
    ("iframe", "src"),
    ("img", "src"),
    ("link", "href"),
    ("script", "src"),
    ("source", "src"),
    ("video", "src"),
}


class Page(HTMLParser):
    """What a built page loads, links to, and names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.unnamed_images: list[str] = []
        self.feed(path.read_text("utf8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors.update(found[name] for name in ("id", "name") if name in found)
        for name, value in found.items():
            is_page_of_its_own = tag == "link" and found.get("rel") in ("canonical", "next", "prev")
            if (tag, name) in LOADS and not is_page_of_its_own:
                self.loads.append(value)
            if (tag, name) == ("a", "href"):
                self.links.append(value)
        if tag == "img" and not found.get("alt", "").strip():
            self.unnamed_images.append(found.get("src", "")[:80])


def built() -> list[Path]:
    return [p for p in sorted(HTML.rglob("*.html")) if p.relative_to(HTML).parts[0] != "_static"]


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    """Every built page, by its path."""
    found = {path: Page(path) for path in built()}
    assert found, "run `make book` first"
    return found


def is_remote(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def test_built_pages_are_those_of_the_toc(pages: dict[Path, Page]) -> None:
    text = (ROOT / "_toc.yml").read_text("utf8")
    listed = re.findall(r"(?:root|file): *(\S+)", text)
    assert yaml.safe_load(text)["root"] == listed[0]
    expected = {re.sub(r"\.(md|ipynb)$", "", name) + ".html" for name in listed}
    present = {path.relative_to(HTML).as_posix() for path in pages}
    present = {name for name in present if not name.startswith("_modules/")} - GENERATED
    assert present == expected, "a page of an older build? `make clean`, then `make book`"


def test_no_page_loads_anything_remote(pages: dict[Path, Page]) -> None:
    remote = {path.name: [a for a in page.loads if is_remote(a)] for path, page in pages.items()}
    assert not {name: found for name, found in remote.items() if found}


def test_local_links_and_loads_exist(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for address in {*page.loads, *page.links}:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not address:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{path.relative_to(HTML)}: {address}")
            elif target in pages and unquote(parts.fragment) not in {"", *pages[target].anchors}:
                broken.append(f"{path.relative_to(HTML)}: {address} (no such anchor)")
    assert not broken


def test_every_image_has_alt_text(pages: dict[Path, Page]) -> None:
    unnamed = {path.name: page.unnamed_images for path, page in pages.items()}
    assert not {name: found for name, found in unnamed.items() if found}


def test_no_formula_or_reference_is_left_raw(pages: dict[Path, Page]) -> None:
    """A role, a directive or a citation that MyST did not understand shows up as text."""
    raw = re.compile(r"\{(?:cite|eq|ref|doc|numref|prf:ref|py:\w+)(?::\w+)?\}`|^:{3,}\{", re.M)
    found = {}
    for path in pages:
        text = re.sub(r"<(pre|script|style)\b.*?</\1>", "", path.read_text("utf8"), flags=re.S)
        found[path.name] = raw.findall(text)
    assert not {name: hits for name, hits in found.items() if hits}


def test_nothing_published_names_a_folder_of_this_machine() -> None:
    published = [
        p for p in HTML.rglob("*") if p.suffix in {".html", ".js", ".json", ".inv", ".txt"}
    ]
    found = [
        path.relative_to(HTML).as_posix()
        for path in published
        if "vendor" not in path.parts and str(ROOT).encode() in path.read_bytes()
    ]
    assert not found
