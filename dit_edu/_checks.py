"""Checks of arguments: every message names the argument, its value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def check_choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``.

    Raises:
        ValueError: ``value`` is unknown; the message names the nearest valid one.
    """
    allowed = list(allowed)
    if value in allowed:
        return str(value)
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is unknown; allowed: {', '.join(allowed)}.{hint}")


def check_positive_int(name: str, value: object) -> int:
    """Return ``value`` if it is an integer of at least 1.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` is less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an int >= 1, not {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{name}={value} must be an int >= 1.")
    return value


def check_starts(name: str, starts: Sequence[float]) -> None:
    """Check the steps at which the rows of a table begin.

    Raises:
        ValueError: there are none, or they do not increase from 0.
    """
    if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
        raise ValueError(f"{name} starts at steps {list(starts)}; allowed: from 0 on, increasing.")


def check_timesteps(name: str, t: Tensor, num_timesteps: int) -> None:
    """Check a batch of integer timesteps.

    Raises:
        TypeError: ``t`` is not an integer tensor.
        ValueError: ``t`` is not one-dimensional, or holds a value outside [0, num_timesteps).
    """
    if not isinstance(t, Tensor) or t.is_floating_point() or t.dtype == torch.bool:
        kind = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(f"{name} must be an integer tensor of shape (B,), not {kind}.")
    if t.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; allowed: (B,).")
    if t.numel() and (int(t.min()) < 0 or int(t.max()) >= num_timesteps):
        raise ValueError(
            f"{name} holds values from {int(t.min())} to {int(t.max())}; "
            f"allowed: 0 to {num_timesteps - 1}."
        )


def check_finite(name: str, x: Tensor) -> None:
    """Check that a tensor holds neither NaN nor infinity.

    Raises:
        ValueError: it does; the message counts the bad values.
    """
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} holds {bad} non-finite value(s) of {x.numel()}; allowed: finite.")


def check_process(caller: str, process: object, kind: type) -> None:
    """Check that a sampler was given the kind of process that it can walk.

    Raises:
        TypeError: it was not.
    """
    if not isinstance(process, kind):
        raise TypeError(f"{caller} needs a {kind.__name__}, not a {type(process).__name__}.")


def check_labels(model: nn.Module, y: Tensor) -> None:
    """Check integer labels against the classes of a denoiser; its null class is allowed.

    A denoiser without a ``num_classes`` attribute takes some other condition and is left alone.

    Raises:
        ValueError: a label lies outside the classes of ``model``.
    """
    num_classes = getattr(model, "num_classes", None)
    if num_classes is None or not y.numel():
        return
    top = num_classes if getattr(model, "class_dropout_prob", 0) > 0 else num_classes - 1
    if int(y.min()) < 0 or int(y.max()) > top:
        null = f" (where {num_classes} is the null class)" if top == num_classes else ""
        raise ValueError(
            f"y holds labels from {int(y.min())} to {int(y.max())}; allowed: 0 to {top}{null}."
        )
