"""Curves of cost against size: what a unit of an operator's work costs as one size grows over three
decades, with one thread and with two.

    python -m bench.curves                      all of them, about six minutes
    python -m bench.curves skipgram rnn         of some operators
    python -m bench.curves --threads 1 2 4 8    on a larger machine

A knee is a place where the cost of a unit is not what the sizes before it promise (:func:`knees`).
The operators' pages say why each is there, under "How cost grows".
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ._curve_shapes import CURVES as _DECLARED
from ._curve_shapes import SHARED, SMALL, Curve, Work
from ._runner import Check, machine, spread, write
from ._tables import thread_count

CURVES: dict[str, list[Curve]] = {op: [c for c in _DECLARED if c.op == op] for op in SHARED}
# How many times as much as expected is a knee.
FACTOR = 1.3
# Seconds that a sample lasts, at least: the same work is done as often as that takes. And those of
# a stretch of it: the sample is its quickest stretch, which other programs disturb the least.
LEAST, STRETCH = 5e-3, 5e-4


# --- knees ----------------------------------------------------------------------------------------


def knees(record: dict[str, Any], factor: float = FACTOR) -> list[dict[str, Any]]:
    """Where the cost of a unit changes by more than ``factor`` without being expected to.

    What a call, a row, a block costs besides is a term of lower order: the cost of a unit becomes
    b + a_1 n^-1 + a_2 n^-2 + ..., whose logarithm is convex in log n, for a_k >= 0. So it may fall,
    the more slowly the larger the size, and no call takes less time than a smaller one. Knees are

    - "rise": the cost of a unit grows by more than the factor from a low to a high, at once or over
      several sizes;
    - "fall": it is less, by more than the factor, than if it went on falling as between the two
      sizes before (at the first two: than if the call took no longer);
    - "slower": more threads take longer than fewer, by more than the factor; that is looked for
      at every size.

    In a curve over threads the unit is processor time: threads times what a unit takes.

    Returns:
        dictionaries of threads, size_from, size_to, growth (of the cost of a unit) and kind.
    """
    lines = {int(name.split()[0]): line for name, line in record["curves"].items()}
    found = []
    for threads, line in lines.items():
        sizes = [point["x"] for point in line]
        costs = [point["min"] for point in line]
        calls = [point["min"] * point["units"] for point in line]
        spans = [("rise", *span) for span in _rises(costs, factor)]
        spans += [("fall", *span) for span in _falls(sizes, costs, calls, factor)]
        for kind, low, high in sorted(spans, key=lambda span: span[1:]):
            found.append(
                {
                    "kind": kind,
                    "threads": sizes[high] if record["axis"] == "threads" else threads,
                    "size_from": sizes[low],
                    "size_to": sizes[high],
                    "growth": round(costs[high] / costs[low], 2),
                }
            )
    for fewer, more in zip(list(lines)[:-1], list(lines)[1:], strict=True):
        for a, b in zip(lines[fewer], lines[more], strict=True):
            if b["min"] > factor * a["min"]:
                growth = round(b["min"] / a["min"], 2)
                here = {"size_from": b["x"], "size_to": b["x"], "growth": growth}
                found.append({"kind": "slower", "threads": more, **here})
    return found


def _rises(costs: Sequence[float], factor: float) -> list[tuple[int, int]]:
    """(low, high) of every rise by more than the factor, without the flat ends."""
    found, low, at = [], 0, 1
    near = factor**0.25
    while at < len(costs):
        if costs[at] < costs[low]:
            low = at
        elif costs[at] > factor * costs[low]:
            high = at
            for n in range(at + 1, len(costs)):
                if costs[n] * factor < costs[high]:
                    break
                high = n if costs[n] > costs[high] else high
            first = max(n for n in range(low, high) if costs[n] <= near * costs[low])
            last = min(n for n in range(first + 1, high + 1) if costs[n] * near >= costs[high])
            found.append((first, last))
            at = low = high
        at += 1
    return found


def _falls(
    sizes: Sequence[float], costs: Sequence[float], calls: Sequence[float], factor: float
) -> list[tuple[int, int]]:
    """(before, after) of every fall that those before it do not explain."""
    found = []
    for n in range(1, len(sizes)):
        if n == 1:
            fell = calls[1] * factor < calls[0]
        else:
            slope = math.log(costs[n - 1] / costs[n - 2]) / math.log(sizes[n - 1] / sizes[n - 2])
            expected = costs[n - 1] * (sizes[n] / sizes[n - 1]) ** min(slope, 0.0)
            fell = costs[n] * factor < expected
        if fell:
            found.append((n - 1, n))
    return found


# --- measuring ------------------------------------------------------------------------------------


def _sample(work: Work, repeats: tuple[int, int], clock: Callable[[], float]) -> float:
    """Seconds of a call: of (stretches, calls of each) the quickest stretch."""
    stretches, calls = repeats
    least = math.inf
    for _ in range(stretches):
        started = clock()
        for _ in range(calls):
            work.call()
        least = min(least, clock() - started)
    return least / calls


def _repeats(once: float) -> tuple[int, int]:
    """Stretches and calls of each, for calls of so many seconds."""
    calls = math.ceil(STRETCH / max(once, 1e-7))
    return math.ceil(LEAST / max(once * calls, 1e-7)), calls


def measure(
    works: dict[tuple[int, int], Work],
    rounds: int,
    look: Callable[[dict[tuple[int, int], list[float]]], bool],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[tuple[int, int], list[float]]:
    """Seconds of a call of each work, once a round, in turn; (threads, size) -> samples.

    A first call warms up and says how often a sample repeats it. look: whether something in the
    samples is odd; then there are up to as many rounds again, since other programs make knees, too.
    """
    repeats = {}
    for key, work in works.items():
        torch.set_num_threads(key[0])
        work.call()
        repeats[key] = _repeats(_sample(work, (1, 1), clock))
    samples: dict[tuple[int, int], list[float]] = {key: [] for key in works}
    for n in range(2 * rounds):
        if n >= rounds and not look(samples):
            break
        for key, work in works.items():
            torch.set_num_threads(key[0])
            if repeats[key] != (1, 1):  # what others left in the caches is not this one's cost
                work.call()
            samples[key].append(_sample(work, repeats[key], clock))
    return samples


def _lines(
    works: dict[tuple[int, int], Work], samples: dict[tuple[int, int], list[float]], axis: str
) -> dict[str, list[dict[str, Any]]]:
    """Threads -> points of size (x), units, samples (ns per unit) and their spread."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for (threads, size), values in samples.items():
        units = works[threads, size].units
        costs = [seconds / units * 1e9 for seconds in values]
        if axis == "threads":
            size, costs = threads, [cost * threads for cost in costs]
        name = "1 thread or more" if axis == "threads" else thread_count(threads)
        line = lines.setdefault(name, [])
        line.append({"x": size, "units": units, **spread(costs), "samples": costs})
    return lines


