"""Pictures of curves of cost against size, drawn from their records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# For the eye and for those who see no red or no green (Wong 2011, doi:10.1038/nmeth.1618).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# The same bytes from the same record; text stays text.
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "vecsmith",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
}


def curve_plot(record: dict[str, Any], path: Path | str) -> Path:
    """Draws a curve: a line of the least cost for each number of threads, the range of all samples
    as a band, and a ring around the end of every knee. The ending of ``path`` says which format."""
    return sheet([record], path)


def sheet(records: Sequence[dict[str, Any]], path: Path | str) -> Path:
    """Draws several curves on one sheet, up to three beside each other.

    Raises: ValueError where there is no record.
    """
    if not records:
        raise ValueError("expected at least one record; got none")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    columns = min(len(records), 3)
    rows = -(-len(records) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4 * columns, 3.1 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, record in zip(axes, records, strict=False):
            _draw(axis, record)
        for axis in axes[len(records) :]:
            axis.set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        stamp = {"Date": None, "Description": digest(records)} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=110, metadata=stamp)
    return path


def digest(records: Sequence[dict[str, Any]]) -> str:
    """What an .svg of these records has as its description, by which an old one is found out."""
    text = json.dumps([[record["curves"], record["knees"]] for record in records])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _draw(axis: Any, record: dict[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    over_threads = record["axis"] == "threads"
    lines = record["curves"]
    for (name, line), color in zip(lines.items(), _COLORS * len(lines), strict=False):
        threads = int(name.split()[0])
        sizes = [point["x"] for point in line]
        low, high = ([point[key] for point in line] for key in ("min", "max"))
        axis.fill_between(sizes, low, high, color=color, alpha=0.18, linewidth=0)
        axis.plot(sizes, low, color=color, marker="o", markersize=3.5, linewidth=1.4, label=name)
        cost = dict(zip(sizes, low, strict=True))
        ends = sorted(
            {k["size_to"] for k in record["knees"] if over_threads or k["threads"] == threads}
        )
        style = {"facecolors": "none", "edgecolors": color, "linewidths": 1.2, "zorder": 3}
        axis.scatter(ends, [cost[size] for size in ends], s=70, **style)
    sizes = [point["x"] for line in lines.values() for point in line]
    costs = [point[key] for line in lines.values() for point in line for key in ("min", "max")]
    if over_threads:
        axis.set_ylim(0, 1.15 * max(costs))
    else:
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.legend(frameon=False, loc="best")
        # A flat curve looks flat: at least a factor of ten from the bottom to the top.
        middle, reach = (min(costs) * max(costs)) ** 0.5, 10**0.5
        low, high = min(costs) / 1.3, max(costs) * 1.3
        axis.set_ylim(min(low, middle / reach), max(high, middle * reach))
        within = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
        axis.yaxis.set_major_locator(LogLocator(subs=within, numticks=20))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_locator(FixedLocator(sorted(set(sizes))))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlabel(record["grows"])
    axis.set_ylabel(record["unit"])
    axis.set_title(f"{record['op']}: {record['axis'].replace('_', ' ')}")
    axis.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _short(value: float) -> str:
    """1, 300, 3k, 1M."""
    for power, letter in ((1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:g}{letter}"
    return f"{value:g}"
