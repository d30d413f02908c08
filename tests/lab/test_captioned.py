"""Models that read captions: what words change, and what they must not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dit_edu.guidance import Guided
from dit_edu.lab.captioned import CaptionedDiT, CaptionedUNet, Captions, CrossUNet
from dit_edu.lab.profile import count

F64 = torch.float64
SHARED = dict(input_size=8, in_channels=2, num_classes=3, learn_sigma=False)
DIT = dict(**SHARED, patch_size=2, hidden_size=16, depth=2, num_heads=2)
UNET = dict(**SHARED, widths=(8, 16), layers=1, head_dim=4, num_groups=4)
KINDS = [(CaptionedDiT, DIT), (CaptionedUNet, UNET), (CrossUNet, UNET)]


def made(kind: type[nn.Module], arguments: dict) -> nn.Module:
    torch.manual_seed(0)
    model = kind(7, **arguments).double().eval()
    for p in model.parameters():  # a fresh DiT answers 0
        nn.init.normal_(p, std=0.2)
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    return x, torch.tensor([3, 700]), torch.tensor([[0, 1, 5], [2, 3, 4]])


@pytest.mark.parametrize(("kind", "arguments"), KINDS)
def test_each_word_counts_and_their_order_does_not(kind, arguments):
    model, (x, t, y) = made(kind, arguments), batch()
    out = model(x, t, y)
    assert out.shape == x.shape
    torch.testing.assert_close(model(x, t, y[:, [0, 2, 1]]), out)
    for column in range(3):
        other = y.clone()
        other[0, column] = 6 if column else 1
        changed = (model(x, t, other) - out).abs().flatten(1).amax(1)
        assert changed[0] > 1e-6 and changed[1] < 1e-10


@pytest.mark.parametrize(("kind", "arguments"), KINDS)
def test_guidance_leaves_out_label_and_words(kind, arguments):
    model, (x, t, y) = made(kind, arguments), batch()
    null = torch.tensor([[3, 7, 7], [3, 7, 7]])
    assert torch.equal(model.null_condition(y), null)
    want = model(x, t, null) + 1.5 * (model(x, t, y) - model(x, t, null))
    torch.testing.assert_close(Guided(model, 1.5)(x, t, y), want)


def test_label_and_words_are_dropped_together_and_only_in_training():
    torch.manual_seed(0)
    captions = Captions(3, 7, 4, 0.25)
    y = torch.tensor([[1, 2, 6]]).repeat(4000, 1)
    label, words = captions(y)
    gone = (label == captions.label.weight[3]).all(1)
    assert 0.22 < gone.double().mean() < 0.28
    assert torch.equal(gone, (words == captions.word.weight[7]).all(2).all(1))
    label, words = captions.eval()(y)
    assert torch.equal(label, captions.label.weight[1].expand(4000, 4))
    assert torch.equal(words[0], captions.word.weight[[2, 6]])


@pytest.mark.parametrize(("kind", "arguments"), KINDS)
def test_larger_images_can_be_asked_for(kind, arguments):
    model, (_, t, y) = made(kind, arguments).at_size(12), batch()
    assert model(torch.randn(2, 2, 12, 12, dtype=F64), t, y).shape == (2, 2, 12, 12)


def test_what_a_word_more_costs():
    """A DiT pays for a token more in every block, the added vector is free."""
    x, one = torch.zeros(1, 2, 8, 8), torch.zeros(1, dtype=torch.long)
    y = torch.zeros(1, 2, dtype=torch.long)

    def macs(kind: type[nn.Module], arguments: dict, words: int) -> int:
        return count(kind(7, **arguments), x, one, y.repeat(1, words)[:, : words + 1]).macs

    d, depth, n = 16, 2, 16
    more = depth * (12 * d**2 + 2 * d * ((n + 2) ** 2 - (n + 1) ** 2))
    assert macs(CaptionedDiT, DIT, 2) - macs(CaptionedDiT, DIT, 1) == more
    assert macs(CaptionedUNet, UNET, 2) == macs(CaptionedUNet, UNET, 1)


def test_one_word_is_told_to_all_pixels_alike():
    """Softmax over a single key is 1: cross-attention to one word adds one vector everywhere."""
    model = made(CrossUNet, UNET)
    cross = next(m for n, m in model.named_modules() if n.endswith("attn2"))
    x = torch.randn(1, 16, 16, dtype=F64)  # (B, pixels, channels)
    told = cross(x, torch.randn(1, 1, 32, dtype=F64))
    torch.testing.assert_close(told, told[:, :1].expand_as(told))
    told = cross(x, torch.randn(1, 2, 32, dtype=F64))
    assert not torch.allclose(told, told[:, :1].expand_as(told))
