"""Checkpoints: killed, stopped, damaged, shared and full-disk runs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from vecsmith import Word2Vec
from vecsmith.io import load_safetensors, save_safetensors
from vecsmith.models._checkpoint import (
    NAME,
    Checkpoint,
    CheckpointError,
    FolderInUseError,
    TrainingInterrupted,
    checksum,
)

OPTIONS = {"vector_size": 20, "min_count": 1, "epochs": 3, "sg": 1, "seed": 7}
CHUNK = 500

# A run in a process of its own, to be killed: small chunks, a checkpoint after each.
CHILD = """
import sys
import torch
from vecsmith import Word2Vec

text, folder, workers, options, chunk, deterministic = eval(sys.argv[1])
torch.use_deterministic_algorithms(deterministic)
model = Word2Vec(**options, workers=workers, checkpoint=folder + "/state", checkpoint_every=0)
model._chunk_positions = chunk
model.build_vocab(corpus_file=text)

class Say:
    def on_train_begin(self, model):
        print("training", flush=True)

model.train(corpus_file=text, callbacks=[Say()])
model.save(folder + "/model")
print("saved", flush=True)
"""


def write_text(path: Path, sentences: int, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    lines = (
        " ".join(f"w{i}" for i in generator.zipf(1.4, size=12) if i < 400) for _ in range(sentences)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 4000)


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def run(text: Path, callbacks=(), chunk: int = CHUNK, save: Path | None = None, **more) -> Word2Vec:
    model = Word2Vec(**{**OPTIONS, "workers": 1, **more})
    model._chunk_positions = chunk
    model.build_vocab(corpus_file=text)
    model.train(corpus_file=text, callbacks=callbacks)
    if save is not None:
        model.save(save)
    return model


def start(
    text: Path, folder: Path, workers: int, deterministic: bool, **more: object
) -> subprocess.Popen:
    options = {**OPTIONS, **more}
    argument = repr((str(text), str(folder), workers, options, CHUNK, deterministic))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, argument], stdout=subprocess.PIPE, text=True
    )


class StopAfter:
    """Sends a signal to this process at the start of an epoch."""

    def __init__(self, epoch: int, signum: int = signal.SIGINT) -> None:
        self.left, self.signum = epoch, signum

    def on_epoch_begin(self, model) -> None:
        if self.left == 0:
            signal.raise_signal(self.signum)
        self.left -= 1


def test_five_kills_end_in_the_same_bits(text, tmp_path, deterministic):
    # Long enough for five kills before the end.
    epochs = 25
    unbroken = run(text, save=tmp_path / "unbroken", epochs=epochs)
    draw = random.Random(11)
    kills, cursors = 0, []
    while True:
        # Another number of workers each time: it must not matter.
        child = start(text, tmp_path, 1 + kills % 3, True, epochs=epochs)
        assert child.stdout.readline() == "training\n"
        if kills == 5:
            assert child.stdout.readline() == "saved\n"
            assert child.wait() == 0
            break
        if kills == 0:
            with pytest.raises(FolderInUseError):
                run(text, checkpoint=tmp_path / "state")
        time.sleep(draw.uniform(0.02, 0.35))
        child.kill()
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL  # it had not ended by itself
        kills += 1
        state = Checkpoint(tmp_path / "state").read()
        if state is not None:
            cursors.append((state[0]["cursor"]["epoch"], state[0]["cursor"]["chunk"]))
    child.stdout.close()
    assert cursors == sorted(cursors)
    assert len(set(cursors)) >= 3  # it went on, and did not start anew each time
    assert any(chunk > 0 for _, chunk in cursors)  # from the middle of an epoch
    for name in ("model.safetensors", "vocab.txt"):
        assert (tmp_path / "model" / name).read_bytes() == (
            tmp_path / "unbroken" / name
        ).read_bytes()
    assert np.isfinite(unbroken.wv.vectors).all()
    assert not list((tmp_path / "state").iterdir() if (tmp_path / "state").exists() else [])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_signal_leaves_a_checkpoint(text, tmp_path, signum, epoch):
    # One worker: the same bits without deterministic mode.
    unbroken = run(text, compute_loss=True)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(TrainingInterrupted) as stop:
        run(text, [StopAfter(epoch, signum)], checkpoint=tmp_path, compute_loss=True)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert stop.value.signum == signum
    assert stop.value.checkpoint == tmp_path / NAME
    state, _ = Checkpoint(tmp_path).read()
    assert (state["cursor"]["epoch"], state["cursor"]["chunk"]) == (epoch, 1)
    resumed = run(text, checkpoint=tmp_path, compute_loss=True)
    assert np.array_equal(resumed.wv.vectors, unbroken.wv.vectors)
    assert np.array_equal(resumed.syn1neg, unbroken.syn1neg)
    assert resumed.get_latest_training_loss() == unbroken.get_latest_training_loss()


def test_callbacks_of_a_resumed_run(text, tmp_path):
    calls = []

    class Count:
        def on_epoch_begin(self, model):
            calls.append("begin")

        def on_epoch_end(self, model):
            calls.append("end")

    with pytest.raises(TrainingInterrupted):
        run(text, [StopAfter(1)], checkpoint=tmp_path)
    run(text, [Count()], checkpoint=tmp_path)
    assert calls == ["begin", "end"] * 2  # epochs 1 and 2, the first of them from its middle


def test_hierarchical_softmax_and_lists_resume(tmp_path):
    sentences = [[f"w{i % 7}", f"w{i % 11}", f"w{i % 5}"] for i in range(400)]
    options = {**OPTIONS, "hs": 1, "negative": 0, "sg": 0, "workers": 1}

    def train(**more):
        model = Word2Vec(**{**options, **more})
        model._chunk_positions = 100
        model.build_vocab(iter(sentences))
        callbacks = more.pop("callbacks", ())
        model.train(callbacks=callbacks)
        return model

    unbroken = train()
    model = Word2Vec(**options, checkpoint=tmp_path)
    model._chunk_positions = 100
    model.build_vocab(sentences)
    with pytest.raises(TrainingInterrupted):
        model.train(sentences, callbacks=[StopAfter(1)])
    assert np.array_equal(train(checkpoint=tmp_path).syn1, unbroken.syn1)


def test_no_resume_starts_anew(text, tmp_path):
    with pytest.raises(TrainingInterrupted):
        run(text, [StopAfter(1)], checkpoint=tmp_path)
    begun = []

    class Keep:
        def on_epoch_begin(self, model):
            begun.append(Checkpoint(tmp_path).read() is not None)

    model = run(text, [Keep()], checkpoint=tmp_path, resume=False, save=tmp_path / "model")
    assert begun == [True] * 3  # the old one stayed until the end
    assert not (tmp_path / NAME).exists()  # and went when the model was saved
    assert np.array_equal(model.wv.vectors, run(text).wv.vectors)


def test_saving_in_a_callback_keeps_the_checkpoint(text, tmp_path):
    class Save:
        def on_epoch_end(self, model):
            model.save(tmp_path / "model")
            assert (tmp_path / NAME).exists()

    run(text, [Save()], checkpoint=tmp_path, checkpoint_every=0, chunk=5000)
    assert (tmp_path / NAME).exists()


# --- what must be refused -------------------------------------------------------------------------


@pytest.fixture
def interrupted(text, tmp_path) -> Path:
    folder = tmp_path / "interrupted"
    with pytest.raises(TrainingInterrupted):
        run(text, [StopAfter(1)], checkpoint=folder)
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 3}, "window=5"),
        ({"vector_size": 24}, "vector_size=20"),
        ({"epochs": 4}, "epochs=3"),
        ({"seed": 8}, "seed=7"),
        ({"negative": 6}, "negative=5"),
        ({"sg": 0}, "cbow=False"),
        ({"sample": 1e-2}, "sample=0.001"),
        ({"shared_negatives": "pair"}, "shared_negatives='window'"),
        ({"min_count": 3}, "words="),
        ({"alpha": 0.03}, "alpha=0.025"),
    ],
    ids=lambda value: str(value),
)
def test_other_settings(text, interrupted, options, said):
    before = (interrupted / NAME).read_bytes()
    with pytest.raises(CheckpointError) as caught:
        run(text, checkpoint=interrupted, **options)
    assert said in str(caught.value)
    assert "--no-resume" in str(caught.value)
    assert (interrupted / NAME).read_bytes() == before


def test_another_text(interrupted, tmp_path, text):
    # The same words as often, in another order.
    lines = text.read_text().splitlines()
    lines[10], lines[20] = lines[20], lines[10]
    assert lines[10] != lines[20]
    other = tmp_path / "other.txt"
    other.write_text("\n".join(lines) + "\n")
    with pytest.raises(CheckpointError, match="the same text"):
        run(other, checkpoint=interrupted)
    # And the same text in another place is the same text.
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text.read_bytes())
    assert np.array_equal(run(moved, checkpoint=interrupted).wv.vectors, run(text).wv.vectors)


@pytest.mark.parametrize("how", ["constructor", "train"])
@pytest.mark.parametrize(
    ("other", "said"),
    [({}, "the same text"), ({"min_count": 2}, "min_count=1")],
    ids=["text", "settings"],
)
def test_a_refused_run_keeps_the_encoded_text(text, tmp_path, how, other, said):
    """It is what the right command goes on with."""
    folders = {"cache_dir": tmp_path / "corpus", "checkpoint": tmp_path / "state"}

    def trained(path: Path, callbacks=(), **more) -> None:
        options = {**OPTIONS, **folders, "workers": 1, **more}
        if how == "constructor":
            Word2Vec(corpus_file=path, callbacks=callbacks, **options)
        else:
            model = Word2Vec(**options)
            model.build_vocab_from_freq({f"w{i}": 1000 - i for i in range(400)})
            model.train(corpus_file=path, callbacks=callbacks)

    with pytest.raises(TrainingInterrupted):
        trained(text, [StopAfter(1)])
    before = {p.name: p.read_bytes() for p in folders["cache_dir"].iterdir()}
    another = write_text(tmp_path / "other.txt", 4000, seed=1)
    with pytest.raises(CheckpointError, match=said):
        trained(another, **other)
    assert before == {p.name: p.read_bytes() for p in folders["cache_dir"].iterdir()}
    trained(text)


def test_deterministic_mode_is_a_setting(text, interrupted, deterministic):
    with pytest.raises(CheckpointError, match="deterministic"):
        run(text, checkpoint=interrupted)


def flip(at: float):
    def damage(data: bytes) -> bytes:
        place = int(at * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]

    return damage


DAMAGES = {
    "empty": lambda data: b"",
    "short": lambda data: data[:5],
    "half": lambda data: data[: len(data) // 2],
    "one byte less": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "garbage": lambda data: bytes(range(256)) * 20,
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    **{f"flipped at {at}": flip(at) for at in (0.0, 0.004, 0.3, 0.77, 1.0)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoints(text, interrupted, damage):
    path = interrupted / NAME
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        run(text, checkpoint=interrupted)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    run(text, checkpoint=interrupted, resume=False)


def crafted(path: Path, change) -> None:
    """The checkpoint with other tables or another state, and the checksum that goes with them."""
    tables, metadata = load_safetensors(path, mmap=False)
    state = json.loads(metadata["state"])
    state = change(tables, state) or state
    text = state if isinstance(state, str) else json.dumps(state)
    # Tables that no checksum can be made of are refused before it is looked at.
    rest = [tables[name] for name in sorted(tables) if tables[name].dtype != torch.bfloat16]
    rest = [table for table in rest if table.dim()]
    crc = checksum(*rest, start=zlib.crc32(text.encode()))
    save_safetensors(path, tables, {**metadata, "state": text, "checksum": crc})


def other_cursor(**values):
    return lambda tables, state: state["cursor"].update(values)


CRAFTED = {
    "nan": lambda tables, state: tables.update(syn1neg=tables["syn1neg"] * np.nan),
    "fp64": lambda tables, state: tables.update(vectors=tables["vectors"].double()),
    "bfloat16": lambda tables, state: tables.update(vectors=tables["vectors"].bfloat16()),
    "a number": lambda tables, state: tables.update(vectors=torch.tensor(1.0)),
    "state: list": lambda tables, state: [[1, 2]],
    "state: null": lambda tables, state: "null",
    "state: not JSON": lambda tables, state: "{",
    "state: deep": lambda tables, state: "[" * 100_000,
    "epoch: true": other_cursor(epoch=True),
    "chunk: false": other_cursor(chunk=False),
    "loss: huge": other_cursor(loss=10**400),
    "cursor: null": lambda tables, state: {**state, "cursor": None},
}


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED)
def test_crafted_checkpoints(text, interrupted, change):
    crafted(interrupted / NAME, change)
    before = (interrupted / NAME).read_bytes()
    model = Word2Vec(**OPTIONS, workers=1, checkpoint=interrupted)
    model._chunk_positions = CHUNK
    model.build_vocab(corpus_file=text)
    vectors = model.wv.vectors.copy()
    with pytest.raises(CheckpointError, match="cannot go on from the checkpoint") as caught:
        model.train()
    assert str(interrupted / NAME) in str(caught.value)
    assert np.array_equal(model.wv.vectors, vectors)
    assert (interrupted / NAME).read_bytes() == before


def rewritten(path: Path, **metadata: str) -> None:
    tables, old = load_safetensors(path, mmap=False)
    save_safetensors(path, tables, {**old, **metadata})


def test_every_flipped_bit_of_the_state_is_seen(interrupted):
    path = interrupted / NAME
    data = path.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    for place in random.Random(3).sample(range(length), 40):
        flipped = data[:place] + bytes([data[place] ^ (1 << (place % 7))]) + data[place + 1 :]
        path.write_bytes(flipped)
        try:
            state, tables = Checkpoint(interrupted).read()
        except CheckpointError:
            continue
        # Only white space, or what JSON writes in two ways, may pass: the content is the same.
        path.write_bytes(data)
        expected_state, expected = Checkpoint(interrupted).read()
        assert state == expected_state
        assert all(torch.equal(tables[name], expected[name]) for name in expected)


def test_other_formats(text, interrupted):
    path = interrupted / NAME
    for metadata in ({"version": "2"}, {"format": "other"}, {"state": "{}"}, {"checksum": "0"}):
        before = path.read_bytes()
        rewritten(path, **metadata)
        with pytest.raises(CheckpointError, match="expected"):
            run(text, checkpoint=interrupted)
        path.write_bytes(before)


def test_a_state_of_the_wrong_kind(text, interrupted):
    # Everything right but its content: somebody else's program, or a bug of ours.
    path = interrupted / NAME
    tables, metadata = load_safetensors(path, mmap=False)
    checkpoint = Checkpoint(interrupted)
    checkpoint.write(tables, {"nothing": 1})
    with pytest.raises(CheckpointError):
        run(text, checkpoint=interrupted)
    state = json.loads(metadata["state"])
    for cursor in ({"epoch": -1}, {"epoch": 9}, {"chunk": 10**6}, {"chunk": "x"}):
        checkpoint.write(tables, {**state, "cursor": {**state["cursor"], **cursor}})
        with pytest.raises(CheckpointError):
            run(text, checkpoint=interrupted)


# --- two runs, a full disk ------------------------------------------------------------------------


def test_two_runs_into_one_folder(text, tmp_path):
    errors = []

    class Second:
        def on_epoch_begin(self, model):
            if not errors:
                with pytest.raises(FolderInUseError) as caught:
                    run(text, checkpoint=tmp_path)
                errors.append(str(caught.value))

    first = run(text, [Second()], checkpoint=tmp_path)
    assert str(tmp_path) in errors[0]
    assert "another run" in errors[0]
    assert np.array_equal(first.wv.vectors, run(text).wv.vectors)
    run(text, checkpoint=tmp_path)  # the folder is free again


@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_folder_that_went_away_does_not_hide_the_error(tmp_path, instead):
    folder = tmp_path / "state"
    checkpoint = Checkpoint(folder)
    locks = []

    def train() -> None:
        with checkpoint.hold():
            locks.append(checkpoint._lock)
            shutil.rmtree(folder)
            if instead == "a file":
                folder.write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(locks[0])


def test_debris_of_a_killed_run_is_swept(tmp_path):
    debris = tmp_path / f".{NAME}.0123456789ab.tmp"
    debris.write_bytes(b"half a checkpoint")
    with Checkpoint(tmp_path).hold() as checkpoint:
        assert not debris.exists()
        with checkpoint.hold():  # our own, once more
            assert list(tmp_path.iterdir())
        with pytest.raises(FolderInUseError), Checkpoint(tmp_path).hold():
            pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_not_used_is_removed(tmp_path):
    with pytest.raises(FileNotFoundError):
        Word2Vec(corpus_file="/nowhere", checkpoint=tmp_path / "state")
    with pytest.raises(ValueError):
        Word2Vec([["rare"]], checkpoint=tmp_path / "deep" / "deeper" / "state")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        Word2Vec([["a", "b"]], min_count=1, checkpoint=tmp_path / "file")


FULL = """
import resource, sys, warnings
from pathlib import Path
from vecsmith import Word2Vec
from vecsmith.models._checkpoint import NAME, Checkpoint

