"""The encoders of a SentenceAutoencoder by name: their options, and how the modules are made.

An encoder is a module ``forward(ids [B, L], lengths [B]) -> [B, D]`` with
``encode_embeddings(embeddings [B, L, E], lengths)`` for soft tokens; a decoder has
``decode(vectors, max_length, method, temperature, generator) -> ids [B, L]``. Rows of ids end in
eos, which ``lengths`` count. One module may be both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vecsmith.models import _options as check
from vecsmith.models import _sentence_training as training
from vecsmith.models._sentence_losses import teacher_vectors
from vecsmith.nn import _rotation_start as start
from vecsmith.nn import sentence_encoders
from vecsmith.nn.ngram import NGramLanguageModel
from vecsmith.nn.rotation_binding import RotationBinding
from vecsmith.nn.sentence_decoders import CELLS as DECODER_CELLS
from vecsmith.nn.sentence_decoders import RecurrentDecoder

if TYPE_CHECKING:
    from vecsmith.models._sentence_tokens import SentenceTokens

Pair = tuple[nn.Module, nn.Module]


@dataclass(frozen=True)
class Parts:
    """What every encoder is made from.

    Attributes:
        tokens: the tokenizer, trained.
        size: D, of the vectors that the encoder gives.
        embeddings: token vectors [V, E], or None: the encoder's own.
        max_length: T at most.
        seed: of everything that is drawn.
        noise_gain: how much larger noise is beside the encoder's vector than beside the whole one,
            of which it may be a small part.
    """

    tokens: SentenceTokens
    size: int
    embeddings: Tensor | None
    max_length: int
    seed: int
    noise_gain: float = 1.0


@dataclass(frozen=True)
class Kind:
    """One name of an encoder.

    Attributes:
        defaults: its options; others are refused.
        check: (size of the vectors, max_length, options) -> None. Raises ValueError or TypeError
            for what ``build`` would refuse.
        build: (parts, options) -> (encoder, decoder), untrained.
        plan: (seed, options of ``SentenceAutoencoder.fit``) -> the last argument of ``fit``. Raises
            ValueError or TypeError for options that do not fit; nothing is read or written.
        fit: (model, sentences, rows of their tokens without eos, plan) -> None; the model's
            ``encoder`` and ``decoder`` are there.
        shares: the encoder and the decoder are one module (saved once).
    """

    defaults: dict[str, Any]
    check: Callable[[int, int, dict[str, Any]], None]
    build: Callable[[Parts, dict[str, Any]], Pair]
    plan: Callable[[int, dict[str, Any]], Any]
    fit: Callable[[Any, list[str], list[list[int]], Any], None]
    shares: bool = False


def _check_rotation(size: int, max_length: int, options: dict[str, Any]) -> None:
    options = dict(options)
    check.integer("language_model", options.pop("language_model"), 0)
    # Of the smallest vocabulary.
    RotationBinding(4, size, max_length, **options)


def _build_rotation(parts: Parts, options: dict[str, Any]) -> Pair:
    options = dict(options)
    options["noise"] = check.finite("noise", options["noise"]) * parts.noise_gain
    order = check.integer("language_model", options.pop("language_model"), 0)
    v, tokens = len(parts.tokens), parts.tokens
    module = RotationBinding(
        v,
        parts.size,
        parts.max_length,
        embeddings=parts.embeddings,
        language_model=NGramLanguageModel(v, order, bos=tokens.bos) if order else None,
        pad=tokens.pad,
        bos=tokens.bos,
        eos=tokens.eos,
        seed=parts.seed,
        **options,
    )
    return module, module


def _plan_rotation(seed: int, options: dict[str, Any]) -> None:
    if options:
        raise TypeError(f"expected no options of training with 'rotation'; got {sorted(options)}")


def _fit_rotation(model: Any, texts: list[str], rows: list[list[int]], plan: None) -> None:
    if model.encoder.language_model is not None:
        model.encoder.language_model.fit([*row, model.tokens.eos] for row in rows)


def _check_recurrent(cell: str) -> Callable[[int, int, dict[str, Any]], None]:
    def check_options(size: int, max_length: int, options: dict[str, Any]) -> None:
        name = "SentenceAutoencoder"
        if cell == "bilstm" and size % 2:
            raise ValueError(f"{name}: expected an even size of vectors for 'bilstm'; got {size}")
        half = size // 2 if cell == "bilstm" else size
        start.check_decay(name, options["decay"], half)
        start.check_one_of(name, "start", options["start"], ("rotation", "random"))
        if options["decoder"] is not None:
            start.check_one_of(name, "decoder", options["decoder"], DECODER_CELLS)
        if options["hidden_size"] is not None:
            check.integer("hidden_size", options["hidden_size"], half)
        if options["embedding_size"] is not None:
            check.integer("embedding_size", options["embedding_size"], 1)

    return check_options


def _build_recurrent(cell: str) -> Callable[[Parts, dict[str, Any]], Pair]:
    def build(parts: Parts, options: dict[str, Any]) -> Pair:
        options, tokens = dict(options), parts.tokens
        width = options.pop("embedding_size")
        table = parts.embeddings
        if table is None:
            width = parts.size if width is None else check.integer("embedding_size", width, 1)
            generator = torch.Generator().manual_seed(parts.seed)
            table = torch.randn(len(tokens), width, generator=generator)
        elif width not in (None, table.shape[1]):
            got = f"{width} and token_embeddings of {table.shape[1]}"
            raise ValueError(f"expected no embedding_size beside token_embeddings; got {got}")
        embedding = nn.Embedding.from_pretrained(nn.functional.normalize(table.float(), dim=1))
        embedding.weight.requires_grad_(bool(options.pop("train_embeddings")))
        both = {"decay": options.pop("decay"), "start": options.pop("start"), "seed": parts.seed}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(parts.seed)
            encoder = sentence_encoders.RecurrentEncoder(embedding, parts.size, cell, **both)
            own = options.pop("decoder")
            decoder = RecurrentDecoder(
                embedding,
                parts.size,
                cell.removeprefix("bi") if own is None else own,
                eos=tokens.eos,
                excluded=(tokens.pad, tokens.bos),
                rotation_size=encoder.rotation_size,
                **{**both, "decay": encoder.decay},
                **options,
            )
        return encoder, decoder

    return build


@dataclass(frozen=True)
class _Plan:
    """What the training of a recurrent model was told."""

    training: training.Training
    keep: training.SentenceCheckpoint | None
    teacher: Callable[[list[str]], Any] | None
    after_epoch: Callable[[dict[str, float]], None] | None


def _plan_recurrent(seed: int, options: dict[str, Any]) -> _Plan:
    options = dict(options)
    keep, teacher = options.pop("checkpoint", None), options.pop("teacher", None)
    every, resume = options.pop("checkpoint_every", 60.0), options.pop("resume", True)
    after_epoch = options.pop("after_epoch", None)
    known = {field.name for field in fields(training.Training)} - {"seed"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"expected options of training among {sorted(known)}; got {unknown}")
    plan = training.Training(**options, seed=seed)
    for name, value in (("teacher", teacher), ("after_epoch", after_epoch)):
        if value is not None and not callable(value):
            raise TypeError(f"expected {name} to be callable; got {value!r}")
    if (teacher is None) != (not plan.distillation):
        raise ValueError("expected a teacher where distillation > 0, and there alone")
    if keep is not None and not isinstance(keep, training.SentenceCheckpoint):
        every = check.finite("checkpoint_every", every, low=0.0)
        keep = training.SentenceCheckpoint(keep, every, bool(resume))
    return _Plan(plan, keep, teacher, after_epoch)


def _fit_recurrent(model: Any, texts: list[str], rows: list[list[int]], plan: _Plan) -> None:
    with contextlib.nullcontext() if plan.keep is None else plan.keep.hold():
        teachers = None if plan.teacher is None else teacher_vectors(plan.teacher, texts)
        model.history = training.train(
            model.encoder.train(),
            model.decoder.train(),
            [[*row, model.tokens.eos] for row in rows],
            plan.training,
            checkpoint=plan.keep,
            teachers=teachers,
            progress=model.progress,
            after_epoch=plan.after_epoch,
        )
    model.encoder.eval()
    model.decoder.eval()
    with torch.no_grad():
        ids, lengths = model.tokens.batch(rows[: training.MOST_HELD_OUT])
        norms = model.encoder(ids.to(model.device), lengths).norm(dim=1)
        model.encoder.typical_norm.copy_(norms.mean())


_RECURRENT = {
    "decay": None,
    "embedding_size": None,
    "train_embeddings": False,
    "decoder": None,
    "hidden_size": None,
    "feedback": True,
    "start": "rotation",
}

KINDS: dict[str, Kind] = {
    **{
        cell: Kind(
            _RECURRENT,
            _check_recurrent(cell),
            _build_recurrent(cell),
            _plan_recurrent,
            _fit_recurrent,
        )
        for cell in sentence_encoders.CELLS
    },
    "rotation": Kind(
        {"gamma": None, "snr": 100.0, "noise": 0.01, "beam": 32, "language_model": 4},
        _check_rotation,
        _build_rotation,
        _plan_rotation,
        _fit_rotation,
        shares=True,
    ),
}


def lengths_matter(encoder: Any) -> bool:
    """Whether the decoder goes by the length of a vector: a recurrent one takes away from it what
    it has written. That of a closed form finds the length by itself."""
    return hasattr(encoder, "typical_norm")


def unit(encoder: Any, vectors: Tensor) -> Tensor:
    """vectors [B, D] of an encoder, of length 1; of about 1 where lengths matter."""
    if lengths_matter(encoder):
        return vectors / encoder.typical_norm
    return nn.functional.normalize(vectors, dim=1)


def from_unit(encoder: Any, vectors: Tensor) -> Tensor:
    """The way back, where it matters."""
    return vectors * encoder.typical_norm if lengths_matter(encoder) else vectors


def kind(name: Any) -> Kind:
    """The encoder of that name. Raises ValueError."""
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"expected encoder to be one of {sorted(KINDS)}; got {name!r}")
    return KINDS[name]


def options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of an encoder, with defaults for those not given. Raises TypeError for others."""
    defaults = kind(name).defaults
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise TypeError(
            f"expected options of encoder={name!r} among {sorted(defaults)}; got {unknown}"
        )
    return {**defaults, **given}
