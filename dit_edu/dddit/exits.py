"""Early exit: an image leaves the network as soon as its answer stops changing.

The final layer can read the tokens after any block. A model that was trained so that all these
answers are good may stop at any of them; where, is seen from the answers themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dddit.depth import DepthDiT
from dit_edu.dispatch import run_on
from dit_edu.interpolant import Interpolant
from dit_edu.patchify import unpatchify
from dit_edu.routing import report


class ExitDiT(DepthDiT):
    """A Diffusion Transformer that asks its final layer after every block, and stops in time.

    Args:
        threshold: an image leaves after the first block that moved its answer by less, in mean
            square; None lets every image go through.
        **settings: as for :class:`~dit_edu.dddit.depth.DepthDiT`; the order is that of the depth.

    Attributes:
        threshold: it may be set at any time, and counts in evaluation where no budget is set.

    Raises:
        TypeError, ValueError: ``threshold`` is negative, the conditioning is not ``"adaln-zero"``,
            or as for DepthDiT.

    Source: Teerapittayanon, McDanel & Kung 2016, for branches that end early.
    """

    def __init__(self, *, threshold: float | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if self.kind is not AdaLNZeroBlock:
            raise ValueError("an ExitDiT needs conditioning='adaln-zero'.")
        if self.order != sorted(self.order):
            raise ValueError(f"order={self.order} of an ExitDiT; allowed: None.")
        if threshold is not None and not threshold >= 0:
            raise ValueError(f"threshold={threshold}; allowed: at least 0, or None.")
        self.threshold = threshold

    def head_macs(self) -> int:
        """Multiply-adds of one look at the answer, for one image."""
        dim, out = self.final_layer.linear.in_features, self.final_layer.linear.out_features
        return dim * out * math.prod(self.x_embedder.grid) + 2 * dim * dim  # D p²C N + 2 D²

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks, each for the images that are still there.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """
        if self.training or self.threshold is None or self.depth_budget is not None:
            return super().layers(t, emb)
        walk = _Walk(self, len(t), t.device)
        return [partial(walk.go, i, block) for i, block in enumerate(self.blocks)]


class _Walk:
    """One pass of a batch: who is still in, and what was last said."""

    def __init__(self, model: ExitDiT, n: int, device: torch.device) -> None:
        self.model, self.n = model, n
        self.inside = torch.arange(n, device=device)  # (b,)
        self.said: Tensor | None = None  # (b, N, p·p·out)
        self.ran = torch.zeros(n, len(model.blocks), dtype=torch.bool, device=device)  # (B, L)

    def go(self, number: int, block: nn.Module, x: Tensor, c: Tensor) -> Tensor:
        """Block ``number`` for those inside; then those whose answer hardly moved leave."""
        inside = slice(None) if len(self.inside) == self.n else self.inside
        x = run_on(inside, block, x, c)  # (B, N, D)
        self.ran[self.inside, number] = True
        last = number + 1 == len(self.model.blocks)
        if not last and number + 1 >= self.model.floor and len(self.inside):
            self.leave(self.model.final_layer(x[inside], c[inside]))
        if last:
            macs = torch.tensor(self.model.block_macs())  # (L,)
            macs[self.model.floor - 1 : -1] += self.model.head_macs()
            report(self.model, self.ran, self.ran.float(), macs)
        return x

    def leave(self, says: Tensor) -> None:
        """Those stay whose answer ``says`` (b, N, p·p·out) is not the last one."""
        if self.said is not None:
            moved = (says - self.said).square().mean((1, 2))  # (b, N, p*p*out) -> (b,)
            stay = moved >= self.model.threshold
            self.inside, says = self.inside[stay], says[stay]
        self.said = says


def answers(model: DepthDiT, x: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
    """What the model says after each block, from its floor on: L - floor + 1 of (B, out, H, W).

    Args:
        model: it goes through all its blocks.
        x, t, y: as for :class:`~dit_edu.dit.DiT`.
    """
    found: list[Tensor] = []

    def ask(_: nn.Module, given: tuple[Tensor, Tensor], tokens: Tensor) -> None:
        says = model.final_layer(tokens, given[1])  # (B, N, p*p*out)
        found.append(unpatchify(says, model.patch_size, model.x_embedder.grid))

    hooks = [b.register_forward_hook(ask) for b in model.blocks[model.floor - 1 : -1]]
    try:
        end = model(x, t, y)  # it fills the list
        return [*found, end]
    finally:
        for hook in hooks:
            hook.remove()


def exit_losses(
    model: DepthDiT, process: Interpolant, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """A loss for the training loop: the mean of the losses of all answers.

    ``mse`` is that of the last one. See :data:`dit_edu.lab.train.LossFn`.
    """
    said = answers(model, process.q_sample(x0, t, noise), t, y)
    losses = [process.losses(lambda *_, out=out: out, x0, t, y, noise=noise) for out in said]
    return {**losses[-1], "loss": torch.stack([part["loss"] for part in losses]).mean(0)}
