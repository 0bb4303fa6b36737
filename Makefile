# Everything a person or CI runs. Each target does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/tools
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo up train-tiny test test-ui check format bench chaos soak images smoke lock audit clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime $(VENV)/.kernels ## Start everything, turn examples/prompts.txt into stories.jsonl, stop
	$(BIN)/slm demo

up: $(VENV)/.runtime $(VENV)/.kernels ## Start Redis, api and a worker; Ctrl-C stops them
	$(BIN)/slm up

train-tiny: $(VENV)/.train ## Train a toy model on some stories (under two minutes)
	rm -rf runs/tiny
	$(BIN)/python -m training.prepare examples/tinystories/stories.txt --out runs/tiny-data --valid-fraction 0.1
	$(BIN)/python -m training.train --data runs/tiny-data --out runs/tiny --preset tiny --context 256 --batch 4 --no-compile --minutes 1
	@echo "Serve it: $(BIN)/slm up --model runs/tiny"

# Files in the order of their names, as the long ones are not the last then. Many tests wait, for
# processes that start or die: one more at once than there are cores.
PARALLEL := --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev $(VENV)/.kernels $(TOOLS)/prometheus ## Run all tests
	$(BIN)/python -m pytest $(PARALLEL) --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 4

test-ui: $(VENV)/.dev $(VENV)/.kernels ## Test the playground in Chromium; skipped where there is none
	@for name in chromium chromium-browser google-chrome; do command -v $$name > /dev/null && exit; done; \
	echo "test-ui: SKIPPED, for there is no Chromium here. On Debian: apt-get install chromium"
	$(BIN)/python -m pytest -rs $(PARALLEL) --numprocesses 2 tests/ui

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
	$(BIN)/python -m benchmarks.scale

chaos: $(VENV)/.dev $(VENV)/.kernels ## Search the state machines, then ten minutes of faults; lose nothing
	SLM_HYPOTHESIS=slm-search $(BIN)/python -m pytest --timeout 0 tests/slm_jobs/test_machine.py tests/slm_jobs/test_batch_machine.py tests/slm_jobs/test_callback_machine.py
	$(BIN)/python -m tests.chaos --minutes 10

soak: $(VENV)/.dev $(VENV)/.kernels ## Half an hour at 80 % load: nothing may grow
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30)

# TORCH_INDEX: the address of an index of PyTorch's builds, see Dockerfile.worker.
images: $(VENV)/.dev ## Build the images, with docker, podman or buildah, and try them out
	$(BIN)/python -m tests.deploy --build -- $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX))

smoke: $(VENV)/.dev ## Try out images that are built
	$(BIN)/python -m tests.deploy

# For the images: their Python, and every file that the index has of each version. Without torch, of
# which there are builds for different hardware on different indexes. setuptools builds our package.
LOCK = $(TOOLS)/bin/uv pip compile --quiet --python-version 3.12 --python-platform linux \
	--generate-hashes --no-annotate --constraint constraints.txt --custom-compile-command 'make lock' \
	--excludes $(TOOLS)/excludes.txt pyproject.toml $(TOOLS)/build.in

lock: $(TOOLS)/.made ## Write down what the images install, with hashes (from the package index)
	@echo torch > $(TOOLS)/excludes.txt
	@echo setuptools > $(TOOLS)/build.in
	$(LOCK) --extra api --extra callbacks --output-file requirements-api.lock
	$(LOCK) --extra worker --output-file requirements-worker.lock

# --strict: a package that could not be looked up counts as a failure, not as a clean one.
audit: $(TOOLS)/.made ## Look for known vulnerabilities in all dependencies (needs the network)
	@$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
		--requirement constraints.txt \
		&& exit; \
	echo "audit: FAILED. After an ERROR above nothing was audited: PyPI's database of vulnerabilities"; \
	echo "cannot be reached from here. After a table, its packages are vulnerable."; \
	exit 1

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

$(VENV)/.train: $(VENV)/.runtime
	$(PIP) --editable '.[api,worker,callbacks,embedded,train]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once; PyTorch is large)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.runtime $(VENV)/.train

$(VENV)/.bench: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/.dev $(VENV)/.runtime $(VENV)/.train

# Apart from the rest: what they depend on is not pinned here.
$(TOOLS)/.made: $(BIN)/python
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 uv==0.13.9
	@touch $@

# Prometheus and promtool, for the tests of deploy/: Debian's package, unpacked here. Where it cannot be
# had, these tests are skipped, and say so.
$(TOOLS)/prometheus:
	@rm -rf $@.new && mkdir -p $@.new && ( \
		get() { apt-get download prometheus > /dev/null 2>&1; }; \
		cd $@.new && { get || { [ "$$(id -u)" = 0 ] && apt-get update > /dev/null 2>&1 && get; }; } \
		&& dpkg -x prometheus_*.deb . && rm prometheus_*.deb \
	) && mv $@.new $@ || { rm -rf $@.new; echo "no Prometheus can be had here (apt-get download" \
		"prometheus): its rules and dashboard are tested in part only"; }

# The engine runs without them, on PyTorch alone; the build says what is missing.
$(VENV)/.kernels: $(wildcard slm_core/kernels/*.*) $(VENV)/.runtime
	@$(BIN)/python -m slm_core.kernels.build && touch $@ || true
