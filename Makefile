# One word for each thing one does with nbdist; `make` alone lists them.
#
# Everything runs from .venv, which is made when first needed and again when pyproject.toml or
# constraints.txt changed. The benchmark's peers have a .venv-peers of their own: one of them takes
# over every notebook of the environment it is in.

VENV := .venv
PEERS_VENV := .venv-peers
STAMP := $(VENV)/.installed
PEERS_STAMP := $(PEERS_VENV)/.installed
BIN := $(VENV)/bin

# Never a shim that is not installed, never a Python without what `venv` needs.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
		2>/dev/null && echo "$$python" && break; done)

define NO_PYTHON
No Python 3.11 to 3.14 that can make a virtual environment was found.
On Debian and Ubuntu: apt install python3-venv   (as root; Debian 12 or newer)
Elsewhere, name one:  make $(or $(MAKECMDGOALS),venv) PYTHON=/path/to/python3.12
endef
export NO_PYTHON

PYTEST := $(BIN)/python -m pytest
PIP := -m pip --disable-pip-version-check
TUTORIALS := build/tutorials
NOTEBOOK := notebooks/01-start.ipynb
BROWSER := chromium fonts-dejavu fonts-liberation fonts-noto-color-emoji

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help venv venv-peers demo lab lint format test test-quick test-ranks test-recovery test-soak test-notebooks test-browser notebooks browser bench pictures clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## the environment everything runs from
venv-peers: $(PEERS_STAMP) ## the environment of the benchmark's peers

$(STAMP): pyproject.toml constraints.txt
	@$(call make_venv,$(VENV))
	@$(BIN)/python $(PIP) install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python $(PIP) install --quiet --constraint constraints.txt \
		--editable '.[lab,plots,tutorials]' --group dev
	@touch $@

$(PEERS_STAMP): tests/bench/requirements-peers.txt constraints.txt
	@$(call make_venv,$(PEERS_VENV))
	$(PEERS_VENV)/bin/python $(PIP) install --quiet --constraint constraints.txt \
		--requirement tests/bench/requirements-peers.txt
	@touch $@

# $(1): the folder of the environment; left alone where it already works.
define make_venv
	if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
		if [ -z "$(PYTHON)" ]; then echo "$$NO_PYTHON" >&2; exit 1; fi; \
		echo "making $(1) with $$($(PYTHON) --version); this takes a few minutes once"; \
		$(PYTHON) -m venv --clear $(1) || { echo "$$NO_PYTHON" >&2; exit 1; }; \
	fi
endef

demo: $(STAMP) ## the first tutorial here in the terminal, on two ranks
	@$(BIN)/nbdist run $(NOTEBOOK)
	@echo
	@echo "That was $(NOTEBOOK), every cell of it on two ranks. Next:"
	@printf '  %-42s %s\n' 'make lab' 'the same in JupyterLab, to change and run again' \
		'$(BIN)/nbdist run notebooks/02-*.ipynb' 'the next tutorial, here in the terminal'

# A copy: what one tries out there never shows up in the tutorials, and stays until `make clean`.
lab: $(STAMP) ## JupyterLab on a copy of the tutorials
	@mkdir -p $(TUTORIALS)
	@for notebook in notebooks/*; do \
		[ -e "$(TUTORIALS)/$${notebook##*/}" ] || cp -R "$$notebook" $(TUTORIALS)/; done
	@$(BIN)/nbdist lab $(TUTORIALS)

lint: $(STAMP) ## format, style, types, borders between modules, spelling
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(STAMP) ## put the code in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint test-quick test-ranks test-notebooks test-browser ## lint, then all tests

test-quick: $(STAMP) ## the tests that start no rank: seconds
	$(PYTEST) -m 'not ranks and not browser'

test-ranks: $(STAMP) ## the tests with real ranks
	$(PYTEST) -m 'ranks and not browser'

test-recovery: $(STAMP) ## of these, what happens when ranks fail
	$(PYTEST) -m recovery tests/runtime tests/faults

test-soak: $(STAMP) ## thousands of mixed cells with failures, stops and deaths: minutes; SOAK='--cells 500'
	@$(BIN)/python -m tests.soak $(SOAK)

# The plugin is named because tests/conftest.py is out of pytest's sight from here.
test-notebooks: $(STAMP) ## the tutorials, each output compared with the saved one
	$(PYTEST) -p tests.conftest --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval-sanitize.cfg notebooks

notebooks: $(STAMP) ## run the tutorials and keep their outputs in the files
	$(BIN)/python -m tests.renew notebooks/*.ipynb

# Without apt, or without the right to use it, the tests say what was not run; in CI they fail.
test-browser: $(STAMP) browser ## the notebook in a real JupyterLab, in headless Chromium
	$(PYTEST) -m browser tests/browser

browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
		echo 'installing Chromium for the tests in a browser'; \
		timeout 300 apt-get install --yes --quiet $(BROWSER) >/dev/null 2>&1 || \
		{ timeout 120 apt-get update --quiet && timeout 300 apt-get install --yes --quiet $(BROWSER); } >/dev/null 2>&1 || \
		echo 'Chromium is missing and apt cannot install it: nothing is tried in a browser' >&2; }

bench: $(STAMP) $(PEERS_STAMP) ## nbdist beside its peers; BENCH='--quick --ranks 2' for options
	@$(BIN)/python -m tests.bench $(BENCH)

pictures: $(STAMP) $(PEERS_STAMP) browser ## those of README and docs, from cells that really run
	@$(BIN)/python -m tests.browser.pictures

clean: ## remove what make built, copies of tutorials too; environments stay
	rm -rf build dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
