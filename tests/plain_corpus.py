"""What a corpus must be, in plain Python: texts, files of them, and a plain reading of both."""

from __future__ import annotations

import codecs
import gzip
import itertools
import os
import random
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from vecsmith import _native
from vecsmith.data import Corpus

TEXT = (
    "the cat sat on the mat\n"
    "\n"
    "one\n"
    "  the\tdog \v ate\fthe cat\r\n"
    "größer café 猫 猫 🐱 the\n"
    "   \t \n"
    "no newline at the end the cat"
).encode()


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


def plain(folder: Path, data: bytes):
    (folder / "text.txt").write_bytes(data)
    return str(folder / "text.txt")


def gzipped(folder: Path, data: bytes):
    (folder / "text.gz").write_bytes(gzip.compress(data))
    return str(folder / "text.gz")


def zstd(folder: Path, data: bytes):
    import zstandard

    (folder / "text.zst").write_bytes(zstandard.compress(data))
    return str(folder / "text.zst")


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
