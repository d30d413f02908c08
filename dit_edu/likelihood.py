"""How many bits a trained model needs for an image: the variational bound, term by term.

    -log p(x_0) <= L_prior + Σ_{t=1}^{T-1} L_t + L_0

The prior has no parameters; L_t asks how well step t is undone; L_0 is the probability that the
last step gives to the very levels of the pixels. Divided by the number of pixels and by ln 2 this
is bits per dimension, which can be compared with the entropy of the data and with other models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dit_edu._checks import check_finite, check_labels
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.gaussians import normal_kl
from dit_edu.walk import Generators, asking, batch_of, evaluating, gaussian_noise


@torch.no_grad()
def bits_per_dim(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    y: Tensor,
    *,
    generator: Generators = None,
) -> dict[str, Tensor]:
    """The bound of every image and all its terms, in bits per dimension.

    Each term is a mean over the noise, of which one draw is taken; average over many images. It
    asks the denoiser T times.

    Args:
        model: a denoiser; put into evaluation mode on the way.
        diffusion: the process it was trained for; its ``levels`` are those of the pixels.
        x0: clean images, (B, C, H, W), whose values are levels.
        y: conditions, (B,).
        generator: the source of all noise; or one for each sample.

    Returns:
        ``total`` (B,), the sum of ``prior`` (B,) and of the columns of ``terms`` (B, T), of which
        column t belongs to step t; and ``mse`` (B, T), the mean squared error of x̂_0.

    Raises:
        ValueError: ``x0``, a label or an output of the denoiser is not allowed.

    Source: Ho et al. 2020, equation 5; as reported by Nichol & Dhariwal 2021, section 3.
    """
    check_finite("x0", x0)
    check_labels(model, y)
    terms, errors = [], []
    with evaluating(model):
        for step in range(diffusion.num_timesteps):
            t = batch_of(step, x0)  # (B,)
            noise = gaussian_noise(x0.shape, generator, x0.device, x0.dtype)
            x_t = diffusion.q_sample(x0, t, noise)
            out = asking(model, y, "the bound")(x_t, t)
            terms.append(diffusion.vb_terms(out, x0, x_t, t))
            guess = diffusion.p_mean_variance(out, x_t, t)["x0"]  # (B, C, H, W)
            errors.append((guess - x0).square().flatten(1).mean(1))  # (B,)
    terms, prior = torch.stack(terms, dim=1), prior_bits(diffusion, x0)  # (B, T), (B,)
    return {
        "total": prior + terms.sum(1),
        "prior": prior,
        "terms": terms,
        "mse": torch.stack(errors, dim=1),  # (B, T)
    }


def prior_bits(diffusion: GaussianDiffusion, x0: Tensor) -> Tensor:
    """L_prior = KL(q(x_{T-1} | x_0) ‖ N(0, I)) in bits per dimension, (B,): what no training mends.

    Args:
        diffusion: the process.
        x0: clean images, (B, …).
    """
    last = batch_of(diffusion.num_timesteps - 1, x0)  # (B,)
    mean, _, log_variance = diffusion.q_mean_variance(x0, last)
    zero = torch.zeros_like(log_variance)
    return normal_kl(mean, log_variance, zero, zero).flatten(1).mean(1) / math.log(2)
