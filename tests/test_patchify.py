"""Patchify against plain slicing, torch's Unfold and the convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_edu.patchify import PatchEmbed, patchify, token_grid, unpatchify


@given(
    b=st.integers(1, 3), c=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4),
    p=st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_unpatchify_undoes_patchify(b, c, h, w, p):
    x = torch.arange(b * c * h * w * p * p, dtype=torch.float32).view(b, c, h * p, w * p)
    tokens = patchify(x, p)
    assert tokens.shape == (b, h * w, p * p * c)
    assert torch.equal(unpatchify(tokens, p, (h, w)), x)


def test_tokens_are_slices_in_reading_order():
    x = torch.randn(2, 3, 4, 6)
    tokens = patchify(x, 2)
    for n, (i, j) in enumerate((i, j) for i in range(2) for j in range(3)):
        patch = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]  # (B, C, p, p)
        assert torch.equal(tokens[:, n], patch.permute(0, 2, 3, 1).flatten(1))  # (p, q, c)


def test_unfold_lists_channels_first():
    x = torch.randn(2, 3, 8, 12)
    unfolded = F.unfold(x, 4, stride=4).transpose(1, 2)  # (B, N, C*p*p)
    ours = patchify(x, 4).view(2, 6, 16, 3).transpose(2, 3).flatten(2)  # (pq, c) -> (c, pq)
    assert torch.equal(ours, unfolded)


def test_patch_embed_is_a_linear_map_of_patches():
    torch.manual_seed(0)
    embed = PatchEmbed((8, 12), 4, 3, 16).double()
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    weight = embed.proj.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (D, c, p, q) -> (p*q*c, D)
    linear = patchify(x, 4) @ weight + embed.proj.bias
    torch.testing.assert_close(embed(x), linear, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: patchify(torch.zeros(1, 1, 8, 12), 3), ValueError, "p=3 .*8x12.*allowed: 1, 2, 4"),
        (lambda: patchify(torch.zeros(1, 1, 8, 8), 0), ValueError, "p=0"),
        (lambda: patchify(torch.zeros(1, 1, 8, 8), 2.0), TypeError, "p=2.0"),
        (lambda: patchify(torch.zeros(1, 8, 8), 2), ValueError, "B, C, H, W"),
        (lambda: unpatchify(torch.zeros(1, 5, 4), 2, (2, 2)), ValueError, "1, 5, 4"),
        (lambda: unpatchify(torch.zeros(1, 4, 5), 2, (2, 2)), ValueError, "1, 4, 5"),
        (lambda: PatchEmbed((8, 8), 5, 1, 4), ValueError, "p=5"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_token_grid_of_a_tall_image():
    assert token_grid((12, 8), 4) == (3, 2)
