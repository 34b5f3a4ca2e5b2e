"""Compressed tables against the dense tables that they stand for: rows, bags, gradients, files."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import vecsmith.nn
from vecsmith import ops, optim
from vecsmith.nn._tensor_train import covering_factors, exact_factors
from vecsmith.nn.compressed import (
    CompressedTable,
    HashedTable,
    LowRankTable,
    QuotientRemainderTable,
    TensorTrainTable,
)

# float64 is the reference's, which says that it is slow.
pytestmark = pytest.mark.filterwarnings("ignore:vecsmith.ops.embedding_bag. no fast backend")

V, D = 53, 12


def base_table(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(V, D, generator=torch.Generator().manual_seed(3)).to(dtype)


KINDS: dict[str, Callable[..., CompressedTable]] = {
    "hashed": lambda **k: HashedTable(V, D, 11, **k),
    "hashed-sum": lambda **k: HashedTable(V, D, 11, 3, **k),
    "hashed-concat": lambda **k: HashedTable(V, D, 11, 3, "concat", **k),
    "hashed-importance": lambda **k: HashedTable(V, D, 11, 2, importance=True, **k),
    "hashed-one-importance": lambda **k: HashedTable(V, D, 11, 1, importance=True, **k),
    "hashed-concat-importance": lambda **k: HashedTable(
        V, D, 11, 2, "concat", importance=True, **k
    ),
    "quotient-mult": lambda **k: QuotientRemainderTable(V, D, **k),
    "quotient-add": lambda **k: QuotientRemainderTable(V, D, 5, "add", **k),
    "quotient-concat": lambda **k: QuotientRemainderTable(V, D - 1, 7, "concat", **k),
    "low-rank": lambda **k: LowRankTable(V, D, 4, alpha=8, **k),
    "low-rank-base": lambda **k: LowRankTable(V, D, 4, base=base_table(k.pop("dtype")), **k),
    "low-rank-table": lambda **k: LowRankTable(V, D, 3, base=HashedTable(V, D, 9, **k), zero="B"),
    "tensor-train-2": lambda **k: TensorTrainTable(V, D, 3, num_factors=2, **k),
    "tensor-train-3": lambda **k: TensorTrainTable(V, D, (3, 5), **k),
    "tensor-train-4": lambda **k: TensorTrainTable(V, D, 2, num_factors=4, **k),
}


def make(kind: str, dtype: torch.dtype = torch.float64) -> CompressedTable:
    table = KINDS[kind](dtype=dtype)
    with torch.no_grad():  # nothing at zero or one, as some begin
        for parameter in table.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter, dtype=torch.float32) * 0.3)
    return table


def plain(table: nn.Module) -> Tensor:
    """The table written out by its formula, differentiable in its parameters."""
    ids = torch.arange(table.num_embeddings)
    if isinstance(table, HashedTable):
        blocks = []
        for j, (a, c, b) in enumerate(table.coefficients.tolist()):
            hashes = [
                (a * (i % 2**30) + c * (i // 2**30) + b) % (2**31 - 1) % table.buckets
                for i in ids.tolist()
            ]
            block = table.weight[hashes]
            if table.importance is not None:
                block = block * table.importance[:, j : j + 1]
            blocks.append(block)
        return torch.cat(blocks, 1) if table.combine == "concat" else sum(blocks)
    if isinstance(table, QuotientRemainderTable):
        left = table.quotient_weight[ids // table.buckets]
        right = table.remainder_weight[ids % table.buckets]
        if table.operation == "mult":
            return left * right
        return left + right if table.operation == "add" else torch.cat((left, right), 1)
    if isinstance(table, LowRankTable):
        product = table.alpha / table.rank * (table.A @ table.B)
        if table.base is None:
            return product
        base = table.base if isinstance(table.base, Tensor) else plain(table.base)
        return base.detach() + product
    assert isinstance(table, TensorTrainTable)
    dense = torch.ones(1, 1, 1, dtype=table.cores[0].dtype)  # [rows, columns, rank]
    for core, n, d, left, right in zip(
        table.cores,
        table.row_factors,
        table.column_factors,
        table.ranks,
        table.ranks[1:],
        strict=False,
    ):
        dense = torch.einsum("njr,mrds->nmjds", dense, core.view(n, left, d, right))
        dense = dense.flatten(2, 3).flatten(0, 1)
    return dense.squeeze(-1)[: table.num_embeddings]


# --- Rows and bags are those of the dense table. --------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_formula(kind):
    table = make(kind)
    rows = table.rows(torch.arange(V))
    assert not rows.requires_grad
    torch.testing.assert_close(rows, plain(table).detach())


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_embedding_looks_up_rows(kind, shape):
    table = make(kind)
    indices = torch.randint(V, shape)
    expected = plain(table)[indices]
    for dtype in (torch.int64, torch.int32):
        torch.testing.assert_close(table.embedding(indices.to(dtype)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_gives_padding_no_row_of_its_own(kind):
    table = make(kind)
    indices = torch.tensor([[4, 0, 4], [52, 4, 9]])
    expected = plain(table)[indices].detach().clone()
    nothing = torch.zeros(table.embedding_dim, dtype=torch.float64)
    if isinstance(getattr(table, "base", None), Tensor):
        nothing = table.base[4]
    expected[indices == 4] = nothing
    for padding_idx in (4, 4 - V):
        torch.testing.assert_close(table.embedding(indices, padding_idx=padding_idx), expected)
    table = make(kind, torch.float32)
    out = table.embedding(torch.tensor([4, 4]), padding_idx=4)
    if out.requires_grad:
        out.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in trained(table))


def trained(table: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in table.parameters() if parameter.requires_grad]


def bags(layout: str, dtype: torch.dtype = torch.int64) -> dict:
    """Arguments of embedding_bag, some bags of which are empty."""
    if layout == "matrix":
        return {"indices": torch.randint(V, (6, 4)).to(dtype)}
    offsets = {
        "offsets": [0, 3, 3, 8, 8],
        "last offset": [0, 0, 4, 9, 12],
        "entries behind": [0, 2, 2, 7],
    }[layout]
    return {
        "indices": torch.randint(V, (12,)).to(dtype),
        "offsets": torch.tensor(offsets, dtype=dtype),
        "include_last_offset": layout != "offsets",
    }


LAYOUTS = ("matrix", "offsets", "last offset", "entries behind")


def plain_bags(dense: Tensor, indices: Tensor, offsets: Tensor | None = None, **how) -> Tensor:
    """F.embedding_bag, which takes no entries behind the last offset."""
    if how.get("include_last_offset"):
        indices = indices[: offsets[-1]]
        if how.get("per_sample_weights") is not None:
            how["per_sample_weights"] = how["per_sample_weights"][: offsets[-1]]
    return F.embedding_bag(indices, dense, offsets, **how)


@pytest.mark.parametrize("padding", [False, True], ids=["", "padding"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["sum", "weighted sum", "mean", "max"])
@pytest.mark.parametrize("kind", KINDS)
def test_bags_and_their_gradients_equal_the_dense_table(kind, how, layout, padding):
    table = make(kind)
    arguments = bags(layout, torch.int32 if layout == "offsets" else torch.int64)
    indices = arguments["indices"]
    arguments["mode"] = how.split()[-1]
    if padding:
        arguments["padding_idx"] = int(indices.flatten()[1])
    weights = None
    if how == "weighted sum":
        weights = torch.randn(indices.shape, dtype=torch.float64, requires_grad=True)
        arguments["per_sample_weights"] = weights
    parameters = trained(table) + ([] if weights is None else [weights])

    expected = plain_bags(plain(table), **arguments)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, parameters, grad, allow_unused=True)
    for sparse in (False, True):
        actual = table.embedding_bag(sparse=sparse, **arguments)
        torch.testing.assert_close(actual, expected)
        for parameter in parameters:
            parameter.grad = None
        actual.backward(grad)
        for parameter, want in zip(parameters, wanted, strict=True):
            want = torch.zeros_like(parameter) if want is None else want
            got = parameter.grad
            assert got is not None
            torch.testing.assert_close(got.to_dense() if got.is_sparse else got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_gradients_equal_the_dense_table(kind):
    table = make(kind)
    indices = torch.randint(V, (3, 7))
    expected = plain(table)[indices]
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, trained(table), grad)
    actual = torch.autograd.grad(table.embedding(indices), trained(table), grad)
    for got, want in zip(actual, wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    "kind", ["hashed-importance", "quotient-mult", "low-rank", "tensor-train-3"]
)
def test_gradcheck(kind, mode):
    table = make(kind)
    arguments = bags("last offset")
    if mode == "sum":
        weights = torch.randn(12, dtype=torch.float64, requires_grad=True)
        arguments["per_sample_weights"] = weights
    names = [name for name, _ in table.named_parameters()]

    def call(*values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(
            Bags(table, mode), under("table", parameters), (arguments,)
        )

    assert torch.autograd.gradcheck(call, tuple(table.parameters()), fast_mode=True)


def under(prefix: str, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in parameters.items()}


class Bags(nn.Module):
    """embedding_bag as a module's forward."""

    def __init__(self, table: nn.Module, mode: str):
        super().__init__()
        self.table, self.mode = table, mode

    def forward(self, arguments: dict) -> Tensor:
        return self.table.embedding_bag(mode=self.mode, **arguments)


