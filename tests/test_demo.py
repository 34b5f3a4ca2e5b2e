"""The docstrings as a corpus, and the demonstration on a small slice of them."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from vecsmith import KeyedVectors
from vecsmith.cli import demo
from vecsmith.data import docstring_sentences
from vecsmith.data.docstrings import sentences_of, source_files

STDLIB = Path(sysconfig.get_paths()["stdlib"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Opens os.path files.", "opens os path files"),
        ("Calls read_csv() twice.", "calls read csv twice"),
        ("Raises ValueError and HTTPError.", "raises value error and http error"),
        ("NumPy, PyTorch and OpenMP.", "numpy pytorch and openmp"),
        ("Don't use utf8 or int64!", "don't use utf8 or int64"),
        ("The JSON of a DataFrame.", "the json of a data frame"),
    ],
)
def test_words(text, words):
    assert [s for p in sentences_of(text) for s in p] == [words.split()]


def test_sentences_and_paragraphs():
    text = """Return the list. It is sorted by e.g. size.

    Args:
        key: a function

    >>> f([3])
    [3]
    ----------
    """
    assert list(sentences_of(text)) == [
        [["return", "the", "list"], ["it", "is", "sorted", "by", "e", "g", "size"]],
        [["args", "key", "a", "function"]],
    ]


def test_only_docstrings_and_none_twice(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""About the module."""\n'
        'VALUE = """no docstring"""\n'
        "class A:\n"
        '    """About the class.\n\n    Shared words.\n    """\n'
        "    def method(self):\n"
        '        """About the method."""\n'
        "        raise SystemExit('never run')\n"
        "add_docstr(A, '''About the builtin.''')\n"
        "raise SystemExit('never run')\n"
    )
    (tmp_path / "b.py").write_text('"""Shared words."""\n')
    (tmp_path / "broken.py").write_text('"""About what is broken."""\ndef (:\n')
    (tmp_path / "latin.py").write_bytes(b'"""Bytes \xff without a declaration."""\n')
    (tmp_path / "nul.py").write_bytes(b'"""Nothing."""\0\n')
    for folder in ("tests", "__pycache__", ".hidden"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "c.py").write_text('"""Not wanted."""\n')
    (tmp_path / "test_d.py").write_text('"""Not wanted either."""\n')
    sentences = [" ".join(words) for words in docstring_sentences([tmp_path])]
    assert sorted(sentences) == [
        "about the builtin",
        "about the class",
        "about the method",
        "about the module",
        "shared words",
    ]
    # A folder that was asked for is not skipped for its name.
    assert list(docstring_sentences([tmp_path / "tests"])) == [["not", "wanted"]]
    assert list(docstring_sentences([tmp_path / "test_d.py"])) == [["not", "wanted", "either"]]


def test_processes_give_the_same(tmp_path):
    for i in range(70):
        name = "näme" if i == 3 else "file"
        (tmp_path / f"{name}{i:02}.py").write_text(f'"""Text of number x{i}. More of it."""\n')
    alone, shared = (list(docstring_sentences([tmp_path], workers=n)) for n in (1, 3))
    assert len(alone) == 140
    assert alone == shared


def test_the_standard_library(tmp_path):
    folders = [STDLIB / "json", STDLIB / "email"]
    sentences = list(docstring_sentences(folders))
    words = {word for sentence in sentences for word in sentence}
    assert len(sentences) > 300
    assert {"json", "decoder", "header", "message", "charset"} <= words
    assert all(sentences)
    assert all(word == word.lower() for word in words)
    assert len(source_files([STDLIB / "json"])) >= 5


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(docstring_sentences([tmp_path / "nowhere"]))
    with pytest.raises(ValueError, match="workers >= 1; got 0"):
        list(docstring_sentences([tmp_path], workers=0))
    assert list(docstring_sentences([tmp_path])) == []


def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "REFERENCE_SECONDS", 0.2)
    paths = [STDLIB / "json", STDLIB / "email", STDLIB / "asyncio", STDLIB / "logging"]
    model = demo.demo(tmp_path / "demo", paths, epochs=2, min_count=3, top=40)
    shown = capsys.readouterr().out
    for part in ("docstrings.txt", "words/s", "PyTorch reference", "ratio", "Next:", "map.png"):
        assert part in shown
    assert "   thread " in shown
    folder = tmp_path / "demo"
    assert KeyedVectors.load(folder / "vectors").index_to_key == model.wv.index_to_key
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")
    stamp = (folder / "docstrings.txt").stat().st_mtime_ns
    assert demo.collect(folder / "docstrings.txt", paths) == model.corpus_total_words
    assert (folder / "docstrings.txt").stat().st_mtime_ns == stamp  # found again
    assert demo.collect(folder / "docstrings.txt", paths[:1]) < model.corpus_total_words


def test_demo_as_a_command(tmp_path, capsys):
    assert demo.main(["--folder", str(tmp_path / "demo"), str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: expected a file or folder")


def test_demo_of_one_sentence(tmp_path, capsys):
    (tmp_path / "one.py").write_text('"""One sentence of one module of one package."""\n')
    demo.demo(tmp_path / "demo", [tmp_path / "one.py"], epochs=1, min_count=1)
    assert "ratio" in capsys.readouterr().out
