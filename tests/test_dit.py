"""DiT against diffusers' DiT with every weight random, the paper's table, and its own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dit_edu.conditioning import Mlp
from dit_edu.dit import PRESETS, DiT
from dit_edu.lab.convert import state_from_diffusers, to_diffusers

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


def question() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(2)
    return (
        torch.randn(3, 4, 8, 8, generator=g),
        torch.tensor([0, 411, 999]),
        torch.tensor([0, 9, 10]),
    )


def test_equals_diffusers_with_all_weights_random():
    net = randomise(small()).eval()
    ours, other = net(*question()), to_diffusers(net)(*question()).sample
    assert ours.abs().mean() > 0.1  # the comparison is not one of zeros
    torch.testing.assert_close(ours, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_those_of_diffusers(dtype):
    """Theirs are gathered into our layout: three matrices stacked, the embedders' copies added."""
    net = randomise(small()).to(dtype).eval()
    theirs = to_diffusers(net)
    g = torch.Generator().manual_seed(3)
    x, t, y = question()
    ours_x, theirs_x = (x.to(dtype).requires_grad_() for _ in range(2))
    target = torch.randn(3, 8, 8, 8, generator=g).to(dtype)
    ours, other = net(ours_x, t, y), theirs(theirs_x, t, y).sample
    for out in (ours, other):
        (out * target).mean().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    copies = {name: grad for name, grad in grads.items() if ".emb." in name}
    first = "transformer_blocks.0."
    for name in [name for name in copies if name.startswith(first)]:
        total = sum(copies[name.replace(first, f"transformer_blocks.{i}.")] for i in range(3))
        for i in range(3):
            grads[name.replace(first, f"transformer_blocks.{i}.")] = total
    want = state_from_diffusers(grads, grid=4)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=0, atol=tolerance)
    for name, p in net.named_parameters():
        if p.requires_grad:
            assert p.grad.any(), name
            torch.testing.assert_close(p.grad, want[name], rtol=1e-5, atol=tolerance, msg=name)


