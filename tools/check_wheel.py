"""Checks what is in a wheel: python tools/check_wheel.py dist/vecsmith-*.whl

Its files; and, with binutils' objdump, what its native modules ask of the system: no folder to look
for libraries in, no library but those below, and which versions of them. A wheel says linux_x86_64:
whether it runs elsewhere is said by these versions, not by its tag.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Of every Linux, but for libgomp, which comes with torch and is loaded before.
LIBRARIES = re.compile(
    r"lib(gomp|stdc\+\+|m|gcc_s|c|pthread|dl|rt)\.so\.\d+|ld-linux[\w-]*\.so\.\d+"
)


def problems(names: list[str]) -> list[str]:
    """What is wrong with the files of a wheel; empty if nothing is."""
    found = []
    roots = {name.split("/")[0] for name in names}
    strangers = [root for root in roots if root != "vecsmith" and not root.endswith(".dist-info")]
    if strangers:
        found.append(f"folders beside the package: {strangers}")
    for needed in ("vecsmith/py.typed", "vecsmith/kernels/__init__.py", "vecsmith/cli/__init__.py"):
        if needed not in names:
            found.append(f"missing: {needed}")
    if not any(name.startswith("vecsmith/_native.") for name in names):
        found.append("missing: vecsmith/_native")
    if not any(name.endswith("/LICENSE") for name in names):
        found.append("missing: LICENSE")
    for name in names:
        # One OpenMP runtime per process: torch brings it.
        if "libgomp" in name or "libomp" in name or "libiomp" in name:
            found.append(f"bundled OpenMP runtime: {name}")
        if "__pycache__" in name or name.endswith((".o", ".a", ".cpp", ".h", ".cu")):
            found.append(f"not for users: {name}")
    return found


def needs(headers: str) -> tuple[list[str], dict[str, str], list[str]]:
    """(libraries, the newest version of each of their interfaces, what is wrong) of a module, from
    what objdump -p says."""
    libraries = re.findall(r"^\s+NEEDED\s+(\S+)", headers, re.MULTILINE)
    found = [f"needs {name}" for name in libraries if not LIBRARIES.fullmatch(name)]
    for name, value in re.findall(r"^\s+(RPATH|RUNPATH)\s+(.*)", headers, re.MULTILINE):
        found.append(f"{name} {value}")
    _, _, references = headers.partition("Version References:")
    versions: dict[str, str] = {}
    for name, version in re.findall(r"\s([A-Z]+)_([\d.]+)$", references, re.MULTILINE):
        versions[name] = max(versions.get(name, "0"), version, key=_numbers)
    return libraries, versions, found


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def modules(wheel: zipfile.ZipFile) -> list[str]:
    """What is wrong with the native modules of a wheel; prints what they need."""
    found = []
    for name in wheel.namelist():
        if not name.endswith(".so"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [os.environ.get("OBJDUMP", "objdump"), "-p", wheel.extract(name, folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        libraries, versions, wrong = needs(done.stdout)
        found += [f"{name}: {problem}" for problem in wrong]
        newest = ", ".join(f"{key} {versions[key]}" for key in sorted(versions))
        print(f"{name} needs {', '.join(libraries)}; at least {newest}")
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print("expected the path of one wheel", file=sys.stderr)
        return 2
    with zipfile.ZipFile(arguments[0]) as wheel:
        names = wheel.namelist()
        found = problems(names) + (modules(wheel) if sys.platform == "linux" else [])
    for problem in found:
        print(f"{arguments[0]}: {problem}", file=sys.stderr)
    if not found:
        print(f"{len(names)} files: the package, its native module, its license, nothing else")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
