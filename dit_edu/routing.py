"""What routed models chose: a record of it, and the losses that steer it.

A module that chooses calls :func:`report`; who wants to know opens :func:`record_routing`. Losses,
tables and figures read that record alone, so no model keeps what it chose, and none returns it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

COLUMNS = ("call", "module", "t", "sample", "unit", "choice", "macs")


@dataclass(frozen=True)
class Decision:
    """What one module chose in one pass.

    Attributes:
        module: its name in the recorded model.
        call: which pass of the model, from 0.
        t: steps, (B,).
        chosen: (B, E), or (B, N, E) where tokens choose; bool.
        soft: as ``chosen``: the router's scores before they became hard, with their gradient.
        macs: (E,), multiply-adds of each unit for one item.
    """

    module: str
    call: int
    t: Tensor
    chosen: Tensor
    soft: Tensor
    macs: Tensor

    def executed(self) -> Tensor:
        """Multiply-adds that ran, for each image and unit: (B, E)."""
        return _items(self.chosen).sum(1) * self.macs.to(self.chosen.device)  # (B, E)


@dataclass
class Trace:
    """What a model chose while it was recorded: its ``decisions``, pass by pass."""

    decisions: list[Decision] = field(default_factory=list)

    def table(self) -> dict[str, np.ndarray]:
        """One row for each decision, image and unit.

        Returns:
            The columns by name, all of one length. They are ``call``, ``module``, ``t``, ``sample``
            (place in the batch), ``unit``, ``choice`` (the share of the image's items that chose
            the unit; 0 or 1 where images choose) and ``macs``, executed.
        """
        columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
        for decision in self.decisions:
            share = _items(decision.chosen).double().mean(1)  # (B, E)
            batch, units = share.shape
            sample, unit = np.divmod(np.arange(batch * units), units)
            for name, values in {
                "call": np.full(batch * units, decision.call),
                "module": np.full(batch * units, decision.module),
                "t": decision.t.cpu().numpy()[sample],
                "sample": sample,
                "unit": unit,
                "choice": share.flatten().cpu().numpy(),
                "macs": decision.executed().flatten().cpu().numpy(),
            }.items():
                columns[name].append(values)
        return {k: np.concatenate(v) if v else np.empty(0) for k, v in columns.items()}


def _items(chosen: Tensor) -> Tensor:
    """(B, E) or (B, N, E) → (B, N, E): one item where images choose."""
    return chosen.view(len(chosen), -1, chosen.shape[-1])


class _Recorder:
    """Follows the passes of one model, and gathers what its modules report."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.trace = Trace()
        self.call, self.t = -1, None

    def enter(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.call += 1
        self.t = (kwargs["t"] if "t" in kwargs else args[1]).detach()

    def add(self, module: nn.Module, chosen: Tensor, soft: Tensor, macs: Tensor) -> None:
        if id(module) in self.names and self.t is not None:
            name = self.names[id(module)]
            self.trace.decisions.append(Decision(name, self.call, self.t, chosen, soft, macs))


_recorders: list[_Recorder] = []


@contextmanager
def record_routing(model: nn.Module) -> Iterator[Trace]:
    """Record what the routed parts of a denoiser choose.

    Args:
        model: ``model(x, t, y)``; where it is wrapped (guided, say), the model inside, so that
            samples are counted as it saw them.

    Yields:
        The trace, which grows with every pass.

    Example:
        >>> with record_routing(nn.Identity()) as trace:
        ...     pass
        >>> trace.decisions
        []
    """
    recorder = _Recorder(model)
    hook = model.register_forward_pre_hook(recorder.enter, with_kwargs=True)
    _recorders.append(recorder)
    try:
        yield recorder.trace
    finally:
        _recorders.remove(recorder)
        hook.remove()


def recorded() -> bool:
    """Whether anybody records: a report that is long to write need not be written for nobody."""
    return bool(_recorders)


def report(module: nn.Module, chosen: Tensor, soft: Tensor, macs: Tensor) -> None:
    """Tell whoever records what ``module`` chose; the arguments are those of :class:`Decision`."""
    for recorder in _recorders:
        recorder.add(module, chosen, soft, macs)


def balance_loss(chosen: Tensor, probabilities: Tensor) -> Tensor:
    """How unevenly the units are used: E Σ_e f_e P_e, 1 where all are used alike.

    f_e is the share of all choices that fell on unit e, and has no gradient; P_e is the mean
    probability that the router gave it, and has one: what is used often becomes less likely.

    Args:
        chosen: (…, E) bool.
        probabilities: (…, E), which add up to 1 for each item.

    Returns:
        A number; its largest value is E / k where every item chooses the same k units, surely.

    Source: Fedus, Zoph & Shazeer 2022, equations 4 to 6, for k = 1.
    """
    units = chosen.shape[-1]
    share = chosen.reshape(-1, units).to(probabilities).mean(0)  # (…, E) -> (E,)
    share = share / share.sum()  # f_e
    mean = probabilities.reshape(-1, units).mean(0)  # (E,), P_e
    return units * (share * mean).sum()


def balanced_losses(weight: float) -> Callable[..., dict[str, Tensor]]:
    """A loss for the training loop: the process's own, and ``weight`` times the balance loss.

    Returns:
        A function of (model, process, x0, t, y, noise), see :data:`dit_edu.lab.train.LossFn`.
    """

    def loss_fn(model, process, x0, t, y, noise):
        with record_routing(model) as trace:
            losses = process.losses(model, x0, t, y, noise=noise)  # (B,) each
        uneven = torch.stack([balance_loss(d.chosen, d.soft) for d in trace.decisions]).mean()
        return {**losses, "loss": losses["loss"] + weight * uneven}

    return loss_fn


def budget_loss(macs: Tensor, full: float, target: float) -> Tensor:
    """The square of what is executed too much or too little: (MACs / full − λ)².

    Args:
        macs: expected or executed MACs of each image, (B,), with a gradient.
        full: MACs of an image if everything runs.
        target: λ, in [0, 1].

    Returns:
        A number. The budget is one of the batch, not of each image.

    Raises:
        ValueError: ``full`` is not positive, or ``target`` leaves [0, 1].

    Source: Zhao et al. 2025 (DyDiT).
    """
    if not full > 0:
        raise ValueError(f"full={full}; allowed: above 0.")
    if not 0 <= target <= 1:
        raise ValueError(f"target={target}; allowed: 0 to 1.")
    return (macs.mean() / full - target).square()
