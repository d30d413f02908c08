"""Bands of the noise level: a denoiser for each, as one denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.dispatch import assign, run_on


def even_edges(bands: int, num_timesteps: int = 1000) -> list[float]:
    """Where equally wide bands of t meet: ``bands`` - 1 numbers.

    Args:
        bands: K.
        num_timesteps: T.

    Raises:
        TypeError, ValueError: ``bands`` is no positive integer.

    Example:
        >>> even_edges(4)
        [250.0, 500.0, 750.0]
    """
    check_positive_int("bands", bands)
    return [num_timesteps * k / bands for k in range(1, bands)]


class ByNoise(nn.Module):
    """A denoiser for each band of t, as one denoiser; every image is computed once.

    Args:
        models: K, for the bands from low noise to high.
        edges: where bands meet, K - 1 increasing steps; model k works where
            edges[k - 1] <= t < edges[k].

    Attributes:
        edges: as above.
        in_channels, input_size, num_classes, class_dropout_prob: of the first model.

    Raises:
        ValueError: there are no models, or the edges are not K - 1 increasing numbers.
    """

    def __init__(self, models: Sequence[nn.Module], edges: Sequence[float]) -> None:
        super().__init__()
        if not models:
            raise ValueError("models is empty; allowed: one or more.")
        increasing = all(a < b for a, b in pairwise(edges))
        if len(edges) != len(models) - 1 or not increasing:
            raise ValueError(f"edges={list(edges)}; allowed: {len(models) - 1}, increasing.")
        self.models = nn.ModuleList(models)
        self.edges = tuple(edges)
        first = models[0]
        self.in_channels, self.input_size = first.in_channels, first.input_size
        self.num_classes = first.num_classes
        self.class_dropout_prob = first.class_dropout_prob

    def chosen(self, t: Tensor) -> Tensor:
        """Which model works at steps t (B,): (B, K) bool, one True in each row."""
        edges = torch.tensor(self.edges, dtype=torch.float32, device=t.device)
        band = torch.bucketize(t.float(), edges, right=True)  # (B,)
        return band[:, None] == torch.arange(len(self.models), device=t.device)  # (B, K)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """As the models: ``x`` (B, C, H, W), ``t`` (B,), ``y`` (B,) → (B, out, H, W)."""
        out = x
        for model, items in zip(self.models, assign(self.chosen(t)), strict=True):
            out = run_on(items, lambda _, x, t, y, f=model: f(x, t, y), out, x, t, y)
        return out

    def null_condition(self, y: Tensor) -> Tensor:
        """As the models'."""
        return self.models[0].null_condition(y)
