# Everything a person or CI runs. Each target does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo up test check format bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime $(VENV)/.kernels ## Start everything, turn examples/prompts.txt into stories.jsonl, stop
	$(BIN)/slm demo

up: $(VENV)/.runtime $(VENV)/.kernels ## Start Redis, api and a worker; Ctrl-C stops them
	$(BIN)/slm up

test: $(VENV)/.dev $(VENV)/.kernels ## Run all tests
	$(BIN)/python -m pytest

check: $(VENV)/.dev ## Formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench $(VENV)/.kernels ## Measure engine, its peers and the service (over an hour)
	$(BIN)/python -m benchmarks.engine --plot docs/engine.png
	$(BIN)/python -m benchmarks.service

clean: ## Remove the virtual environment, caches and local data
	rm -rf $(VENV) .slm stories.jsonl slm_core/kernels/built .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; say make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once; PyTorch is large)"
	$(PIP) --editable '.[api,worker,callbacks,embedded]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once; PyTorch is large)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.runtime

$(VENV)/.bench: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/.dev $(VENV)/.runtime

# The engine runs without them, on PyTorch alone; the build says what is missing.
$(VENV)/.kernels: $(wildcard slm_core/kernels/*.*) $(VENV)/.runtime
	@$(BIN)/python -m slm_core.kernels.build && touch $@ || true
