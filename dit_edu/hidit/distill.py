"""Distillation: a small model learns from a trained one, beside the data.

The target of the plain loss is one noisy draw, v; the best answer is its mean v* = E[v | x_t, y].
A teacher says something near v* without the noise. The student minimises::

    (1 - w) |v̂ - v|² + w |v̂ - v̂_T|² + w_f (1 - R²),

where v̂ is its answer, v̂_T the teacher's, and R² is how much of the teacher's tokens a linear map of
the student's tokens explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dit_edu.dit import DiT

RIDGE = 1e-4  # of the regression, over the mean variance of a channel


def distilled_losses(
    teacher: nn.Module,
    weight: float,
    *,
    features: tuple[int, int] | None = None,
    feature_weight: float = 0.0,
) -> Callable[..., dict[str, Tensor]]:
    """A loss for the training loop: the process's own mixed with the distance to a teacher.

    Args:
        teacher: a denoiser with the prediction of the student. It is put into evaluation mode, and
            its weights stay as they are.
        weight: w, in [0, 1]: 0 is the student alone, 1 hears the teacher alone.
        features: after how many blocks of student and teacher the tokens are compared.
        feature_weight: w_f, at least 0.

    Returns:
        A function of (model, process, x0, t, y, noise), see :data:`dit_edu.lab.train.LossFn`.

    Raises:
        ValueError: a weight is not allowed; or ``feature_weight`` and ``features`` are not given
            together.

    Source: Hinton et al. 2015 for the mixture; Romero et al. 2015 for the tokens.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}; allowed: 0 to 1.")
    if not feature_weight >= 0 or (feature_weight > 0) != (features is not None):
        raise ValueError(
            f"feature_weight={feature_weight} with features={features}; allowed: above 0 with "
            "features, else 0."
        )
    teacher = teacher.eval()

    mine, theirs = features or (None, None)

    def loss_fn(model, process, x0, t, y, noise):
        with heard(model, after(model, mine)) as said:
            losses = process.losses(model, x0, t, y, noise=noise)  # (B,) each
        with torch.no_grad(), heard(teacher, after(teacher, theirs)) as told:
            teacher(*said[0].given)  # the same x_t, t and y
        n = x0.shape[1]  # the variance, where it is learnt, stands behind these channels
        far = (said[0].out[:, :n] - told[0].out[:, :n]).square().flatten(1).mean(1)  # (B,)
        loss = (1 - weight) * losses["loss"] + weight * far
        if features:
            loss = loss + feature_weight * unexplained(said[1].out, told[1].out)
        return {**losses, "loss": loss}

    return loss_fn


def unexplained(mine: Tensor, theirs: Tensor) -> Tensor:
    """1 - R²: the share of the teacher's tokens that no linear map of the student's gives.

    The best map of the batch is found by least squares and then held fixed. At a minimum over A a
    small change of A changes nothing, so the gradient is that of the minimum itself.

    Args:
        mine: tokens of the student, (B, N, D).
        theirs: tokens of the teacher, (B, N, D'); they get no gradient.

    Returns:
        A number, 0 where all is explained.

    Raises:
        ValueError: batch or number of tokens differ.
    """
    if mine.shape[:2] != theirs.shape[:2]:
        raise ValueError(
            f"tokens of shapes {tuple(mine.shape)} and {tuple(theirs.shape)}; allowed: the same "
            "(B, N)."
        )
    s, f = (z.flatten(0, 1) - z.mean((0, 1)) for z in (mine, theirs.detach()))  # (B N, D), (…, D')
    with torch.no_grad():
        gram = s.T @ s  # (D, D)
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        best = torch.linalg.solve(gram + ridge, s.T @ f)  # (D, D'), A
    return (s @ best - f).square().sum() / f.square().sum()


def unexplained_macs(tokens: int, dim: int, teacher_dim: int) -> int:
    """MACs of :func:`unexplained` with its gradient: SᵀS, SᵀF, S A, and S A's way back to S."""
    return tokens * dim * (dim + 3 * teacher_dim)


class Call(NamedTuple):
    """What a module was given, and what it said."""

    given: tuple[Any, ...]
    out: Tensor


@contextmanager
def heard(*modules: nn.Module | None) -> Iterator[dict[int, Call]]:
    """Inside ``with``, the last call of each module is kept, by its number; None is passed over."""
    calls: dict[int, Call] = {}

    def keep(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
            calls[number] = Call(given, out)

        return hook

    hooks = [m.register_forward_hook(keep(i)) for i, m in enumerate(modules) if m is not None]
    try:
        yield calls
    finally:
        for handle in hooks:
            handle.remove()


def after(model: DiT, blocks: int | None) -> nn.Module | None:
    """The block behind which ``blocks`` of them are done; None for None.

    Raises:
        ValueError: the model has fewer.
    """
    if blocks is None:
        return None
    if not 1 <= blocks <= len(model.blocks):
        raise ValueError(f"blocks={blocks}; allowed: 1 to {len(model.blocks)}.")
    return model.blocks[blocks - 1]
