"""The operator ``hals_sweep``: a sweep of coordinate descent over a nonnegative factor.

What it computes is written down in :mod:`vecsmith.reference.hals_sweep`; how torch knows it, and
how the native module is called, in ``_hals_sweep.py``.
"""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from vecsmith.ops import _checks as check
from vecsmith.ops import _hals_sweep as registered


def hals_sweep(
    factor: Tensor,
    numerator: Tensor,
    gram: Tensor,
    l1: float = 0.0,
    *,
    backend: str | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """A sweep of hierarchical alternating least squares over W >= 0 of X ~ W H, in place: each
    component t in turn becomes what is best while the others stand, as they have become,

        w_t <- max(0, w_t + (n_t - l1 - sum_s g_ts w_s) / g_tt),    N = X H^T,  G = H H^T

    which never raises 1/2 |X - W H|^2 + l1 |W|_1 (Cichocki and Phan 2009). The same bits whatever
    the number of threads. A component with g_tt <= 0 stays; nan stays nan.

    Args:
        factor: W [m, k], float32 or float64, with rows or components one behind the other in
            memory (W or the transpose of W^T).
        numerator: N [m, k], of any strides.
        gram: G [k, k], symmetric; an l2 penalty is one on its diagonal.
        l1: >= 0.
        backend: "native", "triton" (k up to 2,048) or "reference" to force one.
        num_threads: default ``torch.get_num_threads()``.

    Returns:
        The violation, a float64 scalar: the sum over all numbers of |change of w_t| g_tt, in the
        units of the gradient.

    Raises:
        TypeError, ValueError: wrong types, shapes, strides, devices; a numerator or Gram matrix in
            the memory of the factor.
        RuntimeError: where a gradient would be lost: the sweep has none.
        BackendUnavailable: a forced backend that cannot run.
    """
    name = "hals_sweep"
    given = {"factor": factor, "numerator": numerator, "gram": gram}
    for what, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name}: expected {what} to be a torch.Tensor; got {type(value).__name__}"
            )
        if value.layout != torch.strided:
            raise TypeError(f"{name}: expected {what} to be a strided tensor; got {value.layout}")
    if factor.dtype not in registered.DTYPES:
        raise TypeError(f"{name}: expected factor of float32 or float64; got {factor.dtype}")
    if factor.dim() != 2:
        raise ValueError(f"{name}: expected factor of shape [m, k]; got {list(factor.shape)}")
    m, k = factor.shape
    for what, value, shape in (("numerator", numerator, (m, k)), ("gram", gram, (k, k))):
        if value.shape != shape:
            raise ValueError(
                f"{name}: expected {what} of shape {list(shape)}; got {list(value.shape)}"
            )
        if value.dtype != factor.dtype or value.device != factor.device:
            raise TypeError(
                f"{name}: expected {what} to be {factor.dtype} on {factor.device}; "
                f"got {value.dtype} on {value.device}"
            )
    if not (_rows_apart(factor) or _rows_apart(factor.T)):
        raise ValueError(
            f"{name}: expected factor with rows or components one behind the other; "
            f"got strides {factor.stride()}"
        )
    if not (_rows_apart(numerator) or _rows_apart(numerator.T)):
        numerator = numerator.contiguous()
    gram = gram.contiguous()
    if factor.numel():
        check.distinct(name, factor=_by_rows(factor), numerator=_by_rows(numerator))
        check.distinct(name, factor=_by_rows(factor), gram=gram)
    if torch.is_grad_enabled() and any(t.requires_grad for t in given.values()):
        raise RuntimeError(
            f"{name}: expected tensors that require no gradient, or torch.no_grad(); "
            "the sweep has none"
        )
    if not isinstance(l1, numbers.Real) or isinstance(l1, bool):
        raise TypeError(f"{name}: expected l1 to be a number; got {type(l1).__name__}")
    if not (math.isfinite(l1) and l1 >= 0):
        raise ValueError(f"{name}: expected l1 to be finite and >= 0; got {l1}")
    return torch.ops.vecsmith.hals_sweep(
        *(factor, numerator, gram, float(l1), backend or ""),
        0 if num_threads is None else check.threads(name, num_threads),
    )


def _rows_apart(matrix: Tensor) -> bool:
    """Whether its numbers follow one another along rows, which do not overlap."""
    (rows, width), (row, step) = matrix.shape, matrix.stride()
    return (width <= 1 or step == 1) and (rows <= 1 or row >= max(width, 1))


def _by_rows(matrix: Tensor) -> Tensor:
    return matrix if _rows_apart(matrix) else matrix.T
