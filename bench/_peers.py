"""The peers: programs that do the same work, held to the same text, settings and threads."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Peer:
    """A program that does the work of some operators.

    name: as the entries call it; module: what is imported, or for a program of its own the variable
    of the environment that names it; packages: whose versions count; operators: it is compared in;
    compared: with what of ours; get: how to have it.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    operators: tuple[str, ...]
    compared: str
    get: str

    @property
    def is_program(self) -> bool:
        return self.module.isupper()


PEERS = (
    Peer(
        "gensim",
        "gensim.models",
        ("gensim",),
        ("skipgram",),
        "words per second of Word2Vec",
        "pip install gensim",
    ),
    Peer(
        "pWord2Vec",
        "VECSMITH_PWORD2VEC",
        (),
        ("skipgram",),
        "words per second of Word2Vec",
        "git clone https://github.com/IntelLabs/pWord2Vec, build it with -O3 -march=native "
        "-fopenmp -DUSE_MKL against MKL, and name the program in VECSMITH_PWORD2VEC",
    ),
    Peer(
        "FBGEMM",
        "fbgemm_gpu.split_table_batched_embeddings_ops_training",
        ("fbgemm-gpu", "fbgemm-gpu-cpu"),
        ("embedding_bag",),
        "a training step of EmbeddingBag with row-wise Adagrad",
        "pip install fbgemm-gpu-cpu (the release that belongs to your torch)",
    ),
    Peer(
        "faiss",
        "faiss",
        ("faiss-cpu", "faiss-gpu"),
        ("cosine_topk",),
        "the nearest rows of CosineIndex",
        "pip install faiss-cpu",
    ),
    Peer(
        "implicit",
        "implicit",
        ("implicit",),
        ("als_solve", "factor_sgd"),
        "iterations of ALS, epochs of BPR",
        "pip install implicit",
    ),
    Peer("cmfrec", "cmfrec", ("cmfrec",), ("als_solve",), "fits of ALS", "pip install cmfrec"),
    Peer(
        "lenskit",
        "lenskit.als",
        ("lenskit",),
        ("als_solve",),
        "fits of ALS",
        "pip install lenskit",
    ),
    Peer(
        "LIBMF",
        "VECSMITH_LIBMF",
        (),
        ("factor_sgd",),
        "ratings to an equal held-out error",
        "git clone https://github.com/cjlin1/libmf, build it with make lib, and name the shared "
        "library in VECSMITH_LIBMF",
    ),
    Peer(
        "scikit-learn",
        "sklearn.decomposition",
        ("scikit-learn",),
        ("hals_sweep",),
        "a sweep of NMF",
        "pip install scikit-learn",
    ),
)
_BY_NAME = {peer.name: peer for peer in PEERS}
_IMPORT_SECONDS = 300.0


