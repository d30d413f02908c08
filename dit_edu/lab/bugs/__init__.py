"""Twelve bugs, each as a broken function, a small test that fails, and the repaired function.

They stand in the files ``broken.py``, ``failing.py`` and ``repaired.py`` of this folder; what was
broken and what was repaired have the same names. The judges of :mod:`dit_edu.lab.exercises` say
more than the small tests: what is wrong, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dit_edu._checks import check_choice
from dit_edu.lab.bugs import broken, failing, repaired

#: By the name of the bug, the name of the function that has it.
FUNCTIONS = {
    "gates": "start_values",
    "channels": "guided",
    "null": "null_labels",
    "mask": "weights",
    "router": "gates",
    "entropy": "total_loss",
    "batch": "kept",
    "paper": "run",
    "waves": "waves",
    "dropout": "drop_labels",
    "variance": "step_back",
    "grid": "positions",
}


def wrong(name: str) -> Callable[..., Any]:
    """The broken function of a bug, by the bug's name."""
    return getattr(broken, FUNCTIONS[check_choice("name", name, FUNCTIONS)])


def right(name: str) -> Callable[..., Any]:
    """The repaired function of a bug, by the bug's name."""
    return getattr(repaired, FUNCTIONS[check_choice("name", name, FUNCTIONS)])


def failure(name: str, function: Callable[..., Any]) -> str | None:
    """What the small test of a bug says of a function, or None where it passes.

    Args:
        name: of the bug, one of ``FUNCTIONS``.
        function: the function in question, with the arguments of the broken one.

    Raises:
        ValueError: there is no such bug.
    """
    check_choice("name", name, FUNCTIONS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            getattr(failing, f"test_{name}")(function)
        except AssertionError as error:
            return str(error)
    return None
