"""Every backend of `embedding_bag` against the reference and against torch: forward, gradients, the
rules of the fused update, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.nn import functional

from vecsmith import ops
from vecsmith.reference import embedding_bag as reference

MODES = ("sum", "mean", "max")
# Triton's interpreter takes seconds for what the others do at once: many shapes of it are in
# test_embedding_bag_triton.py.
quick = pytest.mark.cases(backend=("native", "reference"))
DIMS = (1, 37, 64, 130)


def problem(rows=50, dim=37, sizes=(3, 0, 7, 1, 0, 29), dtype=torch.float32, wide=True, seed=0):
    """(weight, indices, offsets) with bags of these sizes, empty ones among them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, dim, generator=generator).to(dtype)
    kind = torch.int64 if wide else torch.int32
    indices = torch.randint(0, rows, (sum(sizes),), generator=generator).to(kind)
    offsets = torch.tensor([0, *sizes]).cumsum(0)[:-1].to(kind)
    return weight, indices, offsets


def table_of(case, weight):
    """The table in the dtype of a case, and its values in fp64."""
    if case.dtype == torch.uint8:
        packed = ops.quantize_rows(weight)
        scale, bias = packed[:, -8:].contiguous().view(torch.float32).double().split(1, 1)
        return packed.to(case.device), packed[:, :-8] * scale + bias
    return weight.to(case.dtype).to(case.device), weight.to(case.dtype).double()


def to(case, *tensors):
    return [t if t is None else t.to(case.device) for t in tensors]


@quick
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("mode", [*MODES, "weighted"])
@pytest.mark.parametrize("dim", DIMS)
def test_forward(operator_case, assert_close_to_reference, dim, mode, padding_idx):
    case = operator_case
    # Many bags: the largest of few errors says little.
    weight, indices, offsets = problem(dim=dim, wide=dim % 2 == 0, sizes=(3, 0, 7, 1, 0, 29) * 20)
    indices[5:8] = 3
    table, exact = table_of(case, weight)
    samples = torch.randn(indices.numel()) if mode == "weighted" else None
    if samples is not None and case.dtype != torch.uint8:
        samples = samples.to(case.dtype)
    mode = "sum" if mode == "weighted" else mode
    options = {"mode": mode, "padding_idx": padding_idx}
    indices, offsets, samples = to(case, indices, offsets, samples)
    out = ops.embedding_bag(
        indices,
        table,
        offsets,
        per_sample_weights=samples,
        backend=case.backend,
        num_threads=2,
        **options,
    )
    padding = -1 if padding_idx is None else padding_idx
    rest = (mode, False, padding)
    plain, _ = reference.embedding_bag(table, indices, offsets, samples, *rest)
    wide = None if samples is None else samples.double()
    truth, _ = reference.embedding_bag(exact.to(case.device), indices, offsets, wide, *rest)
    assert_close_to_reference(out, plain, truth)
    if case.dtype in (torch.float32, torch.float64):
        theirs = functional.embedding_bag(
            indices, table, offsets, per_sample_weights=samples, **options
        )
        torch.testing.assert_close(out, theirs)


def test_forms_of_bags_agree(operator_case):
    """2-D indices, offsets, offsets with the last one, and int32 are the same bags."""
    case = operator_case
    weight, _, _ = problem()
    table, _ = table_of(case, weight)
    indices = torch.randint(0, 50, (6, 9), device=case.device)
    offsets = torch.arange(0, 55, 9, device=case.device)
    for mode in MODES:
        call = lambda *a, mode=mode, **k: ops.embedding_bag(  # noqa: E731
            *a, mode=mode, backend=case.backend, num_threads=1, **k
        )
        first = call(indices, table)
        flat = indices.reshape(-1)
        assert torch.equal(first, call(flat, table, offsets[:-1]))
        assert torch.equal(first, call(flat, table, offsets, include_last_offset=True))
        assert torch.equal(first, call(flat.int(), table, offsets[:-1].int()))
        # What stands behind the last bag's end is left out.
        longer = torch.cat([flat, flat])
        assert torch.equal(first, call(longer, table, offsets, include_last_offset=True))


def test_embedding(operator_case):
    case = operator_case
    weight, indices, _ = problem()
    table, _ = table_of(case, weight)
    for shape in ((40,), (8, 5), (2, 4, 5), (0,), (3, 0)):
        some = indices[: torch.Size(shape).numel()].reshape(shape).to(case.device)
        out = ops.embedding(some, table, padding_idx=3, backend=case.backend, num_threads=2)
        expected = reference.embedding(table, some)
        if case.dtype == torch.uint8:  # scale q + bias, rounded once or twice
            torch.testing.assert_close(out, expected)
        else:
            assert torch.equal(out, expected)


