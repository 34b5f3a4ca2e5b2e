"""PCA: principal components, of sparse matrices too; speaks like scikit-learn's."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from vecsmith.models import _estimator as check
from vecsmith.models._matrix import Matrix, as_array, as_given
from vecsmith.models._range_finder import exact_triplets, leading_triplets

_SOLVERS = ("auto", "full", "covariance_eigh", "arpack", "randomized")


class PCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Principal components: the orthogonal directions of greatest variance.

        X - 1 mean^T ~ U S V^T,   transform(X) = (X - 1 mean^T) V

    Parameters, attributes and answers are those of ``sklearn.decomposition.PCA``. X is centered
    inside the products, never in memory (but for ``"full"``), so that a sparse X stays sparse, with
    ``"randomized"`` as well. The products use ``torch.get_num_threads()`` threads.

    X is an array, a scipy matrix, or a torch tensor (dense or sparse), for which ``transform``
    answers with a tensor. float32 gives float32, anything else float64.

    Args:
        n_components: how many, k; a number in 0 .. 1 (not included) for as many as explain more
            than that part of the variance; "mle" for Minka's choice; None for
            min(n_samples, n_features).
        copy: taken, as scikit-learn takes it; X is never written into.
        whiten: divide the scores by their standard deviations; those of no variance (rounding
            alone) stay as they are.
        svd_solver: "full": exact, of a dense X, from a centered copy.
            "covariance_eigh": the eigenvectors of the covariance matrix, which squares the
            singular values: those below about 1e-8 of the greatest are lost.
            "randomized": a block Krylov space, for a k well below min(n_samples, n_features).
            "arpack": scipy's Lanczos, to ``tol``; k < min(n_samples, n_features).
            "auto": of a dense X as in scikit-learn: covariance_eigh for up to 1,000 features with
            ten times as many samples, else full for up to 500 x 500 and for parts of the variance,
            randomized for k < 80 % of the shorter side, else full. Of a sparse X randomized for
            such k, else covariance_eigh.
        tol: of "arpack"; 0 is machine precision.
        iterated_power: of "randomized": the error is at most about that of so many power
            iterations; "auto": 7, or 4 where k is above a tenth of the shorter side.
        n_oversamples: of "randomized": how many vectors more than k those would have.
        power_iteration_normalizer: taken, as scikit-learn takes it; the basis is orthonormalized
            in any case.
        random_state: an int, ``np.random.RandomState`` or None; an int gives the same result again.

    Attributes:
        components_: V^T [k, n_features]; the greatest entry of each row by magnitude is positive.
        explained_variance_: [k], the eigenvalues S^2 / (n_samples - 1).
        explained_variance_ratio_: [k], in parts of the whole variance; nan where there is none.
        singular_values_: S [k].
        mean_: [n_features].
        n_components_: k.
        n_samples_: of the fit.
        noise_variance_: the mean of the eigenvalues that are left out, sigma^2 of probabilistic
            PCA; 0 where none is.
        n_features_in_, feature_names_in_: as scikit-learn defines them.

    Raises:
        TypeError, ValueError: wrong options; X with nan or infinity; more components than
            min(n_samples, n_features); "full" for a sparse X.

    Source: Pearson 1901; Hotelling 1933; Tipping and Bishop 1999, "Probabilistic Principal
    Component Analysis"; Halko, Martinsson and Tropp 2011.
    """

    def __init__(
        self,
        n_components: int | float | str | None = None,
        *,
        copy: bool = True,
        whiten: bool = False,
        svd_solver: str = "auto",
        tol: float = 0.0,
        iterated_power: int | str = "auto",
        n_oversamples: int = 10,
        power_iteration_normalizer: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.copy = copy
        self.whiten = whiten
        self.svd_solver = svd_solver
        self.tol = tol
        self.iterated_power = iterated_power
        self.n_oversamples = n_oversamples
        self.power_iteration_normalizer = power_iteration_normalizer
        self.random_state = random_state

    # --- fit ----------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None) -> PCA:
        """Find the components of X [n_samples, n_features]. y is ignored."""
        self._fit(as_array(X))
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """:meth:`fit`, and the scores of X [n_samples, k]."""
        array = as_array(X)
        checked, scores = self._fit(array)
        if scores is None:
            return as_given(self._scores(checked), X)
        if self.whiten:
            scores = scores / self._deviations()
        return as_given(scores, X)

    def _fit(self, X: Any) -> tuple[Any, np.ndarray | None]:
        """X as it was checked, and U S where it comes with the components."""
        with check.kept_on_error(self):
            return self._solve(X)

    def _solve(self, X: Any) -> tuple[Any, np.ndarray | None]:
        check.one_of("svd_solver", self.svd_solver, _SOLVERS)
        check.one_of("power_iteration_normalizer", self.power_iteration_normalizer, check.NORMALS)
        tol = check.number("tol", self.tol, 0.0)
        n_oversamples = check.integer("n_oversamples", self.n_oversamples, 1)
        if self.iterated_power != "auto":
            check.integer("iterated_power", self.iterated_power, 0)
        random = check_random_state(self.random_state)
        X = validate_data(
            self, X, accept_sparse=["csr", "csc"], dtype=check.FLOATS, ensure_min_samples=2
        )
        wanted = self._wanted(X)
        solver = self._solver(X, wanted)
        matrix = Matrix(X)
        mean = matrix.column_means()
        matrix = matrix.less(mean)
        total = matrix.squared_norm()
        least, scores = min(X.shape), None
        if solver in ("full", "covariance_eigh"):

            def chosen(values: np.ndarray) -> int:
                return self._rank(wanted, values.astype(np.float64) ** 2, X.shape)

            if solver == "full":
                left, values, right = exact_triplets(Matrix(X - mean), least)
                rank = chosen(values)
                scores = left[:, :rank] * values[:rank]
            else:
                values, right = _covariance_pairs(matrix, chosen)
                rank = len(right)
        else:
            rank = int(wanted)
            if solver == "arpack":
                left, values, right = check.arpack_triplets(matrix, rank, tol, random)
            else:
                n_iter = self.iterated_power
                if isinstance(n_iter, str):
                    n_iter = 7 if rank < 0.1 * least else 4
                left, values, right = leading_triplets(matrix, rank, n_iter, n_oversamples, random)
            scores = left * values
        squares = values[:rank].astype(np.float64) ** 2
        degrees = X.shape[0] - 1
        self.n_samples_, self.n_components_ = X.shape[0], rank
        self._fit_svd_solver = solver
        self.mean_ = mean
        self.components_ = right[:rank].copy()
        self.singular_values_ = values[:rank].copy()
        self.explained_variance_ = (squares / degrees).astype(X.dtype)
        # Constant columns have no variance to explain.
        self.explained_variance_ratio_ = (squares / (total or np.nan)).astype(X.dtype)
        rest = max(total - float(squares.sum()), 0.0) / degrees
        self.noise_variance_ = X.dtype.type(rest / (least - rank) if rank < least else 0.0)
        return X, scores

    def _wanted(self, X: Any) -> int | float | str:
        """n_components, None replaced. Raises TypeError, ValueError."""
        wanted, least = self.n_components, min(X.shape)
        if wanted is None:
            return least - 1 if self.svd_solver == "arpack" else least
        if isinstance(wanted, str):
            check.one_of("n_components", wanted, ("mle",))
            if X.shape[0] < X.shape[1]:
                raise ValueError(
                    "PCA: expected n_samples >= n_features for n_components='mle'; "
                    f"got {X.shape[0]} < {X.shape[1]}"
                )
            return wanted
        if isinstance(wanted, Real) and not isinstance(wanted, Integral):
            if not 0 < wanted < 1:
                raise ValueError(
                    f"PCA: expected n_components to be an int or in 0 .. 1; got {wanted!r}"
                )
            return float(wanted)
        if isinstance(wanted, bool) or not isinstance(wanted, Integral):
            raise TypeError(f"PCA: expected n_components to be a number; got {wanted!r}")
        if not 0 <= wanted <= least:
            raise ValueError(
                f"PCA: expected n_components in 0 .. min(n_samples, n_features)={least}; "
                f"got {wanted}"
            )
        return int(wanted)

    def _solver(self, X: Any, wanted: int | float | str) -> str:
        """svd_solver, "auto" replaced. Raises TypeError, ValueError."""
        sparse = not isinstance(X, np.ndarray)
        solver, counted = self.svd_solver, isinstance(wanted, int)
        if solver == "full" and sparse:
            raise TypeError(
                "PCA: expected svd_solver 'auto', 'covariance_eigh', 'arpack' or 'randomized' for "
                "a sparse X; got 'full'"
            )
        if solver in ("arpack", "randomized") and (not counted or wanted == 0):
            raise ValueError(
                f"PCA: expected n_components to be an int >= 1 with {solver!r}; got {wanted!r}"
            )
        if solver != "auto":
            return solver
        few = isinstance(wanted, int) and 1 <= wanted < 0.8 * min(X.shape)
        if sparse:
            return "randomized" if few else "covariance_eigh"
        if X.shape[1] <= 1000 and X.shape[0] >= 10 * X.shape[1]:
            return "covariance_eigh"
        return "full" if max(X.shape) <= 500 or not few else "randomized"

    def _rank(self, wanted: int | float | str, squares: np.ndarray, shape: tuple[int, int]) -> int:
        """How many components, where all singular values are known."""
        if isinstance(wanted, int):
            return wanted
        if isinstance(wanted, str):
            return minka_rank(squares / (shape[0] - 1), shape[0])
        parts = np.cumsum(squares) / (squares.sum() or 1.0)
        return min(int(np.searchsorted(parts, wanted, side="right")) + 1, len(squares))

    # --- use ----------------------------------------------------------------------------------

    def transform(self, X: Any) -> Any:
        """The scores of new rows, [n, k]."""
        check_is_fitted(self)
        return as_given(self._scores(self._checked(X)), X)

    def _checked(self, X: Any) -> Any:
        return validate_data(
            self, as_array(X), accept_sparse=["csr", "csc"], dtype=check.FLOATS, reset=False
        )

    def _scores(self, X: Any) -> np.ndarray:
        scores = check.projected(X, self.components_, self.mean_)
        return scores / self._deviations() if self.whiten else scores

    def _deviations(self) -> np.ndarray:
        """Standard deviations of the scores, 1 for those of no variance: of rounding alone, next to
        the greatest."""
        deviations = np.sqrt(self.explained_variance_)
        noise = 16 * np.finfo(deviations.dtype).eps
        if self._fit_svd_solver == "covariance_eigh":  # the roots of eigenvalues in float64
            noise = max(noise, 4 * np.sqrt(np.finfo(np.float64).eps))
        real = deviations > noise * deviations.max(initial=0)
        return np.where(real, deviations, np.ones_like(deviations))

    def inverse_transform(self, X: Any) -> Any:
        """Rows [n, n_features] from scores [n, k]: the nearest points of the plane, V X^T + mean;
        scores are unwhitened first."""
        check_is_fitted(self)
        scores = check_array(as_array(X), dtype=check.FLOATS)
        check.width("PCA", scores, len(self.components_))
        if self.whiten:
            scores = scores * self._deviations()
        return as_given(scores @ self.components_ + self.mean_, X)

    # --- probabilistic PCA --------------------------------------------------------------------

    def get_covariance(self) -> np.ndarray:
        """V (L - sigma^2 I) V^T + sigma^2 I [n_features, n_features], L the explained variances:
        the covariance that probabilistic PCA (Tipping and Bishop 1999) gives the data."""
        check_is_fitted(self)
        above = np.maximum(self.explained_variance_ - self.noise_variance_, 0)
        covariance = (self.components_.T * above) @ self.components_
        covariance.flat[:: len(covariance) + 1] += self.noise_variance_
        return covariance

    def get_precision(self) -> np.ndarray:
        """The inverse of :meth:`get_covariance`, by its eigenvectors; its pseudo-inverse where the
        noise variance is 0."""
        check_is_fitted(self)
        inverse, noise = self._inverse_variances()
        precision = (self.components_.T * (inverse - noise)) @ self.components_
        precision.flat[:: len(precision) + 1] += noise
        return precision

    def _inverse_variances(self) -> tuple[np.ndarray, Any]:
        """1 / max(L, sigma^2) and 1 / sigma^2; 0 in place of 1 / 0."""
        variances = np.maximum(self.explained_variance_, self.noise_variance_)
        with np.errstate(divide="ignore"):
            inverse = np.where(variances > 0, 1 / variances, 0).astype(variances.dtype)
        noise = self.noise_variance_
        return inverse, (1 / noise if noise > 0 else noise)

    def score_samples(self, X: Any) -> Any:
        """The log-likelihood of each row, [n], under probabilistic PCA.

        Raises:
            ValueError: the noise variance is 0 with fewer components than features, or a
                component's variance is: then no density exists.
        """
        check_is_fitted(self)
        rows = self._checked(X)
        k, d = self.components_.shape
        variances = np.maximum(self.explained_variance_, self.noise_variance_).astype(np.float64)
        noise = float(self.noise_variance_)
        if (k < d and noise <= 0) or not (variances > 0).all():
            raise ValueError(
                "PCA.score_samples: expected a covariance of full rank; got one without noise in "
                f"{d - k} of {d} directions: fit fewer components"
            )
        scores = check.projected(rows, self.components_, self.mean_).astype(np.float64)
        distance = (scores**2 / variances).sum(axis=1)
        determinant = float(np.log(variances).sum())
        if k < d:
            lengths = _centered_squares(rows, self.mean_)
            distance += np.maximum(lengths - (scores**2).sum(axis=1), 0) / noise
            determinant += (d - k) * math.log(noise)
        likelihood = -0.5 * (d * math.log(2 * math.pi) + determinant + distance)
        return as_given(likelihood.astype(self.components_.dtype), X)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of :meth:`score_samples`. y is ignored."""
        return float(self.score_samples(X).mean())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.svd_solver != "full"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.components_.shape[0]


def _covariance_pairs(
    matrix: Matrix, chosen: Callable[[np.ndarray], int]
) -> tuple[np.ndarray, np.ndarray]:
    """(S [min(m, n)] falling, V^T [k, n]) from the eigenvectors of the smaller of the two Gram
    matrices, taken in float64; k is ``chosen`` by S."""
    values, vectors = torch.linalg.eigh(matrix.gram())
    values = values.flip(0).clamp_min(0).sqrt().to(matrix.dtype)
    vectors = vectors.flip(1)[:, : chosen(values.numpy())]
    if matrix.shape[1] > matrix.shape[0]:
        # A^T U = V S; where S is 0, any orthonormal rows will do.
        right = matrix.transposed_times(vectors.to(matrix.dtype))
        unit, triangle = torch.linalg.qr(right)
        vectors = unit * torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(matrix.dtype)
    vectors = vectors.to(matrix.dtype)
    if vectors.numel():
        greatest = vectors.abs().argmax(dim=0, keepdim=True)
        signs = torch.where(vectors.gather(0, greatest) < 0, -1.0, 1.0)
        vectors = vectors * signs.to(matrix.dtype)
    return values.numpy(), vectors.T.contiguous().numpy()


def _centered_squares(X: Any, mean: np.ndarray) -> np.ndarray:
    """|x - mean|^2 of each row, float64 [n]."""
    center = mean.astype(np.float64)
    if isinstance(X, np.ndarray):
        centered = X - center
        return np.einsum("ij,ij->i", centered, centered)
    csr = X.tocsr()
    rows = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
    stored, there = csr.data.astype(np.float64), center[csr.indices]
    change = (stored - there) ** 2 - there**2
    return np.bincount(rows, change, minlength=csr.shape[0]) + center @ center


def minka_rank(eigenvalues: np.ndarray, n_samples: int) -> int:
    """The dimension 1 .. d - 1 of greatest evidence for d eigenvalues of a covariance (falling)
    of n_samples rows.

    Source: Minka 2000, "Automatic Choice of Dimensionality for PCA", equations 76-80.
    """
    d = len(eigenvalues)
    if d < 2:
        return d
    spectrum = eigenvalues.astype(np.float64)
    # What is below rounding is rounding, and no component.
    rounding = max(1e-15 * float(spectrum[0]), float(np.finfo(np.float64).tiny))
    spectrum = np.maximum(spectrum, rounding)
    positive = int((spectrum > rounding).sum())
    logs = np.log(spectrum)
    best, rank = -math.inf, 1
    prior = 0.0  # log of the density of a basis, without its powers of 2
    for k in range(1, min(d, positive + 1)):
        free = (d - k + 1) / 2
        prior += math.lgamma(free) - free * math.log(math.pi)
        noise = float(spectrum[k:].mean())
        shrunk = np.concatenate([spectrum[:k], np.full(d - k, noise)])
        curvature = 0.0
        for i in range(k):
            gaps = (1 / shrunk[i + 1 :] - 1 / shrunk[i]) * (spectrum[i] - spectrum[i + 1 :])
            # Equal eigenvalues turn into each other freely: no evidence for their order.
            curvature += float(np.log(np.maximum(gaps, np.finfo(np.float64).tiny)).sum())
        pairs = d * k - k * (k + 1) / 2
        curvature += pairs * math.log(n_samples)
        evidence = (
            prior
            - k * math.log(2)
            - n_samples / 2 * float(logs[:k].sum())
            - n_samples * (d - k) / 2 * math.log(noise)
            + (pairs + k) / 2 * math.log(2 * math.pi)
            - curvature / 2
            - k / 2 * math.log(n_samples)
        )
        if evidence > best:
            best, rank = evidence, k
    return rank
