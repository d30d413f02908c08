"""Windows: who is near, and three ways of applying one mask."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dit_edu.attention import Attention, naive_attention, record_attention
from dit_edu.windows import Window, block_mask, gathered_attention, token_distance


def qkv(batch: int, n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    return [torch.randn(batch, 2, n, 4, dtype=torch.float64, generator=g) for _ in range(3)]


@given(h=st.integers(1, 6), w=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_distance_on_the_grid_is_the_king_s_and_in_reading_order_the_clerk_s(h, w):
    grid, raster = token_distance((h, w)), token_distance((h, w), "raster")
    for a in range(h * w):
        for b in range(h * w):
            assert grid[a, b] == max(abs(a // w - b // w), abs(a % w - b % w))
            assert raster[a, b] == abs(a - b)


def test_reading_order_takes_the_ends_of_rows_for_neighbours():
    grid, raster = token_distance((8, 8)), token_distance((8, 8), "raster")
    assert (raster[7, 8], grid[7, 8]) == (1, 7)  # the end of a row, and the start of the next
    assert (raster[0, 8], grid[0, 8]) == (8, 1)  # one above the other


def test_an_inner_token_sees_a_square_of_2k_minus_1():
    for k in (1, 2, 3):
        seen = Window((9, 9), torch.tensor([k])).allowed()[0, 0, 40]
        assert seen.sum() == (2 * k - 1) ** 2


@given(
    h=st.integers(3, 21),
    w=st.integers(3, 21),
    reach=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_gathered_windows_equal_the_dense_mask(h, w, reach):
    window = Window((h, w), torch.tensor(reach))
    q, k, v = qkv(len(reach), h * w)
    want = naive_attention(q, k, v, mask=window.allowed())
    torch.testing.assert_close(gathered_attention(q, k, v, window), want, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_blocks_of_flex_attention_equal_the_dense_mask():
    window = Window((12, 12), torch.tensor([2, 5]), way="flex")
    q, k, v = qkv(2, 144)
    want = naive_attention(q, k, v, mask=window.allowed())
    torch.testing.assert_close(window.attend(q, k, v), want, rtol=1e-10, atol=1e-10)


def test_blocks_are_bands_of_rows_and_most_of_them_are_skipped():
    for side, reach in ((32, 2), (32, 6)):
        band = 128 // side  # rows in a block of 128 tokens
        bands, away = side // band, -(-(reach - 1) // band)  # a window touches so many to each side
        kept = sum(abs(i - j) <= away for i in range(bands) for j in range(bands))
        found = block_mask(Window((side, side), torch.tensor([reach])))
        assert found.sparsity() == pytest.approx(100 * (1 - kept / bands**2))


def test_gradients_of_gathered_windows_are_those_of_the_mask():
    window = Window((10, 11), torch.tensor([2, 4]))
    q, k, v = qkv(2, 110)
    grads = []
    for attend in (
        lambda: naive_attention(q, k, v, mask=window.allowed()),
        lambda: gathered_attention(q, k, v, window),
    ):
        for x in (q, k, v):
            x.requires_grad_().grad = None
        attend().square().sum().backward()
        grads.append([x.grad for x in (q, k, v)])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("way", ["dense", "gathered"])
def test_a_module_takes_a_window_and_its_weights_are_recorded(way):
    torch.manual_seed(0)
    module = Attention(8, 2).double()
    window = Window((32, 16), torch.tensor([2]), way=way)
    x = torch.randn(1, 512, 8, dtype=torch.float64)
    with record_attention(module) as weights:
        out = module(x, mask=window)
    assert (weights[0].sum(-1) - 1).abs().max() < 1e-12
    assert not weights[0][~window.allowed().expand_as(weights[0])].any()
    torch.testing.assert_close(out, module(x, mask=window.allowed()), rtol=1e-10, atol=1e-10)


def test_a_wide_window_is_not_gathered(monkeypatch):
    monkeypatch.setattr("dit_edu.windows.gathered_attention", lambda *_: pytest.fail("gathered"))
    q, k, v = qkv(1, 256)
    Window((16, 16), torch.tensor([3]), way="gathered").attend(q, k, v)


def test_density_is_the_share_of_allowed_pairs():
    window = Window((4, 4), torch.tensor([1, 4]))
    assert window.density() == pytest.approx((1 / 16 + 1) / 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reach": torch.tensor([0])}, r"reach=\[0\]; allowed"),
        ({"reach": torch.tensor(2)}, "allowed: .B,."),
        ({"distance": "taxi"}, "distance"),
        ({"way": "magic"}, "way"),
        ({"way": "gathered", "distance": "raster"}, "allowed: 'dense'"),
    ],
)
def test_bad_windows_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Window(**{"grid": (4, 4), "reach": torch.tensor([2]), **change})


def test_a_window_of_zero_would_be_no_number():
    q, k, v = qkv(1, 16)
    nothing = torch.zeros(16, 16, dtype=torch.bool)
    assert math.isnan(naive_attention(q, k, v, mask=nothing).sum())
