"""What the folders of all models have in common."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vecsmith.io import atomic_folder
from vecsmith.io._atomic import missing_folders, remove_empty


@contextlib.contextmanager
def write_folder(folder: str | os.PathLike[str], remove: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write a model's files into, which become those of ``folder`` at the end, or none.

    Folders above it are made; those that were made are taken away again if it fails.

    Raises: ValueError for an empty name, which is not the current folder's; OSError.
    """
    if not os.fspath(folder):
        raise ValueError("expected the name of a folder; got an empty one")
    parent = Path(folder).parent
    made = missing_folders(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder, remove=remove) as staging:
            yield staging
    except BaseException:
        remove_empty(made)
        raise


def read_config(
    find: Callable[[str], Path],
    folder: str | os.PathLike[str],
    names: Sequence[str],
    form: str,
    version: int,
    *,
    kind: str = "a model",
    hint: str = "",
) -> dict[str, Any]:
    """config.json of a folder, whose files ``find`` finds.

    names: files that must be there, config.json among them; kind: whose folder it is, in messages;
    hint: said where the format is another.

    Raises: FileNotFoundError for a file that is missing, ValueError for one that is a folder, and
        for another or a later format.
    """
    for name in names:
        if not find(name).exists():
            raise FileNotFoundError(f"{folder} is not {kind} folder: it has no {name}")
        refuse_folder(find(name))
    path = find("config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found, found_version = config["format"], int(config["version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: not {kind}'s config.json ({error!r})") from None
    if found != form or not 1 <= found_version <= version:
        raise ValueError(
            f"{path}: expected {form} of version <= {version}; "
            f"got {found!r} of version {found_version}{hint if found != form else ''}"
        )
    return config


def refuse_folder(path: Path) -> None:
    """Raises ValueError for a folder in a file's place."""
    if path.is_dir():
        raise ValueError(f"{path}: damaged (expected a file; got a folder)")
