"""The vocabulary: its tables against their definitions, against word2vec's and gensim's own."""

from __future__ import annotations

import heapq
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsmith import _native
from vecsmith.data import Corpus, Vocabulary

COUNTS = st.lists(st.integers(0, 10**12) | st.integers(0, 5), min_size=1, max_size=80)


def vocabulary_of(counts) -> Vocabulary:
    return Vocabulary([f"w{i}" for i in range(len(counts))], np.array(counts, dtype=np.int64))


# --- the alias table ------------------------------------------------------------------------------


def implied(table: torch.Tensor) -> list[Fraction]:
    """The distribution that drawing from an alias table has, exactly."""
    size = len(table)
    chance = [Fraction(0)] * size
    for i, (threshold, alias) in enumerate(table.tolist()):
        chance[i] += Fraction(threshold, 2**31)
        chance[alias] += 1 - Fraction(threshold, 2**31)
    return [c / size for c in chance]


@settings(deadline=None, max_examples=200)
@given(COUNTS.filter(any), st.sampled_from([0.75, 1.0, 0.0, 0.5, -0.5]))
def test_alias_table(counts, exponent):
    vocabulary = vocabulary_of(counts)
    table = vocabulary.alias_table(exponent)
    assert table.dtype == torch.int32
    assert table.shape == (len(counts), 2)
    assert (table >= 0).all()
    assert (table[:, 1] < len(counts)).all()
    weights = [Fraction(float(c) ** exponent) if c else Fraction(0) for c in counts]
    total = sum(weights)
    for count, chance, weight in zip(counts, implied(table), weights, strict=True):
        if count == 0:
            assert chance == 0
        # A unit of rounding, and what doubles lose on the way.
        error = Fraction(1, 2**31 * len(counts)) + weight / total / 2**44
        assert abs(chance - weight / total) <= error
    assert torch.equal(table, vocabulary.alias_table(exponent))


@pytest.mark.parametrize("count", [1, 5, 10**15])
def test_alias_table_of_one_word(count):
    ((threshold, alias),) = vocabulary_of([count]).alias_table().tolist()
    assert (threshold, alias) == (2**31 - 1, 0)


def test_alias_table_of_a_real_size():
    counts = (1e9 / np.arange(1, 300_001) ** 1.1).astype(np.int64)
    table = vocabulary_of(counts).alias_table().long()
    chance = torch.zeros(len(counts), dtype=torch.float64)
    chance += table[:, 0].double() / 2**31
    chance.index_add_(0, table[:, 1], 1 - table[:, 0].double() / 2**31)
    weights = torch.from_numpy(counts).double() ** 0.75
    expected = weights / weights.sum()
    assert ((chance / len(counts) - expected).abs() < 2.0**-31 / len(counts) + 1e-15).all()


def test_alias_table_errors():
    assert vocabulary_of([]).alias_table().shape == (0, 2)
    with pytest.raises(ValueError, match="no word can be drawn"):
        vocabulary_of([0, 0]).alias_table()
    with pytest.raises(ValueError, match="no word can be drawn"):
        vocabulary_of([10, 10]).alias_table(500.0)
    with pytest.raises(ValueError, match="finite ns_exponent"):
        vocabulary_of([1]).alias_table(float("nan"))
    with pytest.raises(ValueError, match="negative"):
        _native.alias_table(np.array([-1, 5]), 0.75)


# --- the Huffman tree -----------------------------------------------------------------------------


def word2vec_tree(counts: list[int]) -> list[tuple[list[int], list[int]]]:
    """CreateBinaryTree of word2vec.c, line for line: (points, codes) of each word. Counts fall."""
    size = len(counts)
    count = [*counts, *([10**15] * size)]
    binary, parent = [0] * (2 * size), [0] * (2 * size)
    pos1, pos2 = size - 1, size
    for a in range(size - 1):
        least = []
        for _ in range(2):
            if pos1 >= 0 and count[pos1] < count[pos2]:
                least.append(pos1)
                pos1 -= 1
            else:
                least.append(pos2)
                pos2 += 1
        count[size + a] = count[least[0]] + count[least[1]]
        parent[least[0]] = parent[least[1]] = size + a
        binary[least[1]] = 1
    paths = []
    for word in range(size):
        points, codes, node = [], [], word
        while node != size * 2 - 2:
            codes.append(binary[node])
            node = parent[node]
            points.append(node - size)
        paths.append((points[::-1], codes[::-1]))
    return paths


