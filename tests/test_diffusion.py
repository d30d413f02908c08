"""The process against diffusers' schedulers, closed forms, Monte Carlo and its own identities."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.schedules import PREDICTIONS, cosine_betas, linear_betas

SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
DIFFUSERS_PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def batch(seed: int = 0, b: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(b, 2, 4, 4, generator=g, dtype=torch.float64) * 2 - 1
    noise = torch.randn(b, 2, 4, 4, generator=g, dtype=torch.float64)
    t = torch.randint(0, 1000, (b,), generator=g)
    return x0, t, noise


class Constant(nn.Module):
    """A denoiser that always says the same."""

    num_classes = 10
    class_dropout_prob = 0.1

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x, t, y):
        return self.value


@pytest.mark.parametrize("theirs", SCHEDULES)
def test_schedule_equals_diffusers(theirs):
    ref = DDPMScheduler(1000, beta_schedule=theirs, beta_start=1e-4, beta_end=0.02)
    ours = getattr(GaussianDiffusion, SCHEDULES[theirs])(1000)
    assert ours.betas.dtype == torch.float64
    torch.testing.assert_close(ours.betas.float(), ref.betas, rtol=1e-4, atol=1e-8)
    # ᾱ_{T-1} of diffusers has lost digits: its product of 1000 factors is taken in float32.
    torch.testing.assert_close(
        ours.alphas_cumprod.float(), ref.alphas_cumprod, rtol=2e-4, atol=1e-7
    )


def test_linear_ends_as_noisy_for_every_number_of_steps():
    ends = [GaussianDiffusion.linear(n).alphas_cumprod[-1].log() for n in (250, 500, 1000, 4000)]
    # log ᾱ_{T-1} ≈ -Σβ = -10.05 whatever T, up to the second order Σβ²/2.
    for end in ends:
        assert end == pytest.approx(-10.05, abs=0.6)


def test_cosine_is_the_closed_form():
    u = torch.arange(1, 1000, dtype=torch.float64) / 1000  # the last β is clipped at 0.999
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    closed = f / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    ours = GaussianDiffusion.cosine(1000).alphas_cumprod[:-1]
    torch.testing.assert_close(ours, closed, rtol=1e-9, atol=0)
    assert cosine_betas(1000)[-1] == 0.999


def test_jump_equals_thousand_small_steps():
    """q(x_t | x_0) by composing x_t = sqrt(1-β) x_{t-1} + sqrt(β) ε: exact mean and variance."""
    diffusion = GaussianDiffusion.linear(1000)
    signal, variance = 1.0, 0.0
    for t, beta in enumerate(diffusion.betas.tolist()):
        signal, variance = math.sqrt(1 - beta) * signal, (1 - beta) * variance + beta
        if t in (0, 10, 500, 999):
            ab = float(diffusion.alphas_cumprod[t])
            assert signal == pytest.approx(math.sqrt(ab), rel=1e-12)
            assert variance == pytest.approx(1 - ab, rel=1e-10)


def test_q_sample_equals_diffusers():
    x0, t, noise = batch()
    ref = DDPMScheduler(1000, beta_schedule="linear")
    ours = GaussianDiffusion.linear(1000).q_sample(x0.float(), t, noise.float())
    torch.testing.assert_close(
        ours, ref.add_noise(x0.float(), noise.float(), t), rtol=1e-4, atol=1e-5
    )


@given(t=st.integers(0, 999), seed=st.integers(0, 99), prediction=st.sampled_from(PREDICTIONS))
@settings(max_examples=60, deadline=None)
def test_true_target_gives_back_image_noise_and_velocity(t, seed, prediction):
    x0, _, noise = batch(seed, b=1)
    steps = torch.tensor([t])
    diffusion = GaussianDiffusion.linear(1000, prediction)
    x_t = diffusion.q_sample(x0, steps, noise)
    out = diffusion.target(x0, noise, steps)
    ab = diffusion.alphas_cumprod[t]
    torch.testing.assert_close(diffusion.to_x0(out, x_t, steps), x0, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(diffusion.to_eps(out, x_t, steps), noise, rtol=1e-8, atol=1e-9)
    v = ab.sqrt() * noise - (1 - ab).sqrt() * x0
    torch.testing.assert_close(diffusion.to_v(out, x_t, steps), v, rtol=1e-8, atol=1e-9)


@given(t=st.integers(1, 999), gap=st.integers(1, 999))
@settings(max_examples=60, deadline=None)
def test_posterior_is_bayes(t, gap):
    """q(x_s|x_t,x_0) = q(x_s|x_0) q(x_t|x_s) / q(x_t|x_0): precisions add, in one dimension."""
    diffusion = GaussianDiffusion.linear(1000)
    s = max(t - gap, 0)
    x0, x_t = (
        torch.tensor([[0.3]], dtype=torch.float64),
        torch.tensor([[-0.7]], dtype=torch.float64),
    )
    ab_t, ab_s = diffusion.alphas_cumprod[t], diffusion.alphas_cumprod[s]
    a = ab_t / ab_s  # q(x_t | x_s) = N(sqrt(a) x_s, 1 - a)
    precision = 1 / (1 - ab_s) + a / (1 - a)
    mean = (ab_s.sqrt() * x0 / (1 - ab_s) + a.sqrt() * x_t / (1 - a)) / precision
    ours = diffusion.q_posterior(x0, x_t, torch.tensor([t]), torch.tensor([s]))
    torch.testing.assert_close(ours[0], mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours[1].squeeze(), 1 / precision, rtol=1e-9, atol=0)
    torch.testing.assert_close(ours[2].exp(), ours[1], rtol=1e-9, atol=0)


# Schedules of one's own: any list of numbers inside (0, 1).
OWN_BETAS = st.lists(st.floats(1e-4, 0.6), min_size=2, max_size=30)


def own(betas: list[float], data: st.DataObject) -> tuple[GaussianDiffusion, int, int]:
    """The process of these betas, and two of its steps, s < t."""
    t = data.draw(st.integers(1, len(betas) - 1))
    s = data.draw(st.integers(0, t - 1))
    return GaussianDiffusion(torch.tensor(betas, dtype=torch.float64)), s, t


@given(betas=OWN_BETAS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_marginals_compose(betas, data):
    """From 0 to s by the marginal, from s to t step by step by β: the marginal of t."""
    diffusion, s, t = own(betas, data)
    x0 = torch.tensor([[0.7]], dtype=torch.float64)
    mean, variance, _ = diffusion.q_mean_variance(x0, torch.tensor([s]))
    for beta in betas[s + 1 : t + 1]:
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    want = diffusion.q_mean_variance(x0, torch.tensor([t]))
    torch.testing.assert_close(mean, want[0], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(variance, want[1], rtol=1e-10, atol=0)
    torch.testing.assert_close(want[2].exp(), want[1], rtol=1e-10, atol=0)
    # And it is what q_sample draws from: mean for no noise, a standard deviation for one.
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    at_zero, at_one = (diffusion.q_sample(x0, torch.tensor([t]), n) for n in (zero, one))
    torch.testing.assert_close(at_zero, want[0])
    torch.testing.assert_close((at_one - at_zero) ** 2, want[1])


@given(betas=OWN_BETAS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_posteriors_are_consistent(betas, data):
    """Averaged over x_t ~ q(x_t | x_0), the posterior of x_s is the marginal of x_s."""
    diffusion, s, t = own(betas, data)
    x0 = torch.tensor([[0.7], [0.7]], dtype=torch.float64)
    steps, prev = torch.tensor([t, t]), torch.tensor([s, s])
    mean_t, variance_t, _ = diffusion.q_mean_variance(x0[:1], steps[:1])
    x_t = mean_t + torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    centers, variance, _ = diffusion.q_posterior(x0, x_t, steps, prev)
    slope = centers[1] - centers[0]  # the posterior's mean is linear in x_t
    want = diffusion.q_mean_variance(x0[:1], prev[:1])
    torch.testing.assert_close(centers[:1], want[0], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(variance[:1] + slope**2 * variance_t, want[1], rtol=1e-10, atol=0)


@given(t=st.integers(0, 999), said=st.sampled_from(PREDICTIONS), back=st.sampled_from(PREDICTIONS))
@settings(max_examples=60, deadline=None)
def test_conversions_are_inverses(t, said, back):
    """Any output, said in other words and back, is itself; no truth is needed for that."""
    x_t, _, out = batch(t, b=1)
    steps = torch.tensor([t])
    here, there = GaussianDiffusion.linear(1000, said), GaussianDiffusion.linear(1000, back)
    words = getattr(here, f"to_{back}")(out, x_t, steps)
    torch.testing.assert_close(
        getattr(there, f"to_{said}")(words, x_t, steps), out, rtol=1e-7, atol=1e-7
    )


def test_a_small_step_back_is_a_gaussian_and_a_large_one_is_not():
    """Data at -1 and 1: Bayes' rule on a fine line, against the Gaussian of the perfect guess."""
    diffusion = GaussianDiffusion.cosine(1000, "x0")
    line, x_t = torch.linspace(-5, 5, 20_001, dtype=torch.float64), 0.2

    def misplaced(t: int, t_prev: int) -> float:
        """The share of the probability of q(x_t' | x_t) that the Gaussian puts elsewhere."""
        ab, ab_prev = diffusion.alphas_cumprod[[t, t_prev]]
        clean = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None]
        q_prev = (-((line - ab_prev.sqrt() * clean) ** 2) / (2 * (1 - ab_prev))).exp().sum(0)
        keep = ab / ab_prev
        q = q_prev * (-((x_t - keep.sqrt() * line) ** 2) / (2 * (1 - keep))).exp()
        guess = torch.tanh(ab.sqrt() * x_t / (1 - ab))  # E[x_0 | x_t] of two points
        x = torch.full((1, 1), x_t, dtype=torch.float64)
        p = diffusion.p_mean_variance(
            guess.view(1, 1), x, torch.tensor([t]), t_prev=torch.tensor([t_prev])
        )
        bell = (-((line - p["mean"][0]) ** 2) / (2 * p["variance"][0])).exp()
        return float((q / q.sum() - bell / bell.sum()).abs().sum() / 2)

    assert misplaced(600, 599) < 0.01
    assert misplaced(600, 599) < misplaced(600, 500) < misplaced(600, 100)
    assert misplaced(600, 100) > 0.5


