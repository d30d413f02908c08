"""Every built page, over http and file, wide and narrow, light and dark, in Chromium.

A page fails on a request that leaves the machine, a failed request, a console or page error, an
axe-core violation, a formula that MathJax does not understand, a figure that does not move, text
that runs off a phone, or too many bytes.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.built, pytest.mark.browser]

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
AXE = ROOT / "scripts" / "vendor" / "node_modules" / "axe-core" / "axe.min.js"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
MAX_BYTES = 3_000_000  # sent for a page and all it loads, MathJax aside
TEXT = {".css", ".html", ".js", ".json", ".svg"}  # what web servers compress
READY_MS = 60_000
AXE_OPTIONS = {
    "resultTypes": ["violations"],
    # It sees no text in a header that is a formula; EMPTY_HEADERS looks for the truly empty ones.
    "rules": {"empty-table-header": {"enabled": False}},
}
EMPTY_HEADERS = (
    "() => [...document.querySelectorAll('th')].filter(h => !h.textContent.trim()).length"
)
BAD_FORMULA = "[data-mjx-error], [data-mml-node=merror], mjx-container [fill=red]"

PAGES = [
    path.relative_to(HTML).as_posix()
    for path in sorted(HTML.rglob("*.html"))
    if path.relative_to(HTML).parts[0] != "_static" and path != HTML / "index.html"
]
CHAPTERS = {
    row["chapter"].replace(".md", ".html")
    for row in yaml.safe_load((ROOT / "book" / "ideas.yml").read_text("utf8"))
    if row["modules"] and row["chapter"] not in ("to come", None)
}

# Resolves when formulas, widgets, figures and fonts stand.
SETTLED = """async () => {
  const until = async (done) => { while (!done()) await new Promise((r) => setTimeout(r, 20)); };
  if (document.querySelector(".math")) {
    await until(() => window.MathJax?.startup?.promise);
    await window.MathJax.startup.promise;
  }
  const type = "application/vnd.jupyter.widget-view+json";
  const views = [...document.querySelectorAll(`script[type="${type}"]`)];
  await until(() => views.every((view) => view.parentElement.querySelector(".jupyter-widgets")));
  const figures = [...document.querySelectorAll("dit-figure")];
  await until(() => figures.every((figure) => figure.dataset.ready || figure.dataset.failed));
  await document.fonts.ready;
}"""

NEXT_FRAME = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@contextmanager
def opened(browser: Browser, url: str, viewport: dict[str, int], theme: str) -> Iterator[Visit]:
    """Open a page and wait until it stands; on leaving, check what it asked for and said."""
    context = browser.new_context(viewport=viewport, color_scheme=theme, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(READY_MS)
    visit = Visit(page, url)
    page.goto(url)
    visit.settle()
    try:
        yield visit
    finally:
        context.close()
    assert not visit.faults, "\n".join(visit.faults)


class Visit:
    """A page in the browser, and every fault seen since it was opened."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.faults: list[str] = []
        self.files: set[Path] = set()
        own = urlsplit(url)

        def asked(request: Any) -> None:
            address = urlsplit(request.url)
            if address.scheme in ("data", "blob"):
                return
            if (address.scheme, address.netloc) != (own.scheme, own.netloc):
                self.faults.append(f"request leaves the machine: {request.url}")
            path = unquote(address.path)
            self.files.add(Path(path) if own.scheme == "file" else HTML / path.lstrip("/"))

        def answered(response: Any) -> None:
            if response.status >= 400:
                self.faults.append(f"{response.status}: {response.url}")

        def said(message: Any) -> None:
            if message.type == "error":
                self.faults.append(f"console: {message.text}")

        page.on("request", asked)
        page.on("response", answered)
        page.on("requestfailed", lambda r: self.faults.append(f"failed: {r.url} {r.failure}"))
        page.on("console", said)
        page.on("pageerror", lambda error: self.faults.append(f"page error: {error}"))

    def settle(self) -> None:
        """Wait until the page stands; stop its transitions, in which colours are neither."""
        self.page.wait_for_function(f"({SETTLED})().then(() => true)")
        if self.page.locator("dit-figure[data-failed]").count():
            self.faults.append("a figure fell back to its still picture")
        self.page.add_style_tag(content="*, ::before, ::after { transition: none !important; }")

    def weight(self) -> int:
        """Bytes that a reader is sent: the page and all it loaded, MathJax aside."""
        return sum(sent(file) for file in self.files if "mathjax" not in file.parts)

    def violations(self, theme: str) -> list[str]:
        """Return what axe-core finds in one theme, as ``rule: element``."""
        self.page.emulate_media(color_scheme=theme)
        self.page.wait_for_function("t => document.documentElement.dataset.theme === t", arg=theme)
        if not self.page.evaluate("() => 'axe' in window"):
            self.page.evaluate(AXE.read_text("utf8"))
        found = self.page.evaluate("options => axe.run(document, options)", AXE_OPTIONS)
        return [
            f"{theme}, {violation['id']}: {node['html'][:160]}"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]


