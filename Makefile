# Every target sets up what it needs. PYTHON names another Python 3.12; CORPUS a folder of your own text for benchmarks.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3.12
UV_VERSION := 0.13.9
BIN := .venv/bin
export VIRTUAL_ENV := $(CURDIR)/.venv

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

.venv/.uv:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 | grep -q ' 3\.1[2-9]' || { \
	  echo "gristmill needs Python 3.12: '$(PYTHON)' is not there. Install it, or say make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/.packages: .venv/.uv requirements.lock
	$(BIN)/uv pip install --quiet --require-hashes --requirement requirements.lock
	@touch $@

.venv/.gristmill: .venv/.packages pyproject.toml README.md rustbpe/Cargo.toml rustbpe/Cargo.lock $(wildcard rustbpe/src/*.rs)
	@command -v cargo >/dev/null || { \
	  echo "gristmill needs Rust 1.88 or newer: 'cargo' is not there. Install it with rustup" >&2; exit 1; }
	$(BIN)/maturin develop --release --locked --uv
	@touch $@

.PHONY: setup
setup: .venv/.gristmill ## Install everything into .venv

.PHONY: demo
demo: setup ## Train a small model on this machine, from text to samples and an export
	$(BIN)/gristmill run jobs/demo.yaml

.PHONY: lint
lint: setup ## Check style, types, import contracts and the Rust core
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --project pyproject.toml
	$(BIN)/lint-imports --no-logo
	cargo fmt --manifest-path rustbpe/Cargo.toml --check
	cargo clippy --manifest-path rustbpe/Cargo.toml --release --locked --all-targets -- -D warnings

.PHONY: test
test: lint ## Run every test that this machine can
	$(BIN)/pytest -n 2 --dist loadfile
	@echo "not run here: make test-interop (transformers and PyTorch, 3 GB, in an environment of its own)"

.venv-interop/.packages: tests/interop/requirements.txt .venv/.uv
	$(PYTHON) -m venv .venv-interop
	VIRTUAL_ENV=$(CURDIR)/.venv-interop $(BIN)/uv pip install --quiet --requirement tests/interop/requirements.txt
	@touch $@

.PHONY: test-interop
test-interop: setup .venv-interop/.packages ## Check exports against transformers and PyTorch (downloads 3 GB)
	GRISTMILL_PYTHON=$(CURDIR)/$(BIN)/python .venv-interop/bin/python -m pytest tests/interop

.PHONY: format
format: setup ## Format Python and Rust
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	cargo fmt --manifest-path rustbpe/Cargo.toml

.PHONY: lock
lock: .venv/.uv ## Choose new versions of the Python packages
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade --python-version 3.12 --extra train --group dev \
	  --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

.PHONY: clean
clean: ## Remove everything that was built, but no run
	rm -rf .venv .venv-interop rustbpe/target
