"""The runner of every benchmark: checks agreement, interleaves, takes medians, writes JSON.

A :class:`Group` holds entries that do the same work on the same input: ours in each variant, the
reference, each peer. Running one entry once returns one number (a rate or a time). The runner

* checks agreement first, and refuses to print a ratio if a check is red;
* runs the entries in turn, A B C A B C ..., so that what else slows the machine slows them all;
* takes each ratio within a round, and reports the median of those ratios with their spread;
* leaves out an entry that raises, says so, and goes on with the others;
* where the group says what its formula needs at least, gives the part of the machine's roofline;
* writes ``bench/results/<machine>/<group>.json`` with machine, ISA level, threads and versions.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import _peers, roofline
from .roofline import Work

_PARENT = Path(__file__).resolve().parent.parent
# The checkout that this is part of; None where it is installed: nothing is written beside it then.
ROOT = _PARENT if (_PARENT / "csrc").is_dir() and (_PARENT / "bench").is_dir() else None
RESULTS = ROOT / "bench" / "results" if ROOT else Path("vecsmith-bench")


class Skipped(RuntimeError):
    """A group that cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Check:
    """What an agreement check found: a sentence, and whether it is good.

    failed: the entry that raised, so that there was nothing to check; it is left out.
    """

    what: str
    passed: bool
    failed: str | None = None


def reason(error: BaseException) -> str:
    """An error as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


def guarded(entry: str, call: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks of one entry; if it raises, that it failed."""
    try:
        return list(call())
    except Exception as error:
        return [Check(f"{entry} failed: {reason(error)}", False, failed=entry)]


@dataclass(frozen=True)
class Ratio:
    """A claim: how many times ``ours`` is better than ``other`` (faster, shorter), and the bar.

    bar: the ratio to reach (``at_least``) or not to exceed; None: reported without a bar.
    """

    what: str
    ours: str
    other: str
    bar: float | None = None
    at_least: bool = True


@dataclass
class Group:
    """Entries to be compared: name -> a function that runs once and returns one number.

    unit: of that number; ``higher_is_better`` for rates, else times or sizes.
    check: returns the agreement checks; called once, before anything is measured.
    work: what the formula needs at least, by the entries that compute it.
    """

    name: str
    title: str
    unit: str
    entries: dict[str, Callable[[], float]]
    check: Callable[[], list[Check]]
    ratios: list[Ratio] = field(default_factory=list)
    higher_is_better: bool = True
    settings: dict[str, object] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A group that is made when its turn has come.

    label: short, what it is called beside its operator; quick: one of the few that stand for all.
    """

    label: str
    make: Callable[[], Group]
    quick: bool = False


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, quartiles and range of some numbers."""
    ordered = sorted(values)
    if len(ordered) > 1:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    else:
        low = high = ordered[0]
    return {
        "median": statistics.median(ordered),
        "q1": low,
        "q3": high,
        "min": ordered[0],
        "max": ordered[-1],
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(device: str = "cpu") -> dict[str, object]:
    """What the numbers depend on, besides the code: processor, ISA level, threads, versions, and
    the roofline, where this process has measured it."""
    from vecsmith import _native

    packages = ["vecsmith", "torch", "numpy", "scipy", "triton"]
    packages += [name for peer in _peers.PEERS for name in peer.packages]

    described: dict[str, object] = {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "isa": _native.isa_level(),
        "isa_levels": list(_native.isa_levels()),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            name: version for name in dict.fromkeys(packages) if (version := _version(name))
        },
    }
    found = roofline.measured(torch.get_num_threads(), device)
    if found is not None:
        described["roofline"] = found.record()
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return described


def machine_name() -> str:
    """The folder of this machine's results; VECSMITH_MACHINE overrides it."""
    given = os.environ.get("VECSMITH_MACHINE")
    described = machine()
    text = given or f"{described['processor']}-{described['cpus']}cpu"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    if value >= 1e4:
        return f"{value / 1e3:.0f}k"
    return f"{value:.3g}"


def table(rows: list[list[str]]) -> str:
    """Rows of text, the first a heading, as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for n, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
        if n == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def judge(ratio: Ratio, values: list[float]) -> dict[str, object]:
    """A ratio's record: its spread over the rounds and whether its median reaches the bar."""
    record: dict[str, object] = {
        "what": ratio.what,
        "ours": ratio.ours,
        "other": ratio.other,
        **spread(values),
    }
    if ratio.bar is not None:
        median = statistics.median(values)
        record["bar"] = ratio.bar
        record["at_least"] = ratio.at_least
        record["reached"] = median >= ratio.bar if ratio.at_least else median <= ratio.bar
    return record


