"""The operator `rnn`: forward and backward of recurrent layers against torch.nn's.

    pytest bench/bench_rnn.py --benchmark-enable    pytest-benchmark, one group per shape
    python -m bench.bench_rnn                        interleaved, with ratios and JSON

A run is the forward pass and the backward pass with given gradients of the output, the input's
gradient included, in float32 ("highest").
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bench._runner import Check, Group, Ratio, finish, parser, run


@dataclass(frozen=True)
class Shape:
    inputs: int
    hidden: int
    batch: int
    steps: int
    uneven: bool = False  # lengths uniform on 1..steps, against PackedSequence

    @property
    def name(self) -> str:
        name = f"i{self.inputs}_h{self.hidden}_b{self.batch}_t{self.steps}"
        return f"{name}_lengths" if self.uneven else name


SHAPES = (
    Shape(256, 256, 32, 64),
    Shape(312, 1024, 32, 25),
    Shape(128, 512, 32, 25),
    Shape(512, 512, 1, 100),
    Shape(256, 256, 32, 64, uneven=True),
)
BARS = {
    ("LSTM", "i256_h256_b32_t64"): 1.4,
    ("LSTM", "i312_h1024_b32_t25"): 1.2,
    ("LSTM", "i128_h512_b32_t25"): 1.3,
    ("LSTM", "i512_h512_b1_t100"): 1.5,
    ("LSTM", "i256_h256_b32_t64_lengths"): 2.5,
    ("GRU", "i256_h256_b32_t64"): 2.0,
    ("GRU", "i312_h1024_b32_t25"): 1.5,
    ("GRU", "i128_h512_b32_t25"): 1.8,
    ("GRU", "i512_h512_b1_t100"): 4.0,
    ("GRU", "i256_h256_b32_t64_lengths"): 2.5,
}
CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}


def timed(call: Callable[[], Any], repeats: int = 9) -> Callable[[], float]:
    """An entry: milliseconds of a call, the median of some."""

    def entry() -> float:
        call()
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return sorted(times)[repeats // 2] * 1e3

    return entry


class Problem:
    """A layer of torch's, its inputs, and ours on the same parameters."""

    def __init__(self, kind: str, shape: Shape) -> None:
        torch.manual_seed(0)
        self.kind, self.shape = kind, shape
        self.layer = getattr(torch.nn, kind)(shape.inputs, shape.hidden)
        lengths = torch.full((shape.batch,), shape.steps)
        if shape.uneven:
            lengths = torch.randint(1, shape.steps + 1, (shape.batch,)).sort(descending=True).values
            lengths[0] = shape.steps
        x = torch.randn(shape.steps, shape.batch, shape.inputs)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
        self.packed = packed._replace(data=packed.data.requires_grad_())
        self.input = x.requires_grad_()
        self.grad = torch.randn(packed.data.shape[0], shape.hidden)

    def torch_output(self) -> Tensor:
        if self.shape.uneven:
            return self.layer(self.packed)[0].data
        return self.layer(self.input)[0].flatten(0, 1)

    def output(self, backend: str | None = None) -> Tensor:
        from vecsmith import ops

        shape, layer = self.shape, self.layer
        data = self.packed.data if shape.uneven else self.input.flatten(0, 1)
        h0 = torch.zeros(shape.batch, shape.hidden)
        c0 = torch.zeros_like(h0) if self.kind == "LSTM" else None
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        parameters = [getattr(layer, name) for name in names]
        return ops.rnn(
            *(data, self.packed.batch_sizes, h0, c0, *parameters),
            cell=CELLS[self.kind],
            backend=backend,
        )[0]

    def leaf(self) -> Tensor:
        return self.packed.data if self.shape.uneven else self.input

    def gradients(self, output: Callable[[], Tensor]) -> list[Tensor]:
        wanted = [self.leaf(), *self.layer.parameters()]
        return list(torch.autograd.grad(output(), wanted, self.grad))


def group_of(kind: str, shape: Shape, threads: int) -> Group:
    problem = Problem(kind, shape)
    peer = "torch, packed" if shape.uneven else "torch"

    def check() -> list[Check]:
        ours, theirs = problem.output(), problem.torch_output()
        error = float((ours - theirs).detach().abs().max())
        found = [Check(f"the outputs differ by {error:.1e}", error < 1e-5)]
        pairs = zip(
            problem.gradients(problem.output), problem.gradients(problem.torch_output), strict=True
        )
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        found.append(Check(f"gradients differ by {worst:.1e} of the largest", worst < 1e-4))
        return found

    return Group(
        name=f"rnn_{kind.lower()}_{shape.name}",
        title=f"{kind}, forward and backward, {shape.name.replace('_', ' ')}, {threads} threads",
        unit="ms",
        higher_is_better=False,
        entries={
            "vecsmith": timed(lambda: problem.gradients(problem.output)),
            peer: timed(lambda: problem.gradients(problem.torch_output)),
        },
        check=check,
        ratios=[
            Ratio(
                f"{kind} {shape.name}: vecsmith / {peer}",
                "vecsmith",
                peer,
                BARS.get((kind, shape.name)),
            )
        ],
        settings={**shape.__dict__, "threads": threads},
    )


# --- pytest-benchmark -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference", "torch"])
@pytest.mark.parametrize("kind", list(CELLS))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_rnn(benchmark, shape: Shape, kind: str, backend: str) -> None:
    problem = Problem(kind, shape)
    benchmark.group = f"{kind} {shape.name}"
    output = problem.torch_output if backend == "torch" else lambda: problem.output(backend)
    benchmark.pedantic(lambda: problem.gradients(output), rounds=3, warmup_rounds=1)


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=5, corpus=False)
    options.add_argument("--only", help="names of groups that contain this")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    records = []
    for shape in SHAPES:
        for kind in CELLS:
            if not given.only or given.only in f"{kind} {shape.name}":
                records.append(run(group_of(kind, shape, given.threads), given.rounds))
    return finish(records, given)


if __name__ == "__main__":
    sys.exit(main())
