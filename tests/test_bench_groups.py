"""What the benchmarks are made of: groups that lose an entry, rooflines and what is counted for
them, peers that cannot be imported, pictures of ratios, and an installed copy."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from vecsmith.bench import _peers, _runner, command, roofline
from vecsmith.bench._runner import Check, Group, Ratio, guarded, run
from vecsmith.bench.roofline import Roofline, Work

from vecsmith import ops

ROOT = Path(__file__).parent.parent
ROOF = Roofline("cpu", 1, 1e9, {"float32": 1e10, "float64": 5e9})


def group(**more) -> Group:
    given = {
        "name": "x",
        "title": "x",
        "unit": "s",
        "higher_is_better": False,
        "entries": {"a": lambda: 1.0, "b": lambda: 2.0, "c": lambda: 4.0},
        "check": lambda: [Check("same", True)],
        "ratios": [Ratio("a / b", "a", "b"), Ratio("a / c", "a", "c")],
    }  # fmt: skip
    return Group(**{**given, **more})


def fails(*_: object):
    raise RuntimeError("no such kernel")


# --- entries that fail ----------------------------------------------------------------------------


def test_an_entry_that_raises_is_left_out():
    entries = {**group().entries, "b": fails}
    record = run(group(entries=entries), 2, quiet=True)
    assert record["failed"] == {"b": "RuntimeError: no such kernel"}
    assert list(record["entries"]) == ["a", "c"]
    assert [ratio["other"] for ratio in record["ratios"]] == ["c"]


def test_one_that_raises_in_a_later_round_is_left_out():
    values = iter([1.0, 1.0])
    entries = {**group().entries, "b": lambda: next(values)}  # StopIteration
    record = run(group(entries=entries), 3, quiet=True)
    assert record["failed"] == {"b": "StopIteration"}
    assert [len(record["entries"][name]["samples"]) for name in "ac"] == [3, 3]


def test_what_is_not_finite_is_a_failure():
    record = run(group(entries={**group().entries, "b": lambda: float("nan")}), 1, quiet=True)
    assert record["failed"] == {"b": "ValueError: expected a finite measurement; got nan"}


def test_one_that_raises_in_its_check_is_left_out_and_one_that_differs_is_not(capsys):
    def check() -> list[Check]:
        return [Check("a is right", True), *guarded("b", fails)]

    record = run(group(check=check), 1)
    assert record["failed"] == {"b": "RuntimeError: no such kernel"}
    assert record["agreement"] == [{"what": "a is right", "passed": True}]
    assert [ratio["other"] for ratio in record["ratios"]] == ["c"]
    assert "FAILED: b failed: RuntimeError" in capsys.readouterr().out
    differs = [Check("a is right", True), *guarded("b", lambda: [Check("b differs", False)])]
    record = run(group(check=lambda: differs), 1, quiet=True)
    assert "ratios" not in record
    assert "failed" not in record


def test_a_check_that_raises_leaves_no_ratios():
    record = run(group(check=fails), 1, quiet=True)
    assert "ratios" not in record
    assert record["agreement"] == [
        {"what": "the check failed: RuntimeError: no such kernel", "passed": False}
    ]
    # Nothing was compared with anything.
    assert "ratios" not in run(group(check=lambda: guarded("b", fails)), 1, quiet=True)


def test_ctrl_c_is_no_failure():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(group(entries={"a": stop}), 1, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        guarded("a", stop)


# --- rooflines ------------------------------------------------------------------------------------


def test_a_floor_is_the_longer_of_bytes_and_operations():
    assert ROOF.floor(Work(2e9, 1e10)) == 2
    assert ROOF.bound(Work(2e9, 1e10)) == "bandwidth"
    assert ROOF.floor(Work(1e9, 3e10)) == 3
    assert ROOF.bound(Work(1e9, 3e10)) == "operations"
    assert ROOF.floor(Work(1e9, 3e10, "float64")) == 6


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        *((2.0, "s", 0.5), (2000.0, "ms", 0.5), (2e6, "us", 0.5)),
        # Work of a word, in words per second.
        *((0.25, "raw words/s", 0.25), (0.5, "steps/s", 0.5)),
        *((3.0, "MB", None), (3.0, "GB/s", None), (0.0, "words/s", None)),
    ],
)
def test_the_fraction_of_a_measured_value(value, unit, expected):
    assert ROOF.fraction(Work(1e9), value, unit) == expected


def test_a_record_has_the_fractions(monkeypatch):
    asked = []
    monkeypatch.setattr(roofline, "measure", lambda *given: asked.append(given) or ROOF)
    made = group(work={"a": Work(5e8), "b": Work(0, 1e10)}, settings={"threads": 7})
    record = run(made, 1, quiet=True)
    assert asked == [(7, "cpu")]
    fractions = [record["entries"][name].get("of_roofline") for name in "abc"]
    assert fractions == [0.5, 0.5, None]
    assert [one["bound"] for one in record["work"].values()] == ["bandwidth", "operations"]


def test_a_roofline_is_measured_once(monkeypatch):
    monkeypatch.setattr(roofline, "_MEASURED", {})
    monkeypatch.setattr(roofline, "_PRODUCT", 48)
    monkeypatch.setattr(roofline, "_MOST", 1 << 16)
    monkeypatch.setattr(roofline, "_WHILE", 0.0)
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    assert roofline.measured(1) is None
    found = roofline.measure(1)
    assert found is roofline.measure(1) is roofline.measured(1)
    assert found.bandwidth > 0
    assert set(found.rates) == {"float32", "float64"}
    assert all(rate > 0 for rate in found.rates.values())
    assert before == (torch.get_num_threads(), torch.get_float32_matmul_precision())
    assert roofline.last_cache() >= 1 << 15


# --- what is counted ------------------------------------------------------------------------------


def test_the_work_of_a_look_up_and_of_a_step():
    bag = importlib.import_module("vecsmith.bench.bench_embedding_bag")
    count = bag.BAGS * bag.LENGTH
    ids = [torch.zeros(count, dtype=torch.int64), torch.arange(count) % 3]  # 1 and 3 rows: 2
    look_up = bag.work_of(ids, 10)
    moved = 8 * (count + bag.BAGS) + 40 * (2 + bag.BAGS)
    assert (look_up.bytes, look_up.operations) == (moved, count * 10)
    step = bag.work_of(ids, 10, state=20)  # rows once more, state there and back, the gradient
    assert step.bytes - moved == 40 * bag.BAGS + 4 * 2 * (10 + 2 * 20)


def test_the_work_of_words():
    work_of_a_word = importlib.import_module("vecsmith.bench.bench_skipgram").work_of_a_word
    given = {"dim": 10, "window": 5, "negative": 5}
    skipgram = work_of_a_word(0.5, 30, 100, cbow=False, **given)
    # Six words of the window, six rows each: a product, two additions.
    assert skipgram.operations == 0.5 * 6 * 6 * 3 * 2 * 10
    assert skipgram.bytes == 4 + 2 * 2 * 30 * 10 * 4 / 100
    cbow = work_of_a_word(0.5, 30, 100, cbow=True, **given)
    assert cbow.operations == 0.5 * (6 * 3 * 2 * 10 + 2 * 6 * 10)


def test_the_work_of_factorizations():
    als = importlib.import_module("vecsmith.bench.bench_als_solve")
    sgd = importlib.import_module("vecsmith.bench.bench_factor_sgd")
    matrix = sparse.csr_matrix(np.eye(3, 5))  # 3 cells, 8 rows and columns
    exact = als.work_of(matrix, 6, "cholesky", iterations=2)
    assert exact.bytes == 2 * (2 * 3 * 8 + 2 * 8 * 6 * 4)
    assert exact.operations == 2 * (8 * 36 + 6 * (36 + 12) + 8 * (72 + 72))
    assert als.work_of(matrix, 6, "cg").operations == 8 * 36 + 4 * (8 * 72 + 6 * 24)
    assert sgd.work_of(matrix, 6, bpr=False).operations == 3 * 10 * 6
    assert sgd.work_of(matrix, 6, bpr=True).bytes == 3 * 8 + 2 * 4 * 8 * 7


def test_the_work_of_products(monkeypatch):
    spmm = importlib.import_module("vecsmith.bench.bench_spmm")
    hals = importlib.import_module("vecsmith.bench.bench_hals_sweep")
    cosine = importlib.import_module("vecsmith.bench.bench_cosine_topk")
    rnn = importlib.import_module("vecsmith.bench.bench_rnn")
    matrix = sparse.random(7, 9, 0.4, "csr", rng=0)
    work = spmm.Problem(matrix, 4, "float64", 1).work()
    assert (work.operations, work.dtype) == (2 * matrix.nnz * 4, "float64")
    places = 4 * (8 + matrix.nnz)
    assert work.bytes == places + 8 * (matrix.nnz + (7 + 9) * 4)
    monkeypatch.setattr(hals, "ROWS", 11)
    work = hals.Problem(4, "float32", 1).work()
    assert (work.bytes, work.operations) == (3 * 11 * 4 * 4, 2 * 11 * 4 * 4)
    work = cosine.Shape(100, 8, 5).work(3)
    assert (work.bytes, work.operations) == (4 * 105 * 8 + 12 * 15, 2 * 100 * 8 * 5)
    problem = rnn.Problem("GRU", rnn.Shape(3, 5, 2, 7))
    parameters = 15 * (3 + 5 + 2)
    work = rnn.work_of(problem, backward=False)
    assert (work.bytes, work.operations) == (4 * (parameters + 14 * 8), 2 * 14 * 15 * 8)
    both = rnn.work_of(problem, backward=True)
    assert (both.bytes, both.operations) == (2 * work.bytes, 3 * work.operations)


# --- every operator -------------------------------------------------------------------------------


def test_the_command_has_every_operator():
    assert set(command.OPERATORS) == set(ops.registry())


@pytest.mark.parametrize("operator", command.OPERATORS)
def test_an_operator_offers_groups(operator, tmp_path, monkeypatch):
    monkeypatch.setattr(_peers, "usable", lambda name: False)
    module = importlib.import_module(f"vecsmith.bench.bench_{operator}")
    jobs = module.offered(1, tmp_path)
    labels = [job.label for job in jobs]
    assert len(set(labels)) == len(labels)
    assert 1 <= sum(job.quick for job in jobs) < len(jobs)


def test_real_groups_agree_and_have_their_work(tmp_path, monkeypatch):
    """Small ones; the others are measured by hand."""
    monkeypatch.setattr(roofline, "measure", lambda *_: ROOF)
    monkeypatch.setattr(_peers, "usable", lambda name: name == "scikit-learn")
    hals = importlib.import_module("vecsmith.bench.bench_hals_sweep")
    monkeypatch.setattr(hals, "ROWS", 200)
    als = importlib.import_module("vecsmith.bench.bench_als_solve")
    peers = importlib.import_module("vecsmith.bench.als_peers")
    sgd = importlib.import_module("vecsmith.bench.bench_factor_sgd")
    skipgram = importlib.import_module("vecsmith.bench.bench_skipgram")
    cosine = importlib.import_module("vecsmith.bench.bench_cosine_topk")
    matrix = als.Shape("tiny", 200, 150, 3000, 1.0).matrix
    ratings = sgd.made(400, 250, 25_000)
    words = skipgram.Shape("tiny", rows=300, dim=8, tokens=2000, reference_tokens=20)
    for made in (
        hals.group(8, "float32", 1),
        als.group("tiny", matrix, 8, 1),
        peers.likes("tiny", matrix, 8, 1),
        sgd.ratings("tiny", lambda: ratings, 8, 1, ""),
        skipgram.group(words, 1, tmp_path),
        cosine.search_group(cosine.Shape(500, 16, 20), 3, 1),
    ):
        record = run(made, 1, warmup=False, quiet=True)
        assert "ratios" in record, (made.name, record["agreement"])
        assert "failed" not in record
        bounded = [entry for entry in record["entries"].values() if "of_roofline" in entry]
        assert len(bounded) == len(made.work) > 0


# --- peers ----------------------------------------------------------------------------------------


@pytest.fixture
def fresh_peers(monkeypatch):
    """Nothing is known of the peers, before and after."""

    def forget() -> None:
        _peers.state.cache_clear()
        _peers.usable.cache_clear()

    monkeypatch.setattr(_peers, "_BESIDE_TORCH", {})
    forget()
    yield
    forget()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raise ImportError('libomp.so: no such file')", "broken: ImportError: libomp.so: no "),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ends the process with signal"),
        ("import os; os._exit(3)", "broken: status 3"),
        ("import time; time.sleep(60)", "its import takes over"),
        ("", "installed"),
    ],
    ids=["raises", "crashes", "exits", "hangs", "works"],
)
def test_a_peer_that_is_there(fresh_peers, tmp_path, monkeypatch, text, expected):
    (tmp_path / "implicit.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "implicit", raising=False)
    if expected.startswith("its import takes"):
        monkeypatch.setattr(_peers, "_IMPORT_SECONDS", 0.1)
    assert expected in _peers.state("implicit")
    assert _peers.usable("implicit") is (expected == "installed")
    named = {peer.name: state for peer, state in _peers.absent(["als_solve"])}
    assert ("implicit" in named) is (expected != "installed")


def test_a_peer_that_breaks_beside_torch_only(fresh_peers, tmp_path, monkeypatch):
    (tmp_path / "implicit.py").write_text(
        "import sys\nif 'torch' in sys.modules: raise OSError('two runtimes')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "implicit", raising=False)
    assert not _peers.usable("implicit")
    named = {peer.name: state for peer, state in _peers.absent(["factor_sgd"])}
    assert named["implicit"] == "broken: OSError: two runtimes"


def test_peers_that_are_programs(fresh_peers, tmp_path, monkeypatch):
    monkeypatch.delenv("VECSMITH_LIBMF", raising=False)
    assert _peers.state("LIBMF") == "missing"
    _peers.state.cache_clear()
    monkeypatch.setenv("VECSMITH_LIBMF", str(tmp_path / "libmf.so"))
    assert _peers.state("LIBMF").startswith("broken: VECSMITH_LIBMF names no file")
    _peers.state.cache_clear()
    (tmp_path / "libmf.so").touch()
    assert _peers.state("LIBMF") == "installed"


# --- pictures -------------------------------------------------------------------------------------


def record_of(n: int, ratios: list[tuple[str, float]], **more) -> dict:
    machine = {"processor": "A processor", "threads": 2, "isa": "avx2", "versions": {}}
    made = [
        {"ours": "vecsmith", "other": other, "median": m, "q1": 0.9 * m, "q3": 1.2 * m}
        for other, m in ratios
    ]
    return {"name": f"group_{n}", "machine": machine, "ratios": made, **more}


def test_a_picture_of_many_ratios(tmp_path):
    pytest.importorskip("matplotlib")
    plots = importlib.import_module("vecsmith.bench._plots")
    records = [
        record_of(n, [("torch", 0.7 + n), ("a peer of a long name", 3.0 * n + 0.2)],
                  operator=("rnn", "spmm", "als_solve")[n % 3], label=f"case {n} of some words")
        for n in range(15)
    ]  # fmt: skip
    records.append({"name": "red", "operator": "rnn"})  # no ratios
    for name in ("a.png", "a.svg"):
        plots.ratio_bars(records, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text.count("case 3 of some words") >= 2
    order = [median for _, bars in sorted(plots._groups(records).items()) for _, median in bars]
    assert len(order) == 30
    for bars in plots._groups(records).values():
        medians = [ratio["median"] for _, ratio in bars]
        assert medians == sorted(medians, reverse=True)


def test_the_reference_is_left_out_beside_peers():
    plots = importlib.import_module("vecsmith.bench._plots")
    both = record_of(1, [("reference", 500.0), ("gensim", 9.0)], label="a")
    alone = record_of(2, [("reference", 20.0)], label="b")
    (bars,) = plots._groups([both, alone]).values()
    assert [label for label, _ in bars] == ["b  vs  reference", "a  vs  gensim"]


def test_pictures_that_cannot_be(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    plots = importlib.import_module("vecsmith.bench._plots")
    with pytest.raises(ValueError, match="expected records with ratios; got none"):
        plots.ratio_bars([record_of(1, [])], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"expected a path that ends in \.png"):
        plots.ratio_bars([record_of(1, [("x", 2.0)])], tmp_path / "a.txt")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install 'vecsmith"):
        plots.ratio_bars([record_of(1, [("x", 2.0)])], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# --- installed ------------------------------------------------------------------------------------


def test_a_checkout_keeps_its_results_and_an_installed_copy_its_folder(tmp_path, monkeypatch):
    assert ROOT.resolve() == _runner.ROOT
    assert ROOT.resolve() / "bench" / "results" == _runner.RESULTS
    library = tmp_path / "library"
    shutil.copytree(
        ROOT / "bench",
        library / "installed" / "bench",
        ignore=shutil.ignore_patterns("results", "*.cpp", "__pycache__"),
    )
    (library / "installed" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(library))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    runner = importlib.import_module("installed.bench._runner")
    assert runner.ROOT is None
    written = runner.write({"name": "x"}).resolve()
    assert written.is_relative_to(tmp_path / "vecsmith-bench")
    ours = importlib.import_module("installed.bench._ours")
    assert tmp_path / "cache" / "vecsmith" / "bench" == ours.CACHE
    bag = importlib.import_module("installed.bench.bench_embedding_bag")
    with pytest.raises(runner.Skipped, match="not part of a wheel"):
        bag.probe()
    curves = importlib.import_module("installed.bench.word2vec_curves")
    assert library not in curves.PICTURE.resolve().parents
    for name in [name for name in sys.modules if name.split(".")[0] == "installed"]:
        monkeypatch.delitem(sys.modules, name)


def test_groups_are_made_without_pytest():
    """As beside a wheel."""
    program = (
        "import sys, importlib\n"
        "for name in ('pytest', 'pytest_benchmark', 'matplotlib', 'hypothesis', 'gensim'):\n"
        "    sys.modules[name] = None\n"
        "from vecsmith.bench import command\n"
        "for name in command.OPERATORS:\n"
        "    module = importlib.import_module(f'vecsmith.bench.bench_{name}')\n"
        "    tests = [t for t in vars(module) if t.startswith('test_')]\n"
        "    assert tests and all(callable(getattr(module, t)) for t in tests), tests\n"
        "print('made')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr
