"""From a mask of surviving tokens to what the GPU kernels of `skipgram` walk over.

Sub-sampling decides token by token; windows are taken over what is left of a sentence. So a first
kernel marks the survivors, and the functions here pack them with torch's own device-side
operations. One host synchronization (the number of survivors, which sizes the launches); about 28
bytes a survivor, against the kilobytes a training step moves. What goes into a CUDA graph cannot
wait for the host: there arrays and launches have the size of the chunk, and the number of survivors
stays on the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
STREAM_SUBSAMPLE, STREAM_WINDOW, STREAM_NEGATIVE = 0, 1, 2
_MASK = (1 << 64) - 1


class Survivors(NamedTuple):
    """words [M] int32; positions [M] int64 (corpus position of each); first, last [M] int64: the
    survivors of its own sentence are first[k] .. last[k] - 1."""

    words: Tensor
    positions: Tensor
    first: Tensor
    last: Tensor


def mix(z: int) -> int:
    """SplitMix64's finalizer on a Python int (Steele, Lea, Flood 2014)."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def stream_key(seed: int, epoch: int, stream: int) -> int:
    """key(stream) of the reference, as the int64 that has its bits."""
    key = mix((seed + GOLDEN) & _MASK)
    key = mix((key + epoch + GOLDEN) & _MASK)
    key = mix((key + stream + GOLDEN) & _MASK)
    return key - (1 << 64) if key >> 63 else key


def refuse_sync(sync_every: int) -> None:
    """Neither GPU backend orders its updates, so neither can promise the same bits."""
    if sync_every:
        raise RuntimeError(
            f"skipgram: expected sync_every=0 on a GPU; got sync_every={sync_every}; "
            "deterministic mode runs on the CPU"
        )


def pack(
    mask: Tensor | None, tokens: Tensor, offsets: Tensor, start: int, stop: int, first_position: int
) -> Survivors:
    """Pack the survivors of tokens[start:stop], which the sentences of ``offsets`` cover.

    mask: bool [stop - start], or None where every token survives; tokens: int32 [N]; offsets: int64
    [S+1], from ``start`` to ``stop``.
    """
    if mask is None:
        index = torch.arange(start, stop, device=tokens.device)
        bounds = offsets - start
    else:
        index = mask.nonzero().squeeze(1) + start
        before = torch.zeros(stop - start + 1, dtype=torch.int64, device=tokens.device)
        torch.cumsum(mask, 0, out=before[1:])
        bounds = before[offsets - start]
    # The last sentence that starts at or before the token (empty ones may start there as well).
    sentence = torch.searchsorted(offsets, index, right=True) - 1
    return Survivors(tokens[index], index + first_position, bounds[sentence], bounds[sentence + 1])


def pack_on_device(
    mask: Tensor | None, tokens: Tensor, offsets: Tensor, first_position: Tensor
) -> tuple[Survivors, Tensor]:
    """The same of all N tokens without a word to the host: arrays of N entries, of which the first
    ``live`` (int64 [1], on the device) count. mask: bool [N]; first_position: int64 []."""
    count = tokens.numel()
    index = torch.arange(count, device=tokens.device)
    covered = (index >= offsets[0]) & (index < offsets[-1])
    mask = covered if mask is None else mask & covered
    before = torch.zeros(count + 1, dtype=torch.int64, device=tokens.device)
    torch.cumsum(mask, 0, out=before[1:])
    # Survivor k is the first token up to which there are k + 1.
    source = torch.searchsorted(before[1:], index, right=True).clamp_(max=count - 1)
    sentence = torch.searchsorted(offsets, source, right=True) - 1
    sentence = sentence.clamp_(0, offsets.numel() - 2)
    bounds = before.index_select(0, offsets)
    found = Survivors(
        tokens.index_select(0, source),
        source + first_position,
        bounds.index_select(0, sentence),
        bounds.index_select(0, sentence + 1),
    )
    return found, before[-1:].clone()


class Place(NamedTuple):
    """Where in a training a chunk is, as a CUDA graph reads it anew in every replay: numbers int64
    [4] (seed, epoch, first_position, words_before) and rates float64 [2] (alpha, min_alpha)."""

    numbers: Tensor
    rates: Tensor


def rates(
    positions: Tensor,
    alpha: float | Tensor,
    min_alpha: float | Tensor,
    words_before: int | Tensor,
    words_total: int,
) -> Tensor:
    """alpha(p) at each position, in fp64 and then rounded to float32. positions: [M] -> [M]"""
    done = (positions + words_before).double() / words_total
    rate = alpha + (min_alpha - alpha) * done
    if isinstance(alpha, Tensor):
        assert isinstance(min_alpha, Tensor)
        return torch.maximum(rate, torch.minimum(alpha, min_alpha)).float()
    assert not isinstance(min_alpha, Tensor)
    return rate.clamp_(min=min(alpha, min_alpha)).float()
