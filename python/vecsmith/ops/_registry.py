"""The operators and their backends, and the pure function that chooses between them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from types import ModuleType

import torch


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here or cannot run this case."""


@dataclass(frozen=True)
class Backend:
    """One way to compute an operator.

    name: "native", "cuda", "triton", "torch" (torch's own fused operators) or "reference".
    device: the torch device type whose tensors it takes; "any" for those in plain PyTorch.
    dtypes: of the operator's tables.
    deterministic: whether it can promise the same bits whatever the number of workers.
    """

    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    deterministic: bool = True


@dataclass(frozen=True)
class Operator:
    """An operator: its stem (the same on every floor of the house) and its backends, in order of
    preference."""

    name: str
    backends: tuple[Backend, ...]
    functions: tuple[str, ...] = field(default=())

    def backend(self, name: str) -> Backend:
        """The backend of this name. Raises ValueError, with the names there are, for another."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        names = ", ".join(repr(b.name) for b in self.backends)
        raise ValueError(f"{self.name}: expected backend to be one of {names}; got {name!r}")


_OPERATORS: dict[str, Operator] = {}


def register(operator: Operator) -> Operator:
    """Add an operator to the registry (called once by each ops/<op>.py)."""
    _OPERATORS[operator.name] = operator
    return operator


def registry() -> dict[str, Operator]:
    """The operators by name."""
    return dict(_OPERATORS)


# --- what this machine has ------------------------------------------------------------------------


@functools.cache
def native() -> ModuleType:
    """The CPU module. Raises BackendUnavailable, with the reason, where it was not built, and
    ValueError where VECSMITH_ISA names a level that this machine does not have: whoever forces a
    level must not get the slow reference instead."""
    try:
        return importlib.import_module("vecsmith._native")
    except ImportError as error:
        if os.environ.get("VECSMITH_ISA") and "ISA level" in str(error):
            raise ValueError(f"VECSMITH_ISA: {error}") from None
        raise BackendUnavailable(f"vecsmith._native cannot be loaded: {error}") from error


@functools.cache
def cuda_module() -> ModuleType:
    """The CUDA module. Raises BackendUnavailable, with the reason, where it was not built."""
    try:
        return importlib.import_module("vecsmith._cuda")
    except ImportError as error:
        raise BackendUnavailable(
            f"vecsmith._cuda cannot be loaded (built without nvcc?): {error}"
        ) from error


def _obstacle(backend: Backend, device: str) -> str | None:
    """Why ``backend`` cannot take tensors of ``device`` here; None where it can."""
    if backend.device == "any":
        return None
    interpreted = backend.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if backend.device != device and not (interpreted and device == "cpu"):
        return f"it takes {backend.device} tensors, not {device} tensors"
    try:
        if backend.name == "native":
            native()
        elif backend.name == "cuda":
            cuda_module()
        elif backend.name == "triton" and importlib.util.find_spec("triton") is None:
            return "triton is not installed"
    except BackendUnavailable as error:
        return str(error)
    return None


@functools.cache
def _warn_reference(operator: str, device: str, why: str) -> None:
    warnings.warn(
        f"vecsmith.ops.{operator}: no fast backend for {device} tensors here ({why}); "
        "using the slow PyTorch reference",
        stacklevel=4,
    )


def choose(
    operator: Operator,
    device: str,
    dtype: torch.dtype,
    backend: str | None = None,
    *,
    deterministic: bool = False,
    among: Collection[str] | None = None,
) -> str:
    """The name of the backend for these tensors: a pure function of its arguments and the machine.

    ``among``: the names of those that compute the case at hand; default: all.

    Raises ValueError for an unknown name and BackendUnavailable (a RuntimeError) where a forced
    backend cannot run, or where none can keep the promise of deterministic mode.
    """
    candidates = operator.backends if backend is None else (operator.backend(backend),)
    refusals = []
    for candidate in candidates:
        if among is not None and candidate.name not in among:
            continue
        why = _obstacle(candidate, device)
        if why is None and dtype not in candidate.dtypes:
            names = ", ".join(str(d) for d in candidate.dtypes)
            why = f"its tables are {names}, not {dtype}"
        if why is None and deterministic and not candidate.deterministic:
            why = "its updates are unordered, and torch.use_deterministic_algorithms is on"
        if why is None:
            if backend is None and candidate.name == "reference":
                _warn_reference(operator.name, device, "; ".join(refusals))
            return candidate.name
        refusals.append(f"{candidate.name}: {why}")
    raise BackendUnavailable(
        f"vecsmith.ops.{operator.name}: no backend for {device} tensors of {dtype}: "
        + "; ".join(refusals)
    )


def explain(device: str = "cpu") -> list[dict[str, str]]:
    """Which backend each operator would use for float32 tables on ``device`` ("cpu" or "cuda"), and
    why the others would not: one dict of operator, backend, state ("chosen", "available",
    "unavailable") and reason per pair."""
    rows = []
    for operator in _OPERATORS.values():
        taken = False
        for backend in operator.backends:
            why = _obstacle(backend, device)
            if why is None and device == "cuda" and not torch.cuda.is_available():
                why = "no CUDA device"
            state = "unavailable" if why else "available" if taken else "chosen"
            reason = why or ("first in order of preference" if not taken else "on request")
            taken = taken or why is None
            rows.append(
                {
                    "operator": operator.name,
                    "backend": backend.name,
                    "state": state,
                    "reason": reason,
                }
            )
    return rows


def run(function: Callable[..., torch.Tensor], *args: object, **kwargs: object) -> torch.Tensor:
    """Calls a backend's function outside of autograd."""
    with torch.no_grad():
        return function(*args, **kwargs)
