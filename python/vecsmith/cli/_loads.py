"""Imported by the command line before what needs the native module: where that does not load (an
unknown level in VECSMITH_ISA, say) there is one line and exit code 2 here, too."""

import sys

# torch first: it brings the OpenMP runtime that the native module shares.
import vecsmith  # noqa: F401

try:
    from vecsmith import _native  # noqa: F401
except ImportError as error:
    if "--debug" in sys.argv:
        raise
    print(f"error: vecsmith._native cannot be loaded: {error}", file=sys.stderr)
    raise SystemExit(2) from None
