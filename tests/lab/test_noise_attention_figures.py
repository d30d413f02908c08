"""The figure of noise-aware attention against weights computed by hand, and its experiments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_edu.attention import record_attention
from dit_edu.lab import zoo
from dit_edu.lab.data import dataset
from dit_edu.lab.experiments import get_experiment, read, stale
from dit_edu.lab.experiments.noise_attention import EXPERIMENTS, LEVELS, entropies
from dit_edu.lab.figures import attention_by_noise
from dit_edu.lab.figures.noise_attention import LAYER, QUERIES, SHOWN, STEPS, ruled
from dit_edu.lab.recipes import MODELS, Recipe


@pytest.mark.parametrize("name", [experiment.name for experiment in EXPERIMENTS])
def test_the_tables_are_whole(name):
    assert stale(get_experiment(name), read(name)) == []


def test_the_figure_shows_the_model_s_own_weights_under_a_rule():
    figure = attention_by_noise(images=2)
    _, heat, table, curves = figure.panels
    shares = np.asarray(heat.values)  # (rules, t, queries, 8, 8)
    np.testing.assert_allclose(shares.sum((-1, -2)), 100, atol=3.2)
    model, card = zoo.load("small-shapes-dit")
    process = Recipe.from_dict(card["recipe"]).process.build()
    x0, y = (part[3:4] for part in dataset("small-shapes").load("heldout"))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([STEPS[4]])
    with record_attention(model) as weights, torch.no_grad():
        model(process.q_sample(x0, t, noise), t, y)
    row, column = next(iter(QUERIES.values()))
    want = 100 * weights[LAYER][0, :, 8 * row + column].mean(0).view(8, 8)
    np.testing.assert_allclose(shares[list(SHOWN).index("plain"), 4, 0], want, atol=0.051)

    always = shares[list(SHOWN).index("always 3 × 3")]
    assert ((always > 0).sum((-1, -2)) == [9, 4, 6]).all()  # on the object, corner, left edge
    written = shares[list(SHOWN).index("mask as written")]
    assert written.min() > 0  # which masks nothing
    assert table.rows[list(SHOWN).index("always 3 × 3"), 0, 0, 2, 1] == "100 %"
    narrow = np.asarray(curves.lines[0].y)[list(SHOWN).index("narrow at noise")]
    assert narrow[-1] == pytest.approx(0, abs=1e-4)  # a token alone with itself


def test_a_rule_is_laid_on_the_same_weights():
    model, _ = zoo.load("digits-dit")
    other, _ = ruled("always 3 × 3", "digits-dit")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_entropy_of_attention_to_all_alike_is_one():
    torch.manual_seed(0)
    sizes = dict(
        input_size=8, in_channels=1, hidden_size=8, depth=2, num_heads=2, num_classes=2
    )  # fmt: skip
    model = MODELS["NoiseAwareDiT"](**sizes, learn_sigma=False).eval()
    process = Recipe(name="any").process.build()
    x0, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 1])
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
    found = entropies(model, process, x0, y)
    assert found.shape == (len(LEVELS), 2)
    torch.testing.assert_close(found, torch.ones_like(found))
    alone = MODELS["NoiseAwareDiT"](**sizes, learn_sigma=False, window="fixed").eval()
    assert entropies(alone, process, x0, y, (5,)).abs().max() < 1e-6
