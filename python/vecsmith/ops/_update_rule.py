"""The rules by which :func:`vecsmith.ops.embedding_bag_update` changes a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_STATES = {
    "sgd": "",
    "adagrad": "t",
    "rowwise_adagrad": "r",
    "adam": "tt",
    "rowwise_adam": "tr",
}
RULES = tuple(_STATES)


@dataclass(frozen=True)
class UpdateRule:
    """How a row w of a table changes, given the gradient g of this step.

    ``name`` is one of (t = ``step``, from 1; first g += ``weight_decay`` w, and g = -g if
    ``maximize``):

    - "sgd": w -= lr g; with momentum: b = momentum b + (1 - dampening) g (b = momentum b + g at
      t = 1), w -= lr b, or w -= lr (g + momentum b) with ``nesterov`` (torch.optim.SGD);
    - "adagrad": s += g^2, w -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps) (Duchi, Hazan and
      Singer 2011; torch.optim.Adagrad);
    - "rowwise_adagrad": the same with one s for the row, s += mean(g^2) (FBGEMM);
    - "adam": m += (1 - beta1) (g - m), v += (1 - beta2) (g^2 - v),
      w -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps) (Kingma and Ba 2015, in the
      form of torch.optim.SparseAdam);
    - "rowwise_adam": the same with one v for the row, of mean(g^2).

    Every rule is lazy: a row that a step does not touch does not change, and neither does its
    state. For Adagrad that is what the dense rule does, too; for momentum and Adam it is not.

    ``lr`` and ``step`` may be tensors of one element beside the table, whose numbers a step reads
    when it runs, as every replay of a CUDA graph must: ``lr`` of a floating dtype; ``step``, also
    floating, is then how many steps there *have been*, and each step that is taken adds one to it.
    The numbers in tensors are not checked.

    Raises: ValueError for an unknown name or a number out of range.
    """

    name: str
    lr: float | Tensor
    eps: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    lr_decay: float = 0.0
    maximize: bool = False
    step: int | Tensor = 1

    def __post_init__(self) -> None:
        if self.name not in _STATES:
            raise ValueError(f"expected a rule of {', '.join(RULES)}; got {self.name!r}")
        for name in ("lr", "eps", "momentum", "weight_decay", "lr_decay"):
            value = getattr(self, name)
            if isinstance(value, Tensor) and name == "lr":
                continue
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"expected {name} to be finite and >= 0; got {value}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"expected {name} in [0, 1); got {getattr(self, name)}")
        if not math.isfinite(self.dampening):
            raise ValueError(f"expected dampening to be finite; got {self.dampening}")
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("expected a momentum and no dampening with nesterov")
        if not isinstance(self.step, Tensor) and self.step < 1:
            raise ValueError(f"expected step >= 1; got {self.step}")

    def state_shapes(self, rows: int, dim: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of the state tensors, in the order in which they are given: [rows, dim] or
        [rows] each."""
        kinds = "t" if self.name == "sgd" and self.momentum else _STATES[self.name]
        return tuple((rows, dim) if kind == "t" else (rows,) for kind in kinds)

    def settled(self) -> UpdateRule:
        """The rule of this step with numbers in the place of tensors, whose device is waited for.
        Raises: as the constructor."""
        if not isinstance(self.lr, Tensor) and not isinstance(self.step, Tensor):
            return self
        step = int(self.step) + 1 if isinstance(self.step, Tensor) else self.step
        return replace(self, lr=float(self.lr), step=step)

    def rate(self) -> tuple[float, float]:
        """The rate at this step, and the weight of a new gradient in a momentum."""
        rate, step = float(self.lr), int(self.step)
        if self.name in ("adagrad", "rowwise_adagrad"):
            rate /= 1 + (step - 1) * self.lr_decay
        elif self.name in ("adam", "rowwise_adam"):
            rate *= math.sqrt(1 - self.beta2**step) / (1 - self.beta1**step)
        return rate, 1.0 if step == 1 else 1.0 - self.dampening

    def rate_on_device(self, device: torch.device) -> Tensor:
        """:meth:`rate` where the tensors are, as float32 [2]; nothing waits for the device."""

        def double(value: float | Tensor, more: int = 0) -> Tensor:
            if isinstance(value, Tensor):
                return value.detach().reshape(()).double() + more
            return torch.full((), value, dtype=torch.float64, device=device)

        rate = double(self.lr)
        step = double(self.step, 1)
        if self.name in ("adagrad", "rowwise_adagrad"):
            rate = rate / (1 + (step - 1) * self.lr_decay)
        elif self.name in ("adam", "rowwise_adam"):
            rate = rate * ((1 - self.beta2**step).sqrt() / (1 - self.beta1**step))
        fresh = 1 - self.dampening * (step != 1).double()
        return torch.stack([rate, fresh]).float()

    def numbers(self) -> list[float]:
        """What the native kernels need, in their order: the rate at this step, eps, 1 - beta1,
        1 - beta2 (of which float32 would lose digits), momentum and so on."""
        rate, fresh = self.rate()
        return [
            rate,
            self.eps,
            1 - self.beta1,
            1 - self.beta2,
            self.momentum,
            fresh,
            float(self.nesterov),
            self.weight_decay,
            float(self.maximize),
        ]
