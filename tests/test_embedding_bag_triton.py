"""The Triton kernels of `embedding_bag` and what only they have: tables in batches, long segments
in blocks, launches of any number of programs. Against torch in fp64.

Without a GPU they run in Triton's interpreter (`make test-triton`); with one on it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import embedding_bag as torch_embedding_bag

from conftest import assert_close_to_reference, interpreted
from vecsmith.ops import UpdateRule
from vecsmith.reference import embedding_bag as reference

pytestmark = [
    pytest.mark.triton,
    pytest.mark.usefixtures("poisoned_allocation"),
    *([] if interpreted() else [pytest.mark.gpu]),
]
DEVICE = "cpu" if interpreted() else "cuda"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DIMS = (1, 3, 37, 64, 130)


@pytest.fixture
def kernels():
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels import embedding_bag

    return embedding_bag


@pytest.fixture
def table_batch():
    pytest.importorskip("triton", reason="Triton is not installed")
    from vecsmith.kernels._table_batch import TableBatch

    return TableBatch


# Empty bags at both ends and side by side, bags of one, one that is longer than the rest together.
LENGTHS = (0, 3, 1, 0, 0, 17, 2, 41, 1, 0)


def problem(dim, rows=11, lengths=LENGTHS, dtype=torch.float32, index=torch.int64):
    """(table, indices, offsets with the last one), all rows named several times, on the CPU."""
    table = torch.randn(rows, dim).to(dtype)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(index)
    return table, torch.randint(rows, (int(offsets[-1]),)).to(index), offsets


def moved(*tensors):
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]


def pooled(table, indices, offsets, mode, weights=None, padding=None, last=True):
    """torch's own; with its max, a bag that is empty is zero."""
    weights = None if weights is None else weights.to(table.dtype)
    return torch_embedding_bag(
        indices, table, offsets, mode=mode, per_sample_weights=weights, padding_idx=padding,
        include_last_offset=last,
    )  # fmt: skip


