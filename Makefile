# From a bare clone: `make build`, then `make test` or `make demo`. The first call creates .venv;
# an activated virtual environment is used as it is instead.
#   TORCH=torch==2.11.0   the torch put into .venv if it has none
#   PYTHON=python3.12     the interpreter that creates .venv
#   MAX_JOBS=8            parallel compilations (2)

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
ifdef VIRTUAL_ENV
  BIN := $(VIRTUAL_ENV)/bin
  READY :=
else
  BIN := $(VENV)/bin
  READY := $(VENV)/.ready
endif
RUN := $(BIN)/python

# Idle OpenMP threads sleep instead of spinning on a busy machine.
export OMP_WAIT_POLICY ?= passive
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SHELL := /bin/bash
CXX_FILES = $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
ROOM_TESTS = $(wildcard tests/test_embedding*.py tests/test_layer_norm*.py tests/test_attention*.py tests/test_ffn*.py tests/test_encoder*.py)

.PHONY: build test test-full test-isa test-abi static-gate sanitize lint format demo bench clean

build: $(READY)
	@$(RUN) setup.py -q build_native --inplace

test: build
	$(RUN) -m pytest -q $(ARGS)

test-full: build
	$(RUN) -m pytest -q -m "full or not full" $(ARGS)
	TRITON_INTERPRET=1 $(RUN) -m pytest -q -k "interpreted or (test_ops and triton)" $(ARGS)

# The CPU kernels again, as on machines without the newest instructions.
test-isa: build
	BIGKERNELS_ISA=scalar $(RUN) -m pytest -q -k cpu $(ROOM_TESTS) $(ARGS)
	BIGKERNELS_ISA=avx2 $(RUN) -m pytest -q -k cpu $(ROOM_TESTS) $(ARGS)

# What the GPU compilers make of every shipped kernel, against tests/static/table.tsv; ARGS=--update writes it.
static-gate: build
	$(RUN) -m tests.static $(ARGS)

# One binary for every torch: the libraries built here, loaded by the oldest supported torch.
test-abi: build .venv-abi/.ready
	.venv-abi/bin/python -m pytest -q $(ARGS)

# The CPU kernels without torch, built once more with a sanitizer: $(1) its checks, $(2) its library.
# numpy's products, the tests' oracle, stay in one thread: a sanitizer cannot see into theirs.
define SANITIZED
CXXFLAGS="-fsanitize=$(1) -fno-sanitize-recover=all -O1 -g1" LDFLAGS="-fsanitize=$(1)" \
  $(RUN) setup.py -q build_native --build-temp build/$(2) --build-lib build/$(2)/lib
ASAN_OPTIONS=detect_leaks=0 OPENBLAS_NUM_THREADS=1 LD_PRELOAD=$$(g++ -print-file-name=lib$(2).so) \
  PYTHONPATH=build/$(2)/lib/bigkernels $(RUN) -m pytest -q -s --noconftest tests/test_native*.py
endef
comma := ,

sanitize: $(READY)
	$(call SANITIZED,address$(comma)undefined,asan)
	$(call SANITIZED,thread,tsan)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run --Werror $(CXX_FILES))
	$(RUN) tests/check_house.py

format: $(READY)
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format -q .
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

demo: build
	$(RUN) -m bigkernels demo $(ARGS)

bench: build
	$(RUN) -m bigkernels bench $(ARGS)

clean:
	rm -rf build dist *.egg-info bigkernels/*.so bigkernels/_build_info.json

# torch first: a resolver that is free to choose would take another one. Triton's CPU interpreter
# lets the Triton kernels be tested without a GPU; CUDA builds of torch bring their own.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install -q triton==3.6.0
	$(BIN)/python -m pip install -q -e ".[dev,hf]"
	@touch $@

.venv-abi/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-abi
	.venv-abi/bin/python -m pip install -q torch==2.11.0
	.venv-abi/bin/python -m pip install -q "setuptools>=77" "numpy<2.4" pytest pytest-timeout pytest-benchmark \
	  hypothesis matplotlib "transformers>=5.17,<5.24" "accelerate>=1.1" "datasets>=3" scikit-learn tqdm
	@touch $@
