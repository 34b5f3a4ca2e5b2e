"""The corpus: text in, ids out, as a plain Python reading has it, whatever the blocks and threads;
gensim's vocabularies; memory that does not grow.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plain_corpus import (
    TEXT,
    check,
    count_plainly,
    gzipped,
    native_reader,
    plain,
    read_plainly,
    without_unknown,
    zipf_text,
)
from vecsmith.data import Corpus, Vocabulary, _sources

# --- text in, ids out -----------------------------------------------------------------------------

PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b" ", b"\n", b"\t", b"\r\n", b"the", b"cat", "é".encode(), "🐱".encode()]),
    st.sampled_from([b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"a\0"]),
    st.integers(14, 70).map(lambda n: b"x" * n),
)


@settings(deadline=None, max_examples=300)
@given(
    pieces=st.lists(PIECES, max_size=60),
    block=st.integers(1, 200),
    threads=st.integers(1, 4),
    part_bytes=st.integers(1, 40),
    max_sentence_length=st.integers(1, 8),
)
@example([b"\xe2\x82", b"\xac", b" a"], 1, 3, 1, 8)
def test_any_bytes_any_blocks(
    tmp_path_factory, pieces, block, threads, part_bytes, max_sentence_length
):
    folder = tmp_path_factory.getbasetemp() / "any-bytes"
    folder.mkdir(exist_ok=True)
    data = b"".join(pieces)
    sentences, bad = read_plainly(data, max_sentence_length)
    with native_reader(
        folder, threads=threads, part_bytes=part_bytes, max_sentence_length=max_sentence_length
    ) as (reader, contents):
        for i in range(0, len(data), block):
            reader.feed(data[i : i + block])
        reader.finish()
        tokens, offsets = contents()
        counts = Counter(itertools.chain.from_iterable(sentences))
        words = list(counts)
        assert reader.words(np.arange(len(reader), dtype=np.int32)) == words
        assert reader.counts().tolist() == list(counts.values())
        ids = {word: i for i, word in enumerate(words)}
        assert tokens.tolist() == [ids[w] for sentence in sentences for w in sentence]
        assert offsets.tolist() == [0, *itertools.accumulate(map(len, sentences))]
        assert (reader.raw_words, reader.bad_bytes) == (len(tokens), bad)

        final = np.array([i // 2 if i % 2 else -1 for i in range(len(words))], dtype=np.int32)
        kept = without_unknown(sentences, words[1::2])
        size = reader.rewrite(final)[:2]
        tokens, offsets = contents()
        assert size == (len(tokens), len(offsets) - 1)
        assert tokens.tolist() == [ids[w] // 2 for sentence in kept for w in sentence]
        assert offsets.tolist() == [0, *itertools.accumulate(map(len, kept))]


def test_large_text(tmp_path):
    """Several blocks, several chunks of the rewriting, the tables growing, all in parallel."""
    data = zipf_text(1_100_000, vocabulary=60_000)
    sentences, _ = read_plainly(data)
    counts = Counter(itertools.chain.from_iterable(sentences))
    ids = {word: i for i, word in enumerate(counts)}
    final = np.array([i if n >= 3 else -1 for i, n in enumerate(counts.values())], dtype=np.int32)
    kept = without_unknown(sentences, [word for word, n in counts.items() if n >= 3])
    expected_tokens = np.array([ids[w] for sentence in kept for w in sentence])
    expected_offsets = [0, *itertools.accumulate(map(len, kept))]
    checksums = set()
    for threads in (1, 2, 5):
        with native_reader(tmp_path, threads=threads, part_bytes=1) as (reader, contents):
            for i in range(0, len(data), 1_000_003):
                reader.feed(data[i : i + 1_000_003])
            reader.finish()
            assert reader.words(np.arange(len(reader), dtype=np.int32)) == list(counts)
            assert reader.counts().tolist() == list(counts.values())
            checksums.add(reader.rewrite(final)[2])
            tokens, offsets = contents()
        assert np.array_equal(tokens, expected_tokens)
        assert offsets.tolist() == expected_offsets
    assert len(checksums) == 1


@pytest.mark.parametrize("length", [1, 2, 7, 10_000])
def test_long_lines_are_cut(tmp_path, length):
    data = b"a b c d e f g\n" + b"x y " * 15_000 + b"\nz"
    corpus = Corpus.build(
        io.BytesIO(data), tmp_path / "cache", min_count=1, max_sentence_length=length
    )
    check(corpus, data, max_sentence_length=length)
    # Cutting counts the words that are dropped, as gensim does.
    sentences = [["rare", "a", "a", "b", "b", "a"]]
    corpus = Corpus.build(sentences, tmp_path / "cache", min_count=2, max_sentence_length=2)
    assert list(corpus) == [["a"], ["a", "b"], ["b", "a"]]


def test_one_huge_word(tmp_path):
    data = b"a " + "é".encode() * 12_000_000 + b"\n" + b"y" * 20_000_000
    check(Corpus.build(io.BytesIO(data), tmp_path / "cache", min_count=1), data)


def test_bad_bytes_are_counted_not_fatal(tmp_path):
    data = b"caf\xe9 na\xefve \xf0\x9f\x90 ok\n\xff\xfe \xed\xa0\x80 \xef\xbf\xbd"
    corpus = Corpus.build(io.BytesIO(data), tmp_path / "cache", min_count=1)
    check(corpus, data)
    assert corpus.bad_bytes == 1 + 1 + 3 + 2 + 3
    assert corpus.sentence(0) == ["caf\ufffd", "na\ufffdve", "\ufffd", "ok"]


def test_any_str_is_a_token(tmp_path):
    tokens = ["new york", "a\nb", "", "\t", "🐱", "a\\n", "\0", "a\0", "\ud800", "é" * 40, " "]
    corpus = Corpus.build([tokens, [], tokens[::-1]], tmp_path / "cache", min_count=1)
    assert list(corpus) == [tokens, tokens[::-1]]
    again = Corpus.load(tmp_path / "cache")
    assert list(again) == [tokens, tokens[::-1]]
    frozen = Corpus.build([["x", *tokens]], tmp_path / "b", vocabulary=corpus.vocabulary)
    assert list(frozen) == [tokens]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=9), max_size=12), st.integers(1, 3))
def test_token_lists(tmp_path_factory, sentences, min_count):
    cache = tmp_path_factory.getbasetemp() / "token-lists"
    words, counts = count_plainly(sentences, min_count)
    if not words:
        with pytest.raises(ValueError):
            Corpus.build(iter(sentences), cache, min_count=min_count)
        return
    corpus = Corpus.build(iter(sentences), cache, min_count=min_count)
    assert (corpus.vocabulary.words, corpus.vocabulary.counts.tolist()) == (words, counts)
    assert list(corpus) == without_unknown(sentences, words)


def test_many_tokens_in_lists(tmp_path):
    """More than what is held in memory at a time, in one sentence and in many."""
    sentences = [["a", "b"] * 600_000, *([f"w{i % 100}"] for i in range(1_100_000))]
    corpus = Corpus.build(
        sentences, tmp_path / "cache", min_count=1, max_sentence_length=10**9, num_threads=3
    )
    assert corpus.raw_words == 2_300_000
    assert len(corpus) == 1_100_001
    ids = np.array([corpus.vocabulary["a"], corpus.vocabulary["b"]])
    assert np.array_equal(corpus.tokens[:1_200_000].numpy(), np.tile(ids, 600_000))
    assert corpus.vocabulary.counts.tolist() == [600_000, 600_000, *([11_000] * 100)]


def test_given_vocabulary(tmp_path):
    vocabulary = Vocabulary(["cat", "猫", "unseen", "the"], [5, 4, 3, 2], raw_words=99)
    corpus = Corpus.build(plain(tmp_path, TEXT), tmp_path / "cache", vocabulary=vocabulary)
    assert corpus.vocabulary is vocabulary
    assert vocabulary.counts.tolist() == [5, 4, 3, 2]
    sentences, _ = read_plainly(TEXT)
    assert list(corpus) == without_unknown(sentences, vocabulary.words)
    assert (corpus.raw_words, vocabulary.raw_words) == (sum(map(len, sentences)), 99)
    again = Corpus.load(tmp_path / "cache")
    assert again.vocabulary.words == vocabulary.words
    assert again.vocabulary.raw_words == 99
    # Nothing of it in the text: an empty corpus, not an error.
    empty = Corpus.build([["x"]], tmp_path / "empty", vocabulary=vocabulary)
    assert (empty.tokens.numel(), empty.offsets.tolist(), empty.raw_words) == (0, [0], 1)
    assert list(Corpus.load(tmp_path / "empty")) == []


def test_the_tensors_are_files(tmp_path):
    corpus = Corpus.build(plain(tmp_path, TEXT), tmp_path / "cache", min_count=1)
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "cache" / "corpus-") in maps
    before = corpus.tokens.clone()
    corpus.tokens[0] = 77  # private: neither the file nor others see it
    assert torch.equal(Corpus.load(tmp_path / "cache").tokens, before)


def test_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(_sources, "BLOCK_BYTES", 1000)
    data = zipf_text(2000)
    calls = []
    corpus = Corpus.build(
        plain(tmp_path, data), tmp_path / "a", min_count=1, progress=lambda *a: calls.append(a)
    )
    done, totals, words = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == len(data)
    assert set(totals) == {len(data)}
    assert list(words) == sorted(words)
    assert corpus.raw_words - 1 <= words[-1] <= corpus.raw_words  # the last word may be held back
    calls.clear()
    compressed = gzipped(tmp_path, data)
    Corpus.build(compressed, tmp_path / "b", min_count=1, progress=lambda *a: calls.append(a))
    assert calls[-1][0] == calls[-1][1] == os.path.getsize(compressed)
    calls.clear()
    Corpus.build([["a"]], tmp_path / "c", min_count=1, progress=lambda *a: calls.append(a))
    assert calls == [(0, None, 1)]


# --- the vocabulary that gensim would choose ------------------------------------------------------


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"min_count": 1},
        {"min_count": 2, "max_final_vocab": 300},
        {"max_final_vocab": 10**6},
        {"min_count": 1, "max_final_vocab": 1},
        {"min_count": 1, "max_vocab_size": 400},
        {"min_count": 3, "max_vocab_size": 40, "max_final_vocab": 20},
    ],
    ids=str,
)
def test_vocabulary_is_gensims(tmp_path, limits):
    word2vec = pytest.importorskip("gensim.models.word2vec")
    data = zipf_text(60_000, seed=4, vocabulary=20_000)
    path = plain(tmp_path, data)
    model = word2vec.Word2Vec(vector_size=1, **limits)
    model.build_vocab(corpus_file=path)
    sentences, _ = read_plainly(data)
    for source, threads in [(path, 1), (path, 3), (iter(sentences), 2)]:
        with pytest.MonkeyPatch.context() as patch:
            # Many blocks: the table is compacted now and then when its size is limited.
            patch.setattr(_sources, "BLOCK_BYTES", 20_000)
            corpus = Corpus.build(source, tmp_path / "cache", num_threads=threads, **limits)
        assert corpus.vocabulary.words == model.wv.index_to_key
        counts = [model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key]
        assert corpus.vocabulary.counts.tolist() == counts
        # Also the occurrences before a word was forgotten, and came back, are in the corpus.
        assert list(corpus) == without_unknown(sentences, corpus.vocabulary.words)
        assert corpus.raw_words == model.corpus_total_words
        for entry in (tmp_path / "cache").iterdir():
            entry.unlink()


# --- memory ---------------------------------------------------------------------------------------


def test_forgotten_words_leave_memory(tmp_path):
    """With max_vocab_size the table stays small, however many words come by."""
    with native_reader(tmp_path, max_vocab_size=1000, threads=2, part_bytes=1) as (reader, _):
        for block in range(40):
            lines = (f"the once-{block}-{i} and-a-long-word-{block}-{i}" for i in range(2000))
            reader.feed("\n".join(lines).encode() + b"\n")
            assert len(reader) < 1000 + 2 * 4000 + 1024
        reader.finish()
        assert os.path.getsize(tmp_path / "spill") > 0


MEMORY = """
    import sys
    from vecsmith.data import Corpus
    def anonymous():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    for run, path in enumerate(sys.argv[2:]):
        peaks = []
        peak = lambda *a: peaks.append(anonymous())
        Corpus.build(path, sys.argv[1] + str(run), num_threads=2, progress=peak)
        print(max(peaks))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["plain", "gz"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, kind):
    data = zipf_text(300_000) + b"\n"
    if kind == "gz":
        data = gzip.compress(data, 1)
    paths = []
    for copies in (8, 32):
        paths.append(tmp_path / f"{copies}.{kind}")
        paths[-1].write_bytes(data * copies)
    assert paths[1].stat().st_size > 3 * paths[0].stat().st_size
    peaks = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), tmp_path / "cache", paths[0], *paths],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout.split()
    _, once, four_times = map(int, peaks)  # the first is to warm up
    assert abs(four_times - once) < 4096  # kB
