"""PCA: against scikit-learn's exact solvers; dense and sparse; never centered in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn import decomposition
from sklearn.utils.estimator_checks import check_estimator

import vecsmith
from low_rank_matrices import angles, assert_residual_at_most, random_blocks, random_sparse
from vecsmith.models.pca import minka_rank

ATTRIBUTES = (
    *("components_", "explained_variance_", "explained_variance_ratio_", "singular_values_"),
    *("mean_", "noise_variance_", "n_components_", "n_samples_"),
)


def cloud(rows: int, columns: int, inner: int, seed: int = 0) -> np.ndarray:
    """[rows, columns] around a plane of ``inner`` dimensions, away from the origin."""
    generator = np.random.default_rng(seed)
    plane = generator.standard_normal((rows, inner)) @ generator.standard_normal((inner, columns))
    return plane + 0.1 * generator.standard_normal((rows, columns)) + 5


def sparse_blocks(m: int, n: int) -> scipy.sparse.csr_matrix:
    return (random_sparse(m, n, 0.05) + 3 * random_blocks(m, n)).tocsr()


@pytest.mark.filterwarnings("ignore:.*check_array_api_input")
@pytest.mark.parametrize("solver", ["auto", "randomized"])
def test_it_is_an_estimator(solver):
    check_estimator(vecsmith.PCA(None if solver == "auto" else 1, svd_solver=solver))


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("components", [3, 0.7, 0.999, "mle", None, 0])
@pytest.mark.parametrize("solver", ["full", "covariance_eigh"])
def test_exact_answers_are_those_of_scikit_learn(solver, components, whiten):
    X = cloud(90, 12, 4)
    given = X.copy()
    options = {"n_components": components, "svd_solver": solver, "whiten": whiten}
    ours = vecsmith.PCA(**options)
    scores = ours.fit_transform(X)
    theirs = decomposition.PCA(**options)
    expected = theirs.fit_transform(given.copy())
    for name in ATTRIBUTES:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-9)
    np.testing.assert_allclose(scores, expected, atol=1e-8)
    new = cloud(7, 12, 4, seed=3)
    np.testing.assert_allclose(ours.transform(new), theirs.transform(new), atol=1e-8)
    if components == 0:
        assert scores.shape == (90, 0)
        return
    back = ours.inverse_transform(ours.transform(new))
    np.testing.assert_allclose(back, theirs.inverse_transform(theirs.transform(new)), atol=1e-8)
    np.testing.assert_allclose(ours.get_covariance() @ ours.get_precision(), np.eye(12), atol=1e-8)
    if not whiten:
        np.testing.assert_allclose(ours.get_covariance(), theirs.get_covariance(), atol=1e-9)
        np.testing.assert_allclose(ours.score_samples(new), theirs.score_samples(new), rtol=1e-7)
        assert ours.score(new) == pytest.approx(theirs.score(new))
    assert np.array_equal(X, given)


@pytest.mark.parametrize("shape", [(700, 560), (560, 700)])
@pytest.mark.parametrize("form", ["dense", "csr", "csc", "tensor"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_krylov_space_finds_the_plane(shape, form, dtype):
    sparse = sparse_blocks(*shape).astype(dtype)
    dense = sparse.toarray()
    X = {"dense": dense, "csr": sparse, "csc": sparse.tocsc(), "tensor": torch.from_numpy(dense)}
    model = vecsmith.PCA(8, svd_solver="randomized", random_state=0)
    scores = model.fit_transform(X[form])
    centered = dense.astype(float) - dense.mean(0, dtype=float)
    exact = decomposition.PCA(8, svd_solver="full").fit(dense.astype(float))
    assert_residual_at_most(centered, model.components_, 8, 1e-6)
    slack = 1e-4 if dtype == np.float32 else 1e-6
    for name in ("explained_variance_", "explained_variance_ratio_", "singular_values_"):
        np.testing.assert_allclose(getattr(model, name), getattr(exact, name), rtol=slack)
        assert getattr(model, name).dtype == dtype
    assert model.noise_variance_ == pytest.approx(exact.noise_variance_, rel=1e-3)
    np.testing.assert_allclose(model.mean_, exact.mean_, rtol=1e-6, atol=1e-7)
    wide = 500 * np.finfo(dtype).eps * exact.singular_values_[0]
    np.testing.assert_allclose(np.asarray(scores), centered @ model.components_.T, atol=wide)
    np.testing.assert_allclose(np.asarray(model.transform(X[form])), np.asarray(scores), atol=wide)
    assert isinstance(scores, torch.Tensor) == (form == "tensor")


@pytest.mark.parametrize("solver", ["covariance_eigh", "arpack", "auto"])
@pytest.mark.parametrize("shape", [(90, 40), (40, 90)])
def test_other_solvers_of_sparse_matrices(solver, shape):
    X = sparse_blocks(*shape)
    exact = decomposition.PCA(6, svd_solver="full").fit(X.toarray())
    model = vecsmith.PCA(6, svd_solver=solver, random_state=0).fit(X)
    np.testing.assert_allclose(model.components_, exact.components_, atol=1e-7)
    np.testing.assert_allclose(model.explained_variance_, exact.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(model.noise_variance_, exact.noise_variance_, rtol=1e-9)
    scores = model.fit_transform(X)
    np.testing.assert_allclose(scores, exact.transform(X.toarray()), atol=1e-6)


def test_auto_chooses():
    def chosen(X, components=2):
        return vecsmith.PCA(components, random_state=0).fit(X)._fit_svd_solver

    generator = np.random.default_rng(0)
    assert chosen(generator.random((200, 20))) == "covariance_eigh"
    assert chosen(generator.random((100, 20))) == "full"
    assert chosen(generator.random((600, 70))) == "randomized"
    assert chosen(generator.random((600, 70)), 0.5) == "full"
    assert chosen(generator.random((600, 70)), 60) == "full"
    X = random_sparse(50, 30, 0.3)
    assert chosen(X) == "randomized"
    assert chosen(X, None) == chosen(X, 0.5) == chosen(X, "mle") == "covariance_eigh"
    assert vecsmith.PCA(svd_solver="arpack").fit(X).n_components_ == 29


def test_a_far_mean_costs_no_accuracy():
    """Centering inside the products, not in the Gram matrix afterwards."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((2000, 8)) * np.arange(1, 9) + 1e6
    exact = np.linalg.eigvalsh(np.cov(X.T - 1e6))[::-1]
    for solver in ("full", "covariance_eigh"):
        model = vecsmith.PCA(svd_solver=solver).fit(X)
        np.testing.assert_allclose(model.explained_variance_, exact, rtol=1e-8)


