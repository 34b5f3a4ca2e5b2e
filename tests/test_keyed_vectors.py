"""KeyedVectors: the store; memory that is shared, norms that are never stale."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from vecsmith import KeyedVectors
from word_tables import WORDS, table, twins

Gensim = pytest.importorskip("gensim").models.KeyedVectors


@pytest.fixture(scope="module")
def pair() -> tuple[KeyedVectors, Gensim]:
    return twins()


def test_access(pair):
    ours, theirs = pair
    assert len(ours) == 300
    assert ours.vector_size == 20
    assert ours.index_to_key == WORDS
    assert ours.key_to_index["word7"] == 7
    assert repr(ours) == "KeyedVectors<vector_size=20, 300 keys>"
    assert np.array_equal(ours["word7"], theirs["word7"])
    assert np.array_equal(ours[7], theirs[7])
    assert np.array_equal(ours[["word7", 3]], theirs[["word7", 3]])
    assert "word7" in ours
    assert 7 in ours
    with pytest.raises(ValueError, match="read-only"):
        ours["word7"][0] = 1
    assert ours.has_index_for("word7")
    chosen = ours.vectors_for_all(["word9", "nobody", "word9", "word1"])
    assert chosen.index_to_key == ["word9", "word1"]
    assert np.array_equal(chosen.vectors, ours[["word9", "word1"]])


def test_construction_is_checked():
    with pytest.raises(ValueError, match="'a' twice"):
        KeyedVectors(["a", "b", "a"], torch.ones(3, 2))
    for wrong in (torch.ones(3, 2), torch.ones(2), torch.ones(2, 0), torch.ones(2, 2, 2)):
        with pytest.raises(ValueError, match="expected vectors of shape"):
            KeyedVectors(["a", "b"], wrong)
    for wrong in (torch.ones(2, 2, dtype=torch.int64), np.ones((2, 2), int), [[1.0], [2.0]], None):
        with pytest.raises(TypeError, match="expected"):
            KeyedVectors(["a", "b"], wrong)
    for wrong in ("ab", [1, 2], [b"a", "b"]):
        with pytest.raises(TypeError, match="expected"):
            KeyedVectors(wrong, torch.ones(2, 2))
    for wrong in ([1], [1.5, 2.5], [[1, 2]]):
        with pytest.raises(ValueError, match="counts"):
            KeyedVectors(["a", "b"], torch.ones(2, 2), wrong)
    with pytest.raises(ValueError, match="CPU"):
        KeyedVectors(["a"], torch.ones(1, 2, device="meta"))
    with pytest.raises(ValueError, match="vector size"):
        KeyedVectors(0)
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        kv = KeyedVectors(["a", "b"], torch.ones(2, 2, dtype=kind))
        assert kv.weight.dtype == torch.float32
        assert kv.similarity("a", "b") == pytest.approx(1)
    backwards = KeyedVectors(["a", "b"], np.arange(4, dtype=np.float32).reshape(2, 2)[::-1])
    assert backwards["a"].tolist() == [2, 3]
    assert KeyedVectors(["a", "b"], table(2, 4).T[:2]).vectors.shape == (2, 2)
    empty = KeyedVectors([], torch.empty(0, 3))
    assert len(empty) == 0
    assert empty.most_similar(np.ones(3)) == []


def test_attributes():
    kv = KeyedVectors(["a", "b"], torch.eye(2), [3, 9])
    assert kv.get_vecattr("b", "count") == 9
    kv.set_vecattr("a", "count", 4)
    assert kv.get_vecattr("a", "count") == 4
    kv.set_vecattr("a", "tag", "noun")
    assert kv.get_vecattr("a", "tag") == "noun"
    kv.set_vecattr("b", "weight", 0.5)
    assert kv.get_vecattr("b", "weight") == 0.5
    with pytest.raises(KeyError, match="nothing"):
        kv.get_vecattr("a", "nothing")
    kv.sort_by_descending_frequency()
    assert kv.index_to_key == ["b", "a"]
    assert kv["b"].tolist() == [0, 1]
    assert kv.get_vecattr("a", "tag") == "noun"
    with pytest.raises(KeyError, match="counts"):
        KeyedVectors(["a"], torch.ones(1, 1)).sort_by_descending_frequency()


def test_vectors_are_added_and_replaced():
    kv = KeyedVectors(2)
    kv.add_vectors(["a", "b", "a"], [[1, 2], [3, 4], [5, 6]])
    assert kv.vectors.tolist() == [[1, 2], [3, 4]]
    assert kv.add_vector("c", np.array([7, 8])) == 2
    kv["b"] = np.array([0, 1])
    kv[["c", "d"]] = np.array([[9, 9], [1, 1]])
    assert kv.vectors.tolist() == [[1, 2], [0, 1], [9, 9], [1, 1]]
    assert kv.index_to_key == ["a", "b", "c", "d"]
    assert kv.most_similar("c", topn=1)[0][0] == "d"
    with pytest.raises(ValueError, match="expected vectors"):
        kv.add_vectors(["e"], [[1, 2, 3]])
    with pytest.raises(TypeError, match="expected a word"):
        kv.add_vectors([99], [[1, 2]])
    kv = KeyedVectors(["a"], torch.ones(1, 2), [5])
    kv.add_vectors(["b"], [[1, 2]])
    assert kv.get_vecattr("b", "count") == 0
    kv.unit_normalize_all()
    np.testing.assert_allclose(kv.norms, 1, atol=1e-6)


def test_copies_are_independent():
    kv = KeyedVectors(WORDS, table())
    twin = copy.deepcopy(kv)
    twin.vectors[0] = 1
    assert not np.array_equal(kv["word0"], twin["word0"])


# --- shared storage -------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [20, 32])
def test_everything_is_one_memory(stride):
    vectors = table(stride=stride)
    kv = KeyedVectors(WORDS, vectors)
    assert isinstance(kv.weight, torch.nn.Parameter)
    assert not kv.weight.requires_grad
    frozen, free = kv.to_embedding(), kv.to_embedding(freeze=False)
    assert not frozen.weight.requires_grad
    assert free.weight.requires_grad
    for other in (kv.weight, frozen.weight, free.weight):
        assert other.data_ptr() == vectors.data_ptr()
        assert other.stride() == vectors.stride()
    kv.vectors[3] = 8
    ids = torch.tensor([3, 3, 1])
    for view in (vectors[ids], kv.weight[ids], frozen(ids), free(ids)):
        assert torch.equal(view[0], torch.full((20,), 8.0))
    array = np.zeros((2, 3), dtype=np.float32)
    kv = KeyedVectors(["a", "b"], array)
    array[1] = 5
    assert kv["b"].tolist() == [5, 5, 5]
    frozen_array = array.copy()
    frozen_array.flags.writeable = False
    KeyedVectors(["a", "b"], frozen_array).vectors[0] = 9  # a copy, since torch could write into it
    assert frozen_array[0].tolist() == [0, 0, 0]


def train_step(kv: KeyedVectors, optimizer: type, **options: object) -> None:
    embedding = kv.to_embedding(freeze=False)
    step = optimizer(embedding.parameters(), **options)
    embedding(torch.tensor([0, 4])).square().sum().backward()
    step.step()


class Writers:
    """Every documented way to write into the table."""

    @staticmethod
    def numpy_view(kv: KeyedVectors) -> None:
        kv.vectors[4] *= 3

    @staticmethod
    def numpy_row(kv: KeyedVectors) -> None:
        row = kv.vectors[4:5][0]
        row[:] = 7

    @staticmethod
    def numpy_inplace(kv: KeyedVectors) -> None:
        kv.vectors *= np.linspace(0.5, 2, 300, dtype=np.float32)[:, None]

    @staticmethod
    def weight(kv: KeyedVectors) -> None:
        kv.weight[4] = 3

    @staticmethod
    def detached(kv: KeyedVectors) -> None:
        kv.weight.detach().mul_(torch.linspace(1, 3, 300)[:, None])

    @staticmethod
    def sgd(kv: KeyedVectors) -> None:
        train_step(kv, torch.optim.SGD, lr=0.4)

    @staticmethod
    def adam(kv: KeyedVectors) -> None:
        train_step(kv, torch.optim.Adam, lr=1.0)

    @staticmethod
    def setitem(kv: KeyedVectors) -> None:
        kv["word4"] = np.full(20, 2.0)

    @staticmethod
    def assigned(kv: KeyedVectors) -> None:
        kv.vectors = table(seed=9).numpy()

    @staticmethod
    def kernel(kv: KeyedVectors) -> None:
        # What ops that write through raw pointers do.
        detached = kv.weight.detach()
        detached.data[4] = 6
        torch.autograd.graph.increment_version(detached)


@pytest.mark.parametrize("write", [name for name in vars(Writers) if not name.startswith("_")])
def test_norms_are_right_after_every_way_of_writing(write):
    vectors = table()
    kv = KeyedVectors(WORDS, vectors)
    before = kv.most_similar("word1", topn=300)
    assert kv.norms is kv.norms  # cached
    getattr(Writers, write)(kv)
    fresh = KeyedVectors(WORDS, kv.weight.detach().clone())
    assert kv.most_similar("word1", topn=300) == fresh.most_similar("word1", topn=300)
    assert kv.most_similar("word1", topn=300) != before
    np.testing.assert_array_equal(kv.norms, fresh.norms)


def test_norms_while_a_view_is_alive_and_after():
    kv = KeyedVectors(WORDS, table())
    view = kv.vectors
    part = view[3:5].reshape(-1)
    del view
    kv.fill_norms()
    part[:] = 2  # later than the norms
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 2, rtol=1e-6)
    part[:] = 3
    del part
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 3, rtol=1e-6)
    assert kv.norms is kv.norms


def test_norms_of_a_borrowed_array_and_by_force():
    array = table().numpy().copy()
    kv = KeyedVectors(WORDS, array)
    kv.fill_norms()
    array[3] = 2
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 2, rtol=1e-6)
    kv = KeyedVectors(WORDS, table())
    kv.fill_norms()
    kv.weight.data[3] = 2  # nobody can see this
    kv.fill_norms(force=True)
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 2, rtol=1e-6)
    kv.weight.data[3] = 3
    kv.norms = None
    np.testing.assert_allclose(kv.norms[3], math.sqrt(20) * 3, rtol=1e-6)
    with pytest.raises(ValueError, match="expected None"):
        kv.norms = np.ones(300)
