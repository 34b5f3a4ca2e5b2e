"""``hals_sweep`` as torch knows it: the registered operator with its fake, and the backends. The
arguments have been checked by :mod:`vecsmith.ops.hals_sweep`."""

from __future__ import annotations

import torch
from torch import Tensor

from vecsmith.ops import _triton_hals_sweep
from vecsmith.ops._registry import Backend, Operator, choose, native, register
from vecsmith.reference import hals_sweep as reference

DTYPES = (torch.float32, torch.float64)

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_LIBRARY.define(
    "hals_sweep(Tensor(a!) factor, Tensor numerator, Tensor gram, float l1, str backend, "
    "int num_threads) -> Tensor"
)

OPERATOR = register(
    Operator(
        "hals_sweep",
        (
            Backend("native", "cpu", DTYPES),
            Backend("triton", "cuda", DTYPES),
            Backend("reference", "any", DTYPES),
        ),
        ("hals_sweep",),
    )
)


def _address(tensor: Tensor) -> int:
    return 0 if tensor.numel() == 0 else tensor.data_ptr()


def _native(factor: Tensor, numerator: Tensor, gram: Tensor, l1: float, num_threads: int) -> Tensor:
    moved = native().hals_sweep(
        (_address(factor), *factor.stride()),
        (_address(numerator), *numerator.stride()),
        factor.dtype == torch.float64,
        *factor.shape,
        *(_address(gram), l1, num_threads),
    )
    return torch.tensor(moved, dtype=torch.float64)


def _forward(factor, numerator, gram, l1, backend, num_threads):
    among = ["native", "reference"]
    if factor.shape[1] <= _triton_hals_sweep.MOST:
        among.append("triton")
    device, dtype = factor.device.type, factor.dtype
    chosen = choose(OPERATOR, device, dtype, backend or None, among=among)
    gram = gram.contiguous()
    if chosen == "native":
        threads = num_threads or torch.get_num_threads()
        moved = _native(factor, numerator, gram, l1, threads)
    elif chosen == "triton":
        moved = _triton_hals_sweep.hals_sweep(factor, numerator, gram, l1)
    else:
        moved = reference.hals_sweep(factor, numerator, gram, l1)
    torch.autograd.graph.increment_version(factor)
    return moved


def _fake(factor, numerator, gram, l1, backend, num_threads):
    return factor.new_empty((), dtype=torch.float64)


_LIBRARY.impl("hals_sweep", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("vecsmith::hals_sweep", _fake)
