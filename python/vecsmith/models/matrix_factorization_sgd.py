"""MatrixFactorizationSGD: matrix factorization for ratings, with biases, by stochastic gradient
descent."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vecsmith import ops
from vecsmith.data import Interactions
from vecsmith.models import _factor_files
from vecsmith.models import _factor_sgd_files as files
from vecsmith.models import _options as check
from vecsmith.models._als_options import generator, torch_threads
from vecsmith.models._factor_recommend import FactorModel, diverged, refuse_overflow
from vecsmith.models._factor_table import FactorTable
from vecsmith.models._minibatch_sgd import MinibatchSGD
from vecsmith.models._recommend import given_cells, row_numbers

FORMAT = "vecsmith.MatrixFactorizationSGD"
_SAVED = (
    *("factors", "learning_rate", "regularization", "epochs", "biases", "num_threads"),
    *("optimizer", "decay", "bias_learning_rate", "bias_regularization", "initial_spread"),
    *("minibatch", "clip", "patience"),
)
_OPTIMIZERS = ("adagrad", "sgd")
_RULES = ("sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam")
_AT_ONCE = 1 << 16  # pairs that are predicted together

Measures = dict[str, float]


class MatrixFactorizationSGD(FactorModel):
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
        progress: bool | None = None,
    ) -> None:
        self.factors = check.integer("factors", factors, 1)
        self.learning_rate = check.rate("learning_rate", learning_rate)
        self.regularization = check.finite("regularization", regularization, low=0.0)
        self.epochs = check.integer("epochs", epochs, 0)
        self.biases = bool(biases)
        self.random_state = random_state
        if not isinstance(random_state, (np.random.Generator, np.random.RandomState)):
            generator(random_state)
        self.num_threads = check.integer("num_threads", num_threads, 0)
        self.minibatch = check.optional("minibatch", minibatch)
        allowed = _OPTIMIZERS if minibatch is None else _RULES
        if optimizer not in allowed:
            names = ", ".join(repr(name) for name in allowed)
            kind = "without" if minibatch is None else "with"
            raise ValueError(
                f"expected optimizer to be one of {names}, {kind} a minibatch; got {optimizer!r}"
            )
        self.optimizer = optimizer
        self.decay = check.finite("decay", decay, low=0.0)
        if self.decay >= 1:
            raise ValueError(f"expected decay below 1; got {self.decay}")
        self.bias_learning_rate = bias_learning_rate
        if bias_learning_rate is not None:
            self.bias_learning_rate = check.rate("bias_learning_rate", bias_learning_rate)
            if minibatch is not None:
                raise ValueError("expected no bias_learning_rate with a minibatch, which has one")
        self.bias_regularization = bias_regularization
        if bias_regularization is not None:
            self.bias_regularization = check.finite(
                "bias_regularization", bias_regularization, low=0.0
            )
        self.initial_spread = check.finite("initial_spread", initial_spread, low=0.0)
        self.clip = _clip(clip)
        self.patience = check.integer("patience", patience, 1)
        self.progress = progress
        self.interactions = None
        self.global_bias = 0.0
        self.rating_range: tuple[float, float] | None = None
        self.history_: list[Measures] = []
        self._users: FactorTable | None = None
        self._items: FactorTable | None = None

    @property
    def user_biases(self) -> np.ndarray | None:
        """b_u [users]."""
        return self._array("user", "biases") if self.biases else None

    @property
    def item_biases(self) -> np.ndarray | None:
        """b_i [items]."""
        return self._array("item", "biases") if self.biases else None

    @property
    def n_parameters(self) -> int:
        """How many numbers are learned: f for each user and item, and with biases one more for each
        and the mean."""
        users, items = self._table("user"), self._table("item")
        return users.tensor.numel() + items.tensor.numel() + int(self.biases)

    # --- training -----------------------------------------------------------------------------

    def fit(
        self,
        ratings: Any,
        validation: Any = None,
        show_progress: bool = True,
        callback: Callable[[int, float, Measures], Any] | None = None,
    ) -> MatrixFactorizationSGD:
        """Factorize a matrix of ratings, from new factors.

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
        """
        cells = given_cells("MatrixFactorizationSGD.fit", ratings)
        if not len(cells):
            raise ValueError(
                "MatrixFactorizationSGD.fit: expected ratings; got a matrix without cells"
            )
        held = None if validation is None else _held_out(ratings, validation, cells.shape)
        random = generator(self.random_state)
        seed = int(random.integers(2**63))
        with torch.inference_mode(False), torch.no_grad(), torch_threads(self.num_threads):
            blocks = ops.factor_blocks(cells, seed=seed)
            values = blocks.values.double()
            mean, spread = float(values.mean()), float(values.std(correction=0)) or 1.0
            self.rating_range = (float(values.min()), float(values.max()))
            self.global_bias = mean if self.biases else 0.0
            tables = [self._drawn(rows, spread, random) for rows in cells.shape]
            wide = self.factors + int(self.biases)
            self._users, self._items = (FactorTable(t[:, :wide], self.factors) for t in tables)
            self.interactions = ratings if isinstance(ratings, Interactions) else None
            self.history_ = []
            step = self._native(blocks, tables, spread, seed)
            if self.minibatch is not None:
                step = self._by_minibatches(blocks, self._users, self._items, seed)
            self._train(step, len(blocks), held, show_progress, callback)
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

    def _native(
        self, blocks: ops.FactorBlocks, tables: list[Tensor], spread: float, seed: int
    ) -> Callable[[int, float], float]:
        f, adaptive = self.factors, self.optimizer == "adagrad"
        own = 1.0 if self.bias_learning_rate is None else self.bias_learning_rate
        own /= 1.0 if self.bias_learning_rate is None else self.learning_rate
        parts: dict[str, Any] = {}
        for side, table in zip(("user", "item"), tables, strict=True):
            parts[f"{side}_factors"] = table[:, :f]
            if self.biases:
                parts[f"{side}_bias"] = table[:, f]
            if adaptive:
                parts[f"{side}_squares"] = table[:, f + 1 : f + 3]

        def epoch(number: int, rate: float) -> float:
            loss = ops.factor_sgd(
                blocks=blocks,
                **parts,
                mean=self.global_bias,
                learning_rate=rate * (math.sqrt(spread) if adaptive else 1.0),
                bias_learning_rate=rate * own * (spread if adaptive else 1.0),
                regularization=self.regularization,
                bias_regularization=self.bias_regularization,
                seed=seed,
                epoch=number,
                num_threads=self._threads(),
            )
            return float(loss)

        return epoch

    def _by_minibatches(
        self, blocks: ops.FactorBlocks, users: FactorTable, items: FactorTable, seed: int
    ) -> Callable[[int, float], float]:
        assert self.minibatch is not None
        trainer = MinibatchSGD(
            *(users.tensor, items.tensor, self.factors, self.optimizer, self.minibatch),
            regularization=self.regularization,
            bias_regularization=self.regularization
            if self.bias_regularization is None
            else self.bias_regularization,
            mean=self.global_bias,
        )
        draws = torch.Generator().manual_seed(seed)
        return lambda _, rate: trainer.epoch(blocks, rate, draws)

    def _train(
        self,
        step: Callable[[int, float], float],
        count: int,
        held: ops.Cells | None,
        show_progress: bool,
        callback: Callable[[int, float, Measures], Any] | None,
    ) -> None:
        tables = (self._table("user").tensor, self._table("item").tensor)
        best: list[Tensor] = []
        best_epoch = 0
        visible = sys.stderr.isatty() if self.progress is None else bool(self.progress)
        bar = tqdm(
            total=self.epochs,
            disable=not (show_progress and visible),
            file=sys.stderr,
            desc="training",
            unit=" epochs",
            dynamic_ncols=True,
        )
        with bar:
            for number in range(self.epochs):
                begun = time.monotonic()
                loss = step(number, self.learning_rate * (1 - self.decay) ** number)
                if not math.isfinite(loss):
                    raise diverged(number)
                measures = {"rmse": math.sqrt(loss / count)}
                if held is not None:
                    measures["validation_rmse"] = self._error(held)
                    least = self.history_[best_epoch - 1]["validation_rmse"] if best else math.inf
                    if measures["validation_rmse"] < least:
                        best, best_epoch = [table.clone() for table in tables], number + 1
                self.history_.append(measures)
                bar.update(1)
                bar.set_postfix({name: f"{value:.5g}" for name, value in measures.items()})
                seconds = time.monotonic() - begun
                asked = callback is not None and callback(number, seconds, measures) is True
                if asked or (best and number + 1 - best_epoch >= self.patience):
                    break
        if best and best_epoch != len(self.history_):
            for table, kept in zip(tables, best, strict=True):
                table.copy_(kept)
        refuse_overflow(tables, len(self.history_))

    def _error(self, cells: ops.Cells) -> float:
        rows = torch.repeat_interleave(torch.arange(cells.shape[0]), cells.indptr.diff().long())
        total = 0.0
        for part in torch.arange(len(cells)).split(_AT_ONCE):
            found = self._scores(rows[part], cells.indices[part].long())
            total += float((found - cells.values[part].double()).square().sum())
        return math.sqrt(total / len(cells))

    # --- predictions --------------------------------------------------------------------------

    def _scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """What is predicted for pairs [n], float64."""
        users, items = self._table("user").tensor, self._table("item").tensor
        f = self.factors
        p, q = users.index_select(0, rows), items.index_select(0, columns)
        found = torch.linalg.vecdot(p[:, :f], q[:, :f]).double() + self.global_bias
        if self.biases:
            found += p[:, f].double() + q[:, f].double()
        bounds = self.rating_range if self.clip is True else self.clip
        return found.clamp(*bounds) if bounds else found

    @torch.no_grad()
    def predict(self, userids: Any, itemids: Any) -> Any:
        """The ratings of pairs of a user and an item: m + b_u + b_i + <p_u, q_i>, kept within
        bounds if ``clip`` says so.

        Args:
            userids, itemids: integers, of shapes that can be broadcast together.

        Returns: a float32 array of their common shape; a float for two integers.

        Raises: IndexError for a user or an item that is not there; ValueError before ``fit``.
        """
        users, items = self._table("user"), self._table("item")
        pair = np.broadcast_arrays(np.asarray(userids), np.asarray(itemids))
        shape = pair[0].shape
        rows, _ = row_numbers("userids", pair[0].reshape(-1), len(users))
        columns, _ = row_numbers("itemids", pair[1].reshape(-1), len(items))
        found = np.empty(len(rows), np.float32)
        for first in range(0, len(rows), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            at = (torch.from_numpy(ids[part]) for ids in (rows, columns))
            found[part] = self._scores(*at).numpy()
        return float(found[0]) if shape == () else found.reshape(shape)

    def _queries(self, table: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.biases:
            return table, None
        queries = table.clone()
        queries[:, self.factors] = 1
        return queries, table[:, self.factors] + self.global_bias

    # --- files --------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, model.safetensors, and the interactions of the fit where
        there are any. All files are replaced together or none; others are left alone.

        Raises:
            ValueError: a model before ``fit``, or one with factors that are not finite.
            OSError: if the disk is full, or the folder cannot be written.
        """
        tables = {"users": self._table("user").tensor, "items": self._table("item").tensor}
        parameters = {name: getattr(self, name) for name in _SAVED}
        state = {
            "global_bias": self.global_bias,
            "rating_range": self.rating_range,
            "history": self.history_,
        }
        _factor_files.save(folder, FORMAT, tables, parameters, state, self.interactions)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, num_threads: int | None = None
    ) -> MatrixFactorizationSGD:
        """Load a model that :meth:`save` has written.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged, of another kind or a later version.
        """

        def columns(model: MatrixFactorizationSGD) -> tuple[int, int]:
            return model.factors + int(model.biases), model.factors

        model, state = files.restored(cls, folder, FORMAT, num_threads, columns)
        try:
            model.global_bias = check.finite("global_bias", state["global_bias"])
            least, greatest = state["rating_range"]
            model.rating_range = (float(least), float(greatest))
            model.history_ = [dict(measures) for measures in state["history"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: config.json: damaged ({error!r})") from None
        return model


def _clip(value: Any) -> bool | tuple[float, float]:
    if isinstance(value, bool):
        return value
    try:
        least, greatest = (check.finite("clip", bound) for bound in value)
    except (TypeError, ValueError):
        raise TypeError(f"expected clip to be a bool or (least, greatest); got {value!r}") from None
    if least > greatest:
        raise ValueError(f"expected clip's least to be at most its greatest; got {value!r}")
    return least, greatest


def _held_out(ratings: Any, validation: Any, shape: tuple[int, int]) -> ops.Cells:
    cells = given_cells("validation", validation)
    if cells.shape != shape:
        raise ValueError(
            f"expected validation of shape {list(shape)}, as the ratings; got {list(cells.shape)}"
        )
    if not len(cells):
        raise ValueError("expected validation to have cells; got none")
    if isinstance(ratings, Interactions) and isinstance(validation, Interactions):
        for name in ("users", "items"):
            if not np.array_equal(getattr(ratings, name), getattr(validation, name)):
                raise ValueError(f"expected validation of the same {name}; got others (reindex)")
    return cells
