"""NMF: no update raises its loss, in all forms; scikit-learn's answers; missing cells."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn import decomposition
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

import vecsmith
from low_rank_matrices import random_sparse
from vecsmith.models import _nmf_observed, _nmf_updates
from vecsmith.models._matrix import Matrix

NAN = float("nan")
# Two tastes: the first two users like the first two films, the others the last two.
RATINGS = np.array(
    [[5, 4, NAN, 1, NAN], [NAN, 5, 5, NAN, 2], [1, NAN, 2, 5, 5], [NAN, 1, 1, 4, 5]], dtype=float
)


def fit(X, components=4, **options):
    """The fitted model and W, however far it came."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = vecsmith.NMF(components, random_state=0, **options)
        return model, model.fit_transform(X)


def dense_of(X) -> np.ndarray:
    return X.toarray() if scipy.sparse.issparse(X) else np.asarray(X)


def objective(X, W, H, there=1.0, kl=False, alpha_W=0.0, alpha_H=0.0, l1_ratio=0.0) -> float:
    """The loss of the class's formula, written out."""
    X, W, H = np.nan_to_num(dense_of(X).astype(float)), W.astype(float), H.astype(float)
    model = W @ H
    if kl:
        given = np.where(X > 0, X * np.log(np.where(X > 0, X, 1) / np.maximum(model, 1e-300)), 0)
        value = ((given - X + model) * there).sum()
    else:
        value = 0.5 * ((X - model) ** 2 * there).sum()
    for factor, scale in ((W, X.shape[1] * alpha_W), (H, X.shape[0] * alpha_H)):
        value += scale * (l1_ratio * factor.sum() + (1 - l1_ratio) / 2 * (factor**2).sum())
    return float(value)


@pytest.mark.filterwarnings("ignore:.*check_array_api_input")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_it_is_an_estimator():
    check_estimator(vecsmith.NMF(3))


