"""Training rate in raw words/s, against gensim and pWord2Vec.

Every program reads the same plain file with the same settings (window 5, 5 negatives, sample 1e-4,
min_count 5) and the same number of threads. Building the vocabulary is left out on both sides.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from . import _peers
from ._ours import Ours, build_corpus, corpus_path, write_docstrings
from ._runner import Check, Group, Ratio, finish, guarded, parser, run
from .roofline import Work

COMMON = {"window": 5, "sample": 1e-4, "min_count": 5, "alpha": 0.025}
GROUPS = ("dim100", "dim300", "cbow", "hs")
QUICK_WORDS = 1_000_000
TRAINED_WORDS = 2_000_000  # with fewer, two programs have not yet learned the same


def docstrings_group(
    threads: int, scratch: Path, name: str = "dim100", most: int | None = QUICK_WORDS
) -> Group:
    """A group on the docstrings of this machine, ``most`` words of them, in a folder of its own;
    cut short, it has our default alone."""
    path = scratch / f"docstrings-{most or 'all'}.txt"
    if not path.exists():
        write_docstrings(path, most)
    words = len(path.read_text(encoding="utf-8").split())
    epochs = -(-TRAINED_WORDS // max(words, 1))
    made = group(name, path, threads, epochs, scratch, bool(most))
    if most:
        made.name += "_short"
    return made


def group(
    name: str,
    path: Path,
    threads: int,
    epochs: int,
    folder: Path | None = None,
    alone: bool = False,
) -> Group:
    """One group of the comparison: our variants (our default ``alone``), gensim and, for skip-gram,
    pWord2Vec. folder: for the encoded text."""
    corpus = build_corpus(path, folder=folder)
    sg, hs, negative, dim = 1, 0, 5, 100
    if name == "dim300":
        dim = 300
    elif name == "cbow":
        sg = 0
    elif name == "hs":
        hs, negative = 1, 0
    settings = {**COMMON, "vector_size": dim, "sg": sg, "hs": hs, "negative": negative}

    def ours(number: int = threads, isa: str | None = None, deterministic: bool = False, **more):
        return Ours(corpus, number, epochs, isa, deterministic, {**settings, **more})

    from vecsmith import _native

    variants = {"vecsmith": ours()}
    ratios = []
    bars = {"dim100": (15, 4), "dim300": (10, 2.5), "cbow": (6, None), "hs": (6, None)}[name]
    label = {
        "dim100": "dim 100",
        "dim300": "dim 300",
        "cbow": "CBOW, dim 100",
        "hs": "hierarchical softmax, dim 100",
    }[name]
    full = "avx512" in _native.isa_levels()
    # The bars were set for two threads and a processor with AVX-512.
    judged = full and threads == 2

    def bar(value: float | None) -> float | None:
        return value if judged else None

    ratios.append(Ratio(f"{label} / gensim", "vecsmith", "gensim", bar(bars[0])))
    if name in ("dim100", "dim300"):
        ratios.append(Ratio(f"{label} / pWord2Vec", "vecsmith", "pWord2Vec", bar(bars[1])))
        if "avx2" in _native.isa_levels() and not alone:
            variants["vecsmith, avx2"] = ours(isa="avx2")
            ratios.append(
                Ratio(f"{label}, avx2 level / gensim", "vecsmith, avx2", "gensim", bar(7))
            )
    if name == "dim100" and not alone:
        variants["vecsmith, pair"] = ours(shared_negatives="pair")
        variants["vecsmith, deterministic"] = ours(deterministic=True)
        variants["vecsmith, deterministic, 1 thread"] = ours(1, deterministic=True)
        ratios += [
            Ratio(f'{label}, negatives per "pair" / gensim', "vecsmith, pair", "gensim", bar(6)),
            Ratio(
                "time of deterministic mode / lock-free",
                "vecsmith",
                "vecsmith, deterministic",
                bar(1.8),
                at_least=False,
            ),
            Ratio(
                f"deterministic, {threads} threads / 1 thread",
                "vecsmith, deterministic",
                "vecsmith, deterministic, 1 thread",
                bar(1.4),
            ),
        ]
    entries = {key: variant.run for key, variant in variants.items()}
    described: dict[str, object] = {}

    @functools.cache
    def peer(key: str, threads: int) -> _peers.Gensim | _peers.PWord2Vec:
        if key == "gensim":
            return _peers.Gensim(path, threads, epochs, **settings)
        assert program is not None
        made = _peers.PWord2Vec(program, path, threads, epochs, corpus.raw_words, dim=dim)
        described["MKL instructions of pWord2Vec"] = made.choose_instructions()
        return made

    peers = ["gensim"] if _peers.have_gensim() else []
    program = _peers.pword2vec_program() if _peers.usable("pWord2Vec") else None
    if program is not None and name in ("dim100", "dim300"):
        peers.append("pWord2Vec")
    entries.update({key: lambda key=key: peer(key, threads).run() for key in peers})

    def alike(key: str) -> list[Check]:
        """Whether a peer has learned what we have, of the same words."""
        # More threads of gensim lower its rate ever sooner; see ALIKE.
        one = peer(key, min(threads, 2) if key == "gensim" else threads)
        if key == "gensim":
            one.run()
        found = _peers.correlation(variants["vecsmith"].vectors(), one.vectors())
        text = f"vectors like those of {key}: cosines correlate by {found:.3f}"
        counts = one.raw_words
        return [
            Check(f"{text} (at least {_peers.ALIKE})", found >= _peers.ALIKE),
            Check(
                f"raw words: {corpus.raw_words:,} here, {counts:,} in {key}",
                counts == corpus.raw_words,
            ),
        ]

    def check() -> list[Check]:
        found = [variant.check(key) for key, variant in variants.items()]
        for key in peers:
            found += guarded(key, functools.partial(alike, key))
        # Known when the peers have run.
        made.settings.update(described)
        return found

    made = Group(
        name=f"word2vec_speed_{name}",
        title=f"word2vec training, {label}, {threads} threads",
        unit="raw words/s",
        entries=entries,
        check=check,
        ratios=ratios,
        settings={
            **settings,
            "threads": threads,
            "epochs": epochs,
            "raw words": corpus.raw_words,
            "vocabulary": len(corpus.vocabulary),
        },
        work={} if hs else dict.fromkeys(entries, _work(corpus, dim, not sg)),
    )
    return made


def _work(corpus, dim: int, cbow: bool) -> Work:
    from .bench_skipgram import work_of_a_word

    keep = corpus.vocabulary.keep_probabilities(COMMON["sample"])
    kept = float(keep[corpus.tokens.long()].sum()) / corpus.raw_words
    rows = len(corpus.vocabulary)
    return work_of_a_word(kept, rows, corpus.raw_words, dim=dim, cbow=cbow)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=5)
    options.add_argument("--epochs", type=int, default=1, help="epochs of each run")
    options.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="groups")
    given = options.parse_args(arguments)
    for line in _peers.missing():
        print(line)
    path = corpus_path(given.corpus)
    records = []
    for name in given.only:
        records.append(run(group(name, path, given.threads, given.epochs), given.rounds))
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
