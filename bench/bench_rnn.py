"""The operator `rnn`: forward and backward of recurrent layers against torch.nn's.

    pytest bench/bench_rnn.py --benchmark-enable    pytest-benchmark, one group per shape
    python -m bench.bench_rnn                        interleaved, with ratios and JSON
    python -m bench.bench_rnn --levels               both held to AVX2, then to AVX-512

A run is the forward pass and the backward pass with given gradients of the output, the input's
gradient included, in float32 ("highest"), where the title says nothing else. The settings of a
record say what bounds it on this machine (`ceiling`), the time that this alone would take
(`floor_ms`), and what part of our time that is (`fraction`).
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from argparse import SUPPRESS
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ._pytest import pytest
from ._rnn import (
    BF16,
    CELLS,
    FLOAT,
    HIGH,
    Ceiling,
    Numbers,
    Problem,
    Shape,
    Steps,
    ceiling,
    step_ceiling,
    timed,
)
from ._runner import ROOT, Check, Group, Job, Ratio, finish, parser, run, table
from .roofline import Work

SHAPES = (
    Shape(256, 256, 32, 64),
    Shape(312, 1024, 32, 25),
    Shape(128, 512, 32, 25),
    Shape(512, 512, 1, 100),
    Shape(256, 256, 32, 64, uneven=True),
)
KINDS = ("LSTM", "GRU", "RNN")
# Floats at "highest", at "high" against torch's floats, bfloat16 against torch's bfloat16.
BARS = {
    ("LSTM", "i256_h256_b32_t64"): {"highest": 1.4, "high": 3.0, "bf16": 2.0},
    ("LSTM", "i312_h1024_b32_t25"): {"highest": 1.2, "high": 2.0, "bf16": 2.0},
    ("LSTM", "i128_h512_b32_t25"): {"highest": 1.3, "high": 2.5, "bf16": 2.0},
    ("LSTM", "i512_h512_b1_t100"): {"highest": 1.5, "bf16": 6.0},
    ("LSTM", "i256_h256_b32_t64_lengths"): {"highest": 2.5, "high": 5.0},
    ("GRU", "i256_h256_b32_t64"): {"highest": 2.0, "high": 3.5, "bf16": 6.0},
    ("GRU", "i312_h1024_b32_t25"): {"highest": 1.5, "high": 2.5, "bf16": 4.0},
    ("GRU", "i128_h512_b32_t25"): {"highest": 1.8, "high": 3.0, "bf16": 4.0},
    ("GRU", "i512_h512_b1_t100"): {"highest": 4.0, "bf16": 8.0},
    ("GRU", "i256_h256_b32_t64_lengths"): {"highest": 2.5, "high": 5.0},
    ("GRU reset-before", "i256_h256_b32_t64"): {"highest": 8.0},
    ("GRU reset-before", "i512_h512_b1_t100"): {"highest": 8.0},
}
STEP_BAR = 2.0  # of single cells in float32
STEP_SIZE = 512
MEMORY_SHAPE = Shape(512, 512, 64, 200)
# Levels, and what holds ATen, oneDNN and MKL there.
LEVELS = {"avx2": ("avx2", "AVX2", "AVX2"), "avx512": ("avx512", "AVX512_CORE", "AVX512")}


# What bounds a group, where that is known.
Bounded = tuple[Group, Ceiling | None]


def label_of(kind: str, what: str, *endings: str) -> str:
    """What --only looks at, and what a ratio is called; the group's name comes of it."""
    return " ".join([kind, what, *endings])


def name_of(label: str) -> str:
    return "rnn_" + re.sub(r"[^a-z0-9]+", "_", label.lower())


