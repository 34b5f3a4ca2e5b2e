"""What proves that a wheel works on older processors: the choice of an ISA level from made-up
answers of CPUID and XGETBV, and the checks of instructions and of what a wheel needs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import pytest

from test_house import ROOT, tool

X86 = platform.machine() in ("x86_64", "AMD64")

# --- The choice of a level. -----------------------------------------------------------------------

# It reads leaf1_ecx leaf7_ebx leaf7_ecx leaf7_edx leaf7_1_eax xcr0 from the lines of its input.
PROGRAM = """
#include <cstdio>
#include "cpu/isa_features.h"
int main() {
  vecsmith::CpuRegisters cpu;
  while (std::scanf("%x %x %x %x %x %x", &cpu.leaf1_ecx, &cpu.leaf7_ebx, &cpu.leaf7_ecx,
                    &cpu.leaf7_edx, &cpu.leaf7_1_eax, &cpu.xcr0) == 6) {
    const vecsmith::Features found = vecsmith::features_of(cpu);
    std::printf("%d%d%d%d\\n", found.avx2, found.avx512, found.avx512_bf16, found.amx);
  }
}
"""


def bits(*positions):
    return sum(1 << position for position in positions)


FMA, XSAVE, OSXSAVE, AVX, F16C = 12, 26, 27, 28, 29
AVX2, BMI2 = 5, 8
AVX512F, AVX512DQ, AVX512CD, AVX512BW, AVX512VL = 16, 17, 28, 30, 31
VNNI, BF16, AMX = 11, 5, (22, 24, 25)
YMM, ZMM, TILES = bits(0, 1, 2), bits(0, 1, 2, 5, 6, 7), bits(0, 1, 2, 5, 6, 7, 17, 18)

_OLD = bits(FMA, XSAVE, OSXSAVE, AVX, F16C)
_WIDE = bits(AVX2, BMI2, AVX512F, AVX512DQ, AVX512CD, AVX512BW, AVX512VL)
# (leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax, xcr0): avx2, avx512, avx512_bf16, amx
PROCESSORS = {
    "nothing but SSE2": ((0, 0, 0, 0, 0, 0), "0000"),
    "AVX without AVX2": ((bits(XSAVE, OSXSAVE, AVX), 0, 0, 0, 0, YMM), "0000"),
    "AVX2 alone": ((_OLD, bits(AVX2, BMI2), 0, 0, 0, YMM), "1000"),
    "AVX2 without FMA": ((_OLD - bits(FMA), bits(AVX2, BMI2), 0, 0, 0, YMM), "0000"),
    "AVX2 without F16C": ((_OLD - bits(F16C), bits(AVX2, BMI2), 0, 0, 0, YMM), "0000"),
    "AVX2 without BMI2": ((_OLD, bits(AVX2), 0, 0, 0, YMM), "0000"),
    "a system that saves no YMM": ((_OLD, bits(AVX2, BMI2), 0, 0, 0, bits(0, 1)), "0000"),
    "a system without XSAVE": ((_OLD - bits(OSXSAVE), _WIDE, 0, 0, 0, ZMM), "0000"),
    "AVX-512": ((_OLD, _WIDE, 0, 0, 0, ZMM), "1100"),
    "AVX-512 without VL": ((_OLD, _WIDE - bits(AVX512VL), 0, 0, 0, ZMM), "1000"),
    "a system that saves no ZMM": ((_OLD, _WIDE, bits(VNNI), bits(*AMX), bits(BF16), YMM), "1000"),
    "no opmask saved": ((_OLD, _WIDE, 0, 0, 0, ZMM - bits(5)), "1000"),
    "AVX-512 with VNNI": ((_OLD, _WIDE, bits(VNNI), 0, 0, ZMM), "1100"),
    "AVX-512 with BF16": ((_OLD, _WIDE, bits(VNNI), 0, bits(BF16), ZMM), "1110"),
    "BF16 without VNNI": ((_OLD, _WIDE, 0, 0, bits(BF16), ZMM), "1100"),
    "AMX": ((_OLD, _WIDE, bits(VNNI), bits(*AMX), bits(BF16), TILES), "1111"),
    "AMX without bfloat16": ((_OLD, _WIDE, bits(VNNI), bits(24, 25), bits(BF16), TILES), "1110"),
    "tiles not saved": ((_OLD, _WIDE, bits(VNNI), bits(*AMX), bits(BF16), ZMM), "1110"),
}


def compiler():
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    assert found, "make test checks for a compiler before it comes here"
    return found


def test_the_level_follows_from_processor_and_system(tmp_path):
    (tmp_path / "main.cpp").write_text(PROGRAM)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    command = [compiler(), *flags, str(tmp_path / "main.cpp"), "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True, capture_output=True)
    lines = "\n".join(" ".join(f"{r:x}" for r in given) for given, _ in PROCESSORS.values())
    done = subprocess.run(
        [str(tmp_path / "main")], input=lines, capture_output=True, text=True, check=True
    )
    found = dict(zip(PROCESSORS, done.stdout.split(), strict=True))
    assert found == {name: levels for name, (_, levels) in PROCESSORS.items()}


# --- Instructions. --------------------------------------------------------------------------------

INSTRUCTIONS = [
    ("", "c5 fc 28 07", "vmovaps (%rdi),%ymm0", "VEX prefix"),
    ("", "62 f1 7c 48 28 07", "vmovaps (%rdi),%zmm0", "EVEX prefix"),
    ("", "c4 e2 fb f6 c1", "mulx   %rcx,%rax,%rax", "VEX prefix"),
    ("", "66 0f 38 40 c1", "pmulld %xmm1,%xmm0", "later than SSE2"),
    ("base", "66 41 0f 3a 0a c0 01", "roundss $0x1,%xmm8,%xmm0", "later than SSE2"),
    ("base", "f3 48 0f b8 c1", "popcnt %rcx,%rax", "later than SSE2"),
    ("base", "f3 48 0f bc c1", "tzcnt  %rcx,%rax", None),
    ("base", "0f 58 c1", "addps  %xmm1,%xmm0", None),
    ("base", "66 0f 6f c1", "movdqa %xmm1,%xmm0", None),
    ("", "0f 01 d0", "xgetbv", None),
    ("avx2", "c4 e2 75 b8 c2", "vfmadd231ps %ymm2,%ymm1,%ymm0", None),
    ("avx2", "62 f1 7c 28 28 07", "vmovaps (%rdi),%ymm0", "EVEX prefix"),
    ("avx2", "67 62 f1 7c 28 28 07", "vmovaps (%edi),%ymm0", "EVEX prefix"),
    ("avx2", "c5 f8 92 c8", "kmovw  %eax,%k1", "mask register"),
    ("avx2", "c4 e2 75 50 c2", "vpdpbusd %ymm2,%ymm1,%ymm0", "not of this level"),
    ("avx512", "62 f1 7c 48 28 07", "vmovaps (%rdi),%zmm0", None),
    ("avx512", "62 f2 75 48 50 c2", "vpdpbusd %zmm2,%zmm1,%zmm0", "not of this level"),
    ("avx512", "62 f2 76 48 52 c2", "vdpbf16ps %zmm2,%zmm1,%zmm0", "not of this level"),
    ("avx512_bf16", "62 f2 76 48 52 c2", "vdpbf16ps %zmm2,%zmm1,%zmm0", None),
    ("avx512_bf16", "c4 e2 72 5c c2", "tdpbf16ps %tmm1,%tmm2,%tmm0", "not of this level"),
    ("amx", "c4 e2 72 5c c2", "tdpbf16ps %tmm1,%tmm2,%tmm0", None),
    ("amx", "62 f5 74 48 58 c2", "vaddph %zmm2,%zmm1,%zmm0", "not of this level"),
]


@pytest.mark.parametrize(
    ("level", "code", "text", "expected"), INSTRUCTIONS, ids=lambda value: str(value)[:20]
)
def test_an_instruction_beyond_its_level(level, code, text, expected):
    assert tool("check_instructions").complaint(level, code.split(), text) == expected


def test_the_level_of_a_function():
    level_of = tool("check_instructions").level_of
    assert level_of("_ZN8vecsmith4avx23dotEPKfS2_l") == "avx2"
    assert level_of("_ZN8vecsmith6avx512L3dotEPKfS2_l.constprop.0") == "avx512"
    assert level_of("_ZN8vecsmith11avx512_bf163dotEv") == "avx512_bf16"
    assert level_of("_ZNK8vecsmith4base12_GLOBAL__N_13Row3dotEv") == "base"
    for free in ("PyInit__native", "_ZN8vecsmith9isa_levelEv", "_ZN8vecsmith4avx2Ev", ""):
        assert level_of(free) == ""


SOURCE = """
namespace vecsmith {
namespace base { void twice(float* x) { for (int i = 0; i < 64; ++i) x[i] *= 2; } }
namespace avx2 { __attribute__((target("avx2"), optimize("O3")))
void twice(float* x) { for (int i = 0; i < 64; ++i) x[i] *= 2; } }
}
%s
extern "C" __attribute__((visibility("default"))) void call(float* x) {
  vecsmith::base::twice(x);
  vecsmith::avx2::twice(x);
}
"""
# What a library does while it is loaded.
LOADED = """
static float table[64];
__attribute__((constructor, target("avx512f"), optimize("O3")))
static void fill() { for (int i = 0; i < 64; ++i) table[i] = i; }
float* get() { return table; }
"""


@pytest.mark.skipif(not X86, reason="instructions of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
@pytest.mark.parametrize(("more", "status"), [("", 0), (LOADED, 1)], ids=["plain", "constructor"])
def test_a_module_is_disassembled(tmp_path, capsys, more, status):
    check = tool("check_instructions")
    (tmp_path / "source.cpp").write_text(SOURCE % more)
    module = tmp_path / "_native.test.so"
    flags = ["-shared", "-fPIC", "-O2", "-fvisibility=hidden", "-mprefer-vector-width=512"]
    subprocess.run(
        [compiler(), *flags, str(tmp_path / "source.cpp"), "-o", str(module)], check=True
    )
    assert check.main([str(tmp_path)]) == status
    printed = capsys.readouterr()
    if status:
        assert "fill" in printed.err
        assert "code of no level: EVEX prefix" in printed.err
    else:
        assert "none beyond its level" in printed.out
    # Without names nothing can be said.
    subprocess.run(["strip", str(module)], check=True)
    assert check.main([str(module)]) == 1
    assert "no symbols" in capsys.readouterr().err


def test_the_instruction_check_fails_where_nothing_was_built(tmp_path, capsys):
    assert tool("check_instructions").main([str(tmp_path)]) == 2
    assert "build first" in capsys.readouterr().err


@pytest.mark.skipif(not X86, reason="instructions of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_the_module_of_this_build_has_no_instruction_beyond_its_level():
    check = tool("check_instructions")
    built = check.modules([*(ROOT / "build").glob("cp*")])
    if not built:
        pytest.skip("not built in this tree")
    newest = max(built, key=lambda path: path.stat().st_mtime)
    counts, found = check.check(newest)
    assert not found
    assert min(counts[level] for level in ("", "base", "avx2", "avx512", "avx512_bf16", "amx")) > 0


# --- What a wheel needs. --------------------------------------------------------------------------

HEADERS = """
Dynamic Section:
  NEEDED               libgomp.so.1
  NEEDED               libstdc++.so.6
  NEEDED               libc.so.6
  SONAME               _native.so
{}
Version References:
  required from libc.so.6:
    0x09691a75 0x00 05 GLIBC_2.2.5
    0x069691b4 0x00 06 GLIBC_2.34
    0x06969191 0x00 09 GLIBC_2.14
  required from libstdc++.so.6:
    0x02297f89 0x00 02 GLIBCXX_3.4.9
    0x0297f871 0x00 08 GLIBCXX_3.4.21
"""


def test_what_a_module_needs_is_read():
    needs = tool("check_wheel").needs
    libraries, versions, found = needs(HEADERS.format(""))
    assert libraries == ["libgomp.so.1", "libstdc++.so.6", "libc.so.6"]
    assert versions == {"GLIBC": "2.34", "GLIBCXX": "3.4.21"}
    assert found == []
    assert needs(HEADERS.format("  RUNPATH              $ORIGIN/../torch/lib"))[2] == [
        "RUNPATH $ORIGIN/../torch/lib"
    ]
    strange = ["libtorch.so", "libgomp-a34b3233.so.1.0.0", "libpython3.11.so.1.0", "libomp.so.5"]
    for name in strange:
        assert needs(HEADERS.format(f"  NEEDED               {name}"))[2] == [f"needs {name}"]
