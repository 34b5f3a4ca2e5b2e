"""Columns of keys, ratings and times, whatever holds them, as Arrow columns and as numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vecsmith.data._interaction_keys import strings

if TYPE_CHECKING:
    import pyarrow

MOST_NUMBERED = 2**31 - 1
LONGEST_KEY = 4096  # a longer one is no id, but text in the place of one
_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"


@dataclass
class Columns:
    """What was read: a row is one interaction. ``where`` names a row in an error, or raises a
    better one. Each column is let go as soon as its numbers are known: there may be many."""

    users: Any
    items: Any
    ratings: pyarrow.ChunkedArray | None
    timestamps: pyarrow.ChunkedArray | None
    where: Callable[[int], str]
    # Of text: keys that all look like integers are integers.
    is_text: bool = False


def compute() -> Any:
    """pyarrow.compute. Its functions are made when it is imported: type checkers know none."""
    import pyarrow.compute

    return pyarrow.compute


def column(values: Any, what: str) -> pyarrow.ChunkedArray:
    """One column, of an array, an Arrow or pandas or polars column, or a sequence. NaN is null.

    Raises: TypeError for what is no column of one type.
    """
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        return values
    try:
        if isinstance(values, pa.Array):
            made = values
        elif hasattr(values, "__arrow_c_stream__"):
            made = pa.chunked_array(values)
        elif hasattr(values, "__arrow_c_array__") or hasattr(values, "__arrow_array__"):
            made = pa.array(values)
        elif hasattr(values, "to_arrow"):
            made = values.to_arrow()
        else:
            made = pa.array(_one_dimensional(values, what), from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise TypeError(f"expected {what} of one type; got {error}") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"expected {what} that are text; got {error}") from None
    except OverflowError:
        raise ValueError(f"expected {what} within int64; got one beyond") from None
    return made if isinstance(made, pa.ChunkedArray) else pa.chunked_array([made])


def _one_dimensional(values: Any, what: str) -> Any:
    if isinstance(values, (str, bytes)):
        raise TypeError(f"expected {what} to be a sequence; got {type(values).__name__}")
    if hasattr(values, "__array__"):
        masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
        values = as_numpy(values)
        if values.ndim != 1:
            raise ValueError(f"expected {what} of one dimension; got shape {list(values.shape)}")
        if masked is not None and masked.any():
            row = int(masked.argmax())
            raise ValueError(f"expected {what} that are not masked; got row {row} masked")
        if values.dtype.kind == "T":  # NumPy's strings of any length
            return values.tolist()
        if values.dtype.kind not in "biufMmUSO":
            raise TypeError(f"expected {what} that Arrow has a type for; got {values.dtype}")
        if values.dtype.kind == "M":
            values = microseconds(values, what)
        if values.dtype.kind == "f" and values.dtype.itemsize not in (4, 8):
            values = values.astype(np.float32 if values.dtype.itemsize == 2 else np.float64)
        return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"expected {what} to be a sequence; got {type(values).__name__}") from None


def as_numpy(values: Any) -> np.ndarray:
    """What has ``__array__`` as an array; tensors also where they are of a graph, and bfloat16."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def microseconds(times: np.ndarray, what: str) -> np.ndarray:
    """datetime64[us], of any dates of NumPy. Raises ValueError for one that these do not reach:
    NumPy wraps around."""
    made = times.astype("datetime64[us]")
    if np.datetime_data(times.dtype)[0] in ("Y", "M", "W", "D", "h", "m", "s", "ms"):
        bad = np.flatnonzero((made.astype(times.dtype) != times) & ~np.isnat(times))
        if len(bad):
            row = f" in row {bad[0]}" if times.ndim else ""
            got = f"{times.flat[bad[0]]}{row}"
            raise ValueError(f"expected {what} within datetime64[us]; got {got}")
    return made


def values_of_categories(values: Any) -> Any:
    """A column of categories as one of their values; of values as it is. A category may be null,
    and one that no row has."""
    import pyarrow as pa

    kind: Any = values.type
    if not pa.types.is_dictionary(kind):
        return values
    chunks = [chunk.dictionary.take(chunk.indices) for chunk in values.chunks]
    return pa.chunked_array(chunks, kind.value_type)


