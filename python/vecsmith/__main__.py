"""``python -m vecsmith``: the command line."""

from vecsmith.cli import main

main()
