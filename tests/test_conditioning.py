"""The kinds of conditioning: the paper's table, the written formulas, and one promise for all."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dit_edu.branches import CrossAttention
from dit_edu.conditioning import (
    BLOCKS,
    AdaLNBlock,
    AdaLNSingleBlock,
    AdaLNZeroBlock,
    AdditiveBlock,
    Block,
    CrossAttentionBlock,
    InContextBlock,
    TableModulation,
    modulate,
)
from dit_edu.dit import DiT

# DiT-XL/2 by kind, (M parameters, GMACs): Peebles & Xie 2023, table 4 and figure 5.
PUBLISHED = {
    "in-context": (449, 119.37),
    "cross-attention": (598, 137.62),
    "adaln": (600, 118.56),
    "adaln-zero": (675, 118.64),
}
D, N, DEPTH = 1152, 256, 28


def small(kind: str, **changes) -> DiT:
    torch.manual_seed(0)
    settings = dict(
        input_size=8, in_channels=4, hidden_size=24, depth=2, num_heads=4, num_classes=10
    )
    return DiT(**{**settings, **changes}, conditioning=kind)


def randomise(net: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(1)
    for p in net.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.15
    return net


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(4, 4, 8, 8, generator=g, dtype=dtype)
    return x, torch.tensor([3, 400, 999, 0]), torch.tensor([0, 3, 10, 5])


@cache
def full_size(kind: str) -> tuple[int, int]:
    """Trained parameters and MACs of DiT-XL/2, on the meta device."""
    with torch.device("meta"):
        net = DiT.from_preset("DiT-XL/2", conditioning=kind).eval()
        x, one = torch.empty(1, 4, 32, 32), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            net(x, one, one)
    params = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return params, counter.get_total_flops() // 2


# ---------------------------------------------------------------------- size and cost


@pytest.mark.parametrize("kind", PUBLISHED)
def test_size_and_cost_are_the_papers(kind):
    params, macs = full_size(kind)
    millions, gmacs = PUBLISHED[kind]
    assert round(params / 1e6) == millions
    assert macs / 1e9 == pytest.approx(gmacs, rel=2e-4)


# What a block has and does beyond attention and MLP: weights in D², MACs beyond 12 D² N + 2 N² D.
EXTRA = {
    "additive": (0, lambda: 0),
    "in-context": (0, lambda: 12 * D**2 * 2 + 2 * D * ((N + 2) ** 2 - N**2)),
    "cross-attention": (4, lambda: 2 * D**2 * N + 2 * D**2 * 2 + 2 * N * 2 * D),
    "adaln": (4, lambda: 4 * D**2),
    "adaln-zero": (6, lambda: 6 * D**2),
    "adaln-single": (0, lambda: 0),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_size_and_cost_are_the_closed_forms(kind):
    """Every weight and every MAC of DiT-XL/2, counted by hand."""
    squares, extra = EXTRA[kind]
    norms = {"adaln": 0, "adaln-zero": 0, "adaln-single": 0, "cross-attention": 6}.get(kind, 4)
    own = {"adaln": 4, "adaln-zero": 6, "adaln-single": 6, "cross-attention": 4}.get(kind, 0)
    block = (12 + squares) * D**2 + (9 + norms + own) * D  # weights; biases, norms and tables
    final = {"adaln": 2 * D**2 + 2 * D, "adaln-zero": 2 * D**2 + 2 * D}.get(kind, 2 * D)
    shared = 6 * D**2 + 6 * D if kind == "adaln-single" else 0
    embedders = (16 * D + D) + (256 * D + D + D**2 + D) + 1001 * D
    params, macs = full_size(kind)
    assert params == DEPTH * block + embedders + shared + final + 32 * D + 32

    blocks = DEPTH * (12 * D**2 * N + 2 * N**2 * D + extra())
    modulated = 2 * D**2 if kind in ("adaln", "adaln-zero") else 0
    rest = 16 * D * N + 256 * D + D**2 + modulated + 32 * D * N
    assert macs == blocks + rest + (6 * D**2 if kind == "adaln-single" else 0)


def test_a_third_of_the_model_and_27_percent_are_both_right():
    """adaLN's share of DiT-XL/2, and its share where each block has cross-attention as well."""
    with torch.device("meta"):
        net = DiT.from_preset("DiT-XL/2")
        cross = sum(p.numel() for p in CrossAttention(D, 16).parameters())

    def numel(modules) -> int:
        return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)

    adaln, total = numel(b.adaLN_modulation for b in net.blocks), numel([net])
    assert adaln / total == pytest.approx(0.331, abs=5e-4)
    assert adaln / numel(net.blocks) == pytest.approx(6 / 18, abs=2e-4)
    assert adaln / (numel(net.blocks) + DEPTH * cross) == pytest.approx(6 / 22, abs=2e-4)
    assert round(100 * adaln / (total + DEPTH * cross)) == 27