def test_a_sparse_matrix_is_never_written_out():
    X = scipy.sparse.random(3000, 2500, 0.002, format="csr", random_state=0)
    vecsmith.PCA(3, random_state=0).fit(X[:100])
    tracemalloc.start()
    model = vecsmith.PCA(3, random_state=0).fit(X)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < X.shape[0] * X.shape[1]  # an eighth of it
    assert model._fit_svd_solver == "randomized"


def test_minka_counts_the_dimensions():
    for inner in (1, 3, 7):
        X = cloud(400, 12, inner, seed=inner)
        assert vecsmith.PCA("mle").fit(X).n_components_ == inner
    assert minka_rank(np.array([1.0]), 5) == 1
    assert minka_rank(np.array([3.0, 0, 0, 0]), 9) == 1
    assert 1 <= minka_rank(np.zeros(4), 9) <= 3


def test_odd_sizes():
    flat = vecsmith.PCA(2).fit(np.ones((5, 3)))
    assert (flat.explained_variance_ == 0).all()
    assert np.isnan(flat.explained_variance_ratio_).all()
    assert np.isfinite(vecsmith.PCA(2, whiten=True).fit_transform(np.ones((5, 3)))).all()
    pair = vecsmith.PCA().fit(np.array([[0.0, 0, 0], [3, 4, 0]]))
    assert pair.components_[0] == pytest.approx([0.6, 0.8, 0])
    assert pair.explained_variance_ == pytest.approx([12.5, 0])
    with pytest.raises(ValueError, match="minimum of 2"):
        vecsmith.PCA().fit(np.ones((1, 3)))
    with pytest.raises(ValueError, match="fit fewer components"):
        pair.score_samples(np.ones((2, 3)))
    wide = vecsmith.PCA(svd_solver="covariance_eigh").fit(cloud(5, 9, 3))
    exact = vecsmith.PCA(svd_solver="full").fit(cloud(5, 9, 3))
    assert angles(wide.components_[:4], exact.components_[:4]).max() < 1e-7
    assert np.abs(wide.components_ @ wide.components_.T - np.eye(5)).max() < 1e-12


def test_scores_of_sparse_rows():
    X = sparse_blocks(60, 20)
    for components in (5, 20):
        model = vecsmith.PCA(components, svd_solver="covariance_eigh").fit(X)
        dense = model.score_samples(X.toarray())
        np.testing.assert_allclose(model.score_samples(X), dense, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_components": 9}, ValueError, r"0 \.\. min\(n_samples, n_features\)=5; got 9"),
        ({"n_components": 1.5}, ValueError, r"0 \.\. 1"),
        ({"n_components": True}, TypeError, "a number"),
        ({"n_components": "all"}, ValueError, "'mle'"),
        ({"svd_solver": "fast"}, ValueError, "covariance_eigh"),
        ({"svd_solver": "randomized", "n_components": 0.5}, ValueError, "int >= 1"),
        ({"svd_solver": "arpack", "n_components": 5}, ValueError, "arpack"),
        ({"iterated_power": -1}, ValueError, "iterated_power >= 0"),
        ({"iterated_power": "some"}, TypeError, "an int"),
        ({"n_oversamples": 0}, ValueError, "n_oversamples"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"power_iteration_normalizer": 3}, ValueError, "QR"),
    ],
)
def test_wrong_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        vecsmith.PCA(**options).fit(np.random.default_rng(0).random((8, 5)))


def test_wrong_matrices_are_refused():
    with pytest.raises(TypeError, match="sparse X; got 'full'"):
        vecsmith.PCA(svd_solver="full").fit(random_sparse(9, 5, 0.5))
    with pytest.raises(ValueError, match="n_samples >= n_features"):
        vecsmith.PCA("mle").fit(np.ones((3, 5)))
    with pytest.raises(ValueError, match="NaN"):
        vecsmith.PCA().fit([[1.0, np.nan], [0, 1]])