def test_embedding_is_the_product_of_a_one_hot_matrix_and_the_table(operator_case):
    case = operator_case
    if case.dtype == torch.uint8:
        pytest.skip("a quantized table is no factor of a product")
    weight, indices, offsets = problem()
    table, _ = table_of(case, weight)
    indices, offsets = to(case, indices, offsets)
    one_hot = functional.one_hot(indices, 50).to(table.dtype)
    assert torch.equal(ops.embedding(indices, table, backend=case.backend), one_hot @ table)
    bags, _, count = reference.bags(indices, offsets, False)[1], None, offsets.numel()
    pooling = torch.zeros(count, indices.numel(), device=case.device, dtype=table.dtype)
    pooling[bags, torch.arange(indices.numel())] = 1
    product = (pooling @ one_hot).double() @ table.double()
    out = ops.embedding_bag(indices, table, offsets, mode="sum", backend=case.backend)
    torch.testing.assert_close(
        out.double(), product, rtol=2e-2, atol=2e-2 * (out.dtype.itemsize < 4)
    )


@quick
def test_long_bags_and_many_threads(operator_case, assert_close_to_reference):
    """Bags that go over several blocks of samples, and more threads than bags."""
    case = operator_case
    weight, indices, offsets = problem(sizes=(5, 3000, 0, 1, 700), dim=20)
    table, exact = table_of(case, weight)
    indices, offsets = to(case, indices, offsets)
    for mode in MODES:
        for threads in (1, 3):
            for padding in (None, 7):
                out = ops.embedding_bag(
                    indices,
                    table,
                    offsets,
                    mode=mode,
                    padding_idx=padding,
                    num_threads=threads,
                    backend=case.backend,
                )
                rest = (None, mode, False, -1 if padding is None else padding)
                plain, positions = reference.embedding_bag(table, indices, offsets, *rest)
                truth, _ = reference.embedding_bag(exact.to(case.device), indices, offsets, *rest)
                assert_close_to_reference(out, plain, truth)
                if mode == "max":
                    _, found = torch.ops.vecsmith.embedding_bag(
                        *(table, indices, offsets, None, mode, False),
                        *(-1 if padding is None else padding, False, threads, case.backend),
                    )
                    assert torch.equal(found, positions)


@pytest.mark.cases(backend="native")
def test_nothing_at_all(operator_case):
    table, _ = table_of(operator_case, problem()[0])
    none = torch.empty(0, dtype=torch.int64)
    zero = torch.zeros(4, dtype=torch.int64)
    for mode in MODES:
        assert ops.embedding_bag(none, table, none, mode=mode).shape == (0, 37)
        assert torch.equal(
            ops.embedding_bag(none, table, zero, mode=mode).float(), torch.zeros(4, 37)
        )
        assert ops.embedding_bag(none.reshape(0, 5), table, mode=mode).shape == (0, 37)
        assert not ops.embedding_bag(none.reshape(5, 0), table, mode=mode).any()
    assert ops.embedding_bag(none, table[:0], zero, mode="sum").shape == (4, 37)


@pytest.mark.cases(backend="native")
@pytest.mark.parametrize("mode", [*MODES, "weighted"])
def test_long_bags_at_every_dim(operator_case, mode):
    """A bag of several of the kernel's blocks: what goes on from one to the next, whatever columns
    the last vector of a row shares with the one before it."""
    case = operator_case
    sizes = (3, 1700, 0, 600)
    _, indices, offsets = problem(sizes=sizes)
    samples = torch.rand(indices.numel()) if mode == "weighted" else None
    if samples is not None and case.dtype != torch.uint8:
        samples = samples.to(case.dtype)
    mode = "sum" if mode == "weighted" else mode
    whole = torch.rand(50, 290)
    wide = None if samples is None else samples.double()
    rest = (indices, offsets, wide, mode, False, -1)
    right, _ = reference.embedding_bag(table_of(case, whole)[1], *rest)
    # Around whole groups of vectors, of 4, 8 and 16 floats.
    for dim in sorted({*range(1, 20), *(n + m for n in (32, 64, 128, 256) for m in (-3, 1, 2, 9))}):
        table, exact = table_of(case, whole[:, :dim].contiguous())
        if case.dtype == torch.uint8:  # other scales
            right, _ = reference.embedding_bag(exact, *rest)
        out = ops.embedding_bag(
            indices, table, offsets, mode=mode, per_sample_weights=samples, num_threads=2
        )
        scale = 2e-2 if out.dtype.itemsize < 4 else 1e-4
        torch.testing.assert_close(out.double(), right[:, :dim], rtol=scale, atol=scale)


@pytest.mark.cases(backend="native")
def test_rows_apart(operator_case):
    """A table may be a slice of columns or of rows of another."""
    if operator_case.dtype == torch.uint8:
        pytest.skip("columns of a quantized table are no table")
    whole = torch.randn(60, 80).to(operator_case.dtype)
    _, indices, offsets = problem(rows=25)
    for table in (whole[:, 10:47], whole[::2], whole[5:31, 1:]):
        out = ops.embedding_bag(indices, table, offsets, mode="sum")
        again = ops.embedding_bag(indices, table.contiguous(), offsets, mode="sum")
        assert torch.equal(out, again)