def test_posterior_table_is_the_posterior():
    diffusion = GaussianDiffusion.cosine(1000)
    t = torch.arange(1000)
    x = torch.zeros(1000, 1, dtype=torch.float64)
    _, variance, log_variance = diffusion.q_posterior(x, x, t)
    torch.testing.assert_close(
        variance.squeeze(), diffusion.posterior_variance, rtol=1e-9, atol=1e-15
    )
    torch.testing.assert_close(
        log_variance.squeeze(), diffusion.posterior_log_variance_clipped, rtol=1e-9, atol=1e-9
    )
    assert torch.isfinite(diffusion.posterior_log_variance_clipped).all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
def test_reverse_step_equals_diffusers(prediction, clip):
    """One DDPM step: our mean plus the noise that diffusers is known to draw."""
    ref = DDPMScheduler(
        1000, beta_schedule="linear", prediction_type=DIFFUSERS_PREDICTION[prediction],
        clip_sample=clip, variance_type="fixed_small",
    )  # fmt: skip
    ref.alphas_cumprod = torch.cumprod(1 - linear_betas(1000), 0)
    ref.alphas, ref.betas, ref.one = 1 - linear_betas(1000), linear_betas(1000), torch.tensor(1.0)
    diffusion = GaussianDiffusion.linear(1000, prediction)
    x_t, _, out = batch(3, b=1)
    for t in (0, 1, 400, 999):
        ours = diffusion.p_mean_variance(out, x_t, torch.tensor([t]), clip=clip)
        g = torch.Generator().manual_seed(7)
        theirs = ref.step(out, t, x_t, generator=g)
        torch.testing.assert_close(ours["x0"], theirs.pred_original_sample, rtol=1e-6, atol=1e-6)
        z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        sigma = ref._get_variance(t).sqrt() if t else 0.0
        torch.testing.assert_close(
            ours["mean"] + sigma * z, theirs.prev_sample, rtol=1e-6, atol=1e-5
        )


