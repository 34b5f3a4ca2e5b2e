"""Word2Vec: options, texts and calls that are refused, and those that are warned of."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from planted_text import SMALL, planted
from vecsmith import Word2Vec
from vecsmith.data import Corpus


@pytest.fixture(scope="module")
def text() -> list[list[str]]:
    return planted()


BAD = [
    ({"vector_size": 0}, ValueError, "vector_size >= 1; got 0"),
    ({"vector_size": 2.5}, TypeError, "vector_size to be an integer; got 2.5"),
    ({"window": 0}, ValueError, "window >= 1; got 0"),
    ({"window": -3}, ValueError, "window"),
    ({"negative": 0}, ValueError, "negative=0 and hs=0"),
    ({"negative": -1}, ValueError, "negative >= 0; got -1"),
    ({"alpha": 0}, ValueError, "alpha > 0; got 0"),
    ({"alpha": -0.1}, ValueError, "alpha"),
    ({"alpha": float("nan")}, ValueError, "alpha to be finite; got nan"),
    ({"alpha": "fast"}, TypeError, "alpha to be a number; got 'fast'"),
    ({"min_alpha": float("inf")}, ValueError, "min_alpha"),
    ({"min_alpha": -1e-3}, ValueError, "min_alpha >= 0"),
    ({"workers": 0}, ValueError, "workers >= 1; got 0"),
    ({"epochs": 0}, ValueError, "epochs >= 1; got 0"),
    ({"epochs": None}, TypeError, "epochs"),
    ({"sample": -1}, ValueError, "sample"),
    ({"sample": float("nan")}, ValueError, "sample"),
    ({"ns_exponent": float("nan")}, ValueError, "ns_exponent"),
    ({"min_count": -1}, ValueError, "min_count >= 0"),
    ({"max_final_vocab": 0}, ValueError, "max_final_vocab >= 1"),
    ({"max_vocab_size": 0}, ValueError, "max_vocab_size >= 1"),
    ({"seed": -1}, ValueError, "seed >= 0"),
    ({"seed": 1 << 64}, ValueError, "seed <= "),
    ({"sg": 2}, ValueError, "sg to be 0 or 1; got 2"),
    ({"cbow_mean": 3}, ValueError, "cbow_mean to be 0 or 1"),
    ({"null_word": 1}, ValueError, "null_word=0"),
    ({"sorted_vocab": 0}, ValueError, "sorted_vocab=1"),
    ({"shared_negatives": "all"}, ValueError, "'window' or 'pair'; got 'all'"),
    ({"device": "abacus"}, ValueError, "'cpu' or 'cuda'; got 'abacus'"),
    ({"device": "meta"}, ValueError, "'cpu' or 'cuda'; got 'meta'"),
    ({"backend": "abacus"}, ValueError, "got 'abacus'"),
    ({"backend": "cuda"}, RuntimeError, "cuda"),
    ({"callbacks": 3}, TypeError, "callbacks"),
    ({"trim_rule": "rule"}, TypeError, "trim_rule to be callable"),
    ({"checkpoint_every": -1}, ValueError, "checkpoint_every"),
    ({"workers": 4097}, ValueError, "workers <= 4096"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[str(bad[0]) for bad in BAD])
def test_bad_options(options, error, message):
    touched = []

    def sentences():
        touched.append(True)
        yield ["a", "b"]

    with pytest.raises(error) as caught:
        Word2Vec(sentences(), min_count=1) if not options else Word2Vec(sentences(), **options)
    assert message in str(caught.value)
    assert not touched  # refused before the text is read


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device():
    with pytest.raises(ValueError, match="got a machine with none"):
        Word2Vec(device="cuda")


BAD_TEXTS = [
    ({"sentences": "corpus.txt"}, TypeError, "goes into corpus_file"),
    ({"sentences": 3}, TypeError, "iterable of lists of words; got 3"),
    ({"sentences": ["a b", "c d"]}, TypeError, ""),
    ({"sentences": [["a", 3]]}, TypeError, ""),
    ({"sentences": [["a"]], "corpus_file": "x"}, TypeError, "got both"),
    ({"corpus_file": "/nowhere/corpus.txt"}, FileNotFoundError, "no such file"),
    ({"corpus_file": 3}, TypeError, "got 3"),
    ({"sentences": []}, ValueError, ""),
    ({"sentences": [[], []]}, ValueError, ""),
    ({"sentences": [["rare", "words"]]}, ValueError, "min_count=5"),
]


@pytest.mark.parametrize(
    ("given", "error", "message"), BAD_TEXTS, ids=[str(b[0]) for b in BAD_TEXTS]
)
def test_bad_texts(given, error, message):
    with pytest.raises(error) as caught:
        Word2Vec(**given)
    assert message in str(caught.value)


def test_bad_calls(text, tmp_path):
    model = Word2Vec(**SMALL)
    with pytest.raises(RuntimeError, match="call build_vocab"):
        model.train(text)
    with pytest.raises(TypeError, match="got neither"):
        model.build_vocab()
    model.build_vocab(text)
    for options in ({"epochs": 0}, {"start_alpha": 0}, {"total_examples": 0}, {"total_words": -1}):
        with pytest.raises(ValueError):
            model.train(text, **options)
    with pytest.raises(ValueError, match="another"):
        model.train(Corpus.build([["other"]], tmp_path, min_count=1))
    with pytest.raises(ValueError, match="expected trim_rule to return"):
        model.build_vocab(text, trim_rule=lambda *args: 7)
    with pytest.raises(ValueError, match="read twice"):
        model.build_vocab(iter(text), trim_rule=lambda *args: 0)
    with pytest.raises(ValueError, match="count"):
        model.build_vocab_from_freq({"a": -1})
    model.build_vocab(text)
    model.wv.add_vector("stranger", np.zeros(12))
    with pytest.raises(RuntimeError, match="update=True"):
        model.train(text)


def test_warnings(text, caplog):
    with caplog.at_level(logging.WARNING):
        Word2Vec(alpha=0.01, min_alpha=0.02)
        Word2Vec(hs=1)
        Word2Vec(callbacks=[object()])
        Word2Vec(text, **SMALL).train(text)
    for part in (
        "min_alpha=0.02 is above",
        "both hierarchical softmax",
        "callbacks",
        "above the rate",
    ):
        assert part in caplog.text
