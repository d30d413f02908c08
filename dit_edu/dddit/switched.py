"""A Diffusion Transformer whose branches are switched by the condition.

Each block has two branches, attention and MLP; a router on c says for each of the 2L whether it
runs. It is the plainest model on which routers can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_edu.conditioning import AdaLNZeroBlock, modulate
from dit_edu.dddit.router import Choice, Router, Switches, TopK
from dit_edu.dispatch import Items, run_on
from dit_edu.dit import DiT
from dit_edu.routing import report


def branch(
    block: AdaLNZeroBlock,
    mlp: bool,
    x: Tensor,
    c: Tensor,
    run: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """What attention, or the MLP, of a block adds to its tokens.

    Of the layer that makes six vectors of the condition only the branch's half is used, so a branch
    that is off costs nothing at all.

    Args:
        block: whose branch.
        mlp: the MLP, or else attention.
        x: tokens, (B, N, D).
        c: conditions, (B, D).
        run: maps tokens to tokens in place of the block's attention or MLP: a part of it, say.

    Returns:
        (B, N, D); the block is x + branch(attention), and then that + branch(MLP).
    """
    silu, six = block.adaLN_modulation
    half = len(six.bias) // 2  # 3D
    mine = slice(half, None) if mlp else slice(half)
    three = F.linear(silu(c), six.weight[mine], six.bias[mine])  # (B, D) -> (B, 3D)
    shift, scale, gate = three.chunk(3, dim=1)  # 3 x (B, D)
    told = modulate((block.norm2 if mlp else block.norm1)(x), shift, scale)  # (B, N, D)
    if run is None:
        run = block.mlp if mlp else partial(block.attn, cond=c)
    return gate.unsqueeze(1) * run(told)  # (B, N, D)


class SwitchedDiT(DiT):
    """A Diffusion Transformer whose 2L branches run only where the router says so.

    Units 2l and 2l + 1 are attention and MLP of block l.

    Args:
        keep: how many branches run, a competition; None where each is switched by itself, and a
            loss has to keep the number down (:class:`~dit_edu.dddit.router.BudgetedLosses`).
        bias: what the router's logits start with. In evaluation a fresh model with switches runs
            everything if it is above 0.
        pace: of the router.
        noise: of the choice, in training.
        temperature: of the switches.
        heard: in training, compute what is off too, so that it is heard.
        **settings: as for :class:`~dit_edu.dit.DiT`, ``conditioning`` aside.

    Attributes:
        router, choice: from c to logits, and from logits to what runs.

    Raises:
        TypeError, ValueError: an argument does not fit, see
            :class:`~dit_edu.dddit.router.Switches` and :class:`~dit_edu.dddit.router.TopK`.
    """

    def __init__(
        self,
        *,
        keep: int | None = None,
        bias: float = 3.0,
        pace: float = 0.1,
        noise: float = 1.0,
        temperature: float = 1.0,
        heard: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if self.kind is not AdaLNZeroBlock:
            kind = settings["conditioning"]
            raise ValueError(f"conditioning={kind!r} of a SwitchedDiT; allowed: 'adaln-zero'.")
        units = 2 * len(self.blocks)
        self.router = Router(self.t_embedder.mlp[-1].out_features, units, bias, pace)
        if keep is None:
            self.choice = Switches(noise, temperature, heard)
        elif keep > units:
            raise ValueError(f"keep={keep} of {units} branches; allowed: 1 to {units}.")
        else:
            self.choice = TopK(keep, noise, heard)

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """A layer that only decides, since it is the first to be told c; then the blocks.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """
        plan: list[tuple[Tensor, Items]] = []  # of each branch, once it is decided

        def decide(x: Tensor, c: Tensor) -> Tensor:
            choice = self.choose(c)
            plan.extend(zip(choice.gates.T, choice.items(), strict=True))
            return x

        def run(number: int, block: AdaLNZeroBlock, x: Tensor, c: Tensor) -> Tensor:
            for mlp in (False, True):
                gate, items = plan[2 * number + mlp]
                step = partial(_add, block, mlp)
                x = run_on(items, step, x, c, gate.to(x)[:, None, None])  # (B,) -> (B, 1, 1)
            return x

        return [decide, *(partial(run, i, block) for i, block in enumerate(self.blocks))]

    def choose(self, c: Tensor) -> Choice:
        """What runs under conditions c (B, D); whoever records is told."""
        choice = self.choice(self.router(c))
        report(self, choice.chosen, choice.soft, self.branch_macs())
        return choice

    def branch_macs(self) -> Tensor:
        """Multiply-adds of each branch for one image, (2L,)."""
        mlp = self.blocks[0].mlp.fc1
        d, wide, n = mlp.in_features, mlp.out_features, math.prod(self.x_embedder.grid)
        attention = 4 * d * d * n + 2 * n * n * d  # four maps, and all pairs twice
        own = 3 * d * d  # of the layer that makes shift, scale and gate
        return torch.tensor([attention + own, 2 * d * wide * n + own]).repeat(len(self.blocks))


def _add(block: AdaLNZeroBlock, mlp: bool, x: Tensor, c: Tensor, gate: Tensor) -> Tensor:
    """x + g · branch(x)."""
    return x + gate * branch(block, mlp, x, c)
