"""vecsmith bench: its tables, its files, what is refused before anything is measured, Ctrl-C, and
peers that are missing, broken, or fail."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from vecsmith.bench import _peers, _runner, command, roofline
from vecsmith.bench._runner import Check, Group, Job, Ratio, Skipped
from vecsmith.bench.roofline import Roofline, Work

ROOF = Roofline("cpu", 1, 1e9, {"float32": 1e10, "float64": 5e9})


def ours_and(other: float = 4.0, **more) -> Group:
    """vecsmith takes 2 ms, a peer more."""
    given = {
        "name": "spmm_x",
        "title": "A product",
        "unit": "ms",
        "higher_is_better": False,
        "entries": {"vecsmith": lambda: 2.0, "peer": lambda: other},
        "check": lambda: [Check("the products are equal", True)],
        "ratios": [Ratio("peer / vecsmith", "vecsmith", "peer", bar=1000)],
        "settings": {"threads": 1},
        "work": {"vecsmith": Work(1e6), "peer": Work(1e6)},
    }
    return Group(**{**given, **more})


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    """No roofline but a given one, and no peers are looked for."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(roofline, "measure", lambda *_: ROOF)
    monkeypatch.setattr(roofline, "measured", lambda *_: ROOF)
    monkeypatch.setattr(_peers, "state", lambda name: "missing")
    monkeypatch.setattr(_peers, "_BESIDE_TORCH", {})
    yield
    assert torch.get_num_threads() == threads


@pytest.fixture
def groups(monkeypatch):
    """Gives operators groups that take no time: {operator: [makers]}."""

    def give(**made):
        def jobs_of(operator, settings, scratch):
            return [Job(f"case {n}", make) for n, make in enumerate(made.get(operator, []))]

        monkeypatch.setattr(command, "jobs_of", jobs_of)

    return give


