"""When interactions happened: columns of times as numbers, and the time that a split is made at."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vecsmith.data._interaction_columns import first_null, microseconds, values_of_categories

if TYPE_CHECKING:
    import pyarrow

_MICROSECONDS = {"s": 10**6, "ms": 10**3, "us": 1}
_MOST = np.iinfo(np.int64).max


def timestamps_of(
    values: pyarrow.ChunkedArray | None, where: Callable[[int], str]
) -> np.ndarray | None:
    """int64, float64 or datetime64[us] [n]; None for None.

    Raises: ValueError for one that is missing, not finite, or beyond these; TypeError for neither
        numbers nor dates.
    """
    import pyarrow as pa

    if values is None:
        return None
    plain: Any = values_of_categories(values)
    kind: Any = plain.type
    if plain.null_count:
        row = where(first_null(plain))
        raise ValueError(f"expected a timestamp in every row; got none in {row}")
    if pa.types.is_integer(kind):
        try:
            return plain.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            raise ValueError("expected timestamps within int64; got one beyond") from None
    if pa.types.is_floating(kind):
        times = plain.cast(pa.float64()).to_numpy()
        bad = np.flatnonzero(~np.isfinite(times))
        if len(bad):
            row = int(bad[0])
            raise ValueError(
                f"expected timestamps that are finite; got {times[row]} in {where(row)}"
            )
        return times
    if pa.types.is_date(kind):
        plain = plain.cast(pa.timestamp("s" if pa.types.is_date32(kind) else "ms"))
        kind = plain.type
    if pa.types.is_timestamp(kind):
        times = plain.cast(pa.int64()).to_numpy()
        if kind.unit == "ns":
            return (times // 1000).view("datetime64[us]")
        # Arrow's cast and NumPy's wrap around.
        factor = _MICROSECONDS[kind.unit]
        bad = np.flatnonzero((times > _MOST // factor) | (times < -(_MOST // factor)))
        if len(bad):
            row = int(bad[0])
            got = f"{times[row]} {kind.unit} after 1970 in {where(row)}"
            raise ValueError(f"expected timestamps within datetime64[us]; got {got}")
        return (times * factor).view("datetime64[us]")
    if pa.types.is_null(kind):
        return np.empty(0, np.int64)
    raise TypeError(f"expected timestamps that are numbers or dates; got {kind}")


def moment(at: Any, times: np.ndarray) -> Any:
    """What to compare the timestamps with.

    Raises: TypeError for a time of another kind than theirs; ValueError for none.
    """
    if times.dtype.kind == "M":
        when = _date(at)
    elif isinstance(at, (int, float, np.integer, np.floating)) and not isinstance(at, bool):
        when = at
    else:
        raise TypeError(f"expected at to be a number, as the timestamps are; got {at!r}")
    if when != when:
        raise ValueError(f"expected at to be a time; got {at}")
    return when


def _date(at: Any) -> Any:
    # Numbers are dates for NumPy, too: but of which unit?
    if not isinstance(at, (str, datetime.date, np.datetime64)):
        raise TypeError(f"expected at to be a date, as the timestamps are; got {at!r}")
    given = at
    if isinstance(at, datetime.datetime) and at.tzinfo is not None:
        given = at.astimezone(datetime.timezone.utc).replace(tzinfo=None)
    try:
        when = np.datetime64(given)
    except ValueError:
        raise TypeError(f"expected at to be a date, as the timestamps are; got {at!r}") from None
    return microseconds(np.asarray(when), "at")[()]
