"""Checks of the options of a model: "expected ..., got ...", before anything is read or written.

Each takes a name and a value, or the value of the option it is named after, and returns the value
in its proper type, or raises TypeError for a wrong kind and ValueError for a wrong size.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
from typing import Any

import torch

from vecsmith import ops
from vecsmith.models._checkpoint import Checkpoint


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


def objective(hs: int, negative: int) -> None:
    """Hierarchical softmax, negative sampling or both."""
    if not hs and not negative:
        raise ValueError(
            "expected negative >= 1, or hs=1 for hierarchical softmax; got negative=0 and "
            "hs=0, which trains nothing"
        )


def null_word(value: Any) -> int:
    """Only 0."""
    if integer("null_word", value, 0):
        raise ValueError(f"expected null_word=0 (others are not supported); got {value!r}")
    return 0


def sorted_vocab(value: Any) -> int:
    """Only 1."""
    if not flag("sorted_vocab", value):
        raise ValueError("expected sorted_vocab=1 (0 is not supported); got 0")
    return 1


def shared_negatives(value: str) -> str:
    """What shares its noise words."""
    if value not in ("window", "pair"):
        raise ValueError(f"expected shared_negatives to be 'window' or 'pair'; got {value!r}")
    return value


def backend(value: str | None, device: torch.device) -> str | None:
    """None, or a backend of ``ops.skipgram`` that can run here; else as ``ops.choose`` raises."""
    if value is not None:
        ops.choose(ops.registry()["skipgram"], device.type, torch.float32, value)
    return value


def checkpoint(
    folder: str | os.PathLike[str] | Checkpoint | None, every: Any, resume: Any
) -> Checkpoint | None:
    """The checkpoint in a folder, or None. Nothing is read or written."""
    every = finite("checkpoint_every", every, low=0.0)
    if folder is None or isinstance(folder, Checkpoint):
        return folder
    return Checkpoint(folder, every, bool(resume))


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
