"""Interactions to test with, and what all of them must be."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy import sparse

from vecsmith.data import Interactions

INTEGERS = st.integers(-(2**63), 2**63 - 1)
WORDS = st.text(st.characters(codec="utf-8"), max_size=5).filter(lambda word: word[-1:] != "\0")
PAIRS = st.one_of(
    st.lists(st.tuples(INTEGERS, WORDS), unique=True),
    st.lists(st.tuples(WORDS, INTEGERS), unique=True),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True),
)


def triples(interactions):
    """{(user, item): rating}."""
    matrix = interactions.matrix.tocoo()
    users = interactions.users[matrix.row].tolist()
    items = interactions.items[matrix.col].tolist()
    return dict(zip(zip(users, items, strict=True), matrix.data.tolist(), strict=True))


def check_canonical(interactions):
    matrix = interactions.matrix
    assert isinstance(matrix, sparse.csr_matrix)
    assert matrix.dtype == np.float32
    assert matrix.shape == interactions.shape
    assert matrix.indices.dtype == matrix.indptr.dtype
    copy = sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), matrix.shape)
    copy.check_format()
    assert copy.has_canonical_format
    assert np.isfinite(matrix.data).all()


def random_interactions(seed=0, shape=(40, 25), density=0.2, timed=True):
    """Empty rows and columns are among them, and users with one cell."""
    generator = np.random.default_rng(seed)
    dense = generator.integers(1, 6, shape) * (generator.random(shape) < density)
    dense[3] = 0
    dense[:, 4] = 0
    dense[5] = 0
    dense[5, 7] = 2
    users, items = generator.permutation(10**10 + np.arange(shape[0])), np.arange(shape[1])
    made = Interactions.from_scipy(dense, users, items)
    if timed:
        made.timestamps = generator.integers(0, 30, len(made))
    return made
