"""The curves of cost against size: knees are found where they are and nowhere else, every declared
curve can be measured, and the operators' pages say why each committed knee is there."""

import importlib
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = {
    "skipgram": "skipgram.md",
    "embedding_bag": "embedding_tables.md",
    "rnn": "recurrent.md",
    "cosine_topk": "search.md",
    "als_solve": "als.md",
    "factor_sgd": "matrix-factorization-sgd.md",
    "spmm": "low-rank.md",
    "hals_sweep": "low-rank.md",
}
RECORDS = sorted((ROOT / "bench" / "results").glob("*/curve_*.json"))
SIZES = (1, 3, 10, 30, 100, 300, 1000)


@pytest.fixture
def curves(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench.curves")


@pytest.fixture
def plots(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench._curve_plots")


def record_of(cost, sizes=SIZES, axis="rows"):
    """A record whose lines are cost(threads, size), in ns for a unit."""
    lines = {}
    for threads in (1, 2):
        points = []
        for size in sizes:
            value = cost(threads, size)
            points.append(
                {
                    "x": size,
                    "units": size,
                    "samples": [value],
                    **dict.fromkeys(("median", "q1", "q3", "min", "max"), value),
                }
            )
        lines[f"{threads} thread{'s' * (threads > 1)}"] = points
    return {
        "name": "curve_op_rows",
        "op": "op",
        "axis": axis,
        "grows": "rows",
        "unit": "ns",
        "title": "op: rows",
        "curves": lines,
        "knees": [],
    }


# --- knees ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cost",
    [
        lambda t, n: 5.0,
        lambda t, n: 5.0 + 1e3 / n,
        lambda t, n: 5.0 + 80 / n**0.5 + 4e3 / n,
        lambda t, n: 7.0 / t + 1e4 / n,
        lambda t, n: 5.0 * (1.1 if n % 100 else 1.0) + 30 / n,
        lambda t, n: 1e3 / n,
    ],
    ids=["flat", "of-a-call", "of-a-call-and-a-row", "shared", "noise", "constant-time"],
)
def test_what_is_expected_is_no_knee(curves, cost):
    assert curves.knees(record_of(cost)) == []


def test_a_step_up_is_a_rise_where_it_is(curves):
    found = curves.knees(record_of(lambda t, n: 5.0 if n < 100 or t == 2 else 8.0))
    rise = {"kind": "rise", "threads": 1, "size_from": 30, "size_to": 100, "growth": 1.6}
    assert found == [rise]


def test_a_slow_rise_is_one_rise(curves):
    found = curves.knees(record_of(lambda t, n: 5.0 * max(1, n / 10) ** 0.2))
    assert [(k["kind"], k["threads"]) for k in found] == [("rise", 1), ("rise", 2)]
    assert all(k["size_from"] == 10 and k["size_to"] == 1000 for k in found)


def test_two_steps_are_two_rises(curves):
    levels = {1: 5, 3: 5, 10: 10, 30: 6, 100: 6, 300: 12, 1000: 12}
    found = [k for k in curves.knees(record_of(lambda t, n: levels[n])) if k["threads"] == 1]
    assert [(k["kind"], k["size_from"], k["size_to"]) for k in found] == [
        ("rise", 3, 10),
        ("fall", 10, 30),
        ("rise", 100, 300),
    ]


def test_a_step_down_is_a_fall(curves):
    """Threads that come in late, say: after a flat part, and on the way down from what a call
    costs."""
    late = curves.knees(record_of(lambda t, n: 5.0 / (t if n >= 100 else 1)))
    fall = {"kind": "fall", "threads": 2, "size_from": 30, "size_to": 100, "growth": 0.5}
    assert late == [fall]
    falling = record_of(lambda t, n: (20.0 + 100 / n) / (t if n >= 100 else 1))
    assert [(k["kind"], k["size_to"]) for k in curves.knees(falling)] == [("fall", 100)]


def test_a_call_that_takes_less_for_more_is_a_fall(curves):
    found = curves.knees(record_of(lambda t, n: (900.0 if n == 1 else 300.0) / n))
    assert [(k["kind"], k["size_from"], k["size_to"]) for k in found] == [("fall", 1, 3)] * 2


def test_more_threads_that_lose_are_slower(curves):
    found = curves.knees(record_of(lambda t, n: 5.0 + (t - 1) * 20 / n))
    assert [(k["kind"], k["threads"], k["size_from"]) for k in found] == [
        ("slower", 2, 1),
        ("slower", 2, 3),
        ("slower", 2, 10),
    ]


def test_threads_that_do_not_help_are_a_rise_over_threads(curves):
    record = record_of(lambda t, n: 5.0 * n, (1, 2, 4), axis="threads")
    del record["curves"]["2 threads"]
    [found] = curves.knees(record)
    assert (found["kind"], found["threads"], found["size_to"]) == ("rise", 4, 4)


# --- measuring ------------------------------------------------------------------------------------


class Clock:
    """Goes on as the work says."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def synthetic(curves, clock, cost, sizes=SIZES, log=None):
    """A curve whose call takes cost(threads, size) seconds."""

    def make(size):
        def call():
            threads = torch.get_num_threads()
            clock.now += cost(threads, size)
            if log is not None:
                log.append((threads, size))

        return curves.Work(call, size, lambda backend: torch.zeros(1))

    return curves.Curve("op", "rows", "rows", "ns per row", sizes, make)


def test_a_measured_curve_is_its_cost(curves):
    clock = Clock()
    curve = synthetic(curves, clock, lambda t, n: 1e-3 * n)
    record = curves.draw(curve, [1, 2], 3, clock=clock)
    assert list(record["curves"]) == ["1 thread", "2 threads"]
    assert record["rounds"] == 3
    assert record["knees"] == []
    for line in record["curves"].values():
        assert [point["x"] for point in line] == list(SIZES)
        assert all(len(point["samples"]) == 3 for point in line)
        assert all(point["min"] == pytest.approx(1e6) for point in line)


def test_sizes_and_threads_are_run_in_turn_and_small_ones_repeated(curves):
    clock, log = Clock(), []
    curve = synthetic(curves, clock, lambda t, n: n * 1e-3, (2, 20), log)
    curves.draw(curve, [1, 2], 2, clock=clock)
    order = [key for key, _ in itertools.groupby(log)]
    keys = [(1, 2), (2, 2), (1, 20), (2, 20)]
    assert order == keys * 3  # the warm-up and two rounds
    # 2 ms three times are 5 ms; before them once that does not count, and twice at first.
    assert log.count((1, 2)) == 2 + 2 * (1 + 3)
    assert log.count((1, 20)) == 2 + 2 * 1


def test_a_knee_is_measured_again_before_it_is_believed(curves):
    clock, calls = Clock(), itertools.count()

    def cost(threads, size):
        if size == 30 and threads == 1:  # disturbed in its first rounds
            return 0.09 if next(calls) < 4 else 0.03
        return size * 1e-3

    disturbed = curves.draw(synthetic(curves, clock, cost, (10, 30, 100)), [1], 2, clock=clock)
    assert disturbed["rounds"] == 3
    assert disturbed["knees"] == []
    step = synthetic(curves, clock, lambda t, n: 1e-3 * n * (2 if n > 10 else 1), (10, 30, 100))
    record = curves.draw(step, [1], 2, clock=clock)
    assert record["rounds"] == 4
    assert [(k["kind"], k["size_to"]) for k in record["knees"]] == [("rise", 30)]


def test_the_number_of_threads_is_as_it_was(curves):
    before = torch.get_num_threads()
    clock = Clock()

    def fails():
        raise RuntimeError("no")

    curve = curves.Curve(
        *("op", "rows", "rows", "ns", (1,)), lambda n: curves.Work(fails, 1, lambda b: None)
    )
    with pytest.raises(RuntimeError, match="no"):
        curves.draw(curve, [before + 1], 1, clock=clock)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ops": ["word2vec"]}, "expected an operator of skipgram, "),
        ({"threads": []}, "expected threads ascending"),
        ({"threads": [2, 1]}, "expected threads ascending"),
        ({"threads": [0]}, "expected threads ascending"),
        ({"threads": 0}, "expected threads ascending"),
        ({"rounds": 0}, "expected rounds >= 1"),
    ],
)
def test_bad_options_are_refused(curves, given, message):
    with pytest.raises(ValueError, match=message):
        curves.run(**given)


def test_run_returns_records_and_says_them(curves, monkeypatch, tmp_path):
    said = []
    one = [curve for curve in curves.CURVES["hals_sweep"] if curve.axis == "rows"]
    small = curves.Curve(*("hals_sweep", "rows", "rows", "ns", (1, 3)), one[0].make, (10,))
    monkeypatch.setitem(curves.CURVES, "hals_sweep", [small])
    unit, _ = curves.SHARED["hals_sweep"]
    monkeypatch.setitem(curves.SHARED, "hals_sweep", (unit, lambda: small.make(3)))
    monkeypatch.setattr(curves, "LEAST", 1e-4)
    records = curves.run(["hals_sweep"], threads=2, rounds=1, full=True, say=said.append)
    assert [record["axis"] for record in records] == ["rows", "threads"]
    assert [p["x"] for p in records[0]["curves"]["2 threads"]] == [1, 3, 10]
    assert [p["x"] for p in records[1]["curves"]["1 thread or more"]] == [1, 2]
    text = "\n".join(said)
    assert "agrees: hals_sweep" in text
    assert "hals_sweep: rows (ns)" in text
    folder = importlib.import_module("bench._runner").write(records[0], tmp_path)
    valid(curves, json.loads(folder.read_text()))


def test_a_picture_that_cannot_be_drawn_costs_no_numbers(curves, plots, monkeypatch, tmp_path):
    def full(*given):
        raise OSError("No space left on device")

    written = []
    monkeypatch.setattr(curves, "run", lambda *_, **given: [{"name": "curve", "agreement": []}])
    monkeypatch.setattr(curves, "write", written.append)
    monkeypatch.setattr(plots, "sheet", full)
    with pytest.raises(OSError, match="No space left"):
        curves.main(["spmm", "--plot", str(tmp_path / "all.png")])
    assert [record["name"] for record in written] == ["curve"]


def test_a_wrong_answer_is_not_agreement(curves, monkeypatch):
    shapes = importlib.import_module("bench._curve_shapes")
    answers = {"native": torch.ones(3) * 1.01, "reference": torch.ones(3)}
    wrong = shapes.Work(lambda: None, 1, answers.__getitem__)
    monkeypatch.setitem(curves.SMALL, "spmm", (1e-3, lambda: wrong))
    assert not curves.check("spmm").passed


@pytest.mark.parametrize("op", list(PAGES))
def test_what_is_timed_agrees_with_the_reference(curves, op):
    assert curves.check(op).passed


def test_every_operator_has_curves_over_three_decades_and_threads(curves):
    registered = {path.stem for path in (ROOT / "python/vecsmith/ops").glob("[a-z]*.py")}
    assert set(curves.CURVES) == registered == set(PAGES)
    for op, declared in curves.CURVES.items():
        assert curves.curves_of(op, [1, 2])[-1].axis == "threads"
        assert [c.axis for c in curves.curves_of(op, [1])] == [c.axis for c in declared]
        for curve in declared:
            assert len(curve.sizes) >= 7, curve.name
            assert curve.sizes[-1] >= 1000 * curve.sizes[0], curve.name
            grown = (*curve.sizes, *curve.full)
            assert sorted(set(grown)) == list(grown), curve.name


def test_every_curve_runs_at_its_least_size(curves):
    """Not only at one: the units grow as the curve says."""
    for declared in curves.CURVES.values():
        for curve in declared:
            first, second = (curve.make(size) for size in curve.sizes[:2])
            assert 0 < first.units <= second.units, curve.name
            for _ in range(2):
                first.call()
                second.call()


# --- pictures -------------------------------------------------------------------------------------


def test_a_picture_is_drawn_and_the_same_each_time(plots, tmp_path):
    pytest.importorskip("matplotlib")
    record = record_of(lambda t, n: 5.0 / t + 100 / n)
    record["knees"] = [{"kind": "rise", "threads": 2, "size_from": 10, "size_to": 30, "growth": 2}]
    first = plots.curve_plot(record, tmp_path / "deep" / "a.svg").read_bytes()
    assert first == plots.curve_plot(record, tmp_path / "b.svg").read_bytes()
    text = first.decode()
    for part in ("op: rows", "1 thread", "2 threads", "1k", plots.digest([record])):
        assert part in text
    assert re.search(r"\b20\d\d-\d\d-\d\d", text) is None
    assert len(first) < 40_000


def test_a_sheet_holds_all_curves(plots, tmp_path):
    pytest.importorskip("matplotlib")
    over = record_of(lambda t, n: 5.0, (1, 2), axis="threads")
    records = [record_of(lambda t, n: 5.0)] * 4 + [over]
    path = plots.sheet(records, tmp_path / "all.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="expected at least one record; got none"):
        plots.sheet([], path)


@pytest.fixture
def tool(monkeypatch):
    path = ROOT / "tools" / "make_benchmark_page.py"
    specification = importlib.util.spec_from_file_location("make_benchmark_page", path)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setitem(sys.modules, path.stem, module)
    specification.loader.exec_module(module)
    monkeypatch.syspath_prepend(str(ROOT))
    return module


def test_the_benchmark_page_shows_curves(tool, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    over = {**record_of(lambda t, n: 5.0 * n, (1, 2), axis="threads"), "name": "curve_op_threads"}
    del over["curves"]["2 threads"]
    records = [over, record_of(lambda t, n: 4000.0 / n)]
    machine = {"processor": "P", "cpus": 2, "isa": "base", "isa_levels": ["base"], "python": "3"}
    folder = tmp_path / "results" / "some-machine"
    folder.mkdir(parents=True)
    for record in records:
        record["machine"], record["date"] = {**machine, "versions": {}}, "2026-01-01"
        (folder / f"{record['name']}.json").write_text(json.dumps(record))
    page = tool.pages(tmp_path / "results")[tool.PAGE.parent / "benchmarks" / "curves.md"]
    assert page.count("![op: cost against size](../pictures/curves/some-machine/op.svg)") == 1
    assert "| rows | 1 .. 1,000 | ns | 2 threads | 4,000 | 133 | 4 |" in page
    assert "| rows | 1 .. 2 | ns | 1 thread | 5 | 10 | 10 |" in page
    monkeypatch.setattr(tool, "CURVES", tmp_path / "pictures")
    tool.draw_curves(tool.read(tmp_path / "results"))
    assert [path.name for path in tmp_path.glob("pictures/some-machine/*")] == ["op.svg"]


# --- what is committed ----------------------------------------------------------------------------


def valid(curves, record):
    """Checks a record's parts against each other."""
    assert record["name"] == f"curve_{record['op']}_{record['axis']}"
    assert all(check["passed"] for check in record["agreement"])
    assert record["machine"]["isa"]
    for line in record["curves"].values():
        for point in line:
            assert len(point["samples"]) == record["rounds"]
            assert 0 < point["min"] == min(point["samples"]) <= point["median"] <= point["max"]
            assert point["units"] > 0
    assert record["knees"] == curves.knees(record, record["settings"]["factor"])


def explained(page):
    """The rows of the table under "How cost grows": (curve, from, to, kind, why)."""
    section = re.search(r"^## How cost grows\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    rows = re.findall(
        r"^\| `([a-z_ ]+)` \| ([\d,]+)(?: \.\. ([\d,]+))? \| (rise|fall|slower) \| (.+) \|$",
        section[1] if section else "",
        re.M,
    )
    number = lambda text: int(text.replace(",", ""))  # noqa: E731
    return [(c, number(a), number(b or a), kind, why) for c, a, b, kind, why in rows]


@pytest.mark.parametrize("op", PAGES)
def test_the_page_of_the_operator_leads_to_its_curves(op):
    page = ROOT / "docs" / PAGES[op]
    assert "\n## How cost grows\n" in page.read_text()
    own = ROOT / "docs" / "operators" / f"{op}.md"
    assert page.stem == op or f"(../{PAGES[op]}#how-cost-grows)" in own.read_text()


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_page_of_the_operator_says_why_every_knee_is_there(curves, path):
    record = json.loads(path.read_text())
    valid(curves, record)
    page = (ROOT / "docs" / PAGES[record["op"]]).read_text()
    names = {record["axis"], f"{record['op']} {record['axis']}"}
    for knee in record["knees"]:
        reasons = [
            why
            for curve, low, high, kind, why in explained(page)
            if curve in names
            and kind == knee["kind"]
            and low <= knee["size_from"]
            and knee["size_to"] <= high
        ]
        assert reasons, f"{PAGES[record['op']]} has no reason for {record['axis']}: {knee}"


@pytest.mark.parametrize("folder", sorted({path.parent for path in RECORDS}), ids=lambda p: p.name)
def test_the_pictures_are_those_of_the_records(tool, plots, folder):
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("curve_*.json"))]
    for op, curves in tool.by_operator(records).items():
        picture = ROOT / "docs" / "pictures" / "curves" / folder.name / f"{op}.svg"
        assert plots.digest(curves) in picture.read_text(), f"tools/make_benchmark_page.py: {op}"


def test_a_table_of_reasons_is_read():
    page = (
        "## How cost grows\n\n| curve | sizes | knee | why |\n| --- | --- | --- | --- |\n"
        "| `rows` | 1,000 .. 30,000 | rise | caches |\n| `step_ids` | 2 | slower | threads |\n\n"
        "## Other\n\n| `rows` | 1 .. 2 | fall | not of this section |\n"
    )
    assert explained(page) == [
        ("rows", 1000, 30000, "rise", "caches"),
        ("step_ids", 2, 2, "slower", "threads"),
    ]
    assert explained("## Other\n") == []
