"""SentenceAutoencoder: sentences to vectors, and vectors back to their sentences.

Around it: tokens (``_sentence_tokens.py``), encoders and decoders by name
(``_sentence_modules.py``), the meaning of words (``_sentence_meaning.py``), saving and loading
(``_sentence_files.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith import eval as measures
from vecsmith.io._open import lines
from vecsmith.models import _options as check
from vecsmith.models import _sentence_files, _sentence_modules
from vecsmith.models._sentence_meaning import SentenceMeaning, token_table
from vecsmith.models._sentence_tokens import SentenceTokens, check_text

_BATCH = 1024


@dataclass(frozen=True)
class Reconstruction:
    """The outcome of :meth:`SentenceAutoencoder.evaluate`, always free running.

    Attributes:
        token_accuracy: share of the tokens that came back at their place (0 to 1; no padding; what
            the tokenizer does not know cannot come back).
        exact_match: share of the sentences that came back as they were, to the last character.
        bleu: corpus BLEU-4 of the decoded sentences (0 to 1).
        cosine: mean cosine of the vectors of the decoded sentences and of the sentences.
        sentences: how many there were.
    """

    token_accuracy: float
    exact_match: float
    bleu: float
    cosine: float
    sentences: int

    def __str__(self) -> str:
        return (
            f"exact match {100 * self.exact_match:.2f} %, tokens {100 * self.token_accuracy:.2f} "
            f"%, BLEU {100 * self.bleu:.2f}, cosine {self.cosine:.4f} "
            f"({self.sentences} sentences)"
        )


class SentenceAutoencoder:
    """Sentence vectors that can be turned back into their sentence.

        sentence -> tokens -> encoder -> s [D] -> decoder -> tokens -> sentence

    With ``encoder="rotation"`` s is a sum of rotated token vectors with falling amplitudes, decoded
    token by token with the help of a language model of n-grams:
    :class:`vecsmith.nn.RotationBinding` has the formulas. Nothing but the vocabulary and the
    n-grams is learned, in seconds.

    With ``meaning`` the first ``meaning_size`` numbers of a vector are the weighted mean of word
    vectors, of length ``meaning_weight``, and the encoder's vector is the rest, of length
    (1 - meaning_weight^2)^(1/2): cosines of vectors are cosines of meaning.

    Args:
        sentences: an iterable of strings to :meth:`fit`; None: an untrained model.
        corpus_file: a text with one sentence per line (UTF-8; plain, .gz, .bz2, .xz, .zst) instead.
        vector_size: D.
        encoder: "rotation", or a recurrent layer that begins as one and is trained: "rnn", "lstm",
            "bilstm", "gru", "residual_rnn" (:class:`vecsmith.nn.RecurrentEncoder` and
            :class:`vecsmith.nn.RecurrentDecoder` have the formulas).
        tokenizer: "bpe", "wordpiece" or "word", trained on the sentences; a
            ``tokenizers.Tokenizer``; or the path of its JSON.
        vocab_size: V at most, special tokens included, where the tokenizer is trained.
        max_length: the longest sentence, in tokens ("rotation": up to 1024).
        truncate: cut longer sentences there instead of a ValueError.
        unknown: "token": what the tokenizer does not know becomes "<unk>"; "error": a ValueError.
        token_embeddings: None or "random": the encoder's own; a matrix [V, E], or a
            :class:`KeyedVectors` or :class:`Word2Vec` whose words are tokens (others are random):
            frozen.
        meaning: a :class:`KeyedVectors` or :class:`Word2Vec` of lower-case words, or None.
        meaning_size: the numbers that it takes of D; None: the smaller of its own size and D / 2.
        meaning_weight: in (0, 1).
        seed: of everything that is drawn.
        device: "cpu" or "cuda".
        progress: a progress bar on standard error; None: where that is a terminal.
        options: of the encoder. "rotation": ``gamma``, ``snr``, ``noise``, ``beam`` as in
            :class:`vecsmith.nn.RotationBinding`, ``language_model``: the order of the n-grams (4;
            0: none). Recurrent: ``decay``, ``feedback``, ``hidden_size``, ``start`` as in
            :class:`vecsmith.nn.RecurrentDecoder`, ``decoder``: its cell (None: the encoder's),
            ``embedding_size``: E where ``token_embeddings`` do not say it (None: D),
            ``train_embeddings`` (False).

    Attributes:
        tokens: the tokenizer, and numbers of sentences.
        encoder, decoder: modules; None before :meth:`fit`.
        history: of a recurrent model, what :meth:`fit` found before the first epoch (0) and after
            each: {"epoch", "loss" (not of 0), and of held-out sentences "exact_match" and
            "token_accuracy", which counts eos}. Not saved.

    Raises:
        ValueError, TypeError: for an option out of range, before anything is read.
    """

    def __init__(
        self,
        sentences: Iterable[str] | None = None,
        corpus_file: Any = None,
        vector_size: int = 512,
        *,
        encoder: str = "rotation",
        tokenizer: Any = "bpe",
        vocab_size: int = 8000,
        max_length: int = 64,
        truncate: bool = False,
        unknown: str = "token",
        token_embeddings: Any = None,
        meaning: Any = None,
        meaning_size: int | None = None,
        meaning_weight: float = 0.98,
        seed: int = 1,
        device: str | torch.device = "cpu",
        progress: bool | None = None,
        **options: Any,
    ) -> None:
        self.vector_size = check.integer("vector_size", vector_size, 2, 1 << 20)
        self.encoder_kind = encoder
        self.options = _sentence_modules.options(encoder, options)
        self.vocab_size = check.integer("vocab_size", vocab_size, 8, 1 << 24)
        self.max_length = check.integer("max_length", max_length, 1, 1 << 12)
        self.truncate = bool(truncate)
        self.unknown = unknown
        self.seed = check.integer("seed", seed, 0, (1 << 63) - 1)
        self.device = check.device(device)
        self.progress = progress if progress is None else bool(progress)
        self.tokens = SentenceTokens(
            tokenizer, max_length=self.max_length, truncate=self.truncate, unknown=unknown
        )
        self.tokenizer_kind = self.tokens.kind
        self.meaning_weight = check.finite("meaning_weight", meaning_weight)
        if not 0 < self.meaning_weight < 1:
            raise ValueError(f"expected meaning_weight in (0, 1); got {self.meaning_weight}")
        self.meaning: SentenceMeaning | None = None
        self.meaning_size = 0
        if meaning is not None:
            self._set_meaning(SentenceMeaning.from_vectors(meaning, meaning_size, self.vector_size))
        elif meaning_size is not None:
            raise ValueError("expected meaning with meaning_size; got none")
        size = self.vector_size - self.meaning_size
        _sentence_modules.kind(encoder).check(size, self.max_length, self.options)
        self._token_embeddings = token_embeddings
        self.history: list[dict[str, float]] = []
        self.encoder: nn.Module | None = None
        self.decoder: nn.Module | None = None
        if sentences is not None or corpus_file is not None:
            self.fit(sentences, corpus_file)

    def _set_meaning(self, meaning: SentenceMeaning) -> None:
        self.meaning, self.meaning_size = meaning, meaning.size
        if meaning.size >= self.vector_size:
            raise ValueError(
                f"expected meaning_size < vector_size={self.vector_size}; got {meaning.size}"
            )

    # --- training -----------------------------------------------------------------------------

    def fit(
        self, sentences: Iterable[str] | None = None, corpus_file: Any = None, **options: Any
    ) -> SentenceAutoencoder:
        """Train the tokenizer (unless it was given), the encoder and the decoder; what was trained
        before is replaced.

        Args:
            sentences, corpus_file: as in the constructor.
            options: of the encoder's training ("rotation" has none). Recurrent:

                * ``epochs`` (10), ``batch_size`` (32), ``alpha`` and ``min_alpha``: Adam's rate at
                  the first and the last step, in parts of a parameter's own size; ``warmup``: the
                  part of all steps over which it rises; ``clip``: of the gradient's norm.
                * ``loss``: "match", the squared error of the tokens whose nearest row is another,
                  or "cross_entropy"; ``consistency``: the weight of the cosine between a vector
                  and that of what is decoded from it, through Gumbel-softmax at
                  ``gumbel_temperature``; ``distillation``: of the cosine, after a linear map, to
                  the vectors of ``teacher``, any callable list[str] -> [B, D'].
                * ``noise``: on the vectors, in parts of their norm (0.01); ``held_out``: the part
                  of the sentences that says when to stop, ``patience``: after how many epochs
                  without a better result, or at once where all came back. The best is kept, be it
                  what there was before the first epoch.
                * ``checkpoint``: a folder that a killed run goes on from, ``checkpoint_every``
                  seconds, ``resume``; ``after_epoch``: called with each entry of ``history``.

        Returns: the model.

        Raises:
            ValueError: there is no sentence, or one is too long and ``truncate`` is False.
            ValueError, TypeError: options that do not fit, before anything is changed.
        """
        kind = _sentence_modules.kind(self.encoder_kind)
        plan = kind.plan(self.seed, options)
        texts = read_sentences(sentences, corpus_file)
        self.tokens.train(texts, self.vocab_size)
        rows = self.tokens.numbers(texts)
        self._build()
        kind.fit(self, texts, rows, plan)
        return self

    def _build(self) -> None:
        """Fresh modules for the tokenizer that is there."""
        table = token_table(self._token_embeddings, self.tokens, self.seed)
        size, gain = self.vector_size - self.meaning_size, 1.0
        if self.meaning is not None:
            gain = (size / self.vector_size / (1 - self.meaning_weight**2)) ** 0.5
        parts = _sentence_modules.Parts(self.tokens, size, table, self.max_length, self.seed, gain)
        encoder, decoder = _sentence_modules.kind(self.encoder_kind).build(parts, self.options)
        self.encoder = encoder.to(self.device).eval()
        self.decoder = decoder.to(self.device).eval()

    # --- sentences and vectors ----------------------------------------------------------------

    @torch.no_grad()
    def encode(self, sentences: Sequence[str] | str) -> Tensor:
        """The vectors of sentences: [B, D] float32, of one string [D].

        Raises:
            ValueError: for a sentence that is too long, or holds what is unknown and may not.
            RuntimeError: for a model that was not trained.
        """
        if isinstance(sentences, str):
            return self.encode([sentences])[0]
        sentences = _listed(sentences)  # they are read more than once
        return self._encoded(sentences, self.tokens.numbers(sentences))

    @torch.no_grad()
    def _encoded(self, sentences: Sequence[str], rows: list[list[int]]) -> Tensor:
        """The vectors of sentences, whose tokens are rows."""
        encoder, _ = self._modules()
        parts = []
        for start in range(0, len(rows), _BATCH):
            ids, lengths = self.tokens.batch(rows[start : start + _BATCH])
            vectors = encoder(ids.to(self.device), lengths.to(self.device)).float()
            if self.meaning is not None:
                meant = self.meaning(sentences[start : start + _BATCH]).to(vectors)
                weight = self.meaning_weight
                code = _sentence_modules.unit(encoder, vectors) * (1 - weight**2) ** 0.5
                vectors = torch.cat([weight * meant, code], 1)
                if not _sentence_modules.lengths_matter(encoder):
                    # Of length 1 also where no word is known, and there is no meaning.
                    vectors = nn.functional.normalize(vectors, dim=1)
            parts.append(vectors)
        return torch.cat(parts) if parts else torch.zeros(0, self.vector_size, device=self.device)

    def decode(
        self,
        vectors: Any,
        method: str = "greedy",
        temperature: float = 1.0,
        *,
        max_length: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """The sentences of vectors [B, D] (a tensor or an array), free running.

        Args:
            vectors: as :meth:`encode` gives them, rounded and noisy as may be.
            method: "greedy", or "multinomial": tokens are drawn.
            temperature: of the draw.
            max_length: tokens at most; None: the model's.
            generator: of the draw.

        Raises:
            ValueError: for vectors of another size, and a row that is 0 or holds nan or infinity.
            RuntimeError: for a model that was not trained.
        """
        return self.tokens.decode(
            self._decoded(vectors, method, temperature, max_length, generator)
        )

    def _decoded(
        self,
        vectors: Any,
        method: str = "greedy",
        temperature: float = 1.0,
        max_length: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Rows of tokens, without eos."""
        decoder: Any = self._modules()[1]
        if method not in ("greedy", "multinomial"):
            raise ValueError(f"expected method to be 'greedy' or 'multinomial'; got {method!r}")
        temperature = check.finite("temperature", temperature)
        if temperature <= 0:
            raise ValueError(f"expected temperature > 0; got {temperature}")
        if isinstance(vectors, np.ndarray):
            vectors = np.ascontiguousarray(vectors)  # torch takes no strides below 0
        try:
            vectors = torch.as_tensor(vectors).float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"expected vectors to be numbers [B, D]; got {error}") from None
        if vectors.layout != torch.strided:
            raise TypeError(f"expected vectors to be dense; got {vectors.layout}")
        if vectors.dim() != 2 or vectors.shape[1] != self.vector_size:
            raise ValueError(f"expected vectors [B, {self.vector_size}]; got {list(vectors.shape)}")
        code = vectors[:, self.meaning_size :].to(self.device)
        wrong = ~vectors.isfinite().all(1).to(self.device) | ~code.any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            value = "0" if bool(vectors[row].isfinite().all()) else "nan or infinity"
            raise ValueError(
                f"expected vectors that are finite and not 0; got {value} in row {row}"
            )
        steps = self.max_length if max_length is None else max_length
        steps = check.integer("max_length", steps, 0, self.max_length)
        drawing = (method, temperature, generator)
        if self.meaning is not None:
            share = (1 - self.meaning_weight**2) ** 0.5
            code = _sentence_modules.from_unit(self.encoder, code / share)
        rows: list[list[int]] = []
        with torch.no_grad():
            for part in code.split(_BATCH):
                rows += self.tokens.strip(decoder.decode(part, steps, *drawing))
        return rows

    def reconstruct(self, sentences: Sequence[str], **options: Any) -> list[str]:
        """Encode and :meth:`decode` (which takes the options) sentences."""
        return self.decode(self.encode(sentences), **options)

    def interpolate(self, first: str, second: str, steps: int = 5, **options: Any) -> list[str]:
        """Sentences on the straight line between two: of (1 - x) s_1 + x s_2 for ``steps`` values
        of x from 0 to 1. ``options`` are those of :meth:`decode`.

        Raises: ValueError for fewer than 2 steps.
        """
        steps = check.integer("steps", steps, 2)
        ends = self.encode([first, second])
        share = torch.linspace(0, 1, steps, device=ends.device)[:, None]
        return self.decode((1 - share) * ends[0] + share * ends[1], **options)

    def evaluate(
        self,
        sentences: Iterable[str],
        *,
        round_to: torch.dtype | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ) -> Reconstruction:
        """How well sentences come back, free running (the decoder sees nothing but the vector).

        Args:
            sentences: the sentences.
            round_to: a dtype, such as torch.bfloat16, that vectors are rounded to first.
            noise: the norm of Gaussian noise that is added then, as a share of each vector's.
            seed: of the noise.

        Raises: ValueError if there is no sentence.
        """
        texts = _listed(sentences)
        if not texts:
            raise ValueError("expected sentences; got none")
        noise = check.finite("noise", noise, low=0.0)
        vectors = self.encode(texts)
        blurred = vectors if round_to is None else vectors.to(round_to).to(vectors.dtype)
        if noise:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(blurred.shape, generator=generator).to(blurred)
            drawn = nn.functional.normalize(drawn, dim=1)
            blurred = blurred + noise * blurred.norm(dim=1, keepdim=True) * drawn
        rows = self._decoded(blurred)
        decoded = self.tokens.decode(rows)
        # What is wrong may be more tokens when it is read again than it was when it was written.
        again = self._encoded(decoded, self.tokens.numbers(decoded, lenient=True))
        # What the tokenizer did not know is lost, though "<unk>" came back.
        expected = [
            [None if token == self.tokens.unk else token for token in row]
            for row in self.tokens.numbers(texts)
        ]
        return Reconstruction(
            measures.token_accuracy(expected, rows),
            measures.exact_match(texts, decoded),
            measures.bleu(texts, decoded),
            float(nn.functional.cosine_similarity(again, vectors, dim=1).mean()),
            len(texts),
        )

    def _modules(self) -> tuple[nn.Module, nn.Module]:
        if self.encoder is None or self.decoder is None:
            raise RuntimeError("expected a trained model; got none: call fit first")
        return self.encoder, self.decoder

    # --- files --------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, tokenizer.json, model.safetensors, and words.txt where
        there is ``meaning``. All are replaced together or none.

        Raises:
            RuntimeError: for a model that was not trained.
            ValueError: if a number is nan or infinite.
            OSError: if the disk is full, or the folder cannot be written.
        """
        self._modules()
        _sentence_files.save(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **options: Any) -> SentenceAutoencoder:
        """Load a model that :meth:`save` has written.

        Args:
            folder: the folder.
            options: ``device``, ``progress``, ``truncate``, ``unknown``.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged, foreign or of another model.
            TypeError: for another option.
        """
        return _sentence_files.load(cls, folder, options)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}<encoder={self.encoder_kind!r}, vocab={len(self.tokens)}, "
            f"vector_size={self.vector_size}>"
        )


def _listed(sentences: Iterable[str]) -> list[str]:
    try:
        return list(sentences)
    except TypeError:
        raise TypeError(
            f"expected sentences to be an iterable of strings; got {sentences!r}"
        ) from None


def read_sentences(sentences: Iterable[str] | None, corpus_file: Any) -> list[str]:
    """The sentences that were given, or those of a file: its lines that are not empty."""
    if (sentences is None) == (corpus_file is None):
        raise TypeError(
            "expected either sentences or a corpus_file; got "
            + ("neither" if sentences is None else "both")
        )
    if sentences is not None:
        if isinstance(sentences, (str, bytes, os.PathLike)):
            raise TypeError(
                f"expected sentences to be an iterable of strings; got {sentences!r} (a file goes "
                "into corpus_file)"
            )
        found = list(sentences)
        for index, sentence in enumerate(found):
            if not isinstance(sentence, str):
                raise TypeError(
                    f"expected sentences to be strings; got {type(sentence).__name__} at {index}"
                )
            check_text(sentence, index)
    else:
        found = []
        for number, line in enumerate(lines(corpus_file), 1):
            try:
                text = line.decode("utf8").strip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{corpus_file}: line {number} is not UTF-8: {error}") from None
            if text:
                found.append(text)
    if not found:
        raise ValueError("expected at least one sentence; got none")
    return found
