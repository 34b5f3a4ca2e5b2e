"""What ``vecsmith bench`` shows: tables by rich, plain text where nobody looks at a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

from . import _peers
from .roofline import Roofline

_PLAIN_WIDTH = 140  # of a file or a pipe: no line is broken to fit a terminal
_WIDE = 110  # columns of a terminal that show the quartiles of the times, too

LEGEND = (
    "ratio: how many times as fast vecsmith is (as little, where the unit is MB), the median over "
    "the rounds, each ratio within its round, with quartiles. roofline: the least time that the "
    "formula's bytes and operations take at the measured bandwidth and float32 rate (float64 where "
    "the group is), over the time taken; over 100% where tables stay in the caches, or products "
    "are int8 or bfloat16."
)


def number(value: float) -> str:
    """Three digits."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    if value >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def thread_count(count: object) -> str:
    """ "1 thread", "2 threads"."""
    return f"{count} thread{'' if count == 1 else 's'}"


def times(ratio: dict[str, Any]) -> tuple[str, str]:
    """A ratio and its quartiles."""
    median, low, high = (
        f"{value:.2f}" if value < 100 else f"{value:.0f}"
        for value in (ratio["median"], ratio["q1"], ratio["q3"])
    )
    return f"{median}x", f"{low} .. {high}"


class Screen:
    """Where the command writes its tables (``file``), and on standard error what it is doing."""

    def __init__(self, file: IO[str] | None = None) -> None:
        from rich.console import Console

        # Where the caller has closed it, nobody reads.
        target: IO[str] = file or sys.stdout or open(os.devnull, "w")  # noqa: SIM115
        width = None if target.isatty() else _PLAIN_WIDTH
        self.console = Console(file=target, width=width, highlight=False, soft_wrap=False)
        self.progress = Console(stderr=True, highlight=False)

    @contextlib.contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Says what is being done: a line that goes away on a terminal, else one that stays."""
        if self.progress.is_terminal:
            with self.progress.status(text):
                yield
        else:
            self.progress.print(text, markup=False, soft_wrap=True)
            yield

    def line(self, text: str = "", style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=not self.console.is_terminal)
        self.console.file.flush()

    def note(self, text: str) -> None:
        """On standard error."""
        self.progress.print(text, markup=False, soft_wrap=True)

    def machine(self, described: dict[str, Any], found: Roofline) -> None:
        where = described.get("gpu") if found.device == "cuda" else described["processor"]
        self.line(
            f"{where}, {described['cpus']} processors, {thread_count(found.threads)}, "
            f"ISA level {described['isa']}"
        )
        self.line(f"roofline: {found.words}")
        versions = ", ".join(f"{name} {text}" for name, text in described["versions"].items())
        self.line(f"{versions}, python {described['python']}")
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if load > 0.5:
            self.line(f"the machine is busy (load {load:.1f}): ratios and rooflines will spread")
        self.line()

    def group(self, record: dict[str, Any]) -> None:
        """A group: how fast each entry is, the ratios to ours, and whether all agree."""
        self.line(f"{record['operator']}: {record['title']}", style="bold")
        for check in record["agreement"]:
            if not check["passed"]:
                self.line(f"  DISAGREES: {check['what']}", style="bold red")
        passed = [check["what"] for check in record["agreement"] if check["passed"]]
        if passed:
            self.line(f"  agrees: {'; '.join(passed)}", style="dim")
        for name, why in record.get("failed", {}).items():
            self.line(f"  FAILED: {name}: {why}", style="red")
        self._table(record)
        if "ratios" not in record:
            red = "an agreement check is red" if record["agreement"] else "nothing was checked"
            self.line(f"  no ratios: {red}", style="red")
        self.line()

    def _table(self, record: dict[str, Any]) -> None:
        from rich.table import Table

        narrow = self.console.width < _WIDE
        ratios = record.get("ratios", [])
        several = len({ratio["ours"] for ratio in ratios}) > 1
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", min_width=28 if narrow else 36, overflow="fold")
        headings = [record["unit"], "ratio", "quartiles", "roofline"]
        if not narrow:
            headings.insert(1, "quartiles")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True, min_width=max(len(heading), 7))
        if several and not narrow:
            table.add_column("", no_wrap=True)

        def add(name: str, values: list[str], ratio: dict[str, Any] | None, part: str) -> None:
            cells = [*values, *(times(ratio) if ratio else ("", "")), part]
            of = f"of {ratio['ours']}" if several and ratio else ""
            if narrow:
                table.add_row(f"  {name} {of}".rstrip(), *cells)
            else:
                table.add_row(f"  {name}", *cells, *([of] if several else []))

        for name, entry in record["entries"].items():
            part = f"{entry['of_roofline']:.0%}" if "of_roofline" in entry else ""
            values = [number(entry["median"])]
            if not narrow:
                values.append(f"{number(entry['q1'])} .. {number(entry['q3'])}")
            against = [ratio for ratio in ratios if ratio["other"] == name]
            add(name, values, against[0] if against else None, part)
            for ratio in against[1:]:
                add("", [""] * len(values), ratio, "")
        with self.console.capture() as captured:
            self.console.print(table)
        for line in captured.get().splitlines():
            print(line.rstrip(), file=self.console.file)
        self.console.file.flush()

    def curve(self, record: dict[str, Any]) -> None:
        """A record of curves, in a line or two; the picture says more."""
        self.line(f"{record['title']}", style="bold")
        for name, points in record.get("curves", {}).items():
            ends = ", ".join(f"{p['x']:,}: {number(p['median'])}" for p in points)
            self.line(f"  {name}: {ends} {record.get('unit', '')}")
        self.line()

    def end(
        self,
        records: list[dict[str, Any]],
        skipped: dict[str, str],
        failed: dict[str, str],
        absent: Iterable[tuple[_peers.Peer, str]],
        interrupted: bool,
    ) -> None:
        """What the numbers mean, and what is not among them."""
        if records:
            self.line(LEGEND, style="dim")
        for name, why in skipped.items():
            self.line(f"skipped: {name}: {why}")
        for name, why in failed.items():
            self.line(f"failed: {name}: {why}", style="red")
        absent = list(absent)
        if absent:
            self.line("peers that were not compared:")
            for peer, state in absent:
                self.line(f"  {peer.name}, {peer.compared}: {state}; {peer.get}")
        if interrupted:
            self.line(f"stopped: {len(records)} groups were measured", style="bold")

    def listed(self, operator: str, groups: list[tuple[str, bool]]) -> None:
        """The groups of an operator, for --list."""
        self.line(operator, style="bold")
        quick = [label for label, is_quick in groups if is_quick]
        more = [label for label, is_quick in groups if not is_quick]
        for label in quick:
            self.line(f"  {label}")
        if more:
            self.line(f"  with --full: {', '.join(more)}")

    def peers(self, found: list[tuple[_peers.Peer, str]]) -> None:
        """Peers and whether they are here, for --list."""
        self.line("peers", style="bold")
        for peer, state in found:
            how = "" if state == "installed" else f"; {peer.get}"
            where = ", ".join(peer.operators)
            self.line(f"  {peer.name} ({where}: {peer.compared}): {state}{how}")
