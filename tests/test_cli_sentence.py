"""vecsmith sentence: train, encode, decode, interpolate, and their errors."""

from __future__ import annotations

import functools
import gzip
import io
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vecsmith import SentenceAutoencoder
from vecsmith.cli._sentence import _line
from vecsmith.models._checkpoint import NAME
from vecsmith.models._sentence_training import SentenceCheckpoint

pytest.importorskip("tokenizers")

COMMANDS = ("train", "encode", "decode", "interpolate")


@pytest.fixture(autouse=True)
def settings():
    """What a command changes for its process."""
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.set_num_threads(before[1])


def sentences(count: int) -> list[str]:
    generator = np.random.default_rng(3)
    parts = (
        ["A man", "Two dogs", "The girl", "Some people"],
        ["sees", "follows", "holds", "paints"],
        ["a red ball.", "the old house.", "three boats!", "something blue."],
    )
    return [" ".join(generator.choice(part) for part in parts) for _ in range(count)]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sentences") / "text.txt"
    path.write_text("\n".join(sentences(300)) + "\n\n")
    return path


@pytest.fixture(scope="module")
def model(text) -> Path:
    folder = text.parent / "model"
    options = {"vector_size": 96, "vocab_size": 400, "max_length": 16, "progress": False}
    SentenceAutoencoder(encoder="gru", **options).fit(sentences(300), epochs=0).save(folder)
    return folder


@pytest.fixture
def sentence(vecsmith):
    """Runs `vecsmith sentence` in this process."""
    return functools.partial(vecsmith, "sentence")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(sentence, command):
    result = sentence(command, "--help")
    assert result.code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.out)
    assert f"vecsmith sentence {command} " in plain.split("Examples:")[1]


def test_the_commands_are_listed(sentence):
    assert all(command in sentence("--help").out for command in COMMANDS)
    bare = sentence()
    assert "interpolate" in bare.out + bare.err


def test_train_a_recurrent_model(sentence, text, tmp_path):
    folder = tmp_path / "deep" / "model"
    options = ("--encoder", "rnn", "--dim", 12, "--vocab-size", 400, "--max-length", 16)
    training = ("--epochs", 2, "--held-out", 0.1, "--batch-size", 16, "--threads", 1, "--seed", 5)
    result = sentence("train", text, "-o", folder, *options, *training)
    assert result.code == 0, result.err
    assert result.out == ""
    assert "read 300 sentences" in result.err
    assert re.search(r"epoch 2, loss [\d.]+, held out: exact match [\d.]+%, tokens", result.err)
    assert "vecsmith sentence interpolate" in result.err
    assert {p.name for p in folder.iterdir()} == {
        *("config.json", "tokenizer.json", "model.safetensors")
    }
    options = {"vector_size": 12, "vocab_size": 400, "max_length": 16, "seed": 5}
    expected = SentenceAutoencoder(encoder="rnn", **options, progress=False)
    expected.fit(sentences(300), epochs=2, held_out=0.1, batch_size=16)
    loaded = SentenceAutoencoder.load(folder)
    assert torch.equal(loaded.encode(sentences(9)), expected.encode(sentences(9)))


