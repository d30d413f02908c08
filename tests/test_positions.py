"""Positions: the formula in a loop, diffusers' tables and rotations, what only offsets decide."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_edu.attention import attention_weights
from dit_edu.dit import DiT
from dit_edu.positions import POSITIONS, Rotary, coordinates, resize_pos_embed, sincos_pos_embed

SMALL = dict(
    input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=2, num_heads=2, num_classes=3,
    learn_sigma=False,
)  # fmt: skip


def model(positions: str, **changes) -> DiT:
    """A small DiT in which every trained number is random, the position table's among them."""
    torch.manual_seed(0)
    net = DiT(**{**SMALL, **changes}, positions=positions).eval()
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def ask(net: DiT, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x, torch.full((len(x),), 300), torch.ones(len(x), dtype=torch.long))


def test_positions_are_the_written_formula():
    dim, (h, w) = 16, (3, 5)
    table = sincos_pos_embed(dim, (h, w))
    assert table.shape == (h * w, dim)
    for i in range(h):
        for j in range(w):
            want = []
            for position in (j, i):  # the column first
                angles = [position * 10000 ** (-k / (dim / 4)) for k in range(dim // 4)]
                want += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[i * w + j], torch.tensor(want), rtol=1e-6, atol=1e-6)


def test_positions_equal_diffusers():
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    theirs = torch.as_tensor(get_2d_sincos_pos_embed(64, 4, base_size=4, output_type="pt")).float()
    torch.testing.assert_close(sincos_pos_embed(64, 4), theirs, rtol=1e-5, atol=1e-6)


def test_every_position_is_different():
    table = sincos_pos_embed(64, 16)
    distance = torch.cdist(table, table) + 10 * torch.eye(256)
    assert distance.min() > 0.1


@given(h=st.integers(1, 5), w=st.integers(1, 5), by=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_stretched_tokens_share_the_area_of_the_old(h, w, by):
    """``by`` x ``by`` new tokens stand around each old one, and their mean is its place."""
    fine = torch.stack(coordinates((h * by, w * by), (h, w)))  # (2, N by²)
    mean = fine.view(2, h, by, w, by).mean((2, 4)).flatten(1)  # (2, N)
    torch.testing.assert_close(mean, torch.stack(coordinates((h, w))), rtol=0, atol=1e-12)


def test_stretched_positions_are_diffusers_up_to_where_a_patch_has_its_middle():
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    theirs = torch.as_tensor(get_2d_sincos_pos_embed(32, 6, base_size=4, output_type="pt"))
    theirs, ours = theirs.double(), sincos_pos_embed(32, 6, (4, 4)).double()  # (36, 32) each
    # A common shift of all tokens is a rotation, so products between tokens agree.
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=1e-5, atol=1e-5)


def test_resizing_a_table_of_slow_waves_comes_near_the_waves():
    grid, fine = (8, 6), (12, 9)
    table, want = (
        torch.stack([torch.sin(0.2 * c) for c in coordinates(g, grid)], dim=1).float()  # (N, 2)
        for g in (grid, fine)
    )
    inside = torch.zeros(fine, dtype=torch.bool)
    inside[3:-3, 3:-3] = True  # away from the edge, where bicubic repeats the last row
    found = resize_pos_embed(table, grid, fine)
    inside = inside.flatten()
    torch.testing.assert_close(found[inside], want[inside], rtol=0, atol=0.01)
    torch.testing.assert_close(resize_pos_embed(table, grid, grid), table)


def test_a_rotation_is_complex_multiplication():
    rotary, x = Rotary(8, (2, 3)).double(), torch.randn(2, 4, 6, 8, dtype=torch.float64)
    got = torch.complex(*rotary(x).chunk(2, dim=-1))  # (2, 4, 6, 4)
    for n in range(6):
        i, j = divmod(n, 3)
        for k in range(4):
            angle = (j if k < 2 else i) * 100 ** (-(k % 2) / 2)
            want = torch.complex(x[..., n, k], x[..., n, k + 4]) * complex(
                math.cos(angle), math.sin(angle)
            )
            torch.testing.assert_close(got[..., n, k], want, rtol=1e-6, atol=1e-6)


def test_only_the_offset_decides_where_a_rotated_query_looks():
    """One query and one key everywhere: the logits of a pair are those of every shifted pair."""
    h, w = 4, 5
    rotary = Rotary(16, (h, w)).double()
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    logits = rotary(q.expand(1, 1, h * w, 16)) @ rotary(k.expand(1, 1, h * w, 16)).mT
    logits = logits.view(h, w, h, w)
    shifted, here = logits[1:, 2:, 1:, 2:], logits[:-1, :-2, :-1, :-2]
    torch.testing.assert_close(shifted, here, rtol=0, atol=1e-5)  # angles are float32
    assert not torch.allclose(logits[0, 0, 0, 1], logits[0, 0, 1, 0])


def test_lengths_are_kept():
    x = torch.randn(3, 2, 6, 8)
    torch.testing.assert_close(Rotary(8, (2, 3))(x).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_model_that_knows_places_answers_shuffled_patches_otherwise(positions):
    net, x = model(positions), torch.randn(1, 1, 8, 8)
    turned = torch.roll(x, 4, dims=3)  # whole patches change places
    same = torch.allclose(torch.roll(ask(net, x), 4, dims=3), ask(net, turned), atol=1e-5)
    assert same == (positions == "none")


@pytest.mark.parametrize("positions", POSITIONS)
def test_all_kinds_start_from_the_same_random_weights(positions):
    def fresh(kind: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return DiT(**SMALL, positions=kind).state_dict()

    mine, usual = fresh(positions), fresh("sincos")
    assert mine.keys() | {"pos_embed"} == usual.keys()
    assert ("pos_embed" in mine) == (positions in ("learned", "sincos"))
    assert all(torch.equal(mine[key], usual[key]) for key in mine if key != "pos_embed")


def test_learned_positions_are_trained_and_fixed_ones_are_not():
    assert model("learned").pos_embed.requires_grad
    assert not model("sincos").pos_embed.requires_grad


@pytest.mark.parametrize("how", ["stretch", "extend"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_the_same_weights_at_another_size(positions, how):
    net = model(positions)
    before = copy.deepcopy(net.state_dict())
    if (positions, how) == ("learned", "extend"):
        with pytest.raises(ValueError, match="how='extend' with positions='learned'"):
            net.at_size(12, how)
        return
    wide = net.at_size((12, 16), how)
    assert wide.input_size == (12, 16)
    assert ask(wide, torch.randn(2, 1, 12, 16)).shape == (2, 1, 12, 16)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(ask(net.at_size(8, how), x), ask(net, x))
    if positions != "learned":  # made anew, not interpolated, so the way back is exact
        torch.testing.assert_close(ask(wide.at_size(8, "stretch"), x), ask(net, x))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_extended_positions_keep_those_of_the_old_grid():
    net = model("sincos")
    old = net.pos_embed.view(4, 4, -1)
    new = net.at_size(16, "extend").pos_embed.view(8, 8, -1)
    assert torch.equal(new[:4, :4], old)


def test_rotation_inside_attention_is_rotation_of_queries_and_keys():
    attn = model("rope").double().blocks[0].attn
    x = torch.randn(1, 16, 16, dtype=torch.float64)
    q, k, v = attn.qkv(x).view(1, 16, 3, 2, 8).permute(2, 0, 3, 1, 4)
    seen = attention_weights(attn.rotary(q), attn.rotary(k)) @ v  # (1, 2, 16, 8)
    want = attn.proj(seen.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attn(x), want, rtol=1e-10, atol=1e-10)


def test_half_precision_stays_half():
    assert Rotary(8, (2, 2))(torch.randn(1, 1, 4, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sincos_pos_embed(6, 4), "dim=6"),
        (lambda: Rotary(6, (2, 2)), "head_dim=6"),
        (lambda: Rotary(8, (2, 2))(torch.zeros(1, 1, 5, 8)), "x has 5 tokens; allowed: 4"),
        (lambda: resize_pos_embed(torch.zeros(5, 8), (2, 2), (3, 3)), "grid=2x2: \\(4, D\\)"),
        (lambda: DiT(**SMALL, positions="sincoss"), "positions='sincoss'.*sincos"),
        (lambda: model("sincos").at_size(9), "p=2 does not divide"),
        (lambda: model("sincos").at_size(16, "strech"), "how='strech'.*stretch"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
