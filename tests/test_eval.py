"""Measures of word vectors: gensim's numbers and sections, on files good and bad."""

from __future__ import annotations

import bz2
import gzip
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsmith import KeyedVectors
from vecsmith import eval as measures
from vecsmith.eval import _analogies

Gensim = pytest.importorskip("gensim").models.KeyedVectors

CAPITALS = ["Athens", "Berlin", "Cairo", "Dublin", "Lima", "Oslo", "Paris", "Rome", "Straße"]
COUNTRIES = ["Greece", "Germany", "Egypt", "Ireland", "Peru", "Norway", "France", "Italy", "Weg"]


def vocabulary(generator: np.random.Generator, extra: int = 400) -> list[str]:
    """Words with variants in case, before and after the form that is asked for."""
    words = [*CAPITALS, *COUNTRIES]
    words += [word.upper() for word in CAPITALS[:5]] + [word.lower() for word in COUNTRIES[:6]]
    words += [f"noise{i}" for i in range(extra)]
    words = list(dict.fromkeys(words))
    return [words[i] for i in generator.permutation(len(words))]


def build(seed: int, noise: float = 0.5, dim: int = 16, extra: int = 400):
    """Vectors in which some of the analogies hold, ours and gensim's."""
    generator = np.random.default_rng(seed)
    words = vocabulary(generator, extra)
    vectors = generator.standard_normal((len(words), dim)).astype(np.float32)
    row = {word: i for i, word in enumerate(words)}
    shift = generator.standard_normal(dim)
    for capital, country in zip(CAPITALS, COUNTRIES, strict=True):
        base = generator.standard_normal(dim)
        for form in (str, str.upper, str.lower):
            if form(capital) in row:
                vectors[row[form(capital)]] = base + noise * generator.standard_normal(dim)
            if form(country) in row:
                vectors[row[form(country)]] = base + shift + noise * generator.standard_normal(dim)
    theirs = Gensim(dim)
    theirs.add_vectors(words, vectors.copy())
    return KeyedVectors(words, torch.from_numpy(vectors)), theirs


