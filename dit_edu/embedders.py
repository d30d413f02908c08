"""The condition's two embedders: the step t and the label y as vectors of width D.

The step becomes waves of many lengths and then passes an MLP. The label reads a row of a table,
which has one row more for "no label".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dit_edu._checks import check_positive_int


def alias(omega: Tensor) -> Tensor:
    """The slow wave that a fast one looks like when it is only seen at integer steps.

    For integer t, exp(iωt) = exp(i(ω - 2πn)t): a wave that turns by more than half a circle from
    one step to the next cannot be told from one that turns the other way, by less.

    Args:
        omega: frequencies in radians per step, any shape.

    Returns:
        ω - 2π · round(ω / 2π), in [-π, π], the same shape; frequencies up to π stay as they are.

    Source: Nyquist 1928; Shannon 1949, theorem 1.
    """
    return omega - 2 * math.pi * torch.round(omega / (2 * math.pi))


class TimestepEmbedder(nn.Module):
    """A step t as a vector: waves of many lengths, then a small MLP.

    Args:
        hidden_size: D.
        frequency_embedding_size: how many waves, an even number.

    Source: DiT (Peebles & Xie 2023); the waves are those of DDPM and, before it, of Transformers.
    """

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    @staticmethod
    def frequencies(dim: int, max_period: float = 10000.0) -> Tensor:
        """ω_k = max_period^(-k / (dim/2)) for k = 0 … dim/2 - 1: (dim/2,) float32."""
        k = torch.arange(dim // 2, dtype=torch.float32)  # (dim/2,)
        return torch.exp(-math.log(max_period) * k / (dim // 2))

    @staticmethod
    def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
        """cos(ω_k t) and then sin(ω_k t), with ω_k = max_period^(-k / (dim/2)).

        Args:
            t: steps, (B,), integers or floats.
            dim: how many numbers, even.
            max_period: sets the longest wave, 2π · max_period steps (almost).

        Returns:
            (B, dim) float32.
        """
        omega = TimestepEmbedder.frequencies(dim, max_period).to(t.device)  # (dim/2,)
        angles = t.float().unsqueeze(1) * omega  # (B, dim/2)
        return torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, dim)

    def forward(self, t: Tensor) -> Tensor:
        """``t`` (B,) → (B, D)."""
        waves = self.timestep_embedding(t, self.frequency_embedding_size)  # (B, 256)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))  # (B, D)


class LabelEmbedder(nn.Module):
    """A label as a vector, and one vector more for "no label": the null class, the last row.

    In training a label is dropped (replaced by the null class) with probability ``dropout_prob``:
    so one network learns with and without labels, which classifier-free guidance needs.

    Args:
        num_classes: how many labels.
        hidden_size: D.
        dropout_prob: chance of dropping a label in training, in [0, 1); with 0 there is no null
            row.

    Raises:
        ValueError: ``num_classes`` or ``dropout_prob`` is out of range.

    Source: Ho & Salimans 2022, algorithm 1; DiT (Peebles & Xie 2023).
    """

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        if not 0 <= dropout_prob < 1:
            raise ValueError(f"dropout_prob={dropout_prob} must lie in [0, 1).")
        self.num_classes = check_positive_int("num_classes", num_classes)
        self.dropout_prob = dropout_prob
        self.embedding_table = nn.Embedding(num_classes + (dropout_prob > 0), hidden_size)

    def drop(self, y: Tensor, force_drop_ids: Tensor | None = None) -> Tensor:
        """Replace some labels by the null class.

        Args:
            y: labels, (B,).
            force_drop_ids: (B,), 1 (or True) where the label must go; drawn at random if not given.

        Returns:
            (B,) labels.

        Raises:
            ValueError: there is no null class, because ``dropout_prob`` is 0.
        """
        if self.dropout_prob == 0:
            raise ValueError("dropout_prob=0, so there is no null class; allowed: above 0.")
        if force_drop_ids is None:
            dropped = torch.rand(len(y), device=y.device) < self.dropout_prob  # (B,)
        else:
            dropped = force_drop_ids.bool()  # (B,)
        return torch.where(dropped, self.num_classes, y)

    def forward(self, y: Tensor, force_drop_ids: Tensor | None = None) -> Tensor:
        """``y`` (B,) → (B, D); in training mode some labels are dropped."""
        if force_drop_ids is not None or (self.training and self.dropout_prob > 0):
            y = self.drop(y, force_drop_ids)
        return self.embedding_table(y)  # (B, D)
