"""Memory of a training step of `embedding_bag`, and tables that lie in a file: groups of
bench_embedding_bag."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ._runner import ROOT, Check, Group, Ratio
from .bench_embedding_bag import BAGS, LENGTH, OFFSETS, RATE, ZIPF, Shape, batches

_MEMORY = """
import ctypes, sys, torch
from . import bench_embedding_bag as b
from vecsmith import nn, optim
torch.set_num_threads(int(sys.argv[1]))
shape = b.Shape("zipf-64")
table = nn.EmbeddingBag(shape.rows, shape.dim, mode="sum")
small = nn.EmbeddingBag(1000, shape.dim, mode="sum")
for layer in (table, small):
    optim.apply_optimizer_in_backward(optim.SparseAdam, layer.parameters(), {"lr": b.RATE})
ids, grad = b.batches(shape), torch.randn(b.BAGS, shape.dim)
# Libraries and threads are there after a step on a small table; the optimizer's state is the
# table's memory, and all of its pages are touched.
small(torch.arange(1000).reshape(50, 20)).sum().backward()
for state in optim.get_in_backward_optimizers(table)[0].row_state(table.weight):
    state.add_(0)
step = b.step_of(table, ids, grad)
def field(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name + ":"))
    return int(line.split()[1])
ctypes.CDLL(None).malloc_trim(0)  # what was freed is not at hand for the steps
before = field("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
for n in range(b.BATCHES):
    step(n)
print((field("VmHWM") - before) / 1024)
"""


def memory_group(threads: int) -> Group:
    """Peak memory of a step beyond table and state (fresh processes; Linux)."""
    touched = [len(torch.unique(ids)) for ids in batches(Shape("zipf-64"))]
    limit = max(touched) * 64 * 4 * 2 / 2**20

    def measure() -> float:
        done = subprocess.run(
            [sys.executable, "-c", f"__package__ = {__package__!r}\n{_MEMORY}", str(threads)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        return max(float(done.stdout), 0.01)

    return Group(
        name="embedding_bag_memory",
        title=f"EmbeddingBag, whole step with Adam, zipf-64: peak memory, {threads} threads",
        unit="MB",
        higher_is_better=False,
        entries={
            "vecsmith, in backward": measure,
            "touched rows x D x 4 bytes x 2": lambda: limit,
        },
        check=lambda: [Check(f"a batch touches up to {max(touched):,} rows", True)],
        ratios=[
            Ratio(
                "limit / vecsmith",
                "vecsmith, in backward",
                "touched rows x D x 4 bytes x 2",
                1.0,
            ),
        ],
        settings={"threads": threads},
    )


def file_group(threads: int, folder: Path) -> Group:
    """A table in a file four times as large as its cache, and the same table in memory."""
    from vecsmith import nn, optim

    shape = Shape("zipf-64")
    cached = nn.CachedTable(
        shape.rows, shape.dim, storage="mmap", path=folder / "table", cache_rows=shape.rows // 4
    )
    memory = nn.EmbeddingBag(shape.rows, shape.dim, mode="sum")
    with torch.no_grad():
        memory.weight.copy_(cached.export())
    filed = nn.EmbeddingBag(shape.rows, shape.dim, mode="sum", table=cached)
    for module in (memory, filed):
        optim.apply_optimizer_in_backward(optim.SparseAdam, module.parameters(), {"lr": RATE})
    grad = torch.randn(BAGS, shape.dim)
    # New rows in every step, as in training.
    generator = np.random.default_rng(1)
    weights = np.arange(1, shape.rows + 1) ** -ZIPF
    below = np.cumsum(weights / weights.sum())
    many = [
        torch.from_numpy(
            np.minimum(np.searchsorted(below, generator.random(BAGS * LENGTH)), shape.rows - 1)
        )
        for _ in range(64)
    ]
    places = {"memory": 0, "file": 0}

    def steps(name: str, module: torch.nn.Module, count: int = 24) -> float:
        times = []
        for _ in range(count):
            ids = many[places[name] % len(many)]
            places[name] += 1
            started = time.perf_counter()
            module(ids, OFFSETS).backward(grad)
            times.append(time.perf_counter() - started)
        return 1 / sorted(times)[count // 2]

    def check() -> list[Check]:
        for name, module in (("memory", memory), ("file", filed)):
            steps(name, module, 120)  # the cache fills
        error = float((cached.export() - memory.weight).detach().abs().max())
        cached.reset_statistics()
        return [Check(f"after 120 steps the tables differ by {error:.1e}", error < 1e-6)]

    return Group(
        name="embedding_bag_file",
        title=f"EmbeddingBag with Adam, table in a file, cache a quarter, {threads} threads",
        unit="steps/s",
        entries={
            "in a file": lambda: steps("file", filed),
            "in memory": lambda: steps("memory", memory),
        },
        check=check,
        ratios=[Ratio("in a file / in memory", "in a file", "in memory", 0.6)],
        settings={**shape.__dict__, "cache_rows": shape.rows // 4, "threads": threads},
    )
