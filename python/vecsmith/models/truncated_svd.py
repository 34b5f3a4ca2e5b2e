"""TruncatedSVD: a matrix by its leading singular triplets; speaks like scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from vecsmith.models import _estimator as check
from vecsmith.models._matrix import Matrix, as_array, as_given
from vecsmith.models._range_finder import exact_triplets, leading_triplets

_ALGORITHMS = ("randomized", "arpack", "full")


class TruncatedSVD(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The leading singular triplets of a matrix that is not centered.

        X ~ U S V^T,   transform(X) = X V

    Among matrices of that rank, U S V^T is the nearest to X (Eckart and Young 1936). Parameters,
    attributes and answers are those of ``sklearn.decomposition.TruncatedSVD``; a sparse X is never
    written out, but for blocks of some megabytes. The products use ``torch.get_num_threads()``
    threads.

    ``"randomized"`` builds a block Krylov space (Musco and Musco 2015) in place of scikit-learn's
    power iterations: as good after less than half of the products. Small matrices, and ranks near
    the full one, are decomposed exactly.

    X is an array, a scipy matrix, or a torch tensor (dense or sparse), for which ``transform``
    answers with a tensor. float32 gives float32, anything else float64.

    Args:
        n_components: the rank k, at most n_features.
        algorithm: "randomized"; "full" (exact); "arpack" (scipy's Lanczos, to ``tol``).
        n_iter: of "randomized": the error is at most about that of so many power iterations.
        n_oversamples: of "randomized": how many vectors more than k those would have.
        power_iteration_normalizer: taken, as scikit-learn takes it; the basis is orthonormalized
            in any case.
        random_state: an int, ``np.random.RandomState`` or None; an int gives the same result again.
        tol: of "arpack"; 0 is machine precision.

    Attributes:
        components_: V^T [k, n_features]; the greatest entry of each row by magnitude is positive.
        singular_values_: [k], falling.
        explained_variance_: [k], the variance of each column of X V.
        explained_variance_ratio_: [k], that, in parts of the variance of the columns of X; nan
            where there is none.
        n_features_in_, feature_names_in_: as scikit-learn defines them.

    Raises:
        TypeError, ValueError: wrong options; X with nan, infinity or fewer than two columns;
            n_components > n_features.

    Source: Halko, Martinsson and Tropp 2011, "Finding Structure with Randomness".
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        algorithm: str = "randomized",
        n_iter: int = 5,
        n_oversamples: int = 10,
        power_iteration_normalizer: str = "auto",
        random_state: Any = None,
        tol: float = 0.0,
    ) -> None:
        self.n_components = n_components
        self.algorithm = algorithm
        self.n_iter = n_iter
        self.n_oversamples = n_oversamples
        self.power_iteration_normalizer = power_iteration_normalizer
        self.random_state = random_state
        self.tol = tol

    def fit(self, X: Any, y: Any = None) -> TruncatedSVD:
        """Find the triplets of X [n_samples, n_features]. y is ignored."""
        self._fit(as_array(X))
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """:meth:`fit`, and U S = X V [n_samples, k]."""
        return as_given(self._fit(as_array(X)), X)

    def transform(self, X: Any) -> Any:
        """X V [n_samples, k] of new rows."""
        check_is_fitted(self)
        rows = validate_data(
            self, as_array(X), accept_sparse=["csr", "csc"], dtype=check.FLOATS, reset=False
        )
        return as_given(check.projected(rows, self.components_), X)

    def inverse_transform(self, X: Any) -> Any:
        """X V^T [n_samples, n_features] from X [n_samples, k]."""
        check_is_fitted(self)
        rows = check_array(as_array(X), dtype=check.FLOATS)
        check.width("TruncatedSVD", rows, len(self.components_))
        return as_given(rows @ self.components_, X)

    def _fit(self, X: Any) -> np.ndarray:
        with check.kept_on_error(self):
            return self._solve(X)

    def _solve(self, X: Any) -> np.ndarray:
        check.one_of("algorithm", self.algorithm, _ALGORITHMS)
        rank = check.integer("n_components", self.n_components, 1)
        n_iter = check.integer("n_iter", self.n_iter, 0)
        n_oversamples = check.integer("n_oversamples", self.n_oversamples, 1)
        check.one_of("power_iteration_normalizer", self.power_iteration_normalizer, check.NORMALS)
        tol = check.number("tol", self.tol, 0.0)
        random = check_random_state(self.random_state)
        X = validate_data(
            self, X, accept_sparse=["csr", "csc"], dtype=check.FLOATS, ensure_min_features=2
        )
        if rank > X.shape[1]:
            raise ValueError(
                f"TruncatedSVD: expected n_components <= n_features={X.shape[1]}; got {rank}"
            )
        matrix = Matrix(X)
        # Fewer samples than components: as many as there are.
        rank = min(rank, X.shape[0])
        if self.algorithm == "arpack":
            left, values, right = check.arpack_triplets(matrix, rank, tol, random)
        elif self.algorithm == "full":
            left, values, right = exact_triplets(matrix, rank)
        else:
            left, values, right = leading_triplets(matrix, rank, n_iter, n_oversamples, random)
        scores = left * values
        total = matrix.less(matrix.column_means()).squared_norm() / len(scores)
        variance = scores.var(axis=0, dtype=np.float64)
        self.components_ = right
        self.singular_values_ = values
        self.explained_variance_ = variance.astype(X.dtype)
        # A matrix of equal rows has no variance to explain.
        self.explained_variance_ratio_ = (variance / (total or np.nan)).astype(X.dtype)
        return scores

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.components_.shape[0]
