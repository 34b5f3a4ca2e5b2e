"""Interactions out of arrays, frames and matrices, and their keys."""

from __future__ import annotations

import datetime
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from interaction_tables import INTEGERS, PAIRS, check_canonical, random_interactions, triples
from vecsmith.data import Interactions

# --- arrays ---------------------------------------------------------------------------------------


@given(PAIRS, st.data())
@settings(deadline=None, max_examples=200)
def test_keys_go_in_and_come_back(pairs, data):
    numbers = st.floats(-1e6, 1e6, width=32)
    ratings = data.draw(st.lists(numbers, min_size=len(pairs), max_size=len(pairs)))
    times = data.draw(st.lists(INTEGERS, min_size=len(pairs), max_size=len(pairs)))
    users, items = [u for u, _ in pairs], [i for _, i in pairs]
    made = Interactions.from_arrays(users, items, ratings, times)
    check_canonical(made)
    assert len(made) == len(pairs)
    assert triples(made) == dict(zip(pairs, ratings, strict=True))
    assert made.users.tolist() == sorted(set(users))
    assert made.items.tolist() == sorted(set(items))
    ordered = sorted(zip(pairs, times, strict=True))
    assert made.timestamps.tolist() == [time for _, time in ordered]
    for keys, index in ((made.users, made.user_index), (made.items, made.item_index)):
        np.testing.assert_array_equal(index(keys), np.arange(len(keys)))
        for at, key in enumerate(keys.tolist()):
            assert index(key) == at
    order = data.draw(st.permutations(range(len(pairs))))
    again = Interactions.from_arrays(
        *([part[i] for i in order] for part in (users, items, ratings))
    )
    assert triples(again) == triples(made)
    np.testing.assert_array_equal(again.users, made.users)


def test_any_kind_of_column():
    users, items = [7, 2**40, 7], ["b", "a", "a"]
    ratings, times = [1.0, 2.0, 3.0], [30, 20, 10]
    expected = {(7, "b"): 1.0, (2**40, "a"): 2.0, (7, "a"): 3.0}
    strided = np.array([users, users]).T.copy()[:, 0]
    assert not strided.flags.c_contiguous
    for given_users in (
        tuple(users),
        np.array(users),
        strided,
        np.array(users, ">i8"),
        np.array(users, np.uint64),
        np.array(users, object),
        torch.tensor(users),
        pd.Series(users),
        pd.Series([*users[:2], 7], dtype="Int64", index=[5, 5, 5]),
        pa.array(users),
        pa.chunked_array([users[:1], users[1:]]),
        iter(users),
        pd.Series(users).astype("category"),
    ):
        made = Interactions.from_arrays(given_users, items, ratings)
        assert triples(made) == expected
        assert made.users.dtype == np.int64
    for given_items in (
        np.array(items),
        np.array(items, object),
        pd.Series(items),
        pd.Series(items, dtype="category").cat.add_categories("z"),
        pa.array(items, pa.large_string()),
    ):
        assert triples(Interactions.from_arrays(users, given_items, ratings)) == expected
    for given_ratings in (
        np.array(ratings, np.float16),
        np.array(ratings, np.int8),
        np.array(ratings, np.longdouble),
        np.array(ratings)[::-1][::-1],
        np.ma.array(ratings),
        torch.tensor(ratings, dtype=torch.float64, requires_grad=True),
        torch.tensor(ratings, dtype=torch.bfloat16),
        pd.Series(ratings).astype("category"),
        pd.Series(ratings, dtype="Float32"),
        pa.array([1, 2, 3], pa.decimal128(5, 2)),
    ):
        assert triples(Interactions.from_arrays(users, items, given_ratings)) == expected
    flags = Interactions.from_arrays(users, items, np.array([True, False, True]))
    assert sorted(flags.matrix.data) == [0, 1, 1]  # a stored 0 is a rating
    for given_times, kind in (
        (times, np.int64),
        (np.array(times, np.int32), np.int64),
        (np.array(times, np.float32), np.float64),
        (np.array(times, "M8[s]"), "M8[us]"),
        (np.array(times, "M8[D]"), "M8[us]"),
        (pd.Series(pd.to_datetime(times, unit="s", utc=True)), "M8[us]"),
        ([datetime.datetime(2020, 1, day) for day in times], "M8[us]"),
        ([datetime.date(2020, 1, day) for day in times], "M8[us]"),
        (np.array(times, "M8[Y]"), "M8[us]"),
        (pa.array([time * 86_400_000 for time in times], pa.date64()), "M8[us]"),
        (pa.array([time * 1000 + 7 for time in times], pa.timestamp("ns")), "M8[us]"),
        (pd.Series(times).astype("category"), np.int64),
    ):
        made = Interactions.from_arrays(users, items, timestamps=given_times)
        assert made.timestamps.dtype == kind
        assert np.argsort(made.timestamps).tolist() == [0, 2, 1]


