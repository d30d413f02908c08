"""The command line, doing what it is asked. What it refuses is in tests/test_bad_input.py."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dit_edu.lab import release as release_module
from dit_edu.lab import zoo
from dit_edu.lab.checkpoint import checkpoint_path
from dit_edu.lab.cli import main
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.files import read_safetensors
from dit_edu.lab.recipes import RECIPES, Process
from dit_edu.lab.train import run, train

CONFIG = {**RECIPES["digits-dit"].model, "hidden_size": 16, "depth": 1, "num_heads": 2}
TINY = replace(RECIPES["digits-dit"], name="tiny", about="a test", model=CONFIG, steps=3, warmup=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short training run."""
    out = tmp_path_factory.mktemp("trained")
    run(TINY, out=out, device="cpu", progress=False)
    return out


def test_list_names_every_model_and_recipe(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        *(["model", name] for name in zoo.names()),
        *(["recipe", name] for name in RECIPES),
    ]


def test_train_is_the_training_loop(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, steps=9))
    out = tmp_path / "runs" / "one"
    arguments = ["train", "tiny", "--out", str(out), "--device", "cpu", "--steps", "3"]
    assert main(arguments) == 0
    assert checkpoint_path(out).read_bytes() == checkpoint_path(trained).read_bytes()
    assert str(out) in capsys.readouterr().out
    assert main([*arguments, "--resume"]) == 0  # there is nothing left to do


def test_npz_holds_images_and_labels(trained, tmp_path):
    file = tmp_path / "x.npz"
    options = ["--n", "13", "--scale", "2", "--steps", "3", "--seed", "4", "--sampler", "dpm++"]
    assert main(["sample", str(trained), "--out", str(file), *options]) == 0
    with np.load(file) as content:  # allow_pickle is off
        images, labels = content["images"], content["labels"]
    assert images.dtype == np.float32
    assert images.shape == (13, 1, 8, 8)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    model, _ = zoo.load(trained)
    settings = Sampling(3, 2.0, "dpm++")
    expected = draw(model, TINY.process.build(), torch.from_numpy(labels), settings, seed=4)
    np.testing.assert_array_equal(images, ((expected + 1) / 2).numpy())
    assert images.min() >= 0
    assert images.max() <= 1


def test_a_flow_is_trained_and_drawn(tmp_path, capsys):
    """From a recipe to images, with the sampler that a flow has unless one says otherwise."""
    flow = replace(TINY, process=Process(schedule="flow"))
    run(flow, out=tmp_path / "run", device="cpu", progress=False)
    common = ["sample", str(tmp_path / "run"), "--n", "2", "--steps", "3"]
    for options, sampler in (([], "euler"), (["--sampler", "heun"], "heun")):
        file = tmp_path / f"{sampler}.npz"
        assert main([*common, "--out", str(file), *options]) == 0
        assert f"Sampling(steps=3, scale=1.0, sampler='{sampler}')" in capsys.readouterr().out
        assert np.isfinite(np.load(file)["images"]).all()
    assert main([*common, "--out", str(tmp_path / "x.npz"), "--sampler", "ddpm"]) == 2
    assert "sampler='ddpm' is unknown; allowed: euler, heun" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_one_class_for_all(trained, tmp_path):
    file = tmp_path / "x.npz"
    options = ["--n", "3", "--class", "7", "--steps", "2"]
    assert main(["sample", str(trained), "--out", str(file), *options]) == 0
    assert np.load(file)["labels"].tolist() == [7, 7, 7]


def test_png_is_a_picture(trained, tmp_path):
    file = tmp_path / "x.png"
    assert main(["sample", str(trained), "--out", str(file), "--n", "4", "--steps", "2"]) == 0
    picture = Image.open(io.BytesIO(file.read_bytes()))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (68, 68))


