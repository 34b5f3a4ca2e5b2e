#!/usr/bin/env bash
# Builds the wheel, and proves that it works where there is nothing to build with: installed into an
# empty environment with no compiler within reach, every operator at every ISA level of this machine,
# and, where there is valgrind, on its processor, which has AVX2 alone.
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
case $(uname -m) in
  # The module of the wheel is stripped: the one in the build folder of its tag has the names, too.
  x86_64) "$python" tools/check_instructions.py "build/$(basename "$wheel" .whl | cut -d- -f3-)" --wheel "$wheel" ;;
esac

base=$("$python" -c 'import sys; print(getattr(sys, "_base_executable", None) or sys.executable)')
"$base" -m venv "$wheels/venv"
environment=$PWD/$wheels/venv
smoke=$PWD/tools/wheel_smoke.py
wheel=$PWD/$wheel
constraints=$PWD/constraints.txt
valgrind=()
if program=$(command -v valgrind); then
  valgrind=(--valgrind "$program")
else
  echo "no valgrind on this machine: no processor with AVX2 alone is emulated"
fi
# From here on there is no compiler, and no other program either; and the folder is another, so that
# nothing of the source tree is imported.
cd "$wheels"
bare() {
  # One thread: the machine may be busy with the tests, and threads that wait for each other spin.
  env PATH="$environment/bin" CC=/nonexistent CXX=/nonexistent CUDACXX=/nonexistent \
    OMP_NUM_THREADS=1 "$@"
}
install=("$environment/bin/python" -m pip install -q --disable-pip-version-check --no-compile -c "$constraints")
bare "${install[@]}" --only-binary :all: torch
bare "${install[@]}" --only-binary :all: "$wheel"
bare "$environment/bin/python" -I "$smoke" "${valgrind[@]}"
rm -rf "$environment"
