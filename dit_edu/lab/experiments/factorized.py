"""HiDiT's factorised attention: time and memory against the number of tokens, and a race."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from dit_edu.attention import Attention, naive_attention
from dit_edu.hidit.factorized import (
    AxialAttention,
    ChannelAttention,
    FactorizedAttention,
    WindowAttention,
)
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.laws import bootstrap, fit, interval
from dit_edu.lab.profile import count

DIM, HEADS, WINDOW = 64, 4, 8
SIDES = (8, 16, 24, 32, 48, 64)  # of the grid; N is their square
LONG = 256  # exponents are fitted from this N on
TOKENS = 4096  # in a batch: shorter sequences come in more images
RUNS = 5


class StoredAttention(Attention):
    """Plain attention whose N × N table is written down, as the formula has it."""

    def forward(
        self, x: Tensor, *, cond: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        seen = naive_attention(*self.project(x), mask)  # (B, h, N, d)
        return self.proj(rearrange(seen, "b h n d -> b n (h d)"))


#: Kinds of attention by name, each made for a grid.
KINDS: dict[str, Callable[[tuple[int, int]], nn.Module]] = {
    "plain, table stored": lambda grid: StoredAttention(DIM, HEADS),
    "plain": lambda grid: Attention(DIM, HEADS),
    "windows": lambda grid: WindowAttention(DIM, HEADS, grid, WINDOW),
    "axes": lambda grid: AxialAttention(DIM, HEADS, grid),
    "channels": lambda grid: ChannelAttention(DIM, HEADS),
    "channels and full": lambda grid: FactorizedAttention(DIM, HEADS, grid),
    "channels and windows": lambda grid: FactorizedAttention(DIM, HEADS, grid, "window", WINDOW),
    "channels and axes": lambda grid: FactorizedAttention(DIM, HEADS, grid, "axial"),
    "halves, windows": lambda grid: FactorizedAttention(DIM, HEADS, grid, "window", WINDOW, True),
}


@torch.no_grad()
def cost_cell(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A call of a kind of attention, per image; the seed only numbers the repetitions.

    The time is that of the processor, the least of several runs: on a shared machine the clock on
    the wall also counts the work of others.
    """
    torch.manual_seed(0)
    side = setting["side"]
    net, images = KINDS[setting["kind"]]((side, side)).eval(), max(1, TOKENS // side**2)
    x = torch.randn(images, side**2, DIM)
    times = []
    for _ in range(1 + RUNS):
        start = time.process_time()
        net(x)
        times.append(time.process_time() - start)
    memory = count(net, x, repeats=1).peak_memory
    return {
        "macs": count(net, x, repeats=0).macs // images,
        "bytes": round(memory / images),
        "cpu_seconds": plain(min(times[1:]) / images, 6),
    }


def exponent(
    rows: Sequence[Mapping[str, Any]], kind: str, metric: str
) -> tuple[float, float, float]:
    """By which power of N a metric grows from ``LONG`` tokens on, with a 95 % interval.

    The interval is that over repetitions drawn again; each point is the least of the repetitions.
    """
    table: dict[int, dict[int, float]] = {}
    for row in rows:
        name, tokens = row["setting"].split(", N = ")
        if name == kind and int(tokens) >= LONG:
            table.setdefault(int(tokens), {})[row["seed"]] = row["metrics"][metric]
    values = np.array([list(by_seed.values()) for by_seed in table.values()])  # (N, seeds)

    def slope(seeds: np.ndarray) -> float:
        return -fit(values[:, seeds].min(1), list(table)).b[0]

    low, high = interval(bootstrap(slope, values.shape[1]))
    return slope(np.arange(values.shape[1])), float(low), float(high)


def crossing(rows: Sequence[Mapping[str, Any]], kind: str, metric: str) -> float:
    """The N from which a kind costs less than plain attention, on a line between logarithms."""

    def least(name: str) -> np.ndarray:
        return np.array(
            [
                min(
                    row["metrics"][metric]
                    for row in rows
                    if row["setting"] == f"{name}, N = {side**2}"
                )
                for side in SIDES
            ]
        )

    gap = np.log(least("plain") / least(kind))  # (sides,), rising
    return float(np.exp(np.interp(0.0, gap, 2 * np.log(SIDES))))


EXPERIMENTS = (
    Experiment(
        name="factorized-cost",
        about="Time and memory of kinds of attention against the tokens N, D = 64",
        settings={
            f"{kind}, N = {side**2}": {"kind": kind, "side": side}
            for kind in KINDS
            for side in SIDES
        },
        seeds=range(5),
        compute=cost_cell,
    ),
)
