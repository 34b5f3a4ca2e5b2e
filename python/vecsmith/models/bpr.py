"""BPR: Bayesian personalized ranking, with implicit's names."""

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
from vecsmith.models._als_options import generator
from vecsmith.models._factor_recommend import FactorModel, diverged, refuse_overflow
from vecsmith.models._factor_table import FactorTable
from vecsmith.models._recommend import given_cells

FORMAT = "vecsmith.BPR"
_SAVED = (
    *("factors", "learning_rate", "regularization", "iterations", "num_threads"),
    *("verify_negative_samples",),
)


class BPR(FactorModel):
    """Factors of users and items from implicit feedback, such that what a user likes scores above
    what he does not know (Rendle et al. 2009, arXiv:1205.2618); speaks like
    ``implicit.bpr.BayesianPersonalizedRanking``.

        model = BPR(factors=64, random_state=0)
        model.fit(user_items)                                  # scipy CSR [users, items]
        ids, scores = model.recommend(7, user_items[7])

    For each stored cell (u, i) of an epoch an item j is drawn, as often as it is liked, and a step
    of stochastic gradient descent is taken on

        log(1 + exp(-d)) + l / 2 (|p_u|^2 + |q_i|^2 + |q_j|^2 + b_i^2 + b_j^2),
        d = b_i - b_j + <p_u, q_i - q_j>

    (:func:`vecsmith.ops.factor_sgd_bpr`). Values do not count. As in implicit the items' biases are
    the last column of their factors, and that of the users is 1. Unlike there every cell comes once
    in an epoch.

    Args:
        factors: f, numbers per user and item, beside that column.
        learning_rate: a > 0.
        regularization: l >= 0.
        iterations: epochs.
        num_threads: 0: as many as torch has. With several the rows that are drawn are read and
            written without a lock: results differ from run to run, unless
            ``torch.use_deterministic_algorithms(True)`` has one thread do it all.
        verify_negative_samples: leave a pair out whose j the user likes, too.
        random_state: a seed, a numpy Generator or RandomState, or None: of the first factors and of
            what is drawn.
        progress: whether ``fit`` shows a progress bar; None: where standard error is a terminal.

    Attributes:
        user_factors, item_factors: float32 arrays [users, f + 1] and [items, f + 1] over the memory
            of the parameters, None before ``fit``, which goes on from factors that are there, as in
            implicit.
        user_embedding, item_embedding: the same as ``nn.Parameter``.
        interactions: the :class:`vecsmith.data.Interactions` of the fit, or None.
        history_: after each epoch {"loss": the mean of log(1 + exp(-d)), "train_auc": the part of
            the pairs with d > 0, "skipped": the part of the cells whose j the user likes}.

    Raises: TypeError, ValueError for options out of range.
    """

    def __init__(
        self,
        factors: int = 100,
        learning_rate: float = 0.01,
        regularization: float = 0.01,
        dtype: Any = np.float32,
        iterations: int = 100,
        num_threads: int = 0,
        verify_negative_samples: bool = True,
        random_state: Any = None,
        *,
        progress: bool | None = None,
    ) -> None:
        self.factors = check.integer("factors", factors, 1)
        self.learning_rate = check.rate("learning_rate", learning_rate)
        self.regularization = check.finite("regularization", regularization, low=0.0)
        if dtype not in (np.float32, torch.float32, "float32"):
            raise ValueError(f"expected dtype float32; got {dtype!r}")
        self.dtype = np.dtype(np.float32)
        self.iterations = check.integer("iterations", iterations, 0)
        self.num_threads = check.integer("num_threads", num_threads, 0)
        self.verify_negative_samples = bool(verify_negative_samples)
        self.random_state = random_state
        if not isinstance(random_state, (np.random.Generator, np.random.RandomState)):
            generator(random_state)
        self.progress = progress
        self.interactions = None
        self.history_: list[dict[str, float]] = []
        self._users: FactorTable | None = None
        self._items: FactorTable | None = None

    @property
    def n_parameters(self) -> int:
        """How many numbers are learned: f for each user, f + 1 for each item."""
        users, items = self._table("user"), self._table("item")
        return len(users) * self.factors + items.tensor.numel()

    def fit(
        self,
        user_items: Any,
        show_progress: bool = True,
        callback: Callable[[int, float, dict[str, float]], Any] | None = None,
    ) -> BPR:
        """Learn from a matrix of users and items.

        Args:
            user_items: [users, items]: scipy.sparse or torch.sparse, or
                :class:`vecsmith.data.Interactions`, which are kept with their keys. Every stored
                cell is a liked item, whatever its value.
            show_progress: False: no progress bar.
            callback: called after each epoch with its number, its seconds and what was measured (as
                in ``history_``); training ends where it returns True.

        Returns: the model itself.

        Raises:
            TypeError, ValueError: a matrix that is none, or holds nan or infinity; factors of other
                sizes that are there already; training that diverged.
        """
        cells = given_cells("BPR.fit", user_items)
        random = generator(self.random_state)
        with torch.inference_mode(False), torch.no_grad():
            seed = int(random.integers(2**63))
            blocks = ops.factor_blocks(cells, seed=seed, num_threads=self._threads())
            self._start(cells, random)
            self.interactions = user_items if isinstance(user_items, Interactions) else None
            self.history_ = []
            visible = sys.stderr.isatty() if self.progress is None else bool(self.progress)
            bar = tqdm(
                total=self.iterations,
                disable=not (show_progress and visible),
                file=sys.stderr,
                desc="training",
                unit=" epochs",
                dynamic_ncols=True,
            )
            with bar:
                for number in range(self.iterations):
                    begun = time.monotonic()
                    measures = self._epoch(blocks, seed, number)
                    self.history_.append(measures)
                    bar.update(1)
                    bar.set_postfix({name: f"{value:.4g}" for name, value in measures.items()})
                    seconds = time.monotonic() - begun
                    if callback is not None and callback(number, seconds, measures) is True:
                        break
            tables = (self._table("user").tensor, self._table("item").tensor)
            refuse_overflow(tables, len(self.history_))
        return self

    def _start(self, cells: ops.Cells, random: np.random.Generator) -> None:
        """First factors as implicit draws them; rows without cells are 0."""
        f = self.factors
        counts = (
            cells.indptr.diff(),
            torch.bincount(cells.indices, minlength=cells.shape[1]),
        )
        found = []
        for name, table, count in zip(
            ("user", "item"), (self._users, self._items), counts, strict=True
        ):
            rows = len(count)
            if table is not None:
                if table.tensor.shape != (rows, f + 1):
                    raise ValueError(
                        f"expected {name}_factors of shape [{rows}, {f + 1}], to go on from; "
                        f"got {list(table.tensor.shape)}"
                    )
                found.append(table)
                continue
            drawn = ops.empty_table(rows, f + 1)
            drawn[:] = torch.from_numpy(random.random((rows, f + 1), dtype=np.float32))
            drawn -= 0.5
            drawn /= f
            drawn[count == 0] = 0
            if name == "user":
                drawn[:, f] = 1
            found.append(FactorTable(drawn))
        self._users, self._items = found

    def _epoch(self, blocks: ops.FactorBlocks, seed: int, number: int) -> dict[str, float]:
        f = self.factors
        users, items = self._table("user").tensor, self._table("item").tensor
        loss, correct, pairs = ops.factor_sgd_bpr(
            *(users[:, :f], items[:, :f], blocks),
            item_bias=items[:, f],
            learning_rate=self.learning_rate,
            regularization=self.regularization,
            verify_negatives=self.verify_negative_samples,
            seed=seed,
            epoch=number,
            num_threads=self._threads(),
        ).tolist()
        if not math.isfinite(loss):
            raise diverged(number)
        return {
            "loss": loss / max(pairs, 1),
            "train_auc": correct / max(pairs, 1),
            "skipped": 1 - pairs / max(len(blocks), 1),
        }

    # --- files --------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, model.safetensors, and the interactions of the fit where
        there are any. All files are replaced together or none; others are left alone.

        Raises:
            ValueError: a model before ``fit``, or one with factors that are not finite.
            OSError: if the disk is full, or the folder cannot be written.
        """
        tables: dict[str, Tensor] = {
            "users": self._table("user").tensor,
            "items": self._table("item").tensor,
        }
        parameters = {name: getattr(self, name) for name in _SAVED}
        _factor_files.save(
            folder, FORMAT, tables, parameters, {"history": self.history_}, self.interactions
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, num_threads: int | None = None) -> BPR:
        """Load a model that :meth:`save` has written.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged, of another kind or a later version.
        """

        def columns(model: BPR) -> tuple[int, int]:
            return model.factors + 1, model.factors + 1

        model, state = files.restored(cls, folder, FORMAT, num_threads, columns)
        try:
            model.history_ = [dict(measures) for measures in state["history"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: config.json: damaged ({error!r})") from None
        return model
