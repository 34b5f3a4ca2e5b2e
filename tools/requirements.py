"""Prints what to install for this project, one requirement per line: the dependencies of
pyproject.toml and those of the extras named on the command line ("build": its build system).

`make` installs these first, so that the project itself can be built without isolation and without
resolving anything a second time.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib


def requirements(pyproject: dict, extras: list[str]) -> list[str]:
    """The requirements, extras of this very project ("vecsmith[zst,plot]") expanded."""
    project = pyproject["project"]
    found: list[str] = list(project["dependencies"])
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop(0)
        if extra in seen:
            continue
        seen.add(extra)
        if extra == "build":
            # cmake and ninja: what scikit-build-core would fetch into an isolated build.
            found += [*pyproject["build-system"]["requires"], "cmake>=3.21", "ninja"]
            continue
        try:
            wanted = project["optional-dependencies"][extra]
        except KeyError:
            known = ", ".join(["build", *project["optional-dependencies"]])
            raise SystemExit(f"expected an extra among {known}; got {extra!r}") from None
        for requirement in wanted:
            own = re.fullmatch(rf"{re.escape(project['name'])}\[([^\]]+)\]", requirement)
            if own:
                waiting += [name.strip() for name in own.group(1).split(",")]
            else:
                found.append(requirement)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    print("\n".join(requirements(tomllib.loads(text), sys.argv[1:])))
