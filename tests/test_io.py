"""Atomic files and folders, safetensors, word lists: what is written, and what a failure leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vecsmith import io

COMMIT = ".vecsmith-commit"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- one file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "data"), [("wb", b"new"), ("w", "new\n"), ("w+b", b"new")])
def test_atomic_file_appears_at_the_end(tmp_path, mode, data):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with io.atomic_file(path, mode) as file:
        file.write(data)
        assert path.read_bytes() == b"old"
    assert path.read_text() == (data if isinstance(data, str) else data.decode())
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_atomic_file_keeps_the_old_one_when_the_block_raises(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half() -> None:
        with io.atomic_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        half()
    assert files_of(tmp_path) == {"file": b"old"}


def test_atomic_file_keeps_permissions_and_links(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    with io.atomic_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_atomic_file_with_a_name_of_the_greatest_length(tmp_path):
    path = tmp_path / ("n" * 255)
    with io.atomic_file(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


def test_atomic_file_refuses(tmp_path):
    for mode in ("r", "ab", "rb+", "x"):
        with pytest.raises(ValueError, match="expected mode"), io.atomic_file(tmp_path / "a", mode):
            pass
    with pytest.raises(IsADirectoryError), io.atomic_file(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="folder of"), io.atomic_file(tmp_path / "no" / "a"):
        pass
    assert os.listdir(tmp_path) == []


# The module alone, by its path: a fresh interpreter without torch starts in no time.
_PATH = sys.modules["vecsmith.io._atomic"].__file__
ATOMIC = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("atomic", {_PATH!r})
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
"""


def run(script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ATOMIC + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=check,
    )


def test_a_full_disk_is_explained_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with atomic.atomic_file(sys.argv[1]) as file:
                for _ in range(100):
                    file.write(b"x" * 10_000)
        except OSError as error:
            print(error.errno, error)
    """
    out = run(script, path).stdout
    assert out.startswith(f"{errno.EFBIG} ")
    assert "file size limit reached while writing" in out
    assert "unchanged" in out
    assert files_of(tmp_path) == {"file": b"old"}


# --- folders --------------------------------------------------------------------------------------


def write_model(folder: Path, tag: str) -> None:
    with io.atomic_folder(folder) as staging:
        for name in ("vocab.txt", "model.safetensors", "config.json"):
            (staging / name).write_text(f"{tag} {name}")


def expect_model(folder: Path, tag: str) -> None:
    with io.read_folder(folder) as find:
        for name in ("vocab.txt", "model.safetensors", "config.json"):
            assert find(name).read_text() == f"{tag} {name}"


def test_atomic_folder_replaces_its_files_and_no_others(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, "one")
    (folder / "notes.txt").write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep").write_text("mine too")
    write_model(folder, "two")
    expect_model(folder, "two")
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "sub" / "deep").read_text() == "mine too"
    assert len(os.listdir(folder)) == 5


def test_atomic_folder_removes_what_it_is_told_to(tmp_path):
    write_model(tmp_path, "one")
    (tmp_path / "extra.bin").write_text("old")
    with io.atomic_folder(tmp_path, remove=["extra.bin", "absent", "config.json"]) as staging:
        (staging / "config.json").write_text("two")
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "vocab.txt"]
    assert (tmp_path / "config.json").read_text() == "two"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_folder_keeps_the_old_model_when_the_block_raises(tmp_path, error):
    folder = tmp_path / "model"

    def half() -> None:
        with io.atomic_folder(folder) as staging:
            (staging / "config.json").write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert not folder.exists()
    write_model(folder, "one")
    before = files_of(folder)
    with pytest.raises(error):
        half()
    assert files_of(folder) == before
    assert len(os.listdir(folder)) == 3


def test_atomic_folder_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), io.atomic_folder(tmp_path / "file"):
        pass
    with pytest.raises(FileNotFoundError), io.atomic_folder(tmp_path / "no" / "model"):
        pass
    for name in ("../escape", "", ".", ".hidden"):
        with (
            pytest.raises(ValueError, match="plain file name"),
            io.atomic_folder(tmp_path / "m", remove=[name]),
        ):
            pass
    with (
        pytest.raises(ValueError, match="plain files"),
        io.atomic_folder(tmp_path / "m") as staging,
    ):
        (staging / "sub").mkdir()
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(FileNotFoundError), io.read_folder(tmp_path / "absent"):
        pass
    with pytest.raises(NotADirectoryError), io.read_folder(tmp_path / "file"):
        pass


KILLED = """
    import os, signal

    # Die by SIGKILL just before the given call of a function that changes the disk.
    left = int(sys.argv[2])

    def deadly(function):
        def call(*arguments, **more):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return function(*arguments, **more)
        return call

    for name in ("rename", "replace", "fsync", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))
    with atomic.atomic_folder(sys.argv[1], remove=["old.bin"]) as staging:
        for name in ("vocab.txt", "model.safetensors", "config.json"):
            (staging / name).write_text(f"two {name}")
    print("finished", left)
