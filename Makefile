# Two commands from nothing: `make run` and `make test`. `make help` lists the rest.
#
# They make a virtual environment in .venv; PYTHON=… names the Python it is made from. Data lies in .data;
# RANKLOOP_DATA_DIR=… names another folder.

# Best first: a Python that Rankloop is tested on, python3 before the others; then any that is new enough.
AT_LEAST = -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(1)))' 2>/dev/null
PYTHON ?= $(shell for last in 12 99; do for python in python3 python3.12 python3.11; do \
	$$python $(call AT_LEAST,'$$last') && echo $$python && exit; done; done)
VENV ?= .venv
BIN := $(VENV)/bin
export RANKLOOP_DATA_DIR ?= .data
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python keeps what it compiles, wherever it was told not to: from nothing, torch and transformers take 17 s instead of 6,
# at every start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test tests format lint types unit browser proxies bench mutants soak messages sbom clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

run: $(VENV)/.for-run ## start everything on this machine: database, web, worker; ARGS='--port 8001' is passed on
	@exec $(BIN)/rankloop up $(ARGS)

# One process more than cores: each waits a quarter of its time, for a browser or a database. One thread each: on a small
# busy machine the threads of torch spin against each other.
WORKERS = $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
# Types beside the tests, which leave a part of one core free: mypy keeps one busy for a minute or two.
test: $(VENV)/.for-test browser proxies lint ## check all that CI checks; ARGS='-k ranking' is passed on to pytest
	@$(MAKE) --no-print-directory --jobs=2 types tests

tests: export OMP_NUM_THREADS := 1
tests: $(VENV)/.for-test ## run all tests, without lint and types
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

unit: export OMP_NUM_THREADS := 1
unit: $(VENV)/.for-test ## run the tests that are neither slow nor in a browser
	$(BIN)/python -m pytest -m 'not slow and not browser' $(ARGS)

lint: $(VENV)/.for-test ## check format and lint only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.for-test ## check types only
	$(BIN)/mypy

format: $(VENV)/.for-test ## format the code, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

browser: $(VENV)/.for-test ## look for Chromium, and install it where that is possible
	@$(BIN)/python tests/chromium.py

proxies: $(VENV)/.for-test ## look for nginx and Caddy, and fetch them where that is possible
	@$(BIN)/python -m tests.proxies

bench: $(VENV)/.for-run ## measure: run every script in benchmarks/; ARGS=--quick for less than a minute each
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS) || exit 1; done

mutants: $(VENV)/.for-test browser ## plant errors in a copy of the trainer and holes in one of the app, and show which test turns red
	@$(BIN)/python -m tests.mutants $(ARGS)
	@$(BIN)/python -m tests.holes $(ARGS)

messages: $(VENV)/.for-test ## bring the catalogue of Chinese sentences in step with the pages
	@$(BIN)/python -m tests.messages

soak: export OMP_NUM_THREADS := 1
soak: $(VENV)/.for-test ## prove the trainer in full size: long, with kill -9 at random moments (an hour or two)
	@$(BIN)/python -m tests.soak --json benchmarks/results/soak.json $(ARGS)

sbom: $(VENV)/.for-test ## list what Rankloop is made of in build/: a bill of materials (CycloneDX), and the licences
	@mkdir -p build
	$(BIN)/cyclonedx-py environment --output-reproducible --no-validate --output-file build/sbom.json $(BIN)/python
	$(BIN)/pip-licenses --from=mixed --with-system --with-urls --format=markdown --output-file=build/licences.md

clean: ## remove the virtual environment and the caches; the data stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "Rankloop needs Python 3.11 or newer. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# A stamp is newer than what was installed from, so that a second start installs nothing. Python compiles what it imports,
# which is a tenth of what lies there: to compile all of it takes pip more than a minute.
$(VENV)/.for-run: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[trainer]'
	@touch $@

$(VENV)/.for-test: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[trainer,dev]'
	@touch $@ $(VENV)/.for-run
