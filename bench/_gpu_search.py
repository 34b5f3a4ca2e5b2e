"""The operators on nearest rows on a GPU: `cosine_topk` against torch's product and topk and
faiss's flat index, and the match loss against losses over all logits.

Ours is exact for float32 rows; a product of bfloat16 is not, and its answers are not compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ._gpu_group import GpuGroup, Problem, Work, have, timed
from ._runner import Check, Ratio
from .gpu_roofline import matmul_precision

BF16_BAR, FLOAT_BAR = 2.0, 8.0
_CHECKED = 64  # queries
_AT_ONCE = 2048  # queries whose scores torch holds


@dataclass(frozen=True)
class Shape:
    queries: int
    rows: int
    dim: int
    k: int

    @property
    def name(self) -> str:
        return f"v{self.rows}_d{self.dim}_q{self.queries}_k{self.k}"


BARRED = Shape(8192, 131_072, 768, 10)
SHAPES = (BARRED, Shape(1024, 400_000, 300, 10), Shape(1, 400_000, 300, 10))


class Search:
    """Rows and queries, and each program's way to the nearest."""

    def __init__(self, shape: Shape, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape, self.device = shape, device
        self.rows, self.queries = (
            torch.randn(count, shape.dim, generator=generator).to(device)
            for count in (shape.rows, shape.queries)
        )

    def ours(self) -> Tensor:
        from vecsmith import ops

        return ops.cosine_topk(self.queries, self.rows, self.shape.k, backend="triton").indices

    def torch(self, dtype: torch.dtype, precision: str = "highest") -> Tensor:
        """Both sides are scaled in each call, as ours are."""
        with matmul_precision(precision):
            rows = normalize(self.rows).to(dtype).T
            parts = normalize(self.queries).to(dtype).split(_AT_ONCE)
            return torch.cat([(part @ rows).topk(self.shape.k).indices for part in parts])

    @functools.cached_property
    def faiss(self) -> Callable[[], Tensor]:
        import faiss

        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), self.shape.dim)
        index.add(normalize(self.rows).cpu().numpy())
        queries = normalize(self.queries).cpu().numpy()
        return lambda: torch.from_numpy(index.search(queries, self.shape.k)[1])

    def check(self, with_faiss: bool) -> list[Check]:
        count = min(_CHECKED, self.shape.queries)
        cosines = normalize(self.queries[:count].double()) @ normalize(self.rows.double()).T
        best, order = cosines.topk(self.shape.k)
        found = self.ours()[:count]
        same = bool(torch.equal(found, order))
        ways = {"torch, float32": lambda: self.torch(torch.float32)}
        if with_faiss:
            ways["faiss"] = self.faiss
        checks = [Check(f"vecsmith: {count} queries, the rows of float64 in their order", same)]
        for name, way in ways.items():
            theirs = cosines.gather(1, way()[:count].to(self.device))
            worst = float((best - theirs).abs().max())
            checks.append(Check(f"{name}: cosines within {worst:.1e} of float64's", worst < 1e-5))
        return checks


def have_faiss_gpu(device: str) -> bool:
    if not device.startswith("cuda") or not have("faiss"):
        return False
    import faiss

    return hasattr(faiss, "StandardGpuResources")


def search_group(shape: Shape, device: str) -> GpuGroup:
    problem = Problem(lambda: Search(shape, device))
    ways: dict[str, Callable[[Search], Any]] = {
        "vecsmith": Search.ours,
        "torch, float32": lambda made: made.torch(torch.float32),
        "torch, tf32": lambda made: made.torch(torch.float32, "high"),
        "torch, bfloat16": lambda made: made.torch(torch.bfloat16),
    }
    barred = shape == BARRED
    ratios = [
        Ratio(f"{shape.name}: vecsmith / {other}", "vecsmith", other, bar if barred else None)
        for other, bar in (
            ("torch, bfloat16", BF16_BAR),
            ("torch, float32", FLOAT_BAR),
            ("torch, tf32", None),
        )
    ]
    with_faiss = have_faiss_gpu(device)
    if with_faiss:
        ways["faiss GpuIndexFlatIP"] = lambda made: made.faiss()
        what = f"{shape.name}: vecsmith / faiss"
        ratios.append(Ratio(what, "vecsmith", "faiss GpuIndexFlatIP"))

    def entry(way: Callable[[Search], Any]) -> float:
        made = problem()
        return timed(lambda: way(made), device, repeats=5)()

    sides = (shape.rows + shape.queries) * shape.dim
    return GpuGroup(
        name=f"gpu_cosine_topk_{shape.name}",
        title=f"{shape.k} nearest of {shape.rows:,} rows of {shape.dim} by cosine, "
        f"{shape.queries:,} queries",
        unit="ms",
        higher_is_better=False,
        entries={name: functools.partial(entry, way) for name, way in ways.items()},
        check=lambda: problem().check(with_faiss),
        ratios=ratios,
        settings=dict(shape.__dict__),
        # The rows are read once at least, and the products be in bfloat16 at best.
        least=lambda: Work(4.0 * sides, 2.0 * shape.queries * shape.rows * shape.dim, "bf16"),
    )


