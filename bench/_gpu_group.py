"""What the groups of the GPU benchmarks have in common: a floor, problems that are made when their
turn comes, and where ours runs."""

from __future__ import annotations

import gc
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch

from ._runner import Group
from .gpu_roofline import Ceilings, milliseconds

Made = TypeVar("Made")


@dataclass(frozen=True)
class Work:
    """The least that must be done, whoever does it.

    bytes: each input read once and each output written once; operations: by the unit that has the
    highest rate at the precision asked for, a name of :data:`bench.gpu_roofline.RATES`.
    """

    bytes: float = 0.0
    operations: float = 0.0
    unit: str = "bf16"

    def floor(self, ceilings: Ceilings) -> tuple[float, str]:
        """(seconds that no program can do without, what they go into)."""
        moved = self.bytes / ceilings.bandwidth
        computed = self.operations / ceilings.rates[self.unit]
        if moved >= computed:
            return moved, "bytes at the bandwidth of a copy"
        return computed, f"operations at the rate of a {self.unit} product"


class Problem(Generic[Made]):
    """Made when it is first asked for, and given up when another one is, so that the groups of a
    list do not hold the memory of all of them."""

    _live: ClassVar[list[Problem[Any]]] = []

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make, self._made = make, None

    def __call__(self) -> Made:
        if self._made is None:
            release()
            self._made = self._make()
            Problem._live.append(self)
        return self._made


def release() -> None:
    """Gives up the problem that was made last."""
    while Problem._live:
        Problem._live.pop()._made = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class GpuGroup(Group):
    """A group whose entries are timed on a device.

    least: the work of an entry, once its problem is made. amount: what an entry counts, where its
    unit is a rate. verdict: (the .cu, the ratio that decides whether it stays).
    """

    least: Callable[[], Work] | None = None
    amount: float = 1.0
    verdict: tuple[str, str] | None = None


def ours(device: str, *, cuda: bool = False) -> list[str]:
    """Our backends here: on the processor Triton's interpreter."""
    if device.startswith("cuda") and cuda and have_cuda_module():
        return ["cuda", "triton"]
    return ["triton"]


def have_cuda_module() -> bool:
    return importlib.util.find_spec("vecsmith._cuda") is not None


def timed(call: Callable[[], Any], device: str, *, repeats: int = 10, cold: bool = True):
    """An entry: milliseconds of a call."""
    return lambda: milliseconds(call, device, repeats=repeats, cold=cold)


def have(*modules: str) -> bool:
    """Whether all of them can be imported; those that are there and do not load count as absent."""
    for name in modules:
        try:
            if importlib.util.find_spec(name) is None:
                return False
            importlib.import_module(name)
        except (ImportError, OSError, AttributeError, RuntimeError):
            return False
    return True
