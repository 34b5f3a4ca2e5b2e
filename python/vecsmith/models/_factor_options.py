"""Options that factorizations have in common, and the first factors."""

from __future__ import annotations

import operator
import os
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith.models import _options as check
from vecsmith.models._checkpoint import Checkpoint
from vecsmith.models._factor_training import FactorCheckpoint

# As many as the operators take.
MOST_THREADS = 4096
METHODS = ("cholesky", "cg", "block")


def dtype(value: Any) -> np.dtype:
    """float32 or float64; torch's are taken, too."""
    if isinstance(value, torch.dtype):
        value = str(value).removeprefix("torch.")
    try:
        found = np.dtype(value)
    except TypeError:
        raise TypeError(f"expected dtype to be float32 or float64; got {value!r}") from None
    if found not in (np.float32, np.float64):
        raise TypeError(f"expected dtype to be float32 or float64; got {found}")
    return found


def method(value: Any) -> str | None:
    """The name of a method, or None."""
    if value is None:
        return None
    if not isinstance(value, str) or value not in METHODS:
        names = ", ".join(repr(name) for name in METHODS)
        raise ValueError(f"expected method to be one of {names}; got {value!r}")
    return str(value)


def boolean(name: str, value: Any) -> bool:
    """True or False; 1 and 0, and NumPy's, are taken."""
    try:
        number = operator.index(bool(value) if isinstance(value, np.bool_) else value)
    except TypeError:
        number = -1
    if number not in (0, 1):
        raise TypeError(f"expected {name} to be True or False; got {value!r}")
    return bool(number)


def threads(value: Any) -> int:
    """Of at most MOST_THREADS; 0: as many as torch has."""
    return check.integer("num_threads", value, 0, MOST_THREADS)


def useful_threads(count: int) -> int:
    """So many, but not more than a machine of this size has a use for: each of them takes time and
    memory to begin. Those that a model was saved with may be another machine's."""
    return min(count, 4 * (os.cpu_count() or 1))


def generator(random_state: Any) -> np.random.Generator:
    """As implicit makes one of a seed, a Generator, or a RandomState."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    try:
        return np.random.default_rng(random_state)
    except (TypeError, ValueError) as error:
        raise type(error)(
            "expected random_state to be None, an int >= 0, a numpy Generator or RandomState; "
            f"got {random_state!r}"
        ) from None


def saved_random_state(random_state: Any) -> int | None:
    """A seed, if it is one: the state of a generator is not saved."""
    return int(random_state) if isinstance(random_state, (int, np.integer)) else None


def random_state(value: Any) -> Any:
    """Something that :func:`generator` takes; the state of a generator is left as it is."""
    if not isinstance(value, (np.random.Generator, np.random.RandomState)):
        generator(value)
    return int(value) if isinstance(value, np.integer) else value


def checkpoint(
    folder: str | os.PathLike[str] | Checkpoint | None, every: Any, resume: Any, kind: np.dtype
) -> Checkpoint | None:
    """The checkpoint in a folder, or None, of a model of this dtype. Nothing is read or written."""
    every = check.finite("checkpoint_every", every, low=0.0)
    resume = boolean("resume", resume)
    if folder is not None and kind != np.float32:
        raise ValueError(f"expected dtype float32 with a checkpoint; got {kind}")
    if folder is None or isinstance(folder, Checkpoint):
        return folder
    return FactorCheckpoint(folder, every, resume)


def clip(value: Any) -> bool | tuple[float, float]:
    """Bounds of predictions: those of the ratings seen, or none, or (least, greatest)."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    try:
        least, greatest = value
    except (TypeError, ValueError):
        raise TypeError(f"expected clip to be a bool or (least, greatest); got {value!r}") from None
    least, greatest = check.finite("clip", least), check.finite("clip", greatest)
    if least > greatest:
        raise ValueError(f"expected clip's least to be at most its greatest; got {value!r}")
    return least, greatest


START = 0.03  # standard deviation


def drawn(rows: int, columns: int, kind: np.dtype, random: np.random.Generator) -> Tensor:
    """[rows, columns], the first factors: normal, of standard deviation START.

    Around zero, not above it, or all rows begin as one direction, which takes iterations to come
    apart; and neither so small that the regularization takes the first half-steps, nor as large as
    what is solved for.
    """
    values = random.standard_normal((rows, columns), dtype=kind.type)
    values *= START
    return torch.from_numpy(values)


def progress(value: Any) -> bool | None:
    """True, False or None."""
    return None if value is None else boolean("progress", value)


def visible(show_progress: Any, progress: bool | None) -> bool:
    """Whether there is a progress bar."""
    return bool(show_progress) and (sys.stderr.isatty() if progress is None else bool(progress))