@cache
def sent(file: Path) -> int:
    """Bytes on their way to the reader: web servers compress text."""
    if not file.is_file():
        return 0
    return len(gzip.compress(file.read_bytes())) if file.suffix in TEXT else file.stat().st_size


def address(base: str, page: str) -> str:
    return f"{base}/{page}" if base else (HTML / page).as_uri()


@pytest.mark.parametrize("page", PAGES)
def test_page_on_a_desktop(
    page: str, browser: Browser, site: str, record_property: pytest.RecordProperty
) -> None:
    with opened(browser, address(site, page), DESKTOP, "light") as visit:
        record_property(f"weight {page}", visit.weight())
        assert visit.weight() <= MAX_BYTES
        assert visit.page.locator(BAD_FORMULA).count() == 0
        assert visit.page.evaluate(EMPTY_HEADERS) == 0
        check_names(visit, ("light", "dark"))
        check_figures(visit.page, chapter=page in CHAPTERS)


@pytest.mark.parametrize("page", PAGES)
def test_page_on_a_phone(page: str, browser: Browser, site: str) -> None:
    with opened(browser, address(site, page), PHONE, "dark") as visit:
        if not page.startswith("_modules/"):  # the same frame around every source
            check_names(visit, ("dark", "light"))
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize(("viewport", "theme"), [(DESKTOP, "dark"), (PHONE, "light")])
@pytest.mark.parametrize("page", PAGES)
def test_page_from_disk(page: str, viewport: dict[str, int], theme: str, browser: Browser) -> None:
    with opened(browser, address("", page), viewport, theme) as visit:
        assert visit.page.evaluate("() => document.documentElement.dataset.theme") == theme


def check_names(visit: Visit, themes: tuple[str, ...]) -> None:
    """axe-core has nothing to say about names, roles and contrast, in any theme."""
    found = [line for theme in themes for line in visit.violations(theme)]
    assert not found, "\n".join(found)


def check_figures(page: Page, *, chapter: bool) -> None:
    """A chapter's first figure is one that moves; every slider of every such figure changes it."""
    if chapter:
        first = page.locator(".bd-article").locator("dit-figure, figure, img, canvas").first
        assert first.evaluate("e => e.matches('dit-figure') || !!e.querySelector('dit-figure')")
    for figure in page.locator("dit-figure").all():
        controls = figure.locator("input[type=range], input[type=radio]").all()
        assert controls, "a figure with nothing to move"
        for control in controls:
            before = figure.inner_text(), figure.inner_html()
            if control.get_attribute("type") == "radio":
                if control.is_checked():
                    continue
                figure.locator(f"label[for={control.get_attribute('id')}]").click()
                page.evaluate(NEXT_FRAME)
                assert figure.inner_html() != before[1], "a choice that changes nothing"
            else:
                control.press("ArrowLeft" if at_end(control) else "ArrowRight")
                page.evaluate(NEXT_FRAME)
                assert figure.inner_text() != before[0], "a slider that changes no text"


def at_end(slider: Locator) -> bool:
    return slider.evaluate("slider => slider.value === slider.max")


def test_front_door_leads_to_the_book(browser: Browser, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}/index.html")
    page.wait_for_url(f"{site}/book/index.html")
    page.close()


def test_there_are_pages() -> None:
    assert PAGES, "run `make book` first"
