"""What ALS recommends, finds similar, recalculates and explains, against brute force."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from scipy import sparse

from planted_ratings import best, confidences, implicit_half, random_cells
from vecsmith import ALS, ops
from vecsmith.data import Interactions
from vecsmith.models._factor_table import row_hashes
from vecsmith.models._recommend import NO_SCORE

USERS, ITEMS = 30, 20
MATRIX = random_cells(USERS, ITEMS)
LIKED = np.zeros((USERS, ITEMS), bool)
LIKED[MATRIX.tocoo().row, MATRIX.tocoo().col] = True


@pytest.fixture
def model():
    """Factors of both signs; one item and one user of zeros."""
    generator = np.random.default_rng(1)
    made = ALS(factors=6, regularization=0.1, alpha=3.0)
    x, y = generator.normal(size=(USERS, 6)), generator.normal(size=(ITEMS, 6))
    x[4] = y[9] = 0
    made.user_factors, made.item_factors = x, y
    return made


def check_lists(found, scores, left_out, k, users=range(USERS)):
    """The items and scores found are the best of the scores [users, items]."""
    ids, values = found
    assert ids.shape == values.shape == (len(users), k)
    for row, user in enumerate(users):
        expected, exact = best(scores[user], k, left_out[user])
        np.testing.assert_array_equal(ids[row, : len(expected)], expected)
        np.testing.assert_allclose(values[row, : len(exact)], exact, rtol=1e-5, atol=1e-6)
        assert (ids[row, len(expected) :] == -1).all()
        assert (values[row, len(expected) :] == NO_SCORE).all()


# --- recommend ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1 << 14, 7])
@pytest.mark.parametrize("k", [1, 5, 20, 26])
@pytest.mark.parametrize("liked", [True, False])
@pytest.mark.parametrize("banned", [None, [3, 3, 19]])
def test_recommended_items_are_the_best(model, monkeypatch, k, liked, banned, batch):
    monkeypatch.setattr("vecsmith.models._recommend._AT_ONCE", batch)
    found = model.recommend(
        np.arange(USERS), MATRIX, N=k, filter_already_liked_items=liked, filter_items=banned
    )
    left_out = LIKED.copy() if liked else np.zeros_like(LIKED)
    left_out[:, banned or []] = True
    check_lists(found, model.user_factors @ model.item_factors.T, left_out, k)
    assert found[0].dtype == np.int32
    assert found[1].dtype == np.float32


@pytest.mark.parametrize("liked", [True, False])
@pytest.mark.parametrize("given", [[7], [19, 2, 2, 5], np.array([0, 1, 17], np.int16), range(20)])
def test_recommended_among_some_items(model, given, liked):
    found = model.recommend(
        np.arange(USERS), MATRIX, N=3, items=given, filter_already_liked_items=liked
    )
    left_out = LIKED.copy() if liked else np.zeros_like(LIKED)
    left_out[:, np.setdiff1d(np.arange(ITEMS), given)] = True
    k = min(3, len(set(np.asarray(given).tolist())))
    check_lists(found, model.user_factors @ model.item_factors.T, left_out, k)
    assert found[0].dtype == np.asarray(given).dtype


def test_users_may_be_in_any_order_and_come_twice(model):
    users = np.array([3, 29, 3, 0])
    found = model.recommend(users, MATRIX[users], N=4)
    check_lists(found, model.user_factors @ model.item_factors.T, LIKED, 4, users)
    one = model.recommend(29, MATRIX[29], N=4)
    for of_one, of_many in zip(one, found, strict=True):
        np.testing.assert_array_equal(of_one, of_many[1])
    for empty in ([], np.empty(0, int)):
        ids, scores = model.recommend(empty, MATRIX[:0], N=4)
        assert ids.shape == scores.shape == (0, 4)
    assert model.recommend(3, MATRIX[3], items=[])[0].shape == (0,)


def test_unsorted_and_repeated_cells_are_liked(model):
    row = sparse.csr_matrix((np.ones(4), [9, 2, 9, 5], [0, 4]), shape=(1, ITEMS))
    ids, _ = model.recommend(0, row, N=ITEMS)
    assert sorted(ids[:17].tolist()) == sorted(set(range(ITEMS)) - {2, 5, 9})
    assert row.indices.tolist() == [9, 2, 9, 5]


def test_a_matrix_may_have_fewer_columns_than_there_are_items(model):
    ids, _ = model.recommend(0, sparse.csr_matrix(np.ones((1, 5))), N=ITEMS)
    assert sorted(ids.tolist()) == [-1] * 5 + list(range(5, ITEMS))


def test_recommend_with_recalculated_users(model):
    new = random_cells(50, ITEMS, seed=4)
    c, p = confidences(new, 3.0)
    y = model.item_factors.astype(np.float64)
    x = implicit_half(c, p, y, np.full(50, 0.1))
    liked = np.zeros((50, ITEMS), bool)
    liked[new.tocoo().row, new.tocoo().col] = True
    liked[25] = False  # no cells: all scores are 0
    found = model.recommend(np.arange(50) + 1000, new, N=4, recalculate_user=True)
    check_lists(found, x @ y.T, liked, 4, range(50))
    one = model.recommend(10**12, new[7], N=4, recalculate_user=True)
    np.testing.assert_array_equal(one[0], found[0][7])
    among = model.recommend(np.arange(50), new, N=2, recalculate_user=True, items=[1, 4, 9])
    liked[:, np.setdiff1d(np.arange(ITEMS), [1, 4, 9])] = True
    check_lists(among, x @ y.T, liked, 2, range(50))


def test_rank_items_and_recommend_all(model):
    ids, _ = model.rank_items(3, None, [4, 9, 2])
    scores = model.item_factors @ model.user_factors[3]
    assert ids.tolist() == sorted([4, 9, 2], key=lambda item: -scores[item])
    np.testing.assert_array_equal(
        model.recommend_all(MATRIX, N=3), model.recommend(np.arange(USERS), MATRIX, N=3)[0]
    )


def test_interactions_stand_in_for_the_matrix(model):
    ratings = Interactions.from_scipy(MATRIX)
    expected = model.recommend([4, 2], MATRIX[[4, 2]], N=3)
    model.interactions = ratings
    for found in (
        model.recommend([4, 2], N=3),
        model.recommend([4, 2], ratings.matrix[[4, 2]], N=3),
        [part[[4, 2]] for part in model.recommend(np.arange(USERS), N=3)],
        [part[[4, 2]] for part in model.recommend(np.arange(USERS), ratings, N=3)],
    ):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_cells_leave_rows_out_of_a_search():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(USERS, 5, generator=generator)
    table = torch.randn(ITEMS, 5, generator=generator)
    cells = ops.Cells(*(torch.from_numpy(part) for part in (MATRIX.indptr, MATRIX.indices)),
                      torch.from_numpy(MATRIX.data), MATRIX.shape)  # fmt: skip
    lists = [MATRIX[u].indices.tolist() for u in range(USERS)]
    for backend in ("native", "reference"):
        expected = ops.cosine_topk(queries, table, 18, exclude=lists, backend=backend)
        found = ops.cosine_topk(queries, table, 18, exclude=cells, backend=backend)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.values, expected.values)
    none = ops.Cells(*(torch.zeros(n, dtype=torch.int64) for n in (USERS + 1, 0, 0)), MATRIX.shape)
    assert (ops.cosine_topk(queries, table, ITEMS, exclude=none).indices >= 0).all()
    for wrong in (queries[:-1], queries[:, None].expand(-1, 2, -1)):
        with pytest.raises(ValueError, match=r"expected exclude of shape"):
            ops.cosine_topk(wrong, table, 2, exclude=cells)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.recommend(30, MATRIX[0]), IndexError, r"userid in 0\.\.29; got 30"),
        (lambda m: m.recommend(-1, MATRIX[0]), IndexError, r"got -1"),
        (lambda m: m.recommend([0, 2**31], MATRIX[:2]), IndexError, "got 2147483648"),
        (lambda m: m.recommend(1.0, MATRIX[0]), TypeError, "userid to be an integer"),
        (lambda m: m.recommend(True, MATRIX[0]), TypeError, "userid to be an integer"),
        (lambda m: m.recommend("ann", MATRIX[0]), TypeError, "userid to be an integer"),
        (lambda m: m.recommend([[0]], MATRIX[0]), TypeError, "userid"),
        (lambda m: m.recommend(0, MATRIX), ValueError, r"user_items of shape \[1, 20\]"),
        (lambda m: m.recommend([0, 1], MATRIX[0]), ValueError, r"\[2, 20\].*got \[1, 20\]"),
        (lambda m: m.recommend(0, sparse.csr_matrix((1, 21))), ValueError, r"got \[1, 21\]"),
        (lambda m: m.recommend(0), ValueError, "expected user_items"),
        (lambda m: m.recommend(0, recalculate_user=True), ValueError, "expected user_items"),
        (lambda m: m.recommend(0, np.ones((1, 20))), TypeError, "scipy.sparse"),
        (lambda m: m.recommend(0, MATRIX[0], N=0), ValueError, "N >= 1"),
        (lambda m: m.recommend(0, MATRIX[0], N=1.5), TypeError, "N to be an integer"),
        (lambda m: m.recommend(0, MATRIX[0], items=[20]), IndexError, r"items in 0\.\.19; got 20"),
        (lambda m: m.recommend(0, MATRIX[0], filter_items=[-1]), IndexError, "filter_items"),
        (lambda m: m.recommend(0, MATRIX[0], filter_items=["a"]), TypeError, "filter_items"),
        (lambda m: m.recommend(0, MATRIX[0], items=[1], filter_items=[2]), ValueError, "got both"),
        (lambda m: m.similar_items(20), IndexError, r"itemid in 0\.\.19; got 20"),
        (lambda m: m.similar_items(0, items=[-3]), IndexError, "items in"),
        (lambda m: m.similar_users(30), IndexError, r"userid in 0\.\.29; got 30"),
        (lambda m: m.similar_users(0, users=[1], filter_users=[1]), ValueError, "got both"),
        (lambda m: m.similar_items(0, recalculate_item=True), ValueError, "expected item_users"),
        (lambda m: m.explain(30, MATRIX, 0), IndexError, "userid"),
        (lambda m: m.explain(0, MATRIX, 20), IndexError, "itemid"),
        (lambda m: m.explain([0, 1], MATRIX, 2), TypeError, "userid to be an integer"),
        (lambda m: m.recalculate_user([0, 1], MATRIX), ValueError, r"\[2, 20\]"),
    ],
)
def test_bad_questions_are_refused(model, call, error, text):
    with pytest.raises(error, match=text):
        call(model)


def test_a_user_who_came_after_the_interactions(model):
    model.interactions = Interactions.from_scipy(MATRIX[:10])
    with pytest.raises(IndexError, match=r"userid in 0\.\.9; got 12"):
        model.recommend(12)


# --- changed factors ------------------------------------------------------------------------------


def test_users_of_zeros_and_equal_items_go_by_number(model):
    model.item_factors = np.repeat(model.item_factors[:5], 4, axis=0)
    model.user_factors[[2, 25]] = 0
    scores = model.user_factors @ model.item_factors.T
    check_lists(model.recommend(np.arange(USERS), MATRIX, N=9), scores, LIKED, 9)
    left_out = LIKED.copy()
    left_out[:, 3] = True
    found = model.recommend([2, 25, 0], MATRIX[[2, 25, 0]], N=18, filter_items=[3])
    check_lists(found, scores, left_out, 18, [2, 25, 0])


@pytest.mark.parametrize("k", [1, 2, 3, 7, 19, 20, 25])
def test_of_equal_scores_the_lower_number_comes_first(k):
    model, generator = ALS(), np.random.default_rng(5)
    # Products of small integers: exact, and most of them several times.
    model.user_factors = generator.integers(-2, 3, (USERS, 3))
    model.item_factors = generator.integers(-2, 3, (ITEMS, 3))
    scores = model.user_factors @ model.item_factors.T
    options = {"N": k, "filter_already_liked_items": False}
    none = np.zeros_like(LIKED)
    for banned in (None, [0, 3, 11]):
        none[:, banned or []] = True
        found = model.recommend(np.arange(USERS), filter_items=banned, **options)
        check_lists(found, scores, none, k)
        for user in (0, 7):
            one = model.recommend(user, filter_items=banned, **options)
            np.testing.assert_array_equal(one[0], found[0][user])
    check_lists(model.recommend(np.arange(USERS), MATRIX, N=k), scores, LIKED, k)


def test_ties_at_the_end_of_a_list():
    model = ALS()
    model.user_factors = np.array([[1, 0]])
    model.item_factors = np.array([[1, 0], [0, 0], [1, 5], [1, -3], [2, 0]])
    for k in range(1, 6):
        ids, scores = model.recommend(0, N=k, filter_already_liked_items=False)
        assert ids.tolist() == [4, 0, 2, 3, 1][:k]
        assert scores.tolist() == [2, 1, 1, 1, 0][:k]


def changed_by_view(model):
    row = model.item_factors[3]
    model.recommend(0, MATRIX[0])
    yield
    row[:] = 100
    yield
    row[:] = -100


def changed_by_array(model):
    held = model.item_factors
    for value in (100, -100):
        yield
        held[3] = value


def changed_by_torch(model):
    for value in (100, -100):
        yield
        with torch.no_grad():
            model.item_embedding[3] = value


def changed_by_torch_in_inference_mode(model):
    for value in (100, -100):
        yield
        with torch.inference_mode():
            model.item_embedding[3] = value


def changed_by_other_data(model):
    for seed in (2, 3, 4):
        yield
        generator = torch.Generator().manual_seed(seed)
        model.item_embedding.data = torch.randn(ITEMS, 6, generator=generator)


def changed_by_data_and_told(model):
    for value in (100, -100):
        yield
        model.item_embedding.data[3] = value
        torch.autograd.graph.increment_version(model.item_embedding)


def changed_by_rows_in_another_order(model):
    held = model.item_factors
    model.recommend(0, MATRIX[0])
    yield
    held[:] = held[::-1].copy()
    yield
    held[:, :] = held[:, ::-1].copy()
    del held
    model.item_factors.sum()


def changed_between_two_holders(model):
    for value in (100, -100):
        yield
        held = model.item_factors
        held[3] = value
        del held
        held = model.item_factors
        model.recommend(0, MATRIX[0])
        assert held[3, 0] == value


def changed_by_assignment(model):
    for factor in (-2, -3):
        yield
        model.item_factors *= factor


def changed_by_new_factors(model):
    for seed in (2, 3):
        yield
        model.item_factors = np.random.default_rng(seed).normal(size=(25, 6))


def changed_by_fit(model):
    for alpha in (1.0, 20.0):
        yield
        model.alpha = alpha
        model.fit(MATRIX, show_progress=False)


@pytest.mark.parametrize(
    "change",
    [changed_by_view, changed_by_array, changed_by_torch, changed_by_torch_in_inference_mode,
     changed_by_other_data, changed_by_data_and_told, changed_by_rows_in_another_order,
     changed_between_two_holders, changed_by_assignment, changed_by_new_factors, changed_by_fit],
)  # fmt: skip
def test_changed_factors_are_searched_as_they_are(model, change):
    for _ in change(model):
        y = model.item_embedding.detach().numpy().astype(np.float64)
        scores = model.user_embedding.detach().numpy() @ y.T
        none = np.zeros((USERS, len(y)), bool)
        found = model.recommend(np.arange(USERS), N=4, filter_already_liked_items=False)
        check_lists(found, scores, none, 4)
        norms = np.linalg.norm(y, axis=1)
        cosines = y @ y.T / np.maximum(norms[:, None] * norms, 1e-30)
        check_lists(model.similar_items(np.arange(len(y)), N=3), cosines, none, 3, range(len(y)))
        gram = model._items.gram().numpy()
        np.testing.assert_allclose(gram, y.T @ y, rtol=1e-9, atol=1e-9)


def test_items_are_packed_once(model, monkeypatch):
    packs = []
    pack = ops.PackedRows.pack
    monkeypatch.setattr(
        ops.PackedRows, "pack", lambda self, **more: (packs.append(self), pack(self, **more))
    )
    for _ in range(3):
        model.recommend(0, MATRIX[0])
        model.similar_items(2)
    assert len(packs) == 2
    model.item_factors.sum()  # read, and let go
    gc.collect()
    for _ in range(3):
        model.recommend(0, MATRIX[0])
    held = model.item_factors
    for _ in range(3):
        model.recommend(0, MATRIX[0])
        model.similar_items(2)
    assert len(packs) == 2
    held[3, 5] = np.nextafter(held[3, 5], 9)
    for _ in range(3):
        model.recommend(0, MATRIX[0])
    assert len(packs) == 3
    assert held is model.item_factors
    with torch.no_grad():
        model.item_embedding.mul_(2)
    for _ in range(3):
        model.recommend(0, MATRIX[0])
    assert len(packs) == 4


@pytest.mark.parametrize("columns", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padded", [False, True])
def test_a_hash_of_a_row_is_of_all_its_bits(columns, dtype, padded):
    table = torch.randn(7, columns + 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    table = table[:, :columns] if padded else table[:, :columns].contiguous()
    before = row_hashes(table)
    assert len(set(before.tolist())) == 7
    np.testing.assert_array_equal(row_hashes(table.clone()), before)
    np.testing.assert_array_equal(row_hashes(table.flip(0)), before[::-1])
    for column in range(columns):
        for value in (table[4, column].nextafter(torch.tensor(9.0, dtype=dtype)), 0.0, -0.0):
            changed = table.clone()
            changed[4, column] = value
            assert (row_hashes(changed) != before).nonzero()[0].tolist() == [4]
    if columns > 1:
        assert row_hashes(table.flip(1))[4] != before[4]
    assert row_hashes(table[:0]).shape == (0,)


# --- similar --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["item", "user"])
@pytest.mark.parametrize("kind", [None, "filter", "among"])
@pytest.mark.parametrize("k", [4, 35])
def test_similar_rows_are_nearest_by_cosine(model, side, kind, k):
    table = (model.item_factors if side == "item" else model.user_factors).astype(np.float64)
    norms = np.linalg.norm(table, axis=1)
    cosines = table @ table.T / np.maximum(norms[:, None] * norms, 1e-30)
    left_out = np.zeros((len(table), len(table)), bool)
    options = {}
    some = [1, 5, 9, 12, 17, 5]
    if kind == "filter":
        options, left_out[:, some] = {f"filter_{side}s": some}, True
    elif kind == "among":
        options = {f"{side}s": some}
        left_out[:, np.setdiff1d(np.arange(len(table)), some)] = True
        k = min(k, 5)
    similar = model.similar_items if side == "item" else model.similar_users
    found = similar(np.arange(len(table)), N=k, **options)
    check_lists(found, cosines, left_out, k, range(len(table)))
    one = similar(7, N=k, **options)
    np.testing.assert_array_equal(one[0], found[0][7])
    if kind is None:
        assert one[0][0] == 7
        assert one[1][0] == pytest.approx(1)


def test_similar_to_a_recalculated_item(model):
    cells = MATRIX.T.tocsr()[[2, 5]]
    factors = model.recalculate_item([2, 5], cells)
    found = model.similar_items([2, 5], N=3, recalculate_item=True, item_users=cells)
    y = model.item_factors
    cosines = factors @ y.T / np.linalg.norm(factors, axis=1)[:, None]
    cosines = cosines / np.maximum(np.linalg.norm(y, axis=1), 1e-30)
    check_lists(found, cosines, np.zeros((2, ITEMS), bool), 3, range(2))


# --- rows by themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [1, 16, 17])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_recalculated_rows_are_exact(model, count, weighted, dtype):
    exact = ALS(factors=6, regularization=0.1, alpha=3.0, dtype=dtype)
    exact.user_factors, exact.item_factors = model.user_factors, model.item_factors
    exact.weighted_regularization = weighted
    for side, matrix, other in (
        ("user", MATRIX, model.item_factors),
        ("item", MATRIX.T.tocsr(), model.user_factors),
    ):
        rows = np.arange(count) % matrix.shape[0]
        c, p = confidences(matrix[rows], 3.0)
        ridges = 0.1 * np.diff(matrix[rows].indptr) if weighted else np.full(count, 0.1)
        expected = implicit_half(c, p, other.astype(np.float64), ridges)
        again = exact.recalculate_user if side == "user" else exact.recalculate_item
        found = again(rows, matrix[rows])
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, atol=2e-5 if dtype == np.float32 else 1e-10)
        np.testing.assert_allclose(again(0, matrix[0]), expected[0], atol=2e-5)


def test_partial_fit_replaces_and_adds(model):
    new = random_cells(3, ITEMS, 0.5, seed=8)
    before = model.user_factors.copy()
    model.partial_fit_users([7, 33, 0], new)
    expected = model.recalculate_user([7, 33, 0], new)
    assert model.user_factors.shape == (34, 6)
    np.testing.assert_array_equal(model.user_factors[[7, 33, 0]], expected)
    assert not model.user_factors[30:33].any()
    rest = np.setdiff1d(np.arange(30), [0, 7])
    np.testing.assert_array_equal(model.user_factors[rest], before[rest])
    model.partial_fit_items(np.array([20]), sparse.csr_matrix(np.eye(34)[9:10]))
    assert model.item_factors.shape == (21, 6)
    assert model.item_factors[20].any()
    assert model.recommend(33, MATRIX[0], N=21)[0].shape == (21,)
    model.partial_fit_users([], MATRIX[:0])


def test_a_refused_partial_fit_changes_nothing(model):
    before = model.user_embedding.detach().clone()
    model.interactions = Interactions.from_scipy(MATRIX)
    for ids, matrix, error, text in (
        ([3, 3], MATRIX[:2], ValueError, "got 3 twice"),
        ([3, -1], MATRIX[:2], IndexError, "got -1"),
        ([3], MATRIX[:2], ValueError, r"\[1, 20\]"),
        ([30], MATRIX[:1], ValueError, "below 30, which have keys; got 30"),
        ([3], MATRIX[:1] * np.nan, ValueError, "finite"),
    ):
        with pytest.raises(error, match=text):
            model.partial_fit_users(ids, matrix)
    assert torch.equal(model.user_embedding, before)


def test_an_explanation_adds_up_to_the_score(model):
    model.item_factors = model.item_factors / 3
    user = 12
    score, parts, weights = model.explain(user, MATRIX, 4, N=100)
    factors = model.recalculate_user(user, MATRIX[user])
    assert score == pytest.approx(factors @ model.item_factors[4], rel=1e-4)
    assert sum(part for _, part in parts) == pytest.approx(score)
    liked = MATRIX[user].indices[MATRIX[user].data >= 0]
    assert sorted(item for item, _ in parts) == sorted(liked.tolist())
    assert [part for _, part in parts] == sorted((part for _, part in parts), reverse=True)
    again = model.explain(user, MATRIX, 4, user_weights=weights, N=2)
    assert again[:2] == (score, parts[:2])
    model.interactions = Interactions.from_scipy(MATRIX)
    assert model.explain(user, None, 4)[0] == score
