"""Files of rows: what is flushed stays, what is not flushed goes, whatever happens between."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vecsmith.io import RowFile

ROWS, DIM = 200, 7
BLOCK = 4096
STATES = [(DIM, 0.0), (1, 0.5)]


def make(path: Path, **more) -> RowFile:
    arguments = {"states": STATES, "init": ("normal", 0.0, 1.0), "seed": 3, "label": b"label"}
    return RowFile.create(path, ROWS, DIM, **{**arguments, **more})


def everything(file: RowFile) -> list[torch.Tensor]:
    return file.read(torch.arange(file.rows), 1 + len(file.states))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def draw(count: int, generator: np.random.Generator) -> tuple[np.ndarray, list[torch.Tensor]]:
    rows = generator.permutation(ROWS)[:count]
    shapes = [(count, DIM), (count, DIM), (count, 1)]
    return rows, [torch.from_numpy(generator.standard_normal(s).astype(np.float32)) for s in shapes]


def put(model: list[torch.Tensor], rows: np.ndarray, parts: list[torch.Tensor]) -> None:
    for whole, part in zip(model, parts, strict=False):
        whole[torch.from_numpy(rows)] = part


# --- rows ----------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "memory"])
def file(request, tmp_path):
    if request.param == "file":
        made = make(tmp_path / "rows")
    else:
        made = RowFile.in_memory(ROWS, DIM, states=STATES, init=("normal", 0.0, 1.0), seed=3)
    with made:
        yield made


def test_rows_and_state(file):
    generator = np.random.default_rng(0)
    model = everything(file)
    for step in range(60):
        rows, parts = draw(int(generator.integers(0, ROWS)), generator)
        parts = parts[: step % 3 + 1]
        file.write(rows, parts)
        put(model, rows, parts)
        if step % 7 == 3:
            file.flush()
        assert same(everything(file), model)
    some = torch.tensor([3, 3, 0, 199])
    assert torch.equal(file.read(some)[0], model[0][some])
    out = torch.empty(4, DIM)
    assert file.read(some, [out])[0] is out
    assert torch.equal(out, model[0][some])
    assert file.read([])[0].shape == (0, DIM)


def test_rows_never_written(tmp_path):
    with RowFile.in_memory(20000, 33, init=("normal", 1.0, 2.0), seed=5, zero_row=7) as file:
        rows = file.read(torch.arange(20000))[0]
        assert torch.equal(rows[7], torch.zeros(33))
        rest = rows[torch.arange(20000) != 7].double()
        # The standard errors of a mean and of a deviation, of 660,000 values.
        assert abs(float(rest.mean()) - 1) < 5 * 2 / 660000**0.5
        assert abs(float(rest.std()) - 2) < 5 * 2 / (2 * 660000) ** 0.5
        normal = torch.distributions.Normal(1.0, 2.0)
        quantiles = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
        below = (rest.flatten()[None] < normal.icdf(quantiles)[:, None]).double().mean(1)
        assert torch.allclose(below, quantiles, atol=3e-3)
        flat = rest.flatten()
        assert abs(float(((flat[1:] - 1) * (flat[:-1] - 1)).mean())) < 0.03
        backwards = file.read(torch.arange(19999, -1, -1))[0]
        assert torch.equal(backwards.flip(0), rows)
    with make(tmp_path / "a", init=("uniform", -0.25, 0.5), seed=1) as file:
        rows = file.read(torch.arange(ROWS))[0]
        assert -0.25 <= float(rows.min()) < -0.23
        assert 0.48 < float(rows.max()) <= 0.5
        assert file.read([0], 3)[2].item() == 0.5
    with RowFile.open(tmp_path / "a") as again:
        assert torch.equal(again.read(torch.arange(ROWS))[0], rows)
    with make(tmp_path / "b", init=("uniform", -0.25, 0.5), seed=2) as other:
        assert not torch.equal(other.read(torch.arange(ROWS))[0], rows)
    with RowFile.in_memory(3, 5, init=("constant", 0.1, 0.0)) as file:
        assert torch.equal(file.read([0, 1, 2])[0], torch.full((3, 5), 0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 2e4])
def test_half_precision(tmp_path, dtype, scale):
    if dtype == torch.bfloat16:
        scale = min(scale, 1.0)
    with RowFile.in_memory(500, 9, init=("normal", 0.0, scale), seed=4) as full:
        exact = full.read(torch.arange(500))[0]
    with RowFile.create(
        tmp_path / "rows", 500, 9, dtype=dtype, init=("normal", 0.0, scale), seed=4
    ) as half:
        assert torch.equal(half.read(torch.arange(500))[0], exact.to(dtype))
        values = torch.randn(2, 9).to(dtype)
        half.write([4, 2], [values])
        assert torch.equal(half.read([4, 2])[0], values)


# --- crashes -------------------------------------------------------------------------------------


def test_what_is_not_flushed_is_gone(tmp_path):
    generator = np.random.default_rng(1)
    path = tmp_path / "rows"
    make(path).close()
    model = None
    for session in range(12):
        file = RowFile.open(path)
        assert file.label == b"label"
        now = everything(file)
        if model is not None:
            assert same(now, model)
        assert file.flushes == 2 * session
        for flush in range(2):
            for _ in range(3):
                rows, parts = draw(80, generator)
                file.write(rows, parts)
                put(now, rows, parts)
            file.flush(b"%d" % flush)
        model = [part.clone() for part in now]
        file.write(*draw(120, generator))
        assert not same(everything(file), model)
        if session % 3:
            file.close()
        del file  # as if the process had died: nothing is written any more
    with RowFile.open(path, read_only=True) as file:
        assert same(everything(file), model)
        assert file.metadata == b"1"


def test_machines_that_stop_leave_any_of_the_pages(tmp_path):
    """What was written since the last sync may have reached the disk, page by page, or not."""
    generator = np.random.default_rng(2)
    path, copy = tmp_path / "rows", tmp_path / "copy"
    file = make(path)
    model = everything(file)
    blocks = -(-path.stat().st_size // 512)
    for _ in range(8):
        synced = np.fromfile(path, np.uint8)
        now = [part.clone() for part in model]
        for _ in range(int(generator.integers(1, 4))):
            rows, parts = draw(int(generator.integers(1, 150)), generator)
            file.write(rows, parts)
            put(now, rows, parts)
        written = np.fromfile(path, np.uint8)
        for share in (0.1, 0.5, 0.9, 1.0):
            kept = np.repeat(generator.random(blocks) < share, 512)[: len(written)]
            np.where(kept, written, synced).tofile(copy)
            with RowFile.open(copy) as crashed:
                assert same(everything(crashed), model)
                # And it goes on from there, over what was left.
                rows, parts = draw(100, generator)
                crashed.write(rows, parts)
                expected = [part.clone() for part in model]
                put(expected, rows, parts)
                crashed.flush()
            with RowFile.open(copy) as crashed:
                assert same(everything(crashed), expected)
        file.flush()
        flushed = np.fromfile(path, np.uint8)
        # The commit record is written when the rows are there. Torn, it does not count.
        for cut in (0, 512, 1024, 2048):
            torn = flushed.copy()
            for at in (BLOCK, 2 * BLOCK):
                torn[at + cut : at + BLOCK] = synced[at + cut : at + BLOCK]
            torn.tofile(copy)
            with RowFile.open(copy) as crashed:
                assert same(everything(crashed), model)
        flushed.tofile(copy)
        with RowFile.open(copy) as crashed:
            assert same(everything(crashed), now)
        model = now
    file.close()


def test_more_crashes_than_the_list_of_them_holds(tmp_path):
    generator = np.random.default_rng(3)
    path = tmp_path / "rows"
    make(path).close()
    with RowFile.open(path) as file:
        file.write(*draw(150, generator))
        file.flush()
        model = everything(file)
    for _ in range(270):
        file = RowFile.open(path)
        file.write(*draw(20, generator))
        del file
    with RowFile.open(path) as file:
        assert same(everything(file), model)
        rows, parts = draw(ROWS, generator)
        file.write(rows, parts)
        file.flush()
    with RowFile.open(path) as file:
        put(model, rows, parts)
        assert same(everything(file), model)


# A process that is to be killed: it writes rows that say in which round they were written, and
# flushes after each round.
KILLED = """
import sys
import torch
from vecsmith.io import RowFile

