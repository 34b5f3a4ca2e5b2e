#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment, and trains with it for a second.
#   tools/wheel_check.sh [python]      (a Python that has the build requirements)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
command -v "$python" >/dev/null || { echo "expected a Python; got '$python'" >&2; exit 2; }
python=$(cd "$(dirname "$(command -v "$python")")" && pwd)/$(basename "$python")
wheels=build/wheel-check
rm -rf "$wheels" && mkdir -p "$wheels"

# In the build folder of `make build`: CMake compiles again what other settings make stale, and no more.
SKBUILD_CMAKE_DEFINE="VECSMITH_CUDA=OFF;VECSMITH_WERROR=${VECSMITH_WERROR:-OFF}" \
  "$python" -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w "$wheels" .
wheel=$(echo "$wheels"/*.whl)
echo "built $wheel ($(du -h "$wheel" | cut -f1))"
"$python" tools/check_symbols.py build
"$python" tools/check_wheel.py "$wheel"

base=$("$python" -c 'import sys; print(getattr(sys, "_base_executable", None) or sys.executable)')
"$base" -m venv "$wheels/venv"
"$wheels/venv/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt torch
"$wheels/venv/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt "$wheel"
# From another folder, so that nothing of the source tree is imported.
smoke=$PWD/tools/wheel_smoke.py
environment=$PWD/$wheels/venv
(cd "$wheels" && "$environment/bin/python" -I "$smoke" && "$environment/bin/vecsmith" info >/dev/null)
rm -rf "$wheels/venv"
