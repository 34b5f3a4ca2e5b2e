"""What every test of an operator gets: cases from the registry (backend x dtype x ISA level),
NaN-poisoned allocation, seeds, the tolerance rule, and skips that are counted.

* A test in ``tests/test_<op>*.py`` that takes an argument ``operator_case`` runs once for each
  :class:`OperatorCase` of that operator, at that case's ISA level. Narrow it with
  ``@pytest.mark.cases(backend="native", dtype=torch.float32)``.
* In those files ``torch.empty`` and its relatives return NaN (or a large odd integer), so that an
  output that is never written is seen.
* ``assert_close_to_reference`` is the tolerance rule of the house.
"""

from __future__ import annotations

import importlib.util
import math
import os
import random
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

# Helpers that assert: a failure in one shows its values, as in a test.
pytest.register_assert_rewrite("plain_corpus", "command_result")

from command_result import Result  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
# Of kernels that a test compiles by itself.
AVX512_FLAGS = [f"-m{name}" for name in ("avx2", "fma", "f16c", "bmi2")]
AVX512_FLAGS += [f"-mavx512{name}" for name in ("f", "bw", "dq", "vl", "cd")]
COMPILE_FLAGS = ["-std=c++17", "-fPIC", "-Wno-unknown-pragmas", "-Wno-psabi"]
COMPILE_FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
NATIVE_LEVELS = ("base", "avx2", "avx512", "avx512_bf16", "amx")
_DEVICES = {
    **dict.fromkeys(("native", "torch", "reference"), "cpu"),
    **dict.fromkeys(("cuda", "triton"), "cuda"),
}


@dataclass(frozen=True)
class OperatorCase:
    """One way to run an operator in a test.

    operator, backend: names of the registry; device: where its tensors live; dtype: of its tables;
    isa: the level of the native kernels ("" for other backends).
    """

    operator: str
    backend: str
    device: str
    dtype: torch.dtype
    isa: str = ""

    def __str__(self) -> str:
        parts = [self.backend, str(self.dtype).removeprefix("torch."), self.isa]
        return "-".join(part for part in parts if part)


