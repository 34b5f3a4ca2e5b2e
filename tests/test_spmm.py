"""spmm: every backend and level against the reference in float64, gradients, threads, long rows,
and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from conftest import interpreted, placed
from vecsmith import ops
from vecsmith.ops._cells import cells_of
from vecsmith.reference import spmm as reference

WIDTHS = [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 74, 128, 129, 300]


def matrix_of(rows=37, columns=53, density=0.3, seed=0, dtype=np.float64, index=np.int32):
    draw = np.random.default_rng(seed)
    mask = draw.random((rows, columns)) < density
    mask[rows // 2 :: 5] = False  # rows without cells
    matrix = sparse.csr_matrix(np.where(mask, draw.standard_normal((rows, columns)), 0))
    matrix = matrix.astype(dtype)
    matrix.indptr, matrix.indices = matrix.indptr.astype(index), matrix.indices.astype(index)
    return matrix


def dense_of(rows, width, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)


def expected(matrix, dense):
    """(in the dtype of dense, by the reference; in float64, with sums of more digits)."""
    cells = cells_of("test", matrix)
    values = cells.values.to(dense.dtype)
    terms = values.numpy()[:, None].astype(np.longdouble) * dense.numpy()[cells.indices.numpy()]
    exact = np.zeros((matrix.shape[0], dense.shape[1]))
    begins = cells.indptr.numpy()
    filled = np.flatnonzero(np.diff(begins))
    if len(filled):
        exact[filled] = np.add.reduceat(terms, begins[filled], axis=0)
    plain = reference.spmm(cells.indptr, cells.indices, values, dense)
    return plain, torch.from_numpy(exact)


def product(case, matrix, dense, **options):
    """By the backend of a case: scipy's matrices are on the CPU, and those of a GPU are cells."""
    if case.device != "cpu":
        matrix = cells_of("test", matrix).to(torch.device(case.device))
    return ops.spmm(matrix, placed(dense, case.device), backend=case.backend, **options)


def check(case, matrix, dense, compare):
    compare(product(case, matrix, dense), *expected(matrix, dense))


def test_the_reference_is_the_product():
    matrix, dense = matrix_of(), dense_of(53, 7)
    found = ops.spmm(matrix, dense, backend="reference")
    torch.testing.assert_close(found, torch.from_numpy(matrix.toarray()) @ dense)


@pytest.mark.parametrize("width", WIDTHS)
def test_widths(operator_case, assert_close_to_reference, width):
    if operator_case.backend == "triton" and interpreted() and width not in (1, 3, 17, 74, 129):
        pytest.skip("the interpreter is slow")
    dense = dense_of(53, width, operator_case.dtype)
    check(operator_case, matrix_of(), dense, assert_close_to_reference)


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("value", [np.float32, np.float64, np.int8, np.int64, np.bool_])
def test_types_of_a_matrix(operator_case, assert_close_to_reference, index, value):
    if operator_case.backend == "triton" and interpreted() and value != np.int8:
        pytest.skip("the interpreter is slow")
    matrix = (3 * matrix_of(index=np.int64)).astype(value)
    matrix.indptr, matrix.indices = matrix.indptr.astype(index), matrix.indices.astype(index)
    check(operator_case, matrix, dense_of(53, 20, operator_case.dtype), assert_close_to_reference)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (5, 1000), (1000, 5)])
def test_shapes(operator_case, assert_close_to_reference, shape):
    if operator_case.backend == "triton" and interpreted() and shape == (1000, 5):
        pytest.skip("the interpreter is slow")
    dense = dense_of(shape[1], 18, operator_case.dtype)
    check(operator_case, matrix_of(*shape), dense, assert_close_to_reference)


@pytest.mark.parametrize("width", [3, 16, 40])
def test_strides(operator_case, assert_close_to_reference, width):
    if operator_case.backend == "triton" and interpreted() and width != 16:
        pytest.skip("the interpreter is slow")
    wide = dense_of(106, 2 * width, operator_case.dtype).fill_(torch.nan)
    given_dense = dense_of(53, width, operator_case.dtype)
    for view in (
        wide[:53, width:],  # of rows that are apart
        wide[::2, :width],
        wide[:53, ::2],
        torch.empty(width, 53, dtype=operator_case.dtype).T,
        torch.empty(width + 1, 53 + 2, dtype=operator_case.dtype).T[1:54, :width],
    ):
        view.copy_(given_dense)
        check(operator_case, matrix_of(), view, assert_close_to_reference)
    check(operator_case, matrix_of(), given_dense[:1].expand(53, width), assert_close_to_reference)
    check(operator_case, matrix_of(), given_dense[:, :1].expand(53, 6), assert_close_to_reference)


@pytest.mark.parametrize(("rows", "columns", "width"), [(0, 4, 3), (4, 0, 3), (4, 5, 0), (0, 0, 0)])
def test_nothing(operator_case, rows, columns, width):
    dense = torch.zeros(columns, width, dtype=operator_case.dtype)
    matrix = sparse.csr_matrix((rows, columns), dtype=np.float32)
    found = product(operator_case, matrix, dense)
    assert found.device.type == operator_case.device
    assert torch.equal(found.cpu(), dense.new_zeros(rows, width))


