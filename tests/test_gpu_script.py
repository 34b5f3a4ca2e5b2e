"""`make gpu` without a GPU: parts that fail one by one, the rest that goes on, the summary and the
exit status, in a tree and with a torch, cmake, nvcc and compute-sanitizer that are made up."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

TORCH = """
import os
__version__ = "0.fake"
class cuda:
    is_available = staticmethod(lambda: os.environ.get("FAKE_DEVICES", "1") != "0")
    is_initialized = staticmethod(lambda: bool(cuda.lost))
    get_device_name = staticmethod(lambda: "NVIDIA Fake 1")
    get_device_capability = staticmethod(lambda: (9, 0))
    lost = []
    @staticmethod
    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""
CMAKE = """#!/bin/sh
echo "cmake $*" >> "$FAKE_LOG"
case "$*" in
  *--build*) [ "$FAKE_CMAKE" = compile ] && { echo "skipgram.cu(3): error: no"; exit 2; }
             [ "$FAKE_CMAKE" = slow ] && sleep 60 ;;
  *VECSMITH_CUDA=ON*) [ "$FAKE_CMAKE" = configure ] && exit 1 ;;
esac
exit 0
"""
SANITIZER = """#!/bin/sh
echo "compute-sanitizer $*" >> "$FAKE_LOG"
tool=${*#*--tool }; tool=${tool%% *}
[ "$FAKE_SANITIZER" = refused ] && { echo "========= Device not supported"; exit 0; }
[ "$FAKE_SANITIZER" = "$tool" ] && { echo "========= ERROR SUMMARY: 3 errors"; exit 9; }
echo "========= ERROR SUMMARY: 0 errors"
"""
BENCH = """
import os, sys
print("== a group")
print("   skipgram.cu is 2.00 times as fast as Triton here: it earns its place")
print("3 groups in 1 s")
sys.exit(int(os.environ.get("FAKE_BENCH", "0")))
"""
TESTS = """
import atexit, os, signal
import pytest
import torch
pytestmark = pytest.mark.gpu
FAKE = os.environ.get("FAKE_TESTS", "")
def test_one(): pass
def test_two(): assert FAKE != "fails", "two is not one"
def test_three():
    if FAKE == "dies": os.kill(os.getpid(), signal.SIGSEGV)
def test_four():
    if FAKE in ("loses", "aborts"):
        torch.cuda.lost.append(1)
        if FAKE == "aborts":
            atexit.register(os.abort)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_five(): pass
def test_six():
    if FAKE == "hangs":
        import time
        time.sleep(60)
@pytest.mark.skipif(FAKE == "nothing", reason="no CUDA device")
def test_seven(): pass
"""
PROJECT = """
[tool.scikit-build.wheel.packages]
vecsmith = "python/vecsmith"
[tool.pytest.ini_options]
addopts = "--benchmark-disable"
markers = ["gpu: needs a GPU", "soak: long"]
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A project whose parts all pass."""
    root = tmp_path_factory.mktemp("gpu")
    files = {
        "pyproject.toml": PROJECT,
        "python/vecsmith/__init__.py": "",
        "python/vecsmith/_native.py": "",
        "python/vecsmith/_cuda.py": "def device_count(): return 1\n",
        "python/vecsmith/old.so": "of another Python",
        "bench/__init__.py": "",
        "bench/gpu.py": BENCH,
        "tests/conftest.py": "",
        "tests/test_kernels.py": TESTS,
        "tests/test_lacking.py": "import torch\nimport not_installed\n# mark.gpu\n",
        "tests/test_other.py": "def test_not_of_a_gpu(): raise AssertionError\n",
        "fakes/torch.py": TORCH,
        "fakes/triton.py": '__version__ = "0.fake"\n',
        "bin/cmake": CMAKE,
        "bin/nvcc": "#!/bin/sh\n",
        "bin/compute-sanitizer": SANITIZER,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if name.startswith("bin/"):
            path.chmod(0o755)
    (root / "tools").mkdir()
    for path in (ROOT / "tools").glob("gpu*.py"):
        shutil.copy(path, root / "tools")
    return root


def make_gpu(tree: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    log = tree / "calls.log"
    log.unlink(missing_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "FAKE", "TRITON"))}
    kept |= {
        "PATH": f"{tree / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(tree / "fakes"),
        "FAKE_LOG": str(log),
    }
    return subprocess.run(
        [sys.executable, str(tree / "tools" / "gpu.py"), "--jobs", "2", *arguments],
        env={**kept, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def states(tree: Path) -> dict[str, str]:
    summary = json.loads((tree / "build/gpu/summary.json").read_text())
    return {one["part"]: one["state"] for one in summary}


def test_all_parts_pass(tree):
    done = make_gpu(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(tree) == dict.fromkeys(("build", "test", "sanitize", "bench"), "passed")
    assert "NVIDIA Fake 1 (sm_90), torch 0.fake, triton 0.fake" in done.stdout
    assert "7 passed, 0 failed, 0 skipped, 1 files left out" in done.stdout
    assert "left out: test_lacking.py: needs not_installed" in done.stdout
    assert "it earns its place" in done.stdout
    assert re.search(r"^total \d+ s$", done.stdout, re.MULTILINE)
    calls = (tree / "calls.log").read_text()
    assert "-DCMAKE_CUDA_ARCHITECTURES=90-real" in calls
    for tool in ("memcheck", "racecheck"):
        assert f"--tool {tool} {sys.executable} -m pytest" in calls
    for call in re.findall("compute-sanitizer.*", calls):
        assert " --launch-timeout 300 --error-exitcode 9 " in call
        # An option of memcheck alone.
        assert ("--report-api-errors no" in call) == ("--tool memcheck" in call)
    assert f"--tool memcheck {sys.executable} -m bench.gpu --tiny --check" in calls
    assert not (tree / "build/gpu/site/vecsmith/old.so").exists()


def test_the_budgets_are_under_eight_minutes(tree):
    text = (tree / "tools/gpu.py").read_text()
    budgets = re.search(r"^PARTS = \{(.*)\}", text, re.MULTILINE)
    assert sum(int(n) for n in re.findall(r"\d+", budgets[1])) <= 470


FAILURES = {
    "configure": ({"FAKE_CMAKE": "configure"}, "build", "cmake or a compiler failed"),
    "compile": ({"FAKE_CMAKE": "compile"}, "build", "skipgram.cu(3): error: no"),
    "fails": ({"FAKE_TESTS": "fails"}, "test", "test_two: AssertionError: two is not one"),
    "dies": ({"FAKE_TESTS": "dies"}, "test", "test_three: its process ended with status -11"),
    "loses": ({"FAKE_TESTS": "loses"}, "test", "test_four: RuntimeError: CUDA error: an illegal"),
    "stuck": (
        {"FAKE_TESTS": "hangs", "VECSMITH_TEST_SECONDS": "3"},
        *("test", "test_six: it took more than 3 s"),
    ),
    # As destructors do that find no device.
    "aborts": ({"FAKE_TESTS": "aborts"}, "test", "test_four: RuntimeError: CUDA error: an illegal"),
    "memcheck": ({"FAKE_SANITIZER": "memcheck"}, "sanitize", "CUDA: SUMMARY: 3 errors"),
    "racecheck": ({"FAKE_SANITIZER": "racecheck"}, "sanitize", "racecheck, CUDA: SUMMARY: 3"),
    "refused": ({"FAKE_SANITIZER": "refused"}, "sanitize", "it ended without a summary"),
    "bench": ({"FAKE_BENCH": "1"}, "bench", "3 groups in 1 s; the log is"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_part_that_fails_says_so_and_the_others_go_on(tree, case):
    env, part, words = FAILURES[case]
    done = make_gpu(tree, **env)
    assert done.returncode == 1
    expected = dict.fromkeys(("build", "test", "sanitize", "bench"), "passed")
    assert states(tree) == {**expected, part: "failed"}, done.stdout
    assert words in done.stdout
    if part == "test":  # what comes behind the test that ended its process has run all the same
        assert "6 passed, 1 failed" in done.stdout


def test_time_that_runs_out(tree):
    done = make_gpu(tree, "--seconds", "6", "test", FAKE_TESTS="hangs")
    assert done.returncode == 1
    assert re.search(r"[3456] passed, 0 failed, 0 skipped, [1234] not run in time", done.stdout)
    done = make_gpu(tree, "--seconds", "3", "build", FAKE_CMAKE="slow")
    assert done.returncode == 1
    assert "out of time" in done.stdout


def test_parts_by_name(tree):
    done = make_gpu(tree, "bench", "build")
    assert done.returncode == 0, done.stdout
    assert list(states(tree)) == ["build", "bench"]
    done = make_gpu(tree, "benches")
    assert done.returncode == 2
    assert "expected parts of build, test, sanitize, bench; got benches" in done.stderr


def test_what_is_missing_is_not_run_and_not_green(tree, tmp_path):
    binaries = tmp_path / "bin"
    shutil.copytree(tree / "bin", binaries)
    (binaries / "compute-sanitizer").unlink()
    done = make_gpu(tree, "build", "sanitize", PATH=f"{binaries}:/usr/bin:/bin")
    assert done.returncode == 1
    assert states(tree) == {"build": "passed", "sanitize": "not run"}
    assert "there is no compute-sanitizer" in done.stdout
    shutil.rmtree(tree / "build")
    done = make_gpu(tree, "test", "bench")
    assert states(tree) == {"test": "not run", "bench": "not run"}
    assert done.returncode == 1
    (binaries / "cmake").unlink()
    if shutil.which("cmake", path=f"/usr/bin:/bin:{Path(sys.executable).parent}") is None:
        done = make_gpu(tree, "build", PATH=f"{binaries}:/usr/bin:/bin")
        assert "there is no cmake" in done.stdout


def test_no_pytest(tree, tmp_path):
    """Found absent, as by an interpreter without it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n_find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'pytest' else _find(n, *a)\n"
    )
    done = make_gpu(tree, PYTHONPATH=f"{tree / 'fakes'}:{tmp_path}")
    assert done.returncode == 1
    found = states(tree)
    assert found["test"] == "not run"
    assert found["bench"] == "passed"
    assert "has no pytest" in done.stdout


MACHINES = {
    "no-device": ({"FAKE_DEVICES": "0"}, "sees no CUDA device"),
    "no-torch": ({"PYTHONPATH": "/nowhere"}, "cannot import torch"),
    "no-nvcc": ({"PATH": "/usr/bin:/bin", "CUDACXX": "nvcc-that-is-not-there"}, "no nvcc"),
}


@pytest.mark.parametrize("case", MACHINES)
def test_no_cuda_machine_is_one_line(tree, tmp_path, case):
    env, words = MACHINES[case]
    if case == "no-torch":  # where one is installed beside the fake one
        (tmp_path / "torch.py").write_text("raise ImportError('no torch')\n")
        env = {"PYTHONPATH": str(tmp_path)}
    done = make_gpu(tree, **env)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("make gpu needs a CUDA machine: ")
    assert words in line


def test_the_sanitized_tests_are_there():
    """By their ids, which pytest knows."""
    text = (ROOT / "tools/gpu.py").read_text()
    namespace: dict[str, list[str]] = {}
    exec(text[text.index("SANITIZED = [") : text.index("# Whose Triton")], namespace)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        + namespace["SANITIZED"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert all(test in done.stdout for test in namespace["SANITIZED"])
