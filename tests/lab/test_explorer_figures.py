"""The routing explorer: its record against counted MACs and plain draws; what its figure shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.dddit import DDDiT
from dit_edu.dddit.depth import DepthDiT
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.lab.experiments.explorer import BUDGETS, STEPS, set_budget
from dit_edu.lab.figures.explorer import explorer
from dit_edu.lab.journey import floor_macs, journey
from dit_edu.lab.profile import count
from dit_edu.sampling import ddim_sample, noise_streams

MODEL = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=3, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip
PROCESS = GaussianDiffusion.cosine(1000, prediction="v")
Y = torch.tensor([1, 7])


def model(kind: type[DiT] = DDDiT, **options) -> DiT:
    torch.manual_seed(0)
    net = kind(**MODEL, **options).eval()
    for p in net.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    if getattr(net, "router", None) is not None:
        torch.nn.init.normal_(net.router.mlp[-1].weight, std=20.0)
        net.router.mlp[-1].bias.data.zero_()
    return net


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("asks", ["step", "image"])
def test_a_journey_is_counted_as_it_ran(asks, scale):
    net = model(asks=asks)
    way = journey(net, PROCESS, Y, steps=4, scale=scale)
    assert way.t == [999, 666, 333, 0]
    x = torch.zeros(1, 1, 8, 8)
    for k, t in enumerate(way.t):
        for b in range(2):
            ran = count(net, x, torch.tensor([t]), Y[b : b + 1], repeats=0).macs
            assert way.macs[k, b] == ran
    assert len(np.unique(way.macs)) > 1
    assert set(way.runs) == {f"blocks.{b}.{part}" for b in range(3) for part in ("attn", "mlp")}
    runs = np.concatenate(list(way.runs.values()), -1)  # (K, B, L (h + E))
    paths = torch.stack([net.macs(torch.as_tensor(r) > 0) for r in runs])  # (K, B)
    np.testing.assert_array_equal(paths, way.macs)


def test_a_journey_leads_where_sampling_leads():
    net = model()
    (stream,) = noise_streams(3, 1)
    noise = torch.randn(1, 8, 8, generator=stream).expand(2, 1, 8, 8)
    way = journey(net, PROCESS, Y, steps=5, seed=3)
    want = ddim_sample(net, PROCESS, noise.shape, Y, steps=5, noise=noise, clip=True)
    np.testing.assert_allclose(way.images[-1], want.clamp(-1, 1), rtol=0, atol=1e-6)


def test_other_routed_models_have_journeys_too():
    net = model(DepthDiT)
    net.depth_budget = 0.5
    way = journey(net, PROCESS, Y, steps=3)
    assert [r.shape for r in way.runs.values()] == [(3, 2, 3)]
    assert (way.runs[""].sum(-1) == 2).all()
    assert way.macs[0, 0] - floor_macs(net) == 2 * net.block_macs()[0]


def test_a_model_that_decides_nothing_has_no_journey():
    with pytest.raises(ValueError, match="DiT, which reports no choices"):
        journey(model(DiT), PROCESS, Y, steps=2)


@pytest.mark.parametrize("asks", ["step", "image"])
def test_the_explorer_shows_what_ran(asks, tmp_path):
    net = model(asks=asks)
    milliseconds = np.arange(len(BUDGETS) * STEPS, dtype=float).reshape(len(BUDGETS), STEPS)
    figure = explorer("try", net, PROCESS, {1: "one", 7: "seven"}, milliseconds)
    assert (net.mode, net.budget) == ("dynamic", None)
    heads, experts, image, units, macs, time = figure.panels
    who = ("budget",) if asks == "step" else ("budget", "class")
    assert heads.axes == experts.axes == macs.axes == who
    place = () if asks == "step" else (1,)
    for row, budget in enumerate(BUDGETS):
        set_budget(net, budget)
        way = journey(net, PROCESS, torch.tensor([1, 7]), STEPS)
        here = (row, *place)
        for part, panel in (("attn", heads), ("mlp", experts)):
            want = np.stack([way.runs[f"blocks.{b}.{part}"][:, 1].mean(-1) for b in range(3)])
            np.testing.assert_allclose(panel.values[here], want)  # (L, K)
        now = np.concatenate([way.runs["blocks.2.attn"], way.runs["blocks.2.mlp"]], -1)
        np.testing.assert_array_equal(np.asarray(units.values)[here][:, 2], now[:, 1])
        np.testing.assert_allclose(macs.lines[0].y[here], way.macs[:, 1].cumsum() / 1e6, rtol=1e-6)
        np.testing.assert_allclose(image.frames[row, 1, :, 0, 0], way.images[:, 1], atol=1e-6)
        np.testing.assert_allclose(time.lines[0].y[row], milliseconds[row].cumsum())
        for panel in (macs, time):
            mine, full = (np.asarray(line.y) for line in panel.lines)
            np.testing.assert_array_equal(full[row], mine[list(BUDGETS).index("full")])
    figure.save(tmp_path)
