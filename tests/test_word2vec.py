"""Word2Vec: gensim's names and behaviors, learning, files, errors."""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import logging
import os
import tempfile
from pathlib import Path

import gensim
import numpy as np
import pytest
import torch
from gensim.models.callbacks import CallbackAny2Vec
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsmith import KeyedVectors, Word2Vec, ops
from vecsmith.data import Corpus
from vecsmith.models._driver import _inputs, chunk_bounds

TOPICS, TOPIC_WORDS = 6, 5


def planted(sentences: int = 1500, seed: int = 0) -> list[list[str]]:
    """Sentences of words of one topic, among filler words that say nothing."""
    random = np.random.default_rng(seed)
    text = []
    for _ in range(sentences):
        topic = random.integers(TOPICS)
        words = [f"t{topic}w{i}" for i in random.integers(TOPIC_WORDS, size=8)]
        fillers = [f"filler{i}" for i in random.integers(10, size=3)]
        for filler in fillers:
            words.insert(int(random.integers(len(words))), filler)
        text.append(words)
    return text


def purity(wv: KeyedVectors) -> float:
    """The share of a topic word's nearest topic words that are of its topic."""
    words = [word for word in wv.index_to_key if word.startswith("t")]
    right = total = 0
    for word in words:
        others = [w for w, _ in wv.most_similar(word, topn=len(wv)) if w.startswith("t")]
        nearest = others[: TOPIC_WORDS - 1]
        right += sum(w[:2] == word[:2] for w in nearest)
        total += len(nearest)
    return right / total


@pytest.fixture(scope="module")
def text() -> list[list[str]]:
    return planted()


SMALL = {"vector_size": 12, "min_count": 1, "epochs": 2, "workers": 1}


# --- names ----------------------------------------------------------------------------------------


def parameters(function) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


def test_constructor_speaks_gensim():
    ours, theirs = parameters(Word2Vec.__init__), parameters(gensim.models.Word2Vec.__init__)
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    different = {o.name for o, t in zip(ours, theirs, strict=False) if o.default != t.default}
    assert different == {"workers", "hashfxn"}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("name", ["build_vocab", "build_vocab_from_freq", "train"])
