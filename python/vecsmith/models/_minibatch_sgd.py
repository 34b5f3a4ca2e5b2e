"""Gradient descent on ratings by minibatches, with the sparse optimizers of embedding tables."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vecsmith import ops

_GOLDEN = 0x9E3779B97F4A7C15


@dataclass
class MinibatchSGD:
    """Trains the tables of users and items, [rows, f] or, with biases, [rows, f + 1].

    A minibatch's cells see the tables as they were before it. The gradients of a row, of

        e^2 / 2 + l / 2 (|p|^2 + |q|^2) + l_b / 2 (b_u^2 + b_i^2)

    for each of its cells, are added up, and the row takes one step of the rule.
    """

    users: Tensor
    items: Tensor
    factors: int
    rule: str
    size: int
    regularization: float
    bias_regularization: float
    mean: float
    state: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        shapes = ops.UpdateRule(self.rule, 0.0)
        for name, table in (("users", self.users), ("items", self.items)):
            self.state[name] = tuple(
                torch.zeros(shape) for shape in shapes.state_shapes(*table.shape)
            )

    def tables(self) -> dict[str, Tensor]:
        """The state of the rule as tables [rows, columns], its own memory."""
        return {
            f"{name}_state_{number}": part.view(len(part), -1) if part.dim() == 1 else part
            for name, parts in self.state.items()
            for number, part in enumerate(parts)
        }

    def epoch(self, cells: ops.FactorBlocks, rate: float, number: int, seed: int) -> float:
        """Over all cells, in an order that seed and number of the epoch decide. Returns sum e^2,
        each before its step."""
        total = 0.0
        self.steps = number * -(-len(cells) // self.size)
        generator = torch.Generator().manual_seed((seed + number * _GOLDEN) % (1 << 63))
        order = torch.randperm(len(cells), generator=generator)
        for places in order.split(self.size):
            users, items = cells.users[places].long(), cells.items[places].long()
            total += self._step(users, items, cells.values[places], rate)
        return total

    def _step(self, users: Tensor, items: Tensor, values: Tensor, rate: float) -> float:
        self.steps += 1
        f = self.factors
        p, q = self.users[users], self.items[items]
        e = values - self.mean - torch.linalg.vecdot(p[:, :f], q[:, :f])
        if p.shape[1] > f:
            e = e - p[:, f] - q[:, f]
        rule = ops.UpdateRule(self.rule, rate, step=self.steps)
        for name, ids, table, own, other in (
            ("users", users, self.users, p, q),
            ("items", items, self.items, q, p),
        ):
            grad = torch.empty_like(own)
            grad[:, :f] = self.regularization * own[:, :f] - e[:, None] * other[:, :f]
            if own.shape[1] > f:
                grad[:, f] = self.bias_regularization * own[:, f] - e
            ops.embedding_bag_update(table, self.state[name], ids[:, None], grad, rule=rule)
        return float(e.double().square().sum())