def test_no_interactions_at_all():
    for made in (
        Interactions.from_arrays([], [], []),
        Interactions.from_arrays(np.empty(0, np.int64), [], [], []),
        Interactions.from_scipy(sparse.csr_matrix((0, 0))),
    ):
        assert made.shape == (0, 0)
        assert len(made) == 0
        assert made.users.dtype == np.int64
        assert len(made.user_index([])) == 0
        for train, test in [
            made.split_ratio(),
            made.split_leave_one_out(),
            *made.cross_validation(),
        ]:
            assert len(train) == len(test) == 0
        assert made.filter(min_user=1).shape == (0, 0)
    assert Interactions.from_scipy(np.zeros((3, 0))).shape == (3, 0)
    for frame in (pd.DataFrame({"user": [], "item": []}), pd.DataFrame(columns=["user", "item"])):
        assert Interactions.from_frame(frame).shape == (0, 0)
        assert Interactions.from_frame(frame.astype("float64")).users.dtype == np.int64
    words = pd.DataFrame({"user": ["a"], "item": [1]})
    assert Interactions.from_frame(words[:0]).users.dtype == "<U1"


@pytest.mark.parametrize(
    ("columns", "error", "words"),
    [
        (([1, 2], [1]), ValueError, "columns of one length; got {'users': 2, 'items': 1}"),
        (([1], [1], [1.0, 2.0]), ValueError, "'ratings': 2"),
        (([1, None], [1, 2]), ValueError, "key of users in every row; got none in row 1"),
        (([1, 2], ["a", np.nan]), ValueError, "key of items in every row; got none in row 1"),
        (([1, 2], pd.Series(["a", None])), ValueError, "key of items in every row"),
        (([1, np.nan], [1, 2]), ValueError, "key of users in every row; got none in row 1"),
        (([1.5, 2], [1, 2]), TypeError, "integers or strings; got double"),
        ((np.array([1.0, 2.0]), [1, 2]), TypeError, "integers or strings; got double"),
        (([True, False], [1, 2]), TypeError, "integers or strings; got bool"),
        (([1, "a"], [1, 2]), TypeError, "expected users of one type; got"),
        (([[1], [2]], [1, 2]), TypeError, "integers or strings; got list"),
        ((np.eye(2, dtype=int), [1, 2]), ValueError, r"one dimension; got shape \[2, 2\]"),
        ((5, [1]), TypeError, "users to be a sequence; got int"),
        (("ab", [1, 2]), TypeError, "users to be a sequence; got str"),
        (([2**63, 1], [1, 2]), ValueError, "within int64"),
        (([2**70, 1], [1, 2]), ValueError, "within int64"),
        ((["a\0", "a"], [1, 2]), ValueError, "do not end with NUL"),
        ((["\ud800", "a"], [1, 2]), ValueError, "users that are text"),
        ((["x" * 4097, "a"], [1, 2]), ValueError, "at most 4096 characters; got one of 4097, 'xxx"),
        (([1, 2], [1, 2], [1, np.nan]), ValueError, "ratings that are finite; got none in row 1"),
        (([1, 2], [1, 2], [1, np.inf]), ValueError, "ratings that are finite; got inf in row 1"),
        (([1, 2], [1, 2], [1, -1e39]), ValueError, r"within float32; got -1e\+39 in row 1"),
        (([1, 2], [1, 2], ["1", "2"]), TypeError, "ratings that are numbers; got"),
        (([1, 2], [1, 2], np.array([1j, 2])), TypeError, "ratings that Arrow .* got complex128"),
        (([1, 2], np.zeros(2, "i4, f4")), TypeError, "items that Arrow has a type for; got"),
        (
            (np.ma.array([1, 2], mask=[0, 1]), [1, 2]),
            ValueError,
            "users .* masked; got row 1 masked",
        ),
        (([1, 2], np.ma.array([1, 2], mask=True)), ValueError, "items .* masked; got row 0 masked"),
        (
            ([1, 2], [1, 2], np.ma.array([1.0, 2.0], mask=[0, 1])),
            ValueError,
            "ratings that are not masked; got row 1 masked",
        ),
        (
            ([1, 2], [1, 2], None, np.ma.array([1, 2], mask=[1, 0])),
            ValueError,
            "timestamps that are not masked; got row 0 masked",
        ),
        (
            ([1, 2], [1, 2], None, [1, None]),
            ValueError,
            "timestamp in every row; got none in row 1",
        ),
        (([1, 2], [1, 2], None, [1.5, np.inf]), ValueError, "timestamps that are finite; got inf"),
        (([1, 2], [1, 2], None, np.array([1, "NaT"], "M8[s]")), ValueError, "none in row 1"),
        *(
            (([1, 2], [1, 2], None, times), ValueError, r"within datetime64\[us\]; got")
            for times in (
                np.array(["2020-01-01", "300000-01-01"], "M8[s]"),
                np.array(["2020-01-01", "-300000-01-01"], "M8[D]"),
                np.array([50, 10**12], "M8[Y]"),
                np.array([50, -(10**18)], "M8[Y]"),
                np.array([50, 2**62], "M8[ms]"),
                pa.array([0, 10**13], pa.timestamp("s")),
                pa.array([0, -(2**62)], pa.timestamp("ms")),
                pa.array([0, -(2**63)], pa.timestamp("us")),
                pa.array([0, 2**31 - 1], pa.date32()),
                pa.array([0, 86_400_000 * 2**36], pa.date64()),
            )
        ),
        (([1, 2], [1, 2], None, ["x", "y"]), TypeError, "numbers or dates; got"),
        (([1, 1], [2, 2]), ValueError, r"user 1 with item 2 more than once \(1 rows too many\)"),
        ((["x", "x"], ["y", "y"]), ValueError, "user 'x' with item 'y' more than once"),
    ],
)
def test_arrays_that_are_refused(columns, error, words):
    with pytest.raises(error, match=words):
        Interactions.from_arrays(*columns)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(-8, 8), st.integers(0, 3))
    ),
    st.sampled_from(["sum", "last", "mean", "max"]),
    st.booleans(),
)
@settings(deadline=None)
def test_cells_that_come_more_than_once(rows, how, timed):
    merged, latest = {}, {}
    for n, (u, i, rating, time) in enumerate(rows):
        merged.setdefault((u, i), []).append(((time if timed else 0, n), rating))
        latest[u, i] = max(time, latest.get((u, i), 0))
    one = {
        "sum": lambda found: sum(rating for _, rating in found),
        "mean": lambda found: np.float32(sum(rating for _, rating in found) / len(found)),
        "max": lambda found: max(rating for _, rating in found),
        "last": lambda found: max(found)[1],
    }[how]
    columns = list(zip(*rows, strict=True)) or [[], [], [], []]
    made = Interactions.from_arrays(*columns[: 3 + timed], duplicates=how)
    check_canonical(made)
    assert triples(made) == {pair: one(found) for pair, found in merged.items()}
    if timed:
        assert made.timestamps.tolist() == [latest[pair] for pair in sorted(latest)]


