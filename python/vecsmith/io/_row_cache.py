"""The native cache over a :class:`vecsmith.io.RowFile`, for vecsmith.nn."""

from __future__ import annotations

from vecsmith._native import CacheFullError, RowCache

READ, UPDATE, PREFETCH = 0, 1, 2

__all__ = ["PREFETCH", "READ", "UPDATE", "CacheFullError", "RowCache"]
