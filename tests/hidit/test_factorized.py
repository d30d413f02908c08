"""Factorised attention: against sums written out, plain attention under masks, and counted MACs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dit_edu.attention import Attention
from dit_edu.hidit.factorized import (
    SPATIAL,
    AxialAttention,
    ChannelAttention,
    FactorizedAttention,
    WindowAttention,
    attention_macs,
)
from dit_edu.lab.profile import count

DIM, HEADS, GRID = 24, 4, (4, 6)


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    g = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) * 0.3
    return net.double().eval()


def tokens(n: int = 24, dim: int = DIM) -> Tensor:
    return torch.randn(2, n, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    assert a.abs().mean() > 0.01  # the comparison is not one of zeros
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_channel_attention_is_its_formula_summed_up():
    """Head by head and entry by entry, with no transpose of a whole tensor."""
    net, x, d = randomised(ChannelAttention(DIM, HEADS)), tokens(), DIM // HEADS
    q, k, v = (x @ net.qkv.weight.T + net.qkv.bias).split(DIM, dim=-1)
    out = torch.empty_like(q)
    for head in range(HEADS):
        part = slice(head * d, (head + 1) * d)
        for b in range(len(x)):
            qh, kh, vh = q[b, :, part], k[b, :, part], v[b, :, part]  # (N, d)
            qh, kh = qh / qh.norm(dim=0), kh / kh.norm(dim=0)  # a channel has length 1
            logits = torch.einsum("ni, nj -> ij", qh, kh) * net.temperature[head]
            weights = logits.exp() / logits.exp().sum(1, keepdim=True)  # (d, d)
            out[b, :, part] = torch.einsum("ij, nj -> ni", weights, vh)
    close(net(x), out @ net.proj.weight.T + net.proj.bias)


def same_window(grid: tuple[int, int], window: int) -> Tensor:
    """Which pairs of tokens share a window, (N, N), by asking each pair."""
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    return torch.tensor(
        [[a // window == c // window and b // window == d // window for c, d in places]
         for a, b in places]
    )  # fmt: skip


@pytest.mark.parametrize(("grid", "window"), [((4, 6), 2), ((4, 4), 4), ((3, 6), 3), ((2, 4), 1)])
def test_windows_are_plain_attention_under_a_mask(grid, window):
    n = grid[0] * grid[1]
    net, plain = (
        randomised(WindowAttention(DIM, HEADS, grid, window)),
        Attention(DIM, HEADS).double(),
    )
    plain.load_state_dict(net.state_dict())
    close(net(tokens(n)), plain(tokens(n), mask=same_window(grid, window)))


@pytest.mark.parametrize("grid", [(4, 6), (1, 5), (5, 1)])
def test_axes_are_plain_attention_under_a_mask_for_each_half_of_the_heads(grid):
    n = grid[0] * grid[1]
    net, plain = randomised(AxialAttention(DIM, HEADS, grid)), Attention(DIM, HEADS).double()
    plain.load_state_dict(net.state_dict())
    row, column = torch.arange(n) // grid[1], torch.arange(n) % grid[1]
    rows, columns = row[:, None] == row, column[:, None] == column  # (N, N)
    mask = torch.stack([rows, rows, columns, columns])  # (h, N, N)
    close(net(tokens(n)), plain(tokens(n), mask=mask))


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("half", [False, True])
def test_both_branches_side_by_side_and_fused(spatial, half):
    net = randomised(FactorizedAttention(DIM, HEADS, GRID, spatial, window=2, half=half))
    x, width = tokens(), DIM // 2 if half else DIM
    here, there = (x[..., :width], x[..., -width:]) if half else (x, x)
    a, b = net.spatial(here), net.channel(there)
    weight = net.fuse.weight
    close(net(x), a @ weight[:, :width].T + b @ weight[:, width:].T + net.fuse.bias)
    assert net(x).shape == x.shape


def test_channels_do_not_care_for_order_or_scale_and_windows_do():
    net, x = randomised(ChannelAttention(DIM, HEADS)), tokens()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    close(net(x[:, order]), net(x)[:, order])
    net.qkv.bias.data.zero_()
    net.proj.bias.data.zero_()
    close(net(5 * x), 5 * net(x))  # the table is the same: only values grow
    window = randomised(WindowAttention(DIM, HEADS, GRID, 2))
    assert not torch.allclose(window(x[:, order]), window(x)[:, order])


def test_what_a_token_can_learn_from_another():
    """Through a window nothing from outside it; through channels something from everywhere."""
    x = tokens()
    other = x.clone()
    other[:, -1] += 1.0  # the last token, in the last window
    for net, touched in (
        (randomised(WindowAttention(DIM, HEADS, GRID, 2)), same_window(GRID, 2)[-1]),
        (randomised(ChannelAttention(DIM, HEADS)), torch.ones(24, dtype=torch.bool)),
    ):
        changed = (net(x) - net(other)).abs().amax((0, 2)) > 1e-9  # (N,)
        assert torch.equal(changed, touched)


GRIDS = st.tuples(*(st.integers(1, 3).map(lambda k: 2 * k),) * 2)


@settings(max_examples=25, deadline=None)
@given(
    grid=GRIDS,
    dim=st.sampled_from([8, 24]),
    heads=st.sampled_from([2, 4]),
    spatial=st.sampled_from(sorted(SPATIAL)),
    half=st.booleans(),
)
def test_shapes_and_macs_are_those_of_the_formula(grid, dim, heads, spatial, half):
    if spatial == "axial" and half and heads == 2:
        heads = 4  # half of the heads is one, which cannot be shared between rows and columns
    n = grid[0] * grid[1]
    with torch.device("meta"):
        x = torch.empty(3, n, dim)
        both = FactorizedAttention(dim, heads, grid, spatial, window=2, half=half)
        assert both(x).shape == x.shape
        alone = SPATIAL[spatial](dim, heads, grid, 2)
    want = attention_macs(dim, heads, grid, spatial, window=2, half=half)
    assert count(both, x, repeats=0).macs == 3 * sum(want.values())
    want = attention_macs(dim, heads, grid, spatial, window=2, channel=False)
    assert count(alone, x, repeats=0).macs == 3 * sum(want.values())


def test_windows_pay_beyond_three_times_the_width():
    """A block with both branches and windows against a plain one: 18 D² and 12 D² for a token."""
    d, mlp = 32, 8 * 32**2
    for n_over_d, pays in ((2.5, False), (3.5, True)):
        grid = (4, round(n_over_d * d) // 4)
        n = grid[0] * grid[1]
        plain = sum(attention_macs(d, 4, grid, channel=False).values()) + mlp * n
        both = attention_macs(d, 4, grid, "window", window=1)
        assert both["tokens"] + mlp * n == 18 * d**2 * n
        assert (both["tokens"] + mlp * n < plain) == pays


def test_gradients_reach_both_branches():
    net = randomised(FactorizedAttention(DIM, HEADS, GRID))
    net(tokens()).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_single_token_and_a_single_precision():
    x = torch.randn(2, 1, DIM)
    for net in (ChannelAttention(DIM, HEADS), FactorizedAttention(DIM, HEADS, (1, 1), "axial")):
        assert torch.isfinite(net(x)).all()
        exact = net.double()(x.double())
        torch.testing.assert_close(net.float()(x).double(), exact, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(F.normalize(torch.zeros(1, 3), dim=-1)).all()  # dead channels are safe


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ChannelAttention(24, 5), "num_heads=5 .*dim=24"),
        (lambda: WindowAttention(24, 4, (4, 6), 4), "window=4 .*grid=4x6"),
        (lambda: WindowAttention(24, 4, (4, 6), 0), "window=0"),
        (lambda: AxialAttention(24, 3, (4, 6)), "num_heads=3 must be even"),
        (lambda: FactorizedAttention(24, 4, (4, 6), "windows"), "'windows'.*'window'"),
        (lambda: FactorizedAttention(24, 3, (4, 6), half=True), "dim=24 .*num_heads=3"),
        (lambda: attention_macs(24, 4, (4, 6), "windows"), "'windows'"),
        (lambda: WindowAttention(24, 4, (4, 6), 2)(torch.zeros(1, 20, 24)), "20 tokens.*4x6"),
        (lambda: AxialAttention(24, 4, (4, 6))(torch.zeros(1, 20, 24)), "20 tokens.*4x6"),
        *(
            (lambda net=net: net(torch.zeros(1, 24, 24), mask=torch.ones(24, 24)), "mask .*None")
            for net in (
                ChannelAttention(24, 4),
                WindowAttention(24, 4, (4, 6), 2),
                AxialAttention(24, 4, (4, 6)),
                FactorizedAttention(24, 4, (4, 6)),
            )
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
