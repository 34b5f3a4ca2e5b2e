"""The training loop of Word2Vec: the corpus in fixed chunks, one call of ``ops.skipgram`` for each,
and between two chunks the progress bar, the callbacks, the checkpoint and a look for Ctrl-C."""

from __future__ import annotations

import itertools
import logging
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.models._checkpoint import (
    Checkpoint,
    Interrupts,
    Writer,
    check_settings,
    checksum,
    damaged,
)
from vecsmith.models._progress import TrainingBar

if TYPE_CHECKING:
    from vecsmith.data import Corpus

logger = logging.getLogger(__name__)

# Positions of the corpus per call: small enough to answer Ctrl-C within a second, large enough that
# a call costs nothing. Part of what deterministic mode computes (its shards are those of a
# call), so it depends on nothing but the kind of device.
CHUNK_POSITIONS = {"cpu": 1 << 18, "cuda": 1 << 22}
# Where the loss is only wanted for the progress bar, it is taken from one chunk in so many.
LOSS_EVERY = 8


@dataclass
class Tables:
    """The three tables of a model; those that its settings do not need are None.

    input: [V, D] word vectors; output: [V, D] for negative sampling; tree: [V-1, D] for
    hierarchical softmax. float32, rows on cache lines (ops.empty_table).
    """

    input: Tensor
    output: Tensor | None
    tree: Tensor | None

    def named(self) -> dict[str, Tensor]:
        """Those that are there, under the names they have in files."""
        every = {"vectors": self.input, "syn1neg": self.output, "syn1": self.tree}
        return {name: table for name, table in every.items() if table is not None}

    def to(self, device: torch.device) -> Tables:
        """Copies on another device; the same object on the same device."""
        if device == self.input.device:
            return self

        def move(table: Tensor | None) -> Tensor | None:
            if table is None:
                return None
            return ops.empty_table(*table.shape, device=device).copy_(table)

        return Tables(move(self.input), move(self.output), move(self.tree))  # type: ignore[arg-type]

    def copy_from(self, other: Tables) -> None:
        """Copies the values of ``other`` into these tables."""
        for mine, theirs in zip(self.named().values(), other.named().values(), strict=True):
            mine.copy_(theirs)


@dataclass
class Plan:
    """What to train: everything that decides the result besides the tables and the corpus.

    settings: the keyword arguments of ``ops.skipgram`` that stay the same for every chunk.
    identity: what a checkpoint must agree in, beyond settings: {name: value}, JSON types.
    words_per_epoch: words that the learning rate counts as one epoch; the text decides it.
    """

    settings: dict[str, Any]
    epochs: int
    device: torch.device
    chunk_positions: int
    identity: dict[str, Any]
    words_per_epoch: int = 1
    compute_loss: bool = False
    num_threads: int = 1
    backend: str | None = None

    def known_before_text(self) -> dict[str, Any]:
        """What a checkpoint must agree in, as far as it is known before the text is read."""
        more = {"epochs": self.epochs, "chunk_positions": self.chunk_positions}
        return {**self.settings, **self.identity, **more}


@dataclass
class Cursor:
    """How far training has come: the next chunk to train, and the loss so far."""

    epoch: int = 0
    chunk: int = 0
    loss: float = 0.0
    terms: float = 0.0
    seconds: float = 0.0


@dataclass
class Hooks:
    """What the model wants to be told: called with the cursor, in training order."""

    epoch_begin: Callable[[], None]
    epoch_end: Callable[[], None]
    chunk_end: Callable[[Cursor, float], None] = field(default=lambda cursor, alpha: None)


def chunk_bounds(offsets: Tensor, positions: int) -> list[int]:
    """Sentence numbers at which the corpus is cut: 0, ..., S. Chunks hold whole sentences and about
    ``positions`` tokens. offsets: [S+1] int64."""
    array = offsets.numpy()
    sentences = len(array) - 1
    if sentences < 1:
        return [0]
    targets = np.arange(int(array[0]) + positions, int(array[-1]), positions)
    cuts = np.searchsorted(array, targets)
    return sorted({0, sentences, *(int(c) for c in cuts)})


