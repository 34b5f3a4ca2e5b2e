"""Analogies: a is to b as c is to ?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vecsmith.eval._vectors import as_matrix, known_words
from vecsmith.io._open import lines

Question = tuple[str, str, str, str]

# The cosines of one block of words to all given words (about a thousand in the usual file) are two
# megabytes of fp32: they stay in cache while every question combines three of their rows.
_QUESTIONS = 1024
_WORDS = 512
_LOOK = 5  # gensim looks at the five nearest words


@dataclass
class Section:
    """One section of the questions, with what was answered rightly and wrongly.

    Attributes:
        name: as the file calls it.
        correct: the questions (a, b, c, d) whose nearest word was d.
        incorrect: the others (and those with unknown words under ``dummy4unknown``).
    """

    name: str
    correct: list[Question] = field(default_factory=list)
    incorrect: list[Question] = field(default_factory=list)

    @property
    def total(self) -> int:
        """The number of questions answered."""
        return len(self.correct) + len(self.incorrect)

    @property
    def score(self) -> float:
        """correct / (correct + incorrect); 0 where there are none."""
        return len(self.correct) / self.total if self.total else 0.0

    def as_dict(self) -> dict[str, Any]:
        """gensim's form: the keys 'section', 'correct' and 'incorrect'."""
        return {"section": self.name, "correct": self.correct, "incorrect": self.incorrect}


@dataclass
class Analogies:
    """The outcome of :func:`analogies`.

    Attributes:
        sections: those of the file, in its order.
        unknown: number of questions with an unknown word.
        questions: number of well-formed questions.
        invalid: number of lines that are no question (blank lines not counted).
    """

    sections: list[Section]
    unknown: int
    questions: int
    invalid: int

    @property
    def total(self) -> Section:
        """All sections together, as 'Total accuracy'."""
        return Section(
            "Total accuracy",
            [question for section in self.sections for question in section.correct],
            [question for section in self.sections for question in section.incorrect],
        )

    @property
    def score(self) -> float:
        """The share of all answered questions that were answered rightly."""
        return self.total.score

    def __str__(self) -> str:
        total = self.total
        return (
            f"{100 * total.score:.1f}% ({len(total.correct)}/{total.total}), "
            f"{self.unknown} of {self.questions} questions with unknown words"
        )


def read_analogies(
    path: str | os.PathLike[str], *, case_insensitive: bool = True
) -> tuple[list[tuple[str, list[Question]]], int]:
    """Read word2vec's questions-words format: ``: section`` lines, then four words a line.

    Args:
        path: the file, UTF-8; .gz, .bz2, .xz and .zst are decompressed.
        case_insensitive: upper-case the words.

    Returns:
        (section, questions) in the order of the file, and the number of lines that were skipped
        because they are no question.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not begin with a section, or is not UTF-8.
    """
    sections: list[tuple[str, list[Question]]] = []
    invalid = 0
    for number, raw in enumerate(lines(path), 1):
        try:
            line = raw.decode("utf8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: line {number} is not UTF-8: {error}") from None
        if line.startswith(": "):
            sections.append((line.lstrip(": ").strip(), []))
            continue
        if not sections:
            raise ValueError(
                f"{path}: expected a section header (': name') before line {number}, "
                f"got {line.strip()[:60]!r}"
            )
        question = (line.upper() if case_insensitive else line).split()
        if len(question) != 4:
            invalid += bool(question)
            continue
        sections[-1][1].append((question[0], question[1], question[2], question[3]))
    return sections, invalid


def analogies(
    vectors: Any,
    words: Sequence[str],
    path: str | os.PathLike[str],
    *,
    restrict_vocab: int | None = 300_000,
    case_insensitive: bool = True,
    dummy4unknown: bool = False,
) -> Analogies:
    """The share of analogy questions a : b = c : d that 3CosAdd answers with d.

        answer = argmax_w cos(w, b/|b| + c/|c| - a/|a|),   w not in {a, b, c}

    (Mikolov, Yih and Zweig 2013, "Linguistic regularities in continuous space word
    representations"). The protocol and the sections of gensim's ``evaluate_word_analogies``: only
    the five nearest words that are not given are looked at, and variants in case of the given words
    are skipped among them. By linearity the scores of all questions come out of one matrix product
    per block of words, with the words that are given anywhere in the file.

    Args:
        vectors: [V, D], a tensor or array.
        words: the V words, most frequent first.
        path: a file like word2vec's questions-words.txt.
        restrict_vocab: only the first so many words are known, and searched; None for all.
        case_insensitive: compare upper-cased words; of several variants the first counts.
        dummy4unknown: questions with an unknown word count as wrong instead of being skipped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no question, or does not begin with a section.
    """
    matrix = as_matrix(vectors, words)
    known = known_words(words, restrict_vocab, case_insensitive)
    read, invalid = read_analogies(path, case_insensitive=case_insensitive)
    number = sum(len(questions) for _, questions in read)
    if not number:
        raise ValueError(f"{path}: expected lines of four words, got none")

    rows = [
        [known.get(word, -1) for word in question]
        for _, questions in read
        for question in questions
    ]
    table = np.array(rows, dtype=np.int64)  # [Q, 4]
    asked = np.asarray((table >= 0).all(axis=1))
    right = np.zeros(len(table), dtype=bool)
    if asked.any():
        searched = matrix[:restrict_vocab] if restrict_vocab else matrix
        groups = _groups(words[: len(searched)], known, case_insensitive)
        right[asked] = _answer(searched, table[asked], groups)

    sections = []
    at = 0
    for name, questions in read:
        section = Section(name)
        for question in questions:
            if right[at]:
                section.correct.append(question)
            elif asked[at] or dummy4unknown:
                section.incorrect.append(question)
            at += 1
        sections.append(section)
    return Analogies(sections, int((~asked).sum()), number, invalid)


