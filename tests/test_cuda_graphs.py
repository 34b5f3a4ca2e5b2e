"""The three steps captured in CUDA graphs: a replay with other inputs is an eager step with them.

On a GPU alone; what can be said without one is in test_capture_rules.py.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from skipgram_problems import MODES, call, copies, pairs_problem, problem
from vecsmith import nn, ops, optim

pytestmark = pytest.mark.gpu
WARM = 2  # eager steps before a capture: kernels are compiled, states and workspaces made
REPLAYS = 3


def needs(backend: str) -> None:
    name = {"cuda": "vecsmith._cuda", "triton": "triton"}.get(backend)
    if name is not None and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not there")


def captured(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of a step, which runs WARM times before, on a stream of its own; and its result."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph, result


def on_gpu(tensors):
    return [None if t is None else t.cuda() for t in tensors]


# --- The skip-gram chunk. -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("mode", ["sg-window-ns", "sg-pair-both", "cbow-mean-ns", "sg-window-hs"])
def test_skipgram_chunk_goes_on(backend, mode):
    """Every replay draws anew, what an eager call draws at that position. With a rate of zero the
    loss says which negatives were drawn, whatever the order of updates."""
    needs(backend)
    tables, rest, options = problem(**MODES[mode], lengths=(60, 0, 1, 80), dim=20)
    ours, moved = copies(tables, device="cuda"), on_gpu(rest)
    options |= {"alpha": 0.0, "min_alpha": 0.0, "words_total": 2**40}
    count = rest[0].numel()
    position = torch.zeros((), dtype=torch.int64, device="cuda")

    def step():
        found = call(ours, moved, {**options, "first_position": position}, backend=backend)
        position.add_(count)
        return found

    graph, found = captured(step)
    losses = []
    for n in range(WARM, WARM + REPLAYS):
        graph.replay()
        eager = call(ours, moved, {**options, "first_position": n * count}, backend=backend)
        torch.testing.assert_close(found, eager, rtol=1e-6, atol=1e-6)
        losses.append(float(found[0]))
    assert int(position) == (WARM + REPLAYS) * count
    assert len(set(losses)) == REPLAYS or mode == "sg-window-hs"  # a tree draws windows alone


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_skipgram_chunk_of_other_texts(backend):
    """Static buffers take other tokens and sentences, and less of them; the learning rate and the
    epoch change. Updates race, and change rows little: so they are equal to the first order."""
    needs(backend)
    settings = {"lengths": (60, 0, 1, 80), "dim": 20, "vocabulary": 300}
    tables, rest, options = problem(**settings)
    ours, eager = copies(tables, device="cuda"), copies(tables, device="cuda")
    moved = on_gpu(rest)
    tokens, offsets = moved[:2]
    options |= {"words_before": 0, "words_total": 10**6}
    names = {"first_position": torch.int64, "epoch": torch.int64, "alpha": torch.float64}
    there = {n: torch.zeros((), dtype=kind, device="cuda") for n, kind in names.items()}
    graph, found = captured(lambda: call(ours, moved, {**options, **there}, backend=backend))
    for fresh, start in zip(ours[:2], tables[:2], strict=True):
        fresh.copy_(start)
    for n in range(REPLAYS):
        _, (other, cut, *_), _ = problem(**settings, seed=n + 7)
        cut = cut.clone()
        cut[-1] -= 20 * n
        tokens.copy_(other)
        offsets.copy_(cut)
        here = {"first_position": 1000 * n, "epoch": n, "alpha": 2e-3 / (n + 1)}
        for name, value in here.items():
            there[name].fill_(value)
        graph.replay()
        given = [tokens.clone(), offsets.clone(), *moved[2:]]
        expected = call(eager, given, {**options, **here}, backend=backend)
        assert found[1] == expected[1]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    for a, b, start in zip(ours[:2], eager[:2], tables[:2], strict=True):
        change = (b.cpu() - start).abs().max()
        assert change > 0
        assert (a - b).abs().max().cpu() <= 0.05 * change


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_skipgram_pairs(backend):
    needs(backend)
    tables, rest = pairs_problem(vocabulary=400, outputs=500)
    ours, eager = copies(tables, device="cuda"), copies(tables, device="cuda")
    moved = on_gpu(rest)
    rate = torch.zeros((), dtype=torch.float64, device="cuda")
    graph, found = captured(lambda: ops.skipgram_pairs(*ours, *moved, alpha=rate, backend=backend))
    for n in range(REPLAYS):
        for buffer, given in zip(moved, pairs_problem(vocabulary=400, seed=n)[1], strict=True):
            buffer.copy_(given)
        rate.fill_(1e-3 * (n + 1))
        graph.replay()
        expected = ops.skipgram_pairs(*eager, *moved, alpha=1e-3 * (n + 1), backend=backend)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    for a, b, start in zip(ours, eager, tables, strict=True):
        assert (a - b).abs().max().cpu() <= 0.05 * (b.cpu() - start).abs().max()


# --- The table step. ------------------------------------------------------------------------------

RULES = {
    "sgd": (optim.SparseSGD, {"lr": 0.1}),
    "momentum": (optim.SparseSGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "adagrad": (optim.SparseAdagrad, {"lr": 0.1, "lr_decay": 0.1}),
    "adam": (optim.SparseAdam, {"lr": 0.01}),
    "rowwise_adam": (optim.RowwiseAdam, {"lr": 0.01}),
}


def tables(rule: str) -> list[tuple[nn.EmbeddingBag, Any]]:
    """The same table twice, with an optimizer in backward: for eager steps, and to be captured."""
    made = []
    kind, settings = RULES[rule]
    for capturable in (False, True):
        torch.manual_seed(3)
        layer = nn.EmbeddingBag(1000, 24, mode="mean", device="cuda")
        more: dict[str, Any] = {"capturable": capturable}
        if capturable:
            more["lr"] = torch.tensor(settings["lr"], dtype=torch.float64, device="cuda")
        optim.apply_optimizer_in_backward(kind, layer.parameters(), {**settings, **more})
        made.append((layer, optim.get_in_backward_optimizers(layer)[0]))
    return made


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    indices = torch.randint(1000, (500,), generator=g)
    indices[seed % 400 :][:80] = 7  # a row of many entries
    cuts = torch.randint(501, (62,), generator=g).sort().values
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), cuts])
    return indices.cuda(), offsets.cuda(), torch.randn(63, 24, generator=g).cuda()


@pytest.mark.parametrize("rule", RULES)
def test_table_step(rule):
    """Look-up, backward and optimizer: the count of steps goes on, and the rate is the tensor's."""
    needs("triton")
    (eager, optimizer), (layer, capturable) = tables(rule)
    indices, offsets, grad = batch(0)

    def step():
        layer(indices, offsets).backward(grad)

    for _ in range(WARM):
        eager(indices, offsets).backward(grad)
    graph, _ = captured(step)
    for n in range(REPLAYS):
        for buffer, given in zip((indices, offsets, grad), batch(n + 1), strict=True):
            buffer.copy_(given)
        rate = RULES[rule][1]["lr"] / (n + 1)
        capturable.param_groups[0]["lr"].fill_(rate)
        optimizer.param_groups[0]["lr"] = rate
        graph.replay()
        eager(indices, offsets).backward(grad)
        torch.testing.assert_close(layer.weight, eager.weight, rtol=1e-6, atol=1e-7)
    state = capturable.state[layer.weight]
    assert set(state) == set(optimizer.state[eager.weight])
    if "step" in state:
        assert int(state["step"]) == WARM + REPLAYS == int(optimizer.state[eager.weight]["step"])