def test_clipped_step_keeps_x0_and_eps_consistent():
    diffusion = GaussianDiffusion.linear(1000)
    x_t, t, out = batch(5)
    p = diffusion.p_mean_variance(3 * out, x_t, t, clip=True)
    assert p["x0"].abs().max() <= 1
    torch.testing.assert_close(diffusion.q_sample(p["x0"], t, p["eps"]), x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_losses_are_mean_squared_errors(prediction):
    x0, t, noise = batch()
    diffusion = GaussianDiffusion.cosine(1000, prediction)
    said = torch.full_like(x0, 0.25)
    losses = diffusion.losses(Constant(said), x0, t, torch.zeros(5, dtype=torch.long), noise)
    ab = diffusion.alphas_cumprod[t].view(-1, 1, 1, 1)
    truth = {"eps": noise, "x0": x0, "v": ab.sqrt() * noise - (1 - ab).sqrt() * x0}[prediction]
    want = torch.stack([nn.functional.mse_loss(said[i], truth[i]) for i in range(5)])
    torch.testing.assert_close(losses["loss"], want, rtol=1e-9, atol=0)
    assert losses["mse"].shape == (5,)


def test_loss_of_the_best_guess_on_gaussian_data():
    """For x_0 ~ N(0, I) the best ε̂ is sqrt(1-ᾱ) x_t, and its loss is ᾱ_t: by Monte Carlo."""
    diffusion = GaussianDiffusion.cosine(1000)

    class Best(nn.Module):
        def forward(self, x, t, y):
            return (1 - diffusion.alpha_bar(t, x)).sqrt() * x

    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(400, 1, 16, 16, generator=g, dtype=torch.float64)
    noise = torch.randn(400, 1, 16, 16, generator=g, dtype=torch.float64)
    for step in (50, 500, 900):
        t = torch.full((400,), step)
        loss = diffusion.losses(Best(), x0, t, torch.zeros(400, dtype=torch.long), noise)["loss"]
        # 102,400 squares: relative standard error sqrt(2/102400) = 0.4 %.
        assert loss.mean() == pytest.approx(float(diffusion.alphas_cumprod[step]), rel=0.02)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda d, x, y: d.losses(Constant(x), x, torch.tensor([0, 1000]), y), ValueError, "999"),
        (lambda d, x, y: d.losses(Constant(x), x, torch.tensor([-1, 3]), y), ValueError, "-1"),
        (lambda d, x, y: d.losses(Constant(x), x, torch.tensor([0.5, 1]), y), TypeError, "integer"),
        (lambda d, x, y: d.losses(Constant(x), x, y, torch.tensor([0, 11])), ValueError, "10"),
        (lambda d, x, y: d.losses(Constant(x[:1]), x, y, y), ValueError, "returned"),
        (lambda d, x, y: d.losses(Constant(x), x / 0, y, y), ValueError, "non-finite"),
        (lambda d, x, y: d.q_sample(x, y, x[:1]), ValueError, "noise"),
        (lambda d, x, y: d.p_mean_variance(x[:1], x, y), ValueError, "out has shape"),
        (lambda d, x, y: GaussianDiffusion.linear(1000, "epsilon"), ValueError, "'eps'"),
        (lambda d, x, y: GaussianDiffusion(torch.tensor([0.1, 1.0])), ValueError, "betas"),
        (lambda d, x, y: GaussianDiffusion(torch.zeros(2, 2)), ValueError, "betas has shape"),
        (lambda d, x, y: GaussianDiffusion.linear(10), ValueError, "betas runs"),
        (lambda d, x, y: GaussianDiffusion.cosine(0), ValueError, "num_timesteps=0"),
        (lambda d, x, y: GaussianDiffusion.cosine(10.0), TypeError, "num_timesteps=10.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    x, y = torch.ones(2, 1, 4, 4), torch.tensor([3, 4])
    with pytest.raises(error, match=words):
        call(GaussianDiffusion.linear(1000), x, y)