def group_of(
    kind: str,
    shape: Shape,
    threads: int,
    numbers: Numbers = FLOAT,
    *,
    backward: bool = True,
    held: str | None = None,
) -> Bounded:
    """A layer over sequences. held: the level that this process and torch are held to."""
    problem = Problem(kind, shape, numbers)
    is_loop = CELLS[kind] == "gru_reset_before"
    peer = "loop in PyTorch" if is_loop else "torch, packed" if shape.uneven else "torch"
    endings = [*([] if backward else ["inference"]), *([f"held_{held}"] if held else [])]
    label = label_of(kind, shape.name, *numbers.endings, *endings)
    what = "forward and backward" if backward else "forward alone, no gradients"
    level = f", both held to {held}" if held else ""
    bar = 1.0 if held else BARS.get((kind, shape.name), {}).get(numbers.name) if backward else None

    def entry(output: Callable[[], torch.Tensor]) -> Callable[[], float]:
        call = problem.gradients if backward else problem.forward
        return timed(lambda: call(output))

    entries = {"vecsmith": entry(problem.output), peer: entry(problem.torch_output)}
    group = Group(
        name=name_of(label),
        title=f"{kind}, {what}, {shape.name.replace('_', ' ')}{numbers.words}{level}, "
        f"{threads} threads",
        unit="ms",
        higher_is_better=False,
        entries=entries,
        check=lambda: [*problem.check(backward), *(held_checks(held) if held else [])],
        ratios=[Ratio(f"{label}: vecsmith / {peer}", "vecsmith", peer, bar)],
        settings={**shape.__dict__, "threads": threads},
        work=dict.fromkeys(entries, work_of(problem, backward)),
    )
    return group, ceiling(problem, backward)


def work_of(problem: Problem, backward: bool) -> Work:
    """The products of all steps; input, parameters and output, and a gradient of each. That one row
    reads the recurrent weight from a cache in every step is in ``ceiling`` and not here."""
    gates, hidden = problem.parameters()[1].shape
    passes = 3 if backward else 1
    numbers = sum(p.numel() for p in problem.parameters())
    numbers += problem.rows * (problem.shape.inputs + hidden)
    itemsize = problem.numbers.dtype.itemsize
    return Work(
        numbers * itemsize * (2 if backward else 1),
        2 * problem.rows * gates * (problem.shape.inputs + hidden) * passes,
    )


def held_checks(level: str) -> list[Check]:
    """Both sides are where they are to be held."""
    from vecsmith import _native

    aten, onednn, mkl = LEVELS[level]
    found = torch.backends.cpu.get_cpu_capability()
    given = (os.environ.get("ONEDNN_MAX_CPU_ISA"), os.environ.get("MKL_ENABLE_INSTRUCTIONS"))
    return [
        Check(f"vecsmith is at {_native.isa_level()}", _native.isa_level() == level),
        Check(f"ATen is at {found}", found == aten.upper()),
        Check(f"oneDNN and MKL are held to {given[0]} and {given[1]}", given == (onednn, mkl)),
    ]


def step_group(kind: str, threads: int, numbers: Numbers = FLOAT) -> Bounded:
    """Single cells, one row, one step at a time, as in decoding."""
    steps = Steps(kind, STEP_SIZE, numbers.dtype)
    label = label_of(kind, "step", *numbers.endings)
    per_step = 1e6 / steps.count
    bar = STEP_BAR if numbers == FLOAT else None
    group = Group(
        name=name_of(label),
        title=f"{kind}Cell, one row, one step at a time, no gradients, i{STEP_SIZE} h{STEP_SIZE}"
        f"{numbers.words}, {threads} threads",
        unit="us",
        higher_is_better=False,
        entries={
            "vecsmith": timed(lambda: steps.loop(steps.ours), scale=per_step),
            "torch": timed(lambda: steps.loop(steps.theirs), scale=per_step),
        },
        check=lambda: steps.check(numbers),
        ratios=[Ratio(f"{label}: vecsmith / torch", "vecsmith", "torch", bar)],
        settings={"inputs": STEP_SIZE, "hidden": STEP_SIZE, "batch": 1, "threads": threads},
    )
    return group, step_ceiling(steps)


# --- memory ---------------------------------------------------------------------------------------

