"""Where in a training a chunk of `skipgram` is: numbers of the host, or of the device, where every
replay of a CUDA graph reads them anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _checks as check

# In the order of kernels/_survivors.py's Place and of csrc/cuda/skipgram.h.
_COUNTS = ("seed", "epoch", "first_position", "words_before")
_RATES = ("alpha", "min_alpha")
_DRAWN_BY = _COUNTS[:3]  # what keys the draws


def place_of(
    name: str, table: Tensor, **given: float | Tensor
) -> tuple[Tensor | None, Tensor | None, dict[str, Any]]:
    """(None, None, the checked numbers by name), or, where one of them is a tensor, all of them in
    two tensors of the device, int64 and float64, and zeros for numbers.

    given: alpha, and of a chunk all others of the place.

    Raises: TypeError, ValueError for what is no such number; RuntimeError where a CUDA graph is
    captured that would draw the same in every replay.
    """
    numbers: dict[str, Any] = {}
    for label, value in given.items():
        if isinstance(value, Tensor):
            kinds = (torch.int64,) if label in _COUNTS else (torch.float64, torch.float32)
            check.numbers(name, label, value, kinds, table)
        elif label in _RATES:
            check.rate(name, label, value)
            numbers[label] = float(value)
        elif label == "seed":
            numbers[label] = check.seed(name, value)
        else:
            check.integer(name, label, value, low=0)
            numbers[label] = value
    counts = [label for label in _COUNTS if label in given]
    if counts and not any(isinstance(given[label], Tensor) for label in _DRAWN_BY):
        check.refuse_capture(
            name, table, "seed, epoch or first_position to be a tensor, since a replay would draw "
            "the same negatives again,"
        )  # fmt: skip
    if not any(isinstance(value, Tensor) for value in given.values()):
        return None, None, numbers

    def together(labels: list[str], dtype: torch.dtype) -> Tensor:
        parts = []
        for label in labels:
            value = given[label]
            if isinstance(value, Tensor):
                parts.append(value.detach().reshape(()).to(dtype))
            else:
                parts.append(torch.full((), numbers[label], dtype=dtype, device=table.device))
        return torch.stack(parts)

    place = together(counts, torch.int64) if counts else None
    rates = together([label for label in _RATES if label in given], torch.float64)
    return place, rates, {label: 0 if label in _COUNTS else 0.0 for label in given}


def settled(name: str, place: Tensor, rates: Tensor) -> dict[str, Any]:
    """The numbers by name, read and checked. Raises: as :func:`place_of`."""
    found: dict[str, Any] = dict(zip(_COUNTS, place.tolist(), strict=True))
    found |= zip(_RATES, rates.tolist(), strict=True)
    for label, value in found.items():
        if label in _RATES:
            check.rate(name, label, value)
        elif label != "seed":
            check.integer(name, label, value, low=0)
    return found
