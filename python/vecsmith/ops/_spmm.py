"""``spmm`` as torch knows it: the registered operator with its fake and derivative, and the
backends. The arguments have been checked by :mod:`vecsmith.ops.spmm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vecsmith.ops import _triton_spmm
from vecsmith.ops._registry import Backend, Operator, choose, native, register
from vecsmith.reference import spmm as reference

DTYPES = (torch.float32, torch.float64)

_LIBRARY = torch.library.Library("vecsmith", "FRAGMENT")
_LIBRARY.define(
    "spmm(Tensor indptr, Tensor indices, Tensor values, Tensor dense, str backend, "
    "int num_threads) -> Tensor"
)

OPERATOR = register(
    Operator(
        "spmm",
        (
            Backend("native", "cpu", DTYPES),
            Backend("triton", "cuda", DTYPES),
            Backend("reference", "any", DTYPES),
        ),
        ("spmm",),
    )
)

# Gathered numbers that a derivative looks at together.
_GATHERED = 1 << 22


def _address(tensor: Tensor) -> int:
    return 0 if tensor.numel() == 0 else tensor.data_ptr()


def _native(
    indptr: Tensor, indices: Tensor, values: Tensor, dense: Tensor, num_threads: int
) -> Tensor:
    rows, (columns, width) = len(indptr) - 1, dense.shape
    out = dense.new_empty(rows, width)
    native().spmm(
        (
            *(_address(t) for t in (indptr, indices, values)),
            *(t.dtype == torch.int64 for t in (indptr, indices)),
            *(rows, columns),
        ),
        dense.dtype == torch.float64,
        (_address(dense), *dense.stride()),
        *(_address(out), out.stride(0), width),
        num_threads,
    )
    return out


def _forward(indptr, indices, values, dense, backend, num_threads):
    chosen = choose(OPERATOR, dense.device.type, dense.dtype, backend or None)
    indptr, indices, values = (t.contiguous() for t in (indptr, indices, values))
    if chosen == "native":
        return _native(indptr, indices, values, dense, num_threads or torch.get_num_threads())
    multiply = _triton_spmm.spmm if chosen == "triton" else reference.spmm
    return multiply(indptr, indices, values, dense)


def _fake(indptr, indices, values, dense, backend, num_threads):
    return dense.new_empty(indptr.shape[0] - 1, dense.shape[1])


def _context(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.backend, ctx.num_threads = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    indptr, indices, values, dense = ctx.saved_tensors
    rows = reference.rows_of(indptr, len(indices))
    of_values = of_dense = None
    if ctx.needs_input_grad[2]:
        at_once = max(1, _GATHERED // max(dense.shape[1], 1))
        parts = [slice(begin, begin + at_once) for begin in range(0, len(indices), at_once)]
        sampled = [(grad[rows[part]] * dense[indices[part].long()]).sum(1) for part in parts]
        of_values = torch.cat(sampled) if sampled else torch.zeros_like(values)
    if ctx.needs_input_grad[3]:
        # The transpose: its rows are the columns, each with its cells in the order of the rows.
        ordered, order = torch.sort(indices, stable=True)
        columns = torch.arange(len(dense) + 1, device=dense.device, dtype=indices.dtype)
        begins = torch.searchsorted(ordered, columns)
        options = (ctx.backend, ctx.num_threads)
        of_dense = torch.ops.vecsmith.spmm(begins, rows[order], values[order], grad, *options)
    return None, None, of_values, of_dense, None, None


_LIBRARY.impl("spmm", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("vecsmith::spmm", _fake)
torch.library.register_autograd("vecsmith::spmm", _backward, setup_context=_context, lib=_LIBRARY)
