"""The figure of the heads against weights computed by hand, and the cost table's parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dit_edu.attention import Attention
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.lab.data import digits
from dit_edu.lab.experiments.attention import OwnValue, crossing, least, linear_block, pairs_cell
from dit_edu.lab.figures import where_heads_look
from dit_edu.lab.figures.attention import STEPS, looks


@pytest.fixture(scope="module")
def tiny() -> DiT:
    torch.manual_seed(0)
    model = DiT(
        input_size=8, patch_size=2, in_channels=1, hidden_size=8, depth=2, num_heads=2,
        num_classes=10, learn_sigma=False,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_the_map_is_the_chosen_token_s_row(tiny):
    process = GaussianDiffusion.cosine(1000, prediction="v")
    figure = where_heads_look(tiny, process, digit=4, images=5, start=(1, 1))
    tokens, heat, curves = figure.panels
    shares = np.asarray(heat.values)  # (L, 1 + h, t, row, column, 4, 4)
    np.testing.assert_allclose(shares.sum((-1, -2)), 100, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shares[:, 0], shares[:, 1:].mean(1), rtol=1e-4, atol=1e-4)
    images, labels = digits("heldout")
    one = [int((labels == 4).nonzero()[0])]
    x_t, weights = looks(tiny, process, images[one], labels[one], STEPS[3])
    np.testing.assert_allclose(tokens.frames[3], x_t[0].clamp(-1, 1))
    row = 100 * weights[1, 0, 1, 4 * 2 + 3].view(4, 4)  # layer 2, head 2, token in row 2, column 3
    np.testing.assert_allclose(shares[1, 2, 3, 2, 3], row, rtol=1e-4, atol=1e-4)
    assert len(curves.lines) == 3


def test_own_values_are_attention_to_oneself():
    torch.manual_seed(0)
    own, usual, x = OwnValue(8, 2), Attention(8, 2), torch.randn(2, 5, 8)
    usual.load_state_dict(own.state_dict())
    alone = torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(own(x), usual(x, mask=alone))
    assert isinstance(linear_block(8, 2), AdaLNZeroBlock)


def test_a_cell_counts_the_macs_of_the_formula():
    found = pairs_cell({"tokens": 32, "dim": 16, "heads": 2}, 0)
    assert found["linear_macs"] == 12 * 16**2 * 32 + 6 * 16**2
    assert found["pair_macs"] == 2 * 32**2 * 16
    assert found["naive_bytes"] == 2 * 2 * 32**2 * 4  # two tables of two heads, float32
    assert found["fused_bytes"] < found["naive_bytes"]


def test_least_and_crossing_of_a_made_up_machine():
    """Linear layers take N seconds, pairs N² / 100, once spoilt by noise: they cross at 100."""
    rows = [
        {
            "setting": f"D = 64, N = {n}",
            "metrics": {"linear_seconds": n * noise, "fused_seconds": n * n / 100 * noise},
        }
        for n in (16, 64, 256, 384, 1024, 4096)
        for noise in (3.0, 1.0)
    ]
    table = least(rows)[64]
    assert table[256] == {"linear_seconds": 256, "fused_seconds": 655.36}
    assert math.isclose(crossing(table, "fused"), 100, rel_tol=1e-9)