path = sys.argv[1]
with RowFile.open(path) as file:
    parts = file.read(torch.arange(file.rows), 2)
    done = int(file.metadata or b"0")
    print("ready", flush=True)
    while True:
        done += 1
        generator = torch.Generator().manual_seed(done)
        for _ in range(4):
            rows = torch.randperm(file.rows, generator=generator)[: file.rows // 3]
            value = torch.randn(len(rows), file.dim, generator=generator)
            file.write(rows, [value, value + 1])
        file.flush(str(done).encode())
        print(done, flush=True)
"""


def expected_after(path_rows: int, dim: int, done: int) -> torch.Tensor:
    whole = torch.zeros(path_rows, dim)
    for number in range(1, done + 1):
        generator = torch.Generator().manual_seed(number)
        for _ in range(4):
            rows = torch.randperm(path_rows, generator=generator)[: path_rows // 3]
            whole[rows] = torch.randn(len(rows), dim, generator=generator)
    return whole


def kill_writers(path: Path, kills: int) -> None:
    rows, dim = 3000, 40
    RowFile.create(path, rows, dim, states=[(dim, 1.0)]).close()
    wait = random.Random(4)
    rounds = []
    for kill in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "ready\n"
        said = [rounds[-1] if rounds else 0]
        if kill % 2:
            said.append(int(child.stdout.readline()))
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(wait.uniform(0.0, 0.1))
        child.kill()
        assert child.wait() < 0
        last = [*said, *(int(number) for number in child.stdout.read().split())][-1]
        child.stdout.close()
        with RowFile.open(path, read_only=True) as file:
            done = int(file.metadata or b"0")
            assert done in (last, last + 1)  # killed before it could say so
            found = file.read(torch.arange(rows), 2)
        expected = expected_after(rows, dim, done)
        assert torch.equal(found[0], expected)
        assert torch.equal(found[1][expected.any(1)], expected[expected.any(1)] + 1)
        rounds.append(done)
    assert rounds[-1] > 0


def test_five_kills_while_rows_are_written_and_flushed(tmp_path):
    kill_writers(tmp_path / "rows", 5)


@pytest.mark.soak
def test_fifty_kills_while_rows_are_written_and_flushed(tmp_path):
    kill_writers(tmp_path / "rows", 50)


# --- other files ---------------------------------------------------------------------------------


def change(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as raw:
        raw.seek(at)
        raw.write(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "expected a table of rows, got a file of 0 bytes"),
        (lambda path: path.write_bytes(b"x" * 20000), "another kind of file"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "cut short"),
        (lambda path: os.truncate(path, 6000), "expected a table of rows"),
        (lambda path: os.truncate(path, path.stat().st_size + 1), r"expected \d+ bytes, got"),
        (lambda path: change(path, 8, b"\2"), "expected version 1, got 2"),
        (lambda path: change(path, 12, b"\1\2\3\4"), "byte order"),
        (lambda path: change(path, 16, b"\7"), "header does not fit its checksum"),
        (lambda path: change(path, 100, b"\7"), "header does not fit its checksum"),
        (lambda path: change(path, BLOCK, bytes(2 * BLOCK)), "no whole commit record"),
    ],
)
def test_other_files_are_refused(tmp_path, damage, message):
    path = tmp_path / "rows"
    make(path).close()
    damage(path)
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(ValueError, match=message) as caught:
            RowFile.open(path, read_only=read_only)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_every_flipped_bit_of_header_and_commit_is_seen(tmp_path):
    path = tmp_path / "rows"
    with make(path) as file:
        file.write(*draw(50, np.random.default_rng(0)))
        file.flush()
        before = everything(file)
    data = path.read_bytes()
    for place in random.Random(3).sample(range(1204), 40):  # the size of the header
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(ValueError):
            RowFile.open(path)
    # The last record counts if it is whole, else the one before: here of the same rows.
    for place in random.Random(4).sample(range(2048), 40):
        for record in (BLOCK, 2 * BLOCK):
            at = record + place
            path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            with RowFile.open(path, read_only=True) as file:
                assert same(everything(file), before)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="rows"):
        RowFile.open(tmp_path / "rows")
    with pytest.raises(OSError, match="opening"):
        RowFile.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        make(tmp_path / "nowhere" / "rows")
    make(tmp_path / "rows").close()
    before = (tmp_path / "rows").read_bytes()
    with pytest.raises(FileExistsError):
        make(tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]


def test_debris_of_a_killed_creation_is_used_up(tmp_path):
    (tmp_path / ".rows.making").write_bytes(b"half a file")
    make(tmp_path / "rows").close()
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]


def test_names_that_are_not_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/rows-\xff\xfe"))
    make(path).close()
    RowFile.open(path).close()


HOLDER = """
import sys
from vecsmith.io import RowFile
with RowFile.open(sys.argv[1], read_only=sys.argv[2] == "r"):
    print("here", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("mode", ["r", "w"])
def test_two_processes(tmp_path, mode):
    path = tmp_path / "rows"
    make(path).close()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "here\n"
        with pytest.raises(BlockingIOError, match=r"rows alone, but it is in use"):
            RowFile.open(path)
        if mode == "r":
            RowFile.open(path, read_only=True).close()
        else:
            with pytest.raises(BlockingIOError):
                RowFile.open(path, read_only=True)
    finally:
        child.communicate("\n")
    RowFile.open(path).close()


def test_twice_in_one_process(tmp_path):
    with make(tmp_path / "rows"), pytest.raises(BlockingIOError):
        RowFile.open(tmp_path / "rows")
    with (
        RowFile.open(tmp_path / "rows", read_only=True) as one,
        RowFile.open(tmp_path / "rows", read_only=True) as other,
    ):
        assert same(everything(one), everything(other))


# --- forks ---------------------------------------------------------------------------------------

FORKED = """
import os, signal, sys
import torch
from vecsmith.io import RowFile

path, what = sys.argv[1:]
file = RowFile.open(path)
file.write([1], [torch.ones(1, file.dim)])
file.flush(b"flushed")
child = os.fork()
if child == 0:
    signal.alarm(60)
    if what == "use":
        for use in (
            lambda: file.read([1]),
            lambda: file.write([1], [torch.zeros(1, file.dim)]),
            lambda: file.flush(b"by a fork"),
            lambda: file.with_states([]),
        ):
            try:
                use()
            except RuntimeError as error:
                print(error, flush=True)
    file.close()
    assert file.closed
    file.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
file.write([1, 2], [torch.full((2, file.dim), 2.0)])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("what", ["close", "use"])
def test_a_fork_does_not_make_rows_count(tmp_path, what):
    path = tmp_path / "rows"
    make(path).close()
    with RowFile.open(path) as file:
        second = file.read([2])[0]
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(path), what], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == (4 if what == "use" else 0)
    for line in said:
        assert f"expected the process that opened {path}; got a fork of it" in line
    with RowFile.open(path) as file:
        assert file.metadata == b"flushed"
        assert torch.equal(file.read([1])[0], torch.ones(1, DIM))
        assert torch.equal(file.read([2])[0], second)


# Its forks may read a file that is open to read, and do not keep one that its writer closes.
FORKED_LOCKS = """
import os, signal, sys
import torch
from vecsmith.io import RowFile

path = sys.argv[1]

def fork(task):
    to, end = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.close(end)
        task()
        os.read(to, 1)  # until the parent closes its end
        os._exit(0)
    os.close(to)
    return child, end

with RowFile.open(path) as file:
    first = file.read([1])[0]
    child, end = fork(lambda: None)
with RowFile.open(path) as file:
    file.write([1], [first + 1])
    file.flush()
os.close(end)
assert os.waitpid(child, 0)[1] == 0

with RowFile.open(path, read_only=True) as file:
    def read():
        assert torch.equal(file.read([1])[0], first + 1)
    child, end = fork(read)
    os.close(end)
    assert os.waitpid(child, 0)[1] == 0
memory = RowFile.in_memory(3, 2)
def write():
    memory.write([1], [torch.ones(1, 2)])
    assert memory.read([1])[0].eq(1).all()
child, end = fork(write)
os.close(end)
assert os.waitpid(child, 0)[1] == 0
assert memory.read([1])[0].eq(0).all()
"""


def test_locks_and_forks(tmp_path):
    path = tmp_path / "rows"
    make(path).close()
    done = subprocess.run(
        [sys.executable, "-c", FORKED_LOCKS, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- a full disk ---------------------------------------------------------------------------------

LIMITED = """
import os, resource, sys
from vecsmith.io import RowFile

folder = sys.argv[1]
with RowFile.create(folder + "/old", 100, 8) as file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20,) * 2)
    try:
        RowFile.create(folder + "/new", 100000, 8)
    except OSError as error:
        print(error.errno, error)
    try:
        file.with_states([(4000, 0.0)])
    except OSError as error:
        print(error.errno, error)
    file.write([1], [file.read([2])[0]])
    file.flush()
