"""The shipped feature net is the one its card describes, and can be made again."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from dit_edu.lab import features, files
from dit_edu.lab.data import digits


def test_the_shipped_net_is_what_its_card_says():
    net = features.load_features("digits-features")
    card = files.read_json(features.ZOO / "digits-features.json")
    images, labels = digits("heldout")
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert net(images).shape == (899, net.num_features) == (899, 64)
    right = (net.logits(images).argmax(1) == labels).double().mean()
    assert right == pytest.approx(card["metrics"]["accuracy"], abs=0.002) and right > 0.98
    assert 50_000 <= sum(p.numel() for p in net.parameters()) <= 100_000
    keys = "name kind config recipe seed steps device seconds versions commit sha256 metrics"
    assert set(card) == set(keys.split())
    assert card["recipe"] == json_of(features.RECIPES["digits-features"])


def json_of(recipe):
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(recipe).items()
    }


@pytest.fixture
def quick(monkeypatch):
    recipe = dataclasses.replace(features.RECIPES["digits-features"], steps=20)
    monkeypatch.setitem(features.RECIPES, "digits-features", recipe)


def test_training_repeats_itself_and_round_trips(tmp_path, quick):
    cards, threads = [], torch.get_num_threads()
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        torch.rand(len(cards) + 1)  # the state of the global generator does not matter …
        state = torch.get_rng_state()
        torch.set_num_threads(len(cards) + 1)  # … nor the number of threads,
        cards.append(features.train_features(folder=tmp_path / part))
        assert torch.equal(state, torch.get_rng_state())  # and neither is changed
        assert torch.get_num_threads() == len(cards)
    torch.set_num_threads(threads)
    assert cards[0]["sha256"] == cards[1]["sha256"]
    assert cards[0]["steps"] == 20 and cards[0]["metrics"]["accuracy"] > 0.2
    net = features.load_features(folder=tmp_path / "a")
    images, labels = digits("heldout")
    right = (net.logits(images).argmax(1) == labels).float().mean().item()
    assert right == cards[0]["metrics"]["accuracy"]


def test_files_that_are_not_ours_are_refused(tmp_path):
    for path in features.ZOO.glob("digits-features.*"):
        shutil.copy(path, tmp_path)
    weights = tmp_path / "digits-features.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="truncated"):
        features.load_features(folder=tmp_path)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="not the file its card describes"):
        features.load_features(folder=tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="digits-features"):
        features.load_features(folder=tmp_path)
    files.write_json(tmp_path / "digits-features.json", {"kind": "model"})
    with pytest.raises(ValueError, match="card of a 'model', not of 'features'"):
        features.load_features(folder=tmp_path)
    for unknown in (features.load_features, features.train_features):
        with pytest.raises(ValueError, match="Did you mean 'digits-features'"):
            unknown("digit-features")


def test_shifts_are_whole_pixels_each_way():
    images = digits("train")[0][:400]
    torch.manual_seed(0)
    moved = features._shifted(images, 1)
    seen = set()
    wide = torch.full((400, 1, 10, 10), -1.0)
    wide[:, :, 1:9, 1:9] = images
    for image, padded in zip(moved, wide, strict=True):
        windows = {
            (dy, dx)
            for dy in range(3)
            for dx in range(3)
            if torch.equal(image, padded[:, dy : dy + 8, dx : dx + 8])
        }
        assert windows
        seen |= windows
    assert len(seen) == 9
    assert torch.equal(features._shifted(images, 0), images)
