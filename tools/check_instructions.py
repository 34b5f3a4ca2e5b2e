"""Checks the instructions of the native module: python tools/check_instructions.py build

A module that has AVX-512 kernels must still load and work on a processor without AVX-512, and
without AVX. So in the linked module, disassembled,

* code outside of the namespaces vecsmith::<level> (what runs while the module is loaded, bindings,
  readers, the choice of a level) and vecsmith::base has nothing beyond SSE2, which every x86-64
  has: no VEX or EVEX prefix, no SSE3 to SSE4.2, no POPCNT;
* vecsmith::avx2 has no EVEX prefix (AVX-512: zmm, xmm16 to xmm31, masks), no mask register and no
  VEX-coded extension that came after AVX2, FMA, F16C and BMI2;
* vecsmith::avx512 has F, BW, CD, DQ and VL alone, vecsmith::avx512_bf16 besides BF16 and VNNI, and
  only vecsmith::amx tiles.

It takes modules (.so with symbols: those of the build folder, not the stripped ones of a wheel) or
folders of them. With --wheel WHEEL the code of the wheel's module must be that of the module.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

# Prefixes that may stand before VEX and EVEX: address size and segments; and before the others.
_BEFORE_VEX = frozenset(("67", "26", "2e", "36", "3e", "64", "65"))
_LEGACY = _BEFORE_VEX | frozenset(("66", "f0", "f2", "f3"))
# Later than SSE2, but not in the opcode maps 0f38 and 0f3a. (tzcnt is bsf on older processors; the
# compiler writes it where both give the same.)
_SSE3 = re.compile(r"(addsub|hadd|hsub)p[sd]|mov(d|sh|sl)dup|lddqu|popcnt|lzcnt|monitor|mwait")
_VNNI = r"vpdp\w+"
_BF16 = r"vdpbf16ps|vcvtne2?ps2?bf16\w*|vcvtneps2bf16\w*"
_TILES = r"(ld|st)tilecfg|tile\w+|tdp\w+|tcmm\w+"
_LATER = (
    r"vgf2p8\w+|v?aes\w+|v?pclmul\w+|v?sha\d\w+|vpmadd52\w+|vp2intersect\w+|vpshufbitqmb|"
    r"vpopcnt[bwdq]|vperm(b|i2b|t2b)|vpmultishiftqb|vp(compress|expand)[bw]|vpsh[lr]d[wdqv]+|"
    r"v(add|sub|mul|div|fn?m(add|sub)\d+|max|min|sqrt)[ps]h|vcmp[ps]h"
)
# What a level must not have, of what its prefixes allow.
_REFUSED = {
    "avx2": rf"{_VNNI}|{_BF16}|{_TILES}|{_LATER}",
    "avx512": rf"{_VNNI}|{_BF16}|{_TILES}|{_LATER}",
    "avx512_bf16": rf"{_TILES}|{_LATER}",
    "amx": _LATER,
}
_OWN = re.compile(r"_ZNK?8vecsmith(4base|4avx2|6avx512|11avx512_bf16|3amx)(?=[\dLa-z])")
_MASK = re.compile(r"%k[0-7]")


def level_of(symbol: str) -> str:
    """The level of a function by its mangled name; "" for code that belongs to none."""
    found = _OWN.match(symbol)
    return found.group(1).lstrip("0123456789") if found else ""


def complaint(level: str, code: list[str], text: str) -> str | None:
    """What is wrong with an instruction (its bytes in hexadecimal, and its text) at a level."""
    mnemonic = text.split(None, 1)[0] if text else ""
    start = 0
    while start < len(code) - 1 and code[start] in _BEFORE_VEX:
        start += 1
    kind = {"62": "EVEX", "c4": "VEX", "c5": "VEX"}.get(code[start], "")
    if level in ("", "base"):
        if kind:
            return f"{kind} prefix"
        while start < len(code) - 1 and (
            code[start] in _LEGACY or re.fullmatch("4[0-9a-f]", code[start])
        ):
            start += 1
        if code[start : start + 2] in (["0f", "38"], ["0f", "3a"]) or _SSE3.fullmatch(mnemonic):
            return "later than SSE2"
        return None
    if level == "avx2" and kind == "EVEX":
        return "EVEX prefix"
    if level == "avx2" and kind == "VEX" and _MASK.search(text):
        return "mask register"
    if kind and re.fullmatch(_REFUSED[level], mnemonic):
        return "not of this level"
    return None


def instructions(module: Path) -> Iterator[tuple[str, list[str], str]]:
    """(function, bytes, text) of every instruction of a module."""
    command = [os.environ.get("OBJDUMP", "objdump"), "-d", "-w", str(module)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    function = ""
    with process.stdout as lines:
        for line in lines:
            fields = line.rstrip("\n").split("\t")
            if len(fields) == 3:
                # A prefix that objdump names by itself stands before the instruction.
                yield function, fields[1].split(), fields[2].removeprefix("{vex} ")
            elif fields[0].endswith(">:"):
                function = fields[0][fields[0].index("<") + 1 : -2]
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)


def check(module: Path) -> tuple[Counter[str], list[str]]:
    """(how many instructions there are of each level, what is wrong) in one module."""
    counts: Counter[str] = Counter()
    found: Counter[str] = Counter()
    levels: dict[str, str] = {}
    # A module repeats itself: most instructions were seen before.
    known: dict[tuple[str, str, str], str | None] = {}
    for function, code, text in instructions(module):
        level = levels.setdefault(function, level_of(function))
        counts[level] += 1
        key = (level, " ".join(code[:6]), text)
        if key not in known:
            known[key] = complaint(level, code, text)
        if known[key]:
            where = f"vecsmith::{level}" if level else "code of no level"
            found[f"{function}, {where}: {known[key]}: {text.split('#')[0].strip()}"] += 1
    return counts, [f"{problem} ({count} times)" for problem, count in found.items()]


def code_of(module: Path) -> bytes:
    """The bytes of the section .text."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "text"
        command = [os.environ.get("OBJCOPY", "objcopy"), "-O", "binary", "-j", ".text"]
        subprocess.run([*command, str(module), str(target)], check=True)
        return target.read_bytes()


