"""A loss over the sequence of patches: how surprising is each, after those before it?

A Gaussian prior over images, read patch by patch in raster order, says what it expects of the next
patch. The loss is the divergence of the model's guess, a small Gaussian around x̂_0, from that.
It is a Mahalanobis distance to the prior's mean, and so it moves the model's best guess, by
:meth:`RasterPrior.pulled`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_edu._checks import check_finite
from dit_edu.interpolant import Interpolant
from dit_edu.patchify import patchify, token_grid, unpatchify


class RasterPrior:
    """q(z_i | z_<i) = N(μ_i(z_<i), S_i), for the patches z_1, …, z_N of an image in reading order.

    Fitted in closed form: means and covariance of the images, and a Cholesky factor of the latter.

    Args:
        images: what it is fitted to, (n, C, H, W).
        p: the side of a patch in pixels; divides H and W.
        ridge: a variance added to every pixel's, above 0: where a pixel never changes, the prior
            would be certain.

    Attributes:
        mean: m, (N, P) with P = p·p·C.
        weights: W, (N·P, N·P) and zero unless from an earlier patch to a later one:
            μ_i = m_i + Σ_{j<i} W_ij (z_j - m_j).
        factors: L_ii, (N, P, P), lower triangular, with S_i = L_ii L_iiᵀ.

    Raises:
        TypeError, ValueError: an image is not finite, ``p`` does not fit, ``ridge`` is not above 0.
    """

    def __init__(self, images: Tensor, p: int, ridge: float) -> None:
        if not 0 < ridge < math.inf:
            raise ValueError(f"ridge={ridge!r}; allowed: a number above 0.")
        check_finite("images", images)
        tokens = patchify(images, p)  # (n, N, P)
        self.p, self.grid = p, token_grid(tuple(images.shape[-2:]), p)
        n, p_numbers = tokens.shape[1:]
        z = tokens.flatten(1).double()  # (n, NP)
        mean = z.mean(0)
        covariance = (z - mean).T @ (z - mean) / len(z)  # (NP, NP)
        eye = torch.eye(n * p_numbers, dtype=z.dtype, device=z.device)
        lower = torch.linalg.cholesky(covariance + ridge * eye)  # Σ = L Lᵀ
        blocks = lower.view(n, p_numbers, n, p_numbers)
        own = torch.stack([blocks[i, :, i] for i in range(n)])  # (N, P, P), the L_ii
        # z - μ = diag(L_ii) L⁻¹ (z - m) = (1 - W)(z - m): what is new in each patch
        new = torch.block_diag(*own) @ torch.linalg.solve_triangular(lower, eye, upper=False)
        self.mean = mean.unflatten(0, (n, p_numbers)).to(images)
        self.weights = (eye - new).to(images)
        self.factors = own.to(images)
        self._unit = torch.linalg.inv(own).to(images)  # L_ii⁻¹

    def means(self, prefix: Tensor) -> Tensor:
        """μ_i for every patch, given those before it in ``prefix`` (B, C, H, W): (B, N, P)."""
        z = (patchify(prefix, self.p) - self.mean).flatten(1)  # (B, N, P) -> (B, NP)
        return self.mean + (z @ self.weights.T).unflatten(1, self.mean.shape)  # (B, N, P)

    def surprise(self, guess: Tensor, prefix: Tensor) -> Tensor:
        """What is new in each patch, in the prior's units: L_ii⁻¹ (z_i - μ_i), (B, N, P).

        Args:
            guess: the images whose patches are judged, (B, C, H, W).
            prefix: the images whose earlier patches the prior is told, the same shape.
        """
        return torch.einsum(
            "npq,bnq->bnp", self._unit, patchify(guess, self.p) - self.means(prefix)
        )

    def kl(self, guess: Tensor, prefix: Tensor, sigma: float = 0.1) -> Tensor:
        """KL(N(x̂_i, σ² 1) ‖ N(μ_i(prefix), S_i)) of every patch, in nats: (B, N).

        Args:
            guess: x̂_0, (B, C, H, W).
            prefix: the images whose earlier patches the prior is told; the clean ones, or again
                ``guess``.
            sigma: σ. The gradient does not depend on it.
        """
        size = self.mean.shape[1]  # P
        # ½ (r S⁻¹ r + σ² tr S⁻¹ - P + log det S - P log σ²)
        log_det = 2 * self.factors.diagonal(dim1=1, dim2=2).log().sum(1)  # (N,)
        rest = sigma**2 * self._unit.square().sum((1, 2)) + log_det  # (N,)
        rest = rest - size * (1 + 2 * math.log(sigma))
        return (self.surprise(guess, prefix).square().sum(2) + rest) / 2

    def distance(self, guess: Tensor, image: Tensor) -> Tensor:
        """½ (x̂_0 - x_0)ᵀ Σ⁻¹ (x̂_0 - x_0), patch by patch: (B, N).

        The guess is to be as surprising as the image, not as little as can be. It keeps the minimum
        where the error alone has it.
        """
        return (self.surprise(guess, guess) - self.surprise(image, image)).square().sum(2) / 2

    def log_prob(self, images: Tensor) -> Tensor:
        """log q(z_i | z_<i) of every patch, in nats: (B, N)."""
        size, log_det = self.mean.shape[1], self.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        unit = self.surprise(images, images)  # (B, N, P)
        return -unit.square().sum(2) / 2 - log_det - size * math.log(2 * math.pi) / 2

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Images from the prior, one patch after the other: (n, C, H, W)."""
        z = self.mean.expand(n, -1, -1).clone()  # (n, N, P)
        for i in range(z.shape[1]):
            expected = self.means(unpatchify(z, self.p, self.grid))[:, i]  # (n, P)
            noise = torch.randn(expected.shape, generator=generator).to(z)
            z[:, i] = expected + noise @ self.factors[i].T
        return unpatchify(z, self.p, self.grid)

    def pulled(self, belief: Tensor, kappa: Tensor | float) -> Tensor:
        """Where the loss with KL has its minimum, if c = E[x_0 | x_t] is what the error asks for.

        x̂_i = c_i - κ (S_i + κ 1)⁻¹ (c_i - μ_i(c)): what is new in a patch shrinks, by S/(S + κ) in
        each direction in which S_i has the variance S.

        Args:
            belief: c, (B, C, H, W).
            kappa: κ, see :func:`pull`; a number or (B,).
        """
        tokens = patchify(belief, self.p)  # (B, N, P)
        new = tokens - self.means(belief)  # (B, N, P)
        variance, axes = torch.linalg.eigh(self.factors @ self.factors.mT)  # (N, P), (N, P, P)
        kappa = torch.as_tensor(kappa, dtype=belief.dtype, device=belief.device).view(-1, 1, 1)
        lost = kappa / (variance + kappa)  # (B, N, P)
        along = torch.einsum("npk,bnp->bnk", axes, new)
        tokens = tokens - torch.einsum("npk,bnk->bnp", axes, lost * along)
        return unpatchify(tokens, self.p, self.grid)


