"""The operator `cosine_topk`: exact nearest rows against faiss's IndexFlatIP and torch's product
and topk.

    pytest bench/bench_cosine_topk.py --benchmark-enable    pytest-benchmark, one group per shape
    python -m bench.bench_cosine_topk                        interleaved, with ratios and JSON
    python -m bench.bench_cosine_topk --levels               all held to AVX2, then to AVX-512

Vectors are drawn from a normal distribution; peers get them at unit length, so that their products
are cosines, and their own lengths cost them nothing. An index is packed before it is timed, on both
sides; with torch our side packs the vocabulary in each call, as torch scales it in each call.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from argparse import SUPPRESS
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vecsmith import CosineIndex, ops

from ._peers import have_faiss
from ._pytest import pytest
from ._rnn import timed
from ._runner import ROOT, Check, Group, Job, Ratio, finish, guarded, parser, run
from .roofline import Work


@dataclass(frozen=True)
class Shape:
    rows: int
    dim: int
    queries: int

    @property
    def name(self) -> str:
        return f"v{self.rows}_d{self.dim}_q{self.queries}"

    def work(self, k: int) -> Work:
        """All products; rows and queries as float32, and the answers. Ours are of int8 or bfloat16
        where the processor has them, then exactly: above float32's rate."""
        numbers = (self.rows + self.queries) * self.dim
        answers = 12 * self.queries * k
        return Work(4 * numbers + answers, 2 * self.rows * self.dim * self.queries)


