"""Quality of the vectors, against gensim and pWord2Vec: word similarity and analogies.

Every program trains on the same plain file with the same settings and is evaluated by the same code
on the same words; the mean over the seeds counts. Spearman correlations are times 100, analogies in
percent, so that one point means the same everywhere.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import _peers
from ._ours import Ours, build_corpus, corpus_path
from ._runner import Check, finish, machine, parser, table

COMMON = {"window": 5, "sample": 1e-4, "min_count": 5, "alpha": 0.025, "sg": 1, "negative": 5}
# What is looked for in --eval-dir: name -> file names, plain or .gz.
PAIRS = {"WS353": "ws353-all.txt", "SimLex-999": "simlex999.txt", "MEN": "men-3k.txt"}
ANALOGIES = "questions-words.txt"
LIMIT = 1.0  # points that ours may be under gensim's


def _read(folder: Path, name: str) -> str | None:
    plain, packed = folder / name, folder / (name + ".gz")
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    if packed.is_file():
        return gzip.decompress(packed.read_bytes()).decode("utf-8")
    return None


class Evaluation:
    """The word similarity and analogy files of a folder, and the measuring of vectors by them."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.pairs: dict[str, Path] = {}
        self.analogies: Path | None = None
        for name, file in PAIRS.items():
            text = _read(folder, file)
            if text is None:
                print(f"not in {folder}: {file} ({name})")
                continue
            rows = [line.split()[:3] for line in text.splitlines() if line.strip()]
            self.pairs[name] = scratch / f"{name}.tsv"
            self.pairs[name].write_text("".join("\t".join(row) + "\n" for row in rows))
        text = _read(folder, ANALOGIES)
        if text is None:
            print(f"not in {folder}: {ANALOGIES} (analogies)")
        else:
            self.analogies = scratch / ANALOGIES
            self.analogies.write_text(text)
        if not self.pairs and self.analogies is None:
            raise FileNotFoundError(f"--eval-dir: no evaluation file in {folder}")

    def measure(self, words: list[str], vectors: np.ndarray) -> dict[str, float]:
        """Spearman x 100 for each similarity file, percent of analogies."""
        from vecsmith import KeyedVectors

        keyed = KeyedVectors(words, np.ascontiguousarray(vectors, dtype=np.float32))
        scores = {}
        for name, path in self.pairs.items():
            spearman = keyed.evaluate_word_pairs(str(path), delimiter="\t")[1]
            scores[name] = 100 * float(getattr(spearman, "statistic", spearman[0]))
        if self.analogies is not None:
            scores["analogies"] = 100 * keyed.evaluate_word_analogies(str(self.analogies))[0]
        return scores


def trainers(
    path: Path, threads: int, epochs: int, dim: int
) -> dict[str, Callable[[int], tuple[list[str], np.ndarray]]]:
    """Each program as a function from a seed to (words, vectors)."""
    corpus = build_corpus(path)
    settings = {**COMMON, "vector_size": dim}

    def ours(
        shared: str, deterministic: bool = False
    ) -> Callable[[int], tuple[list[str], np.ndarray]]:
        def train(seed: int) -> tuple[list[str], np.ndarray]:
            more = {**settings, "shared_negatives": shared, "seed": seed}
            return Ours(
                corpus, threads, epochs, deterministic=deterministic, settings=more
            ).vectors()

        return train

    def gensim(seed: int) -> tuple[list[str], np.ndarray]:
        peer = _peers.Gensim(path, threads, epochs, **settings, seed=seed)
        peer.run()
        return peer.vectors()

    found = {
        "vecsmith": ours("window"),
        "vecsmith, pair": ours("pair"),
        "vecsmith, deterministic": ours("window", deterministic=True),
    }
    if _peers.have_gensim():
        found["gensim"] = gensim
    program = _peers.pword2vec_program()
    if program is not None:

        def pword2vec(seed: int) -> tuple[list[str], np.ndarray]:
            # It has no seed; two threads make each run another one.
            peer = _peers.PWord2Vec(program, path, threads, epochs, corpus.raw_words, dim=dim)
            return peer.vectors()

        found["pWord2Vec"] = pword2vec
    return found


