"""Figures and variants of the chapter on conditioning: what they show is what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dit_edu.lab.experiments import read
from dit_edu.lab.experiments.conditioning import BEST, KINDS, RATES, WAVES, variant
from dit_edu.lab.figures import conditioning_race, waves_of_time
from dit_edu.lab.train import train


def fresh(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return variant(KINDS[name]).build_model()


def blocks(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, what the first block makes of them, and what it would make with gates of 1."""
    x, t, y = torch.randn(2, 16, 32), torch.randn(2, 32), torch.randn(2, 32)
    block = model.blocks[0]
    h, told = model.kind.enter(x, t, y)
    plain = h + block.attn(block.norm1(h))
    return h, block(h, model.share(told)), plain + block.mlp(block.norm2(plain))


def test_waves_meet_their_aliases_at_whole_steps():
    figure = waves_of_time()
    waves, speeds, likeness = figure.panels
    wave, seen = (np.asarray(line.y) for line in waves.lines)  # (formulas, waves, points)
    whole = np.isclose(np.asarray(waves.x) % 1, 0)
    np.testing.assert_allclose(wave[..., whole], seen[..., whole], atol=1e-9)
    np.testing.assert_allclose(wave[:2], seen[:2])  # only the printed formula is too fast
    assert np.abs(wave[2] - seen[2]).max() > 1.9
    omega, slow, _ = (np.asarray(line.y) for line in speeds.lines)  # (formulas, k)
    assert slow.max() <= math.pi
    assert (omega[2] > math.pi).mean() == pytest.approx(0.75, abs=0.01)
    ours, published = (np.asarray(line.y) for line in likeness.lines)  # (formulas, distances)
    np.testing.assert_allclose(ours[0], published[0])
    assert ours[0, 1] > 0.95 and abs(ours[2, 1]) < 0.2
    np.testing.assert_allclose(ours[:, 0], 1)


def test_variants_start_as_they_say():
    h, out, plain = blocks(fresh("adaln-zero, gates open"))
    torch.testing.assert_close(out, plain)  # the plain block, its norms without a scale
    h, out, _ = blocks(fresh("adaln-zero, one for all"))
    assert torch.equal(out, h)
    h, out, plain = blocks(fresh("adaln-zero, random start"))
    assert not torch.allclose(out, h, atol=0.1) and not torch.allclose(out, plain, atol=0.1)


def test_variants_have_the_parameters_they_say():
    def params(name: str) -> int:
        return sum(p.numel() for p in fresh(name).parameters() if p.requires_grad)

    zero = params("adaln-zero")
    assert params("adaln-zero, random start") == params("adaln-zero, gates open") == zero
    assert params("adaln, 18 D²") == pytest.approx(zero, rel=0.002)  # but for biases
    tables = 3 * 6 * 32
    assert params("adaln-single") - params("adaln-zero, one for all") == tables


@pytest.mark.parametrize("name", WAVES)
def test_every_way_to_show_the_step_is_one(name):
    shown = WAVES[name](torch.arange(1000), 256)
    assert shown.shape == (1000, 256) and shown.dtype == torch.float32
    codes = len(torch.unique(shown, dim=0))
    assert codes == (1 if name == "no step" else 1000)
    model = variant({"model": {}, "waves": name}).build_model()
    assert model(torch.zeros(2, 1, 8, 8), torch.tensor([0, 9]), torch.tensor([1, 2])).shape[1] == 1


def test_rates_are_the_best_of_the_fold():
    found = {row["setting"]: row["metrics"]["loss"] for row in read("conditioning-lr")}
    for name in KINDS:
        assert BEST[name] == min(RATES, key=lambda rate: found[f"{name}, lr {rate}"])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_trains_from_values_of_its_own(name):
    recipe = replace(variant(KINDS[name]), steps=1, warmup=0)
    assert recipe.start is None  # no model of the zoo
    (step,) = train(recipe, seed=0, device="cpu")
    assert math.isfinite(step.loss)


def test_race_shows_the_table():
    figure, rows = conditioning_race(), read("conditioning")
    names, (kind, base) = list(figure.axes[0].values), figure.panels[0].lines
    assert names == list(KINDS)
    np.testing.assert_allclose(kind.y[names.index("adaln-zero")], 1)
    np.testing.assert_allclose(base.y, 1)
    assert (np.asarray(kind.low) < kind.y).all() and (kind.y < np.asarray(kind.high)).all()
    for name, ratio in zip(names, kind.y, strict=True):
        found = {
            which: np.mean([r["metrics"]["loss_by_bin"] for r in rows if r["setting"] == which], 0)
            for which in (name, "adaln-zero")
        }
        np.testing.assert_allclose(ratio, found[name] / found["adaln-zero"], rtol=1e-3)
