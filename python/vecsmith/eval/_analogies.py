"""Analogies: a is to b as c is to ?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vecsmith.eval._vectors import as_matrix, known_words
from vecsmith.io import open_binary

Question = tuple[str, str, str, str]

# One block of scores: 512 questions x 4096 words of fp32 is 8 MiB, which stays in cache between
# the product and the search for its maxima.
_QUESTIONS = 512
_WORDS = 4096
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
    with open_binary(path) as file:
        for number, raw in enumerate(file, 1):
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
    are skipped among them. All questions of a block are scored in one matrix product.

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
    asked = (table >= 0).all(axis=1)
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
    queries = _queries(matrix, questions)
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
    answers = _nearest(matrix, queries, excluded)
    right = np.zeros(len(questions), dtype=bool)
    found = answers >= 0
    right[found] = groups[answers[found]] == questions[found, 3]
    for at in crowded:
        right[at] = _answer_one(matrix, queries[at], questions[at], groups)
    return right


def _queries(matrix: torch.Tensor, questions: np.ndarray) -> torch.Tensor:
    """[Q, D]: the unit mean of b/|b|, c/|c| and -a/|a|, rounded where gensim rounds."""
    rows, inverse = np.unique(questions[:, :3], return_inverse=True)
    given = matrix[torch.from_numpy(rows)]
    given = given / torch.linalg.vector_norm(given, dim=1, keepdim=True)
    a, b, c = torch.from_numpy(inverse.reshape(-1, 3)).unbind(1)
    mean = (given[b] + given[c] - given[a]).double() / 3
    return (mean / torch.linalg.vector_norm(mean, dim=1, keepdim=True)).to(matrix.dtype)


def _variants(groups: np.ndarray) -> dict[int, list[int]]:
    variants: dict[int, list[int]] = {}
    for row in np.flatnonzero(groups != np.arange(len(groups))).tolist():
        variants.setdefault(int(groups[row]), []).append(row)
    return variants


def _nearest(matrix: torch.Tensor, queries: torch.Tensor, excluded: list[list[int]]) -> np.ndarray:
    """[Q]: the row of greatest cosine that is not excluded; -1 where there is none."""
    number, size = len(queries), len(matrix)
    best = np.full(number, -np.inf, dtype=queries.numpy().dtype)
    answers = np.full(number, -1, dtype=np.int64)
    owner = np.repeat(np.arange(number), [len(rows) for rows in excluded])
    barred = np.fromiter((row for rows in excluded for row in rows), np.int64, len(owner))
    order = np.argsort(barred, kind="stable")
    owner, barred = owner[order], barred[order]
    scores = torch.empty(min(_QUESTIONS, number) * min(_WORDS, size), dtype=matrix.dtype)
    for start in range(0, size, _WORDS):
        block = matrix[start : start + _WORDS]
        norms = torch.linalg.vector_norm(block, dim=1, keepdim=True)
        zero = norms.squeeze(1) == 0
        block = block / norms
        some_zero = bool(zero.any())
        if some_zero:
            block[zero] = 0
        low, high = np.searchsorted(barred, (start, start + len(block)))
        here = owner[low:high], barred[low:high] - start
        by_question = np.argsort(here[0], kind="stable")
        here = here[0][by_question], here[1][by_question]
        for first in range(0, number, _QUESTIONS):
            part = queries[first : first + _QUESTIONS]
            out = scores[: len(part) * len(block)].view(len(part), len(block))
            torch.mm(part, block.T, out=out)
            low, high = np.searchsorted(here[0], (first, first + len(part)))
            values = out.numpy()
            values[here[0][low:high] - first, here[1][low:high]] = -np.inf
            if some_zero:  # a zero vector has no direction: never an answer
                values[:, zero.numpy()] = -np.inf
            top = out.amax(dim=1).numpy()
            # The index is sought only where the block holds a new maximum; nan compares false.
            better = np.flatnonzero(top > best[first : first + len(part)])
            best[first + better] = top[better]
            answers[first + better] = start + values[better].argmax(axis=1)
    return answers


def _answer_one(
    matrix: torch.Tensor, query: torch.Tensor, question: np.ndarray, groups: np.ndarray
) -> bool:
    """The protocol word by word, for a question whose words have many variants in case."""
    scores = (matrix @ query) / torch.linalg.vector_norm(matrix, dim=1)
    scores = torch.nan_to_num(scores, nan=-torch.inf)
    given = question[:3].tolist()
    order = torch.argsort(scores, descending=True, stable=True)[: _LOOK + 3].tolist()
    predicted = -1
    for row in [row for row in order if row not in given][:_LOOK]:
        predicted = int(groups[row])
        if predicted not in given:
            break
    return predicted == question[3]
