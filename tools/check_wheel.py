"""Checks what is in a wheel: python tools/check_wheel.py dist/vecsmith-*.whl"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path


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


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print("expected the path of one wheel", file=sys.stderr)
        return 2
    with zipfile.ZipFile(arguments[0]) as wheel:
        names = wheel.namelist()
    found = problems(names)
    for problem in found:
        print(f"{arguments[0]}: {problem}", file=sys.stderr)
    if not found:
        print(f"{len(names)} files: the package, its native module, its license, nothing else")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
