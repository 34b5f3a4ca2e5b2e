"""word2vec's text and binary files: both ways, against gensim, and damaged in every way."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vecsmith import KeyedVectors, _native, io
from vecsmith.io.word2vec_format import load_counts

Gensim = pytest.importorskip("gensim").models.KeyedVectors

WORDS = ["the", "naïve", "日本語", "a\u00a0b", "x" * 300, "</s>", "#", "0.5", "É"]
EXTREME = [0.0, -0.0, 1e-45, 1.1754944e-38, 3.4028235e38, -1e-5, 0.1, 1 / 3, 123456.79]


def sample(rows: int = len(WORDS), dim: int = 7, stride: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + dim)
    table = torch.randn(rows, stride or dim, generator=generator)[:, :dim]
    flat = torch.tensor(EXTREME)
    table[0, : min(dim, len(flat))] = flat[:dim]
    return table


def names(rows: int) -> list[str]:
    return (WORDS + [f"w{i}" for i in range(rows)])[:rows]


def gensim_of(words: list[str], table: torch.Tensor, counts: list[int] | None = None) -> Gensim:
    kv = Gensim(table.shape[1])
    kv.add_vectors(words, table.numpy())
    for word, count in zip(words, counts or [], strict=False):
        kv.set_vecattr(word, "count", count)
    return kv


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    first, second = np.ascontiguousarray(first), np.ascontiguousarray(second)
    return first.dtype == second.dtype == np.float32 and np.array_equal(
        first.view(np.int32), second.view(np.int32)
    )


# --- both ways, against gensim --------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("rows", "dim", "stride"), [(1, 1, 1), (9, 7, 7), (500, 33, 48)])
def test_round_trip_and_gensim(tmp_path, binary, suffix, rows, dim, stride):
    words, table = names(rows), sample(rows, dim, stride)
    ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    io.save_word2vec_format(ours, words, table, binary=binary)
    gensim_of(words, table).save_word2vec_format(str(theirs), binary=binary)
    for path in (ours, theirs):
        read, vectors = io.load_word2vec_format(path, binary=binary)
        assert read == words
        assert same_bits(vectors.numpy(), table.numpy())
        other = Gensim.load_word2vec_format(str(path), binary=binary)
        assert other.index_to_key == words
        assert same_bits(other.vectors, table.numpy())
    if binary and not suffix:
        assert ours.read_bytes() == theirs.read_bytes()
    assert io.load_word2vec_format(ours, binary=None)[0] == words


@pytest.mark.parametrize("binary", [False, True])
def test_keyed_vectors_write_counts_and_order_as_gensim(tmp_path, binary):
    table, counts = sample(), [3, 9, 3, 1, 5, 9, 0, 2, 2]
    ours = KeyedVectors(WORDS, table, counts)
    theirs = gensim_of(WORDS, table, counts)
    for kv, name in ((ours, "ours"), (theirs, "theirs")):
        kv.save_word2vec_format(
            str(tmp_path / name), fvocab=str(tmp_path / f"{name}.vocab"), binary=binary, prefix="*"
        )
    assert (tmp_path / "ours.vocab").read_bytes() == (tmp_path / "theirs.vocab").read_bytes()
    if binary:
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    again = KeyedVectors.load_word2vec_format(
        tmp_path / "theirs", fvocab=tmp_path / "theirs.vocab", binary=binary
    )
    other = Gensim.load_word2vec_format(str(tmp_path / "ours"), binary=binary)
    assert again.index_to_key == other.index_to_key
    assert again.index_to_key[:3] == ["*naïve", "*</s>", "*" + "x" * 300]
    assert same_bits(again.vectors, other.vectors)
    assert [again.get_vecattr(word, "count") for word in again.index_to_key] == sorted(counts)[::-1]
    # Without a vocabulary file gensim makes counts up.
    plain = KeyedVectors.load_word2vec_format(tmp_path / "ours", binary=binary)
    for word in plain.index_to_key:
        assert plain.get_vecattr(word, "count") == other.get_vecattr(word, "count")


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("threads", [1, 3])
def test_large_files_in_pieces(tmp_path, suffix, threads, monkeypatch):
    from vecsmith.io import word2vec_format

    # Small chunks and blocks: records are cut everywhere, the table grows often.
    monkeypatch.setattr(word2vec_format, "_CHUNK", 5_000)
    monkeypatch.setattr(word2vec_format, "_BLOCK_BYTES", 3_000)
    words, table = names(700), sample(700, 50)
    for binary in (False, True):
        path = tmp_path / f"v{suffix}"
        io.save_word2vec_format(path, words, table, binary=binary, num_threads=threads)
        read, vectors = io.load_word2vec_format(path, binary=binary, num_threads=threads)
        assert read == words
        assert same_bits(vectors.numpy(), table.numpy())
        read, vectors = io.load_word2vec_format(path, binary=binary, limit=321)
        assert read == words[:321]
        assert same_bits(vectors.numpy(), table[:321].numpy())


def test_newlines_around_binary_records(tmp_path):
    table = sample(9, 7)
    path = tmp_path / "v.bin"
    for before, after in ((b"", b"\n"), (b"\n", b""), (b"", b""), (b"\n\n", b"\n")):
        records = b"".join(
            before + word.encode() + b" " + row.tobytes() + after
            for word, row in zip(WORDS, table.numpy(), strict=True)
        )
        path.write_bytes(b"9 7\n" + records)
        words, vectors = io.load_word2vec_format(path, binary=True)
        assert words == WORDS
        assert same_bits(vectors.numpy(), table.numpy())


def test_forms_of_text(tmp_path):
    path = tmp_path / "v.txt"

    def load(text: str, **more: object) -> tuple[list[str], list[list[float]]]:
        path.write_bytes(text.encode())
        words, vectors = io.load_word2vec_format(path, **more)
        return words, vectors.tolist()

    expected = (["a", "b"], [[1.0, -0.5], [0.25, 2e3]])
    assert load("2 2\na 1 -0.5\nb 0.25 2e3\n") == expected
    assert load("2 2\na 1 -0.5 \nb 0.25 2e3") == expected  # word2vec.c ends lines with a blank
    assert load("2 2\r\na 1 -0.5\r\nb 0.25 2e3\r\n") == expected
    assert load("2 2\na\t1\t-0.5\nb  0.25   +2000.0\n\n \n") == expected
    assert load("a 1 -0.5\nb 0.25 2e3\n", no_header=True) == expected
    assert load("a 1 -0.5\nb 0.25 2e3\nc 0 0", no_header=True, limit=2) == expected
    assert load("3 2\na 1 -0.5\nb 0.25 2e3\nc garbage", limit=2) == expected
    # Words with blanks: the last two fields are the numbers.
    assert load("2 2\nx 1 2\nnew  york 1 2\n")[0] == ["x", "new  york"]
    assert load("2 2\nx 1 2\nboeing 747 1 2\n")[0] == ["x", "boeing 747"]
    assert load("2 2\nx 1 2\n. . . 1 2\n")[0] == ["x", ". . ."]
    assert load("1 2\n 1 2\n")[0] == [""]
    assert load("0 5\n") == ([], [])
    assert load("1 3\na 1e-60 1e-40 123456789012345678901234567890\n")[1] == [
        [0.0, float(np.float32(1e-40)), float(np.float32(123456789012345678901234567890.0))]
    ]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_text_numbers_round_trip(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("text") / "v.txt"
    table = torch.tensor([values])
    io.save_word2vec_format(path, ["w"], table)
    assert same_bits(io.load_word2vec_format(path)[1].numpy(), table.numpy())
    fields = path.read_text().split()[3:]
    assert [np.float32(field) for field in fields] == values  # as another reader sees them
    # The shortest digits: no longer than NumPy's shortest, which may write zeros out.
    for field, value in zip(fields, values, strict=True):
        assert len(field) <= len(str(np.float32(value)))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_is_skipped(tmp_path, suffix):
    mark, body = b"\xef\xbb\xbf", b"a 1 2\nb 3 4\n"

    def load(data: bytes, **options) -> list[str]:
        path = tmp_path / f"file{suffix}"
        path.write_bytes(gzip.compress(data) if suffix else data)
        words, table = io.load_word2vec_format(path, **options)
        assert table.tolist() == [[1, 2], [3, 4]]
        return words

    assert load(mark + b"2 2\n" + body) == ["a", "b"]
    assert load(mark + body, no_header=True) == ["a", "b"]
    assert load(mark + b" 1 2\nb 3 4", no_header=True) == ["\ufeff", "b"]  # a word of its own
    (tmp_path / "counts").write_bytes(mark + b"a 7\nb 5\n")
    assert load_counts(tmp_path / "counts") == {"a": 7, "b": 5}


# gensim leaves a file open when it reads this format.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_writing_a_glove_file(tmp_path):
    io.save_word2vec_format(tmp_path / "g", ["a", "b"], torch.ones(2, 2), write_header=False)
    assert (tmp_path / "g").read_text() == "a 1 1\nb 1 1\n"
    assert Gensim.load_word2vec_format(str(tmp_path / "g"), no_header=True).index_to_key[1] == "b"
    assert KeyedVectors.load_word2vec_format(tmp_path / "g", no_header=True).vector_size == 2


def test_duplicates_keep_the_first_as_gensim(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("6 1\na 1\nb 2\na 3\nc 4\nb 5\nd 6\n")
    other = Gensim.load_word2vec_format(str(path))
    with pytest.warns(UserWarning, match="2 duplicate words.*'a', 'b'"):
        kv = KeyedVectors.load_word2vec_format(path)
    assert kv.index_to_key == ["a", "b", "c", "d"]
    assert kv.vectors.tolist() == [[1], [2], [4], [6]]
    # gensim keeps empty slots at the end.
    assert kv.key_to_index == other.key_to_index
    assert other.vectors[:4].tolist() == kv.vectors.tolist()
    assert [kv.get_vecattr(word, "count") for word in kv.index_to_key] == [4, 3, 2, 1]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_many_duplicates_are_closed_up_in_blocks(tmp_path, suffix, monkeypatch):
    from vecsmith.io import word2vec_format

    monkeypatch.setattr(word2vec_format, "_BLOCK_BYTES", 400)
    path = tmp_path / f"v{suffix}"
    table = sample(1000, 10)
    words = [f"w{i % 700 if i % 3 else i}" for i in range(1000)]
    text = "".join(
        f"{word} {' '.join(map(str, row.tolist()))}\n"
        for word, row in zip(words, table, strict=True)
    )
    with io.atomic_file(path) as file:
        data = f"1000 10\n{text}".encode()
        file.write(gzip.compress(data) if suffix else data)
    with pytest.warns(UserWarning, match="duplicate words"):
        read, vectors = io.load_word2vec_format(path)
    first = {word: row for row, word in reversed(list(enumerate(words)))}
    assert read == sorted(first, key=first.__getitem__)
    assert same_bits(vectors.numpy(), table.numpy()[sorted(first.values())])


def test_words_that_do_not_decode(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(b"2 1\nok 1\ncaf\xe9 2\n")
    with pytest.raises(UnicodeDecodeError, match=r"row 1 of .*v\.txt.*unicode_errors"):
        io.load_word2vec_format(path)
    for errors in ("replace", "ignore"):
        other = Gensim.load_word2vec_format(str(path), unicode_errors=errors)
        assert io.load_word2vec_format(path, unicode_errors=errors)[0] == other.index_to_key
    assert io.load_word2vec_format(path, encoding="latin1")[0] == ["ok", "café"]
    with pytest.raises(LookupError):
        io.load_word2vec_format(path, encoding="nonsense")
    with pytest.raises(LookupError):
        io.load_word2vec_format(path, unicode_errors="nonsense")


# --- what is refused ------------------------------------------------------------------------------


def binary_file(header: bytes, *records: tuple[bytes, list[float]]) -> bytes:
    return header + b"".join(
        word + b" " + np.array(row, dtype="<f4").tobytes() for word, row in records
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "binary", "match"),
    [
        (b"", False, "empty file"),
        (b"\n", False, "expected a header"),
        (b"2\n", False, "expected a header"),
        (b"2 2", False, "expected a header"),
        (b"a 1 2\n", False, "expected a header"),
        (b"-1 2\n", False, "expected a header"),
        (b"9999999999999999999999 2\n", False, "expected a header"),
        (b"x" * 1000, False, "expected a header"),
        (b"2 0\na\nb\n", False, "dimensions, got 0"),
        (b"2 99999999\na 1\nb 1\n", False, "dimensions, got 99999999"),
        (b"3 2\na 1 2\nb 1 2\n", False, "truncated: the header promises 3"),
        (b"2 2\na 1 2\nb 1", False, "truncated|line 3: fewer"),
        (b"2 2\na 1 2\nb 1\nb 2 3\n", False, "line 3: fewer numbers"),
        (b"2 2\na 1 2\nb 1 x\n", False, "line 3: a field is no number"),
        (b"2 2\na 1 2\nb 1 2x\n", False, "line 3: a field is no number"),
        (b"2 2\na 1 2\nb 1 0x10\n", False, "line 3: a field is no number"),
        (b"2 2\na 1 2\nb 1 +-2\n", False, "line 3: a field is no number"),
        (b"2 2\na 1 2\nb 1 1_0\n", False, "line 3: a field is no number"),
        (b"1 2\na 1 2\nb 1 2\n", False, r"expected 1 vectors .*limit=1"),
        (b"2 2\na 1 2 3\nb 1 2 3\n", False, "expected 2 numbers in a line, got more"),
        (b"2 2\na nan 2\nb 1 2\n", False, r"vector of 'a' \(row 0\) holds nan"),
        (b"2 2\na 1 2\nb 1 -inf\n", False, r"vector of 'b' \(row 1\) holds nan"),
        (b"2 2\na 1 2\nb 1 1e999\n", False, r"vector of 'b' \(row 1\) holds nan"),
        (b"1000000000000 100\na 1\n", False, "truncated|line 2: fewer"),
        (b"1000000000000 100\na 1\n", True, "truncated"),
        (b"2 1000000\na 1\n", True, "truncated"),
        (binary_file(b"2 2\n", (b"a", [1, 2])), True, "truncated"),
        (binary_file(b"2 2\n", (b"a", [1, 2]), (b"b", [3, 4]))[:-1], True, "truncated"),
        (binary_file(b"1 2\n", (b"a", [1, 2]), (b"b", [3, 4])), True, "expected 1 vectors"),
        (binary_file(b"2 1\n", (b"a", [1, 2]), (b"b", [3, 4])), True, "expected 2 vectors"),
        (binary_file(b"2 2\n", (b"a", [1, 2]), (b"b", [3, np.nan])), True, r"'b' \(row 1\)"),
        (binary_file(b"2 2\n", (b"a", [-np.inf, 2]), (b"b", [3, 4])), True, r"'a' \(row 0\)"),
        (b"1 2\n" + b"x" * 2_000_000, True, "no space|no vector ends|truncated"),
        (b"2 2\na 1 2\nb 1 2\n", True, "truncated|expected 2 vectors"),
        (binary_file(b"2 2\n", (b"a", [1, 2]), (b"b", [3, 4])), False, "line|truncated"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, binary, match, packed):
    path = tmp_path / ("v.gz" if packed else "v")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=match) as caught:
        KeyedVectors.load_word2vec_format(path, binary=binary)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_damaged_compression_is_refused(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    io.save_word2vec_format(path, names(200), sample(200, 20))
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"not compressed at all", whole[:300] + b"\0" * 500):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            io.load_word2vec_format(path)


def test_nonfinite_vectors_on_request(tmp_path):
    path = tmp_path / "v"
    path.write_bytes(binary_file(b"1 3\n", (b"a", [1, np.nan, -np.inf])))
    _, vectors = io.load_word2vec_format(path, binary=True, allow_nonfinite=True)
    assert np.array_equal(vectors.numpy(), [[1, np.nan, -np.inf]], equal_nan=True)
    path.write_text("1 3\na 1 NaN -Infinity\n")
    kv = KeyedVectors.load_word2vec_format(path, allow_nonfinite=True)
    assert np.array_equal(kv.vectors, [[1, np.nan, -np.inf]], equal_nan=True)


def test_arguments_are_checked(tmp_path):
    path = tmp_path / "v"
    path.write_text("1 1\na 1\n")
    for wrong in ({"limit": 0}, {"num_threads": 0}, {"no_header": True, "binary": True}):
        with pytest.raises(ValueError, match="expected"):
            io.load_word2vec_format(path, **wrong)
    with pytest.raises(FileNotFoundError):
        io.load_word2vec_format(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        io.load_word2vec_format(tmp_path)
    (tmp_path / "vocab").write_text("a one\n")
    with pytest.raises(ValueError, match="line 1: expected 'word count'"):
        KeyedVectors.load_word2vec_format(path, fvocab=tmp_path / "vocab")
    (tmp_path / "vocab").write_text("b 1\n")
    with pytest.warns(UserWarning, match="no count for 1 words"):
        KeyedVectors.load_word2vec_format(path, fvocab=tmp_path / "vocab")


@pytest.mark.parametrize(
    "word", ["new york", "tab\tbed", "line\nfeed", "cr\r", "v\v", "", "\ud800"]
)
def test_words_that_the_format_cannot_hold_are_refused_before_writing(tmp_path, word):
    path = tmp_path / "v"
    path.write_text("old")
    for binary in (False, True):
        with pytest.raises(ValueError, match=r"expected words that are Unicode|cannot hold"):
            io.save_word2vec_format(path, ["fine", word], torch.ones(2, 2), binary=binary)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["v"]


def test_bad_tables_are_refused_before_writing(tmp_path):
    path = tmp_path / "v"
    path.write_text("old")
    table = torch.ones(2, 2)
    table[1, 0] = torch.nan
    for wrong, match in (
        (table, "'b'.*row 1"),
        (torch.ones(3, 2), "for 2 words"),
        (torch.ones(2, 2, dtype=torch.float64), "float32"),
        (torch.ones(2), "float32 vectors"),
    ):
        with pytest.raises(ValueError, match=match):
            io.save_word2vec_format(path, ["a", "b"], wrong)
    with pytest.raises(ValueError, match="header"):
        io.save_word2vec_format(path, ["a", "b"], torch.ones(2, 2), binary=True, write_header=False)
    with pytest.raises(ValueError, match="white space"):
        KeyedVectors(["a"], torch.ones(1, 1)).save_word2vec_format(path, prefix="my ")
    with pytest.raises(ValueError, match="attribute 'count'"):
        KeyedVectors(["a"], torch.ones(1, 1)).save_word2vec_format(path, fvocab=tmp_path / "f")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["v"]


def test_an_absurd_header_allocates_nothing(tmp_path):
    """With an address space of a few GB, a header of terabytes must be refused, not tried."""
    script = """
        import sys, gzip
        import numpy as np, torch
        from vecsmith import io
        import resource
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)
        for suffix, opened in (("", open), (".gz", gzip.open)):
            for binary in (False, True):
                for header in (b"1000000000000 300\\n", b"999999999999999999 1000000\\n"):
                    path = f"{sys.argv[1]}/v{suffix}"
                    with opened(path, "wb") as file:
                        file.write(header + b"a " + b"0.5 " * 300)
                    try:
                        io.load_word2vec_format(path, binary=binary)
                    except ValueError as error:
                        print("refused", error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert out.count("refused") == 8


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "v"
    path.write_text("old")
    script = """
        import resource, sys, torch
        from vecsmith import KeyedVectors
        kv = KeyedVectors([f"w{i}" for i in range(2000)], torch.ones(2000, 50))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            kv.save_word2vec_format(sys.argv[1], binary=True)
        except OSError as error:
            print(error)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "limit reached while writing" in out
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["v"]


def test_a_pipe_is_read_as_a_stream(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    script = "import sys; open(sys.argv[1], 'wb').write(b'2 2\\na 1 2\\nb 3 4\\n')"
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
    words, vectors = io.load_word2vec_format(path)
    assert writer.wait(60) == 0
    assert words == ["a", "b"]
    assert vectors.tolist() == [[1, 2], [3, 4]]


# --- fuzzing --------------------------------------------------------------------------------------

VALID_TEXT = b"3 2\nthe 0.5 -1e-3\nof 1 2\n\xe6\x97\xa5 3 4\n"
VALID_BINARY = binary_file(
    b"3 2\n", (b"the", [0.5, -1]), (b"of", [1, 2]), (b"\xe6\x97\xa5", [3, 4])
)


def load_or_refuse(folder, content: bytes, binary: bool | None, packed: bool) -> None:
    path = folder / ("v.gz" if packed else "v")
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    for limit in (None, 1):
        try:
            words, vectors = io.load_word2vec_format(path, binary=binary, limit=limit)
        except ValueError:
            continue
        assert len(words) == len(vectors)
        assert len(set(words)) == len(words)
        assert torch.isfinite(vectors).all()
        assert vectors.numel() <= len(content)


@pytest.mark.filterwarnings("ignore:.*duplicate words")
@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=80), st.sampled_from([False, True, None]), st.booleans())
@example(b"1 1\n \n", False, False)
@example(b"1 1\n" + b"\n" * 70, True, True)
def test_random_bytes_load_or_are_refused(tmp_path_factory, content, binary, packed):
    load_or_refuse(tmp_path_factory.mktemp("fuzz"), content, binary, packed)
    load_or_refuse(tmp_path_factory.mktemp("fuzz"), b"2 1\n" + content, binary, packed)


@pytest.mark.filterwarnings("ignore:.*duplicate words")
@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([VALID_TEXT, VALID_BINARY]),
    st.lists(st.tuples(st.integers(0, 45), st.integers(0, 6), st.binary(max_size=6)), max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_mutated_files_load_or_are_refused(tmp_path_factory, valid, edits, flip, packed):
    content = bytearray(valid)
    for at, width, patch in edits:
        content[at : at + width] = patch
    binary = (valid is VALID_BINARY) != flip
    load_or_refuse(tmp_path_factory.mktemp("fuzz"), bytes(content), binary, packed)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60), st.integers(0, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_the_native_parser_stays_in_bounds(content, rows, dim, binary, last):
    guard = np.full((rows + 2, dim + 2), 7.0, dtype=np.float32)
    table = guard[1 : rows + 1, 1 : dim + 1]
    parsed = _native.word2vec_parse(content, 0, table, binary, last, 2)
    assert 0 <= parsed["consumed"] <= len(content)
    assert 0 <= parsed["rows"] <= rows
    guard[1 : rows + 1, 1 : dim + 1] = 7.0
    assert (guard == 7.0).all()
    if not parsed["error"]:
        for start, length in zip(parsed["starts"], parsed["lengths"], strict=True):
            assert 0 <= start <= start + length <= parsed["consumed"]


def test_the_binding_checks_what_it_is_given():
    table = np.zeros((2, 3), dtype=np.float32)
    for wrong in (table.astype(np.float64), table[0], np.zeros((2, 3), np.int32)):
        with pytest.raises(TypeError):
            _native.word2vec_parse(b"", 0, wrong, True, True, 1)
    for wrong in (table[:, ::2], table[::-1], np.zeros((2, 0), np.float32)):
        with pytest.raises(ValueError, match="adjacent"):
            _native.word2vec_parse(b"", 0, wrong, True, True, 1)
    frozen = table.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="written"):
        _native.word2vec_parse(b"", 0, frozen, True, True, 1)
    with pytest.raises(ValueError, match="num_threads"):
        _native.word2vec_parse(b"", 0, table, True, True, 0)
    with pytest.raises(IndexError):
        _native.word2vec_parse(b"", 1, table, True, True, 1)
    with pytest.raises(TypeError):
        _native.word2vec_parse(table, 0, table, True, True, 1)
    ids = np.array([0], dtype=np.int64)
    for start, length in ((-1, 1), (0, -1), (3, 1), (0, 4)):
        with pytest.raises(IndexError):
            _native.word2vec_decode(b"abc", 0, ids + start, ids + length, "utf8", "strict", [])
    with pytest.raises(IndexError):
        _native.word2vec_format(table, b"ab", np.array([0, 1, 2]), np.array([2]), True, 1)
    for offsets in ([0, 1], [0, 2, 1], [0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match="offset"):
            _native.word2vec_format(table, b"ab", np.array(offsets), np.array([0]), True, 1)
