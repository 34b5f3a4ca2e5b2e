"""NMF: a nonnegative matrix as a product of two, also where cells are missing; speaks like
scikit-learn's."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from vecsmith.models import _estimator as check
from vecsmith.models._matrix import Matrix, as_array, as_given
from vecsmith.models._nmf_observed import fit_observed_rows, observed_descent, stored_cells
from vecsmith.models._nmf_start import INITS, start
from vecsmith.models._nmf_updates import (
    Cells,
    Penalties,
    coordinate_descent,
    fit_rows,
    loss,
    multiplicative,
)

_LOSSES = {"frobenius": False, 2: False, "kullback-leibler": True, 1: True}


class NMF(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Nonnegative matrix factorization X ~ W H.

        1/2 |X - W H|_F^2
          + alpha_W n_features (l1_ratio |W|_1 + (1 - l1_ratio) / 2 |W|_F^2)
          + alpha_H n_samples (l1_ratio |H|_1 + (1 - l1_ratio) / 2 |H|_F^2),   W, H >= 0

    or, with ``beta_loss="kullback-leibler"``, sum x log(x / (WH)) - x + WH in place of the first
    term. Parameters, attributes and answers are those of ``sklearn.decomposition.NMF``, with two
    parameters more for cells that are not known, ``missing`` and ``observed``. No update raises the
    loss. A sparse X is never written out ("nndsvd..." may take blocks of some megabytes), nor is
    WH. The products use ``torch.get_num_threads()`` threads.

    X is an array, a scipy matrix, or a torch tensor (dense or sparse), for which ``transform``
    answers with a tensor. float32 gives float32, anything else float64.

    Args:
        n_components: how many, k; "auto" and None: n_features, or what a custom H has.
        init: "nndsvda", "nndsvd", "nndsvdar", "random"; "custom" for the W and H that
            :meth:`fit_transform` is given; None: "nndsvda" where k <= min(n_samples, n_features),
            else "random".
        solver: "cd": coordinate descent (HALS), several sweeps for each product with X; "mu":
            multiplicative updates, slower, and the one for the Kullback-Leibler divergence.
        beta_loss: "frobenius" or 2; "kullback-leibler" or 1.
        tol: stop where ten iterations lower the error (the square root of the loss) by less than
            that part of it; for a given H, where the projected gradient is below that part of the
            one of W = 0. 0 for all ``max_iter`` iterations.
        max_iter: the most iterations; a ``ConvergenceWarning`` says that they were not enough.
        random_state: an int, ``np.random.RandomState`` or None: of "random", "nndsvd..." and
            ``shuffle``.
        alpha_W, alpha_H: how much penalty; alpha_H "same" as alpha_W.
        l1_ratio: 0 .. 1, how much of it is on the sums.
        verbose: print how it goes.
        shuffle: of "cd": another order of the components in each sweep.
        missing: the number that stands for an unknown cell of a dense X, such as ``np.nan``; None:
            all cells are known.
        observed: "all": the cells that a sparse X does not store are zeros; "stored": they are
            unknown, and the loss is over the stored ones, zeros among them.

    Attributes:
        components_: H [k, n_features].
        n_components_: k.
        reconstruction_err_: |X - W H|_F over the cells that count; of the Kullback-Leibler
            divergence, sqrt(2 D).
        n_iter_: iterations of the fit.
        n_features_in_, feature_names_in_: as scikit-learn defines them.

    Raises:
        TypeError, ValueError: wrong options; a negative number, nan or infinity in a cell that
            counts; k > min(n_samples, n_features) with "nndsvd...".

    Source: Lee and Seung 1999, "Learning the Parts of Objects by Non-negative Matrix
    Factorization"; Cichocki and Phan 2009; Gillis and Glineur 2012; Kim, He and Park 2014.
    """

    def __init__(
        self,
        n_components: int | str | None = "auto",
        *,
        init: str | None = None,
        solver: str = "cd",
        beta_loss: str | float = "frobenius",
        tol: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
        alpha_W: float = 0.0,
        alpha_H: float | str = "same",
        l1_ratio: float = 0.0,
        verbose: int = 0,
        shuffle: bool = False,
        missing: float | None = None,
        observed: str = "all",
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.solver = solver
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.verbose = verbose
        self.shuffle = shuffle
        self.missing = missing
        self.observed = observed

    def fit(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> NMF:
        """Find W and H for X [n_samples, n_features]. y is ignored."""
        self.fit_transform(X, W=W, H=H)
        return self

    def fit_transform(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> Any:
        """:meth:`fit`, and W [n_samples, k]: a solution, to ``tol``, of the convex problem that is
        left when H is known. :meth:`transform` of the same X has another way to it, and ends
        elsewhere where several W are as good: where rows of H are linearly dependent.

        Args:
            W, H: with ``init="custom"``, where to begin: [n_samples, k], [k, n_features], not
                negative.
        """
        self._check()
        with check.kept_on_error(self):
            problem = self._problem(X, reset=True)
            w, h = self._start(problem, as_array(W), as_array(H))
            self.n_iter_ = self._solve(problem, w, h)
            self._solve_rows(problem, w, h)  # the problem that transform solves
            self.components_ = h.numpy()
            self.n_components_ = len(h)
            self.reconstruction_err_ = loss(
                problem.matrix, problem.cells, w, h, _LOSSES[self.beta_loss], problem.observed
            )
        return as_given(w.T.contiguous().numpy(), X)

    def transform(self, X: Any) -> Any:
        """The W [n, k] of new rows, for the H of the fit."""
        check_is_fitted(self)
        self._check()
        problem = self._problem(X, reset=False)
        h = torch.from_numpy(self.components_.astype(problem.dtype, copy=True))
        w = torch.zeros(len(h), problem.matrix.shape[0], dtype=h.dtype)
        if _LOSSES[self.beta_loss]:  # zeros would stay zeros
            w.fill_(float(np.sqrt(problem.mean / len(h))))
        self._warn(self._solve_rows(problem, w, h))
        return as_given(w.T.contiguous().numpy(), X)

    def inverse_transform(self, X: Any) -> Any:
        """W H [n, n_features] from W [n, k]."""
        check_is_fitted(self)
        kinds: Any = ["csr", "csc"]
        rows = check_array(as_array(X), dtype=check.FLOATS, accept_sparse=kinds)
        check.width("NMF", rows, len(self.components_))
        return as_given(np.asarray(rows @ self.components_), X)

    # --- the parts ----------------------------------------------------------------------------

    def _check(self) -> None:
        """Raises TypeError, ValueError for wrong options."""
        if self.n_components is not None and self.n_components != "auto":
            check.integer("n_components", self.n_components, 1)
        if self.init is not None:
            check.one_of("init", self.init, INITS)
        check.one_of("solver", self.solver, ("cd", "mu"))
        check.one_of("observed", self.observed, ("all", "stored"))
        if isinstance(self.beta_loss, bool) or self.beta_loss not in _LOSSES:
            raise ValueError(
                "expected beta_loss to be 'frobenius' or 'kullback-leibler'; "
                f"got {self.beta_loss!r}"
            )
        if _LOSSES[self.beta_loss] and self.solver == "cd":
            raise ValueError(
                f"expected solver='mu' with beta_loss={self.beta_loss!r}; got {self.solver!r}"
            )
        check.number("tol", self.tol, 0.0)
        check.integer("max_iter", self.max_iter, 1)
        check.number("alpha_W", self.alpha_W, 0.0)
        if self.alpha_H != "same":
            check.number("alpha_H", self.alpha_H, 0.0)
        check.number("l1_ratio", self.l1_ratio, 0.0, 1.0)
        if self.missing is not None:
            if isinstance(self.missing, bool) or not isinstance(self.missing, Real):
                raise TypeError(f"expected missing to be a number or None; got {self.missing!r}")
            if np.isinf(self.missing):
                raise ValueError(f"expected missing to be finite or nan; got {self.missing!r}")

    def _problem(self, X: Any, reset: bool) -> _Problem:
        """X as it was checked. Raises ValueError for what NMF cannot take."""
        lenient: Any = self.missing is None or "allow-nan"
        X = validate_data(
            self,
            as_array(X),
            accept_sparse=["csr", "csc"],
            dtype=check.FLOATS,
            ensure_all_finite=lenient,
            reset=reset,
        )
        dense = isinstance(X, np.ndarray)
        if self.missing is not None:
            if not dense:
                raise ValueError(
                    "NMF: expected a dense X with missing; got a sparse one (observed='stored' "
                    "for one whose other cells are unknown)"
                )
            X = stored_cells(X, self.missing)
        observed = self.missing is not None or (not dense and self.observed == "stored")
        values = X if isinstance(X, np.ndarray) else X.data
        if values.size and np.isnan(values.min()):
            raise ValueError("NMF: expected numbers in all cells that count; got NaN")
        if values.size and values.min() < 0:
            raise ValueError(
                f"Negative values in data passed to NMF: expected numbers >= 0, got {values.min()}"
            )
        return _Problem(X, observed, with_cells=self.solver == "mu" and _LOSSES[self.beta_loss])

    def _start(self, problem: _Problem, W: Any, H: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(W^T, H) to begin from. Raises TypeError, ValueError."""
        m, n = problem.matrix.shape
        rank = self.n_components
        if self.init == "custom":
            if W is None or H is None:
                raise ValueError("NMF: expected W and H with init='custom'; got none")
            W, H = (check_array(factor, dtype=check.FLOATS) for factor in (W, H))
            rank = H.shape[0] if rank is None or isinstance(rank, str) else int(rank)
            for name, factor, shape in (("W", W, (m, rank)), ("H", H, (rank, n))):
                if factor.shape != shape or factor.min() < 0:
                    raise ValueError(
                        f"NMF: expected {name} >= 0 of shape {shape}; got one of {factor.shape}"
                        + (f" with {factor.min()}" if factor.min() < 0 else "")
                    )
                if factor.dtype != problem.dtype:
                    raise TypeError(
                        f"NMF: expected {name} of {problem.dtype}, as X; got {factor.dtype}"
                    )
            return torch.from_numpy(W.T.copy()), torch.from_numpy(H.copy())
        if W is not None or H is not None:
            raise ValueError("NMF: expected W and H with init='custom' alone")
        rank = n if rank is None or isinstance(rank, str) else int(rank)
        random = check_random_state(self.random_state)
        w, h = start(problem.matrix, problem.mean, rank, self.init, random)
        left, right = torch.from_numpy(w.T.copy()), torch.from_numpy(h)
        if problem.observed and problem.cells is not None:
            # It was made with zeros in the unknown cells: to the scale of those that count.
            model = problem.cells.product(left, right).double()
            given = problem.cells.values.double()
            fit = float(model @ given) / max(float(model @ model), np.finfo(float).tiny)
            left *= np.sqrt(fit)
            right *= np.sqrt(fit)
        return left, right

    def _penalties(self, shape: tuple[int, int]) -> Penalties:
        (m, n), l1, alpha_w = shape, float(self.l1_ratio), float(self.alpha_W)
        alpha_h = alpha_w if isinstance(self.alpha_H, str) else float(self.alpha_H)
        return Penalties(
            n * alpha_w * l1, m * alpha_h * l1, n * alpha_w * (1 - l1), m * alpha_h * (1 - l1)
        )

    def _solve(self, problem: _Problem, w: torch.Tensor, h: torch.Tensor) -> int:
        """Update both in place; the number of iterations. Warns where they were not enough."""
        penalties = self._penalties(problem.matrix.shape)
        rest: dict[str, Any] = {
            "max_iter": int(self.max_iter),
            "tol": float(self.tol),
            "report": _print if self.verbose else None,
        }
        if self.solver == "mu":
            done = self._multiply(problem, w, h, update_h=True, **rest)
        elif problem.observed:
            assert problem.cells is not None
            done = observed_descent(problem.cells, w, h, penalties, **rest)
        else:
            order = check_random_state(self.random_state) if self.shuffle else None
            done = coordinate_descent(problem.matrix, w, h, penalties, order=order, **rest)
        self._warn(done)
        return done

    def _solve_rows(self, problem: _Problem, w: torch.Tensor, h: torch.Tensor) -> int:
        """Update W alone, in place, to its end: the problem is convex."""
        penalties = self._penalties(problem.matrix.shape)
        rest: dict[str, Any] = {"max_iter": int(self.max_iter), "tol": float(self.tol)}
        if not penalties.l2_w:
            w[~h.any(dim=1)] = 0  # of all the values that will do, the one transform has
        if _LOSSES[self.beta_loss]:
            return self._multiply(problem, w, h, update_h=False, **rest)
        if problem.observed:
            assert problem.cells is not None
            return fit_observed_rows(problem.cells, w, h, penalties, **rest)
        return fit_rows(problem.matrix, w, h, penalties, **rest)

    def _multiply(self, problem: _Problem, w: torch.Tensor, h: torch.Tensor, **rest: Any) -> int:
        return multiplicative(
            problem.matrix,
            problem.cells,
            w,
            h,
            self._penalties(problem.matrix.shape),
            kullback_leibler=_LOSSES[self.beta_loss],
            observed=problem.observed,
            **rest,
        )

    def _warn(self, done: int) -> None:
        if done == self.max_iter and self.tol > 0:
            warnings.warn(
                f"NMF: {done} iterations were not enough for tol={self.tol:g}",
                ConvergenceWarning,
                stacklevel=4,
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.sparse = self.missing is None
        tags.input_tags.allow_nan = isinstance(self.missing, Real) and self.missing != self.missing
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.components_.shape[0]


class _Problem:
    """A matrix, and which of its cells count.

    matrix: X; cells: its stored ones, where an update needs them one by one; observed: whether
    they alone count; mean: of the cells that count.
    """

    def __init__(self, X: Any, observed: bool, with_cells: bool) -> None:
        self.matrix, self.observed, self.dtype = Matrix(X), observed, X.dtype
        self.cells = None
        if self.matrix.sparse and (observed or with_cells):
            self.cells = Cells.of(self.matrix.rows.scipy())
        if not observed:
            self.mean = float(X.mean())
        else:
            values = self.matrix.rows.values
            self.mean = float(values.double().mean()) if len(values) else 0.0


def _print(iteration: int, value: float) -> None:
    print(f"NMF: iteration {iteration}: {value:.6g}")
