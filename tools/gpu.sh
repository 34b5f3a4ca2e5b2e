#!/usr/bin/env bash
# `make gpu`: on a machine with a CUDA device, builds vecsmith with its _cuda module, runs the tests
# that need the device and benchmarks there, with the Python and torch that are already installed and
# without any network. PYTHON names the interpreter (default python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" - <<'EOF'
import importlib.util
import shutil
import sys

try:
    import torch
except ImportError:
    sys.exit(f"make gpu uses the torch that is installed, and {sys.executable} has none: PYTHON=... names another")
if not torch.cuda.is_available():
    sys.exit(f"make gpu needs a CUDA machine: torch {torch.__version__} of {sys.executable} sees no CUDA device")
if shutil.which("nvcc") is None:
    sys.exit("make gpu needs nvcc on the PATH (or CUDACXX) to build the _cuda module")
needed = "scikit_build_core pybind11 pytest pytest_benchmark hypothesis numpy scipy safetensors tqdm typer rich"
absent = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if absent:
    sys.exit(f"make gpu works offline, and {sys.executable} lacks: {' '.join(absent)}")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {sys.executable}")
EOF

# Into a folder of its own: that Python may be read-only, and is nobody's to change.
site=$PWD/build/gpu/site
rm -rf "$site"
capability=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
SKBUILD_BUILD_DIR=build/gpu/objects \
SKBUILD_CMAKE_DEFINE="VECSMITH_CUDA=ON;CMAKE_CUDA_ARCHITECTURES=$capability" \
  "$python" -m pip install -q --disable-pip-version-check --no-index --no-build-isolation --no-deps \
  --target "$site" .
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
"$python" -c 'from vecsmith import _cuda; print(_cuda.__doc__ or "the _cuda module is there")'
"$python" -m pytest -m "gpu and not soak" "$@"
"$python" -m bench.bench_skipgram
