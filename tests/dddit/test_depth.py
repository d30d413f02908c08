"""Depth that can be chosen: against shorter models, the dense mask, and counted MACs."""

from __future__ import annotations

import copy
from fractions import Fraction
from functools import partial
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_edu.dddit.depth import SIZES, DepthDiT, light_first
from dit_edu.dispatch import run_masked
from dit_edu.dit import DiT
from dit_edu.lab.profile import count
from dit_edu.routing import record_routing

MODEL = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=4, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip
TINY = dict(input_size=4, patch_size=2, in_channels=1, hidden_size=8, num_heads=2, num_classes=3)


def model(dtype=torch.float64, **options) -> DepthDiT:
    torch.manual_seed(0)
    net = DepthDiT(**{**MODEL, **options}).to(dtype).eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return net


def inputs(n: int = 6, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, torch.linspace(0, 999, n).long(), torch.arange(n) % 11


def recorded(net: DepthDiT, x, t, y):
    with record_routing(net) as trace:
        out = net(x, t, y)
    (decision,) = trace.decisions
    return out, decision


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- sizes


def test_half_is_light():
    assert light_first(8) == ["light"] * 4 + ["standard"] * 2 + ["full"] * 2


@pytest.mark.parametrize("conditioning", ["adaln-zero", "cross-attention", "in-context"])
def test_sizes_cost_what_the_closed_form_says(conditioning):
    options = {**MODEL, "conditioning": conditioning, "sizes": light_first(4)}
    batch = inputs(2, torch.float32)
    found = count(DepthDiT(**options), *batch, repeats=0).macs
    net = DepthDiT(**options)
    plain = DiT(**{**MODEL, "conditioning": conditioning})
    light, _, standard, full = net.block_macs()
    saved = 2 * (2 * (full - light) + full - standard)  # of two images
    assert found == count(plain, *batch, repeats=0).macs - saved
    tokens = 18 if conditioning == "in-context" else 16
    assert full - light == 2 * 32 * (128 - 32) * tokens  # two maps, D by the width that is missing


def test_light_first_costs_what_narrow_blocks_cost():
    arranged = DepthDiT(**MODEL, sizes=light_first(4))
    reverse = DepthDiT(**MODEL, sizes=light_first(4)[::-1])
    narrow = DiT(**MODEL, mlp_ratio=2.0)
    batch = inputs(1, torch.float32)
    costs = {count(m, *batch, repeats=0).macs for m in (arranged, reverse, narrow)}
    sizes = {sum(p.numel() for p in m.parameters()) for m in (arranged, reverse, narrow)}
    assert len(costs) == 1 and len(sizes) == 1


def test_a_fresh_model_answers_zero():
    batch = inputs(dtype=torch.float32)
    assert not DepthDiT(**MODEL, sizes=light_first(4))(*batch).any()


# ---------------------------------------------------------------------- the budget


def test_without_a_budget_it_is_a_plain_dit():
    net, plain = model(), DiT(**MODEL).double().eval()
    plain.load_state_dict(net.state_dict())
    same(net(*inputs()), plain(*inputs()))
    net.depth_budget = 1.0
    same(net(*inputs()), plain(*inputs()))


def test_a_budget_is_a_shorter_model():
    net, short = model(), DiT(**{**MODEL, "depth": 2}).double().eval()
    weights = {
        k: v for k, v in net.state_dict().items() if not k.startswith(("blocks.2", "blocks.3"))
    }
    short.load_state_dict(weights)
    net.depth_budget = 1 / 3  # one block beyond the first
    same(net(*inputs()), short(*inputs()))
    batch = inputs(2, torch.float32)
    assert (
        count(net.float(), *batch, repeats=0).macs == count(short.float(), *batch, repeats=0).macs
    )


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(4)),
    sizes=st.lists(st.sampled_from(sorted(SIZES)), min_size=4, max_size=4),
    floor=st.integers(1, 4),
    budgets=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    batch=st.integers(1, 3),
)
def test_a_budget_is_kept_exactly(order, sizes, floor, budgets, batch):
    net = DepthDiT(**TINY, depth=4, order=order, sizes=sizes, floor=floor).eval()
    macs = net.block_macs()
    spent = list(accumulate(macs[b] for b in order))
    x, t = torch.randn(batch, 1, 4, 4), torch.zeros(batch, dtype=torch.long)
    ran = []
    for budget in sorted(budgets):
        net.depth_budget = budget
        _, decision = recorded(net, x, t, t)
        executed = decision.executed().sum(1)  # (B,)
        assert (executed == executed[0]).all()
        used = int(executed[0])
        allowed = spent[floor - 1] + Fraction(budget) * (spent[-1] - spent[floor - 1])
        assert used <= allowed + Fraction(1, 10**6)  # floats round; a MAC is whole
        later = [s for s in spent if s > used]
        assert not later or later[0] > allowed  # and one block more would be too much
        assert decision.chosen[0, list(order[:floor])].all()
        ran.append(decision.chosen[0])
    assert (ran[1] | ~ran[0]).all()  # who runs for little runs for more


