"""ALS: what is learned, from which matrices, and what is refused."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from scipy import sparse

from planted_ratings import confidences, groups, implicit_half, implicit_loss, random_cells
from vecsmith import ALS
from vecsmith.data import Interactions
from vecsmith.eval import evaluate_ranking

OPTIONS = {"factors": 6, "regularization": 0.1, "alpha": 3.0, "random_state": 5, "progress": False}


def fitted(matrix=None, **more):
    return ALS(**{**OPTIONS, **more}).fit(random_cells() if matrix is None else matrix)


def first_factors(shape, factors, seed=5, dtype=np.float32):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((count, factors), dtype=dtype) * 0.03 for count in shape]


# --- what is learned ------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_iterations_are_exact_half_steps(dtype, weighted):
    matrix = random_cells()
    model = fitted(
        matrix, use_cg=False, iterations=3, dtype=dtype, weighted_regularization=weighted
    )
    c, p = confidences(matrix, 3.0)
    x, y = first_factors(matrix.shape, 6, dtype=dtype)
    lengths = np.diff(matrix.indptr), np.diff(matrix.tocsc().indptr)
    ridges = [0.1 * n if weighted else np.full(len(n), 0.1) for n in lengths]
    for _ in range(3):
        x = implicit_half(c, p, y.astype(np.float64), ridges[0])
        y = implicit_half(c.T, p.T, x, ridges[1])
    # The user and the item without cells.
    assert not model.user_factors[15].any()
    assert not model.item_factors[6].any()
    exact = 1e-9 if dtype == np.float64 else 2e-4
    np.testing.assert_allclose(model.user_factors, x, atol=exact)
    np.testing.assert_allclose(model.item_factors, y, atol=exact)
    assert model.user_factors.dtype == model.item_factors.dtype == dtype


@pytest.mark.parametrize(
    ("given", "dtype"), [(7, np.float32), (np.int64(7), np.float64), ("g", np.float32)]
)
def test_the_first_factors_are_drawn_around_zero(given, dtype):
    given = np.random.default_rng(7) if given == "g" else given
    model = fitted(random_state=given, iterations=0, dtype=dtype)
    x, y = first_factors((30, 20), 6, 7, dtype)
    np.testing.assert_array_equal(model.user_factors, x)
    np.testing.assert_array_equal(model.item_factors, y)


def test_a_random_state_of_numpy_is_a_seed():
    one, two = (fitted(random_state=np.random.RandomState(3), iterations=1) for _ in range(2))
    np.testing.assert_array_equal(one.item_factors, two.item_factors)
    other = fitted(random_state=None, iterations=1)
    assert not np.array_equal(one.item_factors, other.item_factors)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_that_of_all_cells(weighted):
    matrix = random_cells()
    model = fitted(
        matrix, iterations=4, calculate_training_loss=True, weighted_regularization=weighted
    )
    assert len(model.loss_history_) == 4
    assert model.loss_history_ == sorted(model.loss_history_, reverse=True)
    x, y = model.user_factors, model.item_factors
    assert model.loss_history_[-1] == pytest.approx(
        implicit_loss(matrix, x, y, 3.0, 0.1, weighted), rel=1e-6
    )


def test_the_loss_is_taken_in_parts(monkeypatch):
    whole = fitted(iterations=1, calculate_training_loss=True).loss_history_
    # Three cells at once, and parts that begin and end within rows.
    monkeypatch.setattr("vecsmith.models._cell_scores._AT_ONCE", 18)
    monkeypatch.setattr("vecsmith.models._factor_table._AT_ONCE", 13)
    assert fitted(iterations=1, calculate_training_loss=True).loss_history_ == pytest.approx(whole)


@pytest.mark.parametrize("method", ["cg", "block"])
def test_other_methods_come_to_no_higher_loss(method):
    matrix = random_cells(60, 45, seed=2)
    options = {"factors": 12, "iterations": 60, "calculate_training_loss": True}
    exact = fitted(matrix, **options, method="cholesky").loss_history_[-1]
    near = fitted(matrix, **options, method=method, block_size=5)
    # There are several minima, and blocks may find a lower one.
    assert near.loss_history_[-1] <= 1.01 * exact
    assert near.loss_history_[-1] == pytest.approx(exact, rel=0.02)
    assert near.loss_history_ == sorted(near.loss_history_, reverse=True)


def test_method_goes_before_use_cg():
    exact = fitted(use_cg=True, method="cholesky", iterations=2)
    np.testing.assert_array_equal(
        exact.user_factors, fitted(use_cg=False, iterations=2).user_factors
    )
    assert "cholesky" in repr(exact)
    assert "before fit" in repr(ALS())


def test_plain_torch_learns_the_same():
    native, plain = (fitted(use_native=native, iterations=3) for native in (True, False))
    np.testing.assert_allclose(native.user_factors, plain.user_factors, atol=1e-3)


def test_fit_goes_on_from_factors_that_are_there():
    whole = fitted(iterations=5)
    model = fitted(iterations=2)
    model.iterations = 3
    model.fit(random_cells(), show_progress=False)
    np.testing.assert_array_equal(whole.item_factors, model.item_factors)
    model.user_factors = model.item_factors = None
    model.iterations = 5
    np.testing.assert_array_equal(whole.item_factors, model.fit(random_cells()).item_factors)


def test_training_stops_where_the_loss_hardly_falls():
    called = []
    model = ALS(**OPTIONS, iterations=50, tolerance=0.01)
    model.fit(random_cells(), callback=lambda *given: called.append(given))
    losses = model.loss_history_
    assert 2 < len(losses) < 50
    falls = [1 - after / before for before, after in itertools.pairwise(losses)]
    assert falls[-1] < 0.01
    assert min(falls[:-1]) >= 0.01
    assert [given[0] for given in called] == list(range(len(losses)))
    assert [given[2] for given in called] == losses
    assert all(given[1] >= 0 for given in called)


def test_the_callback_gets_no_loss_where_there_is_none():
    called = []
    ALS(**OPTIONS, iterations=2).fit(random_cells(), callback=lambda *given: called.append(given))
    assert [(given[0], given[2]) for given in called] == [(0, None), (1, None)]


def test_progress_is_shown(capsys):
    ALS(**{**OPTIONS, "progress": True}, iterations=2, calculate_training_loss=True).fit(
        random_cells()
    )
    assert "loss" in capsys.readouterr().err
    ALS(**{**OPTIONS, "progress": True}, iterations=2).fit(random_cells(), show_progress=False)
    assert capsys.readouterr().err == ""


def test_two_tastes_are_found():
    train, test = Interactions.from_scipy(groups(80, 60)).split_ratio(0.2)
    model = ALS(factors=4, alpha=10.0, random_state=0, progress=False).fit(train)
    assert evaluate_ranking(model, train, test, 10)["recall@10"] > 0.4
    mine = model.similar_items(0, N=30)[0]
    assert (mine < 30).mean() > 0.9


# --- which matrices -------------------------------------------------------------------------------


def unsorted(matrix):
    """Columns of each row in falling order, one cell in two parts."""
    order = np.lexsort((-matrix.indices, np.repeat(np.arange(30), np.diff(matrix.indptr))))
    indices, data, indptr = matrix.indices[order], matrix.data[order], matrix.indptr.copy()
    data[0] /= 2
    indptr[1:] += 1
    return sparse.csr_matrix(
        (np.append(data[0], data), np.append(indices[0], indices), indptr), shape=matrix.shape
    )


FORMATS = {
    "csc": lambda m: m.tocsc(),
    "coo": lambda m: m.tocoo(),
    "array": lambda m: sparse.csr_array(m),
    "float64": lambda m: m.astype(np.float64),
    "int64 indices": lambda m: sparse.csr_matrix(
        (m.data, m.indices.astype(np.int64), m.indptr.astype(np.int64)), shape=m.shape
    ),
    "unsorted": unsorted,
    "torch csr": lambda m: torch.sparse_csr_tensor(
        m.indptr, m.indices, m.data, m.shape, check_invariants=True
    ),
    "torch coo": lambda m: torch.sparse_coo_tensor(
        np.stack(m.nonzero()) if m.data.all() else np.stack((m.tocoo().row, m.tocoo().col)),
        m.data, m.shape, check_invariants=True,
    ),
    "interactions": Interactions.from_scipy,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_are_the_same_matrix(kind):
    model = fitted(FORMATS[kind](random_cells()), iterations=2)
    np.testing.assert_allclose(model.user_factors, fitted(iterations=2).user_factors, atol=1e-5)
    assert (model.interactions is not None) == (kind == "interactions")


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, np.int64, np.uint8])
def test_integers_and_bools_are_values(dtype):
    counts = groups()
    expected = fitted(counts.astype(np.float32), iterations=2).user_factors
    np.testing.assert_array_equal(fitted(counts.astype(dtype), iterations=2).user_factors, expected)


def test_the_matrix_is_not_changed():
    matrix = unsorted(random_cells())
    before = matrix.copy()
    model = fitted(matrix)
    model.recommend(np.arange(30), matrix, items=[1, 5])
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(matrix, name), getattr(before, name))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3, 4), (1, 1)])
def test_matrices_without_cells(shape):
    model = ALS(**OPTIONS, calculate_training_loss=True).fit(sparse.csr_matrix(shape))
    assert model.user_factors.shape == (shape[0], 6)
    assert not model.user_factors.any()
    assert model.loss_history_ == [0.0] * 15
    ids, scores = model.recommend(np.arange(shape[0]), sparse.csr_matrix(shape), N=2)
    assert ids.shape == scores.shape == (shape[0], 2)


@pytest.mark.parametrize("method", ["cholesky", "cg", "block"])
@pytest.mark.parametrize("regularization", [0.0, 0.01])
def test_more_factors_than_the_data_can_say(method, regularization):
    model = fitted(
        random_cells(9, 7),
        factors=40,
        method=method,
        regularization=regularization,
        calculate_training_loss=True,
    )
    assert np.isfinite(model.user_factors).all()
    assert model.loss_history_[-1] < 0.1


def test_keys_beyond_31_bits():
    keys = np.array([3, 2**31, 2**40, -(2**50)])
    ratings = Interactions.from_arrays(
        np.repeat(keys, 2), np.tile(keys, 2)[[0, 1, 1, 2, 2, 3, 3, 0]]
    )
    model = fitted(ratings)
    assert set(model.interactions.users.tolist()) == set(keys.tolist())
    ids, _ = model.recommend(ratings.user_index(2**40), N=2)
    liked = ratings.matrix[ratings.user_index(2**40)].indices
    assert not set(ids.tolist()) & set(liked.tolist())
    assert set(model.interactions.items[ids].tolist()) < set(keys.tolist())


# --- what is refused ------------------------------------------------------------------------------

NAN = random_cells()
NAN.data[3] = np.nan
BEYOND = random_cells()
BEYOND.indices[0] = 99
REFUSED = {
    "nan": (NAN, ValueError, "finite; got nan"),
    "infinity": (sparse.csr_matrix([[np.inf]]), ValueError, "finite; got inf"),
    "array": (np.eye(3), TypeError, "scipy.sparse"),
    "list": ([[1, 0]], TypeError, "scipy.sparse"),
    "complex": (sparse.csr_matrix(np.eye(2) * 1j), TypeError, "real numbers"),
    "column": (BEYOND, ValueError, r"columns in 0\.\.19; got 99"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_matrix_that_is_none_is_refused(name):
    matrix, error, text = REFUSED[name]
    model = ALS(**OPTIONS)
    with pytest.raises(error, match=text):
        model.fit(matrix)
    assert model.user_factors is None


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("factors", 0, ValueError),
        ("factors", 2.5, TypeError),
        ("regularization", -1, ValueError),
        ("regularization", float("nan"), ValueError),
        ("alpha", float("inf"), ValueError),
        ("alpha", "1", TypeError),
        ("iterations", -1, ValueError),
        ("num_threads", -1, ValueError),
        ("method", "lu", ValueError),
        ("cg_steps", -1, ValueError),
        ("block_size", 0, ValueError),
        ("tolerance", -0.1, ValueError),
        ("dtype", np.float16, TypeError),
        ("dtype", "text", TypeError),
        ("random_state", "seed", TypeError),
        ("random_state", -1, ValueError),
        ("device", "tpu", ValueError),
        ("checkpoint_every", -1, ValueError),
    ],
)
def test_options_out_of_range_are_refused(option, value, error):
    with pytest.raises(error, match=f"expected {option}"):
        ALS(**{option: value})
    if hasattr(model := ALS(progress=False), option) and option != "device":
        setattr(model, option, value)
        with pytest.raises(error, match=f"expected {option}"):
            model.fit(random_cells())
        assert model.user_factors is None


def test_factors_of_another_size_are_refused():
    model = fitted()
    before = model.user_factors.copy()
    with pytest.raises(ValueError, match=r"user_factors of shape \[31, 6\].*got \[30, 6\]"):
        model.fit(random_cells(31))
    with pytest.raises(ValueError, match="shape"):
        model.user_factors = np.zeros(3)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        model.item_embedding = torch.zeros(3, 6, dtype=torch.float64)
    np.testing.assert_array_equal(model.user_factors, before)


def test_nothing_works_before_fit():
    model = ALS()
    assert model.user_factors is model.item_embedding is None
    for call in (
        lambda: model.recommend(0, random_cells()[0]),
        lambda: model.similar_items(0),
        lambda: model.recalculate_user(0, random_cells()[0]),
        lambda: model.save("nowhere"),
        lambda: model.n_parameters,
    ):
        with pytest.raises(ValueError, match="before fit"):
            call()


# --- factors as arrays and parameters -------------------------------------------------------------


def test_arrays_and_parameters_share_their_memory():
    model = fitted()
    assert isinstance(model.user_embedding, torch.nn.Parameter)
    assert model.user_embedding.shape == (30, 6)
    assert model.item_factors.ctypes.data == model.item_embedding.data_ptr()
    assert model.n_parameters == 50 * 6
    model.user_factors[3] = 7
    assert (model.user_embedding[3] == 7).all()
    with torch.no_grad():
        model.item_embedding[2] = 5
    assert (model.item_factors[2] == 5).all()
    given = np.ones((4, 6))
    model.user_factors = given
    given[:] = 2
    assert (model.user_embedding == 1).all()
    table = torch.rand(9, 6)
    model.item_embedding = table
    assert model.item_embedding.data_ptr() == table.data_ptr()


def test_gradients_go_through_the_parameters():
    model = fitted()
    (model.user_embedding[0] @ model.item_embedding.T).sum().backward()
    assert model.item_embedding.grad is not None
    model.fit(random_cells())


def test_under_inference_mode():
    with torch.inference_mode():
        model = fitted(iterations=2)
    np.testing.assert_array_equal(model.user_factors, fitted(iterations=2).user_factors)
    model.recommend(0, random_cells()[0])
    model.item_embedding.data.neg_()
    with torch.no_grad():
        model.item_embedding.neg_()
    assert not model.item_embedding.is_inference()


def test_models_are_copied():
    model = fitted(Interactions.from_scipy(random_cells()))
    model.recommend(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to_cpu()):
        assert other.item_embedding.data_ptr() != model.item_embedding.data_ptr()
        for found, expected in zip(other.recommend(3), model.recommend(3), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.gpu
def test_a_gpu_learns_the_same():
    matrix = random_cells(300, 200)
    here = fitted(matrix, calculate_training_loss=True)
    there = fitted(matrix, calculate_training_loss=True, device="cuda")
    assert there.loss_history_ == pytest.approx(here.loss_history_, rel=1e-3)
    assert not there.user_factors.flags.writeable
    back = there.to_cpu()
    for model in (there, back, back.to_gpu()):
        ids, scores = model.recommend(np.arange(300), matrix, N=5)
        np.testing.assert_array_equal(ids, back.recommend(np.arange(300), matrix, N=5)[0])
        assert scores.shape == (300, 5)
