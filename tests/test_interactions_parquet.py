"""Interactions out of Parquet."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from rating_files import ROWS, check, write
from vecsmith.data import Interactions


def table(**changed):
    users, items, ratings, times = (list(column) for column in zip(*ROWS, strict=True))
    columns = {"userId": users, "movieId": items, "rating": ratings, "timestamp": times}
    return pa.table({**columns, **changed})


def test_parquet(tmp_path):
    path = tmp_path / "ratings.parquet"
    parquet.write_table(table(), path, row_group_size=2)
    check(Interactions.read(path))
    check(Interactions.read(path, user="userId", item=1, timestamp=False), timestamps=False)
    check(Interactions.read(path.rename(tmp_path / "data"), format="parquet"))
    check(Interactions.read(tmp_path / "data"))
    strings = pa.array(["a", "b", "a", "c"])
    kinds = [strings, strings.dictionary_encode(), strings.cast(pa.binary())]
    for column in [*kinds, strings.cast(pa.large_string())]:
        parquet.write_table(table(userId=column), path)
        assert Interactions.read(path).users.tolist() == ["a", "b", "c"]
    moments = pa.array(np.array([5, 6, 7, 8], "M8[ns]"))
    parquet.write_table(table(timestamp=moments), path)
    assert Interactions.read(path).timestamps.dtype == "M8[us]"


def test_parquet_with_columns_missing(tmp_path):
    path = tmp_path / "ratings.parquet"
    parquet.write_table(table().rename_columns(["a", "b", "rating", "c"]), path)
    with pytest.raises(ValueError, match=r"ratings.parquet: .* 'a', 'b', 'rating', 'c': say which"):
        Interactions.read(path)
    with pytest.raises(
        ValueError, match=r"column 'x' \(item\); got no such: .* 'a', 'b', 'rating'"
    ):
        Interactions.read(path, user="a", item="x")
    with pytest.raises(IndexError, match=r"item in 0..3; got 4: its columns are 'a'"):
        Interactions.read(path, user="a", item=4)
    assert len(Interactions.read(path, user="a", item="b")) == 4


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"userId": [1, None, 2, 3]}, ValueError, "key of users in every row; got none in row 1"),
        ({"userId": [1.0, 2.0, 3.0, 4.0]}, TypeError, "integers or strings; got double"),
        ({"userId": [True, True, True, False]}, TypeError, "integers or strings; got bool"),
        ({"movieId": pa.array([2**63, 1, 2, 3], pa.uint64())}, ValueError, "within int64"),
        ({"movieId": pa.array([b"\xff"] * 4)}, ValueError, "keys of items that are UTF-8"),
        ({"rating": [1, None, 2, 3]}, ValueError, "finite; got none in row 1 of .*ratings.parquet"),
        ({"rating": [1, 2, 3, float("inf")]}, ValueError, "finite; got inf in row 3"),
        ({"rating": [1, 1e39, 2, 3]}, ValueError, r"within float32; got 1e\+39 in row 1"),
        ({"rating": ["1", "2", "3", "4"]}, TypeError, "ratings that are numbers; got string"),
        ({"timestamp": ["1", "2", "3", "4"]}, TypeError, "numbers or dates; got string"),
        ({"timestamp": [1, 2, None, 4]}, ValueError, "timestamp in every row; got none in row 2"),
        ({"timestamp": [1, 2, 3, float("nan")]}, ValueError, "finite; got nan in row 3"),
        ({"timestamp": pa.array([2**63, 1, 2, 3], pa.uint64())}, ValueError, "within int64"),
        ({"movieId": [[1], [2], [3], [4]]}, TypeError, "integers or strings; got list"),
    ],
)
def test_parquet_that_is_refused(tmp_path, changed, error, words):
    path = tmp_path / "ratings.parquet"
    parquet.write_table(table(**changed), path)
    with pytest.raises(error, match=words):
        Interactions.read(path)


def test_damaged_parquet(tmp_path):
    path = tmp_path / "ratings.parquet"
    parquet.write_table(table(), path)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:4] + b"\0" * 100 + data[104:], b""):
        with pytest.raises(ValueError, match=r"ratings.parquet: (not a Parquet file|damaged)"):
            Interactions.read(write(tmp_path, damaged, "ratings.parquet"))
    parquet.write_table(table().slice(0, 0), path)
    with pytest.raises(ValueError, match=r"ratings.parquet: expected interactions; got no rows"):
        Interactions.read(path)
