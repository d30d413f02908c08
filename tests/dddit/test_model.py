"""DDDiT: against the dense model, the dense mask, counted MACs, and the sizes that were claimed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_edu import dddit
from dit_edu.dddit.model import DDDiT
from dit_edu.dddit.paths import equal_paths, planned_paths, spread, within_budget
from dit_edu.dispatch import run_masked
from dit_edu.dit import DiT
from dit_edu.guidance import Guided
from dit_edu.lab.profile import count
from dit_edu.routing import record_routing

SIZES = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=3, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip
TABLE = ((0, 2, 1.5), (300, 3, 4), (700, 4, 6))


def model(dtype=torch.float64, **options) -> DDDiT:
    torch.manual_seed(0)
    net = DDDiT(**{**SIZES, **options}).to(dtype).eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    net.router.mlp[-1].weight.data *= 50  # so that conditions differ in what they choose
    net.router.mlp[-1].bias.data.fill_(2.0)
    return net


def inputs(n: int = 8, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, torch.linspace(0, 999, n).long(), torch.arange(n) % 11


def paths(net, x, t, y) -> torch.Tensor:
    with record_routing(net) as trace:
        net(x, t, y)
    assert [d.module for d in trace.decisions[:2]] == ["blocks.0.attn", "blocks.0.mlp"]
    return torch.cat([d.chosen for d in trace.decisions], dim=1)


def dense(net: DDDiT) -> DiT:
    plain = DiT(**{**SIZES, "positions": net.positions}).to(net.final_layer.linear.weight).eval()
    weights = {k: v for k, v in net.state_dict().items() if not k.startswith("router.")}
    plain.load_state_dict(weights)  # the keys of a DiT, all and no more
    return plain


def zeroed(net: DDDiT, path: torch.Tensor) -> DiT:
    """A dense model of the same answers on one path: what is off has weights of 0."""
    plain = dense(net)
    for block, units in zip(plain.blocks, path.unflatten(0, (len(plain.blocks), -1)), strict=True):
        heads, groups = units[: net.heads], units[net.heads :]
        block.attn.proj.weight.data.unflatten(1, (net.heads, -1))[:, ~heads] = 0
        off = torch.cat([torch.zeros(net.shared, dtype=torch.bool), ~groups])
        block.mlp.fc2.weight.data.unflatten(1, (len(off), -1))[:, off] = 0
        if not heads.any():
            block.attn.proj.bias.data.zero_()
        if off.all():
            block.mlp.fc2.bias.data.zero_()
    return plain


def test_full_mode_is_the_dense_model():
    net, (x, t, y) = model(), inputs()
    net.mode = "full"
    torch.testing.assert_close(net(x, t, y), dense(net)(x, t, y), rtol=1e-10, atol=1e-10)


def test_it_starts_as_the_dense_model():
    torch.manual_seed(0)
    fresh, (x, t, y) = DDDiT(**SIZES).double().eval(), inputs()
    for parameter in fresh.blocks.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    assert paths(fresh, x, t, y).all()
    torch.testing.assert_close(fresh(x, t, y), dense(fresh)(x, t, y), rtol=1e-10, atol=1e-10)


OPTIONS = {
    "step": {},
    "image": {"asks": "image"},
    "no floor": {"shared": 0, "experts": 4, "least_heads": 0},
    "table": {"table": TABLE},
    "rotary": {"positions": "rope"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_path_is_the_dense_model_with_zeros(options):
    net, (x, t, y) = model(**options), inputs()
    chosen, got = paths(net, x, t, y), net(x, t, y)
    assert len(chosen.unique(dim=0)) > 1  # the test sees what it is meant to
    for i, path in enumerate(chosen):
        one = slice(i, i + 1)
        want = zeroed(net, path)(x[one], t[one], y[one])
        torch.testing.assert_close(got[one], want, rtol=1e-10, atol=1e-10)
        # and a sample does not depend on its mates
        torch.testing.assert_close(got[one], net(x[one], t[one], y[one]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [v for k, v in OPTIONS.items() if k != "table"])
def test_equals_the_gates(options):
    net, (x, t, y) = model(**options), inputs()
    got = net(x, t, y)
    net.choice.noise = 0.0
    net.choice.train()  # everything is computed and multiplied by its gate
    torch.testing.assert_close(got, net(x, t, y), rtol=1e-10, atol=1e-10)


def test_nothing_runs_where_nothing_is_on():
    net, (x, t, y) = model(shared=0, experts=4, least_heads=0), inputs()
    net.mode = "light"
    want = dense(net)
    want.blocks = torch.nn.ModuleList()
    torch.testing.assert_close(net(x, t, y), want(x, t, y), rtol=1e-10, atol=1e-10)
    net.mode = "dynamic"
    net.router.mlp[-1].weight.data.zero_()
    net.router.mlp[-1].bias.data.fill_(-9.0)
    torch.testing.assert_close(net(x, t, y), want(x, t, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["full", "light", "dynamic"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_macs_are_those_that_run(options, mode):
    net, (x, t, y) = model(torch.float32, **options), inputs(4, torch.float32)
    net.mode = mode
    chosen = paths(net, x, t, y)
    assert count(net, x, t, y, repeats=0).macs == int(net.macs(chosen).sum())
    with record_routing(net) as trace:
        net(x, t, y)
    each = torch.tensor([int(d.executed().sum()) for d in trace.decisions])
    assert int(each.sum()) == int((net.unit_macs().repeat(3) * chosen).sum())


@torch.no_grad()
def test_kept_slices_follow_the_weights():
    net, (x, t, y) = model(), inputs()
    t = torch.full_like(t, 400)  # one path
    first = net(x, t, y)
    with torch.enable_grad():
        torch.testing.assert_close(first, net(x, t, y), rtol=1e-10, atol=1e-10)
    changes = {
        "in place": lambda: net.blocks[1].attn.qkv.weight.mul_(1.5),
        "loaded": lambda: net.load_state_dict(model(input_size=8).state_dict()),
        "replaced": lambda: setattr(
            net.blocks[0].mlp.fc2.weight, "data", torch.randn(32, 128).double()
        ),
        "a bias": lambda: net.blocks[2].attn.proj.bias.add_(1.0),
    }
    for change in changes.values():
        change()
        with torch.enable_grad():
            want = net(x, t, y)
        torch.testing.assert_close(net(x, t, y), want, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(first, want)
    assert len(net._kept) <= 2
    for units in torch.rand(20, 3 * net.units, dtype=torch.float64) > 0.3:
        net._again_along(
            tuple(units.view(3, -1).index_fill(1, torch.tensor([0]), True).flatten().tolist()),
            torch.randn(1, 16, 32).double(),
            torch.randn(1, 32).double(),
        )
    assert len(net._kept) <= 16


@torch.no_grad()
def test_a_walk_that_is_repeated_finds_its_slices_whatever_was_drawn_before():
    net, x, c = model(), torch.randn(1, 16, 32).double(), torch.randn(1, 32).double()
    paths = [tuple(p.tolist()) for p in torch.rand(30, 3 * net.units) > 0.3]
    paths = [(True, *p[1 : net.units], True, *p[net.units + 1 :]) for p in paths]
    for path in paths:  # more than are kept; the last 10 are a walk
        net._again_along(path, x, c)
    before = {path: net._kept[path][1] for path in paths[20:]}
    for path in paths[20:]:
        net._again_along(path, x, c)
    assert all(net._kept[path][1] is blocks for path, blocks in before.items())


def test_modes_are_ordered():
    net = model(table=TABLE)
    t = torch.arange(0, 1000, 20)
    macs = {}
    for mode in ("light", "dynamic", "full"):
        net.mode = mode
        macs[mode] = float(net.macs(net.planned(t)).double().mean())
    assert macs["light"] < macs["dynamic"] < macs["full"]
    plain = count(dense(net).float(), *(v[:1] for v in inputs(dtype=torch.float32)), repeats=0)
    assert macs["full"] == plain.macs


def test_a_table_holds_from_its_steps_on():
    net = model(table=TABLE)
    chosen = net.planned(torch.tensor([0, 299, 300, 699, 700, 999])).unflatten(1, (3, -1))
    assert chosen[..., :4].sum((1, 2)).tolist() == [6, 6, 9, 9, 12, 12]
    assert chosen[..., 4:].sum((1, 2)).tolist() == [4, 4, 12, 12, 18, 18]
    assert not net.planned(torch.tensor([0])).unflatten(1, (3, -1))[0, :, 2:4].any()  # the first


def test_a_budget_is_kept_and_only_adds():
    net, (x, t, y) = model(), inputs()
    macs = net.unit_macs().repeat(len(net.blocks))
    always = (torch.arange(net.units) < net.least_heads).repeat(len(net.blocks))
    before = always.expand(len(t), -1)
    for budget in (0.0, 0.2, 0.5, 0.8, 1.0):
        net.budget = budget
        runs = paths(net, x, t, y)
        spent = ((runs & ~always) * macs).sum(1) / (~always * macs).sum()  # (B,)
        assert (spent <= budget + 1e-12).all()
        assert (spent > budget - float(macs.max() / (~always * macs).sum())).all()
        assert (runs >= before).all()
        before = runs
    assert before.all()
    net.budget = 0.0
    least = paths(net, x, t, y)
    net.mode = "light"
    assert torch.equal(paths(net, x, t, y), least)


def test_a_budget_goes_by_the_logits():
    wish, macs = (
        torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]),
        torch.tensor([1, 2, 3, 4]),
    )
    runs = within_budget(wish, macs, 0.6)  # of 10 MACs
    # 1 + 3 + 2 fit, and then the next; 4, and with 3 it would be too much
    assert runs.tolist() == [[True, True, True, False], [False, False, False, True]]


def test_a_budget_counts_in_evaluation_alone():
    net, batch = model(), inputs()
    net.budget = 0.0
    net.train()
    torch.manual_seed(3)
    want = net(*batch)
    net.budget = None
    torch.manual_seed(3)
    assert torch.equal(net(*batch), want)
    with pytest.raises(ValueError, match=r"budget=1\.1; allowed: 0 to 1"):
        net.budget = 1.1


def test_guidance_shares_the_path_of_a_step():
    net, (x, t, y) = model(), inputs()
    with record_routing(net) as trace:
        Guided(net, 2.0)(x, torch.full_like(t, 400), y)
    chosen = torch.cat([d.chosen for d in trace.decisions], dim=1)
    assert len(chosen.unique(dim=0)) == 1
    net.asks = "image"
    assert len(paths(net, x, torch.full_like(t, 400), y).unique(dim=0)) > 1


def test_what_is_off_is_heard_in_training():
    net = model(noise=0.0).train()
    net.router.mlp[-1].weight.data.zero_()
    net.router.mlp[-1].bias.data[::2] = -20.0
    chosen = paths(net, *inputs())
    assert chosen.any() and not chosen.all()
    net(*inputs()).square().sum().backward()
    assert (net.router.mlp[-1].bias.grad != 0).all()


def test_the_large_preset_costs_what_was_claimed():
    with torch.device("meta"):
        net = dddit.DDDiT.from_preset("DDDiT-XL/2")
    assert isinstance(net, DDDiT) and list(dddit.PRESETS) == ["DDDiT-XL/2"]
    steps = torch.arange(0, 1000, 20)
    average = float(net.macs(net.planned(steps)).double().mean()) / 1e9
    assert average == pytest.approx(72.3, rel=0.03)
    one = torch.zeros(1, dtype=torch.long, device="meta")
    x = torch.zeros(1, 4, 32, 32, device="meta")
    for t in (0, 500, 999):  # closed form against the counter, each band of the table
        planned = net.planned(torch.tensor([t]))
        net.planned = lambda _, planned=planned: planned
        assert count(net, x, one, one, repeats=0).macs == int(net.macs(planned))
        del net.planned
    net.mode = "full"
    assert int(net.macs(net.planned(steps[:1]))) / 1e9 == pytest.approx(118.6, rel=1e-3)


@given(mean=st.floats(0, 16), blocks=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_spread_is_even(mean, blocks):
    numbers = spread(mean, blocks)
    assert len(numbers) == blocks and max(numbers) - min(numbers) <= 1
    assert 0 <= blocks * mean - sum(numbers) < 1 + 1e-6 or sum(numbers) == round(blocks * mean)


def test_equal_paths_cover_a_batch_once():
    chosen = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 1]]).bool()
    found = equal_paths(chosen)
    assert sorted(int(i) for items, _ in found for i in items) == [0, 1, 2, 3]
    for items, path in found:
        assert (chosen[items] == path).all()
    ((everybody, _),) = equal_paths(chosen[:1].expand(5, 2))
    assert everybody == slice(None)
    seen = torch.zeros(4, 2)
    for items, path in found:  # as a mask would have it
        mask = torch.zeros(4, dtype=torch.bool)
        mask[items] = True
        seen = run_masked(mask, lambda x, path=path: x + path, seen)
    assert torch.equal(seen, chosen.float())


def test_another_size_costs_more():
    net = model()
    assert (net.at_size(16).unit_macs() > 3 * net.unit_macs()).all()
    everything = torch.ones(3 * net.units, dtype=torch.bool)
    assert int(net.at_size(16).macs(everything)) > 3 * int(net.macs(everything))


def test_planned_paths_by_hand():
    got = planned_paths([(0, 1, 0.5)], torch.tensor([3]), depth=2, heads=2, experts=1)
    assert got.int().tolist() == [[1, 0, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(experts=5), ValueError, "experts=5 and shared=2 of 128"),
        (dict(experts=0), ValueError, "experts=0"),
        (dict(shared=-1), ValueError, "shared=-1"),
        (dict(least_heads=5), ValueError, "least_heads=5; allowed: 0 to 4"),
        (dict(asks="token"), ValueError, "asks='token'"),
        (dict(noise=-1.0), ValueError, "noise=-1.0"),
        (dict(conditioning="adaln-single"), ValueError, "conditioning='adaln-single'"),
        (dict(table=()), ValueError, "table starts at steps"),
        (dict(table=((10, 2, 2),)), ValueError, "from 0 on"),
        (dict(table=((0, 2, 2), (0, 3, 2))), ValueError, "increasing"),
        (dict(table=((0, 0, 2),)), ValueError, "1 to 4 heads"),
        (dict(table=((0, 1, 7),)), ValueError, "0 to 6 experts"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        DDDiT(**options, **SIZES)


def test_bad_mode():
    net = model()
    with pytest.raises(ValueError, match=r"mode='lite'.*Did you mean 'light'"):
        net.mode = "lite"
    with pytest.raises(ValueError, match="without a table"):
        net.planned(torch.tensor([0]))
    with pytest.raises(ValueError, match="DDDiT-XL/2"):
        DDDiT.from_preset("DDDiT-XL/3")
