"""Noise levels: the three clocks against the notation page's table, min-SNR against its paper."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.flow import FlowMatching
from dit_edu.schedules import (
    CLOCKS,
    PREDICTIONS,
    convert_level,
    linear_betas,
    min_snr_weight,
    rescale,
    snr,
)

F64 = torch.float64
# The table of book/notation.md, typed in from there.
TABLE = {
    ("alpha_bar", "sigma"): lambda a: ((1 - a) / a).sqrt(),
    ("alpha_bar", "tau"): lambda a: (1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt()),
    ("sigma", "alpha_bar"): lambda s: 1 / (1 + s**2),
    ("sigma", "tau"): lambda s: s / (1 + s),
    ("tau", "alpha_bar"): lambda u: (1 - u) ** 2 / ((1 - u) ** 2 + u**2),
    ("tau", "sigma"): lambda u: u / (1 - u),
}
LEVELS = st.floats(0.001, 0.999)


@pytest.mark.parametrize("pair", TABLE, ids="->".join)
@given(level=LEVELS)
def test_clocks_are_the_table_and_undo_each_other(pair, level):
    source, target = pair
    level = torch.tensor(level, dtype=F64)
    there = convert_level(level, source, target)
    torch.testing.assert_close(there, TABLE[pair](level), rtol=1e-12, atol=0)
    torch.testing.assert_close(convert_level(there, target, source), level, rtol=1e-10, atol=1e-12)


@given(level=LEVELS, seed=st.integers(0, 99))
def test_a_rescaled_image_is_the_same_mixture_by_the_other_clock(level, seed):
    """One x_0 and one ε, mixed as each paper has it: rescaling leads from any to any."""
    g = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 3, 1, 2, 2, generator=g, dtype=F64)
    tau = torch.tensor([level, level / 2, 1 - level], dtype=F64)  # (3,)
    level_by = {clock: convert_level(tau, "tau", clock) for clock in CLOCKS}
    a, s, u = (level_by[clock].view(3, 1, 1, 1) for clock in CLOCKS)
    mixed = {
        "alpha_bar": a.sqrt() * x0 + (1 - a).sqrt() * noise,
        "sigma": x0 + s * noise,
        "tau": (1 - u) * x0 + u * noise,
    }
    for source in CLOCKS:
        for target in CLOCKS:
            got = rescale(mixed[source], level_by[source], source, target)
            torch.testing.assert_close(got, mixed[target], rtol=1e-9, atol=1e-9)


def test_both_processes_agree_at_equal_noise():
    """A step of the diffusion and the time of the flow with its noise: one image, rescaled."""
    diffusion, flow = GaussianDiffusion.cosine(1000), FlowMatching()
    x0, noise = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.tensor([0, 300, 700, 999])
    alpha_bar = diffusion.alphas_cumprod[t]
    tau = convert_level(alpha_bar, "alpha_bar", "tau")
    got = rescale(diffusion.q_sample(x0, t, noise), alpha_bar, "alpha_bar", "tau")
    torch.testing.assert_close(got, flow.q_sample(x0, 999 * tau, noise), rtol=1e-10, atol=1e-10)


def test_the_ends_of_the_clocks():
    clean, noise = torch.tensor(1.0, dtype=F64), torch.tensor(0.0, dtype=F64)
    assert (
        convert_level(clean, "alpha_bar", "sigma") == convert_level(clean, "alpha_bar", "tau") == 0
    )
    assert convert_level(noise, "alpha_bar", "tau") == 1
    assert convert_level(1.0, "tau", "sigma") == torch.inf
    x = torch.ones(2, 3, dtype=F64)
    assert torch.equal(rescale(x, 1.0, "tau", "alpha_bar"), x)  # pure noise is pure noise
    assert torch.equal(rescale(x, 0.0, "sigma", "tau"), x)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_one_weight_on_the_error_of_x0(prediction, gamma):
    """Whatever the network says: weighted as it should be, an error of x_0 counts min(SNR, γ)."""
    diffusion = GaussianDiffusion.linear(1000, prediction, min_snr=gamma)
    t = torch.tensor([0, 50, 250, 600, 999])
    g = torch.Generator().manual_seed(1)
    x0, noise, wrong = torch.randn(3, 5, 1, 4, 4, generator=g, dtype=F64)

    def model(x, t, y):  # says in the words of `prediction` that the clean image is `wrong`
        ab = diffusion.alphas_cumprod[t].view(-1, 1, 1, 1)
        eps = (x - ab.sqrt() * wrong) / (1 - ab).sqrt()
        return {"x0": wrong, "eps": eps, "v": ab.sqrt() * eps - (1 - ab).sqrt() * wrong}[prediction]

    losses = diffusion.losses(model, x0, t, torch.zeros(5, dtype=torch.long), noise)
    ab = diffusion.alphas_cumprod[t]
    want = torch.minimum(ab / (1 - ab), torch.tensor(gamma)) * (wrong - x0).square().mean((1, 2, 3))
    torch.testing.assert_close(losses["loss"], want, rtol=1e-8, atol=1e-12)
    plain = GaussianDiffusion.linear(1000, prediction).losses(
        model, x0, t, torch.zeros(5, dtype=torch.long), noise
    )
    assert torch.equal(losses["mse"], plain["loss"])  # what is reported is not weighted


def test_snr_equals_diffusers():
    ref = DDPMScheduler(1000, beta_schedule="linear")
    ours = snr(torch.cumprod(1 - linear_betas(1000), 0))
    theirs = compute_snr(ref, torch.arange(1000))
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-3, atol=0)  # theirs is float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: convert_level(1.5, "tau", "sigma"), "1.5 .*0 to 1"),
        (lambda: convert_level(-0.1, "alpha_bar", "sigma"), "-0.1"),
        (lambda: convert_level(float("inf"), "sigma", "tau"), "finite"),
        (lambda: convert_level(float("nan"), "tau", "sigma"), "nan"),
        (lambda: convert_level(0.5, "taw", "sigma"), "Did you mean 'tau'"),
        (lambda: convert_level(0.5, "tau", "sigmas"), "Did you mean 'sigma'"),
        (lambda: min_snr_weight(torch.tensor(0.5), 0.0, "eps"), "min_snr=0.0"),
        (lambda: min_snr_weight(torch.tensor(0.5), float("nan"), "eps"), "min_snr=nan"),
        (lambda: min_snr_weight(torch.tensor(0.5), 5.0, "epsilon"), "'eps'"),
        (lambda: GaussianDiffusion.linear(1000, min_snr=-1.0), "min_snr=-1.0"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
