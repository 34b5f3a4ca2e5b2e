"""Separators that are guessed, and quotes between them."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rating_files import write
from vecsmith.data import Interactions
from vecsmith.data import _interaction_lines as lines

# --- guesses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("1;2;3,5\n2;3;4,0\n", "2 between ',' and 3 between ';'"),
        ("1,2,a|b\n2,3,c|d\n", "3 between ',' and 2 between '|'"),
        ("std::a,1,3\nstd::b,1,4\n", "2 between '::' and 3 between ','"),
    ],
)
def test_a_separator_that_is_one_of_two_is_refused(tmp_path, data, found):
    words = re.escape(f"got {found} in all of the first lines: say what is between them with sep=")
    with pytest.raises(ValueError, match=words):
        Interactions.read(write(tmp_path, data))


@pytest.mark.parametrize(
    ("data", "items"),
    [
        ("1\t2,5\t3\n2\t3,0\t4\n", ["2,5", "3,0"]),  # a tab is in no field
        ("1,a b\n2,c d\n", ["a b", "c d"]),  # a space is in many
        ("1,a b\n2,c\n", ["a b", "c"]),
        ("1,2,a|b\n2,3,c\n", None),  # not in every line
        ("user;item;rating\n1;2;3\n2;3,0;4\n", ["2", "3,0"]),
        ("user,item,genres\n1,2,a|b\n2,3,c|d\n", [2, 3]),
        ("1 2,5 3\n2 3 4\n", ["2,5", "3"]),
    ],
)
def test_the_separator_of_all_first_lines_is_taken(tmp_path, data, items):
    if items is None:
        with pytest.raises(ValueError, match=r"line 1: expected a rating .* got 'a\|b'"):
            Interactions.read(write(tmp_path, data))
        return
    assert Interactions.read(write(tmp_path, data)).items.tolist() == items


# --- quotes ---------------------------------------------------------------------------------------


def opens(text, separator):
    """Letter by letter, as RFC 4180 says it."""
    for line in text.replace("\r", "\n").split("\n"):
        at_start, quoted, place = True, False, 0
        while place < len(line):
            letter = line[place]
            if not quoted:
                quoted = at_start and letter == '"'
                at_start = letter == separator
            elif letter == '"' and line[place + 1 : place + 2] == '"':
                place += 1
            elif letter == '"':
                quoted = False
            place += 1
        if quoted:
            return True
    return False


@given(st.text('",;a\n\r', max_size=24), st.sampled_from(",;"))
@example('"a""', ",")
@example('a"",b', ",")
@example('"""",",""\n",""",', ",")
@example('5" vinyl,"x\ny",3"', ",")
@settings(deadline=None, max_examples=1500)
def test_open_quotes_are_found(text, separator):
    assert lines.has_open_quote(text.encode(), separator) == opens(text, separator)


@pytest.mark.parametrize("size", [1 << 22, 64])
def test_stray_quotes_swallow_no_lines(tmp_path, monkeypatch, size):
    monkeypatch.setattr(lines, "BLOCK_BYTES", size)
    small = 'user,item,rating\na,"x,3\nc,z,4\nd,"w,5\n'
    with pytest.raises(ValueError, match=r"line 2: expected quotes that close .* got 'a,\"x,3'"):
        Interactions.read(write(tmp_path, small))
    for strays in ((9900, 9950), (100, 9000), (9990,)):
        rows = [f"{u},{chr(34) * (u in strays)}item{u},3\n" for u in range(10000)]
        data = "user,item,rating\n" + "".join(rows)
        with pytest.raises(ValueError, match=f"line {strays[0] + 2}: expected quotes that close"):
            Interactions.read(write(tmp_path, data))
    with pytest.raises(ValueError, match="line 1: expected quotes that close"):
        Interactions.read(write(tmp_path, '"user\nid",item,rating\n1,2,3\n'), sep=",")
    # In a column that nobody reads, too.
    with pytest.raises(ValueError, match="line 4: expected quotes that close"):
        Interactions.read(write(tmp_path, 'user,item,title\n1,2,a\n1,3,b\n1,4,"c\nd"\n'))


def test_line_ends_in_quotes_are_refused_in_files_of_any_size(tmp_path):
    for number in (40, 300_000):
        data = "user,item,rating\n" + '5,"name\nof item",3\n' * number
        with pytest.raises(ValueError, match=r'line 2: expected quotes that close .* got .5,"name'):
            Interactions.read(write(tmp_path, data))
    plain = "".join(f"{u},{u},3\n" for u in range(400_000))
    with pytest.raises(ValueError, match="line 400001: expected quotes that close"):
        Interactions.read(write(tmp_path, plain + '5,"name\nof item",3\n'))


def test_quotes_that_close_are_read(tmp_path):
    names = ["a,b", 'say "x"', '"', '"","', '5" vinyl', ",", "é;", 'x""']
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("user", "item"), *((1, name) for name in names)])
    found = Interactions.read(write(tmp_path, buffer.getvalue()))
    assert found.items.tolist() == sorted(names, key=str.encode)
    odd = Interactions.read(write(tmp_path, 'user,item\n1,5" vinyl\n1,"x"y\n1, "z\n'))
    assert odd.items.tolist() == ['"z', '5" vinyl', "xy"]
    long = Interactions.read(write(tmp_path, f'user,item,text\n1,"2",{"a" * 200_000}\n'))
    assert long.items.tolist() == [2]