def placed(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A tensor on a device with the strides that it has, and with what lies between its numbers:
    ``to`` would leave that out."""
    if tensor.device.type == torch.device(device).type:
        return tensor
    storage = tensor.untyped_storage()
    count = storage.nbytes() // tensor.element_size()
    whole = torch.tensor([], dtype=tensor.dtype).set_(storage, 0, (count,), (1,)).to(device)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def operator_cases(operator: str) -> list:
    """The cases of an operator as pytest parameters, marked ``gpu`` and ``triton`` where they are;
    levels that this machine cannot run are skipped by name, not left out."""
    from vecsmith import _native, ops

    parameters = []
    for backend in ops.registry()[operator].backends:
        levels = NATIVE_LEVELS if backend.name == "native" else ("",)
        device = _DEVICES[backend.name]
        marks = []
        if backend.name == "triton":
            marks.append(pytest.mark.triton)
            if interpreted():
                device = "cpu"
        if device == "cuda":
            marks.append(pytest.mark.gpu)
        for dtype in backend.dtypes:
            for isa in levels:
                skip = []
                if isa and isa not in _native.isa_levels():
                    skip = [pytest.mark.skip(reason=f"no {isa} on this machine")]
                case = OperatorCase(operator, backend.name, device, dtype, isa)
                parameters.append(pytest.param(case, id=str(case), marks=[*marks, *skip]))
    return parameters


def _operator_of(path: Path) -> str | None:
    """The operator that a test file is about: the longest stem with test_<op>*.py."""
    from vecsmith import ops

    stem = path.stem.removeprefix("test_")
    names = [name for name in ops.registry() if stem == name or stem.startswith(name + "_")]
    return max(names, key=len, default=None)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "cases(**fields): keep only the operator cases with these values (or one of a tuple)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "operator_case" not in metafunc.fixturenames:
        return
    operator = _operator_of(Path(metafunc.definition.path))
    if operator is None:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: operator_case is for files named tests/test_<op>*.py"
        )
    parameters = operator_cases(operator)
    for mark in metafunc.definition.iter_markers(name="cases"):
        parameters = [
            p
            for p in parameters
            if all(
                getattr(p.values[0], k) in (v if isinstance(v, tuple) else (v,))
                for k, v in mark.kwargs.items()
            )
        ]
    if not parameters:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: no operator case is left to run")
    metafunc.parametrize("operator_case", parameters, indirect=True)


@pytest.fixture
def operator_case(request: pytest.FixtureRequest) -> Iterator[OperatorCase]:
    """The operator case of this run; the native kernels are at its ISA level meanwhile."""
    value = request.param
    if not value.isa:
        yield value
        return
    from vecsmith import _native

    before = _native.isa_level()
    _native.set_isa_level(value.isa)
    try:
        yield value
    finally:
        _native.set_isa_level(before)


# --- Skips that are counted. ----------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu, soak = torch.cuda.is_available(), "soak" in (config.option.markexpr or "")
    kept, dropped = [], []
    for item in items:
        if item.get_closest_marker("soak") and not soak:
            dropped.append(item)
            continue
        kept.append(item)
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        elif item.get_closest_marker("triton") and not gpu and not interpreted():
            item.add_marker(
                pytest.mark.skip(reason="no CUDA device; `make test-triton` interprets these")
            )
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [
        str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in terminalreporter.stats.get("skipped", [])
    ]
    missing = sum("no CUDA device" in reason for reason in reasons)
    if missing:
        terminalreporter.write_line(f"{missing} GPU cases skipped: no CUDA device", yellow=True)


# --- CUDA kernels without a GPU. ------------------------------------------------------------------


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The module _cuda with its kernels built for the host, against tests/cuda_emulation."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    assert compiler, "no C++ compiler"
    import pybind11

    emulation = ROOT / "tests" / "cuda_emulation"
    folder = tmp_path_factory.mktemp("cuda_emulation")
    library = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [emulation, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += [f"-I{path}" for path in include]
    kernel_flags = ["-O1", "-fno-strict-aliasing", "-x", "c++"]
    objects = []
    for source, extra in [
        *((path, kernel_flags) for path in sorted((ROOT / "csrc/cuda").glob("*.cu"))),
        (ROOT / "csrc/cuda/module.cpp", ["-O0", "-fvisibility=hidden"]),
        (emulation / "emulation.cpp", ["-O1"]),
    ]:
        objects.append(str(folder / (source.name + ".o")))
        command = [compiler, *flags, *extra, "-c", str(source), "-o", objects[-1]]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [compiler, "-shared", *objects, "-o", str(library)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- Seeds, poison, leftovers. --------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (for libraries that draw from the global generator)
    torch.manual_seed(0)


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        tensor.fill_(float("nan"))
    elif tensor.dtype == torch.bool:
        tensor.fill_(True)
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max - 42)
    return tensor


@pytest.fixture
def poisoned_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty, empty_like, empty_strided and Tensor.new_empty hand out NaN."""

    def poisoning(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate(*args, **kwargs):
            with torch.no_grad():
                return _poison(function(*args, **kwargs))

        return allocate

    for holder, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(holder, name, poisoning(getattr(holder, name)))


@pytest.fixture(autouse=True)
def _poisoned_in_operator_tests(request: pytest.FixtureRequest) -> None:
    if _operator_of(Path(request.node.path)) is not None:
        request.getfixturevalue("poisoned_allocation")


def _children() -> dict[int, str]:
    """Processes that this one started and that still run: id -> command line (Linux; else none)."""
    found = {}
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            ids = task.read_text().split()
        except OSError:
            continue
        for process in ids:
            try:
                command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if command.strip():  # a zombie has none
                found[int(process)] = command.decode(errors="replace").strip()
    return found


# Helpers that Python and torch keep alive until the interpreter ends.
_HELPERS = ("multiprocessing.resource_tracker", "torch/_inductor/compile_worker", "forkserver")


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = set(_children())
    yield
    left = {
        process: command
        for process, command in _children().items()
        if process not in before and not any(helper in command for helper in _HELPERS)
    }
    assert not left, f"the tests left processes running: {left}"


# --- The tolerance rule. --------------------------------------------------------------------------


def assert_close_to_reference(
    actual: torch.Tensor,
    plain: torch.Tensor,
    reference: torch.Tensor,
    *,
    what: str = "result",
) -> None:
    """The error of ``actual`` is at most twice that of plain torch at the same dtype, both measured
    against fp64.

    actual: what the backend computed, of some dtype; plain: the reference at that dtype;
    reference: the reference in fp64. All of one shape. Errors are largest absolute errors. One
    rounding at the scale of the reference is allowed at least, since plain torch may round nothing.
    NaN or infinity anywhere in ``actual`` where the reference is finite fails.
    """
    assert reference.dtype == torch.float64, f"expected an fp64 reference; got {reference.dtype}"
    assert actual.shape == reference.shape == plain.shape, (
        f"{what}: expected shape {tuple(reference.shape)}; "
        f"got {tuple(actual.shape)} (plain torch: {tuple(plain.shape)})"
    )
    assert actual.dtype == plain.dtype, f"{what}: expected {plain.dtype}; got {actual.dtype}"
    if not reference.numel():
        return
    reference = reference.cpu()
    error = (actual.cpu().double() - reference).abs()
    allowed = 2 * float((plain.cpu().double() - reference).abs().max())
    if not math.isnan(allowed):
        allowed = max(allowed, torch.finfo(plain.dtype).eps / 2 * float(reference.abs().max()))
    worst = float(error.max())  # NaN wins a max, and fails the comparison below
    assert worst <= allowed, (
        f"{what}: error {worst:.3g} against fp64, at element {int(error.argmax())}; plain torch at "
        f"{plain.dtype} allows {allowed:.3g}"
    )


@pytest.fixture(name="assert_close_to_reference")
def _assert_close_to_reference() -> Callable[..., None]:
    return assert_close_to_reference


@pytest.fixture(scope="session")
def emulated_tiles(tmp_path_factory):
    """The native module's operators that multiply by tiles, with emulated ones."""
    native = pytest.importorskip("vecsmith._native")
    if "avx512" not in native.isa_levels():
        pytest.skip("tiles have vectors as wide as AVX-512's")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    assert compiler, "no C++ compiler"
    import pybind11

    folder = tmp_path_factory.mktemp("tile_emulation")
    library = folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-O1", *COMPILE_FLAGS, *(f"-I{path}" for path in include)]
    kernel = [*AVX512_FLAGS, "-DVECSMITH_LEVEL=base"]
    kernel.append(f'-DVECSMITH_EMULATED_TILES="{ROOT / "tests/tile_emulation/tiles.h"}"')
    sources = [(ROOT / "csrc/cpu/isa.cpp", [])]
    for operator in ("rnn", "cosine_topk"):
        kernels = sorted((ROOT / "csrc/cpu").glob(f"{operator}*.kernel.cpp"))
        sources += [(path, kernel) for path in kernels]
        for part in ("cpu", "bind"):
            sources.append((ROOT / "csrc" / part / f"{operator}.cpp", ["-fopenmp"]))
    sources.append((ROOT / "tests/tile_emulation/module.cpp", []))
    objects = []
    for source, more in sources:
        objects.append(str(folder / f"{source.parent.name}_{source.name}.o"))
        command = [compiler, *flags, *more, "-c", str(source), "-o", objects[-1]]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    command = [compiler, "-shared", "-fopenmp", *objects, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("_native", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def vecsmith(capsys) -> Callable[..., Result]:
    """Runs the command in this process."""
    from vecsmith.cli import main

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return Result(end.value.code, *capsys.readouterr())

    return run
