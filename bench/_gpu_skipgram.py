"""The operator `skipgram` on a GPU: text by our CUDA and Triton kernels, and given pairs against
plain PyTorch.

Text is drawn as in the benchmarks of the processor; tables go on from one run to the next. One
block, or one program, is the reference's order, and is compared with it; the default, in which
updates race, must learn as much.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ._gpu_group import GpuGroup, Problem, Work, ours, timed
from ._runner import Check, Ratio
from .word2vec_curves import Text

_CHECKED = 120  # words: the reference trains some tens in a second
_ALLOWED = 1e-4  # of what the tables moved by
# Losses of passes whose updates race.
_RACE = 0.03


@dataclass(frozen=True)
class Shape:
    name: str
    rows: int = 200_000
    dim: int = 128
    tokens: int = 2_000_000
    window: int = 5
    negative: int = 5
    shared_negatives: str = "window"
    cbow: bool = False
    least_kept: float = 0.0  # of a word's occurrences: a short text has none to spare


SHAPES = (
    Shape("d128"),
    Shape("d300", dim=300),
    Shape("d128_pair", shared_negatives="pair"),
    Shape("d128_cbow", cbow=True),
)
TINY = Shape("tiny", rows=50, dim=12, tokens=12, window=2, negative=2, least_kept=0.7)


_text = functools.lru_cache(2)(Text)


class Training:
    """Text and tables on a device."""

    def __init__(self, shape: Shape, device: str) -> None:
        text = _text(shape.rows, shape.tokens)
        self.shape, self.device = shape, device
        self.tokens, self.offsets = text.tokens.to(device), text.offsets.to(device)
        keep = text.keep.clamp_min(shape.least_kept)
        self.keep, self.alias = keep.to(device), text.alias.to(device)
        self.survivors = float(keep[text.tokens.long()].double().sum())
        self.tables = self.start()

    def start(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        sides = (self.shape.rows, self.shape.dim)
        return [(torch.rand(sides, generator=generator) - 0.5).to(self.device) for _ in range(2)]

    def options(self) -> dict[str, object]:
        return {
            "window": self.shape.window,
            "negative": self.shape.negative,
            "shared_negatives": self.shape.shared_negatives,
            "cbow": self.shape.cbow,
            "keep": self.keep,
            "alias": self.alias,
        }

    def train(self, backend: str) -> Tensor:
        from vecsmith import ops

        return ops.skipgram(
            *(*self.tables, self.tokens, self.offsets),
            **self.options(),
            compute_loss=False,
            backend=backend,
        )

    def in_order(self, backend: str) -> list[Tensor]:
        """The tables after some words in the order of the reference, in float64."""
        work = [table.clone() for table in self.start()]
        count = min(_CHECKED, len(self.tokens))
        offsets = torch.tensor([0, count], device=self.device)
        given = (*work, None, self.tokens[:count], offsets, self.keep, self.alias, None, None, None)
        how = {
            **{k: v for k, v in self.options().items() if k not in ("keep", "alias")},
            "cbow_mean": True,
            "shrink_windows": True,
            "alpha": 0.025,
            "min_alpha": 0.0001,
            "words_before": 0,
            "words_total": count,
            "seed": 1,
            "epoch": 0,
            "first_position": 0,
            "sync_every": 0,
        }
        if backend == "cuda":
            from vecsmith.ops import _cuda_skipgram

            _cuda_skipgram.skipgram(*given, **how, blocks=1)
        elif backend == "triton":
            from vecsmith.kernels import skipgram as kernels

            kernels.skipgram(*given, **how, programs=1)
        else:
            from vecsmith.reference import skipgram as reference

            work = [table.double().cpu() for table in work]
            rest = [None if t is None else t.cpu() for t in given[2:]]
            reference.skipgram(*work, *rest, **how)
        return [table.double().cpu() for table in work]

    def losses(self, backend: str) -> list[float]:
        """Of two passes over the text with the same draws, whose updates race."""
        from vecsmith import ops

        work, losses = self.start(), []
        for _ in range(2):
            given = (*work, self.tokens, self.offsets)
            loss, terms = ops.skipgram(*given, **self.options(), backend=backend).tolist()
            losses.append(loss / terms)
        return losses

    def check(self) -> list[Check]:
        start = torch.cat(self.start()).double().cpu()
        exact = torch.cat(self.in_order("reference"))
        moved = float((exact - start).abs().max())
        backends, found = ours(self.device, cuda=True), []
        for backend in backends:
            error = float((torch.cat(self.in_order(backend)) - exact).abs().max())
            text = f"{backend}, in order: {error:.1e} from float64, moved {moved:.1e}"
            found.append(Check(text, error <= _ALLOWED * moved))
        losses = {backend: self.losses(backend) for backend in backends}
        for backend, (first, second) in losses.items():
            text = f"{backend}, updates race: loss {first:.4f}, then {second:.4f}"
            found.append(Check(text, second < first))
        last = [second for _, second in losses.values()]
        if len(last) > 1:
            text = f"the last losses are within {_RACE:.0%}"
            found.append(Check(text, max(last) <= (1 + _RACE) * min(last)))
        return found


def text_group(shape: Shape, device: str) -> GpuGroup:
    problem = Problem(lambda: Training(shape, device))

    def entry(backend: str) -> float:
        call = functools.partial(problem().train, backend)
        return shape.tokens / timed(call, device, repeats=5)() * 1e3

    backends = ours(device, cuda=True)
    what = f"skipgram {shape.name}: CUDA against Triton"
    # A center's rows are read and written once: one context row, which stays until its last window,
    # the center and its negatives. With a set of negatives for each of the window + 1 contexts that
    # there are on average, they are that many.
    sets = shape.window + 1 if shape.shared_negatives == "pair" and not shape.cbow else 1
    rows = 2 + shape.negative * sets
    return GpuGroup(
        name=f"gpu_skipgram_{shape.name}",
        title=f"skipgram, {shape.name}: {shape.rows:,} rows of {shape.dim}, {shape.tokens:,} words",
        unit="raw words/s",
        entries={f"vecsmith, {b}": functools.partial(entry, b) for b in backends},
        check=lambda: problem().check(),
        ratios=[Ratio(what, "vecsmith, cuda", "vecsmith, triton", 1.0)],
        settings=dict(shape.__dict__),
        least=lambda: Work(bytes=problem().survivors * 2 * rows * 4 * shape.dim),
        amount=shape.tokens,
        verdict=("skipgram.cu", what),
    )


# --- pairs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairShape:
    rows: int = 1_000_000
    dim: int = 128
    pairs: int = 1 << 18
    negative: int = 5


class Pairs:
    """Pairs of centers and contexts with negatives, all drawn alike."""

    def __init__(self, shape: PairShape, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.device, self.rate = device, 0.025
        size = (shape.rows, shape.dim)
        self.start = [torch.rand(size, generator=generator) - 0.5 for _ in range(2)]
        self.tables = [table.to(device, copy=True) for table in self.start]

        def ids(*sides: int) -> Tensor:
            return torch.randint(shape.rows, sides, generator=generator).to(device)

        self.centers, self.contexts = ids(shape.pairs), ids(shape.pairs)
        self.negatives = ids(shape.pairs, shape.negative)

    def ours(self, backend: str, tables: list[Tensor] | None = None) -> None:
        from vecsmith import ops

        ops.skipgram_pairs(
            *(*(tables or self.tables), self.centers, self.contexts, self.negatives),
            alpha=self.rate,
            compute_loss=False,
            backend=backend,
        )

    def torch(self, tables: list[Tensor] | None = None) -> None:
        """All pairs as one batch: what they change is computed from the tables as they were."""
        inputs, outputs = tables or self.tables
        targets = torch.cat([self.contexts[:, None], self.negatives], 1)
        x, o = inputs[self.centers], outputs[targets]
        labels = torch.zeros_like(targets, dtype=x.dtype)
        labels[:, 0] = 1
        scores = torch.einsum("nd,nkd->nk", x, o)
        gradient = self.rate * (labels - scores.sigmoid())
        gradient[:, 1:] *= targets[:, 1:] != targets[:, :1]
        inputs.index_add_(0, self.centers, torch.einsum("nk,nkd->nd", gradient, o))
        outputs.index_add_(0, targets.flatten(), (gradient[:, :, None] * x[:, None]).flatten(0, 1))

    def check(self) -> list[Check]:
        """Rows that come once alone change as in float64; with others it depends on the order."""
        exact = [table.double() for table in self.start]
        wanted = Pairs.__new__(Pairs)
        wanted.rate, wanted.device = self.rate, "cpu"
        for name in ("centers", "contexts", "negatives"):
            setattr(wanted, name, getattr(self, name).cpu())
        wanted.torch(exact)
        ids = torch.cat([wanted.contexts[:, None], wanted.negatives], 1)
        counts = torch.bincount(ids.flatten(), minlength=len(exact[1]))
        centers = torch.bincount(wanted.centers, minlength=len(exact[0]))
        alone = (counts[ids] == 1).all(1) & (centers[wanted.centers] == 1)
        rows = wanted.centers[alone], ids[alone].flatten()
        ways = {b: functools.partial(self.ours, b) for b in ours(self.device, cuda=True)}
        found = []
        for name, call in {**ways, "torch": self.torch}.items():
            work = [table.to(self.device, copy=True) for table in self.start]
            call(work)
            error = moved = 0.0
            for table, right, start, own in zip(work, exact, self.start, rows, strict=True):
                error = max(error, float((table.cpu()[own] - right[own]).abs().max()))
                moved = max(moved, float((right[own] - start[own]).abs().max()))
            text = (
                f"{name}: {error:.1e} from float64 in {int(alone.sum())} pairs, moved {moved:.1e}"
            )
            found.append(Check(text, error <= 1e-3 * moved and bool(alone.any())))
        return found


def pairs_group(shape: PairShape, device: str) -> GpuGroup:
    problem = Problem(lambda: Pairs(shape, device))

    def entry(way: str) -> float:
        made = problem()
        call = made.torch if way == "torch" else functools.partial(made.ours, way)
        return shape.pairs / timed(call, device, repeats=5)() * 1e3

    backends = ours(device, cuda=True)
    best = f"vecsmith, {backends[0]}"
    what = "skipgram pairs: CUDA against Triton"
    moved = 2 * (2 + shape.negative) * 4 * shape.dim + 8 * (2 + shape.negative)
    return GpuGroup(
        name=f"gpu_skipgram_pairs_d{shape.dim}",
        title=f"skipgram_pairs: {shape.pairs:,} pairs of {shape.rows:,} rows of {shape.dim}",
        unit="pairs/s",
        entries={
            **{f"vecsmith, {b}": functools.partial(entry, b) for b in backends},
            "torch, one batch": functools.partial(entry, "torch"),
        },
        check=lambda: problem().check(),
        ratios=[
            Ratio("skipgram pairs: vecsmith / torch", best, "torch, one batch"),
            Ratio(what, "vecsmith, cuda", "vecsmith, triton", 1.0),
        ],
        settings=dict(shape.__dict__),
        least=lambda: Work(bytes=shape.pairs * moved),
        amount=shape.pairs,
        verdict=("skipgram_pairs.cu", what),
    )


def groups(device: str, tiny: bool = False) -> list[GpuGroup]:
    if tiny:
        modes = ({}, {"shared_negatives": "pair"}, {"cbow": True})
        shapes = [Shape(**{**TINY.__dict__, "name": f"tiny{n}", **m}) for n, m in enumerate(modes)]
        return [
            *(text_group(shape, device) for shape in shapes),
            pairs_group(PairShape(400, 20, 24, 3), device),
        ]
    return [*(text_group(shape, device) for shape in SHAPES), pairs_group(PairShape(), device)]
