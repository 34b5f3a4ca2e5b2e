"""Interactions in files: beside a model's own, or in a folder of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vecsmith.data._interaction_cells import csr
from vecsmith.data._interaction_keys import strings
from vecsmith.io import atomic_folder, load_safetensors, load_words, read_folder, save_safetensors
from vecsmith.io import save_words as _save_words

FORMAT, VERSION = "vecsmith-interactions", 1
CELLS, USERS, ITEMS = "interactions.safetensors", "users.txt", "items.txt"
_TIMES = {"int64": np.int64, "float64": np.float64, "datetime64[us]": np.int64}


def write_parts(
    folder: Path,
    matrix: Any,
    users: np.ndarray,
    items: np.ndarray,
    timestamps: np.ndarray | None,
) -> dict[str, Any]:
    """Write the files into a folder (the staging one of :func:`vecsmith.io.atomic_folder`): cells
    and integer keys as safetensors, string keys as users.txt and items.txt.

    Returns: what :func:`read_parts` needs to know, for a config.json.
    """
    arrays = {"indptr": matrix.indptr, "indices": matrix.indices, "ratings": matrix.data}
    known: dict[str, Any] = {"shape": list(matrix.shape), "cells": int(matrix.nnz)}
    for name, keys, file in (("users", users, USERS), ("items", items, ITEMS)):
        known[name] = "int64" if keys.dtype.kind == "i" else "str"
        if keys.dtype.kind == "i":
            arrays[name] = keys
        else:
            _save_words(folder / file, keys.tolist(), None)
    known["timestamps"] = None if timestamps is None else str(timestamps.dtype)
    if timestamps is not None:
        plain = timestamps.view(np.int64) if timestamps.dtype.kind == "M" else timestamps
        arrays["timestamps"] = plain
    tensors = {
        name: torch.from_numpy(np.require(array, requirements=["C", "W"]))
        for name, array in arrays.items()
    }
    save_safetensors(folder / CELLS, tensors)
    return known


def read_parts(
    find: Callable[[str], Path], known: dict[str, Any]
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray | None]:
    """(matrix, users, items, timestamps) of the files that :func:`write_parts` has written.

    Args:
        find: from a file's name to its path (:func:`vecsmith.io.read_folder`).
        known: what ``write_parts`` has returned.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is damaged, or they do not belong together.
    """
    path = find(CELLS)
    try:
        num_users, num_items = (int(size) for size in known["shape"])
        kinds = {"users": known["users"], "items": known["items"]}
        time, cells = known["timestamps"], int(known["cells"])
        if set(kinds.values()) - {"int64", "str"} or time not in (None, *_TIMES):
            raise ValueError(f"keys {kinds}, timestamps {time!r}")
        if min(num_users, num_items, cells) < 0:
            raise ValueError(f"shape {known['shape']}, {cells} cells")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.parent}: its description is damaged ({error!r})") from None
    arrays = {name: tensor.numpy() for name, tensor in load_safetensors(path)[0].items()}
    sizes = {"indptr": num_users + 1, "indices": cells, "ratings": cells}
    dtypes = {"indptr": "iu", "indices": "iu", "ratings": "f"}
    for name, size in (("users", num_users), ("items", num_items)):
        if kinds[name] == "int64":
            sizes[name], dtypes[name] = size, "i"
    if time is not None:
        sizes["timestamps"], dtypes["timestamps"] = cells, np.dtype(_TIMES[time]).kind
    found = {name: array.shape for name, array in arrays.items()}
    if found != {name: (size,) for name, size in sizes.items()}:
        raise ValueError(f"{path}: expected arrays of sizes {sizes}; got {found}")
    for name, array in arrays.items():
        if array.dtype.kind not in dtypes[name]:
            raise ValueError(f"{path}: damaged ({name} of {array.dtype})")
    indptr, indices = arrays["indptr"], arrays["indices"]
    steps = np.diff(indptr)
    if indptr[0] != 0 or indptr[-1] != cells or (steps < 0).any():
        raise ValueError(f"{path}: damaged (indptr)")
    places = np.repeat(np.arange(num_users), steps) * np.int64(num_items) + indices
    in_range = not cells or (indices.min() >= 0 and indices.max() < num_items)
    if not in_range or not (places[1:] > places[:-1]).all():
        raise ValueError(f"{path}: damaged (indices)")
    matrix = csr(arrays["ratings"], indices, indptr, (num_users, num_items))
    keys = {}
    for name, file, size in (("users", USERS, num_users), ("items", ITEMS, num_items)):
        keys[name] = arrays[name] if kinds[name] == "int64" else strings(load_words(find(file))[0])
        if len(keys[name]) != size or len(np.unique(keys[name])) != size:
            raise ValueError(f"{path.parent}: expected {size} different keys of {name}")
    timestamps = arrays.get("timestamps")
    if time == "datetime64[us]" and timestamps is not None:
        timestamps = timestamps.view(time)
    return matrix, keys["users"], keys["items"], timestamps


def save_folder(folder: str | os.PathLike[str], *parts: Any) -> None:
    """A folder with ``config.json`` beside the files of :func:`write_parts`."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, remove=(USERS, ITEMS)) as staging:
        config = {"format": FORMAT, "version": VERSION, **write_parts(staging, *parts)}
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_folder(folder: str | os.PathLike[str]) -> tuple[Any, ...]:
    """What :func:`save_folder` has written."""
    with read_folder(folder) as find:
        path = find("config.json")
        if not path.exists():
            raise FileNotFoundError(f"{folder} holds no interactions: it has no config.json")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            form, version = config["format"], int(config["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a config.json of interactions ({error!r})") from None
        if form != FORMAT or not 1 <= version <= VERSION:
            raise ValueError(
                f"{path}: expected {FORMAT} of version <= {VERSION}; "
                f"got {form!r} of version {version}"
            )
        return read_parts(find, config)
