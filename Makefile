# Two commands do all the set-up: `make demo` and `make test`. Python 3.10 or later and make are enough.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := pyproject.toml setup.py $(wildcard dinowds/*/*.c)

.PHONY: demo test faults lint types layers docs format clean

demo: $(VENV)/.demo
	$(BIN)/dinowds demo

test: lint types layers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

faults: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.full

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy dinowds cli tests

layers: $(VENV)/.dev
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is older than Python 3.10: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "no venv module: on Debian or Ubuntu, apt install python3-venv"; exit 1; }

$(VENV)/.demo: $(INSTALLED) | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo]'
	touch $@

$(VENV)/.dev: $(INSTALLED) | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