def text_check(checkpoint: Checkpoint | None, plan: Plan) -> Callable[[Corpus], None] | None:
    """The check that an encoded text must pass for training to go on from the checkpoint, before
    it takes the place of an older one; None where there is nothing to go on from.

    Raises: CheckpointError if the checkpoint is damaged, or one of other settings.
    """
    found = None if checkpoint is None else checkpoint.pending()
    if checkpoint is None or found is None:
        return None
    path, state, ours = checkpoint.path, found[0], plan.known_before_text()
    theirs = state.get("settings")
    if isinstance(theirs, dict):
        theirs = {name: value for name, value in theirs.items() if name != "words_per_epoch"}
    check_settings(path, theirs, ours, "settings")

    def check(corpus: Corpus) -> None:
        check_settings(path, state.get("corpus"), corpus_identity(corpus), "text")

    return check


def train(
    tables: Tables,
    corpus: Corpus,
    sampling: dict[str, Any],
    plan: Plan,
    hooks: Hooks,
    checkpoint: Checkpoint | None,
    progress: bool | None,
) -> Cursor:
    """Train ``tables`` in place for ``plan.epochs`` epochs; returns the last cursor.

    sampling: the tensor arguments of ops.skipgram made from the vocabulary (keep, alias, path_*).

    Raises: CheckpointError before anything is changed; TrainingInterrupted after a checkpoint
    was written, if there is one to write.
    """
    bounds = chunk_bounds(corpus.offsets, plan.chunk_positions)
    chunks = list(itertools.pairwise(bounds))
    cursor = Cursor()
    identity = {**plan.known_before_text(), "words_per_epoch": plan.words_per_epoch}
    state: dict[str, Any] = {}
    if checkpoint is not None:
        state = {"corpus": corpus_identity(corpus), "settings": identity}
        found = checkpoint.pending()
        if found is not None:
            resumed, theirs = found
            for part, said in (("corpus", "text"), ("settings", "settings")):
                check_settings(checkpoint.path, resumed.get(part), state[part], said)
            cursor = _cursor(checkpoint, resumed.get("cursor"), plan.epochs, len(chunks))
            checkpoint.load(theirs, tables.named())
            del found, theirs
            logger.info("going on from %s", checkpoint.path)

    here = tables.to(plan.device)
    fixed = {k: v if v is None else v.to(plan.device) for k, v in sampling.items()}
    writer = Writer(checkpoint, cursor, here.named, state)
    bar = TrainingBar(corpus, plan.epochs, progress)
    with Interrupts(enabled=checkpoint is not None) as interrupts, bar:
        while cursor.epoch < plan.epochs:
            hooks.epoch_begin()
            bar.begin(cursor.epoch, chunks[cursor.chunk - 1][1] if cursor.chunk else 0)
            for index in range(cursor.chunk, len(chunks)):
                wants_loss = plan.compute_loss or (bar.visible and index % LOSS_EVERY == 0)
                result, alpha = _chunk(here, corpus, fixed, plan, cursor, chunks[index], wants_loss)
                if plan.compute_loss:
                    cursor.loss += result[0]
                    cursor.terms += result[1]
                cursor.chunk = index + 1
                hooks.chunk_end(cursor, alpha)
                bar.update(cursor.epoch, chunks[index][1], alpha, result if wants_loss else None)
                if interrupts.signum is not None:
                    if here is not tables:
                        tables.copy_from(here)
                    writer.stop(interrupts.signum)
                writer.write_if_due()
            if here is not tables:
                tables.copy_from(here)
            cursor.epoch, cursor.chunk = cursor.epoch + 1, 0
            hooks.epoch_end()
            if cursor.epoch < plan.epochs:
                writer.write_if_due(epoch_ended=True)
    writer.count_seconds()
    return cursor


