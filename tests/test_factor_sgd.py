"""factor_sgd over ratings: every backend and level against the reference, the update against
autograd's gradient, the layout in blocks, threads, and what is refused."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from vecsmith import ops
from vecsmith.ops._factor_blocks import default_bands
from vecsmith.reference import factor_sgd as reference


def matrix_of(rows: int = 40, columns: int = 30, density: float = 0.3, seed: int = 0):
    draw = np.random.default_rng(seed)
    mask = draw.random((rows, columns)) < density
    mask[rows // 2 :: 7] = False  # rows without cells
    values = draw.integers(1, 6, mask.sum()).astype(np.float32)
    at, to = mask.nonzero()
    return sparse.csr_matrix((values, (at, to)), shape=(rows, columns))


def tables_of(rows: int, columns: int, f: int, dtype=torch.float32, seed: int = 1):
    """What an epoch changes, by name."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for side, count in (("user", rows), ("item", columns)):
        made[f"{side}_factors"] = torch.randn(count, f, generator=generator) / f**0.5
        made[f"{side}_bias"] = torch.randn(count, generator=generator) * 0.1
        made[f"{side}_squares"] = torch.rand(count, 2, generator=generator) + 0.5
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def in_one_table(tables: dict[str, torch.Tensor], stride: int) -> dict[str, torch.Tensor]:
    """The same, all that belongs to a row behind one another, and nan behind that."""
    found = {}
    for side in ("user", "item"):
        parts = {n: t for n, t in tables.items() if n.startswith(side)}
        count = len(parts[f"{side}_factors"])
        whole = torch.full((count, stride), torch.nan, dtype=parts[f"{side}_factors"].dtype)
        at = 0
        for name, tensor in parts.items():
            wide = tensor.shape[1] if tensor.dim() == 2 else 1
            view = whole[:, at : at + wide]
            view.copy_(tensor.reshape(count, wide))
            found[name] = view if tensor.dim() == 2 else view[:, 0]
            at += wide
        found[f"{side}_rest"] = whole[:, at:]
    return found


NUMBERS = {
    "mean": 3.1,
    "learning_rate": 0.05,
    "bias_learning_rate": 0.03,
    "regularization": 0.04,
    "bias_regularization": 0.02,
}


def chosen(tables, biases: bool, squares: bool) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in tables.items()
        if not (name.endswith("bias") and not biases)
        and not (name.endswith("squares") and not squares)
        and not name.endswith("rest")
    }


def run(tables, blocks, **options):
    """(loss, the tables after it)."""
    return ops.factor_sgd(blocks=blocks, **tables, **{**NUMBERS, **options})


def copies(tables, dtype=None):
    return {name: tensor.clone().to(dtype or tensor.dtype) for name, tensor in tables.items()}


BLOCKS = ops.factor_blocks(matrix_of(), bands=3)


@functools.cache
def expected(f: int, biases: bool, squares: bool):
    """The loss and tables of an epoch in float64, and for each table the error that is allowed:
    that of plain torch in float32, and more, for differences of one cell are carried through all
    that follow it."""
    tables = chosen(tables_of(40, 30, f), biases, squares)
    exact, plain = copies(tables, torch.float64), copies(tables)
    loss = run(exact, BLOCKS, backend="reference")
    run(plain, BLOCKS, backend="reference")
    allowed = {}
    for name, tensor in exact.items():
        scale = max(1.0, float(tensor.abs().max()))
        allowed[name] = 4 * max(float((plain[name].double() - tensor).abs().max()), 1e-6 * scale)
    return loss, exact, allowed


