"""Releasing: the choice on folds, the card's statistics, and the tolerance of `evaluate`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dit_edu.lab import data, zoo
from dit_edu.lab import release as module
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.metrics import evaluate
from dit_edu.lab.recipes import RECIPES
from dit_edu.lab.release import METRICS, choose_sampling, outside_tolerance, release
from dit_edu.lab.train import run

CONFIG = {**RECIPES["digits-dit"].model, "hidden_size": 16, "depth": 1, "num_heads": 2}
RECIPE = replace(
    RECIPES["digits-dit"], name="tiny", model=CONFIG, steps=60, batch_size=16, warmup=5
)


def fold_metrics(table):
    """A stand-in for evaluate_on that looks the figures of each call up."""
    rows = iter(table)
    return lambda *arguments, **options: dict(zip(("accuracy", "fd"), next(rows), strict=True))


@pytest.fixture
def quick(monkeypatch):
    """No drawing and no training, where only the bookkeeping is looked at."""
    monkeypatch.setattr(module, "draw", lambda *arguments, **options: None)
    monkeypatch.setattr(module, "run", lambda *arguments, **options: type("T", (), {"model": None}))


@pytest.mark.parametrize(
    ("figures", "scale"),
    [
        # two folds of three settings each; the mean decides
        ([(0.98, 0.1), (0.99, 0.5), (1.0, 0.4), (0.98, 0.1), (0.99, 0.5), (1.0, 0.9)], 2.0),
        ([(0.99, 0.3), (0.99, 0.5), (1.0, 0.4), (0.99, 0.3), (0.99, 0.5), (1.0, 0.9)], 1.0),
        ([(0.90, 0.3), (0.91, 0.5), (0.9, 0.4), (0.90, 0.3), (0.98, 0.5), (0.9, 0.9)], 2.0),
    ],
)
def test_the_least_distance_among_the_accurate_wins(figures, scale, quick, monkeypatch):
    monkeypatch.setattr(module, "evaluate_on", fold_metrics(figures))
    chosen, table = choose_sampling(RECIPE, steps=(5,), scales=(1.0, 2.0, 4.0))
    assert chosen == Sampling(5, scale)
    assert [row["scale"] for row in table] == [1.0, 2.0, 4.0]
    assert table[2]["fd"] == pytest.approx(0.65)


def test_the_choice_never_sees_the_held_out_half(monkeypatch):
    digits = data.DATASETS["digits"]
    asked = []

    def load(split, **options):
        asked.append(split)
        return digits.load(split, **options)

    monkeypatch.setitem(data.DATASETS, "digits", replace(digits, load=load))
    judged = []

    def judge(samples, labels, part, rest, features, **options):
        train = digits.load("train")[0].flatten(1)
        for half in (part, rest):
            assert (torch.cdist(half[0].flatten(1), train).min(1).values == 0).all()
        assert not (torch.cdist(part[0].flatten(1), rest[0].flatten(1)) == 0).any()
        judged.append(len(samples))
        return {"accuracy": 1.0, "fd": 1.0}

    monkeypatch.setattr(module, "evaluate_on", judge)
    choose_sampling(replace(RECIPE, steps=2, warmup=0), device="cpu", steps=(2,), scales=(1.0,))
    assert set(asked) == {"train"}
    assert sum(judged) == 898


def test_a_release_ships_the_first_seed_and_reports_all(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    settings = Sampling(4, 1.5)
    monkeypatch.setattr(module, "choose_sampling", lambda recipe, **options: (settings, []))
    lines = []
    card = release(RECIPE, seeds=(5, 6), device="cpu", report=lines.append)
    model, loaded = zoo.load("tiny")
    assert loaded == card
    own = run(RECIPE, seed=5, device="cpu", progress=False).model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True))

    rows = card["metrics"]["per_seed"]
    assert [row["seed"] for row in rows] == [5, 6]
    labels = data.digits("heldout")[1]
    images = draw(model, RECIPE.process.build(), labels, settings, seed=5)
    assert outside_tolerance(evaluate(images, labels), rows[0]) == []
    for name in METRICS:
        values = [row[name] for row in rows]
        assert card["metrics"]["mean"][name] == pytest.approx(np.mean(values))
        assert card["metrics"]["sd"][name] == pytest.approx(np.std(values, ddof=1))
    assert card["sampling"] == {"steps": 4, "scale": 1.5, "sampler": "ddim"}
    assert set(card["references"]) == {"limit", "gaussian", "memoriser", "memoriser+noise"}
    assert card["history"][-1]["step"] == RECIPE.steps
    assert len(card["history"]) <= 50
    assert {"seconds", "device", "threads", "versions", "commit", "sha256"} <= card.keys()
    assert len(lines) == 3


def test_of_one_setting_nothing_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    monkeypatch.setattr(module, "choose_sampling", None)  # it would fail
    monkeypatch.setattr(module, "measure", lambda *arguments: dict.fromkeys(METRICS, 0.5))
    short = replace(RECIPE, steps=2, warmup=0)
    card = release(short, seeds=(0,), device="cpu", steps=(7,), scales=(1.5,), report=str)
    assert card["sampling"] == vars(Sampling(7, 1.5)) and card["sampling_tried"] == []


def test_the_tolerance_bites():
    card = dict(accuracy=0.99, fd=0.5, fd_ratio=1.6, precision=0.7, recall=0.5, closer=0.55)
    assert outside_tolerance(dict(card), card) == []
    assert outside_tolerance({**card, "accuracy": 0.98}, card) == ["accuracy"]
    assert outside_tolerance({**card, "fd": 0.55}, card) == ["fd"]
    assert outside_tolerance({**card, "fd": float("nan")}, card) == ["fd"]


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match="seeds"):
        release(RECIPE, seeds=())
