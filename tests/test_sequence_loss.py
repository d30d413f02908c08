"""The raster-order prior against regressions and joint densities; its divergence; its bias."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import Ridge
from torch.distributions import MultivariateNormal, kl_divergence

from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dit import DiT
from dit_edu.flow import FlowMatching
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import train
from dit_edu.patchify import patchify
from dit_edu.sequence_loss import RasterPrior, SequenceLoss, pull

RIDGE = 0.05


def images(n: int, seed: int = 0) -> torch.Tensor:
    """Smooth, correlated images (n, 1, 4, 6) in float64."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(24, 24, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    z = torch.randn(n, 24, generator=g, dtype=torch.float64) @ mix / 5 + 0.3
    return z.view(n, 1, 4, 6)


@pytest.fixture(scope="module")
def prior():
    return RasterPrior(images(200), 2, RIDGE)


def joint(prior) -> MultivariateNormal:
    z = patchify(images(200), 2).flatten(1)
    covariance = torch.cov(z.T, correction=0) + RIDGE * torch.eye(24, dtype=z.dtype)
    return MultivariateNormal(z.mean(0), covariance)


def test_the_conditionals_multiply_to_the_joint_density(prior):
    x = images(5, seed=1)
    want = joint(prior).log_prob(patchify(x, 2).flatten(1))
    torch.testing.assert_close(prior.log_prob(x).sum(1), want)


def test_every_mean_is_a_ridge_regression_on_the_patches_before(prior):
    known, x = patchify(images(200), 2), images(5, seed=1)  # (200, 6, 4)
    asked, means = patchify(x, 2), prior.means(x)
    torch.testing.assert_close(means[:, 0], known[:, 0].mean(0).expand(5, -1))
    for i in (1, 3, 5):
        fit = Ridge(alpha=200 * RIDGE).fit(known[:, :i].flatten(1), known[:, i])
        want = torch.from_numpy(fit.predict(asked[:, :i].flatten(1)))
        torch.testing.assert_close(means[:, i], want)


def test_the_spread_is_what_regression_leaves(prior):
    joined = joint(prior).covariance_matrix
    for i in (0, 2, 5):
        old, new = slice(0, 4 * i), slice(4 * i, 4 * i + 4)
        cross = joined[new, old]
        left = joined[new, new] - cross @ torch.linalg.solve(joined[old, old], cross.T)
        torch.testing.assert_close(prior.factors[i] @ prior.factors[i].T, left)


def test_a_patch_that_comes_later_has_no_say(prior):
    x = images(1, seed=1)
    changed = x.clone()
    changed[..., 2:, 2:] += 1.0  # patches 4 and 5
    torch.testing.assert_close(prior.means(x)[:, :5], prior.means(changed)[:, :5])
    assert not torch.allclose(prior.means(x)[:, 5], prior.means(changed)[:, 5])


def test_what_is_drawn_has_the_joint_covariance(prior):
    drawn = patchify(prior.draw(20_000, torch.Generator().manual_seed(0)), 2).flatten(1)
    want = joint(prior)
    torch.testing.assert_close(drawn.mean(0), want.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(drawn.T), want.covariance_matrix, rtol=0, atol=0.08)


def test_the_divergence_is_that_of_two_gaussians(prior):
    guess, x0 = images(3, seed=1), images(3, seed=2)
    found = prior.kl(guess, x0, sigma=0.3)
    means, tokens = prior.means(x0), patchify(guess, 2)
    eye = torch.eye(4, dtype=torch.float64)
    for b in range(3):
        for i in range(6):
            said = MultivariateNormal(tokens[b, i], 0.09 * eye)
            expected = MultivariateNormal(means[b, i], scale_tril=prior.factors[i])
            assert float(found[b, i]) == pytest.approx(float(kl_divergence(said, expected)))


def test_the_divergence_is_a_mean_over_draws(prior):
    guess, x0 = images(1, seed=1), images(1, seed=2)
    torch.manual_seed(0)
    said = MultivariateNormal(patchify(guess, 2)[0, 3], 0.25 * torch.eye(4, dtype=torch.float64))
    expected = MultivariateNormal(prior.means(x0)[0, 3], scale_tril=prior.factors[3])
    z = said.sample((40_000,))
    draws = said.log_prob(z) - expected.log_prob(z)
    error = float(draws.std()) / math.sqrt(len(draws))
    assert abs(float(draws.mean() - prior.kl(guess, x0, sigma=0.5)[0, 3])) < 4 * error


def test_sigma_has_no_say_in_the_gradient(prior):
    x0, gradients = images(2, seed=2), []
    for sigma in (0.01, 1.0):
        guess = images(2, seed=1).requires_grad_()
        prior.kl(guess, x0, sigma).sum().backward()
        gradients.append(guess.grad)
    torch.testing.assert_close(*gradients)


def test_the_order_matters_to_the_true_prefix_alone(prior):
    turned = RasterPrior(images(200).flip(-1, -2), 2, RIDGE)  # from the last patch to the first
    guess, x0 = images(3, seed=1), images(3, seed=2)
    own, own_turned = prior.log_prob(guess).sum(1), turned.log_prob(guess.flip(-1, -2)).sum(1)
    torch.testing.assert_close(own, own_turned)
    told = prior.kl(guess, x0).sum(1) - turned.kl(guess.flip(-1, -2), x0.flip(-1, -2)).sum(1)
    assert float(told.abs().min()) > 0.1


