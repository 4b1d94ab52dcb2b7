# make test: installs, runs every test.   make demo: installs, renders, trains, evaluates, reports.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install test demo clean

install: $(VENV)/installed

# torch first: DALI's wheel must fit the CUDA version that this torch was built with.
$(VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"actdet needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision
	cuda=$$($(BIN)/python -c 'import torch; print((torch.version.cuda or "13").split(".")[0])') && \
		$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test,cuda$$cuda]"
	touch $@

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest

demo: install
	rm -rf runs/demo
	$(BIN)/actdet demo --out runs/demo

clean:
	rm -rf $(VENV) runs
