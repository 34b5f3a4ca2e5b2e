"""The rules of the house: every operator has its room on each floor, layers import downwards,
kernels stay free of the STL, public names are documented, and the tools that check it can fail."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import platform
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import vecsmith
from conftest import assert_close_to_reference, operator_cases
from vecsmith import ops

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "vecsmith"
OPERATORS = sorted(ops.registry())
PUBLIC_MODULES = (
    *("vecsmith", "vecsmith.nn", "vecsmith.optim", "vecsmith.ops"),
    *("vecsmith.data", "vecsmith.io", "vecsmith.eval", "vecsmith.low_rank"),
)


def tool(name: str) -> types.ModuleType:
    """A script of tools/ as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def tracked() -> list[Path]:
    """The files of this repository: what git tracks or would; without git all but build folders."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    skipped = {".git", ".venv", "build", "dist", "site", "demo"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not skipped & set(p.parts)]


# --- One operator, one name, one room on each floor. ----------------------------------------------


def rooms(operator: ops.Operator) -> list[Path]:
    """The files that an operator must have."""
    name, backends = operator.name, {backend.name for backend in operator.backends}
    files = [PACKAGE / "ops" / f"{name}.py", PACKAGE / "reference" / f"{name}.py"]
    files += [ROOT / "tests" / f"test_{name}.py", ROOT / "bench" / f"bench_{name}.py"]
    if "native" in backends:
        files += [ROOT / "csrc/cpu" / f"{name}.kernel.cpp", ROOT / "csrc/bind" / f"{name}.cpp"]
    if "triton" in backends:
        files.append(ROOT / "kernels" / f"{name}.py")
    if "cuda" in backends:
        files.append(ROOT / "csrc/cuda" / f"{name}.cu")
    return files


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_has_its_room_on_each_floor(name):
    missing = [str(f.relative_to(ROOT)) for f in rooms(ops.registry()[name]) if not f.is_file()]
    assert not missing


def test_every_kernel_belongs_to_an_operator():
    """By its name: the operator's, that of one of its functions (a second form with a kernel of its
    own), or the operator's and a part of its work (rnn_products)."""
    found = {p.name.split(".")[0] for p in (ROOT / "csrc/cpu").glob("*.kernel.cpp")}
    for folder in (ROOT / "csrc/cuda", ROOT / "kernels", PACKAGE / "ops", PACKAGE / "reference"):
        for pattern in ("*.cu", "*.py"):
            found |= {p.stem for p in folder.glob(pattern) if not p.name.startswith("_")}
    functions = {name for operator in ops.registry().values() for name in operator.functions}
    parts = {name for name in found if any(name.startswith(f"{o}_") for o in OPERATORS)}
    assert set(OPERATORS) <= found <= set(OPERATORS) | functions | parts


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_registered_with_torch_and_has_a_reference(name):
    operator = ops.registry()[name]
    reference = importlib.import_module(f"vecsmith.reference.{name}")
    assert operator.backend("reference").device == "any"
    for function in operator.functions:
        assert callable(getattr(ops, function))
        assert callable(getattr(reference, function))
        assert hasattr(torch.ops.vecsmith, function)
        registered = f"vecsmith::{function}"
        fake = torch._library.simple_registry.singleton.find(registered).fake_impl.kernel
        assert fake or torch._C._dispatch_has_kernel_for_dispatch_key(registered, "Meta")


@pytest.mark.parametrize("name", OPERATORS)
def test_the_cases_of_an_operator_cover_backends_dtypes_and_levels(name):
    cases = [parameter.values[0] for parameter in operator_cases(name)]
    operator = ops.registry()[name]
    for backend in operator.backends:
        for dtype in backend.dtypes:
            assert any(c.backend == backend.name and c.dtype == dtype for c in cases)
    cmake = (ROOT / "CMakeLists.txt").read_text()
    levels = {"base", *re.search(r"APPEND ISA_LEVELS ([\w ]+)\)", cmake).group(1).split()}
    assert {c.isa for c in cases if c.backend == "native"} == levels


