"""The training loop of the recurrent sentence autoencoder: batches of sentences of about one
length, Adam, held-out sentences that say when to stop, and checkpoints that a killed run goes on
from."""

from __future__ import annotations

import itertools
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vecsmith.models import _options as check
from vecsmith.models import _sentence_losses as losses
from vecsmith.models._checkpoint import (
    Checkpoint,
    Interrupts,
    Writer,
    check_settings,
    checksum,
    damaged,
)
from vecsmith.nn.sentence_decoders import RecurrentDecoder
from vecsmith.nn.sentence_encoders import RecurrentEncoder

logger = logging.getLogger(__name__)

LOSSES = ("match", "cross_entropy")
# So many held-out sentences say enough, and cost seconds.
MOST_HELD_OUT = 1000
# Of parameters that begin at 0.
_LEAST_SIZE = 0.001
# The linear map of distillation, which begins at random, has everything to learn.
_LINEAR = "distillation"
_FRESH = 100.0
_GOLDEN = 0x9E3779B97F4A7C15


class SentenceCheckpoint(Checkpoint):
    """The checkpoint of a sentence model's training."""

    format = "vecsmith.sentence.checkpoint"


@dataclass(frozen=True)
class Training:
    """What training does, besides the model and the sentences.

    epochs: passes over the sentences at most.
    batch_size: sentences of a step.
    alpha, min_alpha: Adam's rate at the first and the last step, in parts of a parameter's size;
        linear between.
    warmup: the part of all steps over which the rate first rises from 0.
    loss: "match" or "cross_entropy".
    consistency: the weight of the consistency loss; 0: none.
    gumbel_temperature: of its soft tokens.
    distillation: the weight of the distillation loss; 0: none.
    noise: Gaussian noise on the vector, of this part of its norm, in training and on the held-out
        sentences.
    held_out: the part of the sentences that is kept apart, at most 1,000 of them; 0: none, and
        training neither stops early nor goes back to its best.
    patience: epochs without a better result on these after which training stops. It also stops
        where all of these came back, unless there is another loss to lower.
    clip: the gradient's norm is clipped to this.
    seed: of the order, the draws and the split.
    """

    epochs: int = 10
    batch_size: int = 32
    alpha: float = 1e-4
    min_alpha: float = 1e-6
    warmup: float = 0.2
    loss: str = "match"
    consistency: float = 0.0
    gumbel_temperature: float = 1.0
    distillation: float = 0.0
    noise: float = 0.01
    held_out: float = 0.02
    patience: int = 3
    clip: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for an option out of range."""
        check.integer("epochs", self.epochs, 0)
        check.integer("batch_size", self.batch_size, 1)
        check.rate("alpha", self.alpha)
        check.rate("min_alpha", self.min_alpha, zero=True)
        if check.finite("warmup", self.warmup, low=0.0) > 1:
            raise ValueError(f"expected warmup in [0, 1]; got {self.warmup}")
        if self.loss not in LOSSES:
            raise ValueError(f"expected loss among {', '.join(LOSSES)}; got {self.loss!r}")
        check.finite("consistency", self.consistency, low=0.0)
        check.rate("gumbel_temperature", self.gumbel_temperature)
        check.finite("distillation", self.distillation, low=0.0)
        check.finite("noise", self.noise, low=0.0)
        if check.finite("held_out", self.held_out, low=0.0) >= 1:
            raise ValueError(f"expected held_out in [0, 1); got {self.held_out}")
        check.integer("patience", self.patience, 1)
        check.rate("clip", self.clip)
        check.integer("seed", self.seed, 0, (1 << 63) - 1)


@dataclass
class Cursor:
    """How far training has come: the next batch, and what happened so far."""

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    best: list[float] | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def add_noise(vectors: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    """vectors [B, D], each with Gaussian noise of ``noise`` times its norm (in expectation)."""
    if not noise:
        return vectors
    drawn = torch.randn(vectors.shape, generator=generator, dtype=vectors.dtype).to(vectors.device)
    size = vectors.detach().norm(dim=1, keepdim=True) / math.sqrt(max(1, vectors.shape[1]))
    return vectors + noise * size * drawn


def padded(sentences: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """(ids [B, T] int64, lengths [B]) of sentences of uneven lengths, each at least 1."""
    lengths = torch.tensor([len(sentence) for sentence in sentences], dtype=torch.int64)
    ids = torch.full((len(sentences), int(lengths.max())), padding, dtype=torch.int64)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = torch.tensor(sentence, dtype=torch.int64)
    return ids, lengths


def batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Which sentences are in each batch of an epoch: sentences of about one length, drawn anew, in
    an order that is drawn too."""
    generator = torch.Generator().manual_seed(_key(seed, epoch, -1))
    order = torch.randperm(len(lengths), generator=generator)
    by_length = order[torch.argsort(torch.tensor(lengths)[order], stable=True)].tolist()
    cut = [by_length[first : first + size] for first in range(0, len(by_length), size)]
    return [cut[n] for n in torch.randperm(len(cut), generator=generator).tolist()]