def same_code(wheel: Path, module: Path) -> bool:
    """Whether the module of a wheel, which is stripped, has the code of the module."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.startswith("vecsmith/_native."))
        return code_of(Path(archive.extract(name, folder))) == code_of(module)


def modules(roots: Iterable[Path]) -> list[Path]:
    """The native modules under the roots, which may be modules themselves."""
    found: set[Path] = set()
    for root in roots:
        found |= {root} if root.is_file() else set(root.glob("**/_native.*.so"))
    return sorted(found)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("roots", nargs="*", type=Path, default=[Path("build")])
    parser.add_argument("--wheel", type=Path, help="a wheel whose module must have the same code")
    options = parser.parse_args(arguments)
    paths = modules(options.roots)
    if not paths:
        roots = ", ".join(map(str, options.roots))
        print(f"no native module under {roots}: build first", file=sys.stderr)
        return 2
    found: list[str] = []
    total: Counter[str] = Counter()
    for path in paths:
        counts, problems = check(path)
        if not counts["base"] or not counts[""]:
            problems = [f"{path}: no symbols: give the module of the build folder"]
        total += counts
        found += problems
    if options.wheel is not None and not any(same_code(options.wheel, path) for path in paths):
        found.append(f"{options.wheel}: its code is none of {', '.join(map(str, paths))}")
    for problem in found[:50]:
        print(problem, file=sys.stderr)
    if found:
        print(f"{len(found)} complaints about instructions", file=sys.stderr)
        return 1
    shown = ", ".join(f"{total[level]:,} of {level or 'no level'}" for level in total)
    print(f"{total.total():,} instructions, none beyond its level: {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
