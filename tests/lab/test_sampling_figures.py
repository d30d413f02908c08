"""The figures of the chapter on sampling: exact curves, and what the experiment measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.guidance import Guided
from dit_edu.lab import zoo
from dit_edu.lab.data import digits
from dit_edu.lab.experiments import get_experiment, read
from dit_edu.lab.experiments.sampling import sampler_cell, variety
from dit_edu.lab.figures import sampling
from dit_edu.lab.figures.sampling import (
    PATH_STEPS,
    STEPS,
    by_steps,
    quality_by_steps,
    sampler_paths,
    two_bells,
)
from dit_edu.sampling import ddim_sample, noise_streams

ROWS = [*read("samplers"), *read("samplers-long")]
F64 = torch.float64


def mean(setting: str, metric: str) -> float:
    return float(np.mean([r["metrics"][metric] for r in ROWS if r["setting"] == setting]))


@pytest.mark.parametrize("t", [3, 300, 900])
def test_the_mixture_knows_the_best_guess(t):
    """E[x_0 | x_t] by Bayes' rule and quadrature."""
    process = GaussianDiffusion.cosine(1000, "x0")
    truth = two_bells(process)
    ab = float(process.alphas_cumprod[t])
    for x in (-1.2, 0.0, 0.4):

        def joint(x0, x=x):
            bells = zip((0.4, 0.6), (-0.7, 0.5), strict=True)
            prior = sum(w * np.exp(-((x0 - c) ** 2) / 0.08) for w, c in bells)
            return prior * np.exp(-((x - ab**0.5 * x0) ** 2) / (2 * (1 - ab)))

        places = {"points": sorted([x / ab**0.5, -0.7, 0.5]), "limit": 500}
        whole = quad(joint, -6, 6, **places)[0]
        want = quad(lambda x0: x0 * joint(x0), -6, 6, **places)[0] / whole
        got = truth(torch.full((1, 1, 1, 1), x, dtype=F64), torch.tensor([t]), torch.tensor([0]))
        assert float(got) == pytest.approx(want, abs=1e-6)


def test_the_exact_curve_solves_the_equation():
    """dx/dτ = ε̂ - x̂_0, by a method of order eight; the curve itself comes from probabilities."""
    flow = FlowMatching()
    truth = two_bells(flow)

    def velocity(tau, x):
        t = torch.full((len(x),), 999 * tau, dtype=F64)
        v = truth(torch.tensor(x, dtype=F64).view(-1, 1, 1, 1), t, torch.zeros(len(x)))
        return v.flatten().numpy()

    start = torch.tensor([-0.4, 0.1, 2.0], dtype=F64)
    solved = solve_ivp(velocity, (1, 0.05), start.numpy(), method="DOP853", rtol=1e-9, atol=1e-9).y[
        :, -1
    ]
    curve = truth.on_the_curve(start, 999, 0.05 * 999)
    np.testing.assert_allclose(curve.numpy(), solved, atol=1e-6)


def test_paths_begin_together_and_meet_with_many_steps():
    paths, errors = sampler_paths().panels
    lines = {line.label: np.asarray(line.y) for line in paths.lines}
    for z in ("-0.4", "2"):
        path, exact = lines[f"path from {z}"], lines[f"exact from {z}"]
        np.testing.assert_allclose(path[:, :, -1], float(z))
        np.testing.assert_allclose(exact[:, :, -1], float(z), atol=1e-9)
        gap = np.abs(path - exact)[1:].max(-1)  # (samplers without DDPM, steps)
        assert (gap[:, -1] < 0.05).all() and (gap[:, 0] > 0.05).all()
    found = {line.label: np.asarray(line.y) for line in errors.lines}
    for name, order in (("DDIM", 1), ("Euler", 1), ("Heun", 2)):
        slopes = -np.diff(np.log(found[name])) / np.diff(np.log(PATH_STEPS))
        assert slopes[-3:] == pytest.approx(order, abs=0.12), name
    dpm = -np.diff(np.log(found["DPM++"])) / np.diff(np.log(PATH_STEPS))
    assert (dpm[3:5] > 1.8).all() and dpm[5] < 1.6  # the last jump: see the chapter


