"""The command line: every command, its help, its errors, Ctrl-C, standard input, broken pipes."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from command_result import Result
from vecsmith import KeyedVectors, Word2Vec
from vecsmith.cli import main
from vecsmith.models._checkpoint import NAME, Checkpoint


@pytest.fixture(autouse=True)
def settings():
    """What a command changes for its process."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    generator = np.random.default_rng(5)
    lines = []
    for _ in range(1500):
        topic = generator.integers(5)
        lines.append(" ".join(f"t{topic}w{i}" for i in generator.integers(4, size=9)))
    path = tmp_path_factory.mktemp("cli") / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def vectors(text) -> Path:
    folder = text.parent / "vectors"
    model = Word2Vec(corpus_file=text, vector_size=16, sg=1, epochs=8, alpha=0.05, sample=0)
    model.save(folder)
    model.wv.save_word2vec_format(text.parent / "vectors.txt", binary=False)
    model.wv.save_word2vec_format(text.parent / "vectors.bin", binary=True)
    return folder


def start(*arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "vecsmith", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# --- help -----------------------------------------------------------------------------------------

COMMANDS = ("word2vec", "neighbors", "evaluate", "plot", "bench", "info")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(vecsmith, command):
    result = vecsmith(command, "--help")
    assert result.code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.out)
    if command != "info":
        assert "Examples:" in plain
        assert f"vecsmith {command} " in plain.split("Examples:")[1]
    assert "--help" in plain


def test_the_whole(vecsmith):
    result = vecsmith("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)
    assert vecsmith("--version").out.startswith("vecsmith ")
    nothing = vecsmith()
    assert "word2vec" in nothing.out + nothing.err


# --- word2vec -------------------------------------------------------------------------------------


def test_word2vec(vecsmith, text, tmp_path):
    folder = tmp_path / "deep" / "vectors"
    result = vecsmith(
        *("word2vec", text, "-o", folder, "--dim", 12, "--epochs", 3, "--window", 4),
        *("--min-count", 2, "--threads", 1, "--seed", 9, "--text", "--binary"),
    )
    assert result.code == 0, result.err
    assert result.out == ""
    assert "20 words of vocabulary" in result.err
    assert "words/s" in result.err
    assert "vecsmith neighbors" in result.err
    assert {p.name for p in folder.iterdir()} == {
        *("config.json", "vocab.txt", "model.safetensors", "corpus", "vectors.txt", "vectors.bin")
    }
    expected = Word2Vec(
        corpus_file=text, vector_size=12, epochs=3, window=4, min_count=2, workers=1, seed=9, sg=1
    )
    for loaded in (KeyedVectors.load(folder), Word2Vec.load(folder).wv):
        assert loaded.index_to_key == expected.wv.index_to_key
        assert np.array_equal(loaded.vectors, expected.wv.vectors)
    binary = KeyedVectors.load_word2vec_format(folder / "vectors.bin", binary=True)
    assert np.array_equal(binary.vectors, expected.wv.vectors)


def test_options_reach_the_model(vecsmith, text, tmp_path):
    result = vecsmith(
        *("word2vec", text, "-o", tmp_path / "v", "--cbow", "--hs", "--sample", "0.01", "-q"),
        *("--alpha", 0.05, "--min-alpha", 0.001, "--cbow-sum", "--fixed-windows", "--iter", 1),
        *("--shared-negatives", "pair", "--ns-exponent", 0.5, "--max-final-vocab", 15),
    )
    assert (result.code, result.out, result.err) == (0, "", "")
    model = Word2Vec.load(tmp_path / "v")
    assert (model.sg, model.hs, model.negative, model.sample) == (0, 1, 0, 0.01)
    assert (model.alpha, model.min_alpha, model.cbow_mean) == (0.05, 0.001, 0)
    assert (model.shrink_windows, model.epochs, model.shared_negatives) == (False, 1, "pair")
    assert (model.ns_exponent, model.max_final_vocab) == (0.5, 15)
    assert len(model.wv) <= 15


def test_deterministic(vecsmith, text, tmp_path):
    for threads in (1, 2):
        assert (
            vecsmith(
                *("word2vec", text, "-o", tmp_path / str(threads), "--deterministic", "-q"),
                *("--threads", threads, "--dim", 8, "--epochs", 2),
            ).code
            == 0
        )
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("1", "2"))
    assert one == two


