"""What the training loop asks of the machine: a device, random states by step, Ctrl-C held back."""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dit_edu._checks import check_choice

DEVICES = ("auto", "cpu", "cuda", "mps")


def accelerator_on(device: str = "auto") -> Accelerator:
    """An Accelerator on ``device``, which runs models in bfloat16 on CUDA and nowhere else.

    Args:
        device: ``"auto"`` takes CUDA, else MPS, else the CPU.

    Raises:
        ValueError: the device is unknown or not there.
    """
    check_choice("device", device, DEVICES)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise ValueError(f"device={device!r} is not available here; allowed: auto, cpu.")
    if not torch.distributed.is_initialized():
        # accelerate keeps one device for the life of a process; a notebook may want another.
        AcceleratorState._reset_state(reset_partial_state=True)
    # Said outright: without it, several processes on CPUs would not know of each other.
    cpu = device == "cpu" or (device == "auto" and not any(available.values()))
    cpu = cpu or os.environ.get("ACCELERATE_USE_CPU", "0").lower() in ("1", "true")
    return Accelerator(cpu=cpu, mixed_precision="bf16" if available["cuda"] and not cpu else "no")


def device_name(device: str = "auto") -> str:
    """The name of the processor that :func:`accelerator_on` would take."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if device in ("auto", "mps") and torch.backends.mps.is_available():
        return f"{platform.machine()} (MPS)"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


@contextmanager
def random_state_of(
    seed: int, step: int, device: torch.device, process: int = 0
) -> Iterator[torch.Generator]:
    """The random states of one update: functions of (seed, step), and of nothing that came before.

    Yields:
        A generator that is the same in all processes. Within the block torch's global random state
        (which dropout and dropped labels draw from) is set too, to another one in each process;
        afterwards it is the caller's again.
    """
    generator = torch.Generator(device).manual_seed(_mix(seed, step))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_mix(seed, step, 1 + process))
        yield generator


def _mix(*numbers: int) -> int:
    """One seed from several numbers, such that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return
    waiting: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting and callable(before):
        before(*waiting[0])
