"""Words and random vectors for the tests of KeyedVectors."""

from __future__ import annotations

import pytest
import torch

from vecsmith import KeyedVectors

Gensim = pytest.importorskip("gensim").models.KeyedVectors

WORDS = [f"word{i}" for i in range(300)]


def table(rows: int = 300, dim: int = 20, stride: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, stride or dim, generator=generator)[:, :dim]


def twins() -> tuple[KeyedVectors, Gensim]:
    """The same vectors in ours and in gensim's."""
    vectors = table(stride=32)
    theirs = Gensim(20)
    theirs.add_vectors(WORDS, vectors.numpy().copy())
    return KeyedVectors(WORDS, vectors), theirs
