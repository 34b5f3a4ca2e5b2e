PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VECSMITH_CUDA ?= OFF

.PHONY: build
build:
	$(BIN)/pip install -q --no-build-isolation --no-deps -C cmake.define.VECSMITH_CUDA=$(VECSMITH_CUDA) -e .
