"""What is asked of single blocks: against pairs counted one by one, pooling, and shorter models."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from dit_edu.dit import DiT
from dit_edu.lab.depth import (
    LeftOut,
    OnMeans,
    copies,
    detail,
    looks_by_block,
    means,
    replaced,
    similarity,
)

GRID = (4, 6)


def model(depth: int = 3) -> DiT:
    g = torch.Generator().manual_seed(1)
    net = DiT(
        input_size=(8, 12), in_channels=3, hidden_size=16, depth=depth, num_heads=2, num_classes=10
    )
    for p in net.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=g) * 0.2
    return net.eval()


def question() -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 3, 8, 12), torch.tensor([10, 900]), torch.tensor([1, 2])


def test_means_and_copies_are_pooling_and_repeating():
    x = torch.randn(2, 24, 5)
    picture = rearrange(x, "b (h w) d -> b d h w", h=4)
    pooled = F.avg_pool2d(picture, 2)
    torch.testing.assert_close(means(x, GRID), pooled.flatten(2).mT)
    again = F.interpolate(pooled, scale_factor=2).flatten(2).mT
    torch.testing.assert_close(copies(means(x, GRID), GRID), again)


def test_similarity_is_the_mean_over_pairs():
    x = torch.randn(3, 7, 5)
    pairs = [F.cosine_similarity(x[:, i], x[:, j], dim=-1) for i, j in combinations(range(7), 2)]
    torch.testing.assert_close(similarity(x), torch.stack(pairs).mean(0))


def test_detail_is_what_lies_within_two_by_two_tokens():
    coarse, fine = torch.randn(2, 6, 5), torch.randn(2, 24, 5)
    assert detail(copies(coarse, GRID), GRID).max() < 1e-10
    torch.testing.assert_close(
        detail(fine - copies(means(fine, GRID), GRID), GRID), torch.ones(2), rtol=1e-5, atol=1e-5
    )
    # of noise, three of four numbers lie within; the mean that is taken off is one of 24
    noise = torch.randn(500, 24, 5)
    assert detail(noise, GRID).mean().item() == pytest.approx(18 / 23, abs=0.01)


def test_a_block_left_out_is_a_shorter_model():
    net, shorter = model(3), model(2)
    state = net.state_dict()
    rename = {"blocks.1.": "blocks.2."}
    shorter.load_state_dict(
        {k: state[next((k.replace(a, b) for a, b in rename.items() if a in k), k)]
         for k in shorter.state_dict()}
    )  # fmt: skip
    x = question()
    with replaced(net, 1, LeftOut()):
        torch.testing.assert_close(net(*x), shorter(*x))
    assert not torch.allclose(net(*x), shorter(*x))  # and put back


def test_on_means_a_block_sees_a_quarter_of_the_tokens():
    block, c = model().blocks[0], torch.randn(2, 16)
    coarse = torch.randn(2, 6, 16)
    got = OnMeans(block, GRID)(copies(coarse, GRID), c)
    torch.testing.assert_close(got, copies(block(coarse, c), GRID))


def test_who_looks_at_all_alike_looks_as_far_as_that():
    net = model()
    for block in net.blocks:
        block.attn.qkv.weight.data.zero_()
        block.attn.qkv.bias.data.zero_()
    x, t, y = question()
    found = looks_by_block(net, x, t, y)
    given = net.x_embedder(x) + net.pos_embed
    assert found["similarity"][0] == pytest.approx(similarity(given).mean().item(), rel=1e-4)
    assert found["detail"][0] == pytest.approx(detail(given, GRID).mean().item(), rel=1e-4)
    assert found["distance"] == pytest.approx([1, 1, 1], rel=1e-5)
    assert {name: len(values) for name, values in found.items()} == {
        "distance": 3,
        "similarity": 3,
        "detail": 3,
    }
