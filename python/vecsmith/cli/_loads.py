"""Imported by the command line before what needs the native module: where that does not load (an
unknown level in VECSMITH_ISA, say) there is one line and exit code 2 here, too."""

import sys

from vecsmith.ops import BackendUnavailable
from vecsmith.ops._registry import native

try:
    native()
except (BackendUnavailable, ValueError) as error:
    if "--debug" in sys.argv:
        raise
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
