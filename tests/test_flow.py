"""The flow: mixture and loss against diffusers and closed forms, times against their law."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dit_edu.dit import DiT
from dit_edu.flow import TIMES, FlowMatching
from dit_edu.guidance import Guided

F64 = torch.float64
CPU = torch.device("cpu")
FLOW = FlowMatching()


def pair(seed: int = 0, b: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, b, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)


@given(tau=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_the_velocity_gives_back_image_and_noise(tau, seed):
    x0, noise = pair(seed, b=1)
    t = torch.tensor([999 * tau], dtype=F64)
    x_t = FLOW.q_sample(x0, t, noise)
    torch.testing.assert_close(x_t, (1 - tau) * x0 + tau * noise, rtol=1e-12, atol=1e-12)
    v = FLOW.target(x0, noise, t)
    assert torch.equal(v, noise - x0)
    assert torch.equal(FLOW.to_v(v, x_t, t), v)
    torch.testing.assert_close(FLOW.to_x0(v, x_t, t), x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(FLOW.to_eps(v, x_t, t), noise, rtol=1e-10, atol=1e-10)


def test_the_velocity_is_the_derivative_of_the_way():
    x0, noise = pair()
    t = torch.full((5,), 400.0, dtype=F64)
    h = 1e-3
    slope = (FLOW.q_sample(x0, t + h, noise) - FLOW.q_sample(x0, t - h, noise)) / (2 * h / 999)
    torch.testing.assert_close(slope, FLOW.target(x0, noise, t), rtol=1e-8, atol=1e-8)


def test_the_mixture_equals_diffusers():
    ref = FlowMatchEulerDiscreteScheduler(1000)
    x0, noise = pair(b=4)
    index = torch.tensor([0, 250, 600, 990])
    theirs = ref.scale_noise(x0, ref.timesteps[index], noise)
    ours = FLOW.q_sample(x0, 999 * ref.sigmas[index].double(), noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_clipping_keeps_image_and_noise_consistent():
    x0, noise = pair(1)
    t = torch.tensor([1.0, 200.0, 500.0, 900.0, 999.0], dtype=F64)
    x_t = FLOW.q_sample(x0, t, noise)
    x0_hat, eps = FLOW.predict(3 * noise, x_t, t, clip=True)
    assert x0_hat.abs().max() <= 1
    torch.testing.assert_close(FLOW.q_sample(x0_hat, t, eps), x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_loss_of_the_best_guess_on_gaussian_data(s):
    """For x_0 ~ N(0, s² I) the best v̂ is linear, leaves s² / ((1-τ)²s² + τ²): by Monte Carlo."""

    class Best(nn.Module):
        def forward(self, x, t, y):
            tau = (t / 999).view(-1, 1, 1, 1)
            return (tau - (1 - tau) * s**2) / ((1 - tau) ** 2 * s**2 + tau**2) * x  # Cov / Var

    x0, noise = torch.randn(
        2, 400, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=F64
    )
    x0 = s * x0
    for tau in (0.0, 0.3, 0.5, 0.9, 1.0):
        t = torch.full((400,), 999 * tau, dtype=F64)
        losses = FLOW.losses(Best(), x0, t, torch.zeros(400, dtype=torch.long), noise)
        # 102,400 squares: relative standard error sqrt(2/102400) = 0.4 %.
        floor = s**2 / ((1 - tau) ** 2 * s**2 + tau**2)
        assert losses["loss"].mean() == pytest.approx(floor, rel=0.02)
        assert torch.equal(losses["loss"], losses["mse"])


@given(tau=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_an_error_of_v_is_tau_times_smaller_in_the_image(tau, seed):
    """|x̂_0 - x_0|² = τ² |v̂ - v|², and (1-τ)² |v̂ - v|² for the noise."""
    x0, noise = pair(seed, b=1)
    t = torch.tensor([999 * tau], dtype=F64)
    x_t, v = FLOW.q_sample(x0, t, noise), FLOW.target(x0, noise, t)
    said = v + torch.randn(v.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=F64)
    of_v = (said - v).square().sum()
    of_x0 = (FLOW.to_x0(said, x_t, t) - x0).square().sum()
    of_eps = (FLOW.to_eps(said, x_t, t) - noise).square().sum()
    torch.testing.assert_close(of_x0, tau**2 * of_v, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(of_eps, (1 - tau) ** 2 * of_v, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("times", TIMES)
def test_times_have_their_distribution(times):
    g = torch.Generator().manual_seed(0)
    t = FlowMatching(times).sample_times(20_000, g, CPU)
    assert t.is_floating_point()
    FLOW.check_times(t)
    tau = (t / 999).double()
    uniform = tau if times == "uniform" else torch.special.ndtr(torch.logit(tau))
    quantiles = torch.quantile(uniform, torch.linspace(0.1, 0.9, 9, dtype=F64))
    # Standard error of a quantile: at most 0.5 / sqrt(20000) = 0.0035.
    torch.testing.assert_close(
        quantiles, torch.linspace(0.1, 0.9, 9, dtype=F64), rtol=0, atol=0.015
    )


def test_guidance_takes_a_flow_as_it_is():
    torch.manual_seed(0)
    net = DiT(
        input_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=3,
        learn_sigma=False,
    ).double()  # fmt: skip
    net.final_layer.linear.weight.data.normal_()
    x0, noise = pair()
    t, y = torch.tensor([0.0, 1.5, 300.3, 800.0, 999.0], dtype=F64), torch.tensor([0, 1, 2, 0, 1])
    x_t = FLOW.q_sample(x0, t, noise)
    cond, uncond = net.eval()(x_t, t, y), net(x_t, t, net.null_condition(y))
    torch.testing.assert_close(Guided(net, 2.5)(x_t, t, y), uncond + 2.5 * (cond - uncond))
    assert FLOW.losses(net, x0, t, y, noise)["loss"].shape == (5,)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, y: FlowMatching("lognormal"), ValueError, "Did you mean 'logit-normal'"),
        (lambda x, y: FLOW.q_sample(x, torch.tensor([0.0, 1000.0]), x), ValueError, "1000; "),
        (lambda x, y: FLOW.q_sample(x, torch.tensor([-0.1, 3.0]), x), ValueError, "-0.1"),
        (lambda x, y: FLOW.q_sample(x, torch.tensor([float("nan"), 3.0]), x), ValueError, "nan"),
        (lambda x, y: FLOW.q_sample(x, torch.zeros(2, 1), x), ValueError, r"\(2, 1\)"),
        (lambda x, y: FLOW.q_sample(x, 0.5, x), TypeError, "float"),
        (lambda x, y: FLOW.predict(torch.cat([x, x], 1), x, y), ValueError, "out has shape"),
        (lambda x, y: FLOW.losses(lambda *a: x[:1], x, y, y), ValueError, "returned"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.ones(2, 1, 4, 4), torch.tensor([3, 4]))
