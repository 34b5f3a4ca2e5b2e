"""What models of ratings with biases have in common: held-out ratings, predictions, and users and
items that are solved by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.data import Interactions
from vecsmith.models import _options as check
from vecsmith.models._biased import Bounds, bias, pair_scores, partner
from vecsmith.models._factor_model import restored_history
from vecsmith.models._factor_training import Measures
from vecsmith.models._fold_in import FoldInModel
from vecsmith.models._recommend import given_cells, row_numbers

_AT_ONCE = 1 << 16  # pairs that are predicted together


class BiasedModel(FoldInModel):
    """r_ui ~ m + b_u + b_i + <x_u, y_i>, or without biases r_ui ~ <x_u, y_i>."""

    _learned = ("global_bias", "rating_range", "history_")

    biases: bool
    clip: bool | tuple[float, float]
    global_bias: float
    rating_range: tuple[float, float] | None
    history_: list[Measures]

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

    def _columns(self) -> tuple[int, int]:
        return self.factors + int(self.biases), self.factors

    def _given(self, ratings: Any, validation: Any) -> tuple[ops.Cells, ops.Cells | None]:
        """The cells to learn from, and those that are held out, if any.

        Raises: ValueError for none, or a validation set of other users or items.
        """
        name = f"{type(self).__name__}.fit"
        cells = given_cells(name, ratings)
        if not len(cells):
            raise ValueError(f"{name}: expected ratings; got a matrix without cells")
        held = None if validation is None else _held_out(name, ratings, validation, cells.shape)
        return cells, held

    # --- predictions --------------------------------------------------------------------------

    def _bounds(self, seen: tuple[float, float] | None) -> Bounds:
        return seen if self.clip is True else self.clip or None

    @torch.no_grad()
    def predict(self, userids: Any, itemids: Any) -> Any:
        """The ratings of pairs of a user and an item: m + b_u + b_i + <x_u, y_i>, kept within
        bounds if ``clip`` says so.

        Args:
            userids, itemids: integers, of shapes that can be broadcast together.

        Returns: an array of their common shape, of the factors' dtype; a float for two integers.

        Raises: IndexError for a user or an item that is not there; ValueError before ``fit``.
        """
        users, items = self._table("user"), self._table("item")
        pair = np.broadcast_arrays(np.asarray(userids), np.asarray(itemids))
        shape = pair[0].shape
        rows, _ = row_numbers("userids", pair[0].reshape(-1), len(users))
        columns, _ = row_numbers("itemids", pair[1].reshape(-1), len(items))
        found = np.empty(len(rows), self._numpy_dtype())
        bounds = self._bounds(self.rating_range)
        for first in range(0, len(rows), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            at = (torch.from_numpy(ids[part]).to(self._device) for ids in (rows, columns))
            scores = pair_scores(users, items, self.global_bias, *at)
            found[part] = (scores if bounds is None else scores.clamp(*bounds)).cpu().numpy()
        return float(found[0]) if shape == () else found.reshape(shape)

    @torch.no_grad()
    def predict_all(self) -> np.ndarray:
        """The completed matrix [users, items]: all of :meth:`predict`. For small ones."""
        users, items = self._table("user"), self._table("item")
        found = partner(users) @ items.tensor.T + self.global_bias
        of_users, bounds = bias(users), self._bounds(self.rating_range)
        if of_users is not None:
            found += of_users[:, None]
        return (found if bounds is None else found.clamp(*bounds)).cpu().numpy()

    def _queries(self, table: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.biases:
            return table, None
        queries = table.clone()
        queries[:, self.factors] = 1
        return queries, table[:, self.factors] + self.global_bias

    # --- files --------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {
            "global_bias": self.global_bias,
            "rating_range": self.rating_range,
            "history_": self.history_,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        bounds = (check.finite("rating_range", bound) for bound in state["rating_range"])
        least, greatest = bounds
        if least > greatest:
            raise ValueError(f"expected rating_range (least, greatest); got {least, greatest}")
        self.global_bias = check.finite("global_bias", state["global_bias"])
        self.rating_range = (least, greatest)
        self.history_ = restored_history(state["history_"])


def _held_out(name: str, ratings: Any, validation: Any, shape: tuple[int, int]) -> ops.Cells:
    cells = given_cells(f"{name}: validation", validation)
    if cells.shape != shape:
        raise ValueError(
            f"expected validation of shape {list(shape)}, that of the ratings; "
            f"got {list(cells.shape)} (Interactions.reindex gives the one the keys of the other)"
        )
    if not len(cells):
        raise ValueError("expected validation to have cells; got none")
    if isinstance(ratings, Interactions) and isinstance(validation, Interactions):
        for side in ("users", "items"):
            mine, theirs = getattr(ratings, side), getattr(validation, side)
            if mine is not theirs and not np.array_equal(mine, theirs):
                raise ValueError(
                    f"expected validation of the same {side}, the {side} of the ratings in their "
                    "order; got others (Interactions.reindex gives the one the keys of the other)"
                )
    return cells
