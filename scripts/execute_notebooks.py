"""Execute notebooks in place so that two runs give the same bytes.

What would differ without meaning anything is left out or renamed: timings, the versions of kernel
and Python, the random ids of widgets. A notebook whose cell fails is left as it was.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LINKS = {"LinkModel", "DirectionalLinkModel"}  # tie sliders to pictures; no view refers to them
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
TIMEOUT = 120  # seconds a cell may take

# The first code cell of every notebook: does nothing where the package is installed.
INSTALL_ID = "install"
INSTALL = """\
import importlib.util

if importlib.util.find_spec("dit_edu") is None:  # on Colab or Binder
    %pip install --quiet "git+https://github.com/dit-edu/diffusion-transformers\""""


def put_install_cell(notebook: NotebookNode) -> None:
    """Make ``INSTALL`` the first code cell, folded on the rendered page."""
    old = [c for c in notebook.cells if c.get("id") == INSTALL_ID or c.source == INSTALL]
    cells = [cell for cell in notebook.cells if cell not in old]
    cell = nbformat.v4.new_code_cell(INSTALL, id=INSTALL_ID, metadata={"tags": ["hide-cell"]})
    first = next((i for i, c in enumerate(cells) if c.cell_type == "code"), len(cells))
    notebook.cells = [*cells[:first], cell, *cells[first:]]


def referred(model: dict) -> list[str]:
    """Return the ids of the widgets that a widget's state refers to, in order."""
    return re.findall(r"IPY_MODEL_([0-9a-f]{32})", json.dumps(model["state"], sort_keys=True))


def views(notebook: NotebookNode) -> Iterator[str]:
    """Yield the ids of the widgets shown, in the order of the cells."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if view := output.get("data", {}).get(WIDGET_VIEW):
                yield view["model_id"]


def rename_widgets(notebook: NotebookNode) -> NotebookNode:
    """Drop the widgets that nothing shown refers to; number the others in order of appearance."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    order: dict[str, None] = {}

    def walk(model_id: str) -> None:
        if model_id in state and model_id not in order:
            order[model_id] = None
            for inner in referred(state[model_id]):
                walk(inner)

    for model_id in views(notebook):
        walk(model_id)
    position = {model_id: str(i) for i, model_id in enumerate(order)}
    links = [i for i, model in state.items() if model["model_name"] in LINKS]
    for model_id in sorted(links, key=lambda i: [position.get(r, "") for r in referred(state[i])]):
        walk(model_id)
    for model_id in [i for i in state if i not in order]:
        del state[model_id]
    if not state:
        notebook.metadata.pop("widgets", None)
    names = {old: uuid.uuid5(uuid.NAMESPACE_OID, str(i)).hex for i, old in enumerate(order)}
    model_id = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
    text = model_id.sub(lambda m: names.get(m[0], m[0]), json.dumps(notebook))
    return nbformat.from_dict(json.loads(text))


def execute(path: Path) -> None:
    """Execute one notebook and write it back."""
    notebook = nbformat.read(path, as_version=4)
    put_install_cell(notebook)
    for i, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        cell.setdefault("id", f"cell-{i}")
    notebook.metadata = nbformat.from_dict(KERNEL)
    NotebookClient(
        notebook,
        timeout=TIMEOUT,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    notebook.metadata.update(nbformat.from_dict(KERNEL))
    notebook = rename_widgets(notebook)
    nbformat.validate(notebook)
    scratch = path.with_suffix(".tmp")
    nbformat.write(notebook, scratch)
    os.replace(scratch, path)


def main(paths: list[str]) -> int:
    failed = 0
    for path in paths:
        try:
            execute(Path(path))
            print(f"{path}: executed")
        except (CellExecutionError, CellTimeoutError) as error:
            failed += 1
            print(f"{path}: unchanged, a cell failed\n{error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
