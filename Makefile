# Plain `make` prints what there is. Everything lives in .venv; nothing outside this folder is touched, but for setup-system.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN  := $(VENV)/bin
JOBS ?= $(shell echo $$(($$(nproc) + 1)))
ARGS ?=

# One thread per test process: several small models at once, on few cores. One more process than cores, since tests of federations
# wait a fifth of their time. Work is stolen, since a few tests take a minute.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=15

.PHONY: help setup setup-system demo test test-all lint types bench docs format regold

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## build .venv with everything that tests need (PYTHON=, PIP_ARGS=); nothing to do when it is up to date
	@PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" scripts/setup

setup-system: ## install the system packages that are missing (as root), or print the line that does
	@scripts/setup-system

demo: setup ## a federation here, four hospitals with real records: who gains from joining (ARGS=)
	@$(BIN)/freehold demo $(ARGS)

test: setup ## the tests that CI runs: minutes (JOBS=, ARGS=)
	@$(TEST) -m "not slow and not kubernetes" $(ARGS)

test-all: setup ## every test, the slow ones too (JOBS=, ARGS=)
	@$(TEST) -m "not kubernetes" $(ARGS)

lint: setup ## ruff: mistakes, then format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy --strict on src
	@$(BIN)/mypy

bench: setup ## run the benchmarks; results go to benchmarks/results (ARGS=)
	@$(BIN)/python -m benchmarks $(ARGS)

docs: setup ## check the documentation: links, and that every flag, field, algorithm and error has its entry
	@$(BIN)/python -m pytest -q tests/architecture/test_docs.py $(ARGS)

format: setup ## format the code with ruff
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

regold: setup ## write the golden files anew; read their diff before you commit it
	@$(BIN)/python tests/architecture/imports.py
	@$(BIN)/python tests/architecture/algorithm_docs.py
	@$(BIN)/python tests/architecture/cli_docs.py
	@$(BIN)/python tests/architecture/wire_docs.py
	@$(BIN)/python -m tests.redteam
