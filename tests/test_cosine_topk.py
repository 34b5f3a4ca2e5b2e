"""The operator cosine_topk: every backend, dtype and ISA level against the reference in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import interpreted, placed
from vecsmith import ops
from vecsmith.ops import _cosine_topk as registered
from vecsmith.reference import cosine_topk as reference


@pytest.fixture(autouse=True)
def _what_the_interpreter_can_afford(request):
    """Triton's interpreter takes a tenth of a second for each query: test_cosine_topk_triton.py has
    small cases for it."""
    case = (
        request.node.callspec.params.get("operator_case")
        if hasattr(request.node, "callspec")
        else None
    )
    if case is not None and case.backend == "triton" and interpreted():
        pytest.skip("too slow in the interpreter: test_cosine_topk_triton.py has its cases")


METRICS = reference.METRICS
# (queries, rows, dim, k): around the kernels' blocks of rows, queries and words.
SIZES = [
    (1, 1, 1, 1),
    (1, 9, 3, 9),
    (2, 50, 17, 50),
    (5, 48, 64, 2),
    (7, 97, 5, 3),
    (33, 145, 37, 1),
    (9, 600, 130, 10),
]
# Nothing but the native module has levels; the reference is there to be compared with itself.
native = pytest.mark.cases(backend="native", dtype=torch.float32)
each_backend = pytest.mark.cases(dtype=torch.float32)


def nearest(case, queries, vocabulary, k, **how):
    """By the backend of a case, where its tensors live; the answer is on the CPU."""

    def there(value):
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(case.device) if value.requires_grad else placed(value, case.device)

    how = {name: there(value) for name, value in how.items()}
    given = (there(queries), there(vocabulary))
    found = ops.cosine_topk(*given, k, backend=case.backend, **how)
    assert all(part.device.type == case.device for part in found)
    return ops.TopK(*(part.cpu() for part in found))


def draw(queries, rows, dim, dtype=torch.float32):
    """Rows with a common offset, as trained ones have."""
    return torch.randn(queries, dim).to(dtype), (torch.randn(rows, dim) + 0.5).to(dtype)


def scale_of(queries, rows, metric):
    """What 1e-12 is relative to: [Q, 1] and the like for rows that were found [Q, k, D]."""
    q, w = queries.double().norm(dim=-1, keepdim=True), rows.double().norm(dim=-1)
    return {"cosine": torch.ones_like(q * w), "dot": q * w, "l2": (q + w) ** 2}[metric]


def assert_nearest(found, queries, vocabulary, k, metric="cosine", **masks):
    """Each row that was found has the score of that rank, no row comes twice, and values are
    scores, rounded once."""
    values, indices = found
    assert values.shape == indices.shape == (len(queries), k)
    assert values.dtype == reference.value_dtype(queries, vocabulary)
    assert indices.dtype == torch.int64
    exact, _ = reference.cosine_topk(
        queries.double(), vocabulary.double(), k, metric=metric, **masks
    )
    missing = exact.isinf()
    assert torch.equal(indices == -1, missing)
    assert torch.equal(values[missing].double(), exact[missing])
    for row in indices:
        assert len(row[row >= 0].unique()) == int((row >= 0).sum())
    rows = vocabulary[indices.clamp(min=0)]
    own = torch.stack([reference.scores(q, w, metric) for q, w in zip(queries, rows, strict=True)])
    limit = 1e-12 * scale_of(queries, rows, metric)
    assert ((own - exact).abs() <= limit)[~missing].all()
    rounding = torch.finfo(values.dtype).eps / 2 * exact.abs()
    assert ((values.double() - exact).abs() <= limit + rounding)[~missing].all()


def offsets_of(exclude):
    """Masks of the reference, of a tensor [Q, E]."""
    offsets = torch.arange(len(exclude) + 1) * exclude.shape[1]
    return {"exclude_offsets": offsets, "excluded": exclude.sort(1).values.reshape(-1)}


@pytest.mark.parametrize("metric", METRICS)
def test_against_the_reference(operator_case, metric):
    case = operator_case
    for queries, rows, dim, k in SIZES:
        q, w = draw(queries, rows, dim, case.dtype)
        found = nearest(case, q, w, k, metric=metric)
        assert_nearest(found, q, w, k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.cases(backend="native", dtype=(torch.float32, torch.bfloat16))
def test_many_rows(operator_case, metric):
    """More than a stage of the first pass, with few queries and with many."""
    for queries, rows, dim, k in ((40, 5000, 33, 20), (3, 3000, 20, 1), (150, 700, 66, 2)):
        q, w = draw(queries, rows, dim, operator_case.dtype)
        found = ops.cosine_topk(q, w, k, metric=metric, num_threads=2)
        assert_nearest(found, q, w, k, metric)


@pytest.mark.cases(backend="native", dtype=torch.float64)
@pytest.mark.parametrize("metric", METRICS)
def test_indices_are_those_of_the_reference(operator_case, metric):
    q, w = draw(30, 400, 19, torch.float64)
    found = ops.cosine_topk(q, w, 7, metric=metric)
    _, right = reference.cosine_topk(q, w, 7, metric=metric)
    assert torch.equal(found.indices, right)


@native
def test_dtypes_may_differ(operator_case):
    for of_queries in registered.DTYPES:
        for of_rows in registered.DTYPES:
            q, _ = draw(9, 1, 21, of_queries)
            _, w = draw(1, 130, 21, of_rows)
            assert_nearest(ops.cosine_topk(q, w, 3), q, w, 3)


@each_backend
def test_no_queries(operator_case):
    w = torch.randn(5, 3)
    for shape in ((0, 3), (2, 0, 3)):
        found = nearest(operator_case, torch.randn(shape), w, 2)
        assert found.values.shape == found.indices.shape == (*shape[:-1], 2)
        assert found.indices.dtype == torch.int64


@each_backend
def test_leading_dimensions(operator_case):
    q, w = draw(24, 60, 9)
    flat = nearest(operator_case, q, w, 3)
    for shape in ((2, 3, 4), (24, 1), (1, 1, 24)):
        found = nearest(operator_case, q.view(*shape, 9), w, 3)
        assert torch.equal(found.values, flat.values.view(*shape, 3))
        assert torch.equal(found.indices, flat.indices.view(*shape, 3))
    one = nearest(operator_case, q[0], w, 3)
    assert one.values.shape == (3,)
    assert torch.equal(one.indices, flat.indices[0])


@each_backend
@pytest.mark.parametrize("metric", METRICS)
def test_strided_inputs(operator_case, metric):
    """What lies between the rows is NaN: it must not be read."""

    def inside(x, rows, columns):
        """x as every second row, behind some columns, of a table of NaN."""
        outer = torch.full((2 * len(x), x.shape[1] + 5), torch.nan)
        outer[::rows, columns : columns + x.shape[1]] = x
        return outer[::rows, columns : columns + x.shape[1]]

    how = {"metric": metric}
    q, w = draw(11, 130, 37)
    right = nearest(operator_case, q, w, 4, **how)
    given = [
        (q.t().contiguous().t(), w),
        (q, w.t().contiguous().t()),
        (inside(q, 2, 3), inside(w, 2, 1)),
        (q.t().contiguous().t(), inside(w, 2, 5)),
        (q[:1].expand(11, -1), w),
    ]
    for queries, vocabulary in given:
        found = nearest(operator_case, queries, vocabulary, 4, **how)
        last = queries.stride(0) == 0
        for ours, theirs in zip(found, right, strict=True):
            assert torch.equal(ours, theirs[:1].expand(11, -1) if last else theirs)


# --- ties, zeros ----------------------------------------------------------------------------------


@pytest.mark.cases(dtype=(torch.float32, torch.bfloat16))
@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_go_to_the_lowest_index(operator_case, metric):
    for rows, dim, k in ((300, 20, 60), (1500, 5, 7)):
        q, few = draw(40, 6, dim, operator_case.dtype)
        which = torch.randint(6, (rows,))
        w = few[which]
        values, indices = nearest(operator_case, q, w, k, metric=metric)
        _, kinds = reference.cosine_topk(q.double(), few.double(), 6, metric=metric)
        for i in range(len(q)):
            right = torch.cat([(which == kind).nonzero().squeeze(1) for kind in kinds[i]])[:k]
            assert torch.equal(indices[i], right)
            assert len(values[i].unique()) == len(which[right].unique())


@each_backend
@pytest.mark.parametrize("metric", METRICS)
def test_all_rows_are_equal(operator_case, metric):
    """More candidates than a query has room for."""
    w = torch.randn(1, 9).repeat(1700, 1)
    found = nearest(operator_case, torch.randn(8, 9), w, 3, metric=metric)
    assert (found.indices == torch.arange(3)).all()


@pytest.mark.cases(dtype=(torch.float32, torch.float16))
@pytest.mark.parametrize("metric", METRICS)
def test_zero_rows_and_zero_queries(operator_case, metric):
    case = operator_case
    for rows in (60, 400):
        q, w = draw(12, rows, 18, case.dtype)
        w[::7] = 0
        q[::3] = 0
        found = nearest(case, q, w, 5, metric=metric)
        assert_nearest(found, q, w, 5, metric)
        if metric != "l2":
            assert torch.equal(found.indices[::3], torch.arange(5).expand(4, -1))
            assert not found.values[::3].any()
        # Of rows that all point away, a zero row is the nearest.
        near = nearest(case, -w[1:2].abs(), w.abs(), 1, metric=metric)
        assert near.indices.item() == 0
        nothing = nearest(case, q, w * 0, 3, metric=metric)
        assert torch.equal(nothing.indices, torch.arange(3).expand(12, -1))


# --- masks ----------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("metric", METRICS)
def test_banned_rows_may_hold_anything(operator_case, metric):
    for queries, rows, k in ((2, 40, 5), (30, 700, 5), (9, 20, 20)):
        q, w = draw(queries, rows, 23)
        banned = torch.rand(rows) < 0.4
        w[banned] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])[
            torch.randint(4, (int(banned.sum()), 23))
        ]
        how = {"metric": metric, "banned": banned}
        found = nearest(operator_case, q, w, k, **how)
        clean = torch.where(banned[:, None], 0.0, w)
        assert_nearest(found, q, clean, k, metric, banned=banned)
        assert not banned[found.indices[found.indices >= 0]].any()


@each_backend
@pytest.mark.parametrize("metric", METRICS)
def test_excluded_rows(operator_case, metric):
    for queries, rows, k in ((2, 40, 5), (45, 700, 9), (40, 12, 12)):
        q, w = draw(queries, rows, 23)
        best = nearest(operator_case, q, w, k, metric=metric).indices
        # The best ones, in any order, some twice, some not at all.
        exclude = torch.cat([best[:, [2, 0]], best[:, :1], torch.full((queries, 2), -1)], 1)
        exclude[::2, 1] = -1
        exclude = exclude[:, torch.randperm(exclude.shape[1])]
        banned = torch.rand(rows) < 0.2
        for mask in (None, banned):
            how = {"metric": metric, "banned": mask}
            found = nearest(operator_case, q, w, k, exclude=exclude, **how)
            assert_nearest(found, q, w, k, metric, banned=mask, **offsets_of(exclude))
            assert not (found.indices[:, :, None] == exclude[:, None].clamp(min=0)).any() or (
                (exclude < 0).any()
            )
            lists = [[row for row in one if row >= 0] for one in exclude.tolist()]
            again = nearest(operator_case, q, w, k, exclude=lists, **how)
            assert torch.equal(found.indices, again.indices)
            assert torch.equal(found.values, again.values)


@each_backend
def test_exclusions_of_leading_dimensions(operator_case):
    q, w = torch.randn(3, 4, 6), torch.randn(50, 6)
    best = nearest(operator_case, q, w, 3).indices
    found = nearest(operator_case, q, w, 1, exclude=best[..., :2])
    assert torch.equal(found.indices, best[..., 2:])
    lists = best[..., :2].reshape(12, 2).tolist()
    again = nearest(operator_case, q, w, 1, exclude=lists)
    assert torch.equal(again.indices, best[..., 2:])
    for none in ([[]] * 12, torch.empty(3, 4, 0, dtype=torch.int64)):
        all_of_them = nearest(operator_case, q, w, 3, exclude=none)
        assert torch.equal(all_of_them.indices, best)


@each_backend
@pytest.mark.parametrize("metric", METRICS)
def test_fewer_rows_than_k_are_allowed(operator_case, metric):
    worst = torch.inf if metric == "l2" else -torch.inf
    for queries in (3, 70):
        q, w = draw(queries, 90, 8)
        q[1] = 0
        banned = torch.ones(90, dtype=torch.bool)
        banned[[4, 50, 89]] = False
        exclude = torch.full((queries, 1), -1)
        exclude[::2] = 50
        how = {"metric": metric}
        found = nearest(operator_case, q, w, 6, banned=banned, exclude=exclude, **how)
        assert_nearest(found, q, w, 6, metric, banned=banned, **offsets_of(exclude))
        assert ((found.indices >= 0).sum(1) == torch.where(exclude[:, 0] < 0, 3, 2)).all()
        none = nearest(operator_case, q, w, 2, banned=torch.ones_like(banned), **how)
        assert (none.indices == -1).all()
        assert (none.values == worst).all()


# --- threads, levels ------------------------------------------------------------------------------


@native
@pytest.mark.parametrize("metric", METRICS)
def test_bits_do_not_depend_on_threads(operator_case, metric):
    for queries, rows, k in ((1, 900, 4), (30, 900, 4), (300, 2000, 1)):
        q, w = draw(queries, rows, 35)
        w[rows // 2 :] = w[: rows - rows // 2].clone()
        exclude = torch.randint(rows, (queries, 3))
        right = ops.cosine_topk(q, w, k, metric=metric, exclude=exclude, num_threads=1)
        for threads in (2, 3, 5):
            found = ops.cosine_topk(q, w, k, metric=metric, exclude=exclude, num_threads=threads)
            assert torch.equal(found.values, right.values)
            assert torch.equal(found.indices, right.indices)


# --- derivatives ----------------------------------------------------------------------------------


def leaves_of(queries, rows, dim, dtype=torch.float64):
    q, w = draw(queries, rows, dim, dtype)
    return q.requires_grad_(), w.requires_grad_()


@pytest.mark.cases(dtype=torch.float64)
@pytest.mark.parametrize("gathered", [1 << 13, 4])
@pytest.mark.parametrize("metric", METRICS)
def test_derivatives(operator_case, metric, gathered, monkeypatch):
    """gathered: of 4, a query at a time."""
    monkeypatch.setattr(registered, "_GATHERED", gathered)
    q, w = leaves_of(5, 9, 4)

    def values(q, w):
        return nearest(operator_case, q, w, 3, metric=metric).values

    assert torch.autograd.gradcheck(values, (q, w))
    assert torch.autograd.gradgradcheck(values, (q, w))
    assert torch.autograd.gradcheck(lambda q: values(q, w.detach()), (q,))
    assert torch.autograd.gradcheck(lambda w: values(q.detach(), w), (w,))


@pytest.mark.parametrize("metric", METRICS)
def test_derivatives_where_there_are_none(metric):
    """Of zero rows, zero queries, and places that no row has."""
    q, w = leaves_of(4, 6, 3)
    with torch.no_grad():
        q[1], w[2] = 0, 0
    banned = torch.tensor([0, 0, 0, 1, 1, 1]).bool()

    def values(q, w):
        found = ops.cosine_topk(q, w, 5, metric=metric, banned=banned)
        return torch.where(found.indices >= 0, found.values, 0.0)

    grads = torch.autograd.grad(values(q, w).sum(), (q, w))
    assert all(g.isfinite().all() for g in grads)
    assert not grads[1][banned].any()
    if metric == "cosine":
        assert not grads[0][1].any()
        assert not grads[1][2].any()
    if metric == "l2":
        assert torch.autograd.gradcheck(values, (q, w))


@pytest.mark.parametrize("metric", METRICS)
def test_derivatives_are_those_of_the_score(metric):
    """In each dtype, in float32 at least, whatever the dtype of the other."""
    for of_queries, of_rows in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
    ):
        q, w = draw(40, 100, 12)
        q, w = q.to(of_queries).requires_grad_(), w.to(of_rows).requires_grad_()
        found = ops.cosine_topk(q, w, 6, metric=metric)
        weights = torch.randn(found.values.shape, dtype=torch.float64)
        ours = torch.autograd.grad((found.values * weights).sum(), (q, w))
        q2, w2 = q.detach().double().requires_grad_(), w.detach().double().requires_grad_()
        rows = w2[found.indices]
        products = (q2[:, None] * rows).sum(-1)
        lengths = q2.norm(dim=1)[:, None] * rows.norm(dim=2)
        distances = (q2[:, None] - rows).square().sum(-1)
        scores = {"cosine": products / lengths, "dot": products, "l2": distances}[metric]
        right = torch.autograd.grad((scores * weights).sum(), (q2, w2))
        for grad, leaf, exact in zip(ours, (q, w), right, strict=True):
            assert grad.dtype == leaf.dtype
            unit = torch.finfo(leaf.dtype).eps + 16 * 2.0**-24
            assert float((grad.double() - exact).abs().max()) <= unit * float(exact.abs().max())


def test_no_gradient_is_asked_of_indices():
    q, w = leaves_of(3, 5, 2)
    found = ops.cosine_topk(q, w, 2)
    assert found.values.requires_grad
    assert not found.indices.requires_grad
    empty = ops.cosine_topk(q[:0], w, 2)
    grads = torch.autograd.grad(empty.values.sum(), (q, w))
    assert not any(g.any() for g in grads)


# --- torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_opcheck(metric):
    q, w = leaves_of(4, 7, 3, torch.float32)
    offsets, excluded = torch.tensor([0, 2, 4, 6, 8]), torch.tensor([1, 2, -1, 3, 0, 6, -1, -1])
    banned = torch.tensor([0, 0, 0, 0, 0, 1, 0]).bool()
    for masks in ((None, None, None), (banned, offsets, excluded)):
        for leaves in ((q, w), (q.detach(), w.detach().double())):
            arguments = (*leaves, 2, metric, *masks, "", 0)
            torch.library.opcheck(torch.ops.vecsmith.cosine_topk.default, arguments)


def test_compiles_without_a_graph_break():
    q, w = leaves_of(6, 40, 5, torch.float32)
    exclude = torch.randint(40, (2, 3, 2))

    def call(q, w):
        found = ops.cosine_topk(q.view(2, 3, 5), w, 3, exclude=exclude)
        return (found.values * found.values.detach()).sum(), found.indices

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    ours, theirs = compiled(q, w), call(q, w)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    for a, b in zip(
        torch.autograd.grad(ours[0], (q, w)), torch.autograd.grad(theirs[0], (q, w)), strict=True
    ):
        torch.testing.assert_close(a, b)


# --- what stands on it ----------------------------------------------------------------------------


@each_backend
def test_linear_topk(operator_case):
    case = operator_case
    x, weight = leaves_of(20, 90, 11)
    bias = torch.randn(90, dtype=torch.float64, requires_grad=True)
    for b in (None, bias):
        given = [t if t is None else t.to(case.device) for t in (x.view(4, 5, 11), weight, b)]
        found = ops.linear_topk(*given, 8, backend=case.backend)
        found = ops.TopK(*(part.cpu() for part in found))
        right = torch.nn.functional.linear(x, weight, b).topk(8)
        assert torch.equal(found.indices.view(20, 8), right.indices)
        torch.testing.assert_close(found.values.view(20, 8), right.values, rtol=1e-12, atol=1e-12)
        leaves = (x, weight) if b is None else (x, weight, b)
        weights = torch.randn(20, 8, dtype=torch.float64)
        ours = torch.autograd.grad((found.values.view(20, 8) * weights).sum(), leaves)
        theirs = torch.autograd.grad((right.values * weights).sum(), leaves)
        for a, c in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="bias of shape"):
        ops.linear_topk(x, weight, bias[:4])


@each_backend
def test_match_mask_and_accuracy(operator_case):
    backend, device = operator_case.backend, operator_case.device
    embeddings = torch.randn(50, 12).to(device)
    embeddings[31] = embeddings[7]
    targets = torch.randint(50, (6, 9)).to(device)
    targets[0, :3] = torch.tensor([7, 31, 7])
    outputs = (2 * embeddings[targets]).requires_grad_()
    mask = ops.match_mask(outputs, embeddings, targets, backend=backend)
    assert mask.shape == targets.shape
    assert mask.all()
    assert not mask.requires_grad
    wrong = targets.clone()
    wrong[1] = (targets[1] + 1) % 7
    wrong[2, :2] = -100
    mask = ops.match_mask(outputs, embeddings, wrong, backend=backend)
    right = torch.ones_like(mask)
    right[1], right[2, :2] = False, False
    # Rows 7 and 31 are one.
    right[1] = (embeddings[wrong[1]] == embeddings[targets[1]]).all(-1)
    assert torch.equal(mask, right)
    accuracy = ops.nearest_token_accuracy(outputs, embeddings, wrong, backend=backend)
    assert accuracy.dtype == torch.float32
    assert accuracy.item() == pytest.approx((int(right.sum())) / (right.numel() - 2))
    other = ops.nearest_token_accuracy(
        outputs, embeddings, targets, ignore_index=7, backend=backend
    )
    assert other.item() == 1
    nothing = torch.full((6, 9), -100, device=device)
    assert ops.nearest_token_accuracy(outputs, embeddings, nothing, backend=backend).isnan()
    with pytest.raises(IndexError, match=r"targets below V=50; got 50"):
        ops.match_mask(outputs, embeddings, torch.full_like(nothing, 50), backend=backend)
    with pytest.raises(ValueError, match="targets of shape"):
        ops.match_mask(outputs, embeddings, targets[0], backend=backend)
    with pytest.raises(TypeError, match=r"targets to be torch.int64"):
        ops.match_mask(outputs, embeddings, targets.int(), backend=backend)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"queries": [[1.0]]}, TypeError, "queries to be a torch.Tensor; got list"),
        ({"queries": torch.zeros(2, 4)}, ValueError, r"queries of shape .*D=3.*got \[2, 4\]"),
        ({"queries": torch.tensor(1.0)}, ValueError, r"queries of shape .*got \[\]"),
        ({"queries": torch.zeros(2, 3).long()}, TypeError, "queries torch.int64"),
        ({"queries": torch.zeros(2, 3, device="meta")}, ValueError, "queries on cpu; got .* meta"),
        ({"queries": torch.zeros(2, 3).to_sparse()}, TypeError, "queries to be dense"),
        ({"vocabulary": torch.zeros(5, 3).to_sparse()}, TypeError, "vocabulary to be a strided"),
        ({"vocabulary": None}, TypeError, "vocabulary to be a torch.Tensor"),
        ({"vocabulary": torch.zeros(3)}, ValueError, "vocabulary of shape"),
        ({"vocabulary": torch.zeros(5, 0)}, ValueError, "vocabulary of shape"),
        ({"vocabulary": torch.zeros(0, 3)}, ValueError, "at least one row; got none"),
        ({"vocabulary": torch.zeros(5, 3).int()}, TypeError, "floating point"),
        ({"k": 0}, ValueError, "k in 1"),
        ({"k": 6}, ValueError, "at most V=5 rows; got 6"),
        ({"k": 1.0}, TypeError, "k to be an int; got float"),
        ({"k": True}, TypeError, "k to be an int; got bool"),
        ({"metric": "euclid"}, ValueError, "'cosine', 'dot', 'l2'; got 'euclid'"),
        ({"banned": torch.zeros(4).bool()}, ValueError, r"banned of shape \[5\]"),
        ({"banned": torch.zeros(5)}, TypeError, "banned to be torch.bool"),
        ({"exclude": torch.zeros(2).long()}, ValueError, r"exclude of shape \[2, 'E'\]"),
        ({"exclude": torch.zeros(2, 1).int()}, TypeError, "exclude to be torch.int64"),
        ({"exclude": torch.full((2, 1), 5)}, IndexError, r"exclude in -1\.\.4; got 5"),
        ({"exclude": torch.full((2, 1), -2)}, IndexError, r"exclude in -1\.\.4; got -2"),
        ({"exclude": [[1], [9]]}, IndexError, "got 9"),
        ({"exclude": [[1]]}, ValueError, "2 lists, one for each query; got 1"),
        ({"exclude": "ab"}, TypeError, "got str"),
        ({"exclude": 3}, TypeError, "got int"),
        ({"backend": "cudnn"}, ValueError, "'native', 'triton', 'reference'; got 'cudnn'"),
        ({"num_threads": 0}, ValueError, "num_threads in 1"),
    ],
)
def test_bad_input_is_refused(changed, error, words):
    values = {"queries": torch.zeros(2, 3), "vocabulary": torch.zeros(5, 3), "k": 2}
    ops.cosine_topk(**values)
    with pytest.raises(error, match=words):
        ops.cosine_topk(**{**values, **changed})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.cases(backend="native", dtype=(torch.float32, torch.float16, torch.float64))
def test_rows_that_are_not_finite_are_named(operator_case, bad):
    """Also where there are few queries and rows are not packed; the first of several."""
    for queries in (1, 40):
        for metric in METRICS:
            q, w = draw(queries, 200, 21, operator_case.dtype)
            wrong = w.clone()
            wrong[150, 20], wrong[70, 3] = bad, bad
            for threads in (1, 3):
                with pytest.raises(ValueError, match=r"vocabulary to be finite.*row 70 is not"):
                    ops.cosine_topk(q, wrong, metric=metric, num_threads=threads)
            wrong = q.clone()
            wrong[queries // 2, 20] = bad
            with pytest.raises(ValueError, match=rf"queries to be finite.*row {queries // 2} is"):
                ops.cosine_topk(wrong, w, metric=metric)


@native
def test_rows_that_are_too_long_are_named(operator_case):
    for queries in (1, 40):
        for metric in ("dot", "l2"):
            q, w = draw(queries, 200, 21)
            wrong = w.clone()
            wrong[130] = 1e18
            with pytest.raises(ValueError, match=r"vocabulary.*at most 1e18; row 130 is not"):
                ops.cosine_topk(q, wrong, metric=metric)
            with pytest.raises(ValueError, match=r"queries.*at most 1e18; row 0 is not"):
                ops.cosine_topk(q * 1e19, w, metric=metric)
            assert ops.cosine_topk(q, w * 1e16, metric=metric).values.isfinite().all()
        huge = w.double() * 1e200
        with pytest.raises(ValueError, match="vocabulary to be finite; row 0 is not"):
            ops.cosine_topk(q, huge)
        assert_nearest(ops.cosine_topk(q, w * 1e36), q, w * 1e36, 1)


def test_numpy_is_no_tensor():
    with pytest.raises(TypeError, match="got ndarray"):
        ops.cosine_topk(np.zeros((2, 3)), torch.zeros(5, 3))