def long_rows() -> sparse.csr_matrix:
    """Rows of more cells than a thread takes at once, of exactly as many, and short ones."""
    draw = np.random.default_rng(3)
    counts = [5, 8192, 0, 8193, 20_001, 1, 16_384, 3, 8191]
    columns = 20_001
    indices = [np.sort(draw.choice(columns, n, replace=False)) for n in counts]
    indptr = np.concatenate([[0], np.cumsum(counts)])
    values = draw.standard_normal(indptr[-1])
    return sparse.csr_matrix((values, np.concatenate(indices), indptr), (len(counts), columns))


@pytest.mark.cases(backend="native")
@pytest.mark.parametrize("width", [1, 5, 16, 40, 200])
def test_long_rows(operator_case, assert_close_to_reference, width):
    matrix, dense = long_rows(), dense_of(20_001, width, operator_case.dtype)
    found = [ops.spmm(matrix, dense, num_threads=threads) for threads in (1, 2, 3, 7)]
    assert_close_to_reference(found[0], *expected(matrix, dense))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.cases(backend="native")
def test_bits_do_not_depend_on_threads(operator_case):
    matrix = matrix_of(3000, 700, 0.1)
    for width in (3, 74):
        dense = dense_of(700, width, operator_case.dtype)
        found = [ops.spmm(matrix, dense, num_threads=threads) for threads in (1, 2, 5, 16)]
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_tall_dense_matrix():
    """One that no cache holds: rows are fetched ahead, and not beyond the last cell."""
    draw = np.random.default_rng(0)
    columns = 1 << 18
    matrix = sparse.csr_matrix(
        (draw.standard_normal(500), draw.integers(columns, size=500), np.arange(0, 501, 5)),
        (100, columns),
    )
    dense = torch.randn(columns, 33)
    found = ops.spmm(matrix, dense)
    np.testing.assert_allclose(found, matrix @ dense.double().numpy(), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 90), st.floats(0, 1), st.integers(0, 99)
)
def test_any_shape(rows, columns, width, density, seed):
    matrix, dense = matrix_of(rows, columns, density, seed), dense_of(columns, width)
    found = ops.spmm(matrix, dense)
    np.testing.assert_allclose(found, matrix.toarray() @ dense.numpy(), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_kinds_of_matrices():
    matrix, dense = matrix_of(), dense_of(53, 9)
    wanted = ops.spmm(matrix, dense)
    csr = torch.sparse_csr_tensor(
        *(torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data)),
        matrix.shape,
        check_invariants=True,
    )
    for same in (matrix.tocsc(), matrix.tocoo(), csr, csr.to_sparse_coo(), cells_of("", matrix)):
        assert torch.equal(ops.spmm(same, dense), wanted)
    twice = sparse.csr_matrix(([1.0, 2.0, 4.0], [1, 0, 1], [0, 3]), (1, 2))
    assert ops.spmm(twice, torch.eye(2)).tolist() == [[2.0, 5.0]]


def test_other_values():
    matrix, dense = matrix_of(), dense_of(53, 9)
    other = torch.randn(matrix.nnz, dtype=torch.float64)
    shaped = sparse.csr_matrix((other.numpy(), matrix.indices, matrix.indptr), matrix.shape)
    assert torch.equal(ops.spmm(matrix, dense, other), ops.spmm(shaped, dense))
    other[0] = torch.inf
    row = int(np.flatnonzero(np.diff(matrix.indptr))[0])
    found = ops.spmm(matrix, dense, other)
    assert found[row].isinf().all()
    assert found[row + 1 :].isfinite().all()


def test_what_no_cell_names_may_hold_anything(operator_case):
    matrix = matrix_of(density=0.05)
    dense = dense_of(53, 21, operator_case.dtype)
    unnamed = np.setdiff1d(np.arange(53), matrix.indices)
    assert len(unnamed) > 3
    dense[unnamed] = torch.nan
    found = product(operator_case, matrix, dense)
    assert found.isfinite().all()


# --- Gradients. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients(backend):
    matrix = matrix_of(9, 7, 0.5)
    dense = dense_of(7, 4).requires_grad_()
    values = torch.randn(matrix.nnz, dtype=torch.float64, requires_grad=True)

    def product(dense, values):
        return ops.spmm(matrix, dense, values, backend=backend)

    assert torch.autograd.gradcheck(product, (dense, values))
    assert torch.autograd.gradgradcheck(product, (dense, values))
    assert torch.autograd.gradcheck(lambda x: ops.spmm(matrix, x, backend=backend), (dense,))


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (40, 60)])
def test_gradients_are_those_of_the_dense_product(rows, columns):
    matrix = matrix_of(rows, columns, index=np.int64)
    dense = dense_of(columns, 5).requires_grad_()
    values = torch.from_numpy(matrix.data).requires_grad_()
    weight = dense_of(rows, 5, seed=4)
    (ops.spmm(matrix, dense, values) * weight).sum().backward()
    wanted = torch.from_numpy(matrix.toarray()).T @ weight
    torch.testing.assert_close(dense.grad, wanted)
    at = matrix.tocoo()
    torch.testing.assert_close(values.grad, (weight @ dense.detach().T)[at.row, at.col])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_a_gradient_that_would_be_lost():
    matrix = torch.eye(3).to_sparse_csr().requires_grad_()
    with pytest.raises(RuntimeError, match="expected a matrix that requires no gradient"):
        ops.spmm(matrix, torch.ones(3, 2))
    with torch.no_grad():
        assert torch.equal(ops.spmm(matrix, torch.ones(3, 2)), torch.ones(3, 2))


