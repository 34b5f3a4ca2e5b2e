"""The operator `rnn` on a GPU: forward and backward by our CUDA and Triton kernels against
torch.nn's layers, which are cuDNN's there.

Layers are as wide as their input, in bfloat16. Every way gets the same parameters; outputs and
gradients are compared with float64 over a few steps, where ours may be off by twice what torch is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ._gpu_group import GpuGroup, Problem, Work, ours, timed
from ._runner import Check, Ratio

CELLS = {"LSTM": "lstm", "GRU": "gru"}
BAR, HALF_BAR, LENGTHS_BAR = 2.0, 1.0, 3.0
_CHECKED_STEPS = 24


@dataclass(frozen=True)
class Shape:
    kind: str
    hidden: int
    batch: int = 64
    steps: int = 512
    layers: int = 1
    both: bool = False  # directions
    uneven: bool = False  # lengths uniform on 1..steps, against PackedSequence
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        name = f"{self.kind.lower()}_h{self.hidden}_b{self.batch}_t{self.steps}"
        name += f"_l{self.layers}_both" if self.both else ""
        return f"{name}_lengths" if self.uneven else name


SHAPES = (
    Shape("LSTM", 512),
    Shape("LSTM", 1024),
    Shape("GRU", 512),
    Shape("GRU", 1024),
    Shape("LSTM", 512, steps=128, layers=2, both=True, uneven=True),
    Shape("GRU", 512, steps=128, layers=2, both=True, uneven=True),
)


class Layers:
    """Layers of torch's, our way through the same parameters, and a gradient of their output."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype | None = None) -> None:
        self.shape, self.device = shape, device
        self.dtype = dtype or shape.dtype
        generator = torch.Generator().manual_seed(0)
        lengths = torch.full((shape.batch,), shape.steps)
        if shape.uneven:
            lengths = torch.randint(1, shape.steps + 1, (shape.batch,), generator=generator)
            lengths = lengths.sort(descending=True).values
            lengths[0] = shape.steps

        def moved(tensor: Tensor) -> Tensor:
            """Of the dtype of the shape, in which all ways have the same numbers."""
            return tensor.to(shape.dtype).to(self.dtype).to(device)

        torch.manual_seed(0)
        layer = getattr(torch.nn, shape.kind)(
            *(shape.hidden, shape.hidden, shape.layers), bidirectional=shape.both
        )
        for parameter in layer.parameters():
            parameter.data = moved(parameter.data)
        layer.flatten_parameters()
        self.layer = layer
        x = torch.randn(shape.steps, shape.batch, shape.hidden, generator=generator)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
        width = shape.hidden * (1 + shape.both)
        self.sizes = packed.batch_sizes
        self.data = moved(packed.data).requires_grad_()
        self.packed = packed._replace(data=self.data)
        self.grad = moved(torch.randn(len(packed.data), width, generator=generator))

    @functools.cached_property
    def in_float16(self) -> Layers:
        return Layers(replace(self.shape, dtype=torch.float16), self.device)

    def torch(self) -> Tensor:
        if self.shape.uneven:
            return self.layer(self.packed)[0].data
        x = self.data.view(self.shape.steps, self.shape.batch, -1)
        return self.layer(x)[0].flatten(0, 1)

    def ours(self, backend: str) -> Tensor:
        from vecsmith import ops

        state = self.data.new_zeros(self.shape.batch, self.shape.hidden)
        cell = CELLS[self.shape.kind]
        x = self.data
        for number in range(self.shape.layers):
            outputs = []
            for reverse in (False, True)[: 1 + self.shape.both]:
                ending = f"_l{number}" + ("_reverse" if reverse else "")
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                outputs.append(
                    ops.rnn(
                        *(x, self.sizes, state, state if cell == "lstm" else None),
                        *(getattr(self.layer, name + ending) for name in names),
                        cell=cell,
                        reverse=reverse,
                        backend=backend,
                    )[0]
                )
            x = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
        return x

    def step(self, output: Callable[[], Tensor]) -> list[Tensor]:
        """Forward and backward: (output, gradients of the input and of the parameters)."""
        found = output()
        leaves = [self.data, *self.layer.parameters()]
        return [found.detach(), *torch.autograd.grad(found, leaves, self.grad)]

    @property
    def operations(self) -> float:
        """Of forward and backward: each of the two products of a layer three times."""
        gates = 4 if self.shape.kind == "LSTM" else 3
        total = 0
        for number in range(self.shape.layers):
            inputs = self.shape.hidden * (1 + (self.shape.both and number > 0))
            total += gates * self.shape.hidden * (inputs + self.shape.hidden)
        return 2.0 * len(self.data) * total * 3 * (1 + self.shape.both)


