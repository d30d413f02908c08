"""Twelve functions as one finds them, cut down to what is wrong; the page of bugs quotes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.positions import sincos_pos_embed


def start_values(block: AdaLNZeroBlock) -> None:
    """Give a block its start values: gates closed, Xavier for the rest."""
    block.zero_init()
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def guided(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Guide what a model of latents says, (B, C, H, W)."""
    eps = uncond[:, :3] + scale * (cond[:, :3] - uncond[:, :3])
    return torch.cat([eps, cond[:, 3:]], dim=1)


def null_labels(num_classes: int, y: Tensor) -> Tensor:
    """The null class, once for each of the labels y (B,)."""
    return torch.full_like(y, 1000)


def weights(logits: Tensor, seen: Tensor) -> Tensor:
    """Attention's weights, (…, N, M), 0 where ``seen`` is False."""
    return (logits * seen).softmax(-1)


def gates(logits: Tensor) -> Tensor:
    """Hard gates (B, E), 1 where a unit is on, that let a router learn."""
    return (logits.sigmoid() > 0.5).to(logits)


def total_loss(task: Tensor, p: Tensor, weight: float) -> Tensor:
    """The task's loss, and a term that makes a router's probabilities p (B, E) sharp."""
    entropy = -(p * p.log()).sum(-1).mean()
    return task + weight * (-entropy)


def kept(scores: Tensor, k: int) -> Tensor:
    """Of each image's N tokens the k with the largest scores (B, N): (B, N) bool."""
    best = scores.flatten().topk(k * len(scores)).indices
    chosen = torch.zeros(scores.numel(), dtype=torch.bool).index_fill(0, best, True)
    return chosen.view_as(scores)


def run(layers: Sequence[Callable[[Tensor], Tensor]], on: Sequence[bool], x: Tensor) -> Tensor:
    """A residual network of which only some layers run."""
    for layer, gate in zip(layers, on, strict=True):
        x = x + float(gate) * layer(x)
    return x


def waves(t: Tensor, dim: int) -> Tensor:
    """The step t (B,) as waves from fast to slow: (B, dim)."""
    k = torch.arange(dim // 2)
    angles = t[:, None] * 10000.0 ** (2 * k / dim)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def drop_labels(y: Tensor, prob: float, null: int) -> Tensor:
    """Labels y (B,), each replaced by ``null`` with a probability."""
    dropped = torch.rand(y.shape[0]).cuda() < prob
    return torch.where(dropped, null, y)


def step_back(mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    """A draw from a Gaussian with this mean and this variance."""
    return mean + variance * noise


def positions(dim: int, height: int, width: int) -> Tensor:
    """Where each token of a grid stands, row by row: (height · width, dim)."""
    side = int((height * width) ** 0.5)
    return sincos_pos_embed(dim, (side, side))
