"""The tests of `make gpu`: which files have some, what those need that is not installed, and their
run in several processes."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

# How often a process that a test has ended is started again.
_RESTARTS = 20
_LOST = 70  # gpu_shards.LOST
# Of one test: the longest compile for many of them, beside others.
_SECONDS = os.environ.get("VECSMITH_TEST_SECONDS", "60")
# Versions of others are not ours to choose there: their warnings are printed, and fail nothing.
# Neither do plugins take part that happen to be installed, nor options that need one.
PYTEST = ("-q", "-rf", "-p", "gpu_shards", "-p", "no:cacheprovider", "--strict-markers")
PYTEST += ("-o", "addopts=", "-o", "filterwarnings=default", "--continue-on-collection-errors")

# run(command, log, env) -> the exit status; None where there was no time left
Run = Callable[[list[str], Path, dict[str, str]], "int | None"]


@dataclass
class Found:
    """What became of tests: node id -> why, where that is to be said."""

    passed: int = 0
    chosen: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ended(self) -> int:
        return self.passed + len(self.skipped) + len(self.failed)

    @property
    def unfinished(self) -> int:
        return max(0, self.chosen - self.ended)

    @property
    def words(self) -> str:
        parts = [f"{self.passed} passed", f"{len(self.failed)} failed"]
        parts.append(f"{len(self.skipped)} skipped")
        if self.unfinished:
            parts.append(f"{self.unfinished} not run in time")
        if self.left_out:
            parts.append(f"{len(self.left_out)} files left out")
        return ", ".join(parts)


def files_with(folder: Path, *words: str) -> list[Path]:
    """The test files in which one of the words stands."""
    found = []
    for path in sorted(folder.glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if any(word in text for word in words):
            found.append(path)
    return found


def _imported(path: Path) -> set[str]:
    """The modules that a file imports when it is imported itself."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


def lacking(path: Path, seen: frozenset[Path] = frozenset()) -> set[str]:
    """The modules that a test file cannot be imported without, itself or by its helpers and its
    conftest.py, and that are not installed."""
    missing: set[str] = set()
    names = _imported(path) | ({"conftest"} if path.name.startswith("test_") else set())
    for name in names - set(sys.stdlib_module_names) - {"vecsmith", "bench"}:
        helper = path.parent / f"{name}.py"
        if helper.exists():
            if helper not in seen:
                missing |= lacking(helper, seen | {path})
        elif importlib.util.find_spec(name) is None:
            missing.add(name)
    return missing


def read_logs(logs: Iterable[Path]) -> Found:
    """What the shards have written down. A test that began and of which nothing more is said ended
    its process."""
    found = Found()
    for log in logs:
        outcomes: dict[str, tuple[str, str]] = {}
        chosen = 0
        if log.exists():
            for text in log.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                chosen = max(chosen, line.get("chosen", 0))
                if "test" in line:
                    before = outcomes.get(line["test"], ("", ""))[0]
                    if before != "failed":  # as a fixture may, after the test has passed
                        outcomes[line["test"]] = (line["outcome"], line.get("why", ""))
        found.chosen += chosen
        for test, (outcome, why) in outcomes.items():
            if outcome == "passed":
                found.passed += 1
            elif outcome in ("skipped", "failed"):
                getattr(found, outcome)[test] = why
            elif outcome == "left out":
                found.left_out[test] = why
    return found


def _begun_alone(log: Path) -> str | None:
    """The test that began and did not end."""
    last = None
    if log.exists():
        for text in log.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line.get("outcome") == "began":
                last = line["test"]
            elif line.get("test") == last:
                last = None
    return last


def run_tests(
    files: list[Path],
    marks: str,
    *,
    jobs: int,
    folder: Path,
    env: dict[str, str],
    run: Run,
    seconds: str = _SECONDS,
) -> Found:
    """Runs the tests of the files with these marks, dealt to so many processes at once.

    seconds: that one test may take; "0" for any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    missing = {path: lacking(path) for path in files}
    able = [path for path in files if not missing[path]]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    notes: list[str] = []

    def shard(number: int) -> Path:
        log, output = folder / f"{number}.jsonl", folder / f"{number}.log"
        own = {
            **env,
            "VECSMITH_SHARD": f"{number}/{jobs}",
            "VECSMITH_SHARD_LOG": str(log),
            "VECSMITH_TEST_SECONDS": seconds,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": str(threads),
            "PYTHONHASHSEED": "0",  # all of them count the same tests in the same order
        }
        command = [sys.executable, "-m", "pytest", *PYTEST, "-m", marks, *map(str, able)]
        for _ in range(_RESTARTS):
            before = read_logs([log])
            status = run(command, output, own)
            if status is None:
                return log
            ended = _begun_alone(log)
            if ended is not None:
                why = f"its process ended with status {status}"
                if status == -signal.SIGALRM:
                    why = f"it took more than {seconds} s"
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"test": ended, "outcome": "failed", "why": why}) + "\n")
            elif status in (0, 1, 5):
                return log
            elif status != _LOST:
                now = read_logs([log])
                if not now.ended - before.ended:
                    notes.append(f"pytest ended with status {status}: see {output}")
                    return log
                # It ended by itself behind its tests: as a lost context makes it, or for nothing.
                if len(now.failed) == len(before.failed):
                    notes.append(f"a process ended with status {status}: see {output}")
        notes.append(f"process {number} was started {_RESTARTS} times: see {output}")
        return log

    with ThreadPoolExecutor(jobs) as pool:
        logs = list(pool.map(shard, range(jobs if able else 0)))
    found = read_logs(logs)
    for path, names in missing.items():
        if names:
            found.left_out[path.name] = f"needs {', '.join(sorted(names))}"
    found.notes = notes
    return found
