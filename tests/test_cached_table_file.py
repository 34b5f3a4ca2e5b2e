"""The file of a CachedTable: what is flushed is there, however its process ends."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from test_cached_table import DIM, ROWS, RULE_NAMES, RULES, pair, rows_of, same_table
from vecsmith import nn, optim
from vecsmith.nn.cached_table import CachedTable


@pytest.mark.parametrize("rule", RULES, ids=RULE_NAMES)
def test_training_goes_on_from_the_file(tmp_path, rule):
    place = {"storage": "mmap", "path": tmp_path / "table"}
    cached, dense, table = pair(rule, **place)
    for batch in range(30):
        if batch % 10 == 9:
            table.close()
            table = CachedTable(ROWS, DIM, cache_rows=300 + batch, **place)
            cached = nn.EmbeddingBag(ROWS, DIM, mode="sum", table=table)
            optim.apply_optimizer_in_backward(rule[0], table.parameters(), rule[1])
        for layer in (cached, dense):
            layer(rows_of(batch, 30, 6)).square().sum().backward()
    same_table(table, dense)
    table.close()
    # Without an optimizer, and read-only.
    for mode in ("a", "r"):
        with CachedTable(ROWS, DIM, cache_rows=50, file_mode=mode, **place) as again:
            same_table(again, dense)
            again.requires_grad_(False)
            indices = rows_of(0, 5, 6)
            assert torch.equal(again.embedding(indices), dense.weight[indices])
            same_table(again, dense)


def test_what_is_not_flushed_is_gone(tmp_path):
    place = {"storage": "mmap", "path": tmp_path / "table"}
    cached, dense, table = pair(RULES[4], **place)
    for batch in range(20):
        for layer in (cached, dense):
            layer(rows_of(batch, 30, 6)).square().sum().backward()
    table.flush()
    for batch in range(20, 40):
        cached(rows_of(batch, 30, 6)).square().sum().backward()
    assert not torch.equal(table.export(), dense.weight)
    with pytest.raises(KeyError), table:
        raise KeyError  # nothing is flushed then
    with CachedTable.open(place["path"]) as again:
        same_table(again, dense)


def test_read_only(tmp_path):
    path = tmp_path / "table"
    weight = torch.randn(100, 4)
    CachedTable.from_pretrained(weight, storage="mmap", path=path).close()
    before = path.read_bytes()
    with (
        CachedTable.open(path, file_mode="r", cache_rows=10) as one,
        CachedTable.open(path, file_mode="r", cache_rows=10) as other,
    ):
        for batch in range(20):
            indices = rows_of(batch, 9, rows=100)
            for table in (one, other):
                assert torch.equal(table.embedding(indices), weight[indices])
        with pytest.raises(ValueError, match="expected a table open for writing"):
            one.flush()
        with pytest.raises(ValueError, match="expected a table open for writing"):
            one.load_rows(None, weight)
        one.requires_grad_(True)
        optim.apply_optimizer_in_backward(optim.SparseSGD, one.parameters(), {"lr": 1.0})
        with pytest.raises(ValueError, match="open for writing to train it"):
            one.embedding(torch.tensor([1]))
        optim.remove_optimizer_in_backward(one.parameters())
        with pytest.raises(BlockingIOError, match="in use"):
            CachedTable.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_embeddings": 99}, r"expected a table \[99, 4\] .*got \[100, 4\]"),
        ({"embedding_dim": 5}, r"expected a table \[100, 5\] .*got \[100, 4\]"),
        ({"dtype": torch.bfloat16}, r"of torch\.bfloat16; got .* of torch\.float32"),
        ({"file_mode": "x"}, "exists"),
    ],
)
def test_a_file_of_another_shape(tmp_path, change, message):
    path = tmp_path / "table"
    arguments = {"num_embeddings": 100, "embedding_dim": 4, "storage": "mmap", "path": path}
    CachedTable(**arguments).close()
    before = path.read_bytes()
    with pytest.raises((ValueError, FileExistsError), match=message):
        CachedTable(**{**arguments, **change})
    assert path.read_bytes() == before
    CachedTable(**arguments).close()  # and nobody holds it


def test_a_file_that_must_be_there(tmp_path):
    for mode in ("r", "r+"):
        with pytest.raises(FileNotFoundError):
            CachedTable(10, 2, storage="mmap", path=tmp_path / "t", file_mode=mode)
    assert not list(tmp_path.iterdir())


# Trains without end, with few slots and a flush every few steps; it is to be killed.
KILLED = """
import sys
import torch
from vecsmith import nn, optim
from vecsmith.nn.cached_table import CachedTable

