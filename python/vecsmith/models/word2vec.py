"""Word2Vec: word vectors from text, with gensim's names.

Around it: checks of options (``_options.py``), the text (``_text.py``), the training loop
(``_driver.py``), checkpoints (``_checkpoint.py``), saving and loading (``_files.py``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.data import Corpus, Vocabulary
from vecsmith.models import _driver, _files
from vecsmith.models import _options as check
from vecsmith.models._checkpoint import Checkpoint, checksum
from vecsmith.models._driver import Cursor, Hooks, Plan, Tables, text_check
from vecsmith.models._progress import ReadingBar
from vecsmith.models._text import RULE_DEFAULT as RULE_DEFAULT  # for those who write a trim_rule
from vecsmith.models._text import RULE_DISCARD as RULE_DISCARD
from vecsmith.models._text import RULE_KEEP as RULE_KEEP
from vecsmith.models._text import KeptText, identity, one_of, read_once, source_of, trimmed
from vecsmith.models.keyed_vectors import KeyedVectors

logger = logging.getLogger(__name__)

_INIT_ROWS = 1 << 14


class Word2Vec:
    """Word vectors by skip-gram or CBOW, with negative sampling or hierarchical softmax.

    Trains rows x_w (``wv``) and output rows o_w such that s(x_c . o_w), s(z) = 1 / (1 + exp(-z)),
    is large for words w found within ``window`` words of c and small for words drawn at random
    (Mikolov et al. 2013a, arXiv:1301.3781; 2013b, arXiv:1310.4546). The formulas, down to each
    random draw, are in :mod:`vecsmith.reference.skipgram`.

    Names, order and defaults are gensim's ``Word2Vec``; what differs is said below.

    Args:
        sentences: an iterable of lists of words, read exactly once (a generator will do), or a
            :class:`vecsmith.data.Corpus`. None, with no ``corpus_file``: an untrained model.
        corpus_file: a text with one sentence per line: a path (plain, .gz, .zst), a folder of such,
            "-" for standard input, or an open binary file.
        vector_size: D, the dimension of the vectors.
        alpha, min_alpha: the learning rate at the first and at the last word; linear between.
        window: the largest distance between a word and its context.
        min_count: words seen less often are left out.
        max_vocab_size: a bound on distinct words while counting (rare ones are pruned above it).
        sample: threshold of sub-sampling of frequent words (0: none; >= 1: a count).
        seed: keys the initial vectors and every random draw of training.
        workers: threads (default ``torch.get_num_threads()``; gensim: 3).
        sg: 1 for skip-gram, 0 for CBOW.
        hs: 1 for hierarchical softmax; give ``negative=0`` with it.
        negative: noise words per positive; 0 for none.
        ns_exponent: noise words are drawn proportionally to count ** ns_exponent.
        cbow_mean: CBOW takes the mean of the window's vectors (1) or their sum (0).
        hashfxn: accepted and not used: initial vectors come from a seeded torch generator.
        epochs: passes over the text.
        null_word: only 0.
        trim_rule: callable (word, count, min_count) -> gensim's RULE_DEFAULT (0), RULE_DISCARD (1)
            or RULE_KEEP (2). Reads the text twice, so it refuses what can be read only once.
        sorted_vocab: only 1: ids are in order of falling counts.
        batch_words: accepted and not used: there are no batches to size.
        compute_loss: sum the loss (fp64) for :meth:`get_latest_training_loss`.
        callbacks: objects with any of ``on_train_begin``, ``on_epoch_begin``, ``on_epoch_end``,
            ``on_train_end`` (gensim's ``CallbackAny2Vec`` among them), called with the model.
        comment: kept, as in gensim.
        max_final_vocab: raise min_count until at most so many words remain.
        shrink_windows: draw each word's reach from 1..window; False: always ``window``.
        shared_negatives: "window": the words of one window share their noise words (the fast
            default); "pair": word2vec's own, noise for each pair. CBOW has one set either way.
        device: "cpu" or "cuda". The tables rest on the CPU; training moves them for its duration.
        checkpoint: a folder for checkpoints, created if needed and locked while in use. A run that
            was killed goes on from there, mid-epoch, when it is started again with the same
            text and settings: to the same bits in deterministic mode or with ``workers=1``. None:
            no checkpoints. With it, SIGINT and SIGTERM stop training after a checkpoint
            (:class:`TrainingInterrupted`, a ``KeyboardInterrupt``). A full disk is a warning and
            training goes on; the checkpoint before stays whole.
        checkpoint_every: seconds between two checkpoints (also written at the end of an epoch, if
            the last one is older than 10 s); 0: after every chunk of the text.
        resume: go on from a checkpoint found there; False: start anew.
        cache_dir: the folder where the encoded text is kept and reused. None: a temporary folder,
            removed after training.
        progress: a progress bar on standard error; None: where that is a terminal.
        backend: force a backend of ``ops.skipgram``.

    Attributes:
        wv: :class:`KeyedVectors`; ``wv.weight`` is the table of word vectors, an ``nn.Parameter``.
        vocabulary: words and counts (:class:`vecsmith.data.Vocabulary`).
        syn1neg, syn1: the output tables [V, D] (negative sampling) and [V-1, D] (hierarchical
            softmax), NumPy views; None where there is none.
        corpus_count, corpus_total_words: sentences (those with words of the vocabulary) and raw
            words (all) of the text last counted.
        total_train_time: seconds. train_count: finished calls of :meth:`train`.
        min_alpha_yet_reached: the rate at which training stopped.

    Under ``torch.use_deterministic_algorithms(True)`` the same seed gives the same bits for any
    number of workers; otherwise several workers update the tables without locks (Hogwild).

    Raises:
        ValueError, TypeError: for an option out of range, before anything is read or written.
        CheckpointError: the checkpoint found is damaged, or of other settings or another text.
        FolderInUseError: another run is using the checkpoint folder.
        BackendUnavailable: a forced backend that cannot run here.
    """

    def __init__(
        self,
        sentences: Iterable[list[str]] | Corpus | None = None,
        corpus_file: Any = None,
        vector_size: int = 100,
        alpha: float = 0.025,
        window: int = 5,
        min_count: int = 5,
        max_vocab_size: int | None = None,
        sample: float = 1e-3,
        seed: int = 1,
        workers: int | None = None,
        min_alpha: float = 0.0001,
        sg: int = 0,
        hs: int = 0,
        negative: int = 5,
        ns_exponent: float = 0.75,
        cbow_mean: int = 1,
        hashfxn: Callable[[str], int] | None = None,
        epochs: int = 5,
        null_word: int = 0,
        trim_rule: Callable[[str, int, int], int] | None = None,
        sorted_vocab: int = 1,
        batch_words: int = 10_000,
        compute_loss: bool = False,
        callbacks: Iterable[Any] = (),
        comment: str | None = None,
        max_final_vocab: int | None = None,
        shrink_windows: bool = True,
        *,
        shared_negatives: str = "window",
        device: str | torch.device = "cpu",
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
        checkpoint_every: float = 60.0,
        resume: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool | None = None,
        backend: str | None = None,
    ) -> None:
        self.vector_size = check.integer("vector_size", vector_size, 1, 1 << 20)
        self.alpha = check.rate("alpha", alpha)
        self.min_alpha = check.rate("min_alpha", min_alpha, zero=True)
        if self.min_alpha > self.alpha:
            logger.warning(
                "min_alpha=%g is above alpha=%g: the learning rate will rise",
                self.min_alpha,
                self.alpha,
            )
        self.window = check.integer("window", window, 1, 1 << 20)
        self.min_count = check.integer("min_count", min_count, 0)
        self.max_vocab_size = check.optional("max_vocab_size", max_vocab_size)
        self.max_final_vocab = check.optional("max_final_vocab", max_final_vocab)
        self.sample = check.finite("sample", sample, low=0.0)
        self.seed = check.integer("seed", seed, 0, (1 << 63) - 1)
        self.workers = check.integer(
            "workers", torch.get_num_threads() if workers is None else workers, 1, 1 << 12
        )
        self.sg = check.flag("sg", sg)
        self.hs = check.flag("hs", hs)
        self.negative = check.integer("negative", negative, 0, 1 << 16)
        check.objective(self.hs, self.negative)
        if self.hs and self.negative:
            logger.warning(
                "hs=1 and negative=%d: both hierarchical softmax and negative sampling are "
                "trained; set one of them to 0 if that is not meant",
                self.negative,
            )
        self.ns_exponent = check.finite("ns_exponent", ns_exponent)
        self.cbow_mean = check.flag("cbow_mean", cbow_mean)
        self.hashfxn = hashfxn
        self.epochs = check.integer("epochs", epochs, 1)
        self.null_word = check.null_word(null_word)
        self.sorted_vocab = check.sorted_vocab(sorted_vocab)
        self.batch_words = check.integer("batch_words", batch_words, 1)
        self.compute_loss = bool(compute_loss)
        self.comment = comment
        self.shrink_windows = bool(shrink_windows)
        self.shared_negatives = check.shared_negatives(shared_negatives)
        self.device = check.device(device)
        self.backend = check.backend(backend, self.device)
        self.progress = progress if progress is None else bool(progress)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.checkpoint = check.checkpoint(checkpoint, checkpoint_every, resume)
        callbacks = check.callbacks(callbacks)
        check.trim_rule(trim_rule)

        self._chunk_positions = _driver.CHUNK_POSITIONS[self.device.type]
        self.train_count = 0
        self.total_train_time = 0.0
        self.corpus_count = 0
        self.corpus_total_words = 0
        self.running_training_loss = 0.0
        self.min_alpha_yet_reached = self.alpha
        self.effective_min_count = self.min_count
        self._finished = False
        self._text = KeptText()
        self._set_vocabulary(Vocabulary([], np.zeros(0, dtype=np.int64)))

        if sentences is None and corpus_file is None:
            if callbacks:
                logger.warning(
                    "callbacks are not kept by the model: give them to train(); ignored here"
                )
            return
        source = source_of(sentences, corpus_file)
        with self._holding():
            try:
                self._build_vocab(source, trim_rule, text_check(self.checkpoint, self._plan()))
                self.train(callbacks=callbacks)
            finally:
                self._text.forget()

    # --- vocabulary ---------------------------------------------------------------------------

    def build_vocab(
        self,
        corpus_iterable: Iterable[list[str]] | Corpus | None = None,
        corpus_file: Any = None,
        update: bool = False,
        progress_per: int = 10_000,
        keep_raw_vocab: bool = False,
        trim_rule: Callable[[str, int, int], int] | None = None,
        *,
        sentences: Iterable[list[str]] | Corpus | None = None,
        min_count: int | None = None,
        sample: float | None = None,
    ) -> None:
        """Count the words of a text, choose the vocabulary and prepare the tables.

        The text is encoded at the same time and kept for a :meth:`train` without arguments.

        Args:
            corpus_iterable, corpus_file: as in the constructor. ``sentences``: another name of
                the first, gensim's older one.
            update: add to the vocabulary that is there: old words keep ids and rows, counts add
                up, new words get fresh rows.
            progress_per, keep_raw_vocab: accepted and not used.
            trim_rule: as in the constructor.
            min_count, sample: replace the constructor's.

        Raises:
            ValueError: if no word is left.
            RuntimeError: ``update`` of a model that has no vocabulary yet.
        """
        source = source_of(one_of(corpus_iterable, sentences), corpus_file)
        check.trim_rule(trim_rule)
        if min_count is not None:
            self.min_count = check.integer("min_count", min_count, 0)
        if sample is not None:
            self.sample = check.finite("sample", sample, low=0.0)
        if update and not len(self.vocabulary):
            raise RuntimeError(
                "expected a model with a vocabulary to update; got one with none: call "
                "build_vocab without update first"
            )
        if not update:
            return self._build_vocab(source, trim_rule)
        self._text.forget()
        counted, self.corpus_count = self._counted(source)
        self.corpus_total_words = counted.raw_words
        fresh = self._trim(counted, trim_rule, keep=self.vocabulary)
        return self._grow_vocabulary(self.vocabulary.merged(fresh))

    def _build_vocab(
        self,
        source: Any,
        trim_rule: Callable[[str, int, int], int] | None = None,
        accept: Callable[[Corpus], None] | None = None,
    ) -> None:
        """accept: as in :meth:`Corpus.build`. Where :meth:`train` follows with this text and the
        model's settings, ``text_check`` gives it; build_vocab alone cannot know that."""
        self._text.forget()
        try:
            corpus = self._encode(source, trim_rule=trim_rule, accept=accept)
            self._text.corpus = corpus
            self._text.identity = self._identity(source)
        except BaseException:
            self._text.forget()
            raise
        if trim_rule is None:
            self.effective_min_count = self.min_count
            if self.max_final_vocab is not None:
                self.effective_min_count = max(
                    self.min_count, int(corpus.vocabulary.counts.min(initial=1))
                )
        self.corpus_count = corpus.offsets.numel() - 1
        self.corpus_total_words = corpus.raw_words
        self._set_vocabulary(corpus.vocabulary)

    def build_vocab_from_freq(
        self,
        word_freq: Mapping[str, int],
        keep_raw_vocab: bool = False,
        corpus_count: int | None = None,
        trim_rule: Callable[[str, int, int], int] | None = None,
        update: bool = False,
    ) -> None:
        """As :meth:`build_vocab`, from a table of word frequencies.

        Raises: ValueError if a count is negative or no word is left.
        """
        check.trim_rule(trim_rule)
        for word, count in word_freq.items():
            if not isinstance(word, str):
                raise TypeError(f"expected words to be str; got {word!r}")
            check.integer(f"the count of {word!r}", count, 0)
        # gensim's order of words with equal counts: the later one first.
        words = sorted(word_freq, key=lambda word: word_freq[word])[::-1]
        counted = Vocabulary(words, [int(word_freq[word]) for word in words])
        vocabulary = self._trim(counted, trim_rule, keep=self.vocabulary if update else None)
        if not len(vocabulary) and not update:
            raise ValueError(
                f"expected words with counts of at least min_count={self.min_count}; "
                f"got none among {len(word_freq)}"
            )
        self._text.forget()
        self.corpus_count = corpus_count or 0
        self.corpus_total_words = vocabulary.raw_words
        if update:
            self._grow_vocabulary(self.vocabulary.merged(vocabulary))
        else:
            self._set_vocabulary(vocabulary)

    def _set_vocabulary(self, vocabulary: Vocabulary, fresh: bool = True) -> None:
        """Tables for a new vocabulary: fresh ones, or to be filled by the caller."""
        rows = len(vocabulary)
        table = ops.empty_table(rows, self.vector_size)
        if fresh:
            _initialize(table, self.seed)
        self._output = self._tree = None
        if self.negative:
            self._output = ops.empty_table(rows, self.vector_size).zero_()
        if self.hs:
            self._tree = ops.empty_table(max(rows - 1, 0), self.vector_size).zero_()
        self._set_vectors(vocabulary, table)

    def _grow_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Tables for a vocabulary that begins with the words of the present one."""
        before, rows = len(self.vocabulary), len(vocabulary)

        def grown(table: Tensor, rows: int) -> Tensor:
            larger = ops.empty_table(rows, self.vector_size)
            larger[: len(table)] = table
            larger[len(table) :] = 0
            return larger

        # One table at a time, each old one freed before the next is allocated.
        if self._output is not None:
            self._output = grown(self._output, rows)
        if self._tree is not None:
            self._tree = grown(self._tree, max(rows - 1, 0))
        table = grown(self._input, rows)
        _initialize(table[before:], self.seed + before)
        self._set_vectors(vocabulary, table)

    def _set_vectors(self, vocabulary: Vocabulary, table: Tensor) -> None:
        self.vocabulary = vocabulary
        self.wv = KeyedVectors(vocabulary.words, table, counts=vocabulary.counts)

    @property
    def _input(self) -> Tensor:
        return self.wv.weight.detach()

    def _tables(self) -> Tables:
        return Tables(self._input, self._output, self._tree)

    # --- the text -----------------------------------------------------------------------------

    def _encode(
        self,
        source: Any,
        vocabulary: Vocabulary | None = None,
        trim_rule: Callable[[str, int, int], int] | None = None,
        accept: Callable[[Corpus], None] | None = None,
    ) -> Corpus:
        if isinstance(source, Corpus):
            if vocabulary is not None and source.vocabulary.words != vocabulary.words:
                raise ValueError(
                    "expected a Corpus encoded with this model's vocabulary "
                    f"({len(vocabulary)} words); got one with another "
                    f"({len(source.vocabulary)} words)"
                )
            if trim_rule is not None:
                raise ValueError("expected a text with trim_rule; got an encoded Corpus")
            return source
        settings: dict[str, Any] = {"num_threads": self.workers, "accept": accept}
        if trim_rule is not None:
            if read_once(source):
                raise ValueError(
                    "expected a text that can be read twice with trim_rule (a file, a folder, a "
                    f"list); got {'standard input' if source == '-' else type(source).__name__}"
                )
            vocabulary = self._trim(self._counted(source)[0], trim_rule)
            if not len(vocabulary):
                raise ValueError("expected trim_rule to leave words in the vocabulary; got none")
        if vocabulary is not None:
            settings["vocabulary"] = vocabulary
        else:
            settings["min_count"] = max(1, self.min_count)
            settings["max_vocab_size"] = self.max_vocab_size
            settings["max_final_vocab"] = self.max_final_vocab
        return self._build(source, self._text.folder(self.cache_dir), **settings)

    def _counted(self, source: Any) -> tuple[Vocabulary, int]:
        """Every word of a text with its count, and the number of sentences."""
        if isinstance(source, Corpus):
            return source.vocabulary, len(source)
        with tempfile.TemporaryDirectory(prefix="vecsmith-") as folder:
            corpus = self._build(
                source,
                Path(folder),
                min_count=1,
                max_vocab_size=self.max_vocab_size,
                num_threads=self.workers,
            )
            return corpus.vocabulary, len(corpus)

    def _trim(
        self,
        counted: Vocabulary,
        rule: Callable[[str, int, int], int] | None,
        keep: Vocabulary | None = None,
    ) -> Vocabulary:
        """What this model's limits and the rule leave of counted words; see :func:`trimmed`."""
        vocabulary, self.effective_min_count = trimmed(
            counted, self.min_count, self.max_final_vocab, rule, keep
        )
        return vocabulary

    def _build(self, source: Any, folder: Path, **settings: Any) -> Corpus:
        with ReadingBar(self.progress) as bar:
            return Corpus.build(source, folder, progress=bar, exclude=self._written(), **settings)

    def _written(self) -> list[Path]:
        """Where this model writes: no text, though it may lie in the folder of the text."""
        folders = [] if self.checkpoint is None else [self.checkpoint.folder]
        return folders if self.cache_dir is None else [*folders, self.cache_dir]

    def _identity(self, source: Any) -> Any:
        return identity(source, self._text.folder(self.cache_dir), self._written())

    def _corpus_for(self, source: Any, plan: Plan) -> Corpus:
        """The text of a call of train(), encoded with this model's vocabulary."""
        if self._text.corpus is not None:
            found = self._identity(source)
            if source is None or (found is not None and found == self._text.identity):
                return self._text.corpus
        if source is None:
            raise TypeError(
                "expected sentences or a corpus_file; got neither, and no text is left from "
                "build_vocab"
            )
        accept = text_check(self.checkpoint, plan)
        return self._encode(source, vocabulary=self.vocabulary, accept=accept)

    # --- training -----------------------------------------------------------------------------

    def train(
        self,
        corpus_iterable: Iterable[list[str]] | Corpus | None = None,
        corpus_file: Any = None,
        total_examples: int | None = None,
        total_words: int | None = None,
        epochs: int | None = None,
        start_alpha: float | None = None,
        end_alpha: float | None = None,
        word_count: int = 0,
        queue_factor: int = 2,
        report_delay: float = 1.0,
        compute_loss: bool | None = None,
        callbacks: Iterable[Any] = (),
        *,
        sentences: Iterable[list[str]] | Corpus | None = None,
    ) -> tuple[int, int]:
        """Train on a text; may be called again to go on, with the same text or another.

        Args:
            corpus_iterable, corpus_file, sentences: as in :meth:`build_vocab`; none of them: the
                text that was given to :meth:`build_vocab`. Words that are not in the vocabulary
                are skipped.
            total_examples, total_words: sentences or raw words that count as one epoch for the
                learning rate. None: those of the text (gensim demands one of them).
            epochs: passes over the text (None: the model's).
            start_alpha, end_alpha: replace the model's alpha and min_alpha, as in gensim.
            word_count, queue_factor, report_delay: accepted and not used.
            compute_loss: None: the model's.
            callbacks: as in the constructor.

        Returns:
            (words trained on, before sub-sampling; raw words read), both over all epochs.

        Raises:
            RuntimeError: no vocabulary yet.
            As the constructor: CheckpointError, FolderInUseError, TrainingInterrupted.
        """
        source = None
        iterable = one_of(corpus_iterable, sentences)
        if iterable is not None or corpus_file is not None:
            source = source_of(iterable, corpus_file)
        epochs = self.epochs if epochs is None else check.integer("epochs", epochs, 1)
        alpha = self.alpha if start_alpha is None else check.rate("start_alpha", start_alpha)
        min_alpha = (
            self.min_alpha if end_alpha is None else check.rate("end_alpha", end_alpha, zero=True)
        )
        if total_examples is not None:
            total_examples = check.integer("total_examples", total_examples, 1)
        if total_words is not None:
            total_words = check.integer("total_words", total_words, 1)
        callbacks = check.callbacks(callbacks)
        if not len(self.vocabulary):
            raise RuntimeError("expected a vocabulary; got a model with none: call build_vocab")
        if len(self.wv) != len(self.vocabulary):
            raise RuntimeError(
                f"expected the {len(self.vocabulary)} vectors of the vocabulary in wv; got "
                f"{len(self.wv)}: add words with build_vocab(update=True)"
            )
        if alpha > self.min_alpha_yet_reached:
            logger.warning("alpha=%g is above the rate that earlier training ended with", alpha)
        with self._holding():
            plan = self._plan(epochs, alpha, min_alpha)
            corpus = self._corpus_for(source, plan)
            tokens, sentence_count = corpus.tokens.numel(), corpus.offsets.numel() - 1
            words_per_epoch = tokens
            if total_examples is not None:
                words_per_epoch = round(tokens * total_examples / max(sentence_count, 1))
            elif total_words is not None:
                words_per_epoch = round(tokens * total_words / max(corpus.raw_words, 1))
            if not tokens:
                logger.warning("the text has no word of the vocabulary: nothing is trained")
            self.alpha, self.min_alpha, self.epochs = alpha, min_alpha, epochs
            if compute_loss is not None:
                self.compute_loss = bool(compute_loss)
            self.running_training_loss = 0.0
            plan.words_per_epoch, plan.compute_loss = max(words_per_epoch, 1), self.compute_loss
            self._train(corpus, plan, callbacks)
            raw_words = corpus.raw_words
            del corpus
        self._text.forget()
        return tokens * epochs, raw_words * epochs

    def _plan(
        self,
        epochs: int | None = None,
        alpha: float | None = None,
        min_alpha: float | None = None,
    ) -> Plan:
        """All but what the text decides; the model's own settings in place of None."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        settled = {
            "vector_size": self.vector_size,
            "min_count": self.min_count,
            "max_vocab_size": self.max_vocab_size,
            "max_final_vocab": self.max_final_vocab,
            "hs": self.hs,
            "ns_exponent": self.ns_exponent,
            "sample": self.sample,
            "train_count": self.train_count,
            "deterministic": deterministic,
            "device": self.device.type,
        }
        if self.checkpoint is not None and self.train_count:
            # What went before is part of the result.
            settled["tables"] = checksum(*self._tables().named().values())
        return Plan(
            settings={
                "window": self.window,
                "negative": self.negative,
                "cbow": not self.sg,
                "cbow_mean": bool(self.cbow_mean),
                "shrink_windows": self.shrink_windows,
                "shared_negatives": self.shared_negatives,
                "alpha": self.alpha if alpha is None else alpha,
                "min_alpha": self.min_alpha if min_alpha is None else min_alpha,
                "seed": self.seed,
            },
            epochs=self.epochs if epochs is None else epochs,
            device=self.device,
            chunk_positions=self._chunk_positions,
            identity=settled,
            num_threads=self.workers,
            backend=self.backend,
        )

    def _train(self, corpus: Corpus, plan: Plan, callbacks: list[Any]) -> None:
        tables = self._tables()
        hooks = Hooks(
            epoch_begin=lambda: _call(callbacks, "on_epoch_begin", self),
            epoch_end=lambda: _call(callbacks, "on_epoch_end", self),
            chunk_end=self._chunk_end,
        )
        started = time.monotonic()
        self._finished = False
        try:
            _call(callbacks, "on_train_begin", self)
            _driver.train(
                tables, corpus, self._sampling(), plan, hooks, self.checkpoint, self.progress
            )
        finally:
            self.total_train_time += time.monotonic() - started
        self.train_count += 1
        self._finished = True
        _call(callbacks, "on_train_end", self)

    def _sampling(self) -> dict[str, Any]:
        """The tensors of ops.skipgram that are made from the counts."""
        tensors: dict[str, Any] = {
            "keep": self.vocabulary.keep_probabilities(self.sample),
            "alias": self.vocabulary.alias_table(self.ns_exponent) if self.negative else None,
        }
        if self.hs:
            names = ("path_offsets", "path_nodes", "path_codes")
            tensors.update(zip(names, self.vocabulary.huffman_tree(), strict=True))
        return tensors

    def _chunk_end(self, cursor: Cursor, alpha: float) -> None:
        self.running_training_loss = cursor.loss
        self.min_alpha_yet_reached = alpha

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        with contextlib.nullcontext() if self.checkpoint is None else self.checkpoint.hold():
            yield

    def get_latest_training_loss(self) -> float:
        """The loss summed (fp64) over the last call of :meth:`train`, with ``compute_loss``."""
        return self.running_training_loss

    # --- files --------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, vocab.txt and model.safetensors with all tables, so that
        :meth:`load` can go on training and :meth:`KeyedVectors.load` can use the vectors alone.

        All files are replaced together or none; other files in the folder are left alone. After
        a finished training the checkpoint is removed.

        Raises:
            ValueError: if a vector holds nan or infinity.
            OSError: if the disk is full, or the folder cannot be written.
        """
        _files.save(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **options: Any) -> Word2Vec:
        """Load a model that :meth:`save` has written; training can go on.

        Args:
            folder: the folder.
            options: those of the constructor that are not part of a model: ``workers``,
                ``device``, ``checkpoint``, ``checkpoint_every``, ``resume``, ``cache_dir``,
                ``progress``, ``backend``.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged, the files do not belong together, a vector holds nan
                or infinity, or the folder holds vectors without a model.
            TypeError: for another option.
        """
        return _files.load(cls, folder, options)

    # --- what gensim has besides --------------------------------------------------------------

    @property
    def syn1neg(self) -> np.ndarray | None:
        """The output table of negative sampling [V, D]: a NumPy view."""
        return None if self._output is None else self._output.numpy()

    @property
    def syn1(self) -> np.ndarray | None:
        """The inner nodes of hierarchical softmax [V-1, D]: a NumPy view."""
        return None if self._tree is None else self._tree.numpy()

    @property
    def layer1_size(self) -> int:
        """gensim's other name of ``vector_size``."""
        return self.vector_size

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}<vocab={len(self.wv)}, vector_size={self.vector_size}, "
            f"alpha={self.alpha}>"
        )


def _call(callbacks: list[Any], name: str, model: Word2Vec) -> None:
    for callback in callbacks:
        method = getattr(callback, name, None)
        if method is not None:
            method(model)


def _initialize(table: Tensor, seed: int) -> None:
    """uniform(-1/2, 1/2) / D from a generator, as word2vec starts. table: [rows, D]."""
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    bound = 0.5 / table.shape[1]
    for first in range(0, len(table), _INIT_ROWS):
        rows = table[first : first + _INIT_ROWS]
        rows.copy_(torch.empty(rows.shape).uniform_(-bound, bound, generator=generator))
