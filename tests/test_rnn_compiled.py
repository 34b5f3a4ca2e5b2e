"""The Triton kernels of `rnn` compiled to machine code, which needs no GPU: what they need of a
multiprocessor, which products they take, how wide they load."""

from __future__ import annotations

import os
import re

import pytest
import torch

from compiled_launches import Recorder, build
from vecsmith.reference import rnn as reference

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes the compiler's place"
)
CELLS = ("lstm", "gru", "gru_reset_before", "rnn_tanh")
SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes that a program may have


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton.runtime.jit import JITFunction
    from vecsmith.kernels import rnn

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rnn_launches = []
    for name in ("_forward", "_backward"):
        assert isinstance(getattr(rnn, name), JITFunction)
        monkeypatch.setattr(rnn, name, Recorder(getattr(rnn, name), rnn_launches))
    monkeypatch.setattr(rnn, "launches", rnn_launches, raising=False)
    return rnn


def launch(kernels, cell, dtype, hidden, batch=64, steps=2, reverse=False):
    """The launches of a layer and of its derivatives, on tensors that hold anything."""
    gates, sizes = reference.CELLS[cell], torch.full((steps,), batch)

    def some(*shape):
        return torch.zeros(shape, dtype=dtype)

    given = [some(batch * steps, 8), sizes, some(batch, hidden)]
    given += [some(batch, hidden) if cell == "lstm" else None]
    given += [some(gates * hidden, 8), some(gates * hidden, hidden)]
    biases = [some(gates * hidden), some(gates * hidden)]
    how = {"cell": cell, "reverse": reverse}
    output, h, c, cells, saved = kernels.rnn(*given, *biases, **how, save=True)
    kernels.rnn_backward(output, h, c, *given, output, cells, saved, **how, needs_input=False)
    assert [kernel.__name__ for kernel, _, _ in kernels.launches] == ["_forward", "_backward"]
    return kernels.launches


def check(launches, folder, capabilities=(80, 90), stack=0):
    """The PTX of each. A few scalars may wait in memory: ``stack`` bytes of a thread."""
    found = []
    for each in launches:
        for capability in capabilities:
            ptx, usage, shared = build(each, capability, folder)
            registers, spilled = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
            assert registers * 32 * each[2]["num_warps"] <= 1 << 16, usage
            assert spilled <= stack, usage
            assert shared <= SHARED[capability]
            found.append(ptx)
    return found


def products(ptx, kind):
    """How many instructions of the tensor cores there are with inputs of this kind."""
    return len(re.findall(rf"mma\.sync\.aligned\.\S+\.f32\.{kind}\.{kind}\.f32", ptx))


@pytest.mark.parametrize("hidden", [512, 1024])
@pytest.mark.parametrize("cell", CELLS)
def test_bf16(kernels, tmp_path, cell, hidden):
    """On tensor cores, from shared memory that is filled with weights 16 bytes at a time, and with
    states 8 bytes at a time, while they work."""
    for ptx in check(launch(kernels, cell, torch.bfloat16, hidden), tmp_path, stack=8):
        assert products(ptx, "bf16")
        widths = re.findall(r"cp\.async\.\S+ \[.*?\], \[.*?\], 0x(\w+)", ptx)
        assert set(widths) == {"10", "8"}
        assert widths.count("10") >= 2 * widths.count("8")


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_precisions_of_fp32(kernels, tmp_path, cell):
    counts = {}
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            kernels.launches.clear()
            launches = launch(kernels, cell, torch.float32, 512, reverse=True)
            found = check(launches, tmp_path, (90,), stack=48)
            counts[precision] = [products(ptx, "tf32") for ptx in found]
    finally:
        torch.set_float32_matmul_precision(before)
    assert counts["highest"] == [0] * 2
    assert min(counts["medium"]) > 0
    assert counts["high"] == [3 * count for count in counts["medium"]]


@pytest.mark.parametrize(
    ("cell", "dtype", "hidden", "batch"),
    [
        ("lstm", torch.float16, 256, 5000),
        ("gru", torch.float16, 37, 1),
        ("gru_reset_before", torch.bfloat16, 300, 20),
        ("rnn_relu", torch.float32, 1, 3),
    ],
)
def test_other_sizes(kernels, tmp_path, cell, dtype, hidden, batch):
    """Rows that are not aligned, few units, many rows."""
    check(launch(kernels, cell, dtype, hidden, batch), tmp_path, (90,), stack=128)
