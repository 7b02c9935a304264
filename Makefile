# Everything starts here; each target sets up what it needs, once. Node is needed only for the checks of the tab's scripts.
VENV ?= .venv
BIN := $(VENV)/bin
export VENV
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

.PHONY: help setup demo test check check-js bench docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.python-ready: pyproject.toml constraints.txt .ci/setup
	@bash .ci/setup python
	@touch $@

$(VENV)/.chromium-ready: | $(VENV)/.python-ready
	@bash .ci/setup chromium
	@touch $@

setup: $(VENV)/.python-ready $(VENV)/.chromium-ready ## virtual environment with pinned packages, and a browser for the tests

demo: $(VENV)/.python-ready ## train a VAE that dies, and open its recording in TensorBoard
	@$(BIN)/dgm-tb demo $(DEMO_ARGS)

# The tests run even if a check fails, so that one run tells everything; two workers, one thread of torch each: more only wait.
test: setup ## all checks, then all tests (PYTEST_ARGS="-k sampling" for some)
	@checks=0; $(MAKE) -k check check-js || checks=1; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(PYTEST_ARGS) && exit $$checks

check: $(VENV)/.python-ready ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

check-js: ## types and unit tests of the tab's scripts, where node is there
	@bash .ci/check-js

bench: $(VENV)/.python-ready ## measured cost; prints Markdown tables
	@for script in benchmarks/[a-z]*.py; do \
	  grep -q __main__ $$script || continue; echo "## $$script"; $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.python-ready ## write docs/records.md anew from the schema
	@$(BIN)/python docs/write_records.py

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) node_modules dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
