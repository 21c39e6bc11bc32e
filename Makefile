# Everything a contributor types. Each target makes its own environment in .venv first; `make` alone lists them.
# ARGS= goes to the program that a target runs: make test ARGS="-k sapo", make quickstart ARGS="seed=1".

.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV := .venv/bin
ARGS ?=
TEST_WORKERS ?= 2

.PHONY: help setup quickstart test format lint types docs bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo '  ARGS="..." is passed on; PYTHON=... picks the Python that .venv is made from; TEST_WORKERS=0 tests in one process.'

setup: ## Make .venv ready: three minutes the first time, at once afterwards
	@python="$$(sh tools/find_python.sh)" && "$$python" tools/setup_env.py

quickstart: setup ## Train a tiny Qwen3-VL from nothing, fine-tune it, improve it by RL, distil it; ends with a report
	@$(VENV)/posttrain run recipes/quickstart.yaml $(ARGS)

test: setup ## Run all tests, the slow ones and vLLM's included
	@OMP_NUM_THREADS=1 $(VENV)/python -m pytest -q -n $(TEST_WORKERS) --dist loadgroup $(ARGS)

format: setup ## Rewrite the code in the house format, with ruff's safe fixes
	@$(VENV)/ruff check --fix-only --quiet . && $(VENV)/ruff format . $(ARGS)

lint: setup ## Check style and format, changing nothing
	@$(VENV)/ruff check . $(ARGS) && $(VENV)/ruff format --check .

types: setup ## Check types
	@$(VENV)/pyright $(ARGS)

docs: setup ## Check that every link, command, recipe and import that the documents name exists
	@$(VENV)/python -m pytest -q tests/test_docs.py $(ARGS)

bench: setup ## Run the benchmarks one after the other, and keep their figures in benchmarks/results/
	@OMP_NUM_THREADS=1 $(VENV)/python tools/run_benchmarks.py $(ARGS)

clean: ## Remove caches and build output; .venv and runs/ stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
