"""What the benchmarks of ``rnn`` run: layers of torch's and ours on the same numbers, whether they
agree, and the ceilings that the machine sets."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ._runner import Check

CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh", "GRU reset-before": "gru_reset_before"}
HIGH_ERROR = 2e-5  # what "high" may be off by, of the norm


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


@dataclass(frozen=True)
class Numbers:
    """The dtype of the tensors, and for floats what precision their products have on our side.
    torch computes its own floats at "highest"."""

    dtype: torch.dtype = torch.float32
    precision: str = "highest"

    @property
    def name(self) -> str:
        return "bf16" if self.dtype == torch.bfloat16 else self.precision

    @property
    def endings(self) -> list[str]:
        """Of a label."""
        return [] if self == FLOAT else [self.name]

    @property
    def product(self) -> tuple[torch.dtype, int]:
        """What our products are computed in on this machine, and how many take the place of one:
        the three larger ones of two parts by two."""
        from vecsmith import _native

        units = _native.rnn_matrix_units()
        if self.dtype == torch.bfloat16 and units:
            return torch.bfloat16, 1
        if self.precision == "high" and units == 2:
            return torch.bfloat16, 3
        return torch.float32, 1

    @property
    def words(self) -> str:
        """Of a title: nothing for floats at "highest"; where this machine falls back, that too."""
        fallen = self.product[0] == torch.float32
        if self.dtype == torch.bfloat16:
            return ", bfloat16" + (" (computed in float32 here)" if fallen else "")
        if self.precision == "high":
            return ', "high"' + (' (computed as "highest" here: no tiles)' if fallen else "")
        return ""

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Our side's precision while in here; a backward pass has that of its forward pass."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


FLOAT, HIGH, BF16 = Numbers(), Numbers(precision="high"), Numbers(torch.bfloat16)


def timed(call: Callable[[], Any], repeats: int = 9, scale: float = 1e3) -> Callable[[], float]:
    """An entry: milliseconds of a call (seconds times ``scale``), the median of some."""

    def entry() -> float:
        call()
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return sorted(times)[repeats // 2] * scale

    return entry


class Problem:
    """A layer of torch's, its inputs, and ours on the same parameters. All is drawn in float32 and
    rounded to the dtype; ``exact`` has the same values in float64."""

    def __init__(
        self, kind: str, shape: Shape, numbers: Numbers = FLOAT, *, exact: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.kind, self.shape, self.numbers = kind, shape, numbers
        self.layer = getattr(torch.nn, kind.split()[0])(shape.inputs, shape.hidden)
        lengths = torch.full((shape.batch,), shape.steps)
        if shape.uneven:
            lengths = torch.randint(1, shape.steps + 1, (shape.batch,)).sort(descending=True).values
            lengths[0] = shape.steps
        x = torch.randn(shape.steps, shape.batch, shape.inputs)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
        grad = torch.randn(packed.data.shape[0], shape.hidden)

        def rounded(tensor: Any) -> Any:
            tensor = tensor.to(numbers.dtype)
            return tensor.double() if exact else tensor

        self.layer = rounded(self.layer)
        self.packed = packed._replace(data=rounded(packed.data).requires_grad_())
        self.input = rounded(x).requires_grad_()
        self.grad = rounded(grad)

    @property
    def rows(self) -> int:
        return self.grad.shape[0]

    def parameters(self) -> list[Tensor]:
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        return [getattr(self.layer, name) for name in names]

    def torch_output(self) -> Tensor:
        if CELLS[self.kind] == "gru_reset_before":
            return self.loop()
        if self.shape.uneven:
            return self.layer(self.packed)[0].data
        return self.layer(self.input)[0].flatten(0, 1)

    def loop(self) -> Tensor:
        """The GRU with the reset gate before the product, as one would write it in PyTorch: the
        input's part is one product for all steps, and both biases are added there."""
        w_ih, w_hh, b_ih, b_hh = self.parameters()
        hidden = self.shape.hidden
        gates, new = linear(self.input, w_ih, b_ih + b_hh).split([2 * hidden, hidden], 2)
        w_gates, w_new = (w.t() for w in w_hh.split([2 * hidden, hidden]))
        h = self.input.new_zeros(self.shape.batch, hidden)
        outputs = []
        for i_gates, i_new in zip(gates.unbind(0), new.unbind(0), strict=True):
            r, z = torch.addmm(i_gates, h, w_gates).sigmoid().chunk(2, 1)
            n = torch.addmm(i_new, r * h, w_new).tanh()
            h = torch.lerp(n, h, z)
            outputs.append(h)
        return torch.cat(outputs)

    def output(self, backend: str | None = None) -> Tensor:
        from vecsmith import ops

        data = self.packed.data if self.shape.uneven else self.input.flatten(0, 1)
        h0 = data.new_zeros(self.shape.batch, self.shape.hidden)
        c0 = torch.zeros_like(h0) if self.kind == "LSTM" else None
        with self.numbers.applied():
            return ops.rnn(
                *(data, self.packed.batch_sizes, h0, c0, *self.parameters()),
                cell=CELLS[self.kind],
                backend=backend,
            )[0]

    def gradients(self, output: Callable[[], Tensor]) -> list[Tensor]:
        leaf = self.packed.data if self.shape.uneven else self.input
        return list(torch.autograd.grad(output(), [leaf, *self.layer.parameters()], self.grad))

    def forward(self, output: Callable[[], Tensor]) -> Tensor:
        """Without gradients."""
        with torch.no_grad():
            return output()

    def check(self, backward: bool = True) -> list[Check]:
        """Outputs, and gradients if they are asked for, of ours and torch's."""

        def results(problem: Problem, output: Callable[[], Tensor]) -> dict[str, list[Tensor]]:
            found = {"outputs": [problem.forward(output)]}
            if backward:
                found["gradients"] = problem.gradients(output)
            return found

        ours, theirs = results(self, self.output), results(self, self.torch_output)
        if self.numbers == FLOAT:
            exact = theirs
        else:
            twin = Problem(self.kind, self.shape, self.numbers, exact=True)
            exact = results(twin, twin.torch_output)
        return [
            agreement(what, ours[what], theirs[what], exact[what], self.numbers) for what in ours
        ]


