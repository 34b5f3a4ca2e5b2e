"""Word2Vec: gensim's vocabulary, and one that grows."""

from __future__ import annotations

import numpy as np
import pytest

from planted_text import SMALL, planted
from vecsmith import Word2Vec

gensim = pytest.importorskip("gensim")


@pytest.fixture(scope="module")
def text() -> list[list[str]]:
    return planted()


@pytest.mark.parametrize(
    "options",
    [
        {"min_count": 1},
        {"min_count": 150},
        {"min_count": 1, "max_final_vocab": 12},
        {"min_count": 1, "trim_rule": lambda word, count, least: 1 if word[0] == "f" else 0},
        {"min_count": 10**9, "trim_rule": lambda word, count, least: 2 if word[0] == "f" else 0},
    ],
    ids=["all", "min_count", "max_final_vocab", "discard", "keep"],
)
def test_vocabulary_is_gensims(text, options):
    theirs = gensim.models.Word2Vec(text, vector_size=4, epochs=1, workers=1, **options)
    ours = Word2Vec(text, vector_size=4, epochs=1, workers=1, **options)
    assert ours.wv.index_to_key == theirs.wv.index_to_key
    assert ours.corpus_total_words == theirs.corpus_total_words
    if options == {"min_count": 1}:  # ours leaves out sentences of dropped words alone
        assert ours.corpus_count == theirs.corpus_count
    for word in ours.wv.index_to_key:
        assert ours.wv.get_vecattr(word, "count") == theirs.wv.get_vecattr(word, "count")


def test_vocabulary_from_frequencies_is_gensims():
    frequencies = {"b": 3, "a": 7, "rare": 1, "c": 3}
    theirs = gensim.models.Word2Vec(vector_size=4, min_count=2)
    theirs.build_vocab_from_freq(frequencies)
    ours = Word2Vec(vector_size=4, min_count=2)
    ours.build_vocab_from_freq(frequencies)
    assert ours.wv.index_to_key == theirs.wv.index_to_key
    assert ours.syn1neg.shape == theirs.syn1neg.shape


def test_a_failed_build_keeps_the_model(text):
    model = Word2Vec(text, **SMALL)
    rows = model.wv.vectors.copy()
    with pytest.raises(ValueError):
        model.build_vocab([["once"]], min_count=2)
    assert np.array_equal(model.wv.vectors, rows)


# --- a growing vocabulary -------------------------------------------------------------------------


@pytest.mark.parametrize("hs", [0, 1])
def test_update_keeps_old_rows(text, hs):
    model = Word2Vec(text, **SMALL, hs=hs, negative=0 if hs else 5)
    words, rows = model.wv.index_to_key[:], model.wv.vectors.copy()
    outputs = (model.syn1 if hs else model.syn1neg).copy()
    count = model.wv.get_vecattr(words[0], "count")
    more = [["fresh", "words", words[0]]] * 7
    model.build_vocab(more, update=True)
    assert model.wv.index_to_key[: len(words)] == words
    assert set(model.wv.index_to_key[len(words) :]) == {"fresh", "words"}
    assert np.array_equal(model.wv.vectors[: len(words)], rows)
    assert np.abs(model.wv.vectors[len(words) :]).max() <= 0.5 / 12
    assert np.unique(model.wv.vectors, axis=0).shape == model.wv.vectors.shape
    grown = model.syn1 if hs else model.syn1neg
    assert np.array_equal(grown[: len(outputs)], outputs)
    assert not grown[len(outputs) :].any()
    assert model.wv.get_vecattr(words[0], "count") == count + 7
    assert model.wv.get_vecattr("fresh", "count") == 7
    before = model.wv["fresh"].copy()
    model.train(more, total_examples=model.corpus_count, epochs=2)
    assert not np.array_equal(model.wv["fresh"], before)


def test_update_needs_a_vocabulary(text):
    with pytest.raises(RuntimeError, match="vocabulary to update"):
        Word2Vec().build_vocab(text, update=True)


def test_update_counts_like_gensim(text):
    more = [["fresh"], ["t0w0", "rare", "fresh"], ["t0w1", "t0w1"]]
    counts = []
    for library in (gensim.models.Word2Vec, Word2Vec):
        model = library(vector_size=12, min_count=2)
        model.build_vocab(text)
        before = model.wv.get_vecattr("t0w0", "count")
        model.build_vocab(more, update=True)
        words = ("t0w0", "t0w1", "fresh")
        counts.append([int(model.wv.get_vecattr(word, "count")) for word in words])
        assert counts[-1][0] == before + 1  # below min_count, but a known word
        assert "rare" not in model.wv
    assert counts[0] == counts[1]


def test_update_without_new_words_is_fine(text):
    model = Word2Vec(text, **SMALL)
    rows = model.wv.vectors.copy()
    model.build_vocab(iter([["fresh"]]), update=True, min_count=2)
    assert np.array_equal(model.wv.vectors, rows)
