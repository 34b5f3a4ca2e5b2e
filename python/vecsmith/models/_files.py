"""The folder that a Word2Vec is saved to: config.json, vocab.txt, model.safetensors."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vecsmith.data import Vocabulary
from vecsmith.io import load_safetensors, read_folder, save_safetensors
from vecsmith.io._checks import refuse_nonfinite
from vecsmith.models._checkpoint import FolderInUseError
from vecsmith.models._model_folder import read_config, write_folder

if TYPE_CHECKING:
    from vecsmith.models.word2vec import Word2Vec

FORMAT, VERSION = "vecsmith.Word2Vec", 1

_SAVED_PARAMETERS = (
    *("vector_size", "alpha", "window", "min_count", "max_vocab_size", "sample", "seed"),
    *("min_alpha", "sg", "hs", "negative", "ns_exponent", "cbow_mean", "epochs", "compute_loss"),
    *("comment", "max_final_vocab", "shrink_windows", "shared_negatives"),
)
_SAVED_COUNTS = ("train_count", "corpus_count", "corpus_total_words", "effective_min_count")
_SAVED_MEASURES = ("total_train_time", "running_training_loss", "min_alpha_yet_reached")
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
            **{name: getattr(model, name) for name in (*_SAVED_COUNTS, *_SAVED_MEASURES)},
            "raw_words": model.vocabulary.raw_words,
        },
    }
    with write_folder(folder) as staging:
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
        names = ("config.json", "vocab.txt", "model.safetensors")
        config = read_config(
            find, folder, names, FORMAT, VERSION, hint=" (load it with KeyedVectors.load)"
        )
        path = find("config.json")
        vocabulary = Vocabulary.load(find("vocab.txt"))
        # Mapped, and copied into rows on cache lines: the tables are in memory only once.
        saved, _ = load_safetensors(find("model.safetensors"))
    try:
        model = model_class(**config["parameters"], **options)
        state = _state(config["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    vocabulary.raw_words = state.pop("raw_words")
    model._set_vocabulary(vocabulary, fresh=False)
    tables = model._tables().named()
    found = {name: tuple(table.shape) for name, table in saved.items()}
    expected = {name: tuple(table.shape) for name, table in tables.items()}
    if found != expected or any(t.dtype != torch.float32 for t in saved.values()):
        raise ValueError(f"{folder}: expected float32 tables {expected}; got {found}")
    _refuse_nonfinite(saved, vocabulary, f"{folder}: ")
    for name, table in tables.items():
        table.copy_(saved[name])
    for name, value in state.items():
        setattr(model, name, value)
    return model


def _state(saved: Any) -> dict[str, Any]:
    """The state of a model, from its config.json. Raises KeyError, TypeError or ValueError."""
    counts = {name: saved[name] for name in (*_SAVED_COUNTS, "raw_words")}
    for name, value in counts.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"expected {name} to be an integer >= 0; got {value!r}")
    measures = {name: saved[name] for name in _SAVED_MEASURES}
    for name, value in measures.items():
        if type(value) not in (int, float):  # nan passes: a loss may have come to that
            raise ValueError(f"expected {name} to be a number; got {value!r}")
    return {**counts, **measures}


def _refuse_nonfinite(tables: dict[str, Tensor], vocabulary: Vocabulary, where: str) -> None:
    """Raises ValueError naming the table and the word of the first row that holds nan or inf."""
    for name, table in tables.items():
        # The rows of the tree are its inner nodes: they have no words.
        refuse_nonfinite(table, None if name == "syn1" else vocabulary.words, where + name)


def _refuse_diverged(model: Word2Vec) -> None:
    """Raises ValueError if a table holds nan or infinity, with what may have led to it."""
    try:
        _refuse_nonfinite(model._tables().named(), model.vocabulary, "")
    except ValueError as error:
        if not model.train_count:
            raise
        raise ValueError(
            f"{error}: training may have diverged; what helps is a smaller alpha (now "
            f"{model.alpha:g}) or fewer negatives (now {model.negative})"
        ) from None