# --- Dtypes, moves, files. ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision(kind, mode, dtype):
    table = make(kind, torch.float32).to(dtype)
    arguments = bags("last offset")
    actual = table.embedding_bag(mode=mode, **arguments)
    assert actual.dtype == dtype
    wide = plain(copy.deepcopy(table).double())
    expected = (
        F.embedding_bag(**{"weight": wide, **arguments}, mode=mode, input=None) if 0 else None
    )
    expected = plain_bags(wide, mode=mode, **arguments)
    scale = float(wide.detach().abs().max()) * (5 if mode == "sum" else 1)
    error = float((actual.double() - expected).detach().abs().max())
    assert error <= 8 * torch.finfo(dtype).eps * scale
    table.embedding(arguments["indices"]).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in trained(table))


@pytest.mark.parametrize("kind", KINDS)
def test_half_keeps_the_hash_functions_and_to_returns_the_table(kind):
    table = make(kind, torch.float32)
    before = table.rows(torch.arange(V))
    after = table.half().float().rows(torch.arange(V))
    torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_state_dicts_give_the_same_rows(kind):
    table = make(kind)
    rows = table.rows(torch.arange(V))
    copied = copy.deepcopy(table)
    with torch.no_grad():
        for parameter in trained(table):
            parameter.zero_()
    torch.testing.assert_close(copied.rows(torch.arange(V)), rows, rtol=0, atol=0)
    other = make(kind)
    other.load_state_dict(copied.state_dict())
    torch.testing.assert_close(other.rows(torch.arange(V)), rows, rtol=0, atol=0)


