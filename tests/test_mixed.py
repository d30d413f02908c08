"""Captions in five ways: the identity at the start, padding, order, null captions, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dit_edu.attention import naive_attention, record_attention
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.guidance import Guided
from dit_edu.mixed import WAYS, CrossBlock, JointBlock, StreamsBlock, TextDiT
from dit_edu.sampling import ddim_sample
from dit_edu.text import PAD

MODEL = dict(
    words=6, input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=2, num_heads=2,
    learn_sigma=False,
)  # fmt: skip


def model(way: str, woken: bool = True, **options) -> TextDiT:
    torch.manual_seed(0)
    net = TextDiT(way=way, **{**MODEL, **options}).double().eval()
    if woken:
        for parameter in net.parameters():
            parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return net


def inputs(n: int = 3):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 8, 8, generator=g, dtype=torch.float64)
    y = torch.tensor([[1, 2, 3, 4], [5, 6, PAD, PAD], [2, 2, 1, PAD]])[:n]
    return x, torch.tensor([10, 500, 990])[:n], y


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_blocks_begin_as_the_identity_and_the_model_answers_zero(way):
    net = model(way, woken=False)
    x, t, y = inputs()
    tokens, words = torch.randn(3, 16, 16).double(), torch.randn(3, 4, 16).double()
    for block in net.blocks:
        after, _ = block(tokens, words, y != PAD, torch.randn(3, 16).double())
        assert torch.equal(after, tokens)
    assert torch.equal(net(x, t, y), torch.zeros_like(x))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=8, deadline=None)
@given(more=st.integers(1, 5))
def test_padding_and_batch_mates_do_not_count(way, more):
    net, (x, t, y) = model(way), inputs()
    longer = nn.functional.pad(y, (0, more), value=PAD)
    same(net(x, t, longer), net(x, t, y))
    for k, row in enumerate(y):
        alone = net(x[k : k + 1], t[k : k + 1], row[None, row != PAD])
        same(alone, net(x, t, y)[k : k + 1])


@pytest.mark.parametrize("way", WAYS)
def test_every_word_counts_and_a_bag_alone_forgets_their_order(way):
    net, (x, t, y) = model(way), inputs(1)
    said = net(x, t, y)
    for k in range(4):
        other = y.clone()
        other[0, k] = 6
        assert (net(x, t, other) - said).abs().max() > 1e-6
    turned = (net(x, t, y.flip(1)) - said).abs().max()
    assert (turned < 1e-10) == (way == "bag")


@pytest.mark.parametrize("way", WAYS)
def test_the_null_caption_is_an_empty_one_and_training_drops_to_it(way):
    net, (x, t, y) = model(way, class_dropout_prob=0.999999), inputs()
    null = net(x, t, net.null_condition(y))
    same(net(x, t, torch.zeros(3, 1, dtype=torch.long)), null)
    assert torch.isfinite(null).all() and (net(x, t, y) - null).abs().min(0)[0].max() > 0
    same(net.train()(x, t, y), null)


@pytest.mark.parametrize("way", WAYS)
def test_a_guided_model_draws_from_captions(way):
    net, (_, _, y) = model(way).float(), inputs()
    drawn = ddim_sample(Guided(net, 2.0), GaussianDiffusion.cosine(20), (3, 1, 8, 8), y, steps=3)
    assert drawn.shape == (3, 1, 8, 8) and torch.isfinite(drawn).all()


@pytest.mark.parametrize("way", WAYS)
def test_one_update_gives_every_part_that_the_image_depends_on_a_gradient(way):
    net, (x, t, y) = model(way), inputs()
    net(x, t, y).square().mean().backward()
    void = {name for name, p in net.named_parameters() if p.requires_grad and p.grad is None}
    # What the last block makes of the words is thrown away.
    spared = ("attn.proj", "norm2", "mlp") if way == "streams" else ()
    assert all(
        name.startswith("blocks.1.text.") and any(s in name for s in spared) for name in void
    )
    assert bool(void) == (way == "streams")


def test_streams_with_equal_weights_are_joint_attention():
    torch.manual_seed(0)
    two = StreamsBlock(16, 2).double()
    two.text.load_state_dict(two.image.state_dict())
    one = JointBlock(16, 2).double()
    one.load_state_dict(two.image.state_dict())
    x, words, c = (torch.randn(2, *s, dtype=torch.float64) for s in ((5, 16), (3, 16), (16,)))
    known = torch.tensor([[True, True, True], [True, False, False]])
    for found, want in zip(two(x, words, known, c), one(x, words, known, c), strict=True):
        same(found, want)


def test_streams_written_out():
    """One block, one sample, by the formula: the softmax over both, weights of each kind's own."""
    torch.manual_seed(0)
    block = StreamsBlock(8, 1).double()
    x, words, c = (torch.randn(1, *s, dtype=torch.float64) for s in ((4, 8), (3, 8), (8,)))
    parts, q, k, v = [], [], [], []
    for stream, h in ((block.image, x), (block.text, words)):
        six = stream.adaLN_modulation(c).reshape(6, 8)
        qkv = stream.attn.qkv(stream.norm1(h) * (1 + six[1]) + six[0])
        for into, piece in zip((q, k, v), qkv.chunk(3, dim=-1), strict=True):
            into.append(piece)
        parts.append((stream, h, six))
    mixed = naive_attention(torch.cat(q, 1), torch.cat(k, 1), torch.cat(v, 1))
    found = block(x, words, torch.ones(1, 3) > 0, c)
    for (stream, h, six), a, out in zip(parts, (mixed[:, :4], mixed[:, 4:]), found, strict=True):
        h = h + six[2] * stream.attn.proj(a)
        same(out, h + six[5] * stream.mlp(stream.norm2(h) * (1 + six[4]) + six[3]))


