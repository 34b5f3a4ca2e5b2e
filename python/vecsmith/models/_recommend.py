"""What models of users and items have in common: recommending, and finding what is similar, in the
words of implicit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.data import Interactions
from vecsmith.models import _options as check
from vecsmith.models._factor_model import FactorTables
from vecsmith.models._factor_table import FactorTable
from vecsmith.ops._cells import cells_of, trusted_cells

# The score of a place that no item fills, as in implicit.
NO_SCORE = float(np.finfo(np.float32).min)
# Users that are asked for at once: what is made for a search beside its result stays small.
_AT_ONCE = 1 << 14


def given_cells(what: str, matrix: Any) -> ops.Cells:
    """The cells of a matrix, or of :class:`vecsmith.data.Interactions`.

    Raises: as :func:`vecsmith.ops._cells.cells_of`.
    """
    return cells_of(what, matrix.matrix if isinstance(matrix, Interactions) else matrix)


def row_numbers(what: str, ids: Any, count: int | None) -> tuple[np.ndarray, bool]:
    """(int64 [n], whether it was a single number), of 0..count - 1; any of at least 0 if None.

    Raises: TypeError for what are no integers, IndexError for others.
    """
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise TypeError(
            f"expected {what} to be an integer, or integers [n]; got {array.dtype} "
            f"{list(array.shape)}"
        )
    rows = array.reshape(-1).astype(np.int64)
    if len(rows) and (rows.min() < 0 or (count is not None and rows.max() >= count)):
        wrong = rows[(rows < 0) if count is None else (rows < 0) | (rows >= count)][0]
        bound = ">= 0" if count is None else f"in 0..{count - 1}"
        raise IndexError(f"expected {what} {bound}; got {wrong}")
    return rows, array.ndim == 0


def one_row(what: str, id: Any, count: int) -> int:
    """As :func:`row_numbers`, of a single number."""
    rows, single = row_numbers(what, id, count)
    if not single:
        raise TypeError(f"expected {what} to be an integer; got {len(rows)} of them")
    return int(rows[0])


class FactorModel(FactorTables):
    """A model that recommends items, and finds what is similar.

    Subclasses may change how a user becomes a query (:meth:`_queries`), and what
    :meth:`_recalculated` gives.
    """

    def _queries(self, table: Tensor) -> tuple[Tensor, Tensor | None]:
        """Users [n, columns] as queries for the items' table, and what is added to their scores:
        [n] or nothing."""
        return table, None

    def _recalculated(self, side: str, cells: ops.Cells) -> Tensor:
        """Rows of the table of a side [n, columns] for these cells, given the other side."""
        raise NotImplementedError(f"{type(self).__name__} recalculates no {side}s")

    # --- recommend ----------------------------------------------------------------------------

    def recommend(
        self,
        userid: Any,
        user_items: Any = None,
        N: int = 10,
        filter_already_liked_items: bool = True,
        filter_items: Any = None,
        recalculate_user: bool = False,
        items: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The N items with the best scores <x_u, y_i>, best first, for one user or for many. All
        users at once is what is quick: no matrix of scores is made
        (:func:`vecsmith.ops.cosine_topk`). Of equal scores the lower number comes first.

        Args:
            userid: a row number of ``user_factors``, or integers [n].
            user_items: the cells of these users, [n, items], row j those of ``userid[j]``; every
                stored cell is a liked item. None: those of ``interactions``, if there are any.
            N: how many.
            filter_already_liked_items: leave out each user's own cells.
            filter_items: items that nobody gets: an integer, or integers [n].
            recalculate_user: do not take the user's factors but what ``user_items`` makes of them;
                ``userid`` may be any then.
            items: rank these alone. Not together with ``filter_items``.

        Returns:
            (int32 items, scores), [N] for one user and [n, N] for many; with ``items`` their dtype
            and at most as many. Places that no item is left for have item -1 and the least float32
            as their score.

        Raises:
            IndexError: a user or an item that is not there. ValueError: ``user_items`` of another
            shape, or missing; a model that was not fit. TypeError: wrong types.
            NotImplementedError: ``recalculate_user`` of a model whose rows have no solution by
            themselves (:class:`vecsmith.BPR`).
        """
        table = self._table("item")
        users = self._users if recalculate_user else self._table("user")
        count = None if recalculate_user or users is None else len(users)
        rows, single = row_numbers("userid", userid, count)
        N = check.integer("N", N, 1)
        cells = None
        if filter_already_liked_items or recalculate_user:
            cells = self._cells_of_users(rows, user_items)
        only, kind = self._only("items", items, "filter_items", filter_items, len(table))
        banned = self._banned("filter_items", filter_items, len(table))
        N = N if only is None else min(N, len(only))
        ids, scores = self._no_items(len(rows), N)
        k = min(N, len(table))
        search = self._search_of(table, only) if k else None
        for first in range(0, 0 if search is None else len(rows), _AT_ONCE):
            batch = slice(first, min(first + _AT_ONCE, len(rows)))
            own = None if cells is None else rows_of(cells, batch)
            if recalculate_user:
                assert own is not None
                found = self._recalculated("user", own.to(self._device))
            else:
                assert users is not None
                found = users.tensor[torch.from_numpy(rows[batch]).to(users.tensor.device)]
            queries, offsets = self._queries(found)
            exclude = None
            if filter_already_liked_items:
                assert own is not None
                exclude = own if only is None else _columns_of(own, only.cpu().numpy())
                exclude = exclude.to(self._device)
            assert search is not None
            values, indices = search(queries, k, banned=banned, exclude=exclude)
            values = values if offsets is None else values + offsets[:, None]
            _write(ids[batch], scores[batch], indices, values, only)
        if kind is not None:
            ids = ids.astype(kind)
        return (ids[0], scores[0]) if single else (ids, scores)

    def rank_items(
        self, userid: Any, user_items: Any, selected_items: Any, recalculate_user: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`recommend` among ``selected_items``, all of them, liked ones too."""
        return self.recommend(
            userid,
            user_items,
            N=max(1, np.size(selected_items)),
            filter_already_liked_items=False,
            recalculate_user=recalculate_user,
            items=selected_items,
        )

    def recommend_all(self, user_items: Any = None, N: int = 10, **options: Any) -> np.ndarray:
        """The items of :meth:`recommend` for all users: int32 [users, N]."""
        return self.recommend(np.arange(len(self._table("user"))), user_items, N=N, **options)[0]

    def _cells_of_users(self, rows: np.ndarray, user_items: Any) -> ops.Cells:
        if user_items is None:
            if self.interactions is None:
                raise ValueError(
                    "expected user_items, the cells of these users (the model has none of its own: "
                    "it was not fit on Interactions), or filter_already_liked_items=False; got None"
                )
            matrix = self.interactions.matrix
            if len(rows) and rows.max() >= matrix.shape[0]:
                raise IndexError(f"expected userid in 0..{matrix.shape[0] - 1}; got {rows.max()}")
            whole = len(rows) == matrix.shape[0] and bool((rows == np.arange(len(rows))).all())
            user_items = matrix if whole else matrix[rows]
        return self._fitting("user_items", user_items, len(rows), len(self._table("item")))

    def _fitting(self, name: str, matrix: Any, rows: int, columns: int) -> ops.Cells:
        """The cells of [rows, columns]. Columns that came later need not be there."""
        cells = given_cells(name, matrix)
        if cells.shape[0] != rows or cells.shape[1] > columns:
            raise ValueError(
                f"expected {name} of shape [{rows}, {columns}], a row for each id; "
                f"got {list(cells.shape)}"
            )
        return trusted_cells(cells.indptr, cells.indices, cells.values, (rows, columns))

    def _no_items(self, count: int, N: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((count, N), -1, np.int32)
        return ids, np.full((count, N), NO_SCORE, self._numpy_dtype())

    def _only(
        self, name: str, ids: Any, other: str, others: Any, count: int
    ) -> tuple[Tensor | None, np.dtype | None]:
        """(the rows that may be found, ascending, each once, or None for all, the dtype of what is
        returned)."""
        if ids is None:
            return None, None
        if others is not None and np.size(others):
            raise ValueError(f"expected {name} or {other}; got both")
        rows, _ = row_numbers(name, np.atleast_1d(np.asarray(ids)), count)
        kind = np.asarray(ids).dtype
        kind = kind if kind.kind == "i" else np.dtype(np.int64)
        return torch.from_numpy(np.unique(rows)).to(self._device), kind

    def _search_of(self, table: FactorTable, only: Tensor | None) -> Callable[..., ops.TopK]:
        """What finds the greatest products among the items, or some of them."""
        threads = self._threads()
        if only is None:
            return functools.partial(table.ordered().search, num_threads=threads)
        return ops.PackedRows(table.tensor[only], metric="dot", num_threads=threads).search

    def _banned(self, name: str, ids: Any, count: int) -> Tensor | None:
        if ids is None or not np.size(ids):
            return None
        rows, _ = row_numbers(name, ids, count)
        banned = torch.zeros(count, dtype=torch.bool)
        banned[torch.from_numpy(rows)] = True
        return banned.to(self._device)

    # --- similar ------------------------------------------------------------------------------

    def similar_items(
        self,
        itemid: Any,
        N: int = 10,
        recalculate_item: bool = False,
        item_users: Any = None,
        filter_items: Any = None,
        items: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The N items whose factors are nearest by cosine, the item itself among them, best first.
        The cosine with factors that are all 0 is 0.

        Args:
            itemid: a row number of ``item_factors``, or integers [n].
            N: how many.
            recalculate_item: do not take the item's factors but what ``item_users`` makes of them.
            item_users: with it: the cells of these items, [n, users].
            filter_items: items that are left out.
            items: look among these alone. Not together with ``filter_items``.

        Returns, Raises: as :meth:`recommend`.
        """
        recalculated = None
        if recalculate_item:
            rows, _ = row_numbers("itemid", itemid, None)
            if item_users is None:
                raise ValueError("expected item_users with recalculate_item; got None")
            cells = self._fitting("item_users", item_users, len(rows), len(self._table("user")))
            recalculated = self._recalculated("item", cells.to(self._device))
        names = ("itemid", "items", "filter_items")
        return self._similar("item", names, itemid, N, filter_items, items, recalculated)

    def similar_users(
        self, userid: Any, N: int = 10, filter_users: Any = None, users: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The N users whose factors are nearest by cosine; as :meth:`similar_items`."""
        names = ("userid", "users", "filter_users")
        return self._similar("user", names, userid, N, filter_users, users, None)

    def _similar(
        self,
        side: str,
        names: tuple[str, str, str],
        asked: Any,
        N: int,
        left_out: Any,
        among: Any,
        recalculated: Tensor | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        table = self._table(side)
        rows, single = row_numbers(names[0], asked, len(table) if recalculated is None else None)
        N = check.integer("N", N, 1)
        only, kind = self._only(names[1], among, names[2], left_out, len(table))
        banned = self._banned(names[2], left_out, len(table))
        N = N if only is None else min(N, len(only))
        if recalculated is None:
            queries = table.factors[torch.from_numpy(rows).to(self._device)]
        else:
            queries = recalculated[:, : table.width]
        ids, scores = self._no_items(len(rows), N)
        k = min(N, len(table))
        if k and len(rows):
            threads = self._threads()
            near = table.near(threads)
            if only is not None:
                near = ops.PackedRows(table.factors[only], num_threads=threads)
            values, indices = near.search(queries, k, banned=banned)
            _write(ids, scores, indices, values, only)
        if kind is not None:
            ids = ids.astype(kind)
        return (ids[0], scores[0]) if single else (ids, scores)


def rows_of(cells: ops.Cells, rows: slice) -> ops.Cells:
    """The cells of consecutive rows."""
    if rows.start == 0 and rows.stop == cells.shape[0]:
        return cells
    indptr = cells.indptr[rows.start : rows.stop + 1]
    part = slice(int(indptr[0]), int(indptr[-1]))
    shape = (rows.stop - rows.start, cells.shape[1])
    return trusted_cells(indptr - indptr[0], cells.indices[part], cells.values[part], shape)


def _columns_of(cells: ops.Cells, columns: np.ndarray) -> ops.Cells:
    """The cells in these columns, ascending, as columns 0, 1, ..."""
    rows = torch.repeat_interleave(
        torch.arange(cells.shape[0]), cells.indptr.diff().cpu().long()
    ).numpy()
    indices = cells.indices.cpu().numpy()
    places = np.minimum(np.searchsorted(columns, indices), len(columns) - 1)
    kept = columns[places] == indices
    counts = np.bincount(rows[kept], minlength=cells.shape[0])
    return trusted_cells(
        torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
        torch.from_numpy(places[kept]),
        cells.values.cpu()[torch.from_numpy(kept)],
        (cells.shape[0], len(columns)),
    )


def _write(
    ids: np.ndarray, scores: np.ndarray, indices: Tensor, values: Tensor, only: Tensor | None
) -> None:
    """What was found [n, k] into the first k places."""
    only = None if only is None else only.cpu()
    indices, values = indices.cpu(), values.cpu()
    found = indices >= 0
    if only is not None:
        indices = torch.where(found, only[indices.clamp_min(0)], -1)
    k = indices.shape[1]
    ids[:, :k] = indices.numpy()
    scores[:, :k] = torch.where(found, values, NO_SCORE).numpy()
