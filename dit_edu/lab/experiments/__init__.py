"""Experiments: a grid of settings and seeds, each cell computed once and kept in a file.

The table of the experiment NAME is ``results/NAME.json``. A cell's row is written as soon as it is
computed, atomically, so Ctrl-C loses at most the cell at hand, and the next start goes on with the
missing ones. Every row carries the fingerprint of what defined it: where a setting has changed, its
rows are stale and are computed again; the others stay.

One module of experiments per chapter; ``python -m dit_edu.lab.experiments NAME`` runs one.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit_edu._checks import check_choice
from dit_edu.lab.devices import device_name
from dit_edu.lab.files import atomic_write, provenance, read_json

CHAPTERS = (
    "diffusion",
    "likelihood",
    "flow",
    "sampling",
    "patchify",
    "attention",
    "noise_attention",
    "training",
    "sequence_loss",
    "conditioning",
    "guidance",
    "scaling",
    "latents",
    "multiscale",
    "unet",
    "text",
    "own_data",
    "factorized",
    "dynamic",
    "stages",
    "deployment",
    "hidit",
    "router",
    "experts",
    "depth",
    "modes",
    "frontier",
    "landscape",
    "timestep",
    "conditions",
    "regimes",
    "explorer",
    "films",
    "video",
)
TREE = Path(__file__).resolve().parents[3]
# Where the tables lie, in a clone of the book's repository or where pip put them.
RESULTS = (
    TREE / "results"
    if (TREE / "pyproject.toml").is_file()
    else Path(sysconfig.get_path("data"), "share", "dit-edu", "results")
)
ROW = {"setting", "seed", "definition", "metrics", "seconds", "device", "threads"}
ROW |= {"versions", "commit"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A named grid of cells, one for each setting and seed.

    Args:
        name: of the experiment and its file.
        about: one line for the reader.
        settings: what is varied: by name, all that defines a cell but its seed, as JSON types.
        seeds: shared by all settings, so that these can be compared seed by seed.
        compute: ``compute(settings[name], seed)`` does the work of a cell and returns its metrics,
            a dictionary of finite JSON values (with the executed MACs where settings differ in
            work).
    """

    name: str
    about: str
    settings: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    compute: Callable[[Mapping[str, Any], int], Mapping[str, Any]]

    def cells(self) -> Iterator[tuple[str, int]]:
        """Setting and seed of every cell, seed by seed, so that settings share what time brings."""
        return ((setting, seed) for seed in self.seeds for setting in self.settings)

    def definition(self, setting: str) -> str:
        """The fingerprint of a setting: another one for any other definition."""
        text = json.dumps(self.settings[setting], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def experiments() -> dict[str, Experiment]:
    """Every experiment by name, in the order of the book."""
    found: dict[str, Experiment] = {}
    for chapter in CHAPTERS:
        module = importlib.import_module(f"{__name__}.{chapter}")
        found |= {experiment.name: experiment for experiment in module.EXPERIMENTS}
    return found


def get_experiment(name: str) -> Experiment:
    """An experiment by name.

    Raises:
        ValueError: the name is unknown; the message names the nearest.
    """
    known = experiments()
    return known[check_choice("experiment", name, known)]


def run(
    experiment: Experiment,
    folder: Path = RESULTS,
    report: Callable[[str], None] = print,
    *,
    fresh: bool = False,
) -> list[Row]:
    """Compute the cells that are missing or stale, and write each as soon as it is done.

    Args:
        experiment: what to compute.
        folder: where its table lies or will lie; made if need be.
        report: called with a line of text for each cell.
        fresh: compute those that are there again; each stays until it is replaced.

    Returns:
        All rows, setting by setting. Beside its ``metrics``, a row has ``setting``, ``seed``,
        ``definition`` (the fingerprint), ``seconds``, ``device``, ``threads``, ``versions`` and
        ``commit``.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file is damaged (it stays as it is), or a metric is not finite.
    """
    path = Path(folder) / f"{experiment.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = _current(experiment, read(experiment.name, folder) if path.exists() else [])
    missing = [cell for cell in experiment.cells() if fresh or cell not in kept]
    report(f"{experiment.name}: {len(kept)} cells are there, {len(missing)} to compute")
    origin = {"device": device_name("cpu"), "threads": torch.get_num_threads(), **provenance()}
    for done, (setting, seed) in enumerate(missing, 1):
        start = time.perf_counter()
        metrics = dict(experiment.compute(experiment.settings[setting], seed))
        kept[setting, seed] = {
            "setting": setting,
            "seed": seed,
            "definition": experiment.definition(setting),
            "metrics": metrics,
            "seconds": round(time.perf_counter() - start, 2),
            **origin,
        }
        _write(path, experiment, _ordered(experiment, kept))
        report(
            f"{done}/{len(missing)} {setting}, seed {seed}: {kept[setting, seed]['seconds']:.1f} s"
        )
    if not missing:
        _write(path, experiment, _ordered(experiment, kept))  # rows of dropped settings go
    return _ordered(experiment, kept)


def read(name: str, folder: Path = RESULTS) -> list[Row]:
    """The rows of an experiment's table, as :func:`run` wrote them.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the file is damaged; the message names it.
    """
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(2, f"no file {path}; `make experiments` writes it")
    content = read_json(path)
    rows = content.get("rows") if isinstance(content, dict) else None
    whole = isinstance(rows, list) and all(isinstance(r, dict) and r.keys() >= ROW for r in rows)
    if not whole or content.get("name") != name:
        raise ValueError(
            f"{path} is not the table of the experiment {name!r}: rows or their fields are missing."
        )
    return rows


def stale(experiment: Experiment, rows: Sequence[Row]) -> list[tuple[str, int]]:
    """The cells of an experiment that ``rows`` lack, or hold as they were defined earlier."""
    kept = _current(experiment, rows)
    return [cell for cell in experiment.cells() if cell not in kept]


def _current(experiment: Experiment, rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    wanted = {(s, seed): experiment.definition(s) for s, seed in experiment.cells()}
    cells = {(row["setting"], row["seed"]): row for row in rows}
    return {cell: row for cell, row in cells.items() if wanted.get(cell) == row["definition"]}


def _ordered(experiment: Experiment, rows: Mapping[tuple[str, int], Row]) -> list[Row]:
    cells = ((setting, seed) for setting in experiment.settings for seed in experiment.seeds)
    return [rows[cell] for cell in cells if cell in rows]


def _write(path: Path, experiment: Experiment, rows: Sequence[Row]) -> None:
    """JSON with a line for each setting and each row, so that differences show whole cells."""
    settings = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in experiment.settings.items()]
    try:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    except ValueError as error:
        raise ValueError(f"a metric of {experiment.name!r} is not finite: {rows[-1]}") from error
    with atomic_write(path, "w") as file:
        file.write(f'{{\n"name": {json.dumps(experiment.name)},\n')
        file.write(f'"about": {json.dumps(experiment.about, ensure_ascii=False)},\n')
        file.write('"settings": {\n' + ",\n".join(settings) + "\n},\n")
        file.write('"rows": [\n' + ",\n".join(lines) + "\n]\n}\n")
