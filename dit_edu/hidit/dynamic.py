"""A router on the step picks k of the L blocks; the others do not run.

The number of blocks is fixed, and so is the cost; which ones they are may differ from step to step.
A model of L blocks then holds the parameters of L and computes with k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_edu.dispatch import Items, assign, gumbel_like, run_on, straight_through, top_k
from dit_edu.dit import DiT
from dit_edu.routing import report
from dit_edu.scaling import Architecture


class StepRouter(nn.Module):
    """Scores of L layers at a step: a linear map of its embedding, behind an activation.

    Args:
        dim: D.
        layers: L.
    """

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, layers)

    def forward(self, t: Tensor) -> Tensor:
        """Embeddings of steps (B, D) → logits (B, L)."""
        return self.linear(F.silu(t))


class DynamicDiT(DiT):
    """A Diffusion Transformer that runs ``keep`` of its blocks, chosen by the step.

    Args:
        keep: k, 1 to ``depth``; None runs them all, without a router.
        noise: how much Gumbel noise the router's logits get in training; 0 for none.
        **settings: as for :class:`~dit_edu.dit.DiT`.

    Attributes:
        router: it is the only thing that a DiT does not have; with ``keep = depth`` both compute
            the same.

    Raises:
        TypeError, ValueError: ``keep`` is not from 1 to ``depth``, ``noise`` is negative, or as for
            DiT.
    """

    def __init__(self, *, keep: int | None, noise: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        if not noise >= 0:
            raise ValueError(f"noise={noise}; allowed: at least 0.")
        self.keep, self.noise = keep, noise
        self.architecture = Architecture.of(settings)
        self.router = None
        if keep is not None:
            top_k(torch.empty(len(self.blocks)), keep)  # is there such a choice?
            self.router = StepRouter(self.t_embedder.mlp[-1].out_features, len(self.blocks))
            nn.init.zeros_(self.router.linear.bias)

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks, each for the images that chose it.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """
        if self.router is None:
            return super().layers(t, emb)
        logits = self.router(emb)  # (B, L)
        tried = logits + self.noise * gumbel_like(logits) if self.training else logits
        chosen = top_k(tried, self.keep)  # (B, L)
        soft = logits.softmax(-1)  # (B, L)
        report(self, chosen, soft, self.layer_macs())
        gates = straight_through(chosen, soft)  # (B, L), 0 or 1
        return [
            partial(_run_layer, block, items, gate)
            for block, gate, items in zip(self.blocks, gates.T, assign(chosen), strict=True)
        ]

    def layer_macs(self) -> Tensor:
        """Multiply-adds of each layer for one image, (L,)."""
        sizes = replace(self.architecture, input_size=self.input_size)
        return torch.full((len(self.blocks),), sizes.each_block)


def _run_layer(block: nn.Module, items: Items, gate: Tensor, x: Tensor, told: Tensor) -> Tensor:
    """Tokens ``x`` (B, N, D) → the same, moved by a gate (B,) towards what the block says."""

    def step(x: Tensor, told: Tensor, gate: Tensor) -> Tensor:
        return torch.lerp(x, block(x, told), gate)  # x + g · (Block(x) - x)

    return run_on(items, step, x, told, gate.to(x)[:, None, None])  # (B,) -> (B, 1, 1)
