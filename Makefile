# vitlab: `make demo` and `make test` are all that a fresh machine with Python 3.11+ needs.

PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help setup demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    set up .venv if need be, then distil a small TinyViT on real digits (a few minutes)'
	@echo 'make test    set up .venv if need be, then run the tests; also: make test ARGS="-k run -x"'
	@echo 'make setup   set up .venv; does nothing when it is up to date'
	@echo 'make lint    ruff and mypy'
	@echo 'make bench   speed of data, store and training step against plain alternatives'
	@echo 'make clean   remove .venv and caches; outputs/ stays'

setup: $(READY)

# The stamp is written last: a set-up that was interrupted is taken up again by the next make.
# uv is used from PATH or from .venv (where pip puts it); pip does the same work, slower, where uv is not to be had
# or fails (an index that only pip is configured for).
$(READY): pyproject.toml Makefile
	@if [ -z "$(PYTHON)" ]; then \
		echo "vitlab needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || true)." >&2; \
		echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not Python 3.11 or newer, which vitlab needs." >&2; exit 1; }
	@$(BIN) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || { \
		rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@if command -v uv >/dev/null; then uv=uv; \
	elif $(BIN) -m pip install --quiet uv 2>/dev/null; then uv="$(BIN) -m uv"; \
	else uv=; fi; \
	echo "Setting up $(VENV) with $${uv:-pip}; the first time this fetches torch and takes some minutes."; \
	{ [ -n "$$uv" ] && $$uv pip install --python $(BIN) --editable '.[dev]'; } || \
	$(BIN) -m pip install --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN) -m vitlab $(ARGS)

test: setup
	$(BIN) -m pytest -m 'not slow and not bench' -n auto --no-loadscope-reorder $(ARGS)

lint: setup
	$(BIN) -m ruff check vitlab tests
	$(BIN) -m ruff format --check vitlab tests
	$(BIN) -m mypy

bench: setup
	@for file in tests/bench/bench_*.py; do echo "== $$file"; PYTHONPATH=. $(BIN) $$file || exit 1; done

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find vitlab tests -name __pycache__ -type d -prune -exec rm -rf {} +
