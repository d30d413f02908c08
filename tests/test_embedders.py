"""Embedders against the written formula: the waves of t, what aliases, and the table of labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dit_edu.embedders import LabelEmbedder, TimestepEmbedder, alias


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


def test_embedder_is_the_written_formula():
    torch.manual_seed(0)
    embed = TimestepEmbedder(8).double()
    waves = TimestepEmbedder.timestep_embedding(torch.tensor([3, 400]), 256).double()
    hidden = waves @ embed.mlp[0].weight.T + embed.mlp[0].bias
    silu = hidden / (1 + (-hidden).exp())
    want = silu @ embed.mlp[2].weight.T + embed.mlp[2].bias
    torch.testing.assert_close(embed(torch.tensor([3, 400])), want, rtol=1e-10, atol=1e-10)


def test_float_steps_are_allowed():
    embed = TimestepEmbedder(8)
    assert torch.equal(embed(torch.tensor([3.0])), embed(torch.tensor([3])))
    assert not torch.equal(embed(torch.tensor([3.5])), embed(torch.tensor([3.0])))


@given(st.integers(0, 999), st.integers(0, 999))
def test_likeness_depends_on_the_distance_alone(a, b):
    """cos ωa cos ωb + sin ωa sin ωb = cos ω(a - b): the product of two embeddings."""
    one, other, zero, gap = TimestepEmbedder.timestep_embedding(
        torch.tensor([a, b, 0, abs(a - b)]), 256
    ).double()
    assert float(one @ other) == pytest.approx(float(zero @ gap), abs=0.02)  # float32 angles
    assert float(one @ one) == pytest.approx(128, abs=1e-3)


def test_published_waves_do_not_alias_and_near_steps_are_alike():
    omega = TimestepEmbedder.frequencies(256).double()
    assert torch.equal(alias(omega), omega)
    assert float(2 * math.pi / omega[-1]) > 1000  # the longest wave does not come round
    t = torch.arange(1000, dtype=torch.float64)
    likeness = (t[:, None] * omega).cos().mean(1)  # (1000,): of steps that are t apart
    assert likeness[1] > 0.96
    assert (
        likeness[1:10].min() > likeness[30:].max() > likeness[30:100].min() > likeness[300:].max()
    )


def test_three_quarters_of_the_printed_frequencies_alias():
    """10^(4k/d) for k < d/2 runs from 1 to 100, and log10(π) = 0.497 of the exponent's 2."""
    omega = 10 ** (4 * torch.arange(128, dtype=torch.float64) / 256)
    assert 1 - math.log10(math.pi) / 2 == pytest.approx(0.7514, abs=1e-4)
    assert float((omega > math.pi).double().mean()) == pytest.approx(0.75, abs=0.005)
    t = torch.arange(1, 1000, dtype=torch.float64)
    likeness = (t[:, None] * omega).cos().mean(1)  # (999,)
    assert abs(likeness[0]) < 0.2  # even the next step is a stranger
    assert likeness.abs().max() < 0.45


@given(st.floats(-300, 300), st.integers(0, 999))
def test_no_integer_step_tells_a_wave_from_its_alias(omega, t):
    slow = alias(torch.tensor(omega, dtype=torch.float64))
    assert abs(float(slow)) <= math.pi + 1e-12
    fast = torch.tensor(omega, dtype=torch.float64)
    for wave in (torch.cos, torch.sin):
        assert float(wave(fast * t)) == pytest.approx(float(wave(slow * t)), abs=1e-9)


def test_between_the_steps_the_alias_is_another_wave():
    fast = torch.tensor(5.0, dtype=torch.float64)
    assert float((fast * 0.5).cos()) != pytest.approx(float((alias(fast) * 0.5).cos()), abs=0.1)


def test_null_class_is_the_last_row():
    embed = LabelEmbedder(10, 4, dropout_prob=0.1)
    assert embed.embedding_table.weight.shape == (11, 4)
    assert LabelEmbedder(10, 4, dropout_prob=0.0).embedding_table.weight.shape == (10, 4)
    forced = embed(torch.tensor([3, 3]), force_drop_ids=torch.tensor([1, 0]))
    assert torch.equal(forced, embed.embedding_table.weight[[10, 3]])


def test_a_table_is_a_linear_map_of_one_hot_vectors():
    """E_y = one-hot(y) W + b, with a bias: then W is the table less b in every row."""
    torch.manual_seed(0)
    embed, bias = LabelEmbedder(10, 4, dropout_prob=0.1).double(), torch.randn(4).double()
    linear = torch.nn.Linear(11, 4).double()
    linear.weight.data = (embed.embedding_table.weight - bias).T.detach()
    linear.bias.data = bias
    y = torch.tensor([0, 3, 10])
    one_hot = F.one_hot(y, 11).double()  # (3, 11)
    torch.testing.assert_close(linear(one_hot), embed(y), rtol=1e-12, atol=1e-12)


def test_table_and_linear_map_learn_alike():
    """Their gradients are the same numbers: a table only skips the multiplications by zero."""
    torch.manual_seed(0)
    embed = LabelEmbedder(5, 3, dropout_prob=0.1).double()
    linear = torch.nn.Linear(6, 3, bias=False).double()
    linear.weight.data = embed.embedding_table.weight.T.detach().clone()
    y, want = torch.tensor([0, 4, 4]), torch.randn(3, 3).double()
    for out in (embed(y, force_drop_ids=torch.tensor([0, 0, 1])), linear(F.one_hot(
        torch.tensor([0, 4, 5]), 6).double())):  # fmt: skip
        (out - want).square().sum().backward()
    torch.testing.assert_close(embed.embedding_table.weight.grad, linear.weight.grad.T)


def test_labels_are_dropped_in_training_only():
    torch.manual_seed(0)
    embed = LabelEmbedder(1, 1, dropout_prob=0.1)
    embed.embedding_table.weight.data = torch.tensor([[0.0], [1.0]])  # 1 where dropped
    y = torch.zeros(20000, dtype=torch.long)
    embed.requires_grad_(False)
    # 20,000 coins of 0.1: standard error 0.0021.
    assert float(embed.train()(y).mean()) == pytest.approx(0.1, abs=0.01)
    assert float(embed.eval()(y).mean()) == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"dropout_prob=1\.5"):
        LabelEmbedder(10, 4, 1.5)
    with pytest.raises(ValueError, match="num_classes=0"):
        LabelEmbedder(0, 4, 0.1)
    with pytest.raises(ValueError, match="no null class"):
        LabelEmbedder(10, 4, 0.0)(torch.tensor([1]), force_drop_ids=torch.tensor([1]))
