"""The folder of a CosineIndex: config.json, vectors.safetensors, packed.safetensors."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vecsmith.io import load_safetensors, read_folder, save_safetensors
from vecsmith.models._model_folder import read_config, write_folder

if TYPE_CHECKING:
    from vecsmith.models.cosine_index import CosineIndex

FORMAT, VERSION = "vecsmith.CosineIndex", 1
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METRICS = ("cosine", "dot", "l2")
_VECTORS, _PACKED = "vectors.safetensors", "packed.safetensors"


def save(index: CosineIndex, folder: str | os.PathLike[str]) -> None:
    """:meth:`CosineIndex.save`."""
    if index._table is None:
        raise ValueError("CosineIndex.save: expected an index that has had vectors; got none")
    state: dict[str, Tensor] = {}
    layout = None
    if index._count:
        packed = index._packed_rows()
        if not packed.is_packed:
            packed.pack()
        state = packed.state()
        layout = packed.layout if state else None
    mark = secrets.token_hex(16)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "metric": index.metric,
        "dim": index._dim,
        "dtype": NAMES[index._table.dtype],
        "num_ids": index._count,
        "removed": index._removed_count,
        "mark": mark,
        "packed": layout,
    }
    tensors = {"vectors": index._table[: index._count]}
    if index._removed is not None:
        tensors["removed"] = index._removed[: index._count]
    with write_folder(folder, remove=(_PACKED,)) as staging:
        save_safetensors(staging / _VECTORS, tensors, {"mark": mark})
        if state:
            save_safetensors(staging / _PACKED, state, {"mark": mark})
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(
    index_class: type[CosineIndex],
    folder: str | os.PathLike[str],
    mmap: bool,
    num_threads: int | None,
) -> CosineIndex:
    """:meth:`CosineIndex.load`."""
    with read_folder(folder) as find:
        names = ("config.json", _VECTORS)
        config = read_config(find, folder, names, FORMAT, VERSION, kind="an index")
        _check(config, find("config.json"))
        names = (_VECTORS, _PACKED) if config["packed"] else (_VECTORS,)
        if not find(names[-1]).exists():
            raise FileNotFoundError(f"{folder} is not a whole index: it has no {_PACKED}")
        loaded = [load_safetensors(find(name), mmap=mmap) for name in names]
    for name, (_, metadata) in zip(names, loaded, strict=True):
        if metadata.get("mark") != config["mark"]:
            raise ValueError(f"{folder}: {name} does not belong to this config.json")
    saved = loaded[0][0]
    count, dtype = config["num_ids"], DTYPES[config["dtype"]]
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "vectors": (dtype, (count, config["dim"]))
    }
    if "removed" in saved or config["removed"]:
        expected["removed"] = (torch.bool, (count,))
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in saved.items()}
    if found != expected:
        raise ValueError(f"{folder}: {_VECTORS}: expected {expected}; got {found}")
    index = index_class(
        metric=config["metric"], dim=config["dim"], dtype=dtype, num_threads=num_threads
    )
    index._table, index._count = saved["vectors"], count
    index._removed = saved.get("removed")
    if index._removed is not None:
        index._removed_count = int(index._removed.sum())
    if index._removed_count != config["removed"]:
        raise ValueError(
            f"{folder}: expected {config['removed']} removed ids; got {index._removed_count}"
        )
    if config["packed"] and count:
        try:
            index._packed_rows().adopt(loaded[1][0], config["packed"])
        except ValueError as error:
            raise ValueError(f"{folder}: {_PACKED}: damaged ({error})") from None
    return index


def _check(config: dict[str, Any], path: Path) -> None:
    """Raises ValueError for what :func:`save` would not have written to config.json."""
    kinds = {"metric": str, "dim": int, "dtype": str, "num_ids": int, "removed": int, "mark": str}
    for name, kind in kinds.items():
        value = config.get(name)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise ValueError(f"{path}: damaged (expected {name} of {kind.__name__}; got {value!r})")
    packed = config.get("packed")
    if config["metric"] not in METRICS or config["dtype"] not in DTYPES or config["dim"] < 1:
        raise ValueError(f"{path}: damaged ({config['metric']!r}, {config['dtype']!r})")
    if packed is not None and not isinstance(packed, dict):
        raise ValueError(f"{path}: damaged (expected packed to be an object; got {packed!r})")
    config["packed"] = packed
