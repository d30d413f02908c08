"""The benchmark's harness on a tiny model, the file that it wrote, and what an import costs."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dit_edu.dit import PRESETS
from dit_edu.lab.experiments import RESULTS
from dit_edu.lab.files import read_json

ROOT = Path(__file__).resolve().parents[1]
SPEED = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "speed.py")))
TINY = dict(input_size=8, hidden_size=16, depth=1, num_heads=2, num_classes=5)
FEW = {"forward": 3, "training step": 2, "sampling": 2}
ROW = {"case", "precision", "compiled", "rounds", "seconds", "ratio", "ratio_quartiles"}
ROW |= {"ratio_of_minima", "difference"}


def test_the_harness_runs_every_case_in_every_mode():
    lines = []
    modes = (("float32", None), ("bfloat16", "eager"))  # a backend that compiles nothing
    threads = torch.get_num_threads()
    found = SPEED.bench(TINY, steps=4, rounds=FEW, modes=modes, report=lines.append)
    assert torch.get_num_threads() == threads == found["threads"]
    assert {"device", "versions", "commit", "settings", "params"} <= found.keys()
    assert [(row["case"], row["compiled"]) for row in found["rows"]] == [
        (case, mode) for _, mode in modes for case in ("forward", "sampling", "training step")
    ]
    assert len(lines) == len(found["rows"])
    for row in found["rows"]:
        assert row.keys() == ROW and row["rounds"] == FEW[row["case"]]
        low, high = row["ratio_quartiles"]
        assert 0 < low <= row["ratio"] <= high
        assert set(row["seconds"]) == {"dit_edu", "diffusers"}
    json.dumps(found, allow_nan=False)


def test_both_do_the_same_work():
    """Same function and same update: in evaluation mode no label is dropped, and losses agree."""
    models = SPEED.contestants(TINY, "cpu")
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=g)
    batch = (x, torch.tensor([5, 900]), torch.tensor([0, 4]))
    losses = {name: [] for name in models}
    for name, call in SPEED.training_calls({k: m.eval() for k, m in models.items()}, batch).items():
        for _ in range(3):
            torch.manual_seed(0)  # of the noise
            losses[name].append(call())
    assert losses["dit_edu"][0] > losses["dit_edu"][-1]  # it learns
    # the copies of the embedders take steps of their own from the second update on
    torch.testing.assert_close(losses["dit_edu"][:2], losses["diffusers"][:2], rtol=1e-3, atol=1e-5)


def test_a_race_of_two_tasks_is_void():
    one, other = torch.ones(3), torch.ones(3) * 1.01
    calls = {"dit_edu": lambda: one, "diffusers": lambda: other}
    assert SPEED.check_equal("forward", calls, 0.05) == pytest.approx(0.0099, abs=1e-4)
    with pytest.raises(RuntimeError, match=r"forward: the answers differ by 0\.0099"):
        SPEED.check_equal("forward", calls, 1e-3)
    with pytest.raises(RuntimeError, match="nan"):
        SPEED.check_equal("forward", calls | {"dit_edu": lambda: one * torch.nan}, 1e-3)


def test_a_race_is_fair():
    """They alternate in who begins, warm-up is not counted, and the clock is read around a call."""
    now, order = [0.0], []

    def call(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        return run

    calls = {"dit_edu": call("dit_edu", 2.0), "diffusers": call("diffusers", 4.0)}
    found = SPEED.race(calls, 5, clock=lambda: now[0])
    assert order[::2].count("dit_edu") == order[::2].count("diffusers") == 3  # who begins a round
    assert len(order) == 2 * (5 + SPEED.WARM_UP)
    assert found == {
        "rounds": 5, "seconds": {"dit_edu": 2, "diffusers": 4},
        "ratio": 0.5, "ratio_quartiles": [0.5, 0.5], "ratio_of_minima": 0.5,
    }  # fmt: skip


def test_main_writes_a_file(tmp_path, monkeypatch):
    def quick(settings, **options):
        return {"settings": settings, "options": sorted(options), "device": options["device"]}

    monkeypatch.setitem(SPEED.main.__globals__, "bench", quick)
    SPEED.main(["--device", "cpu", "--out", str(tmp_path / "bench.json")])
    found = read_json(tmp_path / "bench.json")
    assert found["device"] == "cpu"
    assert found["settings"] == {"input_size": 32, **PRESETS["DiT-S/2"]}


def test_the_committed_file_is_that_of_the_stated_race_and_meets_the_target():
    found = read_json(RESULTS / "bench.json")
    assert found["settings"] == {"input_size": 32, **PRESETS["DiT-S/2"]}
    assert (found["batch_size"], found["steps"], found["threads"]) == (2, 50, 1)
    embedders = 256 * 384 + 384 + 384 * 384 + 384 + 1001 * 384  # a copy in every block of diffusers
    assert found["params"] == {"dit_edu": 32_865_056, "diffusers": 32_865_056 + 11 * embedders}
    rows = {row["case"]: row for row in found["rows"] if row["precision"] == "float32"}
    assert set(rows) == set(SPEED.ROUNDS)
    for case in ("forward", "training step"):
        assert rows[case]["rounds"] == SPEED.ROUNDS[case]
        assert rows[case]["ratio"] <= 1.03


IMPORT = """
import time, torch
start = time.process_time()
import dit_edu
{modules}
import sys
print(time.process_time() - start, *sys.modules)
"""


def test_import_costs_little_beyond_torch():
    """All that the book teaches, in at most 0.2 s of processor time; the laboratory stays out."""
    taught = sorted(p.stem for p in (ROOT / "dit_edu").glob("[a-z]*.py"))
    code = IMPORT.format(modules="\n".join(f"import dit_edu.{name}" for name in taught))
    for _ in range(3):  # a first run may have to read or to compile files
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        seconds, *loaded = run.stdout.decode().split()
        if float(seconds) <= 0.2:
            break
    assert float(seconds) <= 0.2
    heavy = {"diffusers", "accelerate", "matplotlib", "sklearn", "scipy", "torchmetrics", "PIL"}
    assert not heavy & set(loaded) and "dit_edu.lab" not in loaded
