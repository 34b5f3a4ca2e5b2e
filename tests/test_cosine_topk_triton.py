"""The Triton kernels of `cosine_topk` against the reference in float64.

Without a GPU they run in Triton's interpreter (`make test-triton`); with one on it.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from conftest import interpreted
from vecsmith import ops

pytestmark = [pytest.mark.triton, *([] if interpreted() else [pytest.mark.gpu])]
DEVICE = "cpu" if interpreted() else "cuda"
METRICS = ("cosine", "dot", "l2")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Rows of a tile are 128, or 256 where there are more than 64 queries; of a query 16, 64 or 128.
SHAPES = {"fp32": (3, 37, 5, 1), "fp16": (5, 300, 70, 4), "bf16": (2, 140, 130, 3)}


@pytest.fixture
def kernels(monkeypatch):
    """Their first pass also where there is little to search."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels import cosine_topk

    monkeypatch.setattr(cosine_topk, "_FEW_ROWS", 0)
    monkeypatch.setattr(cosine_topk, "_FEW_QUERIES", 0)
    return cosine_topk


@pytest.fixture
def scanned(kernels, monkeypatch):
    """How many queries had all of their rows scored."""
    counts, scan = [], kernels._scan

    def counting(problem, ids):
        counts.append(len(problem.queries) if ids is None else len(ids))
        return scan(problem, ids)

    monkeypatch.setattr(kernels, "_scan", counting)
    return counts


def table(count, dim, dtype=torch.float32, shift=0.3):
    return (torch.randn(count, dim) + shift).to(dtype)


def search(queries, vocabulary, k, banned=None, exclude=None, **how):
    """(values, indices) by the kernels, on the CPU."""
    given = [None if t is None else t.to(DEVICE) for t in (queries, vocabulary, banned)]
    if isinstance(exclude, torch.Tensor):
        exclude = exclude.to(DEVICE)
    found = ops.cosine_topk(
        *given[:2], k, banned=given[2], exclude=exclude, backend="triton", **how
    )
    return found.values.cpu(), found.indices.cpu()


def check(queries, vocabulary, k, **how):
    right = ops.cosine_topk(queries, vocabulary, k, backend="reference", **how)
    values, indices = search(queries, vocabulary, k, **how)
    assert torch.equal(indices, right.indices)
    assert values.dtype == right.values.dtype
    torch.testing.assert_close(values, right.values, rtol=2e-7, atol=1e-12)
    return values, indices


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_metrics_and_dtypes(kernels, scanned, metric, dtype):
    count, rows, dim, k = SHAPES[dtype]
    check(table(count, dim, DTYPES[dtype]), table(rows, dim, DTYPES[dtype]), k, metric=metric)
    assert not scanned


@pytest.mark.parametrize(("count", "metric"), [(17, "l2"), (65, "cosine")])
def test_wider_tiles(kernels, scanned, count, metric):
    check(table(count, 33), table(270, 33), 2, metric=metric)
    assert not scanned


def test_queries_of_another_dtype_and_strides(kernels):
    """Rows apart from one another, and columns, which are copied."""
    vocabulary = table(40, 9).repeat(1, 2)[:, :9]
    check(table(9, 6).bfloat16().T, vocabulary[:, :9], 2)
    check(table(4, 9).half(), table(9, 40).T, 2, metric="l2")


def test_several_groups_and_slabs(kernels, monkeypatch):
    """Slabs of 128 rows; 17 queries are two groups."""
    monkeypatch.setattr(kernels, "_SLAB_BYTES", 128 * 128)
    monkeypatch.setattr(kernels, "_GROUP_BYTES", 0)
    check(table(17, 33), table(200, 33), 3, metric="l2", exclude=torch.arange(17)[:, None])


def test_rows_that_come_nearer_and_nearer(kernels, scanned, monkeypatch):
    """A sample of each third row knows that the best are the last."""
    monkeypatch.setattr(kernels, "_SLAB_BYTES", 128 * 128)
    near = torch.linspace(0, 1, 1300)[:, None]
    query = torch.eye(5)[:1]
    check(query, near * query + (1 - near) * table(1300, 5), 2)
    assert not scanned


