# Two commands on a fresh machine: `make train` and `make test`. Both make .venv first.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Any Python from 3.11 on, the plain one first: make setup PYTHON=/path/to/python3.12 takes another.
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
# torch to install where there is no NVIDIA GPU. On Linux it is asked for by its own label, which PyPI's CUDA build of several GB does
# not carry: first among wheels that lie on this machine (pip's find-links), then at its publisher's. macOS has only one build.
TORCH := $(if $(filter Darwin,$(shell uname -s)),torch==2.13.0,torch==2.13.0+cpu)
CPU_WHEELS := https://download.pytorch.org/whl/cpu

.PHONY: help setup train test check format clean

help:
	@echo "make setup   make $(VENV) and install agentrl into it, with everything for development"
	@echo "make train   setup, then train the small model of examples/quickstart.yaml"
	@echo "make test    setup, then all tests"
	@echo "make check   setup, then lint, format and types"
	@echo "make format  setup, then rewrite the code in the project's format"
	@echo "make clean   remove $(VENV) and caches (runs/ stays)"

setup: $(STAMP)
	@echo "$(VENV) is ready: $(VENV)/bin/agentrl --help"

train: $(STAMP)
	$(VENV)/bin/agentrl train examples/quickstart.yaml

test: $(STAMP)
	$(PY) -m pytest

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Everything is installed again when the dependencies change; the stamp comes last, so that a broken install is tried again.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "agentrl needs Python 3.11 or newer with venv (on Debian and Ubuntu: apt install python3-venv);" \
		"found: $$(python3 --version 2>&1). Name another with: make setup PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@if $(PY) -c 'import torch' 2>/dev/null || nvidia-smi >/dev/null 2>&1; then :; else \
		echo "No NVIDIA GPU: installing $(TORCH)"; \
		$(PY) -m pip install --quiet --no-index --no-deps '$(TORCH)' 2>/dev/null \
		|| $(PY) -m pip install --extra-index-url $(CPU_WHEELS) '$(TORCH)' \
		|| { echo "No CPU build of torch could be had; to take PyPI's, of several GB: make setup TORCH=torch" >&2; exit 1; }; fi
	@echo "Installing agentrl and what it needs: a few minutes"
	$(PY) -m pip install --quiet --editable '.[dev]'
	@touch $@
