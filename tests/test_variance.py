"""Fixed and learnt variances and the bound: against diffusers, torch.distributions and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn
from torch.distributions import Normal, kl_divergence

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.gaussians import discretized_nll, normal_kl
from dit_edu.grids import timestep_grid
from dit_edu.schedules import linear_betas

F64 = torch.float64
Y = torch.zeros(4, dtype=torch.long)


def batch(channels: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t (4, 2, 3, 3), an output with so many channels, and x_0 with 8-bit values."""
    g = torch.Generator().manual_seed(0)
    x_t = torch.randn(4, 2, 3, 3, generator=g, dtype=F64)
    out = torch.randn(4, channels, 3, 3, generator=g, dtype=F64)
    x0 = torch.randint(256, (4, 2, 3, 3), generator=g).to(F64) / 127.5 - 1
    return x_t, out, x0


class Says(nn.Module):
    """A denoiser that says ``weight``, whatever it is asked."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value)

    def forward(self, x, t, y):
        return self.weight


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("fixed-small", "fixed_small"),
        ("fixed-large", "fixed_large"),
        ("learned-range", "learned_range"),
    ],
)
@pytest.mark.parametrize("t", [1, 2, 400, 999])
def test_reverse_step_equals_diffusers(ours, theirs, t):
    """One step, noise included, in float64."""
    learnt = ours == "learned-range"
    ref = DDPMScheduler(1000, beta_schedule="linear", clip_sample=True, variance_type=theirs)
    ref.betas = linear_betas(1000)
    ref.alphas, ref.one = 1 - ref.betas, torch.tensor(1.0, dtype=F64)
    ref.alphas_cumprod = torch.cumprod(ref.alphas, 0)
    x_t, out, _ = batch(4 if learnt else 2)
    p = GaussianDiffusion.linear(1000, variance=ours).p_mean_variance(
        out, x_t, torch.full((4,), t), clip=True
    )
    theirs = ref.step(out, t, x_t, generator=torch.Generator().manual_seed(7))
    z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(7), dtype=F64)
    torch.testing.assert_close(p["x0"], theirs.pred_original_sample, rtol=1e-10, atol=1e-10)
    ours = p["mean"] + p["variance"].sqrt() * z
    torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(p["log_variance"].exp(), p["variance"], rtol=1e-12, atol=0)


def test_the_range_runs_from_the_posterior_to_beta():
    """v = -1 is β̃, v = 1 is β, v = 0 their geometric mean."""
    diffusion = GaussianDiffusion.linear(1000, variance="learned-range")
    x_t, out, _ = batch(4)
    t = torch.tensor([1, 5, 500, 999])
    low, high = diffusion.posterior_variance[t], diffusion.betas[t]
    for v, want in ((-1.0, low), (1.0, high), (0.0, (low * high).sqrt())):
        out[:, 2:] = v
        got = diffusion.p_mean_variance(out, x_t, t)["variance"]
        torch.testing.assert_close(got, want.view(4, 1, 1, 1).expand_as(got), rtol=1e-10, atol=0)


def test_the_last_step_of_the_large_variance_is_the_small_one_of_the_step_before():
    """As published: β_0 itself would be noise on the finished image."""
    x_t, out, _ = batch()
    diffusion = GaussianDiffusion.linear(1000, variance="fixed-large")
    got = diffusion.p_mean_variance(out, x_t, torch.zeros(4, dtype=torch.long))["variance"]
    torch.testing.assert_close(got.flatten(), diffusion.posterior_variance[1].expand(4))


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "learned-range"])
def test_skipping_steps_is_the_process_of_fewer_steps(variance):
    """The published respacing: a process with β' = 1 - ᾱ_t / ᾱ_t' on the steps that are kept."""
    whole = GaussianDiffusion.cosine(1000, variance=variance)
    kept = timestep_grid(1000, "7,5,3").flip(0)
    ab = whole.alphas_cumprod[kept]
    fewer = GaussianDiffusion(
        1 - ab / torch.cat([torch.ones(1, dtype=F64), ab[:-1]]), variance=variance
    )
    x_t, out, _ = batch(4 if variance == "learned-range" else 2)
    for k in range(1, len(kept)):
        a = fewer.p_mean_variance(out, x_t, torch.full((4,), k))
        t, t_prev = torch.full((4,), int(kept[k])), torch.full((4,), int(kept[k - 1]))
        b = whole.p_mean_variance(out, x_t, t, t_prev=t_prev)
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------------- the two formulas


@given(st.tuples(*[st.floats(-3, 3)] * 4))
def test_divergence_equals_torch(numbers):
    mean, log1, mean2, log2 = (torch.tensor(x, dtype=F64) for x in numbers)
    want = kl_divergence(Normal(mean, (log1 / 2).exp()), Normal(mean2, (log2 / 2).exp()))
    torch.testing.assert_close(normal_kl(mean, log1, mean2, log2), want, rtol=1e-9, atol=1e-12)


@given(st.floats(-1.5, 1.5), st.floats(-8, 1), st.sampled_from([2, 17, 256]))
def test_levels_share_out_the_whole_probability(mean, log_variance, levels):
    x = torch.linspace(-1, 1, levels, dtype=F64)
    nll = discretized_nll(
        x, torch.tensor(mean, dtype=F64), torch.tensor(log_variance, dtype=F64), levels
    )
    assert (nll >= 0).all()
    assert float(nll.neg().exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("levels", [17, 256])
def test_a_level_has_the_probability_of_its_bin(levels):
    """By scipy's distribution function, from far below to far above the mean."""
    x, sd, half = torch.linspace(-1, 1, levels, dtype=F64), 0.06, 1 / (levels - 1)
    mean, log_variance = torch.tensor([0.2, 2 * math.log(sd)], dtype=F64)
    got = discretized_nll(x, mean, log_variance, levels)
    near = ((x - 0.2).abs() < 0.3).numpy()  # where scipy's difference still has its digits
    want = norm.cdf((x.numpy() + half - 0.2) / sd) - norm.cdf((x.numpy() - half - 0.2) / sd)
    torch.testing.assert_close(
        got[near].neg().exp(), torch.from_numpy(want[near]), rtol=1e-6, atol=1e-12
    )
    # And 20 standard deviations out, where a difference of two ones would be 0:
    far = float(got[0])  # all below -1 + half
    assert far == pytest.approx(-norm.logcdf((-1 + half - 0.2) / sd), rel=1e-9)


