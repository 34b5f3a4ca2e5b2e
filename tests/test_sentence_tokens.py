"""Sentences to tokens and back to the same sentences."""

from __future__ import annotations

import pytest
import torch

from sentence_texts import texts
from vecsmith.models._sentence_tokens import SentenceTokens

tokenizers = pytest.importorskip("tokenizers")

STRANGE = [
    "",
    " ",
    "  two  spaces and a tab\t. ",
    "Ünïcode — ☃ 漢字 \u200b",
    "<eos> and <pad> and [SEP] are text",
    "▁ ##pieces ## # 'quoted'",
    "line\nbreak\r\n",
]


@pytest.fixture(scope="module")
def trained() -> dict[str, SentenceTokens]:
    found = {}
    for kind in ("bpe", "wordpiece", "word"):
        found[kind] = SentenceTokens(kind)
        found[kind].train(texts(400), 400)
    return found


def test_bytes_bring_every_string_back(trained):
    tokens = trained["bpe"]
    for sentence in texts(50, seed=9) + STRANGE:
        assert tokens.decode(tokens.encode([sentence])[0]) == [sentence]
    assert 259 < len(tokens) <= 400
    assert not {tokens.pad, tokens.unk, tokens.bos, tokens.eos} & {
        token for row in tokens.numbers(STRANGE) for token in row
    }


@pytest.mark.parametrize("kind", ["wordpiece", "word"])
def test_known_words_come_back_with_their_spaces(trained, kind):
    tokens = trained[kind]
    known = [
        "A man runs in a park.",
        "Anna's  dog ... doesn't move!",
        "The old dog\twaits , it seems",
    ]
    for sentence in known:
        came = tokens.decode(tokens.encode([sentence])[0])[0]
        if tokens.unk not in tokens.numbers([sentence])[0]:
            assert came == sentence
    sure = known[0]
    assert tokens.decode(tokens.encode([sure])[0]) == [sure]
    assert tokens.unk not in tokens.numbers([sure])[0]
    assert "<unk>" in tokens.decode(tokens.encode(["☃ 漢字"])[0])[0]


def test_pieces_of_words_that_were_never_seen(trained):
    tokens = trained["wordpiece"]
    sentence = "A man reads with redog"
    row = tokens.numbers([sentence])[0]
    assert tokens.unk not in row
    assert tokens.decode([row]) == [sentence]
    assert trained["word"].unk in trained["word"].numbers([sentence])[0]


def test_batches_end_in_eos_and_are_padded(trained):
    tokens = trained["bpe"]
    ids, lengths = tokens.encode(["A man runs.", "", "A man"])
    rows = tokens.numbers(["A man runs.", "", "A man"])
    assert lengths.tolist() == [len(row) + 1 for row in rows]
    for row, want, length in zip(ids.tolist(), rows, lengths.tolist(), strict=True):
        assert row[: length - 1] == want
        assert row[length - 1] == tokens.eos
        assert set(row[length:]) <= {tokens.pad}
    assert tokens.strip(ids) == rows
    assert tokens.strip(torch.tensor([[tokens.bos, 9, 8]])) == [[9, 8]]  # no eos: all of it
    ids, lengths = tokens.encode([])
    assert ids.shape == (0, 1)
    assert lengths.shape == (0,)


def test_a_given_tokenizer_is_used_and_left_alone(tmp_path):
    model = tokenizers.models.WordLevel(
        {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5}, unk_token="[UNK]"
    )
    given = tokenizers.Tokenizer(model)
    given.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    given.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokens = SentenceTokens(given)
    assert (tokens.pad, tokens.unk, tokens.bos, tokens.eos) == (0, 1, 2, 3)
    assert tokens.numbers(["a b a"]) == [[4, 5, 4]]
    tokens.train(["c d"])  # keeps what was given
    assert tokens.numbers(["a c"]) == [[4, 1]]
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokens = SentenceTokens(bare)
    assert bare.get_vocab_size() == 2
    assert len(tokens) == 6
    assert len({tokens.pad, tokens.unk, tokens.bos, tokens.eos} - {0, 1}) == 4
    path = tmp_path / "tokenizer.json"
    given.save(str(path))
    assert SentenceTokens(path).numbers(["b"]) == [[5]]
    assert SentenceTokens(str(path)).numbers(["b"]) == [[5]]


def test_what_is_too_long_or_unknown(trained):
    tokens = SentenceTokens(trained["word"].tokenizer, max_length=2)
    with pytest.raises(ValueError, match=r"max_length=2 tokens; got \d+ in sentence 1.*truncate"):
        tokens.numbers(["A man", "A man runs in a park."])
    tokens = SentenceTokens(trained["word"].tokenizer, max_length=2, truncate=True)
    assert tokens.decode(tokens.encode(["A man runs in a park."])[0]) == ["A man"]
    tokens = SentenceTokens(trained["word"].tokenizer, unknown="error")
    assert tokens.numbers(["A man"])
    with pytest.raises(ValueError, match="got ' zebra' in sentence 1"):
        tokens.numbers(["A man", "A zebra runs"])


def test_what_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        SentenceTokens("sentencepiece")
    with pytest.raises(TypeError, match="got int"):
        SentenceTokens(5)
    with pytest.raises(ValueError, match="unknown"):
        SentenceTokens(unknown="ignore")
    with pytest.raises(RuntimeError, match="call fit"):
        SentenceTokens().numbers(["a"])
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer's JSON"):
        SentenceTokens(path)
    tokens = SentenceTokens("word")
    tokens.train(["a b"], 10)
    with pytest.raises(TypeError, match="got bytes at 1"):
        tokens.numbers(["a", b"b"])
