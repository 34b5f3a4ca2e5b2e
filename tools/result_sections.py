"""A record of bench/results as a part of a page: settings, times, ratios, curves, checks."""

from __future__ import annotations

from pathlib import Path

PICTURES = Path(__file__).parent.parent / "docs" / "img"


def times(ratio: float) -> str:
    """A ratio with three digits or so."""
    return f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def spread(record: dict, ratio: dict) -> str:
    """The range of a ratio, and over how many rounds it is."""
    if record["rounds"] == 1:
        return "one round"
    return f"{ratio['min']:.2f} .. {ratio['max']:.2f}, {record['rounds']} rounds"


def number(value: float, unit: str = "") -> str:
    """A measured value with three digits or so."""
    if "words/s" in unit:
        return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value / 1e3:,.0f}k"
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def markdown(rows: list[list[str]]) -> list[str]:
    """A table; the first row is its heading."""
    lines = ["| " + " | ".join(rows[0]) + " |", "| --- |" + " ---: |" * (len(rows[0]) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows[1:]), ""]


def bar_cells(entry: dict, sign: str) -> list[str]:
    """The bar and whether it was reached, where there is one."""
    if "bar" not in entry:
        return ["", ""]
    return [f"{sign} {entry['bar']:g}", "yes" if entry["reached"] else "**no**"]


def describe(record: dict) -> list[str]:
    """One line each for the settings and the machine of a record."""
    settings = ", ".join(f"{key} {value}" for key, value in record.get("settings", {}).items())
    lines = [f"Settings: {settings}."] if settings else []
    lines.append(f"{record['rounds']} rounds, {record['date']}, `{record['path']}`.")
    found = record["machine"].get("roofline")
    if found and record.get("work"):
        rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in found["rates"].items())
        bandwidth = f"{found['bandwidth'] / 1e9:.1f} GB/s"
        lines.append(f"Roofline: copy {bandwidth}, products in GFLOP/s: {rates}.")
    return [" ".join(lines), ""]


def section(record: dict) -> list[str]:
    """The part of a topic's page for one record."""
    unit = record["unit"]
    lines = [f'<a id="{anchor(record)}"></a>', "", f"### {record['title']}", "", *describe(record)]
    red = [check["what"] for check in record["agreement"] if not check["passed"]]
    if red:
        lines += [f"**An agreement check failed, so there are no ratios:** {'; '.join(red)}.", ""]
    if "entries" in record:
        rows = [["", f"median {unit}", "min", "max"]]
        bounded = any("of_roofline" in values for values in record["entries"].values())
        rows[0] += ["of the roofline"] if bounded else []
        for name, values in record["entries"].items():
            cells = [number(values[key], unit) for key in ("median", "min", "max")]
            if bounded:
                part = values.get("of_roofline")
                cells.append("" if part is None else f"{part:.0%}")
            rows.append([name, *cells])
        lines += markdown(rows)
    for name, why in record.get("failed", {}).items():
        lines += [f"{name} failed, and is left out: {why}.", ""]
    if "scores" in record:
        measures = list(next(iter(record["scores"].values())))
        rows = [["mean of the seeds", *measures]]
        for name, scores in record["scores"].items():
            rows.append([name, *(f"{scores[m]['mean']:.2f}" for m in measures)])
        lines += markdown(rows)
    if record.get("ratios"):
        rows = [["ratio", "median", "quartiles", "range", "bar", "reached"]]
        for ratio in record["ratios"]:
            ranges = [f"{ratio['q1']:.2f} .. {ratio['q3']:.2f}"]
            ranges.append(f"{ratio['min']:.2f} .. {ratio['max']:.2f}")
            cells = bar_cells(ratio, "≥" if ratio.get("at_least", True) else "≤")
            rows.append([ratio["what"], times(ratio["median"]), *ranges, *cells])
        lines += markdown(rows)
    if record.get("differences"):
        rows = [["difference", "points", "bar", "reached"]]
        for one in record["differences"]:
            rows.append([one["what"], f"{one['points']:+.2f}", *bar_cells(one, "≥")])
        lines += markdown(rows)
    if record.get("limits"):
        rows = [["", unit, "bar", "reached"]]
        for one in record["limits"]:
            rows.append([one["what"], number(one["value"], unit), *bar_cells(one, "≤")])
        lines += markdown(rows)
    if record.get("floors"):
        rows = [["", unit, "bar", "reached"]]
        for one in record["floors"]:
            rows.append([one["what"], number(one["value"], unit), *bar_cells(one, "≥")])
        lines += markdown(rows)
    for name, points in record.get("curves", {}).items():
        rows = [[name, f"median {unit}", "min", "max"]]
        for point in points:
            values = (number(point[key], unit) for key in ("median", "min", "max"))
            rows.append([f"{point['x']:,}", *values])
        lines += markdown(rows)
    picture = PICTURES / f"{record['name'].replace('_', '-')}.png"
    if "curves" in record and picture.exists():
        lines += [f"![{record['title']}](../img/{picture.name})", ""]
    passed = [check["what"] for check in record["agreement"] if check["passed"]]
    if passed:
        lines += ["Agreement, checked before measuring: " + "; ".join(passed) + ".", ""]
    return lines


def anchor(record: dict) -> str:
    """Where a record is on its page: two machines may have one of the same name."""
    return f"{Path(record['path']).parent.name}-{record['name']}"


def by_operator(records: list[dict]) -> dict[str, list[dict]]:
    """The records of curves of cost against size; those over threads come last."""
    found: dict[str, list[dict]] = {}
    for record in sorted(records, key=lambda r: (r["axis"] == "threads", r["axis"])):
        found.setdefault(record["op"], []).append(record)
    return dict(sorted(found.items()))


def curve_sections(records: list[dict], folder: str) -> list[str]:
    """The curves of each operator: a picture, and the cost of a unit at the least, the middle and
    the largest size."""
    lines = []
    for op, curves in by_operator(records).items():
        rows = [["grows", "sizes", "", "", "at the least", "in the middle", "at the largest"]]
        for record in curves:
            for name, line in record["curves"].items():
                sizes = f"{line[0]['x']:,} .. {line[-1]['x']:,}"
                costs = [line[n]["min"] for n in (0, len(line) // 2, len(line) - 1)]
                cells = [f"{cost:.3g}" if cost < 1000 else f"{cost:,.0f}" for cost in costs]
                rows.append([record["grows"], sizes, record["unit"], name, *cells])
        picture = f"![{op}: cost against size](../pictures/curves/{folder}/{op}.svg)"
        lines += [f"### {op}", "", picture, "", *markdown(rows)]
    return lines
