"""The scripts of examples/, on data so small that they take seconds."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vecsmith
from sentence_texts import texts

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def two_tower():
    spec = importlib.util.spec_from_file_location("two_tower", EXAMPLES / "two_tower.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


SMALL = ["--users", "300", "--items", "120", "--batch", "128", "--negatives", "64", "--dim", "16"]


def test_two_tower_learns_the_same_in_both_frameworks(two_tower, tmp_path, capsys):
    result = tmp_path / "result.json"
    arguments = [*SMALL, "--epochs", "4", "--seeds", "1", "--json", str(result)]
    assert two_tower.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Recall@20" in printed
    assert "times as fast" in printed
    (run,) = json.loads(result.read_text())["runs"]
    ours, theirs = run["vecsmith"], run["torch"]
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], rel=1e-5)
    assert len(ours["seconds"]) == len(theirs["seconds"]) == 4
    for measure, value in ours["measures"].items():
        assert value == pytest.approx(theirs["measures"][measure], abs=1)
    assert ours["measures"]["Recall@20"] > 35  # untrained: 20 items of about 100


def test_two_tower_makes_a_record_of_the_benchmarks(two_tower, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES.parent))
    data = two_tower.make_data(60, 40)
    both = {
        "vecsmith": {"measures": {"Recall@20": 50.0}, "first_loss": 5.0, "seconds": [1.0, 2.0]},
        "torch": {"measures": {"Recall@20": 50.5}, "first_loss": 5.0, "seconds": [2.0, 6.0]},
    }
    record = two_tower.record([both], data, two_tower.read_options([]))
    json.dumps(record)
    assert record["agreement"][0]["passed"]
    assert record["ratios"][0]["median"] == 2.5
    assert [(one["points"], one["reached"]) for one in record["differences"]] == [(-0.5, False)]


def write_folder(folder: Path) -> None:
    (folder / "train.txt").write_text("0 1 2 3\n1 4\n2 0 5\n")
    (folder / "valid.txt.gz").write_bytes(gzip.compress(b"0 4\n1\n2 6\n"))
    (folder / "test.txt").write_text("0 0\n1 1 7\n\n2\n")


def test_two_tower_reads_the_format_of_lightgcn(two_tower, tmp_path):
    write_folder(tmp_path)
    data = two_tower.read_data(tmp_path, "test")
    assert (data.num_users, data.num_items) == (3, 8)
    assert [data.train.of(user).tolist() for user in range(3)] == [[1, 2, 3, 4], [4], [0, 5, 6]]
    assert [data.test.of(user).tolist() for user in range(3)] == [[0], [1, 7], []]
    data = two_tower.read_data(tmp_path, "valid")
    assert [data.train.of(user).tolist() for user in range(3)] == [[1, 2, 3], [4], [0, 5]]
    assert [data.test.of(user).tolist() for user in range(3)] == [[4], [], [6]]


def test_two_tower_says_what_is_wrong_with_its_input(two_tower, tmp_path, capsys):
    assert two_tower.main([str(tmp_path)]) == 2
    assert "train.txt" in capsys.readouterr().err
    write_folder(tmp_path)
    assert two_tower.main([str(tmp_path)]) == 2
    assert "expected --batch of at most the 8 pairs; got 1024" in capsys.readouterr().err
    (tmp_path / "train.txt").write_text("0 one\n")
    assert two_tower.main([str(tmp_path)]) == 2
    assert "one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        two_tower.main(["--epochs", "0"])
    assert "expected --epochs to be positive; got 0" in capsys.readouterr().err


def test_two_tower_batches_hold_the_other_items_of_their_users(two_tower):
    data = two_tower.make_data(60, 40)
    options = two_tower.read_options([*SMALL, "--history", "7"])
    sampler = two_tower.Sampler(data, options, 1)
    batches = list(sampler.epoch())
    assert len(batches) == len(data.train.items) // 128
    for batch in batches:
        assert batch.candidates.shape == (128 + 64,)
        bags = np.split(batch.history.numpy(), batch.offsets.numpy()[1:-1])
        for user, item, bag in zip(batch.users, batch.candidates, bags, strict=False):
            known = set(data.train.of(int(user)).tolist())
            assert item.item() in known
            assert set(bag.tolist()) <= known - {item.item()}
            assert len(set(bag.tolist())) == len(bag) == min(7, len(known) - 1)
    # log E: how often an item was a candidate, on the average over many batches
    batches = [batch for _ in range(300) for batch in sampler.epoch()]
    found = sum(np.bincount(batch.candidates, minlength=40) for batch in batches) / len(batches)
    np.testing.assert_allclose(found, sampler.log_expected.exp().numpy(), rtol=0.2)


def test_two_tower_loss_is_sampled_softmax(two_tower):
    torch.manual_seed(0)
    users = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    items = torch.randn(5, 4, dtype=torch.float64)
    candidates = torch.tensor([2, 0, 2, 1, 0])  # 2 and 0 are there twice
    log_expected = torch.randn(3, dtype=torch.float64)
    loss = two_tower.sampled_softmax(users, items, candidates, log_expected, 0.5)
    expected = 0.0
    for n in range(3):
        scores = users[n] @ items.T / 0.5 - log_expected[candidates]
        kept = [j for j in range(5) if j == n or candidates[j] != candidates[n]]
        expected = expected - (scores[n] - scores[kept].logsumexp(0)) / 3
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, users)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_two_tower_measures_recall_and_ndcg(two_tower):
    """The items score 7, 6, ... 0 for everybody."""
    Interactions = two_tower.Interactions
    train = Interactions.from_pairs(np.array([[0, 0, 1, 2], [0, 1, 7, 3]]), 3)
    test = Interactions.from_pairs(np.array([[0, 0, 0, 1], [2, 4, 7, 1]]), 3)

    class Model:
        def item_vectors(self, items):
            return 7.0 - items[:, None]

        def user_vectors(self, users, history, offsets):
            return torch.ones(len(users), 1)

    measures = two_tower.evaluate(Model(), two_tower.Data("", 3, 8, train, test), top=3)
    # User 0 is shown 2, 3, 4 and wants 2, 4, 7; user 1 is shown 0, 1, 2 and wants 1.
    recall = (2 / 3 + 1) / 2
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    ndcg = ((1 + third) / (1 + second + third) + second) / 2
    assert measures == pytest.approx({"Recall@3": 100 * recall, "NDCG@3": 100 * ndcg})


def test_sentences_come_back_in_every_form(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    spec = importlib.util.spec_from_file_location("sentences", EXAMPLES / "sentences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with gzip.open(tmp_path / "train.en.gz", "wt") as file:
        file.write("\n".join(texts(300)))
    (tmp_path / "held.en").write_text("\n".join([*texts(15, seed=5), "too short"]))
    pairs = [("A man reads.", "The man reads.", 5.0), ("A dog", "My cats", 1.0), ("a", "b", 0.0)]
    lines = [f"genre\tfile\tyear\tid\t{score}\t{a}\t{b}" for a, b, score in pairs]
    (tmp_path / "sts.csv").write_text("\n".join(lines))
    names = ["a", "the", "man", "dog", "cats", "reads", "my"]
    vectors = np.random.default_rng(0).standard_normal((7, 20)).astype(np.float32)
    vecsmith.KeyedVectors(names, vectors).save(tmp_path / "words")
    result = tmp_path / "result.json"
    options = ["--split", "held", "--sizes", "128", "--vocab-size", "320", "--json", str(result)]
    more = ["--words", str(tmp_path / "words"), "--sts", str(tmp_path / "sts.csv")]
    forms = ["plain", "both", "meaning"]
    assert module.main([str(tmp_path), *options, *more, "--forms", *forms]) == 0
    printed = capsys.readouterr().out
    assert "15 of held" in printed
    assert "STS of the mean of the word vectors" in printed
    rows = {row["form"]: row for row in json.loads(result.read_text())["rows"]}
    assert list(rows) == forms
    assert rows["plain"]["clean"]["exact_match"] < rows["both"]["clean"]["exact_match"] == 1
    assert rows["meaning"]["clean"]["exact_match"] == 1
    assert rows["both"]["blurred"]["sentences"] == 15
    assert all(-1 <= row["sts"] <= 1 for row in rows.values())
    assert module.main([str(tmp_path), "--split", "nothing"]) == 2
    assert "nothing.en" in capsys.readouterr().err