def test_a_state_dict_brings_its_hash_functions():
    table, other = (HashedTable(V, D, 11, 2, seed=seed) for seed in (1, 2))
    assert not torch.equal(table.coefficients, other.coefficients)
    other.load_state_dict(table.state_dict())
    ids = torch.arange(V)
    torch.testing.assert_close(other.rows(ids), table.rows(ids), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sizes_are_those_of_the_parameters(kind):
    table = make(kind)
    assert table.parameter_count == sum(p.numel() for p in trained(table))
    assert table.compression_ratio == V * table.embedding_dim / table.parameter_count
    assert f"{V}, {table.embedding_dim}" in repr(table)
    assert "compression=" in repr(table)


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_have_unit_variance(kind):
    if kind.startswith("low-rank-"):
        pytest.skip("begins as its base")
    draws = []
    for seed in range(60):
        torch.manual_seed(seed)
        draws.append(KINDS[kind](dtype=torch.float32).rows(torch.arange(V)))
    assert 0.75 < float(torch.stack(draws).square().mean()) < 1.3


# --- Hashing. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_hashes_are_uniform_and_independent(seed):
    buckets, count = 97, 40_000
    table = HashedTable(10**9, 4, buckets, 2, seed=seed)
    ids = torch.randint(10**9, (count,), generator=torch.Generator().manual_seed(seed))
    hashes = table.hashes(ids)
    assert hashes.min() >= 0
    assert hashes.max() < buckets
    for cells, size in (
        (hashes[:, 0], buckets),
        (hashes[:, 1], buckets),
        (hashes[:, 0] * buckets + hashes[:, 1], buckets**2),
    ):
        counts = torch.bincount(cells, minlength=size).double()
        square = float(((counts - count / size) ** 2 / (count / size)).sum())
        # chi squared: mean size - 1, variance twice that; six standard deviations
        assert square < size - 1 + 6 * math.sqrt(2 * (size - 1))


def test_two_ids_meet_as_rarely_as_a_universal_family_promises():
    buckets, pairs = 50, [(0, 1), (7, 57), (3, 3 + 2**30), (2**59, 2**31), (10, 10 + 2**31 - 1)]
    met = torch.zeros(len(pairs))
    draws = 4000
    for seed in range(draws):
        table = HashedTable(2**60, 1, buckets, seed=seed)
        hashes = table.hashes(torch.tensor(pairs))
        met += (hashes[:, 0, 0] == hashes[:, 1, 0]).float()
    assert float((met / draws).max()) < 1 / buckets + 5 * math.sqrt(1 / buckets / draws)


def test_ids_up_to_two_to_the_sixty_hash_without_overflow():
    table = HashedTable(2**60, 4, 1000, 3)
    ids = [0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**53 + 1, 2**60 - 1]
    expected = [
        [
            (a * (i % 2**30) + c * (i // 2**30) + b) % (2**31 - 1) % 1000
            for a, c, b in table.coefficients.tolist()
        ]
        for i in ids
    ]
    assert table.hashes(torch.tensor(ids)).tolist() == expected
    assert table.embedding(torch.tensor(ids)).shape == (7, 4)


def test_quotient_and_remainder_are_a_pair_of_its_own_for_each_id():
    table = QuotientRemainderTable(1000, 8)
    assert (table.quotient_weight.shape[0], table.remainder_weight.shape[0]) == (32, 32)
    rows = table.rows(torch.arange(1000))
    assert torch.unique(rows, dim=0).shape[0] == 1000


# --- Gradients that touch what was looked up. -----------------------------------------------------


def touched_rows(parameter: nn.Parameter) -> list[int]:
    """As they are stored: autograd forgets that a gradient is coalesced when it keeps it."""
    return parameter.grad._indices()[0].tolist()


def test_sparse_gradients_hold_the_touched_rows_once():
    indices = torch.tensor([[3, 3, 9], [9, 20, 3]])
    table = HashedTable(V, D, 500, 2, dtype=torch.float32)
    table.embedding_bag(indices, sparse=True).sum().backward()
    touched = torch.unique(table.hashes(torch.tensor([3, 9, 20])))
    assert touched_rows(table.weight) == touched.tolist()
    table = QuotientRemainderTable(V, D, 10, "add")
    table.embedding_bag(indices, sparse=True).sum().backward()
    assert touched_rows(table.quotient_weight) == [0, 2]
    assert touched_rows(table.remainder_weight) == [0, 3, 9]
    table = LowRankTable(V, D, 2)
    table.embedding_bag(indices, sparse=True).sum().backward()
    assert touched_rows(table.A) == [3, 9, 20]
    table = TensorTrainTable(27, 8, 2)  # digits 010, 100 (3, 9) and 202
    table.embedding_bag(indices, sparse=True).sum().backward()
    assert [touched_rows(core) for core in table.cores] == [[0, 1, 2], [0, 1], [0, 2]]


def test_padding_touches_nothing():
    table = HashedTable(V, D, 500, 2)
    table.embedding(torch.tensor([3, 8]), padding_idx=8, sparse=True).sum().backward()
    touched = torch.unique(table.hashes(torch.tensor([3])))
    assert touched_rows(table.weight) == touched.tolist()


def test_a_tensor_train_composes_each_distinct_prefix_once(monkeypatch):
    sizes = []
    product = torch.bmm

    def counting(left, right):
        sizes.append(left.shape[0])
        return product(left, right)

    monkeypatch.setattr(torch, "bmm", counting)
    table = TensorTrainTable(1000, 8, 4)  # 10 x 10 x 10
    indices = torch.tensor([[120, 125, 120, 129], [977, 978, 125, 125]])
    table.embedding_bag(indices)
    assert sizes == [2, 5]  # 12 and 97; then 120, 125, 129, 977, 978


# --- Low rank. ------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", ["A", "B"])
@pytest.mark.parametrize("kind", ["tensor", "uint8", "table"])
def test_low_rank_begins_as_its_base_which_stays(kind, zero):
    base = base_table(torch.float32)
    if kind == "uint8":
        given, base = ops.quantize_rows(base), ops.dequantize_rows(ops.quantize_rows(base))
    elif kind == "table":
        given = QuotientRemainderTable(V, D)
        base = given.rows(torch.arange(V))
    else:
        given = base.clone()
    table = LowRankTable(V, D, 3, base=given, zero=zero)
    torch.testing.assert_close(table.rows(torch.arange(V)), base)
    optimizer = torch.optim.SGD(trained(table), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        table.embedding_bag(torch.tensor([[1, 2]])).square().sum().backward()
        optimizer.step()
    changed = (table.rows(torch.arange(V)) - base).abs().amax(1) > 1e-6
    assert changed.nonzero().flatten().tolist() == ([1, 2] if zero == "A" else list(range(V)))
    if kind == "table":
        torch.testing.assert_close(given.rows(torch.arange(V)), base, rtol=0, atol=0)
    else:
        assert torch.equal(table.base, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_merge_puts_the_product_into_the_base(dtype):
    weight = base_table(torch.float32)
    base = ops.quantize_rows(weight) if dtype == torch.uint8 else weight.to(dtype)
    table = LowRankTable(V, D, 3, base=base, alpha=6)
    nn.init.normal_(table.A, std=0.5)
    before = table.rows(torch.arange(V)).float()
    table.merge()
    after = table.rows(torch.arange(V)).float()
    assert not table.A.any()
    allowed = {torch.float32: 1e-5, torch.bfloat16: 0.1}.get(dtype)
    if allowed is None:  # half a step of each row's 255
        allowed = float((before.amax(1) - before.amin(1)).max()) / 255 / 2 * 1.01
    assert float((after - before).abs().max()) <= allowed
    if dtype != torch.uint8:
        assert table.base.data_ptr() == base.data_ptr()


def test_weights_of_entries_learn_over_a_quantized_base():
    table = LowRankTable(V, D, 3, base=ops.quantize_rows(base_table(torch.float32)))
    weights = torch.rand(2, 3, requires_grad=True)
    indices = torch.randint(V, (2, 3))
    out = table.embedding_bag(indices, mode="sum", per_sample_weights=weights)
    out.sum().backward()
    torch.testing.assert_close(weights.grad, table.rows(indices).sum(-1))


@pytest.mark.parametrize("rank", [1, 3, D])
def test_low_rank_from_pretrained_is_the_truncated_svd(rank):
    weight = base_table()
    table = LowRankTable.from_pretrained(weight, rank, alpha=5)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    best = left[:, :rank] * values[:rank] @ right[:rank]
    torch.testing.assert_close(table.rows(torch.arange(V)), best)
    error = float(values[rank:].norm() / values.norm())
    assert table.approximation_error == pytest.approx(error, abs=1e-12)


def test_low_rank_from_pretrained_of_less_rank_and_of_nothing():
    weight = torch.randn(V, 2) @ torch.randn(2, D)
    table = LowRankTable.from_pretrained(weight, 5)
    assert table.approximation_error < 1e-6
    assert all(bool(torch.isfinite(p).all()) for p in table.parameters())
    assert LowRankTable.from_pretrained(torch.zeros(V, D), 2).approximation_error == 0


# --- Tensor trains. -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_factors", [2, 3, 4])
@pytest.mark.parametrize("shape", [(V, D), (64, 16), (7, 37), (1, 1), (2, 64)], ids=str)
def test_tt_svd_is_exact_at_full_rank(shape, num_factors):
    weight = torch.randn(shape, dtype=torch.float64)
    table = TensorTrainTable.from_pretrained(weight, 10**6, num_factors=num_factors)
    torch.testing.assert_close(table.rows(torch.arange(shape[0])), weight)
    assert table.approximation_error < 1e-12


@pytest.mark.parametrize("tolerance", [0.0, 1e-3, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("num_factors", [2, 3, 4])
def test_tt_svd_keeps_to_the_tolerance(tolerance, num_factors):
    # Singular values that fall, so that there is something to drop.
    weight = base_table() * torch.logspace(0, -5, D, dtype=torch.float64)
    table = TensorTrainTable.from_pretrained(weight, tolerance=tolerance, num_factors=num_factors)
    error = float((table.rows(torch.arange(V)) - weight).norm() / weight.norm())
    assert error <= max(tolerance, 1e-12)
    assert table.approximation_error == pytest.approx(error, abs=1e-12)
    if tolerance >= 0.1:
        full = TensorTrainTable.from_pretrained(weight, 10**6, num_factors=num_factors)
        assert table.parameter_count < full.parameter_count


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (4, 6)])
def test_tt_svd_at_given_ranks_is_within_the_bound_of_its_unfoldings(ranks):
    """Oseledets 2011, theorem 2.2: the squared error is at most the sum of what the best
    approximation of each unfolding loses; and it is at least the largest of these."""
    weight = torch.randn(27, 8, dtype=torch.float64)
    table = TensorTrainTable.from_pretrained(weight, ranks)
    assert table.ranks == (1, *ranks, 1)
    digits = weight.view(3, 3, 3, 2, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(6, 6, 6)
    lost = [
        float(torch.linalg.svdvals(unfolding)[rank:].square().sum())
        for unfolding, rank in zip((digits.view(6, 36), digits.view(36, 6)), ranks, strict=True)
    ]
    squared = (table.approximation_error * float(weight.norm())) ** 2
    assert max(lost) * (1 - 1e-9) <= squared <= sum(lost) * (1 + 1e-9) + 1e-20


def test_tt_svd_finds_a_table_that_is_a_tensor_train():
    hidden = TensorTrainTable(60, 24, (2, 3), row_factors=(3, 4, 5), dtype=torch.float64)
    weight = hidden.rows(torch.arange(60))
    found = TensorTrainTable.from_pretrained(weight, tolerance=1e-9, row_factors=(3, 4, 5))
    assert found.ranks == hidden.ranks
    assert found.approximation_error < 1e-12
    assert found.row_factors == (3, 4, 5)


def test_ranks_that_no_table_can_use_are_cut_down():
    table = TensorTrainTable(27, 8, 10**6)
    assert table.ranks == (1, 6, 6, 1)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 10**9), st.integers(1, 512), st.integers(2, 4))
def test_automatic_factors(rows, columns, count):
    covering = covering_factors(rows, count)
    assert len(covering) == count
    assert rows <= math.prod(covering)
    # within one step of the root in each factor
    assert max(covering) <= math.ceil(rows ** (1 / count) + 1e-9)
    exact = exact_factors(columns, count)
    assert len(exact) == count
    assert math.prod(exact) == columns


# --- Any shape. -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_shape(data):
    rows = data.draw(st.integers(1, 80), label="V")
    dim = data.draw(st.integers(1, 40), label="D")
    small = st.integers(1, 9)
    kind = data.draw(st.sampled_from(["hashed", "quotient", "low-rank", "tensor-train"]))
    if kind == "hashed":
        hashes = data.draw(st.integers(1, 4))
        combine = "concat" if dim % hashes == 0 and data.draw(st.booleans()) else "sum"
        importance = data.draw(st.booleans())
        table = HashedTable(rows, dim, data.draw(small), hashes, combine, importance=importance)
    elif kind == "quotient":
        operation = data.draw(st.sampled_from(["mult", "add", "concat"] if dim > 1 else ["mult"]))
        table = QuotientRemainderTable(rows, dim, min(rows, data.draw(small)), operation)
    elif kind == "low-rank":
        table = LowRankTable(rows, dim, min(rows, dim, data.draw(small)))
    else:
        table = TensorTrainTable(
            rows, dim, data.draw(small), num_factors=data.draw(st.integers(2, 4))
        )
    table = table.double()
    lengths = data.draw(st.lists(st.integers(0, 6), max_size=6))
    indices = torch.randint(rows, (sum(lengths),))
    offsets = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    mode = data.draw(st.sampled_from(["sum", "mean", "max"]))
    padding_idx = data.draw(st.sampled_from([None, 0, rows - 1]))
    actual = table.embedding_bag(
        indices, offsets, mode=mode, include_last_offset=True, padding_idx=padding_idx
    )
    assert actual.shape == (len(lengths), dim)
    if lengths:
        expected = F.embedding_bag(
            indices,
            plain(table),
            offsets,
            mode=mode,
            include_last_offset=True,
            padding_idx=padding_idx,
        )
        torch.testing.assert_close(actual, expected)
    assert table.embedding(indices.view(-1, 1)).shape == (sum(lengths), 1, dim)


# --- Training. ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_reduces_the_loss(kind, sparse):
    table = make(kind, torch.float32)
    target = torch.randn(V, table.embedding_dim)
    kinds = optim.SparseAdam if sparse else torch.optim.Adam
    optimizer = kinds(trained(table), lr=0.1)
    losses = []
    for _ in range(40):
        indices = torch.randint(V, (16, 3))
        loss = F.mse_loss(table.embedding_bag(indices, sparse=sparse), plain_mean(target, indices))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def plain_mean(target: Tensor, indices: Tensor) -> Tensor:
    return target[indices].mean(1)


OPTIMIZERS = {
    "sgd": (optim.SparseSGD, {"lr": 0.1}),
    "momentum": (optim.SparseSGD, {"lr": 0.1, "momentum": 0.9}),
    "rowwise-adagrad": (optim.RowwiseAdagrad, {"lr": 0.1}),
    "adam": (optim.SparseAdam, {"lr": 0.1}),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_step_on_sparse_gradients_and_in_backward_alike(kind, optimizer):
    kinds, options = OPTIMIZERS[optimizer]
    table = make(kind, torch.float32)
    other, plainly = copy.deepcopy(table), copy.deepcopy(table)
    stepping = kinds(trained(table), **options)
    optim.apply_optimizer_in_backward(kinds, trained(other), options)
    for _ in range(3):
        indices = torch.randint(V, (4, 3))
        target = torch.randn(4, table.embedding_dim)
        stepping.zero_grad()
        F.mse_loss(table.embedding_bag(indices, sparse=True), target).backward()
        if optimizer == "sgd":  # which needs no state: what a dense gradient would do
            loss = F.mse_loss(plainly.embedding_bag(indices), target)
            grads = torch.autograd.grad(loss, trained(plainly))
            with torch.no_grad():
                for parameter, grad in zip(trained(plainly), grads, strict=True):
                    parameter.sub_(grad, alpha=0.1)
        stepping.step()
        F.mse_loss(other.embedding_bag(indices), target).backward()
        assert all(parameter.grad is None for parameter in trained(other))
    for left, right in zip(trained(table), trained(other), strict=True):
        torch.testing.assert_close(left, right)
    if optimizer == "sgd":
        for left, right in zip(trained(table), trained(plainly), strict=True):
            torch.testing.assert_close(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_take_a_table(kind):
    table = make(kind, torch.float32)
    dense = plain(table).detach()
    indices = torch.randint(V, (4, 3))
    layer = vecsmith.nn.Embedding(V, table.embedding_dim, table=table)
    torch.testing.assert_close(layer(indices), dense[indices])
    layer = vecsmith.nn.EmbeddingBag(V, table.embedding_dim, mode="sum", table=table, sparse=True)
    torch.testing.assert_close(layer(indices), dense[indices].sum(1))
    layer(indices).sum().backward()
    assert all(parameter.grad.is_sparse for parameter in trained(layer))
    again = copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(indices), layer(indices))


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_whole(kind, mode):
    torch._dynamo.reset()
    table = make(kind, torch.float32)
    indices = torch.randint(V, (5, 4))

    def call(indices):
        return table.embedding(indices[:, 0]) + table.embedding_bag(indices, mode=mode)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(indices), call(indices))
    compiled(indices).sum().backward()
    assert all(p.grad is not None for p in trained(table))


def test_padding_compiles_in_parts():
    torch._dynamo.reset()
    table = make("hashed-sum", torch.float32)
    indices = torch.randint(V, (5, 4))
    compiled = torch.compile(table.embedding_bag, backend="aot_eager")
    padding_idx = int(indices[0, 0])
    torch.testing.assert_close(
        compiled(indices, padding_idx=padding_idx),
        table.embedding_bag(indices, padding_idx=padding_idx),
    )


# --- Bad input. -----------------------------------------------------------------------------------

ids = torch.tensor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"indices": [1, 2], "offsets": ids([0])}, TypeError, "indices to be a torch.Tensor; got"),
        (
            {"indices": ids([1.0]), "offsets": ids([0])},
            TypeError,
            "int32 or int64; got torch.float",
        ),
        ({"indices": ids([1, V]), "offsets": ids([0])}, IndexError, f"0..{V - 1}; got {V}"),
        ({"indices": ids([-1]), "offsets": ids([0])}, IndexError, f"0..{V - 1}; got -1"),
        ({"indices": ids([[1, V]])}, IndexError, f"got {V}"),
        ({"indices": ids([1])}, ValueError, "expected offsets"),
        ({"indices": ids([1]), "offsets": [0]}, TypeError, "expected offsets"),
        ({"indices": ids([[1]]), "include_last_offset": True}, ValueError, "got None"),
        ({"indices": ids([[[1]]])}, ValueError, "expected"),
        ({"indices": ids([[1]]), "offsets": ids([0])}, ValueError, "expected"),
        ({"indices": ids([1, 2]), "offsets": ids([0, 2, 1])}, ValueError, "offsets"),
        ({"indices": ids([1, 2]), "offsets": ids([0, 3])}, ValueError, "offsets"),
        ({"indices": ids([1, 2]), "offsets": ids([1, 2])}, ValueError, "offsets"),
        ({"indices": ids([1]), "offsets": ids([0], dtype=torch.int32)}, TypeError, "offsets"),
        ({"indices": ids([[1]]), "mode": "median"}, ValueError, "mode"),
        ({"indices": ids([[1]]), "mode": "mean", "per_sample_weights": 1.0}, ValueError, "'sum'"),
        ({"indices": ids([[1]]), "mode": "max", "per_sample_weights": 1.0}, ValueError, "'sum'"),
        (
            {"indices": ids([[1, 2]]), "mode": "sum", "per_sample_weights": 1.0},
            ValueError,
            "per_sample_weights",
        ),
        (
            {"indices": ids([[1]]), "mode": "sum", "per_sample_weights": ids([[1]])},
            TypeError,
            "per_sample_weights",
        ),
        ({"indices": ids([[1]]), "padding_idx": V}, ValueError, "padding_idx"),
        ({"indices": ids([[1]]), "padding_idx": 1.5}, TypeError, "padding_idx"),
    ],
)
def test_bad_lookups_are_refused(kind, arguments, error, words):
    table = make(kind, torch.float32)
    if isinstance(arguments.get("per_sample_weights"), float):
        arguments = {**arguments, "per_sample_weights": torch.ones(1, 1)}
    with pytest.raises(error, match="expected") as refused:
        table.embedding_bag(**arguments)
    assert words in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_are_refused(kind):
    table = make(kind, torch.float32)
    for indices, error in (
        (ids([V]), IndexError),
        (ids([-1]), IndexError),
        (ids([0.5]), TypeError),
    ):
        with pytest.raises(error, match="expected"):
            table.embedding(indices)
    with pytest.raises(ValueError, match="padding_idx"):
        table.embedding(ids([0]), padding_idx=-V - 1)


