"""Parts of attention and MLP: against the whole with the rest set to 0, and counted MACs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dit_edu.attention import Attention
from dit_edu.branches import Mlp
from dit_edu.dddit.slices import channel_macs, head_macs, pick, some_channels, some_heads
from dit_edu.lab.profile import count
from dit_edu.positions import Rotary

HEADS, DIM, WIDE = 4, 32, 24
SOME = st.lists(st.integers(0, HEADS - 1), min_size=1, max_size=HEADS, unique=True).map(sorted)


def attention(rotary: bool = False, qkv_bias: bool = True) -> Attention:
    torch.manual_seed(0)
    attn = Attention(DIM, HEADS, qkv_bias).double().eval()
    if rotary:
        attn.rotary = Rotary(DIM // HEADS, (3, 3)).double()
    return attn


def mlp(dropout: float = 0.0) -> Mlp:
    torch.manual_seed(0)
    return Mlp(DIM, WIDE, dropout).double().eval()


def tokens() -> torch.Tensor:
    return torch.randn(2, 9, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def keeping(layer: nn.Linear, kept: torch.Tensor, x_of) -> torch.Tensor:
    """What ``x_of()`` says while the inputs of ``layer`` that are not ``kept`` are set to 0."""
    hook = layer.register_forward_pre_hook(lambda _, args: (args[0] * kept,))
    try:
        return x_of()
    finally:
        hook.remove()


class Part(nn.Module):
    """A function of a module and tokens, as a module, so that it can be counted."""

    def __init__(self, function, module, which) -> None:
        super().__init__()
        self.function, self.module, self.which = function, module, which

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.module, self.which, x)


@settings(deadline=None, max_examples=15)
@given(chosen=SOME, rotary=st.booleans(), qkv_bias=st.booleans())
def test_some_heads_are_the_whole_with_the_others_masked(chosen, rotary, qkv_bias) -> None:
    attn, x = attention(rotary, qkv_bias), tokens()
    kept = torch.zeros(HEADS, DIM // HEADS, dtype=torch.float64)
    kept[chosen] = 1
    want = keeping(attn.proj, kept.flatten(), lambda: attn(x))
    torch.testing.assert_close(some_heads(attn, pick(chosen, HEADS), x), want, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(chosen=SOME)
def test_some_channels_are_the_whole_with_the_others_masked(chosen) -> None:
    net, x = mlp(), tokens()
    kept = torch.zeros(HEADS, WIDE // HEADS, dtype=torch.float64)
    kept[chosen] = 1
    want = keeping(net.fc2, kept.flatten(), lambda: net(x))
    which = pick(chosen, HEADS, WIDE // HEADS)
    torch.testing.assert_close(some_channels(net, which, x), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("which", [slice(1), slice(1, 3), torch.tensor([0, 2, 3])])
def test_what_runs_is_what_the_closed_form_says(which) -> None:
    x = tokens()
    k = len(torch.arange(HEADS)[which])
    attn, net = attention(), mlp()
    assert count(Part(some_heads, attn, which), x).macs == 2 * k * head_macs(attn, 9)
    assert count(Part(some_channels, net, which), x).macs == 2 * k * channel_macs(net, 9)


def test_all_heads_cost_what_attention_costs() -> None:
    assert HEADS * head_macs(attention(), 9) * 2 == count(attention(), tokens()).macs
    assert WIDE * channel_macs(mlp(), 9) * 2 == count(mlp(), tokens()).macs


def test_gradients_reach_what_ran_and_nothing_else() -> None:
    attn, net, x = attention(), mlp(), tokens()
    (some_heads(attn, slice(1), x) + some_channels(net, slice(6), x)).sum().backward()
    rows = attn.qkv.weight.grad.view(3, HEADS, -1, DIM).abs().sum((0, 2, 3))  # (h,)
    assert rows[0] > 0 and not rows[1:].any()
    columns = net.fc2.weight.grad.abs().sum(0)  # (w,)
    assert columns[:6].all() and not columns[6:].any()


def test_dropout_is_kept() -> None:
    net, x = mlp(dropout=0.5).train(), tokens()
    assert (some_channels(net, slice(6), x) == 0).double().mean() > 0.3


@given(chosen=SOME, size=st.integers(1, 5))
def test_pick_names_the_rows(chosen, size) -> None:
    want = [u * size + i for u in chosen for i in range(size)]
    which = pick(chosen, HEADS, size)
    assert torch.arange(HEADS * size)[which].tolist() == want
    assert isinstance(which, slice) == (want[-1] - want[0] == len(want) - 1)


@pytest.mark.parametrize("units", [[], [1, 0], [0, 0], [-1], [4], [0, 4]])
def test_pick_refuses_what_is_no_choice(units) -> None:
    with pytest.raises(ValueError, match=r"units=.*allowed: increasing numbers from 0 to 3"):
        pick(units, HEADS)
    with pytest.raises(TypeError, match="size"):
        pick([0], HEADS, size=1.5)


def test_another_attention_is_refused() -> None:
    class Other(Attention):
        pass

    with pytest.raises(TypeError, match="attn is a Other; allowed: Attention itself"):
        some_heads(Other(DIM, HEADS), slice(1), tokens().float())
