"""What is committed in every notebook: the install cell, named kernel, alt text, no errors."""

from __future__ import annotations

import base64
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
SCRIPT = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "execute_notebooks.py")))


def notebook_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def images_without_alt(notebook: dict[str, Any]) -> list[str]:
    """Return where a picture among the outputs has no alt text, as ``cell 3, image/png``."""
    return [
        f"cell {i}, {mime}"
        for i, cell in enumerate(notebook["cells"])
        for output in cell.get("outputs", [])
        for mime in output.get("data", {})
        if mime.startswith("image/")
        and not output.get("metadata", {}).get(mime, {}).get("alt", "").strip()
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebook_id)
def test_notebook_is_as_make_notebooks_leaves_it(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source == SCRIPT.INSTALL, "run `make notebooks`"
    assert [cell.source for cell in code].count(SCRIPT.INSTALL) == 1
    assert code[0].outputs == []  # the package was there
    assert {key: notebook.metadata[key] for key in SCRIPT.KERNEL} == SCRIPT.KERNEL
    assert not any("execution" in cell.metadata for cell in code)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebook_id)
def test_every_picture_has_alt_text(path: Path) -> None:
    assert images_without_alt(json.loads(path.read_text("utf8"))) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebook_id)
def test_no_cell_ends_in_an_error_unless_it_says_so(path: Path) -> None:
    for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
        failed = [o for o in cell.get("outputs", []) if o.output_type == "error"]
        assert not failed or "raises-exception" in cell.metadata.get("tags", []), f"cell {i}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebook_id)
def test_no_cell_prints_warnings(path: Path) -> None:
    for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
        printed = [o.text for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        assert not printed, f"cell {i}: {printed[0]}"


def test_missing_alt_text_is_noticed() -> None:
    png = base64.b64encode(b"png").decode()
    bare = {"data": {"image/png": png}, "metadata": {}}
    named = {"data": {"image/png": png}, "metadata": {"image/png": {"alt": "a grid of digits"}}}
    assert images_without_alt({"cells": [{"outputs": [bare, named]}]}) == ["cell 0, image/png"]


SLIDER = """\
import ipywidgets as w

slider, stack = w.IntSlider(max=1), w.Stack([w.Label("a"), w.Label("b")], selected_index=0)
w.jslink((slider, "value"), (stack, "selected_index"))
w.VBox([slider, stack])"""


@pytest.fixture(scope="module")
def executed_twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("notebooks")
    cells = [nbformat.v4.new_markdown_cell("# A slider"), nbformat.v4.new_code_cell(SLIDER)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "one.ipynb")
    SCRIPT.execute(folder / "one.ipynb")
    shutil.copy(folder / "one.ipynb", folder / "two.ipynb")
    SCRIPT.execute(folder / "two.ipynb")
    return folder / "one.ipynb", folder / "two.ipynb"


def test_two_executions_give_the_same_bytes(executed_twice: tuple[Path, Path]) -> None:
    one, two = executed_twice
    assert one.read_bytes() == two.read_bytes()


def test_execution_keeps_the_widgets_and_their_link(executed_twice: tuple[Path, Path]) -> None:
    notebook = nbformat.read(executed_twice[0], as_version=4)
    state = notebook.metadata.widgets[SCRIPT.WIDGET_STATE].state
    models = {model.model_name for model in state.values()}
    assert {"IntSliderModel", "StackModel", "LinkModel", "VBoxModel"} <= models
    assert [view in state for view in SCRIPT.views(notebook)] == [True]


@pytest.mark.parametrize("source", ["1 / 0", "import time; time.sleep(60)"])
def test_failing_cell_leaves_the_notebook_as_it_was(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCRIPT.main.__globals__, "TIMEOUT", 3)
    path = tmp_path / "bad.ipynb"
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    assert SCRIPT.main([str(path)]) == 1
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["bad.ipynb"]