def _cursor(checkpoint: Checkpoint, found: Any, epochs: int, chunks: int) -> Cursor:
    """The cursor of a checkpoint. Raises CheckpointError if it is none of this training."""
    try:
        cursor = Cursor(**found)
        whole = type(cursor.epoch) is int and type(cursor.chunk) is int  # True is none
        numbers = math.isfinite(cursor.loss + cursor.terms + cursor.seconds)
        if whole and numbers and 0 <= cursor.epoch <= epochs and 0 <= cursor.chunk <= chunks:
            return cursor
    except (TypeError, OverflowError):
        pass
    raise damaged(
        checkpoint.path, f"expected a place in {epochs} epochs of {chunks} chunks; got {found}"
    )


def corpus_identity(corpus: Corpus) -> dict[str, Any]:
    """What makes two encoded corpora the same, by content: a text that was moved is still it."""
    return {
        "tokens": corpus.tokens.numel(),
        "sentences": corpus.offsets.numel() - 1,
        "words": len(corpus.vocabulary),
        "checksum": checksum(corpus.tokens, corpus.offsets),
        "vocabulary": vocabulary_checksum(corpus.vocabulary.words, corpus.vocabulary.counts),
    }


def vocabulary_checksum(words: list[str], counts: np.ndarray) -> str:
    """CRC-32 of words and counts, in order."""
    crc = zlib.crc32(counts.astype(np.int64).tobytes())
    for first in range(0, len(words), 1 << 16):
        block = "\n".join(words[first : first + (1 << 16)]) + "\n"
        crc = zlib.crc32(block.encode("utf-8", "surrogatepass"), crc)
    return f"{crc:08x}"


def _inputs(
    corpus: Corpus, bounds: tuple[int, int], device: torch.device, whole: bool | None = None
) -> tuple[Tensor, Tensor, int]:
    """(tokens, offsets, position of tokens[0]) for a chunk: on the CPU (``whole``) the mapped
    corpus itself, nothing copied; elsewhere the chunk alone, moved there."""
    offsets = corpus.offsets[bounds[0] : bounds[1] + 1]
    if device.type == "cpu" if whole is None else whole:
        return corpus.tokens, offsets, 0
    first, last = int(offsets[0]), int(offsets[-1])
    return corpus.tokens[first:last].to(device), (offsets - first).to(device), first


def _chunk(
    here: Tables,
    corpus: Corpus,
    fixed: dict[str, Any],
    plan: Plan,
    cursor: Cursor,
    bounds: tuple[int, int],
    wants_loss: bool,
) -> tuple[tuple[float, float], float]:
    """Train on the sentences bounds[0]..bounds[1]-1: ((loss, terms), the rate at their end)."""
    tokens, offsets, first_position = _inputs(corpus, bounds, plan.device)
    last = int(corpus.offsets[bounds[1]])
    words_total = max(1, plan.words_per_epoch * plan.epochs)
    words_before = cursor.epoch * plan.words_per_epoch
    result = ops.skipgram(
        here.input,
        here.output,
        tokens,
        offsets,
        tree_table=here.tree,
        **fixed,
        **plan.settings,
        words_before=words_before,
        words_total=words_total,
        epoch=cursor.epoch,
        first_position=first_position,
        compute_loss=wants_loss,
        num_threads=plan.num_threads,
        backend=plan.backend,
    )
    alpha, min_alpha = plan.settings["alpha"], plan.settings["min_alpha"]
    rate = alpha + (min_alpha - alpha) * (words_before + last) / words_total
    # On CUDA the result is only fetched where it is wanted: fetching waits for the kernel.
    loss, terms = result.tolist() if wants_loss or plan.device.type == "cpu" else (0.0, 0.0)
    return (loss, terms), max(rate, min(alpha, min_alpha))