def cells(text: str, name: str) -> list[str]:
    """The columns of an entry's line."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
    return re.split(r"\s{2,}", line.strip())


def test_help_teaches(vecsmith):
    result = vecsmith("bench", "--help")
    assert result.code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.out)
    assert "vecsmith bench" in plain.split("Examples:")[1]
    for name in command.OPERATORS:
        assert name in plain


def test_a_table(vecsmith, groups, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    groups(spmm=[ours_and])
    result = vecsmith("bench", "spmm", "--rounds", 3, "--threads", 1)
    assert result.code == 0, result.err
    assert cells(result.out, "vecsmith") == ["vecsmith", "2", "2 .. 2", "50%"]
    assert cells(result.out, "peer") == ["peer", "4", "4 .. 4", "2.00x", "2.00 .. 2.00", "25%"]
    assert "agrees: the products are equal" in result.out
    assert "copy 1.0 GB/s, products in GFLOP/s: float32 10, float64 5" in result.out
    assert "[1/1] spmm: case 0" in result.err
    # Bars were set for another machine.
    assert "reached" not in result.out
    assert "1000" not in result.out
    assert list(tmp_path.iterdir()) == []
    assert "\x1b" not in result.out
    assert all(line == line.rstrip() for line in result.out.splitlines())


def test_the_other_of_two_of_ours(vecsmith, groups):
    entries = {"vecsmith, a": lambda: 1.0, "vecsmith, b": lambda: 2.0, "peer": lambda: 3.0}
    ratios = [Ratio("x", name, "peer") for name in ("vecsmith, a", "vecsmith, b")]
    groups(spmm=[lambda: ours_and(entries=entries, ratios=ratios)])
    result = vecsmith("bench", "spmm", "--rounds", 1)
    assert re.search(r"peer .* 3\.00x .* of vecsmith, a$", result.out, re.M)
    assert re.search(r"^ +1\.50x .* of vecsmith, b$", result.out, re.M)


def test_every_operator_and_those_that_are_named(vecsmith, groups):
    groups(**{name: [lambda name=name: ours_and(title=name)] for name in command.OPERATORS})
    titles = re.compile(r"^(\w+): \1$", re.M)
    assert titles.findall(vecsmith("bench", "--rounds", 1).out) == list(command.OPERATORS)
    some = vecsmith("bench", "rnn", "spmm", "rnn", "--rounds", 1)
    assert titles.findall(some.out) == ["rnn", "spmm"]


def test_the_json_is_all_of_standard_output(vecsmith, groups, tmp_path):
    groups(spmm=[ours_and], rnn=[ours_and])
    result = vecsmith("bench", "spmm", "rnn", "--rounds", 2, "--json")
    assert result.code == 0
    records = json.loads(result.out)
    assert [record["operator"] for record in records] == ["rnn", "spmm"]
    record = records[0]
    assert record["label"] == "case 0"
    assert record["entries"]["vecsmith"]["of_roofline"] == 0.5
    assert record["work"]["vecsmith"] == {
        "bytes": 1e6,
        "operations": 0.0,
        "dtype": "float32",
        "bound": "bandwidth",
    }
    assert record["machine"]["roofline"] == ROOF.record()
    assert {"isa", "threads", "versions"} <= set(record["machine"])
    assert "bar" not in record["ratios"][0]
    assert "2.00x" in result.err


def test_files(vecsmith, groups, tmp_path):
    groups(spmm=[ours_and, lambda: ours_and(name="spmm_y")])
    file, folder = tmp_path / "all.json", tmp_path / "deep" / "records"
    file.write_text("old")
    result = vecsmith(
        *("bench", "spmm", "--rounds", 1, "--json-file", file, "--save", folder),
    )
    assert result.code == 0, result.err
    records = json.loads(file.read_text())
    assert sorted(p.name for p in folder.iterdir()) == ["spmm_x.json", "spmm_y.json"]
    assert [json.loads((folder / f"{r['name']}.json").read_text()) for r in records] == records
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.json", "deep"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "expected operators of skipgram, embedding_bag"),
        (("spmm", "--rounds", 0), "rounds"),
        (("--threads", 0), "threads"),
        (("--threads", 10**6), "expected threads in 1 .. "),
        (("--device", "tpu"), "device"),
        (("--save", ""), "got an empty one"),
        (("--save", "{file}/folder"), "{file}"),
        (("--plot", "{file}"), "{file}"),
        (("--json-file", "{folder}"), "expected a regular file"),
        (("--json-file", "/dev/null"), "expected a regular file"),
        (("--json-file", "{folder}/no/such.json"), "cannot be written to"),
    ],
)
def test_refused_before_anything_is_measured(vecsmith, groups, tmp_path, arguments, said):
    groups(**{name: [lambda: pytest.fail("measured")] for name in command.OPERATORS})
    (tmp_path / "file").write_text("kept")
    places = {"file": tmp_path / "file", "folder": tmp_path}
    result = vecsmith("bench", *(str(a).format(**places) for a in arguments))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert said.format(**places) in result.err
    assert (tmp_path / "file").read_text() == "kept"


def test_no_device(vecsmith, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = vecsmith("bench", "--device", "cuda")
    assert (result.code, result.out) == (2, "")
    assert "torch finds none here" in result.err


def test_the_groups_of_a_device(vecsmith, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A device")
    gpu = types.ModuleType("vecsmith.bench.gpu")
    gpu.groups = lambda operators: [ours_and(name=f"{operators[0]}_small", work={})]
    gpu.describe = lambda record, *_: record["settings"].update(of_floor={"vecsmith": 0.25})
    monkeypatch.setitem(sys.modules, gpu.__name__, gpu)
    monkeypatch.setattr(roofline, "measure", lambda *_: Roofline("cuda", 1, 1e12, ROOF.rates))
    result = vecsmith("bench", "spmm", "--device", "cuda", "--rounds", 1, "--json")
    assert result.code == 0, result.err
    (record,) = json.loads(result.out)
    assert (record["operator"], record["label"]) == ("spmm", "small")
    assert "A device" in result.err
    assert cells(result.err, "vecsmith")[-1] == "25%"


def test_pictures(vecsmith, groups, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    asked, drawn = [], []
    curves = types.ModuleType("vecsmith.bench.curves")

    def run(operators, **options):
        asked.append((operators, options))
        points = [{"x": x, "median": 1.0} for x in (10, 100)]
        return [{"name": "spmm_rows", "title": "rows", "unit": "s", "curves": {"rows": points}}]

    curves.run = run
    plots = types.ModuleType("vecsmith.bench._curve_plots")
    plots.curve_plot = lambda record, path: drawn.append((record["name"], path))
    for module in (curves, plots):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    groups(spmm=[ours_and])
    result = vecsmith("bench", "spmm", "--rounds", 2, "--threads", 1, "--plot", tmp_path)
    assert result.code == 0, result.err
    assert asked == [(["spmm"], {"threads": 1, "rounds": 2, "full": False})]
    assert drawn == [("spmm_rows", tmp_path / "spmm_rows.png")]
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")
    assert "rows: 10: 1, 100: 1 s" in result.out
    asked.clear()
    assert vecsmith("bench", "spmm", "--rounds", 1, "--plot", tmp_path, "--no-curves").code == 0
    assert asked == []
    # Their failure costs no record.
    curves.run = fails
    result = vecsmith("bench", "spmm", "--rounds", 1, "--curves", "--json")
    assert result.code == 1
    assert len(json.loads(result.out)) == 1
    assert "failed: curves of spmm: RuntimeError: no such kernel" in result.err


def test_no_pictures_without_matplotlib(vecsmith, groups, tmp_path, monkeypatch):
    groups(spmm=[lambda: pytest.fail("measured")])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = vecsmith("bench", "spmm", "--plot", tmp_path / "plots")
    assert (result.code, result.out) == (2, "")
    assert "pip install 'vecsmith[plot]'" in result.err
    assert not (tmp_path / "plots").exists()


# --- what fails -----------------------------------------------------------------------------------


def fails(*_: object, **__: object):
    raise RuntimeError("first line\nno such kernel")


@pytest.mark.parametrize("failing", ["peer", "vecsmith"])
def test_an_entry_that_fails(vecsmith, groups, failing):
    entries = {"vecsmith": lambda: 2.0, "peer": lambda: 4.0, "other": lambda: 6.0, failing: fails}
    ratios = [Ratio("x", "vecsmith", "peer"), Ratio("y", "vecsmith", "other")]
    groups(spmm=[lambda: ours_and(entries=entries, ratios=ratios), ours_and])
    result = vecsmith("bench", "spmm", "--rounds", 2)
    assert result.code == (1 if failing == "vecsmith" else 0)
    assert f"FAILED: {failing}: RuntimeError: no such kernel" in result.out
    first, second = result.out.split("A product")[1:]
    assert ("3.00x" in first) is (failing == "peer")
    assert "2.00x" not in first
    assert "2.00x" in second


def test_a_group_that_fails_and_one_that_cannot_be(vecsmith, groups):
    def cannot():
        raise Skipped("no compiler")

    groups(spmm=[cannot, ours_and])
    result = vecsmith("bench", "spmm", "--rounds", 1)
    assert result.code == 0
    assert "skipped: spmm: case 0: no compiler" in result.out
    assert "2.00x" in result.out
    groups(spmm=[fails, ours_and])
    result = vecsmith("bench", "spmm", "--rounds", 1)
    assert result.code == 1
    assert "failed: spmm: case 0: RuntimeError: no such kernel" in result.out
    assert "2.00x" in result.out


def test_a_red_check(vecsmith, groups):
    red = [Check("sums are equal", True), Check("products are equal", False)]
    groups(spmm=[lambda: ours_and(check=lambda: red)])
    result = vecsmith("bench", "spmm", "--rounds", 1)
    assert result.code == 1
    assert "DISAGREES: products are equal" in result.out
    assert "no ratios: an agreement check is red" in result.out
    assert "2.00x" not in result.out


def test_missing_and_broken_peers_are_named(vecsmith, groups, monkeypatch):
    states = {"faiss": "broken: ImportError: no libfaiss", "implicit": "installed"}
    monkeypatch.setattr(_peers, "state", lambda name: states.get(name, "missing"))
    groups(cosine_topk=[ours_and])
    result = vecsmith("bench", "cosine_topk", "--rounds", 1)
    assert result.code == 0
    said = "  faiss, the nearest rows of CosineIndex: broken: ImportError: no libfaiss; "
    assert f"{said}pip install faiss-cpu\n" in result.out
    assert "gensim" not in result.out.split("peers that were not compared")[1]


def test_a_list(vecsmith, monkeypatch):
    monkeypatch.setattr(_peers, "state", lambda n: "installed" if n == "implicit" else "missing")
    result = vecsmith("bench", "als_solve", "--list")
    assert result.code == 0
    assert re.search(r"implicit \(als_solve, factor_sgd.*\): installed$", result.out, re.M)
    assert "cmfrec (als_solve: fits of ALS): missing; pip install cmfrec" in result.out
    assert "faiss" not in result.out
    assert "  short f=64\n" in result.out
    assert "with --full: sparse f=64, " in result.out


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_ctrl_c_keeps_what_there_is(vecsmith, groups, tmp_path, signum):
    def stops() -> float:
        signal.raise_signal(signum)
        return 1.0

    never = lambda: pytest.fail("measured")  # noqa: E731
    groups(spmm=[ours_and, lambda: ours_and(entries={"vecsmith": stops}), never])
    file = tmp_path / "all.json"
    result = vecsmith("bench", "spmm", "--rounds", 1, "--json-file", file, "--save", tmp_path / "s")
    assert result.code == 130
    assert "2.00x" in result.out
    assert "stopped: 1 groups were measured" in result.out
    assert "Traceback" not in result.err
    assert len(json.loads(file.read_text())) == len(list((tmp_path / "s").iterdir())) == 1


def test_a_full_disk(vecsmith, groups, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    groups(spmm=[ours_and])
    file = tmp_path / "all.json"
    file.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    result = vecsmith("bench", "spmm", "--rounds", 1, "--json-file", file)
    assert result.code == 2
    assert "2.00x" in result.out  # what was measured is not lost
    assert result.err.splitlines()[-1].startswith("error: ")
    assert "o space left" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["all.json"]
    assert file.read_text() == "old"


@pytest.mark.parametrize("option", ["--save", "--plot"])
def test_what_cannot_be_written_costs_no_numbers(vecsmith, groups, tmp_path, monkeypatch, option):
    """A record's own file, or a picture: what was measured before is in the JSON of all."""

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    plots = pytest.importorskip("vecsmith.bench._plots")
    module, name = (_runner, "write") if option == "--save" else (plots, "ratio_bars")
    monkeypatch.setattr(module, name, full)
    groups(spmm=[ours_and])
    file = tmp_path / "all.json"
    files = [option, tmp_path / "folder", "--json-file", file, "--json", "--no-curves"]
    result = vecsmith("bench", "spmm", "--rounds", 1, *files)
    assert result.code == 2
    assert "2.00x" in result.err or option == "--save"
    (record,) = json.loads(file.read_text())
    assert json.loads(result.out) == [record]
    last = result.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith("o space left on device")
    assert "ratios.png" in last or option == "--save"


