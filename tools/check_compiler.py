"""Says in one line what is missing to build vecsmith: a C++17 compiler, Python's headers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path


def missing() -> str | None:
    """What is missing and how to get it; None if nothing is."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    program = b"#include <optional>\nint main() { return std::optional<int>{0}.value(); }\n"
    command = [*compiler, "-std=c++17", "-x", "c++", "-fsyntax-only", "-"]
    try:
        done = subprocess.run(command, input=program, capture_output=True, check=False)
    except OSError:
        return (
            f"vecsmith needs a C++17 compiler, and there is no '{compiler[0]}': install one "
            "(Debian, Ubuntu: sudo apt install g++), or name it in CXX"
        )
    if done.returncode:
        return (
            f"vecsmith needs a C++17 compiler, and '{' '.join(compiler)}' cannot compile C++17: "
            "install a newer one (g++ >= 9, clang >= 10), or name it in CXX"
        )
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return (
            f"the headers of {sys.executable} are missing: install them "
            "(Debian, Ubuntu: sudo apt install python3-dev)"
        )
    return None


if __name__ == "__main__":
    sys.exit(missing())
