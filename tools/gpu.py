"""`make gpu`: on a machine with a CUDA device builds vecsmith with its _cuda module, runs the tests
that need the device, looks for bad accesses and races with compute-sanitizer, and benchmarks, with
the Python, torch, triton, nvcc, cmake and pybind11 that are there, and without a network.

    make gpu                        everything, in under 8 minutes
    make gpu ARGS="build test"      some parts, by their names
    make gpu ARGS=--rehearse        without a GPU: compiles, interprets, and times nothing

Each part has a number of seconds, and what is left of them goes to those behind it. A part that
fails says so, and the others go on. The exit status is 0 if every part that was asked for has
passed; a part that could not run has not passed. docs/gpu.md is the longer story.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gpu_tests
from gpu_process import ROOT, run, tail

WORK = ROOT / "build" / "gpu"
SITE = WORK / "site"
# Seconds of each part: 460, and the rest of eight minutes for what lies between them.
PARTS = {"build": 130, "test": 170, "sanitize": 60, "bench": 100}
REHEARSED = {"build": 900, "test": 2400, "bench": 300}
_LINES = 25  # of failures that are printed

# A few of each CUDA kernel's: every mode, rows that end early, several blocks.
SANITIZED = [
    *(
        f"tests/test_skipgram_cuda.py::test_gpu_text[{case}]"
        for case in ("sg-ns-window-d7-fixed", "sg-both-pair-d300", "cbow-both-mean-d64-pair")
    ),
    "tests/test_skipgram_cuda.py::test_gpu_pairs[d7-strided]",
    *(
        f"tests/test_rnn_cuda.py::test_gpu_forward_and_gradients[{case}]"
        for case in ("lstm-uneven-", "gru-groups-of-rows-reverse")
    ),
]
# Whose Triton kernels are launched under memcheck, on tiny tables.
INTERPRETED_TWINS = ("skipgram", "embedding_bag", "spmm", "hals_sweep", "factor_sgd")

_PROBE = """
import json, sys
try:
    import torch
except Exception as error:
    print(json.dumps({"why": f"{sys.executable} cannot import torch ({error})"}))
    sys.exit()
found = {"torch": torch.__version__, "cuda": torch.cuda.is_available()}
if found["cuda"]:
    found["name"] = torch.cuda.get_device_name()
    found["capability"] = "%d%d" % torch.cuda.get_device_capability()
try:
    import triton
    found["triton"] = triton.__version__
except Exception as error:
    found["triton"] = None
print(json.dumps(found))
"""


@dataclass
class Outcome:
    """state: "passed", "failed" or "not run"; words: why, or what came of it."""

    part: str
    state: str
    words: str
    seconds: float = 0.0


class Clock:
    """When each of the parts must have ended: what one leaves, the next ones have."""

    def __init__(self, budgets: dict[str, float]) -> None:
        self.end, self.budgets = time.monotonic(), budgets

    def begin(self, part: str) -> None:
        self.end += self.budgets[part]

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def find_nvcc() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [str(Path(home) / "bin") for home in [*homes, "/usr/local/cuda"] if home]
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    return shutil.which(os.environ.get("CUDACXX") or "nvcc", path=path)


def find_cmake() -> str | None:
    beside = str(Path(sys.executable).parent)
    return shutil.which("cmake", path=os.pathsep.join([os.environ.get("PATH", ""), beside]))


def probe() -> dict[str, object]:
    """What torch of this Python says, or {"why": ...}."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"why": f"{sys.executable} takes more than two minutes to import torch"}
    except (IndexError, ValueError):
        return {"why": f"{sys.executable} ends while it imports torch: {done.stderr[-200:]!r}"}


def obstacle(found: dict[str, object]) -> str | None:
    """Why this is no CUDA machine."""
    if "why" in found:
        return str(found["why"])
    if not found["cuda"]:
        return f"torch {found['torch']} of {sys.executable} sees no CUDA device"
    if find_nvcc() is None:
        return "there is no nvcc on the PATH, in CUDACXX or in /usr/local/cuda/bin"
    return None


# --- the parts ------------------------------------------------------------------------------------


class Machine:
    """The parts on a machine with a GPU."""

    def __init__(self, clock: Clock, jobs: int, found: dict[str, object]) -> None:
        self.clock, self.jobs, self.found = clock, jobs, found
        self.env = {
            "PYTHONPATH": os.pathsep.join(
                part
                for part in (str(SITE), str(ROOT / "tools"), os.environ.get("PYTHONPATH"))
                if part
            ),
            "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(WORK / "triton")),
        }

    def built(self) -> bool:
        return any((SITE / "vecsmith").glob("_native*"))

    def build(self) -> tuple[str, str]:
        """Into a folder of its own: that Python may be read-only, and is nobody's to change."""
        cmake, nvcc = find_cmake(), find_nvcc()
        if cmake is None:
            return "failed", f"there is no cmake on the PATH or beside {sys.executable}"
        if importlib.util.find_spec("pybind11") is None:
            return "failed", f"{sys.executable} has no pybind11"
        folder = WORK / f"objects-cp{sys.version_info[0]}{sys.version_info[1]}"
        log = WORK / "build.log"
        for old in folder.glob("_*.so"):
            old.unlink()
        lay_out(SITE)
        pybind = subprocess.run(
            [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True
        ).stdout.strip()
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"),
            *(["-G", "Ninja"] if shutil.which("ninja") else []),
            *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind}"),
            *("-DSKBUILD_PROJECT_VERSION=0", "-DVECSMITH_CUDA=ON"),
            f"-DCMAKE_CUDA_ARCHITECTURES={self.found.get('capability')}-real",
        ]
        env = {"CUDACXX": str(nvcc)}
        status = run(configure, log, seconds=self.clock.left, env=env)
        whole = status == 0
        if status is not None and not whole:  # the processor's module is there all the same
            configure[configure.index("-DVECSMITH_CUDA=ON")] = "-DVECSMITH_CUDA=OFF"
            status = run(configure, log, seconds=self.clock.left, append=True)
        if status == 0:
            # To the end of what can be compiled: one module may be without the other.
            build = [cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]
            build += ["--", "-k", "0"] if (folder / "build.ninja").exists() else ["--", "-k"]
            status = run(build, log, seconds=self.clock.left, append=True)
        for module in folder.glob("_*.so"):
            shutil.copy2(module, SITE / "vecsmith")
        if status is None:
            return "failed", f"out of time; the log is {log}"
        if status != 0 or not whole:
            print(tail(log, 25))
            return "failed", f"cmake or a compiler failed: {log}"
        return self.check_build()

    def check_build(self) -> tuple[str, str]:
        log = WORK / "import.log"
        code = (
            "import sys, vecsmith, vecsmith._native; from vecsmith import _cuda; "
            "print(vecsmith.__file__); print('devices', _cuda.device_count()); "
            "sys.exit(_cuda.device_count() < 1)"
        )
        status = run([sys.executable, "-c", code], log, seconds=60, env=self.env)
        if status != 0:
            print(tail(log))
            return "failed", "it is built, and cannot be imported, or sees no device"
        if str(SITE) not in log.read_text():
            return "failed", "another vecsmith comes before the one that was built (editable?)"
        return "passed", f"_native and _cuda for sm_{self.found.get('capability')}"

    def test(self) -> tuple[str, str]:
        if not self.built():
            return "not run", "nothing is built"
        files = gpu_tests.files_with(ROOT / "tests", "mark.gpu", "operator_case")
        return self.run_tests("test", files, "gpu and not soak", self.jobs, self.env)

    def run_tests(
        self,
        name: str,
        files: list[Path],
        marks: str,
        jobs: int,
        env: dict[str, str],
        **limit: str,
    ) -> tuple[str, str]:
        if importlib.util.find_spec("pytest") is None:
            return "not run", f"{sys.executable} has no pytest"

        def by_clock(command: list[str], log: Path, own: dict[str, str]) -> int | None:
            return run(command, log, seconds=self.clock.left, env=own, append=True)

        found = gpu_tests.run_tests(
            files, marks, jobs=jobs, folder=WORK / name, env=env, run=by_clock, **limit
        )
        for file, why in found.left_out.items():
            print(f"  left out: {file}: {why}")
        for note in found.notes:
            print(f"  {note}")
        for test, why in list(found.failed.items())[:_LINES]:
            print(f"  FAILED {test}: {why}")
        if len(found.failed) > _LINES:
            print(f"  and {len(found.failed) - _LINES} more: see {WORK / name}")
        fine = found.passed and not (found.failed or found.unfinished or found.notes)
        return ("passed" if fine else "failed"), found.words

    def sanitize(self) -> tuple[str, str]:
        """memcheck over the CUDA kernels and a few Triton ones, and racecheck, at the same time."""
        path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(find_nvcc() or "/").parent)])
        tool = shutil.which("compute-sanitizer", path=path)
        if tool is None:
            return "not run", "there is no compute-sanitizer beside nvcc or on the PATH"
        if not self.built():
            return "not run", "nothing is built"
        python = [sys.executable, "-m"]
        tests = [*python, "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
        tests += ["-o", "filterwarnings=default", *SANITIZED]
        twins = [*python, "bench.gpu", "--tiny", "--check", "--ops", *INTERPRETED_TWINS]
        # Blocks that torch keeps for later would hide an access behind the end of a tensor.
        memory = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        # The process is not there for the tool until it has imported torch. Errors with which the
        # driver answers torch and Triton, who ask what it has, are no accesses, and not ours.
        check = [tool, "--launch-timeout", "300", "--error-exitcode", "9"]
        memcheck = [*check, "--report-api-errors", "no", "--tool", "memcheck"]
        jobs: dict[str, tuple[list[str], dict[str, str]]] = {
            "memcheck, CUDA": ([*memcheck, *tests], memory),
            "racecheck, CUDA": ([*check, "--tool", "racecheck", *tests], {}),
            "memcheck, Triton": ([*memcheck, *twins], memory),
        }
        if importlib.util.find_spec("pytest") is None:
            print("  the CUDA kernels' tests are not looked at: there is no pytest")
            jobs = {name: job for name, job in jobs.items() if "Triton" in name}

        def one(name: str) -> str | None:
            command, more = jobs[name]
            log = WORK / "sanitize" / f"{name.replace(', ', '-')}.log"
            env = {**self.env, **more, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
            status = run(command, log, seconds=self.clock.left, env=env)
            summaries = re.findall(r"SUMMARY: .*", log.read_text(errors="replace"))
            if status is None:
                return f"{name}: out of time ({log})"
            if status == 0 and summaries:
                return None
            if status == 0:
                return f"{name}: it ended without a summary ({log})"
            says = summaries[-1] if status == 9 and summaries else f"status {status}"
            return f"{name}: {says}\n{tail(log, 12)}"

        with ThreadPoolExecutor(len(jobs)) as pool:
            wrong = [why for why in pool.map(one, jobs) if why is not None]
        for why in wrong:
            print(f"  {why}")
        if wrong:
            return "failed", "; ".join(why.splitlines()[0] for why in wrong)
        state = "passed" if len(jobs) == 3 else "failed"
        return state, ", ".join(jobs)

    def bench(self) -> tuple[str, str]:
        if not self.built():
            return "not run", "nothing is built"
        # The last group may take as long as some others together.
        seconds = max(1.0, self.clock.left - 15)
        command = [sys.executable, "-m", "bench.gpu", "--seconds", f"{seconds:.0f}"]
        return self.run_bench(command, self.env)

    def run_bench(self, command: list[str], env: dict[str, str]) -> tuple[str, str]:
        log = WORK / "bench.log"
        status = run(command, log, seconds=self.clock.left, env=env)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = re.compile(r"^== |DISAGREES|FAILED|reached| of the floor|its place|deleted|^failed:")
        for line in lines:
            if said.search(line):
                print(f"  {line.rstrip()[:180]}")
        last = next((line for line in reversed(lines) if re.match(r"\d+ groups in ", line)), "")
        if status is None:
            return "failed", f"out of time; the log is {log}"
        if status != 0:
            print(tail(log, 10))
            return "failed", f"{last or f'status {status}'}; the log is {log}"
        return "passed", last


class Rehearsal(Machine):
    """The parts without a GPU, with the vecsmith that is installed: what can be compiled is, and
    the rest is interpreted or emulated."""

    def __init__(self, clock: Clock, jobs: int) -> None:
        super().__init__(clock, jobs, {})
        self.env["PYTHONPATH"] = os.pathsep.join(
            part for part in (str(ROOT / "tools"), os.environ.get("PYTHONPATH")) if part
        )

    def build(self) -> tuple[str, str]:
        nvcc = find_nvcc()
        if nvcc is None:
            return "not run", "there is no nvcc"
        log = WORK / "compile.log"
        path = os.pathsep.join([str(Path(nvcc).parent), str(Path(sys.executable).parent)])
        env = {"PATH": os.pathsep.join([path, os.environ.get("PATH", "")])}
        command = ["bash", str(ROOT / "tools" / "cuda_compile.sh"), sys.executable]
        status = run(command, log, seconds=self.clock.left, env=env)
        if status != 0:
            print(tail(log, 25))
            return "failed", f"out of time: {log}" if status is None else f"see {log}"
        return "passed", log.read_text(errors="replace").strip().splitlines()[-1]

    def test(self) -> tuple[str, str]:
        """The tests of Triton's kernels in its interpreter; then those that compile them for
        devices that are not here, and those of the CUDA kernels on the emulated device."""
        folder = ROOT / "tests"
        interpreted = {**self.env, "TRITON_INTERPRET": "1"}
        files = gpu_tests.files_with(folder, "mark.triton", "operator_case")
        marks = "triton and not soak"
        first = self.run_tests("interpreted", files, marks, self.jobs, interpreted, seconds="0")
        files = sorted({*folder.glob("test_*_compiled.py"), *folder.glob("test_*_cuda.py")})
        marks = "not triton and not gpu and not soak"
        second = self.run_tests("compiled", files, marks, self.jobs, self.env, seconds="0")
        states = {first[0], second[0]}
        words = f"interpreted: {first[1]}; compiled and emulated: {second[1]}"
        return next(s for s in ("failed", "not run", "passed") if s in states), words

    def bench(self) -> tuple[str, str]:
        env = {**self.env, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        return self.run_bench([sys.executable, "-m", "bench.gpu", "--rehearse"], env)


# Python runs it at its start, and by it another of that name that it hides.
_FIRST = '''"""What lies beside this file comes before an editable install of vecsmith."""
import importlib.machinery, importlib.util, os, sys
editable = lambda finder: "vecsmith" in getattr(finder, "known_source_files", ())
sys.meta_path[:] = [finder for finder in sys.meta_path if not editable(finder)]
here = os.path.dirname(os.path.abspath(__file__))
others = [path for path in sys.path if os.path.abspath(path) != here]
hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
if hidden is not None and hidden.loader is not None:
    hidden.loader.exec_module(importlib.util.module_from_spec(hidden))
'''


def lay_out(site: Path) -> None:
    """The Python sources as the wheel has them, into a new folder."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        from pip._vendor import tomli as tomllib  # type: ignore[no-redef]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shutil.rmtree(site, ignore_errors=True)
    # Modules of other Pythons may lie between the sources.
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "results")
    for name, source in settings["tool"]["scikit-build"]["wheel"]["packages"].items():
        # Where they are linked in the sources, they are there already.
        shutil.copytree(ROOT / source, site / name, ignore=ignored, dirs_exist_ok=True)
    (site / "sitecustomize.py").write_text(_FIRST, encoding="utf-8")


def table(outcomes: list[Outcome], budgets: dict[str, float]) -> str:
    rows = [("part", "state", "took", "of", "")]
    for one in outcomes:
        of = f"{budgets[one.part]:.0f} s"
        rows.append((one.part, one.state, f"{one.seconds:.0f} s", of, one.words))
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines.append("  ".join([*cells, row[4]]).rstrip())
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], prog="make gpu"
    )
    options.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    options.add_argument("--rehearse", action="store_true", help="without a GPU; times nothing")
    options.add_argument("--seconds", type=float, help="of everything (default: under 8 minutes)")
    options.add_argument("--jobs", type=int, help="processes of tests at once")
    given = options.parse_args(arguments)
    known = REHEARSED if given.rehearse else PARTS
    unknown = [part for part in given.parts if part not in known]
    if unknown:
        options.error(f"expected parts of {', '.join(known)}; got {', '.join(unknown)}")
    chosen = [part for part in known if part in given.parts or not given.parts]
    scale = 1.0 if given.seconds is None else given.seconds / sum(known[part] for part in chosen)
    budgets = {part: known[part] * scale for part in chosen}
    cpus = os.cpu_count() or 1
    jobs = given.jobs or (cpus if given.rehearse else max(1, min(16, cpus)))
    WORK.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    clock = Clock(budgets)
    if given.rehearse:
        machine: Machine = Rehearsal(clock, jobs)
        print("a rehearsal: nothing here is measured")
    else:
        found = probe()
        why = obstacle(found)
        if why is not None:
            print(f"make gpu needs a CUDA machine: {why}", file=sys.stderr)
            return 1
        print(
            f"{found['name']} (sm_{found['capability']}), torch {found['torch']}, triton "
            f"{found['triton']}, Python {sys.version.split()[0]}, {cpus} processors"
        )
        machine = Machine(clock, jobs, found)
    steps: dict[str, Callable[[], tuple[str, str]]] = {
        part: getattr(machine, part) for part in chosen
    }
    outcomes = []
    for part, step in steps.items():
        clock.begin(part)
        print(f"\n=== {part}: {max(0.0, clock.left):.0f} s", flush=True)
        begun = time.monotonic()
        try:
            state, words = step()
        except Exception as error:  # of this script: the other parts are none the worse for it
            state, words = "failed", f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(part, state, words, time.monotonic() - begun))
        print(f"{part}: {state} ({words})", flush=True)
    print(f"\n{table(outcomes, budgets)}\ntotal {time.monotonic() - started:.0f} s", flush=True)
    summary = [vars(outcome) for outcome in outcomes]
    (WORK / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 0 if all(outcome.state == "passed" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