def test_the_formulas_have_the_right_slope():
    """Gradients against finite differences, at both edges too."""
    x = torch.tensor([-1.0, -0.5, 0.0, 0.75, 1.0], dtype=F64)
    mean = torch.tensor([-0.9, 0.9, 0.1, 0.6, -0.7], dtype=F64, requires_grad=True)
    log_variance = torch.tensor([-4.0, -3.0, -8.0, -2.0, -3.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, v: discretized_nll(x, m, v, 17), (mean, log_variance))
    assert torch.autograd.gradcheck(lambda m, v: normal_kl(x, -v, m, v), (mean, log_variance))
    single = mean.detach().float().requires_grad_()
    discretized_nll(x.float(), single, log_variance.detach().float() - 8, 17).sum().backward()
    assert torch.isfinite(single.grad).all()


# ---------------------------------------------------------------------- losses


def test_terms_of_the_bound_by_torch_and_scipy():
    """t = 0 is the probability of the pixels, every other t a divergence: in bits per dimension."""
    diffusion = GaussianDiffusion.linear(1000, "x0")
    x_t, out, x0 = batch()
    t = torch.tensor([0, 1, 300, 999])
    got = diffusion.vb_terms(out, x0, x_t, t)
    p = diffusion.p_mean_variance(out, x_t, t)
    q_mean, q_variance, _ = diffusion.q_posterior(x0, x_t, t)
    q = Normal(q_mean[1:], q_variance[1:].sqrt())
    kl = kl_divergence(q, Normal(p["mean"][1:], p["variance"][1:].sqrt()))
    torch.testing.assert_close(got[1:], kl.mean((1, 2, 3)) / math.log(2), rtol=1e-9, atol=1e-12)
    sd = float(diffusion.posterior_variance[1].sqrt())
    pixels, mean = x0[0].flatten().numpy(), p["mean"][0].flatten().numpy()
    inside = norm.logcdf((pixels + 1 / 255 - mean) / sd)  # the pixels lie far below the mean, or
    low = norm.logcdf((pixels - 1 / 255 - mean) / sd)  # above it, where the two tails change place
    other = norm.logsf((pixels - 1 / 255 - mean) / sd), norm.logsf((pixels + 1 / 255 - mean) / sd)
    top, bottom = np.where(pixels > mean, other, (inside, low))
    nats = -(top + np.log1p(-np.exp(bottom - top)))
    assert float(got[0]) == pytest.approx(nats.mean() / math.log(2), rel=1e-8)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_bound_trains_the_variance_and_not_the_mean(prediction):
    """The hybrid loss: L_simple alone pulls at the mean, λ T L_t alone at the variance."""
    _, out, x0 = batch(4)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    t = torch.tensor([0, 3, 500, 999])
    hybrid = GaussianDiffusion.cosine(1000, prediction, variance="learned-range")

    def gradient(name: str, diffusion: GaussianDiffusion, said: torch.Tensor) -> torch.Tensor:
        model = Says(said.clone())
        diffusion.losses(model, x0, t, Y, noise)[name].sum().backward()
        return model.weight.grad

    whole = gradient("loss", hybrid, out)
    simple = gradient("loss", GaussianDiffusion.cosine(1000, prediction), out[:, :2])
    vb = gradient("vb", hybrid, out)
    torch.testing.assert_close(whole[:, :2], simple, rtol=1e-9, atol=1e-12)
    assert (vb[:, :2] == 0).all()
    assert (vb[:, 2:] != 0).any()
    torch.testing.assert_close(whole[:, 2:], 1e-3 * 1000 * vb[:, 2:], rtol=1e-9, atol=1e-15)
    # The bound alone does pull at the mean.
    bound = GaussianDiffusion.cosine(1000, prediction, variance="learned-range", loss="vlb")
    assert (gradient("loss", bound, out)[:, :2] != 0).any()


def test_the_slope_of_the_bound_by_finite_differences():
    _, out, x0 = batch(4)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    t = torch.tensor([0, 3, 500, 999])
    diffusion = GaussianDiffusion.cosine(1000, "v", variance="learned-range")
    x_t = diffusion.q_sample(x0, t, noise)
    v = out[:1, 2:, :1, :1].expand(4, 2, 3, 3).clone().requires_grad_()
    mean = diffusion.target(x0, noise, t) + 0.01 * out[:, :2]

    def vb(v):
        return diffusion.vb_terms(torch.cat([mean, v], 1), x0, x_t, t)

    assert torch.autograd.gradcheck(vb, (v,), atol=1e-5)


def test_hybrid_is_the_sum_and_vlb_the_bound():
    _, out, x0 = batch(4)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    t = torch.tensor([0, 1, 20, 49])
    make = {
        k: GaussianDiffusion.cosine(50, variance="learned-range", loss=k) for k in ("hybrid", "vlb")
    }
    hybrid, vlb = (d.losses(Says(out), x0, t, Y, noise) for d in make.values())
    assert set(hybrid) == set(vlb) == {"loss", "mse", "vb"}
    torch.testing.assert_close(hybrid["loss"], hybrid["mse"] + 1e-3 * 50 * hybrid["vb"])
    torch.testing.assert_close(vlb["loss"], 50 * vlb["vb"])
    torch.testing.assert_close(vlb["vb"], hybrid["vb"])
    x_t = make["vlb"].q_sample(x0, t, noise)
    torch.testing.assert_close(vlb["vb"], make["vlb"].vb_terms(out, x0, x_t, t))
    fixed = GaussianDiffusion.cosine(50, loss="vlb").losses(Says(out[:, :2]), x0, t, Y, noise)
    assert "vb" in fixed
    simple = GaussianDiffusion.cosine(50).losses(Says(out[:, :2]), x0, t, Y, noise)
    assert set(simple) == {"loss", "mse"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(variance="learned"), "variance='learned' is unknown.*Did you mean 'learned-range'"),
        (dict(loss="hybird"), "loss='hybird' is unknown.*Did you mean 'hybrid'"),
        (dict(loss="hybrid"), "loss='hybrid' and variance='fixed-small'"),
        (dict(loss="simple", variance="learned-range"), "do not go together"),
        (dict(loss="vlb", min_snr=5.0), "min_snr=5.0"),
        (dict(levels=1), "levels=1"),
        (dict(levels=0), "levels=0"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        GaussianDiffusion.linear(1000, **options)


@pytest.mark.parametrize("learnt", [False, True])
def test_an_output_of_the_wrong_width_is_named(learnt):
    variance = "learned-range" if learnt else "fixed-small"
    diffusion = GaussianDiffusion.linear(1000, variance=variance)
    x_t, out, x0 = batch(2 if learnt else 4)
    width = 4 if learnt else 2
    with pytest.raises(ValueError, match=rf"allowed: \(4, {width}, 3, 3\)"):
        diffusion.p_mean_variance(out, x_t, Y)
    with pytest.raises(ValueError, match=rf"model returned .*allowed: \(4, {width}, 3, 3\)"):
        diffusion.losses(Says(out), x0, Y, Y)
