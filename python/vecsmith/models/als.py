"""ALS: matrix factorization for implicit feedback, with implicit's names.

Around it: the loop (``_factor_training.py``), recommending (``_recommend.py``), rows by themselves
(``_fold_in.py``), tables and folders (``_factor_model.py``), the loss (``_cell_scores.py``).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.models import _factor_options as options_of
from vecsmith.models import _options as check
from vecsmith.models._cell_scores import implicit_loss
from vecsmith.models._checkpoint import checksum
from vecsmith.models._factor_model import FactorTables, restored_history
from vecsmith.models._factor_table import FactorTable, check_given
from vecsmith.models._factor_training import SIDES, TROUBLE, Measures, Plan, cells_identity, session
from vecsmith.models._fold_in import FoldInModel
from vecsmith.models._recommend import given_cells, one_row

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

    _format = "vecsmith.ALS"
    _saved = (
        *("factors", "regularization", "alpha", "use_native", "use_cg", "iterations"),
        *("calculate_training_loss", "method", "cg_steps", "block_size"),
        *("weighted_regularization", "tolerance"),
    )
    _written = ("random_state", "dtype")
    _learned = ("loss_history_",)

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
        self._check_options()

    def _check_options(self) -> None:
        """They may have been set to something else since the constructor."""
        self.factors = check.integer("factors", self.factors, 1)
        self.regularization = check.finite("regularization", self.regularization, low=0.0)
        self.alpha = check.finite("alpha", self.alpha)
        for name in ("use_native", "use_cg", "calculate_training_loss", "weighted_regularization"):
            setattr(self, name, options_of.boolean(name, getattr(self, name)))
        self.iterations = check.integer("iterations", self.iterations, 0)
        self.num_threads = options_of.threads(self.num_threads)
        self.cg_steps = check.integer("cg_steps", self.cg_steps, 0)
        self.block_size = check.integer("block_size", self.block_size, 1)
        self.tolerance = check.finite("tolerance", self.tolerance, low=0.0)
        self.dtype = options_of.dtype(self.dtype)
        self.method = options_of.method(self.method)
        self.random_state = options_of.random_state(self.random_state)
        self.progress = options_of.progress(self.progress)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self._method()}>"

    def _method(self) -> str:
        return self.method or ("cg" if self.use_cg else "cholesky")

    def _numpy_dtype(self) -> np.dtype:
        return self.dtype

    # --- factors ------------------------------------------------------------------------------

    @FactorTables.user_factors.setter
    def user_factors(self, values: Any) -> None:
        self._assign("user", values)

    @FactorTables.item_factors.setter
    def item_factors(self, values: Any) -> None:
        self._assign("item", values)

    @FactorTables.user_embedding.setter
    def user_embedding(self, values: Any) -> None:
        self._assign("user", values)

    @FactorTables.item_embedding.setter
    def item_embedding(self, values: Any) -> None:
        self._assign("item", values)

    def _assign(self, side: str, values: Any) -> None:
        """Factors that somebody gives: copied; a tensor is kept as it is. None: there are none."""
        old = self._users if side == "user" else self._items
        if values is None:
            made = None
        elif old is not None and values is old.lent("factors"):
            return  # model.user_factors *= 2 comes here with the array that it has changed
        else:
            made = self._new_table(side, values)
        if side == "user":
            self._users = made
        else:
            self._items = made

    def _new_table(self, side: str, values: Any) -> FactorTable:
        name, shared = f"{side}_factors", isinstance(values, Tensor)
        if not shared and np.asarray(values).dtype.kind not in "fiub":
            got = np.asarray(values).dtype
            raise TypeError(f"expected {name} to be real numbers; got {got}")
        with torch.inference_mode(False), np.errstate(over="ignore"):
            table = values if shared else torch.from_numpy(np.array(values, self.dtype))
            if table.dim() != 2 or not table.shape[1] or table.dtype != self._torch_dtype():
                raise ValueError(
                    f"expected {name} of shape [rows, factors], {self._torch_dtype()}; "
                    f"got {list(table.shape)}, {table.dtype}"
                )
            if shared and table.device != self._device:
                raise ValueError(f"expected {name} on {self._device}; got it on {table.device}")
            other = self._items if side == "user" else self._users
            if other is not None and other.width != table.shape[1]:
                theirs = "item_factors" if side == "user" else "user_factors"
                raise ValueError(
                    f"expected {name} of {other.width} columns, as many as {theirs} have; got "
                    f"{table.shape[1]} ({theirs} = None makes room for others)"
                )
            check_given(name, table)
            return FactorTable(table if shared else table.to(self._device))

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
        """Factorize a matrix of users and items. Factors that are there are gone on from, in place.

        Whatever is raised, an interrupt too, the model is as it was before; for that a copy is kept
        of factors that are gone on from.

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
        with session(self._threads() or 0, self.checkpoint):
            plan = self._plan(cells, users, items, seeded)
            with self._begun(plan, users, items, user_items) as training:
                self.loss_history_ = _losses(training.cursor.history)

                def after(iteration: int, seconds: float, measures: Measures) -> None:
                    self.loss_history_ = _losses(training.cursor.history)
                    if callback is not None:
                        callback(iteration, seconds, measures.get("loss"))

                training.run(options_of.visible(show_progress, self.progress), after)
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
            free = ("use_native", "iterations")
            settings = {name: getattr(self, name) for name in self._saved if name not in free}
            settings |= {"model": self._format}
            settings["start"] = checksum(*tables.values()) if seeded else None
            identity = {"settings": settings, "matrix": cells_identity(cells)}
        sides = {"users": cells.to(self._device), "items": cells.transposed().to(self._device)}
        lengths = {name: side.indptr.diff().double() for name, side in sides.items()}

        def half_step(number: int) -> None:
            side = SIDES[number % 2]
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
            step=half_step,
            iterations=self.iterations,
            steps=len(SIDES),
            unit="iteration",
            measure=measure if measured else None,
            tolerance=self.tolerance,
            trouble=TROUBLE.format(self.dtype),
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

        Raises: IndexError, TypeError; ValueError where the system has no inverse (without
            regularization: more factors than items).
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
            system = self._system(table, columns, values)[0].cpu().numpy()
            try:
                user_weights = linalg.cho_factor(system)
            except linalg.LinAlgError:
                raise ValueError(
                    "expected a system of the user that has one solution (a larger regularization "
                    f"makes one); got one without, of {self.factors} factors, {len(table)} items "
                    f"and regularization {self.regularization:g}"
                ) from None
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
            **{name: getattr(self, name) for name in self._saved},
        )
        for side in ("_users", "_items"):
            table = getattr(self, side)
            if table is not None:
                copied = table.tensor.detach().to(made._device, copy=True)
                setattr(made, side, FactorTable(copied, table.width))
        made.interactions, made.loss_history_ = self.interactions, list(self.loss_history_)
        return made

    def _parameters(self) -> dict[str, Any]:
        own = {"factors": self._table("user").width, "dtype": self.dtype.name}
        return super()._parameters() | own

    def _state(self) -> dict[str, Any]:
        return {"loss_history_": self.loss_history_}

    def _restore(self, state: dict[str, Any]) -> None:
        self.loss_history_ = _losses(restored_history({"loss": x} for x in state["loss_history_"]))


def _losses(history: list[Measures]) -> list[float]:
    return [measures["loss"] for measures in history]
