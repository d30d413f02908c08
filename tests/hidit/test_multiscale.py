"""Tokens of two sizes: against loops over the grid, pooling, plain DiTs, and counted MACs."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dit_edu.attention import record_attention
from dit_edu.dit import DiT
from dit_edu.hidit.multiscale import (
    SKIPS,
    Concat,
    Lerp,
    Merge,
    MultiscaleArchitecture,
    MultiscaleDiT,
    Split,
)
from dit_edu.lab.profile import count
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import run
from dit_edu.patchify import PatchEmbed
from dit_edu.positions import coordinates


def small(**changes) -> MultiscaleDiT:
    torch.manual_seed(0)
    sizes = dict(input_size=(8, 16), patch_size=2, in_channels=3, hidden_size=32, depth=4)
    return MultiscaleDiT(**{**sizes, "num_heads": 4, "num_classes": 10, **changes})


def randomise(net: torch.nn.Module) -> torch.nn.Module:
    g = torch.Generator().manual_seed(1)
    for p in net.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.15
    return net


def through(net: MultiscaleDiT, tokens: Tensor, c: Tensor) -> Tensor:
    """Tokens through all layers under a condition."""
    for layer in net.layers(torch.zeros(len(c)), c):
        tokens = layer(tokens, c)
    return tokens


def question(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(3, 3, 8, 16, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.tensor([0, 411, 999]), torch.tensor([0, 9, 10])


def test_merge_and_split_are_loops_over_the_grid():
    """Which four tokens become one, and in which order they stand: told without any reshaping."""
    d, (h, w) = 5, (4, 6)
    merge, split = randomise(Merge(d)).double(), randomise(Split(d)).double()
    x = torch.randn(2, h * w, d, dtype=torch.float64)
    coarse, fine = merge(x, (h, w)), split(merge(x, (h, w)), (h, w))
    for i in range(h // 2):
        for j in range(w // 2):
            k = i * (w // 2) + j
            four = [(2 * i + a) * w + 2 * j + b for a in (0, 1) for b in (0, 1)]
            want = merge.proj.bias + sum(
                x[:, n] @ merge.proj.weight[:, m * d : (m + 1) * d].T for m, n in enumerate(four)
            )
            torch.testing.assert_close(coarse[:, k], want, rtol=1e-10, atol=1e-10)
            for m, n in enumerate(four):
                rows = slice(m * d, (m + 1) * d)
                want = coarse[:, k] @ split.proj.weight[rows].T + split.proj.bias[rows]
                torch.testing.assert_close(fine[:, n], want, rtol=1e-10, atol=1e-10)


def test_the_mean_and_the_copy_are_pooling_and_repeating():
    d, grid = 3, (6, 4)
    merge, split, one = Merge(d), Split(d), torch.eye(d)
    with torch.no_grad():
        merge.proj.weight.copy_(one.repeat(1, 4) / 4)
        split.proj.weight.copy_(one.repeat(4, 1))
        for part in (merge, split):
            part.proj.bias.zero_()
    x = torch.randn(2, 24, d)
    picture = rearrange(x, "b (h w) d -> b d h w", h=6)
    pooled = F.avg_pool2d(picture, 2)
    torch.testing.assert_close(merge(x, grid), rearrange(pooled, "b d h w -> b (h w) d"))
    again = F.interpolate(pooled, scale_factor=2, mode="nearest")
    torch.testing.assert_close(
        split(merge(x, grid), grid), rearrange(again, "b d h w -> b (h w) d")
    )


def test_merged_patches_are_patches_of_twice_the_side():
    """Merge after PatchEmbed(p) is PatchEmbed(2p), with the kernel put together from both."""
    d, c, p = 40, 3, 2
    fine = randomise(PatchEmbed((8, 12), p, c, d)).double()
    merge, large = randomise(Merge(d)).double(), PatchEmbed((8, 12), 2 * p, c, d).double()
    parts = merge.proj.weight.unflatten(1, (2, 2, d))  # (D, 2, 2, D)
    kernel = torch.einsum("oabd, dcpq -> ocapbq", parts, fine.proj.weight)
    bias = merge.proj.bias + torch.einsum("oabd, d -> o", parts, fine.proj.bias)
    large.proj.weight.data = kernel.reshape(d, c, 2 * p, 2 * p)
    large.proj.bias.data = bias
    x = torch.randn(2, c, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(merge(fine(x), fine.grid), large(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("fine_first", [0, 1, 2])
def test_fresh_model_hands_its_tokens_on_and_says_nothing(skip, fine_first):
    net = small(skip=skip, fine_first=fine_first).eval()
    tokens, c = torch.randn(2, 32, 32), torch.randn(2, 32)
    torch.testing.assert_close(through(net, tokens, c), tokens, rtol=1e-6, atol=1e-6)
    assert torch.count_nonzero(net(*question())) == 0
    net.initialize_weights()  # a second time, as subclasses do
    torch.testing.assert_close(through(net, tokens, c), tokens, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("skip", SKIPS)
def test_fresh_model_learns_in_every_part(skip):
    net = small(skip=skip, learn_sigma=False).train()
    before = {k: v.clone() for k, v in net.named_parameters()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(6):
        x, t, y = torch.randn(16, 3, 8, 16), torch.randint(0, 1000, (16,)), torch.arange(16) % 10
        loss = (net(x, t, y) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    still = [k for k, v in net.named_parameters() if v.requires_grad and torch.equal(v, before[k])]
    assert still == []


@pytest.mark.parametrize("fine_first", [0, 1, 3])
def test_without_what_comes_back_it_is_a_dit_of_the_fine_blocks(fine_first):
    net = randomise(small(coarse_fraction=0.25, fine_first=fine_first)).double().eval()
    net.join.zero_init()
    state = net.state_dict()
    plain = DiT(
        input_size=(8, 16), patch_size=2, in_channels=3, hidden_size=32, depth=3, num_heads=4,
        num_classes=10,
    ).double().eval()  # fmt: skip
    left = [k for k in range(4) if k not in net.coarse]
    names = {name: name for name in plain.state_dict()}
    for name in names:
        if name.startswith("blocks."):
            _, k, rest = name.split(".", 2)
            names[name] = f"blocks.{left[int(k)]}.{rest}"
    plain.load_state_dict({name: state[old] for name, old in names.items()})
    x, t, y = question(torch.float64)
    torch.testing.assert_close(net(x, t, y), plain(x, t, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("fine_first", [0, 1, 2])
def test_equals_its_description_step_by_step(skip, fine_first):
    """Merge, blocks, split and join in the order of the words, each by its own formula."""
    net = randomise(small(skip=skip, fine_first=fine_first)).double().eval()
    tokens, c = (
        torch.randn(2, 32, 32, dtype=torch.float64),
        torch.randn(2, 32, dtype=torch.float64),
    )
    x = tokens
    for block in net.blocks[:fine_first]:
        x = block(x, c)
    fine, picture = x, x.unflatten(1, (4, 8))  # (B, h, w, D)
    corners = [picture[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]  # (B, h/2, w/2, D) each
    y = torch.cat(corners, dim=-1) @ net.merge.proj.weight.T + net.merge.proj.bias
    y = y.flatten(1, 2) + net.coarse_pos_embed
    for block in net.blocks[fine_first : fine_first + 2]:
        y = block(y, c)
    back = torch.empty_like(picture)
    four = (y @ net.split.proj.weight.T + net.split.proj.bias).unflatten(1, (2, 4)).chunk(4, dim=-1)
    for part, (a, b) in zip(four, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        back[:, a::2, b::2] = part
    back = back.flatten(1, 2)
    if skip == "lerp":
        x = (1 - net.join.weight) * fine + net.join.weight * back
    else:
        first, second = net.join.proj.weight.chunk(2, dim=1)
        x = fine @ first.T + back @ second.T + net.join.proj.bias
    for block in net.blocks[fine_first + 2 :]:
        x = block(x, c)
    torch.testing.assert_close(through(net, tokens, c), x, rtol=1e-10, atol=1e-10)


def test_coarse_tokens_stand_at_the_centres_of_their_fine_ones():
    fine = torch.stack(coordinates((4, 8))).view(2, 4, 8)  # rows and columns
    coarse = torch.stack(coordinates((2, 4), span=(4, 8))).view(2, 2, 4)
    torch.testing.assert_close(F.avg_pool2d(fine, 2), coarse)
    net, d = small(), 32
    omega = 10000.0 ** (-torch.arange(d // 4, dtype=torch.float64) / (d // 4))
    waves = net.coarse_pos_embed[0].unflatten(1, (4, d // 4))  # column's sines, cosines; row's
    for axis, sine, cosine in ((coarse[1], 0, 1), (coarse[0], 2, 3)):
        angle = axis.flatten()[:, None] * omega
        torch.testing.assert_close(waves[:, sine].double(), angle.sin(), rtol=0, atol=1e-6)
        torch.testing.assert_close(waves[:, cosine].double(), angle.cos(), rtol=0, atol=1e-6)


def test_blocks_see_the_tokens_of_their_scale_also_at_another_size():
    net = small(fine_first=1)
    assert net.coarse == range(1, 3)
    for model, h, w in ((net, 4, 8), (net.at_size((12, 8)), 6, 4)):
        x = torch.randn(1, 3, 2 * h, 2 * w)
        with record_attention(model) as weights:
            out = model(x, torch.tensor([5]), torch.tensor([1]))
        assert [a.shape[-1] for a in weights] == [h * w, h * w // 4, h * w // 4, h * w]
        assert out.shape == (1, 6, 2 * h, 2 * w)
        assert model.coarse_pos_embed.shape == (1, h * w // 4, 32)


SIZES = st.fixed_dictionaries(
    dict(
        input_size=st.tuples(*(st.integers(1, 4).map(lambda k: 4 * k),) * 2),
        patch_size=st.sampled_from([1, 2]),
        in_channels=st.integers(1, 4),
        hidden_size=st.sampled_from([8, 24]),
        depth=st.integers(2, 5),
        num_heads=st.sampled_from([1, 2]),
        mlp_ratio=st.sampled_from([1.0, 4.0]),
        num_classes=st.integers(1, 20),
        learn_sigma=st.booleans(),
        coarse_fraction=st.floats(0.3, 1.0),
        skip=st.sampled_from(sorted(SKIPS)),
    )
)


@settings(max_examples=12, deadline=None)
@given(SIZES)
def test_parameters_and_macs_are_those_counted(sizes):
    model = MultiscaleArchitecture(**sizes)
    with torch.device("meta"):
        net = MultiscaleDiT(**asdict(model))
        one = torch.zeros(2, dtype=torch.long)
        macs = count(net, torch.empty(2, model.in_channels, *model.size), one, one, repeats=0).macs
    assert macs == 2 * sum(model.macs().values())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained == sum(model.params().values())


def test_the_place_of_the_coarse_blocks_costs_nothing():
    x, t, y = question()
    macs = {count(small(fine_first=k), x, t, y, repeats=0).macs for k in (0, 1, 2)}
    assert len(macs) == 1


def test_exports_and_compiles_without_graph_breaks():
    net = randomise(small(depth=2)).eval()
    inputs = question()
    exported = torch.export.export(net, inputs).module()
    torch.testing.assert_close(exported(*inputs), net(*inputs))
    torch.compiler.reset()  # what other tests have compiled counts against a limit
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), net(*inputs))


def test_the_one_loop_trains_it():
    recipe = Recipe(
        name="tiny",
        kind="MultiscaleDiT",
        model=dict(
            input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=2, num_heads=2,
            num_classes=10, learn_sigma=False, coarse_fraction=0.5,
        ),
        steps=15, batch_size=32, lr=8e-3, warmup=5,
    )  # fmt: skip
    history = run(recipe, progress=False, device="cpu").history
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: small(coarse_fraction=0.1), ValueError, "coarse_fraction=0.1 of depth=4"),
        (lambda: small(coarse_fraction=1.2), ValueError, "coarse_fraction=1.2 .*1 to 4 blocks"),
        (lambda: small(fine_first=3), ValueError, "fine_first=3 .*0 to 2"),
        (lambda: small(fine_first=1.0), ValueError, "fine_first=1.0"),
        (lambda: small(skip="lepr"), ValueError, "skip='lepr'.*'lerp'"),
        (lambda: small(input_size=(8, 12), patch_size=4), ValueError, "grid=2x3"),
        (lambda: small(positions="rope"), ValueError, "positions='rope'.*'sincos'"),
        (lambda: small(conditioning="in-context"), ValueError, "conditioning='in-context'"),
        (lambda: small().at_size((8, 10)), ValueError, "grid=4x5"),
        (lambda: Merge(4)(torch.zeros(1, 6, 4), (2, 3)), ValueError, "grid=2x3"),
        (lambda: Split(4)(torch.zeros(1, 2, 4), (3, 2)), ValueError, "grid=3x2"),
        (lambda: MultiscaleArchitecture(skip="sum"), ValueError, "skip='sum'"),
        (lambda: MultiscaleArchitecture(coarse_fraction=0), ValueError, "coarse_fraction=0"),
        (lambda: MultiscaleArchitecture(input_size=6), ValueError, "grid=3x3"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_joins_start_with_the_fine_tokens():
    fine, back = torch.randn(2, 2, 5, 6)
    for join in (Lerp(6), Concat(6)):
        join.zero_init()
        torch.testing.assert_close(join(fine, back), fine)