def pull(process: Interpolant, t: Tensor, weight: float) -> Tensor:
    """κ = λ / 2w at each step t (B,), for a loss that weighs errors of x_0 by w: (B,).

    w is 1 for a model that predicts x_0, a²/b² for one that predicts ε, and 1/b² for one that
    predicts v, in a process x_t = a x_0 + b ε with a² + b² = 1; the flow's v has 1/b² too.
    """
    one = torch.ones(len(t), 1, 1, 1)
    gap = process.to_x0(one, 0 * one, t) - process.to_x0(0 * one, 0 * one, t)  # of x̂_0, by output
    return weight / 2 * gap.square().flatten()


@dataclass(frozen=True)
class SequenceLoss:
    """The simple loss and a penalty on x̂_0, as a loss of the loop.

    Both are means over the numbers of an image.

    Args:
        penalty: of x̂_0 and x_0, (B, C, H, W) each, in nats by patch, (B, N):
            :meth:`RasterPrior.kl` or :meth:`RasterPrior.distance`.
        weight: λ.
        below: the penalty counts at steps below this share of all.
    """

    penalty: Callable[[Tensor, Tensor], Tensor]
    weight: float
    below: float = 1.0

    def __call__(
        self,
        model: nn.Module,
        process: Interpolant,
        x0: Tensor,
        t: Tensor,
        y: Tensor,
        noise: Tensor,
    ) -> dict[str, Tensor]:
        """``loss``, ``mse`` and ``penalty``, (B,) each."""
        x_t = process.q_sample(x0, t, noise)
        out = model(x_t, t, y)[:, : x0.shape[1]]  # (B, C, H, W)
        mse = (out - process.target(x0, noise, t)).square().flatten(1).mean(1)  # (B,)
        guess = process.to_x0(out, x_t, t)  # x̂_0
        penalty = self.penalty(guess, x0).sum(1) / x0[0].numel()  # (B, N) -> (B,)
        counts = t < self.below * process.num_timesteps  # (B,)
        return {"loss": mse + self.weight * counts * penalty, "mse": mse, "penalty": penalty}
