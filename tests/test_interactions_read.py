"""Interactions out of files: every format."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rating_files import DENSE, ROWS, check, joined, write
from vecsmith.data import Interactions
from vecsmith.data import _interaction_lines as lines


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|", "::", " ", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_are_guessed(tmp_path, separator, end):
    data = joined(separator).replace("\n", end)
    check(Interactions.read(write(tmp_path, data)))
    check(Interactions.read(write(tmp_path, data.removesuffix(end))))
    check(Interactions.read(write(tmp_path, joined(separator, columns=3))), timestamps=False)
    header = separator.join(("userId", "movieId", "rating", "timestamp")) + end
    check(Interactions.read(write(tmp_path, header + data)))


def test_separators_may_be_said(tmp_path):
    check(Interactions.read(write(tmp_path, joined(" \t ")), sep=" "))
    check(Interactions.read(write(tmp_path, joined(" \t ")), sep="\t"))  # spaces around fields
    check(Interactions.read(write(tmp_path, joined(", "))))
    check(Interactions.read(write(tmp_path, joined(" - ")), sep=" - "))
    check(Interactions.read(str(write(tmp_path, joined("é"))), sep="é"))
    spaces = "\n" + "".join(f"  {line} \n \n" for line in joined("   ").splitlines())
    check(Interactions.read(write(tmp_path, spaces), sep=" "))
    one = Interactions.read(write(tmp_path, "a:::b\na::c\n"), sep="::")
    assert one.items.tolist() == [":b", "c"]


@pytest.mark.parametrize("separator", [",", "::", " "])
@pytest.mark.parametrize("end", ["\r", "\r\r\n", "\n\r"])
def test_carriage_returns_end_lines(tmp_path, separator, end):
    header = separator.join(("userId", "movieId", "rating", "timestamp")) + "\n"
    data = ("a note\n\n" + header + joined(separator)).replace("\n", end)
    found = Interactions.read(
        write(tmp_path, data), skip_lines=data.count("\r", 0, data.index("u"))
    )
    check(found)
    check(Interactions.read(write(tmp_path, joined(separator).replace("\n", end))))
    spaces = joined(" ").replace("\n", f" {end} ")
    check(Interactions.read(write(tmp_path, " " + spaces), sep=" "))
    bad = write(tmp_path, joined(separator).replace("\n", "\r") + f"1{separator}2\r")
    with pytest.raises(ValueError, match=r"line 5: expected 4 columns .* got 2"):
        Interactions.read(bad)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_compressed_files(tmp_path, suffix, compress):
    for separator in ("\t", "::"):
        check(
            Interactions.read(write(tmp_path, compress(joined(separator).encode()), f"r{suffix}"))
        )


def test_zst_files(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    data = zstandard.ZstdCompressor().compress(joined(",").encode())
    check(Interactions.read(write(tmp_path, data, "r.csv.zst")))
    with pytest.raises(ValueError, match=r"r.csv.zst: damaged or truncated"):
        Interactions.read(write(tmp_path, b"\x28\xb5\x2f\xfd" + data[9:], "r.csv.zst"))


@pytest.mark.parametrize("separator", [",", "::", " "])
def test_blocks_may_end_anywhere(tmp_path, monkeypatch, separator):
    path = write(tmp_path, "\ufeff" + joined(separator))
    for size in (3, 4, 7, 20):  # no block is less than a byte order mark
        monkeypatch.setattr(lines, "BLOCK_BYTES", size)
        blocks = list(lines.blocks_of(str(path), "utf-8"))
        assert b"".join(blocks) == joined(separator).encode()
        assert all(block.endswith(b"\n") for block in blocks)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    many = [(u, i, u + i, 0) for u in range(30) for i in range(20)]
    found = Interactions.read(write(tmp_path, joined(separator, many)))
    np.testing.assert_array_equal(found.matrix.toarray(), np.add.outer(range(30), range(20)))


@pytest.mark.parametrize(
    "header",
    [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",  # RecBole's
        "userId\tmovieId\trating\ttimestamp",
        "User-ID\tISBN\tBook-Rating\tdate",
        "reviewerID\tasin\toverall\tunixReviewTime",
        "uid\ttrack\tplays\tts",
    ],
)
def test_known_names(tmp_path, header):
    check(Interactions.read(write(tmp_path, f"{header}\n{joined(chr(9))}")))


def test_columns_by_name_and_position(tmp_path):
    shuffled = [(t, i, "x, y", r, u) for u, i, r, t in ROWS]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("when", "what", "title", "how", "who"), *shuffled])
    path = write(tmp_path, buffer.getvalue())
    names = {"user": "who", "item": "what", "rating": "how", "timestamp": "when"}
    check(Interactions.read(path, **names))
    check(Interactions.read(path, user=4, item=1, rating=3, timestamp=0))
    check(
        Interactions.read(path, header=False, skip_lines=1, user=4, item=1, rating=3, timestamp=0)
    )
    left = Interactions.read(path, user="who", item="what")
    assert set(left.matrix.data) == {1.0}
    assert left.timestamps is None
    # What a name would say is taken by what was asked for.
    path = write(tmp_path, "item,user,movie\n12,3,40\n")
    found = Interactions.read(path, user="item", item="movie")
    assert (found.users.tolist(), found.items.tolist()) == ([12], [40])


def test_ratings_and_times_may_be_absent_or_left_out(tmp_path):
    path = write(tmp_path, joined("\t"))
    left = Interactions.read(path, rating=False, timestamp=False)
    np.testing.assert_array_equal(
        left.matrix.toarray(), DENSE.astype(bool) | [[0, 0], [0, 0], [0, 1]]
    )
    assert left.timestamps is None
    pairs = Interactions.read(write(tmp_path, joined("\t", columns=2)))
    np.testing.assert_array_equal(pairs.matrix.toarray(), left.matrix.toarray())
    wide = "".join(f"{line}\tmore\n" for line in joined("\t").splitlines())
    check(Interactions.read(write(tmp_path, wide)), timestamps=False)
    check(Interactions.read(write(tmp_path, wide), timestamp=3))


@pytest.mark.parametrize(
    ("data", "users", "items"),
    [
        ("ann,up\nbob,it\n", ["ann", "bob"], ["it", "up"]),
        ("user,item\nann,up\n", ["ann"], ["up"]),
        ("who,what\n1,2\n", None, None),  # a header, of unknown names
        ("ann,2\nbob,3\n", ["ann", "bob"], [2, 3]),
        ("007,1\n7,1\n", ["007", "7"], [1]),  # two keys
        ("1e3,+1\n10,1\n", ["10", "1e3"], ["+1", "1"]),
        ("-5,0\n-0,1\n", ["-0", "-5"], [0, 1]),
        ("-5,9223372036854775807\n0,1\n", [-5, 0], [1, 2**63 - 1]),
        ("1,9223372036854775808\n0,1\n", [0, 1], ["1", "9223372036854775808"]),
        ("NA,null\nnan,NULL\n", ["NA", "nan"], ["NULL", "null"]),
        ("true,1.0\nfalse,2015-01-01\n", ["false", "true"], ["1.0", "2015-01-01"]),
        (" ann , up\nann, it \n", ["ann"], ["it", "up"]),
        ('"a,b","say ""x"""\n"c",é\n', ["a,b", "c"], ['say "x"', "é"]),
        ('"weird al"\tx"y\n', ['"weird al"'], ['x"y']),
        ("日本,😀\n\ue000,z\n", ["日本", "\ue000"], ["z", "😀"]),
    ],
)
def test_keys_are_what_the_text_says(tmp_path, data, users, items):
    path = write(tmp_path, data)
    if users is None:
        with pytest.raises(ValueError, match="its columns are 'who', 'what': say which with user="):
            Interactions.read(path)
        found = Interactions.read(path, header=True, user=0, item=1)
        assert (found.users.tolist(), found.items.tolist()) == ([1], [2])
        return
    found = Interactions.read(path)
    assert (found.users.tolist(), found.items.tolist()) == (users, items)
    assert found.users.dtype.kind == ("i" if isinstance(users[0], int) else "U")
    for key in users:
        assert found.users[found.user_index(key)] == key


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("utf-8", "\ufeffuser,item\nzoë,1\n".encode()),
        ("utf-8-sig", "\ufeffuser,item\nzoë,1\n".encode()),
        ("latin-1", "user,item\nzoë,1\n".encode("latin-1")),
        ("utf-16", "user,item\nzoë,1\n".encode("utf-16")),
        ("cp1252", "zoë::1\n".encode("cp1252")),
    ],
)
def test_encodings(tmp_path, encoding, data):
    found = Interactions.read(write(tmp_path, data), encoding=encoding)
    assert found.users.tolist() == ["zoë"]
    assert found.items.tolist() == [1]


