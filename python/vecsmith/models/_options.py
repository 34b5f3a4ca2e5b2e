"""Checks of the options of a model: "expected ..., got ...", before anything is read or written.

Each takes a name and a value and returns the value in its proper type, or raises TypeError for a
wrong kind and ValueError for a wrong size.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import torch


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An int in low..high (NumPy integers pass, bools as 0 and 1)."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} to be an integer; got {value!r}") from None
    if number < low or (high is not None and number > high):
        bound = f">= {low}" if high is None or number < low else f"<= {high}"
        raise ValueError(f"expected {name} {bound}; got {number}")
    return number


def optional(name: str, value: Any) -> int | None:
    """None, or an int of at least 1."""
    return None if value is None else integer(name, value, 1)


def flag(name: str, value: Any) -> int:
    """0 or 1."""
    number = integer(name, value, 0)
    if number > 1:
        raise ValueError(f"expected {name} to be 0 or 1; got {number}")
    return number


def finite(name: str, value: Any, low: float | None = None) -> float:
    """A finite number, at least low."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a number; got {value!r}")
    number = float(value)
    if not math.isfinite(number) or (low is not None and number < low):
        bound = "finite" if low is None else f"finite and >= {low:g}"
        raise ValueError(f"expected {name} to be {bound}; got {number}")
    return number


def rate(name: str, value: Any, zero: bool = False) -> float:
    """A learning rate: above 0, or at least 0."""
    number = finite(name, value)
    if number < 0 or (number == 0 and not zero):
        raise ValueError(f"expected {name} {'>=' if zero else '>'} 0; got {number}")
    return number


def device(value: Any) -> torch.device:
    """The CPU, or a CUDA device that is there."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise ValueError(f"expected device to be 'cpu' or 'cuda'; got {value!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"expected device to be 'cpu' or 'cuda'; got {str(device)!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("expected a CUDA device for device='cuda'; got a machine with none")
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ValueError(
                f"expected device below cuda:{torch.cuda.device_count()}; got {str(device)!r}"
            )
        device = torch.device("cuda", index)
    return device


def callbacks(callbacks: Any) -> list[Any]:
    """The callbacks as a list."""
    try:
        return list(callbacks or ())
    except TypeError:
        raise TypeError(
            f"expected callbacks to be an iterable of callback objects; got {callbacks!r}"
        ) from None


def trim_rule(rule: Any) -> None:
    """Callable or None."""
    if rule is not None and not callable(rule):
        raise TypeError(f"expected trim_rule to be callable or None; got {rule!r}")
