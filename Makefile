# Every target makes what it needs: system packages, a virtual environment, and the packages in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export PATH := $(PATH):/usr/sbin:/usr/local/sbin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo up test test-quick test-long chaos chaos-quick fuzz lint format docs bench bench-quick peers \
	constraints clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.platform ## Show the whole of it on this machine, in about two minutes
	$(BIN)/causeway demo $(DEMO)

up: $(VENV)/.platform ## Run a platform in .causeway until Ctrl-C
	@test -f .causeway/settings.toml || $(BIN)/causeway init
	$(BIN)/causeway up

test: $(VENV)/.dev ## Run all tests against real servers
	$(BIN)/python -m pytest $(PYTEST)

test-quick: $(VENV)/.dev ## Run the tests that need no server, and check that they cover the core
	$(BIN)/python -m pytest tests/unit tests/contract --cov --cov-report=term $(PYTEST)

test-long: fuzz ## Every crash point and power cut, and over a million damaged inputs; 20 minutes
	LONG_TESTS=1 $(BIN)/python -m pytest tests/power tests/fuzz \
		tests/integration/test_courier_crash_points.py tests/integration/test_edge_slow_link.py $(PYTEST)

chaos: $(VENV)/.dev ## 50 devices, 120,000 letters, everything killed and cut; writes chaos-report.json
	$(BIN)/python -m tests.chaos --report chaos-report.json $(CHAOS)

chaos-quick: $(VENV)/.dev ## The same in three minutes
	$(BIN)/python -m tests.chaos --quick --report chaos-report.json $(CHAOS)

fuzz: $(VENV)/.fuzz ## Throw 30,000 damaged messages at each parser that faces the network, over a million in all
	$(BIN)/python -m tests.fuzz $(FUZZ)

lint: $(VENV)/.dev ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## Write the generated documents anew
	$(BIN)/python -m schemas.asyncapi > docs/asyncapi.yaml
	$(BIN)/python -m causeway.reference

bench: $(VENV)/.dev peers ## Measure speed and memory beside the peers; prints JSON
	$(BIN)/python -m bench.ingest --json
	$(BIN)/python -m bench.roundtrip --json
	$(BIN)/python -m bench.footprint --json
	$(BIN)/python -m bench.letters --json
	$(BIN)/python -m bench.outbox --json
	$(BIN)/python -m bench.reconnect --json

bench-quick: $(VENV)/.dev ## The same, short and without peers that need an environment of their own
	$(BIN)/python -m bench.ingest --quick --json
	$(BIN)/python -m bench.roundtrip --quick --json
	$(BIN)/python -m bench.footprint --quick --json
	$(BIN)/python -m bench.letters --quick --json
	$(BIN)/python -m bench.outbox --quick --json
	$(BIN)/python -m bench.reconnect --quick --json

peers: .venv-peers/.done ## Install what the benches compare with, in its own environment

constraints: $(VENV)/.dev ## Pin the versions that are installed now
	(echo "# Versions that everything was tested with; \`make constraints\` writes this anew."; \
	 $(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools) > constraints.txt

clean: ## Remove the environments and caches
	rm -rf $(VENV) .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Also while it makes the environment, so that one command installs all.
$(VENV)/.dev: SYSTEM := --tests
$(VENV)/bin/python:
	PYTHON=$(PYTHON) infra/install-system $(SYSTEM)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.platform: $(VENV)/bin/python pyproject.toml constraints.txt
	PYTHON=$(PYTHON) infra/install-system
	@echo "installing the platform into $(VENV)"
	$(PIP) -e '.[platform]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	PYTHON=$(PYTHON) infra/install-system --tests
	@echo "installing the platform and its tools into $(VENV)"
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.platform $@

$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) -e '.[fuzz]'
	@touch $@

.venv-peers/.done: bench/peers.txt
	PYTHON=$(PYTHON) infra/install-system --tests
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r bench/peers.txt
	@touch $@
