"""The training loop of factorizations: half-steps of alternating least squares, or epochs of
gradient descent, and between two of them what is measured, the progress bar, callbacks, early
stopping, the checkpoint and a look for Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vecsmith import ops
from vecsmith.models._checkpoint import (
    Checkpoint,
    CheckpointError,
    Interrupts,
    Writer,
    check_settings,
    checksum,
    damaged,
    is_finite,
)

logger = logging.getLogger(__name__)

# Whose turn it is in the half-steps of an iteration, and what may go wrong in them.
SIDES = ("users", "items")
TROUBLE = "values are too large, or the regularization too small, for {}"

Measures = dict[str, float]
# Called after an iteration with its number from 0, its seconds and what was measured.
Callback = Callable[[int, float, Measures], Any]


class FactorCheckpoint(Checkpoint):
    """The checkpoint of a factorization's training."""

    format = "vecsmith.als.checkpoint"
    remedy = "a smaller learning_rate"


@dataclass
class Plan:
    """What to train, and when to stop.

    tables: {"users": [U, columns], "items": [I, columns]}, changed in place by the steps.
    more: what else the steps change, and a checkpoint holds: float32 [rows, columns], too.
    step: called with its number, from 0.
    iterations: how many, each of so many ``steps``, and called a ``unit``.
    measure: after an iteration: {objective: ..., ...}; None: nothing is measured.
    tolerance: stop where ``objective`` falls by less than this part of itself; 0: never.
    watched: the measure that has to fall, or None; after ``patience`` iterations in which it did
        not training stops, and the tables are again those of its best.
    trouble: where numbers that are none come from.
    identity: what a checkpoint must agree in, {part: {name: value}}, JSON types.
    """

    tables: dict[str, Tensor]
    step: Callable[[int], Any]
    iterations: int
    more: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 1
    unit: str = "epoch"
    measure: Callable[[], Measures] | None = None
    objective: str = "loss"
    tolerance: float = 0.0
    watched: str | None = None
    patience: int = 1
    trouble: str = "training has diverged, begin again with a smaller learning_rate"
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cursor:
    """How far training has come: steps done, and what was measured after each iteration.

    best: the iteration (from 1) in which the watched measure was least; 0: none yet.
    """

    steps: int = 0
    history: list[Measures] = field(default_factory=list)
    best: int = 0
    stopped: bool = False
    seconds: float = 0.0


class Training:
    """A run. Making it reads the checkpoint, and refuses one of something else; :meth:`run` trains.

    Raises: CheckpointError before anything is changed.
    """

    def __init__(self, plan: Plan, checkpoint: Checkpoint | None) -> None:
        self.plan, self.checkpoint, self.cursor = plan, checkpoint, Cursor()
        self._best: dict[str, Tensor] = {}
        found = None if checkpoint is None else checkpoint.pending()
        if checkpoint is None or found is None:
            return
        state, tables = found
        # A run may go on to more iterations than it was begun with.
        settings = state.get("settings")
        planned = settings.pop("iterations", None) if isinstance(settings, dict) else None
        for part, expected in plan.identity.items():
            check_settings(checkpoint.path, state.get(part), expected, part)
        cursor = _cursor(checkpoint, state.get("cursor"), planned, plan)
        if plan.watched is not None and cursor.best:
            self._remember()
        checkpoint.load(tables, self._all_tables())
        self.cursor = cursor
        logger.info("going on from %s", checkpoint.path)

    def _remember(self) -> None:
        for name, table in self.plan.tables.items():
            if name in self._best:
                self._best[name].copy_(table)
            else:
                self._best[name] = table.clone()

    def _all_tables(self) -> dict[str, Tensor]:
        best = {f"best_{name}": table for name, table in self._best.items()}
        return {**self.plan.tables, **self.plan.more, **best}

    def run(self, visible: bool, callback: Callback | None = None) -> None:
        """Train to the end.

        visible: a progress bar on standard error; callback: ends training where it returns True.

        Raises: TrainingInterrupted after a checkpoint was written; ValueError where training has
        led to numbers that are none.
        """
        plan, cursor, checkpoint = self.plan, self.cursor, self.checkpoint
        settings = plan.identity.get("settings", {}) | {"iterations": plan.iterations}
        state = {**plan.identity, "settings": settings}
        writer = Writer(checkpoint, cursor, self._all_tables, state)
        bar = tqdm(
            total=plan.iterations,
            initial=cursor.steps // plan.steps,
            disable=not visible,
            file=sys.stderr,
            desc="training",
            unit=f" {plan.unit}s",
            dynamic_ncols=True,
        )
        last = plan.steps * plan.iterations
        with Interrupts(enabled=checkpoint is not None) as interrupts, bar:
            begun = time.monotonic()
            while cursor.steps < last and not cursor.stopped:
                plan.step(cursor.steps)
                cursor.steps += 1
                whole = cursor.steps % plan.steps == 0
                if whole:
                    measures = self._measured()
                    bar.update(1)
                    if measures:
                        bar.set_postfix({name: f"{value:.5g}" for name, value in measures.items()})
                    given = cursor.steps // plan.steps - 1, time.monotonic() - begun, measures
                    cursor.stopped |= callback is not None and callback(*given) is True
                    begun = time.monotonic()
                if interrupts.signum is not None:
                    writer.stop(interrupts.signum)
                if not cursor.stopped and cursor.steps < last:
                    writer.write_if_due(epoch_ended=whole)
        if self._best and cursor.best != len(cursor.history):
            for name, table in plan.tables.items():
                table.copy_(self._best[name])
        for name, table in plan.tables.items():
            if not is_finite(table):
                raise ValueError(
                    f"expected finite factors; got nan or inf in those of the {name}: "
                    f"{plan.trouble}"
                )

    def _measured(self) -> Measures:
        """After an iteration: what there is to say, and whether it was the last."""
        plan, cursor = self.plan, self.cursor
        if plan.measure is None:
            return {}
        now = plan.measure()
        for name, value in now.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"expected a finite {name}; got {value} after {plan.unit} "
                    f"{cursor.steps // plan.steps}: {plan.trouble}"
                )
        before = cursor.history[-1] if cursor.history else None
        cursor.history.append(now)
        if before is not None and plan.tolerance > 0:
            was = before[plan.objective]
            cursor.stopped |= was - now[plan.objective] < plan.tolerance * abs(was)
        if plan.watched is not None:
            best = cursor.history[cursor.best - 1][plan.watched] if cursor.best else math.inf
            if now[plan.watched] < best:
                cursor.best = len(cursor.history)
                self._remember()
            cursor.stopped |= len(cursor.history) - cursor.best >= plan.patience
        return now