# --- the match loss -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossShape:
    outputs: int = 32 * 25
    rows: int = 30_522
    dim: int = 312


LOSSES = (LossShape(), LossShape(8192, 131_072, 768))


class MatchLoss:
    """The squared error of the outputs whose nearest row is not the target, forward and backward;
    and what others compute of as many logits: the cross entropy."""

    def __init__(self, shape: LossShape, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape = shape
        embeddings = torch.randn(shape.rows, shape.dim, generator=generator)
        targets = torch.randint(shape.rows, (shape.outputs,), generator=generator)
        # About half of them find their target.
        noise = torch.randn(shape.outputs, shape.dim, generator=generator)
        self.embeddings, self.targets = embeddings.to(device), targets.to(device)
        self.outputs = (embeddings[targets] + 4.2 * noise).to(device).requires_grad_()

    def _gradient(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = torch.autograd.grad(loss, self.outputs)
        return loss.detach(), gradient

    def _loss(self, matched: Tensor) -> Tensor:
        errors = (self.outputs - self.embeddings[self.targets]).square().sum(1)
        missed = ~matched
        return (errors * missed).sum() / missed.sum().clamp(min=1)

    def ours(self) -> tuple[Tensor, Tensor]:
        from vecsmith import ops

        matched = ops.match_mask(self.outputs, self.embeddings, self.targets, backend="triton")
        return self._gradient(self._loss(matched))

    def torch(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            rows = normalize(self.embeddings).T
            parts = normalize(self.outputs).split(_AT_ONCE)
            nearest = torch.cat([(part @ rows).argmax(1) for part in parts])
        return self._gradient(self._loss(nearest == self.targets))

    def cross_entropy(self) -> tuple[Tensor, Tensor]:
        logits = self.outputs @ self.embeddings.T
        return self._gradient(cross_entropy(logits, self.targets))

    def cut(self) -> tuple[Tensor, Tensor]:
        from cut_cross_entropy import linear_cross_entropy

        e, c = self.outputs.bfloat16(), self.embeddings.bfloat16()
        return self._gradient(linear_cross_entropy(e, c, self.targets))

    def liger(self) -> tuple[Tensor, Tensor]:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss()
        return self._gradient(loss(self.embeddings, self.outputs, self.targets))

    def check(self) -> list[Check]:
        """Against float64, which decides what matched."""
        with torch.no_grad():
            rows = normalize(self.embeddings.double()).T
            parts = normalize(self.outputs.double()).split(512)
            nearest = torch.cat([(part @ rows).argmax(1) for part in parts])
            right = self._loss(nearest == self.targets)
        checks = []
        # In float32 the nearest row may be another one here and there.
        for name, way, allowed in (("vecsmith", self.ours, 1e-5), ("torch", self.torch, 1e-3)):
            loss = float(way()[0])
            text = f"{name}: loss {loss:.7g}, float64 chooses {float(right):.7g}"
            checks.append(Check(text, abs(loss - float(right)) <= allowed * abs(float(right))))
        return checks


def loss_group(shape: LossShape, device: str) -> GpuGroup:
    problem = Problem(lambda: MatchLoss(shape, device))
    ways: dict[str, Callable[[MatchLoss], Any]] = {
        "vecsmith": MatchLoss.ours,
        "torch": MatchLoss.torch,
        "torch, cross entropy of the logits": MatchLoss.cross_entropy,
    }
    if device.startswith("cuda") and have("cut_cross_entropy"):
        ways["cut-cross-entropy, bfloat16"] = MatchLoss.cut
    if device.startswith("cuda") and have("liger_kernel.transformers"):
        ways["liger-kernel, cross entropy"] = MatchLoss.liger

    def entry(way: Callable[[MatchLoss], Any]) -> float:
        made = problem()
        return timed(lambda: way(made), device, repeats=5)()

    name = f"v{shape.rows}_d{shape.dim}_n{shape.outputs}"
    sides = (shape.rows + 3 * shape.outputs) * shape.dim
    return GpuGroup(
        name=f"gpu_match_loss_{name}",
        title=f"Match loss, forward and backward, {shape.outputs:,} outputs, {shape.rows:,} rows "
        f"of {shape.dim}",
        unit="ms",
        higher_is_better=False,
        entries={name: functools.partial(entry, way) for name, way in ways.items()},
        check=lambda: problem().check(),
        ratios=[
            Ratio(f"match loss {name}: vecsmith / {other}", "vecsmith", other)
            for other in ways
            if other != "vecsmith"
        ],
        settings=dict(shape.__dict__),
        least=lambda: Work(4.0 * sides, 2.0 * shape.outputs * shape.rows * shape.dim, "bf16"),
    )


def groups(device: str, tiny: bool = False) -> list[GpuGroup]:
    searches, losses = SHAPES, LOSSES
    if tiny:
        searches = (Shape(3, 40, 8, 2), Shape(1, 40, 8, 2))
        losses = (LossShape(6, 30, 8),)
    made = [search_group(shape, device) for shape in searches]
    return [*made, *(loss_group(shape, device) for shape in losses)]
