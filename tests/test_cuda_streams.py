"""Several streams, and devices that are not the current one: every launch is on the current stream
of the tensors' device, and nothing is shared between calls. On a GPU alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from skipgram_problems import call, copies, pairs_problem, problem
from test_cuda_graphs import needs
from vecsmith import nn, ops, optim

pytestmark = pytest.mark.gpu
CYCLES = 50_000_000  # of sleep: some 30 ms


def rnn(device: torch.device, seed: int, backend: str, dtype: torch.dtype):
    g = torch.Generator().manual_seed(seed)
    steps, rows, inputs, hidden = 12, 40, 16, 64
    shapes = [(steps * rows, inputs), (rows, hidden), (rows, hidden)]
    shapes += [(4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    given = [(torch.randn(s, generator=g) * 0.3).to(device, dtype) for s in shapes]
    sizes = torch.full((steps,), rows)
    sizes[-4:] = rows // 2
    given[0] = given[0][: int(sizes.sum())]

    def run() -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in given]
        output, _, last = ops.rnn(leaves[0], sizes, *leaves[1:], cell="lstm", backend=backend)
        (output.float().square().sum() + last.float().sum()).backward()
        return [output.detach(), *(leaf.grad for leaf in leaves)]

    return run, given


def table_step(device: torch.device, seed: int):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(300, 20, generator=g).to(device)
    indices = torch.randint(300, (900,), generator=g).to(device)
    offsets = torch.arange(0, 900, 9).to(device)
    grad = torch.randn(100, 20, generator=g).to(device)

    def run() -> list[torch.Tensor]:
        ours, state = weight.clone(), [torch.zeros_like(weight), torch.zeros_like(weight)]
        for step in (1, 2):
            ops.embedding_bag_update(
                *(ours, state, indices, grad, offsets), rule=ops.UpdateRule("adam", 0.1, step=step)
            )
        return [ops.embedding_bag(indices, ours, offsets, mode="max"), ours, *state]

    return run, [weight, grad]


def chunk(device: torch.device, seed: int, backend: str):
    """With a rate of zero: updates race."""
    tables, rest, options = problem(lengths=(300, 200), dim=100, seed=seed)
    ours = copies(tables, device=device)
    moved = [None if t is None else t.to(device) for t in rest]
    options |= {"alpha": 0.0, "min_alpha": 0.0}
    return (lambda: [call(ours, moved, options, backend=backend)]), ours[:2]


def pairs(device: torch.device, seed: int, backend: str):
    tables, rest = pairs_problem(seed=seed)
    ours, moved = copies(tables, device=device), [t.to(device) for t in rest]
    return (lambda: [ops.skipgram_pairs(*ours, *moved, alpha=0.0, backend=backend)]), ours


STEPS: dict[str, tuple[str, Callable[[torch.device, int], Any]]] = {
    "table": ("triton", table_step),
    "chunk-cuda": ("cuda", lambda d, s: chunk(d, s, "cuda")),
    "chunk-triton": ("triton", lambda d, s: chunk(d, s, "triton")),
    "pairs-cuda": ("cuda", lambda d, s: pairs(d, s, "cuda")),
    "pairs-triton": ("triton", lambda d, s: pairs(d, s, "triton")),
    "rnn-torch": ("torch", lambda d, s: rnn(d, s, "torch", torch.float32)),
    "rnn-triton": ("triton", lambda d, s: rnn(d, s, "triton", torch.float32)),
    "rnn-cuda": ("cuda", lambda d, s: rnn(d, s, "cuda", torch.bfloat16)),
}
steps = pytest.mark.parametrize("name", STEPS)


def close(found, expected) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@steps
def test_two_streams_at_once(name):
    """What runs beside another, with other data, gives what it gives alone."""
    backend, make = STEPS[name]
    needs(backend)
    device = torch.device("cuda", torch.cuda.current_device())
    runs = [make(device, seed)[0] for seed in (1, 2)]
    alone = [run() for run in runs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in runs]
    for _ in range(5):
        found = []
        for stream, run in zip(streams, runs, strict=True):
            with torch.cuda.stream(stream):
                found.append(run())
        torch.cuda.synchronize()
        for ours, theirs in zip(found, alone, strict=True):
            close(ours, theirs)


@steps
def test_the_current_stream_is_the_one(name):
    """What a step reads is written, late, on the same stream; the default stream is idle."""
    backend, make = STEPS[name]
    needs(backend)
    device = torch.device("cuda", torch.cuda.current_device())
    run, inputs = make(device, 3)
    expected, kept = run(), [t.clone() for t in inputs]
    for tensor in inputs:
        tensor.fill_(0.01)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        for tensor, value in zip(inputs, kept, strict=True):
            tensor.copy_(value)
        found = run()
    stream.synchronize()
    close(found, expected)


@steps
def test_a_device_that_is_not_the_current_one(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    backend, make = STEPS[name]
    needs(backend)
    expected = make(torch.device("cuda", 0), 4)[0]()
    with torch.cuda.device(0):
        found = make(torch.device("cuda", 1), 4)[0]()
        assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(1)
    assert all(tensor.device.index == 1 for tensor in found)
    close([t.cpu() for t in found], [t.cpu() for t in expected])


def test_optimizers_in_backward_wait_for_the_stream_of_the_forward_pass():
    """backward() is called on another stream than that of the look-up; the gradient comes late."""
    needs("triton")
    made = []
    for side in (None, torch.cuda.Stream()):
        torch.manual_seed(0)
        layer = nn.Embedding(50, 16, device="cuda")
        optim.apply_optimizer_in_backward(optim.SparseAdagrad, layer.parameters(), {"lr": 0.1})
        indices = torch.randint(50, (64,), device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            scale = torch.ones(64, 16, device="cuda")
            loss = (layer(indices) * scale).sum()
            if side is not None:
                torch.cuda._sleep(CYCLES)
            scale.data.mul_(3.0)  # what the gradient is made of, late
        loss.backward()
        torch.cuda.synchronize()
        made.append(layer.weight.detach().clone())
    assert torch.equal(*made)


def test_memory_of_one_stream_is_not_taken_by_another():
    """Outputs and workspaces of many calls, given back while they are in use, on two streams."""
    needs("triton")
    device = torch.device("cuda", torch.cuda.current_device())
    runs = [table_step(device, seed)[0] for seed in (5, 6)]
    alone = [run() for run in runs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in runs]
    differences = []
    for turn in range(40):
        with torch.cuda.stream(streams[turn % 2]):
            pairs = zip(runs[turn % 2](), alone[turn % 2], strict=True)
            differences.append(torch.stack([(a - b).abs().max() for a, b in pairs]).max())
    torch.cuda.synchronize()
    assert all(float(difference) < 1e-5 for difference in differences)
