"""A budget for each image: from its caption, or from what can be seen of it through the noise.

A *policy* gives each image a share b of the depth; the first k = round(b L) blocks run for it, at
least one. The choice is hard, and yet a gradient reaches the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dddit.complexity import LearnedMeasure, SpectralMeasure
from dit_edu.dddit.depth import DepthDiT, towards
from dit_edu.dddit.router import Router, Switches
from dit_edu.diffusion import GaussianDiffusion
from dit_edu.dispatch import Items, run_on
from dit_edu.embedders import TimestepEmbedder
from dit_edu.text import TextEncoder

CERTAIN = 30.0  # the logit of a block that runs whatever the budget
START, PACE, GAIN = 2.5, 3.0, 0.3  # what budgets start with (nearly all), how fast, how unequal


def depth_logits(budget: Tensor, layers: int, floor: int = 1) -> Tensor:
    """How far above its threshold the budget is for each block: b L + 1/2 - j, for j = 1 … L.

    Block j runs where that is positive, so round(b L) blocks do; and the first ones always.

    Args:
        budget: b, (B,).
        layers: L.
        floor: how many blocks run whatever the budget.

    Returns:
        (B, L).
    """
    j = torch.arange(1, layers + 1).to(budget)  # (L,)
    logits = (budget * layers)[:, None] + 0.5 - j  # (B, L)
    return torch.where(j <= floor, CERTAIN, logits)


# ---------------------------------------------------------------------- policies


class TextBudget(nn.Module):
    """From the words of a caption: b = sigmoid(router(encoder(words))).

    Args:
        encoder: maps word numbers (B, M) to (B, ``encoder.width``), whatever the padding; a
            :class:`~dit_edu.text.TextEncoder` or a :class:`~dit_edu.text.ClipEncoder`.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.router = Router(encoder.width, 1, START, PACE)

    def forward(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        """Words ``told`` (B, M) → (B,); neither image nor step are looked at."""
        return self.router(self.encoder(told)).squeeze(1).sigmoid()


class ContentBudget(nn.Module):
    """From the noisy image: b = sigmoid(g(t) z(x_t, t) + o(t)).

    How much the measure z is worth, and what is given without it, are learnt functions of the
    step: through much noise hardly anything can be seen.

    Args:
        measure: ``measure(x, t)`` says how complex images are, (B,).
        centre, scale: taken off z and multiplied with it, so that images differ by about 1.
    """

    WAVES = 32

    def __init__(self, measure: nn.Module, centre: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.measure, self.centre, self.scale = measure, centre, scale
        self.router = Router(self.WAVES, 2, pace=PACE)
        self.router.mlp[-1].bias.data = torch.tensor([GAIN, START]) / PACE

    def forward(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        """``x`` (B, C, H, W) at steps ``t`` (B,) → (B,); nothing has to be told."""
        z = (self.measure(x, t) - self.centre) * self.scale  # (B,)
        waves = TimestepEmbedder.timestep_embedding(t, self.WAVES).to(x)  # (B, 32)
        gain, offset = self.router(waves).unbind(1)  # (B,) each
        return (gain * z + offset).sigmoid()


class GivenBudget(nn.Module):
    """What the caller says: ``told`` (B, 1) is the number of blocks.

    Args:
        layers: L.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        """``told`` (B, 1) → (B,)."""
        return told[:, 0].to(x) / self.layers


# ---------------------------------------------------------------------- the model

POLICIES = ("given", "text", "spectrum", "estimate")


class BudgetedDiT(DepthDiT):
    """A Diffusion Transformer in which a policy says how many blocks each image goes through.

    Its condition y is (B, 1 + M): the label, and then what the policy is told: M words, or a number
    of blocks, or (M = 0) nothing. The blocks see the label alone.

    Args:
        policy: ``policy(x, t, told)`` gives budgets (B,) in (0, 1]; or the name of one, a key of
            ``POLICIES``. By name, ``"spectrum"`` knows the cosine schedule of 1000 steps.
        words: of the vocabulary, where the policy is ``"text"``.
        **settings: as for :class:`~dit_edu.dddit.depth.DepthDiT`, ``drawn`` and ``routed`` aside.

    Raises:
        TypeError, ValueError: an argument is not allowed.
    """

    def __init__(self, *, policy: str | nn.Module, words: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        if self.kind is not AdaLNZeroBlock:
            raise ValueError("a BudgetedDiT needs conditioning='adaln-zero'.")
        if isinstance(policy, str):
            policy = self._policy(check_choice("policy", policy, POLICIES), words)
        self.policy = policy
        self.num_classes = max(self.num_classes, words)  # the largest number allowed in y
        learns = any(p.requires_grad for p in policy.parameters())
        self.choice = Switches(noise=0.0, heard=learns)
        self._budgets: Tensor | None = None  # (B,), of the pass at hand

    def _policy(self, name: str, words: int) -> nn.Module:
        if name == "given":
            return GivenBudget(len(self.blocks))
        if name == "text":
            return TextBudget(TextEncoder(words, width=32))
        if name == "estimate":
            return ContentBudget(LearnedMeasure(self.in_channels))
        alphas_cumprod = GaussianDiffusion.cosine(1000).alphas_cumprod
        return ContentBudget(SpectralMeasure(alphas_cumprod), centre=0.15, scale=20.0)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """``x`` (B, C, H, W), ``t`` (B,), ``y`` (B, 1 + M) → (B, C, H, W).

        Raises:
            ValueError: a shape does not fit.
        """
        if y.ndim != 2:
            raise ValueError(f"y has shape {tuple(y.shape)}; allowed: (B, 1 + M).")
        self._budgets = self.policy(x, t, y[:, 1:])  # (B,)
        try:
            return super().forward(x, t, y[:, 0])
        finally:
            self._budgets = None

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks, each for the images whose budget reaches it.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """
        place = torch.tensor(self.order).argsort()  # (L,), of each block in the order
        logits = depth_logits(self._budgets, len(self.blocks), self.floor)[:, place]  # (B, L)
        choice = self.choice(logits)
        self._tell(choice.chosen, choice.soft)
        return [
            partial(_gated, block, gate, items)
            for block, gate, items in zip(self.blocks, choice.gates.T, choice.items(), strict=True)
        ]

    def null_condition(self, y: Tensor) -> Tensor:
        """No label, and the same budget: both passes of guidance are equally deep."""
        super().null_condition(y)  # where there is no null class, it says so
        label = torch.full_like(y[:, :1], self.y_embedder.num_classes)
        return torch.cat([label, y[:, 1:]], dim=1)


def _gated(block: nn.Module, gate: Tensor, items: Items, x: Tensor, c: Tensor) -> Tensor:
    return run_on(items, partial(towards, block), x, c, gate[:, None, None])