def check(op: str) -> Check:
    """The operator against the reference, on a little of such work."""
    allowed, make = SMALL[op]
    work = make()
    found, wanted = (work.answer(backend) for backend in ("native", "reference"))
    off = float((found - wanted).abs().max()) / float(wanted.abs().max())
    what = f"{op}: differs from the reference by {off:.1e} of the largest number"
    return Check(f"{what}, {allowed:g} allowed", off <= allowed)


def draw(
    curve: Curve,
    threads: Sequence[int],
    rounds: int,
    *,
    full: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    checks: Iterable[Check] = (),
) -> dict[str, Any]:
    """Measures a curve and returns its record."""
    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    sizes = (*curve.sizes, *(curve.full if full else ()))
    if curve.axis == "threads":
        made = {0: curve.make(0)}
        works = {(n, 0): made[0] for n in threads}
    else:
        made = {size: curve.make(size) for size in sizes}
        works = {(n, size): made[size] for size in sizes for n in threads}
    record: dict[str, Any] = {
        "name": curve.name,
        "title": f"{curve.op}: {curve.grows}",
        "op": curve.op,
        "axis": curve.axis,
        "grows": curve.grows,
        "unit": curve.unit,
        "settings": {"threads": list(threads), "factor": FACTOR, "seconds": [LEAST, STRETCH]},
        "machine": machine(),
        "load_before": round(before, 2),
        "date": time.strftime("%Y-%m-%d"),
        "agreement": [{"what": c.what, "passed": c.passed} for c in checks],
    }

    def look(samples: dict[tuple[int, int], list[float]]) -> bool:
        return bool(knees({**record, "curves": _lines(works, samples, curve.axis)}))

    number = torch.get_num_threads()
    try:
        samples = measure(works, rounds, look, clock)
    finally:
        torch.set_num_threads(number)
    record["rounds"] = len(next(iter(samples.values())))
    record["curves"] = _lines(works, samples, curve.axis)
    record["knees"] = knees(record)
    return record


