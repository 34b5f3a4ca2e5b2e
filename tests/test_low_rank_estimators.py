"""What TruncatedSVD, PCA and NMF promise alike: memory, accuracy, and what a failure leaves."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn import decomposition
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vecsmith
from low_rank_matrices import random_sparse, with_spectrum
from vecsmith.models import _matrix, _range_finder
from vecsmith.models._matrix import Matrix
from vecsmith.models._range_finder import exact_triplets


class Largest(TorchDispatchMode):
    """How many numbers the largest dense tensor had that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                self.numbers = max(self.numbers, leaf.numel())
        return result


# --- sparse matrices ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["svd", "full", "pca", "covariance", "nmf"])
@pytest.mark.parametrize("tall", [True, False], ids=["tall", "wide"])
def test_a_sparse_matrix_is_written_out_in_blocks_alone(kind, tall, monkeypatch):
    """Of a narrow one, too, which is solved exactly: 20,000 x 120 with 2 % of its cells."""
    monkeypatch.setattr(_range_finder, "_WRITTEN", 1 << 18)
    monkeypatch.setattr(_matrix, "_CHUNK", 1 << 18)
    X = scipy.sparse.random(20_000, 120, 0.02, format="csr", random_state=0, dtype=np.float32)
    X = X if tall else X.T.tocsr()
    rank = 20
    model = {
        "svd": vecsmith.TruncatedSVD(rank, random_state=0),
        "full": vecsmith.TruncatedSVD(rank, algorithm="full"),
        "pca": vecsmith.PCA(rank, random_state=0),
        "covariance": vecsmith.PCA(rank, svd_solver="covariance_eigh"),
        "nmf": vecsmith.NMF(rank, init="nndsvd", max_iter=2, tol=0, random_state=0),
    }[kind]
    model.fit(X[:500])  # imports
    tracemalloc.start()
    with Largest() as largest:
        model.fit(X)
    most = tracemalloc.get_traced_memory()[1]  # NumPy's arrays; torch's are those of the mode
    tracemalloc.stop()
    # Factors [20_000, 20] are 400,000 numbers, the matrix 2,400,000.
    assert largest.numbers <= 400_000
    assert most < 4 * X.shape[0] * X.shape[1]


SPECTRA = {
    "falling": 0.7 ** np.arange(30),
    "steep": 10.0 ** -np.arange(0, 15, 0.5),
    "one value": np.ones(30),
    "low rank": [3.0, 2, 1],
    "zero": [0.0],
}


