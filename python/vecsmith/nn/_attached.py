"""The optimizer of a cached table, whose state is kept with the rows and moves with them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from vecsmith.optim.sparse import RowOptimizer

Names = tuple[tuple[str, bool], ...]


def state_names(optimizer: RowOptimizer, cache: Tensor) -> Names:
    """(name, whether it is one number for a row) of the state that the next step needs. It is the
    settings that say so: SparseSGD has state from the step on that finds a momentum."""
    return optimizer._state_names(optimizer._group_of(cache))


def refuse_state(state: dict[str, Any]) -> None:
    """Raises ValueError where a state_dict brought an optimizer the state of other rows."""
    if state:
        raise ValueError(
            "CachedTable: expected a state_dict without state of the rows, which is kept with them "
            f"and not with the optimizer; got {list(state)} (what else there is to load is in "
            "{**state_dict, 'state': {}})"
        )


class Attached:
    """An optimizer in backward, as long as its state moves with the rows of a cached table.

    Its tensors of state have a row for each slot. They are not part of its ``state_dict()``, since
    they belong to rows that will be elsewhere when it is loaded; loading leaves them alone.

    Args:
        optimizer: whose parameter is ``cache``.
        cache: the slots' rows.
        names: the state that the rows have.
        lock: held while rows are stepped.
    """

    def __init__(
        self,
        optimizer: RowOptimizer,
        cache: Tensor,
        names: Names,
        lock: AbstractContextManager[Any],
    ) -> None:
        self.optimizer = optimizer
        self.cache = cache
        self.names = names
        optimizer._step_lock = lock
        self._kept: dict[str, Any] = {}
        self._hooks = (
            optimizer.register_state_dict_post_hook(self._leave_out),
            optimizer.register_load_state_dict_pre_hook(self._keep),
            optimizer.register_load_state_dict_post_hook(self._give_back),
        )

    def detach(self) -> None:
        """Gives the optimizer up: an ordinary one again."""
        for hook in self._hooks:
            hook.remove()
        vars(self.optimizer).pop("_step_lock", None)

    @property
    def fits(self) -> bool:
        """Whether the optimizer, with its settings as they are now, steps the state there is."""
        return self.names == state_names(self.optimizer, self.cache)

    @property
    def steps(self) -> int | None:
        """Its count of steps; None where it has not counted any."""
        step = self.optimizer.state[self.cache].get("step")
        return None if step is None else int(step)

    def holds(self, states: Sequence[Tensor]) -> bool:
        """Whether these are the tensors of state still."""
        state = self.optimizer.state[self.cache]
        return all(
            state.get(key) is part for (key, _), part in zip(self.names, states, strict=True)
        )

    def states(self) -> tuple[Tensor, ...]:
        """The tensors of state, made and moved to the device of the slots where they have to be."""
        if self.fits:
            return self.optimizer.row_state(self.cache)
        state = self.optimizer.state[self.cache]
        for key, _ in self.names:
            state[key] = state[key].to(self.cache.device)
        return tuple(state[key] for key, _ in self.names)

    # --- hooks of the optimizer ---------------------------------------------------------------

    def _parameters(self, optimizer: Optimizer) -> list[Tensor]:
        return [param for group in optimizer.param_groups for param in group["params"]]

    def _leave_out(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        for number, param in enumerate(self._parameters(optimizer)):
            if param is self.cache:
                state_dict["state"].pop(number, None)

    def _keep(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, param in zip(saved, self._parameters(optimizer), strict=False):
            if param is self.cache:
                refuse_state(state_dict["state"].get(number, {}))
        self._kept = optimizer.state[self.cache]

    def _give_back(self, optimizer: Optimizer) -> None:
        optimizer.state[self.cache], self._kept = self._kept, {}
