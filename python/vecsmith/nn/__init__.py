"""Layers with torch.nn's interface on vecsmith's operators.

* :class:`Embedding`, :class:`EmbeddingBag`: torch.nn's arguments and state_dict, both ways.
* :class:`EmbeddingBagCollection`: many tables in one call, with torchrec's names.
* :class:`Table`: the interface behind which the rows of a table are kept.
* :class:`HashedTable`, :class:`QuotientRemainderTable`, :class:`LowRankTable`,
  :class:`TensorTrainTable`: tables of fewer numbers than they stand for.

:func:`vecsmith.accelerate` swaps the layers of an existing model for these.
"""

from __future__ import annotations

from vecsmith.nn.cached_table import CachedTable
from vecsmith.nn.collection import EmbeddingBagCollection, EmbeddingBagConfig
from vecsmith.nn.compressed import (
    HashedTable,
    LowRankTable,
    QuotientRemainderTable,
    TensorTrainTable,
)
from vecsmith.nn.embedding import Embedding, EmbeddingBag
from vecsmith.nn.table import Table

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "CachedTable",
    "EmbeddingBagCollection",
    "EmbeddingBagConfig",
    "HashedTable",
    "LowRankTable",
    "QuotientRemainderTable",
    "Table",
    "TensorTrainTable",
]