def first_null(values: pyarrow.ChunkedArray) -> int:
    """The first row without a value; there is one."""
    return int(np.flatnonzero(compute().is_null(values).to_numpy())[0])


def encode(
    values: pyarrow.ChunkedArray, what: str, where: Callable[[int], str], is_text: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Codes int32 [n] and keys [K], int64 or str, sorted, each different: row i has the key
    ``keys[codes[i]]``.

    Raises: ValueError for a missing key, or one that cannot be kept; TypeError for other types.
    """
    import pyarrow as pa

    if not is_text:
        values = values_of_categories(values)
    if values.null_count:
        row = where(first_null(values))
        raise ValueError(f"expected a key of {what} in every row; got none in {row}")
    kind: Any = values.type
    if not len(values):  # what is empty is of no type, or of one that nobody chose
        of_text = is_text or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return np.empty(0, np.int32), np.empty(0, "<U1" if of_text else np.int64)
    if pa.types.is_integer(kind):
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid:
            raise ValueError(f"expected keys of {what} within int64; got one beyond") from None
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or kind in _views():
        # Parquet of other writers has text as bytes.
        try:
            values = values.cast(pa.large_string())
        except pa.ArrowInvalid:
            raise ValueError(f"expected keys of {what} that are UTF-8; got others") from None
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_text):
        raise TypeError(f"expected keys of {what} that are integers or strings; got {kind}")
    if pa.types.is_dictionary(values.type):
        coded = values.unify_dictionaries()
    else:
        coded = values.dictionary_encode().unify_dictionaries()
    found = coded.chunk(0).dictionary
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks])
    if is_text:
        # Spaces around a field are none of the key's.
        found = compute().utf8_trim(found, characters=" \t")
        if not compute().all(compute().not_equal(found, "")).as_py():
            row = int(np.flatnonzero(codes == compute().index(found, "").as_py())[0])
            raise ValueError(f"expected a key of {what} in every row; got none in {where(row)}")
        merged = found.dictionary_encode()
        codes, found = merged.indices.to_numpy()[codes], merged.dictionary
        if compute().all(compute().match_substring_regex(found, _INTEGER)).as_py():
            with contextlib.suppress(pa.ArrowInvalid):  # beyond int64: they stay strings
                found = found.cast(pa.int64())
    order = compute().array_sort_indices(found)
    rank = np.empty(len(order), np.int32)
    rank[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    return rank[codes], to_keys(found.take(order), what)


def _views() -> list[Any]:
    """The types of strings that only later versions of Arrow have."""
    import pyarrow as pa

    return [getattr(pa, name)() for name in ("string_view", "binary_view") if hasattr(pa, name)]


def to_keys(values: Any, what: str) -> np.ndarray:
    """An Arrow array of integers or strings as int64 or str. Raises ValueError for a key that
    NumPy cannot keep."""
    import pyarrow as pa

    if pa.types.is_integer(values.type):
        return np.ascontiguousarray(values.to_numpy(zero_copy_only=False), dtype=np.int64)
    # NumPy takes NUL at the end for padding: two keys would become one.
    if compute().any(compute().ends_with(values, "\0")).as_py():
        raise ValueError(f"expected keys of {what} that do not end with NUL; got one that does")
    lengths = compute().utf8_length(values)
    longest = compute().max(lengths).as_py() or 0
    if longest > LONGEST_KEY:
        key = values[compute().index(lengths, longest).as_py()].as_py()
        raise ValueError(
            f"expected keys of {what} of at most {LONGEST_KEY} characters; got one of {longest}, "
            f"{key[:60]!r}..."
        )
    return strings(values.to_pylist())


def distinct_keys(values: Any, what: str) -> np.ndarray:
    """Keys that somebody gives, int64 or str, in their order. Raises ValueError if one repeats."""
    codes, keys = encode(column(values, f"keys of {what}"), what, lambda row: f"row {row}")
    if len(keys) != len(codes):
        twice = keys[np.bincount(codes, minlength=len(keys)).argmax()]
        raise ValueError(f"expected different keys of {what}; got {twice.item()!r} more than once")
    return keys[codes]


def given_keys(values: Any, size: int, what: str) -> np.ndarray:
    """Keys that somebody gives, [size], each different; 0, 1, ... for None."""
    if values is None:
        if size > MOST_NUMBERED:
            raise ValueError(
                f"expected at most {MOST_NUMBERED} {what} whose keys are not given; got {size}: "
                f"their numbers would take {size * 8 / 1e9:.0f} GB, and most of them have no cell "
                "(from_arrays(matrix.row, matrix.col, matrix.data) of a COO matrix has the others)"
            )
        return np.arange(size, dtype=np.int64)
    keys = distinct_keys(values, what)
    if len(keys) != size:
        raise ValueError(f"expected {size} keys of {what}, one for each; got {len(keys)}")
    return keys


def ratings_of(
    values: pyarrow.ChunkedArray | None, size: int, where: Callable[[int], str]
) -> np.ndarray:
    """float64 [size], finite; ones for None.

    Raises: ValueError for one that is missing or not finite; TypeError for what are no numbers.
    """
    import pyarrow as pa

    if values is None:
        return np.ones(size)
    plain: Any = values_of_categories(values)
    kind: Any = plain.type
    number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    if not any(is_kind(kind) for is_kind in (*number, pa.types.is_null)):
        raise TypeError(f"expected ratings that are numbers; got {kind}")
    ratings = plain.cast(pa.float64(), safe=False).to_numpy()  # null becomes nan
    bad = np.flatnonzero(~np.isfinite(ratings))
    if len(bad):
        row, value = int(bad[0]), plain[int(bad[0])].as_py()
        told = "none" if value is None else value
        raise ValueError(f"expected ratings that are finite; got {told} in {where(row)}")
    if ratings.size and np.abs(ratings).max() > np.finfo(np.float32).max:
        row = int(np.abs(ratings).argmax())
        raise ValueError(f"expected ratings within float32; got {ratings[row]} in {where(row)}")
    return ratings


# --- tables ---------------------------------------------------------------------------------------

ROLES: dict[str, Sequence[str]] = {
    "user": (
        *("user", "userid", "users", "uid", "username", "customer", "customerid", "reviewer"),
        *("reviewerid", "visitor", "visitorid", "member", "memberid", "account", "accountid"),
    ),
    "item": (
        *("item", "itemid", "items", "iid", "movie", "movieid", "product", "productid", "asin"),
        *("parentasin", "book", "bookid", "isbn", "article", "articleid", "artist", "artistid"),
        *("song", "songid", "track", "trackid", "game", "gameid", "business", "businessid"),
        *("location", "locationid", "place", "placeid", "venue", "venueid", "recipe", "recipeid"),
    ),
    "rating": (
        *("rating", "ratings", "score", "stars", "overall", "bookrating", "value", "weight"),
        *("count", "plays", "playcount", "listencount"),
    ),
    "timestamp": (
        *("timestamp", "time", "unixtime", "unixreviewtime", "datetime", "date", "ts"),
        *("createdat",),
    ),
}


def plain_name(name: str) -> str:
    """A column's name without case and marks, and without RecBole's ``:token``."""
    name = name.strip().partition(":")[0]
    return "".join(letter for letter in name.lower() if letter.isalnum())


def choose(
    names: Sequence[str] | None,
    width: int,
    asked: dict[str, str | int | bool | None],
    source: str,
) -> dict[str, int]:
    """Which column plays which role: by the name or position asked for, else by known names, else
    (where there are no names) in the order user, item, rating, timestamp.

    Args:
        names: of the columns; None where there are none.
        width: how many columns there are.
        asked: by role: a name, a position, None for a guess, False for "not there".
        source: what errors begin with.

    Raises: ValueError, IndexError, TypeError for columns that are not there or play two roles.
    """
    there = f"it has {width} columns without names"
    if names is not None:
        there = f"its columns are {', '.join(map(repr, names))}"
    optional = ("rating", "timestamp")
    roles = [role for role in ROLES if role not in optional or asked.get(role) is not False]
    chosen: dict[str, int] = {}
    for role in roles:
        ask = asked.get(role)
        if isinstance(ask, bool) or not isinstance(ask, (str, int, np.integer, type(None))):
            raise TypeError(f"expected {role} to be a column's name or position; got {ask!r}")
        if isinstance(ask, str):
            found = [place for place, name in enumerate(names or ()) if name == ask]
            if len(found) != 1:
                number = "two" if found else "no such"
                raise ValueError(
                    f"{source}: expected a column {ask!r} ({role}); got {number}: {there}"
                )
            chosen[role] = found[0]
        elif ask is not None:
            if not 0 <= ask < width:
                raise IndexError(f"{source}: expected {role} in 0..{width - 1}; got {ask}: {there}")
            chosen[role] = int(ask)
    plain = [plain_name(name) for name in names or ()]
    for role in roles:
        if role in chosen:
            continue
        if names is not None:
            places = [plain.index(name) for name in ROLES[role] if name in plain]
        else:
            places = [list(ROLES).index(role)] if role != "timestamp" or width == 4 else []
        places = [place for place in places if place < width and place not in chosen.values()]
        if places:
            chosen[role] = places[0]
        elif role in ("user", "item"):
            raise ValueError(
                f"{source}: expected a column for the {role}, with a name like "
                f"{ROLES[role][0]!r} or {ROLES[role][1]!r}; {there}: say which with {role}="
            )
    if len(set(chosen.values())) < len(chosen):
        raise ValueError(f"{source}: expected different columns; got {chosen}")
    return chosen


def _named(taken: dict[str, Any], source: str) -> Columns:
    return Columns(
        taken["user"],
        taken["item"],
        taken.get("rating"),
        taken.get("timestamp"),
        where=lambda row: f"row {row} of {source}",
    )


def _table_columns(table: Any, asked: dict[str, Any], source: str) -> Columns:
    chosen = choose(table.column_names, table.num_columns, asked, source)
    return _named({role: table.column(place) for role, place in chosen.items()}, source)


def frame_columns(frame: Any, asked: dict[str, Any]) -> Columns:
    """The columns of a pandas or polars frame, an Arrow table, or anything that has ``columns`` and
    gives one by its name.

    Raises: TypeError for what is no frame; as :func:`choose`.
    """
    import pyarrow as pa

    source = f"the {type(frame).__name__}"
    if isinstance(frame, pa.RecordBatch):
        frame = pa.Table.from_batches([frame])
    if isinstance(frame, pa.Table):
        return _table_columns(frame, asked, source)
    if hasattr(frame, "columns") and hasattr(frame, "__getitem__"):
        # Only the columns that are needed: others may be of types that Arrow does not have.
        names = list(frame.columns)
        plain = [name if isinstance(name, str) else repr(name) for name in names]
        chosen = choose(plain, len(plain), asked, source)
        taken = {role: column(frame[names[at]], f"a column {role}") for role, at in chosen.items()}
        return _named(taken, source)
    if hasattr(frame, "__arrow_c_stream__"):
        return _table_columns(pa.table(frame), asked, source)
    if hasattr(frame, "to_arrow"):
        return _table_columns(frame.to_arrow(), asked, source)
    raise TypeError(f"expected a frame of pandas, polars or pyarrow; got {type(frame).__name__}")


def parquet_columns(path: str, asked: dict[str, Any]) -> Columns:
    """The columns of a Parquet file; only those are read.

    Raises: ValueError for a damaged file; as :func:`choose`.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            names = file.schema_arrow.names
            chosen = choose(names, len(names), asked, path)
            table = file.read(columns=[names[place] for place in chosen.values()])
            taken = {role: table.column(names[place]) for role, place in chosen.items()}
        if not table.num_rows:
            raise ValueError(f"{path}: expected interactions; got no rows")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read ({error})") from None
    return _named(taken, path)
