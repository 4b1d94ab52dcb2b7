# make test: installs, runs the tests.   make test-all: the slow ones, too.   make demo: installs, renders, trains, evaluates, reports.
# make test-sanitized: the C++ kernels under the address and the undefined behavior sanitizer.
# make bench: installs the benchmarks' opponents, too, runs all that this machine can, writes runs/bench/report.md.
# make gates: every kernel compiled for every architecture with each of TRITONS, without a GPU; writes runs/gates/*.json.
# make test-pascal: the kernels' tests and gates in an environment of the last PyTorch for Pascal GPUs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PASCAL := .venv-pascal

# The last release of each supported minor version. A folder for each, with nothing else in it, goes before the Triton
# that came with PyTorch. The slow tests try two: the one that has given the most trouble, and the newest.
TRITONS := 3.3.1 3.4.0 3.5.1 3.6.0 3.7.1 3.8.0 3.9.0
TESTED_TRITONS := 3.6.0 $(lastword $(TRITONS))
OTHER := .tritons
installed = $(if $(filter Linux,$(shell uname)),$(1:%=$(OTHER)/%/installed))

# What the C++ kernels are compiled from, when the checkout is installed.
NATIVE := kernels/setup.py $(wildcard kernels/actdet_kernels/cpu/src/*)

CHECK_PYTHON = $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"actdet needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12")'

.PHONY: install lint test test-all test-sanitized gates test-pascal demo bench clean

install: $(VENV)/installed

# Before 3.8, Triton's interpreter, in which the tests run its kernels, fails with NumPy 2.4.
NUMPY = $(BIN)/python -c 'import triton; old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8); print("numpy<2.4" if old else "numpy")' \
	2> /dev/null || echo numpy

# torch first: DALI's wheel must fit the CUDA version that this torch was built with.
$(VENV)/installed: pyproject.toml setup.py Makefile $(NATIVE)
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision
	cuda=$$($(BIN)/python -c 'import torch; print((torch.version.cuda or "13").split(".")[0])') && numpy=$$($(NUMPY)) && \
		$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test,cuda$$cuda]" "$$numpy"
	touch $@

# A process of tests for each core, of which none has more than one thread of its own: threads that share a core wait
# for each other at every barrier.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

test: install lint
	$(PYTEST)

test-all: install lint $(call installed,$(TESTED_TRITONS))
	$(PYTEST) -m "slow or not slow"

# Types are checked against the annotations of PyTorch from 2.14 on. Those of older versions differ.
ARE_TYPES_KNOWN = $(BIN)/python -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14))'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	if $(ARE_TYPES_KNOWN); then $(BIN)/pyright --pythonpath $(BIN)/python; \
		else echo "types are not checked: this PyTorch is older than 2.14"; fi

$(OTHER)/%/installed: | $(VENV)/installed
	rm -rf $(@D)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(@D) triton==$*
	touch $@

# All of them, whatever one of them finds. Compiled anew, so that the seconds are those of compiling.
gates: $(call installed,$(TRITONS))
	mkdir -p runs/gates
	failed=0; for version in $(TRITONS); do \
		TRITON_ALWAYS_COMPILE=1 PYTHONPATH=$(OTHER)/$$version:kernels \
			$(BIN)/python -m actdet_kernels.gates --json runs/gates/$$version.json || failed=1; \
	done; exit $$failed

# PyTorch 2.7.1 brings Triton 3.3.1, whose interpreter fails with NumPy 2.4.
$(PASCAL)/installed: Makefile $(NATIVE)
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(PASCAL)
	$(PASCAL)/bin/pip install --quiet --disable-pip-version-check torch==2.7.1 torchvision==0.22.1 "numpy<2.4" scipy \
		hypothesis pytest pytest-benchmark pytest-timeout
	$(PASCAL)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable ./kernels
	touch $@

test-pascal: $(PASCAL)/installed
	$(PASCAL)/bin/pytest tests/kernels
	$(PASCAL)/bin/python -m actdet_kernels.gates

# The C++ kernels, built to stop at the first wrong address and at undefined behavior, under the tests that run them and
# neither compile nor start other processes.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
RUNTIME = $(foreach library,asan ubsan,$(shell $(or $(CXX),c++) -print-file-name=lib$(library).so))

test-sanitized: install
	rm -rf runs/sanitized
	CFLAGS="$(SANITIZE)" CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target runs/sanitized ./kernels
	LD_PRELOAD="$(RUNTIME)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=runs/sanitized \
		$(PYTEST) tests/kernels -k "(cpu or invalid_values or beyond) and not compiled and not package"

demo: install
	rm -rf runs/demo
	$(BIN)/actdet demo --out runs/demo

$(VENV)/opponents: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[bench]"
	touch $@

# torchcodec looks for FFmpeg's libraries where LD_LIBRARY_PATH says.
bench: $(VENV)/opponents
	LD_LIBRARY_PATH=$$($(BIN)/python -m bench.ffmpeg runs/bench/ffmpeg)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH} \
		$(BIN)/pytest -q -W default bench --results runs/bench/results.json --benchmark-columns=median,iqr,rounds
	$(BIN)/python -m bench.report runs/bench/results.json

clean:
	rm -rf $(VENV) $(PASCAL) $(OTHER) runs
