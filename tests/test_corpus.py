"""The corpus: every kind of source against a plain Python reading of it, whatever the blocks and
threads; gensim's vocabularies; bad input; a cache that survives what befalls a build.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vecsmith import _native
from vecsmith.data import Corpus, Vocabulary, _cache, _sources

zstandard = pytest.importorskip("zstandard")

TEXT = (
    "the cat sat on the mat\n"
    "\n"
    "one\n"
    "  the\tdog \v ate\fthe cat\r\n"
    "größer café 猫 猫 🐱 the\n"
    "   \t \n"
    "no newline at the end the cat"
).encode()


# --- the same in plain Python ---------------------------------------------------------------------


def decoded(word: bytes) -> tuple[str, int]:
    """A word as text, and how many bytes of it are not UTF-8."""
    bad = 0

    def replace(error):
        nonlocal bad
        bad += error.end - error.start
        return "\ufffd", error.end

    codecs.register_error("vecsmith-test", replace)
    text = word.decode("utf-8", "vecsmith-test")
    assert text == word.decode("utf-8", "replace")
    return text, bad


def read_plainly(data: bytes, max_sentence_length: int = 10_000) -> tuple[list[list[str]], int]:
    """Sentences that are not empty, and the number of bad bytes."""
    sentences, bad = [], 0
    for line in data.split(b"\n"):
        words = [decoded(word) for word in line.split()]
        bad += sum(b for _, b in words)
        for i in range(0, len(words), max_sentence_length):
            sentences.append([w for w, _ in words[i : i + max_sentence_length]])
    return sentences, bad


def count_plainly(sentences: list[list[str]], min_count: int) -> tuple[list[str], list[int]]:
    """gensim's order: falling count, and of equals the later newcomer first."""
    counts = Counter(itertools.chain.from_iterable(sentences))
    first = {word: i for i, word in enumerate(counts)}
    words = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: first[w])[::-1]
    words.sort(key=lambda w: -counts[w])
    return words, [counts[w] for w in words]


def without_unknown(sentences: list[list[str]], words) -> list[list[str]]:
    words = set(words)
    kept = ([w for w in sentence if w in words] for sentence in sentences)
    return [sentence for sentence in kept if sentence]


def check(corpus: Corpus, data: bytes, min_count: int = 1, max_sentence_length: int = 10_000):
    sentences, bad = read_plainly(data, max_sentence_length)
    words, counts = count_plainly(sentences, min_count)
    assert corpus.vocabulary.words == words
    assert corpus.vocabulary.counts.tolist() == counts
    assert list(corpus) == without_unknown(sentences, words)
    assert corpus.raw_words == corpus.vocabulary.raw_words == sum(map(len, sentences))
    assert corpus.bad_bytes == bad
    assert corpus.tokens.dtype == torch.int32
    assert corpus.offsets.dtype == torch.int64
    assert corpus.offsets[0] == 0
    assert corpus.offsets[-1] == corpus.tokens.numel()


def zipf_text(words: int, seed: int = 0, vocabulary: int = 3000) -> bytes:
    rng = np.random.default_rng(seed)
    ids = np.minimum(rng.zipf(1.3, words), vocabulary)
    names = [f"{'long-' * (i % 7)}w{i}" for i in range(vocabulary + 1)]
    out, i = [], 0
    lengths = random.Random(seed)
    while i < words:
        n = lengths.choice([0, 1, 3, 12, 40, 400])
        out.append(" ".join(names[k] for k in ids[i : i + n]))
        i += n
    return "\n".join(out).encode()


