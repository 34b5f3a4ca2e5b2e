"""Loading a factorization by gradient descent from the folder of :mod:`_factor_files`."""

from __future__ import annotations

import os
from typing import Any

import torch

from vecsmith.models._factor_files import load
from vecsmith.models._factor_table import FactorTable


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
    for name, table in tables.items():
        if table.dtype != torch.float32:
            raise ValueError(f"{folder}: expected {name} of float32; got {table.dtype}")
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