def questions(path, seed: int = 0, number: int = 120):
    generator = np.random.default_rng(seed)
    lines = [": capital-common-countries"]
    pairs = list(zip(CAPITALS, COUNTRIES, strict=True))
    for _ in range(number // 2):
        (a, b), (c, d) = (pairs[i] for i in generator.integers(0, len(pairs), 2))
        lines.append(f"{a} {b} {c} {d}")
    lines += [":not a section", "", "too few words", "one two three four five", ": empty section"]
    lines.append(":  gram 2: mixed ")
    names = [*CAPITALS, *COUNTRIES, "NOISE1", "noise2", "Unknown", "berlin", "PARIS", "egypt"]
    for _ in range(number // 2):
        lines.append("\t".join(names[i] for i in generator.integers(0, len(names), 4)))
    path.write_text("\n".join(lines), encoding="utf8")
    return path


@pytest.mark.parametrize("case_insensitive", [True, False])
@pytest.mark.parametrize("dummy4unknown", [True, False])
@pytest.mark.parametrize("restrict_vocab", [300_000, 150, 3, None])
def test_analogies_are_gensims(tmp_path, case_insensitive, dummy4unknown, restrict_vocab):
    options = {
        "case_insensitive": case_insensitive,
        "dummy4unknown": dummy4unknown,
        "restrict_vocab": restrict_vocab,
    }
    right = 0
    for seed in range(3):
        path = questions(tmp_path / "q.txt", seed)
        ours, theirs = build(seed)
        if restrict_vocab is None:  # gensim cannot log None
            theirs_options = {**options, "restrict_vocab": len(theirs)}
        else:
            theirs_options = options
        score, sections = ours.evaluate_word_analogies(path, **options)
        expected = theirs.evaluate_word_analogies(str(path), **theirs_options)
        assert (score, sections) == expected
        assert [section["section"] for section in sections] == [
            "capital-common-countries",
            "empty section",
            "gram 2: mixed",
            "Total accuracy",
        ]
        right += len(sections[-1]["correct"])
    if restrict_vocab in (300_000, None):
        assert right > 20


def test_analogies_where_all_nearest_words_are_variants_in_case(tmp_path):
    """gensim looks at five words only: if all are variants of what was given, it takes the last."""
    forms = ["".join(c) for c in itertools.product("aA", "bB", "cC")]  # eight variants of abc
    words = [*forms, "x", "y", "z", "w", "far"]
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((len(words), 6)).astype(np.float32)
    vectors[: len(forms)] = vectors[0] + 0.01 * vectors[: len(forms)]
    theirs = Gensim(6)
    theirs.add_vectors(words, vectors)
    ours = KeyedVectors(words, vectors)
    path = tmp_path / "q.txt"
    tuples = [
        "x y abc abc",
        "x y abc w",
        "x abc y abc",
        "abc x y z",
        "abc abc abc abc",
        "x x x abc",
    ]
    path.write_text("\n".join([": s", *tuples]))
    for insensitive in (True, False):
        assert ours.evaluate_word_analogies(
            path, case_insensitive=insensitive
        ) == theirs.evaluate_word_analogies(str(path), case_insensitive=insensitive)
    assert len(ours.evaluate_word_analogies(path)[1][0]["correct"]) >= 2


def test_tiny_vocabularies(tmp_path):
    path = tmp_path / "q.txt"
    path.write_text(": s\na b c d\na b b a\na a a a\nc d a b\n")
    for words in (["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]):
        vectors = np.random.default_rng(1).standard_normal((len(words), 4)).astype(np.float32)
        theirs = Gensim(4)
        theirs.add_vectors(words, vectors)
        ours = KeyedVectors(words, vectors)
        assert ours.evaluate_word_analogies(path) == theirs.evaluate_word_analogies(str(path))


def test_blocks_of_any_size_give_the_same(tmp_path, monkeypatch):
    path = questions(tmp_path / "q.txt", 7, 300)
    ours, _ = build(7)
    whole = measures.analogies(ours.weight, ours.index_to_key, path)
    for asked, searched in ((1, 10_000), (7, 13), (512, 1), (1000, 100)):
        monkeypatch.setattr(_analogies, "_QUESTIONS", asked)
        monkeypatch.setattr(_analogies, "_WORDS", searched)
        assert measures.analogies(ours.weight, ours.index_to_key, path) == whole
    assert whole.questions == 300
    assert whole.invalid == 3
    assert whole.unknown + whole.total.total == 300
    assert 0 < whole.score == len(whole.total.correct) / whole.total.total
    assert "300 questions" in str(whole)


def test_zero_vectors_are_never_the_answer(tmp_path):
    path = questions(tmp_path / "q.txt", 3)
    ours, theirs = build(3)
    for row in range(0, len(ours), 5):
        if ours.index_to_key[row].startswith("noise"):
            ours.vectors[row] = 0
            theirs.vectors[row] = 0
    with np.errstate(invalid="ignore"):
        expected = theirs.evaluate_word_analogies(str(path))
    assert ours.evaluate_word_analogies(path) == expected
    # Nor do they harm as a question.
    ours.vectors[:] = 0
    score, sections = ours.evaluate_word_analogies(path)
    assert score == 0
    assert sections[-1]["incorrect"]


def test_half_and_double_precision_and_strides(tmp_path):
    path = questions(tmp_path / "q.txt", 5)
    ours, _ = build(5, noise=0.1)
    words = ours.index_to_key
    expected = measures.analogies(ours.weight, words, path)
    padded = torch.zeros(len(ours), 32)
    padded[:, :16] = ours.weight
    for vectors in (
        padded[:, :16],
        ours.weight.double(),
        ours.vectors,
        np.asfortranarray(ours.vectors),
        ours.vectors[::-1][::-1],
    ):
        assert measures.analogies(vectors, words, path) == expected
    half = measures.analogies(ours.weight.half(), words, path)
    assert abs(half.score - expected.score) < 0.05


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "got none"),
        (b": only a section\n", "got none"),
        (b"a b c d\n", "expected a section header"),
        (b"\n: s\na b c d\n", "expected a section header"),
        (b": s\n\xff b c d\n", "line 2 is not UTF-8"),
        (b"\x00\x01\x02", "expected a section header"),
    ],
)
def test_bad_question_files(tmp_path, content, match):
    path = tmp_path / "q.txt"
    path.write_bytes(content)
    ours, _ = build(0)
    with pytest.raises(ValueError, match=match) as caught:
        ours.evaluate_word_analogies(path)
    assert str(path) in str(caught.value)


# --- pairs ----------------------------------------------------------------------------------------


def pairs(path, seed: int = 0, delimiter: str = "\t"):
    generator = np.random.default_rng(seed)
    names = [*CAPITALS, *COUNTRIES, "noise1", "NOISE2", "Unknown", "paris"]
    lines = ["# a comment", "Word 1;Word 2;Human (mean)"]
    for _ in range(80):
        first, second = (names[i] for i in generator.integers(0, len(names), 2))
        lines.append(delimiter.join([first, second, f"{generator.integers(0, 20) / 2}"]))
    lines += ["", "broken line", delimiter.join(["a", "b", "score"])]
    path.write_text("\n".join(lines), encoding="utf8")
    return path


@pytest.mark.parametrize("case_insensitive", [True, False])
@pytest.mark.parametrize("dummy4unknown", [True, False])
@pytest.mark.parametrize("restrict_vocab", [300_000, 200])
def test_word_pairs_are_gensims(tmp_path, case_insensitive, dummy4unknown, restrict_vocab):
    options = {
        "case_insensitive": case_insensitive,
        "dummy4unknown": dummy4unknown,
        "restrict_vocab": restrict_vocab,
    }
    for seed in range(3):
        path = pairs(tmp_path / "p.tsv", seed)
        ours, theirs = build(seed)
        expected = theirs.evaluate_word_pairs(str(path), **options)
        pearson, spearman, oov = ours.evaluate_word_pairs(path, **options)
        assert tuple(pearson) == tuple(expected[0])
        assert tuple(spearman) == tuple(expected[1])
        assert oov == expected[2]


def test_the_result_of_word_pairs(tmp_path):
    path = pairs(tmp_path / "p.tsv")
    ours, _ = build(0)
    result = measures.word_pairs(ours.weight, ours.index_to_key, path)
    assert result.pairs + result.unknown == 80
    assert result.invalid == 3
    assert 0 < result.oov_ratio == result.unknown / 80 * 100
    assert result.spearman[0] != result.pearson[0]
    assert "Spearman" in str(result)
    spaced = pairs(tmp_path / "p.txt", delimiter=" ")
    again = measures.word_pairs(ours.vectors, ours.index_to_key, spaced, delimiter=None)
    assert again == result
    for name, packed in (("p.gz", gzip.compress), ("p.bz2", bz2.compress)):
        (tmp_path / name).write_bytes(packed(path.read_bytes()))
        assert measures.word_pairs(ours.weight, ours.index_to_key, tmp_path / name) == result


def test_columns_behind_the_score_are_left_out(tmp_path):
    ours, _ = build(0)
    rows = ["Paris\tRome\t1", "Oslo\tLima\t2", "Cairo\tRome\t4"]
    (tmp_path / "three").write_text("\n".join(rows))
    (tmp_path / "more").write_text("\n".join(row + "\tN\t0.5" for row in rows))
    few, many = (
        measures.word_pairs(ours.weight, ours.index_to_key, tmp_path / name)
        for name in ("three", "more")
    )
    assert (few, few.pairs, few.invalid) == (many, 3, 0)


def test_a_byte_order_mark_is_skipped(tmp_path):
    ours, _ = build(0)
    texts = {
        ours.evaluate_word_pairs: "Paris\tRome\t1\nOslo\tLima\t2\nCairo\tRome\t4\n",
        ours.evaluate_word_analogies: ": one\nParis France Rome Italy\n",
    }
    for call, text in texts.items():
        (tmp_path / "plain").write_text(text)
        (tmp_path / "marked").write_text(text, encoding="utf-8-sig")
        assert str(call(tmp_path / "marked")) == str(call(tmp_path / "plain"))


def test_constant_and_infinite_scores(tmp_path):
    ours, _ = build(0)
    path = tmp_path / "p.tsv"
    path.write_text("Paris\tRome\t1\nOslo\tLima\t1\nCairo\tRome\t1\n")
    pearson, spearman, _ = ours.evaluate_word_pairs(path)
    assert np.isnan(pearson[0])
    assert np.isnan(spearman[0])
    path.write_text("Paris\tRome\t1\nOslo\tLima\t2\nCairo\tRome\tnan\nCairo\tOslo\tinf\n")
    result = measures.word_pairs(ours.weight, ours.index_to_key, path)
    assert (result.pairs, result.invalid) == (2, 2)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "at least two pairs"),
        (b"Paris\tRome\t3\n", "got 1"),
        (b"Nowhere\tRome\t3\n" * 3, "3 pairs with unknown words"),
        (b"Paris,Rome,3\n" * 3, "3 invalid lines"),
        (b"Paris\tRome\t3\nPa\xffris\tRome\t3\n", "line 2 is not utf8"),
    ],
)
def test_bad_pair_files(tmp_path, content, match):
    path = tmp_path / "p.tsv"
    path.write_bytes(content)
    ours, _ = build(0)
    with pytest.raises(ValueError, match=match) as caught:
        ours.evaluate_word_pairs(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_bad_matrices(tmp_path):
    ours, _ = build(0)
    path = pairs(tmp_path / "p.tsv")
    for call in (ours.evaluate_word_pairs, ours.evaluate_word_analogies):
        with pytest.raises(FileNotFoundError):
            call(tmp_path / "absent")
    for measure in (measures.word_pairs, measures.analogies):
        with pytest.raises(TypeError, match="expected vectors as a tensor or array"):
            measure([[1.0]], ["a"], path)
        with pytest.raises(TypeError, match="floating-point"):
            measure(np.ones((1, 2), dtype=int), ["a"], path)
        with pytest.raises(ValueError, match=r"expected vectors of shape \[1, D\]"):
            measure(torch.ones(2, 2), ["a"], path)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_are_measured_or_refused(tmp_path_factory, content, header):
    path = tmp_path_factory.mktemp("fuzz") / "f"
    path.write_bytes((b": s\nParis France Rome Italy\n" if header else b"") + content)
    ours = KeyedVectors(["Paris", "France", "Rome", "Italy"], torch.eye(4))
    for call in (ours.evaluate_word_pairs, ours.evaluate_word_analogies):
        try:
            call(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
