# `make help` lists what there is. `make demo` and `make test` do all of their own set-up.
#
# PYTHON=python3.12    the interpreter that the virtual environment is made with
# VENV=.venv           where it is made
# ARGS="-k skipgram"   more arguments for pytest, the demo or the benchmarks
# VECSMITH_CUDA=AUTO   also build the _cuda module where nvcc is found (`make gpu` does by itself)
# pip's own variables choose a package index: PIP_EXTRA_INDEX_URL=... make test
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
VECSMITH_CUDA ?= OFF
VECSMITH_WERROR ?= OFF

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
INSTALL := $(PIP) install -c constraints.txt
STAMPS := $(VENV)/.stamps
NATIVE := CMakeLists.txt $(shell find csrc \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \))
CXX_SOURCES = $(shell find csrc tests/fuzz \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)
# Read by scikit-build-core; on the command line of an old pip there is no short way to say it.
export SKBUILD_CMAKE_DEFINE := VECSMITH_CUDA=$(VECSMITH_CUDA);VECSMITH_WERROR=$(VECSMITH_WERROR)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-triton test-others test-a-to-l test-m-to-z bench gpu lint types format docs build soak fuzz symbols wheel-check cuda-compile clean

help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

# --- Set-up: environment, dependencies, build. A stamp each, so that a second run is quick. --------

$(STAMPS)/venv:
	@command -v $(PYTHON) >/dev/null || { echo "vecsmith needs Python >= 3.10, and there is no '$(PYTHON)': install python3, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "vecsmith needs Python >= 3.10, and $(PYTHON) is $$($(PYTHON) -V 2>&1): say make PYTHON=/path/to/python3.10" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install python3-venv (Debian, Ubuntu: sudo apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) tools/check_compiler.py
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torch first and alone: a later package must not choose another build of it.
$(STAMPS)/deps: $(STAMPS)/venv constraints.txt pyproject.toml tools/requirements.py
	$(INSTALL) torch
	@$(BIN)/python tools/requirements.py build test lint > $(STAMPS)/requirements.txt
	$(INSTALL) -r $(STAMPS)/requirements.txt
	@touch $@

$(STAMPS)/built: $(STAMPS)/deps $(NATIVE) pyproject.toml
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

# Pages are made from the sources' text: nothing is built or imported for them. (ruff wraps long signatures.)
$(STAMPS)/docs: $(STAMPS)/venv constraints.txt
	$(INSTALL) matplotlib mkdocs-material 'mkdocstrings[python]' ruff
	@touch $@

build: $(STAMPS)/deps ## build the native module in place (CMake decides what is stale)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --no-deps -e .
	@touch $(STAMPS)/built

# --- What a user runs. ---------------------------------------------------------------------------

demo: $(STAMPS)/built ## word vectors from the docstrings on this machine: neighbors, rate, a map
	$(BIN)/python -m vecsmith.cli.demo $(ARGS)

# Triton reads TRITON_INTERPRET when it is imported, so its tests have a process of their own. With
# ARGS both runs take them, and a run that selects nothing (pytest's status 5) is not a failure.
# Without, the others are two halves by their files' names, which `make -j` runs beside each other.
test: test-triton $(if $(strip $(ARGS)),test-others,test-a-to-l test-m-to-z) ## every test that this machine can run

test-others: $(STAMPS)/built
	$(BIN)/python -m pytest -m "not triton and not soak" $(ARGS)

test-a-to-l: $(STAMPS)/built
	$(BIN)/python -m pytest -m "not triton and not soak" --ignore-glob='*/test_[m-z]*'

test-m-to-z: $(STAMPS)/built
	$(BIN)/python -m pytest -m "not triton and not soak" --ignore-glob='*/test_[a-l]*'

test-triton: $(STAMPS)/built
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m "triton and not soak" $(ARGS) || [ $$? -eq 5 ]

soak: $(STAMPS)/built ## the long tests: fifty kills, large corpora
	$(BIN)/python -m pytest -m soak $(ARGS)

bench: $(STAMPS)/built ## benchmarks against the reference and every peer that is installed
	$(BIN)/python -m bench.run $(ARGS)
	$(BIN)/python tools/make_benchmark_page.py

# A rehearsal runs where development does, with its environment; the rest with the machine's own.
REHEARSAL := $(findstring --rehearse,$(ARGS))
gpu: $(if $(REHEARSAL),$(STAMPS)/built) ## on a CUDA machine: build, test and benchmark with its own Python and torch, offline
	$(if $(REHEARSAL),$(BIN)/python,$(PYTHON)) tools/gpu.py $(ARGS)

# --- What a developer runs. ----------------------------------------------------------------------

lint: $(STAMPS)/deps ## ruff, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

types: $(STAMPS)/built ## pyright over the public package
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMPS)/deps ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

symbols: $(STAMPS)/built ## no STL, no weak symbols in the per-ISA kernel objects
	$(BIN)/python tools/check_symbols.py build

wheel-check: $(STAMPS)/deps ## build the wheel, install it into an empty environment, train with it
	PATH="$(abspath $(BIN)):$$PATH" bash tools/wheel_check.sh $(BIN)/python

cuda-compile: $(STAMPS)/deps ## compile _cuda for sm_80, sm_90 and sm_100; it must import without a GPU
	PATH="$(abspath $(BIN)):$$PATH" bash tools/cuda_compile.sh $(BIN)/python

fuzz: $(STAMPS)/built ## the native readers under AddressSanitizer and UBSan
	bash tests/fuzz/run.sh $(ARGS)

docs: $(STAMPS)/docs ## the documentation, into site/; a link that leads nowhere is an error
	$(BIN)/python tools/make_benchmark_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@$(BIN)/python tools/check_site.py site

clean: ## everything that was built, but not the virtual environment
	rm -rf build dist site demo .pytest_cache .ruff_cache .hypothesis .benchmarks $(STAMPS)/built
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