@pytest.mark.parametrize("squares", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize("f", [1, 3, 4, 16, 20, 31, 33, 64, 100, 128, 130, 200])
@pytest.mark.cases(backend="native")
def test_an_epoch(operator_case, f, biases, squares):
    tables = chosen(tables_of(40, 30, f), biases, squares)
    loss, exact, allowed = expected(f, biases, squares)
    found = run(tables, BLOCKS, backend="native")
    assert abs(found / loss - 1) < 1e-5
    for name, tensor in tables.items():
        assert float((tensor.double() - exact[name]).abs().max()) <= allowed[name], name


@pytest.mark.cases(backend="native")
@pytest.mark.parametrize("f", [5, 16, 45, 150])
def test_what_belongs_to_a_row_may_stand_in_one_table(operator_case, f):
    tables = tables_of(40, 30, f)
    whole = in_one_table(tables, -(-(f + 3) // 16) * 16)
    wanted = run(tables, BLOCKS)
    assert run(chosen(whole, True, True), BLOCKS) == wanted
    for name, tensor in tables.items():
        assert torch.equal(whole[name], tensor)
    assert whole["user_rest"].isnan().all()
    assert whole["item_rest"].isnan().all()


@pytest.mark.parametrize("biases", [False, True])
def test_a_step_is_against_the_gradient(biases):
    matrix = sparse.csr_matrix(([4.0], ([1], [2])), shape=(3, 4))
    blocks = ops.factor_blocks(matrix)
    tables = chosen(tables_of(3, 4, 6, torch.float64), biases, False)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tables.items()}
    p, q = leaves["user_factors"][1], leaves["item_factors"][2]
    e = 4.0 - NUMBERS["mean"] - p @ q
    loss = NUMBERS["regularization"] / 2 * (p @ p + q @ q)
    if biases:
        b_u, b_i = leaves["user_bias"][1], leaves["item_bias"][2]
        e = e - b_u - b_i
        loss = loss + NUMBERS["bias_regularization"] / 2 * (b_u**2 + b_i**2)
    (e**2 / 2 + loss).backward()
    with torch.no_grad():
        found = run(tables, blocks, backend="reference")
    assert torch.isclose(found, e.detach() ** 2)
    for name, leaf in leaves.items():
        rate = NUMBERS["bias_learning_rate" if name.endswith("bias") else "learning_rate"]
        assert torch.allclose(tables[name], leaf.detach() - rate * leaf.grad, rtol=0, atol=1e-12)


def test_squares_are_sums_of_squared_gradients():
    matrix = sparse.csr_matrix(([4.0], ([0], [0])), shape=(1, 1))
    tables = tables_of(1, 1, 5)
    p, q = (tables[f"{side}_factors"][0].clone() for side in ("user", "item"))
    biases = [tables[f"{side}_bias"].clone() for side in ("user", "item")]
    before = [tables[f"{side}_squares"].clone()[0] for side in ("user", "item")]
    e = 4.0 - NUMBERS["mean"] - sum(biases) - p @ q
    run(tables, ops.factor_blocks(matrix))
    for side, own, other, bias, squares in zip(
        ("user", "item"), (p, q), (q, p), biases, before, strict=True
    ):
        g = NUMBERS["regularization"] * own - e * other
        g_b = NUMBERS["bias_regularization"] * bias - e
        wanted = squares + torch.cat([g.square().mean()[None], g_b.square()])
        assert torch.allclose(tables[f"{side}_squares"][0], wanted, rtol=1e-5)
        rate = NUMBERS["learning_rate"] / squares[0].sqrt()
        assert torch.allclose(tables[f"{side}_factors"][0], own - rate * g, rtol=1e-5)


@pytest.mark.parametrize("bands", [1, 2, 5, 30])
def test_bits_do_not_depend_on_threads(bands):
    blocks = ops.factor_blocks(matrix_of(90, 70), bands=bands)
    found = []
    for threads in (1, 2, 3, 8):
        tables = tables_of(90, 70, 19)
        losses = [run(tables, blocks, epoch=epoch, num_threads=threads) for epoch in range(3)]
        found.append((losses, tables))
    for losses, tables in found[1:]:
        assert losses == found[0][0]
        assert all(torch.equal(tables[name], tensor) for name, tensor in found[0][1].items())


@pytest.mark.parametrize("squares", [False, True], ids=["sgd", "adagrad"])
def test_the_error_falls(squares):
    matrix = matrix_of(60, 50, 0.5)
    blocks = ops.factor_blocks(matrix)
    tables = chosen(tables_of(60, 50, 8), True, squares)
    losses = [float(run(tables, blocks, epoch=epoch)) for epoch in range(12)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]


# --- The layout. ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bands", [1, 2, 7])
def test_blocks_hold_every_cell_once(bands):
    matrix = matrix_of(50, 37)
    blocks = ops.factor_blocks(matrix, bands=bands, seed=5)
    assert (blocks.bands, blocks.shape, len(blocks)) == (bands, (50, 37), matrix.nnz)
    found = sparse.csr_matrix(
        (blocks.values.numpy(), (blocks.users.numpy(), blocks.items.numpy())), shape=(50, 37)
    )
    assert (found != matrix).nnz == 0
    bounds = blocks.offsets.tolist()
    for part in ("users", "items"):
        seen: dict[int, set[int]] = {}
        for b in range(bands * bands):
            band = b // bands if part == "users" else b % bands
            rows = getattr(blocks, part)[bounds[b] : bounds[b + 1]].tolist()
            seen.setdefault(band, set()).update(rows)
        assert sum(map(len, seen.values())) == len(set().union(*seen.values()))
    counts = np.diff(matrix.indptr)
    shares = [bounds[(a + 1) * bands] - bounds[a * bands] for a in range(bands)]
    assert max(shares) - min(shares) <= counts.max()


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float64, np.int8, bool])
def test_the_layout_is_the_reference_s(index, dtype):
    matrix = matrix_of(50, 37)
    parts = (matrix.data.astype(dtype), matrix.indices.astype(index), matrix.indptr.astype(index))
    other = sparse.csr_matrix(parts, matrix.shape)
    other.indices, other.indptr = parts[1:]
    found = ops.factor_blocks(other, bands=4, seed=3, num_threads=2)
    users = torch.repeat_interleave(
        torch.arange(50, dtype=torch.int32), torch.from_numpy(np.diff(matrix.indptr)).long()
    )
    items = torch.from_numpy(matrix.indices)
    bands = [
        reference.deal(torch.bincount(ids, minlength=count), 4)
        for ids, count in ((users, 50), (items, 37))
    ]
    values = torch.from_numpy(matrix.data.astype(dtype).astype(np.float32))
    wanted = reference.layout(users, items, values, *bands, 4, 3)
    for name in ("users", "items", "values", "offsets"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))