@pytest.mark.cases(backend=("native", "reference"))
@pytest.mark.parametrize("wide", [False, True])
def test_indices_apart(operator_case, wide):
    """Indices may be every second of others, or one of them many times."""
    base = torch.arange(24, dtype=torch.int64 if wide else torch.int32)
    table = torch.randn(24, 37).to(operator_case.dtype)
    if operator_case.dtype == torch.uint8:
        table = ops.quantize_rows(torch.randn(24, 29))
    for indices in (
        *(base[::2], base.view(4, 6)[:, 1], base[5:6].expand(9), base.view(4, 6).t()),
        *(base[3:4].expand(7)[:, None], base.view(2, 3, 4)[:, 1]),
    ):
        out = ops.embedding(indices, table, backend=operator_case.backend)
        again = ops.embedding(indices.contiguous(), table, backend=operator_case.backend)
        assert torch.equal(out, again)
        if not table.is_floating_point():
            continue
        grads = []
        for each in (indices, indices.contiguous()):
            weight = table.clone().requires_grad_()
            ops.embedding(each, weight, backend=operator_case.backend).backward(out)
            grads.append(weight.grad)
        assert torch.equal(*grads)


# --- gradients ------------------------------------------------------------------------------------


def gradients(call, weight, samples, grad):
    weight = weight.detach().clone().requires_grad_()
    samples = None if samples is None else samples.detach().clone().requires_grad_()
    out = call(weight, samples)
    out.backward(grad.to(out.dtype))
    table = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
    return table, None if samples is None else samples.grad


@quick
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("mode", [*MODES, "weighted"])
@pytest.mark.parametrize("dim", [37, 130])
def test_gradients(operator_case, assert_close_to_reference, dim, mode, padding_idx, sparse):
    case = operator_case
    if case.dtype == torch.uint8:
        pytest.skip("a quantized table has no gradient")
    weight, indices, offsets = problem(dim=dim, sizes=(3, 0, 7, 1, 1500, 0, 29), rows=20)
    weight = weight.to(case.dtype)
    samples = torch.randn(indices.numel()).to(case.dtype) if mode == "weighted" else None
    mode = "sum" if mode == "weighted" else mode
    grad = torch.randn(offsets.numel(), dim).to(case.dtype)
    weight, indices, offsets, samples, grad = to(case, weight, indices, offsets, samples, grad)
    options = {"mode": mode, "padding_idx": padding_idx, "sparse": sparse, "num_threads": 2}

    def call(backend):
        return lambda weight, samples: ops.embedding_bag(
            indices, weight, offsets, per_sample_weights=samples, backend=backend, **options
        )

    mine = gradients(call(case.backend), weight, samples, grad)
    plain = gradients(call("reference"), weight, samples, grad)
    truth = gradients(
        call("reference"),
        weight.double(),
        None if samples is None else samples.double(),
        grad.double(),
    )
    for a, b, c in zip(mine, plain, truth, strict=True):
        if a is not None:
            assert_close_to_reference(a, b, c)
    if not sparse:
        theirs = gradients(
            lambda weight, samples: functional.embedding_bag(
                indices,
                weight,
                offsets,
                per_sample_weights=samples,
                mode=mode,
                padding_idx=padding_idx,
            ),
            weight.double(),
            None if samples is None else samples.double(),
            grad.double(),
        )
        for a, b in zip(truth, theirs, strict=True):
            if a is not None:
                torch.testing.assert_close(a, b)


def test_the_sparse_gradient_has_each_row_once(operator_case):
    case = operator_case
    if case.dtype == torch.uint8:
        pytest.skip("a quantized table has no gradient")
    weight, indices, offsets = problem(rows=9, sizes=(50, 50))
    weight = weight.to(case.dtype).to(case.device).requires_grad_()
    indices, offsets = to(case, indices, offsets)
    out = ops.embedding_bag(indices, weight, offsets, mode="sum", sparse=True, backend=case.backend)
    out.sum().backward()
    # (autograd forgets that it is coalesced)
    rows = weight.grad._indices()[0]
    assert torch.equal(rows, torch.unique(indices))
    counts = torch.bincount(indices)[rows].to(case.dtype)
    assert torch.equal(weight.grad._values(), counts[:, None].expand(-1, 37))


