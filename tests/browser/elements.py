"""What the tests of the page elements share: a page that holds one, and a visit to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "book" / "_static"
AXE = ROOT / "scripts" / "vendor" / "node_modules" / "axe-core" / "axe.min.js"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
NEXT_FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
WAIT_MS = 60_000

# A page in a subfolder, as Sphinx writes it, with the theme's variables.
PAGE = """<!doctype html><html lang="en" data-content_root="../" data-theme="light"><head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Figures</title>
<style>
html { --pst-color-text-base: #222832; --pst-color-text-muted: #48566b; --pst-color-border: #c9c9c9;
  --pst-color-background: #ffffff; --pst-color-primary: #176de8; }
html[data-theme="dark"] { --pst-color-text-base: #ced6dd; --pst-color-text-muted: #9ca4af;
  --pst-color-border: #48566b; --pst-color-background: #14181e; --pst-color-primary: #528fe4; }
body { background: var(--pst-color-background); color: var(--pst-color-text-base); margin: 8px; }
main { max-width: 900px; margin: auto; }
</style>
<link rel="stylesheet" href="../_static/dit-figure.css">SCRIPTS</head>
<body><main><h1>Figures</h1>BODY</main></body></html>"""


def page_with(body: str, scripts: Sequence[str]) -> str:
    """A page for the folder beside ``_static/``, with these scripts of it."""
    tags = "".join(f'<script defer src="../_static/{name}"></script>' for name in scripts)
    return PAGE.replace("SCRIPTS", tags).replace("BODY", body)


@contextmanager
def opened(
    browser: Browser, url: str, element: str, *, ready: bool = True, **options: object
) -> Iterator[tuple[Page, Locator]]:
    """A page and its element; on leaving, nothing has gone wrong in it."""
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    if ready:
        page.wait_for_selector(f'{element}[data-ready="1"]')
    yield page, page.locator(element)
    context.close()
    assert not errors


# What can be seen of each panel: its pixels, its marks and its words.
SEEN = """figure => [...figure.querySelectorAll(".dit-panel")].map(panel =>
  [...panel.querySelectorAll("canvas")].map(c => c.toDataURL()).join() + panel.innerHTML)"""


def seen(figure: Locator) -> list[str]:
    """What can be seen of each panel of a figure, from the next frame on."""
    figure.page.evaluate(NEXT_FRAME)
    return figure.evaluate(SEEN)
