"""The encoders of a SentenceAutoencoder by name: their options, and how the modules are made.

An encoder is a module ``forward(ids [B, L], lengths [B]) -> [B, D]`` with
``encode_embeddings(embeddings [B, L, E], lengths)`` for soft tokens; a decoder has
``decode(vectors, max_length, method, temperature, generator) -> ids [B, L]``. Rows of ids end in
eos, which ``lengths`` count. One module may be both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vecsmith.models import _options as check
from vecsmith.nn.ngram import NGramLanguageModel
from vecsmith.nn.rotation_binding import RotationBinding

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
    """

    tokens: SentenceTokens
    size: int
    embeddings: Tensor | None
    max_length: int
    seed: int


@dataclass(frozen=True)
class Kind:
    """One name of an encoder.

    Attributes:
        defaults: its options; others are refused.
        build: (parts, options) -> (encoder, decoder), untrained.
        fit: (model, rows of tokens without eos, options of ``SentenceAutoencoder.fit``) -> None; the
            model's ``encoder`` and ``decoder`` are there.
        shares: the encoder and the decoder are one module (saved once).
    """

    defaults: dict[str, Any]
    build: Callable[[Parts, dict[str, Any]], Pair]
    fit: Callable[..., None]
    shares: bool = False


def _build_rotation(parts: Parts, options: dict[str, Any]) -> Pair:
    options = dict(options)
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


def _fit_rotation(model: Any, rows: list[list[int]]) -> None:
    if model.encoder.language_model is not None:
        model.encoder.language_model.fit([*row, model.tokens.eos] for row in rows)


KINDS: dict[str, Kind] = {
    "rotation": Kind(
        {"gamma": None, "snr": 100.0, "noise": 0.01, "beam": 32, "language_model": 4},
        _build_rotation,
        _fit_rotation,
        shares=True,
    ),
}


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
