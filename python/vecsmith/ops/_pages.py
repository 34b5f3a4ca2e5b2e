"""Contiguous tensors on huge pages: tables and the optimizer states beside them."""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

_HUGE = 2 << 20  # bytes of a huge page on x86-64, and the usual size elsewhere
_ALIGNED = 256  # bytes
_MADV_HUGEPAGE = 14


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is a CPU tensor with memory: not a fake one, nor made under torch.func."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore
    )


def advise_huge_pages(tensor: Tensor) -> Tensor:
    """Asks the system for huge pages under a large CPU tensor that was not written yet, and returns
    it. Half of the time of a random row of a large table with small pages is the walk of the page
    table. A hint: nothing happens where the system has none to give."""
    if torch.compiler.is_compiling() or not _is_plain(tensor):
        return tensor
    size = tensor.numel() * tensor.element_size()
    first = -(-tensor.data_ptr() // _HUGE) * _HUGE
    last = (tensor.data_ptr() + size) // _HUGE * _HUGE
    advise = _madvise()
    if advise is not None and last > first and tensor.is_contiguous():
        advise(first, last - first, _MADV_HUGEPAGE)
    return tensor


def empty_pages(
    *shape: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """``torch.empty(shape)``, on huge pages where it is on the CPU and the system has them. An
    ordinary tensor: contiguous, with a storage of torch's own."""
    return advise_huge_pages(torch.empty(shape, dtype=dtype, device=device))


def empty_aligned_pages(
    *shape: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """:func:`empty_pages` at an address that is a multiple of 256 bytes, in a storage that is a
    little larger. Processors fetch cache lines in aligned pairs, and a row that begins in the
    middle of a pair costs one more."""
    size = math.prod(shape)
    room = torch.empty(size + _ALIGNED, dtype=dtype, device=device)
    if not _is_plain(room):
        return torch.empty(shape, dtype=dtype, device=device)
    skip = -room.data_ptr() % _ALIGNED // room.element_size()
    return advise_huge_pages(room)[skip : skip + size].view(shape)
