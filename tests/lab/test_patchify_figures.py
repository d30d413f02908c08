"""The figures of the chapter on tokens against what they are made of; the experiments' parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.lab.data import digits
from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.patchify import forward_cell, patches, shrunk, ways
from dit_edu.lab.figures import beyond_the_grid, patch_loss_map
from dit_edu.lab.figures.patchify import WAYS
from dit_edu.positions import POSITIONS


class Silent(nn.Module):
    def forward(self, x, t, y):
        return torch.zeros_like(x)


def test_the_loss_map_of_a_silent_model_is_the_power_of_v():
    """v = aε - bx_0, so its power is a² + b² x_0², on average, at every pixel."""
    process = GaussianDiffusion.cosine(1000, prediction="v")
    patch, pixel, curves = patch_loss_map(Silent(), process, bins=4).panels
    power = digits("heldout")[0].double().square().mean((0, 1)).numpy()  # (8, 8)
    ab = process.alphas_cumprod.view(4, 250).mean(1).numpy()[:, None, None]
    np.testing.assert_allclose(pixel.values, ab + (1 - ab) * power, rtol=0.2, atol=0.05)
    blocks = np.asarray(pixel.values).reshape(4, 4, 2, 4, 2).mean((2, 4))
    np.testing.assert_allclose(patch.values, blocks, rtol=1e-5)
    np.testing.assert_allclose(curves.lines[0].y, blocks[:, :, 1:3].mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(curves.lines[1].y, blocks[:, :, [0, 3]].mean((1, 2)), rtol=1e-5)


def test_the_pictures_and_bars_are_those_of_the_tables():
    images, bars = beyond_the_grid().panels
    way = list(WAYS).index("RoPE, extended")
    kept = next(r for r in read("position-samples") if r["setting"] == "rope")["metrics"]
    shades = np.array([int(s, 16) for s in kept["16 extend"][3]]).reshape(16, 16)
    shown = np.asarray(images.frames)[way, 2, 0, 3, 0]  # (48, 48)
    np.testing.assert_allclose(shown[1::3, 1::3], shades / 7.5 - 1)
    found = [
        r["metrics"]["accuracy 12 extend"] for r in read("positions") if r["setting"] == "rope"
    ]
    assert bars.values[way][1] == pytest.approx(100 * np.mean(found))


def test_shrinking_is_the_mean_of_areas():
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(shrunk(x), x.view(2, 1, 8, 2, 8, 2).mean((3, 5)))


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_way_to_another_size_is_tried_once(positions):
    model = DiT(
        input_size=8, patch_size=2, in_channels=1, hidden_size=8, depth=1, num_heads=2,
        num_classes=10, learn_sigma=False, positions=positions,
    )  # fmt: skip
    found = {name: sized.input_size for name, sized in ways(model)}
    wanted = {"12 stretch": (12, 12), "16 stretch": (16, 16)}
    if positions in ("sincos", "rope"):
        wanted |= {"12 extend": (12, 12), "16 extend": (16, 16)}
    assert found == wanted


def test_the_cost_of_a_patch_size_is_counted_for_one_image():
    found = forward_cell({**patches(4), "images": 2}, 0)
    d, n, depth = 32, 4, 3
    blocks = depth * (12 * d**2 * n + 2 * n**2 * d + 6 * d**2)
    ends = n * 16 * d + 256 * d + d * d + n * d * 16 + 2 * d * d
    assert (found["tokens"], found["macs"]) == (n, blocks + ends)
    assert found["cpu_seconds"] > 0
