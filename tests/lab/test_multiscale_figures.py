"""The figure of tokens by depth against closed forms; the models of the race are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.hidit.multiscale import MultiscaleArchitecture
from dit_edu.lab.experiments.multiscale import (
    MODEL,
    WIDE,
    BackAlone,
    dit,
    recipe_of,
    two_sizes,
)
from dit_edu.lab.experiments.scaling import counted
from dit_edu.lab.figures import tokens_by_depth
from dit_edu.lab.figures.multiscale import FRACTIONS, ORDERS
from dit_edu.scaling import Architecture


def test_tokens_by_depth_adds_up_to_the_closed_form():
    tokens, bars, curves = tokens_by_depth().panels
    grids = np.asarray(tokens.tokens)  # (fractions, orders, blocks, 2)
    plain = Architecture(**WIDE)
    block = (plain.macs()["tokens"] + plain.macs()["pairs"]) / plain.depth
    for i, fraction in enumerate(FRACTIONS.values()):
        macs = MultiscaleArchitecture(**WIDE, coarse_fraction=fraction).macs()
        total = macs["tokens"] + macs["pairs"] + macs["scales"]
        for j, order in enumerate(ORDERS):
            assert np.asarray(bars.values)[i, j].sum() / 100 == pytest.approx(total / block)
            assert np.asarray(curves.lines[0].y)[i, j, -1] == pytest.approx(total / block)
            seen = grids[i, j].prod(-1)  # (blocks,)
            assert (seen == 64).sum() == fraction * 8 and (seen == 256).sum() == 8 - fraction * 8
            where = np.flatnonzero(seen == 64)
            assert len(where) == where[-1] - where[0] + 1  # side by side
            first = {"first": 0, "in the middle": (8 - len(where)) // 2, "last": 8 - len(where)}
            assert where[0] == first[order]
    assert np.asarray(curves.lines[1].y)[0, 0].tolist() == list(range(1, 9))


@pytest.mark.parametrize("skip", ["lerp", "concat"])
def test_models_of_the_race_cost_what_the_formula_says(skip):
    sizes = {k: v for k, v in MODEL.items() if k != "embed_std"}
    want = MultiscaleArchitecture(**sizes, coarse_fraction=0.5, skip=skip)
    found = counted(recipe_of(two_sizes(0.5, skip=skip)))
    assert found == {"params": sum(want.params().values()), "macs": sum(want.macs().values())}
    plain = counted(recipe_of(dit()))
    assert plain["macs"] == sum(Architecture(**sizes).macs().values())


def test_without_a_skip_nothing_fine_gets_through():
    torch.manual_seed(0)
    model = recipe_of(two_sizes(0.5, forget=True)).build_model()
    assert isinstance(model.join, BackAlone)
    fine, c = torch.randn(1, 64, 64), torch.randn(1, 64)
    checker = torch.tensor([1.0, -1.0, -1.0, 1.0])[:, None] * torch.randn(1, 64)
    hidden = torch.zeros(8, 8, 64)
    hidden[:2, :2] = checker.view(2, 2, 64)  # four corners that a merge of equal parts cancels
    with torch.no_grad():
        model.merge.proj.weight.copy_(torch.eye(64).repeat(1, 4))
        same, want = fine + hidden.view(1, 64, 64), fine
        for a, b in zip(*(model.layers(torch.zeros(1), c) for _ in range(2)), strict=True):
            same, want = a(same, c), b(want, c)
        torch.testing.assert_close(same, want, rtol=1e-4, atol=1e-4)
