"""vecsmith: train embeddings fast.

Word vectors from a text file: :class:`vecsmith.Word2Vec`, :class:`vecsmith.KeyedVectors`, or the
command ``vecsmith word2vec``. The operators under them: :mod:`vecsmith.ops`.
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
    from vecsmith import data, eval, io, models, ops
    from vecsmith import reference as reference
    from vecsmith.models.keyed_vectors import KeyedVectors
    from vecsmith.models.word2vec import Word2Vec

_MODULES = ("data", "eval", "io", "kernels", "models", "ops", "reference")
_CLASSES = {
    "KeyedVectors": "vecsmith.models.keyed_vectors",
    "Word2Vec": "vecsmith.models.word2vec",
}

__all__ = ["KeyedVectors", "Word2Vec", "__version__", "data", "eval", "io", "models", "ops"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"vecsmith.{name}")
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f"module 'vecsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_CLASSES})
