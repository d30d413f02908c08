"""One browser and one web server per worker; a report of what the pages weigh."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium. Without one, fail where CI is set; elsewhere skip."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        message = f"NO BROWSER: none of {', '.join(BROWSERS)} is on PATH; the pages are untested."
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield chromium
        chromium.close()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and keeps the terminal free of them."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], str]]:
    """Start a local server of a folder, and return its address."""
    with ExitStack() as servers:

        def start(folder: Path) -> str:
            handler = partial(QuietHandler, directory=str(folder))
            server = servers.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.fixture(scope="session")
def site(serve: Callable[[Path], str]) -> str:
    """The address of a local server of the built book."""
    return serve(HTML)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the heaviest pages, all of them under -v."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
    weights = {
        name.removeprefix("weight "): size
        for report in reports
        for name, size in getattr(report, "user_properties", [])
        if name.startswith("weight ")
    }
    heaviest = sorted(weights, key=weights.__getitem__, reverse=True)
    shown = heaviest if terminalreporter.verbosity > 0 else heaviest[:5]
    if shown:
        terminalreporter.section("page weights: compressed as sent, without MathJax")
    for page in shown:
        terminalreporter.write_line(f"{weights[page] / 1e6:5.2f} MB  {page}")
