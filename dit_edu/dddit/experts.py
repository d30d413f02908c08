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
from dit_edu.bands import even_edges
from dit_edu.branches import Mlp
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dddit.router import Router, TopK
from dit_edu.dddit.slices import keep_channels
from dit_edu.dddit.switched import branch
from dit_edu.dispatch import run_on
from dit_edu.dit import DiT
from dit_edu.routing import report

#: Who asks the router. For ``"band"`` there is none: each expert has its part of the steps.
ASKERS = ("band", "step", "image", "token")


class Bands(nn.Module):
    """Logits that leave no choice: each of E units has one E-th of the steps.

    Args:
        units: E.

    Source: Balaji et al. 2022 (eDiff-I), where whole networks share the steps.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.edges = even_edges(units)

    def forward(self, t: Tensor) -> Tensor:
        """Steps (B,) → logits (B, E): 0 for the unit whose band it is, -∞ for the others."""
        edges = torch.tensor(self.edges, device=t.device)
        band = torch.bucketize(t.float(), edges, right=True)  # (B,)
        return F.one_hot(band, len(edges) + 1).float().log()  # (B,) -> (B, E)


class Experts(nn.Module):
    """E routed MLPs, of which k run for each item, and a shared one.

    Args:
        shared: the :class:`~dit_edu.branches.Mlp` that always runs.
        experts: E more, all D → D and of one width.
        keep: k, 1 to E; with bands 1.
        asks: one of ``ASKERS``.
        noise, unbiased: of the choice, see :class:`~dit_edu.dddit.router.TopK`.

    Raises:
        TypeError, ValueError: ``keep`` does not fit, or ``asks`` is unknown.
    """

    def __init__(
        self,
        shared: nn.Module,
        experts: list[nn.Module],
        keep: int,
        asks: str,
        noise: float = 1.0,
        unbiased: bool = False,
    ) -> None:
        super().__init__()
        most = 1 if check_choice("asks", asks, ASKERS) == "band" else len(experts)
        if check_positive_int("keep", keep) > most:
            raise ValueError(
                f"keep={keep} of {len(experts)} experts with asks={asks!r}; allowed: 1 to {most}."
            )
        self.shared, self.asks = shared, asks
        self.experts = nn.ModuleList(experts)
        self.choice = TopK(keep, noise, unbiased=unbiased)
        self.router: nn.Module = Bands(len(experts))
        if asks != "band":  # tokens ask so often that their router has to be small
            dim = shared.fc1.in_features
            self.router = Router(dim, len(experts), hidden=asks != "token")

    @classmethod
    def from_mlp(
        cls,
        mlp: nn.Module,
        experts: int,
        keep: int = 1,
        shared: float = 0.5,
        asks: str = "image",
        **choice: Any,
    ) -> Experts:
        """Experts that say what an MLP says, whichever are chosen, until they have learned.

        A share of its hidden channels becomes the shared expert; the rest is copied E times. With
        k = 1 the MACs are those of the MLP and the router.

        Args:
            mlp: a :class:`~dit_edu.branches.Mlp`; it stays as it is.
            experts: E.
            keep: k.
            shared: the share, in (0, 1).
            asks: one of ``ASKERS``.
            choice: ``noise`` and ``unbiased``, as for the class.

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
        found = cls(_channels(mlp, slice(cut)), copies, keep, asks, **choice)
        return found.to(mlp.fc1.weight)  # its dtype and device

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        """Work on tokens.

        Args:
            x: tokens, (B, N, D).
            told: what the router is asked with, where tokens do not ask: (B, D), or steps (B,).

        Returns:
            (B, N, D).
        """
        by_token = self.asks == "token"
        flat = x.flatten(0, 1) if by_token else x  # (B, N, D) -> (B·N, D): tokens are the items
        choice = self.choice(self.router(flat if by_token else told))  # (items, E)
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
        asks: ``"step"``, ``"image"`` (its step and label) or ``"token"``; or ``"band"``.
        noise, unbiased: of the choices, see :class:`~dit_edu.dddit.router.TopK`.
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
        unbiased: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if self.kind is not AdaLNZeroBlock:
            kind = settings["conditioning"]
            raise ValueError(f"conditioning={kind!r} of an ExpertDiT; allowed: 'adaln-zero'.")
        self.asks = asks
        self.split = partial(
            Experts.from_mlp,
            experts=experts,
            keep=keep,
            shared=shared,
            asks=asks,
            noise=noise,
            unbiased=unbiased,
        )
        for block in self.blocks:
            block.mlp = self.split(block.mlp)

    def upcycle(self, dense: DiT) -> ExpertDiT:
        """Take the weights of a trained model without experts, and begin as that model.

        Args:
            dense: of the same sizes; it stays as it is.

        Returns:
            This model, whose experts are copies of a part of an MLP, and whose routers are fresh.

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
            told = {"band": t, "step": emb, "image": c, "token": None}[self.asks]
            x = x + branch(block, False, x, c)  # attention
            return x + branch(block, True, x, c, partial(block.mlp, told=told))

        return [partial(run, block) for block in self.blocks]


def _channels(mlp: Mlp, which: slice) -> Mlp:
    """The same MLP with some of its hidden channels: a copy."""
    part = copy.deepcopy(mlp)
    keep_channels(part, which)
    return part


def _add(expert: Mlp, out: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    """out + g · expert(x)."""
    return out + gate * expert(x)
