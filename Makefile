# Two commands do everything on a fresh machine:
#   make demo   makes .venv, installs, runs the whole loop on an embedded help desk
#   make test   the same .venv plus dev tools: lint, types, tests
# Nothing but Python 3.11 or 3.12, pip, git and make is needed.

PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: demo test quick lint types clean

demo: .venv/.installed
	@$(BIN)/rlhf demo

test: lint types
	@$(BIN)/pytest -n 3 --dist loadfile

# Everything that takes under ten seconds a test.
quick: .venv/.dev
	@$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

lint: .venv/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/.dev
	@$(BIN)/pyright

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "rlhf needs Python 3.11 or 3.12; name one with make PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing rlhf and its libraries into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.installed
	@echo "installing the dev tools into .venv"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
