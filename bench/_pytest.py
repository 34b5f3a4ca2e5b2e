"""The marks of the pytest-benchmark tests: pytest's, or, where it is not installed, as beside a
wheel, ones that leave a function as it is, so that the groups can be made all the same."""

from __future__ import annotations

from typing import Any

try:
    import pytest
except ImportError:

    class _Mark:
        """Stands for every name of pytest, and for what calling it returns."""

        def __getattr__(self, name: str) -> _Mark:
            return self

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            decorates = len(arguments) == 1 and not options and callable(arguments[0])
            return arguments[0] if decorates else self

    pytest: Any = _Mark()

__all__ = ["pytest"]
