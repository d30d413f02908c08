"""HiDiT: presets against the claimed sizes, closed forms against counts, and its parts together."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dispatch import run_masked
from dit_edu.guidance import Guided
from dit_edu.hidit.factorized import FactorizedAttention
from dit_edu.hidit.model import PRESETS, HiDiT, HiDiTArchitecture, search
from dit_edu.lab.profile import count
from dit_edu.routing import record_routing
from dit_edu.sampling import ddim_sample

SIZES = dict(
    input_size=(8, 16), patch_size=1, in_channels=2, hidden_size=32, depth=4, num_heads=4,
    num_classes=10, learn_sigma=False,
)  # fmt: skip
CLAIMED = {"HiDiT-S": (118e6, 15.2e9), "HiDiT-B": (256e6, 32.1e9)}  # parameters, MACs


def model(**settings) -> HiDiT:
    torch.manual_seed(0)
    net = HiDiT(**{**SIZES, **settings}).double().eval()
    for p in net.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p) * p.requires_grad
    if net.router is not None:
        net.router.linear.weight.data *= 20  # so that steps differ
    return net


def inputs(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(6, 2, 8, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype), torch.linspace(0, 999, 6).long(), torch.arange(6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_claimed_sizes(name):
    params, macs = CLAIMED[name]
    with torch.device("meta"):
        net = HiDiT.from_preset(name)
        cost = count(net, torch.empty(1, 4, 32, 32), *torch.zeros(2, 1, dtype=torch.long))
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained == pytest.approx(params, rel=0.03)
    assert cost.macs == pytest.approx(macs, rel=0.03)
    form = HiDiTArchitecture(**PRESETS[name])
    assert sum(form.params().values()) == trained
    assert sum(form.macs().values()) == cost.macs


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_the_search_finds_first(name):
    _, best = next(search(*CLAIMED[name]))
    assert HiDiTArchitecture(**PRESETS[name]) == best


def test_the_search_finds_nothing_where_there_is_nothing():
    assert list(search(1e6, 1e12)) == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"half": True},
        {"spatial": "window", "window": 2},
        {"spatial": "axial", "coarse_fraction": 0.25, "fine_first": 1},
        {"skip": "concat", "learn_sigma": True, "mlp_ratio": 2.0},
        {"keep": 2, "coarse_fraction": 0.75},
    ],
)
def test_closed_forms_equal_counts(settings):
    net, (x, t, y) = model(**settings).float(), inputs(torch.float32)
    form = HiDiTArchitecture(**{**SIZES, **{k: v for k, v in settings.items() if k not in
                                            ("keep", "fine_first")}})  # fmt: skip
    router = 0 if net.router is None else sum(p.numel() for p in net.router.parameters())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad) - router
    assert sum(form.params().values()) == trained
    with record_routing(net) as trace:
        net(x, t, y)
    macs = len(x) * sum(form.macs().values())
    if net.router is not None:
        every = len(x) * int(net.layer_macs().sum())
        macs += len(x) * net.router.linear.weight.numel() - every
        macs += int(trace.table()["macs"].sum())  # what ran
        assert len({int(m) for m in net.layer_macs()}) == 2  # coarse layers are cheaper
    assert count(net, x, t, y, repeats=0).macs == macs


def test_a_fresh_model_answers_zero():
    assert not HiDiT(**SIZES, keep=2)(*inputs(torch.float32)).any()


@pytest.mark.parametrize("spatial", ["full", "axial"])
def test_routing_equals_the_dense_mask(spatial):
    net, (x, t, y) = model(keep=2, spatial=spatial), inputs()
    with record_routing(net) as trace:
        found = net(x, t, y)
    chosen = trace.decisions[0].chosen
    assert len(chosen.unique(dim=0)) > 1
    blocks, dense = list(net.blocks), copy.deepcopy(net)
    for i, block in enumerate(dense.blocks):  # every block runs, and is taken back where not chosen
        block.forward = partial(run_masked, chosen[:, i], blocks[i])
    dense.keep, dense.router = None, None
    torch.testing.assert_close(found, dense(x, t, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"keep": 2}, {"spatial": "window", "window": 2}])
def test_a_sample_does_not_depend_on_its_mates(settings):
    net, (x, t, y) = model(**settings), inputs()
    together = net(x, t, y)
    for i in range(len(x)):
        alone = net(x[i : i + 1], t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-10)


def test_another_size_has_other_windows_and_the_same_weights():
    net = model(spatial="window", window=2)
    for bigger in (net.at_size((16, 16)), net.at_size((12, 12)).at_size((16, 16))):
        x = torch.randn(2, 2, 16, 16, dtype=torch.float64)
        assert bigger(x, *torch.tensor([[3, 700], [1, 2]])).shape == x.shape
        for old, new in zip(net.blocks, bigger.blocks, strict=True):
            assert isinstance(new.attn, FactorizedAttention)
            torch.testing.assert_close(old.attn.state_dict(), new.attn.state_dict())
        assert bigger.blocks[-1].attn.spatial.grid == (16, 16)
        assert bigger.blocks[0].attn.spatial.grid == (8, 8)
    with pytest.raises(ValueError, match="window=2 does not divide"):
        net.at_size((6, 6))  # 3 x 3 coarse tokens


def test_it_is_a_denoiser_like_any_other():
    net = model(keep=2, input_size=8).float()
    process = GaussianDiffusion.cosine(1000, prediction="v")
    y = torch.arange(3)
    x = ddim_sample(Guided(net, 1.5), process, (3, 2, 8, 8), y, steps=4)
    assert x.shape == (3, 2, 8, 8) and x.isfinite().all()
    losses = process.losses(net.train(), x, torch.tensor([5, 500, 900]), y)
    losses["loss"].mean().backward()
    assert all(
        p.grad is not None for n, p in net.named_parameters()
        if p.requires_grad and not n.startswith("blocks")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spatial": "windows"}, "'window'"),
        ({"spatial": "window", "window": 3}, "window=3 does not divide"),
        ({"keep": 5}, "k=5 of 4"),
        ({"coarse_fraction": 0.0}, "coarse_fraction=0.0"),
        ({"conditioning": "in-context"}, "conditioning='in-context'"),
        ({"input_size": 7}, "odd|even"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(ValueError, match=message):
        HiDiT(**{**SIZES, **settings})


def test_unknown_preset():
    with pytest.raises(ValueError, match="'HiDiT-S'"):
        HiDiT.from_preset("HiDiT-X")
