"""What models of users and items by gradient descent have in common: their tables, recommending,
and finding what is similar, in the words of implicit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith import ops
from vecsmith.data import Interactions
from vecsmith.models import _options as check
from vecsmith.models._factor_table import FactorTable
from vecsmith.models._recommend import NO_SCORE, given_cells, row_numbers, rows_of

# Users that are asked for at once.
_AT_ONCE = 1 << 12


def diverged(epoch: int) -> ValueError:
    """The error for training that has led to numbers that are none."""
    return ValueError(
        f"expected finite factors; got nan or inf in epoch {epoch}: training has diverged, begin "
        "again with a smaller learning_rate"
    )


def refuse_overflow(tables: Sequence[Tensor], epochs: int) -> None:
    """Raises ValueError for tables that are not finite after so many epochs."""
    for table in tables:
        if not bool(table.sum(dtype=torch.float64).isfinite()):
            raise diverged(max(epochs - 1, 0))


class FactorModel:
    """Users and items that are rows of two tables, so that the score of a pair is a product.

    Subclasses set ``_users`` and ``_items``, and may change how a user becomes a query
    (:meth:`_queries`).
    """

    num_threads: int
    interactions: Interactions | None
    _users: FactorTable | None
    _items: FactorTable | None

    def _table(self, side: str) -> FactorTable:
        found = self._users if side == "user" else self._items
        if found is None:
            raise ValueError(
                f"expected a {type(self).__name__} with {side}_factors; got one before fit"
            )
        return found

    def _array(self, side: str, part: str) -> np.ndarray | None:
        table = self._users if side == "user" else self._items
        return None if table is None else table.array(part)

    def _parameter(self, side: str) -> nn.Parameter | None:
        table = self._users if side == "user" else self._items
        return None if table is None else table.parameter

    @property
    def user_factors(self) -> np.ndarray | None:
        """The users' factors, over the memory of ``user_embedding``; None before ``fit``."""
        return self._array("user", "factors")

    @property
    def item_factors(self) -> np.ndarray | None:
        """The items' factors, over the memory of ``item_embedding``; None before ``fit``."""
        return self._array("item", "factors")

    @property
    def user_embedding(self) -> nn.Parameter | None:
        """All that belongs to the users, a row each."""
        return self._parameter("user")

    @property
    def item_embedding(self) -> nn.Parameter | None:
        """All that belongs to the items, a row each."""
        return self._parameter("item")

    def __repr__(self) -> str:
        shape = "before fit"
        if self._users is not None and self._items is not None:
            shape = f"{len(self._users)} users, {len(self._items)} items"
        return f"{type(self).__name__}<{shape}, factors={getattr(self, 'factors', None)}>"

    def _threads(self) -> int | None:
        return self.num_threads or None

    def _queries(self, table: Tensor) -> tuple[Tensor, Tensor | None]:
        """Users [n, columns] as queries for the items' table, and what is added to their scores:
        [n] or nothing."""
        return table, None

    # --- recommend ----------------------------------------------------------------------------

    @torch.no_grad()
    def recommend(
        self,
        userid: Any,
        user_items: Any = None,
        N: int = 10,
        filter_already_liked_items: bool = True,
        filter_items: Any = None,
        items: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The N items with the best scores, best first, for one user or for many. Many at once are
        quicker: no matrix of scores is made (:func:`vecsmith.ops.cosine_topk`). Of equal scores
        the lower number comes first.

        Args:
            userid: a row number of ``user_factors``, or integers [n].
            user_items: the cells of these users, [n, items], row j those of ``userid[j]``; every
                stored cell is a liked item. None: those of ``interactions``, if there are any.
            N: how many.
            filter_already_liked_items: leave out each user's own cells.
            filter_items: items that nobody gets.
            items: rank these alone. Not together with ``filter_items``.

        Returns:
            (int32 items, float32 scores), [N] for one user and [n, N] for many, with ``items`` at
            most as many. Places that no item is left for have item -1 and the least float32.

        Raises:
            IndexError: a user or an item that is not there. ValueError: ``user_items`` of another
            shape, or missing; a model that was not fit. TypeError: wrong types.
        """
        users, table = self._table("user"), self._table("item")
        rows, single = row_numbers("userid", userid, len(users))
        N = check.integer("N", N, 1)
        liked = None
        if filter_already_liked_items:
            liked = self._cells_of_users(rows, user_items)
        banned, allowed = _banned("items", items, "filter_items", filter_items, len(table))
        N = N if items is None else min(N, allowed)
        ids = np.full((len(rows), N), -1, np.int32)
        scores = np.full((len(rows), N), NO_SCORE, np.float32)
        for first in range(0, len(rows), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            queries, offsets = self._queries(users.tensor[torch.from_numpy(rows[part])])
            batch = slice(first, first + len(queries))
            exclude = None if liked is None else rows_of(liked, batch)
            values, found = self._found(queries, table.tensor, "dot", N, banned, exclude)
            values = values if offsets is None else values + offsets[:, None]
            _write(ids[part], scores[part], values, found)
        return (ids[0], scores[0]) if single else (ids, scores)

    def _cells_of_users(self, rows: np.ndarray, user_items: Any) -> ops.Cells:
        if user_items is None:
            if self.interactions is None:
                raise ValueError(
                    "expected user_items, the cells of these users (the model has none of its own: "
                    "it was not fit on Interactions), or filter_already_liked_items=False; got None"
                )
            user_items = self.interactions.matrix[rows]
        cells = given_cells("user_items", user_items)
        columns = len(self._table("item"))
        if cells.shape[0] != len(rows) or cells.shape[1] > columns:
            raise ValueError(
                f"expected user_items of shape [{len(rows)}, {columns}], a row for each id; "
                f"got {list(cells.shape)}"
            )
        # Columns that came later need not be there.
        return ops.Cells(cells.indptr, cells.indices, cells.values, (len(rows), columns))

    def _found(
        self,
        queries: Tensor,
        table: Tensor,
        metric: str,
        N: int,
        banned: Tensor | None,
        exclude: Any = None,
    ) -> ops.TopK:
        k = min(N, len(table))
        if k == 0 or len(queries) == 0:
            empty = queries.new_empty(len(queries), 0)
            return ops.TopK(empty, empty.long())
        return ops.cosine_topk(
            *(queries, table, k),
            metric=metric,
            banned=banned,
            exclude=exclude,
            num_threads=self._threads(),
        )

    # --- similar ------------------------------------------------------------------------------

    def similar_items(
        self, itemid: Any, N: int = 10, filter_items: Any = None, items: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The N items whose factors are nearest by cosine, the item itself among them, best first.
        The cosine with factors that are all 0 is 0.

        Args:
            itemid: a row number of ``item_factors``, or integers [n].
            N: how many.
            filter_items: items that are left out.
            items: look among these alone. Not together with ``filter_items``.

        Returns, Raises: as :meth:`recommend`.
        """
        names = ("itemid", "items", "filter_items")
        return self._similar("item", names, itemid, N, filter_items, items)

    def similar_users(
        self, userid: Any, N: int = 10, filter_users: Any = None, users: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The N users whose factors are nearest by cosine; as :meth:`similar_items`."""
        names = ("userid", "users", "filter_users")
        return self._similar("user", names, userid, N, filter_users, users)

    @torch.no_grad()
    def _similar(
        self,
        side: str,
        names: tuple[str, str, str],
        asked: Any,
        N: int,
        left_out: Any,
        among: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        table = self._table(side)
        rows, single = row_numbers(names[0], asked, len(table))
        N = check.integer("N", N, 1)
        banned, allowed = _banned(names[1], among, names[2], left_out, len(table))
        N = N if among is None else min(N, allowed)
        ids = np.full((len(rows), N), -1, np.int32)
        scores = np.full((len(rows), N), NO_SCORE, np.float32)
        queries = table.factors[torch.from_numpy(rows)]
        _write(ids, scores, *self._found(queries, table.factors, "cosine", N, banned))
        return (ids[0], scores[0]) if single else (ids, scores)


def _banned(
    name: str, only: Any, other: str, left_out: Any, count: int
) -> tuple[Tensor | None, int]:
    """(the rows that may not be found, bool [count], or None; how many may be)."""
    if only is not None:
        if left_out is not None and len(left_out):
            raise ValueError(f"expected {name} or {other}; got both")
        banned = torch.ones(count, dtype=torch.bool)
        banned[torch.from_numpy(row_numbers(name, np.atleast_1d(np.asarray(only)), count)[0])] = (
            False
        )
        return banned, count - int(banned.sum())
    if left_out is None or not len(left_out):
        return None, count
    banned = torch.zeros(count, dtype=torch.bool)
    banned[torch.from_numpy(row_numbers(other, left_out, count)[0])] = True
    return banned, count - int(banned.sum())


def _write(ids: np.ndarray, scores: np.ndarray, values: Tensor, indices: Tensor) -> None:
    """What was found [n, k] into the first k places."""
    k = indices.shape[1]
    ids[:, :k] = indices.numpy()
    scores[:, :k] = torch.where(indices >= 0, values, NO_SCORE).numpy()
