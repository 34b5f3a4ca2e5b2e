"""The operator rnn: every backend, dtype and ISA level against the reference in fp64."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vecsmith import ops
from vecsmith.reference import rnn as reference

CELLS = ("lstm", "gru", "gru_reset_before", "rnn_tanh", "rnn_relu")
SEQUENCES = ([1], [3, 3, 3], [5, 4, 4, 2, 1, 1], [9] * 4, [33, 33])
NAMES = ("input", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh")
quick = pytest.mark.cases(backend=("native", "reference"))


def problem(cell, sizes, hidden, inputs=7, bias=True, dtype=torch.float64):
    """The arguments of a layer, in fp64."""
    gates, batch, count = reference.CELLS[cell], sizes[0], sum(sizes)
    scale = max(1, hidden) ** -0.5

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    values = {
        "input": draw(count, inputs),
        "h0": draw(batch, hidden) * 0.5,
        "c0": draw(batch, hidden) if cell == "lstm" else None,
        "w_ih": draw(gates * hidden, inputs) * inputs**-0.5,
        "w_hh": draw(gates * hidden, hidden) * scale,
        "b_ih": draw(gates * hidden) * 0.3 if bias else None,
        "b_hh": draw(gates * hidden) * 0.3 if bias else None,
    }
    return {name: v if v is None else v.to(dtype).double() for name, v in values.items()}


def run(function, values, sizes, dtype, **options):
    """(results, gradients) of a call in this dtype."""
    given = {n: v if v is None else v.to(dtype).requires_grad_() for n, v in values.items()}
    results = function(batch_sizes=torch.tensor(sizes), **given, **options)
    kept = [r for r in results if r is not None]
    torch.manual_seed(5)
    grads = [torch.randn(r.shape, dtype=torch.float64).to(r.device, dtype) for r in kept]
    leaves = [v for v in given.values() if v is not None]
    return [k.detach() for k in kept], torch.autograd.grad(kept, leaves, grads)


@contextlib.contextmanager
def relu_of(cell, output, sizes, reverse):
    """In here the ReLU of the reference's layers lets through what a layer of this output has let
    through: its derivative jumps where a rounding changes a sign."""
    if cell != "rnn_relu":
        yield
        return
    steps = (output > 0).split(sizes)
    passed, relu = iter(steps[::-1] if reverse else steps), torch.Tensor.relu
    torch.Tensor.relu = lambda a: a * next(passed).to(a.dtype)
    try:
        yield
    finally:
        torch.Tensor.relu = relu


def assert_close(found, plain, exact):
    """An error of at most twice that of plain torch, and some roundings of the largest value."""
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        unit = torch.finfo(ours.dtype).eps * max(1e-30, float(right.abs().max()))
        limit = 2 * float((theirs.double() - right).abs().max()) + 16 * unit
        assert float((ours.double() - right).abs().max()) <= limit


@quick
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", SEQUENCES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_forward_and_gradients(operator_case, cell, sizes, reverse):
    case = operator_case
    for hidden in (1, 7, 16, 33, 70):
        values = problem(cell, sizes, hidden, dtype=case.dtype)
        how = {"cell": cell, "reverse": reverse}
        ours = run(ops.rnn, values, sizes, case.dtype, backend=case.backend, num_threads=2, **how)
        with relu_of(cell, ours[0][0], sizes, reverse):
            exact = run(reference.rnn, values, sizes, torch.float64, **how)
        with relu_of(cell, ours[0][0], sizes, reverse):
            plain = run(reference.rnn, values, sizes, case.dtype, **how)
        for found, theirs, right in zip(ours, plain, exact, strict=True):
            assert all(f.dtype == case.dtype for f in found)
            assert_close(found, theirs, right)


@pytest.mark.cases(backend="native", dtype=torch.float32)
@pytest.mark.parametrize("cell", CELLS)
def test_bits_do_not_depend_on_threads(operator_case, cell):
    sizes = [40, 40, 31, 31, 9]
    values = problem(cell, sizes, 130)
    runs = []
    for threads in (1, 2, 3, 5):
        results, _ = run(
            ops.rnn, values, sizes, torch.float32, cell=cell, num_threads=threads, backend="native"
        )
        given = {n: v if v is None else v.float() for n, v in values.items()}
        with torch.no_grad():
            quiet = ops.rnn(
                batch_sizes=torch.tensor(sizes), cell=cell, num_threads=threads, **given
            )
        runs.append([*results, *(q for q in quiet if q is not None)])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.cases(backend="native", dtype=torch.float32)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives(operator_case, cell, bias):
    sizes = [3, 2, 1]
    values = problem(cell, sizes, 4, bias=bias)

    def penalty(function, dtype, **options):
        given = {n: v if v is None else v.to(dtype).requires_grad_() for n, v in values.items()}
        leaves = [v for v in given.values() if v is not None]
        out, last, _ = function(batch_sizes=torch.tensor(sizes), cell=cell, **given, **options)
        (first,) = torch.autograd.grad(
            (out**2).sum() + (last**3).sum(), given["input"], create_graph=True
        )
        return torch.autograd.grad((first**2).sum(), leaves, allow_unused=True)

    ours = penalty(ops.rnn, torch.float32, backend="native")
    right = penalty(reference.rnn, torch.float64)
    for a, b in zip(ours, right, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_nan_and_infinity_go_where_torchs_go():
    torch.manual_seed(0)
    for name, cell in (("LSTM", "lstm"), ("GRU", "gru"), ("RNN", "rnn_tanh")):
        layer = getattr(torch.nn, name)(3, 20)
        x = torch.randn(6, 4, 3)
        x[2, 1, 0], x[3, 2, 1], x[4, 0, 2] = float("nan"), float("inf"), float("-inf")
        with torch.no_grad():
            right, _ = layer(x)
            weights = [getattr(layer, f"{n}_l0") for n in ("weight_ih", "weight_hh")]
            biases = [getattr(layer, f"{n}_l0") for n in ("bias_ih", "bias_hh")]
            zero = torch.zeros(4, 20)
            c0 = zero if cell == "lstm" else None
            sizes = torch.full((6,), 4)
            ours, _, _ = ops.rnn(x.view(24, 3), sizes, zero, c0, *weights, *biases, cell=cell)
        torch.testing.assert_close(ours.view(6, 4, 20), right, equal_nan=True)


def test_compiles_without_a_graph_break():
    sizes = torch.tensor([3, 3, 2])
    values = {n: v.float() for n, v in problem("lstm", [3, 3, 2], 8).items() if v is not None}

    def call(**given):
        return ops.rnn(batch_sizes=sizes, cell="lstm", **given)[0].sum()

    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    twins = {n: v.clone().requires_grad_() for n, v in values.items()}
    torch.compile(call, backend="aot_eager", fullgraph=True)(**leaves).backward()
    call(**twins).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, twins[name].grad)


def test_batch_sizes_are_looked_at_where_they_are_used():
    """Those of a traced call, of a subclass of Tensor, and what was written into them since."""
    zero, weight = torch.zeros(64, 40), torch.randn(40, 40)
    sizes = torch.nn.Parameter(torch.full((4000,), 64), requires_grad=False)
    with pytest.raises(ValueError, match="64"):
        ops.rnn(torch.randn(64, 40), sizes, zero, None, weight, weight, cell="rnn_tanh")
    raw = np.array([2, 2, 2])
    x = torch.randn(6, 40, requires_grad=True)
    out, _, _ = ops.rnn(x, torch.from_numpy(raw), zero[:2], None, weight, weight, cell="rnn_tanh")
    raw[:] = 60
    with pytest.raises(ValueError, match=r"add up to 6.*got \[60, 60, 60\]"):
        out.sum().backward()

    def call(sizes, h0):
        return ops.rnn(torch.ones(6, 40), sizes, h0, None, weight, weight, cell="rnn_tanh")[0]

    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for wrong in ([2, 2, 2, 2], [3, 3], [2, 2]):
        with pytest.raises(ValueError, match="expected batch_sizes"):
            compiled(torch.tensor(wrong), zero[:2])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_higher_derivatives(cell):
    """Third ones, and the gradient of a Jacobian-vector product, are those of the reference."""
    sizes = [2, 2, 1]
    values = problem(cell, sizes, 3)

    def answers(function, **options):
        given = {n: v if v is None else v.clone().float() for n, v in values.items()}
        x = given["input"].requires_grad_()
        given["w_hh"].requires_grad_()
        out = function(batch_sizes=torch.tensor(sizes), cell=cell, **given, **options)[0]
        first = value = out.sin().sum()
        for _ in range(3):
            (first,) = torch.autograd.grad(value, x, create_graph=True)
            value = (first**2).sum()
        along = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, x, along, create_graph=True)
        (tangent,) = torch.autograd.grad(back, along, torch.ones_like(back), create_graph=True)
        rest = torch.autograd.grad(tangent.pow(2).sum(), [x, given["w_hh"]])
        return [first.detach(), tangent.detach(), *rest]

    for a, b in zip(answers(ops.rnn), answers(reference.rnn), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("unit", [0, 1, 2])
def test_the_registered_operator(unit):
    values = problem("gru", [3, 2], 5)
    given = [None if values[n] is None else values[n].float().requires_grad_() for n in NAMES]
    arguments = (given[0], torch.tensor([3, 2]), *given[1:], "gru", False, 1, unit, True)
    torch.library.opcheck(torch.ops.vecsmith.rnn.default, arguments)


@pytest.mark.parametrize("cell", CELLS)
def test_the_short_way_is_the_registered_operator(cell):
    """Eager calls do without the dispatcher, but where somebody looks at operators."""
    seen = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Special(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    sizes = [4, 3, 1]
    values = problem(cell, sizes, 9)
    quiet = run(ops.rnn, values, sizes, torch.float32, cell=cell)
    assert not seen
    with Seeing():
        loud = run(ops.rnn, values, sizes, torch.float32, cell=cell)
    assert "vecsmith.rnn.default" in seen
    assert "vecsmith.rnn_backward.default" in seen
    for ours, theirs in zip(quiet, loud, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    seen.clear()
    given = {n: v if v is None else v.float() for n, v in values.items()}
    given["w_hh"] = given["w_hh"].as_subclass(Special)
    out = ops.rnn(batch_sizes=torch.tensor(sizes), cell=cell, **given)[0]
    assert "vecsmith.rnn" in seen
    assert torch.equal(out.as_subclass(torch.Tensor), quiet[0][0])


@pytest.mark.parametrize("cell", CELLS)
def test_no_units_at_all(cell):
    values = problem(cell, [3, 2], 0)
    given = {n: v if v is None else v.float().requires_grad_() for n, v in values.items()}
    out, last_h, _ = ops.rnn(batch_sizes=torch.tensor([3, 2]), cell=cell, **given)
    assert out.shape == (5, 0)
    assert last_h.shape == (3, 0)
    (found,) = torch.autograd.grad(out.sum(), given["input"])
    assert not found.any()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"input": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "floating point"),
        ({"input": torch.zeros(2, 2, 3)}, ValueError, "shape"),
        ({"input": torch.zeros(5, 3)}, ValueError, "4 rows"),
        ({"batch_sizes": torch.tensor([1, 3])}, ValueError, "do not increase"),
        ({"batch_sizes": torch.tensor([2, 2, 0])}, ValueError, "at least 1"),
        ({"batch_sizes": torch.tensor([2.0, 2.0])}, TypeError, "int64"),
        ({"batch_sizes": torch.zeros(0, dtype=torch.int64)}, ValueError, "one step"),
        ({"h0": torch.zeros(3, 5)}, ValueError, "h0 of shape"),
        ({"h0": torch.zeros(2, 5, dtype=torch.float64)}, TypeError, "h0 to be"),
        ({"c0": None}, ValueError, "c0"),
        ({"cell": "gru"}, ValueError, "c0"),
        ({"cell": "lstmm"}, ValueError, "'lstm', 'gru'"),
        ({"w_ih": torch.zeros(20, 4)}, ValueError, "w_ih of shape"),
        ({"w_hh": torch.zeros(21, 5)}, ValueError, "w_hh of shape"),
        ({"b_hh": torch.zeros(19)}, ValueError, "b_hh of shape"),
        ({"clip": 1.0, "backend": "native"}, ValueError, "backend 'reference'"),
        ({"num_threads": 0}, ValueError, "num_threads"),
    ],
)
def test_bad_input_is_refused(changed, error, words):
    values = {
        "input": torch.zeros(4, 3),
        "batch_sizes": torch.tensor([2, 2]),
        "h0": torch.zeros(2, 5),
        "c0": torch.zeros(2, 5),
        "w_ih": torch.zeros(20, 3),
        "w_hh": torch.zeros(20, 5),
        "b_hh": torch.zeros(20),
        "cell": "lstm",
    }
    ops.rnn(**values)
    with pytest.raises(error, match=words):
        ops.rnn(**{**values, **changed})
