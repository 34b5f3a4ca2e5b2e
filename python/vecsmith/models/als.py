"""ALS: matrix factorization for implicit feedback, with implicit's names.

Around it: the loop (``_als_training.py``), recommending (``_recommend.py``), the tables
(``_factor_table.py``), the loss (``_cell_scores.py``), saving and loading (``_factor_files.py``).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith import ops
from vecsmith.data import Interactions
from vecsmith.models import _als_options as options_of
from vecsmith.models import _factor_files as files
from vecsmith.models import _options as check
from vecsmith.models._als_training import Measures, Plan, Training, cells_identity
from vecsmith.models._cell_scores import implicit_loss
from vecsmith.models._checkpoint import checksum
from vecsmith.models._factor_table import FactorTable
from vecsmith.models._fold_in import FoldInModel
from vecsmith.models._recommend import given_cells, one_row

FORMAT = "vecsmith.ALS"
_SAVED = (
    *("factors", "regularization", "alpha", "use_native", "use_cg", "iterations"),
    *("calculate_training_loss", "method", "cg_steps", "block_size"),
    *("weighted_regularization", "tolerance"),
)
# So many rows are solved one by one, from a Gram matrix that is kept; more of them by the operator.
_FEW = 16


class ALS(FoldInModel):
    """Factors of users and items from implicit feedback (plays, clicks, purchases), by alternating
    least squares; speaks like ``implicit.als.AlternatingLeastSquares``.

        model = ALS(factors=128, regularization=0.01, alpha=10.0)
        model.fit(user_items)                                  # scipy CSR [users, items]
        ids, scores = model.recommend(7, user_items[7])

    It minimizes, over all users and items (Hu, Koren and Volinsky 2008,
    doi:10.1109/ICDM.2008.22)

        sum_ui c_ui (p_ui - <x_u, y_i>)^2 + l (sum_u |x_u|^2 + sum_i |y_i|^2)

    where a stored value r_ui has the confidence c = |alpha r| and the preference p = 1 (r > 0) or 0
    (r <= 0: disliked), and all that is not stored has c = 1, p = 0. These are implicit's
    conventions. Each iteration solves for all users, and then for all items
    (:func:`vecsmith.ops.als_solve`).

    Args:
        factors: f, numbers per user and item.
        regularization: l >= 0.
        alpha: what values are multiplied by.
        dtype: float32, or float64 (by plain torch, slower).
        use_native: False: by plain torch.
        use_cg: by ``cg_steps`` conjugate gradient steps; False: exactly. ``method`` overrides it.
        iterations: how many.
        calculate_training_loss: measure the loss after each (``loss_history_``).
        num_threads: 0: as many as torch has.
        random_state: a seed, a numpy Generator or RandomState, or None: of the first factors, drawn
            from N(0, 0.03^2); set ``user_factors`` and ``item_factors`` to begin with others.
        method: "cholesky" (exact), "cg", or "block" (iALS++, Rendle et al. 2021, for large f:
            blocks of ``block_size`` numbers); None: what ``use_cg`` says.
        cg_steps, block_size: of these methods.
        weighted_regularization: l is multiplied by the number of a row's cells (Zhou et al. 2008).
        tolerance: stop when the loss falls by less than this part of itself in an iteration; 0:
            never.
        device: "cpu" or "cuda".
        checkpoint: a folder for the state of training, from which a run that was killed goes on to
            the same result; None: none.
        checkpoint_every: seconds between two checkpoints.
        resume: go on from a checkpoint that is there.
        progress: whether ``fit`` shows a progress bar; None: where standard error is a terminal.

    Attributes:
        user_factors, item_factors: float32 or float64 arrays [users, f] and [items, f] over the
            memory of the parameters (on a GPU: read-only copies), None before ``fit``. What is
            assigned to them is copied; ``fit`` goes on from factors that are there, as in implicit.
        user_embedding, item_embedding: the same as ``nn.Parameter``; a tensor that is assigned is
            kept without a copy.
        interactions: the :class:`vecsmith.data.Interactions` of the fit, with its keys, or None
            after a fit on a matrix.
        loss_history_: the loss after each iteration, if it was measured.

    Raises: TypeError, ValueError for options out of range.
    """

    def __init__(
        self,
        factors: int = 100,
        regularization: float = 0.01,
        alpha: float = 1.0,
        dtype: Any = np.float32,
        use_native: bool = True,
        use_cg: bool = True,
        iterations: int = 15,
        calculate_training_loss: bool = False,
        num_threads: int = 0,
        random_state: Any = None,
        *,
        method: str | None = None,
        cg_steps: int = 3,
        block_size: int = 128,
        weighted_regularization: bool = False,
        tolerance: float = 0.0,
        device: Any = "cpu",
        checkpoint: str | os.PathLike[str] | Any = None,
        checkpoint_every: float = 60.0,
        resume: bool = True,
        progress: bool | None = None,
    ) -> None:
        self.factors = factors
        self.regularization = regularization
        self.alpha = alpha
        self.dtype = options_of.dtype(dtype)
        self.use_native = use_native
        self.use_cg = use_cg
        self.iterations = iterations
        self.calculate_training_loss = calculate_training_loss
        self.num_threads = num_threads
        self.random_state = random_state
        self.method = method
        self.cg_steps = cg_steps
        self.block_size = block_size
        self.weighted_regularization = weighted_regularization
        self.tolerance = tolerance
        self._device = check.device(device)
        self.checkpoint = options_of.checkpoint(checkpoint, checkpoint_every, resume, self.dtype)
        self.progress = progress
        self.interactions = None
        self.loss_history_: list[float] = []
        self._users: FactorTable | None = None
        self._items: FactorTable | None = None
        self._check_options()

    def _check_options(self) -> None:
        """They may have been set to something else since the constructor."""
        self.factors = check.integer("factors", self.factors, 1)
        self.regularization = check.finite("regularization", self.regularization, low=0.0)
        self.alpha = check.finite("alpha", self.alpha)
        self.iterations = check.integer("iterations", self.iterations, 0)
        self.num_threads = check.integer("num_threads", self.num_threads, 0)
        self.cg_steps = check.integer("cg_steps", self.cg_steps, 0)
        self.block_size = check.integer("block_size", self.block_size, 1)
        self.tolerance = check.finite("tolerance", self.tolerance, low=0.0)
        self.dtype = options_of.dtype(self.dtype)
        options_of.method(self.method)
        if options_of.is_seed(self.random_state):
            options_of.generator(self.random_state)

    def __repr__(self) -> str:
        shape = "before fit"
        if self._users is not None and self._items is not None:
            shape = f"{len(self._users)} users, {len(self._items)} items"
        return f"{type(self).__name__}<{shape}, factors={self.factors}, {self._method()}>"

    def _method(self) -> str:
        return self.method or ("cg" if self.use_cg else "cholesky")

    def _numpy_dtype(self) -> np.dtype:
        return self.dtype

    # --- factors ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self._device

    @property
    def user_factors(self) -> np.ndarray | None:
        """x [users, f]."""
        return self._array("user", "factors")

    @user_factors.setter
    def user_factors(self, values: Any) -> None:
        self._assign("user", values)

    @property
    def item_factors(self) -> np.ndarray | None:
        """y [items, f]."""
        return self._array("item", "factors")

    @item_factors.setter
    def item_factors(self, values: Any) -> None:
        self._assign("item", values)

    @property
    def user_embedding(self) -> nn.Parameter | None:
        """x [users, f], the memory of ``user_factors``."""
        return self._parameter("user")

    @user_embedding.setter
    def user_embedding(self, values: Any) -> None:
        self._assign("user", values)

    @property
    def item_embedding(self) -> nn.Parameter | None:
        """y [items, f], the memory of ``item_factors``."""
        return self._parameter("item")

    @item_embedding.setter
    def item_embedding(self, values: Any) -> None:
        self._assign("item", values)

    @property
    def n_parameters(self) -> int:
        """How many numbers are learned: f for each user and each item."""
        return self._table("user").tensor.numel() + self._table("item").tensor.numel()

    # --- training -----------------------------------------------------------------------------

    def fit(
        self,
        user_items: Any,
        show_progress: bool = True,
        callback: Callable[[int, float, float | None], Any] | None = None,
    ) -> ALS:
        """Factorize a matrix of users and items.

        Args:
            user_items: [users, items]: scipy.sparse (CSR is read in place) or torch.sparse, or
                :class:`vecsmith.data.Interactions`, which are kept with their keys. Cells that come
                twice are added up.
            show_progress: False: no progress bar.
            callback: called after each iteration with its number, its seconds and the loss (None
                where it is not measured).

        Returns: the model itself.

        Raises:
            TypeError, ValueError: a matrix that is none, or holds nan or infinity; factors of other
                sizes that are there already (set them to None to begin anew).
            CheckpointError: a checkpoint that is damaged or of another run. FolderInUseError.
            TrainingInterrupted: Ctrl-C or SIGTERM, after a checkpoint was written.
        """
        self._check_options()
        cells = given_cells("ALS.fit", user_items)
        users, items, seeded = self._start(*cells.shape)
        with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as stack:
            stack.enter_context(options_of.torch_threads(self.num_threads))
            if self.checkpoint is not None:
                stack.enter_context(self.checkpoint.hold())
            plan = self._plan(cells, users, items, seeded)
            training = Training(plan, self.checkpoint)
            self._users, self._items = users, items
            self.interactions = user_items if isinstance(user_items, Interactions) else None
            self.loss_history_ = _losses(training.cursor.history)

            def after(iteration: int, seconds: float, measures: Measures) -> None:
                self.loss_history_ = _losses(training.cursor.history)
                if callback is not None:
                    callback(iteration, seconds, measures.get("loss"))

            training.run(options_of.visible(show_progress, self.progress), after)
        for name, table in plan.tables.items():
            options_of.refuse_overflow(name, table)
        return self

    def _start(self, rows: int, columns: int) -> tuple[FactorTable, FactorTable, bool]:
        """(users, items, whether another run begins with the same)."""
        random = options_of.generator(self.random_state)
        made = []
        drawn = False
        for name, table, count in (("user", self._users, rows), ("item", self._items, columns)):
            if table is None:
                drawn = True
                with torch.inference_mode(False):
                    start = options_of.drawn(count, self.factors, self.dtype, random)
                    table = FactorTable(start.to(self._device))
            elif table.tensor.shape != (count, self.factors):
                raise ValueError(
                    f"expected {name}_factors of shape [{count}, {self.factors}], to go on from; "
                    f"got {list(table.tensor.shape)} (None begins anew)"
                )
            made.append(table)
        return made[0], made[1], not (drawn and self.random_state is None)

    def _plan(self, cells: ops.Cells, users: FactorTable, items: FactorTable, seeded: bool) -> Plan:
        tables = {"users": users.tensor, "items": items.tensor}
        identity: dict[str, Any] = {}
        if self.checkpoint is not None:
            settings = {name: getattr(self, name) for name in _SAVED if name != "use_native"}
            settings["start"] = checksum(*tables.values()) if seeded else None
            identity = {"settings": {"model": FORMAT, **settings}, "matrix": cells_identity(cells)}
        sides = {"users": cells.to(self._device), "items": cells.transposed().to(self._device)}
        lengths = {name: side.indptr.diff().double() for name, side in sides.items()}

        def half_step(side: str) -> None:
            self._solve(
                sides[side],
                tables["items" if side == "users" else "users"],
                method=self._method(),
                out=tables[side],
                steps=self.cg_steps if self._method() == "cg" else None,
                lengths=lengths[side],
            )

        def measure() -> Measures:
            return {
                "loss": implicit_loss(
                    *(sides["users"], tables["users"], tables["items"]),
                    *(self.alpha, self.regularization),
                    (lengths["users"], lengths["items"]) if self.weighted_regularization else None,
                )
            }

        measured = self.calculate_training_loss or self.tolerance > 0
        return Plan(
            tables=tables,
            half_step=half_step,
            iterations=self.iterations,
            measure=measure if measured else None,
            tolerance=self.tolerance,
            identity=identity,
        )

    def _solve(
        self, cells: ops.Cells, factors: Tensor, lengths: Tensor | None = None, **more: Any
    ) -> Tensor:
        regularization: float | Tensor = self.regularization
        if self.weighted_regularization:
            lengths = cells.indptr.diff().double() if lengths is None else lengths
            regularization = regularization * lengths
        return ops.als_solve(
            cells,
            factors,
            regularization=regularization,
            alpha=self.alpha,
            block_size=self.block_size,
            backend=None if self.use_native else "torch",
            num_threads=self._threads(),
            **more,
        )

    # --- rows by themselves -------------------------------------------------------------------

    @torch.no_grad()
    def _recalculated(self, side: str, cells: ops.Cells) -> Tensor:
        other = self._table("item" if side == "user" else "user")
        if cells.shape[0] > _FEW:
            return self._solve(cells, other.tensor, method="cholesky")
        out = other.tensor.new_empty(cells.shape[0], other.tensor.shape[1])
        bounds = cells.indptr.tolist()
        for row, (first, last) in enumerate(itertools.pairwise(bounds)):
            columns, values = cells.indices[first:last], cells.values[first:last]
            a, b = self._system(other, columns, values)
            lower, failed = torch.linalg.cholesky_ex(a)
            if int(failed):
                return self._solve(cells, other.tensor, method="cholesky")
            out[row] = torch.cholesky_solve(b[:, None], lower)[:, 0]
        return out

    def _system(self, other: FactorTable, columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(A [f, f], b [f]) of a row with these cells, float64."""
        ridge = self.regularization * (len(columns) if self.weighted_regularization else 1)
        y = other.tensor[columns.long()].double()
        c = self.alpha * values.double()
        a = other.gram() + (y.T * (c.abs() - 1)) @ y
        a.diagonal().add_(ridge)
        return a, y.T @ c.clamp_min(0)

    def explain(
        self, userid: int, user_items: Any, itemid: int, user_weights: Any = None, N: int = 10
    ) -> tuple[float, list[tuple[int, float]], Any]:
        """How much each liked item gives to the score of an item (section 5 of Hu, Koren and
        Volinsky): <x_u, y_i> = sum_j c_uj y_i^T W y_j over the liked items j, W = A^-1 of the
        user's system.

        Args:
            userid: a row of ``user_items``.
            user_items: [users, items].
            itemid: the item.
            user_weights: what an earlier call has returned for this user.
            N: how many of the liked items.

        Returns: (score, [(item, what it gives), ...] greatest first, the Cholesky factor of A as
            ``scipy.linalg.cho_factor`` gives it).
        """
        from scipy import linalg

        table = self._table("item")
        item = one_row("itemid", itemid, len(table))
        if user_items is None and self.interactions is not None:
            user_items = self.interactions
        cells = given_cells("user_items", user_items)
        row = one_row("userid", userid, cells.shape[0])
        cells = self._fitting("user_items", cells, cells.shape[0], len(table)).to(self._device)
        N = check.integer("N", N, 1)
        part = slice(int(cells.indptr[row]), int(cells.indptr[row + 1]))
        columns, values = cells.indices[part], cells.values[part]
        if user_weights is None:
            user_weights = linalg.cho_factor(self._system(table, columns, values)[0].cpu().numpy())
        weighted = linalg.cho_solve(user_weights, table.tensor[item].double().cpu().numpy())
        liked = (self.alpha * values.double()).cpu().numpy()
        given = table.tensor[columns.long()].double().cpu().numpy() @ weighted * liked
        columns, given = columns.cpu().numpy()[liked >= 0], given[liked >= 0]
        best = np.lexsort((-columns.astype(np.int64), -given))[:N]
        contributions = [(int(columns[j]), float(given[j])) for j in best]
        return float(given.sum()), contributions, user_weights

    # --- elsewhere ----------------------------------------------------------------------------

    def to_gpu(self) -> ALS:
        """A copy of the model on the GPU."""
        return self._on("cuda")

    def to_cpu(self) -> ALS:
        """A copy of the model on the CPU."""
        return self._on("cpu")

    def _on(self, device: Any) -> ALS:
        made = type(self)(
            dtype=self.dtype,
            num_threads=self.num_threads,
            random_state=self.random_state,
            device=device,
            progress=self.progress,
            **{name: getattr(self, name) for name in _SAVED},
        )
        for side in ("_users", "_items"):
            table = getattr(self, side)
            if table is not None:
                copied = table.tensor.detach().to(made._device, copy=True)
                setattr(made, side, FactorTable(copied, table.width))
        made.interactions, made.loss_history_ = self.interactions, list(self.loss_history_)
        return made

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, model.safetensors, and interactions.safetensors,
        users.txt, items.txt where the model was fit on interactions. All files are replaced
        together or none; others are left alone. A checkpoint of this model's training is removed:
        it is not needed any more.

        Raises:
            ValueError: a model that was not fit, or holds nan; factors and interactions of
                different sizes.
            OSError: if the disk is full, or the folder cannot be written.
        """
        users, items = self._table("user"), self._table("item")
        shape = (len(users), len(items))
        if self.interactions is not None and self.interactions.shape != shape:
            raise ValueError(
                f"expected factors of the {self.interactions.shape} users and items that have "
                f"keys; got {shape} (interactions = None gives up the keys)"
            )
        parameters = {name: getattr(self, name) for name in _SAVED}
        parameters |= {"factors": users.width, "dtype": self.dtype.name}
        parameters |= {"random_state": options_of.saved_random_state(self.random_state)}
        state = {"loss_history_": self.loss_history_}
        tables = {"users": users.tensor, "items": items.tensor}
        files.save(folder, FORMAT, tables, parameters, state, self.interactions)
        files.remove_checkpoint(self.checkpoint)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **options: Any) -> ALS:
        """Load what :meth:`save` has written; factors are mapped from the file (privately: it stays
        as it is).

        Args:
            folder: the folder.
            options: ``num_threads``, ``device``, ``checkpoint``, ``checkpoint_every``, ``resume``,
                ``progress`` of the constructor.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged, of another kind or a later version.
        """
        options_of.load_options(options)
        config, tables, interactions = files.load(folder, FORMAT)
        model, state = files.constructed(cls, folder, config, tables, options)
        history = state.get("loss_history_")
        if not isinstance(history, list) or not all(type(x) in (int, float) for x in history):
            raise ValueError(f"{folder}: damaged (loss_history_)")
        model.loss_history_ = history
        model._users = FactorTable(tables["users"].to(model._device))
        model._items = FactorTable(tables["items"].to(model._device))
        model.interactions = interactions
        return model


def _losses(history: list[Measures]) -> list[float]:
    return [measures["loss"] for measures in history]