@pytest.mark.parametrize("kind", ["gz", "zst", "folder", "stdin"])
def test_kinds_of_text(vecsmith, text, tmp_path, monkeypatch, kind):
    data = text.read_bytes()
    source: object = tmp_path / f"text.{kind}"
    if kind == "gz":
        source.write_bytes(gzip.compress(data))
    elif kind == "zst":
        zstandard = pytest.importorskip("zstandard")
        source.write_bytes(zstandard.ZstdCompressor().compress(data))
    elif kind == "folder":
        source.mkdir()
        half = data.index(b"\n", len(data) // 2) + 1
        (source / "a.txt").write_bytes(data[:half])
        (source / "b.txt").write_bytes(data[half:])
    else:
        source = "-"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    options = ("--dim", 8, "--epochs", 1, "--threads", 1, "-q")
    assert vecsmith("word2vec", text, "-o", tmp_path / "plain", *options).code == 0
    result = vecsmith("word2vec", source, "-o", tmp_path / "v", *options)
    assert result.code == 0, result.err
    assert np.array_equal(
        KeyedVectors.load(tmp_path / "v").vectors, KeyedVectors.load(tmp_path / "plain").vectors
    )


def big_text(path: Path) -> Path:
    generator = np.random.default_rng(1)
    words = np.array([f"w{i}" for i in range(2000)])
    rows = words[np.minimum(generator.zipf(1.3, size=(30_000, 20)), 2000) - 1]
    path.write_text("\n".join(map(" ".join, rows)) + "\n")
    return path


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_ctrl_c_leaves_a_checkpoint(vecsmith, tmp_path, signum):
    text, folder = big_text(tmp_path / "text.txt"), tmp_path / "v"
    options = ("--dim", 32, "--epochs", 2000, "--checkpoint-every", 0.2, "--threads", 1)
    child = start("word2vec", text, "-o", folder, *options)
    deadline = time.monotonic() + 60
    while not (folder / NAME).exists():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    busy = vecsmith("word2vec", text, "-o", folder, *options)
    assert busy.code == 2
    assert busy.err.startswith("error: expected ")
    assert "another run" in busy.err
    child.send_signal(signum)
    out, err = child.communicate(timeout=180)
    assert child.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("stopped.")
    assert str(folder / NAME) in last
    assert "same command" in last
    first = Checkpoint(folder).read()[0]["cursor"]
    assert first["epoch"] < 2000
    # Other settings are refused, and the same command goes on.
    other = vecsmith("word2vec", text, "-o", folder, *options, "--window", 3)
    assert other.code == 2
    assert other.err.splitlines()[-1].startswith("error: expected the checkpoint")
    assert "window=5" in other.err
    assert "going on" not in other.err
    assert Checkpoint(folder).read()[0]["cursor"] == first


def test_resume_in_the_command(vecsmith, text, tmp_path, monkeypatch):
    options = ("--dim", 8, "--epochs", 3, "--threads", 1)
    assert vecsmith("word2vec", text, "-o", tmp_path / "whole", *options).code == 0
    from vecsmith.models import _driver

    def stopped(*arguments, **more):
        if more["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)
        return skipgram(*arguments, **more)

    skipgram = _driver.ops.skipgram
    monkeypatch.setattr(_driver.ops, "skipgram", stopped)
    result = vecsmith("word2vec", text, "-o", tmp_path / "v", *options)
    assert result.code == 130
    monkeypatch.setattr(_driver.ops, "skipgram", skipgram)
    result = vecsmith("word2vec", text, "-o", tmp_path / "v", *options)
    assert result.code == 0
    assert "going on from" in result.err
    assert not (tmp_path / "v" / NAME).exists()
    assert (tmp_path / "v/model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()


def test_ctrl_c_while_torch_is_imported(tmp_path):
    """The import is what a command does first, for seconds."""
    (tmp_path / "torch.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(60)"
    )
    process = start("info", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130
    assert err == "stopped. What was saved before is unchanged\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_ctrl_c_while_the_arguments_are_parsed(vecsmith, text, tmp_path, monkeypatch, signum):
    """typer imports what it needs then, which takes a moment."""
    monkeypatch.setattr(
        typer.core.TyperCommand, "parse_args", lambda *_: signal.raise_signal(signum)
    )
    result = vecsmith("word2vec", text, "-o", tmp_path / "v")
    assert (result.code, result.out) == (130, "")
    assert result.err == "stopped. What was saved before is unchanged\n"


def test_the_output_in_the_folder_of_the_text(vecsmith, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(text.read_bytes())
    for output in ("vectors/", "deep/vectors"):
        options = ("word2vec", ".", "-o", output, "--dim", 8, "--epochs", 1, "--text")
        for _ in range(2):
            if output == "deep/vectors":
                shutil.rmtree("vectors", ignore_errors=True)
            result = vecsmith(*options)
            assert result.code == 0, result.err
            assert "read 13,500 words" in result.err
    result = vecsmith("word2vec", ".", "-o", ".")
    assert result.code == 2
    assert "expected an output folder other than the folder of the text" in result.err


def test_a_damaged_encoded_text_is_read_again(vecsmith, tmp_path):
    text = big_text(tmp_path / "text.txt")
    options = ("--dim", 8, "--epochs", 1, "--threads", 1)
    for output in ("whole", "damaged"):
        assert vecsmith("word2vec", text, "-o", tmp_path / output, *options).code == 0
    (tokens,) = (tmp_path / "damaged/corpus").glob("*.tokens")
    data = tokens.read_bytes()
    tokens.write_bytes(data[:100_000] + bytes(200_000) + data[300_000:])
    assert vecsmith("word2vec", text, "-o", tmp_path / "damaged", *options).code == 0
    whole, damaged = (tmp_path / name / "model.safetensors" for name in ("whole", "damaged"))
    assert whole.read_bytes() == damaged.read_bytes()


def test_a_refused_run_keeps_the_encoded_text(vecsmith, text, tmp_path, monkeypatch):
    from vecsmith.models import _driver

    def stopped(*arguments, **more):
        signal.raise_signal(signal.SIGINT)
        return skipgram(*arguments, **more)

    skipgram = _driver.ops.skipgram
    options = ("-o", tmp_path / "v", "--dim", 8, "--epochs", 2)
    with monkeypatch.context() as patch:
        patch.setattr(_driver.ops, "skipgram", stopped)
        assert vecsmith("word2vec", text, *options).code == 130
    before = {p: p.read_bytes() for p in (tmp_path / "v").rglob("*") if p.is_file()}
    other = big_text(tmp_path / "other.txt")
    for more, said in (((), "the same text"), (("--max-final-vocab", 9), "max_final_vocab=None")):
        result = vecsmith("word2vec", other, *options, *more)
        assert result.code == 2
        assert result.err.startswith("error: expected the checkpoint")
        assert said in result.err
        assert before == {p: p.read_bytes() for p in (tmp_path / "v").rglob("*") if p.is_file()}
    # Damaged besides, it is read again, and is still the text of the checkpoint.
    (tokens,) = (tmp_path / "v" / "corpus").glob("*.tokens")
    tokens.write_bytes(b"\x07" * tokens.stat().st_size)
    result = vecsmith("word2vec", text, *options)
    assert result.code == 0, result.err
    assert "going on from" in result.err


def test_warnings_of_the_model_are_lines_of_the_command(vecsmith, text, tmp_path):
    options = ("word2vec", text, "--dim", 8, "--epochs", 1, "--alpha", 0.001, "--min-alpha", 0.01)
    loud = vecsmith(*options, "-o", tmp_path / "loud")
    assert re.search(r"^warning: .*learning rate will rise", loud.err, re.M), loud.err
    assert vecsmith(*options, "-o", tmp_path / "quiet", "--quiet").err == ""


def test_a_failed_run_keeps_the_vectors(vecsmith, text, tmp_path):
    assert vecsmith("word2vec", text, "-o", tmp_path, "-q", "--dim", 8, "--epochs", 1).code == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 16)
    for bad in (("--dim", 0), ("--min-count", 10**6), ("--negative", 0)):
        assert vecsmith("word2vec", text, "-o", tmp_path, *bad).code == 2
    assert vecsmith("word2vec", tmp_path / "binary", "-o", tmp_path).code == 2
    (tmp_path / "binary").unlink()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# --- neighbors ------------------------------------------------------------------------------------


def shown(result: Result) -> list[str]:
    return [line.split()[0] for line in result.out.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("form", ["vectors", "vectors.txt", "vectors.bin"])
def test_neighbors(vecsmith, vectors, form):
    result = vecsmith("neighbors", vectors.parent / form, "t1w1", "-n", 3)
    assert result.code == 0, result.err
    assert set(shown(result)) == {"t1w0", "t1w2", "t1w3"}


def test_sums(vecsmith, vectors):
    expected = KeyedVectors.load(vectors).most_similar(["t1w1", "t2w2"], ["t1w2"], topn=4)
    for question in (
        ("t1w1", "-", "t1w2", "+", "t2w2"),
        ("t1w1 - t1w2 + t2w2",),
        ("--", "- t1w2 + t1w1 + t2w2"),
        ("-p", "t1w1", "--positive", "t2w2", "--negative", "t1w2"),
    ):
        result = vecsmith("neighbors", vectors, "-n", 4, *question)
        assert shown(result) == [word for word, _ in expected], result.err


def test_several_questions_as_json(vecsmith, vectors):
    result = vecsmith("neighbors", vectors, "t0w0", "t3w1", "--json", "-n", 2)
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["positive"] for answer in answers] == [["t0w0"], ["t3w1"]]
    assert all(len(answer["neighbors"]) == 2 for answer in answers)


def test_questions_from_standard_input(vecsmith, vectors, monkeypatch):
    lines = "t0w0\nnobody\n\nt1w1 t0w0 +\nt1w1 +\nt1w1 - t1w2 + t2w2\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    result = vecsmith("neighbors", vectors, "-n", 1)
    assert result.code == 0
    assert result.out.splitlines()[0] == "t0w0"
    assert "t1w1 + t2w2 - t1w2" in result.out
    assert result.err.splitlines() == [
        "error: expected a word of the vocabulary; got 'nobody'",
        "error: expected + or - before 't0w0'; got 't1w1 t0w0 +'",
        "error: expected a word after the last + or -; got 't1w1 +'",
    ]
    for bad in ("nobody\n", "t1w1 +\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(bad))
        assert vecsmith("neighbors", vectors).code == 2


def test_a_reader_that_leaves(vectors):
    # More than a pipe holds, to one who reads a line: no traceback, nothing on standard error.
    words = [f"t{i % 5}w{i % 4}" for i in range(5000)]
    child = start("neighbors", vectors, "-n", 10, stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n".join(words[:10]) + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == "t0w0\n"
    child.stdout.close()
    try:
        child.stdin.write("\n".join(words) + "\n")
        child.stdin.close()
    except BrokenPipeError:
        pass
    child.stdin = None
    assert child.stderr.read() == ""
    assert child.wait(timeout=180) in (0, 1)
    child.stderr.close()


# --- evaluate, plot, info -------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path) -> tuple[Path, Path]:
    pairs = ["# judgments", "word1\tword2\tscore"]
    for i, j, k in itertools.product(range(5), range(5), (0, 2)):
        pairs.append(f"t{i}w{k}\tt{j}w1\t{9 - 8 * (i != j)}")
    pairs.append("t0w0\tnobody\t5")
    (tmp_path / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    analogies = (
        ": one\nt0w0 t0w1 t1w0 t1w1\nt0w0 t0w1 t1w0 nobody\nt0w0 t0w1 t1w0\n"
        ": two\nt2w0 t2w1 t3w0 t3w1\none two three four five\n"
    )
    (tmp_path / "analogies.txt.gz").write_bytes(gzip.compress(analogies.encode()))
    return tmp_path / "pairs.tsv", tmp_path / "analogies.txt.gz"


def test_evaluate(vecsmith, vectors, questions):
    wv = KeyedVectors.load(vectors)
    result = vecsmith("evaluate", vectors, *questions, "--json")
    assert result.code == 0, result.err
    pairs, analogies = json.loads(result.out)
    pearson, spearman, unknown = wv.evaluate_word_pairs(questions[0])
    assert pairs["kind"] == "pairs"
    assert pairs["spearman"] == pytest.approx(spearman[0])
    assert pairs["pearson"] == pytest.approx(pearson[0])
    assert pairs["unknown"] == pytest.approx(unknown / 100)
    assert (pairs["asked"], pairs["invalid"]) == (50, 1)
    assert spearman[0] > 0.5
    assert analogies["kind"] == "analogies"
    assert (analogies["asked"], analogies["unknown"]) == (2, pytest.approx(1 / 3))
    assert analogies["invalid"] == 2
    table = vecsmith("evaluate", vectors, *questions, "--sections").out
    for part in ("pairs.tsv", "analogies.txt.gz", "Spearman", "one", "two", f"{spearman[0]:.3f}"):
        assert part in table


@pytest.mark.parametrize("columns", [3, 5])
@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", ["\t", ",", " ", "   "])
def test_forms_of_pairs(vecsmith, vectors, tmp_path, separator, mark, columns):
    rows = [("t0w0", "t0w1", "9"), ("t0w0", "t1w1", "1"), ("t2w0", "t3w1", "2"), ("t2w0", "x", "2")]
    path = tmp_path / "pairs"
    lines = [separator.join((*row, "N", "0.5")[:columns]) for row in rows]
    path.write_text("\n".join(lines), encoding=mark)
    result = vecsmith("evaluate", vectors, path, "--json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)
    assert (row["asked"], row["unknown"], row["invalid"]) == (3, 0.25, 0)


def test_what_has_no_number_is_null_in_json(vecsmith, tmp_path):
    def strict(text: str):
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    folder, path = tmp_path / "v", tmp_path / "pairs.tsv"
    KeyedVectors(["a", "b", "zero"], torch.tensor([[1.0, 2], [2, 1], [0, 0]])).save(folder)
    path.write_text("a\tb\t1\na\tzero\t1\nb\tzero\t1\n")
    (row,) = strict(vecsmith("evaluate", folder, path, "--json").out)
    assert (row["spearman"], row["pearson"], row["asked"]) == (None, None, 3)
    assert "Spearman -  Pearson -" in vecsmith("evaluate", folder, path).out
    found = strict(vecsmith("neighbors", folder, "a", "--json").out)["neighbors"]
    assert found == [{"word": "b", "similarity": 0.8}, {"word": "zero", "similarity": None}]


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_plot(vecsmith, vectors, tmp_path, method):
    result = vecsmith("plot", vectors, "-o", tmp_path / "map.png", "--method", method, "--top", 12)
    assert result.code == 0, result.err
    assert "drew 12 words" in result.err
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_info(vecsmith):
    result = vecsmith("info")
    assert result.code == 0, result.err
    for part in ("vecsmith", torch.__version__, "processor level", "threads", "CUDA", "triton"):
        assert part in result.out
    assert re.search(r"skipgram: native +chosen", result.out)
    facts = json.loads(vecsmith("info", "--json").out)
    assert facts["isa"]["level"] in facts["isa"]["available"]
    assert {row["operator"] for row in facts["backends"]["cpu"]} >= {"skipgram"}


# --- errors ---------------------------------------------------------------------------------------

# {text}, {vectors} and {tmp} stand for paths.
ERRORS = [
    ("word2vec nowhere.txt -o {tmp}/v", "nowhere.txt: no such file"),
    ("word2vec {text}", "--output"),
    ("word2vec {text} -o {tmp}/v --dim 0", "vector_size >= 1; got 0"),
    ("word2vec {text} -o {tmp}/v --dim many", "--dim"),
    ("word2vec {text} -o {tmp}/v --window 0", "window >= 1; got 0"),
    ("word2vec {text} -o {tmp}/v --negative 0", "negative=0 and hs=0"),
    ("word2vec {text} -o {tmp}/v --alpha nan", "alpha"),
    ("word2vec {text} -o {tmp}/v --epochs 0", "epochs >= 1"),
    ("word2vec {text} -o {tmp}/v --threads 0", "workers >= 1"),
    ("word2vec {text} -o {tmp}/v --min-count 999999", "min_count=999999"),
    ("word2vec {text} -o {tmp}/x1/x2/x3 --min-count 999999", "min_count=999999"),
    ("word2vec {text} -o {text}", "expected a folder"),
    ("word2vec {text} -o {tmp}/v --shared-negatives all", "shared-negatives"),
    ("word2vec {text} -o {tmp}/v --windw 3", "--windw"),
    ("word2wec {text}", "word2wec"),
    ("neighbors {vectors} nobody", "got 'nobody'"),
    ("neighbors {vectors} t0w0 - nobody", "got 'nobody'"),
    ("neighbors {vectors} t0w0 -", "expected a word after"),
    ("neighbors {vectors} t0w0 - t1w1 t2w2", "expected + or - before 't2w2'"),
    ("neighbors {vectors} t0w0 -p t1w1", "got both"),
    ("neighbors {tmp} word", "config.json"),
    ("neighbors {tmp}/nowhere word", "no such file"),
    ("neighbors {text} word", "header"),
    ("evaluate {vectors} {text}", "got neither"),
    ("evaluate {vectors} {tmp}/nowhere", "nowhere"),
    ("plot {vectors} -o {tmp}/nowhere/map.png", "nowhere"),
    ("plot {vectors} -o {tmp}/map.gif", ".png"),
    ("plot {vectors} -o {tmp}/map.png --method umap", "umap"),
]


@pytest.mark.parametrize(("command", "said"), ERRORS, ids=[command for command, _ in ERRORS])
def test_errors_are_one_line(vecsmith, text, vectors, tmp_path, command, said):
    places = {"text": text, "vectors": vectors, "tmp": tmp_path}
    result = vecsmith(*(part.format(**places) for part in command.split()))
    assert result.code == 2
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert not list(tmp_path.iterdir())  # nothing was made


@pytest.mark.parametrize("place", [0, 2, 6])
def test_debug_shows_where(text, tmp_path, place):
    command = ["word2vec", str(text), "-o", str(tmp_path / "v"), "--dim", "0"]
    command.insert(place, "--debug")
    with pytest.raises(ValueError, match="vector_size >= 1; got 0"):
        main(command)


def test_warnings_are_one_line(vecsmith, text, tmp_path, monkeypatch):
    def full(self, tables, state):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoint, "write", full)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = vecsmith(
            *("word2vec", text, "-o", tmp_path / "v", "-q", "--epochs", 2, "--dim", 8),
            *("--checkpoint-every", 0),
        )
    assert result.code == 0
    assert result.err.startswith("warning: the checkpoint ")
    assert "No space left on device" in result.err
    assert "training goes on" in result.err
    assert result.err.count("\n") == 1
    assert len(KeyedVectors.load(tmp_path / "v")) == 20


def test_an_error_of_ours_is_one_line_too(vecsmith, vectors, monkeypatch):
    def broken(*arguments, **options):
        raise AssertionError("not\nexpected")

    monkeypatch.setattr(KeyedVectors, "most_similar", broken)
    result = vecsmith("neighbors", vectors, "t0w0")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: AssertionError: not expected (--debug shows where)\n"


def test_the_installed_command():
    command = Path(sys.executable).with_name("vecsmith")
    if not command.exists():
        pytest.skip("vecsmith is not installed beside this Python")
    result = subprocess.run(
        [command, "neighbors"], capture_output=True, text=True, timeout=180, env=os.environ
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: Missing argument")


def closed(redirect: str, *arguments: object) -> subprocess.CompletedProcess:
    """The command, started by a shell that closes some of its standard streams."""
    return subprocess.run(
        [
            "sh",
            "-c",
            f'exec "$0" -m vecsmith "$@" {redirect}',
            sys.executable,
            *map(str, arguments),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_output(text, vectors, tmp_path, redirect):
    if redirect in ("2>&-", "<&- >&- 2>&-"):  # training writes to one of the two alone
        result = closed(redirect, "word2vec", text, "-o", tmp_path / "v", "--dim", 8, "--epochs", 1)
        assert (result.returncode, result.stdout) == (0, "")
        assert len(KeyedVectors.load(tmp_path / "v")) == 20
    result = closed(redirect, "neighbors", vectors, "t0w0")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "" if ">&-" in redirect.split() else "t0w0" in result.stdout
    # The line of an error is not taken for an answer.
    result = closed(redirect, "neighbors", vectors, "nobody")
    assert (result.returncode, result.stdout) == (2, "")


def test_closed_input(vectors, tmp_path):
    for arguments in (("word2vec", "-", "-o", tmp_path / "v"), ("neighbors", vectors)):
        result = closed("<&-", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert re.fullmatch(
            r"error: expected .* standard input; got one that is closed\n", result.stderr
        )
    assert not list(tmp_path.iterdir())


def test_an_empty_output_name_is_not_the_current_folder(vecsmith, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = vecsmith("word2vec", text, "-o", "")
    assert result.code == 2
    assert "got an empty one" in result.err
    assert list(tmp_path.iterdir()) == []
