"""The corpus: texts, arguments and folders that are refused."""

from __future__ import annotations

import gzip
import io
import os

import numpy as np
import pytest

from plain_corpus import TEXT, check, gzipped, native_reader, plain, zipf_text, zstd
from vecsmith import _native
from vecsmith.data import Corpus, Vocabulary

zstandard = pytest.importorskip("zstandard")


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


def test_a_folder_that_is_excluded_whole(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT)
    with pytest.raises(ValueError, match="expected an output folder other than the folder of the"):
        Corpus.build(tmp_path, tmp_path / "cache", min_count=1, exclude=[tmp_path])
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


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
