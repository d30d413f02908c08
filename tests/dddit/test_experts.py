"""Experts: against the MLP that they begin as, the dense mask, and counted MACs."""

from __future__ import annotations

import pytest
import torch

from dit_edu.branches import Mlp
from dit_edu.dddit.diagnostics import choices
from dit_edu.dddit.experts import ASKERS, Bands, ExpertDiT, Experts
from dit_edu.dit import DiT
from dit_edu.lab.profile import count
from dit_edu.routing import record_routing

SIZES = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=2, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip


def mlp(dtype=torch.float64) -> Mlp:
    torch.manual_seed(0)
    return Mlp(8, 24).to(dtype)


def learned(keep: int = 1, asks: str = "image") -> Experts:
    """Experts that differ, and a router with opinions."""
    found = Experts.from_mlp(mlp(), experts=4, keep=keep, asks=asks).eval()
    for parameter in found.parameters():
        parameter.data = parameter.data + 0.5 * torch.randn_like(parameter)
    found.router.mlp[-1].weight.data *= 20
    return found


def model(dtype=torch.float64, **settings) -> ExpertDiT:
    torch.manual_seed(0)
    net = ExpertDiT(**{**SIZES, **settings}).to(dtype).eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    for block in net.blocks:
        if net.asks != "band":
            block.mlp.router.mlp[-1].weight.data *= 20
    return net


def model_pair(**settings) -> tuple[DiT, ExpertDiT]:
    """A plain model, and one with experts, with the same start values."""
    torch.manual_seed(0)
    plain = DiT(**SIZES)
    torch.manual_seed(0)
    return plain.double(), ExpertDiT(**settings, **SIZES).double()