def test_one_layer_for_all_saves_what_it_says():
    """From adaLN-Zero to adaLN-single: L layers of 6D² become one, and a table for each block."""
    saved = full_size("adaln-zero")[0] - full_size("adaln-single")[0]
    layers = (DEPTH - 1) * (6 * D**2 + 6 * D) + 2 * D**2 + 2 * D  # of the blocks, and the final one
    tables = DEPTH * 6 * D + 2 * D
    assert saved == layers - tables


# ---------------------------------------------------------------------- the written formulas


def norm(h: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return h if layer.weight is None else h * layer.weight + layer.bias


def mlp(h: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    u = h @ layer.fc1.weight.T + layer.fc1.bias
    gelu = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return gelu @ layer.fc2.weight.T + layer.fc2.bias


def vectors(c: torch.Tensor, layer: nn.Sequential) -> list[torch.Tensor]:
    """SiLU, linear, cut into vectors of width D: (B, 1, D) each."""
    made = (c / (1 + (-c).exp())) @ layer[1].weight.T + layer[1].bias
    return [part[:, None] for part in made.split(c.shape[1], dim=1)]


def double(kind: type[Block]) -> tuple[Block, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random block of width 32, tokens, and the two embeddings, in float64."""
    torch.manual_seed(0)
    block = randomise(kind(32, 4).double())
    return block, *(torch.randn(2, *s, dtype=torch.float64) for s in ((6, 32), (32,), (32,)))


def check(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_modulate_is_per_sample():
    x = torch.ones(2, 3, 1)
    out = modulate(x, torch.tensor([[10.0], [20.0]]), torch.tensor([[1.0], [2.0]]))
    assert out[0].tolist() == [[12.0]] * 3
    assert out[1].tolist() == [[23.0]] * 3


@pytest.mark.parametrize("kind", [AdditiveBlock, InContextBlock])
def test_plain_block_is_the_written_formula(kind):
    block, x, t, y = double(kind)
    h, told = block.enter(x, t, y)
    want = h + block.attn(norm(h, block.norm1))
    check(block(h, told), want + mlp(norm(want, block.norm2), block.mlp))


def test_plain_block_is_torchs_encoder_layer():
    """The block without a condition is the Transformer's own, with its norms first."""
    block, x, _, _ = double(AdditiveBlock)
    theirs = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0, activation=nn.GELU("tanh"), layer_norm_eps=1e-6, batch_first=True,
        norm_first=True, dtype=torch.float64,
    )  # fmt: skip
    state = {
        "self_attn.in_proj": block.attn.qkv, "self_attn.out_proj": block.attn.proj,
        "linear1": block.mlp.fc1, "linear2": block.mlp.fc2, "norm1": block.norm1,
        "norm2": block.norm2,
    }  # fmt: skip
    joint = {"self_attn.in_proj": "_"}
    theirs.load_state_dict(
        {
            f"{name}{joint.get(name, '.')}{part}": getattr(layer, part)
            for name, layer in state.items()
            for part in ("weight", "bias")
        }
    )
    check(block(x, torch.zeros(2, 32)), theirs(x))


def test_cross_attention_is_torchs():
    torch.manual_seed(0)
    ours = CrossAttention(32, 4).double()
    theirs = nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
    theirs.in_proj_weight.data = torch.cat([ours.q.weight, ours.kv.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.kv.bias]).detach()
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x, cond = torch.randn(2, 6, 32).double(), torch.randn(2, 3, 32).double()
    check(ours(x, cond=cond), theirs(x, cond, cond)[0])
    mask = torch.tensor([[True, True, False]])  # the third of the condition's vectors is padding
    check(ours(x, cond=cond, mask=mask), ours(x, cond=cond[:, :2]))


def test_cross_attention_block_is_the_written_formula():
    block, x, t, y = double(CrossAttentionBlock)
    h, told = block.enter(x, t, y)
    assert torch.equal(h, x)
    assert torch.equal(told, torch.stack([t, y], dim=1))
    want = x + block.attn(norm(x, block.norm1))
    want = want + block.cross(norm(want, block.norm_cross), cond=told)
    check(block(h, told), want + mlp(norm(want, block.norm2), block.mlp))


def test_adaln_block_is_the_written_formula():
    block, x, t, y = double(AdaLNBlock)
    s1, k1, s2, k2 = vectors(t + y, block.adaLN_modulation)
    want = x + block.attn(norm(x, block.norm1) * (1 + k1) + s1)
    want = want + mlp(norm(want, block.norm2) * (1 + k2) + s2, block.mlp)
    check(block(*block.enter(x, t, y)), want)


def gated(block: Block, x: torch.Tensor, six: list[torch.Tensor]) -> torch.Tensor:
    s1, k1, g1, s2, k2, g2 = six
    h = x + g1 * block.attn(norm(x, block.norm1) * (1 + k1) + s1)
    return h + g2 * mlp(norm(h, block.norm2) * (1 + k2) + s2, block.mlp)


def test_adaln_zero_block_is_the_written_formula():
    block, x, t, y = double(AdaLNZeroBlock)
    check(block(*block.enter(x, t, y)), gated(block, x, vectors(t + y, block.adaLN_modulation)))


def test_adaln_single_block_is_the_written_formula():
    block, x, t, y = double(AdaLNSingleBlock)
    share = randomise(block.share(32).double())
    h, told = block.enter(x, t, y)
    six = [
        made + row
        for made, row in zip(vectors(t + y, share), block.adaLN_modulation.table, strict=True)
    ]
    check(block(h, share(told)), gated(block, x, six))


def test_adaln_single_is_adaln_zero_with_equal_layers():
    """Where all blocks of an adaLN-Zero hold the same layer, tables of zeros lose nothing."""
    torch.manual_seed(0)
    zero, single = AdaLNZeroBlock(32, 4).double(), AdaLNSingleBlock(32, 4).double()
    single.load_state_dict(
        {k: v for k, v in zero.state_dict().items() if "adaLN" not in k}
        | {"adaLN_modulation.table": torch.zeros(6, 32)}
    )
    x, c = torch.randn(2, 6, 32).double(), torch.randn(2, 32).double()
    check(single(x, zero.adaLN_modulation(c)), zero(x, c))


def test_adaln_single_equals_diffusers_pixart_block():
    """Against PixArt's block of diffusers, its cross-attention silenced."""
    from diffusers.models.attention import BasicTransformerBlock

    block, x, t, y = double(AdaLNSingleBlock)
    theirs = BasicTransformerBlock(
        32, 4, 8, norm_type="ada_norm_single", cross_attention_dim=32, attention_bias=True,
        activation_fn="gelu-approximate", norm_elementwise_affine=False, norm_eps=1e-6,
    ).double()  # fmt: skip
    state = theirs.state_dict()
    for k, name in enumerate(("to_q", "to_k", "to_v")):
        state[f"attn1.{name}.weight"] = block.attn.qkv.weight.chunk(3)[k]
        state[f"attn1.{name}.bias"] = block.attn.qkv.bias.chunk(3)[k]
    for new, old in (
        ("attn1.to_out.0", block.attn.proj),
        ("ff.net.0.proj", block.mlp.fc1),
        ("ff.net.2", block.mlp.fc2),
    ):
        state[f"{new}.weight"], state[f"{new}.bias"] = old.weight, old.bias
    state["scale_shift_table"] = block.adaLN_modulation.table
    for part in ("weight", "bias"):
        state[f"attn2.to_out.0.{part}"] = torch.zeros_like(state[f"attn2.to_out.0.{part}"])
    theirs.load_state_dict(state)
    told = randomise(block.share(32).double())(t + y)  # (B, 6D)
    other = theirs(x, encoder_hidden_states=x, timestep=told)
    check(block(x, told), other)


# ---------------------------------------------------------------------- start values


def test_what_a_fresh_block_does():
    """adaLN-Zero is the identity, whatever the condition; no other kind is."""
    identity = {}
    for name in BLOCKS:
        net = small(name)
        x, t, y = torch.randn(2, 6, 24), *(5 * torch.randn(2, 2, 24))
        h, told = net.kind.enter(x, t, y)
        told = net.share(told)
        identity[name] = all(torch.equal(block(h, told), h) for block in net.blocks)
    assert identity == {name: name == "adaln-zero" for name in BLOCKS}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_fresh_model_says_nothing(kind):
    assert torch.count_nonzero(small(kind).eval()(*inputs())) == 0


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_part_learns(kind):
    """Zeros do not stay zeros: within four updates a gradient has reached every weight."""
    net, waking = small(kind).double().train(), set()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        x = torch.randn(16, 4, 8, 8, dtype=torch.float64)
        out = net(x, torch.randint(0, 1000, (16,)), torch.randint(0, 10, (16,)))
        optimiser.zero_grad()
        (out[:, :4] - x).square().mean().backward()
        waking |= {k for k, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
    assert waking == {k for k, p in net.named_parameters() if p.requires_grad}


def test_tables_start_like_pixarts():
    net = small("adaln-single", hidden_size=256, depth=1)
    for layer in (net.blocks[0].adaLN_modulation, net.final_layer.adaLN_modulation):
        assert isinstance(layer, TableModulation)
        assert float(layer.table.detach().std()) == pytest.approx(1 / 16, rel=0.1)
    assert float(net.share[-1].weight.detach().std()) > 0  # not zero: the gates are ajar


# ---------------------------------------------------------------------- one promise for all


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_denoiser_of_any_kind(kind):
    """It listens to t and to y, returns an image, and keeps the samples of a batch apart."""
    net = randomise(small(kind)).double().eval()
    x, t, y = inputs(torch.float64)
    out = net(x, t, y)
    assert out.shape == (4, 8, 8, 8)
    for other in (net(x, t.flip(0), y), net(x, t, y.flip(0)), net(x, t, net.null_condition(y))):
        assert ((out - other).abs().amax((1, 2, 3)) > 1e-6)[:2].all()
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    check(out, alone)
    order = torch.tensor([2, 0, 3, 1])
    check(net(x[order], t[order], y[order]), out[order])


@pytest.mark.parametrize("kind", BLOCKS)
def test_traces_without_graph_breaks(kind):
    net = randomise(small(kind, depth=1)).eval()
    want = net(*inputs())
    torch.compiler.reset()  # what other tests have compiled counts against a limit
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs()), want)


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradients_reach_both_embedders(kind):
    net = randomise(small(kind)).double()
    net(*inputs(torch.float64)).square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.t_embedder.mlp[0].weight.grad.abs().sum() > 0
    rows = net.y_embedder.embedding_table.weight.grad.abs().sum(1) > 0
    assert rows.nonzero().squeeze(1).tolist()[:3] == [0, 3, 5]


def test_condition_tokens_go_at_the_end():
    """In-context: two tokens more for the blocks, none more for the image."""
    x, t, y = torch.randn(2, 6, 24), torch.randn(2, 24), torch.randn(2, 24)
    h, _ = InContextBlock.enter(x, t, y)
    assert torch.equal(h[:, :6], x)
    assert torch.equal(h[:, 6], t)
    assert torch.equal(h[:, 7], y)
    seen = []
    net = small("in-context")
    net.blocks[0].register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    assert net(*inputs()).shape[-1] == 8
    assert seen == [16 + 2]


def test_in_context_attention_is_a_weighted_mean_that_includes_the_condition():
    """With equal scores the two extra tokens have 2 of N + 2 votes."""
    block, x, t, y = double(InContextBlock)
    h, told = block.enter(x, t, y)
    with torch.no_grad():
        block.attn.qkv.weight[:64] = 0  # no queries and keys: attention is the plain mean
        block.attn.qkv.bias[:64] = 0
    value = F.linear(norm(h, block.norm1), block.attn.qkv.weight[64:], block.attn.qkv.bias[64:])
    want = block.attn.proj(value.mean(1, keepdim=True))
    check(block.attn(norm(h, block.norm1), cond=told)[:, :1], want)


def test_additive_is_one_more_position():
    x, t, y = torch.randn(2, 6, 24), torch.randn(2, 24), torch.randn(2, 24)
    h, _ = AdditiveBlock.enter(x, t, y)
    for n in range(6):
        assert torch.equal(h[:, n], x[:, n] + (t + y))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CrossAttention(30, 4), "num_heads=4.*dim=30"),
        (lambda: CrossAttention(0, 4), "dim=0"),
        (lambda: CrossAttention(8, 2)(torch.zeros(1, 3, 8), cond=torch.zeros(1, 8)), r"\(1, 8\)"),
        (lambda: CrossAttention(8, 2)(torch.zeros(1, 3, 8), cond=torch.zeros(1, 2, 6)), "M, 8"),
        (lambda: small("in-context", positions="rope"), "in-context"),
        (lambda: small("adaln_single"), "'adaln-single'"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
