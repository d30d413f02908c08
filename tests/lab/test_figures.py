"""The chapters' moving figures against closed forms; and what is committed against the code."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.guidance import Guided
from dit_edu.lab import zoo
from dit_edu.lab.experiments import read
from dit_edu.lab.figures import (
    FIGURES,
    expected_loss,
    forward_process,
    loss_by_noise_bin,
    patchify_tokens,
    position_similarity,
    reverse_trajectory,
)
from dit_edu.lab.widgets import BUDGET
from dit_edu.sampling import ddim_sample

COMMITTED = Path(__file__).resolve().parents[2] / "book" / "_static" / "figures"
NEEDS_MODEL = {
    "guidance-scale",
    "loss-by-noise-bin",
    "reverse-trajectory",
    "quality-by-steps",
    "where-heads-look",
    "patch-loss-map",
}


@cache
def built(name: str) -> dict:
    return json.loads(FIGURES[name]().to_json())


def available() -> list[str]:
    return [n for n in FIGURES if n not in NEEDS_MODEL or "digits-dit" in zoo.names()]


@pytest.mark.parametrize("name", available())
def test_what_is_committed_is_what_the_code_makes(name):
    """Numbers to 2 %, texts exactly; pictures (model and machine decide their last bit) by size."""
    made, data = built(name), (COMMITTED / f"{name}.json").read_text("utf8")
    assert made["name"] == name and len(data.encode()) <= BUDGET
    assert_alike(json.loads(data), made)
    twin = (COMMITTED / f"{name}.js").read_text("utf8")
    assert twin == f'(globalThis.DIT_FIGURES??={{}})["{name}"]={data.strip()};\n'
    assert (COMMITTED / f"{name}.png").is_file()


def assert_alike(one, other, where="figure"):
    assert type(one) is type(other) or {type(one), type(other)} == {int, float}, where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_alike(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_alike(*pair, f"{where}[{i}]")
    elif isinstance(one, float | int) and not isinstance(one, bool):
        assert one == pytest.approx(other, rel=0.02, abs=1e-3), where
    elif not where.endswith(".sprite"):
        assert one == other, where


def test_only_known_figures_are_committed():
    assert {path.stem for path in COMMITTED.glob("*.json")} <= set(FIGURES)


def test_forward_process_is_the_closed_form():
    figure = forward_process()
    ts = np.array(figure.axes[0].values)
    # Nichol & Dhariwal 2021, equation 17, and Ho et al. 2020, section 4: their ᾱ, multiplied out.
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    ab = {
        "cosine": np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999)),
        "linear": np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)),
    }
    pictures, shares, snr = figure.panels
    clean = np.asarray(pictures.frames)[:, 0, 0]  # at t = 0 hardly any noise
    for s, schedule in enumerate(figure.axes[1].values):
        np.testing.assert_allclose(shares.lines[0].y[s], np.sqrt(ab[schedule][ts]), atol=1e-9)
        np.testing.assert_allclose(shares.lines[1].y[s], np.sqrt(1 - ab[schedule][ts]), atol=1e-9)
        np.testing.assert_allclose(snr.lines[0].y[s], ab[schedule][ts] / (1 - ab[schedule][ts]))
    # x_t = √ᾱ x_0 + √(1-ᾱ) ε with one ε: two steps give x_0 and ε, a third must agree.
    x = np.asarray(pictures.frames, dtype=np.float64)[1, :, 0]  # cosine: (steps, 4, 1, 8, 8)
    a, b = np.sqrt(ab["cosine"][ts]), np.sqrt(1 - ab["cosine"][ts])
    mix = np.array([[a[5], b[5]], [a[40], b[40]]])
    x0, eps = np.linalg.solve(mix, x[[5, 40]].reshape(2, -1))
    np.testing.assert_allclose(x[25].ravel(), a[25] * x0 + b[25] * eps, atol=1e-5)
    np.testing.assert_allclose(x0.reshape(clean[1].shape), clean[1], atol=0.05)
    assert abs(eps.std() - 1) < 0.1


def test_patchify_counts_the_macs_that_run():
    """Rows of the table against what torch counts in the blocks of a DiT-S, forward."""
    table, bars = patchify_tokens().panels[1:]
    for p, row in ((16, 4), (8, 3)):
        with torch.device("meta"):
            model = DiT.from_preset("DiT-S/2", input_size=32, patch_size=p, in_channels=3)
            x, y = torch.empty(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)
            counter = FlopCounterMode(display=False)
            with counter:
                model(x, y, y)
        macs = (
            sum(
                counter.get_flop_counts()[f"DiT.blocks.{i}"][op]
                for i in range(12)
                for op in counter.get_flop_counts()[f"DiT.blocks.{i}"]
            )
            / 2
        )
        name, n, length, gmacs, share = table.rows[0][row]
        assert (name, n, length) == (str(p), (32 // p) ** 2, 3 * p * p)
        assert gmacs == pytest.approx(macs / 1e9, rel=1e-6)
        assert share == f"{bars.values[0, row, 1]:.1f} %"
    np.testing.assert_allclose(bars.values.sum(-1), 100)


def test_position_similarity_is_a_mean_of_cosines():
    """sin a sin b + cos a cos b = cos(a - b), so the similarity depends on the distance alone."""
    dim = 384
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    kernel = np.cos(np.arange(8)[:, None] * omega).mean(1)  # (8,) by distance
    heat, lines = position_similarity(dim).panels
    r, c, i, j = np.indices((8, 8, 8, 8))
    want = (kernel[abs(r - i)] + kernel[abs(c - j)]) / 2
    np.testing.assert_allclose(heat.values, want, atol=1e-6)
    np.testing.assert_allclose(lines.lines[0].y, want[:, :, np.arange(8), :][r, c, r, j][:, :, 0])
    np.testing.assert_allclose(lines.lines[1].y[3, 2], want[3, 2, :, 2], atol=1e-6)


def history(rows: int = 100, bins: int = 4) -> list[dict]:
    """The first rows have not seen the last bin yet."""
    return [
        {
            "step": 10 * k,
            "loss": 1.0,
            "loss_by_bin": [
                None if k < 3 and b == bins - 1 else b + 1 / (k + 1) for b in range(bins)
            ],
        }
        for k in range(rows)
    ]


def test_loss_by_noise_bin_shows_the_history():
    figure = loss_by_noise_bin(history(), positions=20)
    steps = figure.axes[0].values
    assert len(steps) == 20 and steps[0] == 30 and steps[-1] == 990
    bars, lines = figure.panels
    assert list(bars.labels) == ["t = 0–249", "t = 250–499", "t = 500–749", "t = 750–999"]
    for i, step in enumerate(steps):
        assert bars.values[i] == pytest.approx([b + 1 / (step / 10 + 1) for b in range(4)])
    assert [line.label for line in lines.lines] == ["t = 0–249", "t = 500–749", "t = 750–999"]
    np.testing.assert_array_equal(lines.lines[1].y, bars.values[:, 2])


@pytest.mark.parametrize("rows", [[], history(1), history(2), [*history(5), *history(5, bins=3)]])
def test_loss_by_noise_bin_refuses_what_it_cannot_draw(rows):
    with pytest.raises(ValueError, match="history"):
        loss_by_noise_bin(rows)


def test_reverse_trajectory_is_what_the_sampler_does():
    torch.manual_seed(0)
    model = DiT(8, 4, 1, 16, 1, 2, num_classes=3, learn_sigma=False)
    for parameter in model.parameters():  # a fresh DiT answers 0 to everything
        torch.nn.init.normal_(parameter, std=0.2)
    diffusion = GaussianDiffusion.cosine(1000, prediction="v")
    figure = reverse_trajectory(model, diffusion, scales=(1.0, 2.0), steps=5, samples=2)
    assert figure.axes[0].values == [999, 749, 500, 250, 0]
    frames = torch.as_tensor(figure.panels[0].frames)  # (scales, classes, steps, 2, samples, …)
    assert frames.shape == (2, 3, 5, 2, 2, 1, 8, 8)
    noise = frames[0, 0, 0, 0]
    assert (frames[:, :, 0, 0] == noise).all()
    y = torch.full((2,), 1)
    end = ddim_sample(
        Guided(model, 2.0), diffusion, (2, 1, 8, 8), y, steps=5, noise=noise, clip=True
    )
    torch.testing.assert_close(frames[1, 1, -1, 1], end, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(frames[0, 1, -1, 1], frames[1, 1, -1, 1], atol=0.02)
    assert not torch.allclose(frames[1, 0, -1, 1], frames[1, 1, -1, 1], atol=0.02)


def test_expected_loss_is_the_band_of_the_normal_runs():
    """By hand: mean and Student's band of the seeds, and each run divided by that mean."""
    normal = np.array([row["metrics"]["curve"] for row in read("loss-curves")])
    n = len(normal)
    loss, ratio = expected_loss().panels
    expected, run = loss.lines
    mean, sd = normal.mean(0), normal.std(0, ddof=1)
    np.testing.assert_allclose(expected.y[3], mean)  # the same for every run
    half = stats.t.ppf(0.975, n - 1) * sd * np.sqrt(1 + 1 / n)
    np.testing.assert_allclose(expected.high[3] - mean, half)
    np.testing.assert_allclose(mean - expected.low[0], half)
    faults = {row["setting"]: np.array(row["metrics"]["curve"]) for row in read("loss-faults")}
    for i, (name, curve) in enumerate(faults.items()):
        np.testing.assert_array_equal(run.y[i], curve, name)
        np.testing.assert_allclose(ratio.lines[3].y[i], curve[:, -1] / mean[:, -1])


def test_every_fault_leaves_the_band_where_the_chapter_says():
    loss = expected_loss()
    names, (expected, run) = loss.axes[0].values, loss.panels[0].lines
    end = {name: run.y[i][-1] / expected.y[i][-1] for i, name in enumerate(names)}
    assert (abs(end["another seed"] - 1) < 0.1).all()
    assert abs(end["labels shuffled"][0] - 1) < 0.05 and end["labels shuffled"][-1] > 1.3
    assert end["other noise"][0] > 1.5 and abs(end["other noise"][-1] - 1) < 0.05
    assert (end["pixels in [0, 1]"][1:] < 0.8).all() and end["pixels in [0, 1]"][-1] < 0.4
    assert (end["lr / 100"] > 1.5).all()
    assert (end["fifty images"][1:] < 0.8).all()
