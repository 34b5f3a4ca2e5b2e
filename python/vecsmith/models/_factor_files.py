"""The folder that a factorization is saved to: config.json, model.safetensors (the factors), and
interactions.safetensors, users.txt, items.txt where the model knows its cells and keys."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vecsmith.data import Interactions
from vecsmith.data._interaction_files import ITEMS, USERS, read_parts, write_parts
from vecsmith.io import load_safetensors, read_folder, save_safetensors
from vecsmith.io._checks import refuse_nonfinite
from vecsmith.models._checkpoint import Checkpoint, FolderInUseError
from vecsmith.models._model_folder import read_config, refuse_folder, write_folder

VERSION = 1
# The modules of the models whose folders these are, by the format that config.json names.
MODULES = {
    "vecsmith.ALS": "als",
    "vecsmith.ExplicitALS": "explicit_als",
    "vecsmith.MatrixFactorizationSGD": "matrix_factorization_sgd",
    "vecsmith.BPR": "bpr",
}
# What a model is loaded with may be other than what it was saved with: the machine is.
MACHINE_OPTIONS = {
    *("num_threads", "device", "checkpoint", "checkpoint_every", "resume", "progress"),
}


def save(
    folder: str | os.PathLike[str],
    form: str,
    tables: dict[str, Tensor],
    parameters: dict[str, Any],
    state: dict[str, Any],
    interactions: Interactions | None,
) -> None:
    """Write a model's folder.

    tables: "users" and "items"; parameters: what the constructor gets; state: what else belongs to
    it. Both are JSON.

    Raises: ValueError for a table that is not finite; OSError.
    """
    for name, table in tables.items():
        refuse_nonfinite(table, None, name)
    config: dict[str, Any] = {"format": form, "version": VERSION}
    config |= {"users": len(tables["users"]), "items": len(tables["items"])}
    config |= {"parameters": parameters, "state": state}
    with write_folder(folder, remove=(USERS, ITEMS, "interactions.safetensors")) as staging:
        save_safetensors(staging / "model.safetensors", tables)
        if interactions is not None:
            config["interactions"] = write_parts(
                staging, interactions.matrix, interactions.users, interactions.items, None
            )
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def remove_checkpoint(checkpoint: Checkpoint | None) -> None:
    """What it held is saved."""
    if checkpoint is not None and checkpoint.owned:
        with contextlib.suppress(FolderInUseError, OSError), checkpoint.hold():
            checkpoint.remove()


def load(
    folder: str | os.PathLike[str], form: str
) -> tuple[dict[str, Any], dict[str, Tensor], Interactions | None]:
    """(config.json, the tables, memory-mapped, the interactions or None) of a model's folder.

    Raises: FileNotFoundError for a missing file; ValueError for a damaged one.
    """
    with read_folder(folder) as find:
        names = ("config.json", "model.safetensors")
        config = read_config(find, folder, names, form, VERSION)
        path = find("config.json")
        tables, _ = load_safetensors(find("model.safetensors"))
        known, interactions = config.get("interactions"), None
        if known is not None:
            if not isinstance(known, dict):
                raise ValueError(f"{path}: damaged (interactions)")
            for name in (USERS, ITEMS, "interactions.safetensors"):
                refuse_folder(find(name))
            try:
                interactions = Interactions(*read_parts(find, known))
            except OverflowError as error:
                raise ValueError(f"{path}: damaged (interactions: {error})") from None
    try:
        counts = {name: int(config[name]) for name in ("users", "items")}
        parts = config["parameters"], config["state"]
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError(f"parameters and state are {parts!r:.60}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: damaged ({error!r})") from None
    found = {name: tuple(table.shape) for name, table in tables.items()}
    widths = {shape[-1] for shape in found.values() if len(shape) == 2}
    if len(widths) != 1 or found != {name: (rows, *widths) for name, rows in counts.items()}:
        raise ValueError(f"{folder}: expected tables of {counts} rows and one width; got {found}")
    for name, table in tables.items():
        if table.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{folder}: expected {name} of float32 or float64; got {table.dtype}")
        refuse_nonfinite(table, None, f"{folder}: {name}")
    if interactions is not None and interactions.shape != (counts["users"], counts["items"]):
        raise ValueError(
            f"{folder}: expected interactions of {counts}; got shape {list(interactions.shape)}"
        )
    return config, tables, interactions


def load_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of a model's ``load``, less a number of threads that is None. Raises TypeError for
    others."""
    unknown = sorted(set(options) - MACHINE_OPTIONS)
    if unknown:
        raise TypeError(f"expected options among {sorted(MACHINE_OPTIONS)}; got {unknown}")
    return {n: value for n, value in options.items() if n != "num_threads" or value is not None}


def constructed(
    model_class: Any,
    folder: str | os.PathLike[str],
    parameters: dict[str, Any],
    known: Sequence[str],
    options: dict[str, Any],
) -> Any:
    """A model with the parameters of config.json, and these options.

    known: the parameters that may be written there. A folder says nothing about this machine.

    Raises: ValueError where they are no parameters of it; as the constructor for ``options``.
    """
    unknown = sorted(set(parameters) - set(known))
    try:
        if unknown:
            raise ValueError(f"expected parameters among {sorted(known)}; got {unknown}")
        model_class(**parameters)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{folder}: config.json: damaged ({error})") from None
    return model_class(**{**parameters, **options})


def load_any(folder: str | os.PathLike[str], **options: Any) -> Any:
    """The model in a folder, by its own class's ``load``.

    Raises: as that; ValueError where the folder holds a model of another kind.
    """
    with read_folder(folder) as find:
        path = find("config.json")
        if not path.exists():
            raise FileNotFoundError(f"{folder} is not a model folder: it has no config.json")
        refuse_folder(path)
        try:
            form = json.loads(path.read_text(encoding="utf-8"))["format"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: not a model's config.json ({error!r})") from None
    if not isinstance(form, str) or form not in MODULES:
        raise ValueError(f"{path}: expected a model of {', '.join(MODULES)}; got {form!r}")
    module = importlib.import_module(f"vecsmith.models.{MODULES[form]}")
    return getattr(module, form.removeprefix("vecsmith.")).load(folder, **options)