@functools.cache
def state(name: str) -> str:
    """The words "installed", "missing", or "broken: " and why. A module is imported by a process
    of its own, so that one that ends its process does not end ours."""
    peer = _BY_NAME[name]
    if peer.is_program:
        named = os.environ.get(peer.module)
        if not named:
            return "missing"
        found = shutil.which(named) if name == "pWord2Vec" else Path(named).is_file()
        return "installed" if found else f"broken: {peer.module} names no file to use: {named}"
    top = peer.module.partition(".")[0]
    try:
        if importlib.util.find_spec(top) is None:
            return "missing"
    except (ImportError, ValueError):
        return "missing"
    command = [sys.executable, "-c", f"import {peer.module}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_IMPORT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"broken: its import takes over {_IMPORT_SECONDS:g} s"
    if done.returncode < 0:
        return f"broken: its import ends the process with signal {-done.returncode}"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return f"broken: {lines[-1].strip()}"
    return "installed"


@functools.cache
def usable(name: str) -> bool:
    """Whether a peer can take part: it is there, and can be imported beside torch."""
    if state(name) != "installed":
        return False
    peer = _BY_NAME[name]
    if peer.is_program:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(peer.module)
    except Exception as error:
        _BESIDE_TORCH[name] = f"broken: {type(error).__name__}: {error}"
        return False
    return True


_BESIDE_TORCH: dict[str, str] = {}


def absent(operators: Iterable[str]) -> list[tuple[Peer, str]]:
    """The peers of some operators that cannot take part, with the state of each."""
    chosen = set(operators)
    asked = [peer for peer in PEERS if chosen & set(peer.operators)]
    states = ((peer, _BESIDE_TORCH.get(peer.name) or state(peer.name)) for peer in asked)
    return [(peer, found) for peer, found in states if found != "installed"]


def have_gensim() -> bool:
    """Whether gensim can be imported."""
    return usable("gensim")


def have_faiss() -> bool:
    """Whether faiss can be imported."""
    return usable("faiss")


def pword2vec_program() -> Path | None:
    """The pWord2Vec that VECSMITH_PWORD2VEC names, or None.

    Raises FileNotFoundError if it names nothing that can be run.
    """
    named = os.environ.get("VECSMITH_PWORD2VEC")
    if not named:
        return None
    program = shutil.which(named)
    if program is None:
        raise FileNotFoundError(f"VECSMITH_PWORD2VEC: expected a program; got {named!r}")
    return Path(program)


def missing() -> list[str]:
    """One line for each peer of word2vec that is not here: its name and how to get it."""
    pword2vec_program()
    return [f"peer {peer.name} is {state}: {peer.get}" for peer, state in absent(["skipgram"])]


# Two runs of one program correlate by .95 even on 2 million words. Ours and gensim correlate by .66
# there after one epoch, more with more text: each of gensim's n corpus_file threads lowers the rate
# by its own progress over the whole text, so an epoch ends at 1/n of the decay (with our rate held
# to that it is .88). Tables that were not trained, or on something else, stay under .2.
ALIKE = 0.5


class Gensim:
    """gensim's Word2Vec on ``corpus_file``: the vocabulary is built once, then any number of runs.

    settings: gensim's constructor arguments. :meth:`run` returns raw words/s of one training.
    """

    def __init__(self, corpus: Path, threads: int, epochs: int, **settings: object) -> None:
        from gensim.models import Word2Vec

        self.corpus, self.epochs = corpus, epochs
        self.model = Word2Vec(workers=threads, **settings)
        self.model.build_vocab(corpus_file=str(corpus))
        self.raw_words = int(self.model.corpus_total_words)

    def run(self) -> float:
        self.model.wv.vectors = None  # else init_weights keeps the table that is there
        self.model.init_weights()
        self.model.min_alpha_yet_reached = self.model.alpha
        started = time.perf_counter()
        self.model.train(
            corpus_file=str(self.corpus),
            total_words=self.model.corpus_total_words,
            total_examples=self.model.corpus_count,
            epochs=self.epochs,
        )
        return self.raw_words * self.epochs / (time.perf_counter() - started)

    def vectors(self) -> tuple[list[str], np.ndarray]:
        return list(self.model.wv.index_to_key), np.array(self.model.wv.vectors)


@dataclass
class PWord2Vec:
    """IntelLabs/pWord2Vec: one process per run; the rate is the one that it prints while training,
    converted from words of its vocabulary to raw words."""

    program: Path
    corpus: Path
    threads: int
    epochs: int
    raw_words: int
    dim: int = 100
    window: int = 5
    negative: int = 5
    sample: float = 1e-4
    min_count: int = 5
    alpha: float = 0.025
    environment: dict[str, str] | None = None
    output: Path | None = None

    def run(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            corpus = self.corpus.resolve()
            if len(str(corpus)) >= 100:  # its buffer for a path
                corpus = Path(folder) / "corpus"
                corpus.symlink_to(self.corpus.resolve())
            vectors = Path(folder) / "vectors"
            values = {
                "train": corpus,
                "output": vectors,
                "size": self.dim,
                "window": self.window,
                "negative": self.negative,
                "sample": self.sample,
                "threads": self.threads,
                "iter": self.epochs,
                "min-count": self.min_count,
                "batch-size": 2 * self.window + 1,
                "alpha": self.alpha,
                "binary": 1,
            }
            command = [str(self.program)]
            for name, value in values.items():
                command += [f"-{name}", str(value)]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, **(self.environment or {})},
            )
            if self.output is not None:
                shutil.copyfile(vectors, self.output)
        return self.rate(done.stdout)

    def rate(self, text: str) -> float:
        """Raw words/s from what the program printed."""
        counted = re.search(r"Words in train file: (\d+)", text)
        rates = re.findall(r"Words/sec: ([\d.]+)k", text)
        if not counted or not rates:
            raise RuntimeError(f"pWord2Vec printed no rate: {text[-300:]!r}")
        return float(rates[-1]) * 1000 * self.raw_words / int(counted.group(1))

    def choose_instructions(self) -> str:
        """MKL's own choice of instructions is not the best one on every processor: run with it and
        with AVX2, keep the faster. Returns the name of what was kept."""
        tried = []
        for name, environment in (("default", {}), ("AVX2", {"MKL_ENABLE_INSTRUCTIONS": "AVX2"})):
            self.environment = environment
            tried.append((self.run(), name, environment))
        _, name, self.environment = max(tried, key=lambda one: one[0])
        return name

    def vectors(self) -> tuple[list[str], np.ndarray]:
        """The vectors of one more run."""
        with tempfile.TemporaryDirectory() as folder:
            self.output = Path(folder) / "vectors"
            self.run()
            data = self.output.read_bytes()
            self.output = None
        header, _, rest = data.partition(b"\n")
        rows, dim = map(int, header.split())
        words, vectors = [], np.empty((rows, dim), dtype=np.float32)
        at = 0
        for row in range(rows):
            space = rest.index(b" ", at)
            words.append(rest[at:space].decode("utf-8", "replace"))
            vectors[row] = np.frombuffer(rest, np.float32, dim, space + 1)
            at = space + 1 + 4 * dim + 1
        return words, vectors


def correlation(
    ours: tuple[list[str], np.ndarray], theirs: tuple[list[str], np.ndarray], words: int = 1000
) -> float:
    """How alike two sets of word vectors are: the correlation of the cosines between the most
    frequent words that both have. 0 for unrelated tables, near 1 for two runs of one program."""
    index = {word: row for row, word in enumerate(theirs[0])}
    shared = [(i, index[word]) for i, word in enumerate(ours[0]) if word in index][:words]
    if len(shared) < 10:
        return 0.0
    rows = np.array(shared)
    upper = np.triu_indices(len(rows), 1)
    cosines = []
    for vectors, chosen in ((ours[1], rows[:, 0]), (theirs[1], rows[:, 1])):
        unit = np.asarray(vectors[chosen], dtype=np.float64)
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
        cosines.append((unit @ unit.T)[upper])
    return float(np.corrcoef(*cosines)[0, 1])
