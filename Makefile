# `make` lists the targets. Environments are built once and again when what they are built from
# changes; every installation goes through a constraints file.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PYTHONUNBUFFERED := 1

# The first interpreter that is new enough and can make environments; PYTHON=... overrides.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' \
	>/dev/null 2>&1; then echo "$$python"; break; fi; done)
endif

VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
VENV_READY := $(VENV)/.ready
PEERS_READY := $(PEERS)/.ready
# Two workers; each keeps whole files, because those share servers and groups of ranks.
PYTEST_ARGS ?= -n 2 --dist loadfile

export TORCH_S3DCP_PEERS_PYTHON := $(abspath $(PEERS)/bin/python)

.PHONY: help venv peers lint test campaign demo bench docs wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV_READY)  ## environment with the package and all tools

peers: $(PEERS_READY)  ## environment with other packages for the same job

lint: $(VENV_READY)  ## style, types, and the direction of imports
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import-linter"
	@$(BIN)/lint-imports

test: $(VENV_READY) $(PEERS_READY) lint  ## everything that must pass (PYTEST_ARGS='-k ...')
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

campaign: $(VENV_READY)  ## the long forms of all fault campaigns: hours
	@echo "==> campaigns"
	@$(BIN)/python -m campaigns

demo: $(VENV_READY)  ## save and load a checkpoint on a local S3 server
	@echo "==> demo"
	@$(BIN)/python -m examples.demo

bench: $(VENV_READY) $(PEERS_READY)  ## measure loading once, beside other packages
	@echo "==> benchmarks"
	@$(BIN)/python -m benchmarks.load --rounds 1

docs: $(VENV_READY)  ## the documentation site, in site/
	@echo "==> mkdocs"
	@$(BIN)/mkdocs build --strict --quiet

wheel: $(VENV_READY)  ## the wheel, in dist/
	@echo "==> wheel"
	@$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove environments and all that is built
	rm -rf $(VENV) $(PEERS) build dist site .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(1): folder. The interpreter of an environment that stands is kept.
define make_environment
	@test -n "$(PYTHON)" || { echo "no Python >= 3.10 with venv found; set PYTHON=..." >&2; exit 1; }
	@test -x $(1)/bin/python || { echo "==> $(1): new environment ($(PYTHON))"; "$(PYTHON)" -m venv $(1); }
endef

$(VENV_READY): pyproject.toml constraints.txt torch_s3dcp/_version.py
	$(call make_environment,$(VENV))
	@echo "==> $(VENV): installing the package and its tools"
	@$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	@touch $@

$(PEERS_READY): constraints-peers.txt
	$(call make_environment,$(PEERS))
	@echo "==> $(PEERS): installing other packages for the same job"
	@$(PEERS)/bin/python -m pip install -q -c constraints-peers.txt torch numpy 's3torchconnector[dcp]' s3fs 'obstore; python_version >= "3.11"'
	@touch $@