def agreement(
    what: str, ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor], numbers: Numbers
) -> Check:
    """Floats at "highest" against torch's; the others against float64: "high" by the norm of the
    error, bfloat16 by the largest error of every tensor against that of torch's bfloat16."""

    def largest(tensors: list[Tensor]) -> Tensor:
        errors = [(a.double() - e).abs().max() for a, e in zip(tensors, exact, strict=True)]
        return torch.stack(errors)

    def norm(tensors: list[Tensor]) -> float:
        pairs = zip(tensors, exact, strict=True)
        return float(torch.stack([(a.double() - e).norm() / e.norm() for a, e in pairs]).max())

    if numbers.dtype == torch.bfloat16:
        worst = float((largest(ours) / largest(theirs).clamp(min=1e-300)).max())
        text = f"the largest error of the {what} is {worst:.2f} times that of torch's bfloat16"
        return Check(f"{text}, against float64 (at most 2)", worst <= 2)
    if numbers.precision == "high":
        error = norm(ours)
        text = f"the {what} are off by {error:.1e} of their norm, against float64"
        text += f" (below {HIGH_ERROR:g}; torch's floats: {norm(theirs):.1e})"
        return Check(text, error < HIGH_ERROR)
    if what == "outputs":
        error = float(largest(ours).max())
        return Check(f"the outputs differ by {error:.1e}", error < 1e-5)
    worst = float((largest(ours) / torch.stack([e.abs().max() for e in exact])).max())
    return Check(f"gradients differ by {worst:.1e} of the largest", worst < 1e-4)


# --- ceilings -------------------------------------------------------------------------------------

# The best that was seen in this process: FLOP/s by dtype, bytes/s by the size of the buffer.
_PRODUCTS: dict[torch.dtype, float] = {}
_READS: dict[int, float] = {}


