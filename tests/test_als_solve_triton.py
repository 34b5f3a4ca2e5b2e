"""The Triton kernels of `als_solve` against the reference in float64.

Without a GPU they run in Triton's interpreter (`make test-triton`); with one on it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import interpreted
from test_als_solve import (
    METHODS,
    VALUES,
    error,
    expected,
    factors_of,
    matrix_of,
    single_precision,
)
from vecsmith import ops
from vecsmith.ops import _triton_als_solve as door
from vecsmith.ops._cells import Cells, cells_of
from vecsmith.reference import als_solve as reference

pytestmark = [pytest.mark.triton, *([] if interpreted() else [pytest.mark.gpu])]
DEVICE = "cpu" if interpreted() else "cuda"


@pytest.fixture
def kernels():
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels import als_solve

    return als_solve


@pytest.fixture
def rescued(kernels, monkeypatch):
    """The rows that were solved again in float64."""
    rows, rescue = [], door._rescue

    def counting(systems, row):
        rows.append(row)
        rescue(systems, row)

    monkeypatch.setattr(door, "_rescue", counting)
    return rows


def solve(matrix, factors, **options):
    """By the kernels, on the CPU."""
    moved = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    found = ops.als_solve(
        cells_of("", matrix).to(DEVICE), factors.to(DEVICE), backend="triton", **moved
    )
    if "out" in moved:
        assert found is moved["out"]
    return found.cpu()


def check(matrix, factors, **options):
    found = solve(matrix, factors, **options)
    assert error(found, expected(matrix, factors, **options)) <= max(
        2 * single_precision(matrix, factors, **options), 1e-6
    )
    assert not found[np.diff(matrix.indptr) == 0].any()


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("f", [1, 7, 35])
def test_exact(rescued, implicit, f):
    """Few cells in programs of 16, 32 and 64; more of them than factors."""
    lengths = [0, 1, 2, 5, 16, 17, max(f - 1, 0), f, f + 1, 70]
    check(
        *(matrix_of(lengths, columns=80), factors_of(80, f)),
        implicit=implicit,
        alpha=3.0,
        regularization=0.3,
    )
    assert not rescued


@pytest.mark.parametrize("by_row", [False, True], ids=["one", "by-row"])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_longer_rows(kernels, rescued, monkeypatch, implicit, by_row):
    """Systems that torch factors, of as many numbers as cells or as factors, from cells in several
    parts, in several batches."""
    monkeypatch.setattr(kernels, "MOST_CELLS", 10)
    monkeypatch.setattr(kernels, "PART", 40)
    monkeypatch.setattr(door, "_AT_ONCE", 4 * 66 * 66)
    monkeypatch.setattr(door, "_MOST_PARTS", 3)
    f, lengths = 66, [3, 11, 64, 65, 66, 12, 67, 90]
    matrix, factors = matrix_of(lengths, columns=90), factors_of(90, f)
    ridge = torch.from_numpy(np.diff(matrix.indptr) * 0.02 + 0.1) if by_row else 0.3
    options = {"implicit": implicit, "alpha": 3.0, "regularization": ridge}
    found = solve(matrix, factors, **options)
    assert error(found, expected(matrix, factors, **options)) < 1e-5
    assert not rescued


def test_most_cells_of_a_program(rescued):
    check(
        *(matrix_of([128, 100], columns=130), factors_of(130, 130)),
        alpha=3.0,
        regularization=0.3,
    )
    assert not rescued


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("ridges", [False, True], ids=["one", "by-row"])
@pytest.mark.parametrize("method", METHODS)
def test_methods(implicit, ridges, method):
    f = 20
    matrix = matrix_of([0, 3, 4, 5, 6, 19, 33, 50], columns=60)
    factors = factors_of(60, f)
    ridge = torch.from_numpy(np.diff(matrix.indptr) * 0.02 + 0.1) if ridges else 0.3
    start = torch.randn(matrix.shape[0], f, generator=torch.Generator().manual_seed(2))
    options = {"implicit": implicit, "alpha": 2.0, "regularization": ridge, "method": method}
    options |= METHODS[method]
    wanted = expected(matrix, factors, out=start, **options)
    found = solve(matrix, factors, out=start.clone(), **options)
    assert error(found, wanted) < 3e-5


@pytest.mark.parametrize("method", METHODS)
def test_steps_that_end_early(method):
    """None at all, more than there is to do, and one block of all numbers."""
    matrix, factors = matrix_of([0, 6, 9], columns=12), factors_of(12, 5)
    start = factors_of(3, 5, seed=3)
    options = {"method": method, "regularization": 1.0, "exact_below": 0, "block_size": 5}
    if method != "cholesky":
        assert error(
            solve(matrix, factors, out=start.clone(), **options, steps=0), start.double()
        ) < 1e-6  # fmt: skip
    found = solve(matrix, factors, out=start.clone(), **options, steps=12)
    assert error(found, expected(matrix, factors, regularization=1.0)) < 1e-5


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_confidences_of_all_kinds(kind, method):
    matrix = matrix_of([0, 1, 4, 9, 13, 30], columns=40, values=VALUES[kind])
    factors = factors_of(40, 14)
    start = factors_of(matrix.shape[0], 14, seed=3)
    options = {"regularization": 0.5, "method": method, **METHODS[method]}
    found = solve(matrix, factors, out=start.clone(), **options)
    wanted = expected(matrix, factors, out=start, **options)
    assert error(found, wanted) < (1e-3 if kind == "large" else 1e-4)


@pytest.mark.parametrize("most", [10, 0], ids=["program", "torch"])
def test_weights_of_explicit_cells(kernels, monkeypatch, most):
    monkeypatch.setattr(kernels, "MOST_CELLS", most)
    matrix, factors = matrix_of([0, 2, 9, 10, 15], columns=20), factors_of(20, 12)
    weights = torch.rand(matrix.nnz, generator=torch.Generator().manual_seed(0))
    weights[::3] = 0
    options = {"implicit": False, "weights": weights, "regularization": 0.2}
    found = solve(matrix, factors, **options)
    assert error(found, expected(matrix, factors, **options)) < 1e-5


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.int16, np.int64, np.uint8])
def test_cells_in_other_types(dtype):
    matrix = matrix_of([0, 3, 9], columns=12, values=lambda draw, n: draw.integers(1, 5, n))
    factors = factors_of(12, 5)
    wanted = solve(matrix, factors, alpha=2.0)
    cells = cells_of("", matrix)
    values = torch.from_numpy(matrix.data.astype(dtype))
    other = Cells(cells.indptr.long(), cells.indices.long(), values, cells.shape)
    found = ops.als_solve(other.to(DEVICE), factors.to(DEVICE), alpha=2.0, backend="triton")
    assert torch.equal(found.cpu(), wanted)


def test_factors_and_out_may_be_parts_of_wider_tables():
    matrix, factors = matrix_of([0, 3, 9, 12], columns=15), factors_of(15, 12)
    for implicit in (True, False):
        wanted = solve(matrix, factors, implicit=implicit)
        wide = torch.full((15, 20), torch.nan, device=DEVICE)
        wide[:, 3:15] = factors
        out = torch.full((4, 17), 7.0, device=DEVICE)
        cells = cells_of("", matrix).to(DEVICE)
        found = ops.als_solve(
            cells, wide[:, 3:15], out=out[:, 2:14], backend="triton", implicit=implicit
        )
        assert torch.equal(found.cpu(), wanted)
        assert bool((out[:, [0, 1, 14, 15, 16]] == 7).all())


@pytest.mark.parametrize("most", [128, 1], ids=["program", "torch"])
def test_systems_that_are_singular_have_an_answer(kernels, monkeypatch, rescued, most):
    monkeypatch.setattr(kernels, "MOST_CELLS", most)
    matrix, factors = matrix_of([0, 1, 5, 12], columns=12), factors_of(12, 20)
    for implicit in (True, False):
        found = solve(matrix, factors, regularization=0.0, implicit=implicit)
        assert found.isfinite().all()
        if not implicit:
            got = (found @ factors.T)[3, matrix.indices[-12:]]
            assert torch.allclose(got, torch.from_numpy(matrix.data[-12:]), rtol=1e-3, atol=1e-3)
    assert not rescued
    # One column twelve times: two cells of it are too many.
    alike = factors_of(1, 20).repeat(12, 1)
    found = solve(matrix, alike, regularization=1e-30, implicit=False)
    assert rescued == [2, 3]
    native = ops.als_solve(matrix, alike, regularization=1e-30, implicit=False)
    assert error(found @ alike[0], (native @ alike[0]).double()) < 1e-5
    assert not solve(matrix, torch.zeros(12, 20), regularization=0.0).any()


@pytest.mark.parametrize("by_row", [False, True], ids=["one", "by-row"])
def test_confidences_too_large_for_float32_are_solved_in_float64(rescued, by_row):
    """Of columns that are the same: what tells their cells apart has no digits left."""
    matrix = matrix_of([3, 10], columns=10, values=lambda draw, n: draw.uniform(1e8, 1e9, n))
    factors = factors_of(5, 12).repeat(2, 1)
    ridge = torch.tensor([0.4, 0.7]) if by_row else 0.5
    found = solve(matrix, factors, regularization=ridge)
    assert 1 in rescued
    assert error(found, expected(matrix, factors, regularization=ridge)) < 1e-4


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_in_three_parts(precision):
    matrix, factors = matrix_of([0, 3, 17, 30], columns=30), factors_of(30, 20)
    options = {"alpha": 3.0, "regularization": 0.3}
    torch.set_float32_matmul_precision(precision)
    try:
        assert error(solve(matrix, factors, **options), expected(matrix, factors, **options)) < 1e-5
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tiles_of_a_lower_half(kernels):
    from triton_tiles import tiles

    out = torch.zeros(2, 1 << 16, dtype=torch.int32, device=DEVICE)
    tiles[(1,)](out, COUNT=1 << 16)
    i, j = out.cpu()
    assert torch.equal(i * (i + 1) // 2 + j, torch.arange(1 << 16, dtype=torch.int32))
    assert bool(((j >= 0) & (j <= i)).all())


@pytest.mark.gpu
@pytest.mark.parametrize("f", [128, 1024])
@pytest.mark.parametrize("method", METHODS)
def test_gpu_reaches_the_loss_of_the_cpu(f, method):
    draw = np.random.default_rng(0)
    lengths = (2 ** draw.uniform(0, 11.5, 400)).astype(int)
    matrix = matrix_of(lengths, columns=4000)
    losses = []
    for device in ("cpu", "cuda"):
        cells, factors = cells_of("", matrix).to(device), factors_of(4000, f).to(device)
        x = torch.zeros(len(lengths), f, device=device)
        for _ in range(2):
            ops.als_solve(cells, factors, alpha=5.0, regularization=0.1, method=method, out=x)
        again = torch.zeros_like(x)
        for _ in range(2):
            ops.als_solve(cells, factors, alpha=5.0, regularization=0.1, method=method, out=again)
        assert torch.equal(again, x)
        parts = [t.cpu() for t in (cells.indptr, cells.indices, cells.values, x, factors)]
        losses.append(float(reference.als_loss(*parts, alpha=5.0, regularization=0.1)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_gpu_takes_sparse_tensors_in_any_order():
    matrix, factors = matrix_of([3, 0, 9], columns=20), factors_of(20, 6).cuda()
    wanted = ops.als_solve(matrix, factors.cpu())
    order = np.argsort(np.random.default_rng(0).random(matrix.nnz))
    coo = matrix.tocoo()
    rows = np.sort(coo.row)
    within = np.lexsort((order, coo.row))
    columns, values = coo.col[within], coo.data[within]
    indptr = np.searchsorted(rows, np.arange(4))
    tensor = torch.sparse_csr_tensor(
        *(torch.from_numpy(a).cuda() for a in (indptr, columns.astype(np.int64), values)),
        matrix.shape,
        check_invariants=False,
    )
    assert error(ops.als_solve(tensor, factors).cpu(), wanted.double()) < 1e-5


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_gpu_names_a_value_that_is_not_finite():
    matrix, factors = matrix_of([3, 0, 9], columns=20), factors_of(20, 6).cuda()
    matrix.data[5] = np.inf
    tensor = torch.sparse_csr_tensor(
        *(torch.from_numpy(a).cuda() for a in (matrix.indptr, matrix.indices, matrix.data)),
        matrix.shape,
        check_invariants=False,
    )
    with pytest.raises(ValueError, match="got inf in row 2"):
        ops.als_solve(tensor, factors)
