# Two commands do everything: `make demo` and `make test`. Each sets itself up into .venv on its first run.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SHARED := -n 2 --dist loadgroup

.PHONY: setup demo test check quick lint bench simulate fuzz test-large clean help

help:            ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## install into .venv

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)   ## the main job for real: five nodes, one of them lying, train, publish, lose the publisher, serve
	$(BIN)/python -m simulations.demo

test: lint       ## everything that must hold
	$(BIN)/python -m pytest -m "not large" $(SHARED)

check: $(READY)  ## the quick part of it: style, types, layers, unit and property tests, side by side
	$(MAKE) --no-print-directory -j2 lint quick

quick: $(READY)
	$(BIN)/python -m pytest -q $(SHARED) --hypothesis-profile=brief \
		-m "not large and not thorough" tests/unit tests/property

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## measure against the limit or a peer in the same run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m simulations.bench

simulate: $(READY) ## the machines under a virtual clock, many seeded schedules
	$(BIN)/python -m simulations.rounds --schedules 10000
	$(BIN)/python -m simulations.auditing
	$(BIN)/python -m simulations.audited_rounds
	$(BIN)/python -m simulations.membership --peers 1000
	$(BIN)/python -m simulations.replication --peers 50

fuzz: $(READY)   ## what strangers' bytes reach first, fed with garbage for two minutes: make fuzz SECONDS=600 for longer
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),120)

test-large: $(READY) ## tests that need large assets, libraries of others, or minutes of a whole machine
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,large]'
	$(BIN)/python -m pytest -m large
	$(BIN)/python -m pytest tests/unit/test_gateway_clients.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
