"""The loss by patches against slices, against the process's own loss, and in the training loop."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import train
from dit_edu.patch_losses import loss_map, patch_loss, token_errors


class Silent(nn.Module):
    """Says 0 whatever it sees, in as many channels as asked for."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x, t, y):
        return x.new_zeros(len(x), self.channels, *x.shape[2:])


def batch(n: int = 4):
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, n, 3, 4, 6, generator=g)
    return x0, torch.arange(n) * 200, torch.zeros(n, dtype=torch.long), noise


def test_a_token_s_error_is_the_mean_over_its_slice():
    error = torch.randn(2, 3, 4, 6)
    found = token_errors(error, 2)
    for n in range(6):
        i, j = divmod(n, 3)
        patch = error[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        torch.testing.assert_close(found[:, n], patch.square().mean((1, 2, 3)))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("process", [GaussianDiffusion.linear(1000), FlowMatching()])
def test_its_mean_is_the_loss_of_the_process(process, p):
    x0, t, y, noise = batch()
    found = patch_loss(Silent(), process, x0, t, y, noise, p=p)
    want = process.losses(Silent(), x0, t, y, noise=noise)
    torch.testing.assert_close(found["loss"], want["loss"])
    assert found["tokens"].shape == (4, 24 // p**2)
    assert torch.equal(found["loss"], found["mse"])


def test_channels_of_the_variance_are_left_out():
    x0, t, y, noise = batch()
    process = GaussianDiffusion.linear(1000)
    plain, doubled = (
        patch_loss(Silent(channels), process, x0, t, y, noise, p=2)["loss"] for channels in (3, 6)
    )
    assert torch.equal(plain, doubled)


def test_training_by_patches_is_training():
    recipe = Recipe(
        name="tiny",
        model=dict(
            input_size=8, patch_size=2, in_channels=1, hidden_size=8, depth=1, num_heads=2,
            num_classes=10, learn_sigma=False,
        ),
        steps=3, batch_size=8, warmup=1,
    )  # fmt: skip
    losses = [
        [step.loss for step in train(recipe, device="cpu", loss_fn=loss_fn)]
        for loss_fn in (None, partial(patch_loss, p=2))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_map_of_a_silent_model_is_the_target_s_power_by_place_and_level():
    """ε and images that are 0 but in one patch: v = aε - bx_0 has power a² + b² s² there."""
    process = GaussianDiffusion.cosine(1000, prediction="v")
    x0 = torch.zeros(512, 1, 4, 4)
    x0[:, :, :2, 2:] = 3.0
    found = loss_map(Silent(1), process, x0, torch.zeros(512, dtype=torch.long), p=2, bins=4)
    ab = process.alphas_cumprod.view(4, 250).mean(1)  # (bins,) the mean of a² in each
    want = ab.view(4, 1, 1).expand(4, 2, 2).clone()
    want[:, 0, 1] += 9 * (1 - ab)
    torch.testing.assert_close(found.double(), want, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ["bins", "repeats"])
def test_bad_input_is_named(name):
    x0, t, y, noise = batch()
    process = GaussianDiffusion.linear(1000)
    with pytest.raises(ValueError, match=f"{name}=0"):
        loss_map(Silent(), process, x0, y, p=2, **{name: 0})
    with pytest.raises(ValueError, match="p=4 does not divide"):
        patch_loss(Silent(), process, x0, t, y, noise, p=4)
