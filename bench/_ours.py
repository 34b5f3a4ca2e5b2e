"""Our side of the benchmarks: training in each variant, and its check against the reference."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ._runner import ROOT, Check


def _user_cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "vecsmith" / "bench"


# Of the checkout; where there is none, the user's.
CACHE = ROOT / "build" / "bench" if ROOT else _user_cache()
_SAMPLE_TOKENS = 120  # the reference trains some tens of windows a second
_ALLOWED = 1e-4


def corpus_path(given: Path | None) -> Path:
    """The text to measure on: the given file, or the docstrings on this machine as a file."""
    if given is not None:
        if not given.is_file():
            raise FileNotFoundError(f"--corpus: expected a file; got {given}")
        return given
    path = CACHE / "docstrings.txt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        write_docstrings(path)
    return path


def write_docstrings(path: Path, most: int | None = None) -> None:
    """The docstrings on this machine as lines of a file, no more than about ``most`` words."""
    from vecsmith.data.docstrings import docstring_sentences

    part, written = path.with_suffix(".part"), 0
    with part.open("w", encoding="utf-8") as out:
        for sentence in docstring_sentences():
            out.write(" ".join(sentence) + "\n")
            written += len(sentence)
            if most is not None and written >= most:
                break
    part.rename(path)


def build_corpus(path: Path, min_count: int = 5, folder: Path | None = None):
    """The encoded text; kept in ``folder`` (None: that of the caches), and reused."""
    from vecsmith.data import Corpus

    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    kept = (folder or CACHE) / f"corpus-{key}-{min_count}"
    return Corpus.build(str(path), kept, min_count=min_count)


@contextlib.contextmanager
def forced(isa: str | None = None, deterministic: bool = False) -> Iterator[None]:
    """Runs the body at an ISA level, or in deterministic mode."""
    from vecsmith import _native

    level = _native.isa_level()
    mode = torch.are_deterministic_algorithms_enabled()
    if isa is not None:
        _native.set_isa_level(isa)
    torch.use_deterministic_algorithms(deterministic or mode)
    try:
        yield
    finally:
        _native.set_isa_level(level)
        torch.use_deterministic_algorithms(mode)


@dataclass
class Ours:
    """vecsmith.Word2Vec on an encoded text. :meth:`run` returns raw words/s of one training.

    settings: constructor arguments of Word2Vec.
    """

    corpus: object
    threads: int
    epochs: int
    isa: str | None = None
    deterministic: bool = False
    settings: dict[str, object] = field(default_factory=dict)
    model: object = None

    def run(self) -> float:
        from vecsmith import Word2Vec

        model = Word2Vec(workers=self.threads, epochs=self.epochs, progress=False, **self.settings)
        model.build_vocab(self.corpus)
        with forced(self.isa, self.deterministic):
            started = time.perf_counter()
            model.train(self.corpus)
            seconds = time.perf_counter() - started
        self.model = model
        return self.corpus.raw_words * self.epochs / seconds

    def vectors(self) -> tuple[list[str], np.ndarray]:
        """The vectors of the last run (of a new one if there was none)."""
        if self.model is None:
            self.run()
        return list(self.model.wv.index_to_key), np.array(self.model.wv.vectors)

    def check(self, what: str) -> Check:
        """The operator against the reference: the same tables, the first tokens of the same text,
        one worker, fp64 there. The tests hold it to the rounding of fp32; this sees that what is
        timed is what is tested."""
        from vecsmith import ops

        get = self.settings.get
        vocabulary, dim = self.corpus.vocabulary, int(get("vector_size", 100))
        negative, hs = int(get("negative", 5)), bool(get("hs", 0))
        tokens = self.corpus.tokens[:_SAMPLE_TOKENS].clone()
        rows, local = tokens.unique(return_inverse=True)
        # The sentence in a vocabulary of its own, so that fp64 tables stay small.
        tokens = local.to(torch.int32)
        counts = vocabulary.counts[rows.numpy()]
        order = np.argsort(-counts, kind="stable")
        rank = torch.from_numpy(np.argsort(order)).to(torch.int32)
        small = type(vocabulary)(
            [vocabulary.words[i] for i in rows.numpy()[order]], np.ascontiguousarray(counts[order])
        )
        tokens = rank[tokens.long()]
        offsets = torch.tensor([0, tokens.numel()])
        generator = torch.Generator().manual_seed(1)
        tables = [
            (torch.rand(max(n, 1), dim, generator=generator) - 0.5) * 0.4
            for n in (len(small), len(small), len(small) - 1)
        ]
        arguments = {
            "window": int(get("window", 5)),
            "negative": negative,
            "cbow": not get("sg", 0),
            "shared_negatives": get("shared_negatives", "window"),
            "keep": small.keep_probabilities(float(get("sample", 1e-3))),
            "alias": small.alias_table(0.75) if negative else None,
            "sync_every": 16 if self.deterministic else 0,
            "num_threads": 1,
        }
        if hs:
            names = ("path_offsets", "path_nodes", "path_codes")
            arguments.update(zip(names, small.huffman_tree(), strict=True))

        def train(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
            work = [table.to(dtype).clone() for table in tables]
            with forced(self.isa):
                ops.skipgram(
                    work[0],
                    work[1] if negative else None,
                    tokens,
                    offsets,
                    tree_table=work[2] if hs else None,
                    backend=backend,
                    **arguments,
                )
            return [table.double() for table in work]

        exact = train("reference", torch.float64)
        native = train("native", torch.float32)
        moved = max(float((a - b.double()).abs().max()) for a, b in zip(exact, tables, strict=True))
        error = max(float((a - b).abs().max()) for a, b in zip(native, exact, strict=True))
        text = (
            f"{what}: differs from the fp64 reference by {error:.1e} after {tokens.numel()} words "
            f"that moved the tables by {moved:.1e} (at most {_ALLOWED:g} of that)"
        )
        return Check(text, error <= _ALLOWED * moved)
