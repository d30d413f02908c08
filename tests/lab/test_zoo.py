"""The zoo: what was saved comes back, and nothing else passes for it."""

import errno
import json
import os
from dataclasses import replace

import pytest
import torch

from dit_edu.lab import zoo
from dit_edu.lab.checkpoint import checkpoint_path
from dit_edu.lab.files import write_safetensors
from dit_edu.lab.recipes import RECIPES
from dit_edu.lab.train import run, train

CONFIG = {**RECIPES["digits-dit"].model, "hidden_size": 16, "depth": 1, "num_heads": 2}
RECIPE = replace(RECIPES["digits-dit"], name="tiny", model=CONFIG, steps=2, batch_size=8, warmup=0)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty zoo."""
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    return tmp_path


def save_one(name="tiny", seed=0):
    torch.manual_seed(seed)
    model = RECIPE.build_model()
    torch.nn.init.normal_(model.final_layer.linear.weight)
    zoo.save(name, model, {"kind": "DiT", "config": CONFIG, "recipe": RECIPE.as_dict()})
    return model


def answer(model):
    x = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    with torch.no_grad():
        return model(x, torch.tensor([5, 900]), torch.tensor([3, 10]))


def test_what_was_saved_comes_back(shelf):
    model = save_one()
    before = torch.get_rng_state()
    loaded, card = zoo.load("tiny")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(answer(loaded), answer(model.eval()))
    assert not loaded.training
    assert zoo.names() == ["tiny"]
    assert card == zoo.card("tiny")
    assert card["config"] == CONFIG
    assert sorted(path.name for path in shelf.iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_every_shipped_model_loads():
    for name in zoo.names():
        model, card = zoo.load(name)
        assert card["name"] == name
        assert not model.training
        assert {"kind", "config", "recipe", "seed", "device", "seconds", "versions"} <= card.keys()


def test_an_unknown_name_names_the_nearest(shelf):
    save_one("digits-dit")
    with pytest.raises(ValueError, match=r"name='digit-dit' is unknown.*Did you mean 'digits-dit'"):
        zoo.load("digit-dit")
    with pytest.raises(ValueError, match=r"there is no file .*runs.nothing"):
        zoo.load("runs/nothing")


def test_other_weights_than_the_cards_are_refused(shelf):
    save_one("one", seed=1)
    save_one("two", seed=2)
    os.replace(shelf / "two.safetensors", shelf / "one.safetensors")
    with pytest.raises(ValueError, match="not the file its card describes"):
        zoo.load("one")


def test_truncated_weights_are_refused(shelf):
    save_one()
    path = shelf / "tiny.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"tiny.safetensors is truncated"):
        zoo.load("tiny")


def test_a_card_that_does_not_fit_its_weights_is_refused(shelf):
    save_one()
    path = shelf / "tiny.json"
    card = json.loads(path.read_text())
    card["config"]["depth"] = 2
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"does not fit the model: it lacks 'blocks\.1\."):
        zoo.load("tiny")
    card["kind"] = "DTI"
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match="kind='DTI' is unknown"):
        zoo.load("tiny")


def test_a_run_loads_by_folder_and_by_file_and_gives_its_average(tmp_path):
    result = run(RECIPE, seed=3, out=tmp_path, device="cpu", progress=False)
    for path in (tmp_path, checkpoint_path(tmp_path)):
        model, card = zoo.load(path)
        assert torch.equal(answer(model), answer(result.model))
        assert (card["name"], card["seed"], card["steps"]) == ("tiny", 3, 2)
        assert card["recipe"] == RECIPE.as_dict()


def test_ones_own_weights_file_loads(shelf, tmp_path):
    model = save_one()
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes((shelf / "tiny.safetensors").read_bytes())
    loaded, card = zoo.load(copy)
    assert torch.equal(answer(loaded), answer(model.eval()))
    assert card["recipe"] == RECIPE.as_dict()


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    write_safetensors(path, {"weight": torch.zeros(2)}, {"who": "someone else"})
    with pytest.raises(ValueError, match="no model of dit_edu"):
        zoo.load(path)
    path.write_bytes(b"PK not weights at all")
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        zoo.load(path)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_full_disk_changes_nothing(fails_at, shelf, monkeypatch):
    old = save_one(seed=0).eval()
    sync, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == fails_at:  # 1 writes the weights, 2 the card
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_one(seed=1)
    assert torch.equal(answer(zoo.load("tiny")[0]), answer(old))
    assert sorted(path.name for path in shelf.iterdir()) == ["tiny.json", "tiny.safetensors"]


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "a b"])
def test_a_bad_name_is_refused(name, shelf):
    with pytest.raises(ValueError, match="name="):
        zoo.save(name, RECIPE.build_model(), {"kind": "DiT", "config": CONFIG})


def test_a_checkpoint_of_no_step_yet_loads(tmp_path):
    train(RECIPE, out=tmp_path, device="cpu")
    assert zoo.load(tmp_path)[1]["steps"] == 0


def test_digits_dit_is_as_good_as_the_book_says():
    """The figures of its card, mean of three seeds, beside those who learn nothing."""
    card = zoo.card("digits-dit")
    mean, references = card["metrics"]["mean"], card["references"]
    assert len(card["metrics"]["per_seed"]) == 3
    assert mean["accuracy"] >= 0.99 and mean["closer"] <= 0.60
    assert mean["fd_ratio"] <= 1.7 and mean["fd"] < references["gaussian"]["fd"]
    assert card["device"] and max(card["seconds_per_seed"]) <= 180 and card["threads"] <= 2
