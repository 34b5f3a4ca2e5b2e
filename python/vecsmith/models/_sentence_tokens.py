"""Sentences to tokens and back, exactly: HF tokenizers, trained on the corpus or given.

``tokenizers`` is imported when the first tokenizer is made, not before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KINDS = ("bpe", "wordpiece", "word")
SPECIAL = {"pad": "<pad>", "unk": "<unk>", "bos": "<bos>", "eos": "<eos>"}
# What tokenizers of other makers call them.
_OTHER_NAMES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "unk": ("<unk>", "[UNK]"),
    "bos": ("<bos>", "<s>", "[CLS]", "<|startoftext|>"),
    "eos": ("<eos>", "</s>", "[SEP]", "<|endoftext|>"),
}
# A word keeps the space before it, so that tokens are joined by nothing.
_PIECES = r" ?\w+| ?[^\w\s]|\s"


class SentenceTokens:
    """A tokenizer, its special tokens, and batches of numbers.

    A sentence of T tokens is a row of T + 1 numbers: its tokens, eos, and then pad. ``lengths``
    counts eos. Nothing is normalized: case, punctuation and spaces stay as they are.

    * "bpe": bytes (every string comes back as it was; Sennrich et al. 2016, arXiv:1508.07909).
    * "wordpiece": pieces of words, with characters (Schuster and Nakajima 2012); "word": words and
      marks. A word keeps the space before it. What is outside is unk, and is decoded as "<unk>".
    * a ``tokenizers.Tokenizer``, or the path of one's JSON: what its own ``decode`` gives comes
      back. Its template of special tokens is not used; pad, unk, bos and eos are found by their
      usual names, or added behind its vocabulary.

    Special tokens that stand in a sentence are text.

    Args:
        tokenizer: one of these.
        max_length: T at most.
        truncate: cut longer sentences there, instead of a ValueError.
        unknown: "token": what is outside the tokenizer becomes unk; "error": a ValueError.

    Attributes:
        tokenizer: the ``tokenizers.Tokenizer``; None until :meth:`train`, unless given.
        pad, unk, bos, eos: numbers of the special tokens.

    Raises: ValueError, TypeError, FileNotFoundError for arguments that do not fit.
    """

    def __init__(
        self,
        tokenizer: Any = "bpe",
        *,
        max_length: int = 64,
        truncate: bool = False,
        unknown: str = "token",
    ) -> None:
        check_unknown(unknown)
        self.max_length, self.truncate, self.unknown = max_length, truncate, unknown
        self.tokenizer: Any = None
        self.kind = "given"
        self.pad, self.unk, self.bos, self.eos = range(4)
        if isinstance(tokenizer, str) and tokenizer in KINDS:
            self.kind = tokenizer
        elif isinstance(tokenizer, (str, os.PathLike)):
            if not Path(tokenizer).is_file():
                raise FileNotFoundError(
                    f"expected tokenizer to be one of {list(KINDS)}, a tokenizers.Tokenizer or the "
                    f"path of its JSON; got {os.fspath(tokenizer)!r}: no such file"
                )
            self._take(read_tokenizer(Path(tokenizer)))
        else:
            from tokenizers import Tokenizer

            if not isinstance(tokenizer, Tokenizer):
                raise TypeError(
                    f"expected tokenizer to be one of {list(KINDS)}, a tokenizers.Tokenizer or the "
                    f"path of its JSON; got {type(tokenizer).__name__}"
                )
            # A copy: special tokens are added, and how it reads them is set.
            self._take(Tokenizer.from_str(tokenizer.to_str()))

    def _take(self, tokenizer: Any) -> None:
        """Use a tokenizer; find its special tokens, or add them."""
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for role, names in _OTHER_NAMES.items():
            found = [name for name in names if tokenizer.token_to_id(name) is not None]
            name = found[0] if found else SPECIAL[role]
            if not found:
                tokenizer.add_special_tokens([name])
            setattr(self, role, tokenizer.token_to_id(name))
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        """V, special tokens included; 0 before training."""
        return 0 if self.tokenizer is None else self.tokenizer.get_vocab_size()

    def train(self, sentences: Iterable[str], vocab_size: int = 8000) -> None:
        """Make the vocabulary from sentences, unless the tokenizer was given."""
        if self.kind == "given":
            return
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        special: dict[str, Any] = {
            "special_tokens": list(SPECIAL.values()),
            "vocab_size": vocab_size,
            "show_progress": False,
        }
        if self.kind == "bpe":
            tokenizer: Any = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer: Any = trainers.BpeTrainer(initial_alphabet=alphabet, **special)
        else:
            word = self.kind == "word"
            model = models.WordLevel if word else models.WordPiece
            tokenizer = Tokenizer(model(unk_token=SPECIAL["unk"]))
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
            # A mark is a piece of its own, so that ## in front is always the tokenizer's.
            joined = [decoders.Replace(Regex("^##"), ""), decoders.Fuse()]
            tokenizer.decoder = decoders.Sequence(joined)
            trainer = (trainers.WordLevelTrainer if word else trainers.WordPieceTrainer)(**special)
        tokenizer.train_from_iterator(sentences, trainer)
        self._take(tokenizer)

    def numbers(self, sentences: Sequence[str], *, lenient: bool = False) -> list[list[int]]:
        """The tokens of each sentence, without eos; at most ``max_length``. lenient: as if with
        truncate=True and unknown="token".

        Raises: ValueError naming the first sentence that is too long, or holds what is outside the
            tokenizer and may not; TypeError for what is no string.
        """
        if self.tokenizer is None:
            raise RuntimeError("expected a trained tokenizer; got none: call fit first")
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise TypeError(
                    f"expected sentences to be strings; got {type(sentence).__name__} at {index}"
                )
            check_text(sentence, index)
        found = self.tokenizer.encode_batch(list(sentences), add_special_tokens=False)
        rows = []
        for index, one in enumerate(found):
            ids = one.ids
            if self.unknown == "error" and not lenient and self.unk in ids:
                start, end = one.offsets[ids.index(self.unk)]
                raise ValueError(
                    f"expected what the tokenizer knows; got {sentences[index][start:end]!r} in "
                    f"sentence {index}: {sentences[index]!r}"
                )
            if len(ids) > self.max_length:
                if not (self.truncate or lenient):
                    raise ValueError(
                        f"expected sentences of at most max_length={self.max_length} tokens; got "
                        f"{len(ids)} in sentence {index}: {sentences[index][:60]!r}... "
                        "(truncate=True cuts them)"
                    )
                ids = ids[: self.max_length]
            rows.append(ids)
        return rows

    def encode(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids [B, L] with eos and pad, and lengths [B] that count eos. Raises as
        :meth:`numbers`."""
        return self.batch(self.numbers(sentences))

    def batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The same of rows of tokens without eos."""
        lengths = torch.tensor([len(row) + 1 for row in rows], dtype=torch.int64)
        ids = torch.full((len(rows), max(map(len, rows), default=0) + 1), self.pad)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
            ids[index, len(row)] = self.eos
        return ids, lengths

    def strip(self, ids: Tensor) -> list[list[int]]:
        """Rows of ids [B, T] up to their first eos, without pad and bos."""
        rows = []
        for row in ids.tolist():
            if self.eos in row:
                row = row[: row.index(self.eos)]
            rows.append([token for token in row if token not in (self.pad, self.bos)])
        return rows

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """The sentences of ids [B, T], or of rows as :meth:`strip` gives them."""
        rows = self.strip(ids) if isinstance(ids, Tensor) else [list(row) for row in ids]
        # unk is a special token: it is kept, and seen.
        return self.tokenizer.decode_batch(rows, skip_special_tokens=False)


def check_unknown(unknown: Any) -> None:
    """Raises ValueError for what is no way to treat the unknown."""
    if unknown not in ("token", "error"):
        raise ValueError(f"expected unknown to be 'token' or 'error'; got {unknown!r}")


def check_text(sentence: str, index: int) -> None:
    """Raises ValueError for a surrogate that stands alone: no text in UTF-8 has one."""
    try:
        sentence.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected sentences to be text; got {sentence[error.start]!r} at {error.start} of "
            f"sentence {index}"
        ) from None


def read_tokenizer(path: Path) -> Any:
    """The tokenizer of a JSON file. Raises ValueError for a file that holds none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: not a tokenizer's JSON ({error})") from None
