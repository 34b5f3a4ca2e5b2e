"""Measures of sentences, against values worked out by hand."""

from __future__ import annotations

import gzip
import math

import pytest
import torch

from vecsmith import eval as measures


def test_tokens_count_at_their_place():
    assert measures.token_accuracy([[1, 2, 3], [4]], [[1, 9, 3, 7], []]) == 2 / 4
    assert measures.token_accuracy([["a"], []], [["a"], ["b"]]) == 1
    with pytest.raises(ValueError, match="at least one token"):
        measures.token_accuracy([[]], [[]])
    with pytest.raises(ValueError, match="got 1, 2"):
        measures.token_accuracy([[1], [2]], [[1]])


def test_sentences_match_to_the_character():
    assert measures.exact_match(["A b.", "c"], ["A b.", "C"]) == 0.5
    assert measures.exact_match([[1, 2]], [(1, 2)]) == 1
    with pytest.raises(ValueError, match="at least one sentence"):
        measures.exact_match([], [])


def test_bleu_by_hand():
    want = ["the cat sat on the mat", "a dog ran"]
    have = ["the cat sat on mat", "a a dog ran"]
    # Matches of 1 to 4 tokens: 5 + 3 of 9, 3 + 2 of 7, 2 + 1 of 5, 1 + 0 of 3; 9 tokens for 9.
    precision = (8 / 9 * 5 / 7 * 3 / 5 * 1 / 3) ** 0.25
    assert measures.bleu(want, have) == pytest.approx(precision)
    assert measures.bleu(want, want) == 1
    # 5 tokens for 6: all that is there is right, and it is too short.
    short = measures.bleu(["a b c d e f"], ["a b c d e"])
    assert short == pytest.approx(math.exp(1 - 6 / 5))
    assert measures.bleu(["a b c d"], ["a b x d"]) == 0
    assert measures.bleu(["a b"], ["a b"]) == 1  # no trigrams to be right or wrong
    assert measures.bleu([[1, 2, 3, 4]], [[1, 2, 3, 4]]) == 1
    # Marks are tokens, case counts.
    assert measures.bleu(["Hi, you."], ["hi, you."], 1) == pytest.approx(3 / 4)
    assert measures.bleu(["the the"], ["the the the the"], 1) == pytest.approx(0.5)
    assert measures.bleu([""], [""]) == 1
    assert measures.bleu([""], ["a"]) == 0
    assert measures.bleu(["a"], [""]) == 0


def test_bleu_refuses():
    with pytest.raises(ValueError, match="at least one sentence"):
        measures.bleu([], [])
    with pytest.raises(ValueError, match="max_order"):
        measures.bleu(["a"], ["a"], 0)


def test_the_correlation_with_judgments(tmp_path):
    vectors = {
        "a": [1.0, 0.0],
        "b": [0.9, 0.1],
        "c": [0.0, 1.0],
        "d": [-1.0, 0.2],
        "nothing": [0.0, 0.0],
    }

    def encode(sentences: list[str]) -> torch.Tensor:
        return torch.tensor([vectors[s] for s in sentences])

    pairs = [("a", "b", 5.0), ("a", "c", 2.5), ("a", "d", 0.0)]
    assert measures.sts(encode, pairs) == pytest.approx(1)
    assert measures.sts(encode, [(a, b, -s) for a, b, s in pairs]) == pytest.approx(-1)
    assert measures.sts(lambda s: encode(s).numpy(), pairs) == pytest.approx(1)
    path = tmp_path / "sts.csv.gz"
    lines = [f"genre\tfile\tyear\tid\t{s}\t{a}\t{b}\tmore" for a, b, s in pairs]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert measures.read_sts(path) == pairs
    assert measures.sts(encode, path) == pytest.approx(1)
    assert math.isnan(measures.sts(encode, [("a", "nothing", 1.0), ("b", "nothing", 2.0)]))
    with pytest.raises(ValueError, match="two pairs"):
        measures.sts(encode, pairs[:1])
    path.write_bytes(gzip.compress(b"a\tb\n"))
    with pytest.raises(ValueError, match="line 1 is not a pair"):
        measures.sts(encode, path)
    with pytest.raises(FileNotFoundError):
        measures.read_sts(tmp_path / "nowhere")