def test_cross_attention_reads_words_that_nobody_changes():
    torch.manual_seed(0)
    block = CrossBlock(16, 2).double()
    x, words, c = (torch.randn(2, *s, dtype=torch.float64) for s in ((5, 16), (3, 16), (16,)))
    known = torch.tensor([[True, True, True], [True, False, False]])
    after, same_words = block(x, words, known, c)
    assert same_words is words
    plain = copy.deepcopy(block)
    plain.zero_init()
    plain.adaLN_modulation.load_state_dict(block.adaLN_modulation.state_dict())
    same(plain(x, words, known, c)[0], AdaLNZeroBlock.forward(block, x, c))
    assert (after - plain(x, words, known, c)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_the_pooled_ways_add_no_token_and_the_others_share_the_image_part(way):
    net = model(way, woken=False)
    plain = DiT(num_classes=6, **{k: v for k, v in MODEL.items() if k != "words"})
    image = {k for k in plain.state_dict() if k.startswith("blocks.")}
    mine = {k.replace("image.", "") for k in net.state_dict() if k.startswith("blocks.")}
    assert image <= mine


def test_attention_over_both_is_recorded_and_never_falls_on_padding():
    net, (x, t, y) = model("joint"), inputs()
    with record_attention(net.blocks) as weights:
        net(x, t, y)
    assert len(weights) == 2 and weights[0].shape == (3, 2, 21, 21)
    for each in weights:
        same(each.sum(-1), torch.ones(3, 2, 21, dtype=torch.float64))
        assert each[1, :, :, 19:].max() == 0 and each[1, :, :, :19].min() > 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"way='jiont'.*joint"):
        model("jiont")
    with pytest.raises(ValueError, match="words=0"):
        model("joint", words=0)
    net, (x, t, y) = model("joint"), inputs()
    with pytest.raises(ValueError, match=r"y has shape \(3,\); allowed: \(B, M\)"):
        net(x, t, y[:, 0])
    with pytest.raises(ValueError, match=r"must both have shape \(3,\)"):
        net(x, t, y[:2])
    with pytest.raises(ValueError, match="x has shape"):
        net(x[:, :, :4], t, y)