def test_several_look_ups_of_a_table():
    """In one backward pass: kernels are compiled during the capture, which an eager step lacks."""
    needs("triton")
    (eager, _), (layer, _) = tables("adam")
    indices, offsets, grad = batch(0)

    def step(table=layer):
        (table(indices, offsets) + table(indices.flip(0), offsets)).backward(grad)

    for _ in range(WARM):
        step(eager)
    graph, _ = captured(step)
    for n in range(REPLAYS):
        for buffer, given in zip((indices, offsets, grad), batch(n + 1), strict=True):
            buffer.copy_(given)
        graph.replay()
        step(eager)
        torch.testing.assert_close(layer.weight, eager.weight, rtol=1e-6, atol=1e-7)


def test_a_gradient_that_is_not_finite_changes_nothing():
    needs("triton")
    _, (layer, optimizer) = tables("adam")
    indices, offsets, grad = batch(0)
    graph, _ = captured(lambda: layer(indices, offsets).backward(grad))
    grad[5, 5] = float("nan")
    before = layer.weight.detach().clone()
    graph.replay()
    assert torch.equal(layer.weight, before)
    assert int(optimizer.state[layer.weight]["step"]) == WARM
    grad[5, 5] = 0.0
    graph.replay()
    assert not torch.equal(layer.weight, before)
    assert int(optimizer.state[layer.weight]["step"]) == WARM + 1


def test_a_dense_gradient():
    needs("triton")
    layer = nn.EmbeddingBag(1000, 24, mode="mean", device="cuda")
    indices, offsets, grad = batch(0)

    def step():
        layer.weight.grad = None
        layer(indices, offsets).backward(grad)
        return layer.weight.grad

    graph, found = captured(step)
    for n in range(REPLAYS):
        for buffer, given in zip((indices, offsets, grad), batch(n + 1), strict=True):
            buffer.copy_(given)
        graph.replay()
        kept = found.clone()
        assert torch.equal(step(), kept)


