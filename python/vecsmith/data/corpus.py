"""A text as training reads it: word ids and sentence offsets in memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from vecsmith import _native
from vecsmith.data import _cache
from vecsmith.data._sources import Progress, Source, open_source
from vecsmith.data.vocabulary import Vocabulary


class Corpus:
    """An encoded text. Made by :meth:`build`, found again by :meth:`load`.

    Sentence i is ``tokens[offsets[i]:offsets[i + 1]]``; words outside the vocabulary are left out,
    and so are sentences that have no others. Iterating gives the sentences as lists of words.

    Attributes:
        tokens: int32 [N], word ids. Memory-mapped from a file (privately: writing to it changes
            neither the file nor what others see).
        offsets: int64 [S+1], 0 and the end of each sentence. Memory-mapped likewise.
        vocabulary: the :class:`Vocabulary` the ids belong to.
        raw_words: tokens read, those left out included.
        bad_bytes: bytes of the text that were not UTF-8 and became U+FFFD. (One U+FFFD stands for
            one to three of them, as in ``bytes.decode(errors="replace")``.)
        fingerprint: a digest of the source and the settings; of the outcome and the settings for a
            source that cannot be read twice.
    """

    def __init__(
        self,
        tokens: Tensor,
        offsets: Tensor,
        vocabulary: Vocabulary,
        *,
        raw_words: int,
        bad_bytes: int = 0,
        fingerprint: str = "",
    ) -> None:
        self.tokens = tokens
        self.offsets = offsets
        self.vocabulary = vocabulary
        self.raw_words = raw_words
        self.bad_bytes = bad_bytes
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        """The number of sentences."""
        return self.offsets.numel() - 1

    def __iter__(self) -> Iterator[list[str]]:
        for i in range(len(self)):
            yield self.sentence(i)

    def sentence(self, i: int) -> list[str]:
        """The words of sentence ``i`` in 0..S-1. Raises IndexError outside."""
        if not 0 <= i < len(self):
            raise IndexError(f"expected a sentence in 0..{len(self) - 1}, got {i}")
        ids = self.tokens[self.offsets[i] : self.offsets[i + 1]].tolist()
        return [self.vocabulary.words[id] for id in ids]

    def __repr__(self) -> str:
        return (
            f"Corpus({self.tokens.numel()} tokens in {len(self)} sentences, "
            f"{len(self.vocabulary)} words)"
        )

    @classmethod
    def build(
        cls,
        source: str | os.PathLike[str] | IO[bytes] | Iterable[Iterable[str]],
        cache_dir: str | os.PathLike[str],
        *,
        min_count: int = 5,
        max_vocab_size: int | None = None,
        max_final_vocab: int | None = None,
        max_sentence_length: int = 10_000,
        vocabulary: Vocabulary | None = None,
        num_threads: int | None = None,
        progress: Progress | None = None,
        exclude: Sequence[str | os.PathLike[str]] = (),
        accept: Callable[[Corpus], Any] | None = None,
    ) -> Corpus:
        """Read a text once, count its words, and encode it into files in ``cache_dir``.

        Words are runs of bytes other than ASCII whitespace, sentences are lines (and end where a
        file ends). The text is UTF-8; what is not is replaced by U+FFFD and counted; a byte
        order mark at the beginning of a file is skipped. Compressed text is known by its first
        bytes. The result does not depend on ``num_threads``. Memory grows with the number of
        different words (a few hundred bytes each, in all), not with the text.

        If ``cache_dir`` holds a corpus of the same files (path, size, modification time) and
        settings, and its files have the checksums they were written with, that is what is
        returned, and the text is not read. Streams and iterables cannot be known again: they are
        always read.

        Args:
            source: a file (plain, gzip or Zstandard); a folder, whose files are read in sorted
                order, folders in it included, hidden ones not; "-" for standard input; an open
                binary file; or an iterable of sentences, each an iterable of str (any str).
            cache_dir: a folder; made if need be. What it holds otherwise is left alone.
            min_count: words that occur less often are dropped.
            max_vocab_size: limits the memory for counting, as in gensim: whenever there are more
                words after a sentence, those with a count below a bound are forgotten, and the
                bound rises by one. Counts are then lower bounds.
            max_final_vocab: raises ``min_count`` so that at most this many words remain.
            max_sentence_length: longer sentences are cut after so many tokens (dropped ones
                count).
            vocabulary: encode with these words, count nothing; the three limits above are ignored.
            num_threads: ``torch.get_num_threads()`` if None.
            progress: called as ``progress(bytes_done, bytes_total, words)`` now and then;
                ``bytes_total`` is None where it is not known; bytes are those of compressed text.
            exclude: folders that are no text where they lie in a folder of text, as ``cache_dir``
                is none: what else a run writes.
            accept: called with a corpus that was read, before it takes the place of an older one
                in ``cache_dir``; what it raises leaves the older one there.

        Raises:
            FileNotFoundError, PermissionError: there is no such source, or it may not be read.
            ValueError: the source is empty, binary, truncated or damaged; no word is left in the
                vocabulary; an argument is out of range.
            TypeError: the source, a sentence or a token is of a wrong type.
            BlockingIOError: another build into this folder is under way.
            OSError: the disk is full, or a file cannot be read or written.
            ImportError: Zstandard without the package ``zstandard``.

        Whatever is raised, an older corpus in ``cache_dir`` stays whole.
        """
        folder = Path(cache_dir)
        settings = {
            "min_count": _integer("min_count", min_count, 0),
            "max_vocab_size": _integer("max_vocab_size", max_vocab_size, 1, optional=True),
            "max_final_vocab": _integer("max_final_vocab", max_final_vocab, 1, optional=True),
            "max_sentence_length": _integer("max_sentence_length", max_sentence_length, 1),
            "vocabulary": None,
        }
        if vocabulary is not None:
            if not isinstance(vocabulary, Vocabulary):
                raise TypeError(f"expected a Vocabulary, got {type(vocabulary).__name__}")
            if not len(vocabulary):
                raise ValueError("expected a vocabulary with words in it, got an empty one")
            settings.update(min_count=None, max_vocab_size=None, max_final_vocab=None)
            settings["vocabulary"] = _digest_of(vocabulary)
        threads = _integer("num_threads", num_threads, 1, optional=True) or torch.get_num_threads()
        text = open_source(source, folder, exclude)
        fingerprint = None
        if text.identity is not None:
            fingerprint = _digest(["files", text.identity, settings])
            found = cls._find(folder, fingerprint, vocabulary)
            if found is not None:
                return found
        with _cache.build_lock(folder):
            if fingerprint is not None:
                # It may have been built while we did not hold the lock.
                found = cls._find(folder, fingerprint, vocabulary)
                if found is not None:
                    return found
            with _cache.explain_full_disk(folder), _cache.Draft(folder) as draft:
                manifest, words = _encode(text, draft, settings, vocabulary, threads, progress)
                if fingerprint is None:
                    outcome = [manifest["checksum"], _digest_of(words), settings]
                    fingerprint = _digest(["outcome", outcome])
                manifest = draft.manifest({"fingerprint": fingerprint, **manifest})
                corpus = cls._open(folder, manifest, words)
                if accept is not None:
                    accept(corpus)
                draft.commit(manifest)
            return corpus

    @classmethod
    def load(cls, cache_dir: str | os.PathLike[str]) -> Corpus:
        """The corpus that :meth:`build` left in a folder, whatever it was made from.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged: a file is missing, or has not the checksum it was written
                with.
        """
        folder = Path(cache_dir)
        for attempt in range(10):
            manifest = _cache.read_manifest(folder)
            if manifest is None:
                break
            try:
                _cache.verify(folder, manifest)
                return cls._open(folder, manifest, None)
            except FileNotFoundError as error:
                # A build may just have put another corpus in its place.
                if attempt == 9:
                    raise ValueError(f"{folder}: damaged: {error}") from None
        raise FileNotFoundError(
            f"expected a folder with an encoded corpus, got {folder} without one"
        )

    @classmethod
    def _find(cls, folder: Path, fingerprint: str, vocabulary: Vocabulary | None) -> Corpus | None:
        """The corpus in the folder if it is the one wanted, and whole."""
        try:
            manifest = _cache.read_manifest(folder)
            if manifest is None or manifest["fingerprint"] != fingerprint:
                return None
            _cache.verify(folder, manifest)
            return cls._open(folder, manifest, vocabulary)
        except (ValueError, FileNotFoundError):
            return None

    @classmethod
    def _open(cls, folder: Path, manifest: dict[str, Any], vocabulary: Vocabulary | None) -> Corpus:
        files = {kind: folder / name for kind, name in manifest["files"].items()}
        tokens = _map(files["tokens"], manifest["tokens"], torch.int32)
        offsets = _map(files["offsets"], manifest["sentences"] + 1, torch.int64)
        if int(offsets[0]) != 0 or int(offsets[-1]) != manifest["tokens"]:
            raise ValueError(f"{files['offsets']}: damaged: the sentences do not span the tokens")
        if vocabulary is None:
            vocabulary = Vocabulary.load(files["vocabulary"])
            vocabulary.raw_words = manifest["vocabulary_raw_words"]
        return cls(
            tokens,
            offsets,
            vocabulary,
            raw_words=manifest["raw_words"],
            bad_bytes=manifest["bad_bytes"],
            fingerprint=manifest["fingerprint"],
        )


def _encode(
    text: Source,
    draft: _cache.Draft,
    settings: dict[str, Any],
    vocabulary: Vocabulary | None,
    threads: int,
    progress: Progress | None,
) -> tuple[dict[str, Any], Vocabulary]:
    """Read the text and write the draft's files. Returns what the manifest says of them."""
    bounded = settings["max_vocab_size"] or 0
    reader = _native.CorpusReader(
        tokens_file=draft.open("tokens"),
        offsets_file=draft.open("offsets"),
        spill_file=draft.open("spill") if bounded else -1,
        max_sentence_length=settings["max_sentence_length"],
        max_vocab_size=bounded,
        threads=threads,
    )
    if vocabulary is not None:
        reader.freeze(vocabulary.words)
    text.read_into(reader, progress)
    reader.finish()
    if not reader.raw_words:
        raise ValueError(f"{text.name}: expected a text with words in it, got one with none")
    if vocabulary is None:
        vocabulary, final_ids = _choose_words(reader, settings, text.name)
    else:
        final_ids = np.arange(len(vocabulary), dtype=np.int32)
    tokens, sentences, checksum = reader.rewrite(final_ids)
    if bounded:
        draft.discard("spill")
    vocabulary.save(draft.path("vocabulary"))
    manifest = {
        "source": text.name,
        "reusable": text.identity is not None,
        "settings": settings,
        "tokens": tokens,
        "sentences": sentences,
        "raw_words": reader.raw_words,
        "bad_bytes": reader.bad_bytes,
        "vocabulary_raw_words": vocabulary.raw_words,
        "checksum": f"{checksum:016x}",
    }
    return manifest, vocabulary


