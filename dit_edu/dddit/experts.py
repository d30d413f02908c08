"""Experts: several MLPs in place of one, of which a few run, and one that always does.

Who asks the router decides how work is shared: the step (then a batch that shares its step shares
its path), the condition of an image, or each token. Only chosen experts run, in every case, and
however many ask for one of them, nobody is sent away::

    y = shared(x) + 1/k Σ_e g_e expert_e(x),    g_e = 1 for the k that were chosen, 0 for the rest.

A model with experts computes as much as one without, and holds more parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.branches import Mlp
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dddit.router import Router, TopK
from dit_edu.dddit.switched import branch
from dit_edu.dispatch import run_on
from dit_edu.dit import DiT
from dit_edu.routing import report

#: Who asks the router. For ``"band"`` there is none: each expert has its part of the steps.
ASKERS = ("band", "step", "image", "token")


class Bands(nn.Module):
    """Logits that leave no choice: of T steps, each of E units has one E-th.

    Args:
        units: E.
        steps: T.

    Source: Balaji et al. 2022 (eDiff-I), where whole networks share the steps.
    """

    def __init__(self, units: int, steps: int = 1000) -> None:
        super().__init__()
        self.units, self.steps = check_positive_int("units", units), steps

    def forward(self, t: Tensor) -> Tensor:
        """Steps (B,) → logits (B, E): 0 for the unit whose band it is, -∞ for the others."""
        band = (t * self.units / self.steps).long().clamp(0, self.units - 1)  # (B,)
        return F.one_hot(band, self.units).float().log()  # (B,) -> (B, E)


class Experts(nn.Module):
    """E routed MLPs, of which k run for each item, and a shared one.

    Args:
        shared: the :class:`~dit_edu.branches.Mlp` that always runs.
        experts: E more, all D → D and of one width.
        keep: k, 1 to E.
        noise: of the choice, in training.
        router: from what asks to logits; by default one that learns.

    Raises:
        TypeError, ValueError: ``keep`` is not from 1 to E.
    """

    def __init__(
        self,
        shared: nn.Module,
        experts: list[nn.Module],
        keep: int,
        noise: float = 1.0,
        router: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if check_positive_int("keep", keep) > len(experts):
            raise ValueError(f"keep={keep} of {len(experts)} experts; allowed: 1 to E.")
        self.shared = shared
        self.experts = nn.ModuleList(experts)
        self.router = router or Router(shared.fc1.in_features, len(experts))
        self.choice = TopK(keep, noise)

    @classmethod
    def from_mlp(
        cls,
        mlp: nn.Module,
        experts: int,
        keep: int = 1,
        shared: float = 0.5,
        noise: float = 1.0,
        router: nn.Module | None = None,
    ) -> Experts:
        """Experts that say what an MLP says, whichever are chosen, until they have learned.

        A share of its hidden channels becomes the shared expert; the rest is copied E times. With
        k = 1 the MACs are those of the MLP and the router.

        Args:
            mlp: a :class:`~dit_edu.branches.Mlp`; it stays as it is.
            experts: E.
            keep: k.
            shared: the share, in (0, 1).
            noise, router: as for the class.

        Raises:
            ValueError: ``shared`` leaves no channel to one of the two.
        """
        width = mlp.fc1.out_features
        cut = round(shared * width)
        if not 0 < cut < width:
            raise ValueError(f"shared={shared} of {width} channels; allowed: some, and not all.")
        rest = _channels(mlp, slice(cut, None))
        nn.init.zeros_(rest.fc2.bias)  # the shared expert has it
        copies = [copy.deepcopy(rest) for _ in range(check_positive_int("experts", experts))]
        found = cls(_channels(mlp, slice(cut)), copies, keep, noise, router)
        return found.to(mlp.fc1.weight)  # its dtype and device

    def forward(self, x: Tensor, asks: Tensor | None = None) -> Tensor:
        """Work on tokens.

        Args:
            x: tokens, (B, N, D).
            asks: what the router is given, (B, D) or what suits it: images choose. Without it each
                token chooses for itself.

        Returns:
            (B, N, D).
        """
        by_token = asks is None
        flat, asks = (x.flatten(0, 1), x.flatten(0, 1)) if by_token else (x, asks)
        choice = self.choice(self.router(asks))  # (items, E)
        shape = x.shape[:2] if by_token else x.shape[:1]
        macs = 2 * self.experts[0].fc1.weight.numel() * (1 if by_token else x.shape[1])
        report(
            self,
            choice.chosen.view(*shape, -1),  # (B, E) or (B, N, E)
            choice.soft.view(*shape, -1),
            torch.full((len(self.experts),), macs),
        )
        out = self.shared(flat)  # (items, …, D)
        for expert, gate, items in zip(
            self.experts, choice.gates.T / self.choice.k, choice.items(), strict=True
        ):
            weight = gate.to(x).view(-1, *(1 for _ in flat.shape[1:]))  # (items, 1, …)
            out = run_on(items, partial(_add, expert), out, flat, weight)
        return out.view_as(x)


class ExpertDiT(DiT):
    """A Diffusion Transformer whose blocks have experts in place of their MLPs.

    Args:
        experts: E, of each block.
        keep: k.
        shared: the share of the MLP's channels that always runs.
        asks: ``"step"``, ``"image"`` (its step and label) or ``"token"``; or ``"band"``, where
            nobody asks: each expert has a part of the steps.
        noise: of the choices, in training.
        **settings: as for :class:`~dit_edu.dit.DiT`, ``conditioning`` aside.

    Raises:
        TypeError, ValueError: an argument does not fit, see :class:`Experts`.
    """

    def __init__(
        self,
        *,
        experts: int = 4,
        keep: int = 1,
        shared: float = 0.5,
        asks: str = "image",
        noise: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if self.kind is not AdaLNZeroBlock:
            kind = settings["conditioning"]
            raise ValueError(f"conditioning={kind!r} of an ExpertDiT; allowed: 'adaln-zero'.")
        if check_choice("asks", asks, ASKERS) == "band" and keep != 1:
            raise ValueError(f"keep={keep} with asks='band'; allowed: 1.")
        self.asks = asks
        router = Bands(experts) if asks == "band" else None
        self.split = partial(
            Experts.from_mlp,
            experts=experts,
            keep=keep,
            shared=shared,
            noise=noise,
            router=router,
        )
        for block in self.blocks:
            block.mlp = self.split(block.mlp)

    def upcycle(self, dense: DiT) -> ExpertDiT:
        """Take the weights of a trained model without experts, and begin as that model.

        Args:
            dense: of the same sizes; it stays as it is.

        Returns:
            This model: every expert is a copy of its part of an MLP, and the routers are fresh.

        Raises:
            RuntimeError: a size differs.

        Source: Komatsuzaki et al. 2023.
        """
        dense = copy.deepcopy(dense)
        for block in dense.blocks:
            block.mlp = self.split(block.mlp)
        self.load_state_dict(dense.state_dict())
        return self

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks, whose routers are asked by the step, the condition, or the tokens.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """

        def run(block: AdaLNZeroBlock, x: Tensor, c: Tensor) -> Tensor:
            asks = {"band": t, "step": emb, "image": c, "token": None}[self.asks]
            x = x + branch(block, False, x, c)  # attention
            return x + branch(block, True, x, c, partial(block.mlp, asks=asks))

        return [partial(run, block) for block in self.blocks]


def _channels(mlp: Mlp, which: slice) -> Mlp:
    """The same MLP with some of its hidden channels: a copy."""
    part = copy.deepcopy(mlp)
    part.fc1.weight = nn.Parameter(mlp.fc1.weight.detach()[which].clone())  # (w, D)
    part.fc1.bias = nn.Parameter(mlp.fc1.bias.detach()[which].clone())
    part.fc2.weight = nn.Parameter(mlp.fc2.weight.detach()[:, which].clone())  # (D, w)
    part.fc1.out_features = part.fc2.in_features = len(part.fc1.bias)
    return part


def _add(expert: Mlp, out: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    """out + g · expert(x)."""
    return out + gate * expert(x)
