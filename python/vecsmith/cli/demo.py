"""``python -m vecsmith.cli.demo``: from nothing to word vectors in about a minute.

Collects the docstrings of the standard library and the installed packages, trains on them by the
public road (a text file and ``vecsmith.Word2Vec``), shows neighbors, the rate beside the PyTorch
reference and a map of the words. What it makes lies in ``demo/`` and is reused.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vecsmith import Word2Vec
    from vecsmith.data import Corpus

WORDS = (
    *("list", "file", "exception", "thread", "socket", "matrix", "json", "gradient"),
    *("directory", "regression", "graph", "password", "font", "random"),
)
# The reference goes window by window in Python: a few seconds of it give a steady rate.
REFERENCE_SECONDS = 3.0


def collect(text: Path, paths: Iterable[str | os.PathLike[str]] | None = None) -> int:
    """Write the docstrings of ``paths`` (None: of this Python) to a text file, one sentence per
    line, unless it holds them already. Returns the number of words."""
    from vecsmith.data import docstrings
    from vecsmith.io import atomic_file

    paths = docstrings._installed() if paths is None else list(paths)
    note = text.with_suffix(".source")
    source = _fingerprint(docstrings.source_files(paths))
    try:
        known, words = note.read_text().split()
        if known == source and text.exists():
            return int(words)
    except (FileNotFoundError, ValueError):
        pass
    count = 0
    with atomic_file(text, "w") as file:
        for sentence in docstrings.docstring_sentences(paths):
            count += len(sentence)
            file.write(" ".join(sentence) + "\n")
    with atomic_file(note, "w") as file:
        file.write(f"{source} {count}\n")
    return count


def _fingerprint(files: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        status = os.stat(file)
        digest.update(
            f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "replace")
        )
    return digest.hexdigest()


def reference_rate(model: Word2Vec, corpus: Corpus, seconds: float) -> tuple[float, int]:
    """(raw words/s, raw words) of the same training by the PyTorch reference, measured for a few
    seconds on the beginning of the corpus, with fresh tables and one thread: its operations are
    too small to share out, and more threads only wait for each other."""
    import torch

    from vecsmith import ops
    from vecsmith.models import _driver
    from vecsmith.models.word2vec import _initialize

    vectors = ops.empty_table(len(model.wv), model.vector_size)
    _initialize(vectors, model.seed)
    outputs = ops.empty_table(len(model.wv), model.vector_size).zero_()
    sampling = model._sampling()
    bounds = _driver.chunk_bounds(corpus.offsets, 100)
    tokens, threads, started = 0, torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        for i, chunk in enumerate(itertools.pairwise(bounds)):
            # A piece of its own: the reference checks all tokens that it is given.
            piece, offsets, position = _driver._inputs(corpus, chunk, model.device, whole=False)
            ops.skipgram(
                vectors,
                outputs,
                piece,
                offsets,
                **sampling,
                window=model.window,
                negative=model.negative,
                cbow=not model.sg,
                alpha=model.alpha,
                min_alpha=model.min_alpha,
                words_total=corpus.tokens.numel(),
                seed=model.seed,
                first_position=position,
                compute_loss=False,
                num_threads=1,
                backend="reference",
            )
            elapsed = time.perf_counter() - started
            if i == 0 and len(bounds) > 2:  # it has paid for the first call of everything
                started = time.perf_counter()
                continue
            tokens += piece.numel()
            if elapsed >= seconds:
                break
    finally:
        torch.set_num_threads(threads)
    raw = tokens * corpus.raw_words / max(1, corpus.tokens.numel())
    return raw / elapsed, round(raw)


def demo(
    folder: Path,
    paths: Iterable[str | os.PathLike[str]] | None = None,
    *,
    epochs: int = 10,
    min_count: int = 20,
    top: int = 300,
) -> Word2Vec:
    """The whole demonstration, in ``folder``; prints as it goes. Returns the model."""
    from vecsmith import Word2Vec
    from vecsmith.data import Corpus
    from vecsmith.plot import word_map

    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "docstrings.txt"
    began = time.perf_counter()
    _say("1. A text: the docstrings of " + ("this Python" if paths is None else "the given files"))
    words = collect(text, paths)
    _say(f"   {words:,} words in {text} ({time.perf_counter() - began:.1f} s)\n")

    _say("2. Vectors: skip-gram, dimension 100")
    model = Word2Vec(sg=1, vector_size=100, min_count=min_count, epochs=epochs)
    corpus = Corpus.build(text, folder / "corpus", min_count=min_count)
    model.build_vocab(corpus)
    model.train(corpus)
    rate = corpus.raw_words * epochs / model.total_train_time
    model.save(folder / "vectors")
    _say(
        f"   {epochs} epochs of {corpus.raw_words:,} words in {model.total_train_time:.1f} s, "
        f"{len(model.wv):,} words of vocabulary, {model.workers} threads"
    )
    slow, measured = reference_rate(model, corpus, REFERENCE_SECONDS)
    _say(f"   vecsmith           {rate:>12,.0f} words/s")
    _say(f"   PyTorch reference  {slow:>12,.0f} words/s   (one thread, {measured:,} words)")
    _say(f"   ratio              {rate / slow:>12,.0f}\n")

    _say("3. Neighbors")
    for word in WORDS:
        if word in model.wv:
            near = ", ".join(w for w, _ in model.wv.most_similar(word, topn=6))
            _say(f"   {word:<11} {near}")

    picture = folder / "map.png"
    _say("\n4. A map of the most frequent words")
    word_map(model.wv, picture, topn=top, title="The docstrings of Python")
    _say(f"   {picture}")
    _say(f"\nDone in {time.perf_counter() - began:.0f} s. Next:")
    _say(f"   vecsmith neighbors {folder / 'vectors'} iterator")
    _say(f"   vecsmith neighbors {folder / 'vectors'} rows - columns + horizontal")
    _say("   vecsmith word2vec YOUR_TEXT.txt -o vectors/")
    _say(f'   python -c "import vecsmith; vecsmith.KeyedVectors.load({str(folder / "vectors")!r})"')
    return model


def _say(line: str) -> None:
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the demonstration."""
    parser = argparse.ArgumentParser(
        prog="python -m vecsmith.cli.demo", description="From nothing to word vectors."
    )
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where to put things")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("paths", nargs="*", help="Python files or folders (default: this Python's)")
    options = parser.parse_args(argv)
    try:
        demo(options.folder, options.paths or None, epochs=options.epochs)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