def test_methods_speak_gensim(name):
    ours = [p.name for p in parameters(getattr(Word2Vec, name))]
    theirs = [
        p.name
        for p in parameters(getattr(gensim.models.Word2Vec, name))
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    assert ours[: len(theirs)] == theirs


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


# --- learning -------------------------------------------------------------------------------------

MODES = {
    f"{model}-{loss}-{shared}": {
        "sg": sg,
        "hs": hs,
        "negative": negative,
        "shared_negatives": shared,
    }
    for model, sg in (("sg", 1), ("cbow", 0))
    for loss, hs, negative in (("ns", 0, 5), ("hs", 1, 0))
    for shared in ("window", "pair")
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_finds_planted_topics(text, mode, workers):
    model = Word2Vec(
        text, vector_size=24, epochs=12, alpha=0.05, sample=0, workers=workers, seed=3, **mode
    )
    assert purity(model.wv) > 0.9
    untrained = Word2Vec(vector_size=24, seed=3, **mode)
    untrained.build_vocab(text)
    assert purity(untrained.wv) < 0.5  # the measure can fail


def test_learns_as_well_as_gensim(text):
    options = {"vector_size": 24, "epochs": 12, "alpha": 0.05, "sg": 1, "workers": 1}
    assert purity(Word2Vec(text, **options).wv) >= (
        purity(gensim.models.Word2Vec(text, **options).wv) - 0.02
    )


def test_loss_falls(text):
    losses = []

    class Keep:
        def on_epoch_end(self, model):
            losses.append(model.get_latest_training_loss())

    Word2Vec(
        text, vector_size=24, epochs=6, sg=1, alpha=0.05, compute_loss=True, callbacks=[Keep()]
    )
    each = np.diff([0.0, *losses])
    assert len(each) == 6
    assert (each > 0).all()
    assert each[-1] < 0.9 * each[0]
    assert Word2Vec(text, **SMALL).get_latest_training_loss() == 0


def test_same_seed_same_bits(text):
    one, same, other = (Word2Vec(text, **SMALL, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(one.wv.vectors, same.wv.vectors)
    assert not np.array_equal(one.wv.vectors, other.wv.vectors)


def test_backends_agree():
    text = planted(12)
    options = {**SMALL, "vector_size": 6, "negative": 2}
    fast, slow = (Word2Vec(text, **options, backend=name) for name in ("native", "reference"))
    assert np.allclose(fast.wv.vectors, slow.wv.vectors, atol=1e-6)


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("mode", [MODES["sg-ns-window"], MODES["cbow-hs-window"]], ids=["sg", "hs"])
def test_deterministic_mode_ignores_workers(text, mode, deterministic):
    trained = [
        Word2Vec(text, vector_size=12, epochs=2, workers=workers, **mode) for workers in (1, 2, 3)
    ]
    for model in trained[1:]:
        assert np.array_equal(model.wv.vectors, trained[0].wv.vectors)


def test_initial_vectors():
    model = Word2Vec(vector_size=10, min_count=1, hs=1)
    model.build_vocab([["a", "b", "c"]] * 2)
    assert np.abs(model.wv.vectors).max() <= 0.5 / 10
    assert np.abs(model.wv.vectors).min() > 0
    assert model.syn1neg.shape == (3, 10)
    assert model.syn1.shape == (2, 10)
    assert not model.syn1neg.any()
    assert not model.syn1.any()


def test_vectors_are_the_input_table(text):
    model = Word2Vec(vector_size=20, min_count=1)
    model.build_vocab(text)
    assert isinstance(model.wv.weight, torch.nn.Parameter)
    before, address = model.wv.vectors, model.wv.weight.data_ptr()
    copy = before.copy()
    norms = model.wv.norms.copy()
    model.train(text, epochs=1)
    assert model.wv.weight.data_ptr() == address == before.ctypes.data
    assert not np.array_equal(before, copy)  # the array taken before shows the training
    assert not np.array_equal(model.wv.norms, norms)
    assert model.wv.to_embedding().weight.data_ptr() == address
    assert address % 64 == 0


# --- calling --------------------------------------------------------------------------------------


def test_callbacks(text):
    calls = []

    class Recorder(CallbackAny2Vec):
        def on_train_begin(self, model):
            calls.append("train begin")

        def on_epoch_begin(self, model):
            calls.append("epoch begin")

        def on_epoch_end(self, model):
            calls.append(("epoch end", model.wv.vectors.copy()))

        def on_train_end(self, model):
            calls.append(("train end", model.train_count))

    model = Word2Vec(text, **SMALL, callbacks=[Recorder(), object()])
    names = [call if isinstance(call, str) else call[0] for call in calls]
    assert names == ["train begin", *["epoch begin", "epoch end"] * 2, "train end"]
    assert not np.array_equal(calls[2][1], calls[4][1])
    assert np.array_equal(calls[4][1], model.wv.vectors)
    assert calls[-1][1] == 1


def test_training_goes_on_and_counts(text):
    model = Word2Vec(text, **SMALL)
    trained, raw = model.train(text, total_examples=model.corpus_count, epochs=3)
    assert raw == 3 * model.corpus_total_words == trained
    assert model.train_count == 2
    assert model.epochs == 3
    assert model.total_train_time > 0
    assert model.min_alpha_yet_reached == pytest.approx(1e-4)


@pytest.mark.parametrize("name", ["total_examples", "total_words"])
def test_totals_scale_the_rate(text, name):
    model = Word2Vec(vector_size=4, min_count=1)
    model.build_vocab(text)
    totals = {"total_examples": model.corpus_count, "total_words": model.corpus_total_words}
    model.train(text, epochs=1, start_alpha=0.1, end_alpha=0.02, **{name: 2 * totals[name]})
    assert model.min_alpha_yet_reached == pytest.approx(0.06)


def test_words_out_of_vocabulary_are_skipped(text):
    model = Word2Vec(text, **SMALL)
    words = model.wv.index_to_key[:]
    trained, raw = model.train([["unheard", *text[0], "of"]], epochs=1)
    assert (trained, raw) == (len(text[0]), len(text[0]) + 2)
    assert model.wv.index_to_key == words


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


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [MODES["sg-ns-window"], MODES["cbow-hs-pair"]], ids=["ns", "hs"])
@pytest.mark.parametrize("dim", [16, 13])
def test_save_and_load_go_on(text, tmp_path, mode, dim):
    options = {**SMALL, **mode, "vector_size": dim, "comment": "kept", "seed": 4}
    model = Word2Vec(text, **options)
    model.save(tmp_path / "model")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        "config.json",
        "vocab.txt",
        "model.safetensors",
    }
    loaded = Word2Vec.load(tmp_path / "model", workers=1)
    for name in ("sg", "hs", "negative", "alpha", "comment", "seed", "train_count", "epochs"):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.wv.index_to_key == model.wv.index_to_key
    assert loaded.vocabulary.raw_words == model.vocabulary.raw_words
    model.train(text)
    loaded.train(text)
    assert np.array_equal(loaded.wv.vectors, model.wv.vectors)
    assert loaded.train_count == model.train_count == 2


def test_other_programs_read_our_folders(text, tmp_path):
    model = Word2Vec(text, **SMALL)
    model.save(tmp_path / "model")
    vectors = KeyedVectors.load(tmp_path / "model")
    assert vectors.index_to_key == model.wv.index_to_key
    assert np.array_equal(vectors.vectors, model.wv.vectors)
    model.wv.save_word2vec_format(tmp_path / "vectors.bin", binary=True)
    theirs = gensim.models.KeyedVectors.load_word2vec_format(tmp_path / "vectors.bin", binary=True)
    assert np.array_equal(theirs.vectors, model.wv.vectors)


def damage_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["parameters"]["window"] = 0
    (folder / "config.json").write_text(json.dumps(config))


def cut(name: str):
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (damage_config, ValueError),
        (cut("config.json"), ValueError),
        (cut("vocab.txt"), ValueError),
        (cut("model.safetensors"), ValueError),
        (lambda folder: (folder / "vocab.txt").unlink(), FileNotFoundError),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError),
        (lambda folder: Word2Vec([["x", "y"]], **SMALL).wv.save(folder), ValueError),
    ],
    ids=["option", "config", "vocab", "tensors", "no vocab", "no config", "only vectors"],
)
def test_damaged_folders_are_refused(text, tmp_path, damage, error):
    Word2Vec(text, **SMALL).save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(error):
        Word2Vec.load(tmp_path / "model")


