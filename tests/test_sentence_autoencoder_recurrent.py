"""SentenceAutoencoder with recurrent encoders: options, training, meaning, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sentence_texts import texts
from vecsmith import KeyedVectors, SentenceAutoencoder
from vecsmith.io import load_safetensors
from vecsmith.models._checkpoint import NAME, TrainingInterrupted
from vecsmith.nn.sentence_encoders import CELLS

pytest.importorskip("tokenizers")

TRAIN, TEST = texts(300), texts(40, seed=9)
OPTIONS = {"vector_size": 192, "vocab_size": 400, "max_length": 40, "progress": False}


def made(cell: str = "rnn", sentences=TRAIN, epochs: int = 0, **options) -> SentenceAutoencoder:
    own = {k: options.pop(k) for k in [*options] if k in ("teacher", "distillation", "held_out")}
    model = SentenceAutoencoder(encoder=cell, **{**OPTIONS, **options})
    return model.fit(sentences, epochs=epochs, **own)


@pytest.fixture(scope="module")
def words() -> KeyedVectors:
    names = ["the", "a", "dog", "man", "girl", "cats", "hat", "two", "three", "park", "beach"]
    vectors = np.random.default_rng(0).standard_normal((len(names), 24)).astype(np.float32)
    return KeyedVectors(names, vectors, counts=np.arange(len(names), 0, -1) * 10)


@pytest.mark.parametrize("cell", CELLS)
def test_unseen_sentences_come_back_and_models_are_saved(cell, tmp_path):
    size = 384 if cell == "bilstm" else 192
    model = made(cell, vector_size=size)
    vectors = model.encode(TEST)
    assert vectors.shape == (40, size)
    assert torch.equal(vectors, model.encode(TEST))
    found = model.evaluate(TEST, round_to=torch.bfloat16, noise=0.01)
    assert found.exact_match >= 0.95
    assert found.token_accuracy >= 0.95
    assert not model.encoder.training
    model.save(tmp_path / "m")
    tensors, _ = load_safetensors(tmp_path / "m" / "model.safetensors")
    assert "encoder.embedding.weight" in tensors
    assert not any("decoder.embedding" in name for name in tensors)
    loaded = SentenceAutoencoder.load(tmp_path / "m")
    assert torch.equal(loaded.encode(TEST), vectors)
    assert loaded.decode(vectors) == model.decode(vectors)
    assert loaded.options == model.options


def test_options_reach_the_modules(tmp_path):
    model = made(
        "lstm",
        decoder="gru",
        decay=0.7,
        hidden_size=200,
        embedding_size=50,
        feedback=False,
        train_embeddings=True,
        start="random",
    )
    assert type(model.decoder.recurrence).__name__ == "GRU"
    assert (model.encoder.decay, model.decoder.decay) == (0.7, 0.7)
    assert model.decoder.recurrence.weight_hh_l0.shape == (600, 200)
    assert model.encoder.embedding.weight.shape[1] == 50
    assert model.encoder.embedding.weight.requires_grad
    assert not model.decoder.feedback
    model.save(tmp_path / "m")
    assert torch.equal(SentenceAutoencoder.load(tmp_path / "m").encode(TEST), model.encode(TEST))


def test_the_seed_decides_and_the_callers_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, third = made(), made(), made(seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.encode(TEST), second.encode(TEST))
    assert not torch.equal(first.encode(TEST), third.encode(TEST))


def test_training_tells_its_history():
    model = made(epochs=2, vector_size=24, held_out=0.2)
    assert [entry["epoch"] for entry in model.history] == [0, 1, 2]
    assert all(0 <= entry["exact_match"] <= 1 for entry in model.history)
    assert "loss" in model.history[1]


def test_with_meaning(words, tmp_path):
    model = made("gru", vector_size=216, meaning=words)
    vectors = model.encode(TEST)
    mean = model.meaning(TEST)
    known = mean.norm(dim=1) > 0
    size = model.meaning_size
    assert known.any()
    torch.testing.assert_close(vectors[known][:, :size], 0.98 * mean[known], rtol=1e-4, atol=1e-5)
    lengths = vectors[:, size:].norm(dim=1)
    assert 0.5 < lengths.mean() / (1 - 0.98**2) ** 0.5 < 1.5
    assert model.evaluate(TEST).exact_match >= 0.95
    model.save(tmp_path / "m")
    assert SentenceAutoencoder.load(tmp_path / "m").reconstruct(TEST[:5]) == model.reconstruct(
        TEST[:5]
    )


def test_with_given_token_embeddings(words, tmp_path):
    table = torch.randn(400, 160, generator=torch.Generator().manual_seed(0))
    tokenizer = made().tokens.tokenizer
    table = table[: tokenizer.get_vocab_size()]
    model = made(token_embeddings=table, tokenizer=tokenizer)
    expected = torch.nn.functional.normalize(table, dim=1)
    torch.testing.assert_close(model.encoder.embedding.weight.detach(), expected)
    assert model.evaluate(TEST).exact_match >= 0.9
    model.save(tmp_path / "m")
    assert torch.equal(SentenceAutoencoder.load(tmp_path / "m").encode(TEST), model.encode(TEST))
    with pytest.raises(ValueError, match="embedding_size beside token_embeddings"):
        made(token_embeddings=table, tokenizer=tokenizer, embedding_size=8)


def test_a_teacher_is_followed():
    def teacher(sentences):
        return [[float(len(s)), float(s.count("a")), 3.0] for s in sentences]

    model = made(epochs=1, vector_size=32, teacher=teacher, distillation=1.0)
    plain = made(epochs=1, vector_size=32)
    assert model.history[1]["loss"] > plain.history[1]["loss"]
    with pytest.raises(ValueError, match="a teacher where distillation > 0"):
        made(epochs=1, teacher=teacher)
    with pytest.raises(ValueError, match="a teacher where distillation > 0"):
        made(epochs=1, distillation=1.0)


def test_an_interrupted_fit_goes_on(tmp_path):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        options = {"epochs": 3, "held_out": 0.1, "checkpoint": tmp_path, "checkpoint_every": 0}

        def fresh() -> SentenceAutoencoder:
            return SentenceAutoencoder(encoder="rnn", **{**OPTIONS, "vector_size": 24})

        def stop(entry):
            if entry["epoch"] == 2:
                raise KeyboardInterrupt

        whole = fresh().fit(TRAIN, epochs=3, held_out=0.1)
        with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
            fresh().fit(TRAIN, **options, after_epoch=stop)
        assert (tmp_path / NAME).exists()
        resumed = fresh().fit(TRAIN, **options)
        assert torch.equal(whole.encode(TEST), resumed.encode(TEST))
        assert whole.history == resumed.history
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"gamma": 0.5}, TypeError, "options of encoder='rnn'"),
        ({"decay": 2.0}, ValueError, "decay in"),
        ({"decoder": "bilstm"}, ValueError, "decoder among"),
        ({"hidden_size": 3}, ValueError, "hidden_size"),
        ({"embedding_size": 0}, ValueError, "embedding_size >= 1"),
    ],
)
def test_wrong_options_are_said(options, error, said):
    with pytest.raises(error, match=said):
        made(**options)


def test_wrong_training_is_said():
    model = SentenceAutoencoder(encoder="rnn", **OPTIONS)
    with pytest.raises(TypeError, match="options of training among"):
        model.fit(TRAIN, epoch=3)
    with pytest.raises(ValueError, match="alpha > 0"):
        model.fit(TRAIN, alpha=-1.0)


def test_a_folder_of_another_model_is_refused(tmp_path):
    made("gru").save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "encoder": "lstm"}))
    with pytest.raises(ValueError, match="do not belong together"):
        SentenceAutoencoder.load(tmp_path / "m")
