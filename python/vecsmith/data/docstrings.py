"""Real English that every Python machine has: the docstrings of the standard library and of the
installed packages, some three million words about code.

The source files are parsed with :mod:`ast`; nothing is imported or executed. This module imports
the standard library alone, so that it can also run as a script: :func:`docstring_sentences` hands
the files to a few such processes.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# Tests, caches, and the fixtures of tests: little prose, much repetition.
_SKIPPED_FOLDERS = {
    *("__pycache__", "test", "tests", "testing", "idle_test", "_testing", "lib2to3"),
    *("_internal", "_vendor", "node_modules"),
}
# Functions that attach a docstring to something written in C: add_docstr(thing, "...").
_ATTACHING = {"add_docstr", "_add_docstr", "add_newdoc", "_add_newdoc", "add_newdoc_ufunc"}

_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?[0-9]*")
# fooBar, HTTPServer: between a lower and an upper letter, and before the last capital of a run.
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)`'\"][.!?])\s+(?=[A-Z`'\"(*:])|(?<=[.:])\s*\n\s*\n")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.\.|\.\. |[-=~^*#+|`.\s]+$)")


def docstring_sentences(
    paths: Iterable[str | os.PathLike[str]] | None = None, *, workers: int | None = None
) -> Iterator[list[str]]:
    """The sentences of the docstrings of Python source files, each a list of words.

    Words are lower case. Identifiers come apart where people read them apart: ``os.path`` gives
    "os", "path", ``read_csv`` gives "read", "csv", ``ValueError`` gives "value", "error" (but
    ``NumPy`` stays one word). Doctest lines and rules are left out, and a paragraph that was seen
    before (inherited, vendored, copied) is not given again. Files are taken in sorted order, so the
    same files give the same sentences.

    Args:
        paths: files and folders. None: the standard library and the installed packages of this
            Python. Folders of tests are skipped, but not one that is itself in ``paths``.
        workers: processes (default: the number of processors this process may use, at most 8).

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if workers < 1.
    """
    if workers is None:
        workers = min(8, _processors())
    if workers < 1:
        raise ValueError(f"expected workers >= 1; got {workers}")
    files = source_files(_installed() if paths is None else paths)
    seen: set[bytes] = set()
    for paragraph in _paragraphs_of(files, workers):
        # A tab ends a sentence; see _paragraphs.
        digest = hashlib.blake2b(paragraph.encode(), digest_size=8).digest()
        if digest not in seen:
            seen.add(digest)
            for sentence in paragraph.split("\t"):
                yield sentence.split(" ")


def source_files(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The Python files under ``paths``, sorted within each, without tests.

    Raises: FileNotFoundError if a path does not exist.
    """
    found: dict[str, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"expected a file or folder of Python sources; got {path}")
        if path.is_file():
            found[str(path)] = None
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(
                name
                for name in folders
                if name not in _SKIPPED_FOLDERS and not name.startswith(".")
            )
            # site-packages lies inside of the standard library's folder; it is a path of its own.
            if "site-packages" in folders:
                folders.remove("site-packages")
            for name in sorted(names):
                if name.endswith(".py") and not name.startswith(("test_", "conftest")):
                    found[os.path.join(folder, name)] = None
    return list(found)


def sentences_of(docstring: str) -> Iterator[list[list[str]]]:
    """The paragraphs of one docstring: lists of sentences, which are lists of words."""
    prose = "\n".join(
        "" if _NOT_PROSE.match(line) else line for line in docstring.expandtabs().splitlines()
    )
    for paragraph in _PARAGRAPH.split(prose):
        sentences = [words for s in _SENTENCE_END.split(paragraph) if (words := _words(s))]
        if sentences:
            yield sentences


def _words(text: str) -> list[str]:
    words: list[str] = []
    for match in _WORD.finditer(text):
        word = match[0]
        if not (word.islower() or word.istitle() or word.isupper()):
            humps = _HUMPS.split(word)
            # NumPy, PyTorch and OpenMP are names; DataFrame and ValueError are two words.
            if all(len(hump) > 2 for hump in humps):
                words.extend(hump.lower() for hump in humps)
                continue
        words.append(word.lower())
    return words


def _docstrings(tree: ast.AST) -> Iterator[str]:
    """Docstrings of modules, classes and functions, and those attached by a call."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for position, child in enumerate(body):
            if isinstance(child, ast.Expr):
                value = child.value
                if position == 0 and isinstance(value, ast.Constant):
                    if isinstance(value.value, str):
                        yield value.value
                elif isinstance(value, ast.Call):
                    yield from _attached(value)
        for field in ("body", "orelse", "finalbody"):
            # Functions inside of functions are documented too seldom to look for them.
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                pending.extend(reversed(getattr(node, field, ())))


def _attached(call: ast.Call) -> Iterator[str]:
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
    if name in _ATTACHING:
        for argument in call.args[1:]:
            inner = argument
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute):
                inner = inner.func.value  # "...".format(...)
            for part in inner.elts if isinstance(inner, ast.Tuple) else (inner,):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def _paragraphs(file: str) -> Iterator[str]:
    """The paragraphs of one source file: words joined by spaces, sentences by tabs."""
    with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        source = Path(file).read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
        for docstring in _docstrings(tree):
            for paragraph in sentences_of(docstring):
                yield "\t".join(" ".join(words) for words in paragraph)


def _paragraphs_of(files: Sequence[str], workers: int) -> Iterator[str]:
    """Paragraphs in the order of the files, parsed by other processes where it pays."""
    if workers == 1 or len(files) < 64:
        for file in files:
            yield from _paragraphs(file)
        return
    # Each process takes every n-th file; a line is one file, its paragraphs parted by \x1e.
    processes = [_Process(files[i::workers]) for i in range(workers)]
    try:
        for i in range(len(files)):
            line = processes[i % workers].line()
            if line:
                yield from line.split("\x1e")
    finally:
        for process in processes:
            process.close()


class _Process:
    """Another Python that runs this file as a script on a share of the files."""

    def __init__(self, files: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
        )
        # Its own thread, because a full pipe one way must not stop the other.
        self._feeder = threading.Thread(target=self._feed, args=("\0".join(files),), daemon=True)
        self._feeder.start()

    def _feed(self, text: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(text)

    def line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise RuntimeError("a process that parses docstrings ended early")
        return line[:-1]

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()
        self._feeder.join()


def _installed() -> list[str]:
    paths = sysconfig.get_paths()
    names = ("stdlib", "purelib", "platlib")
    return list(dict.fromkeys(p for n in names if os.path.isdir(p := paths[n])))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _main() -> None:
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for file in filter(None, sys.stdin.read().split("\0")):
        sys.stdout.write("\x1e".join(_paragraphs(file)) + "\n")


if __name__ == "__main__":
    _main()