def test_pictures_and_numbers_are_those_of_the_experiment(monkeypatch):
    few = (5, 250, 1000)
    monkeypatch.setattr(sampling, "PICTURED", ("DDIM", "DPM++"))
    monkeypatch.setattr(sampling, "STEPS", few)
    figure = quality_by_steps()
    monkeypatch.undo()
    frames = torch.as_tensor(figure.panels[0].frames)
    model, card = zoo.load("digits-dit")
    want = ddim_sample(
        Guided(model, card["sampling"]["scale"]), GaussianDiffusion.cosine(1000, "v"),
        (10, 1, 8, 8), torch.arange(10), steps=5, generator=noise_streams(0, 10), clip=True,
    )  # fmt: skip
    torch.testing.assert_close(frames[0, 0, 0], want, rtol=1e-4, atol=1e-4)
    ends = frames[:, few.index(250) :]  # the deterministic ones agree where steps are many
    assert (ends - ends[0, -1]).square().mean().sqrt() < 0.01
    of_ddim = by_steps(ROWS, "fd_ratio")["DDIM"]
    ten = [r["metrics"]["fd_ratio"] for r in ROWS if r["setting"] == "ddim uniform 10"]
    middle, sd = np.mean(ten), np.std(ten, ddof=1)
    np.testing.assert_allclose(of_ddim[1], [middle, middle - sd, middle + sd])
    assert np.isnan(of_ddim[STEPS.index(1000)]).all() and np.isnan(of_ddim[4, 1:]).all()


def test_variety_is_the_variance_within_classes():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(4000)
    images = labels.view(-1, 1, 1, 1) + 0.5 * torch.randn(len(labels), 1, 2, 3, generator=g)
    assert variety(images, labels) == pytest.approx(6 * 0.25, rel=0.02)
    real, y = digits("heldout")
    assert variety(real / 2, y) == pytest.approx(variety(real, y) / 4)


def test_a_cell_gives_the_committed_row():
    experiment = get_experiment("samplers")
    name = "dpm++ quadratic 5"
    row = next(r for r in ROWS if (r["setting"], r["seed"]) == (name, 0))["metrics"]
    found = sampler_cell(experiment.settings[name], 0)
    assert found["fd_ratio"] == pytest.approx(row["fd_ratio"], rel=0.03)
    for metric in ("accuracy", "precision", "recall", "variety"):
        assert found[metric] == pytest.approx(row[metric], abs=0.01), metric


def test_what_the_chapter_says_of_the_table():
    for sampler in ("ddpm", "ddim", "dpm++"):
        names = [f"{sampler} uniform {n}" for n in (5, 10, 20, 50)]
        for metric, falls in (("precision", True), ("recall", False), ("variety", False)):
            values = [mean(name, metric) for name in names]
            assert values == sorted(values, reverse=falls), (sampler, metric)
        assert mean(names[0], "accuracy") > mean(names[-1], "accuracy")
    for few in ("dpm++ uniform 10", "ddim uniform 20"):  # within the spread of 250 DDPM steps
        many = [r["metrics"]["fd_ratio"] for r in ROWS if r["setting"] == "ddpm uniform 250"]
        assert abs(mean(few, "fd_ratio") - np.mean(many)) < np.std(many, ddof=1), few
    for n in (5, 10, 20):
        worse = mean(f"ddim beta {n}", "fd_ratio") / mean(f"ddim uniform {n}", "fd_ratio")
        assert worse > 1.4
    assert mean("dpm++ uniform 5", "fd_ratio") < mean("ddpm uniform 10", "fd_ratio")
