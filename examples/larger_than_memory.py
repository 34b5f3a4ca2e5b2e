"""A table that is larger than the memory it may use: rows in a file, the hot ones in a cache.

    python examples/larger_than_memory.py                             # 2 GB of rows
    python examples/larger_than_memory.py --rows 1e8 --folder DISK    # 26 GB

Each row has to learn what it alone can know: how a coin fell for its id. The file takes about twice
the space of the rows, meanwhile. The limit of memory is Linux's own (RLIMIT_DATA).
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from vecsmith import nn, optim

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=float, default=8e6, help="ids, a row each [8e6]")
parser.add_argument("--dim", type=int, default=64, help="numbers in a row [64]")
parser.add_argument("--cache", type=float, default=2e5, help="rows in memory [2e5]")
parser.add_argument("--memory", type=float, default=256, help="MB that may be taken [256]")
parser.add_argument("--steps", type=int, default=1000, help="batches of 4096 ids [1000]")
parser.add_argument("--folder", type=Path, default=Path(), help="for the file; not in memory [.]")
options = parser.parse_args()
if not all(0 < n < 1e12 for n in (options.rows, options.cache, options.memory)):
    parser.error("expected numbers for --rows, --cache and --memory")
rows, cache, batch = int(options.rows), int(options.cache), 4096
if not (rows >= cache >= batch and options.dim >= 1 and options.steps >= 10):
    parser.error("expected --rows >= --cache >= 4096, --dim of at least 1, --steps of at least 10")
if not options.folder.is_dir():
    parser.error(f"expected --folder to be a folder; got {options.folder}")
if not Path("/proc/self/status").is_file():
    parser.error("expected Linux, which says and limits how much memory a process has")


def megabytes(what):
    """VmData: what RLIMIT_DATA limits. RssAnon: memory of its own. RssFile: pages of files, which
    the system keeps in memory while nobody else wants it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def coin(ids):
    """-1 or 1 for each id."""
    return ((ids * 2654435761 >> 7) % 2 * 2 - 1).float()


def open_table(file):
    table = nn.CachedTable(
        *(rows, options.dim), storage="mmap", path=file, cache_rows=cache, init=("normal", 0, 0.01)
    )
    optim.apply_optimizer_in_backward(optim.RowwiseAdagrad, table.parameters(), {"lr": 0.1})
    return table, nn.Embedding(rows, options.dim, table=table)


# 1. From here on the process gets no more memory than --memory, and the whole table is refused.
size, before, others = rows * options.dim * 4 / 2**20, megabytes("RssAnon"), megabytes("RssFile")
limit = int((megabytes("VmData") + options.memory) * 2**20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    torch.empty(rows, options.dim)
    print(f"{size:,.0f} MB of rows fit into {options.memory:,.0f} MB: choose more --rows")
except RuntimeError:
    print(f"{size:,.0f} MB of rows do not fit into {options.memory:,.0f} MB")

with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    # 2. Training. Few ids come often, most of them seldom. backward() itself updates the rows.
    table, embedding = open_table(Path(folder) / "table.rows")
    draws, early, peak, started = torch.Generator().manual_seed(0), [], 0.0, time.perf_counter()
    for step in range(options.steps):
        ids = (rows * torch.rand(batch, generator=draws, dtype=torch.float64) ** 4).long()
        scores = embedding(ids).sum(1)
        right = (scores * coin(ids) > 0).float().mean()
        torch.nn.functional.softplus(-scores * coin(ids)).mean().backward()
        peak = max(peak, megabytes("RssAnon"))
        early += [ids] if step < 5 else []
        if step in (0, options.steps // 10, options.steps - 1):
            print(f"batch {step:5}: {right:6.1%} right before it is trained on")
    rate = batch * options.steps / (time.perf_counter() - started)
    print(f"{rate:,.0f} ids/s, {table.hit_rate:.1%} of them in the cache")
    print(f"memory of its own: {peak - before:,.0f} MB at most, for {size:,.0f} MB of rows")
    print(
        f"pages of the file that the system kept in memory: {megabytes('RssFile') - others:,.0f} MB"
    )
    table.close()

    # 3. The file is the state: another table goes on from it, also with rows that left the cache.
    table, embedding = open_table(Path(folder) / "table.rows")
    with torch.no_grad():
        ids = torch.cat(early).unique()
        right = (embedding(ids[:cache]).sum(1) * coin(ids[:cache]) > 0).float().mean()
    print(f"read again: {right:.1%} right of {len(ids[:cache]):,} ids of the first batches")
    table.close()
