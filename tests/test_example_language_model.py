"""examples/language_model.py and examples/sentiment.py, on text so small that it takes seconds."""

from __future__ import annotations

import gzip
import importlib
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module", autouse=True)
def importable():
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))
    for name in ("language_model", "sentiment"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def lm(importable):
    return importlib.import_module("language_model")


@pytest.fixture(scope="module")
def sentiment(importable):
    return importlib.import_module("sentiment")


GOOD, BAD = ("fine", "lovely", "great", "warm"), ("dull", "awful", "stale", "cold")
NOUNS = ("film", "story", "plot", "cast", "score")


def opinions(count: int, words: tuple[str, ...], seed: int = 0) -> list[str]:
    """Sentences of unequal length about films."""
    random = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        parts = [f"the {random.choice(NOUNS)} is {random.choice(words)}"]
        while random.random() < 0.4:
            parts.append(f"and the {random.choice(NOUNS)} is {random.choice(words)}")
        lines.append(f"{number % 7} : {' '.join(parts)} .")
    return lines


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write(tmp_path_factory.mktemp("text") / "text.txt", opinions(300, GOOD + BAD))


SMALL = ["--dim", "16", "--batch", "8", "--hidden", "24", "--lr", "0.02", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(lm, text):
    target = text.parent / "model"
    assert lm.main(["train", str(text), "-o", str(target), *SMALL, "--epochs", "3"]) == 0
    return target


def small_model(lm, **config):
    torch.manual_seed(0)
    vocabulary = lm.count_tokens([list("aabbccdd")], 1, 10)
    return lm.LanguageModel(vocabulary, lm.Config(dim=8, **config))


@pytest.mark.parametrize(
    ("cell", "level", "more"),
    [
        ("gru", "word", []),
        ("lstm", "word", ["--layers", "2", "--weight-dropout", "0.1"]),
        ("gru", "char", ["--optimizer", "sgd", "--lr", "2"]),
        ("lstm", "char", []),
    ],
)
def test_perplexity_falls_below_that_of_the_unigrams(lm, text, tmp_path, capsys, cell, level, more):
    arguments = ["train", str(text), "-o", str(tmp_path / "m"), "--cell", cell, "--level", level]
    assert lm.main([*arguments, *SMALL, "--epochs", "4", "--dropout", "0.1", *more]) == 0
    printed = capsys.readouterr().out
    unigram = float(re.search(r"unigrams: ([\d.]+)", printed)[1])
    epochs = [float(found) for found in re.findall(r"held out ([\d.]+)", printed)]
    assert len(epochs) == 4
    assert epochs[-1] < 0.6 * unigram
    assert f"perplexity {min(epochs):.2f}" in printed


def test_a_line_is_predicted_from_sos_to_eos(lm):
    model = small_model(lm).eval()
    (sequence,) = lm.encode([list("abcz")], model.vocabulary)
    a, b, c = (model.vocabulary[token] for token in "abc")
    assert sequence.tolist() == [lm.SOS, a, b, c, lm.UNK, lm.EOS]
    (batch,) = lm.batches([sequence], 4)
    assert batch.tokens.tolist() == [[lm.SOS, a, b, c, lm.UNK]]
    assert batch.targets.tolist() == [a, b, c, lm.UNK, lm.EOS]
    with torch.no_grad():
        rows, _ = model.encode(sequence[None, :-1])
        shares = model.logits(rows[0]).softmax(1)
    surprise = -shares[torch.arange(5), sequence[1:]].log().mean()
    assert shares[:, [lm.PAD, lm.SOS]].eq(0).all()
    assert lm.perplexity(model, [sequence], 4) == pytest.approx(float(surprise.exp()), rel=1e-5)


def test_every_token_of_a_long_line_is_once_a_target(lm):
    vocabulary = lm.count_tokens([list("abcdefg")], 1, 10)
    line = list("abcdefgabcde")
    pieces = lm.encode([line, ["a"]], vocabulary, limit=5)
    assert [len(piece) - 1 for piece in pieces] == [5, 5, 3, 2]
    targets = torch.cat([piece[1:] for piece in pieces[:3]])
    assert targets.tolist() == [*(vocabulary[token] for token in line), lm.EOS]
    assert pieces[1][0] == pieces[0][-1]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_padding_changes_neither_loss_nor_gradient(lm, cell):
    model = small_model(lm, cell=cell, layers=2, hidden=12).eval()
    lines = [list("abcdabcd"), list("ab"), list("dcb"), ["a"], list("cdabc")]
    sequences = lm.encode(lines, model.vocabulary)

    def total(size):
        found = [(model.loss(b), len(b.targets)) for b in lm.batches(sequences, size)]
        loss = sum(value * count for value, count in found) / sum(count for _, count in found)
        return loss, torch.autograd.grad(loss, list(model.parameters()))

    torch.testing.assert_close(total(5), total(1), rtol=1e-4, atol=1e-6)
    assert lm.perplexity(model, sequences, 5) == pytest.approx(
        lm.perplexity(model, sequences, 1), rel=1e-5
    )
    (batch,) = lm.batches(sequences, 5)
    assert (batch.tokens[~batch.mask] == lm.PAD).all()
    other = torch.where(batch.mask, batch.tokens, 6)
    changed = lm.Batch(other, batch.lengths, batch.targets, batch.places)
    assert model.loss(changed) == model.loss(batch)


def test_batches_hold_every_line_once_and_like_lengths_together(lm):
    sequences = [torch.arange(n % 9 + 2) for n in range(100)]
    found = list(lm.batches(sequences, 8, np.random.default_rng(0)))
    places = torch.cat([batch.places for batch in found])
    assert sorted(places.tolist()) == list(range(100))
    assert all(batch.lengths.max() - batch.lengths.min() <= 1 for batch in found)
    for batch in found:
        for place, tokens, length in zip(batch.places, batch.tokens, batch.lengths, strict=True):
            assert tokens[:length].tolist() == sequences[place][:-1].tolist()


def test_dropout_has_one_mask_for_all_steps(lm):
    model = small_model(lm, dropout=0.5).train()
    rows = model.locked_dropout(torch.ones(50, 7, 8))
    assert (rows == rows[:, :1]).all()
    assert set(rows.unique().tolist()) == {0.0, 2.0}
    assert not (rows == rows[:1]).all()
    assert (model.eval().locked_dropout(torch.ones(50, 7, 8)) == 1).all()


def test_special_tokens_are_never_sampled_and_eos_ends_a_line(lm):
    model = small_model(lm)
    with torch.no_grad():
        model.bias[[lm.PAD, lm.SOS, lm.UNK]] = 100.0  # as likely as it gets
        model.bias[lm.EOS] = -100.0
    torch.manual_seed(0)
    lines = lm.sample(model, "", 20, max_length=50)
    assert all(len(line.split()) == 50 and set(line.split()) <= set("abcd") for line in lines)
    with torch.no_grad():
        model.bias[lm.EOS] = 1.0
    lines = [line.split() for line in lm.sample(model, "b", 200, max_length=50)]
    assert all(line[0] == "b" and set(line) <= set("abcd") for line in lines)
    assert len({len(line) for line in lines}) > 3
    with torch.no_grad():
        model.bias[lm.EOS] = 100.0
    assert lm.sample(model, "a b", 3, max_length=50) == ["a b"] * 3


def test_sampling_takes_the_options_of_generate(lm, folder, capsys):
    def drawn(*more):
        assert lm.main(["sample", str(folder), "--threads", "1", *more]) == 0
        return capsys.readouterr().out.splitlines()

    assert len(drawn("--count", "3")) == 3
    lines = drawn("--prompt", "3 : THE", "--count", "20", "--max-length", "6")
    assert all(line.startswith("3 : the") and len(line.split()) <= 9 for line in lines)
    assert drawn("--seed", "5") == drawn("--seed", "5") != drawn("--seed", "6")
    likeliest = drawn("--temperature", "0")
    assert len(set(likeliest)) == 1
    assert drawn("--top-k", "1") == drawn("--top-p", "1e-9") == likeliest
    assert not any("<" in line for line in drawn("--count", "200", "--temperature", "3"))


def test_a_checkpoint_is_three_files_that_give_the_model_back(lm, folder, tmp_path):
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "vocab.txt", "model.safetensors")
    }
    model = lm.load(folder)
    again = tmp_path / "again"
    model.save(again)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert lm.load(again).vocabulary.words == model.vocabulary.words
    tokens = torch.randint(len(model.vocabulary), (3, 7))
    for before, after in zip(model.encode(tokens), lm.load(again).encode(tokens), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_a_vocabulary_of_any_characters_is_saved(lm, tmp_path):
    text = write(tmp_path / "t.txt", ["a\tb c\\\x85", "a\tb c\\\x85", " \tc\\\x85"] * 3)
    arguments = ["train", str(text), "-o", str(tmp_path / "m"), "--level", "char", *SMALL]
    assert lm.main([*arguments, "--epochs", "1"]) == 0
    assert {"\t", " ", "\\", "\x85"} <= set(lm.load(tmp_path / "m").vocabulary.words)


def test_training_stops_early_and_the_best_epoch_is_kept(lm, text, tmp_path):
    model = small_model(lm)
    options = lm.read_options(["train", str(text), "-o", "m", "--epochs", "9", "--patience", "2"])
    measures, states = iter([3.0, 2.0, 4.0, 5.0, 1.0]), []

    def measure():
        states.append(model.bias.clone())
        return next(measures)

    train = lm.encode([list("abcd")] * 4, model.vocabulary)
    assert lm.fit(model, model.loss, train, measure, options) == 2.0
    assert len(states) == 4
    torch.testing.assert_close(model.bias, states[1], rtol=0, atol=0)


def test_lines_of_another_file_are_left_out(lm, tmp_path, capsys):
    lines = opinions(60, GOOD + BAD)
    long = "so many words in a row are never here by chance"
    text = write(tmp_path / "t.txt", [*lines[:50], f"He wrote: {long}. I agree! Fine.", "Fine."])
    other = write(tmp_path / "o.txt", [f"{long} , you know", "fine ."])
    arguments = ["train", str(text), "-o", str(tmp_path / "m"), *SMALL, "--epochs", "1"]
    for more, count in (([], 52), (["--sentences"], 54), (["--without", str(other)], 50)):
        assert lm.main([*arguments, *more]) == 0
        train, valid = re.search(
            r"(\d+) lines to train on, (\d+)", capsys.readouterr().out
        ).groups()
        assert int(train) + int(valid) == count


BAD_TEXTS = {
    "empty": (b"", "holds none"),
    "blank": (b"\n \n\t\n", "holds none"),
    "one line": (b"the film is fine\n", "at least two lines, one to hold out; got 1"),
    "binary": (bytes(range(256)) * 4, "expected text in UTF-8"),
    "nul": (b"the film\0\nis fine\0\n" * 9, "NUL bytes"),
    "one word": (b"film film\n" * 20, "two different tokens that occur 2 times; got 1"),
    "once each": (b"a b\nc d\n", "two different tokens that occur 2 times; got 0"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_text_that_cannot_be_learned_from_is_refused(lm, tmp_path, capsys, name):
    content, complaint = BAD_TEXTS[name]
    (tmp_path / "t.txt").write_bytes(content)
    assert lm.main(["train", str(tmp_path / "t.txt"), "-o", str(tmp_path / "m")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_files_that_are_not_there_or_not_what_they_should_be(lm, text, tmp_path, capsys):
    def refused(*arguments):
        assert lm.main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    absent = tmp_path / "absent"
    assert "absent" in refused("train", absent, "-o", tmp_path / "m")
    assert str(tmp_path) in refused("train", tmp_path, "-o", tmp_path / "m")
    assert "got the file" in refused("train", text, "-o", text)
    assert "in a folder that exists" in refused("train", text, "-o", absent / "m")
    damaged = tmp_path / "t.gz"
    damaged.write_bytes(gzip.compress(b"the film is fine\n" * 99)[:-9])
    refused("train", damaged, "-o", tmp_path / "m")
    assert "absent" in refused("sample", absent)
    assert "expected a model in" in refused("sample", tmp_path)
    diverging = ["train", text, "-o", tmp_path / "m", "--optimizer", "sgd", "--clip", "1e30"]
    assert "an --lr below" in refused(*diverging, "--lr", "1e30", "--dim", "16")


def test_a_damaged_model_is_refused(lm, folder, tmp_path, capsys):
    model = lm.load(folder)
    for name, content in (
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", json.dumps({"dim": 99})),
        ("config.json", json.dumps({"size": 16})),
        ("config.json", json.dumps({"dim": 16, "cell": "cnn"})),
        ("config.json", None),
        ("vocab.txt", "a\nb\n"),
        ("model.safetensors", "no tensors"),
        ("model.safetensors", None),
    ):
        target = tmp_path / "m"
        model.save(target)
        (target / name).unlink() if content is None else (target / name).write_text(content)
        assert lm.main(["sample", str(target)]) == 2
        error = capsys.readouterr().err
        assert "expected a model in" in error
        assert error.count("\n") == 1
    with torch.no_grad():
        model.bias[5] = math.nan
    model.save(target)
    assert lm.main(["sample", str(target)]) == 2
    assert "not finite" in capsys.readouterr().err


def test_odd_arguments_are_refused(lm, folder, text, capsys):
    train = ["train", str(text), "-o", "m"]
    for arguments, complaint in (
        ([*train, "--dim", "0"], "a number in [1, inf); got 0"),
        ([*train, "--epochs", "2.5"], "2.5"),
        ([*train, "--seed", "-1"], "a number in [0, "),
        ([*train, "--dropout", "1"], "a number in [0, 1); got 1"),
        ([*train, "--held-out", "-0.1"], "a number in [0, 1)"),
        ([*train, "--lr", "nan"], "a number in (0, inf); got nan"),
        ([*train, "--lr", "fast"], "fast"),
        ([*train, "--cell", "cnn"], "cnn"),
        (["sample", str(folder), "--top-p", "0"], "a number in (0, 1]; got 0"),
        (["sample", str(folder), "--top-k", "0"], "a number in [1, inf); got 0"),
        (["sample", str(folder), "--temperature", "-1"], "a number in [0, inf)"),
        (["train", str(text)], "-o"),
        ([], "required"),
    ):
        with pytest.raises(SystemExit):
            lm.main(arguments)
        assert complaint in capsys.readouterr().err
    assert lm.main(["sample", str(folder), "--prompt", "the zeppelin film"]) == 2
    assert "known tokens; got zeppelin" in capsys.readouterr().err


# --- sentiment.py ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """A file for each class."""
    place = tmp_path_factory.mktemp("labeled")
    bad, good = opinions(150, BAD, 1), opinions(150, GOOD, 2)
    return write(place / "bad.txt", bad), write(place / "good.txt", good)


FEW = [
    "--seeds",
    "1",
    "--epochs",
    "5",
    "--batch",
    "8",
    "--lm-epochs",
    "1",
    "--lr",
    "0.01",
    "--threads",
    "1",
]


def test_both_classifiers_learn(sentiment, folder, labeled, capsys):
    files = [str(path) for path in labeled]
    assert sentiment.main([str(folder), "--train", *files, *FEW]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"2\d\d train, 2\d valid, 30 test", printed)
    for name in sentiment.ARMS:
        assert float(re.search(rf"^{name} +([\d.]+) %", printed, re.MULTILINE)[1]) > 80
    assert re.search(r"^gain +[+-]\d", printed, re.MULTILINE)


def test_lines_of_sentence_and_class_are_read_too(sentiment, folder, labeled, tmp_path, capsys):
    lines = [f"{s}\t{n}" for n, path in enumerate(labeled) for s in path.read_text().splitlines()]
    train, test = write(tmp_path / "train.tsv", lines[::2]), write(tmp_path / "t.tsv", lines[1::2])
    arguments = [str(folder), "--train", str(train), "--test", str(test), *FEW, "--lm-epochs", "0"]
    assert sentiment.main(arguments) == 0
    assert "150 test" in capsys.readouterr().out


def test_no_test_sentence_is_trained_on(sentiment, labeled, tmp_path):
    def parts(seed, *more):
        files = ["--train", *map(str, labeled), *more]
        return sentiment.split(sentiment.read_options(["m", *files]), seed, "word")[0]

    tests = set()
    for seed in range(10):
        found = parts(seed)
        sentences = {name: set(map(tuple, part.sentences)) for name, part in found.items()}
        assert not sentences["test"] & (sentences["train"] | sentences["valid"])
        tests |= sentences["test"]
        assert {int(label) for label in found["test"].labels} == {0, 1}
    everything = [line for path in labeled for line in path.read_text().splitlines()]
    assert len(tests) == len(set(everything))
    test = [write(tmp_path / f"{n}.txt", everything[n : n + 1]) for n in (0, 299)]
    found = parts(1, "--test", *map(str, test))
    assert len(found["test"].sentences) == 2
    lines = {" ".join(line) for line in found["train"].sentences + found["valid"].sentences}
    assert lines == set(everything) - {path.read_text().strip() for path in test}


def test_a_model_with_more_words_begins_as_the_old(lm, sentiment):
    old = small_model(lm).eval()
    model = sentiment.extended(old, lm.count_tokens([list("axyaxy")], 1, 10), 0.25).eval()
    assert model.vocabulary.words == [*old.vocabulary.words, "x", "y"]
    assert model.config.dropout == 0.25
    tokens = torch.randint(4, 8, (3, 5))
    as_unknown = tokens.clone()
    as_unknown[:, 2] = lm.UNK
    rows = old.encode(as_unknown)[0]
    tokens[:, 2] = model.vocabulary["y"]
    torch.testing.assert_close(model.encode(tokens)[0], rows, rtol=0, atol=0)
    before, after = old.logits(rows), model.logits(rows)
    torch.testing.assert_close(after[..., :8], before, rtol=0, atol=0)
    torch.testing.assert_close(after[..., 8:].logsumexp(-1), before[..., lm.UNK])


def test_the_classifier_sees_nothing_behind_the_end(lm, sentiment):
    torch.manual_seed(0)
    model = sentiment.Classifier(small_model(lm), 3).eval()
    sequences = lm.encode([list("abcd"), list("d"), list("cba")], model.encoder.vocabulary)
    (batch,) = lm.batches(sequences, 3)
    rows = [model(one) for one in lm.batches(sequences, 1)]
    torch.testing.assert_close(model(batch), torch.cat(rows))
    hidden = model.encoder.encode(sequences[0][None, :-1])[0][0]
    pooled = torch.cat([hidden[-1], hidden.mean(0), hidden.amax(0)])
    torch.testing.assert_close(rows[-1][0], model.head(pooled))
    groups = model.groups(1.0, 0.5)
    assert [group["lr"] for group in groups] == [1.0, 0.5, 0.25]


def test_what_is_wrong_with_labeled_files(sentiment, folder, labeled, tmp_path, capsys):
    def refused(*arguments):
        assert sentiment.main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    bad, good = labeled
    assert "a tab and a class" in refused(folder, "--train", bad)
    assert "absent" in refused(folder, "--train", bad, tmp_path / "absent")
    assert "the folder" in refused(tmp_path / "absent", "--train", bad, good)
    few = write(tmp_path / "few.txt", ["fine\t1"])
    assert "two classes or more" in refused(folder, "--train", few)
    other = write(tmp_path / "other.txt", ["so fine\t7"])
    assert "7 to test on" in refused(folder, "--train", bad, good, "--test", other)
    for arguments in (["--lm-epochs", "-1"], ["--decay", "2"], ["--seeds", "0"]):
        with pytest.raises(SystemExit):
            sentiment.main([str(folder), "--train", str(bad), str(good), *arguments])
        assert "expected" in capsys.readouterr().err


def test_sentiment_makes_a_record_of_the_benchmarks(sentiment, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES.parent))
    runs = [
        {"from scratch": 70.0, "pre-trained": 75.0},
        {"from scratch": 72.0, "pre-trained": 74.0},
    ]
    options = sentiment.read_options(["m", "--train", "a", "b"])
    record = sentiment.record(runs, options, {"layers": 1})
    json.dumps(record)
    assert math.isclose(record["scores"]["pre-trained"]["accuracy, %"]["mean"], 74.5)
    assert [one["points"] for one in record["differences"]] == [3.5]