def test_columns_that_are_not_read_may_hold_anything(tmp_path):
    data = b"1\t2\t3\t\xff\xe9\tx\n1\t3\t4\t\xe9\n"[:-1] + b"\ty\n"
    assert len(Interactions.read(write(tmp_path, data), encoding="latin-1")) == 2
    later = b"1,2,3,a,b\n" * 1 + b"".join(b"1,%d,3,\xe9,b\n" % i for i in range(3, 50))
    assert len(Interactions.read(write(tmp_path, later), encoding="latin-1")) == 48


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["5", "7"], np.array([5, 7])),
        (["1.5e9", "7"], np.array([1.5e9, 7.0])),
        (["2015-01-31", "2014-01-01"], np.array(["2015-01-31", "2014-01-01"], "M8[us]")),
        (
            ["2015-01-31 10:00:00", "2014-01-01 00:00:01"],
            np.array(["2015-01-31T10:00", "2014-01-01T00:00:01"], "M8[us]"),
        ),
        (
            ["2015-01-31T10:00:00Z", "2015-01-31T12:00:00+0200"],
            np.array(["2015-01-31T10:00", "2015-01-31T10:00"], "M8[us]"),
        ),
    ],
)
def test_times_are_numbers_or_dates(tmp_path, column, expected):
    data = "".join(f"{u},1,1,{time}\n" for u, time in enumerate(column))
    found = Interactions.read(write(tmp_path, data)).timestamps
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