def run(
    group: Group,
    rounds: int,
    *,
    warmup: bool = True,
    quiet: bool = False,
    device: str = "cpu",
) -> dict[str, object]:
    """Measures a group and returns its record. With a red check the record has no ratios; an entry
    that raised is in its ``failed``, with the reason, and nowhere else."""

    def say(text: str = "") -> None:
        if not quiet:
            print(text, flush=True)

    say(f"== {group.title}")
    try:
        checks = list(group.check())
    except Exception as error:
        checks = [Check(f"the check failed: {reason(error)}", False)]
    failed = {
        check.failed: check.what.removeprefix(f"{check.failed} failed: ")
        for check in checks
        if check.failed is not None
    }
    for check in checks:
        verdict = "agrees" if check.passed else "FAILED" if check.failed else "DISAGREES"
        say(f"   {verdict}: {check.what}")
    checks = [check for check in checks if check.failed is None]
    agreed = bool(checks) and all(check.passed for check in checks)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        say(f"   note: the machine is busy (load {load:.1f}); ratios will spread")
    samples: dict[str, list[float]] = {name: [] for name in group.entries if name not in failed}
    for n in range(-1 if warmup else 0, rounds):
        for name in list(samples):
            started = time.perf_counter()
            try:
                value = float(group.entries[name]())
                if not math.isfinite(value):
                    raise ValueError(f"expected a finite measurement; got {value}")
            except Exception as error:
                failed[name] = reason(error)
                del samples[name]
                say(f"   FAILED: {name}: {failed[name]}")
                continue
            if n >= 0:
                samples[name].append(value)
                say(
                    f"   round {n + 1}/{rounds}  {name:<34} {_number(value):>9} {group.unit}"
                    f"  ({time.perf_counter() - started:.1f} s)"
                )
    entries: dict[str, dict] = {name: {**spread(v), "samples": v} for name, v in samples.items()}
    record: dict[str, object] = {
        "name": group.name,
        "title": group.title,
        "unit": group.unit,
        "higher_is_better": group.higher_is_better,
        "settings": group.settings,
        "load_before": round(load, 2),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "agreement": [{"what": check.what, "passed": check.passed} for check in checks],
        "entries": entries,
    }
    if failed:
        record["failed"] = failed
    if group.work:
        record["work"] = _fractions(group, entries, device)
    record["machine"] = machine(device)
    rows = [["", f"median {group.unit}", "min", "max"]]
    for name, values in samples.items():
        s = spread(values)
        rows.append([name, *(_number(s[key]) for key in ("median", "min", "max"))])
    say()
    say(table(rows))
    if not agreed:
        say(
            "\nno ratios: an agreement check is red"
            if checks
            else "\nno ratios: nothing was checked"
        )
        return record
    ratios = []
    for ratio in group.ratios:
        if ratio.ours not in samples or ratio.other not in samples:
            continue
        pairs = zip(samples[ratio.ours], samples[ratio.other], strict=True)
        values = [a / b if group.higher_is_better else b / a for a, b in pairs]
        ratios.append(judge(ratio, values))
    record["ratios"] = ratios
    if ratios:
        say()
        say(ratio_table(ratios))
    say()
    return record


def _fractions(group: Group, entries: dict[str, dict], device: str) -> dict[str, dict]:
    """What each entry needs at least; its part of the roofline is written to the entry."""
    threads = int(str(group.settings.get("threads", torch.get_num_threads())))
    found = roofline.measure(threads, device)
    counted = {}
    for name, work in group.work.items():
        if name in entries:
            fraction = found.fraction(work, entries[name]["median"], group.unit)
            if fraction is not None:
                entries[name]["of_roofline"] = float(f"{fraction:.3g}")
            counted[name] = {**vars(work), "bound": found.bound(work)}
    return counted


def ratio_table(ratios: list[dict]) -> str:
    """The ratios of a record, as text."""
    rows = [["ratio", "median", "quartiles", "range", "bar", ""]]
    for r in ratios:
        bar = "" if "bar" not in r else f"{'>=' if r['at_least'] else '<='} {r['bar']:g}"
        verdict = "" if "bar" not in r else "reached" if r["reached"] else "NOT reached"
        rows.append(
            [
                r["what"],
                f"{r['median']:.2f}x",
                f"{r['q1']:.2f} .. {r['q3']:.2f}",
                f"{r['min']:.2f} .. {r['max']:.2f}",
                bar,
                verdict,
            ]
        )
    return table(rows)


def write(record: dict[str, object], folder: Path | None = None) -> Path:
    """Writes a record as JSON: one file per group, in the folder of this machine."""
    from vecsmith.io._atomic import atomic_file

    folder = folder or RESULTS / machine_name()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['name']}.json"
    with atomic_file(path, "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
    return path


def parser(description: str, *, rounds: int, corpus: bool = True) -> argparse.ArgumentParser:
    """The options that every script here has."""
    made = argparse.ArgumentParser(
        description=description.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if corpus:
        made.add_argument(
            "--corpus",
            type=Path,
            help="plain text, lines under 10,000 words (default: the docstrings on this machine)",
        )
    made.add_argument("--rounds", type=int, default=rounds, help="how often each entry is run")
    made.add_argument("--threads", type=int, default=2, help="workers of every program")
    made.add_argument("--json", action="store_true", help="print the record as JSON at the end")
    made.add_argument("--no-write", action="store_true", help=f"do not write {RESULTS.name}/")
    return made


def finish(records: list[dict[str, object]], options: argparse.Namespace) -> int:
    """Writes and prints records; the status is 1 if any of them has a red check
    or an entry that failed."""
    for record in records:
        if not options.no_write:
            print(f"written: {write(record)}", file=sys.stderr)
    if options.json:
        print(json.dumps(records, indent=1))
    whole = all("ratios" in record and "failed" not in record for record in records)
    return 0 if whole else 1
