"""A pytest plugin for `make gpu`: one process of several takes each n-th test, and writes down what
became of it, so that a test that ends the process or loses the CUDA context costs itself alone.

VECSMITH_SHARD="k/n" and VECSMITH_SHARD_LOG=FILE in the environment. Tests that the file says have
begun are not run again: whoever starts the process a second time goes on behind them.

A test that takes longer than VECSMITH_TEST_SECONDS ends its process, by SIGALRM: no Python code
runs while a thread waits for a kernel that does not end.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest

# A process that ends with this status has more to do, which a new one can.
LOST = 70


def _write(**line: object) -> None:
    with open(os.environ["VECSMITH_SHARD_LOG"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _begun() -> set[str]:
    try:
        with open(os.environ["VECSMITH_SHARD_LOG"], encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
    except FileNotFoundError:
        return set()
    return {line["test"] for line in lines if line.get("outcome") == "began"}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, count = (int(part) for part in os.environ["VECSMITH_SHARD"].split("/"))
    # Kernels in CUDA come last: blocks of theirs wait for each other, and may do so for ever.
    own = sorted(items[number::count], key=lambda item: "_cuda" in item.path.name)
    before = _begun()
    items[:] = [item for item in own if item.nodeid not in before]
    _write(chosen=len(own))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(test=report.nodeid, outcome="failed", why=_why(report.longreprtext))
    elif report.skipped:
        # A whole file, at its import.
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        _write(test=report.nodeid, outcome="left out", why=str(reason))


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(test=nodeid, outcome="began")
    signal.alarm(int(os.environ.get("VECSMITH_TEST_SECONDS", "0")))


def pytest_runtest_logfinish() -> None:
    signal.alarm(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        why = ""
        if report.failed:
            why = _why(report.longreprtext)
        elif report.skipped and isinstance(report.longrepr, tuple):
            why = str(report.longrepr[2])
        _write(test=report.nodeid, outcome=report.outcome, why=why, seconds=report.duration)
    if report.failed and _context_is_lost():
        pytest.exit("the CUDA context is lost", returncode=LOST)


def _why(text: str) -> str:
    """The line of a traceback that says what was wrong."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (lines or text.strip().splitlines() or [""])[0][:300]


def _context_is_lost() -> bool:
    """After an illegal access every later call fails, whatever it does."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