_MEMORY = """
import ctypes, importlib, sys, torch
library, kind, dtype, threads, *sizes = sys.argv[1:]
torch.set_num_threads(int(threads))
dtype = getattr(torch, dtype)
inputs, hidden, batch, steps = map(int, sizes)
make = getattr(importlib.import_module(library), kind)
def trainer(inputs, hidden, batch, steps):
    layer = make(inputs, hidden, dtype=dtype)
    x = torch.randn(steps, batch, inputs, dtype=dtype).requires_grad_()
    grad = torch.randn(steps, batch, hidden, dtype=dtype)
    def step():
        layer.zero_grad()
        x.grad = None
        layer(x)[0].backward(grad)
    return step
def field(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name + ":"))
    return int(line.split()[1])
trainer(64, 64, 8, 4)()  # libraries and threads are there
step = trainer(inputs, hidden, batch, steps)
ctypes.CDLL(None).malloc_trim(0)  # what was freed is not at hand for the steps
before = field("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
for _ in range(2):
    step()
print((field("VmHWM") - before) / 1024)
"""


def memory_group(kind: str, threads: int, numbers: Numbers = FLOAT) -> Bounded:
    """Peak memory of training steps beyond the layer, the input and the gradient of the output, in
    fresh processes (Linux)."""
    shape = MEMORY_SHAPE

    def measure(library: str) -> float:
        sizes = (shape.inputs, shape.hidden, shape.batch, shape.steps)
        dtype = str(numbers.dtype).removeprefix("torch.")
        arguments = (library, kind, dtype, *map(str, (threads, *sizes)))
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        return float(done.stdout)

    label = label_of(kind, "memory", *numbers.endings)
    group = Group(
        name=name_of(label),
        title=f"{kind}, peak memory of training steps beyond layer, input and gradient of the "
        f"output, {shape.name.replace('_', ' ')}{numbers.words}, {threads} threads",
        unit="MB",
        higher_is_better=False,
        entries={
            "vecsmith": lambda: measure("vecsmith.nn"),
            "torch": lambda: measure("torch.nn"),
        },
        # In float64 all steps would take longer than what is measured.
        check=lambda: Problem(kind, replace(shape, steps=25), numbers).check(),
        ratios=[Ratio(f"{label}: torch / vecsmith", "vecsmith", "torch", 1.0)],
        settings={**shape.__dict__, "threads": threads, "training_steps": 2},
    )
    return group, None


# --- pytest-benchmark -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference", "torch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_rnn(benchmark, shape: Shape, kind: str, backend: str) -> None:
    problem = Problem(kind, shape)
    benchmark.group = f"{kind} {shape.name}"
    output = problem.torch_output if backend == "torch" else lambda: problem.output(backend)
    benchmark.pedantic(lambda: problem.gradients(output), rounds=3, warmup_rounds=1)


# --- all of them ----------------------------------------------------------------------------------

Labeled = tuple[str, Callable[[], Bounded]]


def jobs(threads: int) -> list[Labeled]:
    """Labels, and groups that are made when their turn has come."""
    made: list[Labeled] = []

    def layer(kind: str, shape: Shape, numbers: Numbers = FLOAT, backward: bool = True) -> None:
        label = label_of(kind, shape.name, *numbers.endings, *([] if backward else ["inference"]))
        make = lambda: group_of(kind, shape, threads, numbers, backward=backward)  # noqa: E731
        made.append((label, make))

    for shape in SHAPES:
        for kind in KINDS:
            layer(kind, shape)
    for numbers in (HIGH, BF16):
        for (kind, name), bars in BARS.items():
            if numbers.name in bars:
                layer(kind, next(shape for shape in SHAPES if shape.name == name), numbers)
    for shape in SHAPES[:4]:
        for kind in ("LSTM", "GRU"):
            layer(kind, shape, backward=False)
    for shape in (SHAPES[0], SHAPES[3]):
        layer("GRU reset-before", shape)
    others = {"step": step_group}
    if os.path.exists("/proc/self/clear_refs"):
        others["memory"] = memory_group
    for what, group in others.items():
        for kind in ("LSTM", "GRU"):
            for numbers in (FLOAT, BF16):
                make = functools.partial(group, kind, threads, numbers)
                made.append((label_of(kind, what, *numbers.endings), make))
    return made