@pytest.mark.parametrize(
    ("make_table", "error", "words"),
    [
        (lambda: HashedTable(0, 4, 3), ValueError, "num_embeddings"),
        (lambda: HashedTable(2**61, 4, 3), ValueError, "num_embeddings"),
        (lambda: HashedTable(9.0, 4, 3), TypeError, "num_embeddings"),
        (lambda: HashedTable(9, 0, 3), ValueError, "embedding_dim"),
        (lambda: HashedTable(9, 4, 0), ValueError, "buckets"),
        (lambda: HashedTable(9, 4, 3, 0), ValueError, "num_hashes"),
        (lambda: HashedTable(9, 4, 3, 3, "concat"), ValueError, "divide by num_hashes=3"),
        (lambda: HashedTable(9, 4, 3, 2, "mult"), ValueError, "combine"),
        (lambda: HashedTable(9, 4, 3, seed="x"), TypeError, "seed"),
        (lambda: HashedTable(2**40, 4, 3, importance=True), ValueError, "importance"),
        (lambda: QuotientRemainderTable(9, 4, 10), ValueError, "buckets"),
        (lambda: QuotientRemainderTable(9, 4, 0), ValueError, "buckets"),
        (lambda: QuotientRemainderTable(9, 4, 3, "max"), ValueError, "operation"),
        (lambda: QuotientRemainderTable(9, 1, 3, "concat"), ValueError, "embedding_dim >= 2"),
        (lambda: QuotientRemainderTable(2**50, 4, 3), ValueError, "buckets"),
        (lambda: LowRankTable(9, 4, 0), ValueError, "rank"),
        (lambda: LowRankTable(9, 4, 5), ValueError, "rank"),
        (lambda: LowRankTable(9, 4, 2, alpha=0), ValueError, "alpha"),
        (lambda: LowRankTable(9, 4, 2, alpha=math.nan), ValueError, "alpha"),
        (lambda: LowRankTable(9, 4, 2, zero="C"), ValueError, "zero"),
        (lambda: LowRankTable(9, 4, 2, base=torch.zeros(9, 5)), ValueError, "base of [9, 4]"),
        (lambda: LowRankTable(9, 4, 2, base=torch.zeros(9)), ValueError, "base"),
        (lambda: LowRankTable(9, 4, 2, base=torch.zeros(9, 4).long()), TypeError, "base"),
        (lambda: LowRankTable(9, 4, 2, base=[[0.0]]), TypeError, "base"),
        (lambda: LowRankTable(9, 4, 2, base=nn.Embedding(9, 4)), TypeError, "base"),
        (lambda: LowRankTable(9, 4, 2, base=HashedTable(8, 4, 3)), ValueError, "base"),
        (
            lambda: LowRankTable(9, 4, 2, base=torch.zeros(9, 4, dtype=torch.uint8)),
            ValueError,
            "base",
        ),
        (lambda: LowRankTable(9, 4, 2).merge(), TypeError, "base to be a torch.Tensor"),
        (lambda: LowRankTable.from_pretrained(torch.zeros(9, 4), 5), ValueError, "rank"),
        (lambda: LowRankTable.from_pretrained(torch.zeros(9), 1), ValueError, "weight"),
        (lambda: LowRankTable.from_pretrained([[1.0]], 1), TypeError, "weight"),
        (
            lambda: LowRankTable.from_pretrained(torch.full((9, 4), math.nan), 1),
            ValueError,
            "finite",
        ),
        (lambda: TensorTrainTable(9, 4, 0), ValueError, "ranks"),
        (lambda: TensorTrainTable(9, 4, (2, 2, 2)), ValueError, "ranks of 2 entries; got 3"),
        (lambda: TensorTrainTable(9, 4, (2, 0)), ValueError, "ranks"),
        (lambda: TensorTrainTable(9, 4, "22"), TypeError, "ranks"),
        (lambda: TensorTrainTable(9, 4, num_factors=1), ValueError, "num_factors"),
        (lambda: TensorTrainTable(9, 4, num_factors=5), ValueError, "num_factors"),
        (lambda: TensorTrainTable(9, 4, row_factors=(2, 2, 2)), ValueError, "product >= 9"),
        (lambda: TensorTrainTable(9, 4, row_factors=(3, 3)), ValueError, "row_factors of 3"),
        (lambda: TensorTrainTable(9, 4, column_factors=(2, 2, 2)), ValueError, "the product 4"),
        (lambda: TensorTrainTable.from_pretrained(torch.zeros(9, 4)), ValueError, "got neither"),
        (
            lambda: TensorTrainTable.from_pretrained(torch.zeros(9, 4), tolerance=-1),
            ValueError,
            "tolerance",
        ),
        (
            lambda: TensorTrainTable.from_pretrained(torch.full((9, 4), math.inf), 2),
            ValueError,
            "finite",
        ),
        (
            lambda: TensorTrainTable.from_pretrained(torch.zeros(0, 4), 2),
            ValueError,
            "at least one row",
        ),
    ],
)
def test_bad_tables_are_refused(make_table, error, words):
    with pytest.raises(error, match="expected") as refused:
        make_table()
    assert words in str(refused.value)


def test_a_state_dict_of_another_size_is_refused():
    table = TensorTrainTable(27, 8, 3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        table.load_state_dict(TensorTrainTable(27, 8, 2).state_dict())