text, folder, options, chunk = eval(sys.argv[1])
path = Path(folder) / "state" / NAME
before = []

class Fill:
    def __init__(self): self.epochs = 0
    def on_epoch_begin(self, model):
        if self.epochs == 1:
            before.append(path.read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[0]) // 2,) * 2)
        self.epochs += 1

model = Word2Vec(**options, workers=1, checkpoint=folder + "/state", checkpoint_every=0)
model._chunk_positions = chunk
model.build_vocab(corpus_file=text)
model.save(folder + "/model")
saved = Path(folder, "model", "model.safetensors").read_bytes()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model.train(corpus_file=text, callbacks=[Fill()])
assert [str(w.message) for w in caught if "could not be written" in str(w.message)], caught
assert len(caught) == 1, [str(w.message) for w in caught]
assert path.read_bytes() == before[0]
assert Checkpoint(folder + "/state").read() is not None
assert sorted(p.name for p in path.parent.iterdir()) == [NAME], list(path.parent.iterdir())
try:
    model.save(folder + "/model")
except OSError as error:
    print("refused:", error)
assert Path(folder, "model", "model.safetensors").read_bytes() == saved
assert model.train_count == 1
print("done")
"""


def test_a_full_disk(text, tmp_path):
    argument = repr((str(text), str(tmp_path), {**OPTIONS, "vector_size": 64}, CHUNK))
    child = subprocess.run(
        [sys.executable, "-c", FULL, argument], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("refused:")
    assert child.stdout.endswith("done\n")


# --- the parts ------------------------------------------------------------------------------------


def test_checksum_is_of_values_not_of_strides():
    table = torch.rand(100, 13)
    padded = torch.zeros(100, 16)
    padded[:, :13] = table
    assert checksum(padded[:, :13]) == checksum(table) == checksum(table.clone())
    changed = table.clone()
    changed[99, 12] += 1
    assert checksum(changed) != checksum(table)
    assert checksum(torch.empty(0, 13)) == "00000000"


def test_checkpoints_follow_the_clock(text, tmp_path, monkeypatch):
    written = []
    write = Checkpoint.write

    def counted(self, tables, state):
        written.append((state["cursor"]["epoch"], state["cursor"]["chunk"]))
        write(self, tables, state)

    monkeypatch.setattr(Checkpoint, "write", counted)
    run(text, checkpoint=tmp_path / "never", checkpoint_every=3600)
    assert not written
    model = run(text, checkpoint=tmp_path / "always", checkpoint_every=0, chunk=5000)
    assert len(set(written)) == len(written) >= 3 * (model.corpus_total_words // 5000)
    assert os.listdir(tmp_path / "always") == [NAME]


def test_a_diverged_run_does_not_replace_a_good_checkpoint(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.write({"vectors": torch.ones(3, 4)}, {"cursor": 1})
    before = checkpoint.path.read_bytes()
    broken = torch.ones(3, 4)
    broken[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"finite tables.*'vectors'.*smaller alpha"):
        checkpoint.write({"vectors": broken}, {"cursor": 2})
    assert checkpoint.path.read_bytes() == before