@pytest.mark.parametrize("metric", METRICS)
def test_equal_and_almost_equal_rows(kernels, scanned, metric):
    """Copies, and rows that bfloat16 does not tell apart."""
    base = table(8, 20)
    near = base.repeat_interleave(15, 0)
    near[60:] += 1e-5 * torch.randn(60, 20)
    order = torch.randperm(120)
    queries = torch.cat([base[:3], base[3:5] + 1e-4 * torch.randn(2, 20)])
    _, indices = check(queries, near[order], 8, metric=metric)
    copies = [(order // 15 == i).nonzero().squeeze(1)[:8] for i in range(3)]
    if metric != "dot":
        assert torch.equal(indices[:3], torch.stack(copies))
    assert not scanned


@pytest.mark.parametrize("longest", [8192, 256])
def test_lists_that_do_not_suffice(kernels, scanned, monkeypatch, longest):
    """300 copies of one row: a list of 256 has no place for them, one of 2,048 has."""
    monkeypatch.setattr(kernels, "_LONGEST_LIST", longest)
    vocabulary = table(420, 6)
    vocabulary[50:350] = vocabulary[50].clone()
    queries = torch.cat([vocabulary[50:51], -vocabulary[50:51]])
    exclude = torch.tensor([[60, 50, -1], [-1, 1, 0]])
    _, indices = check(queries, vocabulary, 3, exclude=exclude)
    assert indices[0].tolist() == [51, 52, 53]
    assert scanned == ([] if longest > 256 else [1])


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_rows_and_queries_of_zeros(kernels, scanned, metric):
    vocabulary, queries = table(400, 7), table(6, 7)
    vocabulary[[3, 9]] = 0
    queries[[1, 4]] = 0
    banned = torch.zeros(400, dtype=torch.bool)
    banned[[0, 2]] = True
    exclude = torch.tensor([[3, 1], [1, 4], [-1, -1], [9, 3], [-1, -1], [0, 399]])
    _, indices = check(queries, vocabulary, 4, metric=metric, banned=banned, exclude=exclude)
    if metric != "l2":
        assert indices[[1, 4]].tolist() == [[3, 5, 6, 7], [1, 3, 4, 5]]
    assert not scanned


def test_a_query_of_zeros_that_may_have_few(kernels, scanned, monkeypatch):
    """Its list, of the first 256 rows, has none that it may have."""
    monkeypatch.setattr(kernels, "_LONGEST_LIST", 256)
    exclude = torch.full((2, 280), -1)
    exclude[0, :270] = torch.arange(270)
    queries = torch.stack([torch.zeros(4), torch.ones(4)])
    _, indices = check(queries, table(300, 4), 2, exclude=exclude)
    assert indices[0].tolist() == [270, 271]
    assert scanned == [1]


@pytest.mark.parametrize("metric", METRICS)
def test_banned_and_excluded(kernels, scanned, metric):
    """The best are not allowed, and some that are banned are no numbers."""
    queries, vocabulary = table(4, 12), table(150, 12)
    best = ops.cosine_topk(queries, vocabulary, 30, metric=metric, backend="reference").indices
    banned = torch.zeros(150, dtype=torch.bool)
    banned[best[:, 0]] = True
    vocabulary[best[0, 0]] = float("nan")
    vocabulary[best[1, 0]] = float("inf")
    check(queries, vocabulary, 2, metric=metric, banned=banned)
    check(queries, vocabulary, 2, metric=metric, banned=banned, exclude=best[:, 1:])
    lists = [row[: 7 * i].tolist() for i, row in enumerate(best)]
    check(queries, vocabulary, 5, metric=metric, banned=banned, exclude=lists)
    assert not scanned


@pytest.mark.parametrize("few", [0, 1024])
def test_fewer_rows_than_k_are_allowed(kernels, monkeypatch, few):
    monkeypatch.setattr(kernels, "_FEW_ROWS", few)
    queries, vocabulary = table(2, 3), table(100, 3)
    banned = torch.arange(100) >= 4
    exclude = torch.tensor([[1, 3], [-1, 0]])
    for metric in METRICS:
        values, indices = check(
            queries, vocabulary, 5, metric=metric, banned=banned, exclude=exclude
        )
        assert (indices == -1).sum(1).tolist() == [3, 2]
        assert values[0, -1] == (torch.inf if metric == "l2" else -torch.inf)
    everything = torch.ones(100, dtype=torch.bool)
    assert (check(queries, vocabulary, 2, banned=everything)[1] == -1).all()


@pytest.mark.parametrize("metric", METRICS)
def test_all_rows_and_no_queries(kernels, monkeypatch, scanned, metric):
    vocabulary = table(21, 4)
    vocabulary[[5, 11]] = vocabulary[2].clone()
    monkeypatch.setattr(kernels, "_SCORES", 32)  # one query and 21 rows at a time
    check(table(3, 4), vocabulary, 21, metric=metric)
    check(table(1, 4), vocabulary, 1, metric=metric)
    assert scanned == [3]
    monkeypatch.setattr(kernels, "_SCORES", 8)  # and four rows, with those that were found
    check(table(2, 4), vocabulary, 3, metric=metric, banned=torch.arange(21) == 4)
    values, indices = search(table(0, 4), vocabulary, 3, metric=metric)
    assert values.shape == indices.shape == (0, 3)


@pytest.mark.parametrize("metric", METRICS)
def test_float64_is_scanned(kernels, scanned, metric):
    values, _ = check(table(3, 6).double(), table(50, 6, torch.float64), 2, metric=metric)
    assert values.dtype == torch.float64
    assert scanned == [3]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("few", [0, 1024])
def test_what_is_not_finite_is_named(kernels, monkeypatch, few):
    monkeypatch.setattr(kernels, "_FEW_ROWS", few)
    queries, vocabulary = table(2, 5), table(40, 5)
    for bad, metric, length in (
        *(("nan", "cosine", ""), ("inf", "cosine", "")),
        *(("nan", "l2", " and of a length of at most 1e18"), ("2e18", "dot", " and of .* 1e18")),
    ):
        wrong = vocabulary.clone()
        wrong[[7, 31], 2] = float(bad)
        with pytest.raises(ValueError, match=f"vocabulary to be finite{length}; row 7 is not"):
            search(queries, wrong, 1, metric=metric)
        wrong = queries.clone()
        wrong[1, 4] = float(bad)
        with pytest.raises(ValueError, match=f"queries to be finite{length}; row 1 is not"):
            search(wrong, vocabulary, 1, metric=metric)


def test_lengths_at_the_ends_of_the_range(kernels):
    sizes = torch.logspace(-44, 17, 150).float()[:, None]
    check(table(3, 4) * 1e-30, table(150, 4) * sizes, 3, metric="cosine")
    check(table(3, 4) * 1e-30, table(150, 4) * sizes, 3, metric="dot")
    check(table(3, 4) * 1e16, table(150, 4) * sizes, 3, metric="l2")
    check(table(3, 4) * 1e-40, table(150, 4) * 1e-40, 3, metric="dot")


def intervals(kernels, queries, vocabulary, metric):
    """What the first pass knows of all rows: (lower, upper, exact, the lengths' product, which is
    what roundings are a part of) in float64 [Q, V]."""
    count, capacity = len(vocabulary), kernels.triton.next_power_of_2(len(vocabulary))
    known = torch.full((len(queries),), torch.finfo(torch.float32).min, device=DEVICE)
    kept = {}

    def keep(problem, ids, counts, rows, bad):
        kept["entries"] = rows._base.view(torch.float32)[: len(ids)].clone().cpu()
        kept["rows"] = rows.cpu()
        assert (counts == count).all()

    center = kernels._mean(vocabulary.to(DEVICE), metric, None)
    outputs = torch.empty(len(queries), count), torch.empty(len(queries), count).long()
    problem = kernels.Problem(
        *(queries.to(DEVICE), vocabulary.to(DEVICE), metric, None, None, None),
        *(t.to(DEVICE) for t in outputs),
    )
    with mock.patch.object(kernels, "_score_lists", keep):
        kernels._search_group(
            problem, torch.arange(len(queries), device=DEVICE), center, capacity, known
        )
    order = kept["rows"][:, :count].sort(1).indices
    upper, lower = (kept["entries"][:, i].gather(1, order).double() for i in range(2))
    q, w, m = queries.double(), vocabulary.double(), center.double().cpu()
    if metric == "cosine":
        w = w / w.norm(dim=1, keepdim=True)
    b = w - m
    a = q - m if metric == "l2" else q / q.norm(dim=1, keepdim=True)
    exact, scale = a @ b.T, a.norm(dim=1, keepdim=True) * b.norm(dim=1)
    return lower, upper, exact - b.square().sum(1) / 2 if metric == "l2" else exact, scale


@pytest.mark.parametrize("metric", METRICS)
def test_the_bounds_hold_for_each_row(kernels, metric):
    """Of random rows, rows whose roundings all have one sign and align with the query's, rows of
    many lengths, and rows that bfloat16 cannot hold."""
    dim = 200 if interpreted() else 4096
    queries, vocabulary = table(12, dim), table(250, dim)
    vocabulary[:60] = queries[:3].repeat(20, 1)
    vocabulary[60:100] = 1 + 2**-8 - 2**-20
    queries[5:9] = 1 + 2**-8 - 2**-20
    queries[9, 1:], queries[9, 0] = 1e-5, 1.0
    vocabulary[100:150] *= torch.logspace(-20, 8, 50)[:, None]
    vocabulary[150:160] *= 1e-39
    lower, upper, exact, scale = intervals(kernels, queries, vocabulary, metric)
    assert ((lower <= exact) & (exact <= upper)).all()
    # They are not empty words either: about what two factors of eight bits may lose.
    assert ((upper - lower) / scale)[9:, :60].max() < 0.02


def test_the_kth_largest(kernels):
    values = torch.randn(300) * torch.logspace(-30, 30, 300)
    values[:4] = torch.tensor([0.0, -0.0, 3e38, -torch.inf])
    values = values.to(DEVICE)
    ids = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    for k in (1, 2, 150, 299, 300):
        tau = torch.full((1,), -torch.inf, device=DEVICE)
        kernels._first_tau[(1,)](values, tau, ids, None, None, k, 1, 300, 300, BLOCK=512)
        assert tau.item() == values.sort(descending=True).values[k - 1].item()
    tau = torch.full((1,), 5.0, device=DEVICE)
    kernels._first_tau[(1,)](values, tau, ids, None, None, 513, 1, 300, 300, BLOCK=512)
    assert tau.item() == 5.0


def test_excluded_rows_of_the_sample_are_not_counted(kernels):
    """Of every third row, the query may not have two of the best three."""
    bounds = torch.tensor([9.0, 8.0, 7.0, 6.0], device=DEVICE)
    ids = torch.ones(1, dtype=torch.int64, device=DEVICE)
    offsets = torch.tensor([0, 1, 7], device=DEVICE)
    excluded = torch.tensor([0, -1, 0, 1, 4, 6, 7], device=DEVICE)
    tau = torch.zeros(1, device=DEVICE)
    kernels._first_tau[(1,)](bounds, tau, ids, offsets, excluded, 1, 3, 4, 4, BLOCK=4)
    assert tau.item() == 7.0


def test_the_values_have_derivatives(kernels):
    queries, vocabulary = table(3, 5), table(40, 5)
    grads = []
    for backend, device in (("triton", DEVICE), ("reference", "cpu")):
        leaves = [t.to(device).requires_grad_() for t in (queries, vocabulary)]
        values, _ = ops.cosine_topk(*leaves, 2, backend=backend)
        grads.append([g.cpu() for g in torch.autograd.grad((values**2).sum(), leaves)])
    for ours, right in zip(*grads, strict=True):
        torch.testing.assert_close(ours, right)


def test_it_comes_first_on_a_gpu():
    chosen = [row for row in ops.explain("cuda") if row["operator"] == "cosine_topk"]
    assert [row["backend"] for row in chosen] == ["native", "triton", "reference"]


# --- What needs a GPU. ----------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_registered_operator():
    given = (table(9, 6).cuda().requires_grad_(), table(50, 6).cuda().requires_grad_())
    arguments = (*given, 2, "cosine", None, None, None, "triton", 0)
    torch.library.opcheck(torch.ops.vecsmith.cosine_topk.default, arguments)


@pytest.mark.gpu
@pytest.mark.parametrize(("metric", "k"), [("cosine", 10), ("dot", 1), ("l2", 100)])
def test_many_rows_and_little_memory(metric, k):
    """All of 64 MB are enough, and what is found is found by float64 as well."""
    queries, vocabulary = torch.randn(8192, 768).cuda(), torch.randn(131_072, 768).cuda()
    vocabulary[70_000:70_500] = vocabulary[:500] + 1e-5 * torch.randn(500, 768).cuda()
    queries[:500] = vocabulary[:500]
    ops.cosine_topk(queries[:200], vocabulary, k, metric=metric, backend="triton")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = ops.cosine_topk(queries, vocabulary, k, metric=metric, backend="triton")
    outputs = found.values.nbytes + found.indices.nbytes
    assert torch.cuda.max_memory_allocated() - before - outputs < 64 << 20
    again = ops.cosine_topk(queries, vocabulary, k, metric=metric, backend="triton")
    assert torch.equal(found.indices, again.indices)
    assert torch.equal(found.values, again.values)
    for first in (0, 4000):
        part = slice(first, first + 200)
        right = ops.cosine_topk(queries[part], vocabulary, k, metric=metric, backend="reference")
        assert torch.equal(found.indices[part], right.indices)
