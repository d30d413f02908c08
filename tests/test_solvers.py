"""DPM-Solver++(2M), Euler and Heun: step by step against diffusers, and against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.grids import flow_grid
from dit_edu.sampling import Trajectory, ddim_sample, ddpm_sample, noise_streams
from dit_edu.schedules import linear_betas
from dit_edu.solvers import dpmpp_2m_sample, euler_sample, heun_sample

F64 = torch.float64
SHAPE = (2, 1, 4, 4)
Y = torch.zeros(2, dtype=torch.long)
NOISE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=F64)
THEIR_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


class Rule(nn.Module):
    """A denoiser with a simple rule, to walk two samplers side by side; it counts its calls."""

    calls = 0

    def forward(self, x, t, y):
        self.calls += 1
        return 0.3 * x + 0.1 * torch.sin(t.to(x.dtype) / 100).view(-1, 1, 1, 1)


def reference(prediction: str = "eps", steps: int | None = None) -> DPMSolverMultistepScheduler:
    """diffusers' solver with its tables in float64."""
    ref = DPMSolverMultistepScheduler(
        1000, beta_schedule="linear", prediction_type=THEIR_NAMES[prediction],
        algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero",
    )  # fmt: skip
    if steps:
        ref.set_timesteps(steps)
        ab = torch.cumprod(1 - linear_betas(1000), 0)
        exact = ((1 - ab) / ab).sqrt()[ref.timesteps]
        torch.testing.assert_close(ref.sigmas[:-1], exact.float(), rtol=1e-3, atol=1e-5)
        ref.sigmas = torch.cat([exact, torch.zeros(1, dtype=F64)])
    return ref


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 50])
def test_dpmpp_visits_the_steps_of_diffusers(steps):
    way = Trajectory()
    dpmpp_2m_sample(Rule(), GaussianDiffusion.linear(1000), SHAPE, Y, steps=steps, callback=way)
    assert way.t == reference(steps=steps).timesteps.tolist()


@pytest.mark.parametrize("prediction", THEIR_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_dpmpp_equals_diffusers_in_float64(prediction, steps):
    """Each update by diffusers' own two formulas; (its ``step`` casts the image to float32)."""
    ref, x = reference(prediction, steps), NOISE
    guesses: list[torch.Tensor] = []
    ref._step_index = 0
    for index, t in enumerate(ref.timesteps.tolist()):
        out = Rule()(x, torch.full((2,), t), Y)
        guesses.append(ref.convert_model_output(out, sample=x))
        if index in (0, steps - 1):
            x = ref.dpm_solver_first_order_update(guesses[-1], sample=x)
        else:
            x = ref.multistep_dpm_solver_second_order_update(guesses[-2:], sample=x)
        ref._step_index += 1
    diffusion = GaussianDiffusion.linear(1000, prediction)
    ours = dpmpp_2m_sample(Rule(), diffusion, SHAPE, Y, steps=steps, noise=NOISE)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [3, 20])
def test_dpmpp_equals_diffusers_whole_loop(steps):
    ref, x = reference(steps=steps), NOISE
    for t in ref.timesteps:
        x = ref.step(Rule()(x, t.expand(2), Y), t, x).prev_sample
    ours = dpmpp_2m_sample(
        Rule(), GaussianDiffusion.linear(1000), SHAPE, Y, steps=steps, noise=NOISE
    )
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)  # theirs: float32


def test_one_step_of_dpmpp_is_one_of_ddim():
    """The first step knows no slope, and without one the solver is DDIM."""
    diffusion = GaussianDiffusion.cosine(1000, "v")
    a = dpmpp_2m_sample(Rule(), diffusion, SHAPE, Y, steps="1,1", noise=NOISE, clip=True)
    b = ddim_sample(Rule(), diffusion, SHAPE, Y, steps="1,1", noise=NOISE, clip=True)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_euler_equals_diffusers(steps):
    ref = FlowMatchEulerDiscreteScheduler(1000, shift=1.0)
    ref.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    ref.sigmas = ref.sigmas.double()
    torch.testing.assert_close(ref.sigmas, flow_grid(steps), rtol=1e-6, atol=1e-7)
    ref.sigmas, x = flow_grid(steps), NOISE.float()
    for k, sigma in enumerate(ref.sigmas[:-1]):
        out = Rule()(x.double(), (999 * sigma).expand(2), Y)
        x = ref.step(out, ref.timesteps[k], x).prev_sample
    ours = euler_sample(Rule(), FlowMatching(), SHAPE, Y, steps=steps, noise=NOISE)
    torch.testing.assert_close(ours, x.double(), rtol=1e-5, atol=1e-5)  # theirs: float32


