"""A denoiser for each band of t: against its models asked one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dit_edu.bands import ByNoise, even_edges
from dit_edu.dit import DiT

MODEL = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=10,
    learn_sigma=False,
)  # fmt: skip


def model(**options) -> DiT:
    net = DiT(**{**MODEL, **options}).double().eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize(
    ("edges", "bands"),
    [
        (even_edges(3), [0, 0, 1, 1, 2, 2]),
        ([334, 667], [0, 0, 1, 1, 2, 2]),  # an edge belongs to the band above it
        ([1, 334], [0, 1, 2, 2, 2, 2]),
        ([0, 1000], [1] * 6),  # two bands that no step lies in
    ],
)
def test_each_image_is_answered_by_the_model_of_its_band(edges, bands):
    nets = [model(), model(hidden_size=32), model(patch_size=4)]
    together = ByNoise(nets, edges)
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    t, y = torch.tensor([0, 333, 334, 666, 667, 999]), torch.arange(6)
    want = [nets[b](x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i, b in enumerate(bands)]
    torch.testing.assert_close(together(x, t, y), torch.cat(want), rtol=1e-10, atol=1e-10)
    # a flow's time is a float
    torch.testing.assert_close(together(x, t.double(), y), torch.cat(want), rtol=1e-10, atol=1e-10)
    assert together.chosen(t).int().argmax(1).tolist() == bands


def test_who_is_not_asked_does_not_run():
    nets = [model(), nn.Identity()]
    nets[1].forward = None  # calling it would fail
    together = ByNoise(nets, [500])
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 499])
    torch.testing.assert_close(together(x, t, t * 0), nets[0](x, t, t * 0))


def test_it_is_a_denoiser_like_its_models():
    nets = [model(), model()]
    together = ByNoise(nets, [500])
    assert (together.in_channels, together.input_size, together.num_classes) == (1, (8, 8), 10)
    assert together.null_condition(torch.tensor([3, 4])).tolist() == [10, 10]


def test_even_bands_are_equally_wide():
    assert even_edges(1) == [] and even_edges(5) == [200, 400, 600, 800]
    steps = ByNoise([model()] * 8, even_edges(8)).chosen(torch.arange(1000))
    assert steps.sum(0).tolist() == [125] * 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ByNoise([], []), "models is empty"),
        (lambda: ByNoise([model()], [500]), r"edges=\[500\]; allowed: 0"),
        (lambda: ByNoise([model()] * 3, [500, 500]), r"edges=\[500, 500\]; allowed: 2"),
        (lambda: even_edges(0), "bands=0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