def test_a_sum_beyond_float32():
    with pytest.raises(ValueError, match="within float32; got one beyond, or a sum of some"):
        Interactions.from_arrays([1, 1], [1, 1], [3e38, 3e38], duplicates="sum")


def test_dates_keep_their_values():
    days = np.array(["1677-01-01", "2262-05-01", "9999-12-31"], "M8[D]")
    most = np.array([2**63 - 1, -(2**63) + 1, 5], "M8[us]")
    for given_times in (days, days.astype("M8[ms]"), pa.array(days), days.tolist(), most):
        made = Interactions.from_arrays([1, 2, 3], [1, 1, 1], timestamps=given_times)
        np.testing.assert_array_equal(made.timestamps, np.asarray(given_times, "M8[us]"))


# --- frames ---------------------------------------------------------------------------------------


class Stream:
    """What newer frames offer."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


class ToArrow:
    """What older frames offer: columns by name, and each to Arrow."""

    def __init__(self, table):
        self._table = table
        self.columns = table.column_names

    def __getitem__(self, name):
        return type("Column", (), {"to_arrow": lambda _: self._table[name]})()


class WholeToArrow:
    """And some only as a whole."""

    def __init__(self, table):
        self._table = table

    def to_arrow(self):
        return self._table


def test_frames():
    frame = pd.DataFrame(
        {
            "title": [object(), object(), object()],  # no column of Arrow
            "Movie ID": ["b", "a", "a"],
            "user_id": [7, 2**40, 7],
            "rating": [1, 2, 3],
            "timestamp": pd.to_datetime(["2020-01-03", "2020-01-02", "2020-01-01"]),
        },
        index=[9, 9, 4],
    )
    table = pa.Table.from_pandas(frame.drop(columns="title"), preserve_index=False)
    expected = {(7, "b"): 1.0, (2**40, "a"): 2.0, (7, "a"): 3.0}
    batch = table.combine_chunks().to_batches()[0]
    frames = (frame, frame.astype({"Movie ID": "category"}), table, batch)
    for one in (*frames, Stream(table), ToArrow(table), WholeToArrow(table)):
        made = Interactions.from_frame(one)
        assert triples(made) == expected
        assert made.timestamps.astype("M8[D]").astype(str).tolist() == [
            *("2020-01-01", "2020-01-03", "2020-01-02")
        ]
        again = Interactions.from_frame(
            one, user="Movie ID", item="user_id", rating=False, timestamp=False
        )
        assert again.users.tolist() == ["a", "b"]
        assert set(again.matrix.data) == {1.0}
        with pytest.raises(ValueError, match=r"column 'movie' \(item\); got no such: .*'Movie ID'"):
            Interactions.from_frame(one, item="movie")
    numbered = pd.DataFrame([[1, 2, 3.0]])
    assert triples(Interactions.from_frame(numbered, user=0, item=1, rating=2)) == {(1, 2): 3.0}
    missing = frame.assign(user_id=[7, np.nan, 7])
    with pytest.raises(ValueError, match="users in every row; got none in row 1 of the DataFrame"):
        Interactions.from_frame(missing)
    with pytest.raises(ValueError, match="more than once"):
        Interactions.from_frame(pd.concat([frame, frame]))
    assert len(Interactions.from_frame(pd.concat([frame, frame]), duplicates="mean")) == 3
    for wrong in ([1, 2], {"user": [1]}, None):
        with pytest.raises(TypeError, match="a frame of pandas, polars or pyarrow; got"):
            Interactions.from_frame(wrong)


# --- matrices -------------------------------------------------------------------------------------

FORMATS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32, np.uint8, bool])
def test_matrices_of_any_format(kind, dtype):
    dense = np.array([[0, 2, 0, 1], [0, 0, 0, 0], [3, 0, 0, 4]]).astype(dtype)
    for one in (sparse.csr_matrix(dense).asformat(kind), sparse.csr_array(dense).asformat(kind)):
        before = one.copy()
        made = Interactions.from_scipy(one)
        check_canonical(made)
        np.testing.assert_array_equal(made.matrix.toarray(), dense.astype(np.float32))
        assert made.users.tolist() == [0, 1, 2]
        assert made.items.tolist() == [0, 1, 2, 3]
        assert (one != before).nnz == 0
    for array in (dense, dense[::-1][::-1], np.asfortranarray(dense), torch.from_numpy(dense)):
        np.testing.assert_array_equal(Interactions.from_scipy(array).matrix.toarray(), dense)


def test_matrices_that_are_not_in_order():
    matrix = sparse.csr_matrix(
        (np.array([1, 2, 0, 4]), np.array([2, 0, 1, 0]), np.array([0, 3, 4])), shape=(2, 3)
    )
    made = Interactions.from_scipy(matrix, ["z", "a"], [2**40, 5, -1])
    check_canonical(made)
    assert triples(made) == {
        ("z", -1): 1.0,
        ("z", 2**40): 2.0,
        ("z", 5): 0.0,  # a stored zero is a cell
        ("a", 2**40): 4.0,
    }
    assert matrix.indices.tolist() == [2, 0, 1, 0]
    assert made.user_index("a") == 1  # keys keep the order they are given in
    assert made.item_index([-1, 2**40, 5]).tolist() == [2, 0, 1]
    twice = sparse.csr_matrix((np.ones(3), np.array([1, 0, 1]), np.array([0, 3])), shape=(1, 2))
    with pytest.raises(ValueError, match="user 0 with item 1 more than once"):
        Interactions.from_scipy(twice)
    assert Interactions.from_scipy(twice, duplicates="sum").matrix.toarray().tolist() == [[1, 2]]
    pairs = sparse.coo_matrix(([1.0, 5.0], ([0, 0], [1, 1])))
    assert Interactions.from_scipy(pairs, duplicates="last").matrix.toarray().tolist() == [[0, 5]]
    # The matrix is a copy.
    matrix.data[:] = 9
    assert 9 not in made.matrix.data


def test_cells_that_an_array_lacks():
    array = np.array([[5, 4, np.nan, 1], [np.nan, 0, 5, np.nan]])
    made = Interactions.from_scipy(array, missing=np.nan)
    assert triples(made) == {(0, 0): 5, (0, 1): 4, (0, 3): 1, (1, 1): 0, (1, 2): 5}
    of_99 = Interactions.from_scipy(np.nan_to_num(array, nan=99), missing=99)
    assert triples(of_99) == triples(made)
    masked = Interactions.from_scipy(np.ma.masked_invalid(array))
    assert triples(masked) == {pair: rating for pair, rating in triples(made).items() if rating}
    with pytest.raises(ValueError, match=r"got nan in row 0, column 2 .missing=nan where"):
        Interactions.from_scipy(array)
    for missing in (0.1, np.float32(0.1), np.float64(0.1)):
        for dtype in (np.float16, np.float32, np.float64):
            tenth = np.array([[0.1, 1], [2, 0.1]], dtype)
            if dtype == np.float64 and missing.__class__ is np.float32:
                continue
            found = Interactions.from_scipy(tenth, missing=missing)
            assert triples(found) == {(0, 1): 1.0, (1, 0): 2.0}
    counts = np.array([[0, 1], [1, 0]], np.int8)
    assert len(Interactions.from_scipy(counts, missing=0.5)) == 4
    assert len(Interactions.from_scipy(counts, missing=-999)) == 4
    assert len(Interactions.from_scipy(counts, missing=np.float64(1))) == 2
    assert len(Interactions.from_scipy(counts.astype(np.float32), missing=1e39)) == 4
    with pytest.raises(ValueError, match="finite; got inf in row 0, column 0"):
        Interactions.from_scipy(np.array([[np.inf]], np.float32), missing=1e39)
    assert len(Interactions.from_scipy(np.array([[np.inf, 1]]), missing=np.inf)) == 1
    for wrong in ("x", None, 1j):
        with pytest.raises(TypeError, match="missing to be a number; got"):
            Interactions.from_scipy(counts, missing=wrong)
    tensor = torch.tensor([[1.0, 0.0]], requires_grad=True)
    assert triples(Interactions.from_scipy(tensor)) == {(0, 0): 1.0}


@pytest.mark.parametrize("kind", FORMATS)
def test_stored_zeros_are_cells(kind):
    matrix = sparse.csr_matrix(([0.0, 2.0, 3.0], ([0, 0, 1], [0, 1, 2])), shape=(2, 3))
    made = Interactions.from_scipy(matrix.asformat(kind))
    # The diagonals of DIA have zeros where nothing was stored.
    zeros = {} if kind == "dia" else {(0, 0): 0.0}
    assert triples(made) == {(0, 1): 2.0, (1, 2): 3.0, **zeros}


def test_more_columns_than_anyone_can_number():
    wide = sparse.coo_matrix(([1.0, 2.0], ([0, 1], [2**33, 5])), shape=(2, 2**33 + 1))
    with pytest.raises(ValueError, match=r"at most 2147483647 items .* got 8589934593: .* 69 GB"):
        Interactions.from_scipy(wide)
    with pytest.raises(ValueError, match=r"at most 2147483647 users .* got 8589934593"):
        Interactions.from_scipy(wide.T)
    made = Interactions.from_arrays(wide.row, wide.col, wide.data)
    assert triples(made) == {(0, 2**33): 1.0, (1, 5): 2.0}


def test_categories_that_are_null():
    keys = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1]), pa.array(["a", None]))
    with pytest.raises(ValueError, match="key of users in every row; got none in row 0"):
        Interactions.from_arrays(keys, [1, 2, 3])
    table = pa.table({"user": [1, 2, 3], "item": keys.take(pa.array([1, 1, 0]))})
    with pytest.raises(ValueError, match="key of items in every row; got none in row 2 of the Ta"):
        Interactions.from_frame(table)
    ratings = pa.DictionaryArray.from_arrays(pa.array([1, 0, 0]), pa.array([4.0, None]))
    with pytest.raises(ValueError, match="ratings that are finite; got none in row 0"):
        Interactions.from_arrays([1, 2, 3], [1, 2, 3], ratings)


def damaged(**parts):
    matrix = sparse.csr_matrix(np.eye(3))
    for name, values in parts.items():
        setattr(matrix, name, np.array(values))
    return matrix


@pytest.mark.parametrize(
    ("matrix", "options", "error", "words"),
    [
        (np.eye(3), {"users": [1, 2]}, ValueError, "expected 3 keys of users, one for each; got 2"),
        (np.eye(3), {"users": [1, 2, 1]}, ValueError, "different keys of users; got 1 more than"),
        (np.eye(2), {"items": ["a", "a"]}, ValueError, "different keys of items; got 'a' more"),
        (np.eye(2), {"items": [1, None]}, ValueError, "key of items in every row"),
        (np.eye(2), {"items": [0.5, 1]}, TypeError, "integers or strings"),
        (np.eye(2), {"duplicates": "first"}, ValueError, "duplicates in"),
        (np.ones(3), {}, ValueError, r"two dimensions; got ndarray of shape \[3\]"),
        (None, {}, ValueError, "two dimensions; got NoneType"),
        ("ab", {}, ValueError, "two dimensions; got str"),
        (np.eye(2) * 1j, {}, TypeError, "matrix of numbers; got complex"),
        (sparse.eye(2, dtype=complex), {}, TypeError, "matrix of numbers; got complex"),
        (np.array([["a", "b"]]), {}, TypeError, "matrix of numbers; got <U1"),
        (sparse.eye(2) * np.inf, {}, ValueError, "finite; got inf in row 0, column 0"),
        (sparse.eye(2) * np.nan, {}, ValueError, "finite; got nan in row 0, column 0$"),
        (np.eye(2) * 1e300, {}, ValueError, "within float32"),
        (damaged(indices=[0, 9, 1]), {}, ValueError, r"columns in 0..2; got 9"),
        (damaged(indices=[0, -1, 1]), {}, ValueError, r"columns in 0..2; got -1"),
        (damaged(indptr=[0, 2, 1, 3]), {}, ValueError, "damaged indptr"),
        (damaged(indptr=[0, 1, 2, 9]), {}, ValueError, "damaged indptr"),
    ],
)
def test_matrices_that_are_refused(matrix, options, error, words):
    with pytest.raises(error, match=words):
        Interactions.from_scipy(matrix, **options)


def test_parts_that_do_not_go_together():
    matrix, keys = sparse.csr_matrix(np.eye(2, dtype=np.float32)), np.arange(2)
    assert len(Interactions(matrix, keys, keys)) == 2
    with pytest.raises(ValueError, match=r"shape \[2, 3\], users and items; got \[2, 2\]"):
        Interactions(matrix, keys, np.arange(3))
    with pytest.raises(ValueError, match=r"timestamps of shape \[2\]"):
        Interactions(matrix, keys, keys, np.arange(3))
    for wrong in (matrix.tocsc(), matrix.astype(np.float64), np.eye(2)):
        with pytest.raises(TypeError, match="CSR matrix of float32"):
            Interactions(wrong, keys, keys)


# --- keys -----------------------------------------------------------------------------------------


def test_keys_that_are_unknown():
    made = Interactions.from_arrays([7, 2**40, -3], ["b", "a", "c"])
    assert made.user_index(np.int32(7)) == 1
    assert made.item_index(np.str_("c")) == 2
    assert made.user_index([[7, -3]]).tolist() == [[1, 0]]
    assert made.item_index(np.array(["c", "a"], object)).tolist() == [2, 0]
    assert made.user_index(np.array([7], np.uint64)).tolist() == [1]
    assert type(made.user_index(7)) is int
    for key, words in [
        (8, "no user 8"),
        (-4, "no user -4"),
        (2**63, "no user 9223372036854775808"),
        (2**80, "no user 1208925819614629174706176"),
        ("7", "no user '7': keys are integers"),
        ([7, 9, 10], "no user 9"),
        (np.array([2**63], np.uint64), "no user 9223372036854775808"),
        ([7, 2**80], "no user 7"),
    ]:
        with pytest.raises(KeyError, match=words):
            made.user_index(key)
    for key, words in [
        ("ab", "no item 'ab'"),
        ("a\0", "no item 'a"),
        ("", "no item ''"),
        (1, "no item 1: keys are strings"),
        (["a", "x"], "no item 'x'"),
    ]:
        with pytest.raises(KeyError, match=words):
            made.item_index(key)
    for key in (1.5, None, True, [1.5], b"a"):
        with pytest.raises(TypeError, match="expected a key of the users, or an array of them"):
            made.user_index(key)
    assert made.user_index(np.ma.array([7, -3])).tolist() == [1, 0]
    with pytest.raises(TypeError, match="keys of the users that are not masked; got masked_array"):
        made.user_index(np.ma.array([7, -3], mask=[0, 1]))
    with pytest.raises(KeyError, match="no user 7"):
        Interactions.from_arrays([], []).user_index(7)


def test_a_long_key_takes_no_room_of_the_others(tmp_path):
    words = [f"u{number:05d}" for number in range(20_000)]
    users = [*words, "x" * 4000]
    tracemalloc.start()
    made = Interactions.from_arrays(users, [1] * len(users), np.arange(len(users)))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20e6  # with 16,000 bytes for each it would be 320e6
    assert made.users.dtype == object
    assert isinstance(made.users[0], np.str_)
    assert made.users.tolist() == users
    assert made.user_index("x" * 4000) == 20_000
    assert made.user_index([["u00007"], ["x" * 4000]]).tolist() == [[7], [20_000]]
    assert made.user_index(np.array(["u00009"])).tolist() == [9]
    assert made.user_index(np.array(["u00009"], object)).tolist() == [9]
    for key, words_of_it in (("u7", "no user 'u7'"), (["u00007", "y"], "no user 'y'")):
        with pytest.raises(KeyError, match=words_of_it):
            made.user_index(key)
    for key in (7, [7], [2**80], np.array([7, "u00007"], object)):
        with pytest.raises(KeyError, match="no user"):
            made.user_index(key)
    made.save(tmp_path / "saved")
    back = Interactions.load(tmp_path / "saved")
    assert back.users.dtype == object
    assert back.users.tolist() == users
    # With others, in both directions; long keys that begin as short ones do are others.
    short = Interactions.from_arrays(words[:50], [1] * 50)
    assert short.users.dtype.kind == "U"
    assert len(made.reindex(users=short.users, unknown="drop")) == 50
    assert len(short.reindex(users=made.users)) == 50
    with pytest.raises(KeyError, match="no user 'u00007x"):
        short.user_index(np.array(["u00007" + "x" * 100], object))
    with pytest.raises(KeyError, match="no user 'xxx"):
        made.reindex(users=words)
    twice = [*users, "u00003"]
    with pytest.raises(ValueError, match="user 'u00003' with item 1 more than once"):
        Interactions.from_arrays(twice, [1] * len(twice))
    with pytest.raises(ValueError, match="different keys of users; got 'u00003' more than once"):
        made.reindex(users=twice)
    fewer = made.filter(min_user=1)
    assert fewer.users.tolist() == users


def test_the_cells_in_the_rows_of_other_keys():
    test = Interactions.from_arrays([3, 1, 3], ["b", "b", "a"], [1, 2, 3], [10, 20, 30])
    moved = test.reindex(users=[5, 3, 1], items=["b", "c", "a"])
    check_canonical(moved)
    np.testing.assert_array_equal(moved.matrix.toarray(), [[0, 0, 0], [1, 0, 3], [2, 0, 0]])
    assert moved.users.tolist() == [5, 3, 1]
    assert moved.timestamps.tolist() == [10, 30, 20]
    assert triples(test.reindex()) == triples(test)
    back = moved.reindex(test.users, test.items)
    np.testing.assert_array_equal(back.matrix.toarray(), test.matrix.toarray())
    np.testing.assert_array_equal(back.timestamps, test.timestamps)
    with pytest.raises(KeyError, match="no user 1 among the new keys"):
        test.reindex(users=[3, 4])
    dropped = test.reindex(users=[3, 4], unknown="drop")
    assert triples(dropped) == {(3, "a"): 3.0, (3, "b"): 1.0}
    assert len(test.reindex(users=["3", "1"], unknown="drop")) == 0
    with pytest.raises(ValueError, match="different keys of items; got 'a'"):
        test.reindex(items=["a", "b", "a"])
    with pytest.raises(ValueError, match="unknown 'error' or 'drop'; got 'keep'"):
        test.reindex(unknown="keep")


def test_it_says_what_it_is():
    made = Interactions.from_arrays([1, 2], ["a", "a"])
    assert repr(made) == "Interactions(2 users x 1 items, 2 cells)"
    assert repr(random_interactions()).endswith("cells, with timestamps)")
    assert made.shape == (2, 1)
    assert len(made) == 2


def test_nothing_is_imported_before_it_is_used():
    program = (
        "import sys, vecsmith.data, vecsmith.eval; "
        "sys.exit(' '.join({'scipy', 'pyarrow', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
