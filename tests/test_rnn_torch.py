"""The backend "torch" of rnn: torch's own layers, in the three ways in which they are called,
against the reference in fp64; and where it is chosen."""

from __future__ import annotations

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from test_rnn import NAMES, SEQUENCES, assert_close, problem, run
from vecsmith import nn, ops
from vecsmith.ops import _registry, _rnn, _torch_rnn
from vecsmith.reference import rnn as reference

CELLS = ("lstm", "lstm_projected", "gru", "rnn_tanh", "rnn_relu")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# torch's graph on its own; hidden, as on a GPU; the registered operator, as in a traced call.
WAYS = ["open", "hidden", "operator"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Every way is taken, on a CPU."""
    if request.param == "hidden":
        monkeypatch.setattr(_torch_rnn, "_is_twice_differentiable", lambda device: False)
    if request.param == "operator":
        plain = _torch_rnn.rnn
        monkeypatch.setattr(_torch_rnn, "rnn", lambda x, b, _, *a, **k: plain(x, b, None, *a, **k))
    return request.param


def arguments(name, sizes, hidden, dtype=torch.float64, bias=True):
    """(cell, values) of a layer."""
    cell = name.removesuffix("_projected")
    values = problem(cell, sizes, hidden, dtype=dtype, bias=bias)
    if name != cell:
        narrow = hidden // 2
        values["h0"], values["w_hh"] = values["h0"][:, :narrow], values["w_hh"][:, :narrow]
        values["w_hr"] = (torch.randn(narrow, hidden) * hidden**-0.5).to(dtype).double()
    return cell, values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", SEQUENCES, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_forward_and_gradients(way, name, sizes, reverse, dtype):
    for hidden, bias in ((2, True), (7, False), (33, True)):
        cell, values = arguments(name, sizes, hidden, dtype, bias)
        how = {"cell": cell, "reverse": reverse}
        exact = run(reference.rnn, values, sizes, torch.float64, **how)
        plain = run(reference.rnn, values, sizes, dtype, **how)
        ours = run(ops.rnn, values, sizes, dtype, backend="torch", **how)
        for found, theirs, right in zip(ours, plain, exact, strict=True):
            assert all(f.dtype == dtype for f in found)
            assert_close(found, theirs, right)
        with torch.no_grad():
            given = {n: v if v is None else v.to(dtype) for n, v in values.items()}
            quiet = ops.rnn(batch_sizes=torch.tensor(sizes), backend="torch", **given, **how)
        assert (quiet[2] is None) == (cell != "lstm")
        assert_close([q for q in quiet if q is not None], plain[0], exact[0])


@pytest.mark.parametrize("hidden", [1, 3])
@pytest.mark.parametrize("missing", ["b_ih", "b_hh"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_one_bias_and_sizes_of_one(way, cell, missing, hidden):
    for sizes in ([1], [1, 1], [2, 1]):
        values = problem(cell, sizes, hidden, inputs=1) | {missing: None}
        ours = run(ops.rnn, values, sizes, torch.float64, cell=cell, backend="torch")
        right = run(reference.rnn, values, sizes, torch.float64, cell=cell)
        for found, expected in zip(ours, right, strict=True):
            assert_close(found, expected, expected)


def test_strided_inputs(way):
    """Transposed weights and states, and batch_sizes with a stride, whose memory torch reads."""
    sizes = torch.tensor([3, 90, 2, 90, 1, 90])[::2]
    for reverse in (False, True):
        values = problem("lstm", [3, 2, 1], 6)
        wide = {n: v.repeat_interleave(2, -1)[..., ::2] for n, v in values.items()}
        wide["w_hh"] = values["w_hh"].t().contiguous().t()
        wide["input"] = values["input"].t().contiguous().t()
        assert not any(v.is_contiguous() for v in wide.values())
        right = reference.rnn(batch_sizes=sizes, cell="lstm", reverse=reverse, **values)
        ours = ops.rnn(batch_sizes=sizes, cell="lstm", reverse=reverse, backend="torch", **wide)
        torch.testing.assert_close(ours, right)


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [[2, 2], [3, 2, 1]], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_gradcheck(way, name, sizes, reverse):
    cell, values = arguments(name, sizes, 4)
    names = [n for n, v in values.items() if v is not None]

    def of(*given):
        how = {"cell": cell, "reverse": reverse, "backend": "torch"}
        given = dict.fromkeys(values) | dict(zip(names, given, strict=True))
        results = ops.rnn(batch_sizes=torch.tensor(sizes), **given, **how)
        return tuple(r for r in results if r is not None)

    inputs = tuple(values[n].clone().requires_grad_() for n in names)
    assert gradcheck(of, inputs, fast_mode=True)
    assert gradgradcheck(of, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["lstm_projected", "gru"])
def test_higher_derivatives(way, name):
    """Third ones, and the gradient of a Jacobian-vector product, are those of the reference."""
    sizes = [2, 2, 1]
    cell, values = arguments(name, sizes, 4)

    def answers(function, **options):
        given = {n: v if v is None else v.clone() for n, v in values.items()}
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

    ours = answers(ops.rnn, backend="torch")
    torch.testing.assert_close(ours, answers(reference.rnn), rtol=1e-9, atol=1e-9)


def test_gradients_of_some(way):
    """Of what needs one, whatever they come from; torch's None elsewhere."""
    values = problem("lstm", [3, 2], 4)
    leaves = ["input", "h0", "c0", "w_hh", "b_ih"]
    for needed in (["input"], ["w_hh"], ["h0", "b_ih"], leaves):
        for which in (0, 1, 2):
            found = []
            for function, how in ((ops.rnn, {"backend": "torch"}), (reference.rnn, {})):
                given = {n: v.clone().requires_grad_(n in needed) for n, v in values.items()}
                result = function(batch_sizes=torch.tensor([3, 2]), cell="lstm", **given, **how)
                result[which].square().sum().backward()
                assert all(given[n].grad is None for n in values if n not in needed)
                found.append([given[n].grad for n in needed])
            torch.testing.assert_close(*found)


def layer_call(values, cell="gru", **how):
    given = {n: v if v is None else v.clone().requires_grad_() for n, v in values.items()}
    results = ops.rnn(batch_sizes=torch.tensor([3, 2]), cell=cell, backend="torch", **given, **how)
    return given, [r for r in results if r is not None]


def test_a_graph_is_kept_or_goes(way):
    values = problem("gru", [3, 2], 4)
    given, (out, _) = layer_call(values)
    first = torch.autograd.grad(out.sum(), given["w_hh"], retain_graph=True)
    again = torch.autograd.grad(out.sum(), given["w_hh"])
    assert torch.equal(first[0], again[0])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(out.sum(), given["w_hh"])


class Token:
    """Something that goes with the node of a graph that holds it."""


def test_what_is_kept_goes_with_the_backward_pass(monkeypatch):
    """Not only with the loss, which lives until the next one takes its name."""
    monkeypatch.setattr(_torch_rnn, "_is_twice_differentiable", lambda device: False)
    kept = []
    layer = _torch_rnn._layer

    def watched(*arguments):
        results = layer(*arguments)
        for result in results[:2]:
            token = Token()
            result.grad_fn.metadata["token"] = token
            kept.append(weakref.ref(token))
        return results

    monkeypatch.setattr(_torch_rnn, "_layer", watched)
    given, (out, _) = layer_call(problem("gru", [3, 2], 4))
    loss = out.sum()
    gc.disable()  # no cycles either
    try:
        assert len(kept) == 2
        assert all(ref() is not None for ref in kept)
        loss.backward()
        assert all(ref() is None for ref in kept)
        assert given["w_hh"].grad is not None
    finally:
        gc.enable()


@pytest.mark.parametrize("changed", ["w_hh", "input"])
def test_what_was_changed_since_is_noticed(way, changed):
    given, results = layer_call(problem("rnn_tanh", [3, 2], 4), cell="rnn_tanh")
    with torch.no_grad():
        given[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(r.sum() for r in results).backward()


def test_saved_tensors_elsewhere(way):
    """Under checkpointing and hooks on what is saved, and with a batch of gradients."""
    values = problem("lstm", [3, 2], 4)
    given, results = layer_call(values, "lstm")
    right = torch.autograd.grad([r.sum() for r in results], list(given.values()))
    twins = {n: v.detach().clone().requires_grad_() for n, v in given.items()}

    def call(*tensors):
        how = {"cell": "lstm", "backend": "torch"}
        given = dict(zip(values, tensors, strict=True))
        return ops.rnn(batch_sizes=torch.tensor([3, 2]), **given, **how)

    again = checkpoint(call, *twins.values(), use_reentrant=False)
    found = torch.autograd.grad([r.sum() for r in again], list(twins.values()))
    torch.testing.assert_close(found, right)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True), torch.from_numpy):
        again = call(*twins.values())
    found = torch.autograd.grad([r.sum() for r in again], list(twins.values()))
    torch.testing.assert_close(found, right)
    out = call(*twins.values())[0]
    basis = torch.eye(out.numel(), dtype=out.dtype).view(-1, *out.shape)
    (rows,) = torch.autograd.grad(
        out, twins["input"], basis, is_grads_batched=True, retain_graph=True
    )
    for each, row in zip(basis, rows, strict=True):
        one = torch.autograd.grad(out, twins["input"], each, retain_graph=True)
        torch.testing.assert_close(row, *one)


