"""The training loop of alternating least squares: half-steps, and between two of them the loss, the
progress bar, callbacks, early stopping, the checkpoint and a look for Ctrl-C."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm

from vecsmith import ops
from vecsmith.models._checkpoint import (
    Checkpoint,
    Interrupts,
    TrainingInterrupted,
    check_settings,
    checksum,
    damaged,
    warn_not_written,
)

logger = logging.getLogger(__name__)

# A checkpoint at the end of an iteration is left out where the one before it is younger than this.
EPOCH_CHECKPOINT_SECONDS = 10.0

Measures = dict[str, float]


class ALSCheckpoint(Checkpoint):
    """The checkpoint of a factorization's training."""

    format = "vecsmith.als.checkpoint"


@dataclass
class Plan:
    """What to train, and when to stop.

    tables: {"users": [U, f], "items": [I, f]}, changed in place by the half-steps.
    half_step: called with "users" or "items": solves for that side.
    measure: after an iteration: {"loss": ..., ...}; None: nothing is measured.
    tolerance: stop where ``loss`` falls by less than this part of itself; 0: never.
    watched: the measure that has to fall, or None; after ``patience`` iterations in which it did
        not training stops, and the tables are again those of its best.
    identity: what a checkpoint must agree in, {part: {name: value}}, JSON types.
    """

    tables: dict[str, Tensor]
    half_step: Callable[[str], None]
    iterations: int
    measure: Callable[[], Measures] | None = None
    tolerance: float = 0.0
    watched: str | None = None
    patience: int = 1
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cursor:
    """How far training has come: half-steps done, and what was measured after each iteration.

    best: the iteration (from 1) in which the watched measure was least; 0: none yet.
    """

    half: int = 0
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
        self.resumed = False
        self._best: dict[str, Tensor] = {}
        if checkpoint is None:
            return
        found = checkpoint.pending()
        if found is None:
            return
        for part, expected in plan.identity.items():
            check_settings(checkpoint.path, found[0].get(part), expected, part)
        cursor = _cursor(checkpoint, found[0].get("cursor"), plan)
        if plan.watched is not None and cursor.best:
            self._remember()
        checkpoint.load(found[1], self._all_tables())
        self.cursor, self.resumed = cursor, True
        logger.info("going on from %s", checkpoint.path)

    def _remember(self) -> None:
        for name, table in self.plan.tables.items():
            if name in self._best:
                self._best[name].copy_(table)
            else:
                self._best[name] = table.clone()

    def _all_tables(self) -> dict[str, Tensor]:
        best = {f"best_{name}": table for name, table in self._best.items()}
        return {**self.plan.tables, **best}

    def run(
        self,
        visible: bool,
        callback: Callable[[int, float, Measures], Any] | None = None,
    ) -> Cursor:
        """Train to the end.

        visible: a progress bar on standard error; callback: called after each iteration with its
        number from 0, its seconds and what was measured.

        Raises: TrainingInterrupted after a checkpoint was written.
        """
        plan, cursor, checkpoint = self.plan, self.cursor, self.checkpoint
        started = last_written = time.monotonic()
        already, warned = cursor.seconds, False

        def write() -> bool:
            nonlocal last_written, warned
            assert checkpoint is not None
            cursor.seconds = already + time.monotonic() - started
            kept, written = checkpoint.owned, True
            try:
                checkpoint.write(self._all_tables(), {**plan.identity, "cursor": vars(cursor)})
            except OSError as error:
                written = False
                if not warned:
                    warn_not_written(checkpoint.path, error, kept)
                warned = True
            last_written = time.monotonic()
            return written

        bar = tqdm(
            total=plan.iterations,
            initial=cursor.half // 2,
            disable=not visible,
            file=sys.stderr,
            desc="training",
            unit=" iterations",
            dynamic_ncols=True,
        )
        with Interrupts(enabled=checkpoint is not None) as interrupts, bar:
            begun = time.monotonic()
            while cursor.half < 2 * plan.iterations and not cursor.stopped:
                plan.half_step("users" if cursor.half % 2 == 0 else "items")
                cursor.half += 1
                whole = cursor.half % 2 == 0
                if whole:
                    measures = self._measured()
                    bar.update(1)
                    if measures:
                        bar.set_postfix({name: f"{value:.5g}" for name, value in measures.items()})
                    if callback is not None:
                        callback(cursor.half // 2 - 1, time.monotonic() - begun, measures)
                    begun = time.monotonic()
                if interrupts.signum is not None:
                    path = checkpoint.path if checkpoint is not None and write() else None
                    raise TrainingInterrupted(interrupts.signum, path)
                if checkpoint is None or cursor.stopped or cursor.half == 2 * plan.iterations:
                    continue
                age = time.monotonic() - last_written
                if age >= checkpoint.every or (
                    whole and age >= min(checkpoint.every, EPOCH_CHECKPOINT_SECONDS)
                ):
                    write()
        if self._best and cursor.best != len(cursor.history):
            for name, table in plan.tables.items():
                table.copy_(self._best[name])
        cursor.seconds = already + time.monotonic() - started
        return cursor

    def _measured(self) -> Measures:
        """After an iteration: what there is to say, and whether it was the last."""
        plan, cursor = self.plan, self.cursor
        if plan.measure is None:
            return {}
        now = plan.measure()
        for name, value in now.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"expected a finite {name}; got {value} after iteration {cursor.half // 2}: "
                    "values are too large, or the regularization too small, for float32"
                )
        before = cursor.history[-1] if cursor.history else None
        cursor.history.append(now)
        if before is not None and plan.tolerance > 0:
            cursor.stopped |= before["loss"] - now["loss"] < plan.tolerance * abs(before["loss"])
        if plan.watched is not None:
            best = cursor.history[cursor.best - 1][plan.watched] if cursor.best else math.inf
            if now[plan.watched] < best:
                cursor.best = len(cursor.history)
                self._remember()
            cursor.stopped |= len(cursor.history) - cursor.best >= plan.patience
        return now


def _cursor(checkpoint: Checkpoint, found: Any, plan: Plan) -> Cursor:
    """The cursor of a checkpoint. Raises CheckpointError if it is none of this training."""
    try:
        cursor = Cursor(**found)
        numbers = [value for measures in cursor.history for value in measures.values()]
        whole = type(cursor.half) is int and type(cursor.best) is int
        right = len(cursor.history) == (cursor.half // 2 if plan.measure is not None else 0)
        in_range = 0 <= cursor.half <= 2 * plan.iterations
        in_range = in_range and 0 <= cursor.best <= len(cursor.history)
        if whole and right and in_range and math.isfinite(sum(numbers) + cursor.seconds):
            return cursor
    except (TypeError, AttributeError, OverflowError):
        pass
    raise damaged(checkpoint.path, f"expected a place in {plan.iterations} iterations; got {found}")


def cells_identity(cells: ops.Cells) -> dict[str, Any]:
    """What makes two matrices the same, by content."""
    return {
        "shape": list(cells.shape),
        "cells": len(cells),
        "checksum": checksum(cells.indptr.long(), cells.indices.long(), cells.values),
    }
