"""The Python of the documentation runs as it stands, page by page, on small files of the kinds that
the pages name; and its links lead somewhere."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import vecsmith
from test_house import tool

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Sentences are the reader's, and word vectors take a real text; graphs need a GPU.
SKIPPED = {"sentences.md", "cuda-graphs.md"}


def python_blocks(text: str) -> list[tuple[int, str]]:
    """(line, code) of each fenced block of Python that is ours: not under a tab of another name
    than "vecsmith...", for code of others stands under theirs."""
    blocks, tab = [], ""
    lines = text.splitlines()
    n = 0
    while n < len(lines):
        if found := re.match(r'=== "(.*)"', lines[n]):
            tab = found[1]
        elif lines[n] and not lines[n].startswith(" "):
            tab = ""
        if found := re.match(r"( *)```python$", lines[n]):
            end = next(k for k in range(n + 1, len(lines)) if lines[k] == f"{found[1]}```")
            if not tab or tab.startswith("vecsmith"):
                blocks.append((n + 2, textwrap.dedent("\n".join(lines[n + 1 : end]))))
            n = end
        n += 1
    return blocks


PAGES = [
    path
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    if path.name not in SKIPPED and python_blocks(path.read_text(encoding="utf-8"))
]


def write_examples(folder: Path) -> None:
    """The texts, ratings and sentences that pages name."""
    random = np.random.default_rng(0)
    words = [
        "king",
        "queen",
        "man",
        "woman",
        "breakfast",
        "cereal",
        "dinner",
        "lunch",
        "car",
        "ship",
    ]
    lines = [" ".join(random.choice(words, 8)) + "\n" for _ in range(200)]
    (folder / "corpus.txt").write_text("".join(lines))
    (folder / "more.txt").write_text("".join(lines[:50]))
    (folder / "wordsim353.tsv").write_text("king\tqueen\t8.5\nman\twoman\t8\ncar\tlunch\t1\n")
    (folder / "questions-words.txt").write_text(": family\nman woman king queen\n")
    stars = [(u, (u * u + 3 * n) % 31, 1 + (u + n) % 5) for u in range(40) for n in range(12)]
    rows = [f"{user},{item},{star}\n" for user, item, star in stars]
    (folder / "ratings.csv").write_text("userId,movieId,rating\n" + "".join(rows))
    (folder / "ratings.dat").write_text("".join(rows).replace(",", "::"))
    captions = [
        f"{who} {does} {where}.\n"
        for who in ("Two dogs", "A man", "A woman")
        for does in ("run", "read", "sleep")
        for where in ("on the beach", "at home")
    ]
    (folder / "captions.txt").write_text("".join(captions))


@pytest.fixture
def settings():
    """What a page may set for the whole process is as it was behind it."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    write_examples(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in python_blocks(page.read_text(encoding="utf-8")):
        # Lines of a failure are those of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


def test_what_the_page_of_graphs_calls_is_there():
    """Its code runs on a GPU alone: here every function of ours has the arguments it is given."""
    called = []
    for _, code in python_blocks((DOCS / "cuda-graphs.md").read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("vecsmith."):
                named = {word.arg: None for word in node.keywords}
                path = ast.unparse(node.func).split(".")[1:]
                inspect.signature(functools.reduce(getattr, path, vecsmith)).bind(
                    *node.args, **named
                )
                called.append(path[-1])
    assert called == ["skipgram", "EmbeddingBag", "apply_optimizer_in_backward"]


def broken_links(page: Path) -> list[str]:
    """Links and pictures of a page that lead to no file of this repository."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    named = [link.split("#")[0] for link in named if not re.match(r"https?:|#", link)]
    return [link for link in named if link and not (page.parent / link).exists()]


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").glob("*.md")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_links_of_a_page_lead_to_files(page):
    assert not broken_links(page)


def test_the_tests_of_pages_see_what_they_must(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "[a](page.md) [b](gone.md#x) [c](https://x.org/gone) `[d](code.md)`\n"
        '=== "gensim"\n\n    ```python\n    theirs()\n    ```\n\n'
        '=== "vecsmith"\n\n    ```python\n    ours()\n    ```\n\n'
        "Text.\n\n```python\nalso_ours()\n```\n```sh\nmake\n```\n"
    )
    assert broken_links(page) == ["gone.md"]
    assert python_blocks(page.read_text()) == [(11, "ours()"), (17, "also_ours()")]


def test_the_check_of_the_site_sees_what_is_fetched_from_elsewhere(tmp_path, capsys):
    check = tool("check_site")
    page = tmp_path / "index.html"
    good = (
        '<a href="https://x.org"></a><link rel="canonical" href="https://x.org"><img src="a.svg">'
    )
    page.write_text(good)
    (tmp_path / "a.css").write_text("p { background: url(a.svg) }")
    assert check.main([str(tmp_path)]) == 0
    for bad in (
        '<script src="https://x.org/a.js"></script>',
        '<img alt="" src="//x.org/a.svg">',
        '<link rel="stylesheet" href="https://x.org/a.css">',
        '<link href="https://x.org/a.css" rel="stylesheet">',
    ):
        page.write_text(good + bad)
        assert check.main([str(tmp_path)]) == 1
        assert "x.org/a" in capsys.readouterr().err
    page.write_text(good)
    (tmp_path / "a.css").write_text("@import url(https://x.org/font.css);")
    assert check.main([str(tmp_path)]) == 1
    page.unlink()
    with pytest.raises(ValueError, match="expected a built site"):
        check.fetched(tmp_path)
