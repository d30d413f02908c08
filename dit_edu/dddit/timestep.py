"""How much width, by the step: light, base and heavy versions of a network, part of each other.

The light network is the first quarter of the heads and of the MLPs' channels, the base one the
first half, the heavy one everything. Which of them an image passes is read off its step: from a
table of *bands*, or by a *gate* that is trained. Images that share a step share a path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dddit.depth import DRAWN
from dit_edu.dddit.router import Choice, Router, TopK
from dit_edu.dddit.slices import (
    channel_macs,
    head_macs,
    keep_channels,
    keep_heads,
    some_channels,
    some_heads,
)
from dit_edu.dddit.switched import branch
from dit_edu.dispatch import run_on
from dit_edu.dit import DiT
from dit_edu.routing import report

#: Each width is a share of the heads and of the MLPs' channels; the narrowest comes first.
WIDTHS = {"light": 0.25, "base": 0.5, "heavy": 1.0}


class TimestepDiT(DiT):
    """A Diffusion Transformer that is as wide as the step asks.

    Args:
        bands: keys of ``WIDTHS``, one for each of as many equal ranges of t, low noise first;
            None makes all heavy.
        drawn: how training picks the width: ``"batch"`` draws one for all images, ``"image"`` one
            for each; None takes what evaluation takes.
        gated: let a router on the step's embedding choose, where no bands are set. In training
            all three widths are computed, so that those not chosen are heard.
        bias: by how much the heavy width leads the router's logits at first.
        num_timesteps: T, for the bands.
        **settings: as for :class:`~dit_edu.dit.DiT`; ``num_heads`` and the MLP's width are
            multiples of 4.

    Raises:
        TypeError, ValueError: an argument does not fit another one.

    Source: Yu et al. 2019, for widths that are parts of each other.
    """

    def __init__(
        self,
        *,
        bands: Sequence[str] | None = None,
        drawn: str | None = None,
        gated: bool = False,
        bias: float = 3.0,
        num_timesteps: int = 1000,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if self.kind is not AdaLNZeroBlock:
            kind = settings["conditioning"]
            raise ValueError(f"conditioning={kind!r} of a TimestepDiT; allowed: 'adaln-zero'.")
        block = self.blocks[0]
        for name, units in (
            ("num_heads", block.attn.num_heads),
            ("the MLP's width", block.mlp.fc1.out_features),
        ):
            if units % 4:
                raise ValueError(f"{name} is {units}; allowed: a multiple of 4.")
        if drawn is not None and check_choice("drawn", drawn, DRAWN) and gated:
            raise ValueError(f"drawn={drawn!r} with gated=True; allowed: one of them.")
        self.settings = settings
        self.num_timesteps = check_positive_int("num_timesteps", num_timesteps)
        self.bands, self.drawn, self.router = bands, drawn, None
        if gated:
            self.router = Router(self.t_embedder.mlp[-1].out_features, len(WIDTHS))
            self.router.mlp[-1].bias.data[-1] = bias / self.router.pace
            self.choice = TopK(1, heard=True)

    @property
    def bands(self) -> tuple[str, ...] | None:
        """The width of each range of t, low noise first, or None.

        They may be set at any time, and go before the gate.

        Raises:
            ValueError: there are none, or one has no such name.
        """
        return self._bands

    @bands.setter
    def bands(self, bands: Sequence[str] | None) -> None:
        if bands is not None and not bands:
            raise ValueError("bands=() is empty; allowed: at least one width, or None.")
        self._bands = bands and tuple(check_choice("bands", name, WIDTHS) for name in bands)
        numbers = [list(WIDTHS).index(name) for name in self._bands or ("heavy",)]
        self._table = F.one_hot(torch.tensor(numbers), len(WIDTHS))  # (bands, 3)

    def width_macs(self) -> list[int]:
        """Multiply-adds for one image of what has a width, the branches, at each width."""
        block, tokens = self.blocks[0], math.prod(self.x_embedder.grid)
        whole = block.attn.num_heads * head_macs(block.attn, tokens)
        whole += block.mlp.fc1.out_features * channel_macs(block.mlp, tokens)
        return [int(share * len(self.blocks) * whole) for share in WIDTHS.values()]

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """All blocks as one layer, through which each image goes at its width.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """
        choice = self.choose(t, emb)
        # Who has the base width has the light one too: a unit is what a width adds to the last.
        chosen, soft = (m.flip(1).cumsum(1).flip(1) for m in (choice.chosen, choice.soft))
        macs = self.width_macs()
        report(self, chosen.bool(), soft, torch.tensor([b - a for a, b in pairwise([0, *macs])]))
        ways = [partial(self.at_width, name) for name in WIDTHS]

        def blocks(x: Tensor, c: Tensor) -> Tensor:
            if choice.heard:  # Σ_w g_w f_w(x): of the gates one is 1, and all have a gradient
                gates = choice.gates.to(x)[:, :, None, None]  # (B, 3) -> (B, 3, 1, 1)
                return sum(gates[:, w] * way(x, c) for w, way in enumerate(ways))
            for way, items in zip(ways, choice.items(), strict=True):
                x = run_on(items, way, x, c)
            return x

        return [blocks]

    def choose(self, t: Tensor, emb: Tensor) -> Choice:
        """One width for each image: steps (B,) and their embeddings (B, D) → a choice of (B, 3)."""
        if self.training and self.drawn is not None:
            n = len(t) if self.drawn == "image" else 1
            number = torch.randint(len(WIDTHS), (n,), device=t.device).expand(len(t))  # (B,)
            chosen = F.one_hot(number, len(WIDTHS))  # (B, 3)
        elif self.bands is None and self.router is not None:
            return self.choice(self.router(emb))
        else:
            band = (t * len(self._table) / self.num_timesteps).long()  # (B,)
            chosen = self._table.to(t.device)[band.clamp(0, len(self._table) - 1)]  # (B, 3)
        return Choice(chosen.bool(), chosen.to(emb), chosen.to(emb))

    def cut(self, name: str) -> DiT:
        """The network of one width by itself, a plain DiT: smaller, and with nothing to slice.

        Raises:
            ValueError: there is no such width.
        """
        share = WIDTHS[check_choice("name", name, WIDTHS)]
        sizes = {**self.settings, "input_size": self.input_size, "span": self.span}
        net = DiT(**sizes).to(self.final_layer.linear.weight).train(self.training)
        net.load_state_dict({k: v for k, v in self.state_dict().items() if k[:7] != "router."})
        for block in net.blocks:
            keep_heads(block.attn, _first(share, block.attn.num_heads))
            keep_channels(block.mlp, _first(share, block.mlp.fc1.out_features))
        return net

    def at_width(self, name: str, x: Tensor, c: Tensor) -> Tensor:
        """Tokens ``x`` (B, N, D) under conditions ``c`` (B, D), through all blocks at one width."""
        share = WIDTHS[name]
        for block in self.blocks:
            if share == 1:
                x = block(x, c)
                continue
            heads = _first(share, block.attn.num_heads)
            channels = _first(share, block.mlp.fc1.out_features)
            x = x + branch(block, False, x, c, partial(some_heads, block.attn, heads))
            x = x + branch(block, True, x, c, partial(some_channels, block.mlp, channels))
        return x


def _first(share: float, of: int) -> slice:
    return slice(int(share * of))
