"""The operator `embedding_bag` on a GPU: look-ups and training steps against torch and FBGEMM.

Bags of 20 rows of a table of a million, drawn by Zipf's law or uniformly. The bytes that must be
moved count every row that is touched once: those that come again are in the cache, which is why a
look-up by Zipf's law can pass the bandwidth of a copy. A step is the look-up, the backward pass
with a given gradient, and the optimizer's step; the update is the last two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._gpu_group import GpuGroup, Problem, Work, have, timed
from ._runner import Check, Ratio
from .gpu_roofline import copy_time

RATE, EPS, ZIPF = 0.01, 1e-8, 1.05
# Of the bandwidth of a copy, with rows drawn uniformly; and how many times as fast as torch.
FORWARD_BAR, UPDATE_BAR, STEP_BAR = 0.85, 0.70, 5.0


@dataclass(frozen=True)
class Shape:
    name: str
    rows: int = 1_000_000
    dim: int = 128
    bags: int = 16_384
    length: int = 20

    @property
    def uniform(self) -> bool:
        return self.name.startswith("uniform")


SHAPES = (Shape("uniform"), Shape("zipf"))


class Table:
    """A table, a batch of bags, and each program's way."""

    def __init__(self, shape: Shape, device: str) -> None:
        draw = np.random.default_rng(0)
        count = shape.bags * shape.length
        if shape.uniform:
            ids = draw.integers(0, shape.rows, count)
        else:
            weights = np.arange(1, shape.rows + 1) ** -ZIPF
            ids = np.searchsorted(np.cumsum(weights / weights.sum()), draw.random(count))
            ids = np.minimum(ids, shape.rows - 1)
        generator = torch.Generator().manual_seed(0)
        self.shape, self.device = shape, device
        self.start = torch.randn(shape.rows, shape.dim, generator=generator)
        self.ids = torch.from_numpy(ids).to(device)
        self.offsets = torch.arange(0, count, shape.length, device=device)
        self.grad = torch.randn(shape.bags, shape.dim, generator=generator).to(device)
        self.touched = len(np.unique(ids))
        self.reset()

    def reset(self) -> None:
        """All programs begin from the same table."""
        from vecsmith.ops import UpdateRule

        self.weight = self.start.to(self.device, copy=True)
        self.state = [torch.zeros_like(self.weight) for _ in range(2)]
        self.rule = UpdateRule("adam", RATE, eps=EPS)
        self.torch_layer = torch.nn.EmbeddingBag(
            self.shape.rows, self.shape.dim, mode="sum", sparse=True, device=self.device
        )
        with torch.no_grad():
            self.torch_layer.weight.copy_(self.start)
        self.optimizer = torch.optim.SparseAdam(self.torch_layer.parameters(), lr=RATE, eps=EPS)

    # --- forward ---

    def forward(self) -> Tensor:
        from vecsmith import ops

        given = (self.ids, self.weight, self.offsets)
        return ops.embedding_bag(*given, mode="sum", backend="triton")

    def kernel(self) -> Tensor:
        """Without the operator's look at the indices, for which it waits."""
        from vecsmith.kernels import embedding_bag as kernels

        return kernels.embedding_bag(self.weight, self.ids, self.offsets, mode="sum")[0]

    def torch_forward(self) -> Tensor:
        with torch.no_grad():
            return self.torch_layer(self.ids, self.offsets)

    @property
    def forward_bytes(self) -> int:
        row = 4 * self.shape.dim
        return row * (self.touched + self.shape.bags) + 8 * (len(self.ids) + self.shape.bags)

    def check_forward(self) -> list[Check]:
        count = min(self.shape.bags, 512)
        rows = self.ids[: count * self.shape.length].view(count, -1)
        exact = self.weight[rows].double().sum(1)
        found = []
        for way in (self.forward, self.kernel, self.torch_forward):
            error = float((way()[:count] - exact).abs().max() / exact.abs().max())
            found.append(Check(f"{way.__name__}: off by {error:.1e} of the largest", error < 1e-6))
        return found

    # --- updates ---

    def update(self) -> None:
        from vecsmith import ops

        given = (self.weight, self.state, self.ids, self.grad, self.offsets)
        ops.embedding_bag_update(*given, rule=self.rule, backend="triton")
        self.rule = replace(self.rule, step=self.rule.step + 1)

    def step(self) -> None:
        self.forward()
        self.update()

    def torch_step(self) -> None:
        self.torch_layer(self.ids, self.offsets).backward(self.grad)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @functools.cached_property
    def fbgemm(self) -> Callable[[], None]:
        """FBGEMM's step; its table begins as ours."""
        from fbgemm_gpu import split_table_batched_embeddings_ops_training as peer
        from fbgemm_gpu.split_embedding_configs import EmbOptimType

        place = (peer.EmbeddingLocation.DEVICE, peer.ComputeDevice.CUDA)
        layer = peer.SplitTableBatchedEmbeddingBagsCodegen(
            [(self.shape.rows, self.shape.dim, *place)],
            optimizer=EmbOptimType.ADAM,
            learning_rate=RATE,
            eps=EPS,
        )
        self.fbgemm_weight: Tensor = layer.split_embedding_weights()[0]
        self.fbgemm_weight.data.copy_(self.start)
        ends = torch.cat([self.offsets, self.offsets.new_tensor([len(self.ids)])])
        return lambda: layer(self.ids, ends).backward(self.grad)

    @property
    def update_bytes(self) -> int:
        """Weight and both moments of touched rows, read and written; the gradient; the indices."""
        row = 4 * self.shape.dim
        return row * (6 * self.touched + self.shape.bags) + 8 * len(self.ids)

    def check_steps(self, with_fbgemm: bool) -> list[Check]:
        """Two steps of Adam in float64, by the norm: of single numbers with a gradient of nearly
        zero the quotient has no digits."""
        from vecsmith.reference import embedding_bag as reference

        self.reset()
        start = self.start.to(self.device, torch.float64)
        exact, state = start.clone(), [torch.zeros_like(start) for _ in range(2)]
        for step in (1, 2):
            reference.embedding_bag_update(
                *(exact, state, self.ids, self.grad.double(), self.offsets, None, None),
                mode="sum",
                rule=replace(self.rule, step=step),
            )
        ways: dict[str, tuple[Callable[[], Any], Callable[[], Tensor]]] = {
            "vecsmith": (self.step, lambda: self.weight),
            "torch": (self.torch_step, lambda: self.torch_layer.weight.detach()),
        }
        if with_fbgemm:
            ways["FBGEMM"] = (self.fbgemm, lambda: self.fbgemm_weight.detach())
        found = []
        for name, (call, weight) in ways.items():
            call()
            call()
            error = float((weight().double() - exact).norm() / (exact - start).norm())
            text = f"{name}: after two steps off by {error:.1e} of what float64 moved by"
            found.append(Check(text, error <= 1e-3))
        return found