"""


def test_sigkill_at_every_step_of_a_save_leaves_one_whole_model(tmp_path):
    outcomes = []
    for step in range(100):
        folder = tmp_path / str(step)
        write_model(folder, "one")
        (folder / "old.bin").write_text("one old.bin")
        (folder / "notes.txt").write_text("mine")
        done = run(KILLED, folder, step, check=False)
        with io.read_folder(folder) as find:
            tag = find("config.json").read_text().split()[0]
        expect_model(folder, tag)
        assert (folder / "old.bin").exists() == (tag == "one")
        assert (folder / "notes.txt").read_text() == "mine"
        outcomes.append(tag)
        write_model(folder, "three")  # and the next save clears up what the dead one left
        expect_model(folder, "three")
        assert not [name for name in os.listdir(folder) if name.startswith(".")]
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    else:
        pytest.fail("the save never finished")
    # The old model up to the commit point, the new one from there on.
    assert outcomes[0] == "one"
    assert outcomes[-1] == "two"
    assert outcomes == sorted(outcomes)
    assert outcomes.count("two") >= 4


def test_read_folder_finishes_or_reads_a_committed_save(tmp_path):
    write_model(tmp_path, "one")
    commit = tmp_path / COMMIT
    commit.mkdir()
    (commit / "config.json").write_text("two config.json")
    with io.read_folder(tmp_path) as find:
        assert find("config.json").read_text() == "two config.json"
        assert find("vocab.txt").read_text() == "one vocab.txt"
    assert not commit.exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_read_folder_of_a_read_only_folder(tmp_path, monkeypatch, number):
    write_model(tmp_path, "one")
    commit = tmp_path / COMMIT
    commit.mkdir()
    (commit / "config.json").write_text("two")

    def refuse(*paths: object) -> None:
        raise OSError(number, "read-only")

    monkeypatch.setattr(os, "replace", refuse)  # not by permissions: root may do anything
    with io.read_folder(tmp_path) as find:
        assert find("config.json").read_text() == "two"
        assert find("vocab.txt").read_text() == "one vocab.txt"


def test_a_reader_waits_for_a_writer_and_never_sees_a_mixture(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, "0")
    script = """
        print("ready", flush=True)
        for tag in range(1, 60):
            with atomic.atomic_folder(sys.argv[1]) as staging:
                for name in ("vocab.txt", "model.safetensors", "config.json"):
                    (staging / name).write_text(f"{tag} {name}")
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", ATOMIC + textwrap.dedent(script), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    seen = set()
    while writer.poll() is None:
        with io.read_folder(folder) as find:
            tags = {
                find(name).read_text().split()[0]
                for name in ("vocab.txt", "model.safetensors", "config.json")
            }
        assert len(tags) == 1
        seen |= tags
    writer.stdout.close()
    assert writer.returncode == 0
    assert len(seen) > 1


def test_a_living_saver_is_left_alone(tmp_path):
    with io.atomic_folder(tmp_path) as staging:
        (staging / "config.json").write_text("slow")
        write_model(tmp_path, "quick")
        assert staging.exists()
    assert (tmp_path / "config.json").read_text() == "slow"


# --- safetensors ----------------------------------------------------------------------------------

