"""BPR: Bayesian personalized ranking, with implicit's names."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from vecsmith import ops
from vecsmith.models import _factor_options as options_of
from vecsmith.models import _options as check
from vecsmith.models._checkpoint import checksum
from vecsmith.models._factor_model import restored_history
from vecsmith.models._factor_table import FactorTable
from vecsmith.models._factor_training import (
    Callback,
    Measures,
    Plan,
    cells_identity,
    seed_to_go_on_with,
    session,
)
from vecsmith.models._recommend import FactorModel, given_cells


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
        tolerance: stop when the loss falls by less than this part of itself in an epoch; 0: never.
        checkpoint: a folder for the state of training, from which a run that was killed goes on
            (where one thread does it all, to the same bits); None: none.
        checkpoint_every: seconds between two checkpoints, which are written after epochs.
        resume: go on from a checkpoint that is there.
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

    _format = "vecsmith.BPR"
    _saved = (
        *("factors", "learning_rate", "regularization", "iterations", "num_threads"),
        *("verify_negative_samples", "tolerance"),
    )
    _learned = ("history_",)

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
        tolerance: float = 0.0,
        checkpoint: str | os.PathLike[str] | Any = None,
        checkpoint_every: float = 60.0,
        resume: bool = True,
        progress: bool | None = None,
    ) -> None:
        self.factors = factors
        self.learning_rate = learning_rate
        self.regularization = regularization
        if dtype not in (np.float32, torch.float32, "float32"):
            raise ValueError(f"expected dtype float32; got {dtype!r}")
        self.dtype = np.dtype(np.float32)
        self.iterations = iterations
        self.num_threads = num_threads
        self.verify_negative_samples = verify_negative_samples
        self.random_state = random_state
        self.tolerance = tolerance
        self.checkpoint = options_of.checkpoint(checkpoint, checkpoint_every, resume, self.dtype)
        self.progress = progress
        self.interactions = None
        self.history_: list[Measures] = []
        self._check_options()

    def _check_options(self) -> None:
        self.factors = check.integer("factors", self.factors, 1)
        self.learning_rate = check.rate("learning_rate", self.learning_rate)
        self.regularization = check.finite("regularization", self.regularization, low=0.0)
        self.iterations = check.integer("iterations", self.iterations, 0)
        self.num_threads = options_of.threads(self.num_threads)
        name = "verify_negative_samples"
        self.verify_negative_samples = options_of.boolean(name, self.verify_negative_samples)
        self.random_state = options_of.random_state(self.random_state)
        self.tolerance = check.finite("tolerance", self.tolerance, low=0.0)
        self.progress = options_of.progress(self.progress)

    @property
    def n_parameters(self) -> int:
        """How many numbers are learned: f for each user, f + 1 for each item."""
        users, items = self._table("user"), self._table("item")
        return len(users) * self.factors + items.tensor.numel()

    def fit(
        self,
        user_items: Any,
        show_progress: bool = True,
        callback: Callback | None = None,
    ) -> BPR:
        """Learn from a matrix of users and items. Factors that are there are gone on from, in
        place.

        Whatever is raised, an interrupt too, the model is as it was before; for that a copy is kept
        of factors that are gone on from.

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
            CheckpointError: a checkpoint that is damaged or of another run. FolderInUseError.
            TrainingInterrupted: Ctrl-C or SIGTERM, after a checkpoint was written.
        """
        self._check_options()
        cells = given_cells("BPR.fit", user_items)
        random = options_of.generator(self.random_state)
        seed = int(random.integers(2**63))
        with session(self._threads() or 0, self.checkpoint):
            if self.random_state is None:
                seed = seed_to_go_on_with(self.checkpoint, seed)
            blocks = ops.factor_blocks(cells, seed=seed, num_threads=self._threads())
            users, items, seeded = self._start(cells, random)
            plan = self._plan(blocks, users, items, seed)
            if self.checkpoint is not None:
                start = checksum(*plan.tables.values()) if seeded else None
                plan.identity["settings"] |= {"start": start}
                plan.identity |= {"matrix": cells_identity(cells)}
            with self._begun(plan, users, items, user_items) as training:
                self.history_ = training.cursor.history
                training.run(options_of.visible(show_progress, self.progress), callback)
        return self

    def _start(
        self, cells: ops.Cells, random: np.random.Generator
    ) -> tuple[FactorTable, FactorTable, bool]:
        """(users, items, whether another run begins with the same): first factors as implicit draws
        them; rows without cells are 0."""
        f = self.factors
        counts = (
            cells.indptr.diff(),
            torch.bincount(cells.indices, minlength=cells.shape[1]),
        )
        found, drawn = [], False
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
            drawn, start = True, ops.empty_table(rows, f + 1)
            start[:] = torch.from_numpy(random.random((rows, f + 1), dtype=np.float32))
            start -= 0.5
            start /= f
            start[count == 0] = 0
            if name == "user":
                start[:, f] = 1
            found.append(FactorTable(start))
        return found[0], found[1], not (drawn and self.random_state is None)

    def _plan(
        self, blocks: ops.FactorBlocks, users: FactorTable, items: FactorTable, seed: int
    ) -> Plan:
        f, now = self.factors, dict[str, float]()

        def epoch(number: int) -> None:
            loss, correct, pairs = ops.factor_sgd_bpr(
                *(users.tensor[:, :f], items.tensor[:, :f], blocks),
                item_bias=items.tensor[:, f],
                learning_rate=self.learning_rate,
                regularization=self.regularization,
                verify_negatives=self.verify_negative_samples,
                seed=seed,
                epoch=number,
                num_threads=self._threads(),
            ).tolist()
            now["loss"] = loss / max(pairs, 1)
            now["train_auc"] = correct / max(pairs, 1)
            now["skipped"] = 1 - pairs / max(len(blocks), 1)

        free = ("iterations", "num_threads")
        settings = {name: getattr(self, name) for name in self._saved if name not in free}
        return Plan(
            tables={"users": users.tensor, "items": items.tensor},
            step=epoch,
            iterations=self.iterations,
            measure=lambda: dict(now),
            tolerance=self.tolerance,
            identity={"settings": {**settings, "model": self._format, "seed": seed}},
        )

    def _columns(self) -> tuple[int, int]:
        return self.factors + 1, self.factors + 1

    # --- files --------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {"history_": self.history_}

    def _restore(self, state: dict[str, Any]) -> None:
        self.history_ = restored_history(state["history_"])
