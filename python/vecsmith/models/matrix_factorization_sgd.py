"""MatrixFactorizationSGD: matrix factorization for ratings, with biases, by stochastic gradient
descent."""

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
from vecsmith.models._biased import partner, residuals, ridge_rows, root_mean, squared_errors
from vecsmith.models._biased_model import BiasedModel
from vecsmith.models._factor_table import FactorTable
from vecsmith.models._factor_training import (
    Callback,
    Measures,
    Plan,
    cells_identity,
    seed_to_go_on_with,
    session,
)
from vecsmith.models._minibatch_sgd import MinibatchSGD

_OPTIMIZERS = ("adagrad", "sgd")
# Gradients grow with the third power of the ratings' standard deviation.
_LEAST_SPREAD = 1e-10
_RULES = ("sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam")

# An epoch by its number and rate: the sum of its squared errors.
Epoch = Callable[[int, float], float]


class MatrixFactorizationSGD(BiasedModel):
    """Factors and biases of users and items from ratings, by stochastic gradient descent over the
    observed cells (Koren, Bell and Volinsky 2009, doi:10.1109/MC.2009.263):

        r_ui ~ m + b_u + b_i + <p_u, q_i>

        model = MatrixFactorizationSGD(factors=64, random_state=0).fit(train, validation=test)
        model.predict([0, 1], [10, 20])

    Each cell, one after the other, goes against the gradient of

        (r_ui - m - b_u - b_i - <p_u, q_i>)^2 / 2
            + l / 2 (|p_u|^2 + |q_i|^2) + l_b / 2 (b_u^2 + b_i^2)

    Several threads work on blocks of the matrix that have no row and no column in common
    (:func:`vecsmith.ops.factor_sgd`): the result does not depend on how many there are, bit for
    bit.

    Args:
        factors: f, numbers per user and item.
        learning_rate: a > 0.
        regularization: l >= 0, for each rating of a row (so that a row with many is held by many).
        epochs: how many at most.
        biases: False: r_ui ~ <p_u, q_i>, without a mean and biases.
        random_state: of the first factors and of the order of the cells: a seed, a numpy Generator
            or RandomState, or None.
        num_threads: 0: as many as torch has.
        optimizer: "adagrad": every row has a rate of its own, a / sqrt(1 + the sum of its squared
            gradients), for ratings of unit spread (Chin et al. 2015,
            doi:10.1007/978-3-319-18038-0_35); others are measured by their standard deviation.
            "sgd": the rate as it is. With a ``minibatch`` any of "sgd", "adagrad",
            "rowwise_adagrad", "adam", "rowwise_adam" (:class:`vecsmith.ops.UpdateRule`).
        decay: the rate of epoch e (from 0) is a (1 - decay)^e.
        bias_learning_rate, bias_regularization: of the biases; None: as those of the factors.
        initial_spread: the standard deviation of the first factors, times sqrt(f).
        minibatch: None, or a number of cells whose gradients are taken together, and added up for
            each row, before any of their rows changes. Slower; for what else the rules can do.
        clip: True: predictions are kept within the ratings that were seen; or (least, greatest).
        patience: with a validation set: epochs without a better RMSE there after which training
            stops.
        tolerance: stop when the RMSE falls by less than this part of itself in an epoch; 0: never.
        checkpoint: a folder for the state of training, from which a run that was killed goes on to
            the same bits; None: none.
        checkpoint_every: seconds between two checkpoints, which are written after epochs.
        resume: go on from a checkpoint that is there.
        progress: whether ``fit`` shows a progress bar; None: where standard error is a terminal.

    Attributes:
        user_factors, item_factors: float32 arrays [users, f] and [items, f] over the memory of the
            parameters, None before ``fit``.
        user_biases, item_biases: [users] and [items], the same; None without biases.
        user_embedding, item_embedding: ``nn.Parameter`` [users, f + 1] and [items, f + 1]: factors,
            then the bias (without biases [.., f]).
        global_bias: m; 0 without biases.
        rating_range: (least, greatest) rating that was seen.
        interactions: the :class:`vecsmith.data.Interactions` of the fit, or None.
        history_: after each epoch {"rmse"}: of its cells, each as it was predicted before its own
            step; with a validation set {"validation_rmse"}, too.

    Raises: TypeError, ValueError for options out of range.
    """

    _format = "vecsmith.MatrixFactorizationSGD"
    _saved = (
        *("factors", "learning_rate", "regularization", "epochs", "biases", "num_threads"),
        *("optimizer", "decay", "bias_learning_rate", "bias_regularization", "initial_spread"),
        *("minibatch", "clip", "patience", "tolerance"),
    )

    def __init__(
        self,
        factors: int = 100,
        learning_rate: float = 0.05,
        regularization: float = 0.04,
        epochs: int = 15,
        biases: bool = True,
        random_state: Any = None,
        num_threads: int = 0,
        *,
        optimizer: str = "adagrad",
        decay: float = 0.0,
        bias_learning_rate: float | None = None,
        bias_regularization: float | None = None,
        initial_spread: float = 0.1,
        minibatch: int | None = None,
        clip: bool | tuple[float, float] = False,
        patience: int = 2,
        tolerance: float = 0.0,
        checkpoint: str | os.PathLike[str] | Any = None,
        checkpoint_every: float = 60.0,
        resume: bool = True,
        progress: bool | None = None,
    ) -> None:
        self.factors = factors
        self.learning_rate = learning_rate
        self.regularization = regularization
        self.epochs = epochs
        self.biases = biases
        self.random_state = random_state
        self.num_threads = num_threads
        self.optimizer = optimizer
        self.decay = decay
        self.bias_learning_rate = bias_learning_rate
        self.bias_regularization = bias_regularization
        self.initial_spread = initial_spread
        self.minibatch = minibatch
        self.clip = clip
        self.patience = patience
        self.tolerance = tolerance
        float32 = self._numpy_dtype()
        self.checkpoint = options_of.checkpoint(checkpoint, checkpoint_every, resume, float32)
        self.progress = progress
        self.interactions = None
        self.global_bias = 0.0
        self.rating_range: tuple[float, float] | None = None
        self.history_: list[Measures] = []
        self._check_options()

    def _check_options(self) -> None:
        self.factors = check.integer("factors", self.factors, 1)
        self.learning_rate = check.rate("learning_rate", self.learning_rate)
        self.regularization = check.finite("regularization", self.regularization, low=0.0)
        self.epochs = check.integer("epochs", self.epochs, 0)
        self.biases = options_of.boolean("biases", self.biases)
        self.random_state = options_of.random_state(self.random_state)
        self.num_threads = options_of.threads(self.num_threads)
        self.minibatch = check.optional("minibatch", self.minibatch)
        allowed = _OPTIMIZERS if self.minibatch is None else _RULES
        if not isinstance(self.optimizer, str) or self.optimizer not in allowed:
            names = ", ".join(repr(name) for name in allowed)
            kind = "without" if self.minibatch is None else "with"
            raise ValueError(
                f"expected optimizer to be one of {names}, {kind} a minibatch; "
                f"got {self.optimizer!r}"
            )
        self.optimizer = str(self.optimizer)
        self.decay = check.finite("decay", self.decay, low=0.0)
        if self.decay >= 1:
            raise ValueError(f"expected decay below 1; got {self.decay}")
        if self.bias_learning_rate is not None:
            self.bias_learning_rate = check.rate("bias_learning_rate", self.bias_learning_rate)
            if self.minibatch is not None:
                raise ValueError("expected no bias_learning_rate with a minibatch, which has one")
        if self.bias_regularization is not None:
            self.bias_regularization = check.finite(
                "bias_regularization", self.bias_regularization, low=0.0
            )
        self.initial_spread = check.finite("initial_spread", self.initial_spread, low=0.0)
        self.clip = options_of.clip(self.clip)
        self.patience = check.integer("patience", self.patience, 1)
        self.tolerance = check.finite("tolerance", self.tolerance, low=0.0)
        self.progress = options_of.progress(self.progress)

    # --- training -----------------------------------------------------------------------------

    def fit(
        self,
        ratings: Any,
        validation: Any = None,
        show_progress: bool = True,
        callback: Callback | None = None,
    ) -> MatrixFactorizationSGD:
        """Factorize a matrix of ratings, from new factors. Whatever is raised, an interrupt too,
        the model is as it was before.

        Args:
            ratings: [users, items]: scipy.sparse or torch.sparse, or
                :class:`vecsmith.data.Interactions`, which are kept with their keys. Every stored
                cell is a rating, also one of 0; cells that come twice are added up.
            validation: ratings of the same users and items that are held out: their RMSE is
                measured after each epoch, training stops where it does not fall any more
                (``patience``), and the factors are those of its best epoch.
            show_progress: False: no progress bar.
            callback: called after each epoch with its number, its seconds and what was measured (as
                in ``history_``); training ends where it returns True.

        Returns: the model itself.

        Raises:
            TypeError, ValueError: a matrix that is none, holds nan or infinity, or no rating; a
                validation set of other users and items; training that diverged.
            CheckpointError: a checkpoint that is damaged or of another run. FolderInUseError.
            TrainingInterrupted: Ctrl-C or SIGTERM, after a checkpoint was written.
        """
        self._check_options()
        cells, held = self._given(ratings, validation)
        random = options_of.generator(self.random_state)
        seed = int(random.integers(2**63))
        with session(self._threads() or 0, self.checkpoint):
            if self.random_state is None:
                seed = seed_to_go_on_with(self.checkpoint, seed)
            blocks = ops.factor_blocks(cells, seed=seed)
            values = blocks.values.double()
            mean = float(values.mean()) if self.biases else 0.0
            spread = float(values.std(correction=0)) or 1.0
            if not _LEAST_SPREAD <= spread <= 1 / _LEAST_SPREAD:
                raise ValueError(
                    f"expected ratings with a standard deviation in {_LEAST_SPREAD:g} .. "
                    f"{1 / _LEAST_SPREAD:g}, whose powers float32 holds; got {spread:g}: "
                    "multiply them by a number"
                )
            seen = (float(values.min()), float(values.max()))
            sides = [self._drawn(rows, spread, random) for rows in cells.shape]
            users, items = (FactorTable(t[:, : self._columns()[0]], self.factors) for t in sides)
            plan = self._plan(blocks, held, sides, (users, items), mean, spread, seed, seen)
            if self.checkpoint is not None:
                plan.identity |= {"matrix": cells_identity(cells)}
            with self._begun(plan, users, items, ratings) as training:
                self.global_bias, self.rating_range = mean, seen
                self.history_ = training.cursor.history
                training.run(options_of.visible(show_progress, self.progress), callback)
        return self

    def _drawn(self, rows: int, spread: float, random: np.random.Generator) -> Tensor:
        """[rows, f + 3]: factors, bias, sums of squared gradients."""
        f = self.factors
        table = ops.empty_table(rows, f + 3)
        drawn = torch.from_numpy(random.standard_normal((rows, f), dtype=np.float32))
        table[:, :f] = drawn * (self.initial_spread * math.sqrt(spread / f))
        table[:, f] = 0
        # Of ratings of unit spread both are 1: gradients of factors grow with its 3/2th power.
        table[:, f + 1], table[:, f + 2] = spread**3, spread**2
        return table

    def _plan(
        self,
        blocks: ops.FactorBlocks,
        held: ops.Cells | None,
        sides: list[Tensor],
        tables: tuple[FactorTable, FactorTable],
        mean: float,
        spread: float,
        seed: int,
        seen: tuple[float, float],
    ) -> Plan:
        bounds = self._bounds(seen)
        if self.minibatch is None:
            epoch, more = self._native(blocks, sides, mean, spread, seed)
        else:
            epoch, more = self._by_minibatches(blocks, tables, mean, seed)
        now: Measures = {}

        def step(number: int) -> None:
            total = epoch(number, self.learning_rate * (1 - self.decay) ** number)
            now["rmse"] = root_mean(total, len(blocks))

        def measure() -> Measures:
            if held is None:
                return dict(now)
            clipped = squared_errors(held, *tables, mean, bounds)[1]
            return now | {"validation_rmse": root_mean(clipped, len(held))}

        free = ("epochs", "num_threads")
        settings = {name: getattr(self, name) for name in self._saved if name not in free}
        settings |= {"model": self._format, "seed": seed}
        settings |= {"clip": None if bounds is None else list(bounds)}
        validation = {} if held is None or self.checkpoint is None else cells_identity(held)
        return Plan(
            tables={"users": tables[0].tensor, "items": tables[1].tensor},
            more=more,
            step=step,
            iterations=self.epochs,
            measure=measure,
            objective="rmse",
            tolerance=self.tolerance,
            watched=None if held is None else "validation_rmse",
            patience=self.patience,
            identity={"settings": settings, "validation": validation},
        )

    def _native(
        self, blocks: ops.FactorBlocks, sides: list[Tensor], mean: float, spread: float, seed: int
    ) -> tuple[Epoch, dict[str, Tensor]]:
        f, adaptive = self.factors, self.optimizer == "adagrad"
        own = 1.0 if self.bias_learning_rate is None else self.bias_learning_rate
        own /= 1.0 if self.bias_learning_rate is None else self.learning_rate
        parts: dict[str, Any] = {}
        for side, table in zip(("user", "item"), sides, strict=True):
            parts[f"{side}_factors"] = table[:, :f]
            if self.biases:
                parts[f"{side}_bias"] = table[:, f]
            if adaptive:
                parts[f"{side}_squares"] = table[:, f + 1 : f + 3]

        def epoch(number: int, rate: float) -> float:
            loss = ops.factor_sgd(
                blocks=blocks,
                **parts,
                mean=mean,
                learning_rate=rate * (math.sqrt(spread) if adaptive else 1.0),
                bias_learning_rate=rate * own * (spread if adaptive else 1.0),
                regularization=self.regularization,
                bias_regularization=self.bias_regularization,
                seed=seed,
                epoch=number,
                num_threads=self._threads(),
            )
            return float(loss)

        return epoch, {name: table for name, table in parts.items() if name.endswith("squares")}

    def _by_minibatches(
        self,
        blocks: ops.FactorBlocks,
        tables: tuple[FactorTable, FactorTable],
        mean: float,
        seed: int,
    ) -> tuple[Epoch, dict[str, Tensor]]:
        assert self.minibatch is not None
        own = self.bias_regularization
        trainer = MinibatchSGD(
            *(tables[0].tensor, tables[1].tensor, self.factors, self.optimizer, self.minibatch),
            regularization=self.regularization,
            bias_regularization=self.regularization if own is None else own,
            mean=mean,
        )
        return lambda number, rate: trainer.epoch(blocks, rate, number, seed), trainer.tables()

    # --- rows by themselves -------------------------------------------------------------------

    @torch.no_grad()
    def _recalculated(self, side: str, cells: ops.Cells) -> Tensor:
        """Where the loss of these cells is least, exactly: no steps are taken."""
        other = self._table("item" if side == "user" else "user")
        left, partners = residuals(cells, self.global_bias, other), partner(other)
        own = self.bias_regularization
        if self.biases and own is not None and own != self.regularization:
            ridges = torch.full((partners.shape[1],), self.regularization, dtype=torch.float64)
            ridges[self.factors] = own
            return ridge_rows(left, partners, ridges)
        return ops.als_solve(
            left,
            partners,
            regularization=self.regularization * cells.indptr.diff().double(),
            implicit=False,
            num_threads=self._threads(),
        )