def test_nan_is_not_saved_nor_loaded(text, tmp_path):
    model = Word2Vec(text, **SMALL)
    model.save(tmp_path / "model")
    model.wv.vectors[3, 2] = np.nan
    before = (tmp_path / "model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="nan"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    at = before.index(b"}}") + 200
    data = bytearray(before)
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + 4 * (at % 8) :][:4] = b""
    array = np.frombuffer(before[start:], dtype=np.float32).copy()
    array[:] = np.nan
    (tmp_path / "model/model.safetensors").write_bytes(before[:start] + array.tobytes())
    with pytest.raises(ValueError, match="nan"):
        Word2Vec.load(tmp_path / "model")


def test_diverged_training_says_what_helps(text, tmp_path):
    model = Word2Vec(text, **{**SMALL, "alpha": 1e30})
    with pytest.raises(ValueError, match=r"holds nan or inf.*diverged.*smaller alpha"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_load_refuses_options_of_the_model(text, tmp_path):
    Word2Vec(text, **SMALL).save(tmp_path / "model")
    with pytest.raises(TypeError, match="window"):
        Word2Vec.load(tmp_path / "model", window=3)
    with pytest.raises(FileNotFoundError):
        Word2Vec.load(tmp_path / "nowhere")


# --- errors ---------------------------------------------------------------------------------------

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


def test_a_failed_build_keeps_the_model(text):
    model = Word2Vec(text, **SMALL)
    rows = model.wv.vectors.copy()
    with pytest.raises(ValueError):
        model.build_vocab([["once"]], min_count=2)
    assert np.array_equal(model.wv.vectors, rows)


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


def test_a_text_without_known_words_trains_nothing(text, caplog):
    model = Word2Vec(text, **SMALL)
    rows = model.wv.vectors.copy()
    with caplog.at_level(logging.WARNING):
        assert model.train([["unheard", "of"]], epochs=2) == (0, 4)
    assert "nothing is trained" in caplog.text
    assert np.array_equal(model.wv.vectors, rows)


def test_repr():
    assert repr(Word2Vec(vector_size=7)) == "Word2Vec<vocab=0, vector_size=7, alpha=0.025>"


# --- the driver -----------------------------------------------------------------------------------


def test_chunks_are_whole_sentences(text, tmp_path):
    corpus = Corpus.build(text, tmp_path, min_count=1)
    for positions in (1, 50, 100, 10**9):
        bounds = chunk_bounds(corpus.offsets, positions)
        assert bounds[0] == 0
        assert bounds[-1] == len(corpus)
        assert (np.diff(bounds) > 0).all()
        sizes = np.diff(corpus.offsets.numpy()[bounds])
        assert (sizes[:-1] <= positions + 11).all()
        assert (sizes[:-1] >= min(positions, 11)).all()
    assert chunk_bounds(torch.zeros(1, dtype=torch.int64), 5) == [0]


def test_a_chunk_alone_trains_as_in_the_corpus(text, tmp_path):
    # What a device gets is a piece of the corpus: positions must stay what they are.
    corpus = Corpus.build(text, tmp_path, min_count=1)
    bounds = chunk_bounds(corpus.offsets, 2000)
    alias = corpus.vocabulary.alias_table()
    results = []
    for whole in (True, False):
        vectors = torch.full((len(corpus.vocabulary), 8), 0.1)
        outputs = torch.zeros_like(vectors)
        for first, last in itertools.pairwise(bounds):
            tokens, offsets, position = _inputs(corpus, (first, last), torch.device("cpu"), whole)
            ops.skipgram(
                vectors,
                outputs,
                tokens,
                offsets,
                alias=alias,
                first_position=position,
                words_total=corpus.tokens.numel(),
                num_threads=1,
            )
        results.append(vectors)
    assert torch.equal(*results)


def test_numpy_numbers_are_numbers(text, tmp_path):
    model = Word2Vec(text, vector_size=np.int64(8), alpha=np.float32(0.03), min_count=np.int32(1))
    model.save(tmp_path / "model")
    assert Word2Vec.load(tmp_path / "model").vector_size == 8


# --- odd texts ------------------------------------------------------------------------------------

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


# --- progress -------------------------------------------------------------------------------------


def test_progress_bar(text, capsys):
    Word2Vec(text, **SMALL, progress=True)
    shown = capsys.readouterr().err
    assert "training, epoch 1/2" in shown
    assert "epoch 2/2: 100%" in shown
    assert "loss=" in shown
    assert "alpha=" in shown
    Word2Vec(text, **SMALL, progress=False)
    Word2Vec(text, **SMALL)
    assert capsys.readouterr().err == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_cuda_finds_planted_topics(text, mode):
    model = Word2Vec(text, vector_size=24, epochs=12, alpha=0.05, sample=0, device="cuda", **mode)
    assert model.wv.weight.device.type == "cpu"
    assert purity(model.wv) > 0.9


def test_no_pickle_is_written(text, tmp_path):
    Word2Vec(text, **SMALL).save(tmp_path / "model")
    for name in os.listdir(tmp_path / "model"):
        assert not (tmp_path / "model" / name).read_bytes().startswith(b"\x80")
