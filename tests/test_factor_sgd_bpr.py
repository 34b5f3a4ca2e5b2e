"""factor_sgd over pairs (Bayesian personalized ranking): every backend and level against the
reference, the update against autograd's gradient, draws, threads, and what is refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional

from vecsmith import ops
from vecsmith.reference import factor_sgd as reference
from vecsmith.reference.skipgram import stream_key


def matrix_of(rows: int = 40, columns: int = 30, density: float = 0.2, seed: int = 0):
    mask = np.random.default_rng(seed).random((rows, columns)) < density
    mask[rows // 2 :: 7] = False  # users who like nothing
    return sparse.csr_matrix(mask.astype(np.float32))


def tables_of(rows: int, columns: int, f: int, dtype=torch.float32, biases: bool = True):
    generator = torch.Generator().manual_seed(1)
    made = {
        "user_factors": torch.randn(rows, f, generator=generator) / f**0.5,
        "item_factors": torch.randn(columns, f, generator=generator) / f**0.5,
        "item_bias": torch.randn(columns, generator=generator) * 0.1,
    }
    if not biases:
        del made["item_bias"]
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def copies(tables, dtype=None):
    return {name: tensor.clone().to(dtype or tensor.dtype) for name, tensor in tables.items()}


def run(tables, blocks, **options):
    numbers = {"learning_rate": 0.05, "regularization": 0.02}
    return ops.factor_sgd_bpr(blocks=blocks, **tables, **{**numbers, **options})


BLOCKS = ops.factor_blocks(matrix_of(), bands=3)


@functools.cache
def expected(f: int, biases: bool, verify: bool):
    """What an epoch gives in float64, and for each table the error that is allowed."""
    tables = tables_of(40, 30, f, biases=biases)
    exact, plain = copies(tables, torch.float64), copies(tables)
    options = {"verify_negatives": verify, "epoch": 2, "seed": 9, "backend": "reference"}
    result = run(exact, BLOCKS, **options)
    run(plain, BLOCKS, **options)
    allowed = {
        name: 4 * max(float((plain[name].double() - tensor).abs().max()), 1e-6)
        for name, tensor in exact.items()
    }
    return result, exact, allowed


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "any"])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize("f", [1, 4, 16, 21, 32, 50, 100, 128, 200])
@pytest.mark.cases(backend="native")
def test_an_epoch(operator_case, f, biases, verify):
    tables = tables_of(40, 30, f, biases=biases)
    result, exact, allowed = expected(f, biases, verify)
    options = {"verify_negatives": verify, "epoch": 2, "seed": 9}
    found = run(tables, BLOCKS, num_threads=1, backend="native", **options)
    assert abs(found[0] / result[0] - 1) < 1e-5
    assert torch.equal(found[1:], result[1:])
    assert (found[2] == len(BLOCKS)) == (not verify)
    for name, tensor in tables.items():
        assert float((tensor.double() - exact[name]).abs().max()) <= allowed[name], name


@pytest.mark.cases(backend="native")
def test_biases_may_stand_behind_the_factors(operator_case):
    tables = tables_of(40, 30, 45)
    wide = torch.full((30, 64), torch.nan)
    wide[:, :45], wide[:, 45] = tables["item_factors"], tables["item_bias"]
    inside = {**copies(tables), "item_factors": wide[:, :45], "item_bias": wide[:, 45]}
    wanted = run(tables, BLOCKS, num_threads=1)
    assert torch.equal(run(inside, BLOCKS, num_threads=1), wanted)
    assert all(torch.equal(inside[name], tensor) for name, tensor in tables.items())
    assert wide[:, 46:].isnan().all()


def test_a_cell_may_draw_its_own_item():
    tables = tables_of(1, 1, 6)
    before = copies(tables)
    blocks = ops.factor_blocks(sparse.csr_matrix([[1.0]]))
    result = run(tables, blocks, verify_negatives=False)
    assert torch.allclose(result, torch.tensor([np.log(2), 0.0, 1.0], dtype=torch.float64))
    shrunk = before["user_factors"] * (1 - 0.05 * 0.02)
    assert torch.allclose(tables["user_factors"], shrunk)
    # Its row is written twice, and what stays is what it got as j.
    wanted = before["item_factors"] * (1 - 0.05 * 0.02) - 0.05 * 0.5 * before["user_factors"]
    assert torch.allclose(tables["item_factors"], wanted)
    before = copies(tables)
    assert run(tables, blocks).tolist() == [0, 0, 0]
    assert all(torch.equal(tables[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("biases", [False, True])
def test_steps_are_against_the_gradient(biases):
    matrix = matrix_of(7, 9, 0.4)
    blocks = ops.factor_blocks(matrix, bands=2)
    tables = tables_of(7, 9, 5, torch.float64, biases)
    expected = copies(tables)
    key, count = stream_key(3, 1, reference.STREAM_DRAWS), len(blocks)
    total, pairs = 0.0, 0
    for at in reference.cells_in_order(blocks.offsets, 3, 1):
        u, i = int(blocks.users[at]), int(blocks.items[at])
        j = int(blocks.items[reference.draw_below(key, at, count)])
        if matrix[u, j]:
            continue
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in expected.items()}
        p, q = leaves["user_factors"][u], leaves["item_factors"]
        d = p @ (q[i] - q[j])
        squares = p @ p + q[i] @ q[i] + q[j] @ q[j]
        if biases:
            b = leaves["item_bias"]
            d = d + b[i] - b[j]
            squares = squares + b[i] ** 2 + b[j] ** 2
        loss = functional.softplus(-d)
        (loss + 0.02 / 2 * squares).backward()
        total, pairs = total + loss.item(), pairs + 1
        for name, leaf in leaves.items():
            expected[name] = (leaf - 0.05 * leaf.grad).detach()
    found = run(tables, blocks, seed=3, epoch=1, backend="reference")
    assert found[2] == pairs > 0
    assert abs(float(found[0]) - total) < 1e-12
    assert all(torch.allclose(tables[n], t, rtol=0, atol=1e-12) for n, t in expected.items())


def test_nobody_gets_what_he_likes():
    matrix = matrix_of(30, 12, 0.5)
    blocks = ops.factor_blocks(matrix)
    key = stream_key(0, 4, reference.STREAM_DRAWS)
    wanted = 0
    for at in range(len(blocks)):
        j = int(blocks.items[reference.draw_below(key, at, len(blocks))])
        wanted += matrix[int(blocks.users[at]), j] == 0
    assert 0 < wanted < len(blocks)
    assert run(tables_of(30, 12, 4), blocks, epoch=4)[2] == wanted


def test_items_are_drawn_as_often_as_they_are_liked():
    columns = np.repeat([0, 1, 2], [600, 300, 100])
    rows = np.arange(1000)
    matrix = sparse.csr_matrix((np.ones(1000, np.float32), (rows, columns)), shape=(1000, 3))
    blocks = ops.factor_blocks(matrix)
    drawn = np.zeros(3)
    for epoch in range(20):
        key = stream_key(0, epoch, reference.STREAM_DRAWS)
        js = [int(blocks.items[reference.draw_below(key, at, 1000)]) for at in range(1000)]
        drawn += np.bincount(js, minlength=3)
    assert np.abs(drawn / 20000 - [0.6, 0.3, 0.1]).max() < 0.01


def planted(users: int = 300, items: int = 120) -> sparse.csr_matrix:
    """Users who like items of their own kind."""
    draw = np.random.default_rng(0)
    kind, other = draw.integers(0, 4, users), draw.integers(0, 4, items)
    chance = np.where(kind[:, None] == other, 0.4, 0.02)
    return sparse.csr_matrix((draw.random((users, items)) < chance).astype(np.float32))


def train(threads: int, epochs: int = 40) -> tuple[list[float], dict[str, torch.Tensor]]:
    blocks = ops.factor_blocks(planted(), bands=6)
    tables = tables_of(*blocks.shape, 8)
    tables = {name: tensor * 0.1 for name, tensor in tables.items()}
    losses = []
    for epoch in range(epochs):
        result = run(tables, blocks, epoch=epoch, num_threads=threads)
        losses.append(float(result[0] / result[2]))
    return losses, tables


def test_several_threads_learn_what_one_does():
    one, _ = train(1)
    several, _ = train(3)
    assert one[0] > 0.6
    assert one[-1] < 0.45
    assert abs(several[-1] / one[-1] - 1) < 0.03


def test_deterministic_mode_has_the_same_bits_for_any_number_of_threads():
    torch.use_deterministic_algorithms(True)
    try:
        found = [train(threads, 3) for threads in (1, 2, 5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for losses, tables in found[1:]:
        assert losses == found[0][0]
        assert all(torch.equal(tables[name], tensor) for name, tensor in found[0][1].items())


@pytest.mark.parametrize("shape", [(0, 0), (4, 0), (4, 5)])
def test_no_cells(shape):
    blocks = ops.factor_blocks(sparse.csr_matrix(shape, dtype=np.float32))
    tables = tables_of(*shape, 3)
    before = copies(tables)
    assert run(tables, blocks).tolist() == [0, 0, 0]
    assert all(torch.equal(tables[name], tensor) for name, tensor in before.items())


def test_scores_that_are_far_apart():
    blocks = ops.factor_blocks(matrix_of())
    for scale in (30.0, 1e3):
        tables = {name: tensor * scale for name, tensor in tables_of(40, 30, 8).items()}
        exact = copies(tables, torch.float64)
        found = run(tables, blocks, learning_rate=1e-4, num_threads=1)
        wanted = run(exact, blocks, learning_rate=1e-4, backend="reference")
        assert torch.allclose(found, wanted, rtol=1e-5)
        for name, tensor in tables.items():
            assert torch.allclose(tensor.double(), exact[name], rtol=1e-4, atol=1e-5 * scale)


def test_torch_knows_the_operator():
    tables = tables_of(40, 30, 4)
    parts = (BLOCKS.users, BLOCKS.items, BLOCKS.values, BLOCKS.offsets)
    liked = (BLOCKS.cells.indptr, BLOCKS.cells.indices)
    given = (*tables.values(), *parts, *liked, 0.01, 0.02, 0, 0, "", 1)
    torch.library.opcheck(torch.ops.vecsmith.factor_sgd_bpr.default, given)
    versions = {name: tensor._version for name, tensor in tables.items()}
    run(tables, BLOCKS)
    assert all(tables[name]._version > version for name, version in versions.items())


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"blocks": None}, TypeError, "blocks of factor_blocks; got NoneType"),
        ({"user_factors": torch.ones(41, 4)}, ValueError, "user_factors of 40 rows; got 41"),
        ({"item_factors": torch.ones(30, 3)}, ValueError, "item_factors of D=4; got 3"),
        ({"item_factors": torch.full((30, 4), torch.inf)}, ValueError, "item_factors to be finite"),
        ({"item_bias": torch.ones(29)}, ValueError, r"item_bias of shape \[30\]; got \[29\]"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate to be finite"),
        ({"regularization": -0.1}, ValueError, "regularization to be finite and >= 0"),
        ({"epoch": 0.5}, TypeError, "epoch to be an int"),
        ({"seed": None}, TypeError, "seed to be an int"),
        ({"backend": "cuda"}, ValueError, "'native', 'triton', 'reference'; got 'cuda'"),
        ({"num_threads": -1}, ValueError, "num_threads in 1"),
    ],
)
def test_bad_input_is_refused(changed, kind, words):
    tables = tables_of(40, 30, 4)
    before = copies(tables)
    with pytest.raises(kind, match=words):
        ops.factor_sgd_bpr(**{"blocks": BLOCKS, **tables, **changed})
    assert all(torch.equal(tables[name], tensor) for name, tensor in before.items())
