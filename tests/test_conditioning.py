"""Embedders against the written formula; the block is the identity until it is trained."""

from __future__ import annotations

import math

import pytest
import torch

from dit_edu.conditioning import (
    BLOCKS,
    AdaLNZeroBlock,
    LabelEmbedder,
    TimestepEmbedder,
    modulate,
)


def test_waves_are_the_written_formula():
    waves = TimestepEmbedder.timestep_embedding(torch.tensor([0, 7, 999]), 256)
    for row, t in enumerate((0, 7, 999)):
        omega = [10000 ** (-k / 128) for k in range(128)]
        want = [math.cos(t * o) for o in omega] + [math.sin(t * o) for o in omega]
        torch.testing.assert_close(waves[row], torch.tensor(want), rtol=0, atol=2e-4)


def test_waves_equal_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0, 1, 250, 999])
    theirs = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(TimestepEmbedder.timestep_embedding(t, 256), theirs)


def test_float_steps_are_allowed():
    embed = TimestepEmbedder(8)
    assert torch.equal(embed(torch.tensor([3.0])), embed(torch.tensor([3])))
    assert not torch.equal(embed(torch.tensor([3.5])), embed(torch.tensor([3.0])))


def test_null_class_is_the_last_row():
    embed = LabelEmbedder(10, 4, dropout_prob=0.1)
    assert embed.embedding_table.weight.shape == (11, 4)
    assert LabelEmbedder(10, 4, dropout_prob=0.0).embedding_table.weight.shape == (10, 4)
    forced = embed(torch.tensor([3, 3]), force_drop_ids=torch.tensor([1, 0]))
    assert torch.equal(forced, embed.embedding_table.weight[[10, 3]])


def test_labels_are_dropped_in_training_only():
    torch.manual_seed(0)
    embed = LabelEmbedder(1, 1, dropout_prob=0.1)
    embed.embedding_table.weight.data = torch.tensor([[0.0], [1.0]])  # 1 where dropped
    y = torch.zeros(20000, dtype=torch.long)
    embed.requires_grad_(False)
    # 20,000 coins of 0.1: standard error 0.0021.
    assert float(embed.train()(y).mean()) == pytest.approx(0.1, abs=0.01)
    assert float(embed.eval()(y).mean()) == 0


@pytest.mark.parametrize("name", BLOCKS)
def test_fresh_block_is_the_identity(name):
    torch.manual_seed(0)
    block = BLOCKS[name](32, 4)
    block.zero_init()
    x, c = torch.randn(2, 6, 32), 5 * torch.randn(2, 32)
    assert torch.equal(block(x, c), x)


def test_block_is_the_written_formula():
    torch.manual_seed(0)
    block = AdaLNZeroBlock(32, 4).double()
    x, c = torch.randn(2, 6, 32, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)

    def norm(h):
        return (h - h.mean(-1, keepdim=True)) / (
            h.var(-1, unbiased=False, keepdim=True) + 1e-6
        ).sqrt()

    linear = block.adaLN_modulation[1]
    six = (c / (1 + (-c).exp())) @ linear.weight.T + linear.bias
    s1, k1, g1, s2, k2, g2 = (part[:, None] for part in six.split(32, dim=1))
    h = x + g1 * block.attn(norm(x) * (1 + k1) + s1)
    u = (norm(h) * (1 + k2) + s2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    gelu = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    want = h + g2 * (gelu @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)
    torch.testing.assert_close(block(x, c), want, rtol=1e-9, atol=1e-9)


def test_modulate_is_per_sample():
    x = torch.ones(2, 3, 1)
    out = modulate(x, torch.tensor([[10.0], [20.0]]), torch.tensor([[1.0], [2.0]]))
    assert out[0].tolist() == [[12.0]] * 3
    assert out[1].tolist() == [[23.0]] * 3


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"dropout_prob=1\.5"):
        LabelEmbedder(10, 4, 1.5)
    with pytest.raises(ValueError, match="num_classes=0"):
        LabelEmbedder(0, 4, 0.1)
    with pytest.raises(ValueError, match="no null class"):
        LabelEmbedder(10, 4, 0.0)(torch.tensor([1]), force_drop_ids=torch.tensor([1]))