@pytest.mark.parametrize("grid", ["uniform", "quadratic"])
def test_heun_is_its_formula(grid):
    """x' = x + h/2 (v(x, τ) + v(x + h v, τ')), and a last step of Euler's."""
    times = [1 - k / 6 for k in range(7)]
    times = [tau**2 for tau in times] if grid == "quadratic" else times
    x, rule = NOISE, Rule()
    for tau, then in pairwise(times):
        v = rule(x, torch.full((2,), 999 * tau, dtype=F64), Y)
        ahead = x + (then - tau) * v
        if then:
            v = (v + rule(ahead, torch.full((2,), 999 * then, dtype=F64), Y)) / 2
        x = x + (then - tau) * v
    model = Rule()
    ours = heun_sample(model, FlowMatching(), SHAPE, Y, steps=6, grid=grid, noise=NOISE)
    torch.testing.assert_close(ours, x, rtol=1e-10, atol=1e-10)
    assert model.calls == rule.calls == 11


def test_straight_lines_need_one_step():
    """Where every noise has one image, the flow is straight: any number of steps ends there."""

    class Straight(nn.Module):  # the image is 0.5 whatever the noise: v = (x - 0.5) / τ
        def forward(self, x, t, y):
            return (x - 0.5) / (t / 999).view(-1, 1, 1, 1)

    for sample in (euler_sample, heun_sample):
        for steps in (1, 7):
            x = sample(Straight(), FlowMatching(), SHAPE, Y, steps=steps, noise=NOISE)
            torch.testing.assert_close(x, torch.full_like(x, 0.5), rtol=1e-9, atol=1e-9)


def test_guesses_are_clipped_on_the_way():
    loud = nn.Module()
    loud.forward = lambda x, t, y: 5 * x
    for sample, process in (
        (dpmpp_2m_sample, GaussianDiffusion.cosine(1000, "x0")),
        (euler_sample, FlowMatching()),
        (heun_sample, FlowMatching()),
    ):
        way = Trajectory()
        sample(loud, process, SHAPE, Y, steps=4, noise=NOISE, clip=True, callback=way)
        assert way.x0.abs().max() <= 1
        assert len(way.t) == 4


SAMPLERS = [
    (ddpm_sample, GaussianDiffusion.linear(1000)),
    (ddim_sample, GaussianDiffusion.linear(1000)),
    (dpmpp_2m_sample, GaussianDiffusion.linear(1000)),
    (euler_sample, FlowMatching()),
    (heun_sample, FlowMatching()),
]
NAMES = [sample.__name__ for sample, _ in SAMPLERS]


@pytest.mark.parametrize(("sample", "process"), SAMPLERS, ids=NAMES)
def test_a_sample_does_not_depend_on_its_batch(sample, process):
    def draw(n: int, start: int = 0) -> torch.Tensor:
        y, streams = torch.zeros(n, dtype=torch.long), noise_streams(7, n, start)
        return sample(Rule(), process, (n, 1, 4, 4), y, steps=5, generator=streams)

    five = draw(5)
    torch.testing.assert_close(draw(2, start=3), five[3:])
    assert not torch.isclose(five[0], five[1]).any()


@pytest.mark.parametrize(("sample", "process"), SAMPLERS, ids=NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_output_that_is_not_finite_names_its_step(sample, process, bad):
    """The third step of five goes wrong in one pixel; no image comes out, clipped or not."""
    way = Trajectory()

    class Breaks(Rule):
        def forward(self, x, t, y):
            out = super().forward(x, t, y)
            if len(way.t) == 2:  # two steps are done
                out[1, 0, 2, 2] = bad
            return out

    with pytest.raises(ValueError, match=r"model's output at sampling step k=[12], t=") as caught:
        sample(Breaks(), process, SHAPE, Y, steps=5, noise=NOISE, clip=True, callback=way)
    assert "1 non-finite value(s) of 32" in str(caught.value)
    t = 500 if sample in (ddpm_sample, ddim_sample) else 599
    assert f"t={t}" in str(caught.value)


@pytest.mark.parametrize(("sample", "process"), SAMPLERS, ids=NAMES)
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(steps=0), ValueError, "steps=0"),
        (dict(steps=-3), ValueError, "steps=-3"),
        (dict(steps=2.5), TypeError, "steps=2.5"),
        (dict(grid="unifrom"), ValueError, "'unifrom' is unknown.*Did you mean 'uniform'"),
        (dict(noise=torch.zeros(1, 1, 4, 4)), ValueError, "noise has shape"),
    ],
)
def test_bad_input_is_named(sample, process, change, error, words):
    with pytest.raises(error, match=words):
        sample(Rule(), process, SHAPE, Y, **{"steps": 5, **change})


def test_more_steps_than_there_are_is_named():
    with pytest.raises(ValueError, match="steps=1000 exceeds the process; allowed: 1 to 999"):
        dpmpp_2m_sample(Rule(), GaussianDiffusion.linear(1000), SHAPE, Y, steps=1000)


@pytest.mark.parametrize(("sample", "process"), SAMPLERS, ids=NAMES)
def test_the_other_kind_of_process_is_refused(sample, process):
    flow = isinstance(process, FlowMatching)
    other = GaussianDiffusion.linear(1000) if flow else FlowMatching()
    wanted = "FlowMatching" if flow else "GaussianDiffusion"
    with pytest.raises(TypeError, match=f"{sample.__name__} needs a {wanted}"):
        sample(Rule(), other, SHAPE, Y, steps=5)
