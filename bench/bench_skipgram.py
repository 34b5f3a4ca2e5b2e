"""The operator `skipgram`: every backend and ISA level against the reference and against gensim.

    pytest bench/bench_skipgram.py --benchmark-enable      pytest-benchmark, one group per shape
    python -m bench.bench_skipgram                          interleaved, with ratios and JSON

Words/s count raw words of the same generated text; the reference, some thousand times slower,
trains a part of it.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from . import _peers
from ._ours import forced
from ._pytest import pytest
from ._runner import Check, Group, Job, Ratio, finish, parser, run
from .roofline import Work
from .word2vec_curves import Text, tables


@dataclass(frozen=True)
class Shape:
    """A case of the operator: V rows of dimension D, N tokens, the mode, the number of threads."""

    name: str
    rows: int = 50_000
    dim: int = 100
    tokens: int = 1_000_000
    cbow: bool = False
    shared_negatives: str = "window"
    reference_tokens: int = 500


SHAPES = (
    Shape("skipgram-100"),
    Shape("skipgram-300", dim=300),
    Shape("skipgram-100-pair", shared_negatives="pair"),
    Shape("cbow-100", cbow=True),
)
QUICK = Shape("skipgram-100-short", tokens=500_000, reference_tokens=50)


class Case:
    """One shape with its text; entries train fresh tables each time and return words/s."""

    def __init__(self, shape: Shape, threads: int) -> None:
        self.shape, self.threads = shape, threads
        self.text = Text(shape.rows, shape.tokens)
        self.start = tables(shape.rows, shape.dim)

    def train(self, backend: str, isa: str | None, tokens: int, threads: int) -> list[torch.Tensor]:
        """Trains a copy of the tables on the first ``tokens`` words."""
        from vecsmith import ops

        device = "cuda" if backend in ("cuda", "triton") else "cpu"
        work = [ops.empty_table(*table.shape, device=device).copy_(table) for table in self.start]
        text = self.text
        offsets = text.offsets[text.offsets < tokens]
        offsets = torch.cat([offsets, torch.tensor([tokens])])
        with forced(isa):
            ops.skipgram(
                *work,
                text.tokens[:tokens].to(device),
                offsets.to(device),
                keep=text.keep.to(device),
                alias=text.alias.to(device),
                cbow=self.shape.cbow,
                shared_negatives=self.shape.shared_negatives,
                words_total=self.shape.tokens,
                num_threads=threads,
                compute_loss=False,
                backend=backend,
            )
        if device == "cuda":
            torch.cuda.synchronize()
        return work

    def seconds(self, backend: str, isa: str | None, tokens: int) -> float:
        """The time of one training, copying the tables left out."""
        copies = time.perf_counter()
        [table.clone() for table in self.start]
        copies = time.perf_counter() - copies
        started = time.perf_counter()
        self.train(backend, isa, tokens, self.threads)
        return max(time.perf_counter() - started - copies, 1e-9)


def work_of_a_word(
    kept: float,
    distinct: int,
    words: int,
    *,
    dim: int,
    cbow: bool,
    window: int = 5,
    negative: int = 5,
) -> Work:
    """Of a raw word, by the parts ``kept`` of them that are not sampled away. A window of 1 ..
    ``window`` words each side has window + 1 words on average; each pair with an output row is a
    product and two additions to rows, 6 D operations; CBOW has one pair for the window, and adds
    its words up and the gradient to each. Bytes: the word, and both rows of each of the
    ``distinct`` words read and written once in a text of ``words``."""
    pairs = (1 + negative) * 6 * dim
    operations = pairs + 2 * (window + 1) * dim if cbow else (window + 1) * pairs
    return Work(4 + 4 * distinct * dim * 4 / words, kept * operations)


def backends() -> list[tuple[str, str, str | None]]:
    """(entry, backend, ISA level) of all that can run here, the reference last."""
    from vecsmith import _native

    found: list[tuple[str, str, str | None]] = [
        (f"native, {level}", "native", level) for level in reversed(_native.isa_levels())
    ]
    if torch.cuda.is_available():
        found += [("cuda", "cuda", None), ("triton", "triton", None)]
    return [*found, ("reference", "reference", None)]


def group(shape: Shape, threads: int, scratch: Path, all_levels: bool = True) -> Group:
    """The interleaved group of a shape; of the ISA levels all, or the best."""
    case = Case(shape, threads)
    entries = {}
    found = backends()
    if not all_levels:
        found = [found[0], *(b for b in found[1:] if b[1] != "native")]
    for name, backend, isa in found:
        tokens = shape.reference_tokens if backend == "reference" else shape.tokens

        def entry(backend: str = backend, isa: str | None = isa, tokens: int = tokens) -> float:
            return tokens / case.seconds(backend, isa, tokens)

        entries[name] = entry
    best = next(iter(entries))
    ratios = [Ratio(f"{shape.name}: {best} / reference", best, "reference")]
    if _peers.have_gensim():

        @functools.cache
        def peer() -> _peers.Gensim:
            path = scratch / f"{shape.name}.txt"
            with path.open("w") as out:
                ids = case.text.tokens.tolist()
                for at in range(0, len(ids), 1000):
                    out.write(" ".join(map(str, ids[at : at + 1000])) + "\n")
            return _peers.Gensim(
                path,
                threads,
                1,
                vector_size=shape.dim,
                sg=int(not shape.cbow),
                window=5,
                negative=5,
                sample=1e-4,
                min_count=1,
            )

        entries["gensim"] = lambda: peer().run()
        ratios.append(Ratio(f"{shape.name}: {best} / gensim", best, "gensim"))

    def check() -> list[Check]:
        expected = torch.cat(case.train("reference", None, shape.reference_tokens, 1))
        moved = float((expected - torch.cat(list(case.start))).abs().max())
        checks = []
        for name, backend, isa in found[:-1]:
            got = torch.cat(case.train(backend, isa, shape.reference_tokens, 1)).cpu()
            error = float((got - expected).abs().max())
            # Backends without an order of updates differ by what one step changes.
            allowed = moved * (1e-4 if backend == "native" else 0.05)
            text = f"{name} differs from the reference by {error:.1e} where it moved {moved:.1e}"
            checks.append(Check(text, error <= allowed))
        return checks

    text = case.text
    work = work_of_a_word(
        float(text.keep[text.tokens.long()].mean()),
        len(torch.unique(text.tokens)),
        shape.tokens,
        dim=shape.dim,
        cbow=shape.cbow,
    )
    return Group(
        name=f"skipgram_{shape.name.replace('-', '_')}",
        title=f"ops.skipgram, {shape.name}, {shape.rows:,} rows, {threads} threads",
        unit="raw words/s",
        entries=entries,
        check=check,
        ratios=ratios,
        settings={**shape.__dict__, "threads": threads},
        work={name: work for name in entries if name != "reference"},
    )


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {}


@pytest.mark.parametrize(
    ("name", "backend", "isa"), [pytest.param(*b, id=b[0].replace(", ", "-")) for b in backends()]
)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_skipgram(benchmark, cases, shape: Shape, name: str, backend: str, isa: str | None) -> None:
    case = cases.setdefault(shape.name, Case(shape, torch.get_num_threads()))
    tokens = shape.reference_tokens if backend == "reference" else shape.tokens
    benchmark.group = shape.name
    benchmark.extra_info.update(words=tokens, backend=backend, isa=isa)
    trained = benchmark.pedantic(
        case.train, args=(backend, isa, tokens, case.threads), rounds=3, warmup_rounds=1
    )
    assert all(torch.isfinite(table).all() for table in trained)


def offered(threads: int, scratch: Path) -> list[Job]:
    """What `vecsmith bench` may measure: words of generated text, and the docstrings here."""
    from .word2vec_speed import GROUPS, docstrings_group

    jobs = [Job(QUICK.name, lambda: group(QUICK, threads, scratch, all_levels=False), True)]
    jobs.append(Job("word2vec", lambda: docstrings_group(threads, scratch), True))
    jobs += [Job(shape.name, functools.partial(group, shape, threads, scratch)) for shape in SHAPES]
    for name in GROUPS:
        make = functools.partial(docstrings_group, threads, scratch, name, None)
        jobs.append(Job(f"word2vec {name}", make))
    return jobs


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=5, corpus=False)
    given = options.parse_args(arguments)
    for line in _peers.missing():
        if "gensim" in line:
            print(line)
    with tempfile.TemporaryDirectory() as scratch:
        records = [
            run(group(shape, given.threads, Path(scratch)), given.rounds) for shape in SHAPES
        ]
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