def test_the_gradient_of_embedding_leaves_padding_out(operator_case):
    case = operator_case
    if case.dtype == torch.uint8:
        pytest.skip("a quantized table has no gradient")
    weight, indices, _ = problem(rows=9, sizes=(60,))
    for sparse in (False, True):
        mine = weight.clone().to(case.dtype).to(case.device).requires_grad_()
        theirs = weight.double().requires_grad_()
        grad = torch.randn(60, 37).to(case.dtype)
        ops.embedding(
            indices.to(case.device), mine, padding_idx=-2, sparse=sparse, backend=case.backend
        ).backward(grad.to(case.device))
        functional.embedding(indices, theirs, padding_idx=-2).backward(grad.double())
        found = mine.grad.to_dense().cpu().double()
        torch.testing.assert_close(
            found, theirs.grad, rtol=1e-5, atol=5e-2 if case.dtype.itemsize < 4 else 1e-5
        )
        assert not found[7].any()


@pytest.mark.parametrize("mode", MODES)
def test_first_and_second_derivatives(mode):
    weight, indices, offsets = problem(rows=7, dim=3, sizes=(2, 0, 4))
    weight = weight.double().requires_grad_()

    def call(table):
        return ops.embedding_bag(indices, table, offsets, mode=mode, backend="reference")

    assert torch.autograd.gradcheck(call, (weight,))
    assert torch.autograd.gradgradcheck(call, (weight,))
    if mode == "sum":
        samples = torch.randn(6, dtype=torch.float64, requires_grad=True)

        def weighted(table, samples):
            return ops.embedding_bag(
                indices,
                table,
                offsets,
                mode="sum",
                per_sample_weights=samples,
                backend="reference",
            )

        assert torch.autograd.gradcheck(weighted, (weight, samples))
        assert torch.autograd.gradgradcheck(weighted, (weight, samples))

    def rows(table):
        return ops.embedding(indices, table, backend="reference")

    assert torch.autograd.gradcheck(rows, (weight,))
    assert torch.autograd.gradgradcheck(rows, (weight,))


@pytest.mark.cases(backend="native", dtype=torch.float32)
def test_a_gradient_penalty(operator_case):
    """Second derivatives through the native kernels equal torch's."""
    weight, indices, _ = problem(rows=20)

    def penalty(lookup):
        table = weight.clone().requires_grad_()
        loss = lookup(indices, table).pow(3).sum()
        (first,) = torch.autograd.grad(loss, table, create_graph=True)
        first.pow(2).sum().backward()
        return table.grad

    mine = penalty(lambda i, t: ops.embedding(i, t, padding_idx=4))
    theirs = penalty(lambda i, t: functional.embedding(i, t, padding_idx=4))
    torch.testing.assert_close(mine, theirs)


def test_a_sparse_gradient_is_not_differentiated_twice():
    weight, indices, offsets = problem()
    weight.requires_grad_()
    out = ops.embedding_bag(indices, weight, offsets, mode="sum", sparse=True)
    with pytest.raises(RuntimeError, match="sparse gradient cannot be differentiated again"):
        torch.autograd.grad(out.pow(2).sum(), weight, create_graph=True)


# --- the fused update -----------------------------------------------------------------------------

RULES = {
    "sgd": ops.UpdateRule("sgd", 0.1),
    "sgd-decay": ops.UpdateRule("sgd", 0.1, weight_decay=0.01, maximize=True),
    "momentum": ops.UpdateRule("sgd", 0.1, momentum=0.9, dampening=0.5),
    "nesterov": ops.UpdateRule("sgd", 0.1, momentum=0.9, nesterov=True),
    "adagrad": ops.UpdateRule("adagrad", 0.1, eps=0.1, lr_decay=0.1),
    "rowwise_adagrad": ops.UpdateRule("rowwise_adagrad", 0.1),
    "adam": ops.UpdateRule("adam", 0.01),
    "adam-decay": ops.UpdateRule("adam", 0.01, weight_decay=0.1, beta1=0.5, beta2=0.7, eps=1e-3),
    "rowwise_adam": ops.UpdateRule("rowwise_adam", 0.01),
}


def states(rule, weight, dtype=torch.float32):
    return [
        torch.zeros(shape, dtype=dtype, device=weight.device)
        for shape in rule.state_shapes(*weight.shape)
    ]


