"""vecsmith: train embeddings fast.

Word vectors from a text file: :class:`vecsmith.Word2Vec`, :class:`vecsmith.KeyedVectors`, or the
command ``vecsmith word2vec``. Sentence vectors that can be turned back into their sentence:
:class:`vecsmith.SentenceAutoencoder`. Matrices of low rank: :class:`vecsmith.TruncatedSVD`,
:class:`vecsmith.PCA`, :class:`vecsmith.NMF`, :class:`vecsmith.LSA`. Embedding tables:
:mod:`vecsmith.nn` and :mod:`vecsmith.optim`; :func:`vecsmith.accelerate` swaps them into an
existing model. The operators under them: :mod:`vecsmith.ops`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("vecsmith")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from vecsmith import data, eval, io, low_rank, models, nn, ops, optim
    from vecsmith import reference as reference
    from vecsmith.models.als import ALS
    from vecsmith.models.bpr import BPR
    from vecsmith.models.cosine_index import CosineIndex
    from vecsmith.models.explicit_als import ExplicitALS
    from vecsmith.models.keyed_vectors import KeyedVectors
    from vecsmith.models.linear_autoencoder import LinearAutoencoder
    from vecsmith.models.lsa import LSA
    from vecsmith.models.matrix_factorization_sgd import MatrixFactorizationSGD
    from vecsmith.models.nmf import NMF
    from vecsmith.models.pca import PCA
    from vecsmith.models.sentence_autoencoder import SentenceAutoencoder
    from vecsmith.models.truncated_svd import TruncatedSVD
    from vecsmith.models.word2vec import Word2Vec
    from vecsmith.nn.accelerate import accelerate

_MODULES = (
    "data",
    "eval",
    "io",
    "kernels",
    "low_rank",
    "models",
    "nn",
    "ops",
    "optim",
    "reference",
)
_CLASSES = {
    "ALS": "vecsmith.models.als",
    "BPR": "vecsmith.models.bpr",
    "CosineIndex": "vecsmith.models.cosine_index",
    "ExplicitALS": "vecsmith.models.explicit_als",
    "KeyedVectors": "vecsmith.models.keyed_vectors",
    "LSA": "vecsmith.models.lsa",
    "LinearAutoencoder": "vecsmith.models.linear_autoencoder",
    "MatrixFactorizationSGD": "vecsmith.models.matrix_factorization_sgd",
    "NMF": "vecsmith.models.nmf",
    "PCA": "vecsmith.models.pca",
    "SentenceAutoencoder": "vecsmith.models.sentence_autoencoder",
    "TruncatedSVD": "vecsmith.models.truncated_svd",
    "Word2Vec": "vecsmith.models.word2vec",
    "accelerate": "vecsmith.nn.accelerate",
}

__all__ = [
    "ALS",
    "BPR",
    "CosineIndex",
    "ExplicitALS",
    "KeyedVectors",
    "LSA",
    "LinearAutoencoder",
    "MatrixFactorizationSGD",
    "NMF",
    "PCA",
    "SentenceAutoencoder",
    "TruncatedSVD",
    "Word2Vec",
    "__version__",
    "accelerate",
    "data",
    "eval",
    "io",
    "low_rank",
    "models",
    "nn",
    "ops",
    "optim",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"vecsmith.{name}")
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f"module 'vecsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_CLASSES})
