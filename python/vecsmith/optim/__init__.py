"""Optimizers for embedding tables, with torch.optim's interface.

* Steps on sparse gradients: :class:`SparseSGD`, :class:`SparseAdagrad`, :class:`RowwiseAdagrad`,
  :class:`SparseAdam`, :class:`RowwiseAdam`.
* Steps inside of ``backward()``, no gradient stored: :func:`apply_optimizer_in_backward`.
* Clipping that takes sparse gradients too: :func:`clip_grad_norm_`, :func:`clip_grad_value_`.
"""

from __future__ import annotations

from vecsmith.optim.clip import clip_grad_norm_, clip_grad_value_
from vecsmith.optim.in_backward import (
    apply_optimizer_in_backward,
    get_in_backward_optimizers,
    remove_optimizer_in_backward,
)
from vecsmith.optim.sparse import (
    RowOptimizer,
    RowwiseAdagrad,
    RowwiseAdam,
    SparseAdagrad,
    SparseAdam,
    SparseSGD,
)

__all__ = [
    "RowOptimizer",
    "RowwiseAdagrad",
    "RowwiseAdam",
    "SparseAdagrad",
    "SparseAdam",
    "SparseSGD",
    "apply_optimizer_in_backward",
    "clip_grad_norm_",
    "clip_grad_value_",
    "get_in_backward_optimizers",
    "remove_optimizer_in_backward",
]
