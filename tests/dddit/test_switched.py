"""A model whose branches are switched: against a plain one, the dense mask, and counted MACs."""

from __future__ import annotations

import pytest
import torch

from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dddit.switched import SwitchedDiT, branch
from dit_edu.dit import DiT
from dit_edu.lab.profile import count
from dit_edu.routing import record_routing

SIZES = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=3, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip


def model(dtype=torch.float64, **settings) -> SwitchedDiT:
    torch.manual_seed(0)
    net = SwitchedDiT(**{"bias": 0.2, **SIZES, **settings}).to(dtype).eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    net.router.mlp[-1].weight.data *= 8  # so that conditions differ in what they choose
    return net


def inputs(n: int = 8, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, torch.linspace(0, 999, n).long(), torch.arange(n) % 11


def choices(net, x, t, y) -> torch.Tensor:
    with record_routing(net) as trace:
        net(x, t, y)
    (decision,) = trace.decisions
    return decision.chosen


def test_the_two_branches_are_the_block():
    torch.manual_seed(0)
    block = AdaLNZeroBlock(16, 4).double()
    for parameter in block.parameters():
        parameter.data = torch.randn_like(parameter)
    x, c = torch.randn(3, 5, 16).double(), torch.randn(3, 16).double()
    middle = x + branch(block, False, x, c)
    torch.testing.assert_close(middle + branch(block, True, middle, c), block(x, c))


def test_it_starts_as_the_full_model():
    fresh, (x, t, y) = SwitchedDiT(**SIZES).double().eval(), inputs()
    for parameter in fresh.blocks.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    plain = DiT(**SIZES).double().eval()
    missing, extra = plain.load_state_dict(fresh.state_dict(), strict=False)
    assert missing == [] and all(name.startswith("router.") for name in extra)
    assert choices(fresh, x, t, y).all()
    torch.testing.assert_close(fresh(x, t, y), plain(x, t, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"keep": 3}], ids=["switches", "competition"])
@pytest.mark.parametrize("same", [True, False], ids=["one path", "gathered"])
def test_equals_the_dense_mask(settings, same):
    net, (x, t, y) = model(**settings), inputs()
    t, y = (torch.full_like(t, 300), torch.full_like(y, 3)) if same else (t, y)
    chosen = choices(net, x, t, y)
    assert (len(chosen.unique(dim=0)) == 1) == same  # the test sees what it is meant to
    assert chosen.any() and not chosen.all()
    got = net(x, t, y)
    net.choice.noise = 0.0
    net.choice.heard = True
    net.choice.train()  # everything is computed and multiplied by its gate
    torch.testing.assert_close(got, net(x, t, y), rtol=1e-10, atol=1e-10)


def test_a_sample_does_not_depend_on_its_mates():
    net, (x, t, y) = model(), inputs()
    together = net(x, t, y)
    for i in range(len(x)):
        one = slice(i, i + 1)
        torch.testing.assert_close(together[one], net(x[one], t[one], y[one]), rtol=1e-10, atol=0)


@pytest.mark.parametrize("same", [True, False], ids=["one path", "gathered"])
def test_macs_are_those_of_the_branches_that_ran(same):
    net, (x, t, y) = model(dtype=torch.float32, mlp_ratio=3.0), inputs(4, torch.float32)
    t, y = (torch.full_like(t, 300), torch.full_like(y, 3)) if same else (t, y)
    with record_routing(net) as trace:
        net(x, t, y)
    ran = int(trace.table()["macs"].sum())
    everything = 4 * int(net.branch_macs().sum())
    assert 0 < ran < everything
    plain = count(DiT(**{**SIZES, "mlp_ratio": 3.0}), x, t, y, repeats=0).macs
    router = 4 * (32 * 32 + 32 * 6)
    assert count(net, x, t, y, repeats=0).macs == plain - everything + ran + router


def test_another_size_costs_more():
    net = model()
    assert (net.at_size(16).branch_macs() > 3 * net.branch_macs()).all()


@pytest.mark.parametrize("heard", [True, False])
def test_what_is_off_is_heard_in_training_or_not(heard):
    net = model(heard=heard, noise=0.0).train()
    with torch.no_grad():
        net.router.mlp[-1].weight.zero_()
        net.router.mlp[-1].bias.copy_(torch.tensor([1, -1, 1, -1, 1, -1.0]))
    net(*inputs()).square().sum().backward()
    gradient = net.router.mlp[-1].bias.grad
    assert (gradient[::2] != 0).all()
    assert (gradient[1::2] != 0).all() if heard else not gradient[1::2].any()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(keep=7), ValueError, "keep=7 of 6"),
        (dict(keep=0), ValueError, "k=0"),
        (dict(noise=-1.0), ValueError, "noise=-1.0"),
        (dict(conditioning="adaln-single"), ValueError, "conditioning='adaln-single'"),
    ],
)
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        SwitchedDiT(**settings, **SIZES)