# --- Forward. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_pooling(kernels, mode, dim, dtype):
    index = torch.int32 if dim % 2 else torch.int64
    table, indices, offsets = problem(dim, dtype=dtype, index=index)
    for padding in (None, 4) if dim in (3, 64) else (4,):
        out, positions = kernels.embedding_bag(
            *moved(table, indices, offsets), mode=mode, include_last_offset=True,
            padding_idx=-1 if padding is None else padding,
        )  # fmt: skip
        plain = pooled(table, indices, offsets, mode, padding=padding)
        exact = pooled(table.double(), indices, offsets, mode, padding=padding)
        assert_close_to_reference(out, plain, exact)
        _, expected = reference.embedding_bag(
            table, indices, offsets, None, mode, True, -1 if padding is None else padding
        )
        assert torch.equal(positions.cpu(), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_look_ups_in_many_tables_are_one_launch(kernels, monkeypatch, mode, weighted):
    """Bags of offsets with and without the last, of one length, indices of both types."""
    if weighted and mode != "sum":
        pytest.skip("weights go with sums alone")
    from vecsmith.ops import _embedding_bag

    monkeypatch.setattr(_embedding_bag, "_choose", lambda *_: "triton")
    launches = []
    many = kernels.embedding_bags
    monkeypatch.setattr(
        kernels, "embedding_bags", lambda *a, **k: (launches.append(1), many(*a, **k))[1]
    )
    requests = []
    for kind, dim in enumerate((8, 3, 64)):
        table, indices, offsets = problem(dim, index=(torch.int64, torch.int32)[kind % 2])
        offsets = offsets if kind == 0 else offsets[:-1]
        if kind == 0:  # entries behind the last bag
            indices = torch.cat([indices, indices[:3]])
        if kind == 2:
            indices, offsets = indices[:30].view(10, 3), None
        samples = torch.rand(indices.shape) if weighted else None
        given = moved(table, indices, offsets, samples)
        requests.append((*given, mode, kind == 0, -1, False, 0, ""))
    together = _embedding_bag.forward_many(requests)
    assert launches == [1]
    for request, (out, positions) in zip(requests, together, strict=True):
        alone, found = _embedding_bag.forward(*request)
        assert torch.equal(out, alone)
        assert torch.equal(positions, found)
    requests[1] = (*requests[1][:6], 2, *requests[1][7:])  # padding: table by table
    for request, (out, _) in zip(requests, _embedding_bag.forward_many(requests), strict=True):
        assert torch.equal(out, _embedding_bag.forward(*request)[0])
    assert launches == [1]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_layouts_of_bags(kernels, mode):
    """Offsets without the last, offsets that end early, bags of one length, wide and odd tables."""
    for dim in (5, 1100):
        table, indices, offsets = problem(dim)
        out, _ = kernels.embedding_bag(*moved(table, indices, offsets[:-1]), mode=mode)
        exact = pooled(table.double(), indices, offsets[:-1], mode, last=False)
        assert_close_to_reference(
            out, pooled(table, indices, offsets[:-1], mode, last=False), exact
        )
        early = offsets[:-2]  # the last bag is left out, its entries remain in indices
        out, _ = kernels.embedding_bag(
            *moved(table, indices, early), mode=mode, include_last_offset=True
        )
        torch.testing.assert_close(out.cpu(), pooled(table, indices, offsets, mode)[:-2])
        for length in (1, 7):
            block = indices[: 9 * length].view(9, length)
            out, _ = kernels.embedding_bag(*moved(table, block), mode=mode)
            exact = pooled(table.double(), block, None, mode, last=False)
            assert_close_to_reference(out, pooled(table, block, None, mode, last=False), exact)


def test_weighted_samples(kernels):
    for dtype in DTYPES.values():
        table, indices, offsets = problem(37, dtype=dtype)
        weights = torch.randn(indices.numel()).to(dtype)
        for padding in (None, 4):
            out, _ = kernels.embedding_bag(
                *moved(table, indices, offsets, weights), mode="sum", include_last_offset=True,
                padding_idx=-1 if padding is None else padding,
            )  # fmt: skip
            plain = pooled(table, indices, offsets, "sum", weights, padding)
            exact = pooled(table.double(), indices, offsets, "sum", weights, padding)
            assert_close_to_reference(out, plain, exact)


@pytest.mark.parametrize("dim", [8, 13, 128])
@pytest.mark.parametrize("mode", ["none", "sum", "mean", "max"])
def test_quantized_rows(kernels, mode, dim):
    """torch's own packing; the scale of a row lies at any address."""
    table, indices, offsets = problem(dim)
    packed = torch.ops.quantized.embedding_bag_byte_prepack(table)
    values = torch.ops.quantized.embedding_bag_byte_unpack(packed)
    if mode == "none":
        out, _ = kernels.embedding_bag(*moved(packed, indices), mode=mode)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.cpu(), values[indices], rtol=1e-6, atol=1e-6)
        return
    out, _ = kernels.embedding_bag(
        *moved(packed, indices, offsets), mode=mode, include_last_offset=True
    )
    assert out.dtype == torch.float32
    expected = pooled(values, indices, offsets, mode)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_plain_look_ups_are_copies(kernels, dtype):
    shapes = ((-1,), (13, 5), (5, 1, 13), (65, 1), (1, 65), (-1,))
    for dim, shape in zip((*DIMS, 1100), shapes, strict=True):
        table, indices, _ = problem(dim, dtype=dtype)
        wanted = indices.view(shape)
        out, positions = kernels.embedding_bag(*moved(table, wanted), mode="none", padding_idx=4)
        assert torch.equal(out.cpu(), table[wanted])
        assert not positions.numel()


