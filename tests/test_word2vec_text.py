"""Word2Vec: every way to give it a text, what is kept of one, odd texts."""

from __future__ import annotations

import gc
import logging
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planted_text import SMALL, planted
from vecsmith import Word2Vec
from vecsmith.data import Corpus


@pytest.fixture(scope="module")
def text() -> list[list[str]]:
    return planted()


def test_generators_and_files_are_read_once(text, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(map(" ".join, text)) + "\n")
    from_list = Word2Vec(text, **SMALL)
    from_generator = Word2Vec((sentence for sentence in text), **SMALL)
    from_file = Word2Vec(corpus_file=path, **SMALL)
    with open(path, "rb") as stream:
        from_stream = Word2Vec(corpus_file=stream, **SMALL)
    from_corpus = Word2Vec(Corpus.build(text, tmp_path / "cache", min_count=1), **SMALL)
    for model in (from_generator, from_file, from_stream, from_corpus):
        assert model.wv.index_to_key == from_list.wv.index_to_key
        assert np.array_equal(model.wv.vectors, from_list.wv.vectors)


def test_a_one_shot_text_can_be_counted_and_then_trained(text):
    model = Word2Vec(**SMALL)
    model.build_vocab(iter(text))
    model.train()
    assert np.array_equal(model.wv.vectors, Word2Vec(text, **SMALL).wv.vectors)
    with pytest.raises(TypeError, match="no text is left"):
        model.train()


def test_temporary_folders_are_removed(text, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = Word2Vec(text, **SMALL)
    assert not list(tmp_path.iterdir())
    model.build_vocab(text)
    assert list(tmp_path.iterdir())
    del model
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError):
        Word2Vec(text, min_count=10**6)
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_cache_folder_is_reused(text, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(map(" ".join, text)) + "\n")
    Word2Vec(corpus_file=path, cache_dir=tmp_path / "cache", **SMALL)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert stamps
    Word2Vec(corpus_file=path, cache_dir=tmp_path / "cache", **SMALL)
    assert {
        p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()
    } == stamps


def test_words_out_of_vocabulary_are_skipped(text):
    model = Word2Vec(text, **SMALL)
    words = model.wv.index_to_key[:]
    trained, raw = model.train([["unheard", *text[0], "of"]], epochs=1)
    assert (trained, raw) == (len(text[0]), len(text[0]) + 2)
    assert model.wv.index_to_key == words


def test_a_text_without_known_words_trains_nothing(text, caplog):
    model = Word2Vec(text, **SMALL)
    rows = model.wv.vectors.copy()
    with caplog.at_level(logging.WARNING):
        assert model.train([["unheard", "of"]], epochs=2) == (0, 4)
    assert "nothing is trained" in caplog.text
    assert np.array_equal(model.wv.vectors, rows)


words = st.text(
    st.characters(blacklist_categories=["Cs", "Zs", "Cc", "Zl", "Zp"]), min_size=1, max_size=6
)


@settings(max_examples=40, deadline=None)
@given(
    text=st.lists(st.lists(words, max_size=7), max_size=8),
    sg=st.booleans(),
    hs=st.booleans(),
    shared=st.sampled_from(["window", "pair"]),
    window=st.integers(1, 9),
)
def test_odd_texts(text, sg, hs, shared, window):
    options = {"sg": sg, "hs": hs, "negative": 0 if hs else 3, "window": window, "workers": 2}
    options |= {"vector_size": 5, "min_count": 1, "shared_negatives": shared, "epochs": 2}
    distinct = {word for sentence in text for word in sentence}
    if not distinct:
        with pytest.raises(ValueError):
            Word2Vec(text, **options)
        return
    model = Word2Vec(text, **options)
    assert set(model.wv.index_to_key) == distinct
    assert model.corpus_total_words == sum(map(len, text))
    assert np.isfinite(model.wv.vectors).all()