# The real operator, small, and so often that a reader who leaves is noticed; a roofline of little.
_REAL = """
import sys
from vecsmith.__main__ import main
from vecsmith.bench import _peers, bench_hals_sweep, roofline
_peers.state = lambda name: "missing"
roofline._PRODUCT, roofline._MOST, roofline._WHILE = 64, 1 << 16, 0.0
bench_hals_sweep.ROWS = 300
made = bench_hals_sweep.offered
bench_hals_sweep.offered = lambda *given: made(*given) * 100
options = ["--rounds", "1", "--threads", "1"]
sys.argv = ["vecsmith", "bench", "hals_sweep", *options, *sys.argv[1:]]
main()
"""


def real(shell: str, program: Path, *arguments: object) -> subprocess.CompletedProcess:
    """A program, run by a shell that says where its output goes."""
    return subprocess.run(
        ["sh", "-c", shell, sys.executable, str(program), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_reader_that_leaves(tmp_path):
    (tmp_path / "real.py").write_text(_REAL)
    result = real('"$0" "$@" | head -n 3', tmp_path / "real.py")
    assert len(result.stdout.splitlines()) == 3
    assert "Traceback" not in result.stderr
    assert "error" not in result.stderr
    # It has not gone on to the end for nobody.
    assert "[600/600]" not in result.stderr


def test_standard_output_is_closed(tmp_path):
    (tmp_path / "real.py").write_text(_REAL.replace("* 100", ""))
    file = tmp_path / "all.json"
    result = real('exec "$0" "$@" >&-', tmp_path / "real.py", "--json-file", file)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    records = json.loads(file.read_text())
    assert [record["label"] for record in records] == ["k=16 float32", "k=64 float32"]
    assert all(record["ratios"] for record in records)