# --- traced calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm_projected", "gru"])
def test_the_registered_operators(name):
    for sizes, reverse in (([3, 2], True), ([2, 2], False)):
        cell, values = arguments(name, sizes, 4)
        given = [values.get(n) for n in (*NAMES, "w_hr")]
        given = [v if v is None else v.requires_grad_() for v in given]
        call = (given[0], torch.tensor(sizes), *given[1:], cell, reverse)
        torch.library.opcheck(torch.ops.vecsmith.rnn_torch.default, call)
        # Also a missing gradient, and those that nobody needs.
        out, h, _ = (t.detach() for t in torch.ops.vecsmith.rnn_torch(*call))
        call = [t if not isinstance(t, torch.Tensor) else t.detach() for t in call]
        operator = torch.ops.vecsmith.rnn_torch_backward.default
        torch.library.opcheck(operator, (out, None, None, *call, [True] * 8))
        torch.library.opcheck(operator, (None, h, None, *call, [True, False] * 4))


def test_where_operators_are_seen():
    """Tensors without numbers, and modes that count what is called."""
    for dtype, more in ((torch.float64, {}), (torch.float32, {"proj_size": 2})):
        with FakeTensorMode():
            layer = nn.LSTM(4, 5, 2, bidirectional=True, dtype=dtype, **more)
            out, _ = layer(torch.randn(6, 3, 4, dtype=dtype))
            out.sum().backward()
        assert isinstance(out, FakeTensor)
        assert out.shape == (6, 3, 2 * more.get("proj_size", 5))
        assert layer.weight_hh_l0.grad.shape == layer.weight_hh_l0.shape
    values = problem("gru", [3, 2], 4)
    given, results = layer_call(values)
    right = torch.autograd.grad(sum(r.sum() for r in results), list(given.values())[:2])
    with FlopCounterMode(display=False):
        given, results = layer_call(values)
        found = torch.autograd.grad(sum(r.sum() for r in results), list(given.values())[:2])
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", ["lstm_projected", "gru"])
def test_compiles_in_one_graph(name):
    """In float64; for other numbers of steps, too."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    @torch.compile(backend=backend, fullgraph=True, dynamic=True)
    def call(sizes, values, cell, reverse):
        out, h, _ = ops.rnn(batch_sizes=sizes, cell=cell, reverse=reverse, **values)
        return out, h

    for sizes in ([5, 5, 1], [6] * 40, [9, 4, 3, 3, 2, 2, 1, 1]):  # B, T, N, I, H all differ
        cell, values = arguments(name, sizes, 4)
        found = []
        for function in (call, call.__wrapped__):
            given = {n: v if v is None else v.clone().requires_grad_() for n, v in values.items()}
            results = function(torch.tensor(sizes), given, cell, True)
            leaves = [v for v in given.values() if v is not None]
            found.append(
                [
                    *results,
                    *torch.autograd.grad(sum(r.sum() for r in results), leaves, allow_unused=True),
                ]
            )
        torch.testing.assert_close(*found)
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert targets.count("vecsmith.rnn_torch") == 1
    assert len(targets) < 40


def test_a_traced_call_looks_at_batch_sizes_where_they_are_used():
    torch._dynamo.reset()
    weight = torch.randn(4, 4, dtype=torch.float64)

    def call(sizes, h0):
        x = torch.ones(6, 4, dtype=torch.float64)
        return ops.rnn(x, sizes, h0, None, weight, weight, cell="rnn_tanh")[0]

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    h0 = torch.zeros(2, 4, dtype=torch.float64)
    assert compiled(torch.tensor([2, 2, 2]), h0).isfinite().all()
    for wrong in ([2, 2, 2, 2], [3, 3], [2, 2], [1, 2, 3], [4, 2, 0], []):
        with pytest.raises(ValueError, match=r"expected (input|batch_sizes|sequences)"):
            compiled(torch.tensor(wrong, dtype=torch.int64), h0)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.trace.* is deprecated", "ignore::torch.jit.TracerWarning"
)
def test_traces_and_exports_in_float64():
    layer = nn.LSTM(4, 5, 2, bidirectional=True, proj_size=3, dtype=torch.float64)
    x = torch.randn(9, 2, 4, dtype=torch.float64)
    expected, _ = layer(x)
    example = torch.randn(6, 3, 4, dtype=torch.float64)
    traced = torch.jit.trace(layer, example, check_trace=False)
    torch.testing.assert_close(traced(x)[0], expected)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x)[0], expected)


# --- where it is chosen ---------------------------------------------------------------------------


@pytest.fixture
def used(monkeypatch):
    """The names of the backends that a call took."""
    names = []
    places = {
        "torch": (_torch_rnn, "_layer"),
        "reference": (reference, "rnn"),
        "native": (_rnn, "_forward"),
    }
    for name, (module, function) in places.items():
        plain = getattr(module, function)

        def watched(*given, _name=name, _plain=plain, **how):
            names.append(_name)
            return _plain(*given, **how)

        monkeypatch.setattr(module, function, watched)
    return names


@pytest.mark.parametrize(
    ("name", "dtype", "options", "expected"),
    [
        ("lstm", torch.float32, {}, "native"),
        ("gru", torch.bfloat16, {}, "native"),
        ("gru_reset_before", torch.float32, {}, "native"),
        ("lstm", torch.float64, {}, "torch"),
        ("rnn_relu", torch.float64, {}, "torch"),
        ("lstm_projected", torch.float32, {}, "torch"),
        ("lstm_projected", torch.bfloat16, {}, "torch"),
        ("lstm_projected", torch.float64, {}, "torch"),
        ("gru", torch.float32, {"backend": "torch"}, "torch"),
        ("gru", torch.float64, {"backend": "reference"}, "reference"),
        ("gru_reset_before", torch.float64, {}, "reference"),
        ("lstm", torch.float32, {"clip": 1.0}, "reference"),
        ("lstm", torch.float64, {"clip": 1.0}, "reference"),
        ("lstm", torch.float64, {"zoneout": (0.1, 0.0)}, "reference"),
        ("lstm_projected", torch.float64, {"clip": 1.0}, "reference"),
    ],
)
def test_choice(used, name, dtype, options, expected):
    """And nothing is said: no case here waits for a faster one."""
    cell, values = arguments(name, [3, 2], 4)
    values = {n: v if v is None else v.to(dtype) for n, v in values.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.rnn(batch_sizes=torch.tensor([3, 2]), cell=cell, **values, **options)
        assert used == [expected]
        if len(options) == 0 and expected != "reference":
            layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_relu": nn.RNN}.get(cell)
            more = {"proj_size": 2} if name == "lstm_projected" else {}
            more |= {"nonlinearity": "relu"} if cell == "rnn_relu" else {}
            if layer is not None:
                layer(7, 4, dtype=dtype, **more)(torch.randn(5, 3, 7).to(dtype))
                assert used == [expected] * 2


def test_what_torch_has_not_is_the_references(used):
    """A projection that does not make h shorter, and sizes of zero."""
    values = problem("lstm", [3, 2], 4) | {"w_hr": torch.randn(4, 4, dtype=torch.float64)}
    for hidden, inputs, projected in ((4, 7, 4), (4, 7, 6), (4, 0, 2), (0, 7, None)):
        values = problem("lstm", [3, 2], max(1, hidden), inputs=max(1, inputs))
        values = {n: v.narrow(0, 0, 4 * hidden) if n[1] == "_" else v for n, v in values.items()}
        size = hidden if projected is None else projected
        values["h0"] = torch.zeros(3, size, dtype=torch.float64)
        values["c0"] = torch.zeros(3, hidden, dtype=torch.float64)
        values["input"] = values["input"][:, :inputs]
        values["w_ih"] = values["w_ih"][:, :inputs]
        values["w_hh"] = torch.zeros(4 * hidden, size, dtype=torch.float64)
        if projected is not None:
            values["w_hr"] = torch.randn(size, hidden, dtype=torch.float64)
        ops.rnn(batch_sizes=torch.tensor([3, 2]), cell="lstm", **values)
    assert used == ["reference"] * 4


def test_transforms_are_the_references(used):
    cell, values = arguments("lstm_projected", [3, 2], 4)

    def of(x):
        given = values | {"input": x}
        return ops.rnn(batch_sizes=torch.tensor([3, 2]), cell=cell, **given)[0]

    x = values["input"]
    torch.func.jvp(of, (x,), (x,))
    torch.func.jacrev(of)(x)
    torch.vmap(of)(torch.stack([x, x]))
    with torch.autograd.forward_ad.dual_level():
        of(torch.autograd.forward_ad.make_dual(x, x))
    assert used == ["reference"] * 4
    values = {n: v.float() for n, v in values.items()}
    torch.func.jvp(of, (x.float(),), (x.float(),))
    assert used == ["reference"] * 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": 1.0}, "backend 'reference' for this cell"),
        ({"cell": "gru_reset_before"}, "'native' or .*'reference' for this cell"),
        ({"backend": "fast"}, "one of 'native', 'torch', .*'reference'; got 'fast'"),
    ],
)
def test_a_forced_backend_is_refused(options, words):
    values = problem(options.get("cell", "lstm"), [3, 2], 4)
    how = {"cell": "lstm", "backend": "torch", **options}
    with pytest.raises(ValueError, match=words):
        ops.rnn(batch_sizes=torch.tensor([3, 2]), **values, **how)


def test_autocast_is_not_looked_at(way):
    """The layers cast what they give; the operator computes in the dtype that it is given."""
    values = problem("lstm", [3, 2], 4)
    values = {n: v.float() for n, v in values.items()}
    how = {"batch_sizes": torch.tensor([3, 2]), "cell": "lstm", "backend": "torch"}
    expected = ops.rnn(**values, **how)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ops.rnn(**values, **how)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_where_new_tensors_are_made_is_not_where_sizes_are(way):
    values = problem("gru", [3, 2], 4)
    right = run(reference.rnn, values, [3, 2], torch.float64, cell="gru", reverse=True)
    sizes, given = torch.tensor([3, 2]), {n: v for n, v in values.items() if v is not None}
    with torch.device("meta"):
        out, last, _ = ops.rnn(
            batch_sizes=sizes, c0=None, cell="gru", reverse=True, backend="torch", **given
        )
        (first,) = torch.autograd.grad(out.sum(), given["input"], create_graph=True)
    torch.testing.assert_close([out, last], right[0])
    assert first.device.type == "cpu"


def test_the_registry(monkeypatch):
    def states(device):
        rows = [r for r in ops.explain(device) if r["operator"] == "rnn"]
        states = {row["backend"]: row["state"] for row in rows}
        del states["triton"], states["cuda"]  # where they are built
        return states

    assert states("cpu") == {"native": "chosen", "torch": "available", "reference": "available"}
    assert set(states("cuda").values()) == {"unavailable"} or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert states("cuda") == {"native": "unavailable", "torch": "chosen", "reference": "available"}
    operator = ops.registry()["rnn"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for device in ("cuda", "mps", "xpu"):
            for dtype in DTYPES:
                assert ops.choose(operator, device, dtype) == "torch"
    _registry._warn_reference.cache_clear()
    with pytest.warns(UserWarning, match="no fast backend for mps tensors here .native: it takes"):
        assert ops.choose(operator, "mps", torch.float32, among=["native", "reference"])


def test_batch_sizes_that_change_in_between(way):
    """Somebody else's memory: what was computed is differentiated, or an error."""
    raw = np.array([3, 2])
    values = problem("gru", [3, 2], 4)
    given = {n: v if v is None else v.clone().requires_grad_() for n, v in values.items()}
    how = {"cell": "gru", "backend": "torch"}
    out = ops.rnn(batch_sizes=torch.from_numpy(raw), **given, **how)[0]
    right = ops.rnn(batch_sizes=torch.tensor([3, 2]), **given, **how)[0]
    raw[:] = 60
    if way == "operator":
        with pytest.raises(ValueError, match="expected input of 120 rows"):
            out.sum().backward()
        return
    leaves = [v for v in given.values() if v is not None]
    found = [torch.autograd.grad(each.sum(), leaves) for each in (out, right)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_weights_are_laid_out_for_cudnn(name, bias, grad, monkeypatch):
    """What is called is called as torch's layers call it, and on weights of its own: cuDNN's
    function is played by one that gives its arguments another storage."""
    calls = []

    def flatten(weights, count, inputs, mode, hidden, projected, layers, first, both):
        calls.append((len(weights), count, inputs, mode, hidden, projected, layers, first, both))
        assert not torch.is_grad_enabled()
        flat = torch.cat([w.flatten() for w in weights])
        start = 0
        for weight in weights:
            weight.set_(flat[start : start + weight.numel()].view_as(weight))
            start += weight.numel()

    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", flatten)
    monkeypatch.setattr(_torch_rnn, "_is_cudnns", lambda tensor: True)
    monkeypatch.setattr(_torch_rnn, "_is_twice_differentiable", lambda device: False)
    cell, values = arguments(name, [3, 2], 6, bias=bias)
    right, slopes = run(reference.rnn, values, [3, 2], torch.float64, cell=cell)
    given = {
        n: v if v is None else v.detach().clone().requires_grad_(grad) for n, v in values.items()
    }
    before = {n: (v.data_ptr(), v._version) for n, v in given.items() if v is not None}
    if grad:
        found, ours = run(ops.rnn, given, [3, 2], torch.float64, cell=cell)
        torch.testing.assert_close(ours, slopes)
    else:
        found = ops.rnn(batch_sizes=torch.tensor([3, 2]), cell=cell, **given)
    torch.testing.assert_close([f for f in found if f is not None], right)
    assert before == {n: (v.data_ptr(), v._version) for n, v in given.items() if v is not None}
    projected = 3 if name != cell else 0
    count = 2 + 2 * bias + (projected > 0)
    mode = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}[cell]
    assert calls == [(count, count, 7, mode, 6, projected, 1, False, False)]


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", SEQUENCES, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_on_a_gpu(name, sizes, reverse, bias, dtype, monkeypatch):
    """As on a CPU, and without a word about the layout of the weights."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for hidden in (2, 33, 128):
        cell, values = arguments(name, sizes, hidden, dtype, bias)
        how = {"cell": cell, "reverse": reverse}
        exact = run(reference.rnn, values, sizes, torch.float64, **how)
        values = {n: v if v is None else v.cuda() for n, v in values.items()}
        plain = run(reference.rnn, values, sizes, dtype, **how)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = run(ops.rnn, values, sizes, dtype, **how)
            with torch.no_grad():
                given = {n: v if v is None else v.to(dtype) for n, v in values.items()}
                quiet = ops.rnn(batch_sizes=torch.tensor(sizes), **given, **how)
        for found, theirs, right in zip(ours, plain, exact, strict=True):
            assert_close([f.cpu() for f in found], [t.cpu() for t in theirs], right)
        for one, other in zip(quiet, ours[0], strict=False):
            torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_second_derivatives_on_a_gpu(name, reverse):
    cell, values = arguments(name, [3, 2, 1], 4)
    names = [n for n, v in values.items() if v is not None]

    def of(*given):
        given = dict.fromkeys(values) | dict(zip(names, given, strict=True))
        how = {"cell": cell, "reverse": reverse}
        results = ops.rnn(batch_sizes=torch.tensor([3, 2, 1]), **given, **how)
        return tuple(r for r in results if r is not None)

    inputs = tuple(values[n].cuda().requires_grad_() for n in names)
    assert gradcheck(of, inputs, fast_mode=True, nondet_tol=1e-10)
    assert gradgradcheck(of, inputs, fast_mode=True, nondet_tol=1e-10)
    torch._dynamo.reset()
    compiled = torch.compile(of, backend="aot_eager", fullgraph=True)
    for function in (of, compiled):
        torch.testing.assert_close(function(*inputs), of(*inputs))
    grads = [torch.autograd.grad(sum(r.sum() for r in f(*inputs)), inputs) for f in (of, compiled)]
    torch.testing.assert_close(*grads)
