"""DDDiT: a Diffusion Transformer whose heads and groups of channels are switched by the step.

Its weights are those of a DiT, cut into units: each head of attention is one, and each MLP's
channels are a shared expert, which always runs, and E more of equal width. A router, or a table,
says which of them run. Three modes: everything, which is the plain DiT with these weights; the
least; or what the router says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_edu import dit
from dit_edu._checks import check_choice, check_positive_int
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dddit.paths import (
    Slices,
    Table,
    check_table,
    equal_paths,
    gated_channels,
    gated_heads,
    narrowed,
    planned_paths,
    slices_of,
    within_budget,
)
from dit_edu.dddit.router import Choice, Router, Switches
from dit_edu.dddit.slices import channel_macs, head_macs, some_channels, some_heads
from dit_edu.dddit.switched import branch
from dit_edu.dispatch import run_on
from dit_edu.routing import recorded, report
from dit_edu.scaling import Architecture

MODES = ("light", "full", "dynamic")
KEPT = 16  # paths whose slices are kept
#: Who asks the router.
ASKERS = ("step", "image")

#: At the size of DiT-XL/2, with the means that the notes give for three bands of noise. Widths of
#: experts are ours: the notes have none, and with these the average pass costs what they claim.
PRESETS: dict[str, dict[str, Any]] = {
    "DDDiT-XL/2": {
        **dit.PRESETS["DiT-XL/2"],
        "experts": 8,
        "shared": 4,
        "least_heads": 8,
        "table": ((0, 8, 1.4), (333, 12, 2.6), (667, 16, 3.8)),
    }
}


class DDDiT(dit.DiT):
    """A dynamic Diffusion Transformer; its state dict is a DiT's, and a router's.

    Args:
        experts: E, the groups of channels of an MLP that are switched.
        shared: how many groups more always run, as one shared expert.
        least_heads: how many heads of each attention always run, the first.
        asks: who asks the router: the ``"step"`` (then images that share it share their path), or
            the ``"image"``, step and label together.
        table: rows (t, heads, experts) in place of the router: from step t on, so many heads and
            experts run, the first ones, on average over the blocks. The first row's t is 0.
        bias: what the router's logits start with; above 0, a fresh model runs everything.
        pace: of the router.
        noise: of its choices, in training.
        **settings: as for :class:`~dit_edu.dit.DiT`, ``conditioning`` aside.

    Attributes:
        units: units of a block, h heads and then E experts.
        router, choice: from a condition to logits, and from logits to what runs.

    Raises:
        TypeError, ValueError: a number does not fit the sizes; the message names it.

    Source: the notes on DDDiT; switched heads and groups of channels, Zhao et al. 2025 (DyDiT).
    """

    def __init__(
        self,
        *,
        experts: int = 6,
        shared: int = 2,
        least_heads: int = 1,
        asks: str = "step",
        table: Table | None = None,
        bias: float = 3.0,
        pace: float = 0.1,
        noise: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if self.kind is not AdaLNZeroBlock:
            raise ValueError(
                f"conditioning={settings['conditioning']!r} of a DDDiT; allowed: 'adaln-zero'."
            )
        first = self.blocks[0]
        depth, heads, wide = len(self.blocks), first.attn.num_heads, first.mlp.fc1.out_features
        if shared < 0 or wide % (check_positive_int("experts", experts) + shared):
            raise ValueError(
                f"experts={experts} and shared={shared} of {wide} channels; allowed: "
                "groups that share them out evenly."
            )
        if not 0 <= least_heads <= heads:
            raise ValueError(f"least_heads={least_heads}; allowed: 0 to {heads}.")
        self.settings = settings
        self.experts, self.shared, self.least_heads = experts, shared, least_heads
        self.heads, self.units = heads, heads + experts
        self.asks = check_choice("asks", asks, ASKERS)
        self.mode = "dynamic"
        self.table = table
        self.budget = None
        self._kept: dict[tuple[bool, ...], tuple[Any, list[AdaLNZeroBlock]]] = {}
        self._cut = [p for b in self.blocks for part in (b.attn, b.mlp) for p in part.parameters()]
        dim = self.t_embedder.mlp[-1].out_features
        self.router = Router(dim, depth * (self.units - least_heads), bias, pace)
        self.choice = Switches(noise)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> DDDiT:
        """Build a model by the name of its size; keyword arguments override its settings.

        Raises:
            ValueError: ``name`` is unknown; the message names the nearest.
        """
        return cls(**{**PRESETS[check_choice("name", name, PRESETS)], **overrides})

    @property
    def mode(self) -> str:
        """What runs; it may be set at any time.

        ``"full"`` runs everything, ``"light"`` the shared expert and the least heads, and
        ``"dynamic"`` what table or router say.
        """
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._mode = check_choice("mode", mode, MODES)

    @property
    def table(self) -> tuple[tuple[float, ...], ...] | None:
        """Rows (t, heads, experts) that go before the router, or None; it may be set at any time.

        Raises:
            ValueError: steps do not increase from 0, or a number leaves its range.
        """
        return self._table

    @table.setter
    def table(self, table: Table | None) -> None:
        if table is not None:
            check_table(table, (self.least_heads, self.heads), self.experts)
            table = tuple(tuple(row) for row in table)
        self._table = table

    @property
    def budget(self) -> float | None:
        """The share of the switched units' MACs that may run, in [0, 1]; None lets the router say.

        Its logits say in which order. It may be set at any time, and counts in evaluation.

        Raises:
            ValueError: it leaves [0, 1].
        """
        return self._budget

    @budget.setter
    def budget(self, budget: float | None) -> None:
        if budget is not None and not 0 <= budget <= 1:
            raise ValueError(f"budget={budget}; allowed: 0 to 1, or None.")
        self._budget = budget

    # ------------------------------------------------------------------ what runs

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """All blocks as one layer: it decides, and then equal paths go through them together.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """

        def run(x: Tensor, c: Tensor) -> Tensor:
            choice = self.choose(t, emb if self.asks == "step" else c)
            if choice.heard:
                return self._gated(choice.gates, x, c)
            paths = equal_paths(choice.chosen)
            along = self._along
            if len(paths) == 1 and self.shared and self.least_heads and not torch.is_grad_enabled():
                along = self._again_along
            for items, path in paths:
                x = run_on(items, partial(along, tuple(path.tolist())), x, c)
            return x

        return [run]

    def choose(self, t: Tensor, asks: Tensor) -> Choice:
        """Which units run, (B, L (h + E)); whoever records is told, block by block.

        Args:
            t: steps, (B,).
            asks: what the router is given, (B, D).
        """
        if self.mode == "dynamic" and self.table is None:
            logits = self.router(asks)  # (B, L (h - f + E))
            choice = self.choice(logits)
            if self.budget is not None and not self.training:
                macs = self.unit_macs()[self.least_heads :].repeat(len(self.blocks))
                chosen = within_budget(logits, macs, self.budget)
                choice = Choice(chosen, chosen.to(logits), choice.soft)
            chosen, gates, soft = map(self._complete, (choice.chosen, choice.gates, choice.soft))
            choice = Choice(chosen, gates, soft, choice.heard)
        else:
            chosen = self.planned(t)
            choice = Choice(chosen, chosen.float(), chosen.float())
        if recorded():
            self._tell(choice)
        return choice

    def planned(self, t: Tensor) -> Tensor:
        """What runs at steps t (B,) where no router is asked: (B, L (h + E)) bool."""
        rows = {
            "full": [(0, self.heads, self.experts)],
            "light": [(0, self.least_heads, 0)],
            "dynamic": self.table,
        }[self.mode]
        if rows is None:
            raise ValueError("mode='dynamic' without a table: the router decides, not the step.")
        return planned_paths(rows, t, len(self.blocks), self.heads, self.experts)

    def macs(self, chosen: Tensor) -> Tensor:
        """Multiply-adds of a pass for one image, in closed form.

        Args:
            chosen: which units run, (…, L (h + E)) bool.

        Returns:
            (…), whole numbers. Counted are the router, where it is asked, and what every pass does.
        """
        sizes = Architecture.of({**self.settings, "input_size": self.input_size})
        dim = sizes.hidden_size
        own = 3 * dim * dim  # of the layer that makes shift, scale and gate of one branch
        found = torch.tensor(sum(sizes.macs().values()))
        if self.mode == "dynamic" and self.table is None:
            found = found + dim * dim + dim * self.router.mlp[-1].out_features
        off = ~self._by_block(chosen.cpu())  # (…, L, h + E)
        found = found - (self.unit_macs() * off).sum((-1, -2))
        empty = off[..., : self.heads].all(-1).sum(-1)  # (…), attentions without a head
        if not self.shared:
            empty = empty + off[..., self.heads :].all(-1).sum(-1)
        return found - own * empty

    def unit_macs(self) -> Tensor:
        """Multiply-adds of each unit of a block for one image, (h + E,)."""
        block, tokens = self.blocks[0], math.prod(self.x_embedder.grid)
        size = block.mlp.fc1.out_features // (self.shared + self.experts)
        head, expert = head_macs(block.attn, tokens), size * channel_macs(block.mlp, tokens)
        return torch.tensor([head] * self.heads + [expert] * self.experts)

    def _tell(self, choice: Choice) -> None:
        macs, h = self.unit_macs(), self.heads
        by_block = (self._by_block(part).unbind(1) for part in (choice.chosen, choice.soft))
        for block, chosen, soft in zip(self.blocks, *by_block, strict=True):
            report(block.attn, chosen[:, :h], soft[:, :h], macs[:h])
            report(block.mlp, chosen[:, h:], soft[:, h:], macs[h:])

    def _by_block(self, units: Tensor) -> Tensor:
        """(…, L k) → (…, L, k)."""
        return units.unflatten(-1, (len(self.blocks), -1))

    def _complete(self, switched: Tensor) -> Tensor:
        """What is switched, and the heads that always run: (B, L (h - f + E)) → (B, L (h + E))."""
        return F.pad(self._by_block(switched), (self.least_heads, 0), value=1).flatten(1)

    def _along(self, path: tuple[bool, ...], x: Tensor, c: Tensor) -> Tensor:
        """The blocks along one path, L (h + E) of true and false: real slices of their weights."""
        for block, (whole, heads, channels) in zip(self.blocks, self._slices(path), strict=True):
            if whole:
                x = block(x, c)
                continue
            if heads is not None:
                x = x + branch(block, False, x, c, partial(some_heads, block.attn, heads))
            if channels is not None:
                x = x + branch(block, True, x, c, partial(some_channels, block.mlp, channels))
        return x

    def _again_along(self, path: tuple[bool, ...], x: Tensor, c: Tensor) -> Tensor:
        """The same for a path that a sampler will take many times: its slices are copied once.

        They are copied anew when a weight has changed. It costs what a static model does.
        """
        now = [(part.data_ptr(), part._version) for part in self._cut]
        stamp, blocks = self._kept.pop(path, (None, None))
        if stamp != now:
            blocks = [
                block if whole else narrowed(block, heads, channels)
                for block, (whole, heads, channels) in zip(
                    self.blocks, self._slices(path), strict=True
                )
            ]
            if len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]  # of all, the one not taken for longest
        self._kept[path] = now, blocks
        for block in blocks:
            x = block(x, c)
        return x

    def _slices(self, path: tuple[bool, ...]) -> list[Slices]:
        wide = self.blocks[0].mlp.fc1.out_features
        return slices_of(path, self.heads, self.experts, self.shared, wide)

    def _gated(self, gates: Tensor, x: Tensor, c: Tensor) -> Tensor:
        """All blocks, computed wholly and weighted: gates (B, L (h + E)). For training."""
        for block, units in zip(self.blocks, self._by_block(gates).unbind(1), strict=True):
            heads, experts = units[:, : self.heads], units[:, self.heads :]
            groups = F.pad(experts, (self.shared, 0), value=1)  # (B, E) -> (B, E + shared)
            x = x + branch(block, False, x, c, partial(gated_heads, block.attn, heads))
            x = x + branch(block, True, x, c, partial(gated_channels, block.mlp, groups))
        return x
