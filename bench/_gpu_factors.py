"""The operators on matrices of ratings on a GPU: `als_solve` against the same systems in plain
PyTorch and against implicit's conjugate gradients, `factor_sgd` against our own processor,
`spmm` against cuSPARSE by torch, `hals_sweep` against the reference.

Cells are drawn so that rows and columns are log-normal in length, with values 1..5.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._gpu_group import GpuGroup, Problem, Work, have, timed
from ._runner import Check, Ratio

ALPHA, REGULARIZATION = 10.0, 0.01
IMPLICIT_BAR = 5.0  # at 128 factors
_SOLVED = 48  # rows whose systems are solved in float64
_LOSS_ITERATIONS = 2
# Batches of larger systems are some sixteen rows each: thousands of them, and minutes.
_MOST_IN_BATCHES = 256


@dataclass(frozen=True)
class Cells:
    """Cells as they are drawn, as compressed rows: int64 indptr and int32 indices."""

    indptr: Tensor
    indices: Tensor
    values: Tensor
    shape: tuple[int, int]

    def on(self, device: str) -> Any:
        from vecsmith.ops import Cells as Checked

        parts = (t.to(device) for t in (self.indptr, self.indices, self.values))
        return Checked(*parts, self.shape)

    def transposed(self) -> Cells:
        rows = torch.repeat_interleave(torch.arange(self.shape[0]), self.indptr.diff())
        order = torch.argsort(self.indices, stable=True)
        counts = torch.bincount(self.indices, minlength=self.shape[1])
        indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        shape = (self.shape[1], self.shape[0])
        return Cells(indptr, rows[order].int(), self.values[order], shape)


@functools.lru_cache(2)
def drawn(rows: int, columns: int, cells: int, skew: float = 1.0) -> Cells:
    draw = np.random.default_rng(0)
    weights = [np.exp(draw.normal(0, skew, n)) for n in (rows, columns)]
    at, to = (np.searchsorted(np.cumsum(w / w.sum()), draw.random(cells)) for w in weights)
    keys = np.sort(np.minimum(at, rows - 1) * columns + np.minimum(to, columns - 1))
    keys = keys[np.diff(keys, prepend=-1) > 0]  # np.unique takes ten times as long
    counts = np.bincount(keys // columns, minlength=rows)
    values = draw.integers(1, 6, len(keys)).astype(np.float32)
    return Cells(
        torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
        torch.from_numpy((keys % columns).astype(np.int32)),
        torch.from_numpy(values),
        (rows, columns),
    )


# About as long as Gowalla's and ten times MovieLens-1M's.
LIKES = functools.partial(drawn, 29_858, 40_981, 1_000_000)
RATINGS = functools.partial(drawn, 60_400, 37_060, 10_000_000)
FEW = functools.partial(drawn, 30, 20, 120)


# --- als_solve ------------------------------------------------------------------------------------


class Als:
    """A matrix and its transpose on a device, and factors."""

    def __init__(self, cells: Cells, factors: int, device: str) -> None:
        self.cells, self.factors, self.device = cells, factors, device
        self.sides = (cells.on(device), cells.transposed().on(device))
        self.start = self._start()
        self.tables = [table.to(device, copy=True) for table in self.start]

    def _start(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        scale = 1 / self.factors**0.5
        return [torch.randn(n, self.factors, generator=generator) * scale for n in self.cells.shape]

    def iterate(
        self, backend: str, method: str, tables: list[Tensor] | None = None, sides: Any = None
    ) -> None:
        """Both half-steps."""
        from vecsmith import ops

        rows, columns = tables or self.tables
        how = {"regularization": REGULARIZATION, "alpha": ALPHA, "method": method}
        by_row, by_column = sides or self.sides
        ops.als_solve(by_row, columns, out=rows, backend=backend, **how)
        ops.als_solve(by_column, rows, out=columns, backend=backend, **how)

    @functools.cached_property
    def implicit(self) -> Callable[[], float]:
        """Milliseconds of an iteration of implicit's conjugate gradients on the GPU."""
        from implicit.gpu.als import AlternatingLeastSquares
        from scipy import sparse

        indptr, indices, values = (
            t.numpy() for t in (self.cells.indptr, self.cells.indices, self.cells.values)
        )
        # Its fit does not multiply by alpha.
        matrix = sparse.csr_matrix((values * ALPHA, indices, indptr), self.cells.shape)

        def measured(iterations: int = 10) -> float:
            times: list[float] = []
            model = AlternatingLeastSquares(
                factors=self.factors, regularization=REGULARIZATION, iterations=iterations + 1
            )
            # What it launched for one iteration is waited for before the next is timed.
            model.fit(
                matrix,
                show_progress=False,
                callback=lambda *_: (torch.cuda.synchronize(), times.append(time.perf_counter())),
            )
            return (times[-1] - times[0]) / iterations * 1e3

        return measured

    def check_rows(self) -> list[Check]:
        """Some rows, among them the longest, by float64."""
        from vecsmith import ops
        from vecsmith.reference import als_solve as reference

        how = {"regularization": REGULARIZATION, "alpha": ALPHA}
        lengths = self.cells.indptr.diff()
        order = lengths.argsort(descending=True)
        chosen = torch.cat([order[: _SOLVED // 4], order[:: max(1, len(order) // _SOLVED)]])
        parts = [torch.arange(*self.cells.indptr[u : u + 2].tolist()) for u in chosen.tolist()]
        indptr = torch.tensor([0, *(len(p) for p in parts)]).cumsum(0)
        own = torch.cat(parts)
        given = (indptr, self.cells.indices[own], self.cells.values[own])
        columns = self.start[1].to(self.device)
        exact = reference.als_solve(*(t.to(self.device) for t in given), columns, **how)
        found = []
        for backend in ("triton", "torch")[: 1 + (self.factors <= _MOST_IN_BATCHES)]:
            solved = ops.als_solve(self.sides[0], columns, backend=backend, **how)
            error = float((solved[chosen.to(self.device)] - exact).norm() / exact.norm())
            found.append(Check(f"{backend}: {len(chosen)} rows off by {error:.1e}", error < 1e-4))
        return found

    def check_loss(self) -> list[Check]:
        """After some iterations, on this device and on the processor."""
        from vecsmith.reference.als_solve import als_loss

        losses = []
        for device, backend in ((self.device, "triton"), ("cpu", "native")):
            tables = [table.to(device, copy=True) for table in self.start]
            sides = tuple(side.to(torch.device(device)) for side in self.sides)
            for _ in range(_LOSS_ITERATIONS):
                self.iterate(backend, "cholesky", tables, sides)
            parts = (self.cells.indptr, self.cells.indices, self.cells.values)
            how = {"regularization": REGULARIZATION, "alpha": ALPHA}
            losses.append(float(als_loss(*parts, *(t.cpu() for t in tables), **how)))
        text = f"loss {losses[0]:.7g}, the processor's {losses[1]:.7g} (within 1e-3)"
        return [Check(text, abs(losses[0] - losses[1]) <= 1e-3 * abs(losses[1]))]

    def check(self, with_loss: bool) -> list[Check]:
        return [*self.check_rows(), *(self.check_loss() if with_loss else [])]

    @property
    def work(self) -> Work:
        """The products of the systems, of as many numbers as a row has cells where those are fewer
        than factors; a Gram matrix of each side; both tables and the cells, once for each side."""
        f, total = self.factors, 0.0
        for side in self.sides:
            n = side.indptr.diff().double()
            small = n.clamp(max=f)
            # Half of a symmetric product and a factorization of each row; the rows themselves.
            total += float((small.square() * n.clamp(min=f) + small**3 / 3 + 4 * n * f).sum())
            total += side.shape[1] * f * f
        moved = 2 * 4.0 * f * sum(self.cells.shape) + 2 * 8.0 * len(self.cells.values)
        return Work(moved, total, "fp32")


def have_implicit_gpu(device: str) -> bool:
    if not device.startswith("cuda") or not have("implicit", "implicit.gpu"):
        return False
    import implicit.gpu

    return bool(implicit.gpu.HAS_CUDA)


def als_group(make: Callable[[], Cells], name: str, factors: int, device: str) -> GpuGroup:
    problem = Problem(lambda: Als(make(), factors, device))
    exact, plain, peer = "vecsmith, cholesky", "torch, batches", "implicit, conjugate gradients"

    def entry(backend: str, method: str) -> float:
        call = functools.partial(problem().iterate, backend, method)
        return timed(call, device, repeats=3, cold=False)()

    entries: dict[str, Callable[[], float]] = {
        exact: functools.partial(entry, "triton", "cholesky"),
        "vecsmith, conjugate gradients": functools.partial(entry, "triton", "cg"),
    }
    ratios = []
    if factors <= _MOST_IN_BATCHES:
        entries[plain] = functools.partial(entry, "torch", "cholesky")
        ratios.append(Ratio(f"als f={factors}: vecsmith / torch, exact", exact, plain))
    if factors <= 512 and have_implicit_gpu(device):
        entries[peer] = lambda: problem().implicit()
        bar = IMPLICIT_BAR if factors == 128 else None
        ratios.append(Ratio(f"als f={factors}: exact / implicit's CG", exact, peer, bar))
    return GpuGroup(
        name=f"gpu_als_solve_{name}_f{factors}",
        title=f"An iteration of ALS, {name}, {factors} factors",
        unit="ms",
        higher_is_better=False,
        entries=entries,
        check=lambda: problem().check(factors <= 128),
        ratios=ratios,
        settings={"data": name, "factors": factors, "alpha": ALPHA},
        least=lambda: problem().work,
    )


# --- factor_sgd -----------------------------------------------------------------------------------


class Sgd:
    """Blocks of ratings here and on the processor, and tables."""

    def __init__(self, cells: Cells, factors: int, device: str, bands: int | None) -> None:
        from vecsmith import ops

        self.cells, self.factors, self.device = cells, factors, device
        self.blocks = {"cpu": ops.factor_blocks(cells.on("cpu"), bands=bands)}
        self.blocks[device] = self.blocks["cpu"].to(device)
        self.tables = {place: self.start(place) for place in self.blocks}

    def start(self, place: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        scale = 1 / self.factors**0.5
        made = (torch.randn(n, self.factors, generator=generator) * scale for n in self.cells.shape)
        return [table.to(place, dtype, copy=True) for table in made]

    def epoch(self, place: str, backend: str, tables: list[Tensor] | None = None) -> Tensor:
        from vecsmith import ops

        given = (*(tables or self.tables[place]), self.blocks[place])
        return ops.factor_sgd(*given, mean=3.0, learning_rate=0.005, backend=backend)

    def check(self) -> list[Check]:
        """Updates follow those before them that have a row in common: the order is the same
        everywhere. The reference's cells are counted in Python: where there are many, the native
        module's stand for them, which its tests hold to it."""
        few = len(self.cells.values) < 10_000
        kind, backend = (torch.float64, "reference") if few else (torch.float32, "native")
        exact = self.start("cpu", kind)
        wanted = float(self.epoch("cpu", backend, exact))
        mine = self.start(self.device)
        loss = float(self.epoch(self.device, "triton", mine))
        off = float(torch.cat([a.cpu() - b for a, b in zip(mine, exact, strict=True)]).norm())
        moved = float((torch.cat(exact) - torch.cat(self.start("cpu", kind))).norm())
        return [
            Check(f"loss {loss:.7g}, {backend} {wanted:.7g}", abs(loss - wanted) < 1e-5 * wanted),
            Check(f"tables off by {off / moved:.1e} of what they moved", off < 1e-3 * moved),
        ]


def sgd_group(
    make: Callable[[], Cells], name: str, factors: int, device: str, bands: int | None = None
) -> GpuGroup:
    problem = Problem(lambda: Sgd(make(), factors, device, bands))

    def entry(place: str, backend: str) -> float:
        call = functools.partial(problem().epoch, place, backend)
        return timed(call, place, repeats=3, cold=False)()

    def least() -> Work:
        cells = len(problem().cells.values)
        tables = 2 * 4.0 * factors * sum(problem().cells.shape)
        return Work(tables + 12.0 * cells, 8.0 * cells * factors, "fp32")

    processor = "vecsmith, processor"
    return GpuGroup(
        name=f"gpu_factor_sgd_{name}_f{factors}",
        title=f"An epoch of SGD over ratings, {name}, {factors} factors",
        unit="ms",
        higher_is_better=False,
        entries={
            "vecsmith": functools.partial(entry, device, "triton"),
            processor: functools.partial(entry, "cpu", "native"),
        },
        check=lambda: problem().check(),
        ratios=[Ratio(f"factor_sgd f={factors}: GPU / processor", "vecsmith", processor)],
        settings={"data": name, "factors": factors, "threads": torch.get_num_threads()},
        least=least,
    )


# --- spmm and hals_sweep --------------------------------------------------------------------------


class Product:
    """A sparse matrix and a dense one."""

    def __init__(self, cells: Cells, width: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.cells = cells.on(device)
        self.dense = torch.randn(cells.shape[1], width, generator=generator).to(device)
        parts = (self.cells.indptr, self.cells.indices.long(), self.cells.values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            self.tensor = torch.sparse_csr_tensor(*parts, cells.shape, check_invariants=False)

    def ours(self) -> Tensor:
        from vecsmith import ops

        return ops.spmm(self.cells, self.dense, backend="triton")

    def torch(self) -> Tensor:
        return self.tensor @ self.dense

    def check(self) -> list[Check]:
        from vecsmith.reference import spmm as reference

        parts = (self.cells.indptr, self.cells.indices)
        exact = reference.spmm(*parts, self.cells.values.double(), self.dense.double())
        return [
            Check(f"{name}: off by {error:.1e} of the norm", error < 1e-6)
            for name, way in (("vecsmith", self.ours), ("torch", self.torch))
            if (error := float((way() - exact).norm() / exact.norm())) >= 0
        ]

    @property
    def work(self) -> Work:
        (rows, columns), width = self.cells.shape, self.dense.shape[1]
        cells = len(self.cells.values)
        parts = (self.cells.indptr, self.cells.indices, self.cells.values)
        read = sum(t.numel() * t.itemsize for t in parts)
        return Work(read + 4.0 * width * (rows + columns), 2.0 * cells * width, "fp32")


def spmm_group(make: Callable[[], Cells], name: str, width: int, device: str) -> GpuGroup:
    problem = Problem(lambda: Product(make(), width, device))
    return GpuGroup(
        name=f"gpu_spmm_{name}_b{width}",
        title=f"A sparse matrix times a dense one, {name}, {width} columns",
        unit="ms",
        higher_is_better=False,
        entries={
            "vecsmith": lambda: timed(problem().ours, device)(),
            "torch.sparse": lambda: timed(problem().torch, device)(),
        },
        check=lambda: problem().check(),
        ratios=[Ratio(f"spmm b={width}: vecsmith / torch.sparse", "vecsmith", "torch.sparse")],
        settings={"data": name, "width": width},
        least=lambda: problem().work,
    )


class Sweep:
    """A factor of random numbers, half of which want to be zero."""

    def __init__(self, rows: int, components: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*sides: int) -> Tensor:
            return torch.rand(*sides, generator=generator, dtype=torch.float64)

        other = random(components, 4 * components)
        gram = other @ other.T
        mixed = random(rows, components) @ gram * random(rows, components)
        start = random(rows, components)
        self.start, self.numerator, self.gram = (t.float().to(device) for t in (start, mixed, gram))
        self.factor = self.start.clone()

    def ours(self, factor: Tensor | None = None) -> Tensor:
        from vecsmith import ops

        factor = self.factor if factor is None else factor
        return ops.hals_sweep(factor, self.numerator, self.gram, backend="triton")

    def plain(self, factor: Tensor | None = None) -> Tensor:
        from vecsmith.reference import hals_sweep as reference

        factor = self.factor if factor is None else factor
        return reference.hals_sweep(factor, self.numerator, self.gram)

    def check(self) -> list[Check]:
        from vecsmith.reference import hals_sweep as reference

        exact = self.start.double()
        reference.hals_sweep(exact, self.numerator.double(), self.gram.double())
        found = []
        for name, way in (("vecsmith", self.ours), ("torch", self.plain)):
            factor = self.start.clone()
            way(factor)
            error = float((factor - exact).norm() / exact.norm())
            found.append(Check(f"{name}: off by {error:.1e} of the norm", error < 1e-5))
        return found


def sweep_group(rows: int, components: int, device: str) -> GpuGroup:
    problem = Problem(lambda: Sweep(rows, components, device))
    peer = "torch, a component at a time"
    return GpuGroup(
        name=f"gpu_hals_sweep_k{components}",
        title=f"A sweep over {rows:,} rows of {components} components",
        unit="ms",
        higher_is_better=False,
        entries={
            "vecsmith": lambda: timed(problem().ours, device)(),
            peer: lambda: timed(problem().plain, device, repeats=3)(),
        },
        check=lambda: problem().check(),
        ratios=[Ratio(f"hals_sweep k={components}: vecsmith / torch", "vecsmith", peer)],
        settings={"rows": rows, "components": components},
        least=lambda: Work(12.0 * rows * components, 2.0 * rows * components**2, "fp32"),
    )


def als_groups(device: str, tiny: bool = False) -> list[GpuGroup]:
    if tiny:
        return [als_group(FEW, "few", 6, device)]
    return [als_group(LIKES, "likes", f, device) for f in (64, 128, 256, 1024)]


def sgd_groups(device: str, tiny: bool = False) -> list[GpuGroup]:
    if tiny:
        return [sgd_group(FEW, "few", 5, device, 2)]
    return [sgd_group(RATINGS, "ratings", f, device) for f in (32, 128)]


def spmm_groups(device: str, tiny: bool = False) -> list[GpuGroup]:
    if tiny:
        return [spmm_group(FEW, "few", 5, device)]
    return [spmm_group(RATINGS, "ratings", width, device) for width in (16, 64)]


def sweep_groups(device: str, tiny: bool = False) -> list[GpuGroup]:
    if tiny:
        return [sweep_group(20, 5, device)]
    return [sweep_group(200_000, k, device) for k in (16, 64, 128)]
