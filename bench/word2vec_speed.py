"""Training rate in raw words/s, against gensim and pWord2Vec.

Every program reads the same plain file with the same settings (window 5, 5 negatives, sample 1e-4,
min_count 5) and the same number of threads. Building the vocabulary is left out on both sides.
"""

from __future__ import annotations

import sys
from pathlib import Path

from . import _peers
from ._ours import Ours, build_corpus, corpus_path
from ._runner import Check, Group, Ratio, finish, parser, run

COMMON = {"window": 5, "sample": 1e-4, "min_count": 5, "alpha": 0.025}
GROUPS = ("dim100", "dim300", "cbow", "hs")


def group(name: str, path: Path, threads: int, epochs: int) -> Group:
    """One group of the comparison: our variants, gensim and, for skip-gram, pWord2Vec."""
    corpus = build_corpus(path)
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
        if "avx2" in _native.isa_levels():
            variants["vecsmith, avx2"] = ours(isa="avx2")
            ratios.append(
                Ratio(f"{label}, avx2 level / gensim", "vecsmith, avx2", "gensim", bar(7))
            )
    if name == "dim100":
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
    peers: dict[str, object] = {}
    described: dict[str, object] = {}
    if _peers.have_gensim():
        peers["gensim"] = _peers.Gensim(path, threads, epochs, **settings)
    program = _peers.pword2vec_program()
    if program is not None and name in ("dim100", "dim300"):
        peer = _peers.PWord2Vec(program, path, threads, epochs, corpus.raw_words, dim=dim)
        described["MKL instructions of pWord2Vec"] = peer.choose_instructions()
        peers["pWord2Vec"] = peer
    entries.update({key: peer.run for key, peer in peers.items()})

    def check() -> list[Check]:
        found = [variant.check(key) for key, variant in variants.items()]
        for key, peer in peers.items():
            if key == "gensim":
                peer.run()
            alike = _peers.correlation(variants["vecsmith"].vectors(), peer.vectors())
            found.append(
                Check(
                    f"vectors like those of {key}: cosines correlate by {alike:.3f} "
                    f"(at least {_peers.ALIKE})",
                    alike >= _peers.ALIKE,
                )
            )
            counts = getattr(peer, "raw_words", corpus.raw_words)
            same = abs(counts - corpus.raw_words) == 0
            found.append(Check(f"raw words: {corpus.raw_words:,} here, {counts:,} in {key}", same))
        return found

    return Group(
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
            **described,
        },
    )


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