def _choose_words(
    reader: Any, settings: dict[str, Any], name: str
) -> tuple[Vocabulary, np.ndarray]:
    """gensim's choice: the vocabulary, and the final id of each of the reader's words (or -1)."""
    counts, orders = reader.counts(), reader.orders()
    least, most = max(settings["min_count"], 1), settings["max_final_vocab"]
    seen = int((counts > 0).sum())
    if most is not None and most < seen:
        below = len(counts) - 1 - most  # the place, in rising order, of the first to go
        least = max(least, int(np.partition(counts, below)[below]) + 1)
    kept = np.flatnonzero(counts >= least)
    if not len(kept):
        limits = f"min_count={settings['min_count']}" + (
            f" and max_final_vocab={most}" if most is not None else ""
        )
        raise ValueError(
            f"{name}: expected words that occur often enough, got none: {limits} leaves nothing of "
            f"{reader.raw_words} tokens, {seen} different words, the most frequent of them "
            f"occurring {int(counts.max(initial=0))} times"
        )
    # gensim sorts by falling count and, among equals, by falling position.
    kept = kept[np.lexsort((-orders[kept], -counts[kept]))]
    final_ids = np.full(len(counts), -1, dtype=np.int32)
    final_ids[kept] = np.arange(len(kept), dtype=np.int32)
    words = reader.words(kept.astype(np.int32))
    return Vocabulary(words, counts[kept], raw_words=reader.raw_words), final_ids


def _map(path: Path, size: int, dtype: torch.dtype) -> Tensor:
    """A file as a tensor [size], memory-mapped."""
    expected, actual = size * dtype.itemsize, os.stat(path).st_size
    if expected != actual:
        raise ValueError(f"{path}: damaged: expected {expected} bytes, got {actual}")
    if size == 0:  # nothing can be mapped
        return torch.empty(0, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_of(vocabulary: Vocabulary) -> str:
    words = [word.encode("utf-8", "surrogatepass") for word in vocabulary.words]
    digest = hashlib.sha256(vocabulary.counts.tobytes())
    # The lengths too: "ab", "c" are not "a", "bc".
    digest.update(np.fromiter(map(len, words), dtype=np.int64, count=len(words)).tobytes())
    digest.update(b"".join(words))
    return digest.hexdigest()


def _integer(name: str, value: Any, least: int, optional: bool = False) -> Any:
    """A checked int (None passes where it is optional)."""
    if value is None and optional:
        return None
    try:
        number = operator.index(cast("Any", value))
    except TypeError:
        raise TypeError(f"expected {name} to be an int, got {type(value).__name__}") from None
    if number < least:
        raise ValueError(f"expected {name} of at least {least}, got {number}")
    return number
