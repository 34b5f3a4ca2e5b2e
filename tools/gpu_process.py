"""What `make gpu` does with processes: their time, their output, and their end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(
    command: list[str],
    log: Path,
    *,
    seconds: float,
    env: dict[str, str] | None = None,
    append: bool = False,
) -> int | None:
    """The exit status of a command (minus the signal that ended it), whose output goes to a file;
    None if it ran out of time, and was ended with all that it had started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab" if append else "wb") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        if seconds <= 0:
            return None
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=ROOT,
                start_new_session=True,
            )
        except OSError as error:
            output.write(f"{error}\n".encode())
            return 127
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            output.write(b"\nout of time\n")
            return None
        finally:
            # What it started may outlive it, and would go on using the device.
            for sent in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, sent)
                if process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=3)


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, and what it says of errors before."""
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in text[:-lines] if re.search(r"\berror\b", line, re.IGNORECASE)]
    return "\n".join(f"    {line[:200]}" for line in [*errors[:8], *text[-lines:]])
