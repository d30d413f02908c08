"""What a forward pass or an update costs: parameters, multiply-adds executed, seconds, memory.

One multiply-add (MAC) is two floating-point operations; the DiT paper prints MACs and calls them
FLOPs. Counted are matrix products, convolutions and attention, as papers count; what works element
by element (activations, norms, softmax, modulation) is not.
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from dit_edu._checks import check_positive_int
from dit_edu.lab.data import dataset
from dit_edu.lab.recipes import Recipe
from dit_edu.lab.train import train

WARM_UP = 2


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass in evaluation mode, without gradients.

    Attributes:
        params: Number of parameters, frozen ones included.
        macs: Multiply-adds executed, for the whole batch.
        seconds: Median time, or None where it was not measured.
        peak_memory: The most bytes that tensors made during the pass held at one time (inputs and
            weights not included), or None where it was not measured. On CUDA it is the allocator's
            peak; elsewhere the tensors' storage is added up, without what kernels use inside.
    """

    params: int
    macs: int
    seconds: float | None = None
    peak_memory: int | None = None

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each MAC."""
        return 2 * self.macs


@dataclass(frozen=True)
class TrainingCost:
    """The cost of one update of the training loop.

    Attributes:
        params: Number of trained parameters.
        macs: Multiply-adds of forward and backward pass together, for the whole batch.
        state: Bytes that stay from update to update: weights, average, the optimizer's moments.
        transient: Bytes that come and go on top, at their peak: activations, gradients, the batch.
        seconds: Median time of an update, drawing the batch included.
        images_per_second: Images that the loop goes through in a second.
    """

    params: int
    macs: int
    state: int
    transient: int
    seconds: float
    images_per_second: float


def count_training(recipe: Recipe, *, updates: int = 10, device: str = "cpu") -> TrainingCost:
    """Measure a few updates of :func:`dit_edu.lab.train.train` on a recipe.

    Args:
        recipe: What to train; nothing is kept of it.
        updates: How many the median time is taken of, after two to warm up.
        device: See :func:`dit_edu.lab.train.train`.

    Raises:
        TypeError, ValueError: ``updates`` is no positive integer.
    """
    check_positive_int("updates", updates)
    recipe = replace(recipe, steps=WARM_UP + updates, warmup=0)
    data = dataset(recipe.data).load("train")  # not a cost of training
    steps = train(recipe, device=device, data=data)
    times = []
    for _ in range(WARM_UP + updates):
        start = time.perf_counter()
        _ = next(steps).loss  # a number asked for: a GPU has to be done
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[WARM_UP:])
    with _LiveStorage() as live:  # from the first weight on
        steps = train(recipe, device=device, data=data)
        next(steps)  # it makes the moments
        state = live.peak = live.bytes
        with _flop_counter() as counter:
            next(steps)
    with torch.device("meta"):
        model = recipe.build_model()
    return TrainingCost(
        params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=counter.get_total_flops() // 2,
        state=state,
        transient=live.peak - state,
        seconds=seconds,
        images_per_second=recipe.batch_size / seconds,
    )


def race(ways: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Seconds of several ways, in turns, so that other work on the machine troubles all alike.

    Args:
        ways: what is run, by name.
        turns: how often, after one turn to warm up.

    Returns:
        The least seconds of each (other work only ever adds to them), by name.

    Raises:
        TypeError, ValueError: ``turns`` is no positive integer.
    """
    best = dict.fromkeys(ways, math.inf)
    for turn in range(check_positive_int("turns", turns) + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def count(model: nn.Module, *inputs: Any, repeats: int = 5) -> Cost:
    """Measure ``model(*inputs)``.

    A routed model is counted as it runs in evaluation mode: only what is executed.

    Args:
        model: Any module; it is put into evaluation mode and back.
        inputs: Its positional arguments, on its device. Where they are on the ``meta`` device,
            nothing is computed and there is neither time nor memory to measure.
        repeats: How many runs the median time is taken of, after two to warm up; 0 leaves out time
            and memory.

    Returns:
        The cost of the whole batch.

    Raises:
        ValueError: ``repeats`` is negative.
    """
    if repeats < 0:
        raise ValueError(f"repeats={repeats} must be at least 0.")
    tensors = [x for x in tree_leaves([*model.parameters(), *inputs]) if torch.is_tensor(x)]
    device = tensors[-1].device if tensors else torch.device("cpu")
    with torch.no_grad(), _evaluating(model):
        macs = _macs(model, inputs)
        if not repeats or device.type == "meta":
            seconds = memory = None
        else:
            seconds = _median_seconds(model, inputs, device, repeats)
            memory = _peak_memory(model, inputs, device)
    params = sum(p.numel() for p in model.parameters())
    return Cost(params, macs, seconds, memory)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and attention through functions that the counter knows."""
    modes = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()  # nn.MultiheadAttention as a single operation
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes.items():
            module.training = mode


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Scaled dot-product attention on shapes (B, h, N, d), (B, h, M, d), (B, h, M, e)."""
    b, h, n, d = query
    m, e = value[-2:]
    return 2 * b * h * n * m * (d + e)  # q k^T costs N M d MACs a head, the weighted sum N M e


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any):
    b, h, n, d = query
    m, e = value[-2:]
    return 2 * b * h * n * m * (3 * d + 2 * e)  # the scores once more; dV, dA; dQ, dK


def _flop_counter() -> FlopCounterMode:
    """A counter that knows the CPU's fused attention too, not CUDA's alone."""
    aten = torch.ops.aten
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=on_cpu)


def _macs(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    with _flop_counter() as counter:
        model(*inputs)
    return counter.get_total_flops() // 2


def _median_seconds(
    model: nn.Module, inputs: tuple[Any, ...], device: torch.device, repeats: int
) -> float:
    times = []
    for _ in range(WARM_UP + repeats):
        _synchronize(device)
        start = time.perf_counter()
        model(*inputs)
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_memory(model: nn.Module, inputs: tuple[Any, ...], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model(*inputs)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveStorage() as live:
        model(*inputs)
    return live.peak


class _LiveStorage(TorchDispatchMode):
    """Adds up the storage of tensors made while it is active, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known = WeakIdKeyDictionary()  # storages; views share theirs and count once

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs)):
            self.known.setdefault(storage, None)  # was there before
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage not in self.known:
                self.known[storage] = None
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return out

    def _freed(self, nbytes: int) -> None:
        self.bytes -= nbytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if torch.is_tensor(leaf)]