def _cursor(checkpoint: Checkpoint, found: Any, planned: Any, plan: Plan) -> Cursor:
    """The cursor of a checkpoint that was to go to ``planned`` iterations.

    Raises: CheckpointError if it is none of this training, or has come further than this run is to
        go.
    """
    try:
        cursor = Cursor(**found)
        numbers = [value for measures in cursor.history for value in measures.values()]
        whole = all(type(number) is int for number in (cursor.steps, cursor.best, planned))
        done = cursor.steps // plan.steps
        right = whole and len(cursor.history) == (done if plan.measure is not None else 0)
        right = right and 0 <= cursor.steps <= plan.steps * planned
        right = right and 0 <= cursor.best <= len(cursor.history)
        right = right and math.isfinite(sum(numbers) + cursor.seconds)
    except (TypeError, AttributeError, OverflowError):
        right = False
    if not right:
        reason = f"expected a place in {planned} {plan.unit}s; got {found}"
        raise damaged(checkpoint.path, reason)
    done = -(-cursor.steps // plan.steps)
    if done > plan.iterations:
        raise CheckpointError(
            f"expected at least {done} {plan.unit}s, so many as the checkpoint {checkpoint.path} "
            f"has behind it; got {plan.iterations}. Give more, or another folder, or resume=False "
            "(--no-resume) to start anew"
        )
    return cursor


@contextlib.contextmanager
def session(num_threads: int, checkpoint: Checkpoint | None) -> Iterator[None]:
    """What training runs in: without gradients, on so many threads (0: as many as torch has), and
    with the checkpoint's folder locked.

    Raises: FolderInUseError.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_torch_threads(num_threads))
        if checkpoint is not None:
            stack.enter_context(checkpoint.hold())
        yield


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cells_identity(cells: ops.Cells) -> dict[str, Any]:
    """What makes two matrices the same, by content."""
    return {
        "shape": list(cells.shape),
        "cells": len(cells),
        "checksum": checksum(cells.indptr.long(), cells.indices.long(), cells.values),
    }


def seed_to_go_on_with(checkpoint: Checkpoint | None, drawn: int) -> int:
    """For a run that was given no seed: that of the one whose checkpoint there is, or ``drawn``."""
    found = None if checkpoint is None else checkpoint.pending()
    settings = None if found is None else found[0].get("settings")
    seed = settings.get("seed") if isinstance(settings, dict) else None
    return seed if type(seed) is int and 0 <= seed < 1 << 63 else drawn
