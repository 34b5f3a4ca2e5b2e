"""The Triton kernels of `cosine_topk` compiled to machine code, which needs no GPU: what they need
of a multiprocessor, and which products they take."""

from __future__ import annotations

import os
import re

import pytest
import torch

from compiled_launches import Recorder, build

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes the compiler's place"
)
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that a program may have
PRODUCTS = {
    80: r"mma\.sync\.\S+bf16\.bf16\.f32",
    90: r"wgmma\.mma_async\.\S+f32\.bf16\.bf16",
    100: r"tcgen05\.mma\.\S+kind::f16",
}
KERNELS = ("_pack", "_block_bounds", "_first_tau", "_screen", "_tighten", "_score")


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels import cosine_topk

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = []
    for name in KERNELS:
        monkeypatch.setattr(cosine_topk, name, Recorder(getattr(cosine_topk, name), launches))
    monkeypatch.setattr(cosine_topk, "launches", launches, raising=False)
    return cosine_topk


def launch(kernels, metric, count, dim, k, dtype):
    """The launches of a search, one of each kernel and of both kinds of tables, on tensors that
    hold anything."""
    given = torch.ones(count, dim, dtype=dtype), torch.ones(2000, dim, dtype=dtype)
    banned, offsets = torch.zeros(2000, dtype=torch.bool), torch.arange(count + 1)
    outputs = torch.empty(count, k), torch.empty(count, k, dtype=torch.int64)
    masks = (banned, offsets, torch.zeros(count, dtype=torch.int64))
    kernels.cosine_topk(kernels.Problem(*given, metric, *masks, *outputs))
    once = {(each[0].__name__, each[2].get("QUERIES")): each for each in kernels.launches}
    assert {name for name, _ in once} == set(KERNELS)
    return once


@pytest.mark.parametrize(
    ("capability", "metric", "count", "dim", "k", "dtype"),
    [
        (80, "l2", 200, 768, 10, torch.float32),
        (90, "cosine", 200, 768, 10, torch.float32),
        (90, "dot", 10, 33, 130, torch.bfloat16),
        (100, "dot", 200, 300, 40, torch.float16),
    ],
)
def test_registers_and_products(
    kernels, monkeypatch, tmp_path, capability, metric, count, dim, k, dtype
):
    """Nothing is spilled, and products are those of the matrix units."""
    monkeypatch.setattr(kernels, "_memory", lambda _: SHARED[capability])
    product = PRODUCTS[capability if count > 64 else 80]
    for (name, _), each in launch(kernels, metric, count, dim, k, dtype).items():
        ptx, usage, shared = build(each, capability, tmp_path)
        registers, spilled = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        assert registers * 32 * each[2]["num_warps"] <= 1 << 16, usage
        assert spilled == 0, (name, usage)
        assert shared <= SHARED[capability]
        # Numbers that are too small for a normalized float are not taken for zeros.
        assert ".ftz" not in ptx
        if name in ("_block_bounds", "_screen"):
            assert re.search(product, ptx)