def free_running(
    encoder: torch.nn.Module,
    decoder: RecurrentDecoder,
    sentences: Sequence[Sequence[int]],
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> tuple[float, float]:
    """(exact match, token accuracy) of sentences, each ending in eos, encoded and decoded again:
    the part that comes back whole, and the part of the tokens, eos too, that stand where they
    stood."""
    whole = right = tokens = 0
    device = next(decoder.parameters()).device
    with torch.no_grad():
        for first in range(0, len(sentences), batch_size):
            ids, lengths = padded(sentences[first : first + batch_size], decoder.eos)
            vectors = add_noise(encoder(ids.to(device), lengths), noise, generator)
            found = decoder.decode(vectors, ids.shape[1]).cpu()
            short = ids.shape[1] - found.shape[1]
            equal = torch.nn.functional.pad(found, (0, short), value=decoder.eos) == ids
            real = torch.arange(ids.shape[1]) < lengths[:, None]
            whole += int((equal | ~real).all(1).sum())
            right += int((equal & real).sum())
            tokens += int(lengths.sum())
    return whole / max(1, len(sentences)), right / max(1, tokens)


def train(
    encoder: RecurrentEncoder,
    decoder: RecurrentDecoder,
    sentences: Sequence[Sequence[int]],
    plan: Training,
    *,
    checkpoint: Checkpoint | None = None,
    teachers: Tensor | None = None,
    progress: bool | None = None,
    after_epoch: Callable[[dict[str, float]], None] | None = None,
    after_step: Callable[[Cursor], None] | None = None,
) -> list[dict[str, float]]:
    """Train both in place; with held-out sentences they end as they were at their best, before the
    first epoch included: training makes nothing worse. The best has most exact matches, and then
    most tokens; with distillation, the most exact matches less the weighted distillation loss.
    Where all came back, and the match loss or cross-entropy is all there is, training is over.

    encoder: [B, T], [B] -> [B, D]; ``encode_embeddings`` where there is a consistency loss.
    sentences: token ids, each ending in eos.
    checkpoint: goes on from what it finds there, to the bits of an unbroken run where torch
        computes the same bits twice (torch.use_deterministic_algorithms, as many threads).
    teachers: [S, D'] float32, the vectors of another encoder for each sentence, with a distillation
        loss; the linear map into their space is trained here and given up.
    progress: a progress bar on standard error; None: where that is a terminal.
    after_epoch, after_step: called with what happened.

    Returns: for the start (epoch 0) and each epoch {"epoch", "loss" (but for the start), and of the
        held-out sentences "exact_match", "token_accuracy" and, with it, "distillation", the loss}.

    Raises: ValueError, TypeError for what does not fit, or a loss that is not finite;
        CheckpointError before anything is changed; TrainingInterrupted after a checkpoint was
        written.
    """
    sentences = _checked(sentences, decoder)
    if (teachers is None) != (not plan.distillation):
        raise ValueError("expected teachers where distillation > 0, and there alone")
    modules = torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    if teachers is not None:
        if teachers.dim() != 2 or teachers.shape[0] != len(sentences):
            got = list(teachers.shape)
            raise ValueError(f"expected teachers [{len(sentences)}, D']; got {got}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            linear = torch.nn.Linear(encoder.vector_size, teachers.shape[1])
        modules[_LINEAR] = linear.to(next(decoder.parameters()).device)
    learner = _Learner(modules, plan)
    held, kept = _split(len(sentences), plan)
    watched = [sentences[n] for n in held]
    lengths = [len(sentences[n]) for n in kept]
    steps = -(-len(kept) // plan.batch_size)

    def watch(cursor: Cursor, loss: dict[str, float]) -> None:
        """What the held-out sentences say; remembers the best."""
        entry = {"epoch": float(cursor.epoch), **loss}
        if watched:
            generator = torch.Generator().manual_seed(_key(plan.seed, 0, -2))
            exact, tokens = free_running(encoder, decoder, watched, plan.noise, generator)
            entry |= {"exact_match": exact, "token_accuracy": tokens}
            score = [exact, tokens]
            if teachers is not None:
                entry["distillation"] = learner.distance(watched, teachers[held])
                score[0] -= plan.distillation * entry["distillation"]
            if cursor.best is None or score > cursor.best:
                cursor.best, cursor.best_epoch = score, cursor.epoch
                learner.remember()
        cursor.history.append(entry)
        if after_epoch is not None:
            after_epoch(entry)

    cursor, resumed = Cursor(), False
    state: dict[str, Any] = {}
    if checkpoint is not None:
        state = {
            "text": _identity(sentences),
            "settings": {**asdict(plan), "start": learner.start()},
        }
        found = checkpoint.pending()
        if found is not None:
            for part in ("text", "settings"):
                check_settings(checkpoint.path, found[0].get(part), state[part], part)
            cursor = _cursor(checkpoint, found[0].get("cursor"), plan.epochs, steps)
            checkpoint.load(found[1], learner.tables())
            resumed = True
            logger.info("going on from %s", checkpoint.path)
    writer = Writer(checkpoint, cursor, learner.tables, state)
    bar = _Bar(sum(lengths), plan.epochs, progress)
    with Interrupts(enabled=checkpoint is not None) as interrupts, bar:
        if not resumed:
            watch(cursor, {})
        while cursor.epoch < plan.epochs and not _done(cursor, plan):
            order = batches(lengths, plan.batch_size, plan.seed, cursor.epoch)
            before = sum(lengths[n] for batch in order[: cursor.batch] for n in batch)
            bar.begin(cursor, before)
            for index in range(cursor.batch, steps):
                chosen = [kept[n] for n in order[index]]
                generator = torch.Generator().manual_seed(_key(plan.seed, cursor.epoch, index))
                ids, counts = padded([sentences[n] for n in chosen], decoder.eos)
                rate = _rate(plan, cursor.epoch * steps + index, plan.epochs * steps)
                wanted = None if teachers is None else teachers[chosen]
                loss = learner.step(ids, counts, rate, generator, wanted)
                if not math.isfinite(loss):
                    raise ValueError(
                        "expected a finite loss; got nan or inf: training has diverged. Start "
                        f"again with a smaller alpha (now {plan.alpha:g})"
                    )
                cursor.loss += loss
                cursor.batch = index + 1
                bar.update(int(counts.sum()), loss, rate)
                if after_step is not None:
                    after_step(cursor)
                if interrupts.signum is not None:
                    writer.stop(interrupts.signum)
                writer.write_if_due()
            mean, cursor.loss = cursor.loss / max(1, steps), 0.0
            cursor.epoch, cursor.batch = cursor.epoch + 1, 0
            watch(cursor, {"loss": mean})
            bar.result(cursor.history[-1])
            if cursor.epoch < plan.epochs and not _done(cursor, plan):
                writer.write_if_due(epoch_ended=True)
    if watched:  # else nothing was found best
        learner.recall()
    return cursor.history


class _Learner:
    """The parameters that are trained, Adam's state, and the best parameters so far."""

    def __init__(self, modules: torch.nn.ModuleDict, plan: Training) -> None:
        self.modules, self.plan = modules, plan
        found = [(n, p) for n, p in modules.named_parameters() if p.requires_grad]
        self.parameters: dict[str, torch.nn.Parameter] = dict(found)
        self.best = {name: p.detach().clone() for name, p in found}
        # Adam's steps are of one size in all entries, but the parameters are not: projections of
        # 0.001 beside rotations of 0.1. So each learns in proportion to what it was at first.
        groups = [
            {
                "params": [p],
                "size": max(_size(p), _LEAST_SIZE) * (_FRESH if n.startswith(_LINEAR) else 1.0),
            }
            for n, p in found
        ]
        self.optimizer = torch.optim.Adam(groups, lr=plan.alpha, fused=True)
        for _, parameter in found:
            # As Adam itself begins, but at once, so that a checkpoint has where to go.
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def start(self) -> str:
        """A checksum of what training begins with, what is not trained included."""
        every = itertools.chain(self.modules.parameters(), self.modules.buffers())
        return checksum(*(tensor.detach().reshape(-1) for tensor in every))

    def tables(self) -> dict[str, Tensor]:
        """All of it as tables [rows, columns], views, for a checkpoint."""
        parts = {
            "parameter": {n: p.detach() for n, p in self.parameters.items()},
            "best": self.best,
        }
        for part in ("step", "exp_avg", "exp_avg_sq"):
            state = self.optimizer.state
            parts[part] = {name: state[p][part] for name, p in self.parameters.items()}
        return {
            f"{part}.{name}": tensor.view(1, -1) if tensor.dim() < 2 else tensor
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }

    @torch.no_grad()
    def distance(self, sentences: list[list[int]], teachers: Tensor) -> float:
        """The distillation loss of sentences."""
        encoder: Any = self.modules["encoder"]
        device = encoder.embedding.weight.device
        ids, lengths = padded(sentences, 0)
        vectors = encoder(ids.to(device), lengths)
        unit, linear = vectors / encoder.typical_norm, self.modules[_LINEAR]
        return float(losses.distillation_loss(unit, teachers.to(device), linear))

    def remember(self) -> None:
        for name, parameter in self.parameters.items():
            self.best[name].copy_(parameter.detach())

    @torch.no_grad()
    def recall(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.best[name])

    def step(
        self,
        ids: Tensor,
        lengths: Tensor,
        rate: float,
        generator: torch.Generator,
        teachers: Tensor | None,
    ) -> float:
        """One batch; the loss before it. Where nothing is wrong nothing is moved."""
        plan, modules = self.plan, self.modules
        encoder: Any = modules["encoder"]
        decoder: Any = modules["decoder"]
        table = decoder.embedding.weight
        ids = ids.to(table.device)
        vectors = encoder(ids, lengths)
        received = add_noise(vectors, plan.noise, generator)
        outputs = decoder(received, ids.shape[1], ids)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(table.device)
        logits = None
        if plan.loss == "cross_entropy" or plan.consistency:
            logits = decoder.logits(outputs)
        if plan.loss == "match":
            loss = losses.match_loss(outputs, table.detach(), ids, mask)
        else:
            assert logits is not None
            loss = losses.cross_entropy(logits, ids, mask)
        if plan.consistency:
            assert logits is not None
            loss = loss + plan.consistency * losses.consistency_loss(
                vectors.detach(),
                logits,
                table,
                lambda soft: encoder.encode_embeddings(soft, lengths),
                plan.gumbel_temperature,
                generator=generator,
            )
        if teachers is not None:
            loss = loss + plan.distillation * losses.distillation_loss(
                vectors / encoder.typical_norm, teachers.to(table.device), modules[_LINEAR]
            )
        value = float(loss.detach())
        if not math.isfinite(value) or value == 0:
            return value
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), plan.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["size"]
        self.optimizer.step()
        return value


class _Bar:
    """Tokens, tokens/s, time left, loss, rate, and what the held-out sentences said last."""

    def __init__(self, tokens: int, epochs: int, progress: bool | None) -> None:
        self._visible = sys.stderr.isatty() if progress is None else progress
        self._tokens, self._epochs, self._bar = tokens, epochs, None
        self._result = ""

    def begin(self, cursor: Cursor, before: int) -> None:
        """An epoch begins, or goes on behind so many tokens."""
        if not self._visible:
            return
        if self._bar is None:
            self._bar: Any = tqdm(
                total=self._tokens * self._epochs,
                initial=self._tokens * cursor.epoch + before,
                unit=" tokens",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0.1,
            )
            if cursor.history:
                self.result(cursor.history[-1])
        title = f"training, epoch {cursor.epoch + 1}/{self._epochs}"
        self._bar.set_description(title, refresh=False)

    def update(self, tokens: int, loss: float, rate: float) -> None:
        if self._bar is not None:
            said = f"{self._result}loss={loss:.4f}, alpha={rate:.5f}"
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.update(tokens)

    def result(self, entry: dict[str, float]) -> None:
        if "exact_match" in entry:
            self._result = f"exact={entry['exact_match']:.1%}, "

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _key(seed: int, epoch: int, index: int) -> int:
    """A seed for each batch: a resumed run needs no generator's state."""
    mixed = (
        seed * _GOLDEN + (epoch + 1) * 0xBF58476D1CE4E5B9 + (index + 3) * 0x94D049BB133111EB
    ) & ((1 << 64) - 1)
    return (mixed ^ (mixed >> 29)) & ((1 << 63) - 1)


def _size(parameter: Tensor) -> float:
    """The root of the mean of the squares of its entries."""
    return float(parameter.detach().square().mean().sqrt()) if parameter.numel() else 0.0


def _split(count: int, plan: Training) -> tuple[list[int], list[int]]:
    """(held out, trained on): sentence numbers."""
    held = (
        min(MOST_HELD_OUT, count - 1, max(1, round(count * plan.held_out))) if plan.held_out else 0
    )
    generator = torch.Generator().manual_seed(_key(plan.seed, -1, -1))
    order = torch.randperm(count, generator=generator).tolist()
    return sorted(order[:held]), sorted(order[held:])


def _rate(plan: Training, step: int, steps: int) -> float:
    """Adam's rate at a step. Its first steps have no idea of the gradients' sizes, and at full
    length they would undo the rotation."""
    rate = plan.alpha + (plan.min_alpha - plan.alpha) * step / max(1, steps)
    return rate * min(1.0, (step + 1) / max(1.0, plan.warmup * steps))


def _done(cursor: Cursor, plan: Training) -> bool:
    """Whether early stopping says so: no better for a while, or nothing left to make better."""
    if cursor.best is None:
        return False
    if cursor.best == [1.0, 1.0] and not plan.consistency and not plan.distillation:
        return True
    return cursor.epoch - cursor.best_epoch >= plan.patience


def _checked(sentences: Sequence[Sequence[int]], decoder: RecurrentDecoder) -> list[list[int]]:
    checked = [list(sentence) for sentence in sentences]
    if not checked:
        raise ValueError("expected sentences to train on; got none")
    rows = decoder._table().shape[0]
    for number, sentence in enumerate(checked):
        if not sentence or sentence[-1] != decoder.eos:
            raise ValueError(
                f"expected every sentence to end in eos ({decoder.eos}); got sentence {number} "
                f"with {sentence[-3:]}"
            )
        if min(sentence) < 0 or max(sentence) >= rows:
            raise IndexError(
                f"expected tokens in 0..{rows - 1}; got {max(sentence)} or {min(sentence)} in "
                f"sentence {number}"
            )
    return checked


def _identity(sentences: list[list[int]]) -> dict[str, Any]:
    """What makes two texts the same."""
    tokens = torch.tensor(list(itertools.chain.from_iterable(sentences)), dtype=torch.int64)
    lengths = torch.tensor([len(sentence) for sentence in sentences], dtype=torch.int64)
    return {"sentences": len(sentences), "checksum": checksum(tokens, lengths)}


def _cursor(checkpoint: Checkpoint, found: Any, epochs: int, steps: int) -> Cursor:
    """The cursor of a checkpoint. Raises CheckpointError if it is none of this training."""
    try:
        cursor = Cursor(**found)
        whole = type(cursor.epoch) is int and type(cursor.batch) is int
        fits = whole and 0 <= cursor.epoch <= epochs and 0 <= cursor.batch <= steps
        if fits and math.isfinite(cursor.loss + cursor.seconds) and type(cursor.best_epoch) is int:
            return cursor
    except (TypeError, OverflowError):
        pass
    raise damaged(
        checkpoint.path, f"expected a place in {epochs} epochs of {steps} batches; got {found}"
    )
