"""The Triton kernels of `factor_sgd` compiled to machine code, which needs no GPU."""

from __future__ import annotations

import os
import re

import pytest
import torch

from compiled_launches import Recorder, build

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes the compiler's place"
)


@pytest.fixture
def launches(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels import factor_sgd

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = []
    for name in ("_ratings", "_pairs"):
        monkeypatch.setattr(factor_sgd, name, Recorder(getattr(factor_sgd, name), found))
    return found


@pytest.mark.parametrize(
    ("capability", "f", "whole"), [(80, 128, True), (90, 1024, True), (100, 33, False)]
)
def test_registers(launches, tmp_path, capability, f, whole):
    """Nothing is spilled, and what one thread writes the others wait for."""
    from vecsmith.kernels import factor_sgd

    users, items = torch.ones(5, f), torch.ones(7, f)
    biases = (torch.ones(5), torch.ones(7)) if whole else (None, None)
    squares = (torch.ones(5, 2), torch.ones(7, 2)) if whole else (None, None)
    ids, offsets = torch.zeros(9, dtype=torch.int32), torch.zeros(5, dtype=torch.int64)
    liked = (offsets, ids) if whole else (None, None)
    blocks, sums = torch.zeros(2, dtype=torch.int64), torch.zeros(4, 3, dtype=torch.float64)
    factor_sgd.ratings(
        *((users, items, *biases, *squares), (ids, ids, torch.ones(9), offsets)),
        *(blocks, sums, (3.0, 0.1, 0.1, 0.1, 0.1)),
    )
    factor_sgd.pairs(
        *((users, items, biases[1]), (ids, ids, offsets), liked, blocks, sums, 5, (0.1, 0.1)),
        in_order=False,
    )
    assert [each[0].__name__ for each in launches] == ["_ratings", "_pairs"]
    for each in launches:
        ptx, usage, _ = build(each, capability, tmp_path, specialize=True)
        registers, spilled = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        assert spilled == 0, usage
        assert registers <= 128, usage
        assert re.search(r"bar(rier)?\.(cta\.)?sync|bar\.warp", ptx)
