"""Keys as arrays, and from keys to the rows that they have."""

from __future__ import annotations

from typing import Any

import numpy as np

# What a str of NumPy takes by itself, in the characters of an array of them.
_OBJECT_CHARACTERS = 32


def strings(words: list[str]) -> np.ndarray:
    """str [K]. An array of NumPy's str gives each key the room of the longest, 4 bytes a character;
    where single ones would take a quarter of that, they are ``np.str_`` of an array of objects."""
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    longest = max(int(lengths.max(initial=0)), 1)
    if not words or longest <= 4 * _OBJECT_CHARACTERS + lengths.mean():
        return np.array(words, dtype=f"<U{longest}")
    keys = np.empty(len(words), object)
    keys[:] = [np.str_(word) for word in words]
    return keys


def order_of(keys: np.ndarray) -> np.ndarray | None:
    """int64 [K], what sorts the keys; None where they are sorted."""
    if (keys[1:] > keys[:-1]).all():
        return None
    return np.argsort(keys, kind="stable")


def find(keys: np.ndarray, order: np.ndarray | None, asked: np.ndarray) -> np.ndarray:
    """int64, of the shape of ``asked``: where each is among the keys [K], each different; -1 where
    it is not. ``order`` is that of :func:`order_of`."""
    text = keys.dtype.kind != "i"
    if (
        not len(keys)
        or text != (asked.dtype.kind in "UO")
        or (not text and asked.dtype.kind != "i")
    ):
        return np.full(asked.shape, -1, np.int64)
    if keys.dtype.kind == "U" and asked.dtype.kind == "O":
        # One character more than the longest key: what was cut is none. A long one takes no room.
        sought = asked.astype(f"<U{keys.dtype.itemsize // 4 + 1}")
    else:
        sought = asked.astype(object) if keys.dtype.kind == "O" else asked
    places = np.searchsorted(keys, sought, sorter=order)
    places = np.minimum(places, len(keys) - 1)
    if order is not None:
        places = order[places]
    return np.where(keys[places] == asked, places, -1)


def index_of(keys: np.ndarray, order: np.ndarray | None, key: Any, what: str) -> Any:
    """The place of a key, an int, or of an array of them.

    Raises: KeyError naming the first that is not there; TypeError for what is no key.
    """
    if isinstance(key, (str, int, np.str_, np.integer)) and not isinstance(key, bool):
        single = np.asarray(key)
        places = find(keys, order, _as_keys(single))
        # NumPy cuts NUL off the end: no key has one there.
        if places < 0 or (isinstance(key, str) and key.endswith("\0")):
            raise KeyError(_unknown(keys, key, what))
        return int(places)
    if isinstance(key, np.ma.MaskedArray) and np.ma.getmaskarray(key).any():
        raise TypeError(f"expected keys of the {what}s that are not masked; got {key!r}")
    try:
        asked = np.asarray(key)
    except ValueError as error:
        raise TypeError(
            f"expected a key of the {what}s, or an array of them; got {error}"
        ) from None
    if not asked.size:
        return np.empty(asked.shape, np.int64)
    if asked.dtype.kind not in "iuUO" or asked.ndim == 0:
        raise TypeError(f"expected a key of the {what}s, or an array of them; got {key!r}")
    places = find(keys, order, _as_keys(asked))
    if (places < 0).any():
        raise KeyError(_unknown(keys, asked[places < 0][0], what))
    return places


def _as_keys(asked: np.ndarray) -> np.ndarray:
    """As int64, str or objects that are str; as another dtype if some are neither."""
    if asked.dtype.kind == "O":
        values = asked.ravel().tolist()
        # Integers beyond int64 are objects, too, and keys of no user.
        is_text = all(isinstance(value, str) for value in values)
        return asked if is_text else np.zeros(asked.shape, bool)
    if asked.dtype.kind == "u":
        beyond = asked > np.iinfo(np.int64).max
        return asked.astype(np.float64) if beyond.any() else asked.astype(np.int64)
    return asked.astype(np.int64) if asked.dtype.kind == "i" else asked


def _unknown(keys: np.ndarray, key: Any, what: str) -> str:
    plain = key.item() if isinstance(key, np.generic) else key
    kind = "integers" if keys.dtype.kind == "i" else "strings"
    of_other_type = isinstance(plain, str) is (keys.dtype.kind == "i")
    return f"no {what} {plain!r}" + (f": keys are {kind}" if of_other_type and len(keys) else "")
