"""What a command has printed, and its exit code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line of a command that failed."""
        assert self.code == 2
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line
