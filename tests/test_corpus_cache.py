"""The corpus on the disk: a cache that is reused, and survives what befalls a build."""

from __future__ import annotations

import io
import itertools
import os
import resource
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

from plain_corpus import TEXT, check, folder_of_files, plain, read_plainly, zipf_text
from vecsmith.data import Corpus, Vocabulary, _cache, _sources


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


def test_excluded_folders_are_no_text(tmp_path, reading):
    folder = folder_of_files(tmp_path, TEXT)
    (folder / "b" / "out").mkdir()
    (tmp_path / "link").symlink_to(folder / "b" / "out")
    for exclude in (folder / "b" / "out", os.path.relpath(folder / "b" / "out"), tmp_path / "link"):
        (folder / "b" / "out" / "vocab.txt").write_text(f"no text {exclude}")
        check(Corpus.build(folder, tmp_path / "c", min_count=1, exclude=[exclude]), TEXT)
    assert reading == [1]
    assert "no" in Corpus.build(folder, tmp_path / "c", min_count=1).vocabulary


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
            ("truncate", "remove", "overwrite"), ("tokens", "offsets", "vocabulary", "corpus.json")
        ),
        # What only the checksums see: ids of other words, a word with another letter.
        *itertools.product(("zero", "flip"), ("tokens", "offsets", "vocabulary")),
    ],
)
def test_a_damaged_cache_is_built_again(tmp_path, reading, kind, harm):
    path, cache = plain(tmp_path, TEXT), tmp_path / "cache"
    Corpus.build(path, cache, min_count=1)
    (victim,) = (p for p in cache.iterdir() if p.name.endswith(kind))
    data = bytearray(victim.read_bytes())
    if harm == "remove":
        victim.unlink()
    elif harm == "truncate":
        victim.write_bytes(data[:-5])
    elif harm == "overwrite":
        victim.write_bytes(b"\x07" * len(data))
    elif harm == "zero":
        victim.write_bytes(data[:16] + bytes(8) + data[24:])
    else:
        data[data.index(b"cat") if kind == "vocabulary" else 16] ^= 1
        victim.write_bytes(data)
    with pytest.raises((ValueError, FileNotFoundError)):
        Corpus.load(cache)
    check(Corpus.build(path, cache, min_count=1), TEXT)
    assert reading == [2]
    check(Corpus.load(cache), TEXT)


def test_a_corpus_that_is_not_accepted_does_not_replace(tmp_path):
    path, cache = plain(tmp_path, TEXT), tmp_path / "cache"
    Corpus.build(path, cache, min_count=1)
    before = {p.name: p.read_bytes() for p in cache.iterdir()}
    seen = []

    def refuse(corpus):
        seen.append(list(corpus))
        raise LookupError("another text")

    with pytest.raises(LookupError, match="another text"):
        Corpus.build(io.BytesIO(b"other words"), cache, min_count=1, accept=refuse)
    assert seen == [[["other", "words"]]]
    assert before == {p.name: p.read_bytes() for p in cache.iterdir()}
    accepted = Corpus.build(io.BytesIO(b"other words"), cache, min_count=1, accept=seen.append)
    assert seen[1] is accepted
    check(Corpus.load(cache), b"other words")


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


# --- builds that fail -----------------------------------------------------------------------------


@contextmanager
def file_size_limit(size: int):
    # Python ignores the signal and gets EFBIG. A compiler that other tests loaded takes it once,
    # and leaves the default action, which ends the process, to a second thread that writes.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if before is not None:  # None: set by native code, which Python cannot set again
            signal.signal(signal.SIGXFSZ, before)


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
