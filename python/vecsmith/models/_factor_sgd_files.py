"""The folder of a factorization by gradient descent: config.json, model.safetensors (the tables of
users and items), and interactions.safetensors, users.txt, items.txt where the model knows its cells
and keys."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor

from vecsmith.data import Interactions
from vecsmith.data._interaction_files import ITEMS, USERS, read_parts, write_parts
from vecsmith.io import load_safetensors, read_folder, save_safetensors
from vecsmith.io._checks import refuse_nonfinite
from vecsmith.models._factor_recommend import FactorTable
from vecsmith.models._model_folder import read_config, write_folder

VERSION = 1


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


def load(
    folder: str | os.PathLike[str], form: str
) -> tuple[dict[str, Any], dict[str, Tensor], Interactions | None]:
    """(config.json, the tables, the interactions or None) of a model's folder.

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
            interactions = Interactions(*read_parts(find, known))
    try:
        counts = {name: int(config[name]) for name in ("users", "items")}
        if not all(isinstance(config[part], dict) for part in ("parameters", "state")):
            raise TypeError("parameters and state are no objects")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error!r})") from None
    found = {name: tuple(table.shape) for name, table in tables.items()}
    widths = {shape[-1] for shape in found.values() if len(shape) == 2}
    if len(widths) != 1 or found != {name: (rows, *widths) for name, rows in counts.items()}:
        raise ValueError(f"{folder}: expected tables of {counts} rows and one width; got {found}")
    for name, table in tables.items():
        if table.dtype != torch.float32:
            raise ValueError(f"{folder}: expected {name} of float32; got {table.dtype}")
        refuse_nonfinite(table, None, f"{folder}: {name}")
    if interactions is not None and interactions.shape != (counts["users"], counts["items"]):
        raise ValueError(
            f"{folder}: expected interactions of {counts}; got shape {list(interactions.shape)}"
        )
    return config, tables, interactions


def restored(
    model_class: Any,
    folder: str | os.PathLike[str],
    form: str,
    num_threads: int | None,
    columns: Any,
) -> tuple[Any, dict[str, Any]]:
    """(a model with what its folder holds, the state of its config.json).

    columns: of a model, (columns of its tables, how many of them are factors).
    """
    config, tables, interactions = load(folder, form)
    parameters = dict(config["parameters"])
    if num_threads is not None:
        parameters["num_threads"] = num_threads
    try:
        model = model_class(**parameters)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}: config.json: damaged ({error})") from None
    wide, width = columns(model)
    if tables["users"].shape[1] != wide:
        raise ValueError(
            f"{folder}: expected tables of {wide} columns; got {tables['users'].shape[1]}"
        )
    model._users = FactorTable(tables["users"], width)
    model._items = FactorTable(tables["items"], width)
    model.interactions = interactions
    return model, config["state"]
