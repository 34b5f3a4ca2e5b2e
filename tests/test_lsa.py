"""LSA: the counts of a text, their weights by hand, one space for documents and words, files."""

from __future__ import annotations

import gzip
import io
import json
import math

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import vecsmith
from vecsmith.data import Corpus
from vecsmith.models import _term_weights
from vecsmith.models._range_finder import exact_triplets

DOCUMENTS = [
    "ship ocean wood ship",
    "boat ocean",
    "ship sailor",
    "",
    "voyage trip the the the",
    "voyage the",
    "trip voyage trip",
]


def topics(documents: int, seed: int = 0) -> tuple[list[list[str]], list[int]]:
    """Documents of 20 words from one of three vocabularies, and which."""
    generator = np.random.default_rng(seed)
    names = [[f"{topic}{i}" for i in range(30)] for topic in "abc"]
    labels = generator.integers(0, 3, documents).tolist()
    lines = [[names[label][i] for i in generator.zipf(1.6, 20) % 30] for label in labels]
    return lines, labels


def dense(counts) -> np.ndarray:
    return counts.toarray()


def test_counts_of_a_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(_term_weights, "_CHUNK", 5)  # several pieces
    corpus = Corpus.build([line.split() for line in DOCUMENTS], tmp_path, min_count=1)
    words = corpus.vocabulary.words
    column = np.array([-1 if word == "the" else i for i, word in enumerate(words)])
    counts = _term_weights.corpus_counts(corpus, column, len(words))
    filled = [line.split() for line in DOCUMENTS if line]
    expected = [[line.count(w) if w != "the" else 0 for w in words] for line in filled]
    assert dense(counts).tolist() == expected
    index = {word: i for i, word in enumerate(words) if word != "the"}
    folded = _term_weights.document_counts(filled, index | {"unseen": len(words) - 1})
    assert folded.shape[0] == len(filled)
    assert folded[0, index["ship"]] == 2


COUNTS = np.array([[2.0, 0, 1], [1, 0, 1], [0, 3, 1], [0, 0, 1]])


