"""``hals_sweep`` on a GPU: the Triton kernel for the operator that
:mod:`vecsmith.ops._hals_sweep` registers. The arguments have been checked by
:mod:`vecsmith.ops.hals_sweep`. Importing this does not import Triton."""

from __future__ import annotations

from torch import Tensor

MOST = 2048  # components of a row that a program keeps


def hals_sweep(factor: Tensor, numerator: Tensor, gram: Tensor, l1: float) -> Tensor:
    """As :func:`vecsmith.reference.hals_sweep.hals_sweep`, on a GPU or, in Triton's interpreter, on
    the CPU, for up to ``MOST`` components."""
    from vecsmith.kernels import hals_sweep as kernels

    return kernels.hals_sweep(factor, numerator, gram, l1)
