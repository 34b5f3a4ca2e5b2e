"""Word2Vec: gensim's names and behaviors, learning, going on, the driver, progress."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch

from planted_text import MODES, SMALL, planted, purity
from vecsmith import Word2Vec, ops
from vecsmith.data import Corpus
from vecsmith.models._driver import _inputs, chunk_bounds

gensim = pytest.importorskip("gensim")
CallbackAny2Vec = gensim.models.callbacks.CallbackAny2Vec


@pytest.fixture(scope="module")
def text() -> list[list[str]]:
    return planted()


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


def test_repr():
    assert repr(Word2Vec(vector_size=7)) == "Word2Vec<vocab=0, vector_size=7, alpha=0.025>"


# --- learning -------------------------------------------------------------------------------------


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
