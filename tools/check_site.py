"""Says whether a page of the built documentation would fetch something from elsewhere when it is
read: a script, a style, a font or a picture. Links that a reader may follow are none of these.

python tools/check_site.py site
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_ELSEWHERE = r"(?:https?:)?//"
# In pages: what a browser loads by itself. In styles: imports, fonts, pictures. Scripts build their
# addresses, and cannot be looked through like this: the theme's fetch only what is asked of it.
_PATTERNS = {
    ".html": (
        rf'<(?:script|img|source|iframe|audio|video)\b[^>]*\bsrc(?:set)?="{_ELSEWHERE}[^"]*"',
        rf'<link\b[^>]*\brel="(?!canonical)[^"]*"[^>]*\bhref="{_ELSEWHERE}[^"]*"',
        rf'<link\b[^>]*\bhref="{_ELSEWHERE}[^"]*"[^>]*\brel="(?!canonical)[^"]*"',
    ),
    ".css": (rf'@import\s+(?:url\()?["\']?{_ELSEWHERE}[^;]*', rf'url\(["\']?{_ELSEWHERE}[^)]*'),
}


def fetched(site: Path) -> list[str]:
    """What is fetched from elsewhere: "file: what", in order. Raises ValueError where there is no
    page at all."""
    found = []
    pages = [path for path in sorted(site.rglob("*")) if path.suffix in _PATTERNS]
    if not any(path.suffix == ".html" for path in pages):
        raise ValueError(f"expected a built site with pages; got {site}")
    for path in pages:
        text = path.read_text(encoding="utf-8", errors="replace")
        for pattern in _PATTERNS[path.suffix]:
            found += [f"{path.relative_to(site)}: {m.group()}" for m in re.finditer(pattern, text)]
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(f"expected the folder of the site; got {arguments}", file=sys.stderr)
        return 2
    found = fetched(Path(arguments[0]))
    for line in found:
        print(f"fetched from elsewhere: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