# --- lists ----------------------------------------------------------------------------------------


def test_lists(tmp_path):
    path = write(tmp_path, "5 1 3\n2 \n\n9 3\t7000000000 \r\n  5 2\n", "train.txt")
    found = Interactions.read(path, format="lists")
    assert found.users.tolist() == [2, 5, 9]
    assert found.items.tolist() == [1, 2, 3, 7_000_000_000]
    expected = [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(found.matrix.toarray(), expected)
    packed = write(tmp_path, gzip.compress(path.read_bytes()), "train.txt.gz")
    both = Interactions.read([path, packed], format="lists", duplicates="sum")
    np.testing.assert_array_equal(both.matrix.toarray(), 2 * np.array(expected))
    names = Interactions.read(
        write(tmp_path, "# by hand\nann x y\nbob 3"), format="lists", skip_lines=1
    )
    assert names.users.tolist() == ["ann", "bob"]
    assert names.items.tolist() == ["3", "x", "y"]
    with pytest.raises(ValueError, match="user 5 with item 1 more than once"):
        Interactions.read(write(tmp_path, "5 1 1"), format="lists")
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        Interactions.read(write(tmp_path, b"1 2\n3 \xe9\n"), format="lists")
    with pytest.raises(ValueError, match="got an empty file"):
        Interactions.read(write(tmp_path, " \n"), format="lists")


def test_lists_are_split_at_ascii_white_space(tmp_path):
    found = Interactions.read(
        write(tmp_path, "u a\u00a0b\u3000c\fd\v\r\nv\u0085 d\r"), format="lists"
    )
    assert found.users.tolist() == ["u", "v\u0085"]
    assert found.items.tolist() == ["a\u00a0b\u3000c", "d"]
    former = Interactions.read(write(tmp_path, "5 1 3\r2\r9 3 4\r"), format="lists", skip_lines=1)
    assert former.users.tolist() == [2, 9]
    assert former.items.tolist() == [3, 4]
    with pytest.raises(ValueError, match="line 3 is not UTF-8"):
        Interactions.read(write(tmp_path, b"1 2\r2 3\r\n3 \xe9\n"), format="lists")


def test_lists_in_many_blocks(tmp_path, monkeypatch):
    rows = {u: sorted({(u * k) % 50 for k in range(1, u % 7)}) for u in range(40)}
    data = "".join(f"{u} {' '.join(map(str, items))}\n" for u, items in rows.items())
    monkeypatch.setattr(lines, "BLOCK_BYTES", 16)
    found = Interactions.read(write(tmp_path, data), format="lists")
    assert found.users.tolist() == list(rows)
    for u, items in rows.items():
        assert found.items[found.matrix[u].indices].tolist() == items
    long = write(tmp_path, data.encode() + b"1 \xe9\n")
    with pytest.raises(ValueError, match="line 41 is not UTF-8"):
        Interactions.read(long, format="lists")


def test_users_without_items_alone(tmp_path):
    found = Interactions.read(write(tmp_path, "3\n1\n"), format="lists")
    assert found.shape == (2, 0)
    assert len(found) == 0


# --- several files --------------------------------------------------------------------------------


def test_several_files_are_one(tmp_path):
    first = write(tmp_path, joined(",", ROWS[:1]), "1.csv")
    second = write(tmp_path, "user::item::rating::time\n" + joined("::", ROWS[1:3]), "2.dat")
    third = write(tmp_path, gzip.compress(joined("\t", ROWS[3:]).encode()), "3.tsv.gz")
    check(Interactions.read([first, second, third]))
    check(Interactions.read(iter((first, str(second), third))))
    short = write(tmp_path, "1,2,3\n", "4.csv")
    with pytest.raises(ValueError, match="files with timestamps of one type; got int64, none"):
        Interactions.read([first, short])
    bad = write(tmp_path, "1,2,3,4\n5,,3,4\n", "5.csv")
    with pytest.raises(ValueError, match=r"5.csv: line 2: expected a key of the item"):
        Interactions.read([first, bad, third])
    with pytest.raises(ValueError, match="user 7000000000 with item 12 more than once"):
        Interactions.read([first, first])
    with pytest.raises(ValueError, match="expected a file; got an empty sequence"):
        Interactions.read([])


# --- all at once ----------------------------------------------------------------------------------

# Spaces around a field are none of its own.
LETTERS = st.characters(codec="utf-8", exclude_characters='\0\n\r\x1f\ufeff"')
WORDS = st.text(LETTERS, min_size=1, max_size=6).filter(lambda word: word.strip(" \t") == word)
INTEGERS = st.integers(-(2**63), 2**63 - 1)


@given(
    cells=st.one_of(
        st.dictionaries(st.tuples(WORDS, INTEGERS), st.integers(-9, 9), min_size=1),
        st.dictionaries(st.tuples(INTEGERS, WORDS), st.floats(-4, 4, width=16), min_size=1),
    ),
    separator=st.sampled_from(["\t", ",", "::", "|", ";"]),
    timed=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_what_is_written_comes_back(tmp_path_factory, cells, separator, timed):
    rows = [(str(u), str(i), str(r)) + ("5",) * timed for (u, i), r in cells.items()]
    if separator in ",;":
        buffer = io.StringIO(newline="")
        csv.writer(buffer, delimiter=separator, lineterminator="\n").writerows(rows)
        data = buffer.getvalue()
    else:
        rows = [row for row in rows if not any(separator[0] in field for field in row)]
        data = "".join(separator.join(row) + "\n" for row in rows)
    if not rows:
        return
    path = Path(tmp_path_factory.mktemp("read")) / "ratings"
    path.write_text(data, encoding="utf-8", newline="")
    found = Interactions.read(path, sep=separator, header=False)
    assert len(found) == len(rows)
    assert (found.timestamps is not None) == timed
    users = [str(key) for key in found.users.tolist()]
    items = [str(key) for key in found.items.tolist()]
    assert found.users.tolist() == sorted(found.users.tolist())
    back = found.matrix.tocoo()
    got = {(users[u], items[i]): r for u, i, r in zip(back.row, back.col, back.data, strict=True)}
    assert got == {(u, i): np.float32(r) for u, i, r, *_ in rows}
