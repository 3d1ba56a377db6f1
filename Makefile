# Two commands are all a newcomer needs:  make demo   and   make test
# PYTHON selects the interpreter that the virtual environment is made from:  make test PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NEEDS  := pyproject.toml constraints.txt
INSTALL = $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt

# Where nothing writes bytecode, each process of a test compiles torch and onnx anew: 2 to 5 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint test-long torture package bench matrix docs clean

help:
	@echo "make demo       train the seed network for some seconds, fold it, prove it (needs no data, no GPU)"
	@echo "make test       everything that must pass: ruff, mypy, pytest"
	@echo "make test-long  the same with the long profiles (minutes)"
	@echo "make torture    hostile and broken input files; prints the table of outcomes"
	@echo "make package    sdist and wheel in dist/, installed in an environment of their own and tried"
	@echo "make bench      the measurements"
	@echo "make matrix     other versions of torch and Python, each in an environment of its own (10 GB each, an hour in all)"
	@echo "make docs       the documentation, in build/docs; a warning is an error"
	@echo "make clean      remove everything that the above made, the virtual environment too"

# The stamps are newer than what they were installed from, or pip runs again.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-examples: $(NEEDS) | $(BIN)/python
	$(INSTALL) --editable '.[examples]'
	@touch $@

$(VENV)/.installed-test: $(NEEDS) | $(BIN)/python
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/.installed-examples

demo/model.pt: examples/seed_network.py | $(VENV)/.installed-examples
	$(BIN)/python examples/seed_network.py $@

demo: $(VENV)/.installed-examples demo/model.pt
	$(BIN)/python cli.py fold demo/model.pt --code examples/seed_network.py --report demo/report.html --force

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Runs the linters beside the tests, shows what they said last, and fails when either does.
BESIDE_LINT = @mkdir -p build; $(MAKE) --no-print-directory lint > build/lint.txt 2>&1 & linters=$$!; \
	$(1); tested=$$?; wait $$linters; linted=$$?; cat build/lint.txt; [ $$tested$$linted = 00 ]

test: $(VENV)/.installed-test
	$(call BESIDE_LINT,$(BIN)/python -m pytest -n auto --dist worksteal)

test-long: $(VENV)/.installed-test
	$(call BESIDE_LINT,HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest --long)

torture: $(VENV)/.installed-test
	$(BIN)/python -m tests.files.torture

package: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/test_package.py
	rm -rf dist build/lib
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" > /dev/null
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	$(BIN)/python -m pip install --quiet --disable-pip-version-check twine
	$(BIN)/python -m twine check --strict dist/*
	@ls dist

bench: $(VENV)/.installed-test
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

matrix: $(VENV)/.installed-test
	$(INSTALL) uv
	$(BIN)/python benchmarks/matrix.py

$(VENV)/.installed-docs: $(NEEDS) | $(BIN)/python
	$(INSTALL) --editable '.[docs]'
	@touch $@

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find bnfold tests examples benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
