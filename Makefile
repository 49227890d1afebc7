# Needs Python >= 3.11, a C compiler and make; each target installs what it uses.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= runs/demo
JOBS ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')

.PHONY: help install demo demo-all test lint test-newest clean

help:
	@echo "make demo         simulate, prepare, pretrain, evaluate, export, verify"
	@echo "make demo-all     after it: every evaluation set, every protocol"
	@echo "make test         lint, types and every test: what continuous integration runs"
	@echo "make test-newest  the tests on a second Python with the newest jax"
	@echo "make install      only the virtual environment in $(VENV)"
	@echo "Options: PYTHON=python3.12  VENV=.venv  DEMO=runs/demo  JOBS=2"

install: $(VENV)/installed

$(VENV)/installed: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python >= 3.11 is needed; $(PYTHON) is older. Say PYTHON=/path/to/it"; exit 2; }
	@echo "installing into $(VENV) (a few minutes, once)"
	@start=$$(date +%s); \
	$(PYTHON) -m venv $(VENV) && \
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev,torch]' && \
	$(BIN)/python -c 'import medclip_jax, jax, torch' && \
	echo "installed in $$(( $$(date +%s) - start )) s"
	@touch $@

demo: install
	@DEMO=$(DEMO) JOBS=$(JOBS) PATH="$(CURDIR)/$(BIN):$$PATH" bash ./demo.sh

demo-all: install
	@test -d $(DEMO)/train || { echo "error: $(DEMO)/train is not there; make demo first"; exit 2; }
	@DEMO=$(DEMO) JOBS=$(JOBS) PATH="$(CURDIR)/$(BIN):$$PATH" bash ./demo_all.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The TPU compiler makes the programs of the TPU tests; it needs no TPU, and the tests
# run on the host unless told otherwise.
$(VENV)/installed-tpu: $(VENV)/installed
	@echo "installing the TPU compiler into $(VENV)"
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[tpu]'
	@touch $@

test: lint $(VENV)/installed-tpu
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m pytest -n $(JOBS)

# A second Python with the newest versions it can have: no constraints, no torch
# (the parity tests with torch skip themselves).
NEWEST_PYTHON ?= python3.12
test-newest:
	@test -d .venv-newest || $(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -qq --upgrade -e '.[dev]'
	.venv-newest/bin/python -c 'import sys, jax; print("Python", sys.version.split()[0], "jax", jax.__version__)'
	.venv-newest/bin/python -m pytest -n $(JOBS)

clean:
	rm -rf runs .venv .venv-newest build *.egg-info