def tree_of(vocabulary: Vocabulary) -> list[tuple[list[int], list[int]]]:
    offsets, nodes, codes = vocabulary.huffman_tree()
    assert (offsets.dtype, nodes.dtype, codes.dtype) == (torch.int64, torch.int32, torch.uint8)
    assert offsets[0] == 0
    assert offsets[-1] == nodes.numel() == codes.numel()
    return [
        (nodes[a:b].tolist(), codes[a:b].tolist()) for a, b in itertools.pairwise(offsets.tolist())
    ]


@settings(deadline=None, max_examples=200)
@given(COUNTS.map(lambda counts: sorted(counts, reverse=True)))
def test_huffman_tree_is_word2vecs(counts):
    assert tree_of(vocabulary_of(counts)) == word2vec_tree(counts)


@settings(deadline=None, max_examples=100)
@given(COUNTS)
def test_huffman_tree_is_optimal_whatever_the_order(counts):
    paths = tree_of(vocabulary_of(counts))
    assert len({tuple(codes) for _, codes in paths}) == len(counts)
    total, heap = 0, list(counts)
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    assert sum(n * len(codes) for n, (_, codes) in zip(counts, paths, strict=True)) == total
    for nodes, codes in paths:
        assert len(nodes) == len(codes)
        if len(counts) > 1:
            assert nodes[0] == len(counts) - 2
            assert min(nodes) >= 0
            assert all(a > b for a, b in itertools.pairwise(nodes))


def test_deep_huffman_tree():
    """Deeper than the 40 levels of word2vec.c."""
    counts = [1, 1]
    while len(counts) < 80:
        counts.append(counts[-1] + counts[-2])
    paths = tree_of(vocabulary_of(counts[::-1]))
    assert max(len(codes) for _, codes in paths) == 79
    zeros = tree_of(vocabulary_of([0] * 1000))
    assert len({tuple(codes) for _, codes in zeros}) == 1000


def test_small_huffman_trees():
    assert tree_of(vocabulary_of([])) == []
    assert tree_of(vocabulary_of([7])) == [([], [])]
    assert tree_of(vocabulary_of([7, 3])) == [([0], [1]), ([0], [0])]


# --- gensim ---------------------------------------------------------------------------------------


def gensim_model(counts: dict[str, int], **settings):
    word2vec = pytest.importorskip("gensim.models.word2vec")
    model = word2vec.Word2Vec(vector_size=1, min_count=1, **settings)
    model.build_vocab_from_freq(counts)
    return model


@pytest.mark.parametrize("sample", [1e-5, 1e-3, 0.3, 1.0, 20.0, 1e9])
def test_keep_probabilities_are_gensims(sample):
    rng = np.random.default_rng(1)
    counts = {f"w{i}": int(n) for i, n in enumerate(rng.zipf(1.3, 2000).clip(max=10**8))}
    model = gensim_model(counts, sample=sample)
    words = model.wv.index_to_key
    keep = Vocabulary(words, [counts[w] for w in words]).keep_probabilities(sample)
    assert keep.dtype == torch.float32
    expected = [model.wv.get_vecattr(w, "sample_int") / (2**32 - 1) for w in words]
    torch.testing.assert_close(
        keep, torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-9
    )


