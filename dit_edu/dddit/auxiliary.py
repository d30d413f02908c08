"""Auxiliary tasks: beside denoising, say how complex the image is and how hard it is to denoise.

Notes on DDDiT train two heads beside the denoiser, with a weight of 0.1, and let them see the step
alone. What can they know? Of any number z that is to be told from t, the best guess is E[z | t],
and it explains the share Var E[z | t] / Var z (:func:`explained_by_step`). The complexity of x_0
does not depend on t at all: of it, nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice
from dit_edu.dit import DiT
from dit_edu.interpolant import Interpolant

#: What the heads see.
SEEN = ("step", "tokens")
#: What they say, in this order.
TASKS = ("complexity", "difficulty")


class AuxiliaryDiT(DiT):
    """A Diffusion Transformer that also says two numbers of each image, from its middle.

    Args:
        seen: what the numbers are read from: the ``"step"``, or the ``"tokens"`` after half of the
            blocks, which have seen x_t and t.
        **settings: as for :class:`~dit_edu.dit.DiT`.

    Attributes:
        said: the numbers of the last pass, (B, 2), one column for each of ``TASKS``.

    Raises:
        ValueError: ``seen`` is unknown.
    """

    said: Tensor

    def __init__(self, *, seen: str = "tokens", **settings: Any) -> None:
        super().__init__(**settings)
        self.seen = check_choice("seen", seen, SEEN)
        dim = self.t_embedder.mlp[-1].out_features
        self.heads = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, len(TASKS)))

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks, and between them a layer that only listens.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """

        def listen(x: Tensor, c: Tensor) -> Tensor:
            self.said = self.heads(emb if self.seen == "step" else x.mean(1))  # (B, D) -> (B, 2)
            return x

        half = len(self.blocks) // 2
        return [*self.blocks[:half], listen, *self.blocks[half:]]


class AuxiliaryLosses:
    """The process's own loss, and ``weight`` times the squared errors of the two heads.

    Targets are the complexity of the clean image, and the logarithm of the error that the denoiser
    makes at this very moment; each is shifted and scaled to about mean 0 and variance 1.

    Args:
        complexity: of images (B, C, H, W): (B,).
        scales: mean and standard deviation of the complexity and of the logarithm.
        weight: 0.1 in the notes; 0 trains the heads without a word to the denoiser.

    Raises:
        ValueError: ``weight`` is negative.
    """

    def __init__(
        self,
        complexity: Callable[[Tensor], Tensor],
        scales: tuple[tuple[float, float], tuple[float, float]],
        weight: float = 0.1,
    ) -> None:
        if not weight >= 0:
            raise ValueError(f"weight={weight}; allowed: at least 0.")
        self.complexity, self.scales, self.weight = complexity, scales, weight

    def targets(self, x0: Tensor, mse: Tensor) -> Tensor:
        """What the heads are to say: of images (B, C, H, W) and errors (B,), (B, 2)."""
        raw = (self.complexity(x0), mse.detach().log())
        return torch.stack([(z - m) / s for z, (m, s) in zip(raw, self.scales, strict=True)], 1)

    def __call__(
        self,
        model: AuxiliaryDiT,
        process: Interpolant,
        x0: Tensor,
        t: Tensor,
        y: Tensor,
        noise: Tensor,
    ) -> dict[str, Tensor]:
        """See :data:`dit_edu.lab.train.LossFn`."""
        losses = process.losses(model, x0, t, y, noise=noise)  # (B,) each
        wrong = (model.said - self.targets(x0, losses["mse"])).square().mean(1)  # (B, 2) -> (B,)
        return {**losses, "loss": losses["loss"] + self.weight * wrong}


def explained(said: Tensor, target: Tensor) -> Tensor:
    """R²: the share of the variance of a target that is explained, 1 - Σ (z - ẑ)² / Σ (z - z̄)².

    Args:
        said, target: ẑ and z, (n, …).

    Returns:
        (…); at most 1, below 0 for less than nothing.
    """
    return 1 - (target - said).square().sum(0) / (target - target.mean(0)).square().sum(0)


def explained_by_step(target: Tensor, t: Tensor, bins: int = 20) -> Tensor:
    """What the step alone could explain of a target at best: R² of its mean in each range of t.

    Args:
        target: z, (n,).
        t: steps, (n,).
        bins: ranges with about equally many samples.
    """
    which = t.argsort().argsort() * bins // len(t)  # (n,)
    sums = torch.zeros(bins, dtype=target.dtype).index_add_(0, which, target)
    means = sums / which.bincount(minlength=bins)
    return explained(means[which], target)