FORMS = {
    "cd": {},
    "cd, shuffled": {"shuffle": True},
    "mu": {"solver": "mu"},
    "kullback-leibler": {"solver": "mu", "beta_loss": "kullback-leibler"},
}
PENALTIES = {
    "none": {},
    "both": {"alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.4},
    "l1": {"alpha_W": 0.02, "l1_ratio": 1.0},
}


@pytest.mark.parametrize("observed", [False, True], ids=["all", "observed"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_the_loss_falls_to_what_is_said(kind, form, penalty, observed):
    X = random_sparse(40, 30, 0.3, seed=5)
    there = (dense_of(X) > 0).astype(float) if observed else 1.0
    options = {**FORMS[form], **PENALTIES[penalty]}
    if observed:
        options |= {"observed": "stored"} if kind == "sparse" else {"missing": 0.0}
    given = X if kind == "sparse" else dense_of(X)
    weights = {"alpha_H": options.get("alpha_W", 0.0), **PENALTIES[penalty]}
    kl = "beta_loss" in options
    losses = []
    for iterations in (1, 15):
        model, W = fit(given, 5, max_iter=iterations, tol=0, **options)
        H = model.components_
        assert (W >= 0).all()
        assert (H >= 0).all()
        losses.append(objective(X, W, H, there, kl, **weights))
        error = np.sqrt(2 * objective(X, W, H, there, kl))
        assert model.reconstruction_err_ == pytest.approx(error, rel=1e-6)
    assert losses[1] < 0.95 * losses[0]


@pytest.mark.parametrize("observed", [False, True], ids=["all", "observed"])
@pytest.mark.parametrize("kl", [False, True], ids=["squared", "kullback-leibler"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_no_multiplicative_update_raises_the_loss(kind, kl, observed):
    X = random_sparse(40, 30, 0.3, seed=5)
    matrix = Matrix(X if kind == "sparse" else X.toarray())
    if kind == "dense" and observed:
        matrix = Matrix(_nmf_observed.stored_cells(X.toarray(), 0.0))
    cells = _nmf_updates.Cells.of(X) if observed or (kl and kind == "sparse") else None
    there = (dense_of(X) > 0).astype(float) if observed else 1.0
    penalties = _nmf_updates.Penalties(0.3, 0.6, 0.2, 0.1)
    generator = torch.Generator().manual_seed(0)
    w, h = (torch.rand(5, n, dtype=torch.float64, generator=generator) for n in X.shape)

    def value() -> float:
        plain = objective(X, w.T.numpy(), h.numpy(), there, kl)
        first = 0.3 * w.sum() + 0.6 * h.sum()
        return plain + float(first + 0.1 * w.square().sum() + 0.05 * h.square().sum())

    last = first = value()
    for step in range(60):
        _nmf_updates.multiplicative(
            matrix, cells, w, h, penalties, kullback_leibler=kl, observed=observed,
            max_iter=1, tol=0, update_h=step % 3 > 0,
        )  # fmt: skip
        now = value()
        assert now <= last * (1 + 1e-12)
        last = now
    assert last < 0.6 * first


def steps(function, *args, **options) -> list[float]:
    reported: list[float] = []
    function(*args, report=lambda i, value: reported.append(value), max_iter=60, tol=0, **options)
    return reported


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("l1", [0.0, 0.5])
def test_no_step_of_coordinate_descent_raises_the_loss(dtype, l1):
    """Accelerated or not: what is reported is the loss of what is kept."""
    X = random_sparse(90, 50, 0.2).astype(str(dtype).removeprefix("torch."))
    penalties = _nmf_updates.Penalties(l1, 2 * l1, 0.3, 0.1)
    generator = torch.Generator().manual_seed(0)
    w = torch.rand(7, 90, dtype=dtype, generator=generator)
    h = torch.rand(7, 50, dtype=dtype, generator=generator)
    first = w.clone(), h.clone()
    eps = torch.finfo(dtype).eps
    reported = steps(_nmf_updates.coordinate_descent, Matrix(X), w, h, penalties)
    assert len(reported) == 60
    assert all(b <= a * (1 + 4 * eps) for a, b in pairwise(reported))
    value = objective(X, w.T.numpy(), h.numpy())
    value += float(l1 * w.sum() + 2 * l1 * h.sum())
    value += float(0.15 * w.square().sum() + 0.05 * h.square().sum())
    assert reported[-1] == pytest.approx(np.sqrt(2 * value), rel=20 * np.sqrt(eps) * 1e-2)
    cells = _nmf_updates.Cells.of(X)
    w, h = (factor.clone() for factor in first)
    reported = steps(_nmf_observed.observed_descent, cells, w, h, penalties)
    assert all(b <= a * (1 + 40 * eps) for a, b in pairwise(reported))
    value = objective(X, w.T.numpy(), h.numpy(), dense_of(X) > 0)
    value += float(l1 * w.sum() + 2 * l1 * h.sum())
    value += float(0.15 * w.square().sum() + 0.05 * h.square().sum())
    assert reported[-1] == pytest.approx(np.sqrt(2 * value), rel=20 * np.sqrt(eps) * 1e-2)


def test_observed_sweeps_are_coordinate_descent(monkeypatch):
    monkeypatch.setattr(_nmf_observed, "_NUMBERS", 200)  # many panels
    monkeypatch.setattr(_nmf_observed, "_SWEEPS", 1)
    X = random_sparse(25, 18, 0.3).toarray()
    X[4] = 0
    X = scipy.sparse.csr_matrix(X)
    generator = torch.Generator().manual_seed(1)
    w = torch.rand(3, 25, dtype=torch.float64, generator=generator)
    h = torch.rand(3, 18, dtype=torch.float64, generator=generator)
    expected = w.clone()
    dense = torch.from_numpy(X.toarray())
    for i in range(25):
        known = dense[i] > 0
        near = h[:, known]
        for r in range(3):
            bend = float(near[r] @ near[r]) + 0.2
            slope = float(near[r] @ (dense[i, known] - expected[:, i] @ near))
            new = max(
                0.0, float(expected[r, i]) + (slope - 0.1 - 0.2 * float(expected[r, i])) / bend
            )
            expected[r, i] = new if known.any() else 0
    cells = _nmf_updates.Cells.of(X.tocsr())
    panels = _nmf_observed.Panels.of(*cells.forward.parts(), 3)
    assert len(panels) >= 3
    _nmf_observed.observed_sweeps(panels, w, h, 0.1, 0.2)
    torch.testing.assert_close(w, expected)


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_loss_is_at_most_that_of_scikit_learn(kind, penalty):
    X = random_sparse(80, 60, 0.25)
    given = {"dense": X.toarray(), "csr": X, "csc": X.tocsc()}[kind]
    model, W = fit(given, 5, tol=1e-6, max_iter=1000, **PENALTIES[penalty])
    theirs = decomposition.NMF(5, random_state=0, tol=1e-6, max_iter=2000, **PENALTIES[penalty])
    found = theirs.fit_transform(X.toarray())
    weights = {"alpha_H": PENALTIES[penalty].get("alpha_W", 0.0), **PENALTIES[penalty]}
    ours_loss = objective(X, W, model.components_, **weights)
    assert ours_loss <= objective(X, found, theirs.components_, **weights) * 1.001


def test_transform_solves_each_row():
    """The problem of W alone is convex: against scipy's nonnegative least squares."""
    from scipy.optimize import nnls

    X = random_sparse(60, 40, 0.3).toarray()
    model, W = fit(X, 5, tol=1e-6, max_iter=1000)
    exact = np.array([nnls(model.components_.T, row)[0] for row in X])
    np.testing.assert_allclose(model.transform(X), exact, atol=1e-3)
    np.testing.assert_allclose(W, exact, atol=1e-3)
    known = np.where(X > 0, X, NAN)
    model, W = fit(known, 3, tol=1e-5, max_iter=500, missing=NAN)
    for row, found, again in zip(X, model.transform(known), W, strict=True):
        there = row > 0
        if there.sum() < 6:  # hardly more than components: flat valleys, slow to walk
            continue
        least = nnls(model.components_[:, there].T, row[there])[1]
        for weights in (found, again):
            assert np.linalg.norm(weights @ model.components_[:, there] - row[there]) == (
                pytest.approx(least, abs=1e-4)
            )
    kl, W = fit(X, 3, solver="mu", beta_loss="kullback-leibler", max_iter=500)
    np.testing.assert_allclose(kl.transform(X), W, atol=0.05)


def test_two_tastes_come_out():
    """Four people, five films, 14 ratings of 20, rank 2: known cells come back, and each taste has
    a component of its own."""
    there = ~np.isnan(RATINGS)
    model, W = fit(RATINGS, 2, missing=NAN, alpha_W=1e-3, max_iter=500, tol=1e-6)
    completed = model.inverse_transform(W)
    assert np.abs(completed - RATINGS)[there].max() < 0.6
    assert np.isfinite(completed).all()
    assert (completed >= 0).all()
    taste = W.argmax(axis=1)
    assert taste[0] == taste[1] != taste[2] == taste[3]
    film = model.components_.argmax(axis=0)
    assert film[0] == film[1] == taste[0]
    assert film[3] == film[4] == taste[2]
    # As zeros, the unknown cells would pull everything down.
    zeros, U = fit(np.nan_to_num(RATINGS), 2)
    assert np.abs(zeros.inverse_transform(U) - RATINGS)[there].max() > 1


def test_three_ways_to_say_what_is_known():
    cells = scipy.sparse.csr_matrix(np.nan_to_num(RATINGS))
    marked = np.where(np.isnan(RATINGS), -1, RATINGS)
    expected, W = fit(RATINGS, 2, missing=NAN, max_iter=50, tol=0)
    for X, options in (
        (cells, {"observed": "stored"}),
        (cells.tocsc(), {"observed": "stored"}),
        (marked, {"missing": -1.0}),
        (torch.from_numpy(RATINGS), {"missing": NAN}),
    ):
        model, found = fit(X, 2, max_iter=50, tol=0, **options)
        np.testing.assert_allclose(np.asarray(found), W, atol=1e-9)
        np.testing.assert_allclose(model.components_, expected.components_, atol=1e-9)
    # A zero that was observed is not an unknown cell.
    zero = RATINGS.copy()
    zero[0, 2] = 0
    model, found = fit(zero, 2, missing=NAN, max_iter=300)
    assert (found @ model.components_)[0, 2] < 0.7
    # Without unknown cells both ways are one.
    full = np.nan_to_num(RATINGS) + 1
    one, first = fit(full, 2, missing=NAN, tol=1e-9, max_iter=500)
    two, second = fit(full, 2, tol=1e-9, max_iter=500)
    np.testing.assert_allclose(first @ one.components_, second @ two.components_, atol=1e-2)


def test_unknown_cells_are_never_written_out():
    import tracemalloc

    X = scipy.sparse.random(2500, 2000, 0.002, format="csr", random_state=0)
    fit(X[:50], 3, observed="stored", max_iter=2)
    tracemalloc.start()
    fit(X, 3, observed="stored", max_iter=2)
    assert tracemalloc.get_traced_memory()[1] < X.shape[0] * X.shape[1]
    tracemalloc.stop()


@pytest.mark.parametrize("init", ["random", "nndsvd", "nndsvda", "nndsvdar", None])
@pytest.mark.parametrize("form", FORMS)
def test_every_start(init, form):
    X = random_sparse(30, 20, 0.4)
    model, W = fit(X, 4, init=init, **FORMS[form])
    assert np.isfinite(W).all()
    error = objective(X, W, model.components_, kl=form == "kullback-leibler")
    zeros = objective(X, 0 * W + 1e-9, model.components_, kl=form == "kullback-leibler")
    assert error < (0.8 if init != "nndsvd" or "cd" in form else 0.95) * zeros


def test_starts_are_those_of_boutsidis_and_gallopoulos():
    from vecsmith.models._nmf_start import start

    X = random_sparse(30, 20, 0.4)
    theirs = decomposition.NMF(5, init="nndsvd", max_iter=1, random_state=0)
    mean = float(X.mean())
    random = np.random.RandomState
    W, H = start(Matrix(X), mean, 5, "nndsvd", random(0))
    initial = decomposition._nmf._initialize_nmf(X, 5, "nndsvd", random_state=0)
    np.testing.assert_allclose(W, initial[0], atol=1e-6)
    np.testing.assert_allclose(H, initial[1], atol=1e-6)
    assert theirs.init == "nndsvd"
    filled = start(Matrix(X), mean, 5, "nndsvda", random(0))[0]
    assert (filled[W == 0] == mean).all()
    little = start(Matrix(X), mean, 5, "nndsvdar", random(0))[0]
    assert 0 < little[W == 0].max() < mean
    # More components than rows: random.
    wide = start(Matrix(X[:3]), mean, 5, None, random(0))[0]
    assert wide.shape == (3, 5)
    assert (wide > 0).all()


def test_custom_starts():
    X = random_sparse(20, 12, 0.5).toarray()
    generator = np.random.default_rng(0)
    W, H = generator.random((20, 3)), generator.random((3, 12))
    model = vecsmith.NMF("auto", init="custom", max_iter=300)
    model.fit_transform(X, W=W.copy(), H=H.copy())
    assert model.n_components_ == 3
    for wrong, error, match in (
        ({"W": None, "H": H}, ValueError, "expected W and H"),
        ({"W": -W, "H": H}, ValueError, "W >= 0"),
        ({"W": W, "H": H[:, :5]}, ValueError, "shape"),
        ({"W": W.astype(np.float32), "H": H}, TypeError, "float64"),
    ):
        with pytest.raises(error, match=match):
            model.fit_transform(X, **wrong)
    with pytest.raises(ValueError, match="'custom' alone"):
        vecsmith.NMF(3).fit_transform(X, W=W)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_forms_and_dtypes(dtype, form):
    X = random_sparse(30, 20, 0.4).astype(dtype)
    tensor = torch.from_numpy(X.toarray())
    dense = (X.toarray(), np.asfortranarray(X.toarray()), tensor)
    for group in (dense, (X, X.tocsc(), tensor.to_sparse_coo())):
        expected, W = fit(group[0], 3, max_iter=20, tol=0, **FORMS[form])
        assert W.dtype == expected.components_.dtype == dtype
        for given in group[1:]:
            found = fit(given, 3, max_iter=20, tol=0, **FORMS[form])[1]
            assert isinstance(found, torch.Tensor) == isinstance(given, torch.Tensor)
            slack = 5e-3 if dtype == np.float32 else 1e-8
            np.testing.assert_allclose(np.asarray(found), W, atol=slack)
    back = expected.inverse_transform(W)
    np.testing.assert_allclose(back, W @ expected.components_)
    assert list(expected.get_feature_names_out()) == ["nmf0", "nmf1", "nmf2"]


def test_odd_matrices():
    model, W = fit(np.zeros((4, 3)), 2)
    assert model.reconstruction_err_ == 0
    assert (W @ model.components_ == 0).all()
    X = random_sparse(12, 9, 0.4).toarray()
    X[3] = X[:, 5] = 0
    for options in ({}, {"solver": "mu"}, {"missing": 0.0}):
        model, W = fit(X, 3, **options)
        assert np.isfinite(W).all()
        assert np.isfinite(model.components_).all()
        assert np.abs((W @ model.components_)[3]).max() < 0.05
    model, W = fit(X, 20)  # more than rows or columns
    assert model.components_.shape == (20, 9)
    assert model.reconstruction_err_ < 0.05
    one, W = fit(np.outer([1.0, 2], [3.0, 4, 5]), 1, tol=1e-12)
    assert one.reconstruction_err_ < 1e-6
    model, W = fit(np.array([[1.0, NAN], [NAN, NAN]]), 1, missing=NAN)
    assert (W @ model.components_)[0, 0] == pytest.approx(1)
    assert W[1] == 0
    nothing, W = fit(np.full((3, 2), NAN), 1, missing=NAN)
    assert nothing.reconstruction_err_ == 0


def test_what_is_not_enough_is_said():
    X = random_sparse(40, 30, 0.3)
    with pytest.warns(ConvergenceWarning, match="3 iterations"):
        vecsmith.NMF(5, max_iter=3).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vecsmith.NMF(5, max_iter=3, tol=0).fit(X)


def test_verbose_prints(capsys):
    fit(random_sparse(20, 10, 0.5), 2, verbose=1, max_iter=12)
    assert "NMF: iteration 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_components": 0}, ValueError, "n_components >= 1"),
        ({"n_components": 1.5}, TypeError, "an int"),
        ({"init": "ones"}, ValueError, "nndsvda"),
        ({"init": "nndsvd", "n_components": 6}, ValueError, r"=5 .*got 6"),
        ({"solver": "als"}, ValueError, "'cd', 'mu'"),
        ({"beta_loss": "itakura-saito"}, ValueError, "kullback-leibler"),
        ({"beta_loss": True}, ValueError, "kullback-leibler"),
        ({"beta_loss": "kullback-leibler"}, ValueError, "'mu'"),
        ({"tol": -1}, ValueError, "tol >= 0"),
        ({"max_iter": 0}, ValueError, "max_iter >= 1"),
        ({"alpha_W": -1}, ValueError, "alpha_W"),
        ({"alpha_H": "none"}, TypeError, "alpha_H"),
        ({"l1_ratio": 2}, ValueError, r"0 \.\. 1"),
        ({"observed": "some"}, ValueError, "'stored'"),
        ({"missing": "?"}, TypeError, "missing"),
    ],
)
def test_wrong_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        vecsmith.NMF(**{"n_components": 2, **options}).fit(np.ones((8, 5)))


def test_wrong_matrices_are_refused():
    for bad, match in (
        (np.array([[1.0, -2], [1, 1]]), r"Negative values .* got -2"),
        (scipy.sparse.csr_matrix([[1.0, -2], [1, 1]]), "Negative"),
        (np.array([[1.0, NAN], [1, 1]]), "NaN"),
        (np.array([[1.0, np.inf], [1, 1]]), "infinity"),
    ):
        with pytest.raises(ValueError, match=match):
            vecsmith.NMF(1).fit(bad)
    with pytest.raises(ValueError, match="infinity"):
        vecsmith.NMF(1, missing=NAN).fit(np.array([[1.0, np.inf], [1, NAN]]))
    with pytest.raises(ValueError, match="NaN"):
        vecsmith.NMF(1, missing=-1.0).fit(np.array([[1.0, NAN], [1, -1]]))
    with pytest.raises(ValueError, match="observed='stored'"):
        vecsmith.NMF(1, missing=NAN).fit(scipy.sparse.eye(3).tocsr())
    with pytest.raises(ValueError, match="Negative"):
        vecsmith.NMF(1).fit(np.ones((3, 2))).transform(-np.ones((3, 2)))
