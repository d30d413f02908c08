"""The chapter on attention: time and memory against the number of tokens."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dit_edu.attention import Attention, naive_attention
from dit_edu.conditioning import AdaLNZeroBlock
from dit_edu.lab.encoding import plain
from dit_edu.lab.experiments import Experiment
from dit_edu.lab.profile import count

TOKENS = 2048  # in a batch: shorter sequences come in more images
REPEATS = 3
WIDTHS = {64: 4, 384: 6}  # D and the heads of a tiny model and of DiT-S
GRID = {64: (16, 64, 256, 384, 1024, 4096), 384: (16, 64, 256, 1024, 2304, 4096)}


class OwnValue(Attention):
    """Attention without the pairs: every token keeps its own value. All linear layers stay."""

    def forward(
        self, x: Tensor, *, cond: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        return self.proj(rearrange(self.project(x)[2], "b h n d -> b n (h d)"))


def linear_block(dim: int, heads: int) -> AdaLNZeroBlock:
    """A block that does all its work but that over pairs of tokens."""
    block = AdaLNZeroBlock(dim, heads)
    block.attn = OwnValue(dim, heads)
    return block


def seconds(call: Callable[[], Any]) -> float:
    """The median time of a call, after one to warm up."""
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@torch.no_grad()
def pairs_cell(setting: Mapping[str, int], seed: int) -> dict[str, Any]:
    """The parts of a block on N tokens, per image; the seed only numbers the repetitions."""
    torch.manual_seed(0)
    n, dim, heads = setting["tokens"], setting["dim"], setting["heads"]
    images = max(1, TOKENS // n)
    x, c = torch.randn(images, n, dim), torch.randn(images, dim)
    block = linear_block(dim, heads).eval()
    q, k, v = block.attn.project(x)
    kernels = {"fused": F.scaled_dot_product_attention, "naive": naive_attention}
    found = {"linear_seconds": seconds(lambda: block(x, c))}
    found |= {f"{name}_seconds": seconds(lambda f=f: f(q, k, v)) for name, f in kernels.items()}
    memory = {
        f"{name}_bytes": count(_Call(f), q, k, v, repeats=1).peak_memory / images
        for name, f in kernels.items()
    }
    return {
        "linear_macs": count(block, x, c, repeats=0).macs // images,
        "pair_macs": 2 * n**2 * dim,
        **{name: plain(value / images, 6) for name, value in found.items()},
        **memory,
    }


Table = dict[int, dict[int, dict[str, float]]]


def least(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of ``attention-cost`` by width D and tokens N, with the least of the repetitions."""
    table: Table = {dim: {n: {} for n in GRID[dim]} for dim in GRID}
    for row in rows:
        dim, n = (int(part.split(" = ")[1]) for part in row["setting"].split(", "))
        for name, value in row["metrics"].items():
            table[dim][n][name] = min(value, table[dim][n].get(name, value))
    return table


def crossing(by_tokens: Mapping[int, Mapping[str, float]], kernel: str) -> float:
    """The N at which pairs take as long as linear layers, on a straight line between logarithms."""
    n = np.array(list(by_tokens))
    gap = [math.log(row[f"{kernel}_seconds"] / row["linear_seconds"]) for row in by_tokens.values()]
    return float(np.exp(np.interp(0.0, gap, np.log(n))))


class _Call(torch.nn.Module):
    """A function as a module, to be counted."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


EXPERIMENTS = (
    Experiment(
        name="attention-cost",
        about="Time and memory of attention and of the rest of a block against the tokens N",
        settings={
            f"D = {dim}, N = {n}": {"dim": dim, "heads": heads, "tokens": n}
            for dim, heads in WIDTHS.items()
            for n in GRID[dim]
        },
        seeds=range(5),
        compute=pairs_cell,
    ),
)
