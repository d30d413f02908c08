"""The calculator: the same numbers as the formulas, a time that the whole model confirms."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from dit_edu.dit import DiT
from dit_edu.lab import costs
from dit_edu.lab.cli import main
from dit_edu.lab.experiments import read
from dit_edu.lab.profile import count
from dit_edu.scaling import Architecture


def test_resolutions_in_pixels_become_latents():
    assert costs.at_resolution("DiT-XL/2", "512").size == (64, 64)
    model = costs.at_resolution("DiT-S/2", "512x256", 4)
    assert (model.size, model.patch_size, model.tokens) == ((64, 32), 4, 128)


def test_the_time_follows_depth_and_is_that_of_the_whole_model():
    """Both are medians on a busy machine, so they are only asked to agree within a factor of 3."""
    model = Architecture(8, 2, 4, hidden_size=128, depth=8, num_heads=4, num_classes=10)
    y = torch.zeros(2, dtype=torch.long)
    whole = count(DiT(**asdict(model)), torch.randn(2, 4, 8, 8), y, y, repeats=9).seconds
    assert 1 / 3 < costs.forward_seconds(model, batch=2, device="cpu", repeats=9) / whole < 3


def test_the_time_is_followed_from_one_and_three_blocks(monkeypatch):
    class Timed:
        def __init__(self, depth):
            self.seconds = 1.0 + 0.25 * depth

    seen = []

    def look(model, x, t, y, repeats):
        seen.append((len(model.blocks), tuple(x.shape), x.dtype))
        return Timed(len(model.blocks))

    monkeypatch.setattr(costs, "count", look)
    model = Architecture(8, 4, 4, hidden_size=16, depth=28, num_heads=2)
    assert costs.forward_seconds(model, batch=3, device="cpu", dtype="bfloat16") == 8.0
    assert seen == [(depth, (3, 4, 8, 8), torch.bfloat16) for depth in (1, 3)]


def test_the_command_prints_what_the_formulas_say(capsys, monkeypatch):
    monkeypatch.setattr(costs, "forward_seconds", lambda model, batch, **_: 0.5 * batch)
    options = ["--resolution", "512", "--steps", "50", "--scale", "1.5", "--batch", "4"]
    assert main(["cost", "DiT-XL/2", *options, "--dtype", "bfloat16", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for part in (
        "parameters    674.83 M",
        "tokens        1,024 of width 1152, in 28 blocks",
        "forward pass  524.54 GMACs: tokens 87.0%, pairs 12.9%",
        "one image     52.45 TMACs: 100 passes (50 steps, guidance 1.5)",
        "in bfloat16: weights 1.35 GB, activations about 226.7 MB at batch 4",
        "time          50 s for an image, 4 s for one pass of the batch",
    ):
        assert part in out
    assert main(["cost", "DiT-S/8", "--no-time"]) == 0
    assert "time" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("cost DiT-XXL/2", "Did you mean 'DiT-XL/2'?"),
        ("cost DiT-S/2 --resolution 250", "resolution='250'; allowed: a multiple of 8"),
        ("cost DiT-S/2 --resolution big", "resolution='big'"),
        ("cost DiT-S/2 --resolution 0", "resolution='0'"),
        ("cost DiT-S/2 --patch 3", "p=3 does not divide the image of 32x32"),
        ("cost DiT-S/2 --patch 0", "p=0 must be an int >= 1"),
        ("cost DiT-S/2 --steps 0", "steps=0 must be an int >= 1"),
        ("cost DiT-S/2 --batch -1", "batch=-1"),
        ("cost DiT-S/2 --scale nan", "scale=nan must be finite"),
        ("cost DiT-S/2 --dtype float16", "Did you mean 'bfloat16'?"),
        ("cost DiT-S/2 --device gpu", "device='gpu' is unknown"),
    ],
)
def test_what_the_command_refuses_is_one_line(arguments, message, capsys):
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err


def test_the_table_of_measured_costs_confirms_the_formulas():
    for row in read("scaling-cost"):
        found = row["metrics"]
        assert found["macs"] == found["macs_formula"]
        assert found["activations"] == pytest.approx(found["activations_formula"], rel=0.25)