def curves_of(op: str, threads: Sequence[int]) -> list[Curve]:
    """The declared curves of an operator, and the one over threads."""
    if op not in CURVES:
        raise ValueError(f"expected an operator of {', '.join(CURVES)}; got {op!r}")
    unit, make = SHARED[op]
    over = Curve(op, "threads", "threads", f"processor {unit}", tuple(threads), lambda _: make())
    return [*CURVES[op], *([over] if len(threads) > 1 else [])]


def describe(record: dict[str, Any]) -> str:
    """A record as lines of text: the cost of a unit at each size, and the knees."""
    lines = [f"{record['title']} ({record['unit']})"]
    for name, line in record["curves"].items():
        if not lines[1:]:
            lines.append(" " * 18 + " ".join(f"{point['x']:>9,}" for point in line))
        cells = " ".join(f"{point['min']:>9.4g}" for point in line)
        lines.append(f"{name:>17} {cells}")
    for k in record["knees"]:
        where = f"{k['size_from']:,} .. {k['size_to']:,}: {k['growth']:g}x"
        lines.append(f"{'':>17} {k['kind']}, {thread_count(k['threads'])}, {where}")
    return "\n".join(lines)


def run(
    ops: Sequence[str] | None = None,
    threads: int | Sequence[int] = (1, 2),
    rounds: int = 3,
    full: bool = False,
    say: Callable[[str], Any] = lambda text: None,
) -> list[dict[str, Any]]:
    """Measures the curves of operators (None: of all), and returns their records.

    threads: the numbers of threads, ascending; a number n stands for 1 and n. say: gets each record
    as lines of text (``print``).

    Raises: ValueError for an unknown operator, no or a bad number of threads, or no rounds.
    """
    threads = sorted({1, threads}) if isinstance(threads, int) else list(threads)
    if not threads or sorted(set(threads)) != threads or threads[0] < 1:
        raise ValueError(f"expected threads ascending and >= 1; got {threads}")
    if rounds < 1:
        raise ValueError(f"expected rounds >= 1; got {rounds}")
    wanted = [curve for op in ops or CURVES for curve in curves_of(op, threads)]
    checks = {op: check(op) for op in dict.fromkeys(curve.op for curve in wanted)}
    for one in checks.values():
        say(f"   {'agrees' if one.passed else 'DISAGREES'}: {one.what}")
    records = []
    for curve in wanted:
        records.append(draw(curve, threads, rounds, full=full, checks=[checks[curve.op]]))
        say(describe(records[-1]))
    return records


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    made.add_argument("ops", nargs="*", help=f"operators (default: {', '.join(CURVES)})")
    made.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="ascending")
    made.add_argument("--rounds", type=int, default=3, help="how often each size is run, at least")
    made.add_argument("--full", action="store_true", help="larger sizes, too")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw all curves on one sheet")
    made.add_argument("--no-write", action="store_true", help="do not write bench/results")
    given = made.parse_args(arguments)
    try:
        records = run(given.ops or None, given.threads, given.rounds, given.full, say=print)
    except ValueError as error:
        made.error(str(error))
    if not given.no_write:
        for record in records:
            print(f"written: {write(record)}", file=sys.stderr)
    if given.plot:
        from ._curve_plots import sheet

        sheet(records, given.plot)
    return 0 if all(c["passed"] for record in records for c in record["agreement"]) else 1


if __name__ == "__main__":
    sys.exit(main())