def _groups(words: Sequence[str], known: dict[str, int], case_insensitive: bool) -> np.ndarray:
    """[R]: for each searched row the first row with the same (upper-cased) word."""
    if not case_insensitive:
        return np.arange(len(words))
    return np.fromiter((known[word.upper()] for word in words), np.int64, len(words))


def _answer(matrix: torch.Tensor, questions: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[Q] of bool: is the answer to each question (rows a, b, c, d; [Q, 4]) in d's group?"""
    # Variants in case of the given words: rows of their groups beside the rows themselves.
    variants = _variants(groups)
    excluded: list[list[int]] = []
    crowded = []
    for at, (a, b, c) in enumerate(questions[:, :3].tolist()):
        given = {a, b, c}
        others = [row for word in given for row in variants.get(word, ())]
        if len(others) >= _LOOK:  # the five nearest could all be variants: look at them one by one
            crowded.append(at)
        excluded.append([*given, *others])
    answers = _nearest(matrix, questions, excluded)
    right = np.zeros(len(questions), dtype=bool)
    found = answers >= 0
    right[found] = groups[answers[found]] == questions[found, 3]
    for at in crowded:
        right[at] = _answer_one(matrix, questions[at], groups)
    return right


def _units(rows: torch.Tensor) -> torch.Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def _variants(groups: np.ndarray) -> dict[int, list[int]]:
    variants: dict[int, list[int]] = {}
    for row in np.flatnonzero(groups != np.arange(len(groups))).tolist():
        variants.setdefault(int(groups[row]), []).append(row)
    return variants


def _nearest(matrix: torch.Tensor, questions: np.ndarray, excluded: list[list[int]]) -> np.ndarray:
    """[Q]: the row w of greatest cos(w, b) + cos(w, c) - cos(w, a) that is not excluded; or -1."""
    number, size = len(questions), len(matrix)
    rows, places = np.unique(questions[:, :3], return_inverse=True)
    given = _units(matrix[torch.from_numpy(rows)])
    terms = torch.from_numpy(places.reshape(-1, 3))
    signs = torch.tensor([-1.0, 1.0, 1.0], dtype=matrix.dtype).expand(number, 3).contiguous()
    best = np.full(number, -np.inf, dtype=signs.numpy().dtype)
    answers = np.full(number, -1, dtype=np.int64)
    owner = np.repeat(np.arange(number), [len(rows) for rows in excluded])
    barred = np.fromiter((row for rows in excluded for row in rows), np.int64, len(owner))
    order = np.argsort(barred, kind="stable")
    owner, barred = owner[order], barred[order]
    for start in range(0, size, _WORDS):
        block = matrix[start : start + _WORDS]
        zero = (torch.linalg.vector_norm(block, dim=1) == 0).numpy()
        cosines = given @ _units(block).T
        cosines[:, zero] = 0
        low, high = np.searchsorted(barred, (start, start + len(block)))
        by_question = np.argsort(owner[low:high], kind="stable")
        owners, columns = owner[low:high][by_question], barred[low:high][by_question] - start
        for first in range(0, number, _QUESTIONS):
            last = min(number, first + _QUESTIONS)
            # Each question is a bag of three rows: gathered, signed and added in one pass.
            scores = torch.nn.functional.embedding_bag(
                terms[first:last], cosines, mode="sum", per_sample_weights=signs[first:last]
            )
            values = scores.numpy()
            low, high = np.searchsorted(owners, (first, last))
            values[owners[low:high] - first, columns[low:high]] = -np.inf
            if zero.any():  # a zero vector has no direction: never an answer
                values[:, zero] = -np.inf
            top = scores.amax(dim=1).numpy()
            # The index is sought only where the block holds a new maximum; nan compares false.
            better = np.flatnonzero(top > best[first:last])
            best[first + better] = top[better]
            answers[first + better] = start + values[better].argmax(axis=1)
    return answers


def _answer_one(matrix: torch.Tensor, question: np.ndarray, groups: np.ndarray) -> bool:
    """The protocol word by word, for a question whose words have many variants in case."""
    given = question[:3].tolist()
    a, b, c = _units(matrix[given])
    scores = _units(matrix) @ _units((b + c - a) / 3)
    scores = torch.nan_to_num(scores, nan=-torch.inf)
    order = torch.argsort(scores, descending=True, stable=True)[: _LOOK + 3].tolist()
    predicted = -1
    for row in [row for row in order if row not in given][:_LOOK]:
        predicted = int(groups[row])
        if predicted not in given:
            break
    return predicted == question[3]
