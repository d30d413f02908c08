"""Checks of arguments, written once: every message names the argument, its value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