def test_strided_tables(kernels):
    """Rows further apart than they are long: a cut of wider ones, at an odd address."""
    wide = torch.randn(11, 50)
    table, (_, indices, offsets) = wide[:, 3:40], problem(37)
    device = wide.to(DEVICE)[:, 3:40]
    out, _ = kernels.embedding_bag(
        device, *moved(indices, offsets), mode="sum", include_last_offset=True
    )
    torch.testing.assert_close(out.cpu(), pooled(table, indices, offsets, "sum"))
    grad = torch.randn(len(LENGTHS), 37)
    rule = UpdateRule("sgd", 0.5)
    kernels.embedding_bag_update(
        device, (), *moved(indices, grad, offsets), rule=rule, mode="sum", include_last_offset=True
    )
    reference.embedding_bag_update(
        table, [], indices, grad, offsets, mode="sum", include_last_offset=True, rule=rule
    )
    torch.testing.assert_close(device.cpu(), table)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_few_long_bags(kernels, mode):
    """These are split over lanes (a maximum is not)."""
    table, indices, offsets = problem(24, rows=90, lengths=(201, 0, 170))
    for padding in (-1, 7):
        out, positions = kernels.embedding_bag(
            *moved(table, indices, offsets), mode=mode, include_last_offset=True,
            padding_idx=padding,
        )  # fmt: skip
        how = (indices, offsets, None, mode, True, padding)
        plain, expected = reference.embedding_bag(table, *how)
        assert_close_to_reference(out, plain, reference.embedding_bag(table.double(), *how)[0])
        assert torch.equal(positions.cpu(), expected)


def test_a_maximum_is_the_first_of_equals(kernels):
    """And NaN is one in the first place only, as in torch; minus infinity is a value."""
    nan, inf = float("nan"), float("inf")
    table = torch.tensor([[1.0, nan], [1.0, 2.0], [0.0, 2.0], [-inf, -inf], [3.0, nan]])
    indices = torch.tensor([2, 0, 1, 0, 1, 2, 3, 3, 1, 4, 2, 4])
    offsets = torch.tensor([0, 3, 6, 8, 8, 12])
    for padding in (-1, 2):
        how = (indices, offsets, None, "max", True, padding)
        expected, places = reference.embedding_bag(table, *how)
        out, positions = kernels.embedding_bag(
            *moved(table, indices, offsets), mode="max", include_last_offset=True,
            padding_idx=padding,
        )  # fmt: skip
        torch.testing.assert_close(out.cpu(), expected, equal_nan=True, rtol=0, atol=0)
        assert torch.equal(positions.cpu(), places)


@pytest.mark.parametrize("mode", ["none", "sum", "mean", "max"])
def test_nothing_to_look_up(kernels, mode):
    table, _, _ = problem(6)
    none = torch.empty(0, dtype=torch.int64)
    offsets = torch.zeros(4, dtype=torch.int64)
    expected = torch.zeros(0 if mode == "none" else 4, 6)
    out, positions = kernels.embedding_bag(*moved(table, none, offsets), mode=mode)
    assert torch.equal(out.cpu(), expected)
    assert (positions == -1).all()
    assert positions.shape == (expected.shape if mode == "max" else (0,))
    if mode != "none":
        out, _ = kernels.embedding_bag(*moved(table, none.view(4, 0)), mode=mode)
        assert torch.equal(out.cpu(), expected)
        out, _ = kernels.embedding_bag(*moved(table, none, none), mode=mode)
        assert out.shape == (0, 6)
    grad = expected
    rows, values = kernels.embedding_bag_gradient(
        *moved(grad, none), 11, *moved(offsets), mode=mode
    )
    assert rows.shape == (0,)
    assert values.shape == (0, 6)
    ours = table.clone().to(DEVICE)
    rule = UpdateRule("sgd", 1.0)
    kernels.embedding_bag_update(ours, (), *moved(none, grad, offsets), rule=rule, mode=mode)
    assert torch.equal(ours.cpu(), table)