@contextmanager
def native_reader(folder: Path, **settings):
    """A reader and a function that gives the contents of its files."""
    kinds = ("tokens", "offsets", "spill")
    files = {k: os.open(folder / k, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for k in kinds}
    settings.setdefault("max_sentence_length", 10_000)
    reader = _native.CorpusReader(**{f"{k}_file": fd for k, fd in files.items()}, **settings)

    def contents():
        return (
            np.fromfile(folder / "tokens", dtype=np.int32),
            np.fromfile(folder / "offsets", dtype=np.int64),
        )

    try:
        yield reader, contents
    finally:
        for fd in files.values():
            os.close(fd)


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


def plain(folder: Path, data: bytes):
    (folder / "text.txt").write_bytes(data)
    return str(folder / "text.txt")


def path_object(folder: Path, data: bytes):
    return Path(plain(folder, data))


def gzipped(folder: Path, data: bytes):
    (folder / "text.gz").write_bytes(gzip.compress(data))
    return str(folder / "text.gz")


def gzip_members(folder: Path, data: bytes):
    cut = len(data) // 3
    members = [gzip.compress(part) for part in (data[:cut], b"", data[cut:])]
    (folder / "text.gz").write_bytes(members[0] + members[1] + b"\0" * 5 + members[2] + b"\0" * 700)
    return str(folder / "text.gz")


def gzip_without_the_name(folder: Path, data: bytes):
    return io.BytesIO(gzip.compress(data))


def zstd(folder: Path, data: bytes):
    (folder / "text.zst").write_bytes(zstandard.compress(data))
    return str(folder / "text.zst")


def zstd_frames(folder: Path, data: bytes):
    cut = len(data) // 2
    skippable = b"\x51\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"  # pzstd begins with one
    streamed = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    rest = streamed.compress(data[cut:]) + streamed.flush()  # a frame of unknown size
    frames = [skippable, zstandard.compress(data[:cut]), zstandard.compress(b""), rest, skippable]
    (folder / "text.zst").write_bytes(b"".join(frames))
    return str(folder / "text.zst")


def with_byte_order_mark(folder: Path, data: bytes):
    return plain(folder, b"\xef\xbb\xbf" + data)


def open_file(folder: Path, data: bytes):
    return io.BytesIO(data)


def only_read(folder: Path, data: bytes):
    class Trickle:
        """A stream that has nothing but read, and gives little of it."""

        def __init__(self):
            self.file = io.BytesIO(data)

        def read(self, size):
            return self.file.read(min(size, 3))

    return Trickle()


def folder_of_files(folder: Path, data: bytes):
    inner = folder / "texts"
    (inner / "b" / "deep").mkdir(parents=True)
    (inner / ".hidden").mkdir()
    cuts = [i + 1 for i, byte in enumerate(data) if byte == 10]
    third, two_thirds = cuts[len(cuts) // 3], cuts[2 * len(cuts) // 3]
    (inner / "a.txt").write_bytes(data[: third - 1])  # without its last newline
    (inner / "b.txt.gz").write_bytes(gzip.compress(data[third:two_thirds]))
    (inner / "b" / "deep" / "c.txt").write_bytes(data[two_thirds:])
    (inner / ".hidden" / "no.txt").write_bytes(b"hidden hidden")
    (inner / ".no.txt").write_bytes(b"hidden hidden")
    (inner / "b" / "empty.txt").write_bytes(b"")
    os.mkfifo(inner / "pipe")
    return inner


def token_lists(folder: Path, data: bytes):
    return read_plainly(data)[0]


def generator(folder: Path, data: bytes):
    return (sentence for sentence in read_plainly(data)[0])


def generators(folder: Path, data: bytes):
    return ((word for word in sentence) for sentence in read_plainly(data)[0])


def same_list_again(folder: Path, data: bytes):
    def sentences():
        tokens = []
        for sentence in read_plainly(data)[0]:
            tokens[:] = sentence
            yield tokens

    return sentences()


def arrays(folder: Path, data: bytes):
    return [np.array(sentence) for sentence in read_plainly(data)[0]]


SOURCES = [
    *(plain, path_object, gzipped, gzip_members, gzip_without_the_name, zstd, zstd_frames),
    *(with_byte_order_mark, open_file, only_read, folder_of_files),
    *(token_lists, generator, generators, same_list_again, arrays),
]


@pytest.mark.parametrize("block_bytes", [7, None], ids=["tiny blocks", "blocks"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_sources(tmp_path, monkeypatch, source, block_bytes):
    if block_bytes:
        monkeypatch.setattr(_sources, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(_sources._Gzip, "_INPUT_BYTES", 3)
        monkeypatch.setattr(_sources._Zstd, "_INPUT_BYTES", 2)
        monkeypatch.setattr(_sources, "SENTENCES_AT_A_TIME", 2)
    if source is folder_of_files:
        data = TEXT  # files in order: a.txt, b.txt.gz, then the folder b
    else:
        data = TEXT + b"\n" + zipf_text(500, vocabulary=50)
    corpus = Corpus.build(source(tmp_path, data), tmp_path / "cache", min_count=1)
    check(corpus, data)
    check(Corpus.load(tmp_path / "cache"), data)


def test_standard_input(tmp_path, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(TEXT)

    monkeypatch.setattr(sys, "stdin", Stdin())
    check(Corpus.build("-", tmp_path / "cache", min_count=1), TEXT)


def test_named_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(TEXT,))
    writer.start()
    corpus = Corpus.build(path, tmp_path / "cache", min_count=1)
    writer.join()
    check(corpus, TEXT)
    assert not json.loads((tmp_path / "cache" / "corpus.json").read_text())["reusable"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
def test_several_blocks(tmp_path, monkeypatch, compress):
    """More than two blocks, decompressed beside the counting."""
    monkeypatch.setattr(_sources, "BLOCK_BYTES", 1 << 20)
    data = zipf_text(400_000)
    assert len(data) > 2 * _sources.BLOCK_BYTES
    (tmp_path / "text").write_bytes(compress(data))
    corpus = Corpus.build(tmp_path / "text", tmp_path / "cache", min_count=2)
    check(corpus, data, min_count=2)


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


def test_forgotten_words_leave_memory(tmp_path):
    """With max_vocab_size the table stays small, however many words come by."""
    with native_reader(tmp_path, max_vocab_size=1000, threads=2, part_bytes=1) as (reader, _):
        for block in range(40):
            lines = (f"the once-{block}-{i} and-a-long-word-{block}-{i}" for i in range(2000))
            reader.feed("\n".join(lines).encode() + b"\n")
            assert len(reader) < 1000 + 2 * 4000 + 1024
        reader.finish()
        assert os.path.getsize(tmp_path / "spill") > 0


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def reading(monkeypatch):
    """How often a text was read."""
    count = [0]
    read_into = _sources.TextFiles.read_into

    def counted(self, *args):
        count[0] += 1
        return read_into(self, *args)

    monkeypatch.setattr(_sources.TextFiles, "read_into", counted)
    return count


def test_reuse(tmp_path, reading):
    path, cache = plain(tmp_path, TEXT), tmp_path / "new" / "cache"
    first = Corpus.build(path, cache, min_count=1, num_threads=1)
    names = sorted(p.name for p in cache.iterdir())
    assert len(names) == 4  # nothing but the corpus
    for same in (path, Path(path), os.path.relpath(path)):
        second = Corpus.build(same, cache, min_count=1, num_threads=2)
        assert second.fingerprint == first.fingerprint
        check(second, TEXT)
    assert reading == [1]
    assert names == sorted(p.name for p in cache.iterdir())
    check(Corpus.build(path, cache, min_count=2), TEXT, min_count=2)
    assert reading == [2]
    with open(path, "ab") as file:
        file.write(b" cat")
    check(Corpus.build(path, cache, min_count=2), TEXT + b" cat", min_count=2)
    assert reading == [3]
    os.utime(path, ns=(1, 1))
    Corpus.build(path, cache, min_count=2)
    assert reading == [4]
    assert len(list(cache.iterdir())) == 4  # older ones are gone
    vocabulary = Vocabulary(["cat"], [1])
    for expected in (5, 5):
        corpus = Corpus.build(path, cache, vocabulary=vocabulary)
        assert (reading, corpus.vocabulary) == ([expected], vocabulary)
    Corpus.build(path, cache, vocabulary=Vocabulary(["mat"], [1]))
    assert reading == [6]


def test_reuse_of_a_folder(tmp_path, reading):
    folder = folder_of_files(tmp_path, TEXT)
    Corpus.build(folder, folder / "b" / "cache", min_count=1)  # a cache in the folder is no text
    Corpus.build(folder, folder / "b" / "cache", min_count=1)
    assert reading == [1]
    (folder / "z.txt").write_bytes(b"more")
    Corpus.build(folder, folder / "b" / "cache", min_count=1)
    assert reading == [2]


def test_outcome_is_the_fingerprint_of_streams(tmp_path):
    prints = [
        Corpus.build(source, tmp_path / "cache", min_count=1).fingerprint
        for source in ([["a", "b"]], io.BytesIO(b"a b"), [["a"], ["b"]], [["a", "b", "b"]])
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        *itertools.product(
            ("truncate", "remove"), ("tokens", "offsets", "vocabulary", "corpus.json")
        ),
        # Ids that were overwritten are found where they are used.
        *itertools.product(("overwrite",), ("offsets", "vocabulary", "corpus.json")),
    ],
)
def test_a_damaged_cache_is_built_again(tmp_path, reading, kind, harm):
    path, cache = plain(tmp_path, TEXT), tmp_path / "cache"
    Corpus.build(path, cache, min_count=1)
    (victim,) = (p for p in cache.iterdir() if p.name.endswith(kind))
    if harm == "remove":
        victim.unlink()
    elif harm == "truncate":
        victim.write_bytes(victim.read_bytes()[:-5])
    else:
        victim.write_bytes(b"\x07" * victim.stat().st_size)
    with pytest.raises((ValueError, FileNotFoundError)):
        Corpus.load(cache)
    check(Corpus.build(path, cache, min_count=1), TEXT)
    assert reading == [2]
    check(Corpus.load(cache), TEXT)


def test_what_else_is_in_the_folder_stays(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    kept = ["config.json", "corpus-notes.txt", "corpus.txt", ".corpus", "tokens"]
    for name in kept:
        (cache / name).write_text(name)
    for text in (b"a b", b"c d"):
        Corpus.build(io.BytesIO(text), cache, min_count=1)
    assert all((cache / name).read_text() == name for name in kept)
    assert len(list(cache.iterdir())) == len(kept) + 4


@contextmanager
def file_size_limit(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("old", [True, False], ids=["over an older corpus", "in a new folder"])
@pytest.mark.parametrize("size", [100, 30_000])
@pytest.mark.parametrize("kind", ["text", "lists", "one limit"])
def test_full_disk(tmp_path, old, size, kind):
    cache = tmp_path / "new" / "cache"
    if old:
        Corpus.build(io.BytesIO(TEXT), cache, min_count=1)
        before = {p.name: p.read_bytes() for p in cache.iterdir()}
    data = zipf_text(20_000)
    source = iter(read_plainly(data)[0]) if kind == "lists" else io.BytesIO(data)
    limits = {"max_vocab_size": 100} if kind == "one limit" else {}
    with file_size_limit(size), pytest.raises(OSError, match="file size limit reached while"):
        Corpus.build(source, cache, min_count=1, **limits)
    if old:
        assert before == {p.name: p.read_bytes() for p in cache.iterdir()}
        check(Corpus.load(cache), TEXT)
    else:
        assert not (tmp_path / "new").exists()


def test_interrupt_leaves_nothing(tmp_path):
    cache = tmp_path / "cache"
    Corpus.build(io.BytesIO(TEXT), cache, min_count=1)
    before = sorted(cache.iterdir())

    def sentences():
        yield ["a"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Corpus.build(sentences(), cache, min_count=1)
    with pytest.raises(ZeroDivisionError):
        Corpus.build(io.BytesIO(TEXT), cache, min_count=1, progress=lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Corpus.build(([1 / (2 - i)] and [str(i)] for i in range(9)), cache, min_count=1)
    assert sorted(cache.iterdir()) == before
    check(Corpus.load(cache), TEXT)


DYING = """
    import sys, time
    from pathlib import Path
    from vecsmith.data import Corpus, _cache
    def hang(*args):
        print("ready", flush=True)
        time.sleep(600)
    def sentences():
        for i in range(200_000):
            yield ["the", "new", "corpus"] * 10
        if sys.argv[2] == "reading":
            hang()
    if sys.argv[2] == "committing":
        _cache.atomic_file = hang
    Corpus.build(sentences(), sys.argv[1], min_count=1)
"""


@pytest.mark.parametrize("moment", ["reading", "committing"])
def test_kill(tmp_path, moment):
    cache = tmp_path / "cache"
    Corpus.build(io.BytesIO(TEXT), cache, min_count=1)
    before = set(cache.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DYING), cache, moment], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    # While it lives, no other build may have the folder; readers may.
    with pytest.raises(BlockingIOError, match="another run is building a corpus in"):
        Corpus.build(io.BytesIO(b"other"), cache, min_count=1)
    check(Corpus.load(cache), TEXT)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(set(cache.iterdir()) - before) >= 3  # what it was at, and its lock
    check(Corpus.load(cache), TEXT)
    check(Corpus.build(io.BytesIO(b"next one"), cache, min_count=1), b"next one")
    assert len(list(cache.iterdir())) == 4


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


# --- bad input ------------------------------------------------------------------------------------


def no_such_file(folder):
    return str(folder / "missing.txt"), FileNotFoundError, "missing.txt': it does not exist"


def empty_file(folder):
    return plain(folder, b""), ValueError, "expected a text with words in it, got one with none"


def blank_file(folder):
    return plain(folder, b" \n\n\t "), ValueError, "text.txt: expected a text with words in it"


def empty_folder(folder):
    (folder / "empty" / "er").mkdir(parents=True)
    return folder / "empty", ValueError, "expected a folder with text files in it"


def nothing(folder):
    return [], ValueError, "list: expected a text with words in it"


def binary_file(folder):
    data = np.random.default_rng(0).bytes(100_000)
    return plain(folder, data), ValueError, "text.txt: expected text .* looks binary"


def array_file(folder):
    np.save(folder / "a.npy", np.arange(1000))
    return folder / "a.npy", ValueError, "a.npy: .* looks binary: .* NUL"


def utf16_file(folder):
    return plain(folder, "some text, 16 bits each".encode("utf-16")), ValueError, "looks binary"


def binary_in_gzip(folder):
    return gzipped(folder, bytes(range(256)) * 99), ValueError, "text.gz: .* looks binary"


def truncated_gzip(folder):
    path = gzipped(folder, zipf_text(50_000))
    os.truncate(path, os.path.getsize(path) // 2)
    return path, ValueError, "text.gz: truncated"


def gzip_without_its_end(folder):
    path = gzipped(folder, TEXT)
    os.truncate(path, os.path.getsize(path) - 1)
    return path, ValueError, "text.gz: truncated"


def damaged_gzip(folder):
    data = bytearray(gzip.compress(zipf_text(1000)))
    data[len(data) // 2] ^= 255
    (folder / "text.gz").write_bytes(data)
    return folder / "text.gz", ValueError, "text.gz: damaged gzip data"


def gzip_and_something(folder):
    (folder / "text.gz").write_bytes(gzip.compress(TEXT) + b"something")
    return folder / "text.gz", ValueError, "text.gz: damaged gzip data: something else follows"


def not_gzip(folder):
    (folder / "text.gz").write_bytes(TEXT)
    return folder / "text.gz", ValueError, "text.gz: expected gzip data, .* got bytes 74 68"


def empty_gzip_file(folder):
    (folder / "text.gz").write_bytes(b"")
    return folder / "text.gz", ValueError, "text.gz: expected gzip data, .* got an empty file"


def truncated_zstd(folder):
    path = zstd(folder, zipf_text(50_000))
    os.truncate(path, os.path.getsize(path) // 2)
    return path, ValueError, "text.zst: truncated"


def damaged_zstd(folder):
    (folder / "text.zst").write_bytes(zstandard.compress(TEXT)[:6] + b"\xff" * 50)
    return folder / "text.zst", ValueError, "text.zst: damaged Zstandard data"


def not_zstd(folder):
    (folder / "text.zst").write_bytes(TEXT)
    return folder / "text.zst", ValueError, "text.zst: expected Zstandard data"


def text_mode(folder):
    return io.StringIO("a b"), TypeError, "expected a file open in binary mode"


def text_from_read(folder):
    class Strange:
        def read(self, size):
            return "text"

    return Strange(), TypeError, "binary mode .* got one that reads str"


def number(folder):
    return 7, TypeError, "expected a path, an open binary file or an iterable .* got int"


def raw_bytes(folder):
    return b"a b c", TypeError, "got bytes"


def list_of_str(folder):
    return ["a b", "c"], TypeError, "a list of tokens, got str 'a b' as sentence 0: split it"


def str_among_lists(folder):
    return [["a"], "a b"], TypeError, "got str 'a b' as sentence 1"


def list_of_numbers(folder):
    return [["a"], 5], TypeError, "expected each sentence to be a list of tokens, got int 5"


def number_token(folder):
    return (
        [["a", "b"], ["a", 3]],
        TypeError,
        "tokens that are str, got int 3 in sentence 1",
    )


def bytes_token(folder):
    return [(b"a" for _ in range(3))], TypeError, "expected tokens that are str, got bytes b'a'"


def folder_as_its_own_cache(folder):
    (folder / "cache").mkdir()
    (folder / "cache" / "a.txt").write_bytes(TEXT)
    return folder / "cache", ValueError, "expected a cache folder other than the folder of the text"


BAD_SOURCES = [
    *(no_such_file, empty_file, blank_file, empty_folder, nothing, binary_file, array_file),
    *(utf16_file, binary_in_gzip, truncated_gzip, gzip_without_its_end, damaged_gzip, not_gzip),
    *(gzip_and_something, empty_gzip_file, truncated_zstd, damaged_zstd, not_zstd, text_mode),
    *(text_from_read, number, raw_bytes, list_of_str, str_among_lists, list_of_numbers),
    *(number_token, bytes_token, folder_as_its_own_cache),
]


@pytest.mark.parametrize("bad", BAD_SOURCES, ids=lambda bad: bad.__name__)
def test_bad_sources(tmp_path, bad):
    source, error, message = bad(tmp_path)
    cache = tmp_path / "cache"
    if bad is not folder_as_its_own_cache:
        Corpus.build(io.BytesIO(TEXT), cache, min_count=1)
    before = sorted(cache.iterdir())
    with pytest.raises(error, match=message) as caught:
        Corpus.build(source, cache, min_count=1)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert sorted(cache.iterdir()) == before
    if bad is not folder_as_its_own_cache:
        check(Corpus.load(cache), TEXT)


@pytest.fixture
def nobody():
    """Not root, to whom nothing is forbidden."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_unreadable(tmp_path, request):
    path = plain(tmp_path, TEXT)
    os.chmod(path, 0)
    request.getfixturevalue("nobody")
    with pytest.raises(PermissionError, match=r"text\.txt"):
        Corpus.build(path, tmp_path / "cache")


def test_emptied_vocabulary(tmp_path):
    path, cache = plain(tmp_path, TEXT), tmp_path / "cache"
    message = (
        "min_count=9 leaves nothing of 25 tokens, 16 different words, the most frequent of them "
        "occurring 7 times"
    )
    with pytest.raises(ValueError, match=message):
        Corpus.build(path, cache, min_count=9)
    assert not cache.exists()
    with pytest.raises(ValueError, match="min_count=1 and max_final_vocab=1 leaves nothing"):
        Corpus.build([["a", "b"]], cache, min_count=1, max_final_vocab=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"min_count": -1}, ValueError, "expected min_count of at least 0, got -1"),
        ({"min_count": 1.5}, TypeError, "expected min_count to be an int, got float"),
        ({"min_count": None}, TypeError, "min_count"),
        ({"max_vocab_size": 0}, ValueError, "max_vocab_size of at least 1"),
        ({"max_final_vocab": 0}, ValueError, "max_final_vocab of at least 1"),
        ({"max_sentence_length": 0}, ValueError, "max_sentence_length of at least 1"),
        ({"num_threads": 0}, ValueError, "num_threads of at least 1"),
        ({"vocabulary": ["a"]}, TypeError, "expected a Vocabulary, got list"),
        ({"vocabulary": Vocabulary([], [])}, ValueError, "got an empty one"),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        Corpus.build([["a"]], tmp_path / "cache", **arguments)
    assert not (tmp_path / "cache").exists()


def test_bad_folders(tmp_path):
    (tmp_path / "file").write_text("a")
    with pytest.raises(NotADirectoryError):
        Corpus.build([["a"]], tmp_path / "file", min_count=1)
    with pytest.raises(NotADirectoryError):
        Corpus.build([["a"]], tmp_path / "file" / "cache", min_count=1)
    assert (tmp_path / "file").read_text() == "a"
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match="expected a folder with an encoded corpus"):
            Corpus.load(folder)


def test_lock_is_held_and_released(tmp_path):
    with (
        _cache.build_lock(tmp_path / "a"),
        pytest.raises(BlockingIOError),
        _cache.build_lock(tmp_path / "a"),
    ):
        pass
    with _cache.build_lock(tmp_path / "a"):
        assert (tmp_path / "a").is_dir()
    assert list((tmp_path / "a").iterdir()) == []


def test_the_native_reader_refuses_misuse(tmp_path):
    with native_reader(tmp_path) as (reader, _):
        with pytest.raises(TypeError):
            reader.feed("text")
        with pytest.raises(TypeError):
            reader.feed(np.zeros(4, dtype=np.int32))
        with pytest.raises(TypeError):
            reader.feed(np.zeros(8, dtype=np.uint8)[::2])
        with pytest.raises(TypeError):
            reader.add_sentences([["a"]], 0, 1)
        with pytest.raises(RuntimeError, match="not finished"):
            reader.rewrite(np.zeros(0, dtype=np.int32))
        reader.feed(b"a b")
        reader.finish()
        with pytest.raises(RuntimeError, match="is finished"):
            reader.feed(b"a")
        with pytest.raises(IndexError):
            reader.words(np.array([2], dtype=np.int32))
        with pytest.raises(ValueError, match="one final id for each word"):
            reader.rewrite(np.zeros(1, dtype=np.int32))
    with native_reader(tmp_path) as (reader, _):
        with pytest.raises(ValueError, match="twice"):
            reader.freeze(["a", "a"])
        with pytest.raises(TypeError):
            reader.freeze([1])
    for wrong in ({"threads": 0}, {"max_sentence_length": 0}, {"part_bytes": 0}):
        with pytest.raises(ValueError), native_reader(tmp_path, **wrong):
            pass
    closed = os.open(os.devnull, os.O_RDONLY)
    reader = _native.CorpusReader(tokens_file=closed, offsets_file=closed, max_sentence_length=9)
    with pytest.raises(OSError):
        reader.feed(b"a b ")
    os.close(closed)
