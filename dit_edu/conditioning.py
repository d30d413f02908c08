"""Conditioning: how the noise level and the label reach every block.

Two embedders turn the step t and the label y into vectors of width D; their sum is the condition c.
A conditioning block takes tokens and c. In ``adaln-zero`` the condition sets shift, scale and gate
of each branch, and all three start at zero, so that an untrained block is the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dit_edu._checks import check_positive_int
from dit_edu.attention import Attention


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens by their sample's condition: x · (1 + scale) + shift.

    Args:
        x: tokens, (B, N, D).
        shift, scale: (B, D).

    Returns:
        (B, N, D).
    """
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)  # (B, D) -> (B, 1, D)


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


class Mlp(nn.Module):
    """The token-wise half of a block: D → r·D → D with a GELU (tanh form) between.

    Args:
        dim: D.
        hidden_dim: r·D.
        dropout: chance that a number is set to 0 in training, after each of the two maps.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        wide = self.drop(self.act(self.fc1(x)))  # (B, N, D) -> (B, N, rD)
        return self.drop(self.fc2(wide))  # (B, N, rD) -> (B, N, D)


class AdaLNZeroBlock(nn.Module):
    """A Transformer block whose norms, and whose very presence, are set by the condition.

    From c come six vectors: shift, scale and gate for attention, and the same for the MLP. The
    layer that makes them starts at zero: both gates are closed, and the block is the identity.

    Args:
        hidden_size: D.
        num_heads: h.
        mlp_ratio: r, the MLP's width over D.
        dropout: of the MLP, in training.

    Source: DiT (Peebles & Xie 2023), section 3.2 and figure 3.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def zero_init(self) -> None:
        """Close the gates: shift, scale and gate are 0 whatever c, so the block is the identity."""
        nn.init.zeros_(self.adaLN_modulation[-1].weight)
        nn.init.zeros_(self.adaLN_modulation[-1].bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens ``x`` (B, N, D) under condition ``c`` (B, D) → (B, N, D)."""
        six = self.adaLN_modulation(c).chunk(6, dim=1)  # (B, 6D) -> 6 x (B, D)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = six
        h = self.attn(modulate(self.norm1(x), shift_msa, scale_msa), cond=c)  # (B, N, D)
        x = x + gate_msa.unsqueeze(1) * h  # x + α₁ · Attention(γ₁, β₁)
        h = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))  # (B, N, D)
        return x + gate_mlp.unsqueeze(1) * h  # x + α₂ · MLP(γ₂, β₂)


BLOCKS = {"adaln-zero": AdaLNZeroBlock}