def test_keep_probabilities():
    vocabulary = vocabulary_of([900, 90, 10, 0])
    assert vocabulary.keep_probabilities(0) is None
    # p = (sqrt(c/t) + 1) t/c with t = 0.01 * 1000
    expected = [(90**0.5 + 1) / 90, (9**0.5 + 1) / 9, 1.0, 1.0]
    torch.testing.assert_close(vocabulary.keep_probabilities(0.01), torch.tensor(expected))
    for sample in (-1e-3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected a sample"):
            vocabulary.keep_probabilities(sample)


def test_huffman_tree_is_gensims():
    """Where no counts tie, so that there is one tree: codes and points, word for word."""
    rng = np.random.default_rng(2)
    counts = {f"w{i}": int(n) for i, n in enumerate(rng.integers(1, 10**15, 500))}
    model = gensim_model(counts, hs=1, negative=0)
    words = model.wv.index_to_key
    paths = tree_of(Vocabulary(words, [counts[w] for w in words]))
    for word, (nodes, codes) in zip(words, paths, strict=True):
        assert codes == model.wv.get_vecattr(word, "code").tolist()
        assert nodes == model.wv.get_vecattr(word, "point").tolist()


# --- words ----------------------------------------------------------------------------------------


def test_words(tmp_path):
    vocabulary = Vocabulary(["b", "a"], [3, 2], raw_words=9)
    assert (len(vocabulary), vocabulary["a"], vocabulary.raw_words) == (2, 1, 9)
    assert "a" in vocabulary
    assert "c" not in vocabulary
    assert 3 not in vocabulary
    assert vocabulary.index == {"b": 0, "a": 1}
    assert vocabulary.counts.dtype == np.int64
    with pytest.raises(KeyError):
        vocabulary["c"]


def test_merged():
    old = Vocabulary(["a", "b"], [5, 1], raw_words=10)
    merged = old.merged(Vocabulary(["c", "b", "d"], [9, 4, 2], raw_words=20))
    assert merged.words == ["a", "b", "c", "d"]
    assert merged.counts.tolist() == [5, 5, 9, 2]
    assert merged.raw_words == 30
    assert old.counts.tolist() == [5, 1]
    # The tree does not need the counts to fall.
    assert len(tree_of(merged)[2][1]) == min(len(codes) for _, codes in tree_of(merged))
    assert old.merged(Vocabulary([], [])).words == old.words


WORDS = st.lists(st.text(max_size=8) | st.sampled_from(["\\", "\t", "\\t", "\n", "\r", " ", ""]))


@settings(deadline=None)
@given(WORDS.map(lambda words: list(dict.fromkeys(words))))
def test_save_and_load(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "vocab.txt"
    vocabulary = Vocabulary(words, np.arange(len(words))[::-1])
    vocabulary.save(path)
    again = Vocabulary.load(path)
    assert again.words == words
    assert again.counts.tolist() == vocabulary.counts.tolist()


def test_the_file_is_readable(tmp_path):
    Corpus.build([["猫", "the", "the", "a b"]], tmp_path / "cache", min_count=1).vocabulary.save(
        tmp_path / "vocab.txt"
    )
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# vecsmith vocabulary")
    assert lines[1:] == ["the\t2", "a b\t1", "猫\t1"]


def test_bad_vocabularies(tmp_path):
    with pytest.raises(ValueError, match="'a' more than once"):
        Vocabulary(["a", "b", "a"], [1, 2, 3])
    with pytest.raises(ValueError, match=r"shape \[2\], one for each word, got \[3\]"):
        Vocabulary(["a", "b"], [1, 2, 3])
    with pytest.raises(ValueError, match="at least 0, got -4 for 'b'"):
        Vocabulary(["a", "b"], [1, -4])
    with pytest.raises(TypeError, match="integers, got dtype float64"):
        Vocabulary(["a"], [1.5])
    with pytest.raises(TypeError, match="str, got int 3"):
        Vocabulary([3], [1])
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "none")
    for content in (b"", b"a\t1\n", b"\xff\xfe"):
        (tmp_path / "vocab.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"vocab\.txt"):
            Vocabulary.load(tmp_path / "vocab.txt")
    Vocabulary(["a", "b"], [1, 2]).save(tmp_path / "vocab.txt")
    good = (tmp_path / "vocab.txt").read_bytes()
    for content in (good[:-3], good.replace(b"b", b"a"), good.replace(b"2\n", b"x\n")):
        (tmp_path / "vocab.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"vocab\.txt"):
            Vocabulary.load(tmp_path / "vocab.txt")
