"""The Triton kernels of `als_solve` compiled to machine code, which needs no GPU: what they need of
a multiprocessor, and which products they take."""

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
KERNELS = ("_few_cells", "_row_products", "combine_rows", "_gram", "_add_parts", "conjugate_rows")
KERNELS += ("_multiply",)
PRODUCTS = ("_few_cells", "_row_products", "_gram", "_multiply")


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels import als_solve

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = []
    for name in KERNELS:
        monkeypatch.setattr(als_solve, name, Recorder(getattr(als_solve, name), launches))
    monkeypatch.setattr(als_solve, "launches", launches, raising=False)
    yield als_solve
    torch.set_float32_matmul_precision("highest")


def launched(kernels, f, implicit, by_row, sizes):
    """A launch of each kernel, on tensors that hold anything."""
    indptr, rows = torch.tensor([0, 3, 5000]), torch.tensor([0, 1])
    indices, values = torch.zeros(5000, dtype=torch.int32), torch.ones(5000)
    systems = kernels.Systems(
        *(indptr, indices, values, None if implicit else values, torch.ones(9, f)),
        torch.ones(f) if implicit and by_row else None,
        torch.ones(2) if by_row else None,
        *(0.1, 2.0, implicit, torch.empty(2, f), torch.zeros(2, dtype=torch.bool)),
    )
    for most in sizes:
        kernels.few_cells(systems, rows, most)
    kernels.row_products(systems, rows, 5056)
    kernels.combine(systems, rows, torch.ones(2, 5056))
    kernels.gram(systems, rows, torch.tensor([1, 3]))
    kernels.conjugate(systems, rows, 3)
    kernels.multiply(systems.basis, torch.ones(f, f), systems.basis.clone())
    once = {(each[0].__name__, each[2].get("N")): each for each in kernels.launches}
    assert {name for name, _ in once} == set(KERNELS)
    return once.items()


@pytest.mark.parametrize(
    ("capability", "precision", "f", "implicit", "by_row", "sizes"),
    [
        (80, "highest", 50, False, True, (32,)),
        (90, "highest", 1024, True, True, (128,)),
        (100, "high", 128, True, False, (64,)),
    ],
)
def test_registers_and_products(
    kernels, tmp_path, capability, precision, f, implicit, by_row, sizes
):
    """Nothing is spilled (little, of 128 cells), and products are float32's, or three of tf32."""
    torch.set_float32_matmul_precision(precision)
    for (name, _), each in launched(kernels, f, implicit, by_row, sizes):
        ptx, usage, shared = build(each, capability, tmp_path, specialize=True)
        registers, spilled = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        assert registers * 32 * each[2]["num_warps"] <= 1 << 16, usage
        assert shared <= SHARED[capability]
        assert spilled <= (128 if each[2].get("N") == 128 else 0), (name, usage)
        units = re.search(r"(mma\.sync|wgmma|tcgen05\.mma)\S*tf32", ptx)
        assert bool(units) == (name in PRODUCTS and precision != "highest")
        # Numbers that are too small for a normalized float are not taken for zeros.
        assert ".ftz" not in ptx