def written_out(state: dict[str, np.ndarray], heads: int, p: int, x, t, y) -> np.ndarray:
    """The paper's model from its published weights, in numpy and float64: no module, no kernel."""

    def linear(z, name):
        return z @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def silu(z):
        return z / (1 + np.exp(-z))

    def gelu(z):
        return 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    def modulated(z, shift, scale):
        z = z - z.mean(-1, keepdims=True)
        z = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6)
        return z * (1 + scale[:, None]) + shift[:, None]

    def attention(z, name):
        q, k, v = np.split(linear(z, f"{name}.qkv"), 3, axis=-1)
        out, d = np.empty_like(q), z.shape[-1] // heads
        for i in range(heads):
            part = slice(i * d, (i + 1) * d)  # one head after the other
            scores = q[..., part] @ k[..., part].transpose(0, 2, 1) / math.sqrt(d)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[..., part] = weights / weights.sum(-1, keepdims=True) @ v[..., part]
        return linear(out, f"{name}.proj")

    b, channels, height, width = x.shape
    kernel = state["x_embedder.proj.weight"].reshape(-1, channels * p * p)  # flattened (c, p, q)
    places = [(i, j) for i in range(0, height, p) for j in range(0, width, p)]
    patches = np.stack([x[:, :, i : i + p, j : j + p].reshape(b, -1) for i, j in places], 1)
    z = patches @ kernel.T + state["x_embedder.proj.bias"] + state["pos_embed"]
    angles = t[:, None] * np.exp(-math.log(10000) * np.arange(128) / 128)
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    c = linear(silu(linear(waves, "t_embedder.mlp.0")), "t_embedder.mlp.2")
    c = c + state["y_embedder.embedding_table.weight"][y]
    for i in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
        block = f"blocks.{i}"
        six = np.split(linear(silu(c), f"{block}.adaLN_modulation.1"), 6, axis=1)
        z = z + six[2][:, None] * attention(modulated(z, *six[:2]), f"{block}.attn")
        h = linear(gelu(linear(modulated(z, *six[3:5]), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        z = z + six[5][:, None] * h
    shift, scale = np.split(linear(silu(c), "final_layer.adaLN_modulation.1"), 2, axis=1)
    tokens = linear(modulated(z, shift, scale), "final_layer.linear")  # each is (p, q, c)
    out = np.empty((b, tokens.shape[-1] // p**2, height, width))
    for n, (i, j) in enumerate(places):
        out[:, :, i : i + p, j : j + p] = tokens[:, n].reshape(b, p, p, -1).transpose(0, 3, 1, 2)
    return out


@pytest.mark.parametrize("p", [1, 2, 4])
def test_equals_the_paper_written_out(p):
    net = randomise(small(patch_size=p)).double().eval()
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    x, t, y = question()
    want = written_out(state, 4, p, x.double().numpy(), t.double().numpy(), y.numpy())
    with torch.no_grad():
        got = net(x.double(), t, y)
    # the waves are float32, as published: cos(999 ω) has an error of up to 999 * 2^-24
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-4, atol=1e-4)


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
    tokens, c = torch.randn(2, 16, 48), torch.randn(2, 48)
    assert all(torch.equal(block(tokens, c), tokens) for block in net.blocks)
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


def published_shapes(depth: int, d: int, p: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint: 4 latent channels, σ learnt, 1000 classes."""
    layers = {
        "t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d),
        "final_layer.linear": (p * p * 8, d), "final_layer.adaLN_modulation.1": (2 * d, d),
    }  # fmt: skip
    for i in range(depth):
        layers |= {
            f"blocks.{i}.attn.qkv": (3 * d, d), f"blocks.{i}.attn.proj": (d, d),
            f"blocks.{i}.mlp.fc1": (4 * d, d), f"blocks.{i}.mlp.fc2": (d, 4 * d),
            f"blocks.{i}.adaLN_modulation.1": (6 * d, d),
        }  # fmt: skip
    layers["x_embedder.proj"] = (d, 4, p, p)
    shapes = {"pos_embed": (1, tokens, d), "y_embedder.embedding_table.weight": (1001, d)}
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in layers.items()}


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("DiT-XL/2", 32, published_shapes(28, 1152, 2, 256)),
        ("DiT-XL/2", 64, published_shapes(28, 1152, 2, 1024)),  # for 512 pixels
        ("DiT-S/8", 32, published_shapes(12, 384, 8, 16)),
    ],
)
def test_state_dict_has_the_published_names_and_shapes(name, size, shapes):
    with torch.device("meta"):
        net = DiT.from_preset(name, input_size=size)
    assert {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()} == shapes
    if (name, size) == ("DiT-XL/2", 32):  # the number that the published training prints
        assert sum(p.numel() for p in net.parameters()) == 675_129_632


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


def test_tokens_lie_in_memory_as_the_norms_read_them():
    """As the convolution leaves them (channels apart), each norm would copy: 5 % of a forward."""
    net, seen = small().eval(), []
    net.blocks[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(*question())
    assert seen[0].is_contiguous()


def test_exports():
    net = small().eval()
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.tensor([1, 2])
    exported = torch.export.export(net, (x, t, y)).module()
    torch.testing.assert_close(exported(x, t, y), net(x, t, y))


@pytest.mark.parametrize(("training", "backend"), [(False, "eager"), (True, "aot_eager")])
def test_compiles_without_graph_breaks(training, backend):
    """fullgraph=True raises at the first break; these backends compile nothing."""
    torch.compiler.reset()  # what other tests have compiled counts against a limit
    net = randomise(small(depth=1)).train(training)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    found = []
    for call in (net, compiled):
        net.zero_grad()
        torch.manual_seed(0)  # of the labels that training drops
        out = call(*question())
        out.square().mean().backward()
        found.append([out, *(p.grad for p in net.parameters() if p.requires_grad)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


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
