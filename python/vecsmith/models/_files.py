"""The folder that a Word2Vec is saved to: config.json, vocab.txt, model.safetensors."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vecsmith.data import Vocabulary
from vecsmith.io import atomic_folder, load_safetensors, read_folder, save_safetensors
from vecsmith.io._checks import refuse_nonfinite
from vecsmith.models._checkpoint import FolderInUseError

if TYPE_CHECKING:
    from vecsmith.models.word2vec import Word2Vec

FORMAT, VERSION = "vecsmith.Word2Vec", 1

_SAVED_PARAMETERS = (
    *("vector_size", "alpha", "window", "min_count", "max_vocab_size", "sample", "seed"),
    *("min_alpha", "sg", "hs", "negative", "ns_exponent", "cbow_mean", "epochs", "compute_loss"),
    *("comment", "max_final_vocab", "shrink_windows", "shared_negatives"),
)
_SAVED_STATE = (
    *("train_count", "total_train_time", "corpus_count", "corpus_total_words"),
    *("running_training_loss", "min_alpha_yet_reached", "effective_min_count"),
)
_MACHINE_OPTIONS = {
    *("workers", "device", "checkpoint", "checkpoint_every", "resume", "cache_dir"),
    *("progress", "backend"),
}


def save(model: Word2Vec, folder: str | os.PathLike[str]) -> None:
    """:meth:`Word2Vec.save`."""
    _refuse_diverged(model)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "words": len(model.vocabulary),
        "vector_size": model.vector_size,
        "parameters": {name: getattr(model, name) for name in _SAVED_PARAMETERS},
        "state": {
            **{name: getattr(model, name) for name in _SAVED_STATE},
            "raw_words": model.vocabulary.raw_words,
        },
    }
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as staging:
        model.vocabulary.save(staging / "vocab.txt")
        save_safetensors(staging / "model.safetensors", model._tables().named())
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if model.checkpoint is not None and model._finished:
        with contextlib.suppress(FolderInUseError, OSError), model.checkpoint.hold():
            model.checkpoint.remove()


def load(
    model_class: type[Word2Vec], folder: str | os.PathLike[str], options: dict[str, Any]
) -> Word2Vec:
    """:meth:`Word2Vec.load`."""
    unknown = sorted(set(options) - _MACHINE_OPTIONS)
    if unknown:
        raise TypeError(f"expected options among {sorted(_MACHINE_OPTIONS)}; got {unknown}")
    with read_folder(folder) as find:
        for name in ("config.json", "vocab.txt", "model.safetensors"):
            if not find(name).exists():
                raise FileNotFoundError(f"{folder} is not a model folder: it has no {name}")
        path = find("config.json")
        try:
            config = json.loads(path.read_text())
            form, version = config["format"], int(config["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a model's config.json ({error!r})") from None
        if form != FORMAT or version > VERSION:
            hint = " (load it with KeyedVectors.load)" if form != FORMAT else ""
            raise ValueError(
                f"{path}: expected {FORMAT} of version <= {VERSION}; "
                f"got {form!r} of version {version}{hint}"
            )
        vocabulary = Vocabulary.load(find("vocab.txt"))
        # Mapped, and copied into rows on cache lines: the tables are in memory only once.
        saved, _ = load_safetensors(find("model.safetensors"))
    try:
        model = model_class(**config["parameters"], **options)
        state = {name: config["state"][name] for name in (*_SAVED_STATE, "raw_words")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    vocabulary.raw_words = int(state.pop("raw_words"))
    model._set_vocabulary(vocabulary, fresh=False)
    tables = model._tables().named()
    found = {name: tuple(table.shape) for name, table in saved.items()}
    expected = {name: tuple(table.shape) for name, table in tables.items()}
    if found != expected or any(t.dtype != torch.float32 for t in saved.values()):
        raise ValueError(f"{folder}: expected float32 tables {expected}; got {found}")
    refuse_nonfinite(saved["vectors"], vocabulary.words, str(folder))
    for name, table in tables.items():
        table.copy_(saved[name])
    for name, value in state.items():
        setattr(model, name, value)
    return model


def _refuse_diverged(model: Word2Vec) -> None:
    """Raises ValueError if a vector holds nan or infinity, with what may have led to it."""
    try:
        refuse_nonfinite(model._input, model.vocabulary.words, "these vectors")
    except ValueError as error:
        if not model.train_count:
            raise
        raise ValueError(
            f"{error}: training may have diverged; what helps is a smaller alpha (now "
            f"{model.alpha:g}) or fewer negatives (now {model.negative})"
        ) from None