print(sorted(os.listdir(folder)))
"""


def test_the_limit_of_a_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    made, remade, names = done.stdout.splitlines()
    assert made.startswith(f"{errno.EFBIG} ")
    assert f"file size limit reached while making {tmp_path / 'new'}" in made
    assert remade.startswith(f"{errno.EFBIG} ")
    assert names == "['old']"


FULL = """
import os, sys
from vecsmith.io import RowFile
import torch

folder = sys.argv[1]
file = RowFile.create(folder + "/rows", 5000, 16)
with open(folder + "/filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError as error:
        print("full", error.errno)
try:
    RowFile.create(folder + "/more", 5000, 16)
except OSError as error:
    print(error.errno, error)
# What there is goes on: every row, twice.
for k in range(2):
    file.write(torch.arange(5000), [torch.full((5000, 16), float(k))])
    file.flush()
try:
    file.with_states([(16, 0.0)])
except OSError as error:
    print(error.errno, error)
os.unlink(folder + "/filler")
file = file.with_states([(16, 2.0)])
assert file.read([4999], 2)[0].eq(1).all() and file.read([4999], 2)[1].eq(2).all()
file.close()
print(sorted(os.listdir(folder)))
"""


def test_a_full_disk(tmp_path):
    """A small file system of its own, in a mount namespace that ends with the process."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("expected the right to mount a small tmpfs")
    script = 'mount -t tmpfs -o size=6m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "permission denied" in done.stderr.lower() or "not permitted" in done.stderr.lower():
        pytest.skip("expected the right to mount a small tmpfs")
    assert done.returncode == 0, done.stderr
    full, more, remade, names = done.stdout.splitlines()
    assert full == f"full {errno.ENOSPC}"
    assert more.startswith(f"{errno.ENOSPC} ")
    assert "no space left on the disk while making" in more
    assert remade.startswith(f"{errno.ENOSPC} ")
    assert names == "['rows']"


def test_a_copy_with_holes_gets_its_space_back(tmp_path):
    make(tmp_path / "rows").close()
    data = (tmp_path / "rows").read_bytes()
    with open(tmp_path / "sparse", "wb") as sparse:
        sparse.truncate(len(data))
        sparse.write(data[: 4 * BLOCK])
    RowFile.open(tmp_path / "sparse", read_only=True).close()
    RowFile.open(tmp_path / "sparse").close()
    assert os.stat(tmp_path / "sparse").st_blocks * 512 >= len(data)


# --- other state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["file", "memory"])
def test_other_states_behind_the_same_rows(tmp_path, storage):
    generator = np.random.default_rng(5)
    more = {"states": [(DIM, 0.25)], "init": ("normal", 0.0, 1.0)}
    if storage == "file":
        file = RowFile.create(tmp_path / "rows", ROWS, DIM, **more)
    else:
        file = RowFile.in_memory(ROWS, DIM, **more)
    rows, parts = draw(60, generator)
    file.write(rows, parts[:2])
    file.flush(b"m")
    flushed = everything(file)
    file.write(*[x[:2] for x in draw(2, generator)][:1], draw(2, generator)[1][:1])
    before = everything(file)
    wider = file.with_states([(DIM, 0.25), (1, 3.0)], b"wider")
    assert file.closed
    assert same(everything(wider)[:2], before)
    assert torch.equal(everything(wider)[2], torch.full((ROWS, 1), 3.0))
    assert wider.metadata == b"m"
    assert wider.label == b"wider"
    if storage == "file":
        del wider  # dies: what was not flushed was not flushed by this either
        wider = RowFile.open(tmp_path / "rows")
        assert same(everything(wider)[:2], flushed)
        before = flushed
        os.chmod(tmp_path / "rows", 0o640)
    bare = wider.with_states([])
    assert same(everything(bare), before[:1])
    bare.close()
    if storage == "file":
        assert [p.name for p in tmp_path.iterdir()] == ["rows"]
        assert (tmp_path / "rows").stat().st_mode & 0o777 == 0o640


def test_other_states_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "rows")
    make(tmp_path / "link").close()
    with pytest.raises(FileExistsError):
        make(tmp_path / "link")
    with RowFile.open(tmp_path / "link") as file:
        before = everything(file)
        file.with_states([]).close()
    assert (tmp_path / "link").is_symlink()
    with RowFile.open(tmp_path / "disk" / "rows") as file:
        assert same(everything(file), before[:1])
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["rows"]


