"""The rules of a CUDA graph's capture, without a GPU: what a captured step may not do raises.

In Triton's interpreter every tensor is on the CPU. So those that would be on the host are told from
those of the device by the way they are made: a factory that is given a ``torch.device`` makes one
of the device, as code that follows its inputs does; one that is given "cpu" or nothing makes one of
the host. What is computed of tensors of the host alone is on the host, all else is on the device.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# What asks the device for a number, or makes a result whose shape depends on one.
WAITING = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "is_nonzero"),
    *("numpy", "cpu", "__array__", "__dlpack__", "__contains__", "__format__", "__repr__"),
    *("nonzero", "argwhere", "masked_select", "equal", "allclose", "bincount", "histc"),
    *("unique", "unique_consecutive", "_unique2", "_return_output", "_return_counts"),
    *("new_tensor", "pin_memory", "tensor_split"),
}
MAKING = {"tensor", "as_tensor", "asarray", "from_numpy", "frombuffer"}


class CaptureBroken(AssertionError):
    """A step did what cannot be captured."""


class Marks:
    """Which tensors are on the host."""

    @staticmethod
    def on_host(tensor: Tensor) -> bool:
        return getattr(tensor, "_is_on_host", False)

    @staticmethod
    def mark(results: object) -> None:
        for tensor in tree_leaves(results):
            if type(tensor) is Tensor:
                tensor._is_on_host = True  # pyright: ignore[reportAttributeAccessIssue]


class CaptureRules(TorchFunctionMode):
    """While it is active, what no captured step may do raises CaptureBroken."""

    def __init__(self, operators: dict) -> None:
        super().__init__()
        self.operators = operators  # what the registered ones run
        self.asleep = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.asleep:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if isinstance(func, torch._ops.OpOverloadPacket):
            name = func._qualified_op_name
        elif isinstance(func, torch._ops.OpOverload):
            name = func._name
        if name.startswith("vecsmith::"):
            with self:
                return self.operators[name.split("::")[1].split(".")[0]](*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_host = [Marks.on_host(tensor) for tensor in tensors]
        of_device = any(isinstance(v, torch.device) for v in tree_leaves((args, kwargs)))
        if tensors and not all(on_host) and name not in ("__get__", "__set__"):
            self._look(name, args, kwargs, tensors, on_host)
        elif of_device and (name in MAKING or (tensors and name in ("to", "cuda"))):
            raise CaptureBroken(f"{name}: a copy from the host to the device")
        if func is Tensor.backward:  # which lets go of the mode
            with self:
                return torch.autograd.backward(args[0], kwargs.pop("gradient"), **kwargs)
        result = func(*args, **kwargs)
        if all(on_host) if tensors else not of_device:
            Marks.mark(result)
        return result

    def _look(self, name, args, kwargs, tensors, on_host) -> None:
        if name in WAITING:
            raise CaptureBroken(f"{name}: the host waits for the device")
        if any(on_host) and name != "_assert_async":
            raise CaptureBroken(f"{name}: a tensor of the host with one of the device")
        if name == "to" and any(leaf == "cpu" for leaf in tree_leaves((args, kwargs))):
            raise CaptureBroken("to: a copy from the device to the host")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            raise CaptureBroken("repeat_interleave: the size of the result is not known")
        if name == "where" and len(args) + len(kwargs) == 1:
            raise CaptureBroken("where: the size of the result is not known")
        if name in ("__getitem__", "__setitem__", "index_put_", "index_put", "index"):
            for index in tree_leaves(args[1]) if name.startswith("__") else tensors[1:]:
                if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                    raise CaptureBroken(f"{name}: a mask, whose number of entries is not known")
            each = args[1] if isinstance(args[1], tuple) else (args[1],)
            if name.startswith("__") and any(isinstance(index, list) for index in each):
                raise CaptureBroken(f"{name}: a list of indices, copied from the host")


@contextlib.contextmanager
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """As if a CUDA graph were captured: the rules are active, and vecsmith is told so. Yields the
    launches of Triton kernels: (name, grid, constants, shapes of tensors and other arguments)."""
    from triton.runtime import interpreter

    from vecsmith.ops import _checks, _embedding_bag

    # The module, whose name in vecsmith.ops is that of the function.
    of_skipgram = sys.modules["vecsmith.ops.skipgram"]
    rules = CaptureRules(
        {
            "skipgram": of_skipgram._skipgram_impl,
            "skipgram_pairs": of_skipgram._pairs_impl,
            "embedding_bag": _embedding_bag.forward,
            "embedding_bag_backward": _embedding_bag._backward_impl,
            "embedding_bag_gradient": _embedding_bag._gradient_impl,
            "embedding_bag_update": _embedding_bag._update_impl,
        }
    )
    launches: list = []
    launch = interpreter.GridExecutor.__call__

    def recorded(self, *arguments, **named):
        sizes = [tuple(a.shape) if isinstance(a, Tensor) else a for a in arguments]
        constants = {k: v for k, v in named.items() if not isinstance(v, Tensor)}
        launches.append((self.fn.__name__, self.grid, constants, sizes))
        before, rules.asleep = rules.asleep, True
        try:
            return launch(self, *arguments, **named)
        finally:
            rules.asleep = before

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", recorded)
        patch.setattr(_checks, "is_capturing", lambda tensor: True)
        with rules:
            yield launches