# --- torch. ---------------------------------------------------------------------------------------


def test_opcheck():
    cells = cells_of("test", matrix_of(12, 9, 0.4))
    dense = dense_of(9, 6)
    for grad in (False, True):
        values = cells.values.clone().requires_grad_(grad)
        given_dense = dense.clone().requires_grad_(grad)
        torch.library.opcheck(
            torch.ops.vecsmith.spmm.default,
            (cells.indptr, cells.indices, values, given_dense, "", 1),
        )


def test_compile():
    cells = cells_of("test", matrix_of())

    def model(dense, values):
        return ops.spmm(cells, dense.relu(), values).square().sum()

    def gradients(function):
        dense, values = dense_of(53, 8).requires_grad_(), cells.values.clone().requires_grad_()
        function(dense, values).backward()
        return dense.grad, values.grad

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for found, wanted in zip(gradients(compiled), gradients(model), strict=True):
        torch.testing.assert_close(found, wanted)


# --- What is refused. -----------------------------------------------------------------------------

DENSE = torch.ones(4, 3)
EYE = sparse.identity(4, dtype=np.float32, format="csr")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.eye(4), DENSE), TypeError, "expected a scipy.sparse matrix or a torch.sparse_csr"),
        ((torch.eye(4), DENSE), TypeError, "got a tensor of torch.strided"),
        ((EYE, DENSE.numpy()), TypeError, "expected dense to be a torch.Tensor; got ndarray"),
        ((EYE, DENSE.to_sparse()), TypeError, "expected dense to be a strided tensor"),
        ((EYE, DENSE.half()), TypeError, "expected dense of float32 or float64; got torch.float16"),
        ((EYE, DENSE.long()), TypeError, "expected dense of float32 or float64"),
        ((EYE, DENSE[0]), ValueError, r"expected dense of shape \[4, any\]; got \[3\]"),
        ((EYE, DENSE[:3]), ValueError, r"expected dense of shape \[4, any\]; got \[3, 3\]"),
        ((EYE, DENSE.to("meta")), ValueError, "expected the matrix on meta; got it on cpu"),
        ((EYE, DENSE, [1.0]), TypeError, "expected values to be a torch.Tensor; got list"),
        ((EYE, DENSE, torch.ones(4).double()), TypeError, "expected values to be torch.float32"),
        ((EYE, DENSE, torch.ones(3)), ValueError, r"expected values of shape \[4\]; got \[3\]"),
        ((EYE, DENSE, torch.ones(8)[::2]), ValueError, "expected values to be contiguous"),
        ((EYE * np.inf, DENSE), ValueError, "expected values to be finite; got inf in row 0"),
        (
            (sparse.csr_matrix(([1.0], [0], [0, 1])).astype(complex), DENSE[:1]),
            TypeError,
            "expected values to be real numbers",
        ),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=rf"^spmm: .*{message}"):
        ops.spmm(*arguments)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_threads": 0}, ValueError),
        ({"num_threads": 1.5}, TypeError),
        ({"backend": "x"}, ValueError),
    ],
)
def test_refused_options(options, error):
    with pytest.raises(error, match=r"^spmm: expected"):
        ops.spmm(EYE, DENSE, **options)


def test_broken_matrices():
    def broken(**parts):
        matrix = EYE.copy()
        for name, part in parts.items():
            setattr(matrix, name, np.array(part, dtype=np.int32))
        return matrix

    for parts, message in (
        ({"indices": [0, 1, 2, 4]}, r"expected columns in 0..3; got 4"),
        ({"indices": [0, -1, 2, 3]}, r"expected columns in 0..3; got -1"),
        ({"indptr": [0, 2, 1, 3, 4]}, "expected indptr to rise from 0 to the number of cells"),
        ({"indptr": [0, 1, 2, 3, 9]}, "expected indptr to rise from 0 to the number of cells"),
    ):
        with pytest.raises(ValueError, match=f"^spmm: {message}"):
            ops.spmm(broken(**parts), DENSE)


def test_a_backend_that_cannot_run():
    with pytest.raises(ops.BackendUnavailable, match="it takes cuda tensors, not cpu tensors"):
        ops.spmm(EYE, DENSE, backend="triton")