def backends_of(shape: Shape, device: str) -> tuple[list[str], str | None]:
    """(those of ours that take a shape, why the CUDA kernel does not)."""
    found, why = ours(device, cuda=True), None
    if "cuda" in found:
        from vecsmith.ops import _cuda_rnn

        place = torch.device(device, torch.cuda.current_device())
        case = (CELLS[shape.kind], shape.dtype, shape.hidden, shape.batch, place)
        why = _cuda_rnn.refusal(*case)
    return [b for b in found if b != "cuda" or why is None], why


def check(shape: Shape, device: str) -> list[Check]:
    """Each result's largest error, of ours against that of torch's own."""
    short = replace(shape, steps=min(shape.steps, _CHECKED_STEPS))
    right, plain = Layers(short, device, torch.float64), Layers(short, device)
    exact = right.step(functools.partial(right.ours, "reference"))
    theirs = plain.step(plain.torch)
    found = []
    for backend in backends_of(shape, device)[0]:
        mine = plain.step(functools.partial(plain.ours, backend))
        worst = 0.0
        for a, b, e in zip(mine, theirs, exact, strict=True):
            error, allowed = (float((t.double() - e).abs().max()) for t in (a, b))
            allowed = max(allowed, torch.finfo(short.dtype).eps / 2 * float(e.abs().max()))
            worst = max(worst, error / allowed)
        text = f"{backend}: {short.steps} steps, the largest error is {worst:.2f} times torch's"
        found.append(Check(f"{text}, against float64 (at most 2)", worst <= 2))
    return found


def group(shape: Shape, device: str) -> GpuGroup:
    problem = Problem(lambda: Layers(shape, device))
    backends, refused = backends_of(shape, device)
    peer = "torch, packed" if shape.uneven else "torch"

    def entry(way: Callable[[Layers], Tensor]) -> Callable[[], float]:
        def measured() -> float:
            made = problem()
            return timed(lambda: made.step(lambda: way(made)), device, repeats=3, cold=False)()

        return measured

    entries = {f"vecsmith, {b}": entry(lambda made, b=b: made.ours(b)) for b in backends}
    entries[peer] = entry(Layers.torch)
    best = f"vecsmith, {backends[0]}"
    bar = LENGTHS_BAR if shape.uneven else BAR
    what = f"rnn {shape.name}: CUDA against Triton"
    ratios = [Ratio(f"{shape.name}: vecsmith / {peer}", best, peer, bar)]
    if shape.kind == "LSTM" and not shape.uneven and device.startswith("cuda"):
        half = "torch, float16"

        def halves() -> float:
            made = problem().in_float16
            return timed(lambda: made.step(made.torch), device, repeats=3, cold=False)()

        entries[half] = halves
        ratios.append(Ratio(f"{shape.name}: vecsmith / torch in float16", best, half, HALF_BAR))
    ratios.append(Ratio(what, "vecsmith, cuda", "vecsmith, triton", 1.0))
    directions = ", both directions" if shape.both else ""
    kind = str(shape.dtype).removeprefix("torch.")
    settings: dict[str, Any] = {**shape.__dict__, "dtype": kind}
    if refused is not None:
        settings["cuda_refused"] = refused
    return GpuGroup(
        name=f"gpu_rnn_{shape.name}",
        title=f"{shape.kind}, forward and backward, {kind}, {shape.name.replace('_', ' ')}"
        f", {shape.layers} layers{directions}",
        unit="ms",
        higher_is_better=False,
        entries=entries,
        check=lambda: check(shape, device),
        ratios=ratios,
        settings=settings,
        least=lambda: Work(operations=problem().operations, unit="bf16"),
        verdict=("rnn.cu", what),
    )


def groups(device: str, tiny: bool = False) -> list[GpuGroup]:
    shapes = SHAPES
    if tiny:
        small = {"hidden": 16, "batch": 3, "steps": 3}
        shapes = tuple(replace(shape, **small) for shape in (SHAPES[0], SHAPES[2], *SHAPES[4:]))
    return [group(shape, device) for shape in shapes]
