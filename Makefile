# make demo · test · check · bench: four words to learn. `make slow` runs what takes minutes; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check bench slow clean
.DEFAULT_GOAL := help

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/activate: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("qm-proxy needs Python 3.11 or newer; found " + sys.version.split()[0] + " (set PYTHON=python3.11)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.venv-aider/bin/aider: ## aider, for the one test that runs it
	$(PYTHON) -m venv .venv-aider
	.venv-aider/bin/python -m pip install --quiet --disable-pip-version-check aider-chat

.venv-phoenix/bin/phoenix: ## Phoenix, for the slow test that sends it spans
	$(PYTHON) -m venv .venv-phoenix
	.venv-phoenix/bin/python -m pip install --quiet --disable-pip-version-check arize-phoenix

.venv-mlflow/bin/mlflow: ## MLflow, for the slow test that sends it spans
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check mlflow

.PHONY: .venv-aider .venv-phoenix .venv-mlflow
.venv-aider: .venv-aider/bin/aider
.venv-phoenix: .venv-phoenix/bin/phoenix
.venv-mlflow: .venv-mlflow/bin/mlflow

demo: $(BIN)/activate ## install here, then the main job on a simulated Ollama with known truth
	@$(BIN)/qm-proxy demo --seconds $(or $(DEMO_SECONDS),32)

test: $(BIN)/activate ## all tests that need no network, GPU or model
	@$(BIN)/python -m pytest -q

check: $(BIN)/activate ## ruff, mypy --strict, tests
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python -m pytest -q

bench: $(BIN)/activate ## direct, nginx and ours side by side (needs gcc and nginx)
	@$(BIN)/python benchmarks/bench_relay.py

slow: $(BIN)/activate ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m slow --timeout 3000

clean: ## remove what make made
	rm -rf $(VENV) benchmarks/build build dist *.egg-info
