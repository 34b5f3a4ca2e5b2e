"""The five short scripts of examples/, each as a user would run it, on data so small that it takes
seconds: what they print must show that they work."""

from __future__ import annotations

import os
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sentence_texts import texts

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = (
    *("word_vectors_classifier", "swap_lstm", "recommender", "sentences_there_and_back"),
    "larger_than_memory",
)


def run(name, *arguments, folder, status=0):
    """What a script prints; its complaint where it is to end with another status."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def number(pattern, printed):
    found = re.search(pattern, printed)
    assert found, f"{pattern!r} is not in:\n{printed}"
    return float(found.group(1).replace(",", ""))


def heads(text):
    """The beginnings of lines, without their numbers and names: what a script prints in any run."""
    lines = [re.sub(r"\(.*?\)|[\d,.%]+", " ", line).split() for line in text.splitlines() if line]
    return [words[:3] if ":" not in words[0] else words[:1] for words in lines]


def as_in_the_readme(name, printed):
    """Whether the output that the README shows is one of this script."""
    section = (EXAMPLES / "README.md").read_text(encoding="utf-8").partition(f"## {name}.py")[2]
    shown = re.findall(r"\n\n((?: {4}.*\n)+)", section.partition("\n## ")[0])[-1]
    return heads(shown) == heads(printed)


def write(path, lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_word_vectors_help_a_classifier(tmp_path):
    # Two topics of a hundred words each and words of both: a few labels name a few words.
    draw, files = random.Random(0), []
    for topic in ("river", "engine"):
        words = [f"{topic}{i}" for i in range(100)]
        both = [f"word{i}" for i in range(100)]
        lines = [draw.choices(words, k=3) + draw.choices(both, k=5) for _ in range(1500)]
        files.append(write(tmp_path / f"{topic}.txt", map(" ".join, lines)))
    sizes = ["--labels", 4, "--test", 200, "--epochs", 5]
    printed = run("word_vectors_classifier", *files, *sizes, folder=tmp_path)
    assert "2,600 texts without labels" in printed
    assert as_in_the_readme("word_vectors_classifier", printed)
    guess = number(r"a guess +([\d.]+)%", printed)
    drawn = number(r"random numbers +([\d.]+)%", printed)
    vectors = number(r"word vectors +([\d.]+)%", printed)
    assert guess == 50
    assert vectors > 90
    assert vectors > drawn + 10


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_swapped_layer_has_the_same_losses(tmp_path, cell):
    text = write(tmp_path / "text.txt", texts(200))
    sizes = ["--hidden", 40, "--steps", 20, "--cell", cell]
    printed = run("swap_lstm", text, *sizes, folder=tmp_path)
    assert "vecsmith.accelerate: embedding: Embedding" in printed
    assert as_in_the_readme("swap_lstm", printed) == (cell == "LSTM")
    assert ("accelerate: rnn: GRU" in printed) == (cell == "GRU")
    assert "torch.nn: torch.nn.modules.rnn; ours: vecsmith.nn" in printed
    rows = re.findall(r"^(torch.nn|vecsmith) +([\d.]+) +([\d.]+) +([\d,]+)$", printed, re.MULTILINE)
    (_, first, last, rate), (_, *others) = rows
    assert float(last) < float(first) - 0.3
    assert [float(x) for x in others[:2]] == pytest.approx([float(first), float(last)], abs=1e-3)
    assert float(rate.replace(",", "")) > 0
    assert number(r"differ by ([\de.-]+) at most", printed) < 1e-4
    assert number(r"vecsmith is ([\d.]+) times as fast", printed) > 0


def test_recommendations_beat_what_is_popular(tmp_path):
    printed = run("recommender", folder=tmp_path)
    assert "recommender/ratings.csv: 36," in printed
    assert as_in_the_readme("recommender", printed)
    popular = number(r"most popular +recall@10 +([\d.]+)%", printed)
    als = number(r"ALS +recall@10 +([\d.]+)%", printed)
    assert als > 1.4 * popular
    line = next(line for line in printed.splitlines() if line.startswith("user 0 likes"))
    genres = set(re.findall(r"\((\w+)\)", line))
    line = next(line for line in printed.splitlines() if line.startswith("and may like"))
    given = re.findall(r"\((\w+)\)", line)
    assert len(given) == 5
    assert sum(genre in genres for genre in given) >= 4


def test_recommendations_from_a_file_of_ones_own(tmp_path):
    draw = random.Random(0)
    cells = [(f"u{u}", i) for u in range(60) for i in range(40) if u % 2 == i % 2]
    kept = [f"{u},{i},{draw.choice((4, 5))}" for u, i in cells if draw.random() < 0.6]
    ratings = write(tmp_path / "mine.csv", ["userId,movieId,rating", *kept, "u1,0,1"])
    titles = write(
        tmp_path / "movies.csv", ["movieId,title", *(f"{i},Film {i}" for i in range(40))]
    )
    arguments = [ratings, "--titles", titles, "--user", "u7", "--factors", 4]
    printed = run("recommender", *arguments, folder=tmp_path)
    line = next(line for line in printed.splitlines() if line.startswith("and may like"))
    assert all(int(i) % 2 for i in re.findall(r"Film (\d+)", line))
    assert "no user 'bob'" in run(
        "recommender", ratings, "--user", "bob", folder=tmp_path, status=2
    )


def test_sentences_come_back(tmp_path):
    text = write(tmp_path / "text.txt", texts(800))
    printed = run("sentences_there_and_back", text, "--test", 40, folder=tmp_path)
    assert printed.count("as it was") >= 2
    figures = printed.partition("vectors  ")[2].partition("another:")[0]
    assert len(heads(figures)) == 7
    for line in figures.splitlines():
        assert re.sub(r"[\d.]+%.*", "", line).strip() in (EXAMPLES / "README.md").read_text()
    assert number(r"of other sentences +([\d.]+)%", printed) < 10
    assert number(r"as they are +([\d.]+)%", printed) > 95
    assert number(r"in bfloat16 +([\d.]+)%", printed) > 95
    noisy = number(r"with 40 % noise +([\d.]+)%", printed)
    assert noisy <= number(r"with 5 % noise +([\d.]+)%", printed)
    assert len(printed.partition("to another:\n")[2].splitlines()) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_a_table_larger_than_its_memory_learns(tmp_path):
    sizes = ["--rows", 3e5, "--cache", 1e4, "--memory", 64, "--steps", 40, "--folder", tmp_path]
    printed = run("larger_than_memory", *sizes, folder=tmp_path)
    assert "73 MB of rows do not fit into 64 MB" in printed
    assert as_in_the_readme("larger_than_memory", printed)
    assert number(r"memory of its own: ([\d,]+) MB", printed) < 40
    assert number(r"batch     0: +([\d.]+)%", printed) == pytest.approx(50, abs=5)
    assert number(r"batch    39: +([\d.]+)%", printed) > 60
    assert number(r"read again: ([\d.]+)%", printed) > 99
    assert list(tmp_path.iterdir()) == []


BAD = [
    ("word_vectors_classifier", ["one.txt"], "a file for each of two classes"),
    ("word_vectors_classifier", ["a.txt", "b.txt"], "expected a file of texts; got a.txt"),
    ("word_vectors_classifier", ["a.txt", "a.txt"], "a file for each of two classes"),
    ("swap_lstm", ["nothing.txt"], "expected a text file; got nothing.txt"),
    ("swap_lstm", ["--steps", "0"], "--steps of at least 1"),
    ("recommender", ["nothing.csv"], "nothing.csv"),
    ("sentences_there_and_back", ["nothing.txt"], "expected a text file; got nothing.txt"),
    ("sentences_there_and_back", ["--test", "1"], "--test of 2"),
    ("larger_than_memory", ["--cache", "1e9"], "--rows >= --cache"),
    ("larger_than_memory", ["--rows", "nan"], "expected numbers for --rows"),
    (
        "larger_than_memory",
        ["--memory", "inf"],
        "expected numbers for --rows, --cache and --memory",
    ),
    (
        "larger_than_memory",
        ["--folder", "nowhere"],
        "expected --folder to be a folder; got nowhere",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "complaint"), BAD, ids=lambda value: str(value)[:24])
def test_a_script_says_what_is_wrong(tmp_path, monkeypatch, capsys, name, arguments, complaint):
    """In this process, which has imported torch already: before a script does anything, it ends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_ratings_that_say_nothing(tmp_path):
    dislikes = write(tmp_path / "ratings.csv", ["user,item,rating", "1,2,1", "2,3,2"])
    assert "somebody with several likes" in run("recommender", dislikes, folder=tmp_path, status=2)
    few = ["--folder", tmp_path / "made", "--factors", 0]
    assert "--factors of at least 1" in run("recommender", *few, folder=tmp_path, status=2)
    assert "ratings.csv" in run("recommender", "--folder", dislikes, folder=tmp_path, status=2)


@pytest.mark.parametrize("name", ["swap_lstm", "sentences_there_and_back"])
def test_a_text_that_is_not_utf8(tmp_path, name):
    (tmp_path / "latin.txt").write_bytes("caf\xe9 au lait\n".encode("latin-1") * 3)
    assert "expected at least" in run(name, "latin.txt", folder=tmp_path, status=2)


def test_the_short_scripts_are_short_and_come_first():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    places = [readme.index(f"{name}.py") for name in SHORT]
    assert places == sorted(places)
    others = {path.stem for path in EXAMPLES.glob("*.py")} - set(SHORT)
    assert all(readme.index(f"{name}.py") > places[-1] for name in others)
    for name in SHORT:
        lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 110, name