sys.path.insert(0, sys.argv[1])
from test_cached_table_file import DIM, ROWS, kill_batch

torch.set_num_threads(2)
table = CachedTable(ROWS, DIM, storage="mmap", path=sys.argv[2], cache_rows=400, seed=1)
optim.apply_optimizer_in_backward(optim.SparseAdam, table.parameters(), {"lr": 0.01})
step = int(sys.argv[3])
print("ready", flush=True)
while True:
    step += 1
    kill_batch(step, lambda indices: table.embedding_bag(indices, mode="sum"))
    if step % 3 == 0:
        table.flush()
        print(step, flush=True)
"""


def kill_batch(step: int, layer) -> None:
    out = layer(rows_of(step, 30, 8))
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(step))
    (out * slope).sum().backward()


def kill_trainers(path: Path, kills: int) -> None:
    CachedTable(ROWS, DIM, storage="mmap", path=path, seed=1).close()
    with CachedTable.open(path, file_mode="r") as table:
        dense = nn.EmbeddingBag.from_pretrained(table.export(), freeze=False, mode="sum")
    optim.apply_optimizer_in_backward(optim.SparseAdam, dense.parameters(), {"lr": 0.01})
    wait = random.Random(5)
    steps = 0
    for kill in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, os.path.dirname(__file__), str(path), str(steps)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout.readline() == "ready\n"
        said = [steps]
        if kill % 2:
            said.append(int(child.stdout.readline()))
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(wait.uniform(0.0, 0.15))
        child.kill()
        assert child.wait() < 0
        last = [*said, *(int(number) for number in child.stdout.read().split())][-1]
        child.stdout.close()
        with CachedTable.open(path, file_mode="r") as table:
            done = table.steps
            assert done in (last, last + 3)  # killed before it could say so
            while steps < done:
                steps += 1
                kill_batch(steps, dense)
            same_table(table, dense)
    assert steps > 0


def test_five_kills_lose_no_flushed_row(tmp_path):
    kill_trainers(tmp_path / "table", 5)


@pytest.mark.soak
def test_fifty_kills_lose_no_flushed_row(tmp_path):
    kill_trainers(tmp_path / "table", 50)


FULL = """
import resource, sys
import torch
from vecsmith import optim
from vecsmith.nn.cached_table import CachedTable

path = sys.argv[1]
table = CachedTable(2000, 8, storage="mmap", path=path, cache_rows=300)
before = table.export()
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited[1]))
# Room for Adam's state is made at the first step, in a file that is larger.
optim.apply_optimizer_in_backward(optim.SparseAdam, table.parameters(), {"lr": 0.1})
for _ in range(2):
    try:
        table.embedding(torch.arange(100))
    except OSError as error:
        print(error)
    assert torch.equal(table.export(), before)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
table.embedding(torch.arange(100)).sum().backward()
table.flush()
# From here on nothing grows.
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited[1]))
for step in range(20):
    table.embedding(torch.arange(step * 90, step * 90 + 200)).sum().backward()
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
table.flush()
after = table.export()
table.close()
again = CachedTable.open(path)
assert torch.equal(again.export(), after) and not torch.equal(after, before)
"""


def test_no_room_for_the_state(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "t")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert f"file size limit reached while rewriting {tmp_path / 't'}" in first
    assert first == second
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
