"""How the sequences of a batch are laid out for the operator ``rnn``, which takes rows by step,
longest sequence first: torch's PackedSequence layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass
class Layout:
    """Where the rows of a call lie.

    batch_sizes: [T] int64 on the CPU, how many sequences go on at each step.
    batch: B.
    order: [B], the sequence that each row of a step is; None: as given.
    inverse: [B], the row of each sequence.
    places: [N], where each row lies in the padded batch; None: the batch has no padding.
    steps: T of the padded batch; 0 for a PackedSequence.
    batch_first: whether the padded batch is [B, T, ...].
    """

    batch_sizes: Tensor
    batch: int
    order: Tensor | None = None
    inverse: Tensor | None = None
    places: Tensor | None = None
    steps: int = 0
    batch_first: bool = False

    def rows(self, padded: Tensor) -> Tensor:
        """[T, B, I] or [B, T, I] -> [N, I]."""
        if self.places is not None:
            flat = padded.reshape(self.steps * self.batch, padded.shape[2])
            return flat.index_select(0, self.places)
        padded = padded.transpose(0, 1) if self.batch_first else padded
        return padded.reshape(self.steps * self.batch, padded.shape[2])

    def padded(self, rows: Tensor) -> Tensor:
        """[N, R] -> [T, B, R] or [B, T, R], zero where a sequence has ended."""
        if self.places is None:
            padded = rows.view(self.steps, self.batch, rows.shape[1])
            return padded.transpose(0, 1) if self.batch_first else padded
        padded = rows.new_zeros(self.steps * self.batch, rows.shape[1])
        # The places are distinct, and this is the fastest of the scatters.
        padded = padded.index_add(0, self.places, rows)
        sizes = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        return padded.view(*sizes, rows.shape[1])

    def sorted(self, state: Tensor) -> Tensor:
        """[L, B, R], from the order of the sequences to that of the rows."""
        return state if self.order is None else state.index_select(1, self.order)

    def unsorted(self, state: Tensor) -> Tensor:
        """The way back."""
        return state if self.inverse is None else state.index_select(1, self.inverse)


def of_packed(packed: PackedSequence, batch: int | None) -> Layout:
    """Of a PackedSequence, which has been sorted and packed. ``batch``: B, where it is known."""
    _, sizes, order, inverse = packed
    if order is not None:
        batch = order.shape[0]
    elif batch is None or not torch.compiler.is_compiling():
        batch = int(sizes[0])
    return Layout(sizes, batch, order, inverse)


def of_padded(steps: int, batch: int, batch_first: bool) -> Layout:
    """Of a batch in which every sequence has all steps."""
    sizes = torch.full((steps,), batch, dtype=torch.int64, device="cpu")
    return Layout(sizes, batch, steps=steps, batch_first=batch_first)


def check_lengths(name: str, lengths: Any, steps: int, batch: int, device: torch.device) -> Tensor:
    """``lengths`` as [B] int64 on the CPU, in 1..T."""
    if isinstance(lengths, Sequence) and not isinstance(lengths, str | bytes):
        if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in lengths):
            raise TypeError(f"{name}: expected lengths to be integers; got {lengths!r}")
        lengths = torch.tensor(lengths, dtype=torch.int64, device="cpu")
    if not isinstance(lengths, Tensor):
        raise TypeError(
            f"{name}: expected lengths to be an integer tensor or a list; "
            f"got {type(lengths).__name__}"
        )
    kind = lengths.dtype
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise TypeError(f"{name}: expected lengths to be an integer tensor; got {kind}")
    if list(lengths.shape) != [batch]:
        raise ValueError(
            f"{name}: expected lengths of shape [{batch}], one for each sequence; "
            f"got {list(lengths.shape)}"
        )
    if lengths.device.type != "cpu" and lengths.device != device:
        raise ValueError(
            f"{name}: expected lengths on the CPU or on {device}, as the input; "
            f"got them on {lengths.device}"
        )
    lengths = lengths.to("cpu", torch.int64)
    # Under torch.compile the numbers are not known: one above T counts as T, one below 1 is refused
    # when the operator runs.
    if batch and not torch.compiler.is_compiling():
        least, most = (int(n) for n in torch.aminmax(lengths))
        if least < 1 or most > steps:
            raise ValueError(
                f"{name}: expected lengths in 1..{steps}, the steps of the input; "
                f"got {least if least < 1 else most}"
            )
    return lengths


def of_lengths(
    lengths: Tensor, steps: int, batch: int, batch_first: bool, device: torch.device
) -> Layout:
    """Of a batch of which only the first ``lengths`` [B] steps count: int64 on the CPU, in 1..T."""
    compiling = torch.compiler.is_compiling()
    if not compiling and bool((lengths == steps).all()):
        return of_padded(steps, batch, batch_first)
    order = torch.argsort(lengths, descending=True, stable=True)
    inverse = torch.argsort(order)
    goes_on = torch.arange(steps)[:, None] < lengths[order]  # [T, B]
    sizes = goes_on.sum(1)
    sizes = sizes[sizes > 0] if compiling else sizes[: int(lengths[order[0]])]
    step, row = goes_on.nonzero().unbind(1)
    sequence = order[row]
    places = sequence * steps + step if batch_first else step * batch + sequence
    there = [each.to(device, non_blocking=True) for each in (order, inverse, places)]
    return Layout(sizes, batch, *there, steps=steps, batch_first=batch_first)
