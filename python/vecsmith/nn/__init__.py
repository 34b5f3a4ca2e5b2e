"""Layers with torch.nn's interface on vecsmith's operators.

* :class:`Embedding`, :class:`EmbeddingBag`: torch.nn's arguments and state_dict, both ways.
* :class:`EmbeddingBagCollection`: many tables in one call, with torchrec's names.
* :class:`Table`: the interface behind which the rows of a table are kept.
* :class:`HashedTable`, :class:`QuotientRemainderTable`, :class:`LowRankTable`,
  :class:`TensorTrainTable`: tables of fewer numbers than they stand for.
* :class:`LSTM`, :class:`GRU`, :class:`RNN` and their cells, also with torch.nn's arguments and
  state_dict; :class:`ResidualRNN`.
* :func:`generate`: tokens from a model, one after the other.
* :class:`RotationBinding`: sentences as sums of rotated token vectors, and back;
  :class:`NGramLanguageModel`: what helps it where the vector is short.
* :class:`RecurrentEncoder`, :class:`RecurrentDecoder`: the same by recurrent layers, which learn.

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
from vecsmith.nn.generate import generate
from vecsmith.nn.ngram import NGramLanguageModel
from vecsmith.nn.recurrent import GRU, LSTM, RNN, ResidualRNN
from vecsmith.nn.recurrent_cells import GRUCell, LSTMCell, RNNCell
from vecsmith.nn.rotation_binding import RotationBinding
from vecsmith.nn.sentence_decoders import RecurrentDecoder
from vecsmith.nn.sentence_encoders import RecurrentEncoder
from vecsmith.nn.table import Table

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "CachedTable",
    "EmbeddingBagCollection",
    "EmbeddingBagConfig",
    "GRU",
    "GRUCell",
    "HashedTable",
    "LSTM",
    "LSTMCell",
    "LowRankTable",
    "NGramLanguageModel",
    "QuotientRemainderTable",
    "RNN",
    "RNNCell",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "ResidualRNN",
    "RotationBinding",
    "Table",
    "TensorTrainTable",
    "generate",
]
