"""Text files of interactions: separated columns, and lists of items. Read in blocks of whole lines
that Arrow parses; Python looks at single lines only to find the one that is wrong."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from vecsmith.data import _interaction_lines as _lines
from vecsmith.data._interaction_columns import Columns, choose, compute
from vecsmith.data._interaction_lines import Stream, blocks_of, has_open_quote, lines_of, skip

_LOOKED_AT = 20  # lines, for the separator
_SEPARATORS = ("::", "\t", ",", ";", "|", " ")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INSIDE = "\x1f"  # the unit separator of ASCII, in place of separators longer than a byte
_EDGES = re.compile(rb"(?<![^\r\n]) | (?![^\r\n])")  # spaces at the edges of lines


@dataclass
class _Layout:
    """How the lines of a file are to be read."""

    separator: str
    names: list[str] | None
    width: int
    first: int  # the first line that is data, from 1
    chosen: dict[str, int]

    def split(self, line: str) -> list[str]:
        return _split(line, self.separator)


def _split(line: str, separator: str) -> list[str]:
    line = line.rstrip("\r\n")
    if separator == " ":
        return line.split()
    if _is_quoted(separator) and '"' in line:
        with contextlib.suppress(csv.Error):  # a field of more than 131,072 characters
            return next(csv.reader([line], delimiter=separator), [])
    return line.split(separator)


def _is_quoted(separator: str) -> bool:
    """Fields between commas may stand in double quotes; elsewhere a quote is a letter (names of
    artists begin with one)."""
    return separator in (",", ";")


# --- separated columns ----------------------------------------------------------------------------


def _is_number(field: str) -> bool:
    """As Arrow has it: "1_000" is none, and "nan" is a word."""
    return _NUMBER.fullmatch(field.strip(" \t")) is not None


def _guess_separator(path: str, lines: list[str]) -> str:
    widths = {mark: {len(_split(line, mark)) for line in lines} for mark in _SEPARATORS}
    whole = [mark for mark in _SEPARATORS if min(widths[mark]) > 1]
    even = [mark for mark in whole if len(widths[mark]) == 1 and mark != " "]
    if len(even) > 1 and "\t" not in even:
        found = " and ".join(f"{max(widths[mark])} between {mark!r}" for mark in even)
        raise ValueError(
            f"{path}: expected columns between one of {', '.join(map(repr, _SEPARATORS))}; got "
            f"{found} in all of the first lines: say what is between them with sep="
        )
    if "\t" in even:  # nobody writes one inside a field
        return "\t"
    # Spaces are in dates and titles, too.
    for marks in (even, whole, [mark for mark in _SEPARATORS if widths[mark] != {1}]):
        if marks:
            return marks[0]
    raise ValueError(
        f"{path}: expected at least two columns between {', '.join(map(repr, _SEPARATORS))}; "
        f"got the line {lines[0][:60]!r}: say what is between them with sep="
    )


def _has_header(rows: list[list[str]], asked: dict[str, Any]) -> bool:
    """True if names are asked for, if the first line names the user and the item, or if it has no
    number where the second has one."""
    if any(isinstance(ask, str) for ask in asked.values()):
        return True
    try:
        choose(rows[0], len(rows[0]), {"rating": False, "timestamp": False}, "")
    except ValueError:
        pass
    else:
        return True
    if any(map(_is_number, rows[0])) or len(rows) < 2:
        return False
    return any(map(_is_number, rows[1]))


def _look(
    path: str,
    separator: str | None,
    header: bool | None,
    skip_lines: int,
    encoding: str,
    asked: dict[str, Any],
) -> _Layout:
    """What the first lines say."""
    first, heads, numbers = skip_lines + 1, [], []
    for number, line in enumerate(lines_of(path, encoding), 1):
        if number <= skip_lines:
            continue
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(_not_utf8(path, number, error)) from None
        if not text.strip():
            continue
        if not heads:
            first = number
        heads.append(text)
        numbers.append(number)
        if len(heads) == _LOOKED_AT:
            break
    if not heads:
        raise ValueError(f"{path}: expected interactions; got an empty file")
    if separator is None:
        separator = _guess_separator(path, heads)
    for number, line in zip(numbers, heads, strict=True):
        if _is_quoted(separator) and has_open_quote(line.encode(), separator):
            raise ValueError(f"{path}: line {number}: {_unclosed(line)}")
    rows = [_split(line, separator) for line in heads]
    named = _has_header(rows, asked) if header is None else header
    names = [name.strip() for name in rows[0]] if named else None
    if named and len(rows) < 2:
        raise ValueError(f"{path}: expected interactions; got a header alone")
    chosen = choose(names, len(rows[0]), asked, path)
    return _Layout(separator, names, len(rows[0]), first + named, chosen)


def _one_byte(blocks: Iterator[bytes], separator: str, path: str) -> Iterator[bytes]:
    """The blocks with one byte between fields."""
    inside = _INSIDE.encode()
    for block in blocks:
        if separator == " ":
            # Most files have one space between fields, and none at the edges.
            block = block.replace(b"\t", b" ")
            while b"  " in block:
                block = block.replace(b"  ", b" ")
            if block[:1] == b" " or any(edge in block for edge in (b"\n ", b"\r ", b" \n", b" \r")):
                block = _EDGES.sub(b"", block)
            elif block[-1:] == b" ":
                block = block[:-1]
            yield block
        else:
            if inside in block:
                raise ValueError(
                    f"{path}: expected no control character 0x1f beside the separator {separator!r}"
                )
            yield block.replace(separator.encode(), inside)


def _closed_quotes(
    blocks: Iterator[bytes], path: str, layout: _Layout, encoding: str
) -> Iterator[bytes]:
    """The blocks, if no line end is in quotes. No id holds one, but a stray quote would make one
    field of all lines up to the next, and blocks end where lines do."""
    for block in blocks:
        if has_open_quote(block, layout.separator):
            _complain(path, layout, encoding, "a quote opens and its line does not close it")
        yield block


def _unclosed(line: str) -> str:
    return f"expected quotes that close in the line in which they open; got {line[:80]!r}"


def text_columns(
    path: str,
    asked: dict[str, Any],
    *,
    sep: str | None,
    header: bool | None,
    skip_lines: int,
    encoding: str,
) -> Columns:
    """The columns of a file of separated columns.

    Raises: ValueError with the number of the first line that is wrong.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    layout = _look(path, sep, header, skip_lines, encoding, asked)
    blocks = skip(blocks_of(path, encoding), layout.first - 1)
    delimiter = layout.separator
    if len(delimiter.encode()) > 1 or delimiter == " ":
        blocks = _one_byte(blocks, delimiter, path)
        delimiter = " " if delimiter == " " else _INSIDE
    elif _is_quoted(delimiter):
        blocks = _closed_quotes(blocks, path, layout, encoding)
    types: dict[str, Any] = {"user": pa.dictionary(pa.int32(), pa.string())}
    types.update(item=types["user"], rating=pa.float64())
    names = [str(place) for place in range(layout.width)]
    chosen = {role: str(place) for role, place in layout.chosen.items()}
    try:
        table = arrow_csv.read_csv(
            Stream(blocks),
            read_options=arrow_csv.ReadOptions(column_names=names, block_size=_lines.BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if _is_quoted(delimiter) else False
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={chosen[role]: types[role] for role in chosen if role in types},
                include_columns=list(chosen.values()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        _complain(path, layout, encoding, str(error))
    taken = {role: table.column(name) for role, name in chosen.items()}
    times = taken.get("timestamp")
    if times is not None:
        kind: Any = times.type
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_date, pa.types.is_timestamp)
        if not any(is_kind(kind) for is_kind in kinds):
            _complain(path, layout, encoding, f"expected timestamps, numbers or dates; got {kind}")

    def where(row: int) -> str:
        _complain(path, layout, encoding, f"row {row} is malformed")

    return Columns(
        taken["user"], taken["item"], taken.get("rating"), times, where=where, is_text=True
    )


def _not_utf8(path: str, number: int, error: UnicodeDecodeError) -> str:
    return f"{path}: line {number} is not UTF-8 ({error}): say what it is with encoding="


def _complain(path: str, layout: _Layout, encoding: str, otherwise: str) -> NoReturn:
    """Raise ValueError with the first line that is wrong."""
    for number, line in enumerate(lines_of(path, encoding), 1):
        if number < layout.first or not line.rstrip(b"\r\n"):
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(_not_utf8(path, number, error)) from None
        problem = _problem(layout, text)
        if problem is not None:
            raise ValueError(f"{path}: line {number}: {problem}")
    raise ValueError(f"{path}: {otherwise}")


def _problem(layout: _Layout, line: str) -> str | None:
    """What is wrong with a line of data."""
    if _is_quoted(layout.separator) and has_open_quote(line.encode(), layout.separator):
        return _unclosed(line.rstrip())
    fields = layout.split(line)
    if not fields:
        return None
    if len(fields) != layout.width:
        return (
            f"expected {layout.width} columns between {layout.separator!r}, as in the first line; "
            f"got {len(fields)}: {line.rstrip()[:80]!r}"
            + (" (lists of items are read with format='lists')" if layout.separator == " " else "")
        )
    for role, place in layout.chosen.items():
        field = fields[place]
        if role in ("user", "item"):
            if not field.strip(" \t"):
                return f"expected a key of the {role}; got an empty field"
            continue
        number = math.nan
        if _is_number(field):
            number = float(field)
        if role == "rating" and not abs(number) <= float(np.finfo(np.float32).max):
            return f"expected a rating that is a finite number of float32; got {field!r}"
        if role == "timestamp" and not math.isfinite(number) and not _is_date(field):
            return f"expected a timestamp that is a number or a date; got {field!r}"
    return None


def _is_date(field: str) -> bool:
    try:
        return not np.isnat(np.datetime64(field.strip().removesuffix("Z")))
    except ValueError:
        return False


# --- lists of items -------------------------------------------------------------------------------


def list_columns(path: str, skip_lines: int, encoding: str) -> tuple[Any, np.ndarray, Any]:
    """A file of lines ``user item item ...`` between ASCII white space, as (users [L], lengths
    int64 [L], items [n]): a line without items is a user without any.

    Raises: ValueError for an empty file or one that is not UTF-8.
    """
    import pyarrow as pa

    users, items, lengths = [], [], []
    number = skip_lines
    for block in skip(blocks_of(path, encoding), skip_lines):
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        try:
            lines = block.decode().split("\n")
        except UnicodeDecodeError as error:
            number += block[: error.start].count(b"\n") + 1
            raise ValueError(_not_utf8(path, number, error)) from None
        number += len(lines) - 1
        stripped = compute().ascii_trim_whitespace(pa.array(lines, pa.large_string()))
        stripped = stripped.filter(compute().not_equal(stripped, ""))
        if not len(stripped):
            continue
        tokens: Any = compute().ascii_split_whitespace(stripped)
        ends = tokens.offsets.to_numpy().astype(np.int64)
        values = tokens.flatten()
        is_user = np.zeros(len(values), bool)
        is_user[ends[:-1] - ends[0]] = True
        kind = pa.dictionary(pa.int32(), pa.large_string())
        users.append(values.filter(pa.array(is_user)).cast(kind))
        items.append(values.filter(pa.array(~is_user)).cast(kind))
        lengths.append(np.diff(ends) - 1)
    if not lengths:
        raise ValueError(f"{path}: expected interactions; got an empty file")
    return pa.chunked_array(users), np.concatenate(lengths), pa.chunked_array(items)


def paths_of(path: Any) -> list[str]:
    """One path or several, as str. Raises TypeError, ValueError, FileNotFoundError."""
    several = [path]
    if hasattr(path, "__iter__") and not isinstance(path, (str, bytes, os.PathLike)):
        several = list(path)
    if not several:
        raise ValueError("expected a file; got an empty sequence")
    paths = []
    for each in several:
        name = os.fspath(each) if isinstance(each, os.PathLike) else each
        if not isinstance(name, str):
            raise TypeError(f"expected a path that is a str or a PathLike; got {each!r}")
        if os.path.isdir(name):
            raise IsADirectoryError(f"expected a file; got the folder {name}")
        if not os.path.exists(name):
            raise FileNotFoundError(f"expected a file; got {name!r}: it does not exist")
        paths.append(name)
    return paths


def is_parquet(path: str) -> bool:
    """By its first bytes, or its name where it is too short to have any."""
    with open(path, "rb") as file:
        head = file.read(4)
    return head == b"PAR1" or (not head and path.lower().endswith((".parquet", ".pq")))


def one_after_the_other(parts: list[Columns]) -> Columns:
    """The columns of several files as those of one. Raises ValueError where some have a column that
    others lack, or their types differ."""
    import pyarrow as pa

    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> Any:
        columns = [getattr(part, name) for part in parts]
        if all(column is None for column in columns):
            return None
        kinds = ["none" if column is None else str(column.type) for column in columns]
        kinds = list(dict.fromkeys(kinds))
        if len(kinds) > 1:
            raise ValueError(f"expected files with {name} of one type; got {', '.join(kinds)}")
        return pa.chunked_array(list(itertools.chain(*(column.chunks for column in columns))))

    starts = np.cumsum([0, *(len(part.users) for part in parts)])
    finders = [part.where for part in parts]

    def where(row: int) -> str:
        part = int(np.searchsorted(starts, row, "right")) - 1
        return finders[part](row - int(starts[part]))

    return Columns(
        *(joined(name) for name in ("users", "items", "ratings", "timestamps")),
        where=where,
        is_text=parts[0].is_text,
    )
