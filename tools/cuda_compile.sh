#!/usr/bin/env bash
# Compiles the _cuda module for every architecture that it is shipped for, and imports it: it must
# load on a machine that has no GPU and no driver.   tools/cuda_compile.sh [python]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
folder=build/cuda-compile
mkdir -p build
cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -DVECSMITH_CUDA=ON \
  -DVECSMITH_WERROR="${VECSMITH_WERROR:-OFF}" -DPython_EXECUTABLE="$(command -v "$python")" \
  -DSKBUILD_PROJECT_VERSION=0 "-DCMAKE_CUDA_ARCHITECTURES=80-real;90-real;100" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$folder.log" 2>&1 ||
  { cat "$folder.log"; exit 1; }
cmake --build "$folder" --target _cuda
CUDA_VISIBLE_DEVICES="" PYTHONPATH=$folder "$python" -c '
import _cuda
print(f"{_cuda.__file__} imports; it sees", *(f"{n}" for n in dir(_cuda) if not n.startswith("_")))'
if command -v cuobjdump >/dev/null; then
  found=$(cuobjdump --list-elf "$folder"/_cuda*.so | grep -o 'sm_[0-9]*' | sort -u | tr '\n' ' ')
  echo "machine code for: $found"
  for wanted in sm_80 sm_90 sm_100; do
    [[ " $found " == *" $wanted "* ]] || { echo "expected code for $wanted" >&2; exit 1; }
  done
else
  # What was asked of nvcc is all that can be seen then.
  for wanted in sm_80 sm_90 sm_100; do
    grep -q "$wanted" "$folder/build.ninja" || { echo "expected code for $wanted" >&2; exit 1; }
  done
  echo "compiled for sm_80, sm_90 and sm_100 (no cuobjdump here to list what came of it)"
fi
