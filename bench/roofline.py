"""What a machine can do at most: the bandwidth of copying and the rate of matrix products,
measured, and how near to that an operator is (Williams, Waterman and Patterson 2009,
doi:10.1145/1498765.1498785).

:class:`Work` counts what the formula needs at least. Bytes: every input and output is moved once;
of a table that is gathered from, the distinct rows that a run touches. Operations: multiplications
and additions of the formula, exponentials and comparisons left out. The time of that on this
machine,

    floor = max(bytes / bandwidth, operations / rate),

over the time that was measured is the fraction of the roofline. It says how much is left to gain at
most, not that it can be gained. It may be above 1: where tables stay in the caches between runs
(the bandwidth is that of memory), and where products are computed in int8 or bfloat16 (the rate is
that of float32, or of the dtype that the work names).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

_PRODUCT = 2048  # rows and columns of the matrices
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_LEAST, _MOST = 64 << 20, 512 << 20  # bytes of a copied table
_LEAST_CALLS, _WHILE = 5, 1.0  # seconds
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Work:
    """What a run needs at least; where the unit is a rate, one of what is counted (a word, a step).

    bytes: moved from and to memory. operations: of ``dtype``, "float32" or "float64".
    """

    bytes: float
    operations: float = 0.0
    dtype: str = "float32"


@dataclass(frozen=True)
class Roofline:
    """What was measured: bytes/s of a copy or triad, whichever is faster, and operations/s of a
    product of two matrices by dtype, both with ``threads`` threads."""

    device: str
    threads: int
    bandwidth: float
    rates: dict[str, float]

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at least."""
        rate = self.rates[work.dtype]
        return max(work.bytes / self.bandwidth, work.operations / rate)

    def bound(self, work: Work) -> str:
        """What the floor is made of: "bandwidth" or "operations"."""
        by_bytes = work.bytes / self.bandwidth
        return "bandwidth" if by_bytes >= self.floor(work) else "operations"

    def fraction(self, work: Work, value: float, unit: str) -> float | None:
        """floor / time of a measured value; None where the unit is neither a time nor a rate."""
        taken = seconds(value, unit)
        return None if taken is None else self.floor(work) / taken

    def record(self) -> dict[str, object]:
        return asdict(self)

    @property
    def words(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in self.rates.items())
        return f"copy {self.bandwidth / 1e9:.1f} GB/s, products in GFLOP/s: {rates}"


def seconds(value: float, unit: str) -> float | None:
    """The time that a value stands for: itself, or of a rate that of one; None for others."""
    if unit in _SECONDS:
        return value * _SECONDS[unit]
    # Bytes per second are of no unit of work.
    if unit.endswith("/s") and unit != "GB/s" and value > 0:
        return 1 / value
    return None


_MEASURED: dict[tuple[str, int], Roofline] = {}


def measure(threads: int | None = None, device: str = "cpu") -> Roofline:
    """The roofline of a device with so many threads (None: torch's), measured once per process.

    Raises: RuntimeError if there is no such device.
    """
    threads = torch.get_num_threads() if threads is None else threads
    key = (device, threads)
    if key not in _MEASURED:
        before = torch.get_num_threads(), torch.get_float32_matmul_precision()
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        try:
            rates = {name: _product_rate(dtype, device) for name, dtype in _DTYPES.items()}
            _MEASURED[key] = Roofline(device, threads, _bandwidth(device), rates)
        finally:
            torch.set_num_threads(before[0])
            torch.set_float32_matmul_precision(before[1])
    return _MEASURED[key]


def measured(threads: int, device: str = "cpu") -> Roofline | None:
    """The roofline, if this process has measured it."""
    return _MEASURED.get((device, threads))


def _best(call: Callable[[], object], device: str) -> float:
    """Seconds of the fastest call in a while, so that a busy moment is not taken for the machine's;
    after one that is not counted."""

    def once() -> float:
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    times: list[float] = []
    while len(times) < _LEAST_CALLS or sum(times) < _WHILE:
        times.append(once())
    return min(times)


def _product_rate(dtype: torch.dtype, device: str) -> float:
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(_PRODUCT, _PRODUCT, generator=generator).to(device, dtype) for _ in range(2)
    )
    out = torch.empty_like(a)
    return 2 * _PRODUCT**3 / _best(lambda: torch.mm(a, b, out=out), device)


def _bandwidth(device: str) -> float:
    """Bytes read and written per second, of tables far larger than the last cache."""
    size = _MOST if device == "cuda" else min(max(8 * last_cache(), _LEAST), _MOST)
    source, other = (torch.full((size // 4,), value, device=device) for value in (1.0, 2.0))
    target = torch.zeros_like(source)
    copy = 2 * size / _best(lambda: target.copy_(source), device)
    triad = 3 * size / _best(lambda: torch.add(source, other, alpha=3, out=target), device)
    return max(copy, triad)


def last_cache() -> int:
    """Bytes of the largest cache of a processor; 32 MiB where the system does not say."""
    found = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        if digits.isdigit():
            found.append(int(digits) * scale)
    return max(found, default=32 << 20)
