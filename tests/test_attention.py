"""Attention against the formula written out, and against torch's own module."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dit_edu.attention import (
    Attention,
    attention_distance,
    attention_entropy,
    attention_weights,
    naive_attention,
    record_attention,
)
from dit_edu.dit import DiT


def attention(dim: int = 24, heads: int = 4) -> Attention:
    torch.manual_seed(0)
    return Attention(dim, heads).double()


def test_equals_the_formula_head_by_head():
    module, x = attention(), torch.randn(2, 5, 24, dtype=torch.float64)
    q, k, v = (x @ module.qkv.weight.T + module.qkv.bias).split(24, dim=-1)
    heads = []
    for h in range(4):
        cut = slice(6 * h, 6 * h + 6)
        logits = q[..., cut] @ k[..., cut].transpose(1, 2) / math.sqrt(6)
        heads.append(torch.softmax(logits, dim=-1) @ v[..., cut])
    want = torch.cat(heads, dim=-1) @ module.proj.weight.T + module.proj.bias
    torch.testing.assert_close(module(x), want, rtol=1e-10, atol=1e-10)


def test_equals_torch_multihead_attention():
    module, x = attention(), torch.randn(2, 5, 24, dtype=torch.float64)
    theirs = nn.MultiheadAttention(24, 4, batch_first=True, dtype=torch.float64)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = module.qkv.weight, module.qkv.bias
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = module.proj.weight, module.proj.bias
    torch.testing.assert_close(module(x), theirs(x, x, x)[0], rtol=1e-10, atol=1e-10)


def test_masked_tokens_have_no_influence():
    module, x = attention(), torch.randn(1, 5, 24, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[:, 4] = False  # nobody looks at token 4
    changed = x.clone()
    changed[:, 4] += 10
    torch.testing.assert_close(module(x, mask=mask)[:, :4], module(changed, mask=mask)[:, :4])
    assert not torch.allclose(module(x)[:, :4], module(changed)[:, :4])


def test_order_of_tokens_does_not_matter_without_positions():
    module, x = attention(), torch.randn(1, 6, 24, dtype=torch.float64)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["none", "float", "bool"])
def test_the_table_written_out_equals_the_fused_kernel(kind):
    q, k, v = torch.randn(3, 2, 4, 7, 6, dtype=torch.float64)
    allowed = torch.rand(7, 7) < 0.6
    allowed.fill_diagonal_(True)
    mask = {"none": None, "float": torch.randn(7, 7, dtype=torch.float64), "bool": allowed}[kind]
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(naive_attention(q, k, v, mask), want, rtol=1e-10, atol=1e-10)
    weights = attention_weights(q, k, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7, dtype=torch.float64))
    if kind == "bool":
        assert (weights[..., ~allowed] == 0).all()


def test_logits_have_unit_variance_after_the_division():
    """Independent entries of variance 1: a product of d of them has variance d."""
    d = 64
    q, k = torch.randn(2, 400, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (q @ k.T).var().item() == pytest.approx(d, rel=0.05)
    logits = attention_weights(q, k).log()  # up to a number for each row
    centred = logits - logits.mean(-1, keepdim=True)
    assert centred.var().item() == pytest.approx(1, rel=0.05)


def test_recorded_weights_are_those_that_the_model_used():
    torch.manual_seed(0)
    model = DiT(
        input_size=(4, 6), patch_size=2, in_channels=1, hidden_size=16, depth=2, num_heads=2,
        num_classes=3, learn_sigma=False,
    ).double()  # fmt: skip
    seen = []
    module = model.blocks[1].attn
    hook = module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with record_attention(model) as weights:
        x = torch.randn(3, 1, 4, 6, dtype=torch.float64)
        model(x, torch.tensor([0, 5, 999]), torch.tensor([0, 1, 2]))
    hook.remove()
    assert [tuple(w.shape) for w in weights] == [(3, 2, 6, 6)] * 2
    heads = weights[1] @ module.project(seen[0][0])[2]  # (B, h, N, d)
    want = module.proj(heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(seen[0][1], want, rtol=1e-10, atol=1e-10)
    assert not any(m._forward_hooks for m in model.modules())


def test_distance_and_entropy_of_known_weights():
    own, even = torch.eye(6), torch.full((6, 6), 1 / 6)
    assert attention_distance(own, (2, 3)).abs().max() == 0
    assert attention_entropy(own).abs().max() == 0
    torch.testing.assert_close(attention_entropy(even), torch.full((6,), math.log(6)))
    corner = (0 + 1 + 2 + 1 + math.sqrt(2) + math.sqrt(5)) / 6  # from (0, 0) to a grid of 2 x 3
    assert attention_distance(even, (2, 3))[0].item() == pytest.approx(corner, rel=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_heads=5 does not divide dim=24"):
        Attention(24, 5)
