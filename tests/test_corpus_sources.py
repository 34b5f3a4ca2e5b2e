"""The corpus from every kind of source: files, compressed or not, folders, streams, lists."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from plain_corpus import TEXT, check, folder_of_files, gzipped, plain, read_plainly, zipf_text, zstd
from vecsmith.data import Corpus, _sources

zstandard = pytest.importorskip("zstandard")


def path_object(folder: Path, data: bytes):
    return Path(plain(folder, data))


def gzip_members(folder: Path, data: bytes):
    cut = len(data) // 3
    members = [gzip.compress(part) for part in (data[:cut], b"", data[cut:])]
    (folder / "text.gz").write_bytes(members[0] + members[1] + b"\0" * 5 + members[2] + b"\0" * 700)
    return str(folder / "text.gz")


def gzip_without_the_name(folder: Path, data: bytes):
    return io.BytesIO(gzip.compress(data))


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
