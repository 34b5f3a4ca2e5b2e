"""The only door to the hot paths. One public module per operator; each checks its arguments once,
calls its registered ``torch.ops.vecsmith`` operator, and leaves the rest to a backend.

``registry()`` lists the operators and their backends, ``explain()`` says which backend would be
used here and why (``vecsmith info`` prints it).
"""

from __future__ import annotations

from vecsmith.ops._cells import Cells
from vecsmith.ops._packed_rows import PackedRows
from vecsmith.ops._quantized import dequantize_rows, quantize_rows
from vecsmith.ops._registry import (
    Backend,
    BackendUnavailable,
    Operator,
    choose,
    explain,
    registry,
)
from vecsmith.ops._tables import empty_table
from vecsmith.ops._update_rule import UpdateRule
from vecsmith.ops.als_solve import als_solve
from vecsmith.ops.cosine_topk import (
    TopK,
    cosine_topk,
    linear_topk,
    match_mask,
    nearest_token_accuracy,
)
from vecsmith.ops.embedding_bag import (
    embedding,
    embedding_bag,
    embedding_bag_gradient,
    embedding_bag_update,
    embedding_bags,
)
from vecsmith.ops.factor_sgd import FactorBlocks, factor_blocks, factor_sgd, factor_sgd_bpr
from vecsmith.ops.hals_sweep import hals_sweep
from vecsmith.ops.rnn import rnn
from vecsmith.ops.skipgram import skipgram, skipgram_pairs
from vecsmith.ops.spmm import spmm

__all__ = [
    "Backend",
    "BackendUnavailable",
    "Cells",
    "FactorBlocks",
    "Operator",
    "PackedRows",
    "TopK",
    "UpdateRule",
    "als_solve",
    "choose",
    "cosine_topk",
    "dequantize_rows",
    "embedding",
    "embedding_bag",
    "embedding_bag_gradient",
    "embedding_bag_update",
    "embedding_bags",
    "empty_table",
    "explain",
    "factor_blocks",
    "factor_sgd",
    "factor_sgd_bpr",
    "hals_sweep",
    "linear_topk",
    "match_mask",
    "nearest_token_accuracy",
    "quantize_rows",
    "registry",
    "rnn",
    "skipgram",
    "skipgram_pairs",
    "spmm",
]
