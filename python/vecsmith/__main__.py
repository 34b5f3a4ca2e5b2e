"""``vecsmith`` and ``python -m vecsmith``: the command line, from its first moment on.

Importing torch takes seconds; Ctrl-C within them is one line too, and no traceback.
"""

import os
import sys


def main() -> None:
    """Import the command line and run it. Exit code 130 where Ctrl-C came before it could start."""
    # Closed by the caller (>&-): what is printed goes nowhere, and not into a file of ours, which
    # would be given the free number.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process is)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        from vecsmith.cli import main as run
    except KeyboardInterrupt:
        print("stopped. What was saved before is unchanged", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