# --- bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": 0}, ValueError, r"expected rows in 1\.\.2147483648; got 0"),
        ({"rows": 2.0}, TypeError, "expected rows to be an int"),
        ({"dim": -1}, ValueError, "expected dim in"),
        ({"dtype": torch.float64}, TypeError, "expected dtype float32"),
        ({"dtype": torch.int8}, TypeError, "expected dtype float32"),
        ({"init": ("gauss", 0.0, 1.0)}, ValueError, "expected init to be"),
        ({"init": ("normal", 0.0)}, ValueError, "expected init to be"),
        ({"init": ("normal", 0.0, float("nan"))}, ValueError, "expected finite numbers"),
        ({"zero_row": 10}, ValueError, r"expected zero_row in 0\.\.9; got 10"),
        ({"states": [(0, 0.0)]}, ValueError, "expected states of"),
        ({"states": [(1, 0.0)] * 9}, ValueError, "expected at most 8 states"),
        ({"label": b"x" * 1025}, ValueError, "expected a label"),
    ],
)
def test_bad_arguments(tmp_path, change, error, message):
    arguments = {"rows": 10, "dim": 4, **change}
    with pytest.raises(error, match=message):
        RowFile.create(tmp_path / "rows", **arguments)
    assert not list(tmp_path.iterdir())