def have_fbgemm(device: str) -> bool:
    module = "fbgemm_gpu.split_table_batched_embeddings_ops_training"
    return device.startswith("cuda") and have("fbgemm_gpu", module)


def forward_group(shape: Shape, device: str, problem: Problem[Table]) -> GpuGroup:
    copied = "a copy of as many bytes"
    kernel = "vecsmith, kernel alone"
    bar = FORWARD_BAR if shape.uniform else None
    return GpuGroup(
        name=f"gpu_embedding_bag_forward_{shape.name}",
        title=f"EmbeddingBag, forward, {shape.name}: {shape.bags:,} bags of {shape.length} of "
        f"{shape.rows:,} rows of {shape.dim}",
        unit="ms",
        higher_is_better=False,
        entries={
            "vecsmith": lambda: timed(problem().forward, device)(),
            kernel: lambda: timed(problem().kernel, device)(),
            "torch": lambda: timed(problem().torch_forward, device)(),
            copied: lambda: copy_time(device, problem().forward_bytes),
        },
        check=lambda: problem().check_forward(),
        ratios=[
            Ratio(f"{shape.name}: of the bandwidth of a copy", "vecsmith", copied, bar),
            Ratio(f"{shape.name}: of a copy, kernel alone", kernel, copied, bar),
            Ratio(f"{shape.name}: vecsmith / torch", "vecsmith", "torch"),
        ],
        settings=dict(shape.__dict__),
        least=lambda: Work(bytes=problem().forward_bytes),
    )


def step_group(shape: Shape, device: str, problem: Problem[Table]) -> GpuGroup:
    copied = "a copy of as many bytes as the update"
    entries: dict[str, Callable[[], float]] = {
        "vecsmith": lambda: timed(problem().step, device)(),
        "vecsmith, update": lambda: timed(problem().update, device)(),
        "torch": lambda: timed(problem().torch_step, device, repeats=5)(),
        copied: lambda: copy_time(device, problem().update_bytes),
    }
    ratios = [
        Ratio(
            f"{shape.name}: update, of the bandwidth of a copy",
            "vecsmith, update",
            copied,
            UPDATE_BAR if shape.uniform else None,
        ),
        Ratio(f"{shape.name}: step, vecsmith / torch", "vecsmith", "torch", STEP_BAR),
    ]
    with_fbgemm = have_fbgemm(device)
    if with_fbgemm:
        entries["FBGEMM"] = lambda: timed(problem().fbgemm, device)()
        ratios.append(Ratio(f"{shape.name}: step, vecsmith / FBGEMM", "vecsmith", "FBGEMM"))
    return GpuGroup(
        name=f"gpu_embedding_bag_step_{shape.name}",
        title=f"EmbeddingBag, a step with Adam, {shape.name}: {shape.bags:,} bags of "
        f"{shape.length} of {shape.rows:,} rows of {shape.dim}",
        unit="ms",
        higher_is_better=False,
        entries=entries,
        check=lambda: problem().check_steps(with_fbgemm),
        ratios=ratios,
        settings=dict(shape.__dict__),
        least=lambda: Work(bytes=problem().forward_bytes + problem().update_bytes),
    )


def groups(device: str, tiny: bool = False) -> list[GpuGroup]:
    shapes = SHAPES
    if tiny:
        shapes = tuple(Shape(name, 60, 20, 6, 4) for name in ("uniform", "zipf"))
    made = []
    for shape in shapes:
        # A table that takes seconds to draw, for both.
        problem = Problem(functools.partial(Table, shape, device))
        made += [make(shape, device, problem) for make in (forward_group, step_group)]
    return made
