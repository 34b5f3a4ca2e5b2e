"""NMF at its edges: any scale of X, components that die out, what ``missing`` may be."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

import vecsmith
from low_rank_matrices import random_sparse
from vecsmith.models import _nmf_observed
from vecsmith.models._nmf_updates import Cells

NAN = float("nan")
FORMS = {
    "cd": {},
    "mu": {"solver": "mu"},
    "kullback-leibler": {"solver": "mu", "beta_loss": "kullback-leibler"},
}


def fit(X, components=3, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = vecsmith.NMF(components, **{"random_state": 0, **options})
        return model, model.fit_transform(X)


@pytest.mark.parametrize("init", ["random", "nndsvd"])
@pytest.mark.parametrize("known", ["all", "missing", "stored"])
@pytest.mark.parametrize("form", FORMS)
def test_any_scale_gives_the_same(form, known, init):
    """X c gives W sqrt(c) and H sqrt(c)."""
    X = random_sparse(25, 18, 0.5, seed=3).toarray()
    options = {"init": init, "max_iter": 40, "tol": 0.0, **FORMS[form]}
    if known == "missing":
        X[::3, ::4] = NAN
        options["missing"] = NAN
    elif known == "stored":
        options["observed"] = "stored"
    for dtype, exponents in ((np.float32, (-28, 20)), (np.float64, (-40, 40))):
        given = X.astype(dtype)
        given = scipy.sparse.csr_matrix(given) if known == "stored" else given
        model, W = fit(given, **options)
        norm = np.linalg.norm(np.nan_to_num(X))
        assert np.linalg.norm(np.nan_to_num(X - W @ model.components_) * (X > 0)) < 0.8 * norm
        for exponent in exponents:
            scale = dtype(4.0**exponent)
            other, V = fit(given * scale, **options)
            # Rounding has a say in when coordinate descent steps ahead: not in what it comes to.
            near = V.astype(float) @ other.components_.astype(float) / float(scale)
            np.testing.assert_allclose(near, W @ model.components_, atol=2e-2 * near.max())
            balance = np.linalg.norm(V) / (np.linalg.norm(W) * 2.0**exponent)
            assert balance == pytest.approx(1, rel=1e-2)
            power = 0.5 if form == "kullback-leibler" else 1.0
            error = other.reconstruction_err_ / float(scale) ** power
            assert error == pytest.approx(model.reconstruction_err_, rel=1e-3)


@pytest.mark.parametrize("known", ["all", "missing"])
def test_a_component_of_zeros_is_not_paid_for(known):
    X = np.random.default_rng(0).random((40, 30))
    options = {"alpha_W": 0.1, "l1_ratio": 1.0, "max_iter": 300}
    options |= {"missing": NAN} if known == "missing" else {}
    model, W = fit(X, 4, **options)
    dead = ~model.components_.any(axis=1)
    assert dead.sum() == 3
    assert (W[:, dead] == 0).all()
    np.testing.assert_allclose(model.transform(X), W, atol=1e-12)
    rest = np.vstack([np.ones((3, 4)), np.zeros((3, 4))])
    options = {"init": "nndsvd", **({"missing": NAN} if known == "missing" else {})}
    model, W = fit(rest, 3, **options)
    assert (~model.components_.any(axis=1)).any()
    np.testing.assert_allclose(model.transform(rest), W, atol=1e-12)


def test_rows_without_a_say_in_a_component_are_not_paid_for():
    """Row 1 has seen column 2 alone, where the first component is 0."""
    cells = scipy.sparse.csr_matrix(np.array([[1.0, 2, 3], [0, 0, 4]]))
    panels = _nmf_observed.Panels.of(*Cells.of(cells).forward.parts(), 2)
    h = torch.tensor([[1.0, 1, 0], [0, 1, 1]], dtype=torch.float64)
    for l1, expected in ((0.25, 0.0), (0.0, 5.0)):
        w = torch.full((2, 2), 5.0, dtype=torch.float64)
        _nmf_observed.observed_sweeps(panels, w, h, l1, 0.0)
        assert float(w[0, 1]) == expected
        assert float(w[1, 1]) == pytest.approx(4 - l1)


@pytest.mark.filterwarnings("ignore:.*check_array_api_input")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize("missing", [NAN, -2.0, -1.0])
def test_it_is_an_estimator_where_cells_are_missing(missing):
    # The one check whose negative numbers are -1.
    marked = {"check_fit_non_negative": "-1 is no number here"} if missing == -1 else {}
    check_estimator(vecsmith.NMF(1, missing=missing), expected_failed_checks=marked)


def test_missing_is_compared_as_it_stands_in_a_cell():
    X = np.full((4, 3), 0.1, dtype=np.float32)
    X[0, 0], X[1, 1], X[2, 2] = 0.5, 0.7, 0.9
    for missing in (0.1, np.float64(0.1), np.float32(0.1)):
        assert _nmf_observed.stored_cells(X, missing).nnz == 3
    assert _nmf_observed.stored_cells(X, 1e300).nnz == 12
    assert _nmf_observed.stored_cells(X.astype(float), np.float32(0.1)).nnz == 3
    assert fit(X, 1, missing=np.float64(0.1))[0].reconstruction_err_ < 1e-3


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"missing": [1]}, TypeError, r"a number or None; got \[1\]"),
        ({"missing": True}, TypeError, "a number or None; got True"),
        ({"missing": np.inf}, ValueError, "finite or nan; got inf"),
        ({"beta_loss": 1}, ValueError, "expected solver='mu' with beta_loss=1; got 'cd'"),
    ],
)
def test_wrong_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        vecsmith.NMF(2, **options).fit(np.ones((8, 5)))


def test_custom_starts_may_be_lists():
    X = random_sparse(20, 12, 0.5).toarray()
    generator = np.random.default_rng(0)
    W, H = generator.random((20, 3)), generator.random((3, 12))
    first = vecsmith.NMF("auto", init="custom", max_iter=5, tol=0).fit_transform(X, W=W, H=H)
    second = vecsmith.NMF("auto", init="custom", max_iter=5, tol=0).fit_transform(
        X, W=W.tolist(), H=H.tolist()
    )
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match="2D"):
        vecsmith.NMF("auto", init="custom").fit_transform(X, W=W, H=H[0])
