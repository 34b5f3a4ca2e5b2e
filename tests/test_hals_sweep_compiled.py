"""The Triton kernel of `hals_sweep` compiled to machine code, which needs no GPU."""

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
def test_registers(monkeypatch, tmp_path, capability):
    """Rows stay in registers: nothing is spilled."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels import hals_sweep as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = []
    monkeypatch.setattr(kernels, "_sweep", Recorder(kernels._sweep, launches))
    for k, dtype in ((64, torch.float32), (1000, torch.float32), (64, torch.float64)):
        factor, gram = torch.empty(500, k, dtype=dtype), torch.empty(k, k, dtype=dtype)
        kernels.hals_sweep(factor, factor.clone(), gram, 0.5)
    assert len(launches) == 3
    for launch in launches:
        _, usage, shared = build(launch, capability, tmp_path)
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        assert registers <= 168, usage
        assert stack == 0, usage
        assert shared <= 48 << 10
