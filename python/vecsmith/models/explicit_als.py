"""ExplicitALS: matrix factorization for ratings, with biases, by alternating least squares."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.models import _factor_options as options_of
from vecsmith.models import _options as check
from vecsmith.models._biased import Bounds, blocks, partner, residuals, root_mean, squared_errors
from vecsmith.models._biased_model import BiasedModel
from vecsmith.models._cell_scores import squared_norms
from vecsmith.models._checkpoint import checksum
from vecsmith.models._factor_table import FactorTable
from vecsmith.models._factor_training import (
    SIDES,
    TROUBLE,
    Measures,
    Plan,
    cells_identity,
    session,
)
from vecsmith.models._nonnegative import nonnegative_solve

# A row by itself begins at 0, and has to come all the way.
_SWEEPS, _SWEEPS_ALONE = 10, 200


class ExplicitALS(BiasedModel):
    """Factors and biases of users and items from ratings (the Netflix problem), by alternating
    least squares:

        r_ui ~ m + b_u + b_i + <x_u, y_i>

        model = ExplicitALS(factors=50, regularization=0.06).fit(train, validation=test)
        model.predict([0, 1], [10, 20])

    It minimizes, over the observed cells (Zhou et al. 2008, doi:10.1007/978-3-540-68880-8_32, whose
    "weighted lambda" l n_u is the default; biases as in Koren, Bell and Volinsky 2009,
    doi:10.1109/MC.2009.263)

        sum_ui (r_ui - m - b_u - b_i - <x_u, y_i>)^2
            + l sum_u n_u (|x_u|^2 + b_u^2) + l sum_i n_i (|y_i|^2 + b_i^2)

    m is the mean of the ratings. A user's bias is one more number of the user, whose partner in
    each item is 1: both are solved together, in one system (as cmfrec does, Cortes 2018,
    arXiv:1809.00366). Each iteration solves for all users, then for all items.

    Args:
        factors: f, numbers per user and item.
        regularization: l >= 0.
        biases: False: r_ui ~ <x_u, y_i>, without a mean and biases.
        weighted_regularization: False: l for each row, however many cells it has.
        nonnegative: factors are at least 0 (biases need not be): parts that are added up. Found by
            coordinate descent, without ``method``.
        iterations: how many at most.
        method: "cholesky" (exact), "cg" or "block", as of :class:`vecsmith.ALS`; None: exact.
        cg_steps, block_size: of these methods.
        clip: True: predictions are kept within the ratings that were seen; or (least, greatest).
        calculate_training_loss: measure loss and RMSE after each iteration (``history_``).
        tolerance: stop when the loss falls by less than this part of itself; 0: never.
        patience: with a validation set: iterations without a better RMSE there after which training
            stops.
        dtype: float32, or float64 (by plain torch, slower).
        num_threads: 0: as many as torch has.
        random_state: of the first factors: a seed, a numpy Generator or RandomState, or None.
        device, checkpoint, checkpoint_every, resume, progress: as of :class:`vecsmith.ALS`.

    Attributes:
        user_factors, item_factors: arrays [users, f] and [items, f], over the memory of the
            parameters (on a GPU: read-only copies), None before ``fit``.
        user_biases, item_biases: [users] and [items], the same; None without biases.
        user_embedding, item_embedding: ``nn.Parameter`` [users, f + 1] and [items, f + 1]: factors,
            then the bias (without biases [.., f]).
        global_bias: m; 0 without biases.
        rating_range: (least, greatest) rating that was seen.
        interactions: the :class:`vecsmith.data.Interactions` of the fit, or None.
        history_: after each iteration {"loss", "rmse"}, if they were measured, with a validation
            set {"validation_rmse"} too. The loss is what is minimized, divided by the number of
            cells; RMSEs are those of :meth:`predict`.

    Raises: TypeError, ValueError for options out of range.
    """

    _format = "vecsmith.ExplicitALS"
    _saved = (
        *("factors", "regularization", "iterations", "biases", "weighted_regularization"),
        *("nonnegative", "method", "cg_steps", "block_size", "clip", "calculate_training_loss"),
        *("tolerance", "patience"),
    )
    _written = ("random_state", "dtype")

    def __init__(
        self,
        factors: int = 50,
        regularization: float = 0.06,
        *,
        biases: bool = True,
        weighted_regularization: bool = True,
        nonnegative: bool = False,
        iterations: int = 15,
        method: str | None = None,
        cg_steps: int = 3,
        block_size: int = 128,
        clip: bool | tuple[float, float] = False,
        calculate_training_loss: bool = False,
        tolerance: float = 0.0,
        patience: int = 2,
        dtype: Any = np.float32,
        num_threads: int = 0,
        random_state: Any = None,
        device: Any = "cpu",
        checkpoint: str | os.PathLike[str] | Any = None,
        checkpoint_every: float = 60.0,
        resume: bool = True,
        progress: bool | None = None,
    ) -> None:
        self.factors = factors
        self.regularization = regularization
        self.biases = biases
        self.weighted_regularization = weighted_regularization
        self.nonnegative = nonnegative
        self.iterations = iterations
        self.method = method
        self.cg_steps = cg_steps
        self.block_size = block_size
        self.clip = clip
        self.calculate_training_loss = calculate_training_loss
        self.tolerance = tolerance
        self.patience = patience
        self.dtype = options_of.dtype(dtype)
        self.num_threads = num_threads
        self.random_state = random_state
        self._device = check.device(device)
        self.checkpoint = options_of.checkpoint(checkpoint, checkpoint_every, resume, self.dtype)
        self.progress = progress
        self.interactions = None
        self.global_bias = 0.0
        self.rating_range: tuple[float, float] | None = None
        self.history_: list[Measures] = []
        self._check_options()

    def _check_options(self) -> None:
        self.factors = check.integer("factors", self.factors, 1)
        self.regularization = check.finite("regularization", self.regularization, low=0.0)
        for name in ("biases", "weighted_regularization", "nonnegative", "calculate_training_loss"):
            setattr(self, name, options_of.boolean(name, getattr(self, name)))
        self.iterations = check.integer("iterations", self.iterations, 0)
        self.method = options_of.method(self.method)
        if self.nonnegative and self.method is not None:
            raise ValueError(f"expected no method with nonnegative; got {self.method!r}")
        self.cg_steps = check.integer("cg_steps", self.cg_steps, 0)
        self.block_size = check.integer("block_size", self.block_size, 1)
        self.clip = options_of.clip(self.clip)
        self.tolerance = check.finite("tolerance", self.tolerance, low=0.0)
        self.patience = check.integer("patience", self.patience, 1)
        self.dtype = options_of.dtype(self.dtype)
        self.num_threads = options_of.threads(self.num_threads)
        self.random_state = options_of.random_state(self.random_state)
        self.progress = options_of.progress(self.progress)

    def _numpy_dtype(self) -> np.dtype:
        return self.dtype

    # --- training -----------------------------------------------------------------------------

    def fit(
        self,
        ratings: Any,
        validation: Any = None,
        show_progress: bool = True,
        callback: Callable[[int, float, Measures], Any] | None = None,
    ) -> ExplicitALS:
        """Factorize a matrix of ratings, from new factors. Whatever is raised, an interrupt too,
        the model is as it was before.

        Args:
            ratings: [users, items]: scipy.sparse (CSR is read in place) or torch.sparse, or
                :class:`vecsmith.data.Interactions`, which are kept with their keys. Every stored
                cell is a rating, also one of 0.
            validation: ratings of the same users and items that are held out: their RMSE is
                measured after each iteration, training stops where it does not fall any more
                (``patience``), and the factors are those of its best iteration.
            show_progress: False: no progress bar.
            callback: called after each iteration with its number, its seconds and what was
                measured (as in ``history_``).

        Returns: the model itself.

        Raises:
            TypeError, ValueError: a matrix that is none, holds nan or infinity, or no rating;
                a validation set of other users and items.
            CheckpointError: a checkpoint that is damaged or of another run. FolderInUseError.
            TrainingInterrupted: Ctrl-C or SIGTERM, after a checkpoint was written.
        """
        self._check_options()
        cells, held = self._given(ratings, validation)
        with session(self._threads() or 0, self.checkpoint):
            users, items = self._drawn(cells.shape)
            mean = float(cells.values.mean(dtype=torch.float64)) if self.biases else 0.0
            seen = (float(cells.values.min()), float(cells.values.max()))
            plan = self._plan(cells, held, users, items, mean, self._bounds(seen))
            with self._begun(plan, users, items, ratings) as training:
                self.global_bias, self.rating_range = mean, seen
                self.history_ = training.cursor.history

                def after(iteration: int, seconds: float, measures: Measures) -> None:
                    if callback is not None:
                        callback(iteration, seconds, measures)

                training.run(options_of.visible(show_progress, self.progress), after)
        return self

    def _drawn(self, shape: tuple[int, int]) -> tuple[FactorTable, FactorTable]:
        """Users at 0; items at random, of length 1 about, their biases at 0."""
        random = options_of.generator(self.random_state)
        columns = self.factors + int(self.biases)
        users = torch.zeros(shape[0], columns, dtype=self._torch_dtype())
        items = torch.zeros(shape[1], columns, dtype=self._torch_dtype())
        drawn = random.standard_normal((shape[1], self.factors), dtype=self.dtype.type)
        items[:, : self.factors] = torch.from_numpy(drawn) / math.sqrt(self.factors)
        if self.nonnegative:
            items.abs_()
        return (
            FactorTable(users.to(self._device), self.factors),
            FactorTable(items.to(self._device), self.factors),
        )

    def _plan(
        self,
        cells: ops.Cells,
        held: ops.Cells | None,
        users: FactorTable,
        items: FactorTable,
        mean: float,
        bounds: Bounds,
    ) -> Plan:
        tables = {"users": users.tensor, "items": items.tensor}
        identity: dict[str, Any] = {}
        if self.checkpoint is not None:
            settings = {name: getattr(self, name) for name in self._saved if name != "iterations"}
            settings |= {"clip": None if bounds is None else list(bounds), "model": self._format}
            settings["start"] = None if self.random_state is None else checksum(*tables.values())
            identity = {"settings": settings, "matrix": cells_identity(cells)}
            identity["validation"] = {} if held is None else cells_identity(held)
        sides = {"users": cells.to(self._device), "items": cells.transposed().to(self._device)}
        lengths = {name: side.indptr.diff().double() for name, side in sides.items()}
        held = None if held is None else held.to(self._device)

        def half_step(number: int) -> None:
            side = SIDES[number % 2]
            other = items if side == "users" else users
            self._solve(sides[side], other, mean, tables[side])

        def measure() -> Measures:
            measures: Measures = {}
            if measured:
                raw, clipped = squared_errors(sides["users"], users, items, mean, bounds)
                for name, table in tables.items():
                    scale = lengths[name] if self.weighted_regularization else None
                    raw += self.regularization * squared_norms(table, scale)
                measures["loss"] = raw / len(cells)
                measures["rmse"] = root_mean(clipped, len(cells))
            if held is not None:
                clipped = squared_errors(held, users, items, mean, bounds)[1]
                measures["validation_rmse"] = root_mean(clipped, len(held))
            return measures

        measured = self.calculate_training_loss or self.tolerance > 0
        return Plan(
            tables=tables,
            step=half_step,
            iterations=self.iterations,
            steps=len(SIDES),
            unit="iteration",
            measure=measure if measured or held is not None else None,
            tolerance=self.tolerance,
            watched=None if held is None else "validation_rmse",
            patience=self.patience,
            trouble=TROUBLE.format(self.dtype),
            identity=identity,
        )

    def _solve(
        self, cells: ops.Cells, other: FactorTable, mean: float, out: Tensor, alone: bool = False
    ) -> None:
        """The rows ``out`` of one side, given the other, in place; ``alone``: exactly, from 0."""
        lengths = cells.indptr.diff().double()
        ridges = lengths if self.weighted_regularization else torch.ones_like(lengths)
        ridges = self.regularization * ridges
        factors = partner(other)
        method = self.method if self.method is not None and not alone else "cholesky"
        for rows, part in blocks(cells):
            left = residuals(part, mean, other)
            if self.nonnegative:
                sweeps = _SWEEPS_ALONE if alone else _SWEEPS
                nonnegative_solve(left, factors, out[rows], ridges[rows], int(self.biases), sweeps)
                continue
            ops.als_solve(
                left,
                factors,
                regularization=ridges[rows],
                implicit=False,
                method=method,
                out=out[rows],
                steps=self.cg_steps if method == "cg" else None,
                block_size=self.block_size,
                num_threads=self._threads(),
            )

    @torch.no_grad()
    def _recalculated(self, side: str, cells: ops.Cells) -> Tensor:
        other = self._table("item" if side == "user" else "user")
        out = other.tensor.new_zeros(cells.shape[0], other.tensor.shape[1])
        self._solve(cells, other, self.global_bias, out, alone=True)
        return out

    def _parameters(self) -> dict[str, Any]:
        return super()._parameters() | {"dtype": self.dtype.name}
