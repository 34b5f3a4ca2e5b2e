"""``vecsmith`` and ``python -m vecsmith``: the command line, from its first moment on.

Importing torch takes seconds; Ctrl-C within them is one line too, and no traceback.
"""

import sys


def main() -> None:
    """Import the command line and run it. Exit code 130 where Ctrl-C came before it could start."""
    try:
        from vecsmith.cli import main as run
    except KeyboardInterrupt:
        print("stopped. What was saved before is unchanged", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