def test_weights_by_hand():
    import scipy.sparse

    counts = scipy.sparse.csr_matrix(COUNTS.astype(np.float32))
    found = np.array([2, 1, 4])
    for idf, expected in (
        ("smooth", np.log(5 / (1 + found)) + 1),
        ("standard", np.log(4 / found)),
        ("probabilistic", [0, math.log(3), 0]),
    ):
        weights = _term_weights.word_weights(counts, "tfidf", idf)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
    entropy = (2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(4)
    weights = _term_weights.word_weights(counts, "log_entropy", "smooth")
    np.testing.assert_allclose(weights, [1 + entropy, 1, 0], atol=1e-6)
    assert (_term_weights.word_weights(counts, "count", "smooth") == 1).all()
    matrix = _term_weights.weighted(counts, weights, "log_entropy", False, None)
    np.testing.assert_allclose(dense(matrix), np.log1p(COUNTS) * weights, rtol=1e-6)
    for sublinear in (False, True):
        weights = _term_weights.word_weights(counts, "tfidf", "smooth")
        ours = _term_weights.weighted(counts, weights, "tfidf", sublinear, "l2")
        theirs = TfidfTransformer(sublinear_tf=sublinear).fit_transform(COUNTS)
        np.testing.assert_allclose(dense(ours), theirs.toarray(), rtol=1e-6)
    assert (dense(counts) == COUNTS).all()


@pytest.mark.parametrize("scaling", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weighting", ["tfidf", "log_entropy", "count"])
def test_documents_and_words_in_one_space(weighting, scaling):
    model = vecsmith.LSA(3, weighting=weighting, scaling=scaling)
    vectors = model.fit_transform(DOCUMENTS)
    assert vectors.shape == (7, 3)
    assert vectors.dtype == np.float32
    assert (vectors[3] == 0).all()
    np.testing.assert_allclose(model.transform(DOCUMENTS), vectors, atol=1e-5)
    counts = _term_weights.document_counts(
        [line.split() for line in DOCUMENTS], model.vocabulary.index
    )
    X = dense(model._weighted(counts, model.word_weights_))
    left, values, right = np.linalg.svd(X, full_matrices=False)
    near = (left[:, :3] * values[:3]) @ right[:3]
    np.testing.assert_allclose(model.singular_values_, values[:3], rtol=1e-5)
    words = model.word_vectors.vectors
    if scaling == 1:
        np.testing.assert_allclose(vectors @ vectors.T, near @ near.T, atol=1e-5)
        np.testing.assert_allclose(words @ words.T, near.T @ near, atol=1e-5)
    elif scaling == 0.5:
        np.testing.assert_allclose(vectors @ words.T, near, atol=1e-5)
    else:
        np.testing.assert_allclose(words.T @ words, np.eye(3), atol=1e-5)


def test_what_belongs_together_is_near():
    lines, labels = topics(150)
    model = vecsmith.LSA(3, sublinear_tf=True).fit(lines)
    assert {word[0] for word, _ in model.word_vectors.most_similar("a0", topn=10)} == {"a"}
    for number in (0, 7, 20):
        found = model.most_similar_documents(number, topn=20)
        assert number not in [other for other, _ in found]
        assert all(labels[other] == labels[number] for other, _ in found)
        assert [c for _, c in found] == sorted((c for _, c in found), reverse=True)
    # Two words that never meet have the topic in common.
    new = model.most_similar_documents("b3 b11 unheard", topn=10)
    assert {labels[other] for other, _ in new} == {1}
    assert {word[0] for word, _ in model.most_similar_words(["c5", "c1"], topn=10)} == {"c"}
    assert model.most_similar_documents(model.document_vectors[0], topn=1)[0][0] == 0
    assert model.most_similar_documents(0, topn=0) == []


def test_every_form_of_a_text_is_the_same(tmp_path):
    lines = [line for line in DOCUMENTS if line]
    expected = vecsmith.LSA(3).fit(lines)
    text = "\n".join(["", *lines[:2], "  ", *lines[2:]]).encode()
    (tmp_path / "text.txt").write_bytes(text)
    (tmp_path / "text.gz").write_bytes(gzip.compress(text))
    corpus = Corpus.build([line.split() for line in lines], tmp_path / "cache", min_count=1)
    tokens = (line.split() for line in lines)
    for source in (tmp_path / "text.txt", str(tmp_path / "text.gz"), io.BytesIO(text), corpus,
                   tokens, tuple(lines)):  # fmt: skip
        model = vecsmith.LSA(3).fit(source)
        assert model.vocabulary.words == expected.vocabulary.words
        np.testing.assert_allclose(model.document_vectors, expected.document_vectors, atol=1e-6)
    for source in (tmp_path / "text.txt", tmp_path / "text.gz", io.BytesIO(text), corpus):
        found = expected.transform(source)
        np.testing.assert_allclose(found, expected.document_vectors, atol=1e-5)


def test_which_words_are_kept():
    words = vecsmith.LSA(1).fit(DOCUMENTS).vocabulary.words
    assert words[0] == "the"
    assert set(words) == set(" ".join(DOCUMENTS).split())
    model = vecsmith.LSA(1, stop_words=["the"], min_count=2).fit(DOCUMENTS)
    assert set(model.vocabulary.words) == {"ship", "ocean", "voyage", "trip"}
    assert (np.diff(model.vocabulary.counts) <= 0).all()
    assert len(vecsmith.LSA(1, max_final_vocab=2).fit(DOCUMENTS).vocabulary) == 2
    assert model.word_vectors.get_vecattr("ship", "count") == 3


def test_large_texts_go_through_the_krylov_space():
    lines, _ = topics(900)
    lines = [[*line, f"only{i}", f"other{i % 600}"] for i, line in enumerate(lines)]
    model = vecsmith.LSA(4).fit(lines)
    counts = _term_weights.document_counts(lines, model.vocabulary.index)
    matrix = vecsmith.models._matrix.Matrix(model._weighted(counts, model.word_weights_))
    exact = exact_triplets(matrix, 4)[1]
    np.testing.assert_allclose(model.singular_values_, exact, rtol=2e-3)
    again = vecsmith.LSA(4).fit(lines)
    assert np.array_equal(model.document_vectors, again.document_vectors)


def test_it_is_a_step_of_a_pipeline():
    lines, labels = topics(120)
    model = make_pipeline(vecsmith.LSA(3), LogisticRegression()).fit(lines[:80], labels[:80])
    assert model.score(lines[80:], labels[80:]) > 0.9
    copy = clone(vecsmith.LSA(7, idf="standard", stop_words=("a",)))
    assert (copy.n_components, copy.idf, copy.stop_words) == (7, "standard", ("a",))
    framed = vecsmith.LSA(2).fit(DOCUMENTS)
    assert list(framed.get_feature_names_out()) == ["lsa0", "lsa1"]


def test_a_folder_holds_the_model(tmp_path):
    model = vecsmith.LSA(3, scaling=0.5, stop_words={"the", "wood"}).fit(DOCUMENTS)
    folder = tmp_path / "new" / "model"
    model.save(folder)
    again = vecsmith.LSA.load(folder)
    assert again.get_params() == {**model.get_params(), "stop_words": ["the", "wood"]}
    assert again.vocabulary.words == model.vocabulary.words
    assert np.array_equal(again.transform(DOCUMENTS), model.transform(DOCUMENTS))
    assert np.array_equal(again.document_vectors, model.document_vectors)
    assert again.word_vectors.most_similar("ship") == model.word_vectors.most_similar("ship")
    vecsmith.LSA(2).fit(DOCUMENTS).save(folder)
    assert vecsmith.LSA.load(folder).n_components == 2


def test_options_of_numpy_are_saved(tmp_path):
    model = vecsmith.LSA(
        np.int64(2), sublinear_tf=np.bool_(True), scaling=np.float32(0.5), min_count=np.int32(1),
        max_final_vocab=np.int64(9), n_iter=np.int8(4), random_state=np.int64(7),
        stop_words=np.array(["the"]),
    )  # fmt: skip
    model.fit(DOCUMENTS).save(tmp_path)
    again = vecsmith.LSA.load(tmp_path)
    assert again.get_params() == {**model.get_params(), "stop_words": ["the"]}
    assert {type(again.n_components), type(again.scaling), type(again.sublinear_tf)} == {
        int, float, bool,
    }  # fmt: skip
    for given, kept in ((7, 7), (None, None), (np.random.RandomState(3), None)):
        model.set_params(random_state=given).save(tmp_path)
        assert vecsmith.LSA.load(tmp_path).random_state == kept


def test_empty_documents_of_a_list_count():
    """N is the number of documents, those without words among them, as in scikit-learn."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    for documents in (DOCUMENTS, ["", *DOCUMENTS, "", " "], [*DOCUMENTS, "of", "in of"]):
        model = vecsmith.LSA(2, stop_words=["of", "in"]).fit(documents)
        theirs = TfidfVectorizer(token_pattern=r"\S+", stop_words=["of", "in"])
        X = theirs.fit_transform(documents)
        expected = dict(zip(theirs.get_feature_names_out(), theirs.idf_, strict=True))
        found = dict(zip(model.vocabulary.words, model.word_weights_.tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-6)
        values = np.linalg.svd(X.toarray(), compute_uv=False)[:2]
        np.testing.assert_allclose(model.singular_values_, values, rtol=1e-5)
        assert len(model.document_vectors) == len(documents)
    counts = _term_weights.document_counts([["a"], ["a", "b"]], {"a": 0, "b": 1})
    spread = _term_weights.word_weights(counts, "log_entropy", "smooth", 8)
    np.testing.assert_allclose(spread, [1 - math.log(2) / math.log(8), 1], rtol=1e-6)


def test_damaged_folders_are_refused(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(FileNotFoundError):
        vecsmith.LSA.load(folder)
    vecsmith.LSA(2).fit(DOCUMENTS).save(folder)
    config = json.loads((folder / "config.json").read_text())
    for change, match in (
        ({"format": "vecsmith.Word2Vec"}, "expected vecsmith.LSA"),
        ({"version": 99}, "version <= 1"),
        ({"version": -1}, "got .* of version -1"),
        ({"version": True}, "got .* of version True"),
        ({"version": "1"}, "got .* of version '1'"),
        ({"words": 3}, "do not belong together"),
        ({"stop_words": "abc"}, "damaged .*stop_words"),
        ({"stop_words": [1]}, "damaged .*stop_words"),
        ({"options": {}}, "damaged"),
        *(
            ({"options": {**config["options"], name: value}}, f"damaged .*{word}")
            for name, value, word in (
                ("weighting", "bogus", "weighting"),
                ("idf", "bogus", "idf"),
                ("norm", "l1", "norm"),
                ("scaling", "x", "scaling"),
                ("scaling", 1.5, "scaling"),
                ("n_components", "2", "n_components"),
                ("sublinear_tf", "false", "sublinear_tf"),
                ("min_count", None, "min_count"),
                ("random_state", "x", "seed"),
            )
        ),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=match):
            vecsmith.LSA.load(folder)
    (folder / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"not a model's config\.json"):
        vecsmith.LSA.load(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt"):
        vecsmith.LSA.load(folder)


@pytest.mark.parametrize(
    ("options", "documents", "error", "match"),
    [
        ({"n_components": 0}, DOCUMENTS, ValueError, "n_components >= 1"),
        ({"n_components": 7}, DOCUMENTS, ValueError, "documents with words, 6 of 7, and of words"),
        ({"sublinear_tf": "no"}, DOCUMENTS, TypeError, "True or False"),
        ({"stop_words": ["the", 1]}, DOCUMENTS, TypeError, "strings; got 1"),
        ({"stop_words": iter(["the"])}, DOCUMENTS, TypeError, "a collection of words"),
        ({"weighting": "bm25"}, DOCUMENTS, ValueError, "log_entropy"),
        ({"idf": "max"}, DOCUMENTS, ValueError, "probabilistic"),
        ({"norm": "l1"}, DOCUMENTS, ValueError, "'l2'"),
        ({"scaling": 2}, DOCUMENTS, ValueError, r"0 \.\. 1"),
        ({"min_count": 50}, DOCUMENTS, ValueError, "min_count=50"),
        ({"max_final_vocab": 0}, DOCUMENTS, ValueError, "max_final_vocab"),
        ({"stop_words": "the"}, DOCUMENTS, TypeError, "stop_words"),
        ({}, [], ValueError, "^LSA: expected documents with words; got 0 with none"),
        ({}, ["", " "], ValueError, "got 2 with none"),
        ({}, [["a"], [3]], TypeError, "document 1"),
        ({}, ["a", 3], TypeError, "document 1"),
        ({}, ["a", b"b"], TypeError, "document 1"),
        ({}, 3, TypeError, "got int"),
        ({}, "no such file", FileNotFoundError, "no such file"),
    ],
)
def test_bad_input_is_refused(options, documents, error, match):
    with pytest.raises(error, match=match):
        vecsmith.LSA(**{"n_components": 1, **options}).fit(documents)


def test_bad_questions_are_refused():
    from sklearn.exceptions import NotFittedError

    model = vecsmith.LSA(2)
    with pytest.raises(NotFittedError):
        model.transform(DOCUMENTS)
    model.fit(DOCUMENTS)
    with pytest.raises(IndexError, match=r"0\.\.6, got 7"):
        model.most_similar_documents(7)
    with pytest.raises(ValueError, match="known words"):
        model.most_similar_documents("unheard of")
    with pytest.raises(ValueError, match="known words"):
        model.most_similar_documents(3)
    with pytest.raises(ValueError, match=r"shape \[2\]"):
        model.most_similar_words(np.ones(3))
    with pytest.raises(FileNotFoundError):
        model.transform("no such file")
    with pytest.raises(TypeError, match="BytesIO"):
        model.transform(b"ship")