def test_settings_not_given_are_the_cards(trained, tmp_path, monkeypatch, capsys):
    model, card = zoo.load(trained)
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    sampling = {"steps": 4, "scale": 1.25, "sampler": "ddpm"}
    zoo.save("tiny", model, {**card, "sampling": sampling})
    file = str(tmp_path / "x.npz")
    assert main(["sample", "tiny", "--out", file, "--n", "2", "--scale", "3"]) == 0
    assert "Sampling(steps=4, scale=3.0, sampler='ddpm')" in capsys.readouterr().out


def test_evaluate_agrees_with_the_card_or_says_where_not(trained, tmp_path, monkeypatch, capsys):
    model, card = zoo.load(trained)
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    sampling = Sampling(2, 1.0)
    now = release_module.measure(model, TINY, sampling, 0)
    nothing = dict.fromkeys(release_module.METRICS, 0.0)
    metrics = {"per_seed": [{"seed": 0, **now}], "mean": nothing, "sd": nothing}
    zoo.save("tiny", model, {**card, "sampling": vars(sampling), "metrics": metrics})
    assert main(["evaluate", "tiny"]) == 0
    printed = capsys.readouterr().out
    for title in ("now", "card", "limit", "gaussian", "memoriser"):
        assert re.search(rf"^{title} .*\d\.\d\d\d", printed, re.M)
    assert "reproduced" in printed

    metrics["per_seed"][0] = {**now, "accuracy": now["accuracy"] + 0.1, "recall": 0.9}
    zoo.save("tiny", model, {**card, "sampling": vars(sampling), "metrics": metrics})
    assert main(["evaluate", "tiny"]) == 1
    assert "differs from the card: accuracy, recall" in capsys.readouterr().out


def test_evaluate_of_a_run_has_no_card(trained, monkeypatch, capsys):
    figures = {"n": 899, **dict.fromkeys(release_module.METRICS, 0.5)}
    monkeypatch.setattr(release_module, "measure", lambda *arguments: figures)
    assert main(["evaluate", str(trained)]) == 0
    assert "no card" in capsys.readouterr().out


def test_release_ships_the_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    chosen = Sampling(2), []
    monkeypatch.setattr(release_module, "choose_sampling", lambda recipe, **options: chosen)
    assert main(["release", "tiny", "--device", "cpu", "--seeds", "2"]) == 0
    assert zoo.names() == ["tiny"]
    assert len(zoo.card("tiny")["seconds_per_seed"]) == 2
    assert "tiny" in capsys.readouterr().out


# ---------------------------------------------------------------------- as a process


def test_help_imports_nothing_heavy(root):
    code = "import sys; from dit_edu.lab.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "evaluate" in done.stdout
    assert not {"torch", "numpy", "matplotlib", "accelerate"} & set(done.stdout.split())


LONG = """
import sys
from dataclasses import replace
from dit_edu.lab.cli import main
from dit_edu.lab.recipes import RECIPES, Process
config = {**RECIPES["digits-dit"].model, "hidden_size": 8, "depth": 1, "num_heads": 1}
RECIPES["long"] = replace(
    RECIPES["digits-dit"], name="long", model=config, batch_size=2, steps=400, checkpoint_every=20
)
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_says_how_to_go_on_and_going_on_works(root, tmp_path):
    out = tmp_path / "a run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}

    def start(*arguments):
        command = [sys.executable, "-c", LONG, *arguments]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def step():
        return read_safetensors(checkpoint_path(out))[1]["step"]

    process = start("train", "long", "--out", str(out), "--device", "cpu")
    deadline = time.monotonic() + 60
    while not (checkpoint_path(out).exists() and step() >= 20):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in message
    assert 20 <= step() < 400
    advice = re.search(r"go on with: python -m dit_edu (.*)", message)[1]
    resumed = start(*shlex.split(advice))
    resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert step() == 400


def test_a_run_of_no_step_can_be_drawn_from(tmp_path):
    train(TINY, out=tmp_path, device="cpu")
    file = tmp_path / "x.npz"
    assert main(["sample", str(tmp_path), "--out", str(file), "--n", "1", "--steps", "1"]) == 0
