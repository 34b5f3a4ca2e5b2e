"""``spmm`` on a GPU: the Triton kernel for the operator that :mod:`vecsmith.ops._spmm` registers.
The arguments have been checked by :mod:`vecsmith.ops.spmm`. Importing this does not import
Triton."""

from __future__ import annotations

from torch import Tensor


def spmm(indptr: Tensor, indices: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """As :func:`vecsmith.reference.spmm.spmm`, on a GPU or, in Triton's interpreter, on the CPU."""
    from vecsmith.kernels import spmm as kernels

    return kernels.spmm(indptr, indices, values, dense)
