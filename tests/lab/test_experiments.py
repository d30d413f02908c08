"""Experiments: nothing is computed twice, nothing is lost, nothing stale is kept."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from dit_edu.lab.experiments import (
    RESULTS,
    Experiment,
    __main__,
    experiments,
    get_experiment,
    read,
    run,
    stale,
)


class Calls:
    """A cell that costs nothing, and remembers for which settings and seeds it was asked."""

    def __init__(self, strike=None):
        self.made, self.strike = [], strike

    def __call__(self, setting, seed):
        if (setting["power"], seed) == self.strike:
            os.kill(os.getpid(), signal.SIGINT)
        self.made.append((setting["power"], seed))
        return {"value": (seed + 1) ** setting["power"]}


def toy(compute=None, **changes):
    whole = Experiment(
        name="toy",
        about="powers",
        settings={"square": {"power": 2}, "cube": {"power": 3}},
        seeds=(0, 1, 2),
        compute=compute or Calls(),
    )
    return replace(whole, **changes)


def silent(text):
    pass


def finish(experiment, folder):
    return run(experiment, folder, report=silent)


ALL = [(power, seed) for seed in range(3) for power in (2, 3)]  # seed by seed


def test_every_cell_is_computed_once(tmp_path):
    calls = Calls()
    rows = finish(toy(calls), tmp_path)
    assert calls.made == ALL
    assert [(r["setting"], r["seed"], r["metrics"]["value"]) for r in rows] == [
        *(("square", s, (s + 1) ** 2) for s in range(3)),
        *(("cube", s, (s + 1) ** 3) for s in range(3)),
    ]
    assert read("toy", tmp_path) == rows
    assert finish(toy(calls), tmp_path) == rows
    assert calls.made == ALL


def test_afresh_all_are_computed_and_none_is_lost_on_the_way(tmp_path):
    old = finish(toy(), tmp_path)
    calls = Calls(strike=(3, 1))
    with pytest.raises(KeyboardInterrupt):
        run(toy(calls), tmp_path, report=silent, fresh=True)
    assert calls.made == ALL[:3]
    assert [row["metrics"] for row in read("toy", tmp_path)] == [row["metrics"] for row in old]


def test_a_row_says_where_it_comes_from(tmp_path):
    row = finish(toy(), tmp_path)[0]
    assert row["versions"]["torch"] == torch.__version__
    assert row["threads"] == torch.get_num_threads()
    assert row["seconds"] >= 0 and {"device", "commit"} <= set(row)


@pytest.mark.parametrize("at", [(2, 0), (3, 1), (3, 2)])
def test_ctrl_c_loses_at_most_the_cell_at_hand(at, tmp_path):
    """A real SIGINT inside a cell; the next start computes that cell and those after it."""
    first, second = Calls(strike=at), Calls()
    with pytest.raises(KeyboardInterrupt):
        finish(toy(first), tmp_path)
    assert first.made == ALL[: ALL.index(at)]
    if first.made:
        assert len(read("toy", tmp_path)) == len(first.made)
    rows = finish(toy(second), tmp_path)
    assert first.made + second.made == ALL
    assert [r["metrics"] for r in rows] == [r["metrics"] for r in finish(toy(), tmp_path / "new")]


def test_a_cell_that_fails_keeps_those_before_it(tmp_path):
    def fails(setting, seed):
        return {"value": 1 / (1 - seed)}

    with pytest.raises(ZeroDivisionError):
        finish(toy(fails), tmp_path)
    assert {row["seed"] for row in read("toy", tmp_path)} == {0}


def test_a_changed_definition_makes_its_cells_stale_and_no_others(tmp_path):
    finish(toy(), tmp_path)
    calls = Calls()
    changed = toy(calls, settings={"square": {"power": 2}, "cube": {"power": 4}})
    assert stale(changed, read("toy", tmp_path)) == [("cube", seed) for seed in range(3)]
    rows = finish(changed, tmp_path)
    assert calls.made == [(4, seed) for seed in range(3)]
    assert [r["metrics"]["value"] for r in rows] == [1, 4, 9, 1, 16, 81]
    assert stale(changed, rows) == []


def test_grids_grow_and_shrink(tmp_path):
    finish(toy(seeds=(0, 1)), tmp_path)
    calls = Calls()
    finish(toy(calls), tmp_path)
    assert calls.made == [(2, 2), (3, 2)]
    rows = finish(toy(settings={"cube": {"power": 3}}), tmp_path)
    assert [r["setting"] for r in rows] == ["cube"] * 3
    assert read("toy", tmp_path) == rows


def test_the_order_of_keys_defines_nothing():
    one, other = toy(settings={"a": {"x": 1, "y": [2]}}), toy(settings={"a": {"y": [2], "x": 1}})
    assert one.definition("a") == other.definition("a")
    assert one.definition("a") != toy(settings={"a": {"x": 1, "y": [3]}}).definition("a")


def test_a_row_is_a_line_of_the_file(tmp_path):
    finish(toy(), tmp_path)
    text = (tmp_path / "toy.json").read_text("utf8")
    lines = [line for line in text.splitlines() if '"seed"' in line]
    assert len(lines) == 6
    assert all(json.loads(line.rstrip(",")) for line in lines)
    assert json.loads(text)["settings"] == toy().settings


def test_a_write_that_fails_leaves_the_table_before(tmp_path, monkeypatch):
    """The rename is the last act: without it the table of the row before stands alone."""
    done, calls = os.replace, []

    def rename(source, target):
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        done(source, target)

    monkeypatch.setattr(os, "replace", rename)
    with pytest.raises(KeyboardInterrupt):
        finish(toy(), tmp_path)
    monkeypatch.undo()
    assert len(read("toy", tmp_path)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"rows"', '"lines"'),
        lambda text: text.replace('"metrics"', '"numbers"', 1),
        lambda text: text.replace('"name": "toy"', '"name": "boy"'),
    ],
    ids=["truncated", "empty", "a list", "no rows", "a row without metrics", "another's"],
)
def test_a_damaged_table_is_named_and_kept(damage, tmp_path):
    finish(toy(), tmp_path)
    path = tmp_path / "toy.json"
    path.write_text(damage(path.read_text("utf8")), "utf8")
    broken, calls = path.read_bytes(), Calls()
    with pytest.raises(ValueError, match=r"toy\.json"):
        read("toy", tmp_path)
    with pytest.raises(ValueError, match=r"toy\.json"):
        finish(toy(calls), tmp_path)
    assert (path.read_bytes(), calls.made) == (broken, [])


def test_a_metric_must_be_finite(tmp_path):
    with pytest.raises(ValueError, match=r"metric of 'toy' is not finite.*'square'"):
        finish(toy(lambda setting, seed: {"value": float("nan")}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_table_that_is_not_there_says_who_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="make experiments"):
        read("toy", tmp_path)
    with pytest.raises(ValueError, match=r"experiment='trainin' is unknown.* mean 'training'"):
        get_experiment("trainin")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "experiments", lambda: {"toy": toy()})
    monkeypatch.setattr(__main__, "run", lambda e, fresh: run(e, tmp_path, fresh=fresh))
    assert __main__.main(["toy"]) == 0
    assert "6/6 cube, seed 2" in capsys.readouterr().out
    assert __main__.main([]) == 0
    assert "toy: 6 cells are there, 0 to compute" in capsys.readouterr().out
    assert __main__.main(["--fresh", "toy"]) == 0
    assert "6/6 cube, seed 2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        __main__.main(["boy"])
    assert "unknown: boy; allowed: toy" in capsys.readouterr().err
    (tmp_path / "toy.json").write_text("?")
    assert __main__.main(["toy"]) == 2
    assert "toy.json is not a JSON file" in capsys.readouterr().err
    (tmp_path / "toy.json").unlink()
    monkeypatch.setattr(__main__, "experiments", lambda: {"toy": toy(Calls(strike=(2, 1)))})
    assert __main__.main([]) == 130
    assert "start again to go on" in capsys.readouterr().err


@pytest.mark.parametrize("name", experiments())
def test_what_is_committed_is_complete_and_current(name):
    assert get_experiment(name).name == name
    assert stale(get_experiment(name), read(name)) == []


def test_only_known_tables_are_committed():
    raced = {"bench", "bench-cuda"}  # by `make bench`
    assert {path.stem for path in RESULTS.glob("*.json")} - raced == set(experiments())
