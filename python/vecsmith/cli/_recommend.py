"""``vecsmith recommend`` and ``vecsmith similar``: what to do with a model of users and items."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecsmith.cli._sentence import _line as one_line

if TYPE_CHECKING:
    import numpy as np

Folder = Annotated[
    Path, typer.Argument(help="A folder written by vecsmith als, or saved by a factorization.")
]
Users = Annotated[
    list[str] | None,
    typer.Option("--user", "-u", help="A user's key (repeat).", show_default=False),
]
Threads = Annotated[
    int | None, typer.Option("--threads", "-t", help="Threads.", show_default=False, min=1)
]
# Users that are asked for together, and whose lines are written.
_AT_ONCE = 1 << 14


def _load(folder: Path, threads: int | None) -> Any:
    from vecsmith.models._factor_files import load_any

    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of a model; got {folder}: no such one")
    return load_any(folder, num_threads=threads or 0)


def _keys(model: Any, side: str) -> np.ndarray:
    """Of the users or the items; their numbers, where the model has no keys."""
    import numpy as np

    if model.interactions is None:
        return np.arange(len(model._table(side)))
    return getattr(model.interactions, f"{side}s")


def _rows(model: Any, side: str, asked: Sequence[str]) -> np.ndarray:
    """The row numbers of keys. Raises: KeyError naming the first that is not there."""
    import numpy as np

    if model.interactions is None:
        known = len(model._table(side))
        for text in asked:
            if not text.isdecimal() or int(text) >= known:
                raise KeyError(f"no {side} {text!r}: the model has no keys, but 0..{known - 1}")
        return np.array([int(text) for text in asked], np.int64)
    find = getattr(model.interactions, f"{side}_index")
    integers = _keys(model, side).dtype.kind == "i"
    return np.array([find(_integer(text) if integers else text) for text in asked], np.int64)


def _integer(text: str) -> str | int:
    """As ratings are read: 007 is no integer."""
    try:
        return int(text) if str(int(text)) == text else text
    except ValueError:
        return text


def recommend(
    model: Folder,
    user: Users = None,
    everybody: Annotated[bool, typer.Option("--all", help="All users.")] = False,
    number: Annotated[
        int, typer.Option("--number", "-n", min=1, help="How many items for each.")
    ] = 10,
    liked: Annotated[
        bool, typer.Option("--liked", help="With the items that the user has already.")
    ] = False,
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="An item that nobody gets (repeat).", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A CSV file: user,rank,item,score.", metavar="CSV"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per user.")] = False,
    threads: Threads = None,
) -> None:
    """Show the items with the best scores for a user.

    Examples:

    * **vecsmith recommend model/ --user 42**

    * **vecsmith recommend model/ --user ann --user bob -n 3 --json**

    * **vecsmith recommend model/ --all -o recommended.csv**
    """
    import numpy as np

    if everybody == bool(user):
        raise ValueError(f"expected --user or --all; got {'both' if user else 'neither'}")
    if as_json and output is not None:
        raise ValueError("expected --json or --output; got both")
    loaded = _load(model, threads)
    if loaded.interactions is None and not liked:
        raise ValueError(
            f"expected {model} to hold the items that each user has (a model that was fit on "
            "Interactions), or --liked; got none"
        )
    users, items = _keys(loaded, "user"), _keys(loaded, "item")
    rows = np.arange(len(users)) if everybody else _rows(loaded, "user", user or [])
    banned = _rows(loaded, "item", leave_out or [])
    number = min(number, max(1, len(items)))

    def found() -> Iterator[tuple[Any, list[tuple[Any, float]]]]:
        for first in range(0, len(rows), _AT_ONCE):
            batch = rows[first : first + _AT_ONCE]
            ids, scores = loaded.recommend(
                batch, N=number, filter_already_liked_items=not liked, filter_items=banned
            )
            for row, of_row, its_scores in zip(batch, ids, scores, strict=True):
                yield users[row].item(), _named(items, of_row, its_scores)

    if output is not None:
        _write(output, found())
        print(f"wrote {len(rows):,} users in {output}", file=sys.stderr)
        return
    _print("user", found(), as_json)


def similar(
    model: Folder,
    item: Annotated[
        list[str] | None,
        typer.Option("--item", "-i", help="An item's key (repeat).", show_default=False),
    ] = None,
    user: Users = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many for each.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per question.")] = False,
    threads: Threads = None,
) -> None:
    """Show the items nearest to an item, or the users nearest to a user, by cosine similarity.

    Examples:

    * **vecsmith similar model/ --item 42**

    * **vecsmith similar model/ --user ann --json**
    """
    if bool(item) == bool(user):
        raise ValueError(f"expected --item or --user; got {'both' if user else 'neither'}")
    side, asked = ("item", item) if item else ("user", user)
    loaded = _load(model, threads)
    rows, keys = _rows(loaded, side, asked or []), _keys(loaded, side)
    find = loaded.similar_items if side == "item" else loaded.similar_users
    number = min(number, len(keys))
    # One more: it finds itself.
    ids, scores = find(rows, N=number + 1)

    def found() -> Iterator[tuple[Any, list[tuple[Any, float]]]]:
        for row, of_row, its_scores in zip(rows, ids, scores, strict=True):
            others = of_row != row
            yield (
                keys[row].item(),
                _named(keys, of_row[others][:number], its_scores[others][:number]),
            )

    _print(side, found(), as_json)


def _named(keys: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> list[tuple[Any, float]]:
    """(key, score) of those that are there."""
    there = ids >= 0
    return list(zip(keys[ids[there]].tolist(), scores[there].tolist(), strict=True))


def _rounded(score: float, digits: int) -> float:
    """Without a minus before 0."""
    return round(score, digits) + 0.0


def _print(
    side: str, answers: Iterator[tuple[Any, list[tuple[Any, float]]]], as_json: bool
) -> None:
    for key, found in answers:
        if as_json:
            items = [{"key": other, "score": _rounded(score, 6)} for other, score in found]
            print(json.dumps({side: key, "found": items}, ensure_ascii=False))
            continue
        print(f"{side} {one_line(str(key))}")
        lines = [(one_line(str(other)), score) for other, score in found]
        width = max((len(other) for other, _ in lines), default=0)
        for other, score in lines:
            print(f"  {other:<{width}}  {_rounded(score, 4):.4f}")


def _write(path: Path, answers: Iterator[tuple[Any, list[tuple[Any, float]]]]) -> None:
    """All of them as CSV, or no file."""
    from vecsmith.io import atomic_file

    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"expected a folder for the file; got {path.parent}")
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["user", "rank", "item", "score"])
        for key, found in answers:
            for rank, (other, score) in enumerate(found, 1):
                writer.writerow([key, rank, other, f"{score + 0.0:.6g}"])
        text.flush()
        text.detach()