def test_bad_rows(tmp_path):
    with make(tmp_path / "rows") as file:
        before = everything(file)
        good = torch.zeros(2, DIM)
        for rows, parts, error, message in (
            ([0, ROWS], [good], IndexError, r"expected indices in 0\.\.199; got 200 at position 1"),
            ([-1, 0], [good], IndexError, "got -1 at position 0"),
            ([5, 5], [good], ValueError, "expected distinct indices; got 5 twice"),
            ([5, 1, 5], [torch.zeros(3, DIM)], ValueError, "got 5 twice"),
            ([0.5, 1.5], [good], TypeError, "expected integer indices"),
            ([[0, 1]], [good], ValueError, r"expected indices of shape \[N\]"),
            ([0, 1], [good.double()], ValueError, "expected a part"),
            ([0, 1], [good[:1]], ValueError, "expected a part"),
            ([0, 1], [torch.zeros(DIM, 2).T], ValueError, "expected contiguous parts"),
            ([0, 1], [], ValueError, r"expected 1\.\.3 parts; got 0"),
            ([0, 1], [good] * 4, ValueError, r"expected 1\.\.3 parts; got 4"),
        ):
            with pytest.raises(error, match=message):
                file.write(rows, parts)
        with pytest.raises(IndexError):
            file.read([ROWS])
        with pytest.raises(ValueError, match="1024"):
            file.flush(b"x" * 1025)
        assert same(everything(file), before)
    for use in (lambda: file.read([0]), lambda: file.write([0, 1], [good]), file.flush):
        with pytest.raises(ValueError, match="closed"):
            use()
    file.close()
    with RowFile.open(tmp_path / "rows", read_only=True) as file:
        assert file.read_only
        for use in (lambda: file.write([0, 1], [good]), file.flush):
            with pytest.raises(ValueError, match=r"open for writing|open to read"):
                use()
        with pytest.raises(OSError):
            file.with_states([])
        assert same(everything(file), before)
