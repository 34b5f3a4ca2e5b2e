"""Pictures of records: a bar for each ratio."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ._tables import thread_count

_BAR, _SLOWER, _LINE, _PAPER = "#3b5b8c", "#b5523b", "#222222", "#ffffff"
_ROW, _HEAD = 0.27, 1.5  # inches: of a bar, of title and axis


def ratio_bars(records: list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draws each ratio of the records as a horizontal bar from 1, on a logarithmic axis, with its
    quartiles over the rounds; grouped by operator, the largest first. What is slower is of another
    color. Ratios to the reference, which is written to be read, are left out beside others.

    Args:
        records: as the runner returns them; those without ratios are left out.
        path: a file that ends in .png, .svg or .pdf.

    Raises:
        ImportError: matplotlib is missing. ValueError: no record has a ratio; another suffix.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"drawing needs the package {error.name}: pip install 'vecsmith[plot]'"
        ) from None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"expected a path that ends in .png, .svg or .pdf; got {path}")
    groups = _groups(records)
    if not groups:
        raise ValueError("expected records with ratios; got none")

    rows = sum(len(bars) + 1 for bars in groups.values())
    figure = Figure(figsize=(11, _HEAD + _ROW * rows), dpi=120, facecolor=_PAPER)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(_PAPER)
    ends = [ratio[key] for bars in groups.values() for _, ratio in bars for key in ("q1", "q3")]
    low, high = min(0.8, *ends), max(1.25, *ends)
    axes.set_xscale("log")
    axes.set_xlim(low * 0.85, high * (high / low) ** 0.09)  # room for the last number

    ticks, labels, at = [], [], 0.0
    for operator, bars in groups.items():
        axes.text(
            *(-0.005, at, operator),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            weight="bold",
            fontsize=10,
        )
        at += 1
        for label, ratio in bars:
            median = ratio["median"]
            axes.barh(
                at,
                median - 1,
                left=1,
                height=0.72,
                color=_BAR if median >= 1 else _SLOWER,
                zorder=2,
            )
            axes.errorbar(
                median,
                at,
                xerr=[[max(median - ratio["q1"], 0)], [max(ratio["q3"] - median, 0)]],
                color=_LINE,
                capsize=2.5,
                linewidth=1,
                zorder=3,
            )
            axes.annotate(
                f"{median:.2f}x" if median < 9.95 else f"{median:.0f}x",
                (max(median, ratio["q3"], 1), at),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
            ticks.append(at)
            labels.append(label)
            at += 1
    axes.set_yticks(ticks, labels, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(at - 0.2, -0.8)
    axes.axvline(1, color=_LINE, linewidth=1.2, zorder=4)
    steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]
    shown = [x for x in steps if axes.get_xlim()[0] <= x <= axes.get_xlim()[1]]
    axes.set_xticks(shown, [f"{x:g}x" for x in shown])
    axes.minorticks_off()
    axes.grid(axis="x", color="#dddddd", zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(
        "times as fast as the other, or as little memory (median; lines: quartiles over the rounds)"
    )
    figure.suptitle(_title(records), fontsize=10)
    figure.savefig(path, facecolor=_PAPER)


def _groups(records: list[dict[str, Any]]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Operator -> (label, ratio), the largest first."""
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for record in records:
        ratios = record.get("ratios") or []
        ratios = [ratio for ratio in ratios if ratio["other"] != "reference"] or ratios
        several = len({ratio["ours"] for ratio in ratios}) > 1
        for ratio in ratios:
            operator = record.get("operator", "")
            label = record.get("label", record["name"])
            ours = f" ({ratio['ours'].removeprefix('vecsmith').strip(' ,.')})" if several else ""
            bars = groups.setdefault(operator, [])
            bars.append((f"{label}{ours.replace(' ()', '')}  vs  {ratio['other']}", ratio))
    return {
        operator: sorted(bars, key=lambda bar: -bar[1]["median"])
        for operator, bars in groups.items()
    }


def _title(records: list[dict[str, Any]]) -> str:
    machine = next(r["machine"] for r in records if r.get("ratios"))
    versions = machine.get("versions", {})
    title = f"vecsmith {versions.get('vecsmith', '')} on {machine['processor']}".replace("  ", " ")
    return f"{title}, {thread_count(machine['threads'])}, ISA level {machine['isa']}"
