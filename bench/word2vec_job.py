"""The whole job, text file to saved vectors, against gensim: fresh processes, the clock outside.

Ours is the command ``vecsmith word2vec`` into an empty folder (nothing cached, checkpoints on, the
model and the encoded text written); gensim's is a program that trains from ``corpus_file`` and
saves its word vectors. The start of Python and all imports count on both sides.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import _peers
from ._ours import build_corpus, corpus_path
from ._runner import Check, Group, Ratio, finish, parser, run

GENSIM = """
import sys
from gensim.models import Word2Vec
corpus, output, dim, epochs, threads = sys.argv[1:]
model = Word2Vec(corpus_file=corpus, vector_size=int(dim), epochs=int(epochs), workers=int(threads),
                 window=5, negative=5, sample=1e-4, min_count=5, sg=1)
model.wv.save(output + "/vectors.kv")
"""


def group(path: Path, threads: int, epochs: int, dim: int, scratch: Path) -> Group:
    """The two jobs as entries that return seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    last: dict[str, Path] = {}

    def timed(name: str, command: list[str], folder: Path) -> float:
        last[name] = folder
        started = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    def ours() -> float:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        command = [sys.executable, "-m", "vecsmith", "word2vec", str(path), "-o", str(folder)]
        command += ["--dim", str(dim), "--epochs", str(epochs), "--threads", str(threads)]
        command += ["--sample", "1e-4", "--min-count", "5", "--window", "5", "--negative", "5"]
        return timed("vecsmith", [*command, "--quiet"], folder)

    def gensim() -> float:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        values = [str(path), str(folder), str(dim), str(epochs), str(threads)]
        return timed("gensim", [sys.executable, "-c", GENSIM, *values], folder)

    entries = {"vecsmith": ours}
    if _peers.have_gensim():
        entries["gensim"] = gensim

    def check() -> list[Check]:
        from vecsmith import KeyedVectors

        for entry in entries.values():
            entry()
        vectors = KeyedVectors.load(last["vecsmith"])
        mine = (list(vectors.index_to_key), vectors.vectors)
        words = len(mine[0])
        found = [
            Check(f"{words:,} vectors of dimension {vectors.vector_size} were saved", words > 0)
        ]
        if "gensim" in entries:
            from gensim.models import KeyedVectors as Gensim

            peer = Gensim.load(str(last["gensim"] / "vectors.kv"))
            same = list(peer.index_to_key) == mine[0]
            found.append(Check("gensim saved the same words in the same order", same))
            alike = _peers.correlation(mine, (list(peer.index_to_key), peer.vectors))
            text = f"vectors like those of gensim: cosines correlate by {alike:.3f}"
            found.append(Check(f"{text} (at least {_peers.ALIKE})", alike >= _peers.ALIKE))
        return found

    return Group(
        name="word2vec_job",
        title=f"text file to saved vectors, dim {dim}, {epochs} epochs, {threads} threads",
        unit="s",
        higher_is_better=False,
        entries=entries,
        check=check,
        ratios=[
            Ratio("whole job / gensim", "vecsmith", "gensim", 10 if threads == 2 else None),
        ],
        settings={
            "vector_size": dim,
            "epochs": epochs,
            "threads": threads,
            "window": 5,
            "negative": 5,
            "sample": 1e-4,
            "min_count": 5,
            "raw words": build_corpus(path).raw_words,
        },
    )


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=3)
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--dim", type=int, default=100)
    given = options.parse_args(arguments)
    for line in _peers.missing():
        if "gensim" in line:
            print(line)
    path = corpus_path(given.corpus)
    with tempfile.TemporaryDirectory() as scratch:
        made = group(path, given.threads, given.epochs, given.dim, Path(scratch))
        record = run(made, given.rounds, warmup=False)  # the check has run both once
    return finish([record], given)


if __name__ == "__main__":
    sys.exit(main())
