"""als_solve: every backend, level and method against the reference in float64, rows of all kinds,
cells in all forms, rescue, threads, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from vecsmith import _native, ops
from vecsmith.ops import _registry
from vecsmith.ops._cells import cells_of
from vecsmith.reference import als_solve as reference

LEVELS = _native.isa_levels()
METHODS = {
    "cholesky": {},
    "cg": {"steps": 2, "exact_below": 5},
    "block": {"steps": 2, "block_size": 16},
}


@pytest.fixture(autouse=True)
def best_level():
    yield
    _native.set_isa_level("")


def matrix_of(lengths, columns: int = 400, seed: int = 0, values=None) -> sparse.csr_matrix:
    draw = np.random.default_rng(seed)
    rows = [np.sort(draw.choice(columns, n, replace=False)) for n in lengths]
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int32)
    indices = np.concatenate([*rows, np.zeros(0)]).astype(np.int32)
    data = draw.uniform(1, 5, len(indices)) if values is None else values(draw, len(indices))
    return sparse.csr_matrix((data.astype(np.float32), indices, indptr), (len(rows), columns))


def factors_of(columns: int, f: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(columns, f, generator=generator) / f**0.5


def expected(matrix, factors, **options) -> torch.Tensor:
    cells = cells_of("", matrix)
    method = options.get("method", "cholesky")
    options.setdefault("steps", 3 if method == "cg" else 1)
    if "out" in options:
        options["start"] = options.pop("out")
    return reference.als_solve(cells.indptr, cells.indices, cells.values, factors, **options)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


def lengths_of(f: int) -> list[int]:
    draw = np.random.default_rng(f)
    return [*draw.integers(0, 45, 17), 0, 1, 2, 31, 32, 33, f - 1, f, f + 1, 200, 399]


def single_precision(matrix, factors, **options) -> float:
    """The error of the same in plain torch and float32."""
    cells = cells_of("", matrix)
    wanted = expected(matrix, factors, **options)
    found = torch.zeros_like(factors[:1]).repeat(cells.shape[0], 1)
    gram = factors.T @ factors if options.get("implicit", True) else 0
    for u in range(cells.shape[0]):
        part = slice(int(cells.indptr[u]), int(cells.indptr[u + 1]))
        p, r = factors[cells.indices[part].long()], cells.values[part]
        if options.get("implicit", True):
            c = options.get("alpha", 1.0) * r
            w, b = c.abs() - 1, c.clamp_min(0)
        else:
            w, b = torch.ones_like(r), r
        a = gram + options["regularization"] * torch.eye(factors.shape[1]) + (p.T * w) @ p
        found[u] = torch.linalg.solve(a, p.T @ b)
    return error(found, wanted)


@pytest.mark.parametrize("backend", ["torch", *LEVELS])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("f", [1, 2, 7, 16, 33, 64, 100])
def test_exact(backend, implicit, f):
    matrix, factors = matrix_of(lengths_of(f)), factors_of(400, f)
    options = {"implicit": implicit, "alpha": 3.0, "regularization": 0.3}
    if backend != "torch":
        _native.set_isa_level(backend)
    found = ops.als_solve(
        matrix, factors, backend="torch" if backend == "torch" else None, **options
    )
    assert error(found, expected(matrix, factors, **options)) <= max(
        2 * single_precision(matrix, factors, **options), 1e-6
    )
    assert not found[np.diff(matrix.indptr) == 0].any()


@pytest.mark.parametrize("backend", ["torch", *LEVELS])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("ridges", [False, True], ids=["one", "by-row"])
@pytest.mark.parametrize("method", METHODS)
def test_methods(backend, implicit, ridges, method):
    f = 40
    matrix, factors = matrix_of(lengths_of(f)), factors_of(400, f)
    ridge = torch.from_numpy(np.diff(matrix.indptr) * 0.02 + 0.1) if ridges else 0.3
    start = torch.randn(matrix.shape[0], f, generator=torch.Generator().manual_seed(2))
    options = {"implicit": implicit, "alpha": 2.0, "regularization": ridge, "method": method}
    options |= METHODS[method]
    if backend != "torch":
        _native.set_isa_level(backend)
    wanted = expected(matrix, factors, out=start, **options)
    given_backend = "torch" if backend == "torch" else "native"
    found = ops.als_solve(matrix, factors, out=start.clone(), backend=given_backend, **options)
    assert error(found, wanted) < 3e-5


VALUES = {
    "one weight of zero": lambda draw, n: draw.integers(1, 3, n),
    "all weights zero": lambda draw, n: np.ones(n),
    "below one": lambda draw, n: draw.uniform(0.1, 0.9, n),
    "disliked": lambda draw, n: draw.choice([-3.0, -0.5, 0.5, 4.0], n),
    "zeros": lambda draw, n: draw.integers(0, 2, n),
    "large": lambda draw, n: draw.uniform(1, 1e4, n),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("method", METHODS)
def test_confidences_of_all_kinds(level, kind, method):
    _native.set_isa_level(level)
    matrix = matrix_of(lengths_of(30), values=VALUES[kind])
    factors = factors_of(400, 30)
    start = factors_of(matrix.shape[0], 30, seed=3)
    options = {"regularization": 0.5, "method": method, **METHODS[method]}
    found = ops.als_solve(matrix, factors, out=start.clone(), **options)
    wanted = expected(matrix, factors, out=start, **options)
    assert error(found, wanted) < (1e-3 if kind == "large" else 1e-4)


def test_weights_of_explicit_cells():
    matrix, factors = matrix_of(lengths_of(20)), factors_of(400, 20)
    weights = torch.rand(matrix.nnz, generator=torch.Generator().manual_seed(0))
    weights[::7] = 0
    options = {"implicit": False, "weights": weights, "regularization": 0.2}
    for backend in ("native", "torch"):
        found = ops.als_solve(matrix, factors, backend=backend, **options)
        assert error(found, expected(matrix, factors, **options)) < 1e-5


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize(
    "dtype",
    [np.float64, np.float16, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, bool],
)
def test_cells_in_all_types(index, dtype):
    matrix = matrix_of(lengths_of(12), values=lambda draw, n: draw.integers(1, 2, n))
    factors = factors_of(400, 12)
    wanted = ops.als_solve(matrix, factors, alpha=4.0)
    parts = (matrix.data.astype(dtype), matrix.indices.astype(index), matrix.indptr.astype(index))
    other = sparse.csr_matrix(parts, matrix.shape)
    other.indices, other.indptr = parts[1], parts[2]
    assert torch.equal(ops.als_solve(other, factors, alpha=4.0), wanted)
    assert torch.equal(ops.als_solve(sparse.csr_array(other), factors, alpha=4.0), wanted)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_no_copy_of_what_is_canonical():
    matrix = matrix_of(lengths_of(12))
    cells = cells_of("", matrix)
    assert cells.values.data_ptr() == matrix.data.ctypes.data
    assert cells.indices.data_ptr() == matrix.indices.ctypes.data
    parts = [torch.from_numpy(a) for a in (matrix.indptr, matrix.indices, matrix.data)]
    tensor = torch.sparse_csr_tensor(*parts, matrix.shape, check_invariants=True)
    cells = cells_of("", tensor)
    assert cells.values.data_ptr() == tensor.values().data_ptr()
    factors = factors_of(400, 12)
    wanted = ops.als_solve(matrix, factors)
    assert torch.equal(ops.als_solve(tensor, factors), wanted)
    assert torch.equal(ops.als_solve(tensor.to_sparse_coo(), factors), wanted)
    assert torch.equal(ops.als_solve(matrix.tocoo(), factors), wanted)
    assert torch.equal(ops.als_solve(matrix.tocsc(), factors), wanted)
    assert torch.equal(ops.als_solve(cells, factors), wanted)
    back = cells.transposed().transposed()
    assert all(
        torch.equal(getattr(back, n), getattr(cells, n).to(getattr(back, n)))
        for n in ("indptr", "indices", "values")
    )


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_cells_that_come_twice_are_added_up_and_order_does_not_matter():
    matrix, factors = matrix_of(lengths_of(12)), factors_of(400, 12)
    wanted = ops.als_solve(matrix, factors)
    half = sparse.vstack([matrix]).tocoo()
    order = np.random.default_rng(0).permutation(2 * half.nnz)
    rows, columns = np.tile(half.row, 2)[order], np.tile(half.col, 2)[order]
    sorted_rows = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=matrix.shape[0]))])
    twice = sparse.csr_matrix(
        ((np.tile(half.data, 2) / 2)[order][sorted_rows], columns[sorted_rows], indptr),
        matrix.shape,
    )
    before = twice.indices.copy()
    assert not twice.has_canonical_format
    assert error(ops.als_solve(twice, factors), wanted.double()) < 1e-6
    assert np.array_equal(twice.indices, before)
    parts = (torch.from_numpy(a) for a in (twice.indptr, twice.indices, twice.data))
    tensor = torch.sparse_csr_tensor(*parts, twice.shape, check_invariants=False)
    assert error(ops.als_solve(tensor, factors), wanted.double()) < 1e-6


def test_factors_and_out_may_be_parts_of_wider_tables():
    matrix, factors = matrix_of(lengths_of(12)), factors_of(400, 12)
    wanted = ops.als_solve(matrix, factors)
    wide = torch.full((400, 20), torch.nan)
    wide[:, 3:15] = factors
    out = torch.full((matrix.shape[0], 17), 7.0)
    found = ops.als_solve(matrix, wide[:, 3:15], out=out[:, 2:14])
    assert torch.equal(found, wanted)
    assert (out[:, :2] == 7).all()
    assert (out[:, 14:] == 7).all()


@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_threads(method):
    matrix = matrix_of([*lengths_of(30), *[5] * 100], values=VALUES["disliked"])
    factors = factors_of(400, 30)
    start = factors_of(matrix.shape[0], 30, seed=3)
    found = [
        ops.als_solve(matrix, factors, method=method, out=start.clone(), num_threads=n)
        for n in (1, 2, 3, 7)
    ]
    assert all(torch.equal(one, found[0]) for one in found)


def test_rows_that_workers_share():
    columns, f = 70_000, 9
    matrix = matrix_of([50_000, 40, 69_999, 3], columns)
    factors = factors_of(columns, f)
    one = ops.als_solve(matrix, factors, num_threads=1, regularization=1.0)
    assert torch.equal(ops.als_solve(matrix, factors, num_threads=3, regularization=1.0), one)
    assert error(one, expected(matrix, factors, regularization=1.0)) < 1e-5


@pytest.mark.parametrize("f", [300, 513])
def test_many_factors(f):
    matrix, factors = matrix_of([1, 30, 33, 200, 299, 399]), factors_of(400, f)
    for method, options in METHODS.items():
        options = {**options, "regularization": 0.4, "alpha": 2.0, "method": method}
        found = ops.als_solve(matrix, factors, **options)
        assert error(found, expected(matrix, factors, **options)) < 1e-4


def test_systems_that_are_singular_have_an_answer():
    # No regularization, and fewer cells, and fewer columns, than factors.
    matrix, factors = matrix_of([0, 1, 5, 12], columns=12), factors_of(12, 20)
    for implicit in (True, False):
        for backend in ("native", "torch"):
            found = ops.als_solve(
                matrix, factors, regularization=0.0, implicit=implicit, backend=backend
            )
            assert found.isfinite().all()
            if not implicit:
                got = (found @ factors.T)[3, matrix.indices[-12:]]
                assert torch.allclose(
                    got, torch.from_numpy(matrix.data[-12:]), rtol=1e-3, atol=1e-3
                )
    alike = factors_of(1, 20).repeat(12, 1)
    assert ops.als_solve(matrix, alike, regularization=1e-30, implicit=False).isfinite().all()
    assert not ops.als_solve(matrix, torch.zeros(12, 20), regularization=0.0).any()


def test_each_method_lowers_the_loss():
    matrix, factors = matrix_of(lengths_of(30)), factors_of(400, 30)
    cells = cells_of("", matrix)
    start = torch.randn(matrix.shape[0], 30, generator=torch.Generator().manual_seed(0))
    for implicit in (True, False):
        options = {"regularization": 0.1, "implicit": implicit}

        def loss(x, options=options):
            return float(
                reference.als_loss(cells.indptr, cells.indices, cells.values, x, factors, **options)
            )

        best = loss(ops.als_solve(cells, factors, **options))
        for method in ("cg", "block"):
            losses = [loss(start)]
            x = start.clone()
            for _ in range(4):
                ops.als_solve(cells, factors, method=method, out=x, block_size=8, **options)
                losses.append(loss(x))
            assert losses == sorted(losses, reverse=True)
            assert best <= losses[-1] * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=20),
    f=st.integers(1, 40),
    alpha=st.sampled_from([0.5, 1.0, 7.0]),
    implicit=st.booleans(),
)
def test_shapes(lengths, f, alpha, implicit):
    matrix, factors = matrix_of(lengths, columns=30), factors_of(30, f)
    options = {"alpha": alpha, "implicit": implicit, "regularization": 0.5}
    found = ops.als_solve(matrix, factors, **options)
    assert found.shape == (len(lengths), f)
    if len(lengths):
        assert error(found, expected(matrix, factors, **options)) < 1e-4


def test_torch_knows_the_operator():
    matrix, factors = matrix_of([3, 0, 9]), factors_of(400, 6)
    cells = cells_of("", matrix)

    def call(factors):
        out = torch.zeros(3, 6)
        return ops.als_solve(cells, factors, out=out)

    given = (torch.zeros(3, 6), cells.indptr, cells.indices, cells.values, None, factors, 0.1, None)
    given = (*given, True, 1.0, "cholesky", 1, 128, 0, "", 0)
    torch.library.opcheck(torch.ops.vecsmith.als_solve.default, given)
    out = torch.zeros(3, 6)
    version = out._version
    ops.als_solve(matrix, factors, out=out)
    assert out._version > version
    assert torch.equal(out, call(factors))


def test_what_runs_on_a_gpu():
    operator = ops.registry()["als_solve"]
    pytest.importorskip("triton", reason="Triton is not installed")
    assert _registry.choose(operator, "cuda", torch.float32) == "triton"
    assert _registry.choose(operator, "cuda", torch.float64) == "torch"
    assert _registry.choose(operator, "cpu", torch.float32) == "native"
    matrix, factors = matrix_of([3, 0, 9]), factors_of(400, 6)
    with pytest.raises(_registry.BackendUnavailable, match="no backend"):
        ops.als_solve(matrix, factors.double(), backend="triton")
    with pytest.raises(_registry.BackendUnavailable, match="no backend"):
        ops.als_solve(matrix, torch.zeros(400, 4097), method="cg", backend="triton")


def test_float64_and_parameters():
    matrix, factors = matrix_of([3, 0, 9]), factors_of(400, 6).double()
    found = ops.als_solve(matrix, factors)
    assert found.dtype == torch.float64
    assert error(found, expected(matrix, factors)) < 1e-12
    table = torch.nn.Parameter(factors.float())
    with pytest.raises(RuntimeError, match="require no gradient"):
        ops.als_solve(matrix, table)
    with torch.no_grad():
        assert error(ops.als_solve(matrix, table), expected(matrix, factors)) < 1e-5


# --- numbers at the edge --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", *LEVELS])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ridge", [0.0, 1e-12, 0.01])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_more_factors_than_columns(backend, method, ridge, by_row, implicit):
    """Several half-steps with systems that are singular, or nearly: nothing explodes."""
    if backend != "torch":
        _native.set_isa_level(backend)
    matrix = matrix_of([0, 1, 5, 12, 20, 20, 7, 0, 3], 20)
    f = 40
    turned = matrix.T.tocsr()
    options = {**METHODS[method], "method": method, "implicit": implicit, "alpha": 2.0}
    options["backend"] = "torch" if backend == "torch" else "native"
    x, y = factors_of(matrix.shape[0], f), factors_of(20, f)
    losses = []
    for _ in range(4):
        for cells, factors, out in ((matrix, y, x), (turned, x, y)):
            lengths = torch.from_numpy(np.diff(cells.indptr)).double()
            reg = ridge * lengths if by_row else ridge
            ops.als_solve(cells, factors, out=out, regularization=reg, **options)
        cells = cells_of("", matrix)
        parts = (cells.indptr, cells.indices, cells.values, x, y)
        losses.append(
            float(reference.als_loss(*parts, regularization=0.0, implicit=implicit, alpha=2.0))
        )
    assert np.isfinite(losses).all()
    scale = float((matrix.data.astype(np.float64) ** 2).sum())
    assert max(losses[1:]) < scale
    if method == "cholesky" and ridge < 0.01:
        assert max(losses[1:]) < 1e-3 * scale


@pytest.mark.parametrize("backend", ["torch", *LEVELS])
@pytest.mark.parametrize("ridge", [0.0, 1e-42, 0.1])
def test_cells_of_weight_zero_say_nothing(backend, ridge):
    if backend != "torch":
        _native.set_isa_level(backend)
    name = "torch" if backend == "torch" else "native"
    matrix, factors = matrix_of([3, 2, 1, 4], 30), factors_of(30, 8)
    weights = torch.ones(matrix.nnz)
    weights[[1, 3, 4, 5]] = 0  # of rows 0, 1 (all) and 2 (all)
    kept = matrix.copy()
    kept.data[weights.numpy() == 0] = 0
    kept.eliminate_zeros()
    how = {"implicit": False, "regularization": ridge, "backend": name}
    found = ops.als_solve(matrix, factors, weights=weights, **how)
    torch.testing.assert_close(found, ops.als_solve(kept, factors, **how), rtol=1e-3, atol=1e-4)
    assert not found[1:3].any()


def test_sums_of_narrow_integers_do_not_go_round():
    narrow = sparse.csr_matrix(
        (np.full(200, 100, np.int8), np.zeros(200, np.int32), np.array([0, 200], np.int32)), (1, 3)
    )
    wide = sparse.csr_matrix(np.array([[20000.0, 0, 0]]))
    factors = factors_of(3, 4)
    torch.testing.assert_close(ops.als_solve(narrow, factors), ops.als_solve(wide, factors))
    many = narrow.copy()
    many.data = np.ones(200, bool)
    two = sparse.csr_matrix(np.array([[200.0, 0, 0]]))
    torch.testing.assert_close(ops.als_solve(many, factors), ops.als_solve(two, factors))


def test_what_scipy_remembers_of_a_matrix_is_not_believed():
    matrix = matrix_of([4, 4], 10)
    assert matrix.has_canonical_format
    matrix.indices[:2] = 3  # twice in row 0
    right = sparse.csr_matrix(matrix.toarray())
    factors = factors_of(10, 4)
    torch.testing.assert_close(ops.als_solve(matrix, factors), ops.als_solve(right, factors))


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "u4", "u8"])
def test_indices_of_other_integers(kind):
    matrix = matrix_of([4, 0, 7], 20)
    right = ops.als_solve(matrix, factors_of(20, 4))
    matrix.indptr, matrix.indices = matrix.indptr.astype(kind), matrix.indices.astype(kind)
    torch.testing.assert_close(ops.als_solve(matrix, factors_of(20, 4)), right)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"factors": 1e20}, "whose squares can be added up"),
        ({"values": 1e300}, "alpha times the values within float32"),
        ({"values": 1e38, "implicit": False, "weights": 1e3}, "values and their weights"),
        ({"regularization": 1e100}, "regularization within float32"),
        ({"values": 1e37, "implicit": False, "factors": 1e-4}, "whose solution torch.float32 can"),
    ],
)
def test_numbers_beyond_float32_are_refused(changed, words):
    matrix = matrix_of([4, 2, 7], 20).astype(np.float64)
    matrix.data *= changed.pop("values", 1.0)
    factors = factors_of(20, 4) * changed.pop("factors", 1.0)
    if "weights" in changed:
        changed["weights"] = torch.full((matrix.nnz,), changed["weights"])
    with pytest.raises(ValueError, match=words):
        ops.als_solve(matrix, factors, **changed)


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        (([0, 2], [0, 10**9], [1.0, 1.0]), ValueError, "columns in 0..2"),
        (([0, 2], [1, 0], [1.0, 1.0]), ValueError, "the columns of each row to rise"),
        (([0, 2], [1, 1], [1.0, 1.0]), ValueError, "the columns of each row to rise"),
        (([1, 2], [0, 1], [1.0, 1.0]), ValueError, "indptr to rise from 0"),
        (([0, 1, 2], [0, 1], [1.0, 1.0]), ValueError, r"indptr of rows \+ 1 = 2"),
        (([0, 2], [0, 1], [1.0]), ValueError, "a value for each of 2 cells"),
        (([0, 2], [0, 1], [1.0, float("nan")]), ValueError, "values to be finite"),
        (([0, 2.0], [0, 1], [1.0, 1.0]), TypeError, "indptr of int32 or int64"),
        ((None, [0, 1], [1.0, 1.0]), TypeError, "indptr to be a tensor"),
    ],
)
def test_cells_are_checked_where_they_are_made(parts, kind, words):
    made = [None if part is None else torch.tensor(part) for part in parts]
    with pytest.raises(kind, match=words):
        ops.Cells(*made, (1, 3))


def with_nan(matrix):
    matrix = matrix.copy()
    matrix.data[7] = np.nan
    return matrix


def broken(matrix, **changed):
    matrix = matrix.copy()
    for name, value in changed.items():
        array = getattr(matrix, name)
        array[value[0]] = value[1]
    return matrix


SMALL = matrix_of([3, 0, 9], columns=20)


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"matrix": SMALL.toarray()}, TypeError, "scipy.sparse matrix or a torch"),
        ({"matrix": torch.zeros(3, 20)}, TypeError, "got a tensor of torch.strided"),
        ({"matrix": SMALL.astype(np.complex64)}, TypeError, "real numbers; got complex64"),
        ({"matrix": with_nan(SMALL)}, ValueError, "finite; got nan in row 2, column"),
        ({"matrix": broken(SMALL, indices=(2, 99))}, ValueError, r"columns in 0\.\.19; got 99"),
        ({"matrix": broken(SMALL, indices=(2, -1))}, ValueError, r"columns in 0\.\.19; got -1"),
        ({"matrix": broken(SMALL, indptr=(1, 5))}, ValueError, "indptr to rise"),
        ({"matrix": SMALL[:, :19]}, ValueError, "a factor for each of 19 columns; got 20"),
        ({"factors": torch.zeros(20, 4).half()}, TypeError, "got torch.float16"),
        ({"factors": torch.zeros(20)}, ValueError, "factors of shape"),
        ({"factors": torch.full((20, 4), torch.inf)}, ValueError, "row 0 is not"),
        ({"factors": torch.zeros(20, 4, device="meta")}, ValueError, "the matrix on meta"),
        ({"regularization": -1.0}, ValueError, "regularization >= 0; got -1"),
        ({"regularization": float("nan")}, ValueError, "finite"),
        ({"regularization": "a"}, TypeError, "a number; got str"),
        ({"regularization": torch.ones(4)}, ValueError, r"floating point \[3\]"),
        ({"regularization": -torch.ones(3)}, ValueError, ">= 0"),
        ({"alpha": float("inf")}, ValueError, "alpha to be finite"),
        ({"alpha": True}, TypeError, "alpha to be a number"),
        ({"weights": torch.ones(12)}, ValueError, "explicit feedback alone"),
        ({"weights": torch.ones(11), "implicit": False}, ValueError, r"weights of shape \[12\]"),
        ({"weights": -torch.ones(12), "implicit": False}, ValueError, ">= 0"),
        ({"method": "lu"}, ValueError, "'cholesky', 'cg', 'block'; got 'lu'"),
        ({"method": "cg", "steps": -1}, ValueError, "steps in 0"),
        ({"method": "block", "block_size": 0}, ValueError, "block_size in 1"),
        ({"out": torch.zeros(4, 4)}, ValueError, "out of 3 rows; got 4"),
        ({"out": torch.zeros(3, 5)}, ValueError, "out of D=4; got 5"),
        ({"out": torch.zeros(3, 4).double()}, TypeError, "out to be torch.float32"),
        ({"out": torch.full((3, 4), torch.nan), "method": "cg"}, ValueError, "out to be finite"),
        ({"backend": "cuda"}, ValueError, "'triton', 'torch', 'reference'; got 'cuda'"),
        ({"num_threads": 0}, ValueError, "num_threads in 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changed, kind, words):
    values = {"matrix": SMALL, "factors": torch.ones(20, 4)}
    ops.als_solve(**values)
    with pytest.raises(kind, match=words):
        ops.als_solve(**{**values, **changed})


def test_out_may_not_be_the_factors():
    factors = torch.ones(20, 4)
    with pytest.raises(ValueError, match="memory"):
        ops.als_solve(SMALL, factors, out=factors[:3])
