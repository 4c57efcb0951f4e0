# Everything builds its own virtual environment; only Python 3.11 or newer and a package index are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
MINUTES ?= 10
SEED ?=

.PHONY: help demo test test-slow lint bench chaos clean
help:
	@echo "make demo    run the main job on embedded servers (ARGS=--json for figures only)"
	@echo "make test    run the tests on embedded servers (ARGS='-k words' to choose)"
	@echo "make test-slow    those that take longer: workers stopped for a lease, servers killed, many reconnects"
	@echo "make lint    ruff, mypy and the import contracts"
	@echo "make bench   compare with plain Celery"
	@echo "make chaos   kill, stop and cut real workers and servers (MINUTES=10 SEED=n; ARGS=--help)"
	@echo "make clean   remove the virtual environment and the embedded servers' data"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "celery_backfill needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m examples.indexing $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

chaos: $(STAMP)
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean:
	@test ! -x $(BIN)/python || $(BIN)/python -c 'from celery_backfill import embedded; embedded.remove()'
	rm -rf $(VENV) .backfill