@quick
@pytest.mark.parametrize("mode", [*MODES, "weighted", "none"])
@pytest.mark.parametrize("rule", RULES)
def test_update(operator_case, assert_close_to_reference, rule, mode):
    """Three steps against the reference in fp64, which leaves other rows as they are."""
    case = operator_case
    if case.dtype == torch.uint8:
        pytest.skip("a quantized table is not trained")
    rule = RULES[rule]
    dim = {"sum": 37, "mean": 64, "max": 67, "weighted": 16, "none": 130}[mode]
    weight, indices, offsets = problem(rows=600, dim=dim, sizes=(3, 0, 7, 1, 0, 29, 4) * 20)
    indices %= 400
    weight = weight.to(case.dtype)
    samples = torch.randn(indices.numel()).to(case.dtype) if mode == "weighted" else None
    mode = "sum" if mode == "weighted" else mode
    count = indices.numel() if mode == "none" else offsets.numel()
    if mode == "none":
        offsets = None
    weight, indices, offsets, samples = to(case, weight, indices, offsets, samples)
    tables = [weight.clone(), weight.clone(), weight.double()]
    kept = [
        states(rule, t, torch.float64 if t.dtype == torch.float64 else torch.float32)
        for t in tables
    ]
    for step in range(1, 4):
        grad = torch.randn(count, dim).to(case.dtype).to(case.device)
        now = dataclasses.replace(rule, step=step)
        positions = None
        if mode == "max":
            _, positions = reference.embedding_bag(weight, indices, offsets, None, "max", False, 3)
        for table, state, backend in zip(
            tables, kept, (case.backend, "reference", "reference"), strict=True
        ):
            wide = table.dtype == torch.float64
            ops.embedding_bag_update(
                table,
                state,
                indices,
                grad.double() if wide else grad,
                offsets,
                rule=now,
                mode=mode,
                padding_idx=3,
                positions=positions,
                per_sample_weights=samples.double() if wide and samples is not None else samples,
                backend=backend,
                num_threads=2,
            )
    assert_close_to_reference(*tables, what="table")
    for a, b, c in zip(*kept, strict=True):  # one number a row at times: the mean error says more
        mine, plain = ((x.double() - c).square().mean().sqrt() for x in (a, b))
        assert mine <= 2 * plain + torch.finfo(torch.float32).eps / 2 * c.abs().max()
    assert torch.equal(tables[0][400:], weight[400:])
    assert torch.equal(tables[0][3], weight[3])


def test_update_of_rows_apart(operator_case):
    """A table whose rows have room between them: the room stays as it is."""
    case = operator_case
    if case.dtype == torch.uint8:
        pytest.skip("a quantized table is not trained")
    weight, indices, offsets = problem(rows=30, dim=21)
    whole = torch.full((30, 32), 7.0, dtype=case.dtype, device=case.device)
    whole[:, 4:25] = weight.to(case.dtype).to(case.device)
    apart, together = whole[:, 4:25], whole[:, 4:25].clone()
    grad = torch.randn(offsets.numel(), 21).to(case.dtype).to(case.device)
    indices, offsets = to(case, indices, offsets)
    for table in (apart, together):
        ops.embedding_bag_update(
            table, [], indices, grad, offsets, rule=RULES["sgd"], backend=case.backend
        )
    assert torch.equal(apart, together)
    assert bool((whole[:, :4] == 7).all())
    assert bool((whole[:, 25:] == 7).all())


@pytest.mark.cases(backend="native", dtype=torch.float32)
def test_the_bits_do_not_depend_on_the_number_of_threads(operator_case):
    """Also where one row has most of the samples, and its sum is taken in parts."""
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(0, 5000, (40_000,), generator=generator)
    indices[torch.rand(40_000, generator=generator) < 0.4] = 17
    offsets = torch.arange(0, 40_000, 10)
    grad = torch.randn(4000, 24, generator=generator)
    results = []
    for threads in (1, 2, 3):
        weight = torch.zeros(5000, 24)
        state = states(RULES["adam"], weight)
        for _ in range(2):
            ops.embedding_bag_update(
                weight, state, indices, grad, offsets, rule=RULES["adam"], num_threads=threads
            )
        rows, values = ops.embedding_bag_gradient(
            grad, indices, 5000, offsets, mode="sum", num_threads=threads
        )
        results.append((weight, *state, rows, values))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    truth = torch.zeros(5000, 24, dtype=torch.float64)
    truth.index_add_(0, indices, grad.double().repeat_interleave(10, 0))
    dense = torch.zeros(5000, 24).index_copy_(0, results[0][3], results[0][4])
    torch.testing.assert_close(dense.double(), truth, rtol=1e-5, atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70),
    st.integers(1, 90),
    st.lists(st.integers(0, 40), min_size=1, max_size=20),
    st.sampled_from(MODES),
    st.integers(0, 2**16),
)
def test_any_shape(rows, dim, sizes, mode, seed):
    weight, indices, offsets = problem(rows, dim, sizes, seed=seed)
    out = ops.embedding_bag(indices, weight, offsets, mode=mode, padding_idx=0, num_threads=3)
    theirs = functional.embedding_bag(indices, weight, offsets, mode=mode, padding_idx=0)
    torch.testing.assert_close(out, theirs)
    grad = torch.randn(len(sizes), dim)
    _, positions = reference.embedding_bag(weight, indices, offsets, None, mode, False, 0)
    mine = ops.embedding_bag_gradient(
        grad, indices, rows, offsets, mode=mode, padding_idx=0, positions=positions, num_threads=3
    )
    expected = reference.embedding_bag_gradient(
        grad, indices, offsets, None, positions, mode, False, 0
    )
    assert torch.equal(mine[0], expected[0])
    torch.testing.assert_close(mine[1], expected[1], rtol=1e-5, atol=1e-5)


# --- torch's machinery ----------------------------------------------------------------------------


