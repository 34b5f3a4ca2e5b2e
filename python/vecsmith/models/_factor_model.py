"""What models of users and items are made of: two tables of factors, the start of training, and the
folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith.data import Interactions
from vecsmith.models import _factor_files as files
from vecsmith.models import _factor_options as options_of
from vecsmith.models._checkpoint import Checkpoint
from vecsmith.models._factor_table import FactorTable
from vecsmith.models._factor_training import Plan, Training

Self = TypeVar("Self", bound="FactorTables")


class FactorTables:
    """Users and items that are rows of two tables, so that the score of a pair is a product.

    Subclasses set ``_users`` and ``_items``, say what their folder is called and which of their
    options it keeps, and what else belongs to them (:meth:`_state`, :meth:`_restore`).
    """

    _format: ClassVar[str]
    _saved: ClassVar[tuple[str, ...]]
    # Options that are written beside those.
    _written: ClassVar[tuple[str, ...]] = ("random_state",)
    # What a fit sets beside the tables.
    _learned: ClassVar[tuple[str, ...]]

    factors: int
    num_threads: int
    random_state: Any
    interactions: Interactions | None
    checkpoint: Checkpoint | None = None
    _users: FactorTable | None = None
    _items: FactorTable | None = None
    _device: torch.device = torch.device("cpu")

    def __repr__(self) -> str:
        shape = "before fit"
        if self._users is not None and self._items is not None:
            shape = f"{len(self._users)} users, {len(self._items)} items"
        return f"{type(self).__name__}<{shape}, factors={self.factors}>"

    # --- tables -------------------------------------------------------------------------------

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

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self._device

    def _table(self, side: str) -> FactorTable:
        found = self._users if side == "user" else self._items
        if found is None:
            name = type(self).__name__
            article = "an" if name[0] in "AEIOU" else "a"
            raise ValueError(f"expected {article} {name} with {side}_factors; got one before fit")
        return found

    def _array(self, side: str, part: str) -> np.ndarray | None:
        table = self._users if side == "user" else self._items
        return None if table is None else table.array(part)

    def _parameter(self, side: str) -> nn.Parameter | None:
        table = self._users if side == "user" else self._items
        return None if table is None else table.parameter

    def _numpy_dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def _torch_dtype(self) -> torch.dtype:
        return torch.float64 if self._numpy_dtype() == np.float64 else torch.float32

    def _threads(self) -> int | None:
        return options_of.useful_threads(options_of.threads(self.num_threads)) or None

    def _columns(self) -> tuple[int, int]:
        """(columns of the tables, how many of them are factors)."""
        return self.factors, self.factors

    # --- training -----------------------------------------------------------------------------

    def _check_options(self) -> None:
        """Takes the options to their proper types: they may have been set to something else since
        the constructor. Raises TypeError, ValueError."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _begun(
        self, plan: Plan, users: FactorTable, items: FactorTable, matrix: Any
    ) -> Iterator[Training]:
        """The model with new tables, and their training, which runs within. Where something is
        raised, a checkpoint of something else or an interrupt, too, the model is again as it was.

        Tables that are gone on from are copied for that, to the memory of the CPU.
        """
        names = ("_users", "_items", "interactions", *self._learned)
        before = {name: getattr(self, name) for name in names}
        old = [table for table in (users, items) if table in (self._users, self._items)]
        kept = [(table, table.tensor.to("cpu", copy=True)) for table in old]
        if self.checkpoint is not None:
            self.checkpoint.current = False
        try:
            training = Training(plan, self.checkpoint)
            self._users, self._items = users, items
            self.interactions = matrix if isinstance(matrix, Interactions) else None
            yield training
        except BaseException:
            for table, values in kept:
                table.tensor.copy_(values)
            for name, value in before.items():
                setattr(self, name, value)
            if self.checkpoint is not None and self.checkpoint.current:
                self.checkpoint.owned = False  # the next fit goes on from what this one has written
            raise

    # --- files --------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, Any]:
        """What the constructor gets for a model that comes back, JSON types."""
        saved = options_of.saved_random_state(self.random_state)
        return {**{name: getattr(self, name) for name in self._saved}, "random_state": saved}

    def _state(self) -> dict[str, Any]:
        """What else belongs to the model, JSON types."""
        return {}

    def _restore(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`_state` gave. Raises KeyError, TypeError, ValueError, AttributeError,
        OverflowError where it is that no more."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, model.safetensors, and interactions.safetensors,
        users.txt, items.txt where the model was fit on interactions. All files are replaced
        together or none; others are left alone. A checkpoint of this model's training is removed:
        it is not needed any more.

        Raises:
            TypeError, ValueError: a model that was not fit, or holds nan; factors and interactions
                of different sizes; options out of range; a folder without a name.
            OSError: if the disk is full, or the folder cannot be written.
        """
        users, items = self._table("user"), self._table("item")
        self._check_options()
        shape = (len(users), len(items))
        if self.interactions is not None and self.interactions.shape != shape:
            raise ValueError(
                f"expected factors of the {self.interactions.shape} users and items that have "
                f"keys; got {shape} (interactions = None gives up the keys)"
            )
        tables: dict[str, Tensor] = {"users": users.tensor, "items": items.tensor}
        files.save(
            *(folder, self._format, tables),
            *(self._parameters(), self._state(), self.interactions),
        )
        files.remove_checkpoint(self.checkpoint)

    @classmethod
    def load(cls: type[Self], folder: str | os.PathLike[str], **options: Any) -> Self:
        """Load what :meth:`save` has written; factors are mapped from the file (privately: it stays
        as it is).

        Args:
            folder: the folder.
            options: ``num_threads``, ``device``, ``checkpoint``, ``checkpoint_every``, ``resume``,
                ``progress`` of the constructor, where it has them. None leaves the number of
                threads as it was saved.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged, of another kind or a later version.
        """
        options = files.load_options(options)
        config, tables, interactions = files.load(folder, cls._format)
        known = (*cls._saved, *cls._written)
        model: Self = files.constructed(cls, folder, config["parameters"], known, options)
        columns, width = model._columns()
        for name, table in tables.items():
            if table.shape[1] != columns:
                raise ValueError(
                    f"{folder}: expected tables of {columns} columns; got {table.shape[1]}"
                )
            if table.dtype != model._torch_dtype():
                raise ValueError(
                    f"{folder}: expected {name} of {model._torch_dtype()}; got {table.dtype}"
                )
        try:
            model._restore(config["state"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"{folder}: config.json: damaged ({error!r})") from None
        model._users = FactorTable(tables["users"].to(model._device), width)
        model._items = FactorTable(tables["items"].to(model._device), width)
        model.interactions = interactions
        return model


def restored_history(history: Iterable[Any]) -> list[dict[str, float]]:
    """The measures of each iteration, from a folder. Raises TypeError, ValueError, AttributeError,
    OverflowError for what are none."""
    return [{name: float(value) for name, value in measures.items()} for measures in history]