# --- Layers. --------------------------------------------------------------------------------------

# Each imports only from those below it; _native (the readers) may be called by data, io and ops.
_RANKS = "reference kernels _native _cuda | ops | data io eval | nn optim | models plot | cli"
LAYERS = {name: rank for rank, row in enumerate(_RANKS.split("|")) for name in row.split()}
BACKENDS = {"_native", "_cuda", "reference", "kernels"}


def imports_of(path: Path) -> set[str]:
    """The layers of vecsmith that a file imports ("" for the package itself)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "vecsmith":
                layer = parts[1] if len(parts) > 1 else ""
                # "from vecsmith import Word2Vec" is the layer of the models.
                found.add(layer if layer in LAYERS or not layer else "models")
    return found


@pytest.mark.parametrize(
    "path",
    sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name == "plot.py"),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_layers_import_downwards(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = imports_of(path) - {layer, ""}
    if layer == "reference":
        assert not imported
    above = {name for name in imported if LAYERS[name] > LAYERS[layer]}
    assert not above
    if layer in ("cli", "models", "nn", "optim", "eval", "plot"):
        assert not imported & BACKENDS, "call ops/, never a backend"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "csrc").rglob("*.*")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_native_code_is_free_of_libtorch(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", text)
    if "/bind/" not in path.as_posix() and "/cuda/" not in path.as_posix():
        assert "pybind11" not in text
        assert "Python.h" not in text


# --- Kernels: no STL, no weak symbols. ------------------------------------------------------------

C_HEADERS = {
    *("stdint.h", "stddef.h", "string.h", "math.h", "time.h", "immintrin.h", "arm_neon.h"),
    *("cstdint", "cstddef", "cstring", "cmath"),
}


def included(path: Path) -> tuple[set[str], set[Path]]:
    """(system headers, our own headers) of a C++ file."""
    text = path.read_text(encoding="utf-8")
    own = {ROOT / "csrc" / name for name in re.findall(r'#include\s*"([^"]+)"', text)}
    return set(re.findall(r"#include\s*<([^>]+)>", text)), own


@pytest.mark.parametrize(
    "kernel", sorted((ROOT / "csrc/cpu").glob("*.kernel.cpp")), ids=lambda path: path.name
)
def test_a_kernel_includes_no_stl(kernel):
    waiting, seen, system = {kernel}, set(), set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        headers, own = included(path)
        system |= headers
        waiting |= own - seen
    assert system <= C_HEADERS
    assert "std::" not in re.sub(r"//.*", "", kernel.read_text(encoding="utf-8"))


BAD_KERNEL = """
#include <vector>
namespace vecsmith { namespace avx512 {
float sum(const float* x, int n) {
  std::vector<float> copy;
  for (int i = 0; i < n; ++i) copy.push_back(x[i]);
  float total = 0;
  for (float value : copy) total += value;
  return total;
}
} }
"""
GOOD_KERNEL = """
#include <string.h>
namespace vecsmith { namespace avx512 {
static float twice(float x) { return 2 * x; }
void copy(float* to, const float* from, long n) { memcpy(to, from, n * 4); to[0] = twice(to[0]); }
} }
"""
STRAY_KERNEL = "int counter = 1; namespace vecsmith { namespace avx2 { int f() { return 1; } } }"


def compile_kernel(source: str, folder: Path, level: str) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler is not None, "make test checks for a compiler before it comes here"
    target = folder / f"kernels_{level}.dir" / "csrc" / "bad.kernel.cpp.o"
    target.parent.mkdir(parents=True)
    (folder / "source.cpp").write_text(source)
    flags = ["-mavx512f"] if platform.machine() in ("x86_64", "AMD64") else []
    command = [compiler, "-std=c++17", "-O2", *flags, "-c", str(folder / "source.cpp")]
    subprocess.run([*command, "-o", str(target)], check=True, capture_output=True)
    return target


@pytest.mark.parametrize(
    ("source", "complaints"),
    [
        (BAD_KERNEL, ["weak or unique symbol", "neither of this level nor plain C"]),
        (GOOD_KERNEL, []),
        (STRAY_KERNEL, ["writable data counter", "outside of namespace vecsmith::avx512"]),
    ],
    ids=["vector", "plain", "stray"],
)
def test_the_symbol_check_sees_what_it_must(tmp_path, capsys, source, complaints):
    check_symbols = tool("check_symbols")
    compile_kernel(source, tmp_path, "avx512")
    count, found = check_symbols.check([tmp_path])
    assert count == 1
    for complaint in complaints:
        assert any(complaint in problem for problem in found), found
    assert bool(found) == bool(complaints)
    assert check_symbols.main([str(tmp_path)]) == (1 if complaints else 0)


def test_the_symbol_check_fails_where_nothing_was_built(tmp_path, capsys):
    assert tool("check_symbols").main([str(tmp_path)]) == 2
    assert "build first" in capsys.readouterr().err


def test_the_kernels_of_this_build_pass_the_symbol_check():
    check_symbols = tool("check_symbols")
    count, found = check_symbols.check([ROOT / "build"])
    if not count:
        pytest.skip("not built in this tree")
    assert not found


# --- Public names. --------------------------------------------------------------------------------


def public_names() -> list[tuple[str, object]]:
    """(dotted name, object) of everything that a public module lists in __all__."""
    found = []
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            found.append((f"{module_name}.{name}", getattr(module, name)))
    return found


def test_public_names_have_docstrings():
    bare = []
    for name, thing in public_names():
        if isinstance(thing, types.ModuleType | str):
            continue
        if not inspect.getdoc(thing):
            bare.append(name)
        if inspect.isclass(thing):
            # Also the parts of a class that are rooms of their own (KeyedVectors' neighbors).
            parts = [part for part in thing.__mro__ if part.__module__.startswith("vecsmith.")]
            for attribute, value in (item for part in parts for item in vars(part).items()):
                if attribute.startswith("_"):
                    continue
                function = getattr(value, "__func__", value)
                described = callable(function) or isinstance(value, property)
                if described and not inspect.getdoc(value):
                    bare.append(f"{name}.{attribute}")
    # gensim's names that say the same as their neighbor are still said here.
    assert not bare


def test_public_names_are_in_the_documentation():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    directives = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    absent = []
    for name, thing in public_names():
        last = name.rsplit(".", 1)[1]
        if last.startswith("__"):
            continue
        if isinstance(thing, types.ModuleType):
            name = thing.__name__
        if not any(name == d or name.startswith(d + ".") for d in directives):
            absent.append(name)
    assert not absent


def test_the_top_level_is_lazy():
    program = (
        "import sys, vecsmith; "
        "bad = [m for m in ('scipy', 'matplotlib', 'sklearn', 'gensim', 'triton', 'typer', "
        "'pyarrow', 'pandas') if m in sys.modules]; sys.exit(' '.join(bad) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"import vecsmith imports {done.stderr}"
    for name in vecsmith.__all__:
        assert getattr(vecsmith, name) is not None


# --- Files of the repository. ---------------------------------------------------------------------


def test_no_path_of_one_machine_is_in_the_repository():
    # Built from pieces, so that this file does not match itself.
    private = re.compile(
        "(?<![A-Za-z0-9_.~-])/(?:" + "|".join(("home", "root", "work", "Users")) + ")/"
    )
    found = []
    for path in tracked():
        if path.suffix in (".png", ".gz", ".bin", ".zst"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in private.finditer(text)]
    assert not found


def test_every_requirement_is_pinned():
    requirements = tool("requirements")
    pyproject = requirements.tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = ["build", *pyproject["project"]["optional-dependencies"]]
    wanted = requirements.requirements(pyproject, extras)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {re.split("==", line)[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert "torch==2.13.0" in lines
    names = {re.match(r"[\w-]+", r).group().lower().replace("_", "-") for r in wanted}
    assert names <= pins
    assert {"numpy", "pytest", "gensim", "matplotlib", "ruff", "cmake"} <= names
    with pytest.raises(SystemExit, match="expected an extra among"):
        requirements.requirements(pyproject, ["nonsense"])


def test_make_has_its_targets():
    text = (ROOT / "Makefile").read_text()
    for target in (
        *("help", "demo", "test", "bench", "gpu", "lint", "docs", "build", "soak", "fuzz"),
        *("wheel-check", "symbols", "clean"),
    ):
        assert re.search(rf"^{target}:.*## \S", text, re.MULTILINE), target
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111
    assert "make test" in run.read_text()


def test_what_is_generated_from_the_results_says_what_they_say():
    page = tool("make_benchmark_page")
    made = page.pages()
    assert {ROOT / "README.md", page.PAGE, ROOT / "docs/operators/rnn.md"} <= set(made)
    assert set((ROOT / "docs/benchmarks").glob("*.md")) <= set(made)
    wrong = [p.name for p, text in made.items() if p.read_text(encoding="utf-8") != text]
    wrong += [path.name for path in page.headlines.stale_pictures(page.read())]
    assert not wrong, "run tools/make_benchmark_page.py"


def test_records_of_curves_and_of_gpus_find_their_page(tmp_path):
    page = tool("make_benchmark_page")
    machine = {
        "processor": "P",
        "cpus": 2,
        "isa": "avx2",
        "python": "3",
        "versions": {"torch": "2"},
    }
    common = {"title": "T", "unit": "ns", "rounds": 3, "date": "2026-01-01", "agreement": []}
    point = {"x": 10, "min": 1.5}
    curve = {"op": "rnn", "axis": "hidden", "grows": "units"}
    curve["curves"] = {"1 thread": [point, point]}
    (tmp_path / "m").mkdir()
    for record in (
        {"name": "curve_rnn_hidden", "machine": machine, **common, **curve},
        {"name": "gpu_rnn_lstm", "machine": {**machine, "gpu": "G"}, **common},
        {"name": "unheard_of", "machine": machine, **common},
    ):
        (tmp_path / "m" / f"{record['name']}.json").write_text(json.dumps(record))
    made = {path.name: text for path, text in page.pages(tmp_path).items()}
    assert "| units | 10 .. 10 | ns | 1 thread | 1.5 | 1.5 | 1.5 |" in made["curves.md"]
    assert "bench/gpu.py" in made["recurrent.md"]
    assert "### T" in made["others.md"]
    assert "curve" not in made["others.md"]
    assert "not yet measured" not in made["benchmarks.md"]


def test_a_figure_in_the_documentation_is_on_a_benchmark_page():
    pages = [ROOT / "docs/benchmarks.md", *(ROOT / "docs/benchmarks").glob("*.md")]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    rows = "\n".join(line for line in lines if line.startswith("|"))
    for name in ("README.md", "docs/index.md", "docs/word2vec.md", "docs/skipgram.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        # The bars of the README's table are written as on the pages, but for the sign.
        text = re.sub(r"\| (≤ )?[\d.]+x(, \*\*missed\*\*)? \|", "||", text)
        for figure in re.findall(r"\b\d+(?:\.\d+)?(?:x\b|M words/s)", text):
            assert figure.split(" ")[0] in rows or figure == "1x", f"{name} claims {figure}"


def test_a_red_check_or_a_missing_record_leaves_no_ratio_in_the_readme():
    headlines = tool("headlines")
    line = headlines.HEADLINES[0]
    ratio = {"what": line.ratio, "median": 12.0, "min": 11.0, "max": 13.0}
    record = {
        "name": line.record,
        "rounds": 3,
        "machine": {},
        "path": "x.json",
        "agreement": [{"what": "same", "passed": True}],
        "ratios": [ratio],
    }
    row = headlines.readme_table([[record]])[2]
    assert "**12.0x** | 11.00 .. 13.00, 3 rounds |" in row
    red = {**record, "agreement": [{"what": "same", "passed": False}]}
    for machines in ([[red]], [[]]):
        row = headlines.readme_table(machines)[2]
        assert "12.0x" not in row
        assert headlines.NOT_MEASURED in row
    table = headlines.operator_table([[red]], "factor_sgd")
    assert sum(headlines.NOT_MEASURED in line for line in table) == 2
    gpu = {**record, "name": "gpu_factor_sgd_x", "machine": {"gpu": "X"}}
    table = headlines.operator_table([[record], [gpu]], "factor_sgd")
    assert sum(headlines.NOT_MEASURED in line for line in table) == 1
    assert any("12.0x" in line for line in table)
    with pytest.raises(ValueError, match="expected one region"):
        headlines.replaced("nothing", "ratios", [])


def test_the_wheel_check_sees_what_it_must():
    problems = tool("check_wheel").problems
    good = [
        *("vecsmith/py.typed", "vecsmith/kernels/__init__.py", "vecsmith/cli/__init__.py"),
        *("vecsmith/_native.cpython.so", "vecsmith-0.dist-info/licenses/LICENSE"),
    ]
    assert problems(good) == []
    assert any("OpenMP" in p for p in problems([*good, "vecsmith.libs/libgomp-1.so"]))
    assert any("beside" in p for p in problems([*good, "tests/test_x.py"]))
    assert any("_native" in p for p in problems([n for n in good if "_native" not in n]))


# --- The scaffolding itself. ----------------------------------------------------------------------


def test_the_tolerance_rule_can_fail():
    reference = torch.linspace(-2, 2, 101, dtype=torch.float64) ** 3
    plain = reference.bfloat16()
    assert_close_to_reference(plain, plain, reference)
    worst = float((plain.double() - reference).abs().max())
    off = plain.clone()
    off[50] += 4 * worst
    with pytest.raises(AssertionError, match="element 50"):
        assert_close_to_reference(off, plain, reference)
    off[50] = float("nan")
    with pytest.raises(AssertionError, match="element 50"):
        assert_close_to_reference(off, plain, reference)
    with pytest.raises(AssertionError, match="expected shape"):
        assert_close_to_reference(plain[1:], plain, reference)
    with pytest.raises(AssertionError, match=r"expected torch\.bfloat16"):
        assert_close_to_reference(plain.float(), plain, reference)


def test_poisoned_allocation_poisons(poisoned_allocation):
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(torch.zeros(2, dtype=torch.float64)).isnan().all()
    assert torch.zeros(1).new_empty(4).isnan().all()
    assert (torch.empty(3, dtype=torch.int32) > 2**30).all()
    assert torch.empty(0).numel() == 0


@pytest.fixture
def runner(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("bench._runner")


def test_the_bench_runner_interleaves_and_takes_ratios_within_rounds(runner):
    order, values = [], {"a": iter([0, 10, 20, 90]), "b": iter([0, 1, 2, 3])}

    def entry(name):
        def once():
            order.append(name)
            return next(values[name])

        return once

    group = runner.Group(
        name="x",
        title="x",
        unit="words/s",
        entries={"a": entry("a"), "b": entry("b")},
        check=lambda: [runner.Check("same", True)],
        ratios=[runner.Ratio("a / b", "a", "b", bar=5), runner.Ratio("a / c", "a", "c")],
    )
    record = runner.run(group, 3, quiet=True)
    assert order == ["a", "b"] * 4
    (ratio,) = record["ratios"]
    assert (ratio["median"], ratio["min"], ratio["max"]) == (10, 10, 30)
    assert ratio["reached"] is True
    assert record["entries"]["a"]["samples"] == [10, 20, 90]


@pytest.mark.parametrize("checks", [[("good", True), ("bad", False)], []], ids=["red", "none"])
def test_the_bench_runner_refuses_ratios_on_a_red_check(runner, checks, capsys):
    group = runner.Group(
        name="x",
        title="x",
        unit="s",
        entries={"a": lambda: 1.0, "b": lambda: 2.0},
        check=lambda: [runner.Check(*check) for check in checks],
        ratios=[runner.Ratio("a / b", "a", "b")],
        higher_is_better=False,
    )
    record = runner.run(group, 1, warmup=False)
    assert "ratios" not in record
    assert "no ratios" in capsys.readouterr().out
    options = types.SimpleNamespace(no_write=True, json=False)
    assert runner.finish([record], options) == 1


def test_a_bar_from_above_and_from_below(runner):
    above = runner.judge(runner.Ratio("t", "a", "b", bar=1.8, at_least=False), [1.5, 1.7, 2.0])
    assert above["reached"] is True
    below = runner.judge(runner.Ratio("t", "a", "b", bar=1.8), [1.5, 1.7, 2.0])
    assert below["reached"] is False


@pytest.mark.parametrize("name", ["FLOAT", "HIGH", "BF16"])
def test_the_agreement_of_the_rnn_benchmark_can_fail(monkeypatch, name):
    monkeypatch.syspath_prepend(str(ROOT))
    rnn = importlib.import_module("bench._rnn")
    numbers = getattr(rnn, name)
    exact = torch.linspace(-2, 2, 101, dtype=torch.float64) ** 3
    plain = exact.to(numbers.dtype)
    off, lost = plain.clone(), plain.clone()
    off[50] += 0.1
    lost[50] = float("nan")
    for what in ("outputs", "gradients"):
        for found, passes in ((plain, True), (off, False), (lost, False)):
            # The tensor that is wrong is neither the first nor the last.
            given = ([plain, found, plain], [plain] * 3, [exact] * 3, numbers)
            assert rnn.agreement(what, *given).passed is passes


def test_a_ceiling_is_reading_and_multiply_adds_by_the_best_rates(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    rnn = importlib.import_module("bench._rnn")
    monkeypatch.setattr(rnn, "_PRODUCTS", {torch.float32: 1e9, torch.bfloat16: 4e9})
    monkeypatch.setattr(rnn, "_READS", {1000: 1e6})
    assert rnn.Ceiling(2e9).seconds == 2
    assert rnn.Ceiling(2e9, torch.bfloat16, parts=3).seconds == 1.5
    assert rnn.Ceiling(0, weight=1000, reads=10).seconds == 0.01
    even = rnn.Problem("GRU", rnn.Shape(3, 5, 2, 7))
    assert rnn.ceiling(even).flops == 6 * 14 * 15 * 8
    assert rnn.ceiling(even, backward=False).flops == 2 * 14 * 15 * 8
    single = rnn.ceiling(rnn.Problem("GRU", rnn.Shape(3, 5, 1, 7)))
    assert (single.reads, single.weight) == (14, 15 * 5 * 4)
    assert single.flops == 2 * 7 * 15 * (3 * 3 + 5)


def test_pword2vec_rates_are_raw_words(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    peers = importlib.import_module("bench._peers")
    peer = peers.PWord2Vec(Path("x"), Path("y"), 2, 1, raw_words=2_000_000)
    text = (
        "Words in train file: 1000000\n\rAlpha: 0.1  Words/sec: 5.00k\rAlpha: 0  Words/sec: 7.50k"
    )
    assert peer.rate(text) == 15_000
    with pytest.raises(RuntimeError, match="printed no rate"):
        peer.rate("nothing")
