"""The Triton kernel of `spmm` compiled to machine code, which needs no GPU."""

from __future__ import annotations

import os
import re

import pytest
import torch

from compiled_launches import Recorder, build

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes the compiler's place"
)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_registers_and_loads(monkeypatch, tmp_path, capability):
    """Nothing is spilled, and rows of the dense matrix are loaded 16 bytes at a time."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels import spmm as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = []
    monkeypatch.setattr(kernels, "_multiply", Recorder(kernels._multiply, launches))
    for width, dtype, index in (
        (64, torch.float32, torch.int32),
        (300, torch.float32, torch.int64),
        (74, torch.float64, torch.int32),
        (3, torch.float32, torch.int32),
    ):
        indptr, indices = torch.zeros(1001, dtype=index), torch.zeros(5000, dtype=index)
        kernels.spmm(
            indptr, indices, torch.empty(5000, dtype=dtype), torch.empty(800, width, dtype=dtype)
        )
    assert len(launches) == 4
    for launch in launches:
        ptx, usage, _ = build(launch, capability, tmp_path)
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        assert registers <= 168, usage
        assert stack == 0, usage
        if launch[1][3].shape[1] >= 64:
            assert re.search(r"ld\.global\S*\.v[24]\.b(32|64)", ptx)