def test_seed_and_epoch_choose_the_order():
    again = ops.factor_blocks(matrix_of(), bands=3)
    assert torch.equal(again.users, BLOCKS.users)
    assert not torch.equal(ops.factor_blocks(matrix_of(), bands=3, seed=1).users, BLOCKS.users)
    found = []
    for options in ({}, {"epoch": 1}, {"seed": 1}):
        tables = tables_of(40, 30, 4)
        run(tables, BLOCKS, **options)
        found.append(tables["user_factors"])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    rows, columns = reference.order(9, 4, 2)
    assert sorted(rows) == sorted(columns) == list(range(9))


def test_bands_follow_from_the_matrix():
    assert default_bands(0, 0, 0) == 1
    assert default_bands(6040, 3706, 1_000_209) == 16
    assert default_bands(29_858, 40_981, 719_081) == 30
    assert default_bands(138_493, 26_744, 20_000_263) == 136
    assert default_bands(10_000_000, 100_000, 10**9) == 256


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (4, 0), (4, 5)])
def test_no_cells(shape):
    blocks = ops.factor_blocks(sparse.csr_matrix(shape, dtype=np.float32))
    tables = tables_of(*shape, 3)
    before = copies(tables)
    assert run(tables, blocks) == 0
    assert all(torch.equal(tables[name], tensor) for name, tensor in before.items())


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    f=st.integers(1, 40),
    bands=st.integers(1, 5),
    seed=st.integers(0, 2**64),
)
def test_shapes(rows, columns, f, bands, seed):
    blocks = ops.factor_blocks(matrix_of(rows, columns, 0.5), bands=bands, seed=seed)
    tables = tables_of(rows, columns, f)
    exact = copies(tables, torch.float64)
    found = run(tables, blocks, seed=seed, num_threads=2)
    assert torch.isclose(
        found, run(exact, blocks, seed=seed, backend="reference"), rtol=1e-4, atol=1e-6
    )
    for name, tensor in tables.items():
        assert torch.allclose(tensor.double(), exact[name], rtol=1e-3, atol=1e-4)


# --- As torch knows it, and what is refused. ------------------------------------------------------


def test_torch_knows_the_operator():
    tables = tables_of(40, 30, 4)
    parts = (BLOCKS.users, BLOCKS.items, BLOCKS.values, BLOCKS.offsets)
    order = ("user_factors", "item_factors", "user_bias", "item_bias", "user_squares")
    given = tuple(tables[name] for name in (*order, "item_squares"))
    numbers = (3.0, 0.01, 0.02, 0.01, 0.02, 0, 0, "", 0)
    torch.library.opcheck(torch.ops.vecsmith.factor_sgd.default, (*given, *parts, *numbers))
    versions = {name: tensor._version for name, tensor in tables.items()}
    run(tables, BLOCKS)
    assert all(tables[name]._version > version for name, version in versions.items())


def test_parameters_are_trained_without_gradients():
    tables = tables_of(40, 30, 4)
    tables["user_factors"] = torch.nn.Parameter(tables["user_factors"])
    with pytest.raises(RuntimeError, match="no gradient"):
        run(tables, BLOCKS)
    with torch.no_grad():
        assert run(tables, BLOCKS) > 0