# --- Gradients. -----------------------------------------------------------------------------------


def gradients(table, indices, offsets, mode, grad, weights=None, padding=None):
    """(dense gradient of the table, that of the weights) by torch's autograd."""
    table = table.clone().requires_grad_()
    leaf = None if weights is None else weights.to(table.dtype).clone().requires_grad_()
    out = torch_embedding_bag(
        indices, table, offsets, mode=mode, per_sample_weights=leaf, padding_idx=padding,
        include_last_offset=True,
    )  # fmt: skip
    out.backward(grad.to(table.dtype))
    return table.grad, None if leaf is None else leaf.grad


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_gradient_of_the_table(kernels, mode, dim, dtype):
    index = torch.int32 if dim % 2 else torch.int64
    table, indices, offsets = problem(dim, dtype=dtype, index=index)
    indices[indices == 9] = 8  # a row that is not touched
    grad = torch.randn(len(LENGTHS), dim).to(dtype)
    weights = torch.rand(indices.numel()).to(dtype) if mode == "sum" else None
    for padding, chunk in ((-1, 32), (4, 4)) if dim in (3, 64) else ((4, 4),):
        how = {"mode": mode, "include_last_offset": True, "padding_idx": padding}
        _, positions = reference.embedding_bag(table, indices, offsets, None, mode, True, padding)
        given = moved(offsets, weights, positions)
        rows, values = kernels.embedding_bag_gradient(
            *moved(grad, indices), table.shape[0], *given, **how, chunk=chunk
        )
        _, plain = reference.embedding_bag_gradient(
            grad, indices, offsets, weights, positions, **how
        )
        exact, _ = gradients(
            table.double(), indices, offsets, mode, grad, weights, None if padding < 0 else padding
        )
        expected = sorted(set(indices.tolist()) - {padding})
        assert rows.tolist() == expected
        assert_close_to_reference(values, plain, exact[expected])
        none, dense = kernels.embedding_bag_gradient(
            *moved(grad, indices), table.shape[0], *given, **how, chunk=chunk, dense=True
        )
        assert not none.numel()
        assert torch.equal(dense[rows], values)
        assert not dense[[9]].any()


@pytest.mark.parametrize("chunk", [4, 8, 32])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_long_segments(kernels, rows, chunk):
    """One row or a few have all entries: blocks of up to four levels, ragged at both ends. Whole
    numbers, whose sums are exact in any order."""
    for entries in (1, 16, 63, 257, 1050) if rows < 40 else (15, 64, 300):
        indices = torch.randint(rows, (entries,))
        grad = torch.randint(-99, 100, (entries, 20)).float()
        exact = torch.zeros(rows, 20).index_add_(0, indices, grad)
        for programs in (None, 1):
            _, ours = kernels.embedding_bag_gradient(
                *moved(grad, indices), rows, mode="none", dense=True, chunk=chunk, programs=programs
            )
            assert torch.equal(ours.cpu(), exact)


def test_the_same_bits_each_time(kernels):
    indices = torch.randint(5, (600,))
    grad = torch.randn(600, 37)
    results = [
        kernels.embedding_bag_gradient(*moved(grad, indices), 5, mode="none", programs=programs)[1]
        for programs in (None, None, 1, 3)
    ]
    assert all(torch.equal(result, results[0]) for result in results)