def _best(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _measure_products(dtype: torch.dtype) -> None:
    """A large product by torch, with the threads it has."""
    size = 2048
    a, b = torch.randn(2, size, size).to(dtype)
    rate = 2 * size**3 / _best(lambda: a @ b, 4)
    _PRODUCTS[dtype] = max(rate, _PRODUCTS.get(dtype, 0.0))


def _measure_reads(size: int) -> None:
    """A plain reader: the sum of a buffer of so many bytes, again and again."""
    buffer = torch.ones(size // 4)
    _READS[size] = max(size / _best(buffer.sum, 100), _READS.get(size, 0.0))


@dataclass(frozen=True)
class Ceiling:
    """What bounds the speed: multiply-adds, and the reading of one weight again and again. The
    rates are the best until now, so that a busy moment is not taken for the machine's. That of
    bfloat16 is what torch's own product reaches; where tiles have more, we may pass it."""

    flops: float
    dtype: torch.dtype = torch.float32  # of the products
    parts: int = 1  # products that take the place of one
    weight: int = 0  # bytes
    reads: int = 0

    def measure(self) -> None:
        if self.flops:
            _measure_products(self.dtype)
        if self.reads:
            _measure_reads(self.weight)

    @property
    def words(self) -> str:
        parts = []
        if self.reads:
            rate = _READS[self.weight] / 1e9
            parts.append(f"reading weights of {self.weight / 2**20:g} MiB at {rate:.0f} GB/s")
        if self.flops:
            kind = str(self.dtype).removeprefix("torch.")
            many = f", {self.parts} for one" if self.parts > 1 else ""
            parts.append(f"{kind} products at {_PRODUCTS[self.dtype] / 1e9:.0f} GFLOP/s{many}")
        return " and ".join(parts)

    @property
    def seconds(self) -> float:
        floor = self.flops * self.parts / _PRODUCTS[self.dtype] if self.flops else 0.0
        return floor + (self.reads * self.weight / _READS[self.weight] if self.reads else 0.0)


def ceiling(problem: Problem, backward: bool = True) -> Ceiling:
    """Multiply-adds where there are several rows. Where there is one, the recurrent weight is read
    in every step, forward and backward, and only the products over all steps are multiply-adds."""
    gates, hidden = problem.parameters()[1].shape
    inputs, passes = problem.shape.inputs, 3 if backward else 1
    dtype, parts = problem.numbers.product
    per_column = 2 * problem.rows * gates
    if problem.shape.batch > 1:
        return Ceiling(per_column * passes * (inputs + hidden), dtype, parts)
    return Ceiling(
        flops=per_column * (passes * inputs + (hidden if backward else 0)),
        dtype=dtype,
        parts=parts,
        weight=gates * hidden * problem.numbers.dtype.itemsize,
        reads=problem.shape.steps * (2 if backward else 1),
    )


def step_ceiling(steps: Steps) -> Ceiling:
    """Of one step of one row: both weights are read."""
    weights = (steps.theirs.weight_ih, steps.theirs.weight_hh)
    return Ceiling(0, weight=sum(w.numel() * w.itemsize for w in weights), reads=1)


class Steps:
    """Cells of torch's and ours on the same parameters, and one row that takes many steps."""

    def __init__(self, kind: str, size: int, dtype: torch.dtype, count: int = 100) -> None:
        from vecsmith import nn

        torch.manual_seed(0)
        self.count, self.has_cell = count, kind == "LSTM"
        self.theirs = getattr(torch.nn, f"{kind}Cell")(size, size).to(dtype)
        self.ours = getattr(nn, f"{kind}Cell")(size, size, dtype=dtype)
        self.ours.load_state_dict(self.theirs.state_dict())
        self.exact = copy.deepcopy(self.theirs).double()
        self.inputs = torch.randn(count, 1, size).to(dtype)

    def loop(self, cell: torch.nn.Module) -> Tensor:
        """The last h."""
        inputs = self.inputs.double() if cell is self.exact else self.inputs
        h = inputs.new_zeros(1, inputs.shape[2])
        state: Any = (h, h) if self.has_cell else h
        with torch.no_grad():
            for x in inputs.unbind(0):
                state = cell(x, state)
        return state[0] if self.has_cell else state

    def check(self, numbers: Numbers) -> list[Check]:
        ours, theirs = self.loop(self.ours), self.loop(self.theirs)
        exact = theirs if numbers == FLOAT else self.loop(self.exact)
        return [agreement("outputs", [ours], [theirs], [exact], numbers)]
