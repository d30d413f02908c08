"""A model that runs k of L blocks: against a plain one, the dense mask, and counted MACs."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dispatch import run_masked
from dit_edu.dit import DiT
from dit_edu.hidit.dynamic import DynamicDiT
from dit_edu.lab.profile import count
from dit_edu.routing import balanced_losses, record_routing

SIZES = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=5, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip


def model(keep: int = 3, dtype=torch.float64, **settings) -> DynamicDiT:
    torch.manual_seed(0)
    net = DynamicDiT(keep=keep, **{**SIZES, **settings}).to(dtype).eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    net.router.linear.weight.data *= 20  # so that steps differ in what they choose
    return net


def inputs(n: int = 8, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.linspace(0, 999, n).long(), torch.arange(n) % 11


def choices(net, x, t, y) -> torch.Tensor:
    with record_routing(net) as trace:
        net(x, t, y)
    return trace.decisions[0].chosen


def dense(net: DynamicDiT, x, t, y) -> torch.Tensor:
    """What it should say, by running everything and masking."""
    chosen, other = choices(net, x, t, y), copy.deepcopy(net)
    other.layers = lambda *_: [
        partial(run_masked, chosen[:, e], block) for e, block in enumerate(net.blocks)
    ]
    return other(x, t, y)


def test_all_blocks_are_a_plain_dit():
    net = model(keep=5)
    plain = DiT(**SIZES).double().eval()
    missing, extra = plain.load_state_dict(net.state_dict(), strict=False)
    assert missing == []
    assert extra == ["router.linear.weight", "router.linear.bias"]
    torch.testing.assert_close(net(*inputs()), plain(*inputs()), rtol=1e-10, atol=1e-10)


def test_a_fresh_model_answers_zero():
    assert not DynamicDiT(keep=2, **SIZES)(*inputs(dtype=torch.float32)).any()


@pytest.mark.parametrize("same", [True, False], ids=["one path", "gathered"])
def test_equals_the_dense_mask(same):
    net, (x, t, y) = model(), inputs()
    t = torch.full_like(t, 300) if same else t
    ways = choices(net, x, t, y).unique(dim=0)
    assert (len(ways) == 1) == same  # the test sees what it is meant to
    assert (ways.sum(1) == 3).all()
    torch.testing.assert_close(net(x, t, y), dense(net, x, t, y), rtol=1e-10, atol=1e-10)


def test_a_sample_does_not_depend_on_its_mates():
    net, (x, t, y) = model(), inputs()
    together = net(x, t, y)
    for i in range(len(x)):
        one = slice(i, i + 1)
        torch.testing.assert_close(together[one], net(x[one], t[one], y[one]), rtol=1e-10, atol=0)


@pytest.mark.parametrize("conditioning", ["adaln-zero", "cross-attention", "in-context"])
@pytest.mark.parametrize("same", [True, False], ids=["one path", "gathered"])
def test_macs_are_those_of_the_blocks_that_ran(conditioning, same):
    net, (x, t, y) = model(dtype=torch.float32, conditioning=conditioning), inputs(4, torch.float32)
    t = torch.full_like(t, 300) if same else t
    with record_routing(net) as trace:
        net(x, t, y)
    assert trace.table()["macs"].sum() == 4 * 3 * net.layer_macs()[0]
    plain = count(DiT(**{**SIZES, "conditioning": conditioning}), x, t, y, repeats=0).macs
    saved = 4 * (5 - 3) * int(net.layer_macs()[0])
    router = 4 * SIZES["hidden_size"] * SIZES["depth"]
    assert count(net, x, t, y, repeats=0).macs == plain - saved + router


def test_another_size_costs_more():
    net = model()
    bigger = net.at_size(16)
    assert bigger.layer_macs()[0] > 4 * net.layer_macs()[0]


def test_the_router_learns_and_the_choice_does_not_jump():
    net, (x, t, y) = model().train(), inputs()
    torch.manual_seed(3)
    net(x, t, y).square().sum().backward()
    assert net.router.linear.weight.grad.abs().sum() > 0

    def loss(soft_weight: torch.Tensor) -> torch.Tensor:
        other = copy.deepcopy(net).eval()
        other.router.linear.weight.data = soft_weight
        return other(x, t, y).square().sum()

    weight = net.router.linear.weight.detach()
    # The true function is flat: it is a choice. That gradient is the estimator's, not the loss's.
    assert loss(weight) == loss(weight * 1.000001)


def test_noise_is_for_training_alone():
    net, batch = model(noise=50.0), inputs()
    assert torch.equal(choices(net, *batch), choices(net, *batch))
    net.train()
    assert not torch.equal(choices(net, *batch), choices(net, *batch))
    silent = model(noise=0.0)
    assert torch.equal(choices(silent.train(), *batch), choices(silent.eval(), *batch))


def test_the_loss_is_the_process_s_and_the_balance():
    net, (x, t, y) = model(dtype=torch.float32), inputs(8, torch.float32)
    diffusion, noise = GaussianDiffusion.cosine(1000, prediction="v"), torch.randn_like(x)
    plain = diffusion.losses(net, x, t, y, noise=noise)
    found = balanced_losses(0.5)(net, diffusion, x, t, y, noise)
    torch.testing.assert_close(found["mse"], plain["mse"])
    chosen = choices(net, x, t, y)
    soft = net.router(net.t_embedder(t)).softmax(-1)  # (B, L)
    uneven = 5 * (chosen.float().mean(0) / 3 * soft.mean(0)).sum()
    torch.testing.assert_close(found["loss"], plain["loss"] + 0.5 * uneven)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(keep=0), ValueError, "k=0"),
        (dict(keep=6), ValueError, "k=6 of 5"),
        (dict(keep=2.0), TypeError, "k=2.0"),
        (dict(keep=2, noise=-1.0), ValueError, "noise=-1.0"),
    ],
)
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        DynamicDiT(**settings, **SIZES)
