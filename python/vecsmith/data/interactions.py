"""Users, items, and what the ones think of the others."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from vecsmith.data import _interaction_cells as _cells
from vecsmith.data import _interaction_columns as _columns
from vecsmith.data import _interaction_files as _files
from vecsmith.data import _interaction_keys as _keys
from vecsmith.data import _interaction_text as _text
from vecsmith.data import _interaction_times as _times
from vecsmith.data._interaction_matrix import cells_of

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Column = str | int | None


class Interactions:
    """A sparse matrix users x items of ratings (or of counts, or of ones), and the keys of both.

    Made by :meth:`read` (files), :meth:`from_arrays`, :meth:`from_frame` and :meth:`from_scipy`;
    the constructor takes parts as they are. Keys are integers of int64 (any, beyond 2^31 too) or
    strings; where they are read they are **sorted**, so that neither the order of the rows nor
    the machine decides who is number 0.

    Attributes:
        matrix: ``scipy.sparse.csr_matrix`` float32 [U, I]: a stored cell is an interaction, also
            one of rating 0. Canonical (sorted, each cell once), finite; indices are int32 where
            they suffice, else int64. What is made from these interactions may share it: not to be
            changed.
        users: int64 or str [U]: row u belongs to ``users[u]``. Where one str is far longer than
            most, an array of objects that are ``np.str_``: the memory is that of the keys.
        items: int64 or str [I]: column i belongs to ``items[i]``.
        timestamps: int64, float64 or datetime64[us], of ``matrix.data``'s cells [nnz]; or None.

    ``len()`` is the number of cells, ``shape`` is (U, I).

    Raises: ValueError for shapes that do not go together; TypeError for other dtypes.
    """

    def __init__(
        self,
        matrix: Any,
        users: np.ndarray,
        items: np.ndarray,
        timestamps: np.ndarray | None = None,
    ) -> None:
        if getattr(matrix, "format", None) != "csr" or matrix.dtype != np.float32:
            raise TypeError(
                "expected a CSR matrix of float32 (Interactions.from_scipy takes others); "
                f"got {type(matrix).__name__} of {getattr(matrix, 'dtype', None)}"
            )
        if matrix.shape != (len(users), len(items)):
            raise ValueError(
                f"expected a matrix of shape [{len(users)}, {len(items)}], users and items; "
                f"got {list(matrix.shape)}"
            )
        if timestamps is not None and timestamps.shape != (matrix.nnz,):
            raise ValueError(
                f"expected timestamps of shape [{matrix.nnz}], one for each cell; "
                f"got {list(timestamps.shape)}"
            )
        self.matrix = matrix
        self.users = users
        self.items = items
        self.timestamps = timestamps

    @property
    def shape(self) -> tuple[int, int]:
        """(number of users, number of items)."""
        return len(self.users), len(self.items)

    def __len__(self) -> int:
        """The number of cells."""
        return int(self.matrix.nnz)

    def __repr__(self) -> str:
        times = "" if self.timestamps is None else ", with timestamps"
        sizes = f"{len(self.users)} users x {len(self.items)} items, {len(self)} cells"
        return f"Interactions({sizes}{times})"

    # --- in -----------------------------------------------------------------------------------

    @classmethod
    def read(
        cls,
        path: Paths,
        *,
        user: Column = None,
        item: Column = None,
        rating: Column | bool = None,
        timestamp: Column | bool = None,
        format: str | None = None,
        sep: str | None = None,
        header: bool | None = None,
        skip_lines: int = 0,
        encoding: str = "utf-8",
        duplicates: str = "error",
    ) -> Interactions:
        """Read a file, or several as if they were one.

        A file is Parquet if it begins as one, else text; text that is named .gz, .bz2, .xz or .zst
        is decompressed. Text is read in blocks; memory grows with the number of interactions (some
        100 bytes each while reading) and with the keys, not with the text. The keys of a column of
        text are integers where all of them are written as one writes integers (no ``007``) and fit
        int64, else strings. Spaces around a field are no part of it; an empty field is a missing
        value, and no word is.

        Args:
            path: the file, or a sequence of files, one after the other.
            user, item, rating, timestamp: the column's name or its position from 0. None guesses:
                by the names of a header or of Parquet (userId, user_id, item, movieId, rating,
                stars, plays, timestamp, ..., without regard to case and marks), without a header
                the first, second and third column, and the fourth of exactly four. False for
                rating or timestamp: leave it out. Without ratings each is 1.
            format: "text" (columns), "lists" (lines ``user item item ...`` between ASCII white
                space, as LightGCN has them; a user without items has a row without cells) or
                "parquet"; None: Parquet or text.
            sep: what is between the columns of text: any string; " " is any run of spaces and
                tabs. None guesses: what makes as many columns, two or more, of each of the first
                lines among tab (first), ``::``, comma, semicolon and bar (an error if several of
                these do), then space. Between commas or semicolons fields may stand in double
                quotes, which close in the line in which they open.
            header: whether the first line of text names the columns. None guesses: it does if a
                name is asked for, if it names both user and item, and if it has no number where the
                second line has one.
            skip_lines: so many lines are skipped before anything else.
            encoding: of text; a byte order mark is skipped.
            duplicates: what to make of a pair of user and item that comes more than once: "error",
                "sum", "mean", "max", or "last": the one with the latest timestamp, of several or
                without timestamps the last in the file. The merged cell has the latest timestamp.

        Raises:
            FileNotFoundError: there is no such file. IsADirectoryError: it is a folder.
            ValueError: an empty file; a column that is not there (the message lists those that
                are); with the line's number: a line with too few or too many columns, a quote
                that it does not close, a missing key, a rating that is no finite number, a
                timestamp that is neither number nor date, text in another encoding; a separator
                that cannot be guessed; a pair that comes twice; damaged files.
            IndexError: a position beyond the columns. TypeError: an argument of another type; a
                column of Parquet that holds neither keys nor numbers.
        """
        asked = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
        if format not in (None, "text", "lists", "parquet"):
            raise ValueError(f"expected format 'text', 'lists' or 'parquet'; got {format!r}")
        if sep is not None and (not isinstance(sep, str) or not sep or "\n" in sep):
            raise ValueError(f"expected sep to be a string without line ends; got {sep!r}")
        if _integer("skip_lines", skip_lines) < 0:
            raise ValueError(f"expected skip_lines >= 0; got {skip_lines}")
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"expected the name of an encoding; got {encoding!r}") from None
        paths = _text.paths_of(path)
        if format == "lists":
            return cls._of_lists(paths, skip_lines, encoding, duplicates)
        parts = []
        for name in paths:
            if format == "parquet" or (format is None and _text.is_parquet(name)):
                parts.append(_columns.parquet_columns(name, asked))
                continue
            parts.append(
                _text.text_columns(
                    name, asked, sep=sep, header=header, skip_lines=skip_lines, encoding=encoding
                )
            )
        whole = _text.one_after_the_other(parts)
        parts.clear()
        return cls._of_columns(whole, duplicates)

    @classmethod
    def from_arrays(
        cls,
        users: Any,
        items: Any,
        ratings: Any = None,
        timestamps: Any = None,
        *,
        duplicates: str = "error",
    ) -> Interactions:
        """Interaction n is ``users[n]``, ``items[n]``, ``ratings[n]``.

        Args:
            users, items: [N] keys: sequences, arrays, tensors, or columns of pandas, polars or
                pyarrow, of integers or of strings.
            ratings: [N] numbers or bool, finite; ones if None.
            timestamps: [N] integers, floating point numbers or dates; or None.
            duplicates: as in :meth:`read`.

        Raises:
            ValueError: lengths that differ, missing keys, masked values, ratings that are not
                finite, dates beyond datetime64[us], and pairs that come twice.
            TypeError: other types.
        """
        given = {"users": users, "items": items, "ratings": ratings, "timestamps": timestamps}
        taken = {
            name: None if values is None and name in ("ratings", "timestamps") else
            _columns.column(values, name)
            for name, values in given.items()
        }  # fmt: skip
        lengths = {name: len(values) for name, values in taken.items() if values is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected columns of one length; got {lengths}")
        columns: Any = taken
        return cls._of_columns(
            _columns.Columns(**columns, where=lambda row: f"row {row}"), duplicates
        )

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        user: Column = None,
        item: Column = None,
        rating: Column | bool = None,
        timestamp: Column | bool = None,
        duplicates: str = "error",
    ) -> Interactions:
        """The columns of a table: a frame of pandas or polars, a pyarrow.Table, or what gives one
        by ``__arrow_c_stream__`` or ``to_arrow``. Arguments and errors are those of :meth:`read`;
        categories are their values."""
        asked = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
        return cls._of_columns(_columns.frame_columns(frame, asked), duplicates)

    @classmethod
    def from_scipy(
        cls,
        matrix: Any,
        users: Any = None,
        items: Any = None,
        *,
        missing: float = 0.0,
        duplicates: str = "error",
    ) -> Interactions:
        """The stored cells of a sparse matrix, or the cells of an array that are not ``missing``.
        They are copied.

        Args:
            matrix: [U, I]: a scipy.sparse matrix or array of any format, sorted or not, of numbers
                or bool: stored zeros are kept (those in the blocks of BSR, too; but not those of
                DIA, which fill its diagonals). Or an array.
            users: U different keys, in the order of the rows; 0, 1, ... if None.
            items: I different keys, in the order of the columns; 0, 1, ... if None.
            missing: what an array has where there is nothing, rounded to the array's type; may be
                nan. The masked cells of a ``numpy.ma`` array are missing, too.
            duplicates: as in :meth:`read`, for formats that may store a cell twice.

        Raises:
            ValueError: cells that are not finite or come twice, indices out of range, keys that
                repeat or are too few, and 2^31 users or items and more whose keys are not given
                (:meth:`from_arrays` takes any ids, and has rows for those alone that have cells).
            TypeError: other types.
        """
        rows, columns, ratings, shape = cells_of(matrix, missing)
        row_keys = _columns.given_keys(users, shape[0], "users")
        column_keys = _columns.given_keys(items, shape[1], "items")
        made, _ = _cells.compressed(rows, columns, ratings, None, row_keys, column_keys, duplicates)
        return cls(made, row_keys, column_keys)

    @classmethod
    def _of_columns(cls, columns: _columns.Columns, duplicates: str) -> Interactions:
        where = columns.where
        rows, users = _columns.encode(columns.users, "users", where, columns.is_text)
        columns.users = None
        places, items = _columns.encode(columns.items, "items", where, columns.is_text)
        columns.items = None
        ratings = _columns.ratings_of(columns.ratings, len(rows), where)
        timestamps = _times.timestamps_of(columns.timestamps, where)
        columns.ratings = columns.timestamps = None
        matrix, timestamps = _cells.compressed(
            rows, places, ratings, timestamps, users, items, duplicates
        )
        return cls(matrix, users, items, timestamps)

    @classmethod
    def _of_lists(
        cls, paths: list[str], skip_lines: int, encoding: str, duplicates: str
    ) -> Interactions:
        import pyarrow as pa

        parts = [_text.list_columns(path, skip_lines, encoding) for path in paths]
        heads = pa.chunked_array([chunk for part in parts for chunk in part[0].chunks])
        tails = pa.chunked_array([chunk for part in parts for chunk in part[2].chunks])
        lengths = np.concatenate([part[1] for part in parts])
        rows, users = _columns.encode(heads, "users", str, is_text=True)
        columns, items = _columns.encode(tails, "items", str, is_text=True)
        rows = np.repeat(rows, lengths)
        matrix, _ = _cells.compressed(
            rows, columns, np.ones(len(rows)), None, users, items, duplicates
        )
        return cls(matrix, users, items)

    # --- keys ---------------------------------------------------------------------------------

    @cached_property
    def _user_order(self) -> np.ndarray | None:
        return _keys.order_of(self.users)

    @cached_property
    def _item_order(self) -> np.ndarray | None:
        return _keys.order_of(self.items)

    def user_index(self, key: Any) -> Any:
        """The row of a user, an int; of an array of keys their rows, int64 of its shape.

        Raises: KeyError naming the first key that is not there.
        """
        return _keys.index_of(self.users, self._user_order, key, "user")

    def item_index(self, key: Any) -> Any:
        """The column of an item, an int; of an array of keys their columns, int64 of its shape.

        Raises: KeyError naming the first key that is not there.
        """
        return _keys.index_of(self.items, self._item_order, key, "item")

    def reindex(
        self, users: Any = None, items: Any = None, *, unknown: str = "error"
    ) -> Interactions:
        """The same cells in the rows and columns of other keys: a test set in those of its training
        set.

        Args:
            users, items: keys, each different, in their new order; None: those of now.
            unknown: what to make of a cell whose user or item is not among them: "error" or "drop".

        Raises:
            KeyError: a key that has cells and no place, under "error"; it is named.
            ValueError: keys that repeat.
        """
        if unknown not in ("error", "drop"):
            raise ValueError(f"expected unknown 'error' or 'drop'; got {unknown!r}")
        rows, row_keys = self._placed("user", _cells.rows_of(self.matrix), users, unknown)
        columns, column_keys = self._placed("item", self.matrix.indices, items, unknown)
        keep = (rows >= 0) & (columns >= 0)
        matrix, timestamps = _cells.compressed(
            rows[keep],
            columns[keep],
            self.matrix.data[keep].astype(np.float64),
            None if self.timestamps is None else self.timestamps[keep],
            row_keys,
            column_keys,
            "error",
        )
        return type(self)(matrix, row_keys, column_keys, timestamps)

    def _placed(
        self, what: str, indices: np.ndarray, new: Any, unknown: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """(where the cells with these users or items are among the new keys or -1, those keys)."""
        keys = self.users if what == "user" else self.items
        wanted = keys if new is None else _columns.distinct_keys(new, what + "s")
        places = _keys.find(wanted, _keys.order_of(wanted), keys)[indices]
        lost = np.flatnonzero(places < 0)
        if len(lost) and unknown == "error":
            raise KeyError(f"no {what} {keys[indices[lost[0]]].item()!r} among the new keys")
        return places, wanted

    # --- fewer cells --------------------------------------------------------------------------

    def _kept(self, keep: np.ndarray) -> Interactions:
        timestamps = None if self.timestamps is None else self.timestamps[keep]
        return type(self)(_cells.kept(self.matrix, keep), self.users, self.items, timestamps)

    def binarize(self, threshold: float | None = None) -> Interactions:
        """Ones where the rating is at least ``threshold``, and no cell elsewhere; ones in all cells
        if None. Users and items stay."""
        if threshold is not None and not np.isfinite(_number("threshold", threshold)):
            raise ValueError(f"expected a threshold that is finite; got {threshold}")
        all_of_them = np.ones(len(self), bool)
        made = self._kept(all_of_them if threshold is None else self.matrix.data >= threshold)
        made.matrix.data = np.ones_like(made.matrix.data)
        return made

    def filter(self, *, min_user: int = 0, min_item: int = 0) -> Interactions:
        """Without the users of fewer than ``min_user`` cells and the items of fewer than
        ``min_item``; again, until all that are left have enough (with both equal to k: the k-core).
        Keys of those that go are gone, too."""
        for name, least in (("min_user", min_user), ("min_item", min_item)):
            if _integer(name, least) < 0:
                raise ValueError(f"expected {name} >= 0; got {least}")
        cells, users, items = _cells.core(self.matrix, min_user, min_item)
        left = self._kept(cells)
        new = np.cumsum(items) - 1
        indptr = np.append(left.matrix.indptr[:-1][users], left.matrix.nnz)
        shape = (int(users.sum()), int(items.sum()))
        matrix = _cells.csr(left.matrix.data, new[left.matrix.indices], indptr, shape)
        return type(self)(matrix, self.users[users], self.items[items], left.timestamps)

    # --- splits -------------------------------------------------------------------------------

    def _split(self, test: np.ndarray) -> tuple[Interactions, Interactions]:
        return self._kept(~test), self._kept(test)

    def split_leave_one_out(self, *, seed: int = 0) -> tuple[Interactions, Interactions]:
        """(train, test): of every user with two cells or more one is for the test, the latest
        where there are timestamps (of several that are latest one at random), else any.

        Both have the users and items of this one. The same seed gives the same split everywhere.
        """
        return self._split(
            _cells.last_of_rows(self.matrix, self.timestamps, _seed("one out", seed))
        )

    def split_ratio(self, test: float = 0.2, *, seed: int = 0) -> tuple[Interactions, Interactions]:
        """(train, test): of every user's n cells, at random, n * test for the test, rounded (half
        up), and at most n - 1.

        Both have the users and items of this one. The same seed gives the same split everywhere.

        Raises: ValueError for a share that is not between 0 and 1.
        """
        if not 0 < _number("test", test) < 1:
            raise ValueError(f"expected test between 0 and 1; got {test}")
        lengths = np.diff(self.matrix.indptr).astype(np.int64)
        taken = np.minimum(np.floor(lengths * test + 0.5).astype(np.int64), lengths - 1)
        ranks = _cells.random_ranks(self.matrix, _seed("", seed))
        return self._split(ranks < taken[_cells.rows_of(self.matrix)])

    def split_by_time(
        self, at: Any = None, *, quantile: float | None = None
    ) -> tuple[Interactions, Interactions]:
        """(train, test): cells before ``at``, and those at it or after.

        Both have the users and items of this one. A user may be in the test alone: what is known
        later is not known to the training.

        Args:
            at: a timestamp: a number where they are numbers, a date where they are dates
                (``datetime64``, ``datetime``, ``date`` or "2015-01-31"; UTC where nothing else is
                said).
            quantile: in its place: the share of the cells that are to come before, rounded to whole
                cells (half up); all of the same time go together, to the test.

        Raises:
            ValueError: there are no timestamps, or not just one of the two is given.
            TypeError: a time of another kind than the timestamps.
        """
        if self.timestamps is None:
            raise ValueError("expected interactions with timestamps; got some without")
        if (at is None) == (quantile is None):
            raise ValueError(f"expected at or quantile; got at={at}, quantile={quantile}")
        times = self.timestamps
        if quantile is not None:
            if not 0 < _number("quantile", quantile) < 1:
                raise ValueError(f"expected quantile between 0 and 1; got {quantile}")
            place = min(int(np.floor(quantile * len(times) + 0.5)), len(times) - 1)
            when = np.partition(times, place)[place] if len(times) else 0
        else:
            when = _times.moment(at, times)
        return self._split(times >= when if len(times) else np.zeros(0, bool))

    def cross_validation(
        self, folds: int = 5, *, seed: int = 0
    ) -> Iterator[tuple[Interactions, Interactions]]:
        """(train, test) for each fold: every user's cells are dealt to the folds at random, so that
        each is in one test, and no two tests differ by more than one cell of a user.

        All have the users and items of this one. Users with one cell are in no test. The same seed
        gives the same folds everywhere.

        Raises: ValueError for fewer than two folds.
        """
        if _integer("folds", folds) < 2:
            raise ValueError(f"expected folds >= 2; got {folds}")
        lengths = np.diff(self.matrix.indptr)
        rows = _cells.rows_of(self.matrix)
        # Else the first folds would have the odd cells of all users.
        bits = _cells.random_bits(len(lengths), _seed("firsts", seed))
        firsts = (bits % np.uint64(folds)).astype(np.int64)
        dealt = (_cells.random_ranks(self.matrix, _seed("folds", seed)) + firsts[rows]) % folds
        dealt[lengths[rows] < 2] = -1
        return (self._split(dealt == fold) for fold in range(folds))

    # --- files --------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, interactions.safetensors, and users.txt, items.txt where
        keys are strings. All files are replaced together or none; others are left alone.

        Raises: OSError if the disk is full, or the folder cannot be written.
        """
        _files.save_folder(folder, self.matrix, self.users, self.items, self.timestamps)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Interactions:
        """Load what :meth:`save` has written, memory-mapped (privately: the files stay as they
        are).

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged, of another kind or a later version.
        """
        return cls(*_files.load_folder(folder))


def _seed(kind: str, seed: Any) -> int:
    """The same seed says nothing about the splits of another kind."""
    return _integer("seed", seed) ^ int.from_bytes(kind.encode(), "little")


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} to be an int; got {type(value).__name__}") from None


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a number; got {value!r}")
    return float(value)