SHARED = torch.ones(40, 16)


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"blocks": matrix_of()}, TypeError, "blocks of factor_blocks; got csr_matrix"),
        ({"user_factors": np.ones((40, 4))}, TypeError, "to be a torch.Tensor; got ndarray"),
        ({"user_factors": torch.ones(39, 4)}, ValueError, "user_factors of 40 rows; got 39"),
        ({"item_factors": torch.ones(30, 5)}, ValueError, "item_factors of D=4; got 5"),
        ({"item_factors": torch.ones(30, 4).double()}, TypeError, "item_factors to be torch.float"),
        ({"user_factors": torch.ones(40, 4).half()}, TypeError, "float32 or float64; got torch.fl"),
        ({"user_factors": torch.ones(4, 40).T}, ValueError, "unit stride"),
        ({"user_factors": torch.ones(1, 4).expand(40, 4)}, ValueError, "rows apart"),
        ({"user_factors": torch.full((40, 4), torch.nan)}, ValueError, "user_factors to be finite"),
        ({"user_factors": torch.ones(40, 4, device="meta")}, ValueError, "factors on cpu, where"),
        ({"user_bias": torch.ones(30)}, ValueError, r"user_bias of shape \[40\]; got \[30\]"),
        ({"user_bias": [0.0] * 40}, TypeError, "user_bias to be a torch.Tensor; got list"),
        ({"item_bias": torch.ones(30).double()}, TypeError, "item_bias to be torch.float32"),
        ({"item_bias": torch.ones(1).expand(30)}, ValueError, "item_bias with rows apart"),
        ({"item_bias": torch.full((30,), torch.inf)}, ValueError, "item_bias to be finite"),
        ({"user_squares": torch.ones(40, 3)}, ValueError, r"user_squares of shape \[40, 2\]"),
        ({"user_squares": torch.zeros(40, 2)}, ValueError, "squares > 0"),
        ({"user_squares": torch.ones(2, 40).T}, ValueError, "user_squares with unit stride"),
        ({"user_squares": None}, ValueError, "squares of both sides"),
        ({"item_factors": SHARED[:30, :4], "user_factors": SHARED[:, :4]}, ValueError, "memory"),
        ({"user_factors": SHARED[:, :4], "user_bias": SHARED[:, 3]}, ValueError, "memory"),
        ({"user_bias": SHARED[:, 4], "user_squares": SHARED[:, 3:5]}, ValueError, "memory"),
        ({"mean": float("nan")}, ValueError, "mean to be finite"),
        ({"mean": "3"}, TypeError, "mean to be a number; got str"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate to be finite and >= 0"),
        ({"bias_learning_rate": float("inf")}, ValueError, "bias_learning_rate to be finite"),
        ({"regularization": -1.0}, ValueError, "regularization to be finite and >= 0"),
        ({"bias_regularization": "a"}, TypeError, "bias_regularization to be a float"),
        ({"seed": 1.5}, TypeError, "seed to be an int"),
        ({"epoch": -1}, ValueError, "epoch in 0"),
        ({"backend": "cuda"}, ValueError, "'native', 'triton', 'reference'; got 'cuda'"),
        ({"num_threads": 0}, ValueError, "num_threads in 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changed, kind, words):
    tables = tables_of(40, 30, 4)
    before = copies(tables)
    with pytest.raises(kind, match=words):
        ops.factor_sgd(**{"blocks": BLOCKS, **tables, **NUMBERS, **changed})
    assert all(torch.equal(tables[name], tensor) for name, tensor in before.items())


def with_value(value: float, dtype=np.float32) -> sparse.csr_matrix:
    matrix = matrix_of().astype(dtype)
    matrix.data[3] = value
    return matrix


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"matrix": np.ones((3, 3))}, TypeError, "scipy.sparse matrix or a torch"),
        ({"matrix": with_value(np.nan)}, ValueError, "finite; got nan"),
        ({"matrix": with_value(1e300, np.float64)}, ValueError, "that float32 can hold"),
        ({"matrix": matrix_of(), "bands": 0}, ValueError, "bands in 1"),
        ({"matrix": matrix_of(), "bands": 2.0}, TypeError, "bands to be an int"),
        ({"matrix": matrix_of(), "seed": "x"}, TypeError, "seed to be an int"),
    ],
)
def test_matrices_that_are_refused(given, kind, words):
    with pytest.raises(kind, match=words):
        ops.factor_blocks(**given)


def test_the_module_looks_at_the_offsets():
    offsets = BLOCKS.offsets.clone()
    offsets[-1] += 1
    broken = dataclasses.replace(BLOCKS, offsets=offsets)
    with pytest.raises(ValueError, match="offsets of blocks from 0"):
        run(tables_of(40, 30, 4), broken)
