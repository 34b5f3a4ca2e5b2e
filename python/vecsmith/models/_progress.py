"""The two progress bars of a model, on standard error: reading a text, and training on it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from vecsmith.data import Corpus


class ReadingBar:
    """The progress bar of reading a text: bytes, or words where the size is not known."""

    def __init__(self, progress: bool | None) -> None:
        self._visible = sys.stderr.isatty() if progress is None else progress
        self._bar: Any = None
        self._bytes = True

    def __call__(self, done: int, total: int | None, words: int) -> None:
        if not self._visible:
            return
        if self._bar is None:
            # Token lists have no bytes: their words are counted.
            self._bytes = total is not None or done > 0
            self._bar = tqdm(
                total=total,
                unit="B" if self._bytes else " words",
                unit_scale=True,
                desc="reading",
                leave=False,
                dynamic_ncols=True,
            )
        if self._bytes:
            self._bar.set_postfix_str(f"{words:,} words", refresh=False)
        self._bar.update((done if self._bytes else words) - self._bar.n)

    def __enter__(self) -> ReadingBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


class TrainingBar:
    """Raw words of the text (as peers count them), words/s, time left, loss per term and rate.

    visible: whether it is shown, and so whether it wants a loss now and then.
    """

    def __init__(self, corpus: Corpus, epochs: int, progress: bool | None) -> None:
        self.visible = sys.stderr.isatty() if progress is None else progress
        self._offsets = corpus.offsets
        self._tokens = corpus.tokens.numel()
        # The corpus holds the words of the vocabulary; the others pass by with them.
        self._raw_per_token = corpus.raw_words / max(1, self._tokens)
        self._epochs = epochs
        self._loss = ""
        self._bar: Any = None

    def _words(self, epoch: int, sentence: int) -> int:
        return round((epoch * self._tokens + int(self._offsets[sentence])) * self._raw_per_token)

    def _title(self, epoch: int) -> str:
        return f"training, epoch {epoch + 1}/{self._epochs}"

    def begin(self, epoch: int, sentence: int) -> None:
        """An epoch begins, or goes on at a sentence."""
        if not self.visible:
            return
        if self._bar is None:
            self._bar = tqdm(
                total=self._words(self._epochs, 0),
                initial=self._words(epoch, sentence),
                unit=" words",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0.1,
                desc=self._title(epoch),
            )
        self._bar.set_description(self._title(epoch), refresh=False)

    def update(
        self, epoch: int, sentence: int, alpha: float, result: tuple[float, float] | None
    ) -> None:
        """Trained up to a sentence; result: (loss, terms) of the last chunk, if it was taken."""
        if self._bar is None:
            return
        if result is not None and result[1]:
            self._loss = f"loss={result[0] / result[1]:.4f}, "
        self._bar.set_postfix_str(f"{self._loss}alpha={alpha:.5f}", refresh=False)
        self._bar.update(self._words(epoch, sentence) - self._bar.n)

    def __enter__(self) -> TrainingBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
