"""How much depth: blocks of three sizes, a budget that is never exceeded, or a router's choice.

Of L blocks the first k of an *order* run. A budget in [0, 1] says how many they may be, image by
image the same; without one, a router may switch each block by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from dit_edu._checks import check_choice, check_positive_int
from dit_edu.branches import Mlp
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.dddit.router import Router, Switches
from dit_edu.dispatch import Items, assign, run_on
from dit_edu.dit import DiT
from dit_edu.routing import report
from dit_edu.scaling import Architecture

#: The sizes of a block by name, with the width of its MLP over that of a full one.
SIZES = {"light": 0.25, "standard": 0.5, "full": 1.0}
DRAWN = ("batch", "image")


def light_first(depth: int) -> list[str]:
    """The sizes of L blocks: one half is light, then a quarter standard, then a quarter full.

    Raises:
        TypeError, ValueError: ``depth`` is no positive multiple of 4.

    Example:
        >>> light_first(4)
        ['light', 'light', 'standard', 'full']
    """
    if check_positive_int("depth", depth) % 4:
        raise ValueError(f"depth={depth}; allowed: a multiple of 4.")
    quarter = depth // 4
    return ["light"] * 2 * quarter + ["standard"] * quarter + ["full"] * quarter


class DepthDiT(DiT):
    """A Diffusion Transformer of which only some blocks run.

    Args:
        sizes: of the blocks, L keys of ``SIZES``; None makes all full.
        order: the blocks by number, those that are given up last first; None means front to back,
            so that a budget cuts off the end.
        floor: how many blocks run whatever the budget, at least 1.
        drawn: how training picks the number of blocks: ``"batch"`` draws one for all images,
            ``"image"`` one for each; None runs them all.
        routed: let a router on the condition switch each block by itself, where no budget is set.
        bias: what the router's logits start with; above 0, a fresh model runs every block.
        heard: in training, compute the blocks that the router left out too, so that they are heard.
        **settings: as for :class:`~dit_edu.dit.DiT`.

    Raises:
        TypeError, ValueError: an argument does not fit the depth or another one.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[str] | None = None,
        order: Sequence[int] | None = None,
        floor: int = 1,
        drawn: str | None = None,
        routed: bool = False,
        bias: float = 3.0,
        heard: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        depth = len(self.blocks)
        self.order = list(range(depth)) if order is None else list(order)
        if sorted(self.order) != list(range(depth)):
            raise ValueError(f"order={self.order}; allowed: each of 0 to {depth - 1}, once.")
        if check_positive_int("floor", floor) > depth:
            raise ValueError(f"floor={floor}; allowed: 1 to {depth}.")
        if drawn is not None and check_choice("drawn", drawn, DRAWN) and routed:
            raise ValueError(f"drawn={drawn!r} with routed=True; allowed: one of them.")
        self.floor, self.drawn, self.depth_budget = floor, drawn, None
        self.settings = settings
        self.block_sizes = ["full"] * depth if sizes is None else list(sizes)
        if len(self.block_sizes) != depth:
            raise ValueError(f"sizes={self.block_sizes}; allowed: one for each of {depth} blocks.")
        self._resize(settings.get("dropout", 0.0))
        self.router = None
        if routed:
            if self.kind is not AdaLNZeroBlock:
                raise ValueError("routed=True needs conditioning='adaln-zero'.")
            self.router = Router(self.t_embedder.mlp[-1].out_features, depth, bias)
            self.choice = Switches(heard=heard)

    @property
    def depth_budget(self) -> float | None:
        """The share of the blocks' MACs above the floor that may run, in [0, 1]; None for no limit.

        It may be set at any time, counts in evaluation, and goes before the router.

        Raises:
            ValueError: it leaves [0, 1].
        """
        return self._budget

    @depth_budget.setter
    def depth_budget(self, budget: float | None) -> None:
        if budget is not None and not 0 <= budget <= 1:
            raise ValueError(f"depth_budget={budget}; allowed: 0 to 1, or None.")
        self._budget = budget

    def block_macs(self) -> list[int]:
        """Multiply-adds of each block for one image: those of two such blocks less those of one."""
        settings = {**self.settings, "input_size": self.input_size}
        ratio = settings.get("mlp_ratio", 4.0)

        def stack(size: str, depth: int) -> int:
            sizes = {**settings, "mlp_ratio": ratio * SIZES[size], "depth": depth}
            return sum(Architecture.of(sizes).macs().values())

        macs = {size: stack(size, 2) - stack(size, 1) for size in set(self.block_sizes)}
        return [macs[size] for size in self.block_sizes]

    def kept(self, budget: float) -> int:
        """How many blocks, first in the order, a budget pays for.

        Args:
            budget: λ in [0, 1]; allowed are F + λ (M - F) MACs, where all blocks cost M, and the
                first ``floor`` of them F.
        """
        macs = self.block_macs()
        spent = list(accumulate(macs[block] for block in self.order))  # after each block
        least, most = spent[self.floor - 1], spent[-1]
        return sum(s - least <= budget * (most - least) for s in spent)

    def layers(self, t: Tensor, emb: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks that run, in the order of the depth.

        Args:
            t: steps, (B,).
            emb: their embeddings, (B, D).
        """
        depth = len(self.blocks)
        if self.training and self.drawn == "image":
            return self._at_depths(torch.randint(self.floor, depth + 1, (len(t),)))  # (B,)
        keep = depth
        if self.training and self.drawn == "batch":
            keep = int(torch.randint(self.floor, depth + 1, ()))
        elif not self.training and self.depth_budget is not None:
            keep = self.kept(self.depth_budget)
        elif self.router is not None:
            return self._routed()
        first = set(self.order[:keep])
        runs = torch.tensor([number in first for number in range(depth)])  # (L,)
        self._tell(runs.expand(len(t), -1))  # (L,) -> (B, L)
        return [block for number, block in enumerate(self.blocks) if number in first]

    def _tell(self, chosen: Tensor, soft: Tensor | None = None) -> None:
        soft = chosen.float() if soft is None else soft  # (B, L)
        report(self, chosen, soft, torch.tensor(self.block_macs()))

    def _at_depths(self, keep: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks, each for the images that go so deep: keep (B,)."""
        place = torch.tensor(self.order).argsort()  # (L,), of each block in the order
        chosen = place < keep[:, None]  # (B, L)
        self._tell(chosen)
        return [
            partial(run_on, items, block)
            for block, items in zip(self.blocks, assign(chosen), strict=True)
        ]

    def _routed(self) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The blocks as the router switches them; it decides when the first layer is told c."""
        plan: list[tuple[Tensor, Items]] = []  # of each block, once it is decided

        def decide(x: Tensor, c: Tensor) -> Tensor:
            choice = self.choice(self.router(c))
            self._tell(choice.chosen, choice.soft)
            plan.extend(zip(choice.gates.T, choice.items(), strict=True))
            return x

        def run(number: int, block: nn.Module, x: Tensor, c: Tensor) -> Tensor:
            gate, items = plan[number]
            return run_on(items, partial(towards, block), x, c, gate.to(x)[:, None, None])

        return [decide, *(partial(run, i, block) for i, block in enumerate(self.blocks))]

    def _resize(self, dropout: float) -> None:
        """Give the blocks that are not full a narrower MLP."""
        for block, size in zip(self.blocks, self.block_sizes, strict=True):
            share = SIZES[check_choice("sizes", size, SIZES)]
            wide, dim = block.mlp.fc1.out_features, block.mlp.fc1.in_features
            if share < 1:
                block.mlp = Mlp(dim, int(wide * share), dropout)
        if set(self.block_sizes) != {"full"}:
            self.initialize_weights()


def towards(block: nn.Module, x: Tensor, c: Tensor, gate: Tensor) -> Tensor:
    """x + g (Block(x) - x)."""
    return torch.lerp(x, block(x, c), gate)