def inputs(n: int = 6, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, torch.linspace(0, 999, n).long(), torch.arange(n) % 11


def dense(experts: Experts, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """What they should say: all of them computed, and those not chosen taken away."""
    every = torch.stack([expert(x) for expert in experts.experts], -1)  # (B, N, D, E)
    mask = chosen.double() if chosen.ndim == 3 else chosen.double()[:, None]  # (B, 1 or N, E)
    return experts.shared(x) + (every * mask[:, :, None]).sum(-1) / experts.choice.k


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("asks", ASKERS[1:])
def test_they_begin_as_the_mlp(keep, asks):
    plain, x, told = mlp(), torch.randn(3, 5, 8).double(), torch.randn(3, 8).double()
    found = Experts.from_mlp(plain, experts=4, keep=keep, shared=0.25, asks=asks)
    torch.testing.assert_close(found.train()(x, told), plain(x), rtol=1e-10, atol=1e-10)
    assert found.shared.fc1.out_features == 6
    assert [e.fc2.in_features for e in found.experts] == [18] * 4


@pytest.mark.parametrize("asks", ASKERS)
def test_a_model_with_experts_begins_as_the_plain_one(asks):
    plain, net = model_pair(asks=asks)
    with torch.no_grad():
        for one, other in zip(net.blocks, plain.blocks, strict=True):
            one.adaLN_modulation[-1].bias.fill_(0.3)
            other.adaLN_modulation[-1].bias.fill_(0.3)
        for part in (net, plain):
            torch.nn.init.ones_(part.final_layer.linear.weight)
    batch = inputs()
    torch.testing.assert_close(net.eval()(*batch), plain.eval()(*batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("by", ["batch", "image", "token"])
def test_equals_the_dense_mask(keep, by):
    experts = learned(keep, "token" if by == "token" else "image")
    x, told = torch.randn(6, 5, 8).double(), torch.randn(6, 8).double()
    if by == "batch":
        told = told[:1].expand(6, -1)
    outer = torch.nn.Module()  # someone to record
    outer.experts = experts
    outer.forward = lambda x, t, y: experts(x, told)
    with record_routing(outer) as trace:
        got = outer(x, torch.zeros(6), None)
    chosen = trace.decisions[0].chosen
    ways = chosen.flatten(0, -2).unique(dim=0)
    assert (len(ways) == 1) == (by == "batch")  # the test sees what it is meant to
    assert chosen.shape == ((6, 5, 4) if by == "token" else (6, 4))
    assert (chosen.sum(-1) == keep).all()
    torch.testing.assert_close(got, dense(experts, x, chosen), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("asks", ASKERS)
def test_a_sample_does_not_depend_on_its_mates(asks):
    net, (x, t, y) = model(asks=asks), inputs()
    together = net(x, t, y)
    for i in range(len(x)):
        one = slice(i, i + 1)
        torch.testing.assert_close(
            together[one], net(x[one], t[one], y[one]), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(
    ("asks", "keep"),
    [("band", 1), *((asks, keep) for asks in ASKERS[1:] for keep in (1, 2))],
)
def test_macs_are_those_of_the_experts_that_ran(asks, keep):
    net, batch = model(torch.float32, asks=asks, keep=keep, shared=0.25), inputs(4, torch.float32)
    plain = count(DiT(**SIZES), *batch, repeats=0).macs
    with record_routing(net) as trace:
        net(*batch)
    table = trace.table()
    one = 2 * 32 * 96 * 16  # an expert on the tokens of an image: three quarters of 128 channels
    assert table["macs"].sum() == 4 * 2 * keep * one
    once = 32 * 32 + 32 * 4  # tokens have a router without a hidden layer
    router = {"band": 0, "step": once, "image": once, "token": 16 * 32 * 4}[asks]
    assert count(net, *batch, repeats=0).macs == plain + 4 * 2 * ((keep - 1) * one + router)


def test_a_step_is_one_path_and_images_are_many():
    (x, t, y), ways = inputs(), {}
    for asks in ASKERS:
        net = model(asks=asks)
        with record_routing(net) as trace:
            net(x, torch.full_like(t, 500), y)
        shares = choices(trace.table(), "blocks.0.mlp")
        ways[asks] = len({tuple(row) for row in shares.tolist()})
    assert ways["band"] == ways["step"] == 1 < ways["image"]
    assert ways["token"] > 1


def test_bands_share_the_steps():
    t = torch.arange(1000)
    logits = Bands(4)(t)
    assert logits.shape == (1000, 4)
    torch.testing.assert_close(logits.softmax(-1).sum(0), torch.full((4,), 250.0))
    assert (logits.argmax(-1) == t // 250).all()
    assert Bands(3)(torch.tensor([999.0])).argmax() == 2  # a flow's steps are floats


def test_one_expert_is_trained_as_the_plain_model():
    losses = []
    plain, routed = model_pair(experts=1)
    for block in routed.blocks:  # or there would be two of them
        block.mlp.experts[0].fc2.bias.requires_grad_(False)
    for net in (plain, routed):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(4):
            torch.manual_seed(step)  # a label is dropped before the first expert draws its noise
            x, t, y = inputs(16)
            loss = (net.train()(x, t, y) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("asks", ASKERS)
def test_upcycled_it_says_what_the_dense_model_says(asks):
    torch.manual_seed(0)
    dense = DiT(**SIZES).double().eval()
    for parameter in dense.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    before = dense(*inputs())
    net = ExpertDiT(asks=asks, **SIZES).double().upcycle(dense).eval()
    torch.testing.assert_close(net(*inputs()), before, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dense(*inputs()), before, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        ExpertDiT(**{**SIZES, "mlp_ratio": 2.0}).double().upcycle(dense)


def test_the_router_learns_and_all_experts_can():
    net = model().train()
    torch.manual_seed(0)
    net(*inputs(64)).square().sum().backward()
    experts = net.blocks[0].mlp
    assert experts.router.mlp[-1].weight.grad.abs().sum() > 0
    assert all(e.fc1.weight.grad.abs().sum() > 0 for e in experts.experts)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(keep=5), ValueError, "keep=5 of 4"),
        (dict(keep=1.0), TypeError, "keep=1.0"),
        (dict(experts=0), ValueError, "experts=0"),
        (dict(shared=1.0), ValueError, "shared=1.0 of 128"),
        (dict(shared=0.0), ValueError, "shared=0.0 of 128"),
        (dict(asks="text"), ValueError, "asks='text' is unknown"),
        (dict(conditioning="adaln"), ValueError, "conditioning='adaln'"),
        (dict(asks="band", keep=2), ValueError, "keep=2 of 4 experts with asks='band'"),
    ],
)
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        ExpertDiT(**settings, **SIZES)
