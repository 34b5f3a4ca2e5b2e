"""The Triton kernels of `factor_sgd` against the reference in float64, over ratings and over pairs.

Without a GPU they run in Triton's interpreter (`make test-triton`); with one on it.
"""

from __future__ import annotations

import pytest
import torch

import test_factor_sgd as of_ratings
import test_factor_sgd_bpr as of_pairs
from conftest import interpreted
from vecsmith import ops
from vecsmith.ops import _triton_factor_sgd as door

pytestmark = [pytest.mark.triton, *([] if interpreted() else [pytest.mark.gpu])]
DEVICE = "cpu" if interpreted() else "cuda"
RATINGS = ops.factor_blocks(of_ratings.matrix_of(14, 9), bands=3)
PAIRS = ops.factor_blocks(of_pairs.matrix_of(14, 9), bands=3)


@pytest.fixture(autouse=True)
def _installed():
    pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture
def ordered():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def train(run, tables, blocks, **options):
    """(what an epoch returns, the tables after it), on the CPU."""
    moved = {name: tensor.to(DEVICE) for name, tensor in of_ratings.copies(tables).items()}
    found = run(moved, blocks.to(DEVICE), backend="triton", **options)
    return found, {name: tensor.cpu() for name, tensor in moved.items()}


def check(run, tables, blocks, **options):
    """Errors are at most four times those of plain torch in float32: a difference of one cell is
    carried through all that follow it."""
    exact = of_ratings.copies(tables, torch.float64)
    plain = of_ratings.copies(tables)
    wanted = run(exact, blocks, backend="reference", **options)
    run(plain, blocks, backend="reference", **options)
    result, found = train(run, tables, blocks, **options)
    assert result.device.type == "cpu"
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=0.0)
    for name, tensor in exact.items():
        scale = max(1.0, float(tensor.abs().max()))
        allowed = 4 * max(float((plain[name].double() - tensor).abs().max()), 1e-6 * scale)
        assert float((found[name].double() - tensor).abs().max()) <= allowed, name


@pytest.mark.parametrize("squares", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize("f", [1, 20, 600])
def test_an_epoch(f, biases, squares):
    tables = of_ratings.chosen(of_ratings.tables_of(14, 9, f), biases, squares)
    check(of_ratings.run, tables, RATINGS, seed=4, epoch=2)


@pytest.mark.parametrize("side", ["user", "item"])
def test_biases_of_one_side(side):
    tables = of_ratings.tables_of(14, 9, 5)
    del tables[f"{side}_bias"]
    check(of_ratings.run, tables, RATINGS)


def test_what_belongs_to_a_row_may_stand_in_one_table():
    tables = of_ratings.tables_of(14, 9, 5)
    result, wanted = train(of_ratings.run, tables, RATINGS)
    whole = of_ratings.in_one_table(tables, 16)
    shared = {n: t for n, t in whole.items() if not n.endswith("rest")}
    if DEVICE == "cpu":
        found = of_ratings.run(shared, RATINGS, backend="triton")
        assert torch.equal(found, result)
        for name, tensor in wanted.items():
            assert torch.equal(whole[name], tensor)
        assert whole["user_rest"].isnan().all()
        assert whole["item_rest"].isnan().all()


def test_blocks_of_a_launch_have_nothing_in_common_and_follow_those_that_have():
    for bands in (1, 2, 5):
        offsets = torch.zeros(bands * bands + 1, dtype=torch.int64)
        order = door.blocks_in_order(offsets, 3, 1)
        place = {int(block): at for at, block in enumerate(order.flatten())}
        assert sorted(place) == list(range(bands * bands))
        done = []
        for blocks in door.together(order):
            own = blocks.tolist()
            for part in ([b // bands for b in own], [b % bands for b in own]):
                assert len(set(part)) == len(part)
            for block in own:
                alike = [
                    other
                    for other in place
                    if other // bands == block // bands or other % bands == block % bands
                ]
                before = {other for other in alike if place[other] < place[block]}
                assert before == {other for other in alike if other in done}
            done += own
        assert sorted(done) == sorted(place)


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "any"])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize("f", [1, 20])
def test_an_epoch_of_pairs_in_order(ordered, f, biases, verify):
    tables = of_pairs.tables_of(14, 9, f, biases=biases)
    check(of_pairs.run, tables, PAIRS, verify_negatives=verify, seed=-9, epoch=2)


def test_pairs_without_order_learn_as_much():
    tables = of_pairs.tables_of(14, 9, 20)
    wanted = of_pairs.run(of_ratings.copies(tables), PAIRS, backend="reference")
    result, found = train(of_pairs.run, tables, PAIRS)
    assert torch.equal(result[2], wanted[2])
    assert float(result[0]) == pytest.approx(float(wanted[0]), rel=0.05)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert not torch.equal(found["user_factors"], tables["user_factors"])


def test_users_who_like_more_than_is_compared_at_once(ordered):
    """About 150 of 200 items: a drawn one is searched for."""
    like = torch.rand(2, 200, generator=torch.Generator().manual_seed(0)) < 0.8
    like[1, 9:] = False
    from scipy import sparse

    blocks = ops.factor_blocks(sparse.csr_matrix(like.numpy().astype("float32")), bands=1)
    tables = of_pairs.tables_of(2, 200, 2)
    check(of_pairs.run, tables, blocks)


def test_nothing_to_do():
    from scipy import sparse

    blocks = ops.factor_blocks(sparse.csr_matrix((3, 4)))
    tables = of_ratings.tables_of(3, 4, 2)
    result, found = train(of_ratings.run, tables, blocks)
    assert float(result) == 0.0
    assert all(torch.equal(found[name], tensor) for name, tensor in tables.items())


@pytest.mark.gpu
def test_gpu_gives_the_same_bits_and_the_loss_of_the_cpu():
    blocks = ops.factor_blocks(of_ratings.matrix_of(3000, 2000, 0.02), bands=40)
    tables = of_ratings.tables_of(3000, 2000, 64)
    first, once = train(of_ratings.run, tables, blocks)
    second, again = train(of_ratings.run, tables, blocks)
    assert torch.equal(first, second)
    assert all(torch.equal(once[name], tensor) for name, tensor in again.items())
    wanted = of_ratings.run(tables, blocks)
    assert float(first) == pytest.approx(float(wanted), rel=1e-5)
    double = of_ratings.copies(of_ratings.tables_of(14, 9, 5, torch.float64))
    moved = {name: tensor.cuda() for name, tensor in double.items()}
    of_ratings.run(moved, RATINGS.to("cuda"), backend="reference")
    of_ratings.run(double, RATINGS, backend="reference")
    assert all(torch.equal(moved[name].cpu(), tensor) for name, tensor in double.items())


@pytest.mark.gpu
def test_gpu_pairs_learn_as_much():
    blocks = ops.factor_blocks(of_pairs.matrix_of(3000, 2000, 0.02), bands=40)
    tables = of_pairs.tables_of(3000, 2000, 64)
    moved = {name: tensor.cuda() for name, tensor in of_ratings.copies(tables).items()}
    for epoch in range(3):
        wanted = of_pairs.run(tables, blocks, epoch=epoch)
        found = of_pairs.run(moved, blocks.to("cuda"), epoch=epoch)
    assert torch.equal(found[2], wanted[2])
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=0.02)