def test_opcheck():
    weight, indices, offsets = problem()
    for table in (weight, weight.clone().requires_grad_()):
        for mode in MODES:
            torch.library.opcheck(
                torch.ops.vecsmith.embedding_bag.default,
                (table, indices, offsets, None, mode, False, 3, False, 1, "native"),
            )
    grad = torch.randn(offsets.numel(), 37)
    torch.library.opcheck(
        torch.ops.vecsmith.embedding_bag_backward.default,
        (grad, weight, indices, offsets, None, None, "sum", False, -1, True, False, 1, "native"),
    )
    torch.library.opcheck(
        torch.ops.vecsmith.embedding_bag_gradient.default,
        (grad, indices, offsets, None, None, "sum", False, -1, 50, 1, "native"),
    )
    rule = RULES["adam"]
    from vecsmith.ops._embedding_bag import settings_of

    torch.library.opcheck(
        torch.ops.vecsmith.embedding_bag_update.default,
        (
            *(weight, states(rule, weight), grad, indices, offsets, None, None, "sum", False, -1),
            *(rule.name, settings_of(rule), 1, 1, "native"),
        ),
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    weight, indices, offsets = problem()

    def loss(weight, samples):
        out = ops.embedding_bag(
            indices, weight, offsets, mode="sum", per_sample_weights=samples, padding_idx=3
        )
        return out.pow(2).sum() + ops.embedding(indices, weight).sum()

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    found = []
    for function in (loss, compiled):
        table = weight.clone().requires_grad_()
        samples = torch.linspace(-1, 1, indices.numel()).requires_grad_()
        function(table, samples).backward()
        found.append((table.grad, samples.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_meta_tensors():
    weight, indices, offsets = (t.to("meta") for t in problem())
    samples = torch.ones(indices.shape, device="meta", requires_grad=True)
    weight.requires_grad_()
    for mode in MODES:
        weighted = samples if mode == "sum" else None
        out = ops.embedding_bag(indices, weight, offsets, mode=mode, per_sample_weights=weighted)
        assert out.is_meta
        assert out.shape == (6, 37)
        weight.grad = samples.grad = None
        out.sum().backward()
        assert weight.grad is not None
        assert weight.grad.shape == weight.shape
        assert weighted is None or (samples.grad is not None and samples.grad.is_meta)
    pair = [{"indices": indices, "weight": weight, "offsets": offsets}] * 2
    assert [out.shape for out in ops.embedding_bags(pair)] == [(6, 37)] * 2
    assert ops.embedding(indices.view(4, 10), weight).shape == (4, 10, 37)
    packed = torch.empty(50, 37 + 8, dtype=torch.uint8, device="meta")
    assert ops.embedding(indices, packed).dtype == torch.float32
    for rule in RULES.values():
        ops.embedding_bag_update(
            weight.detach(), states(rule, weight), indices, out, offsets, rule=rule
        )


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("which", ["weight", "samples"])
def test_tangents_are_refused(which, trained):
    """There is no forward-mode derivative: it would be lost."""
    weight, indices, offsets = problem()
    weight.requires_grad_(trained)
    samples = torch.ones(indices.shape)

    def call(weight, samples):
        return ops.embedding_bag(indices, weight, offsets, mode="sum", per_sample_weights=samples)

    with forward_ad.dual_level():
        inputs = {"weight": weight, "samples": samples}
        plain = call(**inputs)  # without a tangent nothing is lost
        dual = forward_ad.make_dual(inputs[which], torch.ones_like(inputs[which]))
        with pytest.raises(NotImplementedError, match="without tangents"):
            call(**{**inputs, which: dual})
        if which == "weight":
            with pytest.raises(NotImplementedError, match="without tangents"):
                ops.embedding(indices, dual)
    torch.testing.assert_close(plain, call(weight, samples))
    inputs = {"weight": weight.detach(), "samples": samples}
    given = inputs[which]
    with pytest.raises(NotImplementedError, match="without tangents"):
        torch.func.jvp(lambda t: call(**{**inputs, which: t}), (given,), (torch.ones_like(given),))


def test_sparse_gradients_are_refused_under_compile():
    weight, indices, offsets = problem()
    weight.requires_grad_()
    call = torch.compile(
        lambda table: ops.embedding_bag(indices, table, offsets, mode="sum", sparse=True),
        backend="aot_eager",
        fullgraph=True,
    )
    with pytest.raises(Exception, match=r"sparse=True has a gradient of unknown size"):
        call(weight)


@pytest.mark.cases(backend="native", dtype=torch.float32)
def test_the_update_bumps_the_version(operator_case):
    weight, indices, offsets = problem()
    state = states(RULES["adam"], weight)
    before = [t._version for t in (weight, *state)]
    grad = torch.randn(offsets.numel(), 37)
    ops.embedding_bag_update(weight, state, indices, grad, offsets, rule=RULES["adam"])
    assert all(t._version > b for t, b in zip((weight, *state), before, strict=True))


# --- many tables ----------------------------------------------------------------------------------


def tables_of_many(trained):
    """Requests for tables of several widths, modes and dtypes, one of them without entries."""
    requests = []
    for n, (dim, mode) in enumerate([(16, "sum"), (37, "max"), (5, "mean"), (64, "sum")]):
        sizes = (0, 0) if n == 2 else (3, 0, 9, 200 * n)
        weight, indices, offsets = problem(rows=20 + n, dim=dim, sizes=sizes, seed=n)
        request = {"indices": indices, "weight": weight, "offsets": offsets, "mode": mode}
        if n == 3:
            request["per_sample_weights"] = torch.randn(indices.numel(), requires_grad=trained)
        if n == 1:
            request["padding_idx"] = 4
        weight.requires_grad_(trained)
        requests.append(request)
    return requests


@pytest.mark.parametrize("trained", [False, True])
def test_many_tables_in_one_call(trained):
    requests = tables_of_many(trained)
    for threads in (1, 2, 3):
        together = ops.embedding_bags(requests, num_threads=threads)
        apart = [ops.embedding_bag(**request) for request in requests]
        for a, b in zip(together, apart, strict=True):
            assert torch.equal(a, b)
    if not trained:
        return
    inputs = [r["weight"] for r in requests] + [requests[3]["per_sample_weights"]]
    found = []
    for outputs in (together, apart):
        loss = sum(out.pow(2).sum() for out in outputs)
        found.append(torch.autograd.grad(loss, inputs, create_graph=True))
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in found[-1]), inputs)
        found[-1] = (*found[-1], *second)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_many_tables_are_refused_together():
    requests = tables_of_many(False)
    assert ops.embedding_bags([]) == []
    with pytest.raises(TypeError, match="by name"):
        ops.embedding_bags([{"weight": requests[0]["weight"]}])
    with pytest.raises(TypeError, match="by name"):
        ops.embedding_bags([{**requests[0], "num_threads": 2}])
    requests[1]["indices"] = requests[1]["indices"] + 100
    with pytest.raises(IndexError, match=r"0\.\.20"):
        ops.embedding_bags(requests)


# --- quantized rows -------------------------------------------------------------------------------


def test_quantized_rows():
    table = torch.randn(30, 13) * torch.logspace(-3, 3, 30)[:, None]
    table[4] = 2.5  # a row without a range
    packed = ops.quantize_rows(table)
    assert packed.dtype == torch.uint8
    assert packed.shape == (30, 21)
    assert torch.equal(packed, torch.ops.quantized.embedding_bag_byte_prepack(table))
    again = ops.dequantize_rows(packed)
    step = (table.max(1).values - table.min(1).values) / 255
    assert bool(((again - table).abs() <= step[:, None] * 0.51).all())
    for value in (float("nan"), float("inf")):
        table[3, 2] = value
        with pytest.raises(ValueError, match="finite"):
            ops.quantize_rows(table)
    with pytest.raises(ValueError, match="max - min"):
        ops.quantize_rows(torch.tensor([[-2e38, 2e38]]))
    with pytest.raises(TypeError, match="uint8"):
        ops.dequantize_rows(table)
    with pytest.raises(ValueError, match=r"D \+ 8"):
        ops.dequantize_rows(packed[:, :8])


# --- what is refused ------------------------------------------------------------------------------

LONG = torch.int64
BAD = {
    "index too large": ({"indices": torch.tensor([1, 50, 2])}, IndexError, r"0\.\.49; got 50"),
    "index negative": ({"indices": torch.tensor([1, -1, 2])}, IndexError, r"0\.\.49; got -1"),
    "index int16": ({"indices": torch.tensor([1], dtype=torch.int16)}, TypeError, "int16"),
    "indices float": ({"indices": torch.tensor([1.0])}, TypeError, "int32 or int64"),
    "indices list": ({"indices": [1, 2]}, TypeError, "indices to be a torch.Tensor"),
    "indices 3-D": ({"indices": torch.zeros(1, 1, 1, dtype=LONG)}, ValueError, r"\[N\]"),
    "indices 2-D with offsets": ({"indices": torch.zeros(1, 2, dtype=LONG)}, ValueError, r"\[N\]"),
    "offsets missing": ({"offsets": None}, ValueError, "expected offsets"),
    "offsets of another type": ({"offsets": torch.tensor([0]).int()}, TypeError, "int64"),
    "offsets 2-D": ({"offsets": torch.zeros(1, 1, dtype=LONG)}, ValueError, "offsets of shape"),
    "offsets decrease": ({"offsets": torch.tensor([0, 2, 1])}, ValueError, "non-decreasing"),
    "offsets begin late": ({"offsets": torch.tensor([1, 2])}, ValueError, "begin with 0"),
    "offsets negative": ({"offsets": torch.tensor([-1, 2])}, ValueError, "begin with 0"),
    "offsets pass the end": ({"offsets": torch.tensor([0, 4])}, ValueError, "at most 3"),
    "offsets missing with last": (
        {"offsets": torch.empty(0, dtype=LONG), "include_last_offset": True},
        ValueError,
        "at least 1 entry",
    ),
    "mode": ({"mode": "median"}, ValueError, "'median'"),
    "weights with mean": (
        {"mode": "mean", "per_sample_weights": torch.ones(3)},
        ValueError,
        "mode 'sum'",
    ),
    "weights of another shape": (
        {"per_sample_weights": torch.ones(4)},
        ValueError,
        "per_sample_weights of shape",
    ),
    "weights of another type": (
        {"per_sample_weights": torch.ones(3, dtype=torch.float64)},
        TypeError,
        "per_sample_weights of",
    ),
    "weights of integers": (
        {"per_sample_weights": torch.ones(3, dtype=LONG)},
        TypeError,
        "floating",
    ),
    "padding too large": ({"padding_idx": 50}, ValueError, "padding_idx"),
    "padding too small": ({"padding_idx": -51}, ValueError, "padding_idx"),
    "padding float": ({"padding_idx": 1.0}, TypeError, "padding_idx"),
    "table 1-D": ({"weight": torch.randn(5)}, ValueError, r"\[rows, D >= 1\]"),
    "table of integers": ({"weight": torch.zeros(5, 4, dtype=LONG)}, TypeError, "floating point"),
    "table transposed": ({"weight": torch.randn(37, 50).t()}, ValueError, "unit stride"),
    "table expanded": ({"weight": torch.randn(1, 37).expand(50, 37)}, ValueError, "rows apart"),
    "table of bytes": ({"weight": torch.zeros(5, 8, dtype=torch.uint8)}, ValueError, r"D \+ 8"),
    "table on another device": ({"weight": torch.empty(50, 37, device="meta")}, ValueError, "meta"),
    "threads": ({"num_threads": 0}, ValueError, "num_threads"),
    "backend": ({"backend": "fast"}, ValueError, "'fast'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changed, error, words = BAD[case]
    arguments = {
        "indices": torch.tensor([1, 2, 3]),
        "weight": torch.randn(50, 37),
        "offsets": torch.tensor([0, 2]),
        "mode": "sum",
    }
    with pytest.raises(error, match=words):
        ops.embedding_bag(**{**arguments, **changed})


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_update_refuses_before_anything_is_changed(backend):
    weight, indices, offsets = problem()
    rule = RULES["adam"]
    state = states(rule, weight)
    grad = torch.randn(offsets.numel(), 37)
    nan, inf = grad.clone(), grad.clone()
    nan[5, 36] = float("nan")
    inf[2, 0] = -float("inf")
    far, low = indices.clone(), indices.clone()
    far[-1], low[7] = 50, -1
    good = {"indices": indices, "grad": grad, "offsets": offsets, "state": state, "rule": rule}
    before = weight.clone()
    for changed, error, words in (
        ({"grad": nan}, ValueError, "finite"),
        ({"grad": inf}, ValueError, "finite"),
        ({"indices": far}, IndexError, "got 50"),
        ({"indices": low}, IndexError, "got -1"),
        ({"offsets": offsets.flip(0)}, ValueError, "offsets"),
        ({"grad": grad[:, :-1]}, ValueError, "grad of shape"),
        ({"grad": grad[:-1]}, ValueError, "grad of shape"),
        ({"grad": grad.double()}, TypeError, "float64"),
        ({"state": state[:1]}, ValueError, "2 state tensors"),
        ({"state": [state[0], state[1][:4]]}, ValueError, r"state\[1\] of shape"),
        ({"state": [state[0], state[0]]}, ValueError, "shares memory"),
        ({"state": [state[0], state[1].half()]}, TypeError, "float32"),
        ({"rule": "adam"}, TypeError, "UpdateRule"),
        ({"mode": "max"}, ValueError, "positions"),
        ({"per_sample_weights": torch.full((40,), float("nan"))}, ValueError, "finite"),
    ):
        with pytest.raises(error, match=words):
            ops.embedding_bag_update(weight, backend=backend, **{**good, **changed})
        assert torch.equal(weight, before)
        assert not state[0].any()
        assert not state[1].any()


@pytest.mark.parametrize(
    "changed",
    [
        *({"name": "sgdd"}, {"lr": -1.0}, {"lr": float("nan")}, {"eps": -1e-9}, {"beta1": 1.0}),
        *({"beta2": -0.1}, {"momentum": float("inf")}, {"nesterov": True}, {"step": 0}),
        *({"dampening": float("nan")}, {"weight_decay": -1.0}, {"lr_decay": -0.5}),
    ],
    ids=str,
)
def test_rules_that_are_none(changed):
    with pytest.raises(ValueError, match="expected"):
        ops.UpdateRule(**{"name": "sgd", "lr": 0.1, **changed})