def test_the_ends_of_the_budget():
    net = DepthDiT(**TINY, depth=4, order=[2, 0, 3, 1], floor=2)
    assert [net.kept(b) for b in (0.0, 0.49, 0.5, 0.99, 1.0)] == [2, 2, 3, 3, 4]


def test_nothing_but_the_chosen_blocks_runs():
    net = model(order=[3, 1, 0, 2])
    net.depth_budget = 1 / 3
    ran = []
    for number, block in enumerate(net.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    net(*inputs())
    assert ran == [1, 3]  # in the order of the depth


# ---------------------------------------------------------------------- drawn in training


@pytest.mark.parametrize("drawn", ["image", "batch"])
def test_training_draws_every_depth(drawn):
    net, (x, t, y) = model(drawn=drawn, order=[1, 0, 3, 2], floor=2).train(), inputs(40)
    torch.manual_seed(0)
    depths = set()
    for _ in range(12):
        chosen = recorded(net, x, t, y)[1].chosen
        keep = chosen.sum(1)
        assert all(set(row.nonzero().flatten().tolist()) == set(net.order[: int(k)])
                   for row, k in zip(chosen, keep, strict=True))  # fmt: skip
        assert (len(keep.unique()) > 1) == (drawn == "image")
        depths |= set(keep.tolist())
    assert depths == {2, 3, 4}
    assert recorded(net.eval(), x, t, y)[1].chosen.all()


def test_gathered_equals_the_dense_mask():
    net, (x, t, y) = model(drawn="image", class_dropout_prob=0.0).train(), inputs()
    y = y % 10
    torch.manual_seed(2)
    out, decision = recorded(net, x, t, y)
    assert len(decision.chosen.unique(dim=0)) > 1
    dense = copy.deepcopy(net)
    dense.layers = lambda *_: [
        partial(run_masked, decision.chosen[:, e], block) for e, block in enumerate(net.blocks)
    ]
    same(out, dense(x, t, y))


# ---------------------------------------------------------------------- the router


def routed(dtype=torch.float64) -> DepthDiT:
    net = model(dtype, routed=True, bias=0.0)
    net.router.mlp[-1].weight.data *= 20  # so that conditions differ
    return net


def test_a_fresh_router_runs_everything():
    fresh = DepthDiT(**MODEL, routed=True).eval()
    assert recorded(fresh, *inputs(dtype=torch.float32))[1].chosen.all()


def test_the_routed_path_equals_the_dense_mask():
    net, (x, t, y) = routed(), inputs()
    out, decision = recorded(net, x, t, y)
    assert len(decision.chosen.unique(dim=0)) > 1
    dense = copy.deepcopy(net)
    dense.layers = lambda *_: [
        partial(run_masked, decision.chosen[:, e], block) for e, block in enumerate(net.blocks)
    ]
    same(out, dense(x, t, y))
    for i in range(len(x)):
        one = slice(i, i + 1)
        same(out[one], net(x[one], t[one], y[one]))


def test_the_router_s_macs_are_those_that_ran():
    net, batch = routed(torch.float32), inputs(dtype=torch.float32)
    decision = recorded(net, *batch)[1]
    plain = count(DiT(**MODEL), *batch, repeats=0).macs
    off = int((~decision.chosen).sum())
    router = len(batch[0]) * (32 * 32 + 32 * 4)
    assert count(net, *batch, repeats=0).macs == plain - off * net.block_macs()[0] + router


def test_a_budget_overrules_the_router():
    net, plain = routed(), DiT(**MODEL).double().eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    net.depth_budget = 1.0
    same(net(*inputs()), plain(*inputs()))


def test_what_is_off_is_heard_in_training():
    net, (x, t, y) = routed().train(), inputs()
    torch.manual_seed(1)
    out, decision = recorded(net, x, t, y)
    off = (~decision.chosen).all(0).nonzero().flatten().tolist()
    (gradient,) = torch.autograd.grad(out.square().sum(), net.router.mlp[-1].bias)
    assert gradient.ne(0).all() and (off or (~decision.chosen).any())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(order=[0, 1, 2]), ValueError, r"order=\[0, 1, 2\]"),
        (dict(order=[0, 1, 2, 2]), ValueError, "each of 0 to 3, once"),
        (dict(floor=0), ValueError, "floor=0"),
        (dict(floor=5), ValueError, "floor=5"),
        (dict(floor=1.0), TypeError, "floor=1.0"),
        (dict(drawn="images"), ValueError, "drawn='images'"),
        (dict(drawn="image", routed=True), ValueError, "routed=True"),
        (dict(sizes=["light"]), ValueError, "one for each of 4"),
        (dict(sizes=["light", "full", "full", "big"]), ValueError, "sizes='big'"),
        (dict(routed=True, conditioning="adaln"), ValueError, "adaln-zero"),
    ],
)  # fmt: skip
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        DepthDiT(**MODEL, **options)


@pytest.mark.parametrize("budget", [-0.1, 1.1, float("nan")])
def test_bad_budgets(budget):
    with pytest.raises(ValueError, match="depth_budget"):
        DepthDiT(**MODEL).depth_budget = budget


def test_bad_depths():
    with pytest.raises(ValueError, match="depth=6"):
        light_first(6)
    with pytest.raises(TypeError, match="depth=4"):
        light_first(4.0)
