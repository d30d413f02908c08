"""Bad input at the command line: one line that names it, exit code 2, nothing lost."""

import errno
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dit_edu.lab import release as release_module
from dit_edu.lab import zoo
from dit_edu.lab.checkpoint import checkpoint_path
from dit_edu.lab.cli import main
from dit_edu.lab.draw import Sampling
from dit_edu.lab.files import read_safetensors, write_safetensors
from dit_edu.lab.recipes import RECIPES
from dit_edu.lab.train import train

CONFIG = {**RECIPES["digits-dit"].model, "hidden_size": 16, "depth": 1, "num_heads": 2}
TINY = replace(RECIPES["digits-dit"], name="tiny", model=CONFIG, steps=4, warmup=0, batch_size=8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a run in ``run``, and the recipe ``tiny``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    train(TINY, out="run", device="cpu")
    (tmp_path / "file").write_text("not a folder")
    return tmp_path


def refusal(arguments, capsys, begun=False):
    """The one line that ``arguments`` are refused with; if work has begun, after its bar."""
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    *bar, line = printed.err.splitlines()
    assert begun or not bar
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("", ["Missing command"]),
        ("trian tiny", ["No such command 'trian'"]),
        ("train digits-dti", ["recipe='digits-dti' is unknown", "Did you mean 'digits-dit'?"]),
        ("train tiny --seed x", ["--seed", "integer"]),
        ("train tiny --seed -1", ["seed=-1", "allowed: an int >= 0"]),
        ("train tiny --steps 0", ["steps=0", "int >= 1"]),
        ("train tiny --device gpu", ["device='gpu' is unknown", "auto, cpu, cuda, mps"]),
        ("train tiny --out run", ["out='run' already holds a checkpoint", "resume"]),
        ("train tiny --out nowhere --resume", ["no file", "nowhere"]),
        ("train tiny --out run --resume --steps 3", ["another recipe: steps: 3 against 4"]),
        ("train tiny --out run --resume --seed 1", ["another run: seed: 1 against 0"]),
        ("train tiny --out file", ["file"]),
        ("train tiny --out file/below", ["file"]),
        ("sample run", ["--out"]),
        ("sample digits-fetures --out x.npz", ["is unknown", "Did you mean 'digits-features'?"]),
        ("sample digits-features --out x.npz", ["digits-features", "draws no images"]),
        ("sample run --out x.jpg", ["--out=x.jpg", "'.jpg'", "allowed: .npz, .png"]),
        ("sample run --out x", ["--out=x", "allowed: .npz, .png"]),
        ("sample run --out none/x.npz", ["none/x.npz", "No such file or directory"]),
        ("sample run --out file/x.npz", ["file/x.npz", "Not a directory"]),
        ("sample run --out x.npz --n 0", ["n=0", "int >= 1"]),
        ("sample run --out x.npz --n -3", ["n=-3", "int >= 1"]),
        ("sample run --out x.npz --class 10", ["--class=10", "allowed: 0 to 9"]),
        ("sample run --out x.npz --class -1", ["--class=-1", "allowed: 0 to 9"]),
        ("sample run --out x.npz --class seven", ["--class", "integer"]),
        ("sample run --out x.npz --scale nan", ["scale=nan", "finite"]),
        ("sample run --out x.npz --scale inf", ["scale=inf", "finite"]),
        ("sample run --out x.npz --steps 0", ["steps=0", "int >= 1"]),
        ("sample run --out x.npz --steps 1001", ["steps=1001", "allowed: 1 to 1000"]),
        ("sample run --out x.npz --sampler ddmp", ["sampler='ddmp'", "Did you mean 'ddpm'?"]),
        ("sample run --out x.npz --sampler euler", ["sampler='euler'", "allowed: ddim, ddpm, dpm"]),
        ("evaluate nothing", ["name='nothing' is unknown"]),
        ("evaluate runs/nothing", ["there is no file runs/nothing"]),
        ("release digit-dit", ["recipe='digit-dit' is unknown", "Did you mean 'digits-dit'?"]),
    ],
)
def test_it_is_named_in_one_line(arguments, parts, folder, capsys):
    line = refusal(arguments.split(), capsys)
    for part in parts:
        assert part in line
    assert sorted(path.name for path in folder.iterdir()) == ["file", "run"]


def test_weights_that_are_not_finite_draw_no_images(folder, capsys):
    weights, card = read_safetensors(checkpoint_path("run"))
    for name, tensor in weights.items():
        if name.startswith("ema/"):
            tensor[...] = torch.nan
    write_safetensors(checkpoint_path("run"), weights, card)
    line = refusal(["sample", "run", "--out", "x.png", "--steps", "3"], capsys, begun=True)
    assert "model's output at sampling step k=0, t=999" in line
    assert not (folder / "x.png").exists()


@pytest.mark.parametrize("command", ["train tiny --out run --resume", "sample run --out x.npz"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "text", "weights"])
def test_a_checkpoint_that_is_none_is_refused_and_left_alone(damage, command, folder, capsys):
    path = checkpoint_path("run")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    if damage == "foreign":
        write_safetensors(path, {"weight": torch.zeros(3)})
    if damage == "text":
        path.write_text("hello")
    if damage == "weights":  # our metadata, another model's weights
        recipe = {"kind": "training checkpoint", "recipe": TINY.as_dict(), "seed": 0, "step": 1}
        write_safetensors(path, {"ema/weight": torch.zeros(3)}, recipe)
    before = path.read_bytes()
    assert "checkpoint.safetensors" in refusal(command.split(), capsys)
    assert path.read_bytes() == before


@pytest.mark.parametrize("out", ["x.npz", "x.png"])
def test_a_full_disk_keeps_the_old_file(out, folder, capsys, monkeypatch):
    (folder / out).write_text("the old one")

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    line = refusal(["sample", "run", "--out", out, "--n", "1", "--steps", "1"], capsys, True)
    assert "No space left on device" in line
    assert out in line
    assert (folder / out).read_text() == "the old one"
    assert sorted(path.name for path in folder.iterdir()) == ["file", "run", out]


def test_a_full_disk_in_training_keeps_the_last_checkpoint(folder, capsys, monkeypatch):
    before = checkpoint_path("run").read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    arguments = ["train", "tiny", "--out", "run", "--resume", "--device", "cpu"]
    assert "No space left on device" in refusal(arguments, capsys, True)
    assert checkpoint_path("run").read_bytes() == before


def test_a_zoo_that_cannot_be_written(folder, capsys, monkeypatch):
    monkeypatch.setattr(zoo, "ZOO", folder / "file")
    chosen = Sampling(1), []
    monkeypatch.setattr(release_module, "choose_sampling", lambda recipe, **options: chosen)
    code = main(["release", "tiny", "--device", "cpu"])
    assert code == 2
    assert "file" in capsys.readouterr().err.splitlines()[-1]
    assert (folder / "file").read_text() == "not a folder"


def test_a_process_prints_no_traceback(root):
    command = [sys.executable, "-m", "dit_edu", "sample", "digits", "--out", "x.npz"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: name='digits' is unknown")
    assert done.stderr.count("\n") == 1