@pytest.mark.parametrize("shape", [(400, 30), (30, 400), (130, 40)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_blocks_of_rows_are_as_exact_as_the_whole(shape, spectrum, monkeypatch):
    monkeypatch.setattr(_range_finder, "_WRITTEN", 100)
    monkeypatch.setattr(_matrix, "_CHUNK", 100)
    dense = with_spectrum(*shape, SPECTRA[spectrum])
    dense[3], dense[:, 2] = 0, 0
    generator = np.random.default_rng(0)
    for offset in (None, generator.standard_normal(shape[1])):
        whole = dense if offset is None else dense - offset
        wanted = np.linalg.svd(whole, compute_uv=False)
        for dtype in (np.float32, np.float64):
            matrix = Matrix(scipy.sparse.csr_matrix(dense.astype(dtype)), offset)
            for rank in (1, 12, min(shape)):
                left, values, right = exact_triplets(matrix, rank)
                assert left.dtype == values.dtype == right.dtype == dtype
                assert left.shape == (shape[0], rank)
                assert right.shape == (rank, shape[1])
                slack = 100 * np.finfo(dtype).eps
                scale = wanted[0] or 1
                np.testing.assert_allclose(values, wanted[:rank], atol=slack * scale)
                np.testing.assert_allclose(left * values, whole @ right.T, atol=slack * scale)
                for vectors in (left.T, right):
                    assert np.abs(vectors @ vectors.T - np.eye(rank)).max() < slack


@pytest.mark.parametrize("shape", [(300, 60), (60, 300)])
@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csc_matrix])
def test_a_covariance_is_summed_in_double_precision(shape, form):
    """Singular values of float32 data, down to 1e-5 of the greatest."""
    X = (with_spectrum(*shape, 10.0 ** -np.arange(0, 5.25, 0.25)) + 0.1).astype(np.float32)
    exact = decomposition.PCA(20, svd_solver="full").fit(X.astype(float))
    model = vecsmith.PCA(20, svd_solver="covariance_eigh").fit(form(X))
    assert exact.singular_values_[-1] < 1e-4 * exact.singular_values_[0]
    np.testing.assert_allclose(model.singular_values_, exact.singular_values_, rtol=2e-3)
    assert model.singular_values_.dtype == np.float32


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (vecsmith.PCA(3), {"n_components": 50}),
        (vecsmith.PCA(3), {"n_components": 9, "svd_solver": "arpack"}),
        (vecsmith.TruncatedSVD(3), {"n_components": 50}),
        (vecsmith.TruncatedSVD(3), {"n_components": 9, "algorithm": "arpack"}),
        (vecsmith.NMF(3, tol=0), {"n_components": 50, "init": "nndsvd"}),
        (vecsmith.NMF(3, tol=0), {"init": "custom"}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else str(value),
)
def test_a_fit_that_fails_leaves_the_model(model, wrong):
    X = random_sparse(40, 12, 0.5).toarray()
    options = model.get_params()
    model.fit(X)
    expected, before = model.transform(X), {k for k in vars(model) if k.endswith("_")}
    model.set_params(**wrong)
    with pytest.raises(ValueError, match="expected"):
        model.fit(np.ones((20, 9)))
    model.set_params(**options)
    assert {k for k in vars(model) if k.endswith("_")} == before
    assert model.n_features_in_ == 12
    assert np.array_equal(model.transform(X), expected)
    fresh = type(model)(**options).set_params(**wrong)
    with pytest.raises(ValueError, match="expected"):
        fresh.fit(np.ones((20, 9)))
    assert not [k for k in vars(fresh) if k.endswith("_")]


def test_a_warning_that_is_an_error_leaves_the_model():
    from sklearn.exceptions import ConvergenceWarning

    X = random_sparse(40, 12, 0.5).toarray()
    model = vecsmith.NMF(3, max_iter=500, random_state=0).fit(X)
    expected = model.transform(X)
    model.max_iter = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvergenceWarning):
            model.fit(X[:, :5])
    model.max_iter = 500
    assert np.array_equal(model.transform(X), expected)


@pytest.mark.parametrize("kind", [vecsmith.PCA, vecsmith.TruncatedSVD, vecsmith.NMF])
def test_scores_of_another_width_are_refused(kind):
    X = random_sparse(40, 12, 0.5).toarray()
    model = kind(3).fit(X)
    for wrong in (np.ones((2, 5)), torch.ones(2, 2)):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: expected X of 3 columns.* got"):
            model.inverse_transform(wrong)


@pytest.mark.parametrize("kind", [vecsmith.PCA, vecsmith.TruncatedSVD, vecsmith.NMF])
def test_layouts_of_blocks_are_refused(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls such layouts beta
        X = torch.ones(8, 6).to_sparse_bsr((2, 2))
    with pytest.raises(ValueError, match=r"COO, CSR or CSC .* got one of torch.sparse_bsr"):
        kind(2).fit(X)


# --- whitening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e6])
@pytest.mark.parametrize("solver", ["full", "covariance_eigh", "randomized", "arpack"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_directions_of_no_variance_are_not_divided_by_it(solver, dtype, scale):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((60, 4)) * [3, 1, 0, 0.5] + [0, 5, 7, 0]
    X = np.column_stack([X, X[:, 0] + X[:, 1]]) * scale  # rank 3
    X = X.astype(dtype)
    model = vecsmith.PCA(4, whiten=True, svd_solver=solver, random_state=0).fit(X)
    new = X + np.array([0, 0, 1e-3, 0, 0], dtype=dtype) * dtype(scale)
    scores = model.transform(new)
    np.testing.assert_allclose(scores[:, :3].std(axis=0, ddof=1), 1, rtol=1e-3)
    assert np.abs(scores[:, 3]).max() <= 1e-2 * scale
    slack = 1e-4 if dtype == np.float32 else 1e-8
    np.testing.assert_allclose(model.inverse_transform(model.transform(X)) / scale, X / scale,
                               atol=20 * slack)  # fmt: skip