TENSORS = {
    "plain": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "rows": torch.arange(64, dtype=torch.float32).reshape(4, 16)[:, :5],
    "transposed": torch.arange(6, dtype=torch.float64).reshape(2, 3).T,
    "empty": torch.empty(0, 7),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "float16": torch.tensor([[0.25]], dtype=torch.float16),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.tensor([1, 255, 3], dtype=torch.uint8),
    "ids": torch.tensor([-1, 7], dtype=torch.int32),
    "naïve ☃": torch.tensor([1], dtype=torch.int16),
}


@pytest.mark.parametrize("mmap", [True, False])
def test_safetensors_round_trip_and_agree_with_the_library(tmp_path, mmap):
    path = tmp_path / "model.safetensors"
    io.save_safetensors(path, TENSORS, {"format": "pt", "note": "é"})
    theirs = load_file(path)
    ours, metadata = io.load_safetensors(path, mmap=mmap)
    assert metadata == {"format": "pt", "note": "é"}
    assert set(ours) == set(theirs) == set(TENSORS)
    for name, tensor in TENSORS.items():
        for read in (ours[name], theirs[name]):
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor), name
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, path)
    ours, metadata = io.load_safetensors(path, mmap=mmap)
    assert metadata == {}
    for name, tensor in TENSORS.items():
        assert torch.equal(ours[name], tensor), name


def test_a_parameter_is_saved_and_a_map_is_private(tmp_path):
    path = tmp_path / "model.safetensors"
    io.save_safetensors(path, {"w": torch.nn.Parameter(torch.ones(5, 3))})
    before = path.read_bytes()
    tensors, _ = io.load_safetensors(path)
    tensors["w"].mul_(2)
    io.save_safetensors(path, {"w": torch.zeros(5, 3)})  # the map stays as it was
    assert torch.equal(tensors["w"], torch.full((5, 3), 2.0))
    assert path.read_bytes() != before
    assert torch.equal(io.load_safetensors(path)[0]["w"], torch.zeros(5, 3))


