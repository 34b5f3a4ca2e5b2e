"""TruncatedSVD: against LAPACK in float64, scikit-learn's conventions, and hard spectra."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn import decomposition
from sklearn.utils.estimator_checks import check_estimator

import vecsmith
from low_rank_matrices import (
    angles,
    assert_residual_at_most,
    random_blocks,
    random_sparse,
    with_spectrum,
)
from vecsmith.models import _range_finder
from vecsmith.models._matrix import Matrix, as_array

FALLING = 0.9 ** np.arange(250)


def torch_csr(matrix) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(matrix.toarray()).to_sparse_csr()


@pytest.mark.filterwarnings("ignore:.*check_array_api_input")
@pytest.mark.parametrize("algorithm", ["randomized", "full"])
def test_it_is_an_estimator(algorithm):
    check_estimator(vecsmith.TruncatedSVD(algorithm=algorithm))


@pytest.mark.parametrize("shape", [(620, 510), (510, 620), (1500, 300)])
@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_krylov_space_holds_the_leading_triplets(shape, kind, dtype):
    X = (random_sparse(*shape, 0.05, seed=3) + 3 * random_blocks(*shape)).tocsr().astype(dtype)
    X = {"dense": X.toarray(), "csr": X, "csc": X.tocsc()}[kind]
    model = vecsmith.TruncatedSVD(12, n_iter=7, random_state=0)
    scores = model.fit_transform(X)
    dense = np.asarray(X.toarray() if kind != "dense" else X, float)
    assert_residual_at_most(dense, model.components_, 12, 1e-5)
    values = np.linalg.svd(dense, compute_uv=False)
    assert model.singular_values_ == pytest.approx(values[:12], rel=1e-4)
    eps = np.finfo(dtype).eps
    V = model.components_
    assert V.dtype == scores.dtype == model.singular_values_.dtype == dtype
    assert np.abs(V @ V.T - np.eye(12)).max() < 50 * eps
    np.testing.assert_allclose(scores, dense @ V.T, atol=200 * eps * values[0])
    np.testing.assert_allclose(model.transform(X), scores, atol=200 * eps * values[0])
    unit = scores / model.singular_values_
    assert np.abs(unit.T @ unit - np.eye(12)).max() < 2000 * eps


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("geometric", FALLING),
        ("low rank", [5.0, 4, 3]),
        ("one value many times", np.ones(200)),
        ("clusters", np.repeat([8.0, 4, 2, 1], 70)),
        ("steep", 10.0 ** -np.arange(0, 60, 0.5)),
        ("zero", [0.0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("block", [8, 16, 33])
def test_hard_spectra_end_well(name, values, block):
    X = with_spectrum(400, 300, values)
    random = np.random.RandomState(0)
    for matrix in (X, X.T.copy()):
        left, found, right = _range_finder.krylov_triplets(Matrix(matrix), 20, block, 8, random)
        wanted = np.linalg.svd(matrix, compute_uv=False)[:20]
        scale = wanted[0] or 1
        for vectors in (left.T, right):
            assert np.abs(vectors @ vectors.T - np.eye(20)).max() < 1e-12
        np.testing.assert_allclose(left * found, matrix @ right.T, atol=1e-12)
        # The one spectrum without an end, and what 64 dimensions reach of it.
        slack = 2e-2 if name == "geometric" else 1e-12
        np.testing.assert_allclose(found / scale, wanted / scale, atol=slack)


def test_small_values_survive_single_precision():
    """Both sides are orthonormalized: values far below sqrt(eps) of the greatest are found."""
    values = 10.0 ** -np.arange(0, 6, 0.25)
    X = with_spectrum(700, 600, values).astype(np.float32)
    model = vecsmith.TruncatedSVD(20, random_state=0).fit(X)
    np.testing.assert_allclose(model.singular_values_, values[:20], atol=1e-6)
    assert model.singular_values_[16] == pytest.approx(1e-4, rel=0.02)


def test_what_is_lost_on_the_longer_side_is_mended(monkeypatch):
    """Neighbors alone are orthogonalized there; were even those left out, U would be found wrong
    and replaced."""
    X = random_sparse(1500, 600, 0.05)
    whole, mended = _range_finder._orthonormal, []
    calls = iter(range(1000))

    def careless(columns, known, basis, scale, random):
        unit, triangle = whole(columns, known, basis, scale, random)
        if next(calls) % 2:
            unit = unit + 1e-5 * torch.ones_like(unit)
        return unit, triangle

    span = _range_finder._of_span
    monkeypatch.setattr(_range_finder, "_orthonormal", careless)
    monkeypatch.setattr(_range_finder, "_of_span", lambda *given: mended.append(1) or span(*given))
    left, values, right = _range_finder.krylov_triplets(
        Matrix(X), 10, 16, 8, np.random.RandomState(0)
    )
    assert mended
    assert np.abs(left.T @ left - np.eye(10)).max() < 1e-12
    np.testing.assert_allclose(left * values, X @ right.T, atol=1e-11)
    assert values == pytest.approx(np.linalg.svd(X.toarray(), compute_uv=False)[:10], rel=1e-2)


@pytest.mark.parametrize("n_iter", [0, 2, 5])
@pytest.mark.parametrize("rank", [3, 25])
def test_the_error_is_at_most_that_of_so_many_power_iterations(n_iter, rank):
    X = random_sparse(1100, 1000, 0.04, seed=1)
    kept = {}
    for name, kind in (("ours", vecsmith.TruncatedSVD), ("power", decomposition.TruncatedSVD)):
        found = [
            (kind(rank, n_iter=n_iter, random_state=seed).fit(X).singular_values_ ** 2).sum()
            for seed in range(3)
        ]
        kept[name] = np.mean(found)
    assert kept["ours"] >= kept["power"]


def test_answers_are_those_of_scikit_learn():
    X = random_sparse(60, 40, 0.2)
    ours = vecsmith.TruncatedSVD(5).fit(X)
    theirs = decomposition.TruncatedSVD(5, algorithm="arpack").fit(X)
    for name in (
        *("components_", "singular_values_", "explained_variance_", "explained_variance_ratio_"),
    ):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-10)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), atol=1e-10)
    np.testing.assert_allclose(
        ours.inverse_transform(ours.transform(X)),
        theirs.inverse_transform(theirs.transform(X)),
        atol=1e-10,
    )
    arpack = vecsmith.TruncatedSVD(5, algorithm="arpack", random_state=1).fit(X)
    np.testing.assert_allclose(arpack.components_, theirs.components_, atol=1e-10)
    assert list(ours.get_feature_names_out()) == [f"truncatedsvd{i}" for i in range(5)]
    assert ours.n_features_in_ == 40


def test_the_same_seed_gives_the_same_bits():
    X = random_sparse(900, 800, 0.05) + random_blocks(900, 800)
    first, second, other = (
        vecsmith.TruncatedSVD(4, random_state=seed).fit(X).components_ for seed in (0, 0, 1)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert angles(first, other).max() < 1e-3
    assert (first[np.arange(4), np.abs(first).argmax(axis=1)] > 0).all()


def test_tensors_give_tensors():
    X = random_sparse(900, 650, 0.05)
    expected = vecsmith.TruncatedSVD(3, random_state=0).fit_transform(X)
    dense = vecsmith.TruncatedSVD(3, random_state=0).fit_transform(X.toarray())
    coo = torch.from_numpy(X.toarray()).to_sparse_coo()
    for given, wanted in ((torch_csr(X), expected), (coo, expected),
                          (torch.from_numpy(X.toarray()), dense)):  # fmt: skip
        model = vecsmith.TruncatedSVD(3, random_state=0)
        scores = model.fit_transform(given)
        assert isinstance(scores, torch.Tensor)
        np.testing.assert_allclose(scores.numpy(), wanted, atol=1e-12)
        np.testing.assert_allclose(model.transform(given).numpy(), wanted, atol=1e-11)
        assert isinstance(model.inverse_transform(scores), torch.Tensor)
    assert as_array(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == np.float32
    with pytest.raises(ValueError, match="3 dimensions"):
        as_array(torch.ones(2, 2, 2).to_sparse_coo())


def test_any_memory_layout_gives_the_same():
    X = (random_sparse(1200, 640, 0.05) + 3 * random_blocks(1200, 640)).tocsr()
    dense = X.toarray()
    whole = vecsmith.TruncatedSVD(3, random_state=0).fit(dense)
    expected, ratio = whole.singular_values_, whole.explained_variance_ratio_
    wide = np.zeros((1200, 1280))
    wide[:, ::2] = dense
    frozen = dense.copy()
    frozen.flags.writeable = False
    for given in (np.asfortranarray(dense), wide[:, ::2], dense[::-1], frozen, dense.astype(int)):
        found = vecsmith.TruncatedSVD(3, random_state=0).fit(given).singular_values_
        assert found == pytest.approx(expected, rel=1e-6)
    # Unsorted, with cells in two pieces, with wide indices, read-only.
    coo = X.tocoo()
    order = np.random.default_rng(0).permutation(coo.nnz)
    rows, columns, values = coo.row[order], coo.col[order], coo.data[order]
    by_row = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=1200) * 2)])
    halves = scipy.sparse.csr_matrix(
        (np.repeat(values[by_row] / 2, 2), np.repeat(columns[by_row], 2), indptr), X.shape
    )
    long = X.copy()
    long.indices, long.indptr = long.indices.astype(np.int64), long.indptr.astype(np.int64)
    fixed = X.copy()
    fixed.data.flags.writeable = fixed.indices.flags.writeable = False
    for given in (halves, long, fixed, X.astype(bool).astype(int).multiply(X).tocsr(), X.tocoo()):
        assert given.shape == X.shape
        model = vecsmith.TruncatedSVD(3, random_state=0).fit(given)
        assert model.singular_values_ == pytest.approx(expected, rel=1e-6)
        assert model.explained_variance_ratio_ == pytest.approx(ratio, rel=1e-6)
    assert halves.nnz == 2 * X.nnz


def test_nothing_that_was_given_is_changed():
    X = random_sparse(700, 600, 0.05)
    before = X.copy()
    dense = X.toarray()
    for given in (X, X.tocsc(), dense):
        vecsmith.TruncatedSVD(2).fit(given)
        assert (abs(X - before)).nnz == 0
    assert np.array_equal(dense, before.toarray())


def test_odd_sizes():
    row = vecsmith.TruncatedSVD(3).fit(np.array([[3.0, 4.0, 0.0]]))
    assert row.components_.shape == (1, 3)
    assert row.singular_values_ == pytest.approx([5])
    tall = vecsmith.TruncatedSVD(2).fit(np.ones((1000, 2)))
    assert tall.singular_values_ == pytest.approx([np.sqrt(2000), 0], abs=1e-9)
    assert np.isnan(tall.explained_variance_ratio_).all()
    empty = vecsmith.TruncatedSVD(2).fit(scipy.sparse.csr_matrix((700, 600)))
    assert (empty.singular_values_ == 0).all()
    assert np.abs(empty.components_ @ empty.components_.T - np.eye(2)).max() < 1e-12


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_components": 0}, ValueError, "n_components >= 1"),
        ({"n_components": 6}, ValueError, "n_features=5; got 6"),
        ({"n_components": 2.5}, TypeError, "an int"),
        ({"n_components": True}, TypeError, "an int"),
        ({"algorithm": "fast"}, ValueError, "'randomized', 'arpack', 'full'"),
        ({"n_iter": -1}, ValueError, "n_iter >= 0"),
        ({"n_oversamples": 0}, ValueError, "n_oversamples >= 1"),
        ({"tol": -1.0}, ValueError, "tol >= 0"),
        ({"tol": "small"}, TypeError, "a number"),
        ({"power_iteration_normalizer": "SVD"}, ValueError, "QR"),
        ({"algorithm": "arpack", "n_components": 5}, ValueError, "arpack"),
        ({"random_state": "one"}, ValueError, "seed"),
    ],
)
def test_wrong_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        vecsmith.TruncatedSVD(**options).fit(np.eye(8, 5))


def test_wrong_matrices_are_refused():
    model = vecsmith.TruncatedSVD()
    for bad, match in (
        (np.array([[1.0, np.nan], [1, 1]]), "NaN"),
        (scipy.sparse.csr_matrix([[1.0, np.inf], [1, 1]]), "infinity"),
        (np.ones((3, 1)), "minimum of 2"),
        (np.ones((0, 4)), "minimum of 1"),
        (np.ones(4), "2D"),
    ):
        with pytest.raises(ValueError, match=match):
            model.fit(bad)
    with pytest.raises(ValueError, match="5 features"):
        vecsmith.TruncatedSVD().fit(np.eye(5)).transform(np.eye(4))


def test_products_where_torch_has_no_mkl(monkeypatch):
    X = random_sparse(80, 60, 0.2)
    right = torch.randn(60, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(X.toarray()) @ right
    for available in (True, False):
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda known=available: known)
        matrix = Matrix(X)
        torch.testing.assert_close(matrix.times(right), expected)
        torch.testing.assert_close(matrix.times(right.T.contiguous().T), expected)
        back = matrix.transposed_times(expected)
        torch.testing.assert_close(back, torch.from_numpy(X.toarray()).T @ expected)


@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_in_any_order_give_the_same(kind, dtype):
    """Also where a cell comes twice; X stays as it was given."""
    sorted_one = random_sparse(620, 510, 0.05, seed=3).tocsr().astype(dtype)
    model = vecsmith.TruncatedSVD(5, random_state=0)
    expected = model.fit_transform(sorted_one.copy()), model.explained_variance_ratio_
    draw = np.random.default_rng(0)
    mixed = sorted_one.copy() if kind == "csr" else sorted_one.tocsc()
    for begin, end in pairwise(mixed.indptr):
        turn = begin + draw.permutation(end - begin)
        mixed.indices[begin:end], mixed.data[begin:end] = mixed.indices[turn], mixed.data[turn]
    mixed = type(mixed)((mixed.data, mixed.indices, mixed.indptr), mixed.shape)
    halves = type(mixed)(
        (np.repeat(mixed.data / 2, 2), np.repeat(mixed.indices, 2), 2 * mixed.indptr), mixed.shape
    )
    assert not mixed.has_sorted_indices
    for X in (mixed, halves):
        before = X.copy()
        scores = model.fit_transform(X)
        for name in ("data", "indices", "indptr"):
            assert np.array_equal(getattr(X, name), getattr(before, name))
        tolerance = 1e3 * np.finfo(dtype).eps
        np.testing.assert_allclose(scores, expected[0], atol=tolerance * np.abs(scores).max())
        np.testing.assert_allclose(model.explained_variance_ratio_, expected[1], rtol=tolerance)