def test_other_forms_of_gradients(kernels):
    """Bags of one length; entries outside of all bags; wide rows; float32 of lower precision; more
    rows than 32 bits count."""
    _, indices, offsets = problem(1100)
    grad = torch.randn(9, 1100)
    for mode in ("sum", "mean"):
        block = indices[:63].view(9, 7)
        rows, values = kernels.embedding_bag_gradient(*moved(grad, block), 11, mode=mode)
        expected = reference.embedding_bag_gradient(grad, block, mode=mode)
        assert torch.equal(rows.cpu(), expected[0])
        torch.testing.assert_close(values.cpu(), expected[1], rtol=1e-5, atol=1e-5)
    early = offsets[:-2]
    rows, values = kernels.embedding_bag_gradient(
        *moved(grad[:8], indices), 11, *moved(early), mode="sum", include_last_offset=True, chunk=4
    )
    expected = reference.embedding_bag_gradient(
        grad[:8], indices, early, mode="sum", include_last_offset=True
    )
    assert torch.equal(rows.cpu(), expected[0])
    torch.testing.assert_close(values.cpu(), expected[1], rtol=1e-5, atol=1e-5)
    low = grad[:, :5].half()
    far = block[:, 0] * (2**33 // 11)
    rows, values = kernels.embedding_bag_gradient(
        *moved(low, far), 2**33, mode="none", dtype=torch.float32
    )
    expected = reference.embedding_bag_gradient(low.float(), far, mode="none")
    assert torch.equal(rows.cpu(), expected[0])
    torch.testing.assert_close(values.cpu(), expected[1])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_gradient_of_the_weights_of_samples(kernels, dtype):
    for dim, padding in zip((*DIMS, 1100), (4, -1, 4, -1, -1, 4), strict=True):
        table, indices, offsets = problem(dim, dtype=dtype)
        grad = torch.randn(len(LENGTHS), dim).to(dtype)
        weights = torch.rand(indices.numel()).to(dtype)
        how = {"include_last_offset": True, "padding_idx": padding}
        ours = kernels.per_sample_weights_gradient(*moved(grad, table, indices, offsets), **how)
        plain = reference.per_sample_weights_gradient(grad, table, indices, offsets, **how)
        _, exact = gradients(
            table.double(), indices, offsets, "sum", grad, weights,
            None if padding < 0 else padding,
        )  # fmt: skip
        assert_close_to_reference(ours, plain, exact)
        block = indices[:60].view(10, 6)
        ours = kernels.per_sample_weights_gradient(*moved(grad, table, block))
        expected = (grad[:, None].double() * table[block].double()).sum(-1).view(-1)
        plain = reference.per_sample_weights_gradient(grad, table, block)
        assert_close_to_reference(ours, plain, expected)


# --- Updates. -------------------------------------------------------------------------------------

RULES = {
    "sgd": UpdateRule("sgd", 0.1),
    "sgd-decay-maximize": UpdateRule("sgd", 0.1, weight_decay=0.3, maximize=True, step=2),
    "momentum": UpdateRule("sgd", 0.1, momentum=0.8, dampening=0.4),
    "momentum-later": UpdateRule("sgd", 0.1, momentum=0.8, dampening=0.4, step=5),
    "nesterov": UpdateRule("sgd", 0.1, momentum=0.8, nesterov=True, weight_decay=0.1, step=2),
    "adagrad": UpdateRule("adagrad", 0.1, eps=1e-10, lr_decay=0.2, step=4),
    "adagrad-decay": UpdateRule("adagrad", 0.1, eps=1e-10, weight_decay=0.2, maximize=True),
    "rowwise_adagrad": UpdateRule("rowwise_adagrad", 0.1, lr_decay=0.2, step=4),
    "rowwise_adagrad-decay": UpdateRule("rowwise_adagrad", 0.1, weight_decay=0.2, maximize=True),
    "adam": UpdateRule("adam", 0.1),
    "adam-later": UpdateRule("adam", 0.1, beta1=0.8, beta2=0.95, step=7, maximize=True),
    "rowwise_adam": UpdateRule("rowwise_adam", 0.1),
    "rowwise_adam-later": UpdateRule("rowwise_adam", 0.1, weight_decay=0.1, step=7),
}


def step_row(rule, w, states, g):
    """One row by the formulas that UpdateRule states; all fp64, states in place. Returns w."""
    g = (-g if rule.maximize else g) + rule.weight_decay * w
    t = rule.step
    if rule.name == "sgd":
        if rule.momentum:
            b = states[0]
            b.mul_(rule.momentum).add_(g, alpha=1 if t == 1 else 1 - rule.dampening)
            g = g + rule.momentum * b if rule.nesterov else b
        return w - rule.lr * g
    square = (g * g).mean() if rule.name.startswith("rowwise") else g * g
    if rule.name.endswith("adagrad"):
        states[0].add_(square)
        return w - rule.lr / (1 + (t - 1) * rule.lr_decay) * g / (states[0].sqrt() + rule.eps)
    m, v = states
    m.mul_(rule.beta1).add_(g, alpha=1 - rule.beta1)
    v.mul_(rule.beta2).add_(square, alpha=1 - rule.beta2)
    rate = rule.lr * (1 - rule.beta2**t) ** 0.5 / (1 - rule.beta1**t)
    return w - rate * m / (v.sqrt() + rule.eps)


def states_of(rule, rows, dim):
    """As after earlier steps: squares are not negative."""
    states = [torch.rand(shape) for shape in rule.state_shapes(rows, dim)]
    if rule.name in ("adam", "rowwise_adam") or rule.momentum:
        states[0] -= 0.5
    return states


def check_update(kernels, rule, dim, dtype, mode="sum", padding=-1, lengths=LENGTHS, **call):
    table, indices, offsets = problem(dim, dtype=dtype, lengths=lengths)
    indices[indices == 9] = 8
    # Sums of these are exact: what is measured is the rule, not the luck of a few roundings.
    grad = torch.randint(-8, 9, (len(lengths), dim)).to(dtype)
    weights = torch.randint(1, 8, (indices.numel(),)) / 4 if mode == "sum" else None
    states = states_of(rule, *table.shape)
    how = {"mode": mode, "include_last_offset": True, "padding_idx": padding}
    _, positions = reference.embedding_bag(table, indices, offsets, None, mode, True, padding)

    exact, exact_states = table.double(), [state.double() for state in states]
    summed, _ = gradients(
        exact, indices, offsets, mode, grad, weights, None if padding < 0 else padding
    )
    touched = sorted(set(indices.tolist()) - {padding})
    for row in touched:
        exact[row] = step_row(rule, exact[row], [state[row] for state in exact_states], summed[row])
    plain, plain_states = table.clone(), [state.clone() for state in states]
    reference.embedding_bag_update(
        plain, plain_states, indices, grad, offsets, weights, positions, **how, rule=rule
    )
    ours, *our_states = (tensor.clone().to(DEVICE) for tensor in (table, *states))
    kernels.embedding_bag_update(
        ours, our_states, *moved(indices, grad, offsets, weights, positions), **how, rule=rule,
        **call,
    )  # fmt: skip
    assert_close_to_reference(ours, plain, exact, what="table")
    for name, a, b, c in zip("01", our_states, plain_states, exact_states, strict=False):
        assert_close_to_reference(a, b, c, what=f"state {name}")
    idle = [row for row in range(table.shape[0]) if row not in touched]
    for before, after in zip((table, *states), (ours, *our_states), strict=True):
        assert torch.equal(before[idle], after[idle].cpu())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_update(kernels, rule):
    check_update(kernels, rule, 37, torch.float32)


@pytest.mark.parametrize("rule", ["sgd", "adam", "rowwise_adagrad-decay", "rowwise_adam-later"])
@pytest.mark.parametrize("dim", [*DIMS, 1100])
def test_update_of_any_width(kernels, rule, dim):
    """The widest takes more than one tile."""
    check_update(kernels, RULES[rule], dim, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_update_of_low_precision(kernels, rule, dtype):
    check_update(kernels, rule, 37, dtype)


@pytest.mark.parametrize("rule", ["adam", "rowwise_adagrad"])
def test_update_by_pooling(kernels, rule):
    powers = (0, 4, 1, 0, 0, 16, 2, 32, 1, 0)  # of two: a mean is exact, too
    check_update(kernels, RULES[rule], 37, torch.float32, "mean", lengths=powers)
    check_update(kernels, RULES[rule], 64, torch.float32, "mean", lengths=powers, chunk=4)
    check_update(kernels, RULES[rule], 37, torch.float32, "max")
    check_update(kernels, RULES[rule], 64, torch.float32, "max", 4, chunk=4, programs=1)


def test_update_of_rows_past_32_bits(kernels):
    """Elements past 2^31, of a table whose pages are not there until they are touched."""
    rows, dim = 2**31 // 64 + 100, 64
    if interpreted():
        try:
            table = torch.from_numpy(np.zeros((rows, dim), np.float16))
        except MemoryError:
            pytest.skip("no 4 GB of address space")
    else:
        table = torch.zeros(rows, dim, dtype=torch.float16, device=DEVICE)
    indices = torch.tensor([rows - 1, 3, rows - 1, rows - 50, 0])
    grad = torch.ones(5, dim, dtype=torch.float16)
    rule = UpdateRule("sgd", 1.0)
    kernels.embedding_bag_update(table, (), *moved(indices, grad), rule=rule, mode="none")
    out, _ = kernels.embedding_bag(table, *moved(indices.view(1, 5)), mode="sum")
    assert (out == -7).all()
    assert (table[rows - 1] == -2).all()
    assert not table[rows - 2].any()


# --- Batches of tables. ---------------------------------------------------------------------------


def batch_problem(dims, features, bags=6, dtype=torch.float32):
    """(tables, indices, offsets with the last one): features in a row, some bags empty."""
    tables = [torch.randn(9 + 7 * t, dim).to(dtype) for t, dim in enumerate(dims)]
    lengths = torch.randint(5, (len(features) * bags,))
    lengths[1] = 23
    parts = lengths.view(len(features), bags).sum(1).tolist()
    indices = [
        torch.randint(tables[t].shape[0], (n,)) for t, n in zip(features, parts, strict=True)
    ]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return tables, torch.cat(indices), offsets


BATCHES = {
    "one": ((64,), (0,)),
    "even": ((8, 32, 16), (0, 1, 2)),
    "odd": ((37, 3, 130, 1), (2, 0, 1, 3)),
    "shared": ((24, 5), (0, 1, 0, 0)),
    "wide": ((1030, 4), (1, 0)),
}


def by_feature(tables, features, indices, offsets, bags=6):
    """(table, indices, offsets with the last one) of each feature."""
    for number, table in enumerate(features):
        own = offsets[number * bags : (number + 1) * bags + 1]
        yield tables[table], indices[own[0] : own[-1]], own - own[0]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("batch", [*BATCHES, "fp16", "bf16"])
def test_batch_of_tables(kernels, table_batch, batch, mode):
    dims, features = BATCHES.get(batch, BATCHES["odd"])
    dtype = DTYPES.get(batch, torch.float32)
    tables, indices, offsets = batch_problem(dims, features, dtype=dtype)
    weights = torch.rand(indices.numel()) if mode == "sum" else None
    ours = moved(*tables)
    whole = table_batch(ours, features)
    out, positions = kernels.embedding_bags(whole, *moved(indices, offsets, weights), mode=mode)
    start, column = 0, 0
    for table, own, bounds in by_feature(tables, features, indices, offsets):
        part = None if weights is None else weights[start : start + own.numel()]
        expected, places = reference.embedding_bag(table, own, bounds, part, mode, True)
        exact, _ = reference.embedding_bag(table.double(), own, bounds, part, mode, True)
        columns = slice(column, column + table.shape[1])
        assert_close_to_reference(out[:, columns], expected, exact)
        if mode == "max":
            places = torch.where(places < 0, places, places + start)
            assert torch.equal(positions[:, columns].cpu(), places)
        start, column = start + own.numel(), column + table.shape[1]
    assert column == out.shape[1]
    same, _ = kernels.embedding_bags(
        whole, *moved(indices, offsets[:-1], weights), mode=mode, include_last_offset=False
    )
    assert torch.equal(same, out)


def test_batch_of_quantized_tables(kernels, table_batch):
    for dims in ((8, 32, 16), (37, 3)):
        features = range(len(dims))
        tables, indices, offsets = batch_problem(dims, features)
        packed = [torch.ops.quantized.embedding_bag_byte_prepack(table) for table in tables]
        values = [torch.ops.quantized.embedding_bag_byte_unpack(table) for table in packed]
        ours = moved(*packed)
        out, _ = kernels.embedding_bags(table_batch(ours), *moved(indices, offsets))
        parts = [
            pooled(table, own, bounds, "sum")
            for table, own, bounds in by_feature(values, features, indices, offsets)
        ]
        torch.testing.assert_close(out.cpu(), torch.cat(parts, 1), rtol=1e-5, atol=1e-5)


def check_batch_update(kernels, table_batch, dims, features, rule, mode, **call):
    """Each table as it would be on its own; features that share a table are one problem."""
    tables, indices, offsets = batch_problem(dims, features)
    weights = torch.randint(1, 8, (indices.numel(),)) / 4 if mode == "sum" else None
    states = [states_of(rule, *table.shape) for table in tables]
    ours = moved(*(table.clone() for table in tables))
    our_states = [moved(*(state.clone() for state in kind)) for kind in states]
    width = sum(dims[t] for t in features)
    grad = torch.randint(-8, 9, (6, width)).float()
    batch = table_batch(ours, features, list(zip(*our_states, strict=True)))
    device = moved(indices, offsets, weights)
    _, positions = kernels.embedding_bags(batch, *device, mode=mode)
    kernels.embedding_bags_update(
        batch, device[0], *moved(grad), *device[1:], positions, rule=rule, mode=mode, **call
    )

    # The entries of each table as plain look-ups, with the gradients that its features give them.
    samples = [[] for _ in tables]
    start, column = 0, 0
    parts = by_feature(tables, features, indices, offsets)
    for t, (table, own, bounds) in zip(features, parts, strict=True):
        columns = slice(column, column + table.shape[1])
        part = None if weights is None else weights[start : start + own.numel()]
        places = positions[:, columns].cpu() - start if mode == "max" else None
        samples[t].append(
            reference._samples(grad[:, columns], own, bounds, part, places, mode, True, -1)
        )
        start, column = start + own.numel(), columns.stop
    for t, table in enumerate(tables):
        rows, values = (torch.cat(kind) for kind in zip(*samples[t], strict=True))
        reference.embedding_bag_update(table, states[t], rows, values, mode="none", rule=rule)
        for a, b in zip((ours[t], *our_states[t]), (table, *states[t]), strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_update_of_a_batch(kernels, table_batch, rule):
    check_batch_update(kernels, table_batch, *BATCHES["odd"], rule, "sum")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("batch", BATCHES)
def test_update_of_batches(kernels, table_batch, batch, mode):
    rule, call = "adam", {"chunk": 4}
    if batch in ("shared", "wide"):
        rule, call = "rowwise_adagrad", {"programs": 1}
    check_batch_update(kernels, table_batch, *BATCHES[batch], RULES[rule], mode, **call)


def test_batches_that_are_refused(table_batch):
    table = torch.zeros(4, 6)
    for arguments, message in [
        (([],), "at least one table and one feature"),
        (([table], []), "at least one table and one feature"),
        (([table], [1]), r"features in \[0, 1\); got \[1\]"),
        (([table, table.half()],), "one dtype on one device"),
        (([table.T],), "contiguous"),
        (([table], None, [[table.T]]), "contiguous"),
    ]:
        with pytest.raises(ValueError, match=message):
            table_batch(*arguments)