def test_a_strided_table_is_written_without_a_second_copy(tmp_path):
    script = """
        import sys, threading, time, torch
        from vecsmith import io

        def anonymous():
            lines = open("/proc/self/status").read().splitlines()
            return int(next(l for l in lines if l.startswith("RssAnon")).split()[1]) >> 10

        table = torch.ones(400_000, 112)[:, :100]  # a copy would be 160 MB
        io.save_safetensors(sys.argv[1], {"part": table[:50_000]})  # starts threads, buffers
        before, peak, done = anonymous(), 0, False

        def watch():
            global peak
            while not done:
                peak = max(peak, anonymous())
                time.sleep(0.001)

        thread = threading.Thread(target=watch)
        thread.start()
        io.save_safetensors(sys.argv[1], {"table": table})
        done = True
        thread.join()
        print(peak - before)
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("reads /proc")
    assert int(run(script, tmp_path / "t.safetensors").stdout) < 60
    assert io.load_safetensors(tmp_path / "t.safetensors")[0]["table"].shape == (400_000, 100)


def header_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{", b""),
        (b"[]", b""),
        (b"\xff\xff", b""),
        (b"[" * 100_000, b""),
        ({"a": 3}, b""),
        ({"a": {}}, b""),
        ({"a": {**ENTRY, "dtype": "F8"}}, bytes(8)),
        ({"a": {**ENTRY, "shape": [3]}}, bytes(8)),
        ({"a": {**ENTRY, "shape": [-2]}}, bytes(8)),
        ({"a": {**ENTRY, "shape": "xx"}}, bytes(8)),
        ({"a": {**ENTRY, "shape": [2.0]}}, bytes(8)),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)),
        ({"a": {**ENTRY, "data_offsets": [0]}}, bytes(8)),
        ({"a": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)),
        ({"a": ENTRY}, bytes(7)),
        ({"a": ENTRY}, bytes(9)),
        ({"a": ENTRY, "b": ENTRY}, bytes(8)),
        ({"a": {**ENTRY, "shape": [2**40, 2**40], "data_offsets": [0, 2**62]}}, bytes(8)),
        ({"__metadata__": 3, "a": ENTRY}, bytes(8)),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, header, data):
    path = header_file(tmp_path / "x.safetensors", header, data)
    for mmap in (True, False):
        with pytest.raises(ValueError, match=r"x\.safetensors: not a whole safetensors file"):
            io.load_safetensors(path, mmap=mmap)


def test_short_safetensors_and_wrong_arguments_are_refused(tmp_path):
    path = tmp_path / "x"
    for data in (b"", b"abc", struct.pack("<Q", 2**63), struct.pack("<Q", 10) + b"{}"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            io.load_safetensors(path)
    with pytest.raises(FileNotFoundError):
        io.load_safetensors(tmp_path / "absent")
    with pytest.raises(TypeError, match="expected a tensor"):
        io.save_safetensors(path, {"a": [1.0]})
    with pytest.raises(TypeError, match="complex"):
        io.save_safetensors(path, {"a": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="__metadata__"):
        io.save_safetensors(path, {"__metadata__": torch.zeros(1)})
    with pytest.raises(TypeError, match="strings"):
        io.save_safetensors(path, {}, {"a": 1})


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=64), st.integers(0, 200), st.booleans())
def test_mutated_safetensors_load_or_are_refused(tmp_path_factory, noise, at, mmap):
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    io.save_safetensors(path, {"a": torch.ones(3, 2), "b": torch.arange(4)})
    data = bytearray(path.read_bytes())
    data[at : at + len(noise)] = noise
    path.write_bytes(data)
    try:
        tensors, _ = io.load_safetensors(path, mmap=mmap)
    except ValueError:
        return
    assert all(tensor.numel() < 1000 for tensor in tensors.values())


# --- word lists -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.text(st.characters() | st.sampled_from("\\\t\n\r\0 ")), unique=True, max_size=8),
    st.booleans(),
)
def test_word_lists_round_trip(tmp_path_factory, words, counted):
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    counts = np.arange(len(words), dtype=np.int64) * 10**12 if counted else None
    io.save_words(path, words, counts)
    again, numbers = io.load_words(path)
    assert again == words
    assert (numbers is None) == (not counted)
    if counted:
        assert np.array_equal(numbers, counts)
    assert len(path.read_bytes().split(b"\n")) == len(words) + 2


def test_lone_surrogates_survive(tmp_path):
    words = [b"\xff\xfe".decode("utf8", "surrogateescape")]
    io.save_words(tmp_path / "v", words, None)
    assert io.load_words(tmp_path / "v")[0] == words


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"the\t3\n",
        b"# vecsmith vocabulary 2 words=1 counts=yes\nthe\t3\n",
        b"# vecsmith vocabulary 1 words=2 counts=yes\nthe\t3\n",
        b"# vecsmith vocabulary 1 words=1 counts=yes\nthe\t3",
        b"# vecsmith vocabulary 1 words=1 counts=yes\nthe 3\n",
        b"# vecsmith vocabulary 1 words=1 counts=yes\nthe\tx\n",
        b"# vecsmith vocabulary 1 words=1 counts=yes\nthe\t-3\n",
        b"# vecsmith vocabulary 1 words=1 counts=yes\nthe\t" + b"9" * 30 + b"\n",
        b"# vecsmith vocabulary 1 words=1 counts=yes\nth\\e\t3\n",
        b"# vecsmith vocabulary 1 words=1 counts=yes\nthe\\\t3\n",
        b"# vecsmith vocabulary 1 words=1 counts=yes\n\xff\t3\n",
    ],
)
def test_damaged_word_lists_are_refused(tmp_path, damage):
    path = tmp_path / "vocab.txt"
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"vocab\.txt: "):
        io.load_words(path)


# --- compressed files -----------------------------------------------------------------------------


def test_open_binary_decompresses_by_name(tmp_path):
    import bz2
    import gzip
    import lzma

    import zstandard

    data = b"one\ntwo\n" * 1000
    packed = {
        "a": data,
        "a.gz": gzip.compress(data),
        "a.bz2": bz2.compress(data),
        "a.xz": lzma.compress(data),
        "a.zst": zstandard.compress(data[:100]) + zstandard.compress(data[100:]),
    }
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        with io.open_binary(tmp_path / name) as file:
            assert list(file) == data.splitlines(keepends=True)
        assert io.is_compressed(tmp_path / name) == (name != "a")
        with pytest.raises(FileNotFoundError):
            io.open_binary(tmp_path / f"absent{name}")