def _options(arguments: list[str] | None) -> argparse.Namespace:
    options = parser(__doc__, rounds=3)
    options.add_argument("--eval-dir", type=Path, required=True, help="folder of evaluation files")
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--dim", type=int, default=100)
    options.add_argument(
        "--programs",
        nargs="+",
        help="only these: 'vecsmith', 'vecsmith, pair', 'vecsmith, deterministic', 'gensim', ...",
    )
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = _options(arguments)
    for line in _peers.missing():
        print(line)
    path = corpus_path(given.corpus)
    programs = trainers(path, given.threads, given.epochs, given.dim)
    if given.programs:
        programs = {name: programs[name] for name in given.programs}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in programs}
    with tempfile.TemporaryDirectory() as scratch:
        evaluation = Evaluation(given.eval_dir, Path(scratch))
        vocabularies: dict[str, set[str]] = {}
        for seed in range(1, given.rounds + 1):
            for name, train in programs.items():
                started = time.perf_counter()
                words, vectors = train(seed)
                trained = time.perf_counter()
                vocabularies.setdefault(name, set(words) - {"</s>"})
                for measure, score in evaluation.measure(words, vectors).items():
                    samples[name].setdefault(measure, []).append(score)
                latest = "  ".join(f"{m} {values[-1]:.2f}" for m, values in samples[name].items())
                print(
                    f"   seed {seed}  {name:<16} {latest}  ({trained - started:.0f} s to train, "
                    f"{time.perf_counter() - trained:.0f} s to measure)",
                    flush=True,
                )
    reference = (
        vocabularies["vecsmith"]
        if "vecsmith" in vocabularies
        else next(iter(vocabularies.values()))
    )
    checks = [
        Check(f"{name} has the same {len(reference):,} words", words == reference)
        for name, words in vocabularies.items()
    ]
    measures = list(next(iter(samples.values())))
    means = {n: {m: statistics.mean(v) for m, v in s.items()} for n, s in samples.items()}
    rows = [["", *measures]]
    for name in samples:
        cells = []
        for m in measures:
            values = samples[name][m]
            cells.append(f"{means[name][m]:.2f} ({min(values):.2f} .. {max(values):.2f})")
        rows.append([name, *cells])
    print()
    print(table(rows))
    record: dict[str, object] = {
        "name": "word2vec_quality",
        "title": f"word2vec quality, dim {given.dim}, {given.epochs} epochs, {given.rounds} seeds",
        "unit": "points",
        "higher_is_better": True,
        "settings": {
            **COMMON,
            "vector_size": given.dim,
            "threads": given.threads,
            "epochs": given.epochs,
            "seeds": given.rounds,
            "raw words": build_corpus(path).raw_words,
            "vocabulary": len(reference),
        },
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": given.rounds,
        "agreement": [{"what": c.what, "passed": c.passed} for c in checks],
        "scores": {
            n: {m: {"mean": means[n][m], "samples": samples[n][m]} for m in measures}
            for n in samples
        },
    }
    for check in checks:
        print(f"   {'agrees' if check.passed else 'DISAGREES'}: {check.what}")
    if all(check.passed for check in checks):
        differences = []
        for name in [n for n in samples if n.startswith("vecsmith")]:
            for m in measures if "gensim" in samples else []:
                points = means[name][m] - means["gensim"][m]
                differences.append(
                    {
                        "what": f"{name}: {m}, points over gensim",
                        "ours": name,
                        "other": "gensim",
                        "points": points,
                        "bar": -LIMIT,
                        "reached": points >= -LIMIT,
                    }
                )
                verdict = "" if points >= -LIMIT else "   NOT reached"
                print(f"   {name}: {m} {points:+.2f} points over gensim{verdict}")
        record["ratios"] = []
        record["differences"] = differences
    return finish([record], given)


if __name__ == "__main__":
    sys.exit(main())
