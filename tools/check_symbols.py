"""Checks the kernel objects, compiled once per ISA level: python tools/check_symbols.py build

A weak symbol (an inline function of the STL, a template, a vtable) that was compiled with AVX-512
can be the copy that the linker keeps for everybody, and then an older processor dies of an illegal
instruction in code that has nothing to do with kernels. So a kernel object of level L

* defines no symbol of vague linkage (nm's V, W, u);
* defines global symbols inside namespace vecsmith::L alone;
* refers to nothing but vecsmith::L and a short list of C functions: no C++ runtime, no STL;
* has no writable data.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# What a compiler may call for plain C code, and the math functions that kernels may use.
C_FUNCTIONS = frozenset(
    [
        *("memcpy", "memmove", "memset", "memcmp", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"),
        "nanosleep",  # of a worker that waits for another
        *("exp", "expf", "exp2f", "expm1f", "log", "logf", "log1p", "log1pf", "log2f"),
        *("sqrt", "sqrtf", "pow", "powf", "tanh", "tanhf", "fma", "fmaf"),
        *("floor", "floorf", "ceil", "ceilf", "round", "roundf", "lrint", "lrintf"),
        *("fmax", "fmaxf", "fmin", "fminf"),
    ]
)


def level_of(path: Path) -> str:
    """The ISA level of an object: the <level> of its folder kernels_<level>.dir."""
    for part in path.parts:
        match = re.fullmatch(r"kernels_(\w+)\.dir", part)
        if match:
            return match.group(1)
    raise ValueError(f"expected a path with a folder kernels_<level>.dir; got {path}")


def nm(path: Path) -> list[tuple[str, str]]:
    """(type, mangled name) of every symbol of an object file."""
    command = [os.environ.get("NM", "nm"), "-P", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    symbols = []
    for line in output.splitlines():
        fields = line.split()
        if len(fields) < 2:
            continue
        name = fields[0]
        # Mach-O puts one more underscore before every name.
        symbols.append((fields[1], name[1:] if sys.platform == "darwin" else name))
    return symbols


def problems(symbols: Iterable[tuple[str, str]], level: str) -> list[str]:
    """What is wrong with the symbols of one object of ``level``; empty if nothing is."""
    own = re.compile(rf"_ZNK?8vecsmith{len(level)}{level}")
    found = []
    for kind, name in symbols:
        inside = own.match(name) is not None
        if kind in "VvWwu":
            found.append(f"weak or unique symbol {name} ({kind})")
        elif kind == "U":
            if not inside and name not in C_FUNCTIONS:
                found.append(f"reference to {name}, which is neither of this level nor plain C")
        elif kind in "BbDdCGgSs":
            found.append(f"writable data {name} ({kind})")
        elif kind.isupper() and not inside:
            found.append(f"global symbol {name} ({kind}) outside of namespace vecsmith::{level}")
    return found


def check(roots: Iterable[Path]) -> tuple[int, list[str]]:
    """Every kernel object under the roots: (how many, what is wrong)."""
    objects = sorted({path for root in roots for path in root.glob("**/kernels_*.dir/**/*.o")})
    found = []
    for path in objects:
        found += [f"{path}: {problem}" for problem in problems(nm(path), level_of(path))]
    return len(objects), found


def main(arguments: list[str]) -> int:
    roots = [Path(argument) for argument in arguments] or [Path("build")]
    count, found = check(roots)
    if not count:
        print(f"no kernel objects under {', '.join(map(str, roots))}: build first", file=sys.stderr)
        return 2
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        print(f"{len(found)} bad symbols in {count} kernel objects", file=sys.stderr)
        return 1
    print(f"{count} kernel objects: no weak symbols, no C++ runtime, nothing beyond their level")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
