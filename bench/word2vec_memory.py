"""Anonymous resident memory (RssAnon) of `vecsmith word2vec` beyond the tables and a bare import,
for one and for four copies of the text: it must not grow with the corpus. Linux only."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ._ours import corpus_path
from ._runner import Check, Group, finish, parser, run

BAR = 150.0  # MB
GROWTH = 15.0  # MB that four copies may be over one: the words that four copies let in, and noise
_MB = 1e6


def _anonymous(process: int) -> int:
    """RssAnon of a process in bytes; 0 if it has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"^RssAnon:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def peak(command: list[str]) -> float:
    """The largest RssAnon in bytes that a command reaches, looked at every 5 ms."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    highest = 0
    while process.poll() is None:
        highest = max(highest, _anonymous(process.pid))
        time.sleep(0.005)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return highest


def bare_import() -> float:
    """RssAnon in bytes of a process that has done nothing but import vecsmith."""
    program = "import vecsmith, sys; print('ready', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        found = _anonymous(process.pid)
        process.stdin.write("\n")
    return found


def group(path: Path, threads: int, dim: int, scratch: Path) -> Group:
    """Entries that return MB beyond the tables and the import."""
    four = scratch / "four.txt"
    with four.open("wb") as out:
        for _ in range(4):
            with path.open("rb") as text:
                shutil.copyfileobj(text, out)
    seen: dict[str, int] = {}

    def excess(name: str, source: Path, min_count: int) -> float:
        from vecsmith import KeyedVectors

        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            command = [sys.executable, "-m", "vecsmith", "word2vec", str(source)]
            command += ["-o", folder, "--dim", str(dim), "--threads", str(threads), "--quiet"]
            # The same words whatever the number of copies.
            command += ["--epochs", "1", "--sample", "1e-4", "--min-count", str(min_count)]
            highest = peak(command)
            rows = len(KeyedVectors.load(folder).index_to_key)
        seen[name] = rows
        stride = -(-dim // 16) * 16  # ops.empty_table
        tables = 2 * rows * stride * 4
        return (highest - tables - bare_import()) / _MB

    entries = {
        "1 copy": lambda: excess("1 copy", path, 5),
        "4 copies": lambda: excess("4 copies", four, 20),
    }

    def check() -> list[Check]:
        values = {name: entry() for name, entry in entries.items()}
        same = len(set(seen.values())) == 1
        found = [Check(f"both train the same vocabulary: {seen}", same)]
        growth = values["4 copies"] - values["1 copy"]
        text = f"4 copies take {growth:+.1f} MB over 1 copy (at most {GROWTH:g})"
        return [*found, Check(text, growth <= GROWTH)]

    return Group(
        name="word2vec_memory",
        title=f"RssAnon beyond tables and a bare import, dim {dim}, {threads} threads",
        unit="MB",
        higher_is_better=False,
        entries=entries,
        check=check,
        settings={"vector_size": dim, "threads": threads, "epochs": 1},
    )


def main(arguments: list[str] | None = None) -> int:
    if not Path("/proc/self/status").exists():
        print("RssAnon is read from /proc: Linux only", file=sys.stderr)
        return 2
    options = parser(__doc__, rounds=3)
    options.add_argument("--dim", type=int, default=100)
    given = options.parse_args(arguments)
    path = corpus_path(given.corpus)
    with tempfile.TemporaryDirectory() as scratch:
        made = group(path, given.threads, given.dim, Path(scratch))
        record = run(made, given.rounds, warmup=False)
    entries = record["entries"]
    assert isinstance(entries, dict)
    limits = []
    for name, values in entries.items():
        reached = values["median"] <= BAR
        verdict = "reached" if reached else "NOT reached"
        print(f"{name}: {values['median']:.1f} MB, bar <= {BAR:g} MB: {verdict}")
        limits.append({"what": name, "value": values["median"], "bar": BAR, "reached": reached})
    record["limits"] = limits
    return finish([record], given)


if __name__ == "__main__":
    sys.exit(main())
