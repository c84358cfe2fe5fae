# Two commands: `make demo` and `make test`. Both set themselves up in .venv; running them again is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   set up, tune a small real model on film reviews, judge it, write a report"
	@echo "make test   set up, check style and types, run all tests"
	@echo "make lint   style and types alone"
	@echo "make lock   pin all dependencies anew (requirements.lock)"
	@echo "make clean  remove the environment and caches"

demo: $(VENV)/ready
	$(BIN)/luthier train recipes/demo.yaml --out runs/demo --auto-resume
	@echo "Open runs/demo/report.html in a browser. To tune again: rm -r runs/demo"

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --all-extras --group dev --generate-hashes \
		--no-emit-index-url --output-file requirements.lock --quiet

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Luthier needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@# uv is many times quicker than pip; pip is the way on machines where only pip knows the package mirror.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
