"""INT8 against the arithmetic by hand, graphs against the model they were made from."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.hidit.deployment import (
    input_ranges,
    noisy_batches,
    quantized,
    stored_bytes,
    to_onnx,
    to_program,
)
from dit_edu.hidit.dynamic import DynamicDiT
from dit_edu.hidit.model import HiDiT

PROCESS = GaussianDiffusion.cosine(1000, prediction="v")
SIZES = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=2, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip


def model(kind: type[DiT] = DiT, **settings) -> DiT:
    torch.manual_seed(0)
    net = kind(**{**SIZES, **settings}).eval()
    for p in net.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p) * p.requires_grad
    return net


def batches(bins: int = 4) -> list:
    g = torch.Generator().manual_seed(1)
    return noisy_batches(PROCESS, torch.rand(6, 1, 8, 8, generator=g), torch.arange(6), bins, g)


def by_hand(layer: nn.Linear, x: torch.Tensor, kind: str, most: torch.Tensor) -> torch.Tensor:
    """A linear map with eight-bit numbers, in float64."""
    s = layer.weight.abs().amax(1, keepdim=True) / 127.5  # 255 steps, one scale for each row
    w = (layer.weight / s).round().clamp(-128, 127)
    if kind == "weights":
        return (x @ (w * s).T + layer.bias).detach()
    sx = x.abs().amax(-1, keepdim=True) / 127.5 if kind == "dynamic" else most / 127
    q = (x / sx).round().clamp(-128, 127)
    return ((q.double() @ w.double().T) * s.T * sx + layer.bias).float().detach()


@pytest.mark.parametrize("kind", ["weights", "dynamic", "static"])
def test_a_linear_map_is_the_arithmetic_by_hand(kind):
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(32, 48)), torch.randn(5, 7, 32)
    ranges = {"0": x.abs().max().view(1, 1, 1)}
    found = quantized(layer, kind, ranges if kind == "static" else None)(x)
    want = by_hand(layer[0], x, kind, ranges["0"])
    exact = layer(x).detach()
    # Where a number lies between two steps, torchao may round it the other way: a few are off.
    by_rounding, off = (found - exact).norm(), (found - want).norm()
    assert off < by_rounding / 4  # the arithmetic explains the error
    assert by_rounding < 0.02 * exact.norm()  # which is small


@pytest.mark.parametrize("kind", ["weights", "dynamic", "static"])
def test_a_model_stays_close_and_becomes_small(kind):
    net, calibration = model(hidden_size=64), batches()
    ranges = input_ranges(net, calibration) if kind == "static" else None
    small = quantized(net, kind, ranges)
    for x, t, y in calibration:
        want, found = net(x, t, y), small(x, t, y)
        assert (found - want).norm() < 0.15 * want.norm()
        assert not torch.equal(found, want)
    assert isinstance(net.blocks[0].mlp.fc1.weight, nn.Parameter)  # the model stays as it was
    assert net.blocks[0].mlp.fc1.weight.dtype == torch.float32
    assert type(net.blocks[0].mlp.fc1.weight) is nn.Parameter
    linear = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Linear))
    saved = stored_bytes(net) - stored_bytes(small)
    assert 0.9 * 3 * linear < saved <= 3 * linear  # four bytes become one, and scales come on top


def test_float_bytes_are_counted():
    net = model()
    numbers = sum(p.numel() for p in net.parameters()) + sum(b.numel() for b in net.buffers())
    assert stored_bytes(net) == 4 * numbers


def test_ranges_are_the_largest_inputs():
    net, calibration = model(), batches(2)
    ranges = input_ranges(net, calibration)
    assert set(ranges) == {n for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    seen = []
    handle = net.blocks[1].mlp.fc2.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    for batch in calibration:
        net(*batch)
    handle.remove()
    assert len(seen) == 2  # no hook of the calibration is left that would run the model again
    want = max(x.abs().max() for x in seen)
    assert ranges["blocks.1.mlp.fc2"].item() == pytest.approx(want.item())
    assert ranges["blocks.1.mlp.fc2"].shape == (1, 1, 1)
    assert ranges["blocks.1.adaLN_modulation.1"].shape == (1, 1)


def test_batches_cover_the_noise_levels():
    parts = batches(5)
    for b, (x, t, y) in enumerate(parts):
        assert ((t >= 200 * b) & (t < 200 * (b + 1))).all()
        assert x.shape == (6, 1, 8, 8) and torch.equal(y, torch.arange(6))
    assert parts[-1][0].std() > 0.8  # nearly noise


def test_graphs_say_what_the_model_says(tmp_path):
    net = model(HiDiT, patch_size=1)
    x, t, y = batches(1)[0]
    program = to_program(net, (x[:3], t[:3], y[:3]))
    to_onnx(program, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "net.onnx", providers=["CPUExecutionProvider"]
    )
    assert [i.name for i in session.get_inputs()] == ["x", "t", "y"]
    for n in (1, 2, 6):  # another number of images than in the example
        want = net(x[:n], t[:n], y[:n]).detach()
        torch.testing.assert_close(
            program.module()(x[:n], t[:n], y[:n]), want, rtol=1e-4, atol=1e-5
        )
        fed = dict(x=x[:n].numpy(), t=t[:n].numpy(), y=y[:n].numpy())
        np.testing.assert_allclose(session.run(None, fed)[0], want, rtol=1e-4, atol=1e-5)


def test_a_router_cannot_be_exported():
    with pytest.raises(Exception, match=r"data-dependent|Could not guard|unbacked"):
        to_program(model(DynamicDiT, keep=1), batches(1)[0])


def test_integers_are_rounded_to_a_half_step():
    """The error of one product: uniform in a step, so its spread is step / sqrt(12)."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(1024, 8, bias=False))
    x = torch.eye(1024)  # each image reads one weight off
    error = quantized(layer, "weights")(x) - layer(x)
    step = layer[0].weight.abs().amax(1) / 127.5  # (8,)
    spread = (error / step).std().item()
    assert spread == pytest.approx(1 / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantized(model(), "int4"), "kind='int4'"),
        (lambda: quantized(model(), "static"), "ranges=None"),
        (lambda: quantized(model(), "dynamic", {}), "ranges=given"),
        (lambda: quantized(model(), "static", {}), "no entry for"),
        (lambda: input_ranges(model(), []), "batches holds nothing"),
        (lambda: batches(0), "bins=0"),
        (lambda: to_program(model(), tuple(part[:1] for part in batches()[0])), "batch of 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
