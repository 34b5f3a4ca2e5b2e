"""Rows that are solved by themselves, given the other side: users and items who come, or change,
after the fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.models._checkpoint import is_finite
from vecsmith.models._factor_table import FactorTable
from vecsmith.models._factor_training import TROUBLE
from vecsmith.models._recommend import FactorModel, row_numbers

# Row numbers have 31 bits.
_LAST = (1 << 31) - 2


class FoldInModel(FactorModel):
    """A model in which the cells of a user and the items' factors say what the user's factors are,
    and the other way round (``_recalculated``)."""

    def recalculate_user(self, userid: Any, user_items: Any) -> np.ndarray:
        """What the factors of users are, exactly, with these cells and the items as they are.
        Nothing is stored.

        Args:
            userid: an integer, or integers [n]; they may be any.
            user_items: [n, items], a row for each.

        Returns: a row of ``user_embedding`` for one user, [n, ...] for many.

        Raises: ValueError for a matrix of another shape, and before ``fit``.
        """
        return self._recalculate("user", "userid", userid, "user_items", user_items)

    def recalculate_item(self, itemid: Any, item_users: Any) -> np.ndarray:
        """What the factors of items are with these cells [n, users]; as
        :meth:`recalculate_user`."""
        return self._recalculate("item", "itemid", itemid, "item_users", item_users)

    def _recalculate(self, side: str, what: str, ids: Any, name: str, matrix: Any) -> np.ndarray:
        other = self._table("item" if side == "user" else "user")
        rows, single = row_numbers(what, ids, None)
        cells = self._fitting(name, matrix, len(rows), len(other))
        found = self._finite(side, cells.to(self._device)).cpu().numpy()
        return found[0] if single else found

    def _finite(self, side: str, cells: ops.Cells) -> Tensor:
        """As :meth:`_recalculated`. Raises ValueError where that comes to nan or infinity."""
        found = self._recalculated(side, cells)
        if not is_finite(found):
            raise ValueError(
                f"expected finite factors; got nan or inf for {side}s: "
                f"{TROUBLE.format(self._numpy_dtype())}"
            )
        return found

    def partial_fit_users(self, userids: Any, user_items: Any) -> None:
        """Replace the factors of users by those of :meth:`recalculate_user`. Users beyond the last
        one are added, with those between at 0; not where users have keys.

        Args:
            userids: integers [n], each once.
            user_items: [n, items], a row for each.

        Raises:
            ValueError, TypeError, IndexError: wrong types and shapes, ids out of range or twice.
            MemoryError: there is none for the rows that would be added. Nothing is changed then.
        """
        self._users = self._partial_fit("user", "userids", userids, "user_items", user_items)

    def partial_fit_items(self, itemids: Any, item_users: Any) -> None:
        """Replace the factors of items by those for these cells [n, users]; as
        :meth:`partial_fit_users`."""
        self._items = self._partial_fit("item", "itemids", itemids, "item_users", item_users)

    def _partial_fit(self, side: str, what: str, ids: Any, name: str, matrix: Any) -> FactorTable:
        table, other = self._table(side), self._table("item" if side == "user" else "user")
        rows, _ = row_numbers(what, np.atleast_1d(np.asarray(ids)), None)
        ordered = np.sort(rows)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(f"expected {what} each once; got {twice[0]} twice")
        if len(rows) and ordered[-1] > _LAST:
            raise IndexError(f"expected {what} of at most {_LAST}; got {ordered[-1]}")
        cells = self._fitting(name, matrix, len(rows), len(other))
        count = int(ordered[-1]) + 1 if len(rows) else 0
        if count > len(table) and self.interactions is not None:
            raise ValueError(
                f"expected {what} below {len(table)}, which have keys; got {count - 1} "
                "(interactions = None gives up the keys)"
            )
        found = self._finite(side, cells.to(self._device))
        with torch.inference_mode(False), torch.no_grad():
            if count > len(table):
                table = table.extended(count)
            table.tensor[torch.from_numpy(rows).to(self._device)] = found
        return table
