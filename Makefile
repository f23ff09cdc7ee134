# The README's two commands are `make scan` and `make test`; both start with `make install`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: install scan test test-fast lint wheel-test shots docs bench clean

install: $(STAMP)

# The stamp is written last, so an interrupted install is simply repeated.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'pip>=25.1'
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt --editable '.[hf]' --group dev --group docs
	touch $(STAMP)

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal --timeout 600

test-fast: install
	$(BIN)/python -m pytest -n 2 --dist worksteal --timeout 120 -m "not slow and not browser"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/typos
	$(BIN)/pyright

clean:
	rm -rf build dist docs/_build .pytest_cache .ruff_cache

# Pictures of every report that was made, at two sizes and in two themes.
shots: install
	$(BIN)/python tools/shots.py $(wildcard reports/*.html) -o shots
