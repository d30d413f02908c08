"""Attention against the formula written out, and against torch's own module."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dit_edu.attention import Attention


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


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_heads=5 does not divide dim=24"):
        Attention(24, 5)
