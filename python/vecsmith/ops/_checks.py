"""Argument checks shared by the operators, before anything is changed: "<op>: expected ..., got
..."."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"


def tensor(
    op: str,
    name: str,
    value: object,
    dtype: torch.dtype,
    shape: tuple[int | None, ...],
    like: Tensor,
) -> None:
    """``value`` is a contiguous tensor of this dtype and shape (None: any length), where ``like``
    is."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} to be a torch.Tensor; got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{op}: expected {name} to be {dtype}; got {value.dtype}")
    fits = value.dim() == len(shape) and all(
        want is None or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{op}: expected {name} of shape {_shape(shape)}; got {_shape(tuple(value.shape))}"
        )
    if value.device != like.device:
        raise ValueError(f"{op}: expected {name} on {like.device}; got it on {value.device}")
    if not value.is_contiguous():
        raise ValueError(f"{op}: expected {name} to be contiguous; got strides {value.stride()}")


def table(
    op: str, name: str, value: object, like: Tensor | None = None, rows: int | None = None
) -> None:
    """``value`` is a floating [rows, D] table with unit stride along D and rows that do not
    overlap."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} to be a torch.Tensor; got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: expected {name} to be a strided tensor; got {value.layout}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{op}: expected {name} to be floating point; got {value.dtype}")
    if value.dim() != 2 or value.shape[1] < 1:
        raise ValueError(
            f"{op}: expected {name} of shape [rows, D >= 1]; got {_shape(tuple(value.shape))}"
        )
    if value.shape[0] >= 2**31:
        raise ValueError(f"{op}: expected {name} of fewer than 2^31 rows; got {value.shape[0]}")
    if rows is not None and value.shape[0] != rows:
        raise ValueError(f"{op}: expected {name} of {rows} rows; got {value.shape[0]}")
    if like is not None:
        if value.shape[1] != like.shape[1]:
            raise ValueError(f"{op}: expected {name} of D={like.shape[1]}; got {value.shape[1]}")
        if value.dtype != like.dtype or value.device != like.device:
            raise TypeError(
                f"{op}: expected {name} to be {like.dtype} on {like.device}; "
                f"got {value.dtype} on {value.device}"
            )
    if value.shape[1] > 1 and value.stride(1) != 1:
        raise ValueError(f"{op}: expected {name} with unit stride along D; got {value.stride()}")
    if value.shape[0] > 1 and value.stride(0) < value.shape[1]:
        raise ValueError(f"{op}: expected {name} with rows apart; got strides {value.stride()}")


def distinct(op: str, **tables: Tensor | None) -> None:
    """No two of the tables share memory: an update of one would be read through the other."""
    if torch.compiler.is_compiling():
        return  # pointers are not known while tracing; the eager call has checked
    if any(isinstance(t, FakeTensor) or (t is not None and t.is_meta) for t in tables.values()):
        return  # there is no memory
    spans = []
    for name, value in tables.items():
        if value is None or value.numel() == 0:
            continue
        first = value.data_ptr()
        span = (value.shape[0] - 1) * value.stride(0) + value.shape[1]
        last = first + span * value.element_size()
        for other, low, high in spans:
            if first < high and low < last:
                raise ValueError(f"{op}: expected tables apart; {name} shares memory with {other}")
        spans.append((name, first, last))


def is_capturing(tensor: Tensor) -> bool:
    """Whether work on this tensor's device goes into a CUDA graph now: nothing may ask the device
    for a number then, and what is a number on the host stays as it is in every replay."""
    if not tensor.is_cuda or torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        return False
    with torch.cuda.device_of(tensor):
        return torch.cuda.is_current_stream_capturing()


def refuse_capture(op: str, tensor: Tensor, expected: str) -> None:
    """Raises RuntimeError, with what was ``expected``, while a CUDA graph is captured."""
    if is_capturing(tensor):
        raise RuntimeError(f"{op}: expected {expected} while a CUDA graph is captured")


def holds_on_device(condition: Tensor, message: str) -> None:
    """The check of a CUDA graph, made in every replay: where ``condition`` (one bool) is false the
    device stops with an assertion, as for an index out of range of torch's own operators."""
    torch.ops.aten._assert_async.msg(condition, message)


def numbers(op: str, name: str, value: Tensor, dtypes: Sequence[torch.dtype], like: Tensor) -> None:
    """``value`` is a tensor of one number where ``like`` is. The number is not looked at."""
    if value.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: expected {name} to be {names}; got {value.dtype}")
    if value.numel() != 1:
        raise ValueError(f"{op}: expected {name} of 1 element; got {_shape(tuple(value.shape))}")
    if value.device != like.device:
        raise ValueError(f"{op}: expected {name} on {like.device}; got it on {value.device}")


def all_finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity among floating point numbers: by their least and
    greatest, in one pass that writes nothing."""
    if not values.numel():
        return True
    least, most = torch.aminmax(values.detach())
    return bool(least.isfinite() & most.isfinite())


def integer(op: str, name: str, value: object, *, low: int, high: int = 2**62) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: expected {name} to be an int; got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{op}: expected {name} in {low}..{high}; got {value}")


def rate(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: expected {name} to be a float; got {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{op}: expected {name} to be finite and >= 0; got {value}")


def batch_sizes(op: str, sizes: list[int], rows: int) -> None:
    """``sizes`` are those of a packed batch of this many rows."""
    if not sizes:
        raise ValueError(f"{op}: expected sequences of at least one step; got none")
    if sizes[-1] < 1 or sizes != sorted(sizes, reverse=True):
        raise ValueError(
            f"{op}: expected batch_sizes of at least 1 that do not increase; got {sizes}"
        )
    if sum(sizes) != rows:
        raise ValueError(
            f"{op}: expected input of {sum(sizes)} rows, the sum of batch_sizes; got {rows}"
        )


def seed(op: str, value: object) -> int:
    """Any int; its low 64 bits count, as a signed int64 (what an operator's schema can carry)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: expected seed to be an int; got {type(value).__name__}")
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def threads(op: str, value: int | None) -> int:
    if value is None:
        return torch.get_num_threads()
    integer(op, "num_threads", value, low=1, high=4096)
    return value


def ids(op: str, name: str, value: Tensor, low: int, high: int) -> None:
    """All entries are in low..high-1 (one pass over the tensor)."""
    if value.numel() == 0:
        return
    ends = torch.aminmax(value)
    if is_capturing(value):
        inside = (ends.min >= low) & (ends.max < high)
        holds_on_device(inside, f"{op}: expected {name} in {low}..{high - 1}")
        return
    least, most = (int(v) for v in ends)
    if least < low or most >= high:
        raise IndexError(
            f"{op}: expected {name} in {low}..{high - 1}; got {least if least < low else most}"
        )


_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))
_transforms_are_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD want to see what is computed."""
    return forward_ad._current_level >= 0 or _transforms_are_active()


def is_seen(tensors: Sequence[Tensor | None]) -> bool:
    """Whether somebody wants to see an operator, and not what it does: torch.compile, a tracer, a
    dispatch mode, torch.func, a subclass of Tensor."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
        or is_transformed()
        or not _PLAIN.issuperset(map(type, tensors))
    )
