"""The folder of an LSA: config.json, vocab.txt, model.safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from vecsmith.data import Vocabulary
from vecsmith.io import atomic_folder, load_safetensors, read_folder, save_safetensors
from vecsmith.io._atomic import missing_folders, remove_empty

if TYPE_CHECKING:
    from vecsmith.models.lsa import LSA

FORMAT, VERSION = "vecsmith.LSA", 1
_FILES = ("config.json", "vocab.txt", "model.safetensors")
_TENSORS = ("components", "singular_values", "word_weights", "document_vectors")
_OPTIONS = (
    *("n_components", "weighting", "idf", "sublinear_tf", "norm", "scaling", "min_count"),
    *("max_final_vocab", "n_iter", "n_oversamples", "random_state"),
)


def save(model: LSA, folder: str | os.PathLike[str]) -> None:
    """:meth:`LSA.save`."""
    tensors = {
        "components": torch.from_numpy(model.components_),
        "singular_values": torch.from_numpy(model.singular_values_),
        "word_weights": torch.from_numpy(model.word_weights_),
        "document_vectors": torch.from_numpy(model.document_vectors),
    }
    config = {
        "format": FORMAT,
        "version": VERSION,
        "words": len(model.vocabulary),
        "documents": len(model.document_vectors),
        "options": {name: _plain(getattr(model, name)) for name in _OPTIONS},
        "stop_words": [] if model.stop_words is None else sorted(model.stop_words),
    }
    parent = Path(folder).parent
    made = missing_folders(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as staging:
            model.vocabulary.save(staging / "vocab.txt")
            save_safetensors(staging / "model.safetensors", tensors)
            (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    except BaseException:
        remove_empty(made)
        raise


def _plain(value: Any) -> Any:
    """As JSON has it: of a NumPy number Python's; of a random state none."""
    if isinstance(value, np.random.RandomState):
        return None
    return value.item() if isinstance(value, np.generic) else value


def load(model_class: type[LSA], folder: str | os.PathLike[str]) -> LSA:
    """:meth:`LSA.load`."""
    with read_folder(folder) as find:
        for name in _FILES:
            if not find(name).exists():
                raise FileNotFoundError(f"{folder} is not a model folder: it has no {name}")
        path = find("config.json")
        try:
            config: dict[str, Any] = json.loads(path.read_text("utf-8"))
            form, version = config["format"], config["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a model's config.json ({error!r})") from None
        if form != FORMAT or type(version) is not int or not 1 <= version <= VERSION:
            raise ValueError(
                f"{path}: expected {FORMAT} of version 1 <= version <= {VERSION}; "
                f"got {form!r} of version {version!r}"
            )
        vocabulary = Vocabulary.load(find("vocab.txt"))
        tensors, _ = load_safetensors(find("model.safetensors"), mmap=False)
    try:
        if set(config["options"]) != set(_OPTIONS):
            raise ValueError(f"expected options {sorted(_OPTIONS)}; got {list(config['options'])}")
        model = model_class(**config["options"], stop_words=config["stop_words"] or None)
        rank, _ = model._check()
        check_random_state(model.random_state)
        words = int(config["words"])
        expected = {
            "components": (rank, words),
            "singular_values": (rank,),
            "word_weights": (words,),
            "document_vectors": (int(config["documents"]), rank),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    single = all(tensor.dtype == torch.float32 for tensor in tensors.values())
    if found != expected or not single or len(vocabulary) != words:
        raise ValueError(
            f"{folder}: the files do not belong together: expected float32 {expected} and {words} "
            f"words; got {found} and {len(vocabulary)} words"
        )
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{folder}: {name} holds nan or infinity")
    model._set(vocabulary, *(tensors[name].numpy() for name in _TENSORS))
    return model
