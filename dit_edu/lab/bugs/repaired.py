"""The same twelve functions, repaired."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.positions import sincos_pos_embed


def start_values(block: AdaLNZeroBlock) -> None:
    """Give a block its start values: gates closed, Xavier for the rest."""
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    block.zero_init()  # last, or the loop opens the gates again


def guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Guide what a model of latents says, (B, C, H, W)."""
    return uncond + scale * (cond - uncond)


def null_labels(num_classes: int, y: Tensor) -> Tensor:
    """The null class, once for each of the labels y (B,)."""
    return torch.full_like(y, num_classes)  # the row behind 0 … num_classes - 1


def weights(logits: Tensor, seen: Tensor) -> Tensor:
    """Attention's weights, (…, N, M), 0 where ``seen`` is False."""
    return logits.masked_fill(~seen, -math.inf).softmax(-1)  # exp(-inf) = 0


def gates(logits: Tensor) -> Tensor:
    """Hard gates (B, E), 1 where a unit is on, that let a router learn."""
    soft = logits.sigmoid()
    return (logits > 0).to(soft) + (soft - soft.detach())  # value of the hard, slope of the soft


def total_loss(task: Tensor, p: Tensor, weight: float) -> Tensor:
    """The task's loss, and a term that makes a router's probabilities p (B, E) sharp."""
    entropy = -(p * p.log()).sum(-1).mean()
    return task + weight * entropy  # what shall get small is added


def kept(scores: Tensor, k: int) -> Tensor:
    """Of each image's N tokens the k with the largest scores (B, N): (B, N) bool."""
    best = scores.topk(k, dim=1).indices  # (B, k), image by image
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)


def run(layers: Sequence[Callable[[Tensor], Tensor]], on: Sequence[bool], x: Tensor) -> Tensor:
    """A residual network of which only some layers run."""
    for layer, gate in zip(layers, on, strict=True):
        if gate:
            x = x + layer(x)
    return x


def waves(t: Tensor, dim: int) -> Tensor:
    """The step t (B,) as waves from fast to slow: (B, dim)."""
    k = torch.arange(dim // 2)
    angles = t[:, None] * 10000.0 ** (-2 * k / dim)  # frequencies fall from 1 to nearly 1/10000
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def drop_labels(y: Tensor, prob: float, null: int) -> Tensor:
    """Labels y (B,), each replaced by ``null`` with a probability."""
    dropped = torch.rand(y.shape[0], device=y.device) < prob
    return torch.where(dropped, null, y)


def step_back(mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    """A draw from a Gaussian with this mean and this variance."""
    return mean + variance.sqrt() * noise  # Var(a ε) = a²


def positions(dim: int, height: int, width: int) -> Tensor:
    """Where each token of a grid stands, row by row: (height · width, dim)."""
    return sincos_pos_embed(dim, (height, width))
