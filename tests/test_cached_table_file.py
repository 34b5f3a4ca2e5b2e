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


# Trains without end, with few slots, rows of the next batch loaded meanwhile, and a flush every few
# steps; it is to be killed.
KILLED = """
import sys
import torch
from vecsmith import nn, optim
from vecsmith.nn.cached_table import CachedTable

sys.path.insert(0, sys.argv[1])
from test_cached_table_file import DIM, ROWS, kill_batch, rows_of

torch.set_num_threads(2)
table = CachedTable(ROWS, DIM, storage="mmap", path=sys.argv[2], cache_rows=400, seed=1)
optim.apply_optimizer_in_backward(optim.SparseAdam, table.parameters(), {"lr": 0.01})
step = int(sys.argv[3])
print("ready", flush=True)
while True:
    step += 1
    kill_batch(step, lambda indices: table.embedding_bag(indices, mode="sum"))
    table.prefetch(rows_of(step + 1, 30, 8))
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


# A fork of a process that has a table: whatever it does, the table is its parent's.
FORKED = """
import os, signal, sys
import torch
from vecsmith import optim
from vecsmith.nn.cached_table import CachedTable

path, what = sys.argv[1:]
torch.set_num_threads(1)
table = CachedTable(300, 8, storage="mmap", path=path, cache_rows=100, seed=1)
optim.apply_optimizer_in_backward(optim.SparseAdam, table.parameters(), {"lr": 0.1})

def train(first, last):
    for step in range(first, last):
        rows = torch.arange(step * 37, step * 37 + 80) % 300
        table.prefetch((rows + 37) % 300)
        table.embedding(rows).square().sum().backward()

train(0, 5)
table.flush()
state = table.optimizer_state(torch.arange(300))
torch.save({"rows": table.export(), **state}, path + ".flushed")
train(5, 6 if what == "with" else 5)
child = os.fork()
if child == 0:
    signal.alarm(60)
    if what == "exit":
        sys.exit(0)
    elif what == "close":
        table.close()
        table.close()
    elif what == "with":
        with table:
            pass
    elif what == "del":
        del table
    elif what == "flush":
        try:
            table.flush()
        except RuntimeError as error:
            print(error, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
train(6, 12)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("what", ["exit", "close", "with", "del", "flush"])
def test_a_fork_does_not_make_rows_count(tmp_path, what):
    path = tmp_path / "table"
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(path), what], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    if what == "flush":
        assert "CachedTable: expected the process that made the table; got a fork" in done.stdout
    flushed = torch.load(tmp_path / "table.flushed")
    with CachedTable.open(path, file_mode="r") as table:
        assert table.steps == 5
        assert torch.equal(table.export(), flushed.pop("rows"))
        for name, values in table.optimizer_state(torch.arange(300)).items():
            assert torch.equal(values, flushed.pop(name))
        assert not flushed


# In a fork there is no thread that prefetches.
FORKED_USE = """
import os, signal, sys
import torch
from vecsmith import optim
from vecsmith.nn.cached_table import CachedTable

storage, path = sys.argv[1:]
torch.set_num_threads(1)
where = {"storage": storage, **({"path": path} if storage == "mmap" else {})}
table = CachedTable(300, 8, cache_rows=100, **where)
if storage == "mmap":
    table.close()
    table = CachedTable.open(path, file_mode="r")
some = torch.arange(5)
table.requires_grad_(False)
before = table.embedding(some)
table.prefetch(some)
child = os.fork()
if child == 0:
    signal.alarm(60)
    uses = {
        "embedding": lambda: table.embedding(some),
        "bag": lambda: table.embedding_bag(some, torch.tensor([0])),
        "prefetch": lambda: table.prefetch(some),
        "rows": lambda: table.rows(some),
        "state": lambda: table.optimizer_state(some),
        "load_rows": lambda: table.load_rows(some, torch.zeros(5, 8)),
        "flush": table.flush,
        "export": table.export,
        "drop": table.drop_optimizer_state,
        "statistics": table.statistics,
        "reset_statistics": table.reset_statistics,
    }
    for name, use in uses.items():
        try:
            use()
        except RuntimeError as error:
            assert "expected the process that made the table; got a fork" in str(error)
            print(name, flush=True)
    table.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(table.embedding(some), before)
table.prefetch(some)
table.close()
"""


@pytest.mark.parametrize("storage", ["host", "mmap"])
def test_a_fork_cannot_use_a_table(tmp_path, storage):
    done = subprocess.run(
        [sys.executable, "-c", FORKED_USE, storage, str(tmp_path / "t")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 11, done.stdout


def test_a_link_stays_one(tmp_path):
    """State that an optimizer adds goes to the file behind the link."""
    folder = tmp_path / "disk"
    folder.mkdir()
    link = tmp_path / "link"
    for name in ("there", "dangling"):
        link.unlink(missing_ok=True)
        link.symlink_to(folder / name)
        if name == "there":
            CachedTable(ROWS, DIM, storage="mmap", path=folder / name, seed=1).close()
        cached, dense, table = pair(RULES[4], storage="mmap", path=link)
        for layer in (cached, dense):
            layer(rows_of(0, 30, 8)).square().sum().backward()
        table.close()
        assert link.is_symlink()
        assert not (folder / name).is_symlink()
        for path in (link, folder / name):
            with CachedTable.open(path, file_mode="r") as again:
                same_table(again, dense)
    assert sorted(p.name for p in folder.iterdir()) == ["dangling", "there"]
    link.unlink()
    link.symlink_to(tmp_path / "nowhere" / "file")
    with pytest.raises(FileNotFoundError, match="making"):
        CachedTable(10, 2, storage="mmap", path=link)


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
