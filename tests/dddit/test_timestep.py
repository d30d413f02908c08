"""Width by the step: against a plain DiT, weights set to 0, one image at a time, counted MACs."""

from __future__ import annotations

import pytest
import torch

from dit_edu.dddit.router import BudgetedLosses
from dit_edu.dddit.timestep import WIDTHS, TimestepDiT
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.lab.profile import count
from dit_edu.routing import record_routing

SIZES = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=32, depth=2, num_heads=4, num_classes=10,
    learn_sigma=False,
)  # fmt: skip
BANDS = ("light", "base", "heavy")


def model(dtype=torch.float64, **settings) -> TimestepDiT:
    torch.manual_seed(0)
    net = TimestepDiT(**{**SIZES, **settings}).to(dtype).eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    if net.router is not None:
        net.router.mlp[-1].weight.data *= 20  # so that steps differ in what they choose
        net.router.mlp[-1].bias.data.zero_()
    return net


def inputs(n: int = 9, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, torch.linspace(0, 999, n).long(), torch.arange(n) % 11


def recorded(net: TimestepDiT, x, t, y):
    with record_routing(net) as trace:
        out = net(x, t, y)
    (decision,) = trace.decisions
    return out, decision


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def masked(net: TimestepDiT, share: float) -> DiT:
    """A plain DiT in which all beyond a share of heads and channels says 0: the definition."""
    plain = DiT(**SIZES).double().eval()
    plain.load_state_dict(net.state_dict(), strict=False)
    for block in plain.blocks:
        for out in (block.attn.proj, block.mlp.fc2):
            out.weight.data[:, int(share * out.in_features) :] = 0
    return plain


def test_it_has_the_weights_of_a_dit_and_starts_as_one():
    net, plain = model(), DiT(**SIZES).double().eval()
    plain.load_state_dict(net.state_dict())
    same(net(*inputs()), plain(*inputs()))
    torch.manual_seed(0)
    fresh = TimestepDiT(**SIZES)
    torch.manual_seed(0)
    for mine, theirs in zip(fresh.parameters(), DiT(**SIZES).parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_fresh_gate_is_heavy():
    net = TimestepDiT(gated=True, **SIZES).eval()
    assert recorded(net, *inputs(dtype=torch.float32))[1].chosen.all()


@pytest.mark.parametrize("name", WIDTHS)
def test_a_width_is_the_whole_with_the_rest_masked(name):
    net = model(bands=(name,))
    same(net(*inputs()), masked(net, WIDTHS[name])(*inputs()))


@pytest.mark.parametrize(
    "settings", [{}, dict(gated=True, positions="rope"), dict(positions="learned")]
)
def test_a_width_can_be_cut_out(settings):
    net = model(**settings)
    for name in WIDTHS:
        small = net.cut(name)
        net.bands = (name,)
        same(small(*inputs()), net(*inputs()))
        both = (count(m.float(), *inputs(2, torch.float32), repeats=0).macs for m in (small, net))
        assert len(set(both)) == 1
        net.double()
    with pytest.raises(ValueError, match="name='thin'"):
        net.cut("thin")


def test_what_is_cut_out_holds_no_more_than_it_needs():
    net = TimestepDiT(**SIZES)
    whole, light = (sum(p.numel() for p in net.cut(n).parameters()) for n in ("heavy", "light"))
    dropped = 3 * (3 * 8 * 32 + 3 * 8 + 32 * 8) + 3 * (2 * 32 * 32 + 32)  # of heads, of channels
    assert whole - light == 2 * dropped  # two blocks


def test_each_step_has_the_width_of_its_band():
    net, (x, t, y) = model(bands=BANDS), inputs()
    t[:3] = torch.tensor([333, 334, 999])  # beside a border, and the last
    out = net(x, t, y)
    for i, step in enumerate(t.tolist()):
        share = WIDTHS[BANDS[step * 3 // 1000]]
        one = slice(i, i + 1)
        same(out[one], masked(net, share)(x[one], t[one], y[one]))
        same(out[one], net(x[one], t[one], y[one]))  # whoever its mates are


def test_steps_may_be_fractions():
    net, (x, t, y) = model(bands=BANDS), inputs()
    decision = recorded(net, x, t + 0.9, y)[1]
    assert decision.chosen.sum(1).tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(("positions", "size"), [("sincos", 8), ("rope", 8), ("learned", (8, 4))])
def test_what_runs_is_what_is_reported(positions, size):
    net = model(torch.float32, bands=BANDS, positions=positions, input_size=size)
    plain = DiT(**{**SIZES, "positions": positions, "input_size": size}).eval()
    x, t, y = inputs(dtype=torch.float32)
    x = x[..., : net.input_size[1]]
    decision = recorded(net, x, t, y)[1]
    missing = len(t) * net.width_macs()[-1] - int(decision.executed().sum())
    assert missing > 0
    full = count(plain, x, t, y, repeats=0).macs
    assert count(net, x, t, y, repeats=0).macs == full - missing


def test_a_gate_s_path_is_the_one_of_its_bands():
    net, (x, t, y) = model(gated=True), inputs(24)
    out, decision = recorded(net, x, t, y)
    width = decision.chosen.sum(1)  # (B,), 1 to 3
    assert len(width.unique()) == 3
    for i in range(len(x)):
        one = slice(i, i + 1)
        same(out[one], masked(net, list(WIDTHS.values())[width[i] - 1])(x[one], t[one], y[one]))
    net.bands = ("light",)  # bands go before the gate
    same(net(x, t, y), masked(net, WIDTHS["light"])(x, t, y))


def test_a_gate_hears_the_widths_that_it_did_not_choose():
    net, (x, t, y) = model(gated=True, class_dropout_prob=0.0).train(), inputs(6)
    y = y % 10
    torch.manual_seed(3)
    out, decision = recorded(net, x, t, y)
    assert decision.soft.requires_grad
    width = decision.chosen.sum(1)
    net.eval()
    for name, number in zip(WIDTHS, (1, 2, 3), strict=True):
        net.bands = (name,)
        mine = width == number
        same(out[mine], net(x, t, y)[mine])
    (gradient,) = torch.autograd.grad(out.square().sum(), net.router.mlp[-1].bias)
    assert gradient.ne(0).all()


def test_the_budget_of_a_gate_is_that_of_its_widths():
    net = model(torch.float32, gated=True)
    process = GaussianDiffusion.cosine(1000, prediction="v")
    x, t, y = inputs(dtype=torch.float32)
    loss_fn = BudgetedLosses(0.5, weight=1.0, entropy=0.0, ramp=0)
    noise = torch.zeros_like(x)
    with record_routing(net) as trace:
        steered = loss_fn(net, process, x, t, y, noise)["loss"]
    plain = process.losses(net, x, t, y, noise=noise)["loss"]
    shares = torch.tensor(list(WIDTHS.values()))
    logits = net.router(net.t_embedder(t))
    used = (logits.softmax(-1) * shares).sum(-1).mean()
    torch.testing.assert_close(
        (steered - plain).mean(), (used - 0.5).square(), atol=1e-6, rtol=1e-4
    )
    assert trace.decisions[0].macs.sum() == net.width_macs()[-1]


@pytest.mark.parametrize("drawn", ["image", "batch"])
def test_training_draws_every_width(drawn):
    net, (x, t, y) = model(drawn=drawn, bands=("light",)).train(), inputs(30)
    torch.manual_seed(0)
    found = [set(recorded(net, x, t, y)[1].chosen.sum(1).tolist()) for _ in range(20)]
    assert set.union(*found) == {1, 2, 3}
    assert all((len(widths) > 1) == (drawn == "image") for widths in found)
    assert set(recorded(net.eval(), x, t, y)[1].chosen.sum(1).tolist()) == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(bands=("light", "wide")), "bands='wide' is unknown; allowed: light, base, heavy"),
        (dict(bands=()), "bands=.*empty"),
        (dict(drawn="images"), "drawn='images'"),
        (dict(drawn="image", gated=True), "gated=True"),
        (dict(num_timesteps=0), "num_timesteps=0"),
        (dict(num_heads=2), "num_heads is 2; allowed: a multiple of 4"),
        (dict(mlp_ratio=3.1), "the MLP's width is 99; allowed: a multiple of 4"),
        (dict(conditioning="adaln"), "conditioning='adaln' of a TimestepDiT"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        TimestepDiT(**{**SIZES, **options})
