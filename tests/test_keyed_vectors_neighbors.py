"""KeyedVectors: the neighbor queries give gensim's answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vecsmith import KeyedVectors
from word_tables import WORDS, table, twins

Gensim = pytest.importorskip("gensim").models.KeyedVectors

CLOSE = 2e-6


@pytest.fixture(scope="module")
def pair() -> tuple[KeyedVectors, Gensim]:
    return twins()


def agree(ours: object, theirs: object) -> None:
    """Equal up to rounding; lists of (word, score) in the same order."""
    if isinstance(theirs, list):
        assert isinstance(ours, list)
        assert [word for word, _ in ours] == [word for word, _ in theirs]
        ours, theirs = [score for _, score in ours], [score for _, score in theirs]
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=CLOSE)


VECTOR = table(1, seed=5)[0].numpy()
QUERIES = [
    {"positive": "word3"},
    {"positive": ["word3"]},
    {"positive": ["word3", "word4"], "negative": ["word5"]},
    {"positive": ["word3", "word3"]},
    {"positive": ["word3"], "negative": ["word3", "word7"]},
    {"negative": "word9"},
    {"positive": [("word3", 2.0), "word4"], "negative": [("word5", -0.5)]},
    {"positive": [("word3", 0.0), ("word4", 1)]},
    {"positive": VECTOR},
    {"positive": [VECTOR, "word1"], "negative": [VECTOR * 0.5]},
    {"positive": [(VECTOR, 3.0), ("word8", -1.0)]},
    {"positive": np.stack([VECTOR, VECTOR + 1])},
    {"positive": 7},
    {"positive": [7, np.int64(8), "word2"]},
    {"positive": VECTOR.astype(np.float64)},
]
LIMITS = [
    {},
    {"topn": 1},
    {"topn": 0},
    {"topn": -3},
    {"topn": None},
    {"topn": 298},
    {"topn": 10_000},
    {"restrict_vocab": 50},
    {"restrict_vocab": 5, "topn": 10},
    {"restrict_vocab": 10_000},
    {"restrict_vocab": 0},
    {"clip_start": 100, "clip_end": 200},
    {"clip_start": 100, "topn": None},
    {"clip_end": 7, "topn": 20},
    {"clip_start": 250, "clip_end": 200},
    {"clip_start": -50},
]


@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("query", range(len(QUERIES)))
def test_most_similar_is_gensims(pair, query, limit):
    ours, theirs = pair
    if limit.get("clip_start", 0) < 0:
        # gensim shifts its rows wrongly here; ours are those of the slice.
        found = ours.most_similar(**QUERIES[query], **limit)
        expected = ours.most_similar(**QUERIES[query], clip_start=len(ours) - 50)
        assert found == expected
        return
    agree(
        ours.most_similar(**QUERIES[query], **limit), theirs.most_similar(**QUERIES[query], **limit)
    )


def test_the_other_neighbor_methods_are_gensims(pair):
    ours, theirs = pair
    agree(ours.similar_by_word("word5", 7), theirs.similar_by_word("word5", 7))
    agree(ours.similar_by_key("word5", None), theirs.similar_by_key("word5", None))
    agree(ours.similar_by_vector(VECTOR, 4, 100), theirs.similar_by_vector(VECTOR, 4, 100))
    agree(
        ours.most_similar_cosmul(["word1", "word2"], ["word3"], topn=12),
        theirs.most_similar_cosmul(["word1", "word2"], ["word3"], topn=12),
    )
    agree(
        ours.most_similar_cosmul("word1", topn=None), theirs.most_similar_cosmul("word1", topn=None)
    )
    assert ours.most_similar_cosmul("word1", topn=0) == []
    assert ours.rank("word1", "word2") == theirs.rank("word1", "word2")
    assert ours.closer_than("word1", "word2") == theirs.closer_than("word1", "word2")
    assert ours.most_similar_to_given("word1", WORDS[2:9]) == theirs.most_similar_to_given(
        "word1", WORDS[2:9]
    )
    agree(
        ours.relative_cosine_similarity("word1", "word2"),
        theirs.relative_cosine_similarity("word1", "word2"),
    )


def test_similarities_are_gensims_to_the_bit(pair):
    ours, theirs = pair
    for i in range(0, 290, 7):
        assert ours.similarity(WORDS[i], WORDS[i + 9]) == theirs.similarity(WORDS[i], WORDS[i + 9])
    assert ours.distance("word1", 2) == pytest.approx(theirs.distance("word1", 2), abs=1e-7)
    for first, second in ((WORDS[:3], WORDS[4:9]), (WORDS[:1], WORDS[:1]), ([0, "x"], ["word4"])):
        assert ours.n_similarity(first, second) == theirs.n_similarity(first, second)
    agree(ours.distances("word1"), theirs.distances("word1"))
    agree(ours.distances(VECTOR, WORDS[:5]), theirs.distances(VECTOR, WORDS[:5]))
    for words in (WORDS[:2], WORDS[3:9], ["word1", 2, "word7"]):
        agree(
            np.array([score for score, _ in ours.rank_by_centrality(words)]),
            np.array([score for score, _ in theirs.rank_by_centrality(words)]),
        )
        assert ours.doesnt_match(words) == theirs.doesnt_match(words)
    agree(ours.get_mean_vector(WORDS[:5]), theirs.get_mean_vector(WORDS[:5]))
    agree(
        ours.get_mean_vector(["word1", "none", VECTOR], [1.0, 2.0, -0.5], post_normalize=True),
        theirs.get_mean_vector(["word1", "none", VECTOR], [1.0, 2.0, -0.5], post_normalize=True),
    )
    agree(ours.get_vector("word8", norm=True), theirs.get_vector("word8", norm=True))
    agree(ours.get_normed_vectors(), theirs.get_normed_vectors())
    agree(ours.norms, np.linalg.norm(theirs.vectors, axis=1))


def test_zero_vectors_come_last_as_in_gensim():
    vectors = table(30)
    vectors[5] = 0
    ours, theirs = KeyedVectors(WORDS[:30], vectors), Gensim(20)
    theirs.add_vectors(WORDS[:30], vectors.numpy())
    found = ours.most_similar("word1", topn=40)
    with np.errstate(invalid="ignore"):
        expected = theirs.most_similar("word1", topn=40)
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert found[-1][0] == "word5"
    assert math.isnan(found[-1][1])
    assert ours.similarity("word1", "word5") == theirs.similarity("word1", "word5") == 0
    assert all(math.isnan(score) for _, score in ours.most_similar("word5"))
    assert np.isnan(ours.get_vector("word5", norm=True)).all()


def test_ties_come_in_the_order_of_rows():
    kv = KeyedVectors(WORDS[:100], torch.ones(100, 3))
    assert [word for word, _ in kv.most_similar(positive=[np.ones(3)], topn=7)] == WORDS[:7]
    assert [word for word, _ in kv.most_similar("word2", topn=3)] == ["word0", "word1", "word3"]


def test_unknown_words_and_wrong_queries(pair):
    ours, _ = pair
    for call in (
        lambda: ours["nobody"],
        lambda: ours[["word1", "nobody"]],
        lambda: ours.get_vector("nobody"),
        lambda: ours.get_index("nobody"),
        lambda: ours.most_similar("nobody"),
        lambda: ours.most_similar(["word1"], ["nobody"]),
        lambda: ours.most_similar([("nobody", 1.0)]),
        lambda: ours.most_similar_cosmul("nobody"),
        lambda: ours.similarity("word1", "nobody"),
        lambda: ours.distances("word1", ["nobody"]),
        lambda: ours.n_similarity(["nobody"], ["word1"]),
        lambda: ours.rank("word1", "nobody"),
        lambda: ours.get_vecattr("nobody", "count"),
        lambda: ours.get_mean_vector(["nobody"], ignore_missing=False),
    ):
        with pytest.raises(KeyError, match="nobody"):
            call()
    with pytest.raises(KeyError, match="300"):
        ours[300]
    with pytest.raises(KeyError, match="-1"):
        ours[-1]
    assert ours.get_index("nobody", 4) == 4
    assert "nobody" not in ours
    assert -1 not in ours
    assert None not in ours
    for call in (
        lambda: ours.most_similar(),
        lambda: ours.most_similar(positive=[]),
        lambda: ours.most_similar_cosmul(negative="word1"),
        lambda: ours.most_similar(np.ones(19)),
        lambda: ours.most_similar(torch.ones(2, 3)),
        lambda: ours.n_similarity([], ["word1"]),
        lambda: ours.get_mean_vector([]),
        lambda: ours.get_mean_vector(["word1"], [1.0, 2.0]),
        lambda: ours.doesnt_match([]),
    ):
        with pytest.raises(ValueError, match=r"expected|cannot compute"):
            call()
    for wrong in ([None], [("word1", "x")], [("word1", 1, 2)], [1.5], [{}]):
        with pytest.raises(TypeError, match="expected"):
            ours.most_similar(wrong)
    with pytest.warns(UserWarning, match="nobody"):
        assert ours.doesnt_match(["word1", "nobody", "word2"]) in ("word1", "word2")
    with pytest.warns(UserWarning, match="nobody"), pytest.raises(ValueError, match="at least one"):
        ours.doesnt_match(["nobody"])
