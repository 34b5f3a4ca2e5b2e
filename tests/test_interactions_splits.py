"""Filters and splits of interactions."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from interaction_tables import check_canonical, random_interactions
from vecsmith.data import Interactions
from vecsmith.data import _interaction_cells as cells


@pytest.mark.parametrize(("min_user", "min_item"), [(0, 0), (1, 1), (4, 4), (6, 0), (0, 9), (6, 9)])
def test_the_core(min_user, min_item):
    made = random_interactions()
    found = made.filter(min_user=min_user, min_item=min_item)
    check_canonical(found)
    dense = made.matrix.toarray()
    users, items = np.arange(dense.shape[0]), np.arange(dense.shape[1])
    while True:
        few_users = (dense != 0).sum(1) < min_user
        dense, users = dense[~few_users], users[~few_users]
        few_items = (dense != 0).sum(0) < min_item
        dense, items = dense[:, ~few_items], items[~few_items]
        if not few_users.any() and not few_items.any():
            break
    np.testing.assert_array_equal(found.matrix.toarray(), dense)
    np.testing.assert_array_equal(found.users, made.users[users])
    np.testing.assert_array_equal(found.items, made.items[items])
    times = sparse.csr_matrix(
        (made.timestamps + 1.0, made.matrix.indices, made.matrix.indptr), made.shape
    )
    left = times.toarray()[users][:, items]
    np.testing.assert_array_equal(left[found.matrix.nonzero()], found.timestamps + 1)


def test_filter_and_binarize_refuse():
    made = random_interactions()
    assert made.filter(min_user=1000).shape == (0, made.shape[1])
    assert made.filter(min_user=1000, min_item=1).shape == (0, 0)
    with pytest.raises(ValueError, match="min_user >= 0; got -1"):
        made.filter(min_user=-1)
    with pytest.raises(TypeError, match="min_item to be an int; got float"):
        made.filter(min_item=1.5)
    with pytest.raises(ValueError, match="threshold that is finite; got nan"):
        made.binarize(np.nan)
    for wrong in ("x", True, 1j, [4]):
        with pytest.raises(TypeError, match="threshold to be a number; got"):
            made.binarize(wrong)
    assert len(made.binarize(np.float32(4))) == len(made.binarize(4))


def test_binarize():
    made = random_interactions()
    liked = made.binarize(4)
    assert liked.shape == made.shape
    np.testing.assert_array_equal(liked.matrix.toarray(), made.matrix.toarray() >= 4)
    np.testing.assert_array_equal(liked.timestamps, made.timestamps[made.matrix.data >= 4])
    assert made.matrix.data.max() == 5
    everything = Interactions.from_arrays([1, 1], [1, 2], [0, -3]).binarize()
    assert everything.matrix.data.tolist() == [1, 1]


# --- splits ---------------------------------------------------------------------------------------


def check_split(made, train, test):
    for part in (train, test):
        check_canonical(part)
        assert part.shape == made.shape
        np.testing.assert_array_equal(part.users, made.users)
        np.testing.assert_array_equal(part.items, made.items)
    both = train.matrix + test.matrix
    np.testing.assert_array_equal(both.toarray(), made.matrix.toarray())
    assert len(train) + len(test) == len(made)
    if made.timestamps is not None:
        dense = np.full(made.shape, -1)
        for part in (train, test):
            dense[part.matrix.nonzero()] = part.timestamps
        np.testing.assert_array_equal(dense[made.matrix.nonzero()], made.timestamps)


def lengths(interactions):
    return np.diff(interactions.matrix.indptr)


@pytest.mark.parametrize("timed", [True, False])
def test_leave_one_out(timed):
    made = random_interactions(timed=timed)
    train, test = made.split_leave_one_out(seed=3)
    check_split(made, train, test)
    np.testing.assert_array_equal(lengths(test), lengths(made) > 1)
    if timed:
        for u in np.flatnonzero(lengths(made) > 1):
            cut = slice(*made.matrix.indptr[u : u + 2])
            assert test.timestamps[test.matrix.indptr[u]] == made.timestamps[cut].max()
    seeds = [made.split_leave_one_out(seed=seed)[1].matrix.indices.tolist() for seed in range(9)]
    assert len({tuple(indices) for indices in seeds}) > 1  # ties, where there are timestamps
    counts = np.zeros(made.shape[1])
    if not timed:
        for seed in range(200):
            counts[made.split_leave_one_out(seed=seed)[1].matrix[0].indices] += 1
        own = counts[made.matrix[0].indices]
        assert own.sum() == 200
        assert (own > 0).all()


def test_leave_the_last_of_equals():
    same = Interactions.from_arrays([1] * 4, range(4), timestamps=[5, 9, 9, -(2**63)])
    chosen = {same.split_leave_one_out(seed=s)[1].matrix.indices.item() for s in range(40)}
    assert chosen == {1, 2}
    dates = Interactions.from_arrays([1, 1], [1, 2], timestamps=np.array([9, 5], "M8[D]"))
    assert dates.split_leave_one_out()[1].matrix.indices.tolist() == [0]


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_split_by_ratio(share):
    made = random_interactions()
    train, test = made.split_ratio(share, seed=1)
    check_split(made, train, test)
    n = lengths(made)
    expected = np.minimum(np.floor(n * share + 0.5), np.maximum(n - 1, 0))
    np.testing.assert_array_equal(lengths(test), expected)


def test_every_cell_is_as_likely():
    made = Interactions.from_scipy(np.ones((40, 10)))
    times = sum(made.split_ratio(0.3, seed=seed)[1].matrix.toarray() for seed in range(100))
    # 400 cells, each in the test with probability 0.3, 100 times: 30 +- 4.6.
    assert times.min() > 30 - 5 * 4.6
    assert times.max() < 30 + 5 * 4.6
    pairs = [made.split_ratio(0.3, seed=seed)[1].matrix for seed in (5, 6)]
    assert 0.2 < pairs[0].multiply(pairs[1]).nnz / pairs[0].nnz < 0.4


def test_split_by_time():
    made = random_interactions()
    train, test = made.split_by_time(at=20)
    check_split(made, train, test)
    assert train.timestamps.max() < 20 <= test.timestamps.min()
    for quantile in (0.1, 0.5, 0.9):
        train, test = made.split_by_time(quantile=quantile)
        check_split(made, train, test)
        when = test.timestamps.min()
        assert train.timestamps.max() < when
        wanted = int(quantile * len(made) + 0.5)
        assert len(train) <= wanted < (made.timestamps <= when).sum()
    assert len(made.split_by_time(at=1000)[1]) == 0
    assert len(made.split_by_time(at=-1.5)[0]) == 0
    days = np.array(["2020-01-01", "2020-01-02", "2020-01-03"], "M8[D]")
    dated = Interactions.from_arrays([1, 1, 2], [1, 2, 1], timestamps=days)
    for at in ("2020-01-02", np.datetime64("2020-01-02"), datetime.datetime(2020, 1, 2)):
        train, test = dated.split_by_time(at)
        assert (len(train), len(test)) == (1, 2)
    for at in (
        datetime.date(2020, 1, 2),
        pd.Timestamp("2020-01-02"),
        pd.Timestamp("2020-01-02", tz="UTC"),
        datetime.datetime(2020, 1, 2, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
    ):
        assert len(dated.split_by_time(at)[0]) == 1
    assert len(dated.split_by_time(quantile=0.5)[0]) == 2
    for at in (1590969600, 1.5, True, np.int64(3), "noon", np.timedelta64(5, "s"), b"2020"):
        with pytest.raises(TypeError, match="at to be a date, as the timestamps are; got"):
            dated.split_by_time(at)
    with pytest.raises(ValueError, match=r"at within datetime64\[us\]; got 300000-01-01"):
        dated.split_by_time("300000-01-01")
    for at in (True, np.bool_(True), np.datetime64("2020")):
        with pytest.raises(TypeError, match="at to be a number, as the timestamps are; got"):
            made.split_by_time(at)
    with pytest.raises(TypeError, match=r"at to be a date, as the timestamps are; got 5.5"):
        dated.split_by_time(5.5)
    with pytest.raises(TypeError, match="at to be a number, as the timestamps are; got '2020'"):
        made.split_by_time("2020")
    with pytest.raises(ValueError, match="expected at or quantile"):
        made.split_by_time()
    with pytest.raises(ValueError, match="expected at or quantile"):
        made.split_by_time(5, quantile=0.5)
    with pytest.raises(ValueError, match="quantile between 0 and 1; got 1"):
        made.split_by_time(quantile=1)
    with pytest.raises(ValueError, match="interactions with timestamps"):
        random_interactions(timed=False).split_by_time(at=5)
    for splitter, at in ((made, float("nan")), (dated, "NaT")):
        with pytest.raises(ValueError, match="expected at to be a time; got"):
            splitter.split_by_time(at)


def test_splits_of_one_seed_know_nothing_of_each_other():
    made = Interactions.from_scipy(np.ones((4000, 10)))
    for seed in (0, 7):
        ratio = made.split_ratio(0.3, seed=seed)[1].matrix
        one = made.split_leave_one_out(seed=seed)[1].matrix
        folds = [test.matrix for _, test in made.cross_validation(5, seed=seed)]
        # 4,000 cells in the test with probability 0.3: 0.3 +- 0.007; and so on.
        assert abs(ratio.multiply(one).nnz / one.nnz - 0.3) < 0.036
        for fold in folds:
            assert abs(fold.multiply(ratio).nnz / fold.nnz - 0.3) < 0.026
            assert abs(fold.multiply(one).nnz / one.nnz - 0.2) < 0.032


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_cross_validation(folds):
    made = random_interactions()
    parts = list(made.cross_validation(folds, seed=2))
    assert len(parts) == folds
    tests = np.zeros(made.shape)
    for train, test in parts:
        check_split(made, train, test)
        tests += test.matrix.toarray() != 0
        n = lengths(made)
        assert (lengths(test) <= -(-n // folds)).all()
        assert (lengths(test) >= np.where(n > 1, n // folds, 0)).all()
        assert (lengths(train)[n > 0] > 0).all()
    expected = (made.matrix.toarray() != 0) & (lengths(made) > 1)[:, None]
    np.testing.assert_array_equal(tests, expected)
    sizes = [len(test) for _, test in parts]
    assert max(sizes) - min(sizes) < 0.25 * len(made)  # no fold has the odd cells of all users


def test_splits_refuse():
    made = random_interactions()
    for share in (0, 1, -0.5, np.nan):
        with pytest.raises(ValueError, match="test between 0 and 1; got"):
            made.split_ratio(share)
    with pytest.raises(TypeError, match="test to be a number; got 'x'"):
        made.split_ratio("x")
    with pytest.raises(TypeError, match="quantile to be a number; got 'x'"):
        made.split_by_time(quantile="x")
    with pytest.raises(ValueError, match="folds >= 2; got 1"):
        made.cross_validation(1)
    for split in (made.split_ratio, made.split_leave_one_out, made.cross_validation):
        with pytest.raises(TypeError, match="seed to be an int; got float"):
            split(seed=1.5)


def test_random_numbers_are_the_same_everywhere():
    # Worked out with integers of Python: what a saved split is known by must never change.
    mask = 2**64 - 1

    def mixed(bits):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> shift)) * factor & mask
        return bits ^ (bits >> 31)

    step = 0x9E3779B97F4A7C15
    for seed in (0, 1, -1, 2**70 + 3):
        start = mixed(((seed & mask) + step) & mask)
        expected = [mixed((start + n * step) & mask) for n in range(1, 50)]
        assert cells.random_bits(49, seed).tolist() == expected
    # SplitMix64's own first numbers, of seed 0.
    assert [mixed(n * step & mask) for n in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    made = Interactions.from_scipy(np.ones((3, 6)))
    start = mixed((7 + step) & mask)
    bits = [mixed((start + n * step) & mask) for n in range(1, 19)]
    rows = [range(6 * u, 6 * u + 6) for u in range(3)]
    expected = [n % 6 for row in rows for n in sorted(sorted(row, key=bits.__getitem__)[:3])]
    assert made.split_ratio(0.5, seed=7)[1].matrix.indices.tolist() == expected
