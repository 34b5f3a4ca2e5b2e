"""The operator `embedding_bag`: pooled look-ups and whole training steps against torch and FBGEMM.

    pytest bench/bench_embedding_bag.py --benchmark-enable    pytest-benchmark, one group per shape
    python -m bench.bench_embedding_bag                        interleaved, with ratios and JSON

1M rows, 4,096 bags of 20 indices, drawn by Zipf's law (exponent 1.05) or uniformly. A step is the
forward pass, the backward pass with a given gradient, and the optimizer's step. FBGEMM takes part
where a release of fbgemm-gpu-cpu is installed that loads beside this torch.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._ours import CACHE, forced
from ._peers import usable
from ._pytest import pytest
from ._runner import Check, Group, Job, Ratio, Skipped, finish, parser, run
from .roofline import Work

ROWS, BAGS, LENGTH, ZIPF = 1_000_000, 4096, 20, 1.05
BATCHES = 8
RATE = 0.01


@dataclass(frozen=True)
class Shape:
    """A table and how its rows are drawn."""

    name: str
    dim: int = 64
    uniform: bool = False
    rows: int = ROWS

    @property
    def slug(self) -> str:
        return self.name.replace("-", "_").replace(" ", "_")


SHAPES = (
    Shape("zipf-64"),
    Shape("uniform-64", uniform=True),
    Shape("zipf-37", dim=37),
    Shape("uniform-37", dim=37, uniform=True),
)


QUICK = Shape("zipf-64 of 300k", rows=300_000)


def work_of(ids: list[Tensor], dim: int, state: int | None = None) -> Work:
    """Of a look-up, or of a whole step with so many numbers of state per row: indices, offsets, the
    distinct rows of a batch and the bags; in a step the gradient, and rows and state once more."""
    distinct = sum(len(torch.unique(batch)) for batch in ids) / len(ids)
    count = ids[0].numel()
    moved = 8 * (count + BAGS) + 4 * dim * (distinct + BAGS)
    if state is None:
        return Work(moved, count * dim)
    moved += 4 * dim * BAGS + 4 * distinct * (dim + 2 * state)
    return Work(moved, 2 * count * dim)


def batches(shape: Shape) -> list[Tensor]:
    """Some batches of indices."""
    generator = np.random.default_rng(0)
    if shape.uniform:
        return [
            torch.from_numpy(generator.integers(0, shape.rows, BAGS * LENGTH))
            for _ in range(BATCHES)
        ]
    weights = np.arange(1, shape.rows + 1) ** -ZIPF
    below = np.cumsum(weights / weights.sum())
    drawn = [np.searchsorted(below, generator.random(BAGS * LENGTH)) for _ in range(BATCHES)]
    return [torch.from_numpy(np.minimum(d, shape.rows - 1)) for d in drawn]


OFFSETS = torch.arange(0, BAGS * LENGTH, LENGTH)


def timed(call: Callable[[int], Any], repeats: int = 24) -> Callable[[], float]:
    """An entry: milliseconds of a call, the median over the batches."""

    def entry() -> float:
        call(0)
        times = []
        for n in range(repeats):
            started = time.perf_counter()
            call(n % BATCHES)
            times.append(time.perf_counter() - started)
        return sorted(times)[repeats // 2] * 1e3

    return entry


def at_level(isa: str, call: Callable[[int], Any]) -> Callable[[int], Any]:
    def forced_call(n: int) -> Any:
        with forced(isa):
            return call(n)

    return forced_call


def levels() -> list[str]:
    """The ISA levels here, best first, without `base`."""
    from vecsmith import _native

    return [level for level in reversed(_native.isa_levels()) if level != "base"]


# --- forward --------------------------------------------------------------------------------------


def layers(shape: Shape, **options: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(ours, torch's) with the same table."""
    from vecsmith import nn

    ours = nn.EmbeddingBag(shape.rows, shape.dim, mode="sum", **options)
    theirs = torch.nn.EmbeddingBag(shape.rows, shape.dim, mode="sum", **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def forward_group(shape: Shape, threads: int) -> Group:
    """The look-up alone, with the graph for a backward pass."""
    ours, theirs = layers(shape)
    ids = batches(shape)
    huge = torch.nn.EmbeddingBag(shape.rows, shape.dim, mode="sum", _weight=ours.weight)
    entries = {
        "vecsmith": timed(lambda n: ours(ids[n], OFFSETS)),
        "torch": timed(lambda n: theirs(ids[n], OFFSETS)),
        "torch, on vecsmith's huge pages": timed(lambda n: huge(ids[n], OFFSETS)),
    }
    for level in levels()[1:]:
        entries[f"vecsmith, {level}"] = timed(at_level(level, lambda n: ours(ids[n], OFFSETS)))

    def check() -> list[Check]:
        error = float((ours(ids[0], OFFSETS) - theirs(ids[0], OFFSETS)).abs().max())
        return [Check(f"the output differs from torch's by {error:.1e}", error < 1e-4)]

    return Group(
        name=f"embedding_bag_forward_{shape.slug}",
        title=f"EmbeddingBag, forward, {shape.name}, {threads} threads",
        unit="ms",
        higher_is_better=False,
        entries=entries,
        check=check,
        ratios=[
            Ratio(
                f"{shape.name}: vecsmith / torch",
                "vecsmith",
                "torch",
                1.5 if shape.dim == 37 else 1.15,
            ),
            Ratio(
                f"{shape.name}: vecsmith / torch on the same pages",
                "vecsmith",
                "torch, on vecsmith's huge pages",
            ),
        ],
        settings={**shape.__dict__, "bags": BAGS, "length": LENGTH, "threads": threads},
        work=dict.fromkeys(entries, work_of(ids, shape.dim)),
    )


def probe() -> Callable[..., float]:
    """The yardstick for reading random rows. Raises Skipped where it cannot be built."""
    compiler = shutil.which("c++") or shutil.which("g++")
    source = Path(__file__).parent / "gather_bandwidth.cpp"
    if not source.is_file():
        raise Skipped("the yardstick is C++ source of the repository, and not part of a wheel")
    if compiler is None:
        raise Skipped("no C++ compiler for the yardstick")
    CACHE.mkdir(parents=True, exist_ok=True)
    library = CACHE / "gather_bandwidth.so"
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    command = [compiler, *flags, str(source), "-o", str(library)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise Skipped(f"the yardstick does not compile with {compiler}")
    function = ctypes.CDLL(str(library)).gather
    function.restype = ctypes.c_float
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (pointer, number, pointer, number, ctypes.c_int, ctypes.c_int)
    return function


def bandwidth_group(threads: int) -> Group:
    """The forward pass as a fraction of what a plain reader of the same rows reaches."""
    read = probe()
    shape = Shape("uniform-64", uniform=True)
    ours, _ = layers(shape)
    ids = batches(shape)
    table = ours.weight.detach()
    gigabytes = BAGS * LENGTH * shape.dim * 4 / 1e9

    def reader(way: int) -> float:
        call = timed(
            lambda n: read(
                *(table.data_ptr(), shape.dim, ids[n].data_ptr(), ids[n].numel(), threads, way)
            )
        )
        return gigabytes / (call() / 1e3)

    def look_up() -> float:
        with torch.no_grad():
            return gigabytes / (timed(lambda n: ours(ids[n], OFFSETS))() / 1e3)

    def check() -> list[Check]:
        with torch.no_grad():
            mine = float(ours(ids[0], OFFSETS).double().sum())
        read_sum = read(
            *(table.data_ptr(), shape.dim, ids[0].data_ptr(), ids[0].numel(), threads, 4)
        )
        scale = (BAGS * LENGTH * shape.dim) ** 0.5
        return [Check("both read the same rows", abs(mine - read_sum) < 1e-3 * scale)]

    return Group(
        name="embedding_bag_bandwidth",
        title=f"EmbeddingBag, forward, of the bandwidth of reading random rows, {threads} threads",
        unit="GB/s",
        entries={"vecsmith": look_up, "plain reader": lambda: max(reader(w) for w in range(6))},
        check=check,
        ratios=[Ratio("forward / plain reader", "vecsmith", "plain reader", 0.85)],
        settings={**shape.__dict__, "bags": BAGS, "length": LENGTH, "threads": threads},
    )


def one_hot_group(threads: int) -> Group:
    """An embedding is the product of a one-hot matrix and the table; a gather does it sooner."""
    rows, count, dim = 10_000, 1024, 64
    from vecsmith import ops

    table = torch.randn(rows, dim)
    ids = [torch.randint(0, rows, (count,)) for _ in range(BATCHES)]

    def product(n: int) -> Tensor:
        return torch.nn.functional.one_hot(ids[n], rows).to(table.dtype) @ table

    def check() -> list[Check]:
        same = torch.equal(product(0), ops.embedding(ids[0], table))
        return [Check("the product and the gather are equal", same)]

    return Group(
        name="embedding_one_hot",
        title=f"one-hot product and gather, {rows:,} x {dim}, {count} rows, {threads} threads",
        unit="ms",
        higher_is_better=False,
        entries={
            "gather": timed(lambda n: ops.embedding(ids[n], table)),
            "one-hot product": timed(product, 8),
        },
        check=check,
        ratios=[Ratio("gather / one-hot product", "gather", "one-hot product")],
        settings={"rows": rows, "dim": dim, "count": count, "threads": threads},
    )


# --- training steps -------------------------------------------------------------------------------

RULES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # vecsmith.optim, torch.optim, arguments
    "adam": ("SparseAdam", "SparseAdam", {"lr": RATE}),
    "adagrad": ("SparseAdagrad", "Adagrad", {"lr": RATE}),
    "sgd": ("SparseSGD", "SGD", {"lr": RATE}),
}
BARS = {
    ("adam", False): 18.0,
    ("adagrad", False): 14.0,
    ("sgd", False): 5.0,
    ("adam", True): 10.0,
    ("adagrad", True): 8.0,
    ("sgd", True): 4.0,
}


def step_of(module: torch.nn.Module, ids: list[Tensor], grad: Tensor, optimizer: Any = None):
    """A whole training step."""

    def step(n: int) -> None:
        module(ids[n], OFFSETS).backward(grad)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def step_group(shape: Shape, rule: str, threads: int) -> Group:
    """A rule in backward, on sparse gradients, and torch's."""
    from vecsmith import optim

    ours, theirs = layers(shape, sparse=True)
    plain, _ = layers(shape, sparse=True)
    plain.load_state_dict(ours.state_dict())
    mine, their, arguments = RULES[rule]
    optim.apply_optimizer_in_backward(getattr(optim, mine), ours.parameters(), arguments)
    ids, grad = batches(shape), torch.randn(BAGS, shape.dim)
    peer = getattr(torch.optim, their)(theirs.parameters(), **arguments)
    own = getattr(optim, mine)(plain.parameters(), **arguments)
    steps = {
        "vecsmith, in backward": step_of(ours, ids, grad),
        "vecsmith.optim": step_of(plain, ids, grad, own),
        "torch": step_of(theirs, ids, grad, peer),
    }

    def check() -> list[Check]:
        before = theirs.weight.detach().clone()
        for step in steps.values():
            for n in range(2):
                step(n)
        moved = float((theirs.weight - before).abs().max())
        found = []
        for name, module in (("in backward", ours), ("vecsmith.optim", plain)):
            error = float((module.weight - theirs.weight).detach().abs().max())
            text = f"after two steps {name} differs from torch by {error:.1e}; moved {moved:.1e}"
            found.append(Check(text, error <= 1e-3 * moved))
        return found

    state = {"adam": 2, "adagrad": 1, "sgd": 0}[rule] * shape.dim
    bar = BARS[rule, shape.uniform]
    return Group(
        name=f"embedding_bag_step_{rule}_{shape.slug}",
        title=f"EmbeddingBag, whole step, {rule}, {shape.name}, {threads} threads",
        unit="ms",
        higher_is_better=False,
        entries={name: timed(step) for name, step in steps.items()},
        check=check,
        ratios=[
            Ratio(
                f"{rule}, {shape.name}: in backward / torch", "vecsmith, in backward", "torch", bar
            ),
            Ratio(f"{rule}, {shape.name}: vecsmith.optim / torch", "vecsmith.optim", "torch"),
        ],
        settings={**shape.__dict__, "bags": BAGS, "length": LENGTH, "threads": threads},
        work=dict.fromkeys(steps, work_of(ids, shape.dim, state)),
    )


def fbgemm() -> Any:
    """FBGEMM's table-batched embeddings for training. Raises Skipped where they do not load."""
    if not usable("FBGEMM"):
        raise Skipped("fbgemm-gpu-cpu is not installed, or does not load beside this torch")
    import fbgemm_gpu.split_table_batched_embeddings_ops_training as found

    return found


def fbgemm_group(shape: Shape, threads: int) -> Group:
    """Row-wise Adagrad in backward, and FBGEMM's."""
    peer = fbgemm()
    import fbgemm_gpu
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    from vecsmith import optim

    ours, _ = layers(shape)
    arguments = {"lr": RATE, "eps": 1e-8}
    optim.apply_optimizer_in_backward(optim.RowwiseAdagrad, ours.parameters(), arguments)
    place = (peer.EmbeddingLocation.HOST, peer.ComputeDevice.CPU)
    theirs = peer.SplitTableBatchedEmbeddingBagsCodegen(
        [(shape.rows, shape.dim, *place)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=RATE,
        eps=1e-8,
    )
    weights = theirs.split_embedding_weights()[0]
    weights.data.copy_(ours.weight.detach())
    ids, grad = batches(shape), torch.randn(BAGS, shape.dim)
    ends = torch.arange(0, BAGS * LENGTH + 1, LENGTH)

    def their_step(n: int) -> None:
        theirs(ids[n], ends).backward(grad)

    step = step_of(ours, ids, grad)

    def check() -> list[Check]:
        before = ours.weight.detach().clone()
        for n in range(2):
            step(n)
            their_step(n)
        moved = float((ours.weight - before).detach().abs().max())
        error = float((ours.weight.detach() - weights).abs().max())
        text = f"after two steps the tables differ by {error:.1e}; moved {moved:.1e}"
        return [Check(text, error <= 1e-3 * moved)]

    return Group(
        name=f"embedding_bag_fbgemm_{shape.slug}",
        title=f"EmbeddingBag, whole step, row-wise Adagrad, {shape.name}, {threads} threads",
        unit="ms",
        higher_is_better=False,
        entries={"vecsmith": timed(step), "FBGEMM": timed(their_step)},
        check=check,
        ratios=[Ratio(f"{shape.name}: vecsmith / FBGEMM", "vecsmith", "FBGEMM", 1.3)],
        settings={
            **shape.__dict__,
            "threads": threads,
            "fbgemm": getattr(fbgemm_gpu, "__version__", "?"),
        },
        work=dict.fromkeys(("vecsmith", "FBGEMM"), work_of(ids, shape.dim, 1)),
    )


# --- pytest-benchmark -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference", "torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_embedding_bag(benchmark, shape: Shape, backend: str) -> None:
    from vecsmith import ops

    ours, theirs = layers(shape)
    ids = batches(shape)[0]
    benchmark.group = shape.name

    def call() -> Tensor:
        if backend == "torch":
            return theirs(ids, OFFSETS)
        return ops.embedding_bag(ids, ours.weight, OFFSETS, mode="sum", backend=backend)

    assert benchmark.pedantic(call, rounds=5, warmup_rounds=1).shape == (BAGS, shape.dim)


def jobs(threads: int, scratch: Path) -> list[Job]:
    """All groups."""
    from . import embedding_memory

    def job(label: str, make: Callable[..., Group], *arguments: Any) -> Job:
        return Job(label, lambda: make(*arguments, threads))

    made = [job(f"forward {shape.name}", forward_group, shape) for shape in SHAPES]
    made.append(job("bandwidth", bandwidth_group))
    for shape in SHAPES[:2]:
        made += [job(f"step {rule} {shape.name}", step_group, shape, rule) for rule in RULES]
        made.append(job(f"fbgemm {shape.name}", fbgemm_group, shape))
    if os.path.exists("/proc/self/clear_refs"):
        made.append(job("memory", embedding_memory.memory_group))
    made.append(job("one-hot", one_hot_group))
    made.append(Job("file", lambda: embedding_memory.file_group(threads, scratch)))
    return made


def offered(threads: int, scratch: Path) -> list[Job]:
    """What `vecsmith bench` may measure."""
    quick = [
        Job(f"forward {QUICK.name}", lambda: forward_group(QUICK, threads), True),
        Job(f"step adam {QUICK.name}", lambda: step_group(QUICK, "adam", threads), True),
        Job(f"step adagrad {QUICK.name}", lambda: step_group(QUICK, "adagrad", threads), True),
        Job(f"fbgemm {QUICK.name}", lambda: fbgemm_group(QUICK, threads), True),
    ]
    return quick + jobs(threads, scratch)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=5, corpus=False)
    options.add_argument("--only", help="names of groups that contain this")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        for job in jobs(given.threads, Path(scratch)):
            if given.only and given.only not in job.label:
                continue
            try:
                records.append(run(job.make(), given.rounds))
            except Skipped as why:
                print(f"{job.label}: {why}")
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
