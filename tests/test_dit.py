"""DiT against diffusers' DiT with every weight random, the paper's table, and its own promises."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from dit_edu.conditioning import Mlp
from dit_edu.dit import PRESETS, DiT

# Parameters in millions and GMACs (the paper's "Gflops"): Peebles & Xie 2023, table 4.
PUBLISHED = {
    "DiT-S/8": (33, 0.36), "DiT-S/4": (33, 1.41), "DiT-S/2": (33, 6.06),
    "DiT-B/8": (131, 1.42), "DiT-B/4": (130, 5.56), "DiT-B/2": (130, 23.01),
    "DiT-L/8": (459, 5.01), "DiT-L/4": (458, 19.70), "DiT-L/2": (458, 80.71),
    "DiT-XL/8": (676, 7.39), "DiT-XL/4": (675, 29.05), "DiT-XL/2": (675, 118.64),
}  # fmt: skip


def small(**changes) -> DiT:
    torch.manual_seed(0)
    settings = dict(
        input_size=8, in_channels=4, hidden_size=48, depth=3, num_heads=4, num_classes=10
    )
    return DiT(**{**settings, **changes})


def randomise(net: torch.nn.Module) -> torch.nn.Module:
    g = torch.Generator().manual_seed(1)
    for p in net.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.15
    return net


def to_diffusers(net: DiT) -> DiTTransformer2DModel:
    """The same function in diffusers, with the two settings in which its stock DiT differs."""
    depth, heads = len(net.blocks), net.blocks[0].attn.num_heads
    dim = net.pos_embed.shape[-1]
    theirs = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=dim // heads, in_channels=net.in_channels,
        out_channels=net.out_channels, num_layers=depth, sample_size=net.input_size[0],
        patch_size=net.patch_size, num_embeds_ada_norm=net.num_classes, norm_eps=1e-6,
    )  # fmt: skip
    ours, state = net.state_dict(), {}

    def linear(new: str, old: str) -> None:
        state[f"{new}.weight"], state[f"{new}.bias"] = ours[f"{old}.weight"], ours[f"{old}.bias"]

    linear("pos_embed.proj", "x_embedder.proj")
    for i in range(depth):
        new, old = f"transformer_blocks.{i}", f"blocks.{i}"
        linear(f"{new}.norm1.emb.timestep_embedder.linear_1", "t_embedder.mlp.0")
        linear(f"{new}.norm1.emb.timestep_embedder.linear_2", "t_embedder.mlp.2")
        table = ours["y_embedder.embedding_table.weight"]
        state[f"{new}.norm1.emb.class_embedder.embedding_table.weight"] = table
        linear(f"{new}.norm1.linear", f"{old}.adaLN_modulation.1")
        for k, name in enumerate(("to_q", "to_k", "to_v")):
            state[f"{new}.attn1.{name}.weight"] = ours[f"{old}.attn.qkv.weight"].chunk(3)[k]
            state[f"{new}.attn1.{name}.bias"] = ours[f"{old}.attn.qkv.bias"].chunk(3)[k]
        linear(f"{new}.attn1.to_out.0", f"{old}.attn.proj")
        linear(f"{new}.ff.net.0.proj", f"{old}.mlp.fc1")
        linear(f"{new}.ff.net.2", f"{old}.mlp.fc2")
    linear("proj_out_1", "final_layer.adaLN_modulation.1")
    linear("proj_out_2", "final_layer.linear")
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"pos_embed.pos_embed"}  # fixed in both
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # stock diffusers divides by half - 1
    return theirs.to(next(net.parameters()).dtype).eval()


def test_equals_diffusers_with_all_weights_random():
    net = randomise(small()).eval()
    theirs = to_diffusers(net)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(3, 4, 8, 8, generator=g)
    t, y = torch.tensor([0, 411, 999]), torch.tensor([0, 9, 10])
    ours, other = net(x, t, y), theirs(x, t, y).sample
    assert ours.abs().mean() > 0.1  # the comparison is not one of zeros
    torch.testing.assert_close(ours, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_size_and_cost(name):
    with torch.device("meta"):
        net = DiT.from_preset(name).eval()
        x, one = torch.empty(1, 4, 32, 32), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            net(x, one, one)
    millions, gmacs = PUBLISHED[name]
    params = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert round(params / 1e6) == millions
    assert counter.get_total_flops() / 2e9 == pytest.approx(
        gmacs, abs=max(0.005, gmacs / 1000) + 1e-9
    )


def test_fresh_model_says_nothing():
    net = small().eval()
    x = torch.randn(2, 4, 8, 8)
    out = net(x, torch.tensor([5, 900]), torch.tensor([1, 2]))
    assert out.shape == (2, 8, 8, 8)
    assert torch.count_nonzero(out) == 0


def test_fresh_model_learns_in_every_part():
    """Zero gates must not mean zero gradients for ever: after four steps every weight has moved."""
    net = small(learn_sigma=False).train()
    before = {k: v.clone() for k, v in net.named_parameters()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(4):
        x = torch.randn(16, 4, 8, 8)
        loss = (
            (net(x, torch.randint(0, 1000, (16,)), torch.randint(0, 10, (16,))) - x).square().mean()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    still = [k for k, v in net.named_parameters() if v.requires_grad and torch.equal(v, before[k])]
    assert still == []


def test_state_dict_has_the_published_keys():
    block = [
        f"blocks.0.{layer}.{kind}"
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
        for kind in ("weight", "bias")
    ]
    rest = [
        "pos_embed", "x_embedder.proj.weight", "x_embedder.proj.bias", "t_embedder.mlp.0.weight",
        "t_embedder.mlp.0.bias", "t_embedder.mlp.2.weight", "t_embedder.mlp.2.bias",
        "y_embedder.embedding_table.weight", "final_layer.linear.weight", "final_layer.linear.bias",
        "final_layer.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.bias",
    ]  # fmt: skip
    assert set(small(depth=1).state_dict()) == set(block + rest)


def test_one_sample_does_not_change_another():
    net = randomise(small()).double().eval()
    x = torch.randn(4, 4, 8, 8, dtype=torch.float64)
    t, y = torch.tensor([3, 400, 999, 0]), torch.tensor([0, 3, 10, 5])
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(net(x, t, y), alone, rtol=1e-10, atol=1e-10)


def test_non_square_images():
    net = randomise(small(input_size=(4, 12))).eval()
    assert net(torch.randn(1, 4, 4, 12), torch.tensor([1]), torch.tensor([1])).shape == (
        1,
        8,
        4,
        12,
    )


def test_traces_without_graph_breaks():
    net = small().eval()
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.tensor([1, 2])
    exported = torch.export.export(net, (x, t, y)).module()
    torch.testing.assert_close(exported(x, t, y), net(x, t, y))


def test_dropout_is_for_training_alone_and_keeps_the_mean():
    torch.manual_seed(0)
    plain, dropping = Mlp(6, 24), Mlp(6, 24, dropout=0.25)
    dropping.load_state_dict(plain.state_dict())  # it has no weights of its own
    x = torch.randn(1, 1, 6).expand(20_000, 1, 6)
    with torch.no_grad():
        assert torch.equal(dropping.eval()(x), plain(x))
        drawn = dropping.train()(x)[:, 0]  # (20000, 6)
    assert abs((drawn == 0).float().mean() - 0.25) < 0.01
    # both places keep the mean: E = W2 E[drop(h)] + b2, and the second drop changes nothing in it
    torch.testing.assert_close(drawn.mean(0), plain(x)[0, 0].detach(), atol=0.02, rtol=0)

    net, same = small(dropout=0.5).eval(), small().eval()
    state = randomise(same).state_dict()
    net.load_state_dict(state)
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.tensor([1, 2])
    with torch.no_grad():
        assert torch.equal(net(x, t, y), same(x, t, y))
        assert not torch.isclose(net.train()(x, t, y), same(x, t, y)).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: small(patch_size=3), ValueError, "p=3 .*8x8"),
        (lambda: small(hidden_size=46), ValueError, "num_heads=4|dim=46"),
        (lambda: small(num_heads=5), ValueError, "num_heads=5"),
        (lambda: small(depth=0), ValueError, "depth=0"),
        (lambda: small(conditioning="adaln_zero"), ValueError, "'adaln-zero'"),
        (lambda: small(class_dropout_prob=1.0), ValueError, "dropout_prob=1.0"),
        (lambda: small(in_channels=0), ValueError, "in_channels=0"),
        (lambda: small(dropout=1.0), ValueError, "dropout=1.0"),
        (lambda: small(dropout=-0.1), ValueError, "dropout=-0.1"),
        (lambda: DiT.from_preset("DiT-XL-2"), ValueError, "'DiT-XL/2'"),
        (lambda: small()(torch.zeros(1, 3, 8, 8), *[torch.zeros(1)] * 2), ValueError, "1, 3, 8, 8"),
        (lambda: small()(torch.zeros(1, 4, 9, 8), *[torch.zeros(1)] * 2), ValueError, "B, 4, 8, 8"),
        (lambda: small()(torch.zeros(2, 4, 8, 8), *[torch.zeros(1)] * 2), ValueError, "shape"),
        (lambda: small(class_dropout_prob=0.0).null_condition(torch.zeros(1)), ValueError, "null"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
