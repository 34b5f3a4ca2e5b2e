"""Files of interactions that are refused."""

from __future__ import annotations

import bz2
import gzip
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interaction_tables import check_canonical
from rating_files import joined, write
from vecsmith.data import Interactions

BAD_TEXTS = {
    "empty": ("", "got an empty file"),
    "blank": ("\n\n", "got an empty file"),
    "a header alone": ("user,item\n", "got a header alone"),
    "one column": ("12\n13\n", "at least two columns between .* got the line '12'"),
    "a short line": ("1,2,3\n1,3\n", "line 2: expected 3 columns between ',', .* got 2: '1,3'"),
    "a long line": ("1,2,3\n\n1,3,4,5\n", "line 3: expected 3 columns .* got 4"),
    "a short line far down": (
        "".join(f"2,{i},3\n" for i in range(99)) + "1\n",
        "line 100: .* got 1",
    ),
    "no user": ("1,2,3\n,3,4\n", "line 2: expected a key of the user; got an empty field"),
    "no item": ("user,item\n1,2\n3,\n", "line 3: expected a key of the item; got an empty"),
    "a rating of letters": ("1,2,3\n1,3,four\n", "line 2: expected a rating .* got 'four'"),
    "no rating": ("1,2,3\n1,3,\n", "line 2: expected a rating .* got ''"),
    "nan": ("1,2,3\n1,3,nan\n", "line 2: expected a rating that is a finite number .* got 'nan'"),
    "inf": ("1::2::3\n1::3::-inf\n", "line 2: expected a rating .* got '-inf'"),
    "too large": ("1,2,3\n1,3,1e39\n", "line 2: expected a rating .* got '1e39'"),
    "a word for a time": ("1,2,3,4\n1,3,4,noon\n", "line 2: expected a timestamp .* 'noon'"),
    "no time": ("1,2,3,4\n1,3,4,\n", "line 2: expected a timestamp .* got ''"),
    "an open quote": ('1,2,3\n1,"3,4\n', "line 2: expected quotes that close in the line"),
    "an underscore": ("1,2,3\n1,3,1_000\n", "line 2: expected a rating .* got '1_000'"),
    "digits of others": ("1,2,3\n1,3,\uff11\n", "line 2: expected a rating .* got"),
    "an underscore in a time": ("1,2,3,4\n1,3,4,1_0\n", "line 2: expected a timestamp .* '1_0'"),
    "latin-1": ("1,2,3\né,3,4\n".encode("latin-1"), "line 2 is not UTF-8 .* encoding="),
    "latin-1 far down": (
        b"".join(b"a%d,1,1\n" % i for i in range(50)) + b"\xe9,1,1\n",
        "line 51 is not UTF-8",
    ),
    "utf-16": ("1,2,3\n".encode("utf-16"), "looks binary: it holds NUL .*encoding='utf-16'"),
    "binary": (bytes(range(256)), "looks binary"),
    "lists": ("1 2 3\n2 3 4 5\n", "line 2: expected 3 columns .* format='lists'"),
    "0x1f": ("1::2::3\n1::\x1f::3\n", "no control character 0x1f beside the separator '::'"),
    "a pair twice": ("1,2,3\n1,3,3\n1,2,4\n", r"user 1 with item 2 more than once \(1 rows"),
    "a key of spaces": ("1,2,3\n1,  ,3\n", "line 2: expected a key of the item"),
    "a long key": ("a" * 5000 + ",1,3\n", "at most 4096 characters; got one of 5000"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_text_that_is_refused(tmp_path, name):
    data, words = BAD_TEXTS[name]
    with pytest.raises(ValueError, match=words) as caught:
        Interactions.read(write(tmp_path, data))
    if "more than once" not in words and "4096" not in words:
        assert str(tmp_path / "ratings.csv") in str(caught.value)


PIECES = st.sampled_from(
    [
        *(piece.encode() for piece in '12,;"| \t\n\r"aé.-\ufeff\x1f\0'),
        *(b"::", b"user,item,rating\n", b"\xff", b"nan", b"PAR1", b"2020-01-01"),
    ]
)


@given(st.lists(PIECES, max_size=40), st.sampled_from([None, "text", "lists", "parquet"]))
@settings(deadline=None, max_examples=400)
def test_any_file_is_read_or_refused(tmp_path_factory, pieces, format):
    path = write(tmp_path_factory.mktemp("any"), b"".join(pieces))
    try:
        found = Interactions.read(path, format=format, duplicates="sum")
    except ValueError:
        return
    check_canonical(found)
    assert 0 not in found.shape or format == "lists"


def test_a_line_s_number_counts_what_was_skipped(tmp_path):
    data = "a comment\nuser::item::rating\r\n\r\n1::2::3\r\n4::5::x\r\n"
    with pytest.raises(ValueError, match=r"line 5: expected a rating .* got 'x'"):
        Interactions.read(write(tmp_path, data), skip_lines=1)
    with pytest.raises(ValueError, match="got an empty file"):
        Interactions.read(write(tmp_path, data), skip_lines=9)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_damaged_compressed_files(tmp_path, suffix):
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    generator = np.random.default_rng(0)
    rows = [(u, i, 1, 2) for u, i in enumerate(generator.integers(0, 10**9, 2000))]
    data = compress(joined(",", rows).encode())
    name = f"r.csv{suffix}"
    for damaged in (
        data[: len(data) // 2],
        b"not compressed",
        data[:40] + b"\xff" * 40 + data[80:],
    ):
        with pytest.raises(ValueError, match=f"r.csv{suffix}: damaged or truncated"):
            Interactions.read(write(tmp_path, damaged, name))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"format": "csv"}, ValueError, "format 'text', 'lists' or 'parquet'; got 'csv'"),
        ({"sep": ""}, ValueError, "sep to be a string"),
        ({"sep": 1}, ValueError, "sep to be a string"),
        ({"skip_lines": -1}, ValueError, "skip_lines >= 0"),
        ({"skip_lines": 1.5}, TypeError, "skip_lines to be an int; got float"),
        ({"encoding": "klingon"}, ValueError, "name of an encoding; got 'klingon'"),
        ({"duplicates": "first"}, ValueError, "duplicates in .* got 'first'"),
        ({"user": True}, TypeError, "user to be a column's name or position; got True"),
        ({"user": False}, TypeError, "user to be a column's name or position; got False"),
        ({"rating": 2.5}, TypeError, "rating to be a column's name or position; got 2.5"),
        ({"user": 1, "item": 1}, ValueError, "different columns"),
        ({"timestamp": 9}, IndexError, "timestamp in 0..2; got 9"),
        ({"user": "who"}, ValueError, r"column 'who' \(user\); got no such: its columns are"),
        ({"header": False, "user": "who"}, ValueError, "it has 3 columns without names"),
        ({"header": True}, ValueError, "its columns are '1', '2', '3': say which"),
    ],
)
def test_arguments_that_are_refused(tmp_path, options, error, words):
    path = write(tmp_path, "1,2,3\n4,5,6\n")
    with pytest.raises(error, match=words):
        Interactions.read(path, **options)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got '.*none': it does not exist"):
        Interactions.read(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match="got the folder"):
        Interactions.read(tmp_path)
    for wrong in ([b"bytes"], b"bytes", None, 3, [None]):
        with pytest.raises(TypeError, match="a path that is a str or a PathLike; got"):
            Interactions.read(wrong)
    twice = write(tmp_path, "user,user,item\n1,2,3\n")
    with pytest.raises(ValueError, match=r"column 'user' \(user\); got two: its columns are"):
        Interactions.read(twice, user="user")
