"""The toy of the chapter on guidance against closed forms, and what the experiments measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.guidance import Guided
from dit_edu.interpolant import Interpolant
from dit_edu.lab import zoo
from dit_edu.lab.draw import Sampling, draw
from dit_edu.lab.experiments import get_experiment, read
from dit_edu.lab.experiments.guidance import SCALES, drawn, guidance_cell, setting
from dit_edu.lab.figures.guidance import (
    CENTRES,
    SD,
    SHARES,
    KnownClasses,
    X,
    bells,
    landed,
    landing,
    tilted,
)
from dit_edu.lab.figures.sampling import Mixture
from dit_edu.lab.recipes import Recipe

F64 = torch.float64
Z = torch.linspace(-2, 2, 9, dtype=F64)


def two_gaussians(process: Interpolant, means, variances) -> KnownClasses:
    """Numbers whose class is N(mean, variance), and so are all together (of many classes)."""
    one = torch.ones(1, dtype=F64)
    pairs = zip(means, variances, strict=True)
    return KnownClasses(process, [Mixture(process, m * one, one, v**0.5) for m, v in pairs])


@given(x=st.floats(-2, 3), t=st.integers(20, 980), s=st.floats(-1, 8))
def test_the_difference_of_the_answers_is_a_classifier(x, t, s):
    """Scores of noisy numbers against slopes of log-densities, written down and differentiated."""
    toy = bells()
    tau = t / 999
    width = (((1 - tau) * SD) ** 2 + tau**2) ** 0.5
    at = torch.tensor(x, dtype=F64, requires_grad=True)

    def log_density(share: tuple[float, ...]) -> torch.Tensor:
        centres = (1 - tau) * torch.tensor(CENTRES, dtype=F64)
        bell = -(((at - centres) / width) ** 2) / 2  # (bells,)
        return torch.logsumexp(bell + torch.tensor(share, dtype=F64).log(), 0)

    both, asked = log_density(SHARES["both"]), log_density(SHARES["asked"])
    classifier = asked - both  # log q(y | x_t), up to a constant
    (want,) = torch.autograd.grad(both + s * classifier, at)
    image, step = at.detach().view(1, 1, 1, 1), torch.tensor([float(t)], dtype=F64)
    out = Guided(toy, s)(image, step, torch.zeros(1, dtype=torch.long))
    score = -toy.diffusion.to_eps(out, image, step) / tau
    assert float(score) == pytest.approx(float(want), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("v_class", "v_all", "s"), [(0.25, 1, 2), (0.5, 2, 1.5), (0.3, 0.8, 4)])
def test_the_stream_lands_with_a_variance_between_logarithms(v_class, v_all, s):
    toy = two_gaussians(FlowMatching(), (0, 0), (v_class, v_all))
    want = (v_class**s * v_all ** (1 - s)) ** 0.5 * Z
    torch.testing.assert_close(landing(toy, Z, s), want, rtol=2e-3, atol=1e-6)
    tilted_sd = (s / v_class + (1 - s) / v_all) ** -0.5
    assert tilted_sd > 1.1 * want[-1] / 2  # not the tilted density


def test_with_equal_variances_the_mean_is_carried_away():
    toy = two_gaussians(FlowMatching(), (0.5, 0), (0.4, 0.4))
    torch.testing.assert_close(landing(toy, Z, 3.0), 1.5 + 0.4**0.5 * Z, rtol=2e-3, atol=2e-3)


def test_ddpm_lands_elsewhere():
    """Everything is linear, so the variance can be followed exactly, step by step."""
    v_class, v_all, s = 0.25, 1.0, 2.0
    process = GaussianDiffusion.cosine(1000, "x0")
    guided = Guided(two_gaussians(process, (0, 0), (v_class, v_all)), s)
    one, y = torch.ones(1, 1, 1, 1, dtype=F64), torch.zeros(1, dtype=torch.long)
    variance = 1.0
    for step in range(999, -1, -1):
        t = torch.tensor([step])
        p = process.p_mean_variance(guided(one, t, y), one, t)
        variance = float(p["mean"]) ** 2 * variance + float(p["variance"])
    # V(0) = G(0)² ∫ du / G(u)², G(u) = (v_class + u)^s (v_all + u)^(1-s)
    g = lambda u: (v_class + u) ** s * (v_all + u) ** (1 - s)  # noqa: E731
    want = g(0) ** 2 * quad(lambda u: g(u) ** -2, 0, np.inf)[0]
    assert want == pytest.approx(28 / 256)
    assert variance == pytest.approx(want, rel=0.03)


def test_at_high_noise_the_guided_denoiser_believes_in_a_negative_variance():
    v_class, v_all, s = 0.25, 1.0, 2.0
    process = GaussianDiffusion.cosine(1000, "x0")
    guided = Guided(two_gaussians(process, (0, 0), (v_class, v_all)), s)
    believed = []
    for step in (0, 500, 998):
        t, x = torch.tensor([step]), torch.ones(1, 1, 1, 1, dtype=F64)
        signal, sigma = (float(v) for v in process.signal_noise(t, x))
        noise = (sigma / signal) ** 2  # σ² of EDM
        slope = float(guided(x, t, torch.zeros(1, dtype=torch.long))) * signal  # of x̂_0 over x_EDM
        believed.append(noise * slope / (1 - slope))  # x̂_0 = v / (v + σ²) · x, solved for v
        mixed = 1 / (s / (v_class + noise) + (1 - s) / (v_all + noise))
        assert believed[-1] == pytest.approx(mixed - noise, abs=1e-3)
    assert believed[0] == pytest.approx(1 / 7, rel=0.01) and believed[2] == pytest.approx(
        -0.5, rel=0.01
    )


def test_the_toy_starts_at_its_class_and_tilts_by_the_rule():
    torch.testing.assert_close(landed(1), tilted(1), rtol=0.01, atol=0.02)
    for s in (1, 2.5, 8):
        assert float(torch.trapezoid(landed(s), X)) == pytest.approx(1, abs=1e-3)
        # p(x|y)^s p(x)^(1-s) = p(x|y) (p(x|y) / p(x))^(s-1); far from the other class it is 2^(s-1)
        far = X > 1.0
        ratio = tilted(s)[far] / tilted(1)[far]
        torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-4, atol=0)


def test_the_near_hill_is_emptied_by_the_stream_and_not_by_the_tilt():
    near = X < 0.6

    def share(density: torch.Tensor) -> float:
        return float(torch.trapezoid(density[near], X[near]))

    assert share(landed(1)) == pytest.approx(0.5, abs=0.01)
    assert share(tilted(4)) > 0.35 and share(landed(4)) < 0.02
    assert share(landed(2, (0, 666))) > 1.3 * share(landed(2))
    unguided = landing(bells(), Z, 5.0, interval=(2000, 2001))  # no step lies there
    torch.testing.assert_close(unguided, landing(bells(), Z, 1.0))


# ---------------------------------------------------------------------- what was measured


def mean(name: str, setting: str, metric: str) -> float:
    return float(np.mean([r["metrics"][metric] for r in read(name) if r["setting"] == setting]))


def test_four_channels_are_the_same_denoiser():
    model, card = zoo.load("digits-dit")
    labels = torch.tensor([3, 8])
    process = Recipe.from_dict(card["recipe"]).process.build()
    want = draw(model, process, labels, Sampling(steps=5, scale=2.0), seed=4)
    got = drawn({**setting(2.0), "steps": 5}, labels, seed=4)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    three = drawn({**setting(2.0, 3), "steps": 1}, labels, seed=4)
    every = drawn({**setting(2.0), "steps": 1}, labels, seed=4)
    none = drawn({**setting(1.0), "steps": 1}, labels, seed=4)
    for c, same in enumerate(
        (every, every, every, none)
    ):  # channel 2a + b: rows 2i+a, columns 2j+b
        a, b = divmod(c, 2)
        torch.testing.assert_close(three[..., a::2, b::2], same[..., a::2, b::2])


def test_a_cell_gives_the_committed_row():
    experiment = get_experiment("guidance-scale")
    row = next(r for r in read("guidance-scale") if (r["setting"], r["seed"]) == ("1", 0))[
        "metrics"
    ]
    found = guidance_cell(experiment.settings["1"], 0)
    assert found["fd_ratio"] == pytest.approx(row["fd_ratio"], rel=0.03)
    for metric in ("accuracy", "precision", "recall", "variety"):
        assert found[metric] == pytest.approx(row[metric], abs=0.01), metric


@pytest.mark.parametrize("ours, theirs", [("0", "no label dropout"), ("0.1", "base")])
def test_models_with_dropped_labels_are_those_of_the_chapter_on_training(ours, theirs):
    """The same recipe and seeds in another experiment: the held-out losses must agree."""
    want = {r["seed"]: r["metrics"]["loss"] for r in read("training") if r["setting"] == theirs}
    found = {
        r["seed"]: r["metrics"]["loss"] for r in read("guidance-dropout") if r["setting"] == ours
    }
    assert len(found) == 4
    assert found == pytest.approx({seed: want[seed] for seed in found}, abs=3e-4)


def test_the_committed_figure_shows_what_was_measured():
    """That the code still makes this figure is tested with all the others."""
    folder = Path(__file__).resolve().parents[2] / "book" / "_static" / "figures"
    figure = json.loads((folder / "guidance-scale.json").read_text("utf8"))
    _, toy, quality = figure["panels"]
    lands, tilt = (np.array(line["y"]) for line in toy["lines"][:2])  # (intervals, scales, X)
    np.testing.assert_allclose(lands[:, 0], tilt[:, 0], atol=0.02)  # s = 1 is no guidance
    np.testing.assert_allclose(lands[0, 5], landed(4), atol=0.02)
    for line in quality["lines"]:
        want = [mean("guidance-scale", f"{s:g}", line["label"]) for s in SCALES]
        np.testing.assert_allclose(line["y"], want, rtol=2e-3)
