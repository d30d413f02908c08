"""From a trained DiT to a DDDiT, in stages: sort what it has, then learn what may be left out.

A dense model knows nothing of units. :func:`sort_units` puts the heads and channels that matter
most first, which changes no answer: what always runs is then the best part, and an expert is made
of channels that matter alike. Then come two stages for the training loop: the experts alone
(:func:`is_expert`), and everything with a router and a budget
(:class:`~dit_edu.dddit.router.BudgetedLosses`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dit_edu.dddit.model import DDDiT
from dit_edu.dddit.router import BudgetedLosses
from dit_edu.dddit.slices import keep_channels
from dit_edu.dit import DiT
from dit_edu.interpolant import Interpolant

#: Every other update is one of dynamic mode; the other two modes share the rest.
TURNS = ("dynamic", "light", "dynamic", "full")


@torch.no_grad()
def unit_worth(model: DiT, x: Tensor, t: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """How much each head and each channel adds to the tokens: root of the mean square.

    Args:
        model: with plain attention and MLPs.
        x, t, y: a batch as it would be trained on.

    Returns:
        For each block, of its heads (h,) and of its channels (w,).
    """
    with _inputs([m for b in model.blocks for m in (b.attn.proj, b.mlp.fc2)]) as given:
        model(x, t, y)
    found = []
    for block in model.blocks:
        heads = given[block.attn.proj].unflatten(-1, (block.attn.num_heads, -1))  # (B, N, h, d)
        maps = block.attn.proj.weight.unflatten(1, heads.shape[-2:])  # (D, h, d)
        said = torch.einsum("bnhk,dhk->bnhd", heads, maps)  # (B, N, h, D)
        wide, columns = given[block.mlp.fc2], block.mlp.fc2.weight  # (B, N, w), (D, w)
        channels = wide.square().mean((0, 1)).sqrt() * columns.square().mean(0).sqrt()  # (w,)
        found.append((said.square().mean((0, 1, 3)).sqrt(), channels))
    return found


@torch.no_grad()
def sort_units(model: DiT, worth: list[tuple[Tensor, Tensor]]) -> None:
    """Put heads and channels in the order of their worth, the most first; no answer changes.

    Args:
        model: changed in place.
        worth: as :func:`unit_worth` gives it.
    """
    for block, (heads, channels) in zip(model.blocks, worth, strict=True):
        attn, mlp = block.attn, block.mlp
        h = heads.argsort(descending=True)  # (h,)
        for part in (attn.qkv.weight, attn.qkv.bias):  # (3D, …)
            part.copy_(part.unflatten(0, (3, len(h), -1))[:, h].flatten(0, 2))
        attn.proj.weight.copy_(attn.proj.weight.unflatten(1, (len(h), -1))[:, h].flatten(1))
        c = channels.argsort(descending=True)  # (w,)
        for part in (mlp.fc1.weight, mlp.fc1.bias):  # (w, …)
            part.copy_(part[c])
        mlp.fc2.weight.copy_(mlp.fc2.weight[:, c])


def thinned(model: DiT, width: int) -> DiT:
    """The same model with the first channels of every MLP alone: a static opponent.

    Args:
        model: stays as it is.
        width: how many channels, at most those that are there.
    """
    thin = copy.deepcopy(model)
    for block in thin.blocks:
        keep_channels(block.mlp, slice(width))
    return thin


def switched_share(model: DDDiT, share: float) -> float:
    """The share of what is switched that may run, if a pass is to cost ``share`` of the full one.

    It is the target of :class:`~dit_edu.dddit.router.BudgetedLosses`, which knows the units alone.

    Raises:
        ValueError: the model cannot cost so little, or so much.
    """
    everything = torch.ones(len(model.blocks) * model.units, dtype=torch.bool)
    full, switched = int(model.macs(everything)), len(model.blocks) * int(model.unit_macs().sum())
    target = 1 - (1 - share) * full / switched
    if not 0 <= target <= 1:
        raise ValueError(f"share={share}; allowed: {1 - switched / full:.3f} to 1.")
    return target


class ModeLosses:
    """A loss for the training loop that trains the modes of a DDDiT in turns, update by update.

    Without it, light mode is a network that was never trained, and full mode one whose forgotten
    parts come back.

    Args:
        dynamic: the loss of dynamic mode.
        turns: the modes of successive updates, again and again.
    """

    def __init__(self, dynamic: BudgetedLosses, turns: Sequence[str] = TURNS) -> None:
        self.dynamic, self.turns = dynamic, turns

    @property
    def step(self) -> int:
        """How many updates are done; the training loop sets it."""
        return self.dynamic.step

    @step.setter
    def step(self, step: int) -> None:
        self.dynamic.step = step

    def __call__(
        self, model: DDDiT, process: Interpolant, x0: Tensor, t: Tensor, y: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """See :data:`dit_edu.lab.train.LossFn`."""
        model.mode = self.turns[self.step % len(self.turns)]
        try:
            loss_fn = self.dynamic if model.mode == "dynamic" else _plain
            return loss_fn(model, process, x0, t, y, noise)
        finally:
            model.mode = "dynamic"


def is_expert(name: str) -> bool:
    """Whether a parameter of a DiT belongs to its MLPs: all that the first stage trains."""
    return ".mlp." in name and name.startswith("blocks.")


def _plain(model, process, x0, t, y, noise) -> dict[str, Tensor]:
    return process.losses(model, x0, t, y, noise=noise)


@contextmanager
def _inputs(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Inside ``with``, what the modules are given is kept."""
    given: dict[nn.Module, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, args: given.__setitem__(m, args[0]))
        for module in modules
    ]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()
