"""SentenceAutoencoder with the closed form: sentences to vectors and back, meaning, files."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sentence_texts import texts
from vecsmith import KeyedVectors, SentenceAutoencoder
from vecsmith.io import load_safetensors, save_safetensors
from vecsmith.models._sentence_meaning import SentenceMeaning

pytest.importorskip("tokenizers")

TRAIN, TEST = texts(400), texts(40, seed=9)
OPTIONS = {"vector_size": 128, "vocab_size": 400, "max_length": 32}


@pytest.fixture(scope="module")
def model() -> SentenceAutoencoder:
    return SentenceAutoencoder(TRAIN, **OPTIONS)


@pytest.fixture(scope="module")
def words() -> KeyedVectors:
    names = ["the", "a", "dog", "man", "girl", "cats", "hat", "two", "three", "park", "beach"]
    vectors = np.random.default_rng(0).standard_normal((len(names), 24)).astype(np.float32)
    return KeyedVectors(names, vectors, counts=np.arange(len(names), 0, -1) * 10)


def test_unseen_sentences_come_back(model):
    vectors = model.encode(TEST)
    assert vectors.shape == (40, 128)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(40))
    assert torch.equal(vectors, model.encode(TEST))
    assert torch.equal(vectors[3], model.encode(TEST[3]))
    assert model.decode(vectors) == TEST
    assert model.decode(vectors.numpy()) == TEST
    assert model.reconstruct(["", "Ünïcode ☃ <eos>"]) == ["", "Ünïcode ☃ <eos>"]
    assert model.decode(model.encode([])) == []
    for blur in ({}, {"round_to": torch.bfloat16, "noise": 0.01}):
        found = model.evaluate(TEST, **blur)
        assert (found.token_accuracy, found.exact_match, found.bleu) == (1, 1, 1)
        assert found.cosine == pytest.approx(1, abs=1e-6)
        assert "exact match 100.00 %" in str(found)
    bad = model.evaluate(TEST, noise=2.0)
    assert bad.exact_match < 0.5
    assert bad.cosine < 0.9


def test_what_evaluate_says_is_what_decode_does():
    # Wrong sentences may be more tokens than the limit when they are read again.
    model = SentenceAutoencoder(TRAIN, truncate=True, **OPTIONS)
    drawn = torch.randn(40, 128, generator=torch.Generator().manual_seed(3))
    vectors = model.encode(TEST)
    drawn = torch.nn.functional.normalize(drawn, dim=1) * vectors.norm(dim=1, keepdim=True)
    decoded = model.decode(vectors + 0.8 * drawn)
    found = model.evaluate(TEST, noise=0.8, seed=3)
    assert found.exact_match == sum(a == b for a, b in zip(decoded, TEST, strict=True)) / 40
    again = torch.nn.functional.cosine_similarity(model.encode(decoded), vectors)
    assert found.cosine == pytest.approx(float(again.mean()))


def test_interpolation_begins_and_ends_with_the_sentences(model):
    found = model.interpolate(TEST[0], TEST[1], steps=3)
    assert (found[0], found[2], len(found)) == (TEST[0], TEST[1], 3)
    with pytest.raises(ValueError, match="steps"):
        model.interpolate("a", "b", steps=1)


@pytest.mark.parametrize("tokenizer", ["wordpiece", "word"])
def test_other_tokenizers(tokenizer):
    model = SentenceAutoencoder(TRAIN, tokenizer=tokenizer, **OPTIONS)
    assert model.reconstruct(["A man runs in a park."]) == ["A man runs in a park."]
    strict = SentenceAutoencoder(TRAIN, tokenizer=tokenizer, unknown="error", **OPTIONS)
    with pytest.raises(ValueError, match="in sentence 1"):
        strict.encode(["A man", "☃"])


def test_a_text_in_a_file(tmp_path, model):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(("\n".join(TRAIN) + "\n\n").encode()))
    again = SentenceAutoencoder(corpus_file=path, **OPTIONS)
    assert torch.equal(again.encode(TEST), model.encode(TEST))
    path.write_bytes(gzip.compress(b"\xff\xfe\n"))
    with pytest.raises(ValueError, match="line 1 is not UTF-8"):
        SentenceAutoencoder(corpus_file=path)


def test_given_token_vectors():
    table = torch.randn(400, 128, generator=torch.Generator().manual_seed(0))
    probe = SentenceAutoencoder(TRAIN, **OPTIONS)
    model = SentenceAutoencoder(TRAIN, token_embeddings=table[: len(probe.tokens)], **OPTIONS)
    assert not torch.allclose(model.encode(TEST), probe.encode(TEST))
    assert model.reconstruct(TEST) == TEST
    names = ["dog", "A", "man"]
    named = KeyedVectors(names, np.eye(3, 128, dtype=np.float32))
    model = SentenceAutoencoder(TRAIN, token_embeddings=named, **OPTIONS)
    token = model.tokens.tokenizer.token_to_id("Ġdog")
    assert model.encoder.weight[token, 0] == 1
    with pytest.raises(ValueError, match="one a token"):
        SentenceAutoencoder(TRAIN, token_embeddings=table[:7], **OPTIONS)
    with pytest.raises(ValueError, match=r"embeddings \[\d+, 128\]"):
        SentenceAutoencoder(TRAIN, token_embeddings=table[: len(probe.tokens), :64], **OPTIONS)
    with pytest.raises(TypeError, match="token_embeddings"):
        SentenceAutoencoder(TRAIN, token_embeddings="glove", **OPTIONS)


# --- Meaning. -------------------------------------------------------------------------------------


def test_meaning_is_the_weighted_mean(words):
    meaning = SentenceMeaning.from_vectors(words, None, 4096)
    share = np.arange(11, 0, -1) / 66
    weighted = words.vectors.astype(np.float64) * (1e-4 / (1e-4 + share))[:, None]
    direction = share @ weighted
    direction /= np.linalg.norm(direction)

    def by_hand(*names: str) -> torch.Tensor:
        total = sum(weighted[words.key_to_index[name]] for name in names)
        total = total - (total @ direction) * direction
        return torch.from_numpy(total / np.linalg.norm(total)).float()

    found = meaning(["The dog, a DOG!", "3 cats; unknown", "", "2"])
    torch.testing.assert_close(found[0], by_hand("the", "dog", "a", "dog"))
    torch.testing.assert_close(found[1], by_hand("three", "cats"))
    assert not found[2].any()
    torch.testing.assert_close(found[3], by_hand("two"))
    small = SentenceMeaning.from_vectors(words, 9, 4096)(["the dog", "a man", "two hat"])
    large = meaning(["the dog", "a man", "two hat"])
    assert small.shape == (3, 9)
    # 11 words less the common direction: 10 axes hold everything.
    most = SentenceMeaning.from_vectors(words, 10, 4096)(["the dog", "a man", "two hat"])
    torch.testing.assert_close(most @ most.T, large @ large.T, atol=1e-5, rtol=0)


def test_a_model_with_meaning_gives_both(words, tmp_path):
    model = SentenceAutoencoder(TRAIN, meaning=words, meaning_size=10, **OPTIONS)
    vectors = model.encode(TEST)
    known = model.meaning(TEST).any(1)
    assert int(known.sum()) > 30
    torch.testing.assert_close(vectors[~known, 10:].norm(dim=1), torch.ones(int((~known).sum())))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(40))
    sentences = [text for text, yes in zip(TEST, known, strict=True) if yes]
    vectors, meant = model.encode(sentences), model.meaning(sentences)
    torch.testing.assert_close(vectors[:, :10], 0.98 * meant)
    between = (vectors @ vectors.T - 0.98**2 * meant @ meant.T).abs()
    assert float(between.max()) < 0.041
    assert model.decode(vectors) == sentences
    assert model.evaluate(TEST, round_to=torch.bfloat16, noise=0.01).exact_match == 1
    assert model.reconstruct(["☃"]) == ["☃"]  # no known word: no meaning, and still a sentence
    model.save(tmp_path / "model")
    again = SentenceAutoencoder.load(tmp_path / "model")
    assert torch.equal(again.encode(sentences), vectors)
    for damage, message in (
        (remove("words.txt"), "no words.txt"),
        (rewrite("words.txt", "the\n"), "a table of 1 rows"),
        (change_config(meaning_size=9), "meaning_size=9; got 10"),
        (change_tensors(lambda found: found.pop("meaning.table")), "damaged"),
        (change_tensors(lambda found: found["meaning.table"].fill_(math.nan)), "table holds nan"),
    ):
        model.save(tmp_path / "damaged")
        damage(tmp_path / "damaged")
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            SentenceAutoencoder.load(tmp_path / "damaged")
    SentenceAutoencoder(TRAIN, **OPTIONS).save(tmp_path / "model")
    assert not (tmp_path / "model" / "words.txt").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"meaning": "glove"}, TypeError, "got str"),
        ({"meaning": KeyedVectors(3)}, ValueError, "got none"),
        ({"meaning_size": 5}, ValueError, "meaning with meaning_size"),
        ({"meaning": "words", "meaning_size": 25}, ValueError, r"1\.\.24"),
        ({"meaning": "words", "meaning_size": 0}, ValueError, r"1\.\.24"),
        ({"meaning": "words", "meaning_size": 2.0}, TypeError, "integer"),
        ({"meaning": "words", "meaning_size": 8, "vector_size": 8}, ValueError, "< vector_size"),
        ({"meaning": "words", "meaning_weight": 1.0}, ValueError, r"\(0, 1\)"),
    ],
)
def test_meaning_that_is_refused(words, options, error, message):
    if options.get("meaning") == "words":
        options = {**options, "meaning": words}
    with pytest.raises(error, match=message):
        SentenceAutoencoder(**options)


# --- Files. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True], ids=["random", "given"])
def test_save_and_load(tmp_path, given):
    options = dict(OPTIONS)
    if given:
        size = len(SentenceAutoencoder(TRAIN, **OPTIONS).tokens)
        options["token_embeddings"] = torch.randn(size, 128)
    model = SentenceAutoencoder(TRAIN, **options, seed=4, beam=8, noise=0.02)
    model.save(tmp_path / "new" / "model")
    assert {path.name for path in (tmp_path / "new" / "model").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    again = SentenceAutoencoder.load(tmp_path / "new" / "model", truncate=True)
    assert torch.equal(again.encode(TEST), model.encode(TEST))
    assert again.decode(model.encode(TEST)) == TEST
    assert (again.seed, again.options, again.tokenizer_kind) == (4, model.options, "bpe")
    assert len(again.encode(["a man " * 40])) == 1
    again.save(tmp_path / "twice")
    one, other = tmp_path / "new" / "model", tmp_path / "twice"
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    ours, theirs = (load_safetensors(folder / "model.safetensors")[0] for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again.fit(TRAIN[:200])
    assert again.reconstruct(TEST) == TEST


def test_sentences_may_come_once_and_vectors_in_other_types(model):
    expected = model.encode(TEST)
    assert torch.equal(model.encode(sentence for sentence in TEST), expected)
    assert model.decode(expected.double()) == TEST
    assert model.decode(expected.numpy()[::-1]) == TEST[::-1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"gamma": -1.0}, ValueError, "gamma"),
        ({"beam": 0}, ValueError, "beam"),
        ({"max_length": 4096}, ValueError, "max_length"),
        ({"language_model": -1}, ValueError, "language_model"),
        ({"vector_size": 127}, ValueError, "even"),
        ({"encoder": "lstm", "hidden_size": 3}, ValueError, "hidden_size >= 128"),
        ({"encoder": "lstm", "decay": 2}, ValueError, "decay"),
        ({"encoder": "lstm", "decoder": "bilstm"}, ValueError, "decoder"),
        ({"encoder": "lstm", "start": "zero"}, ValueError, "start"),
        ({"encoder": "lstm", "embedding_size": 0}, ValueError, "embedding_size"),
        ({"encoder": "bilstm", "vector_size": 127}, ValueError, "even"),
        ({"encoder": "cnn"}, ValueError, "encoder"),
        ({"unknown": "zzz"}, ValueError, "unknown"),
    ],
)
def test_options_are_refused_before_anything_is_read(options, error, words):
    with pytest.raises(error, match=words):
        SentenceAutoencoder(**{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("encoder", "options", "error", "words"),
    [
        ("rotation", {"epochs": 3}, TypeError, "no options of training"),
        ("rnn", {"epochs": -1}, ValueError, "epochs"),
        ("rnn", {"rate": 1}, TypeError, "rate"),
        ("rnn", {"distillation": 1.0}, ValueError, "teacher"),
        ("rnn", {"teacher": 3, "distillation": 1.0}, TypeError, "teacher to be callable"),
        ("rnn", {"checkpoint": "x", "checkpoint_every": -1}, ValueError, "checkpoint_every"),
    ],
)
def test_options_of_fit_are_refused_before_anything_is_changed(encoder, options, error, words):
    model = SentenceAutoencoder(encoder=encoder, **OPTIONS)
    with pytest.raises(error, match=words):
        model.fit(TRAIN, **options)
    assert len(model.tokens) == 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.encode([1.0]), TypeError, "got float at 0"),
        (lambda m: m.reconstruct(1.7), TypeError, "iterable of strings; got 1.7"),
        (lambda m: m.encode(["ok", "\ud800"]), ValueError, "at 0 of sentence 1"),
        (lambda m: m.decode(m.encode(TEST[:2]).to_sparse()), TypeError, "dense"),
        (lambda m: m.decode("vectors"), TypeError, "numbers"),
        (lambda m: SentenceAutoencoder(["\udfff"], **OPTIONS), ValueError, "sentence 0"),
    ],
)
def test_what_is_no_sentence_and_no_vector_is_refused(model, call, error, words):
    with pytest.raises(error, match=words):
        call(model)


def test_a_draw_at_a_very_low_temperature_takes_the_likeliest(model):
    assert model.decode(model.encode(TEST[:5]), "multinomial", 1e-300) == TEST[:5]


def test_what_the_tokenizer_does_not_know_is_lost():
    model = SentenceAutoencoder(TRAIN, tokenizer="word", **OPTIONS)
    (found,) = model.tokens.numbers(["A snowplough"])
    assert found[-1] == model.tokens.unk
    known = sum(token != model.tokens.unk for token in found)
    assert model.evaluate(["A snowplough"]).token_accuracy == known / len(found)


def test_files_of_two_models_are_not_taken_for_one(tmp_path):
    first, second = (
        SentenceAutoencoder(part, **OPTIONS) for part in (TRAIN, [s[::-1] for s in TRAIN])
    )
    first.save(tmp_path / "a")
    second.save(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").replace(tmp_path / "a" / "tokenizer.json")
    with pytest.raises(ValueError, match=r"belong together|tokenizer.json is not the one|damaged"):
        SentenceAutoencoder.load(tmp_path / "a")


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def rewrite(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def change_config(**changes):
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


def change_tensors(change):
    def damage(folder: Path) -> None:
        tensors, _ = load_safetensors(folder / "model.safetensors", mmap=False)
        change(tensors)
        save_safetensors(folder / "model.safetensors", tensors)

    return damage


def poison(tensors):
    tensors["encoder.language_model.unigram"][3] = math.nan


def shuffle(tensors):
    offsets = tensors["encoder.language_model.offsets_2"]
    offsets[1] = 10**9


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove("config.json"), FileNotFoundError, "no config.json"),
        (remove("tokenizer.json"), FileNotFoundError, "no tokenizer.json"),
        (remove("model.safetensors"), FileNotFoundError, "no model.safetensors"),
        (rewrite("config.json", "{"), ValueError, "not a model's config.json"),
        (rewrite("tokenizer.json", "{}"), ValueError, "not a tokenizer's JSON"),
        (rewrite("model.safetensors", "x"), ValueError, "safetensors"),
        (change_config(format="vecsmith.Word2Vec"), ValueError, "got 'vecsmith.Word2Vec'"),
        (change_config(version=2), ValueError, "version <= 1"),
        (change_config(encoder="other"), ValueError, "damaged"),
        (change_config(options={"gamma": 2.0}), ValueError, "damaged"),
        (change_config(options={"wings": 2}), ValueError, "damaged"),
        (change_config(parameters={}), ValueError, "expected parameters"),
        (change_config(meaning_size=5), FileNotFoundError, "no words.txt"),
        (change_config(token_embeddings=True), ValueError, "damaged"),
        (change_config(seed=9), ValueError, "config.json is not the one"),
        (change_tensors(poison), ValueError, "unigram holds nan"),
        (change_tensors(shuffle), ValueError, "offsets"),
        (change_tensors(dict.clear), ValueError, "belong together"),
        (
            change_tensors(lambda tensors: tensors.update({"wheel.x": torch.ones(1)})),
            ValueError,
            "got 'wheel.x'",
        ),
        (
            change_tensors(lambda tensors: tensors.update({"decoder.x": torch.ones(1)})),
            ValueError,
            "no tensors of a decoder",
        ),
    ],
)
def test_folders_that_are_refused(model, tmp_path, damage, error, message):
    model.save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(error, match=message):
        SentenceAutoencoder.load(tmp_path / "model")


def test_a_save_that_fails_leaves_what_was_there(model, tmp_path, monkeypatch):
    model.save(tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    other = SentenceAutoencoder(TRAIN[:50], vector_size=64, vocab_size=300)
    other.encoder.language_model.unigram[0] = math.inf
    with pytest.raises(ValueError, match="unigram"):
        other.save(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_bytes() == before
    with pytest.raises(ValueError, match="unigram"):
        other.save(tmp_path / "nothing" / "model")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(FileNotFoundError):
        SentenceAutoencoder.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected device"):
        SentenceAutoencoder.load(tmp_path / "model", device="tpu")
    with pytest.raises(ValueError, match="expected unknown"):
        SentenceAutoencoder.load(tmp_path / "model", unknown="zzz")
    with pytest.raises(TypeError, match="expected options among"):
        SentenceAutoencoder.load(tmp_path / "model", vector_size=3)


# --- What is refused. -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vector_size": 0}, ValueError, "vector_size"),
        ({"vector_size": "big"}, TypeError, "vector_size"),
        ({"encoder": "transformer"}, ValueError, "expected encoder to be one of"),
        ({"wings": 2}, TypeError, r"among \['beam'.*got \['wings'\]"),
        ({"vocab_size": 2}, ValueError, "vocab_size"),
        ({"max_length": 0}, ValueError, "max_length"),
        ({"tokenizer": 3}, TypeError, "tokenizer"),
        ({"unknown": "x"}, ValueError, "unknown"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_options_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        SentenceAutoencoder(**options)


@pytest.mark.parametrize(
    ("sentences", "options", "error", "message"),
    [
        ([], {}, ValueError, "got none"),
        ("a path", {}, TypeError, "corpus_file"),
        (["a", 3], {}, TypeError, "got int at 1"),
        (["a", "b " * 40], {"max_length": 8}, ValueError, "in sentence 1"),
        (["a"], {"corpus_file": "x"}, TypeError, "got both"),
        (["a"], {"vector_size": 7}, ValueError, "even"),
        (["a"], {"gamma": 3.0}, ValueError, "gamma"),
        (["a"], {"language_model": -1}, ValueError, "language_model"),
    ],
)
def test_texts_that_are_refused(sentences, options, error, message):
    with pytest.raises(error, match=message):
        SentenceAutoencoder(sentences, **options)


def test_calls_that_are_refused(model):
    with pytest.raises(RuntimeError, match="call fit"):
        SentenceAutoencoder().encode(["a"])
    with pytest.raises(RuntimeError, match="call fit"):
        SentenceAutoencoder().decode(torch.ones(1, 512))
    with pytest.raises(RuntimeError, match="call fit"):
        SentenceAutoencoder().save("nowhere")
    with pytest.raises(TypeError, match="neither"):
        SentenceAutoencoder().fit()
    with pytest.raises(ValueError, match="in sentence 1"):
        model.encode(["a", "a man " * 40])
    good = model.encode(TEST[:3])
    for value in (math.nan, math.inf, 0.0):
        bad = good.clone()
        bad[1] = value
        with pytest.raises(ValueError, match="row 1"):
            model.decode(bad)
    with pytest.raises(ValueError, match=r"vectors \[B, 128\]"):
        model.decode(good[:, :100])
    with pytest.raises(ValueError, match="method"):
        model.decode(good, "beam")
    with pytest.raises(ValueError, match="temperature"):
        model.decode(good, temperature=0.0)
    with pytest.raises(ValueError, match="max_length"):
        model.decode(good, max_length=33)
    with pytest.raises(ValueError, match="got none"):
        model.evaluate([])
    with pytest.raises(ValueError, match="noise"):
        model.evaluate(TEST, noise=-1.0)


def test_tokenizers_are_imported_late():
    program = (
        "import sys, vecsmith; from vecsmith import SentenceAutoencoder; "
        "sys.exit('tokenizers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 0