QUICK = (
    "LSTM i256_h256_b32_t64",
    "GRU i256_h256_b32_t64",
    "LSTM i512_h512_b1_t100",
    "LSTM i256_h256_b32_t64_lengths",
)


def offered(threads: int, scratch: Path) -> list[Job]:
    """What `vecsmith bench` may measure."""
    return [
        Job(label, lambda make=make: make()[0], label in QUICK) for label, make in jobs(threads)
    ]


def held_jobs(threads: int, level: str) -> list[Labeled]:
    """Of a process that is held to a level."""
    return [
        (
            label_of(kind, shape.name, f"held_{level}"),
            functools.partial(group_of, kind, shape, threads, held=level),
        )
        for shape in SHAPES[:3]
        for kind in ("LSTM", "GRU")
    ]


def run_levels(arguments: list[str]) -> int:
    """A process for each level that this machine has; every library looks at its variable once."""
    from vecsmith import _native

    status = 0
    for level, (aten, onednn, mkl) in LEVELS.items():
        if level not in _native.isa_levels():
            print(f"{level}: not on this machine")
            continue
        environment = {
            **os.environ,
            "VECSMITH_ISA": level,
            "ATEN_CPU_CAPABILITY": aten,
            "ONEDNN_MAX_CPU_ISA": onednn,
            "MKL_ENABLE_INSTRUCTIONS": mkl,
        }
        command = [sys.executable, "-m", f"{__package__}.bench_rnn", "--held", level, *arguments]
        status |= subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
    return status


def limit(record: dict[str, Any], bound: Ceiling) -> list[str]:
    """Writes into the settings of a record how near it is to its ceiling; a row of that."""
    unit, settings = record["unit"], record["settings"]
    floor = bound.seconds * {"ms": 1e3, "us": 1e6}[unit]
    fraction = floor / record["entries"]["vecsmith"]["median"]
    settings["ceiling"] = bound.words
    settings[f"floor_{unit}"] = float(f"{floor:.3g}")
    settings["fraction"] = round(fraction, 2)
    return [record["name"], f"{floor:.3g} {unit}", f"{fraction:.0%}", bound.words]


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=5, corpus=False)
    options.add_argument(
        "--only", help="groups whose label contains this, as 'LSTM i256_h256_b32_t64 bf16'"
    )
    options.add_argument("--levels", action="store_true", help="both sides held to ISA levels")
    options.add_argument("--held", choices=LEVELS, help=SUPPRESS)
    given = options.parse_args(arguments)
    if given.levels:
        passed_on = [f"--rounds={given.rounds}", f"--threads={given.threads}"]
        passed_on += ["--no-write"] if given.no_write else []
        passed_on += ["--json"] if given.json else []
        return run_levels([*passed_on, *([f"--only={given.only}"] if given.only else [])])
    torch.set_num_threads(given.threads)
    chosen = held_jobs(given.threads, given.held) if given.held else jobs(given.threads)
    records, bounds = [], []
    for label, make in chosen:
        if given.only and given.only not in label:
            continue
        group, bound = make()
        if bound is not None:
            bound.measure()
        fresh = group.unit == "MB"  # processes of their own: nothing to warm, and three are enough
        rounds = min(given.rounds, 3) if fresh else given.rounds
        records.append(run(group, rounds, warmup=not fresh))
        bounds.append(bound)
    pairs = [(r, b) for r, b in zip(records, bounds, strict=True) if b is not None]
    if pairs:
        print(table([["", "floor", "of our time", "ceiling"], *(limit(r, b) for r, b in pairs)]))
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