SHAPES = (Shape(30522, 312, 8192), Shape(400_000, 300, 1024), Shape(50257, 768, 1024))
QUICK = (Shape(30522, 312, 1024), Shape(200_000, 300, 128))
SINGLE = Shape(400_000, 300, 1)
LOSS = Shape(30522, 312, 32 * 25)
# Of a machine with AMX, and of one without it or held to a level that has none.
FAISS_BARS = {(SHAPES[0], 1): 8.0, (SHAPES[0], 10): 6.0, (SHAPES[1], 1): 6.0, (SHAPES[2], 1): 6.0}
TORCH_BAR = 6.0
FAISS_BAR_VECTORS, TORCH_BAR_VECTORS = 1.3, 2.0
SINGLE_BAR, LOSS_BAR, LOSS_MEMORY_BAR = 0.9, 8.0, 20.0
# Levels, and what holds ATen, oneDNN, MKL and OpenBLAS there.
LEVELS = {
    "avx2": ("avx2", "AVX2", "AVX2", "Haswell"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512", "SkylakeX"),
}
CHECKED = 32  # queries whose answers are compared in float64


class Problem:
    """Vectors and queries, and each side's way to the nearest rows."""

    def __init__(self, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape, self.faiss_threads = shape, 1
        self.rows = torch.randn(shape.rows, shape.dim, generator=generator)
        self.queries = torch.randn(shape.queries, shape.dim, generator=generator)

    @functools.cached_property
    def index(self) -> CosineIndex:
        return CosineIndex(self.rows)

    @functools.cached_property
    def unit_queries(self) -> Tensor:
        return normalize(self.queries)

    @functools.cached_property
    def faiss_index(self):
        import faiss

        faiss.omp_set_num_threads(self.faiss_threads)
        index = faiss.IndexFlatIP(self.shape.dim)
        index.add(normalize(self.rows).numpy())
        return index

    def ours(self, k: int) -> Tensor:
        return self.index.search(self.queries, k)[1]

    def ours_at_once(self, k: int) -> Tensor:
        return ops.cosine_topk(self.queries, self.rows, k).indices

    def faiss(self, k: int) -> Tensor:
        return torch.from_numpy(self.faiss_index.search(self.unit_queries.numpy(), k)[1])

    def torch(self, k: int) -> Tensor:
        scores = normalize(self.queries) @ normalize(self.rows).T
        return scores.topk(k).indices

    def check(self, k: int, ways: dict[str, Callable[[int], Tensor]]) -> list[Check]:
        """Ours is exact; peers may be off by what float32 rounds. ways: by entry."""
        count = min(CHECKED, self.shape.queries)
        cosines = normalize(self.queries[:count].double()) @ normalize(self.rows.double()).T
        best = cosines.topk(k).values

        def one(way: Callable[[int], Tensor]) -> list[Check]:
            found = cosines.gather(1, way(k)[:count])
            limit = 1e-12 if way.__func__ in (Problem.ours, Problem.ours_at_once) else 1e-5
            worst = float((best - found).abs().max())
            what = f"{way.__name__}: {count} queries, cosines within {limit:g} of float64's"
            return [Check(what, worst <= limit)]

        return [
            check
            for entry, way in ways.items()
            for check in guarded(entry, functools.partial(one, way))
        ]


def held_checks(level: str) -> list[Check]:
    """Every side is where it is to be held."""
    from vecsmith import _native

    aten, onednn, mkl, blas = LEVELS[level]
    given = {name: os.environ.get(name) for name in environment_of(level)}
    return [
        Check(f"vecsmith is at {_native.isa_level()}", _native.isa_level() == level),
        Check(
            f"ATen is at {torch.backends.cpu.get_cpu_capability()}",
            torch.backends.cpu.get_cpu_capability() == aten.upper(),
        ),
        Check(
            f"oneDNN, MKL and OpenBLAS are held to {onednn}, {mkl} and {blas}",
            given == environment_of(level),
        ),
    ]


def environment_of(level: str) -> dict[str, str]:
    aten, onednn, mkl, blas = LEVELS[level]
    return {
        "VECSMITH_ISA": level,
        "ATEN_CPU_CAPABILITY": aten,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        "OPENBLAS_CORETYPE": blas,
    }


def search_group(shape: Shape, k: int, threads: int, held: str | None = None) -> Group:
    """An index against faiss's, and the operator against torch."""
    from vecsmith import _native

    problem = Problem(shape)
    tiles = _native.isa_level() == "amx"
    label = f"{shape.name} k={k}" + (f" held_{held}" if held else "")
    entries = {
        "vecsmith, index": timed(lambda: problem.ours(k), 3),
        "vecsmith, packing both": timed(lambda: problem.ours_at_once(k), 3),
        "torch, normalize, product, topk": timed(lambda: problem.torch(k), 1),
    }
    ways = dict(zip(entries, (problem.ours, problem.ours_at_once, problem.torch), strict=True))
    ratios = [
        Ratio(
            f"{label}: torch / vecsmith, packing both",
            "vecsmith, packing both",
            "torch, normalize, product, topk",
            TORCH_BAR if tiles else TORCH_BAR_VECTORS,
        )
    ]
    if have_faiss():
        problem.faiss_threads = threads
        entries["faiss IndexFlatIP"] = timed(lambda: problem.faiss(k), 1)
        ways["faiss IndexFlatIP"] = problem.faiss
        bar = FAISS_BARS.get((shape, k)) if tiles else FAISS_BAR_VECTORS
        ratios.insert(
            0,
            Ratio(f"{label}: faiss / vecsmith, index", "vecsmith, index", "faiss IndexFlatIP", bar),
        )
    level = f", all held to {held}" if held else ""
    return Group(
        name="cosine_topk_" + label.replace(" ", "_").replace("=", ""),
        title=f"{k} nearest of {shape.rows:,} rows of {shape.dim} by cosine, "
        f"{shape.queries:,} queries{level}, {threads} threads",
        unit="ms",
        higher_is_better=False,
        entries=entries,
        check=lambda: [*problem.check(k, ways), *(held_checks(held) if held else [])],
        ratios=ratios,
        settings={**shape.__dict__, "k": k, "threads": threads},
        work=dict.fromkeys(entries, shape.work(k)),
    )


def single_group(threads: int) -> Group:
    """One query, as somebody who types asks it, against a read of the vectors in bfloat16."""
    problem = Problem(SINGLE)
    words = problem.rows.bfloat16().view(torch.int32).view(-1)
    read = "torch reads the rows in bfloat16"
    return Group(
        name="cosine_topk_single",
        title=f"The nearest of {SINGLE.rows:,} rows of {SINGLE.dim}, one query, {threads} threads",
        unit="ms",
        higher_is_better=False,
        entries={
            "vecsmith, index": timed(lambda: problem.ours(1), 15),
            read: timed(lambda: words.max(), 15),
        },
        check=lambda: problem.check(1, {"vecsmith, index": problem.ours}),
        ratios=[Ratio("a read / vecsmith, index", "vecsmith, index", read, SINGLE_BAR)],
        settings={**SINGLE.__dict__, "k": 1, "threads": threads},
        work={"vecsmith, index": SINGLE.work(1)},
    )


class MatchLoss:
    """The squared error of the outputs whose nearest row is not the target, forward and backward;
    the embeddings do not learn."""

    def __init__(self, shape: Shape = LOSS) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embeddings = torch.randn(shape.rows, shape.dim, generator=generator)
        self.targets = torch.randint(shape.rows, (shape.queries,), generator=generator)
        # About half of them find their target.
        noise = torch.randn(shape.queries, shape.dim, generator=generator)
        self.outputs = (self.embeddings[self.targets] + 4.2 * noise).requires_grad_()

    @functools.cached_property
    def index(self) -> ops.PackedRows:
        return ops.PackedRows(self.embeddings)

    def _loss(self, matched: Tensor) -> Tensor:
        missed = (~matched).nonzero().squeeze(1)
        targets = self.embeddings[self.targets[missed]]
        return (self.outputs[missed] - targets).square().sum(1).mean()

    def _gradient(self, loss: Tensor) -> tuple[float, Tensor]:
        (gradient,) = torch.autograd.grad(loss, self.outputs)
        return loss.item(), gradient

    def ours(self) -> tuple[float, Tensor]:
        with torch.no_grad():
            matched = ops.match_mask(self.outputs, self.index, self.targets)
        return self._gradient(self._loss(matched))

    def torch(self) -> tuple[float, Tensor]:
        with torch.no_grad():
            scores = normalize(self.outputs) @ normalize(self.embeddings).T
            nearest = scores.argmax(1)
        return self._gradient(self._loss(nearest == self.targets))

    def check(self) -> list[Check]:
        (ours, mine), (theirs, other) = self.ours(), self.torch()
        return [
            Check(f"loss {ours:.6g} and {theirs:.6g}", abs(ours - theirs) <= 1e-5 * abs(theirs)),
            Check("gradients are equal", bool(torch.allclose(mine, other, atol=1e-7))),
        ]


def loss_group(threads: int) -> Group:
    loss = MatchLoss()
    return Group(
        name="cosine_topk_match_loss",
        title=f"Match loss, forward and backward, B=32 T=25 of {LOSS.rows:,} rows of {LOSS.dim}, "
        f"{threads} threads",
        unit="ms",
        higher_is_better=False,
        entries={"vecsmith": timed(loss.ours, 5), "torch": timed(loss.torch, 3)},
        check=loss.check,
        ratios=[Ratio("match loss: torch / vecsmith", "vecsmith", "torch", LOSS_BAR)],
        settings={**LOSS.__dict__, "threads": threads},
        work=dict.fromkeys(("vecsmith", "torch"), LOSS.work(0)),
    )


_MEMORY = """
import ctypes, sys, torch
from .bench_cosine_topk import MatchLoss, Shape
side, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
getattr(MatchLoss(Shape(512, 32, 64)), side)()  # libraries and threads are there
loss = MatchLoss()
if side == "ours":
    loss.index.pack()
step = getattr(loss, side)
def field(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name + ":"))
    return int(line.split()[1])
ctypes.CDLL(None).malloc_trim(0)
before = field("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
kept = step()
gradient = kept[1].numel() * 4 / 1024
print((field("VmHWM") - before - gradient) / 1024)
"""


def loss_memory_group(threads: int) -> Group:
    """Peak memory beyond inputs, outputs, gradients and the packed index, in fresh processes."""

    def measure(side: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", f"__package__ = {__package__!r}\n{_MEMORY}", side, str(threads)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        return float(done.stdout)

    return Group(
        name="cosine_topk_match_loss_memory",
        title="Match loss, peak memory beyond inputs, gradients and the packed index, "
        f"B=32 T=25 of {LOSS.rows:,} rows of {LOSS.dim}, {threads} threads",
        unit="MB",
        higher_is_better=False,
        entries={"vecsmith": lambda: measure("ours"), "torch": lambda: measure("torch")},
        check=MatchLoss().check,
        ratios=[Ratio("match loss memory: torch / vecsmith", "vecsmith", "torch", LOSS_MEMORY_BAR)],
        settings={**LOSS.__dict__, "threads": threads},
    )


# --- pytest-benchmark -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["ours", "ours_at_once", "faiss", "torch"])
@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_cosine_topk(benchmark, shape: Shape, k: int, way: str) -> None:
    if way == "faiss":
        pytest.importorskip("faiss")
    problem = Problem(shape)
    benchmark.group = f"{shape.name} k={k}"
    benchmark.pedantic(getattr(problem, way), (k,), rounds=3, warmup_rounds=1)


# --- all of them ----------------------------------------------------------------------------------


def jobs(threads: int) -> dict[str, Callable[[], Group]]:
    made: dict[str, Callable[[], Group]] = {
        f"{shape.name} k={k}": functools.partial(search_group, shape, k, threads)
        for shape in SHAPES
        for k in (1, 10)
    }
    made["single"] = functools.partial(single_group, threads)
    made["match loss"] = functools.partial(loss_group, threads)
    if os.path.exists("/proc/self/clear_refs"):
        made["match loss memory"] = functools.partial(loss_memory_group, threads)
    return made


def offered(threads: int, scratch: Path) -> list[Job]:
    """What `vecsmith bench` may measure."""
    quick = [
        Job(f"{s.name} k=10", functools.partial(search_group, s, 10, threads), True) for s in QUICK
    ]
    found = jobs(threads).items()
    return [*quick, *(Job(label, make, label == "match loss") for label, make in found)]


def run_levels(arguments: list[str]) -> int:
    """A process for each level that this machine has; every library looks at its variable once."""
    from vecsmith import _native

    status = 0
    for level in LEVELS:
        if level not in _native.isa_levels():
            print(f"{level}: not on this machine")
            continue
        command = [
            sys.executable,
            "-m",
            f"{__package__}.bench_cosine_topk",
            "--held",
            level,
            *arguments,
        ]
        environment = {**os.environ, **environment_of(level)}
        status |= subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
    return status


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=3, corpus=False)
    options.add_argument("--only", help="groups whose label contains this")
    options.add_argument("--levels", action="store_true", help="all sides held to ISA levels")
    options.add_argument("--held", choices=LEVELS, help=SUPPRESS)
    given = options.parse_args(arguments)
    if given.levels:
        passed_on = [f"--rounds={given.rounds}", f"--threads={given.threads}"]
        passed_on += ["--no-write"] if given.no_write else []
        passed_on += ["--json"] if given.json else []
        return run_levels([*passed_on, *([f"--only={given.only}"] if given.only else [])])
    torch.set_num_threads(given.threads)
    if given.held:
        chosen = {
            f"{SHAPES[0].name} k={k}": functools.partial(
                search_group, SHAPES[0], k, given.threads, given.held
            )
            for k in (1, 10)
        }
    else:
        chosen = jobs(given.threads)
    records = [
        run(make(), given.rounds)
        for label, make in chosen.items()
        if not given.only or given.only in label
    ]
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