def stdin_of(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")


@pytest.mark.parametrize("kind", ["gz", "stdin"])
def test_train_the_closed_form(sentence, text, tmp_path, monkeypatch, kind):
    source: object = tmp_path / "text.gz"
    if kind == "gz":
        source.write_bytes(gzip.compress(text.read_bytes()))
    else:
        source = "-"
        monkeypatch.setattr(sys, "stdin", stdin_of(text.read_bytes()))
    options = ("--dim", 64, "--vocab-size", 400, "--max-length", 16)
    result = sentence("train", source, "-o", tmp_path / "m", *options, "-q")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert SentenceAutoencoder.load(tmp_path / "m").reconstruct(sentences(5)) == sentences(5)


def test_encode_and_decode(sentence, model, text, tmp_path, monkeypatch):
    three = sentences(3)
    printed = sentence("encode", model, *three)
    assert printed.code == 0, printed.err
    rows = np.array([line.split() for line in printed.out.splitlines()], dtype=np.float32)
    expected = SentenceAutoencoder.load(model).encode(three).numpy()
    assert np.array_equal(rows, expected)
    (tmp_path / "three.txt").write_text("\n".join(three) + "\n")
    vectors = tmp_path / "v.npy"
    result = sentence("encode", model, "-i", tmp_path / "three.txt", "-o", vectors)
    assert (result.code, result.out) == (0, "")
    assert np.array_equal(np.load(vectors), expected)
    monkeypatch.setattr(sys, "stdin", stdin_of(printed.out.encode()))
    for source in (vectors, "-"):
        result = sentence("decode", model, source)
        assert result.code == 0, result.err
        assert result.out.splitlines() == three
    draws = [
        sentence(
            "decode", model, vectors, "--method", "multinomial", "--temperature", 9, "--seed", s
        )
        for s in (1, 1, 2)
    ]
    assert draws[0].out == draws[1].out != draws[2].out
    assert all(len(draw.out.splitlines()) == 3 for draw in draws)


def test_interpolate(sentence, model):
    first, second = "A man sees a red ball.", "Two dogs paints three boats!"
    lines = sentence("interpolate", model, first, second, "-n", 4).out.splitlines()
    assert len(lines) == 4
    assert (lines[0], lines[-1]) == (first, second)


def test_what_is_decoded_is_a_line_of_text():
    odd = "a\x1b[31m red\nline\u2028of\x85text\t."
    assert _line(odd) == "a [31m red line of text ."
    assert _line("Größe — 😀") == "Größe — 😀"


def test_standard_input_that_is_no_text(sentence, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", stdin_of(b"fine\n\xff\xfe\n"))
    result = sentence("encode", model)
    assert (result.code, result.out) == (2, "")
    assert "standard input: line 2 is not UTF-8" in result.err


def test_errors_are_one_clear_line(sentence, model, text, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    (tmp_path / "words.txt").write_text("1 2\n1 x\n")
    (tmp_path / "uneven.txt").write_text("1 2\n1\n")
    (tmp_path / "bad.npy").write_bytes(b"no")
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "small.npy", np.zeros((2, 3)))
    (tmp_path / "none").mkdir()
    for arguments, said in [
        (("train", tmp_path / "no.txt", "-o", tmp_path / "m"), "no such file"),
        (("train", tmp_path / "empty.txt", "-o", tmp_path / "m"), "got none"),
        (("train", tmp_path / "bad.txt", "-o", tmp_path / "m"), "line 2 is not UTF-8"),
        (
            ("train", text, "-o", tmp_path / "m", "--epochs", 3),
            "a recurrent --encoder with --epochs",
        ),
        (("train", text, "-o", tmp_path / "m", "--encoder", "cnn"), "rotation"),
        (
            ("train", text, "-o", tmp_path / "m", "--encoder", "rnn", "--decay", 2),
            r"decay in \(0, 1\]",
        ),
        (("train", text, "-o", tmp_path / "m", "--encoder", "rnn", "--alpha", 0), "alpha > 0"),
        (("train", text, "-o", tmp_path / "m", "--max-length", 2), "at most max_length=2 tokens"),
        (("train", text, "-o", tmp_path / "m", "--tokenizer", "x.json"), "x.json"),
        (("encode", tmp_path / "no", "a"), "no such one"),
        (("encode", tmp_path / "none", "a"), "not a model folder"),
        (("encode", model, "a", "-i", text), "got both"),
        (("encode", model, "-i", tmp_path / "no.txt"), "no such file"),
        (("encode", model, "a", "-o", "vectors.txt"), r"end in \.npy"),
        (("encode", model, "word " * 40), "at most max_length=16"),
        (("decode", model, tmp_path / "no.npy"), "no such file"),
        (("decode", model, tmp_path / "bad.npy"), "not a .npy file"),
        (("decode", model, tmp_path / "text.npy"), "expected numbers"),
        (("decode", model, tmp_path / "small.npy"), r"\[B, 96\]; got \[2, 3\]"),
        (("decode", model, tmp_path / "words.txt"), "line 2: expected numbers"),
        (("decode", model, tmp_path / "uneven.txt"), "line 2: expected 2 numbers"),
        (("decode", model, tmp_path / "empty.txt"), "got none"),
        (("interpolate", model, "a", "b", "-n", 1), "steps"),
    ]:
        result = sentence(*arguments)
        assert result.code == 2, arguments
        assert result.out == "", arguments
        assert re.search(said, result.err), (said, result.err)
        lines = [line for line in result.err.splitlines() if not line.startswith("read ")]
        assert len(lines) == 1, result.err
        assert lines[0].startswith("error: ")
    assert not (tmp_path / "m").exists()


def test_ctrl_c_leaves_a_checkpoint(sentence, text, tmp_path):
    folder = tmp_path / "m"
    options = ("--encoder", "rnn", "--dim", 32, "--vocab-size", 400, "--max-length", 16)
    training = ("--held-out", 0, "--loss", "cross_entropy", "--checkpoint-every", 0.1)
    command = ("train", text, "-o", folder, *options, *training, "--threads", 1, "--epochs", 3000)
    child = subprocess.Popen(
        [sys.executable, "-m", "vecsmith", "sentence", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / NAME).exists():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    busy = sentence(*command)
    assert busy.code == 2
    assert "another run" in busy.err
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, "")
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("stopped.")
    assert str(folder / NAME) in last
    reached = SentenceCheckpoint(folder).read()[0]["cursor"]["epoch"]
    assert reached < 3000
    other = sentence(*command[:-1], 4000)
    assert other.code == 2
    assert "epochs=4000" in other.err
    assert SentenceCheckpoint(folder).read()[0]["cursor"]["epoch"] == reached


def test_resume_in_the_command(sentence, text, tmp_path, monkeypatch):
    from vecsmith.models import _sentence_training as training

    options = ("--encoder", "rnn", "--dim", 12, "--vocab-size", 400, "--max-length", 16, "-q")
    more = ("--epochs", 2, "--threads", 1, "--deterministic", "--checkpoint-every", 0)
    assert sentence("train", text, "-o", tmp_path / "whole", *options, *more).code == 0
    step, steps = training._Learner.step, []

    def stopping(self, *arguments):
        steps.append(1)
        if len(steps) == 12:
            raise MemoryError
        return step(self, *arguments)

    monkeypatch.setattr(training._Learner, "step", stopping)
    assert sentence("train", text, "-o", tmp_path / "m", *options, *more).code == 2
    assert (tmp_path / "m" / NAME).exists()
    monkeypatch.setattr(training._Learner, "step", step)
    assert sentence("train", text, "-o", tmp_path / "m", *options, *more).code == 0
    assert not (tmp_path / "m" / NAME).exists()
    whole, resumed = (tmp_path / n / "model.safetensors" for n in ("whole", "m"))
    assert whole.read_bytes() == resumed.read_bytes()