def around(belief: torch.Tensor) -> torch.Tensor:
    """Images x_0 whose mean is exactly the belief."""
    error = images(4, seed=3)
    return torch.cat([belief + error, belief - error])


@pytest.mark.parametrize("kappa", [0.01, 0.3, 20.0])
def test_the_minimum_lies_where_the_closed_form_says(prior, kappa):
    belief = images(1, seed=4)
    guess = prior.pulled(belief, kappa).requires_grad_()
    x0 = around(belief)
    everywhere = guess.expand_as(x0)
    error = (everywhere - x0).square().flatten(1).sum(1) / (2 * kappa)  # of x_0, and the KL beside
    (error + prior.kl(everywhere, x0).sum(1)).mean().backward()
    assert float(guess.grad.abs().max()) < 1e-10
    assert not torch.allclose(guess, belief, atol=1e-4)


def test_the_bias_goes_to_the_prior_s_mean(prior):
    belief = images(2, seed=4)
    torch.testing.assert_close(prior.pulled(belief, 0.0), belief)
    far = patchify(prior.pulled(belief, torch.tensor([1e9, 1e9])), 2)
    torch.testing.assert_close(far, prior.means(belief))


def test_the_distance_has_no_bias(prior):
    belief = images(1, seed=4)
    guess, x0 = belief.clone().requires_grad_(), around(belief)
    everywhere = guess.expand_as(x0)
    found = prior.distance(everywhere, x0)
    error = patchify(everywhere - x0, 2).flatten(1)
    want = torch.einsum("bi,ij,bj->b", error, joint(prior).precision_matrix, error) / 2
    torch.testing.assert_close(found.sum(1), want)
    found.sum(1).mean().backward()
    assert float(guess.grad.abs().max()) < 1e-10


@pytest.mark.parametrize("process", [
    *(GaussianDiffusion.cosine(1000, prediction=name) for name in ("x0", "eps", "v")),
    FlowMatching(),
], ids=["x0", "eps", "v", "flow"])  # fmt: skip
def test_the_pull_is_what_an_error_of_x0_weighs(process):
    t = torch.tensor([100, 500, 900])
    x0, out, other = torch.randn(3, 3, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    x_t = process.q_sample(x0, t, torch.zeros_like(x0))
    gap = process.to_x0(out, x_t, t) - process.to_x0(other, x_t, t)
    weight = (out - other).square().flatten(1).sum(1) / gap.square().flatten(1).sum(1)
    torch.testing.assert_close(pull(process, t, 0.3), 0.3 / 2 / weight)


MODEL = {"input_size": 8, "patch_size": 2, "in_channels": 1, "hidden_size": 16, "depth": 1,
         "num_heads": 2, "num_classes": 10, "learn_sigma": False}  # fmt: skip


def test_the_loss_adds_the_penalty_at_the_steps_where_it_counts():
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 1, 8, 8, generator=g)
    prior, process = RasterPrior(x0, 2, 0.1), GaussianDiffusion.cosine(1000, prediction="v")
    t, y = torch.tensor([10, 299, 300, 900]), torch.zeros(4, dtype=torch.long)
    torch.manual_seed(0)
    model = DiT(**MODEL).eval()
    found = SequenceLoss(prior.kl, 0.5, below=0.3)(model, process, x0, t, y, noise)
    torch.testing.assert_close(found["mse"], process.losses(model, x0, t, y, noise=noise)["loss"])
    added = found["loss"] - found["mse"]
    torch.testing.assert_close(added[:2], found["penalty"][:2] / 2)
    assert added[2:].tolist() == [0, 0]
    guess = process.to_x0(torch.zeros_like(x0), process.q_sample(x0, t, noise), t)
    assert float(model(x0, t, y).detach().abs().max()) == 0  # a fresh DiT says nothing
    torch.testing.assert_close(found["penalty"], prior.kl(guess, x0).sum(1) / 64)


def test_it_is_a_loss_of_the_loop():
    x0, y = images(1).new_zeros(40, 1, 8, 8).float(), torch.zeros(40, dtype=torch.long)
    x0 = x0 + torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(name="tiny", model=MODEL, steps=2, warmup=0, batch_size=8)
    prior, ends = RasterPrior(x0, 2, 0.1), []
    for weight in (0.0, 1.0):
        loss_fn = SequenceLoss(prior.kl, weight)
        *_, last = train(recipe, data=(x0, y), device="cpu", loss_fn=loss_fn)
        ends.append(torch.cat([p.flatten() for p in last.ema.parameters()]))
    *_, plain = train(recipe, data=(x0, y), device="cpu")
    simple = torch.cat([p.flatten() for p in plain.ema.parameters()])
    torch.testing.assert_close(ends[0], simple)
    assert not torch.allclose(ends[1], simple, atol=1e-4)


@pytest.mark.parametrize(("change", "error"), [
    ({"ridge": 0}, "ridge=0"),
    ({"ridge": math.nan}, "ridge=nan"),
    ({"p": 4}, "p=4 does not divide"),
    ({"images": images(3) * math.inf}, "images holds"),
])  # fmt: skip
def test_bad_input_is_named(change, error):
    with pytest.raises(ValueError, match=error):
        RasterPrior(**{"images": images(3), "p": 2, "ridge": 0.1} | change)
