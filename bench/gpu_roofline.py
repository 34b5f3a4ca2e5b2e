"""What a GPU reaches at most: the bandwidth of copies and the rates of matrix products, by the same
torch that the other benchmarks are held against.

    python -m bench.gpu_roofline

A copy of a buffer much larger than the last-level cache counts the bytes that are read and those
that are written. A product is of two square matrices of random numbers: zeros would need less
power, and go faster than data does.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._runner import Check, Group, spread

RATES = {
    # (dtype, torch.set_float32_matmul_precision, the relative error that is allowed)
    "bf16": (torch.bfloat16, "highest", 1e-2),
    "fp16": (torch.float16, "highest", 2e-3),
    "tf32": (torch.float32, "high", 2e-3),
    "fp32": (torch.float32, "highest", 1e-5),
}
_COPIED = 1 << 31  # bytes
_SIZE = 8192
_SECONDS = 0.4  # that the repeats of a call take, if it is a short one
_CLEARED = 256 << 20  # bytes: more than any last-level cache has


@functools.cache
def _sweeper(device: str) -> Tensor:
    return torch.empty(_CLEARED // 4, device=device)


def milliseconds(
    call: Callable[[], Any], device: str, *, repeats: int = 10, cold: bool = True
) -> float:
    """The median time of a call, after one that is not counted.

    By events on the current stream; ``cold``: what lay in the last-level cache is overwritten
    before each call, outside of what is timed, and the device is busy with that while the call is
    prepared. On the processor, where kernels are interpreted, one call by the clock.
    """
    if not device.startswith("cuda"):
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * 1e3
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    # Of a call that takes long, few are enough.
    most = int(_SECONDS / (time.perf_counter() - started))
    pairs = []
    for _ in range(max(1, min(repeats, most))):
        if cold:
            _sweeper(device).zero_()
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        call()
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    return spread(start.elapsed_time(end) for start, end in pairs)["median"]


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Ceilings:
    """bandwidth: bytes/s, read and written; rates: operations/s of products by the names of
    ``RATES``."""

    bandwidth: float
    rates: dict[str, float]


def _buffers(device: str, size: int) -> tuple[Tensor, Tensor]:
    """A source and a target, so many bytes together."""
    source = torch.empty(max(int(size) // 2, 1), dtype=torch.uint8, device=device).random_()
    return source, torch.empty_like(source)


def copy_time(device: str, size: int) -> float:
    """Milliseconds of a copy that reads and writes so many bytes."""
    source, target = _buffers(device, size)
    return milliseconds(lambda: target.copy_(source), device)


def bandwidth(device: str, size: int = _COPIED) -> float:
    """Bytes/s of a copy."""
    return size / copy_time(device, size) * 1e3


def _matrices(device: str, dtype: torch.dtype, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator, device=device) for _ in range(2))
    return a.to(dtype), b.to(dtype)


def rate(kind: str, device: str, size: int = _SIZE) -> float:
    """Operations/s of a product."""
    dtype, precision, _ = RATES[kind]
    a, b = _matrices(device, dtype, size)
    with matmul_precision(precision):
        return 2 * size**3 / milliseconds(lambda: a @ b, device) * 1e3


@functools.cache
def ceilings(device: str, tiny: bool = False) -> Ceilings:
    """What this device reaches; measured once in a process."""
    size = 64 if tiny else _SIZE
    return Ceilings(
        bandwidth(device, 1 << 12 if tiny else _COPIED),
        {kind: rate(kind, device, size) for kind in RATES},
    )


def _check(device: str, size: int) -> list[Check]:
    found = []
    for kind, (dtype, precision, allowed) in RATES.items():
        a, b = _matrices(device, dtype, size)
        with matmul_precision(precision):
            product = (a @ b).double()
        exact = a.double() @ b.double()
        error = float((product - exact).norm() / exact.norm())
        found.append(Check(f"{kind} product: off by {error:.1e} of its norm", error < allowed))
    return found


def groups(device: str = "cuda", tiny: bool = False) -> list[Group]:
    size = 64 if tiny else _SIZE
    copied = 1 << 12 if tiny else _COPIED
    buffer = functools.cache(lambda: torch.ones(copied // 4, device=device))

    def same() -> list[Check]:
        source, target = _buffers(device, copied)
        return [Check("a copy is equal", bool(torch.equal(target.copy_(source), source)))]

    return [
        Group(
            name="gpu_bandwidth",
            title=f"Bandwidth of {copied / 1e9:.3g} GB, bytes read and written",
            unit="bytes/s",
            entries={
                "copy": lambda: bandwidth(device, copied),
                "fill": lambda: copied / milliseconds(lambda: buffer().fill_(1.0), device) * 1e3,
                "sum": lambda: copied / milliseconds(lambda: buffer().sum(), device) * 1e3,
            },
            check=same,
            settings={"bytes": copied},
        ),
        Group(
            name="gpu_matrix_rate",
            title=f"Products of two {size} x {size} matrices by torch",
            unit="operations/s",
            entries={kind: functools.partial(rate, kind, device, size) for kind in RATES},
            check=functools.partial(_check, device, min(size, 1024)),
            settings={"size": size},
        ),
    ]


def main(arguments: list[str] | None = None) -> int:
    from . import gpu

    return gpu.main([*(sys.argv[1:] if arguments is None else arguments), "--ops", "roofline"])


if __name__ == "__main__":
    sys.exit(main())