# --- The LSTM step. -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("torch", torch.float32),
        ("triton", torch.float32),
        ("triton", torch.bfloat16),
        ("cuda", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_recurrent_step(backend, dtype, reverse):
    """Forward, backward and a step of SGD."""
    needs(backend)
    steps, batch_size, inputs, hidden = 9, 33, 16, 64
    g = torch.Generator().manual_seed(1)
    start = [
        (torch.randn(shape, generator=g) * 0.2).to("cuda", dtype)
        for shape in ((4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,))
    ]
    sizes = torch.full((steps,), batch_size)
    state = torch.zeros(batch_size, hidden, dtype=dtype, device="cuda")
    x = torch.randn(steps * batch_size, inputs, generator=g).to("cuda", dtype)

    def make():
        weights = [w.clone().requires_grad_() for w in start]
        optimizer = torch.optim.SGD(weights, lr=0.01)

        def step():
            optimizer.zero_grad(set_to_none=True)
            output, _, last_c = ops.rnn(
                x, sizes, state, state, *weights, cell="lstm", reverse=reverse, backend=backend
            )
            loss = output.float().square().mean() + last_c.float().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step, weights

    (step, weights), (eager, expected) = make(), make()
    graph, loss = captured(step)
    for _ in range(WARM):
        eager()
    for _ in range(REPLAYS):
        x.copy_(torch.randn(x.shape, generator=g))
        graph.replay()
        torch.testing.assert_close(loss, eager(), rtol=1e-5, atol=1e-6)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {}
    for ours, theirs in zip(weights, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_make_graphed_callables(options):
    torch.manual_seed(0)
    layer = nn.LSTM(12, 32, **options).cuda()
    eager = nn.LSTM(12, 32, **options).cuda()
    eager.load_state_dict(layer.state_dict())
    sample = torch.randn(7, 5, 12, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(layer, (sample,))
    for _ in range(REPLAYS):
        x = torch.randn(7, 5, 12, device="cuda", requires_grad=True)
        found = graphed(x)[0]
        expected = eager(x)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        grad = torch.randn_like(found)
        ours = torch.autograd.grad(found, [x, *layer.parameters()], grad)
        theirs = torch.autograd.grad(expected, [x, *eager.parameters()], grad)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- Wrong use. -----------------------------------------------------------------------------------


def test_wrong_use_is_refused_and_leaves_everything_as_it_was():
    needs("triton")
    given, rest, options = problem()
    ours, moved = copies(given, device="cuda"), on_gpu(rest)
    _, (layer, _) = tables("adam")  # that has no state yet
    (host_count, _), _ = tables("adam")
    nothing = torch.zeros(1, device="cuda")
    sparse = nn.EmbeddingBag(1000, 24, sparse=True, device="cuda")
    lstm = nn.LSTM(3, 4).cuda()
    x = torch.randn(3, 2, 3, device="cuda")
    indices, offsets, grad = batch(0)
    host_count(indices, offsets).backward(grad)
    cases = [
        (lambda: call(ours, moved, options), "seed, epoch or first_position to be a tensor"),
        (lambda: layer(indices, offsets).backward(grad), "the state of a table to be there"),
        (lambda: host_count(indices, offsets).backward(grad), "expected capturable=True"),
        (lambda: sparse(indices, offsets).backward(grad), "no sparse gradient"),
        (lambda: lstm(x, lengths=[3, 2]), "expected no lengths"),
    ]

    def attempt(wrong):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            nothing.add_(0)  # torch warns of an empty graph
            wrong()

    for wrong, message in cases:
        with pytest.raises(RuntimeError, match=message):
            attempt(wrong)
    torch.cuda.synchronize()
    assert torch.equal(ours[0].cpu(), given[0])
    call(ours, moved, options)
    layer(indices, offsets).backward(grad)


def test_an_index_out_of_range_stops_the_device():
    """In a process of its own, whose device is lost."""
    needs("triton")
    program = """
import torch
from vecsmith import nn
layer = nn.EmbeddingBag(10, 8, mode="sum").cuda()
indices, offsets = torch.zeros(5, dtype=torch.int64).cuda(), torch.tensor([0, 2]).cuda()
with torch.no_grad():
    layer(indices, offsets)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer(indices, offsets)
    graph.replay()
    torch.cuda.synchronize()
    print("so far so good", flush=True)
    indices[3] = 10
    graph.replay()
    torch.cuda.synchronize()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert "so far so good" in done.stdout
    assert done.returncode != 0
    assert "device-side assert" in done.stderr
