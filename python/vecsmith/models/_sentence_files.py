"""The folder of a SentenceAutoencoder: config.json, tokenizer.json, model.safetensors,
words.txt."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vecsmith.io import load_safetensors, read_folder, save_safetensors
from vecsmith.models import _options as check
from vecsmith.models import _sentence_modules
from vecsmith.models._model_folder import read_config, write_folder
from vecsmith.models._sentence_meaning import SentenceMeaning
from vecsmith.models._sentence_tokens import check_unknown, read_tokenizer

if TYPE_CHECKING:
    from vecsmith.models.sentence_autoencoder import SentenceAutoencoder

FORMAT, VERSION = "vecsmith.SentenceAutoencoder", 1

_PARAMETERS = ("vector_size", "vocab_size", "max_length", "truncate", "unknown", "meaning_weight")
_MACHINE_OPTIONS = {"device", "progress", "truncate", "unknown"}


def _tensors(model: SentenceAutoencoder) -> dict[str, Tensor]:
    """Everything that was trained or given, by name."""
    modules = {"encoder": model.encoder, "decoder": model.decoder}
    if model.encoder is model.decoder:
        del modules["decoder"]
    found = {
        f"{part}.{name}": tensor
        for part, module in modules.items()
        if module is not None
        for name, tensor in module.state_dict().items()
    }
    if model.meaning is not None:
        found["meaning.table"] = model.meaning.table
    return found


def save(model: SentenceAutoencoder, folder: str | os.PathLike[str]) -> None:
    """:meth:`SentenceAutoencoder.save`."""
    tensors = _tensors(model)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"expected finite tensors; got nan or infinity in {name}")
    config = {
        "format": FORMAT,
        "version": VERSION,
        "encoder": model.encoder_kind,
        "tokenizer": model.tokenizer_kind,
        "seed": model.seed,
        "meaning_size": model.meaning_size,
        "token_embeddings": model._token_embeddings is not None,
        "parameters": {name: getattr(model, name) for name in _PARAMETERS},
        "options": model.options,
    }
    with write_folder(folder, remove=() if model.meaning else ("words.txt",)) as staging:
        texts = {
            "tokenizer.json": model.tokens.tokenizer.to_str(),
            "config.json": json.dumps(config, indent=2) + "\n",
        }
        if model.meaning is not None:
            texts["words.txt"] = "".join(f"{word}\n" for word in model.meaning.words)
        for name, text in texts.items():
            (staging / name).write_bytes(text.encode())
        # So that files of two models are not taken for one.
        marks = {name: _digest(text.encode()) for name, text in texts.items()}
        save_safetensors(staging / "model.safetensors", tensors, marks)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def load(
    model_class: type[SentenceAutoencoder],
    folder: str | os.PathLike[str],
    options: dict[str, Any],
) -> SentenceAutoencoder:
    """:meth:`SentenceAutoencoder.load`."""
    unknown = sorted(set(options) - _MACHINE_OPTIONS)
    if unknown:
        raise TypeError(f"expected options among {sorted(_MACHINE_OPTIONS)}; got {unknown}")
    if "device" in options:
        options = {**options, "device": check.device(options["device"])}
    if "unknown" in options:
        check_unknown(options["unknown"])
    with read_folder(folder) as find:
        names = ["tokenizer.json", "config.json"]
        config = read_config(find, folder, (*names, "model.safetensors"), FORMAT, VERSION)
        path = find("config.json")
        tokenizer = read_tokenizer(find("tokenizer.json"))
        tensors, marks = load_safetensors(find("model.safetensors"), mmap=False)
        words = None
        if config.get("meaning_size"):
            if not find("words.txt").exists():
                raise FileNotFoundError(f"{folder} is not a model folder: it has no words.txt")
            words = find("words.txt").read_text("utf-8").split("\n")[:-1]
            names.append("words.txt")
        strange = [name for name in names if marks.get(name) != _digest(find(name).read_bytes())]
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{folder}: {name} holds nan or infinity")
    try:
        _check_names(config)
        model = model_class(
            encoder=config["encoder"],
            tokenizer=tokenizer,
            seed=config["seed"],
            **{**config["parameters"], **config["options"], **options},
        )
        model.tokens.kind = model.tokenizer_kind = config["tokenizer"]
        if words is not None:
            meaning = SentenceMeaning(words, tensors.pop("meaning.table"))
            if meaning.size != config["meaning_size"]:
                raise ValueError(f"meaning_size={config['meaning_size']}; got {meaning.size}")
            model._set_meaning(meaning)
        if config["token_embeddings"]:
            # Those that are saved are loaded over these.
            model._token_embeddings = tensors[_embeddings_name(tensors)]
        model._build()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    _load_state(model, tensors, Path(folder))
    if strange:
        raise ValueError(
            f"{folder}: the files do not belong together: {strange[0]} is not the one that "
            "model.safetensors was saved with"
        )
    return model


def _check_names(config: dict[str, Any]) -> None:
    """Raises KeyError for what is missing from a config.json, ValueError for what is too much."""
    wanted = {
        "parameters": set(_PARAMETERS),
        "options": set(_sentence_modules.kind(config["encoder"]).defaults),
    }
    for name, names in wanted.items():
        if set(config[name]) != names:
            raise ValueError(f"expected {name} {sorted(names)}; got {sorted(config[name])}")


def _embeddings_name(tensors: dict[str, Tensor]) -> str:
    """The frozen token vectors among the saved tensors. Raises KeyError."""
    for name in ("encoder.weight", "encoder.embeddings", "encoder.embedding.weight"):
        if name in tensors:
            return name
    raise KeyError("encoder.weight")


def _load_state(model: SentenceAutoencoder, tensors: dict[str, Tensor], folder: Path) -> None:
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"{folder}: expected tensors of encoder and decoder; got {name!r}")
        parts[part][rest] = tensor
    for part, state in parts.items():
        module = getattr(model, part)
        if part == "decoder" and model.encoder is model.decoder:
            if state:
                raise ValueError(f"{folder}: expected no tensors of a decoder; got {sorted(state)}")
            continue
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{folder}: the files do not belong together ({error})") from None
